"""The door for data: what a user hands over becomes named arrays of the model's shapes and dtypes, or a clear error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.graph.spec import DataVariable, ModelSpec, Parameter

DATASET_DIM = "dataset"


@dataclass(frozen=True, eq=False)
class DataSets:
    """One or many data sets.

    Attributes
    ----------
    values : dict of name to ndarray (n, *shape)
        Observed and context variables of `n` data sets.
    labels : ndarray (n,)
        Coordinate of the ``dataset`` dimension.
    batched : bool
        Whether results carry the ``dataset`` dimension.
    """

    values: dict[str, np.ndarray]
    labels: np.ndarray
    batched: bool

    def __len__(self) -> int:
        return len(self.labels)

    def one(self, index: int) -> dict[str, np.ndarray]:
        """Return the values of one data set: name -> (*shape)."""
        return {name: values[index] for name, values in self.values.items()}

    def take(self, index: Any) -> dict[str, np.ndarray]:
        """Return the values of several data sets: name -> (m, *shape)."""
        return {name: values[index] for name, values in self.values.items()}


def read_datasets(spec: ModelSpec, data: Any, *, batched: bool = False) -> DataSets:
    """Check data against the model.

    Parameters
    ----------
    spec : ModelSpec
    data : mapping of name to array_like, or xarray.Dataset, or None
        Observed variables, by their name or by that of the ``pm.Data`` that holds their values, and context
        variables. None stands for what the model held when it was read.
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
    if data is None:
        if batched:
            raise ValueError("observed is needed with batched=True: the model holds a single data set")
        if not spec.holds_data:
            raise ValueError(f"observed is needed: the model holds no data for {[v.name for v in spec.observed]}")
        values = {v.name: spec.held[v.name][None].copy() for v in spec.data}
        return DataSets(values, np.arange(1), False)
    given = _by_variable(spec, _as_mapping(data))
    labels = _labels(given) if batched else None
    arrays = {v.name: _array(spec, v, given[v.name], batched) for v in spec.data}
    if not batched:
        return DataSets({n: a[None] for n, a in arrays.items()}, np.arange(1), False)
    arrays = _same_length(spec, arrays)
    n = len(next(iter(arrays.values())))
    if labels is not None and len(labels) != n:
        raise ValueError(f"the {DATASET_DIM!r} coordinate has {len(labels)} labels for {n} data sets")
    return DataSets(arrays, np.arange(n) if labels is None else labels, True)


def _as_mapping(data: Any) -> dict[str, Any]:
    if isinstance(data, xr.DataTree):
        if data.children:
            raise TypeError(f"observed is a DataTree with groups {sorted(data.children)}; pass one of them")
        data = data.to_dataset()
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
    missing = [v.name for v in spec.data if v.name not in given]
    if missing:
        raise KeyError(f"observed: values are missing for {missing}; given: {sorted(data)}")
    return given


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


def _array(spec: ModelSpec, variable: DataVariable, value: Any, batched: bool) -> np.ndarray:
    if isinstance(value, xr.DataArray):
        value = _arranged(spec, variable, value, batched)
    elif isinstance(value, pd.DataFrame | pd.Series) and not batched:
        value = _from_pandas(spec, variable, value)
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.getmaskarray(value).any():
            raise ValueError(f"{variable.name!r} has masked values; missing data are not supported yet")
        value = value.data
    array = _numeric(variable, value)
    _check_shape(variable, array, batched)
    _check_values(variable, array)
    return _cast(variable, array)


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
        labels = spec.model.coords.get(dim)
        if labels is not None and dim in value.coords:
            order = _positions(variable, dim, value.coords[dim].to_numpy(), labels)
            value = value.isel({dim: order})
    return value.transpose(*wanted).to_numpy()


def _positions(variable: DataVariable, dim: str, theirs: Any, labels: Any) -> np.ndarray:
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
        labels = spec.model.coords.get(dim)
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
    shared_context = batched and variable.role == "context" and given == variable.shape
    fits = given[1:] == variable.shape and array.ndim > 0 if batched else given == variable.shape
    if fits or shared_context:
        return
    named = f" (dims {variable.dims})" if variable.dims else ""
    hint = ""
    if batched:
        hint = ", after a leading axis of data sets"
    elif given[1:] == variable.shape and array.ndim == len(variable.shape) + 1:
        hint = "; pass batched=True for several data sets"
    raise ValueError(f"{variable.name!r} has shape {given}; the model's is {variable.shape}{named}{hint}")


def _check_values(variable: DataVariable, array: np.ndarray) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        nan = np.isnan(array).any()
        what, why = ("NaN", "; missing data are not supported yet") if nan else ("infinite values", "")
        raise ValueError(
            f"{variable.name!r} has {what} ({int(bad.sum())} of {array.size}, the first at {_first(bad)}){why}"
        )
    if variable.kind == "binary":
        outside = (array != 0) & (array != 1)
    elif variable.kind == "categorical":
        outside = (array < 0) | (array != np.floor(array))
    elif variable.kind == "count":
        outside = array != np.floor(array)
    else:
        return
    if outside.any():
        kinds = {"binary": "0 or 1", "categorical": "0, 1, 2, ...", "count": "whole numbers"}
        raise ValueError(
            f"{variable.name!r} must hold {kinds[variable.kind]}; got {array[outside].flat[0]} at {_first(outside)}"
        )


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _cast(variable: DataVariable, array: np.ndarray) -> np.ndarray:
    """A copy in the model's dtype: results must not share memory with what the user may change."""
    with np.errstate(invalid="ignore", over="ignore"):
        cast = np.array(array, dtype=variable.dtype, order="C")
    if cast.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise ValueError(f"{variable.name!r} has values that do not fit into {variable.dtype}")
    if cast.dtype.kind == "f" and not np.isfinite(cast).all():
        raise ValueError(f"{variable.name!r} has values that overflow {variable.dtype}")
    return cast


def _same_length(spec: ModelSpec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    lengths = {v.name: len(arrays[v.name]) for v in spec.data if arrays[v.name].ndim > len(v.shape)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the variables hold different numbers of data sets: {lengths}")
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError("observed holds no data set: the leading axis has length 0")
    return {
        v.name: arrays[v.name] if v.name in lengths else np.broadcast_to(arrays[v.name], (n, *v.shape))
        for v in spec.data
    }
