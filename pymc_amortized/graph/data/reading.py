"""The door for data: what a user hands over becomes named arrays of the model's shapes and dtypes, or a clear error."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.graph.data.arrays import cast, cast_with_gaps, check_complete, read_array
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets, outside_of
from pymc_amortized.graph.data.frames import columns_of, dealt_out, is_frame, wanted_columns
from pymc_amortized.graph.data.groups import (
    count_groups,
    dims_given,
    dims_of_groups,
    held_groups,
    labels_of_groups,
    read_groups,
)
from pymc_amortized.graph.data.labels import dim_of_datasets, labels_along, same_labels, say_nothing
from pymc_amortized.graph.data.support import refuse_impossible
from pymc_amortized.graph.model.indices import counted_by, refuse_indices, refuse_uncounted
from pymc_amortized.graph.model.sizes import padded
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec


def read_datasets(spec: ModelSpec, data: Any, *, batched: bool = False) -> DataSets:
    """Check data against the model.

    Parameters
    ----------
    spec : ModelSpec
    data : mapping of name to array_like, or xarray.Dataset, or data frame, or DataSets, or None
        Observed variables, by their name or by that of the ``pm.Data`` that holds their values, and context
        variables. None stands for what the model held when it was read; simulated data sets need no check. Several data
        sets may also come as a list of these, a mapping from labels to them, or a ``DataFrame.groupby(...)``.
    batched : bool
        Whether arrays have a leading axis of data sets (``dataset``).

    Raises
    ------
    KeyError
        A variable is missing, or the model has no such variable.
    ValueError, TypeError
        A value has the wrong type, shape, dims, coordinates or support.
    """
    if not isinstance(batched, bool | np.bool_):
        raise TypeError(f"batched must be True or False, got {batched!r}")
    if isinstance(data, DataSets):
        return data
    if data is None:
        if batched:
            raise ValueError("observed is needed with batched=True: the model holds a single data set")
        if not spec.holds_data:
            raise ValueError(f"observed is needed: the model holds no data for {[v.name for v in spec.observed]}")
        data = {v.name: spec.held[v.name] for v in spec.data} | held_groups(spec)
    data, labels = dealt_out(data, _known(spec))
    if not batched:
        if isinstance(data, list | tuple):
            raise TypeError("observed is no single data set: pass batched=True for several data sets")
        data = wanted_columns(data, _known(spec))
        return replace(_stacked(spec, [_read(spec, data, False)], None), coords=_coords(spec, data))
    if isinstance(data, list | tuple):
        if not data:
            raise ValueError("observed holds no data set: the list is empty")
        labels = np.arange(len(data)) if labels is None else labels
        sets = wanted_columns(data, _known(spec))
        return _stacked(spec, [_read_one(spec, each, at) for at, each in zip(labels, sets, strict=True)], labels)
    data = wanted_columns(data, _known(spec))
    given = _by_variable(spec, _as_mapping(data), batched)
    if spec.sizes and any(isinstance(value, list | tuple) for value in given.values()):
        sets = _dealt(given)
        return _stacked(spec, [_read_one(spec, each, i) for i, each in enumerate(sets)], np.arange(len(sets)))
    arrays = _same_number(spec, _read(spec, given, True, tails=_may_have_tails(given)))
    n, labels = len(next(iter(arrays.values()))), _labels(spec, given)
    if labels is not None and len(labels) != n:
        raise ValueError(f"the {DATASET_DIM!r} coordinate has {len(labels)} labels for {n} data sets")
    labels = np.arange(n) if labels is None else labels
    if not spec.sizes:
        return DataSets(_filled(spec, arrays), labels, True, {}, _gaps(spec, arrays))
    sets = [{k: v[i] for k, v in arrays.items()} for i in range(n)]
    if _may_have_tails(given):
        sets = [_without_tail(spec, values) for values in sets]
    return _stacked(spec, sets, labels)


def read_given(
    spec: ModelSpec,
    limits: Mapping[str, tuple[int, int]],
    data: Any,
    *,
    batched: bool = False,
    models: Sequence[ModelSpec] | None = None,
) -> DataSets:
    """Read what a user observed; refuse indices that pick nothing, beyond their limits, and what no model can produce.

    Simulated data sets are not looked at again.
    """
    datasets = read_datasets(spec, data, batched=batched)
    refuse_indices(datasets.existing(spec), limits, "observed")
    if not isinstance(data, DataSets):
        refuse_impossible([spec] if models is None else models, datasets)
    return datasets


def read_context(spec: ModelSpec, context: Any, like: DataSets) -> DataSets:
    """Read other covariates for the data sets of a result, of any length: one set for all of them, or one for each.

    Numbers of groups that are not given are those of the data sets, or more where an index says so.

    Raises
    ------
    KeyError, ValueError, TypeError
        As in :func:`read_datasets`, or where their number is not that of the result's data sets.
    """
    if not spec.context:
        raise ValueError("context: the posterior was trained with no covariates that vary, so there are no others")
    of = replace(spec.of_any_length(), observed=())
    counted = [dim for dim in dims_of_groups(spec) if dim in counted_by(spec)]
    carried = {dim for c in spec.context for dim in c.sized} | set(counted)
    if lost := [r.dim for r in spec.sizes if r.dim not in carried]:
        raise ValueError(f"context: no covariate has the dims {lost}, so the length of what to predict is not known")
    for_all = not like.batched or (
        isinstance(context, Mapping | xr.Dataset)
        and all(np.ndim(v) == len(c.shape) for c in spec.context for name, v in context.items() if name == c.name)
    )
    read = read_datasets(of, context, batched=not for_all)
    if for_all:
        coords = read.coords
        read = replace(read.take(np.zeros(len(like), dtype=int)), coords=coords, batched=like.batched)
    if len(read) != len(like):
        raise ValueError(f"context: covariates of {len(read)} data sets for a result of {len(like)}")
    own = [dim for dim in counted if not (isinstance(context, Mapping | xr.Dataset) and dim in context)]
    lengths = {dim: np.maximum(read.lengths[dim], like.lengths[dim]) for dim in own}
    same = [dim for dim in own if dim in like.coords and np.array_equal(lengths[dim], like.lengths[dim])]
    coords = {dim: like.coords[dim] for dim in same} | read.coords
    return replace(read, labels=like.labels, lengths=read.lengths | lengths, coords=coords)


def _coords(spec: ModelSpec, data: Any) -> dict[str, Any]:
    """Labels that one data set brings for dimensions whose length varies."""
    given = _by_variable(spec, _as_mapping(data), False)
    found = {r.dim: labels_along(v, r.dim, given[v.name]) for r in spec.sizes for v in spec.data if r.dim in v.sized}
    told = {dim: labels for dim, labels in found.items() if labels is not None and not say_nothing(labels)}
    return {dim: labels.to_numpy() for dim, labels in told.items()} | labels_of_groups(spec, given)


def _may_have_tails(given: Mapping[str, Any]) -> bool:
    """Whether NaN may stand beyond the end of a data set: so xarray aligns unequal lengths."""
    return all(isinstance(value, xr.DataArray) for value in given.values())


def _read(spec: ModelSpec, data: Any, batched: bool, *, tails: bool = False) -> dict[str, np.ndarray]:
    """Check each variable by itself; gaps are NaN in float64."""
    given = _by_variable(spec, _as_mapping(data), batched)
    arrays = {v.name: read_array(spec, v, given[v.name], batched, tails=tails and bool(spec.sizes)) for v in spec.data}
    return arrays | read_groups(spec, given, batched)


def _known(spec: ModelSpec) -> dict[str, int]:
    """Axes of all data that a model has, by name: varying ones, and fixed ones, which are refused by name."""
    known = {v.name: len(v.shape) for v in (*spec.data, *spec.fixed)}
    return known | {v.container: len(v.shape) for v in spec.observed if v.container}


def _read_one(spec: ModelSpec, data: Any, label: Any) -> dict[str, np.ndarray]:
    """Read one data set of a list, and say which it is if that fails."""
    try:
        arrays = _read(spec, data, False)
        _lengths(spec, arrays)
    except (ValueError, TypeError, KeyError) as error:
        raise type(error)(f"data set {label}: {error.args[0]}") from None
    return arrays


def _dealt(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lists of arrays, one for each data set, as a list of data sets; a single number is that of all."""
    numbers = {name: len(value) for name, value in given.items() if isinstance(value, list | tuple) or np.ndim(value)}
    if len(set(numbers.values())) != 1 or 0 in numbers.values():
        raise ValueError(f"the variables hold different numbers of data sets, or none: {numbers}")
    number = next(iter(numbers.values()))
    return [{k: value[i] if k in numbers else value for k, value in given.items()} for i in range(number)]


def _stacked(spec: ModelSpec, sets: list[dict[str, np.ndarray]], labels: np.ndarray | None) -> DataSets:
    """Lay data sets of any lengths into common arrays."""
    each = [_lengths(spec, arrays) for arrays in sets]
    lengths = {r.dim: np.array([one[r.dim] for one in each]) for r in spec.sizes}
    longest = {dim: int(n.max()) for dim, n in lengths.items()}
    arrays = {v.name: np.stack([padded(values[v.name], v.shape_at(longest)) for values in sets]) for v in spec.data}
    outside = {v.name: outside_of(v, arrays[v.name], lengths) for v in spec.data if v.sized and v.missing}
    gaps = {name: gap & ~outside.get(name, np.False_) for name, gap in _gaps(spec, arrays).items()}
    n = len(sets)
    return DataSets(
        _filled(spec, arrays), np.arange(n) if labels is None else labels, labels is not None, lengths, gaps
    )


def _lengths(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Lengths of one data set's dimensions, the same in all its arrays and within the range trained for."""
    found: dict[str, int] = {}
    carriers: dict[str, str] = {}
    for v in spec.data:
        for dim, length in v.lengths(arrays[v.name].shape).items():
            first = carriers.setdefault(dim, v.name)
            if found.setdefault(dim, length) != length:
                raise ValueError(f"dimension {dim!r} has length {found[dim]} in {first!r} and {length} in {v.name!r}")
            if dim in arrays and dim in dims_given(spec) and int(arrays[dim]) != length:
                raise ValueError(f"observed[{dim!r}] says {int(arrays[dim])}, and {v.name!r} has length {length} there")
    found |= count_groups(spec, arrays)
    refuse_uncounted(arrays, counted_by(spec), found, "observed")
    for r in spec.sizes:
        if not r.smallest <= found[r.dim] <= r.largest:
            raise ValueError(
                f"dimension {r.dim!r} has length {found[r.dim]}; the posterior was trained for "
                f"{r.smallest} to {r.largest}. For others, train with context={{{r.dim!r}: (smallest, largest)}}"
            )
    return found


def _without_tail(spec: ModelSpec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cut off trailing entries of a dimension that are NaN in all variables, down to the smallest length."""
    for r in (r for r in spec.sizes if r.dim not in dims_of_groups(spec)):
        carriers = {v.name: v.dims.index(r.dim) for v in spec.data if r.dim in v.sized}
        empty = np.ones(next(arrays[k].shape[axis] for k, axis in carriers.items()), dtype=bool)
        for name, axis in carriers.items():
            nan = np.isnan(arrays[name]) if arrays[name].dtype.kind == "f" else np.zeros(arrays[name].shape, bool)
            empty &= np.moveaxis(nan, axis, 0).reshape(len(empty), -1).all(axis=1)
        length = len(empty) - int(np.argmin(empty[::-1])) if not empty.all() else 0
        length = min(max(length, r.smallest), len(empty))
        for name, axis in carriers.items():
            arrays[name] = arrays[name].take(range(length), axis=axis)
    for v in spec.data:
        if not v.missing:
            arrays[v.name] = cast(v, check_complete(v, arrays[v.name]))
    return arrays


def _gaps(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {v.name: np.isnan(arrays[v.name]) for v in spec.data if v.missing}


def _filled(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring arrays with gaps into the model's dtype: 0 where it has no NaN."""
    return {v.name: cast_with_gaps(v, arrays[v.name]) if v.missing else arrays[v.name] for v in spec.data}


def _as_mapping(data: Any) -> dict[str, Any]:
    if isinstance(data, xr.DataTree):
        if data.children:
            raise TypeError(f"observed is a DataTree with groups {sorted(data.children)}; pass one of them")
        data = data.to_dataset()
    if is_frame(data):
        return columns_of(data)
    if isinstance(data, xr.Dataset):
        return {str(name): data[name] for name in [*data.data_vars, *data.dims] if name in data.variables}
    if not isinstance(data, Mapping):
        raise TypeError(
            f"observed must map names of observed variables to arrays, as in {{'y': array}}; got {type(data).__name__}"
            + ("; open a path, as by xarray.open_zarr" if isinstance(data, str | PathLike) else "")
        )
    return dict(data)


def _by_variable(spec: ModelSpec, data: Mapping[str, Any], batched: bool) -> dict[str, Any]:
    names = {v.name: v.name for v in spec.data}
    names |= {v.container: v.name for v in spec.observed if v.container} | {d: d for d in dims_given(spec)}
    fixed = {v.name for v in spec.fixed}
    given: dict[str, Any] = {}
    for name, value in data.items():
        if name in fixed:
            raise KeyError(
                f"observed: data container {name!r} was fixed when the posterior was trained; to let it "
                f"vary between data sets, train with context={{{name!r}: ...}}"
            )
        own = name in names and name not in dims_given(spec) or name in dims_of_groups(spec)
        if not own and isinstance(value, xr.DataArray) and value.dims == (name,):
            continue  # labels of a dim
        if name not in names:
            raise KeyError(f"observed: the model has no data named {name!r}; it has {sorted(names)}")
        if names[name] in given:
            raise KeyError(f"observed: {names[name]!r} is given twice, once as {name!r}")
        given[names[name]] = value
    if batched:
        given |= {v.name: _along_datasets(v, given[v.name]) for v in spec.data if v.name in given}
    _refuse_misaligned(spec, given, batched)
    missing = [v.name for v in spec.data if v.name not in given]
    if missing:
        raise KeyError(f"observed: values are missing for {missing}; given: {sorted(data)}")
    return given


def _along_datasets(variable: DataVariable, value: Any) -> Any:
    """Call the dim of data sets of a DataArray by the name that results have, with its labels."""
    dim = dim_of_datasets(variable, value) if isinstance(value, xr.DataArray) else None
    if dim in (None, DATASET_DIM):
        return value
    return value.drop_vars(DATASET_DIM, errors="ignore").rename({dim: DATASET_DIM})


def _refuse_misaligned(spec: ModelSpec, given: Mapping[str, Any], batched: bool) -> None:
    """Labels of a dimension for which the model has none are the data's own: variables must agree on them."""
    varying = {r.dim for r in spec.sizes}
    dims = dict.fromkeys(d for v in spec.data for d in v.dims if d)
    for dim in (d for d in dims if d in varying or spec.labels_of(d) is None):
        found = {v.name: labels_along(v, dim, given[v.name], batched) for v in spec.data if v.name in given}
        _same(found, dim)


def _same(found: Mapping[str, pd.Index | None], dim: str) -> pd.Index | None:
    """Labels along a dim that several variables bring, which must be the same in the same order."""
    labelled = {name: labels for name, labels in found.items() if labels is not None and not say_nothing(labels)}
    if not labelled:
        return None
    # default numbers beside others may be labels too
    labelled |= {name: labels for name, labels in found.items() if labels is not None}
    first = next(name for name, labels in labelled.items() if not say_nothing(labels))
    for name, labels in labelled.items():
        if not same_labels(labels, labelled[first]):
            raise ValueError(
                f"{name!r} has other labels of {dim!r}, or another order of them, than {first!r}: align them first "
                "(xarray.align, DataFrame.reindex), or pass one xarray.Dataset"
            )
    return labelled[first]


def _labels(spec: ModelSpec, given: Mapping[str, Any]) -> np.ndarray | None:
    """Labels of the data sets; variables that carry labels must carry the same, in the same order."""
    labels = _same({v.name: labels_along(v, DATASET_DIM, given[v.name], True) for v in spec.data}, DATASET_DIM)
    if isinstance(labels, pd.MultiIndex):
        raise ValueError(f"data sets have labels of {labels.nlevels} levels: give one label to each")
    return None if labels is None else labels.to_numpy()


def _same_number(spec: ModelSpec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    lengths = {v.name: len(arrays[v.name]) for v in spec.data if arrays[v.name].ndim > len(v.shape)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the variables hold different numbers of data sets: {lengths}")
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError("observed holds no data set: the leading axis has length 0")
    groups = {dim: np.broadcast_to(arrays[dim], n) for dim in dims_given(spec) if dim in arrays}
    return groups | {
        v.name: arrays[v.name] if v.name in lengths else np.broadcast_to(arrays[v.name], (n, *arrays[v.name].shape))
        for v in spec.data
    }
