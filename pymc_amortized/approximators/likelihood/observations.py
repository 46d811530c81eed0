"""Data and models for a learned likelihood: read, and refused where the learned distribution does not fit them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant

from pymc_amortized.graph.data.labels import in_order
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.finding import distribution_of, find_rows
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.row_density.row_layout import Layout


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
    if np.shape(observed) == rows.variable.shape:
        observed = in_order(spec, rows.variable, observed, False)
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


def read_rows(spec: ModelSpec, trained: ModelSpec, rows: ObservedRows) -> ObservedRows:
    """Find the rows of another model, which must be of the same kind and distribution.

    Parameters
    ----------
    spec : ModelSpec
        Of the other model.
    trained : ModelSpec
        Of the model that the likelihood was trained on.
    rows : ObservedRows
        Its rows.

    Raises
    ------
    KeyError, ValueError
        When the other model has no such rows; the message says what differs.
    """
    name = rows.variable.name
    if name not in [v.name for v in spec.observed]:
        raise KeyError(f"model: it observes {[v.name for v in spec.observed]}, not {name!r}")
    theirs = find_rows(spec, name, {name: rows.axis_kinds})
    ways = [[(p.position, p.core_shape) for p in some.parameters] for some in (rows, theirs)]
    if ways[0] != ways[1] or rows.event_shape != theirs.event_shape:
        raise ValueError(
            f"model: rows of {name!r} depend on {[p.name for p in theirs.parameters]} there, "
            f"the likelihood was trained for {[p.name for p in rows.parameters]}"
        )
    ours, other = distribution_of(trained, rows), distribution_of(spec, theirs)
    if ours != other:
        raise ValueError(
            f"model: the distribution of {name!r} is {other} there (with the arguments that do not "
            f"vary), the likelihood was trained for {ours}"
        )
    return theirs


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
        column.check(y, what if len(columns) == 1 else f"{what}, number {i} of the rows")


def values_of(observed: Any) -> np.ndarray:
    """The array behind data given to a model."""
    if isinstance(observed, SharedVariable):
        return np.asarray(observed.get_value())
    if isinstance(observed, Constant):
        return np.asarray(observed.data)
    return np.asarray(observed)
