"""The rows of an observed variable: what each depends on, and how they are read from simulations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.row_density.prepared import Rows


@dataclass(frozen=True, eq=False)
class RowParameter:
    """One argument of the observed variable's distribution that is not the same in all simulations.

    Attributes
    ----------
    name : str
        That of the model's variable behind it, or of the simulator's argument.
    variable : Any
        In the graph of the spec's model.
    core_shape : tuple of int
        What one row takes of it.
    batch_ndim : int
        Number of leading axes that say to which rows it belongs.
    position : int
        Among the arguments of the distribution.
    leaves : tuple of str
        Named variables that it is computed from element by element, where it has no name of its own.
    """

    name: str
    variable: Any
    core_shape: tuple[int, ...]
    batch_ndim: int
    position: int
    leaves: tuple[str, ...] = ()

    @property
    def numbers(self) -> list[str]:
        """Names of its numbers in one row."""
        if not self.core_shape:
            return [self.name]
        return [f"{self.name}[{', '.join(map(str, i))}]" for i in np.ndindex(*self.core_shape)]


@dataclass(frozen=True, eq=False)
class ObservedRows:
    """How values of an observed variable fall into rows.

    Attributes
    ----------
    variable : DataVariable
    batch_ndim : int
        Leading axes of independent rows, or of independent series.
    series : bool
        Whether the next axis is that of a series, in which a row depends on those before it.
    event_shape : tuple of int
        The remaining axes: the numbers of one row.
    parameters : tuple of RowParameter
    kind : str or None
        Of the numbers, where the distribution tells.
    """

    variable: DataVariable
    batch_ndim: int
    series: bool
    event_shape: tuple[int, ...]
    parameters: tuple[RowParameter, ...]
    kind: str | None

    @property
    def columns(self) -> int:
        """Numbers of one row."""
        return int(np.prod(self.event_shape, dtype=int))

    @property
    def axis_kinds(self) -> tuple[str, ...]:
        """Kinds of the variable's axes, as a user gives them in ``structure=``."""
        batch, event = ("exchangeable",) * self.batch_ndim, ("features",) * len(self.event_shape)
        return batch + ("sequence",) * self.series + event

    def of_simulations(
        self, made: Simulations, lags: int, chosen: np.ndarray | None, scales: Sequence[float] = ()
    ) -> Rows:
        """Read rows off simulations whose deterministics hold the parameters.

        Parameters
        ----------
        lags : int
        chosen : ndarray (n, k), optional
            Which rows of each simulation to take; all by default.
        """
        shape = self.variable.shape_at({})[: self.batch_ndim + self.series]
        index = np.broadcast_to(np.arange(self.rows), (len(made), self.rows)) if chosen is None else chosen
        return self.at(made, np.unravel_index(index, shape) if shape else (), index.shape[1], lags, scales)

    def at(
        self,
        made: Simulations,
        coordinates: Sequence[np.ndarray],
        each: int,
        lags: int,
        scales: Sequence[float] = (),
    ) -> Rows:
        """Read some rows of each simulation.

        Parameters
        ----------
        made : Simulations
            Whose deterministics hold the parameters.
        coordinates : sequence of ndarray (n, each)
            Where the rows stand along each axis of rows.
        each : int
        lags : int

        Returns
        -------
        Rows
            (n * each), those of a simulation together.
        """
        n, sets = len(made), np.arange(len(made))[:, None]
        shape = self.variable.shape_at({})[: self.batch_ndim + self.series]
        data = made.data[self.variable.name].reshape(n, *shape, self.columns)
        values = np.broadcast_to(data[(sets, *coordinates)].astype("float64"), (n, each, self.columns))
        parameters = []
        for i, p in enumerate(self.parameters):
            array = np.asarray(made.variables[hidden_name(i)], dtype="float64")
            lead = array.shape[1 : 1 + p.batch_ndim]
            mine = coordinates[self.batch_ndim - p.batch_ndim : self.batch_ndim]
            at = [np.zeros_like(c) if k == 1 else c for k, c in zip(lead, mine, strict=True)]
            flat = array.reshape(n, *lead, -1)
            parameters.append(np.broadcast_to(flat[(sets, *at)], (n, each, flat.shape[-1])))
        stacked, past, known = np.concatenate(parameters, -1), None, None
        if lags:
            *batch, time = coordinates
            before = [data[(sets, *batch, np.maximum(time - lag, 0))] for lag in range(1, lags + 1)]
            shares = [(time >= lag).astype("float64") for lag in range(1, lags + 1)]
            for scale in scales:
                totals = _totals_before(data, 1 + self.batch_ndim, scale)
                share = share_before(time, scale)
                weight = np.maximum(share, 1e-300) / share_before(1, scale)
                before.append(totals[(sets, *coordinates)] / weight[..., None])
                shares.append(share)
            known = np.stack(np.broadcast_arrays(*shares)).reshape(len(shares), -1)
            rows = np.stack([row.astype("float64") for row in before], axis=2).reshape(-1, len(before), self.columns)
            past = np.where(known[:, None] > 0, np.moveaxis(rows, 0, -1), np.nan)
        return Rows(stacked.reshape(-1, stacked.shape[-1]).T, values.reshape(-1, self.columns).T, past, known)

    @property
    def rows(self) -> int:
        """Rows of one simulation."""
        shape = self.variable.shape_at({})
        return int(np.prod(shape[: self.batch_ndim + self.series], dtype=int))


def _totals_before(data: np.ndarray, axis: int, scale: float) -> np.ndarray:
    """Sums of all rows before each one along an axis, with weights that fall exponentially."""
    rows = np.moveaxis(data, axis, 0)
    totals = np.zeros(rows.shape)
    for t in range(1, len(rows)):
        totals[t] = np.exp(-1 / scale) * totals[t - 1] + rows[t - 1]
    return np.moveaxis(totals, 0, axis)


def share_before(time: Any, scale: float) -> Any:
    """What share the rows before some times have of the weights in an average over an endless past: 0 at the first.

    Weights fall exponentially, with a scale in rows.
    """
    return -np.expm1(-np.asarray(time) / scale)


def hidden_name(i: int) -> str:
    """Name of the deterministic that holds a row parameter in the model that is simulated."""
    return f"row parameter {i}"


def add_row_parameters(spec: ModelSpec, observed: ObservedRows) -> list[str]:
    """Have the spec's own model compute the row parameters, along dims of the data that vary; return their names."""
    names = []
    variable = observed.variable
    dims = variable.dims or (None,) * len(variable.shape)
    with spec.model:
        for i, p in enumerate(observed.parameters):
            pm.Deterministic(hidden_name(i), p.variable)
            names.append(hidden_name(i))
            if spec.sizes:  # the simulator fills arrays up along dims whose length differs
                lead = p.variable.type.shape[: p.batch_ndim]
                own = dims[observed.batch_ndim - p.batch_ndim : observed.batch_ndim]
                spec.model.named_vars_to_dims[hidden_name(i)] = tuple(
                    None if n == 1 else dim for n, dim in zip(lead, own, strict=True)
                )
    return names


def some_rows(
    observed: ObservedRows,
    made: Simulations,
    each: int,
    lags: int,
    rng: np.random.Generator,
    scales: Sequence[float] = (),
) -> Rows:
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
    lead_ndim = observed.batch_ndim + observed.series
    own = _own_lengths(observed, made, lead_ndim)
    count = own.prod(axis=1)[:, None]
    step = np.maximum(count // each, 1)
    index = (rng.integers(count) + step * np.arange(each)) % count
    coordinates: list[np.ndarray] = []
    for axis in reversed(range(lead_ndim)):
        coordinates.insert(0, index % own[:, axis : axis + 1])
        index = index // own[:, axis : axis + 1]
    return observed.at(made, coordinates, each, lags, scales)


def _own_lengths(observed: ObservedRows, made: Simulations, lead_ndim: int) -> np.ndarray:
    """Lengths (n, axes) of the axes of rows in each data set."""
    variable = observed.variable
    dims = variable.dims or (None,) * len(variable.shape)
    axes = [
        made.lengths.get(dim, np.full(len(made), length)) if dim else np.full(len(made), length)
        for length, dim in zip(variable.shape_at({})[:lead_ndim], dims, strict=False)
    ]
    return np.stack(axes, axis=1) if axes else np.ones((len(made), 1), dtype=int)
