"""The door for data: what a user hands over becomes named arrays of the model's shapes and dtypes, or a clear error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.graph.simulator import Simulations
from pymc_amortized.graph.sizes import cut, padded
from pymc_amortized.graph.spec import DataVariable, ModelSpec, Parameter

DATASET_DIM = "dataset"


@dataclass(frozen=True, eq=False)
class DataSets:
    """One or many data sets.

    Attributes
    ----------
    values : dict of name to ndarray (n, *shape)
        Observed and context variables of `n` data sets, up to the longest of them, NaN or 0 beyond each one's length.
    lengths : dict of name to ndarray (n,)
        Lengths of the dimensions that differ between data sets.
    missing : dict of name to bool ndarray (n, *shape)
        Where values are missing, for observed variables that may have gaps.
    coords : dict of name to array_like
        Labels of dimensions that differ between data sets, of one data set that brings its own.
    labels : ndarray (n,)
        Coordinate of the ``dataset`` dimension.
    batched : bool
        Whether results carry the ``dataset`` dimension.
    sketch : ndarray (n, width) or None
        What is known of each posterior, where that was computed already.
    """

    values: dict[str, np.ndarray]
    labels: np.ndarray
    batched: bool
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, np.ndarray] = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)
    sketch: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Any) -> DataSets:
        """Return several of the data sets."""

        def taken(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[index] for name, values in arrays.items()}

        return DataSets(
            taken(self.values),
            self.labels[index],
            self.batched,
            taken(self.lengths),
            taken(self.missing),
            sketch=None if self.sketch is None else self.sketch[index],
        )

    def equals(self, other: DataSets) -> bool:
        """Whether they are the same data: values where there are any, sizes and gaps."""
        pairs = [(self.values, other.values), (self.lengths, other.lengths), (self.missing, other.missing)]
        return all(
            one.keys() == two.keys() and all(np.array_equal(one[k], two[k], equal_nan=_may_be_nan(one[k])) for k in one)
            for one, two in pairs
        )

    def many(self) -> DataSets:
        """Return the same with a ``dataset`` dimension in results."""
        return replace(self, batched=True)

    def shown(self, variable: DataVariable) -> np.ndarray:
        """Values (n, *shape) with NaN where there is none: what is missing, or beyond a data set's length."""
        values = self.values[variable.name]
        absent = self.outside(variable)
        if variable.name in self.missing:
            absent |= self.missing[variable.name]
        return np.where(absent, np.nan, values) if absent.any() else values

    def outside(self, variable: DataVariable) -> np.ndarray:
        """Mark values (n, *shape) beyond the lengths of their data set."""
        return outside_of(variable, self.values[variable.name], self.lengths)

    def existing(self, spec: ModelSpec) -> dict[str, np.ndarray]:
        """Values of all data sets within their own lengths, flat."""
        return {v.name: self.values[v.name][~self.outside(v)] for v in spec.data}

    def one(self, spec: ModelSpec, index: int) -> dict[str, Any]:
        """Return what densities take of one data set: values, cut to its lengths, the lengths, and gaps."""
        lengths = {dim: int(n[index]) for dim, n in self.lengths.items()}
        values: dict[str, Any] = dict(lengths)
        for v in spec.data:
            values[v.name] = cut(self.values[v.name][index], v.shape_at(lengths))
            if v.missing:
                values[gaps_of(v.name)] = cut(self.missing[v.name][index], v.shape_at(lengths))
        return values


def _may_be_nan(array: np.ndarray) -> bool:
    return array.dtype.kind == "f"


def of_simulations(simulations: Simulations) -> DataSets:
    """Regard simulations as data sets."""
    return DataSets(
        dict(simulations.data),
        np.arange(len(simulations)),
        True,
        dict(simulations.lengths),
        dict(simulations.missing),
        sketch=simulations.sketch,
    )


def gaps_of(name: str) -> str:
    """Name under which densities take the gaps of a variable."""
    return f"missing {name}"


def read_datasets(spec: ModelSpec, data: Any, *, batched: bool = False) -> DataSets:
    """Check data against the model.

    Parameters
    ----------
    spec : ModelSpec
    data : mapping of name to array_like, or xarray.Dataset, or DataSets, or None
        Observed variables, by their name or by that of the ``pm.Data`` that holds their values, and context
        variables. None stands for what the model held when it was read; simulated data sets need no check.
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
        data = {v.name: spec.held[v.name] for v in spec.data}
    if not batched:
        if isinstance(data, list | tuple):
            raise TypeError("observed is a list: pass batched=True for several data sets")
        return replace(_stacked(spec, [_read(spec, data, False)], None), coords=_coords(spec, data))
    if isinstance(data, list | tuple):
        if not data:
            raise ValueError("observed holds no data set: the list is empty")
        return _stacked(spec, [_read_one(spec, each, i) for i, each in enumerate(data)], np.arange(len(data)))
    given = _by_variable(spec, _as_mapping(data))
    if spec.sizes and any(isinstance(value, list | tuple) for value in given.values()):
        sets = _dealt(given)
        return _stacked(spec, [_read_one(spec, each, i) for i, each in enumerate(sets)], np.arange(len(sets)))
    arrays = _same_number(spec, _read(spec, given, True, tails=_may_have_tails(given)))
    n, labels = len(next(iter(arrays.values()))), _labels(given)
    if labels is not None and len(labels) != n:
        raise ValueError(f"the {DATASET_DIM!r} coordinate has {len(labels)} labels for {n} data sets")
    labels = np.arange(n) if labels is None else labels
    if not spec.sizes:
        return DataSets(_filled(spec, arrays), labels, True, {}, _gaps(spec, arrays))
    sets = [{k: v[i] for k, v in arrays.items()} for i in range(n)]
    if _may_have_tails(given):
        sets = [_without_tail(spec, values) for values in sets]
    return _stacked(spec, sets, labels)


def _coords(spec: ModelSpec, data: Any) -> dict[str, Any]:
    """Labels that one data set brings for dimensions whose length varies."""
    labelled = [v for v in _as_mapping(data).values() if isinstance(v, xr.DataArray)]
    return {r.dim: v.coords[r.dim].to_numpy() for r in spec.sizes for v in labelled if r.dim in v.coords}


def _may_have_tails(given: Mapping[str, Any]) -> bool:
    """Whether NaN may stand beyond the end of a data set: so xarray aligns unequal lengths."""
    return all(isinstance(value, xr.DataArray) for value in given.values())


def _read(spec: ModelSpec, data: Any, batched: bool, *, tails: bool = False) -> dict[str, np.ndarray]:
    """Check each variable by itself; gaps are NaN in float64."""
    given = _by_variable(spec, _as_mapping(data))
    return {v.name: _array(spec, v, given[v.name], batched, tails=tails and bool(spec.sizes)) for v in spec.data}


def _read_one(spec: ModelSpec, data: Any, index: int) -> dict[str, np.ndarray]:
    """Read one data set of a list, and say which it is if that fails."""
    try:
        arrays = _read(spec, data, False)
        _lengths(spec, arrays)
    except (ValueError, TypeError, KeyError) as error:
        raise type(error)(f"data set {index}: {error.args[0]}") from None
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


def outside_of(variable: DataVariable, array: np.ndarray, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mark elements (n, *shape) beyond the lengths (n,) of their data set."""
    outside = np.zeros(array.shape, dtype=bool)
    for axis, dim in enumerate(variable.dims, start=1):
        if dim in variable.sized and dim is not None:
            index = np.arange(array.shape[axis]).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
            outside |= index >= lengths[dim].reshape([-1] + [1] * (array.ndim - 1))
    return outside


def _lengths(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Lengths of one data set's dimensions, the same in all its arrays and within the range trained for."""
    found: dict[str, int] = {}
    carriers: dict[str, str] = {}
    for v in spec.data:
        for dim, length in v.lengths(arrays[v.name].shape).items():
            first = carriers.setdefault(dim, v.name)
            if found.setdefault(dim, length) != length:
                raise ValueError(f"dimension {dim!r} has length {found[dim]} in {first!r} and {length} in {v.name!r}")
    for r in spec.sizes:
        if not r.smallest <= found[r.dim] <= r.largest:
            raise ValueError(
                f"dimension {r.dim!r} has length {found[r.dim]}; the posterior was trained for "
                f"{r.smallest} to {r.largest}"
            )
    return found


def _without_tail(spec: ModelSpec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cut off trailing entries of a dimension that are NaN in all variables, down to the smallest length."""
    for r in spec.sizes:
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
            arrays[v.name] = _cast(v, _complete(v, arrays[v.name]))
    return arrays


def _gaps(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {v.name: np.isnan(arrays[v.name]) for v in spec.data if v.missing}


def _filled(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring arrays with gaps into the model's dtype: 0 where it has no NaN."""
    return {v.name: cast_with_gaps(v, arrays[v.name]) if v.missing else arrays[v.name] for v in spec.data}


def cast_with_gaps(variable: DataVariable, array: np.ndarray) -> np.ndarray:
    """Bring an array that may hold NaN into the model's dtype: 0 in its place where that has none."""
    whole = np.dtype(variable.dtype).kind != "f"
    return _cast(variable, np.where(np.isnan(array), 0, array) if whole else array, gaps=not whole)


def _as_mapping(data: Any) -> dict[str, Any]:
    if isinstance(data, xr.DataTree):
        if data.children:
            raise TypeError(f"observed is a DataTree with groups {sorted(data.children)}; pass one of them")
        data = data.to_dataset()
    if isinstance(data, pd.DataFrame):
        return {str(name): data[name] for name in data.columns}
    if isinstance(data, xr.Dataset):
        return {str(name): data[name] for name in data.data_vars}
    if not isinstance(data, Mapping):
        raise TypeError(
            f"observed must map names of observed variables to arrays, as in {{'y': array}}; got {type(data).__name__}"
        )
    return dict(data)


def _by_variable(spec: ModelSpec, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {v.name: v.name for v in spec.data}
    names |= {v.container: v.name for v in spec.observed if v.container}
    fixed = {v.name for v in spec.fixed}
    given: dict[str, Any] = {}
    for name, value in data.items():
        if name in fixed:
            raise KeyError(
                f"observed: data container {name!r} was fixed when the posterior was trained; to let it "
                f"vary between data sets, train with context={{{name!r}: ...}}"
            )
        if name not in names:
            raise KeyError(f"observed: the model has no data named {name!r}; it has {sorted(names)}")
        if names[name] in given:
            raise KeyError(f"observed: {names[name]!r} is given twice, once as {name!r}")
        given[names[name]] = value
    _refuse_misaligned(spec, given)
    missing = [v.name for v in spec.data if v.name not in given]
    if missing:
        raise KeyError(f"observed: values are missing for {missing}; given: {sorted(data)}")
    return given


def _refuse_misaligned(spec: ModelSpec, given: Mapping[str, Any]) -> None:
    """Labels of a dimension whose length varies are the data set's own: its variables must agree on them."""
    for r in spec.sizes:
        found = {v.name: _labels_along(v, r.dim, given[v.name]) for v in spec.data if v.name in given}
        labelled = {name: labels for name, labels in found.items() if labels is not None}
        if all(isinstance(labels, pd.RangeIndex) and _is_default(labels) for labels in labelled.values()):
            continue
        for name, labels in labelled.items():
            first, theirs = next(iter(labelled.items()))
            if not _same_labels(labels, theirs):
                raise ValueError(f"{name!r} has other labels of {r.dim!r} than {first!r}: align them first")


def _is_default(labels: pd.RangeIndex) -> bool:
    """Whether these are the numbers that pandas gives to rows without labels."""
    return labels.start == 0 and labels.step == 1


def _same_labels(one: Any, two: Any) -> bool:
    """Whether labels are the same, in the same order; default numbers say nothing beside labels of another kind."""
    for labels, others in ((one, two), (two, one)):
        default = isinstance(labels, pd.RangeIndex) and _is_default(labels)
        if default and len(labels) == len(others) and np.asarray(others).dtype.kind not in "iu":
            return True
    return np.array_equal(np.asarray(one), np.asarray(two))


def _labels_along(variable: DataVariable, dim: str, value: Any) -> Any:
    """Labels that a variable brings along a dimension; None where it brings none."""
    if isinstance(value, xr.DataArray):
        return value.coords[dim].to_numpy() if dim in value.coords else None
    if isinstance(value, pd.DataFrame | pd.Series) and dim in variable.dims:
        axes = [value.index] if isinstance(value, pd.Series) else [value.index, value.columns]
        position = variable.dims.index(dim) - len(variable.dims) + len(axes)
        if 0 <= position < len(axes):
            return axes[position]
    return None


def _labels(given: Mapping[str, Any]) -> np.ndarray | None:
    """Labels of the data sets; variables that carry labels must carry the same, in the same order."""
    labels: np.ndarray | None = None
    for name, value in given.items():
        if not isinstance(value, xr.DataArray) or DATASET_DIM not in value.coords:
            continue
        theirs = value.coords[DATASET_DIM].to_numpy()
        if labels is not None and not np.array_equal(labels, theirs):
            raise ValueError(
                f"{name!r} has other {DATASET_DIM!r} labels, or another order of them, than a variable before it; "
                "align them first (xarray.align), or pass one xarray.Dataset"
            )
        labels = theirs
    return labels


def arranged(spec: ModelSpec, parameter: Parameter, value: xr.DataArray) -> np.ndarray:
    """Bring simulated values of a free variable, (dataset, *shape) in any order, into the model's order."""
    dims = tuple(spec.model.named_vars_to_dims.get(parameter.name, ()))
    variable = DataVariable(parameter.name, parameter.shape, parameter.dtype, dims, "real", "observed")
    return np.asarray(_arranged(spec, variable, value, True), dtype=parameter.dtype)


def _array(spec: ModelSpec, variable: DataVariable, value: Any, batched: bool, *, tails: bool = False) -> np.ndarray:
    if isinstance(value, xr.DataArray):
        value = _arranged(spec, variable, value, batched)
    elif isinstance(value, pd.DataFrame | pd.Series) and not batched:
        value = _from_pandas(spec, variable, value)
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.getmaskarray(value).any():
            value = np.ma.filled(value.astype("float64"), np.nan)
        else:
            value = value.data
    try:
        array = _numeric(variable, value)
    except ValueError as error:
        several = not batched and isinstance(value, list | tuple) and len({np.shape(v) for v in value}) > 1
        hint = "; pass batched=True for several data sets" if several else ""
        raise ValueError(f"{error}{hint}") from None
    _check_shape(variable, array, batched)
    if not variable.missing and not tails:
        array = _complete(variable, array)
    _check_values(variable, array)
    return array.astype("float64") if variable.missing or tails else _cast(variable, array)


def _arranged(spec: ModelSpec, variable: DataVariable, value: xr.DataArray, batched: bool) -> np.ndarray:
    """Bring a DataArray into the model's order of dims and of coordinate labels."""
    if not variable.dims:
        leading = [DATASET_DIM] if batched and DATASET_DIM in value.dims else []
        return value.transpose(*leading, ...).to_numpy()
    wanted = [*([DATASET_DIM] if DATASET_DIM in value.dims else []), *variable.dims]
    if set(value.dims) != set(wanted):
        extra = [d for d in value.dims if d not in variable.dims]
        hint = f"; rename {extra[0]!r} to {DATASET_DIM!r}" if batched and len(extra) == 1 else ""
        raise ValueError(
            f"{variable.name!r} has dims {tuple(value.dims)}; the model's are {variable.dims}"
            + (f", after {DATASET_DIM!r}" if batched else "")
            + hint
        )
    for dim in variable.dims:
        labels = None if dim in variable.sized else spec.labels_of(dim)
        if labels is not None and dim in value.coords:
            order = _positions(variable, dim, value.coords[dim].to_numpy(), labels)
            value = value.isel({dim: order})
    return value.transpose(*wanted).to_numpy()


def _positions(variable: DataVariable, dim: str | None, theirs: Any, labels: Any) -> np.ndarray:
    """Where the model's labels stand among those given."""
    order = pd.Index(theirs).get_indexer(pd.Index(labels)) if pd.Index(theirs).is_unique else np.array([-1])
    if len(theirs) != len(labels) or np.any(order < 0):
        missing, unknown = sorted(map(str, set(labels) - set(theirs))), sorted(map(str, set(theirs) - set(labels)))
        raise ValueError(
            f"{variable.name!r}: the labels of dim {dim!r} are not the model's; "
            f"missing {missing[:5]}, unknown {unknown[:5]}, {len(theirs)} given for {len(labels)}"
        )
    return order


def _from_pandas(spec: ModelSpec, variable: DataVariable, value: pd.DataFrame | pd.Series) -> np.ndarray:
    """Take pandas data by position, as PyMC does, but text labels of a named dim by name."""
    array = value.to_numpy()
    axes = [value.index] if isinstance(value, pd.Series) else [value.index, value.columns]
    for axis, (dim, theirs) in enumerate(zip(variable.dims[-len(axes) :], axes[-len(variable.dims) :], strict=False)):
        labels = None if dim in variable.sized else spec.labels_of(dim)
        if labels is not None and theirs.inferred_type == "string" and pd.Index(labels).inferred_type == "string":
            array = np.take(array, _positions(variable, dim, theirs, labels), axis=axis)
    return array


def _numeric(variable: DataVariable, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{variable.name!r} cannot be read as an array: {error}") from None
    if array.dtype == object:
        try:
            array = array.astype("float64")
        except (ValueError, TypeError):
            raise TypeError(
                f"{variable.name!r} holds objects that are not numbers (dtype object); "
                f"the model expects {variable.dtype}"
            ) from None
    if array.dtype.kind not in "buif":
        raise TypeError(f"{variable.name!r} has dtype {array.dtype}; the model expects {variable.dtype}")
    return array


def _check_shape(variable: DataVariable, array: np.ndarray, batched: bool) -> None:
    given = array.shape
    shared_context = batched and variable.role == "context" and variable.fits(given)
    fits = variable.fits(given[1:]) and array.ndim > 0 if batched else variable.fits(given)
    if fits or shared_context:
        return
    named = f" (dims {variable.dims})" if variable.dims else ""
    hint = ""
    if batched:
        hint = ", after a leading axis of data sets"
    elif array.ndim == len(variable.shape) + 1 and variable.fits(given[1:]):
        hint = "; pass batched=True for several data sets"
    expected = (
        "("
        + ", ".join("any" if n is None else str(n) for n in variable.shape)
        + ("," if len(variable.shape) == 1 else "")
        + ")"
    )
    raise ValueError(f"{variable.name!r} has shape {given}; the model's is {expected}{named}{hint}")


def _check_values(variable: DataVariable, array: np.ndarray) -> None:
    infinite = np.isinf(array)
    if infinite.any():
        raise ValueError(
            f"{variable.name!r} has infinite values ({int(infinite.sum())} of {array.size}, the first at "
            f"{_first(infinite)})"
        )
    present = ~np.isnan(array)
    if variable.kind == "binary":
        outside = (array != 0) & (array != 1)
    elif variable.kind == "categorical":
        outside = (array < 0) | (array != np.floor(array))
    elif variable.kind == "count":
        outside = array != np.floor(array)
    else:
        return
    outside &= present
    if outside.any():
        kinds = {"binary": "0 or 1", "categorical": "0, 1, 2, ...", "count": "whole numbers"}
        raise ValueError(
            f"{variable.name!r} must hold {kinds[variable.kind]}; got {array[outside].flat[0]} at {_first(outside)}"
        )


def _complete(variable: DataVariable, array: np.ndarray) -> np.ndarray:
    """Refuse NaN in what may have no gaps."""
    nan = np.isnan(array)
    if nan.any():
        hint = f"; train with missing={{{variable.name!r}: rate}}" if variable.role == "observed" else ""
        raise ValueError(
            f"{variable.name!r} has NaN ({int(nan.sum())} of {array.size}, the first at {_first(nan)}){hint}"
        )
    return array


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _cast(variable: DataVariable, array: np.ndarray, *, gaps: bool = False) -> np.ndarray:
    """A copy in the model's dtype: results must not share memory with what the user may change."""
    with np.errstate(invalid="ignore", over="ignore"):
        cast = np.array(array, dtype=variable.dtype, order="C")
    if cast.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise ValueError(f"{variable.name!r} has values that do not fit into {variable.dtype}")
    if cast.dtype.kind == "f" and not (np.isfinite(cast) | (gaps & np.isnan(array))).all():
        raise ValueError(f"{variable.name!r} has values that overflow {variable.dtype}")
    return cast


def _same_number(spec: ModelSpec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    lengths = {v.name: len(arrays[v.name]) for v in spec.data if arrays[v.name].ndim > len(v.shape)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the variables hold different numbers of data sets: {lengths}")
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError("observed holds no data set: the leading axis has length 0")
    return {
        v.name: arrays[v.name] if v.name in lengths else np.broadcast_to(arrays[v.name], (n, *arrays[v.name].shape))
        for v in spec.data
    }
