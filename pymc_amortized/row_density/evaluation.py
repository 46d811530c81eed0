"""The log density of rows and draws of them, from weights and a layout alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.row_density.column_density import ColumnDensity, RowSize, Weights, chosen
from pymc_amortized.row_density.columns import Column, Layout
from pymc_amortized.row_density.encoding import (
    bounded,
    count_of,
    edges,
    encode_parameters,
    ends,
    one_hot,
    supported,
    unbounded,
)
from pymc_amortized.row_density.namespaces import NUMPY, Array, Arrays
from pymc_amortized.row_density.prepared import given_numbers

AT_ONCE = 65_536
"""Rows drawn or evaluated at once in NumPy: some 20 MB of mixtures."""


@dataclass(frozen=True, eq=False)
class RowDensity:
    """The trained density of a row.

    Attributes
    ----------
    layout : Layout
    size : RowSize
    weights : tuple of mapping
        Of each column's network, float64, in the layout's order.
    """

    layout: Layout
    size: RowSize
    weights: tuple[Weights, ...]

    def log_density(
        self,
        xp: Arrays,
        values: Sequence[Array],
        parameters: Sequence[Array],
        past: Sequence[Sequence[Array]] = (),
        shared: Array | None = None,
    ) -> Array:
        """Log density (rows,) of rows, continued beyond the region by a penalty.

        Parameters
        ----------
        values : sequence of (rows,)
            The columns, in the data's order.
        parameters : sequence of (rows,) or (1,)
            (1,) where all rows share them: then what depends on the parameters alone is computed once.
        past : sequence of sequences of (rows,)
            For each lag, whether there is such a row and its columns.
        shared : (rows,), optional
            Integers: which of the parameters' entries each row uses. Networks are evaluated once for each entry.
        """
        f, penalty = encode_parameters(xp, self.layout, parameters)
        own = parameters if shared is None else [p if _is_one(p) else p[shared] for p in parameters]
        total = -(penalty if shared is None else penalty[shared])
        switched: Array | None = None
        for position, index in enumerate(self.layout.order):
            column = ColumnDensity(self.layout, position, self.size)
            given = given_numbers(xp, self.layout, position, values, past, own)
            if shared is not None and given is not None:
                heads = column.evaluate(xp, self.weights[position], f[:, shared], given)
            else:
                heads = column.evaluate(xp, self.weights[position], f, given)
                heads = heads if shared is None else [head[:, shared] for head in heads]
            head = chosen(heads, switched if column.heads > 1 else None)
            y = values[index]
            total = total + self._log_density(xp, column, head, y, own)
            if column.column.kind == "categorical" and switched is None:
                switched = one_hot(xp, column.column, y)
        return total

    def _log_density(self, xp: Arrays, density: ColumnDensity, head: Array, y: Array, own: Sequence[Array]) -> Array:
        column = density.column
        fine, y = supported(xp, column, y)
        if column.kind == "categorical":
            found = density.log_probability(xp, head, one_hot(xp, column, y))
        elif column.kind == "count":
            found = density.log_mass(xp, head, *edges(xp, column, y), *ends(column, y))
        else:
            z, slope = unbounded(xp, column, y, None if column.bound is None else own[column.bound])
            found = density.log_density(xp, head, z) + slope
        return xp.where(fine, found, -np.inf)

    def sample(
        self, rng: np.random.Generator, parameters: Sequence[np.ndarray], past: Sequence[Sequence[np.ndarray]] = ()
    ) -> np.ndarray:
        """Draw rows: (columns, rows), for parameters each (rows,)."""
        rows = len(parameters[0])
        out = np.empty((len(self.layout.columns), rows))
        for some in blocks(rows, AT_ONCE):
            before = [[part[some] for part in lag] for lag in past]
            out[:, some] = self._sample(rng, [p[some] for p in parameters], before)
        return out

    def _sample(
        self, rng: np.random.Generator, parameters: Sequence[np.ndarray], past: Sequence[Sequence[np.ndarray]]
    ) -> np.ndarray:
        f, _ = encode_parameters(NUMPY, self.layout, parameters)
        values = np.zeros((len(self.layout.columns), f.shape[1]))
        switched = None
        for position, index in enumerate(self.layout.order):
            density = ColumnDensity(self.layout, position, self.size)
            column = density.column
            given = given_numbers(NUMPY, self.layout, position, list(values), past, parameters)
            heads = density.evaluate(NUMPY, self.weights[position], f, given)
            head = chosen(heads, switched if density.heads > 1 else None)
            bound = None if column.bound is None else parameters[column.bound]
            values[index] = _draw(rng, density, column, head, bound)
            if column.kind == "categorical" and switched is None:
                switched = one_hot(NUMPY, column, values[index])
        return values


def _draw(
    rng: np.random.Generator, density: ColumnDensity, column: Column, head: np.ndarray, bound: np.ndarray | None
) -> np.ndarray:
    if column.kind == "categorical":
        return np.asarray(column.levels)[_choice(rng, head)]
    location, log_scale, log_weights, locations, widths = density.mixture(NUMPY, head)
    component = _choice(rng, log_weights)[None]
    mean = np.take_along_axis(locations, component, 0)[0]
    spread = np.exp(np.take_along_axis(widths, component, 0)[0])
    z = location + np.exp(log_scale) * (mean + spread * rng.standard_normal(len(mean)))
    if column.kind == "count":
        return np.clip(np.round(count_of(NUMPY, column, z)), column.lower, column.top)
    return bounded(NUMPY, column, z, bound)


def _choice(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    """Draw an index (rows,) by unnormalized log probabilities (levels, rows)."""
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=0)


def _is_one(p: Array) -> bool:
    return p.type.shape == (1,) if hasattr(p, "type") else p.shape == (1,)
