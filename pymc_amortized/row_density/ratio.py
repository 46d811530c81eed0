r"""The log ratio of a row's density to its marginal density, as a function of parameters and row.

.. math:: f(\theta, y) \approx \log p(y \mid \theta) - \log p(y)

is what tells rows drawn with their parameters from rows drawn with others. Nothing asks it to integrate to one, and
one network sees all numbers of a row together: rows near a curve in several numbers, say, are no harder than others.
Nothing can be drawn from it. What depends on parameters alone is computed once for all rows that share them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from pymc_amortized.row_density.column_density import RowSize, Weights
from pymc_amortized.row_density.namespaces import NUMPY, Array, Arrays
from pymc_amortized.row_density.prepared import Rows
from pymc_amortized.row_density.row_layout import Layout


@dataclass(frozen=True, eq=False)
class RowRatio:
    """The trained log ratio of a row, in the ways of :class:`pymc_amortized.row_density.evaluation.RowDensity`.

    Attributes
    ----------
    layout : Layout
    size : RowSize
    weights : tuple of one mapping
        float64.
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
        """Log ratio (rows,), continued beyond the region of the parameters by a penalty.

        Parameters are those of :meth:`pymc_amortized.row_density.evaluation.RowDensity.log_density`.
        """
        f, penalty = self.layout.encode_parameters(xp, parameters)
        ratio = log_ratio(xp, self.size, self.weights[0], f, features(xp, self.layout, values), shared)
        return ratio - (penalty if shared is None else penalty[shared])

    def sample(self, *arguments: object) -> NoReturn:
        """Refuse to draw: NotImplementedError."""
        refuse_draws()


def refuse_draws() -> NoReturn:
    """Say that a ratio has no sampler: NotImplementedError."""
    raise NotImplementedError(
        "a likelihood of kind='ratio' says how likely rows are, up to a function of the rows, and cannot draw any: "
        "simulate with the model itself, or train with kind='density'"
    )


def shapes(layout: Layout, size: RowSize) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights, by name."""
    hidden, inputs = size.hidden, layout.inputs
    numbers = sum(c.given_size * (1 if c.choices else 2) for c in layout.columns)  # features
    found: dict[str, tuple[int, ...]] = {"enter": (hidden, inputs), "enter_bias": (hidden,), "given": (hidden, numbers)}
    for i in range(size.depth):
        found |= {f"middle{i}": (hidden, hidden), f"middle{i}_bias": (hidden,)}
    found |= {"leave": (1, hidden), "leave_bias": (1,)}
    return found | {"linear": (1, inputs), "linear_given": (1, numbers), "products": (numbers, inputs)}


def log_ratio(xp: Arrays, size: RowSize, weights: Weights, f: Array, g: Array, shared: Array | None = None) -> Array:
    """Log ratio (rows,).

    Parameters
    ----------
    weights : mapping
        Of :func:`shapes`.
    f : (inputs, entries)
        Of parameters; one entry where all rows share them.
    g : (numbers, rows)
        Of rows, from :func:`features`.
    shared : (rows,), optional
        Integers: which entry each row uses.
    """
    of_parameters = weights["enter"] @ f + weights["enter_bias"][:, None]
    slopes = weights["products"] @ f + weights["linear_given"].T
    constant = weights["linear"] @ f + weights["leave_bias"][:, None]
    if shared is not None:
        of_parameters, slopes, constant = of_parameters[:, shared], slopes[:, shared], constant[:, shared]
    h = xp.silu(of_parameters + weights["given"] @ g)
    for i in range(size.depth):
        h = h + xp.silu(weights[f"middle{i}"] @ h + weights[f"middle{i}_bias"][:, None])
    return (weights["leave"] @ h + constant)[0] + (slopes * g).sum(0)


def features(xp: Arrays, layout: Layout, values: Sequence[Array]) -> Array:
    """Numbers (numbers, rows) that the ratio sees of a row: standardized, and squares."""
    numbers: list[Array] = []
    for column, y in zip(layout.columns, values, strict=True):
        own = column.as_given(xp, y, ())
        numbers += own
        if not column.choices:  # squares grow no more than linearly beyond 6
            numbers += [z * z / (1.0 + xp.abs(z) / 6.0) for z in own]
    return xp.stack(numbers)


def without_bounds(layout: Layout, rows: Rows) -> Layout:
    """Let no column be transformed by a parameter: features of a row are those of the row alone."""
    return replace(layout, columns=tuple(c.alone(y) for c, y in zip(layout.columns, rows.values, strict=True)))


def prepare_pairs(layout: Layout, rows: Rows) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What training takes of rows, float32: zeros (n, 1), and "parameters" and "features", each (n, ...)."""
    with np.errstate(all="ignore"):  # rows outside a transform's range come out as NaN, and are dropped
        f, _ = layout.encode_parameters(NUMPY, list(rows.parameters))
        encoded = {"parameters": f, "features": features(NUMPY, layout, list(rows.values))}
    return np.zeros((len(rows), 1), "float32"), {
        name: np.ascontiguousarray(value.T, dtype="float32") for name, value in encoded.items()
    }
