r"""The conditional density of one column, a function of what :mod:`pymc_amortized.row_density.encoding` makes of a row.

A real column, standardized to :math:`z`, is a mixture of normal densities in units that the parameters :math:`f` move,

.. math:: u = (z - m(f)) e^{-s(f)}, \qquad
    q(z \mid f) = e^{-s(f)} \sum_k w_k(f)\, N(u;\, \mu_k(f), e^{\lambda_k(f)}).

All is infinitely often differentiable, so that gradients are what NUTS expects of them. :math:`m` and :math:`s` are
linear in the parameters plus a network, and start at a regression. A count is the integral of such a
density over its interval, which makes a mass that adds up to 1 (Salimans et al. 2017, arXiv 1701.05517, with logistic
components). A categorical column is a softmax. Where a categorical column comes first, each of its levels has a head of
its own: the network is evaluated once for all rows that share their parameters, whatever their levels.

Numbers of a row stand on the first axis and rows on the last, of length 1 where all rows share them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pymc_amortized.row_density.columns import Column, Layout
from pymc_amortized.row_density.namespaces import Array, Arrays

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LARGEST_LOG_SCALE = 12.0
"""Of units and of components, reached smoothly: e^12 is 160,000."""
NARROW = 0.25
"""Half an interval's width, in units of a component and of one over its distance from the middle, up to which the
series in :func:`log_interval` is used: its first term left out is then below 1e-10."""

Weights = Mapping[str, Array]


@dataclass(frozen=True)
class RowSize:
    """Size of the networks, one for each column.

    Parameters
    ----------
    hidden : int
        Width.
    depth : int
        Hidden layers after the first, with a residual connection around each.
    components : int
        Of the mixtures.
    """

    hidden: int = 48
    depth: int = 1
    components: int = 8


@dataclass(frozen=True)
class ColumnDensity:
    """The density of the column at one position of a layout's order."""

    layout: Layout
    position: int
    size: RowSize

    @property
    def column(self) -> Column:
        """What is learned."""
        return self.layout.columns[self.layout.order[self.position]]

    @property
    def heads(self) -> int:
        """One for each level of the categorical column that comes first."""
        return self.layout.heads(self.position)

    @property
    def given(self) -> int:
        """Numbers of earlier rows and columns."""
        return self.layout.given_size(self.position)

    @property
    def numbers(self) -> int:
        """Numbers that one head consists of."""
        return len(self.column.levels) if self.column.kind == "categorical" else 2 + 3 * self.size.components

    @property
    def linear_inputs(self) -> int:
        """Inputs of the linear part: parameters, given numbers, all products of one with the other."""
        return self.layout.inputs + self.given + self.layout.inputs * self.given

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by name."""
        hidden = self.size.hidden
        shapes: dict[str, tuple[int, ...]] = {"enter": (hidden, self.layout.inputs), "enter_bias": (hidden,)}
        if self.given:
            shapes["given"] = (hidden, self.given)
        for i in range(self.size.depth):
            shapes |= {f"middle{i}": (hidden, hidden), f"middle{i}_bias": (hidden,)}
        shapes |= {"leave": (self.heads * self.numbers, hidden), "leave_bias": (self.heads * self.numbers,)}
        return shapes | {"linear": (self.heads * self.numbers, self.linear_inputs)}

    def with_products(self, xp: Arrays, f: Array, g: Array | None) -> Array:
        """Inputs of the linear part: (linear_inputs, rows)."""
        if g is None:
            return f
        products = [f[i] * g[j] for i in range(self.layout.inputs) for j in range(self.given)]
        return xp.concatenate([f, g, xp.stack(products)])

    def evaluate(self, xp: Arrays, weights: Weights, f: Array, g: Array | None) -> list[Array]:
        """What the network and the linear part say of every head: each (numbers, rows).

        Parameters
        ----------
        weights : mapping
            Of :meth:`shapes`.
        f : (inputs, rows)
            Of the parameters.
        g : (given, rows) or None
            Of earlier rows and columns.
        """
        a = weights["enter"] @ f + weights["enter_bias"][:, None]
        h = xp.silu(a if g is None else a + weights["given"] @ g)
        for i in range(self.size.depth):
            h = h + xp.silu(weights[f"middle{i}"] @ h + weights[f"middle{i}_bias"][:, None])
        linear = weights["linear"] @ self.with_products(xp, f, g)
        raw = weights["leave"] @ h + weights["leave_bias"][:, None] + linear
        heads = xp.split(raw, [self.numbers] * self.heads) if self.heads > 1 else [raw]
        return heads if self.column.kind == "categorical" else [self._bounded(xp, head) for head in heads]

    def _bounded(self, xp: Arrays, head: Array) -> Array:
        """A head with normalized log weights and bounded log scales: here, as rows that share parameters share it."""
        k = self.size.components
        location, log_scale, logits, locations, widths = xp.split(head, [1, 1, k, k, k])
        log_scale, widths = (LARGEST_LOG_SCALE * xp.tanh(x / LARGEST_LOG_SCALE) for x in (log_scale, widths))
        return xp.concatenate([location, log_scale, logits - xp.logsumexp(logits)[None], locations, widths])

    def mixture(self, xp: Arrays, head: Array) -> tuple[Array, ...]:
        """Location and log scale (rows,) of the units, and log weights, locations and log scales of components."""
        k = self.size.components
        units, log_weights, locations, widths = xp.split(head, [2, k, k, k])
        return units[0], units[1], log_weights, locations, widths

    def log_density(self, xp: Arrays, head: Array, z: Array) -> Array:
        """Log density (rows,) of a real column's z."""
        location, log_scale, log_weights, locations, widths = self.mixture(xp, head)
        u = (z - location) * xp.exp(-log_scale)
        e = (u[None] - locations) * xp.exp(-widths)
        return xp.logsumexp(log_weights - 0.5 * e * e - widths) - HALF_LOG_2PI - log_scale

    def log_mass(self, xp: Arrays, head: Array, low: Array, width: Array, first: Array, last: Array) -> Array:
        """Log mass (rows,) of the interval from `low` on; `first` and `last` say where it has no lower or upper end."""
        location, log_scale, log_weights, locations, widths = self.mixture(xp, head)
        unit = xp.exp(-log_scale)
        scale = xp.exp(-widths)
        a = (((low - location) * unit)[None] - locations) * scale
        b = a + (width * unit)[None] * scale
        log_masses = xp.where(first[None], xp.log_ndtr(b), log_interval(xp, a, b - a))
        log_masses = xp.where(last[None], xp.log_ndtr(-a), log_masses)
        return xp.logsumexp(log_weights + log_masses)

    def log_probability(self, xp: Arrays, head: Array, one_hot: Array) -> Array:
        """Log probability (rows,) of the level that a categorical column has."""
        return (one_hot * head).sum(0) - xp.logsumexp(head)


def log_interval(xp: Arrays, a: Array, width: Array) -> Array:
    r"""``log(Phi(a + width) - Phi(a))``, to about ten digits however narrow or far out the interval is.

    With the middle :math:`c` and half the width :math:`h`, narrow intervals use

    .. math:: \int_{c-h}^{c+h} \phi = 2 h \phi(c) \sum_j h^{2j} He_{2j}(c) / (2j + 1)!,

    wide ones the difference of two logarithms of the distribution function, on the side where that is small.
    """
    h = 0.5 * width
    c = -xp.abs(a + h)
    narrow = h * xp.maximum(-c, 1.0) < NARROW
    n, m = xp.where(narrow, c, 0.0), xp.where(narrow, h, 0.1)
    c2, h2 = n * n, m * m
    series = (
        h2 * (c2 - 1.0) / 6.0
        + h2 * h2 * ((c2 - 6.0) * c2 + 3.0) / 120.0
        + h2 * h2 * h2 * (((c2 - 15.0) * c2 + 45.0) * c2 - 15.0) / 5040.0
    )
    near = -0.5 * c2 - HALF_LOG_2PI + xp.log(2.0 * m) + xp.log1p(series)
    c, h = xp.where(narrow, 0.0, c), xp.where(narrow, 1.0, h)
    upper, lower = xp.log_ndtr(c + h), xp.log_ndtr(c - h)
    far = upper + xp.log1p(-xp.exp(lower - upper))
    return xp.where(narrow, near, far)


def chosen(heads: Sequence[Array], one_hot: Array | None) -> Array:
    """The head (numbers, rows) that each row uses, by the level of the column that comes first."""
    if one_hot is None:
        return heads[0]
    return sum(one_hot[i][None] * head for i, head in enumerate(heads))
