"""Data for a learned likelihood: read, and refused where the learned distribution cannot produce them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant

from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.row_density.columns import Column, Layout


def read_values(observed: Any, spec: ModelSpec, rows: ObservedRows, layout: Layout) -> np.ndarray:
    """Read values of the observed variable, by default those that the model held.

    Raises
    ------
    ValueError, KeyError, TypeError
        When they do not fit; the message says what is allowed.
    """
    name, container = rows.variable.name, rows.variable.container
    if observed is None:
        if not spec.holds_data:
            raise ValueError(f"observed: the model holds no data; give the values of {name!r}")
        return spec.held[name]
    if isinstance(observed, xr.Dataset) or isinstance(observed, Mapping):
        unknown = [key for key in observed if key not in (name, container)]
        if unknown or not observed:
            raise KeyError(f"observed holds {list(observed)}; the likelihood is that of {name!r}")
        observed = next(iter(observed.values()))
    values = np.asarray(observed)
    check_values(values, rows, layout, f"observed[{name!r}]")
    shape = rows.variable.shape_at({})
    wide = [p for p in rows.parameters if p.batch_ndim]
    if wide and values.shape[: rows.batch_ndim] != shape[: rows.batch_ndim]:
        raise ValueError(
            f"observed[{name!r}] has shape {values.shape}, the model {shape}, "
            f"and {wide[0].name!r} belongs to its rows. "
            "For other data, build a model with the likelihood itself: likelihood(...)"
        )
    return values


def check_values(values: np.ndarray, rows: ObservedRows, layout: Layout, what: str) -> None:
    """Refuse data that the learned distribution cannot produce."""
    if values.dtype.kind not in "buif":
        raise TypeError(f"{what} must be numbers, got {values.dtype}")
    event = values.shape[values.ndim - len(rows.event_shape) :]
    if values.ndim < len(rows.event_shape) + rows.series or event != rows.event_shape:
        raise ValueError(f"{what}: shape {values.shape}; the last axes must be {rows.event_shape}")
    if np.isnan(np.asarray(values, dtype=float)).any():
        raise ValueError(f"{what}: missing values (NaN) are not supported: leave these rows out")
    columns = values.reshape(-1, rows.columns).T.astype(float)
    for i, (column, y) in enumerate(zip(layout.columns, columns, strict=True)):
        where = what if len(columns) == 1 else f"{what}, number {i} of the rows"
        _check_column(column, y, where)


def values_of(observed: Any) -> np.ndarray:
    """The array behind data given to a model."""
    if isinstance(observed, SharedVariable):
        return np.asarray(observed.get_value())
    if isinstance(observed, Constant):
        return np.asarray(observed.data)
    return np.asarray(observed)


def _check_column(column: Column, y: np.ndarray, where: str) -> None:
    if column.kind == "categorical":
        unknown = sorted(set(np.unique(y).tolist()) - set(column.levels))
        if unknown:
            raise ValueError(f"{where}: {unknown[:5]} given; the categories are {list(column.levels)}")
    elif column.kind == "count":
        if (y != np.round(y)).any() or (y < column.lower).any():
            wrong = y[(y != np.round(y)) | (y < column.lower)][0]
            raise ValueError(f"{where}: counts from {column.lower:g} on are allowed, got {wrong:g}")
        if column.top is not None and (y > column.top).any():
            raise ValueError(f"{where}: counts up to {column.top:g} are allowed, got {y.max():g}")
    elif column.transform in ("log", "logit"):
        beyond = (y <= column.lower) | ((y >= column.upper) & (column.transform == "logit"))
        if beyond.any():
            allowed = (
                f"above {column.lower:g}" if column.transform == "log" else f"in {column.lower:g} to {column.upper:g}"
            )
            raise ValueError(f"{where}: values {allowed} are allowed, got {y[beyond][0]:g}")
    if not np.isfinite(y).all():
        raise ValueError(f"{where}: infinite values are not allowed")
