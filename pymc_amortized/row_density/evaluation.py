"""The log density of rows and draws of them, from weights and a layout alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.row_density.column_density import ColumnDensity, RowSize, Weights, chosen
from pymc_amortized.row_density.namespaces import NUMPY, Array, Arrays
from pymc_amortized.row_density.prepared import given_numbers
from pymc_amortized.row_density.row_layout import Layout


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
        f, penalty = self.layout.encode_parameters(xp, parameters)
        own = parameters if shared is None else [p if _is_one(p) else p[shared] for p in parameters]
        total = -(penalty if shared is None else penalty[shared])
        switched: Array | None = None
        for position, index in enumerate(self.layout.order):
            density = ColumnDensity(self.layout, position, self.size)
            given = given_numbers(xp, self.layout, position, values, past, own)
            if shared is not None and given is not None:
                heads = density.evaluate(xp, self.weights[position], f[:, shared], given)
            else:
                heads = density.evaluate(xp, self.weights[position], f, given)
                heads = heads if shared is None else [head[:, shared] for head in heads]
            head = chosen(heads, switched if density.heads > 1 else None)
            fine, y = density.column.supported(xp, values[index])
            encoded, slope = density.column.encode(xp, y, own)
            total = total + xp.where(fine, density.log_density(xp, head, encoded) + slope, -np.inf)
            if switched is None and density.column.choices:
                switched = encoded
        return total

    def sample(
        self, rng: np.random.Generator, parameters: Sequence[np.ndarray], past: Sequence[Sequence[np.ndarray]] = ()
    ) -> np.ndarray:
        """Draw rows: (columns, rows), for parameters each (rows,)."""
        rows = len(parameters[0])
        out = np.empty((len(self.layout.columns), rows))
        for some in blocks(rows, 65_536):  # some 20 MB of mixtures
            before = [[part[some] for part in lag] for lag in past]
            out[:, some] = self._sample(rng, [p[some] for p in parameters], before)
        return out

    def _sample(
        self, rng: np.random.Generator, parameters: Sequence[np.ndarray], past: Sequence[Sequence[np.ndarray]]
    ) -> np.ndarray:
        f, _ = self.layout.encode_parameters(NUMPY, parameters)
        values = np.zeros((len(self.layout.columns), f.shape[1]))
        switched = None
        for position, index in enumerate(self.layout.order):
            density = ColumnDensity(self.layout, position, self.size)
            given = given_numbers(NUMPY, self.layout, position, list(values), past, parameters)
            heads = density.evaluate(NUMPY, self.weights[position], f, given)
            head = chosen(heads, switched if density.heads > 1 else None)
            values[index] = density.column.draw(rng, head, self.size.components, parameters)
            if switched is None and density.column.choices:
                switched, _ = density.column.encode(NUMPY, values[index], parameters)
        return values


def _is_one(p: Array) -> bool:
    return p.type.shape == (1,) if hasattr(p, "type") else p.shape == (1,)
