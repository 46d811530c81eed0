"""Labels of data from pandas and xarray: held against the model's, aligned or refused, never taken by position.

What pandas numbers 0, 1, 2, ... by itself says nothing, unless the model's own labels are whole numbers.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec

LABELLED = (pd.Series, pd.DataFrame, xr.DataArray)
"""What brings labels of its own."""


def in_order(spec: ModelSpec, variable: DataVariable, value: Any, batched: bool) -> Any:
    """Bring values into the model's order of dims and labels; what has no labels stays as it is.

    Parameters
    ----------
    spec : ModelSpec
    variable : DataVariable
    value : array_like
        Of one data set or of many; labelled, or a list of what may be.
    batched : bool
        Whether the first axis is that of data sets.

    Raises
    ------
    ValueError
        Labels are not the model's.
    """
    if isinstance(value, xr.DataArray):
        return _from_xarray(spec, variable, value, batched)
    if isinstance(value, pd.Series | pd.DataFrame):
        return _from_pandas(spec, variable, value)
    if isinstance(value, list | tuple) and any(isinstance(each, (*LABELLED, list, tuple)) for each in value):
        one = variable if batched else replace(variable, dims=variable.dims[1:], shape=variable.shape[1:])
        return [in_order(spec, one, each, False) for each in value]
    return value


def labels_along(variable: DataVariable, dim: str, value: Any, batched: bool = False) -> pd.Index | None:
    """Labels that a variable brings along a dim; None where it brings none."""
    if isinstance(value, xr.DataArray):
        return pd.Index(value.coords[dim].to_numpy()) if dim in value.coords else None
    if not isinstance(value, pd.DataFrame | pd.Series):
        return None
    lead = (DATASET_DIM,) if batched and value.ndim == len(variable.shape) + 1 else ()
    dims = (*lead, *(variable.dims or (None,) * len(variable.shape)))
    return value.axes[dims.index(dim)] if len(dims) == value.ndim and dim in dims else None


def dim_of_datasets(variable: DataVariable, value: Any) -> str | None:
    """Return the dim of a DataArray that data sets are along, whatever its name, if there is one."""
    if DATASET_DIM in value.dims:
        return DATASET_DIM
    if value.ndim != len(variable.shape) + 1:
        return None
    extra = [dim for dim in value.dims if dim not in variable.dims] if variable.dims else value.dims[:1]
    return str(extra[0]) if len(extra) == 1 else None


def names_within(name: str) -> list[str]:
    """Names of the columns that some data consist of: HSSM's responses are called ``rt,response``."""
    return [part.strip() for part in name.split(",")]


def say_nothing(labels: pd.Index) -> bool:
    """Whether these are the numbers that pandas gives to rows without labels."""
    return isinstance(labels, pd.RangeIndex) and labels.start == 0 and labels.step == 1


def same_labels(one: pd.Index, two: pd.Index) -> bool:
    """Whether labels are the same, in the same order; default numbers say nothing beside labels of another kind."""
    for labels, others in ((one, two), (two, one)):
        if say_nothing(labels) and len(labels) == len(others) and not _whole(others):
            return True
    return len(one) == len(two) and bool(np.all(np.asarray(one, dtype=object) == np.asarray(two, dtype=object)))


def _whole(labels: pd.Index) -> bool:
    return "integer" in labels.inferred_type


def _from_xarray(spec: ModelSpec, variable: DataVariable, value: xr.DataArray, batched: bool) -> np.ndarray:
    """Bring a DataArray into the model's order of dims and of coordinate labels."""
    if not variable.dims:
        leading = [DATASET_DIM] if batched and DATASET_DIM in value.dims else []
        return value.transpose(*leading, ...).to_numpy()
    wanted = [*([DATASET_DIM] if DATASET_DIM in value.dims else []), *variable.dims]
    if set(value.dims) != set(wanted):
        raise ValueError(
            f"{variable.name!r} has dims {tuple(value.dims)}; the model's are {variable.dims}"
            + (f", after {DATASET_DIM!r}" if batched else "")
        )
    for dim in variable.dims:
        labels = _model_labels(spec, variable, dim)
        if labels is not None and dim in value.coords:
            value = value.isel({dim: _positions(variable, dim, pd.Index(value.coords[dim].to_numpy()), labels)})
    return value.transpose(*wanted).to_numpy()


def _from_pandas(spec: ModelSpec, variable: DataVariable, value: pd.DataFrame | pd.Series) -> Any:
    """Bring pandas data into the model's order of labels; an axis before the variable's own is that of data sets."""
    if isinstance(value, pd.DataFrame) and [*value.columns] == names_within(variable.name):
        value = value.set_axis(range(value.shape[1]), axis=1)
    lead = value.ndim - len(variable.shape)
    if lead not in (0, 1) or not variable.dims:
        return _plain(value)  # the door says what is wrong with the shape
    for axis, dim in enumerate(variable.dims, start=lead):
        labels, theirs = _model_labels(spec, variable, dim), value.axes[axis]
        if labels is None or (say_nothing(theirs) and not _whole(labels)):
            continue
        order = _positions(variable, dim, theirs, labels)
        value = value.iloc[(slice(None),) * axis + (order,)]
    return _plain(value)


def _plain(value: pd.DataFrame | pd.Series) -> np.ndarray:
    """Values as an array: pandas' own numbers, which may be missing, as floats with NaN."""
    kinds = [value.dtype] if value.ndim == 1 else list(value.dtypes)
    own = any(pd.api.types.is_extension_array_dtype(kind) for kind in kinds)
    numbers = all(pd.api.types.is_numeric_dtype(kind) for kind in kinds)
    return value.to_numpy("float64", na_value=np.nan) if own and numbers else value.to_numpy()


def _model_labels(spec: ModelSpec, variable: DataVariable, dim: str | None) -> pd.Index | None:
    """Labels that the model's coords give to a dim, if its length does not vary."""
    labels = None if dim in variable.sized else spec.labels_of(dim)
    return None if labels is None else pd.Index(list(labels))


def _positions(variable: DataVariable, dim: str | None, theirs: pd.Index, labels: pd.Index) -> np.ndarray:
    """Where the model's labels stand among those given."""
    given = f"{variable.name!r}: the labels of dim {dim!r}"
    if isinstance(theirs, pd.MultiIndex):
        raise ValueError(
            f"{given} have {theirs.nlevels} levels, the model's have one: give one label to each entry, or pass "
            ".to_numpy() of values in the model's order"
        )
    if same_labels(theirs, labels):
        return np.arange(len(labels))
    if not (theirs.is_unique and labels.is_unique):
        whose = "given" if labels.is_unique else "of the model"
        twice = theirs[theirs.duplicated()] if labels.is_unique else labels[labels.duplicated()]
        raise ValueError(
            f"{given} are not the model's, in its order, and cannot be aligned: those {whose} hold {str(twice[0])!r} "
            "more than once"
        )
    order = _indexer(theirs, labels)
    if len(theirs) != len(labels) or np.any(order < 0):
        back = _indexer(labels, theirs)
        missing, unknown = ([str(v) for v in v[:5]] for v in (labels[order < 0], theirs[back < 0]))
        numbered = "; labels are compared: pass .to_numpy() to take values by position" if _whole(theirs) else ""
        raise ValueError(
            f"{given} are not the model's; missing {missing}, unknown {unknown}, {len(theirs)} given for "
            f"{len(labels)}{numbered}"
        )
    return order


def _indexer(theirs: pd.Index, wanted: pd.Index) -> np.ndarray:
    try:
        return np.asarray(theirs.get_indexer(wanted))
    except (TypeError, ValueError):  # labels that cannot be held against each other, such as dates in two time zones
        return np.full(len(wanted), -1)
