r"""The network of one column, from parameters and earlier numbers to what the column's density is made of.

Its output is linear in its inputs plus a network with hidden layers, and starts at a regression. Where a categorical
column comes first, each of its levels has a head, a part of the output, of its own: the network is evaluated once for
all rows that share their parameters, whatever their levels. What a head means is up to the column
(:mod:`pymc_amortized.row_density.columns`).

Numbers of a row stand on the first axis and rows on the last, of length 1 where all rows share them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pymc_amortized.row_density.columns import AnyColumn
from pymc_amortized.row_density.namespaces import Array, Arrays
from pymc_amortized.row_density.row_layout import Layout

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

    Examples
    --------
    Passed on as ``pma.fit_likelihood(model, network=pma.RowSize(hidden=32))``.

    >>> pma.RowSize(hidden=32)
    RowSize(hidden=32, depth=1, components=8)
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
    def column(self) -> AnyColumn:
        """What is learned."""
        return self.layout.column(self.position)

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
        return self.column.head_size(self.size.components)

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
        return [self.column.normalized(xp, head, self.size.components) for head in heads]

    def log_density(self, xp: Arrays, head: Array, values: Array) -> Array:
        """Log density (rows,) of encoded values, by the head of each row."""
        return self.column.log_density(xp, head, self.size.components, values)


def chosen(heads: Sequence[Array], one_hot: Array | None) -> Array:
    """The head (numbers, rows) that each row uses, by the level of the column that comes first."""
    if one_hot is None:
        return heads[0]
    return sum(one_hot[i][None] * head for i, head in enumerate(heads))
