"""The array of one variable: what a user hands over, brought into the model's order, shape and dtype, or refused."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.graph.data.labels import in_order
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec, Parameter
from pymc_amortized.numerics.kinds import KINDS


def read_array(
    spec: ModelSpec, variable: DataVariable, value: Any, batched: bool, *, tails: bool = False
) -> np.ndarray:
    """Read one variable, of one data set or, with a leading axis, of many.

    Returns
    -------
    ndarray
        In the model's dtype; float64 with NaN where the variable may have gaps or, with `tails`, unequal lengths.

    Raises
    ------
    ValueError, TypeError
        The value has the wrong type, shape, dims, coordinates or support.
    """
    if isinstance(getattr(value, "dtype", None), pd.CategoricalDtype):
        raise TypeError(f"{variable.name!r} holds categories; the model expects {variable.dtype}: pass their codes")
    value = in_order(spec, variable, value, batched)
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
        array = check_complete(variable, array)
    _check_values(variable, array)
    return array.astype("float64") if variable.missing or tails else cast(variable, array)


def arrange(spec: ModelSpec, parameter: Parameter, value: xr.DataArray) -> np.ndarray:
    """Bring simulated values of a free variable, (dataset, *shape) in any order, into the model's order."""
    dims = tuple(spec.model.named_vars_to_dims.get(parameter.name, ()))
    variable = DataVariable(parameter.name, parameter.open_shape, parameter.dtype, dims, "real", "observed")
    return np.asarray(in_order(spec, variable, value, True), dtype=parameter.dtype)


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
                f"the model expects {variable.dtype}: pass codes for labels"
            ) from None
    if array.dtype.kind not in "buif":
        advice = ": pass numbers, or codes for labels" if array.dtype.kind in "USO" else ""
        raise TypeError(f"{variable.name!r} has dtype {array.dtype}; the model expects {variable.dtype}{advice}")
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
    elif array.ndim == len(variable.shape) and not variable.sized:
        other = [d for d, n, k in zip(variable.dims, variable.shape, given, strict=False) if d and n != k]
        hint = f". For other lengths, train with context={{{other[0]!r}: (smallest, largest)}}" if other else ""
    lengths = ", ".join("any" if n is None else str(n) for n in variable.shape)
    expected = f"({lengths},)" if len(variable.shape) == 1 else f"({lengths})"
    raise ValueError(f"{variable.name!r} has shape {given}; the model's is {expected}{named}{hint}")


def _check_values(variable: DataVariable, array: np.ndarray) -> None:
    infinite = np.isinf(array)
    if infinite.any():
        raise ValueError(
            f"{variable.name!r} has infinite values ({int(infinite.sum())} of {array.size}, the first at "
            f"{_first(infinite)})"
        )
    kind = KINDS[variable.kind]
    outside = ~(kind.possible(array) | np.isnan(array))
    if outside.any():
        raise ValueError(
            f"{variable.name!r} must hold {kind.allowed}; got {array[outside].flat[0]} at {_first(outside)}"
        )


def check_complete(variable: DataVariable, array: np.ndarray) -> np.ndarray:
    """Refuse NaN in what may have no gaps."""
    nan = np.isnan(array)
    if nan.any():
        rate = f"train with missing={{{variable.name!r}: rate}}"
        other = "only observed variables may have gaps: fill these values, or leave out their rows"
        hint = f"; {rate if variable.role == 'observed' else other}"
        raise ValueError(
            f"{variable.name!r} has NaN ({int(nan.sum())} of {array.size}, the first at {_first(nan)}){hint}"
        )
    return array


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def cast_with_gaps(variable: DataVariable, array: np.ndarray) -> np.ndarray:
    """Bring an array that may hold NaN into the model's dtype: 0 in its place where that has none."""
    whole = np.dtype(variable.dtype).kind != "f"
    return cast(variable, np.where(np.isnan(array), 0, array) if whole else array, gaps=not whole)


def cast(variable: DataVariable, array: np.ndarray, *, gaps: bool = False) -> np.ndarray:
    """A copy in the model's dtype: results must not share memory with what the user may change."""
    with np.errstate(invalid="ignore", over="ignore"):
        made = np.array(array, dtype=variable.dtype, order="C")
    if made.dtype.kind in "iu" and not np.array_equal(made, array):
        raise ValueError(f"{variable.name!r} has values that do not fit into {variable.dtype}")
    if made.dtype.kind == "f" and not (np.isfinite(made) | (gaps & np.isnan(array))).all():
        raise ValueError(f"{variable.name!r} has values that overflow {variable.dtype}")
    return made
