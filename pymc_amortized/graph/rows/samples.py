"""Some rows of every simulated data set, whatever its size."""

from __future__ import annotations

import numpy as np
import pymc as pm

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.observed_rows import ObservedRows, hidden_name
from pymc_amortized.row_density.prepared import Rows


def add_sized_row_parameters(spec: ModelSpec, observed: ObservedRows) -> list[str]:
    """Have the spec's own model compute the row parameters, along dims of the data, and return their names."""
    names = []
    variable = observed.variable
    dims = variable.dims or (None,) * len(variable.shape)
    with spec.model:
        for i, p in enumerate(observed.parameters):
            pm.Deterministic(hidden_name(i), p.variable)
            names.append(hidden_name(i))
            lead = p.variable.type.shape[: p.batch_ndim]
            own = dims[observed.batch_ndim - p.batch_ndim : observed.batch_ndim]
            # the simulator fills arrays up along dims whose length differs
            spec.model.named_vars_to_dims[hidden_name(i)] = tuple(
                None if n == 1 else dim for n, dim in zip(lead, own, strict=True)
            )
    return names


def some_rows(observed: ObservedRows, made: Simulations, each: int, lags: int, rng: np.random.Generator) -> Rows:
    """Take so many rows of every data set: evenly spread, from a random one on.

    Parameters
    ----------
    observed : ObservedRows
        At the largest lengths.
    made : Simulations
        With the row parameters among their variables.
    each : int
        Rows of each data set; where it has fewer, they repeat.
    lags : int
    rng : numpy.random.Generator

    Returns
    -------
    Rows
        (data sets * each), those of a data set together.
    """
    n, lead_ndim = len(made), observed.batch_ndim + observed.series
    own = _own_lengths(observed, made, lead_ndim)
    count = own.prod(axis=1)[:, None]
    step = np.maximum(count // each, 1)
    index = (rng.integers(count) + step * np.arange(each)) % count
    coordinates: list[np.ndarray] = []
    for axis in reversed(range(lead_ndim)):
        coordinates.insert(0, index % own[:, axis : axis + 1])
        index = index // own[:, axis : axis + 1]
    sets = np.arange(n)[:, None]
    shape = observed.variable.shape_at({})[:lead_ndim]
    data = made.data[observed.variable.name].reshape(n, *shape, observed.columns)
    values = data[(sets, *coordinates)].astype("float64")
    parameters = []
    for i, p in enumerate(observed.parameters):
        array = np.asarray(made.variables[hidden_name(i)], dtype="float64")
        lead = array.shape[1 : 1 + p.batch_ndim]
        mine = coordinates[observed.batch_ndim - p.batch_ndim : observed.batch_ndim]
        at = [np.zeros_like(c) if k == 1 else c for k, c in zip(lead, mine, strict=True)]
        flat = array.reshape(n, *lead, -1)
        parameters.append(np.broadcast_to(flat[(sets, *at)], (n, each, flat.shape[-1])))
    past = _past(data, sets, coordinates, lags) if lags else None
    stacked = np.concatenate(parameters, -1)
    return Rows(
        stacked.reshape(-1, stacked.shape[-1]).T,
        values.reshape(-1, observed.columns).T,
        None if past is None else np.moveaxis(past.reshape(-1, lags, observed.columns), 0, -1),
    )


def _own_lengths(observed: ObservedRows, made: Simulations, lead_ndim: int) -> np.ndarray:
    """Lengths (n, axes) of the axes of rows in each data set."""
    variable = observed.variable
    dims = variable.dims or (None,) * len(variable.shape)
    axes = [
        made.lengths.get(dim, np.full(len(made), length)) if dim else np.full(len(made), length)
        for length, dim in zip(variable.shape_at({})[:lead_ndim], dims, strict=False)
    ]
    return np.stack(axes, axis=1) if axes else np.ones((len(made), 1), dtype=int)


def _past(data: np.ndarray, sets: np.ndarray, coordinates: list[np.ndarray], lags: int) -> np.ndarray:
    """The rows before each one (n, each, lags, columns), the latest first; NaN where there is none."""
    *batch, time = coordinates
    before = []
    for lag in range(1, lags + 1):
        values = data[(sets, *batch, np.maximum(time - lag, 0))].astype("float64")
        before.append(np.where((time >= lag)[..., None], values, np.nan))
    return np.stack(before, axis=2)
