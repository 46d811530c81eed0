"""What a branch of a summary network is: fixed statistics and learned features of arrays that share an axis.

A summary network of one's choice is made of options (:class:`Options`), which say what structure of data it is made for
and build its branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.layers import Moments, moments

__all__ = ["Arrangement", "Attention", "Branch", "Options", "Values"]

Arrangement = Literal["values", "set", "sequence", "grid", "groups"]
"""How arrays hang together: single values, exchangeable rows, a series, two axes in order, or rows in groups."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a summary network. What all have is sizes of the network that joins what the branches give.

    Parameters
    ----------
    width, depth : int
        Of the network after pooling: width of its hidden layers, number of its residual blocks.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    made_for: ClassVar[Arrangement | None] = None
    """The structure of data that the branch is for. "auto" takes the first network that is registered for each."""

    width: int = 128
    depth: int = 2
    features: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            size, least = getattr(self, field.name), 0 if "depth" in field.name else 1
            if size is None and field.default is None:
                continue
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{field.name} is {size!r}; it must be an integer")
            if size < least:
                raise ValueError(f"{field.name} is {size}; it must be at least {least}")

    def make_branch(self, join: Join, dim: int) -> Branch:
        """Build the branch.

        Parameters
        ----------
        join : Join
            Its arrays, along the axes that they share.
        dim : int
            Number of parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} is made for no branch")


@dataclass(frozen=True, kw_only=True)
class Attention(Options):
    """Options of a summary network in which rows or steps attend to each other."""

    row_width: int = 32  # a multiple of heads
    row_depth: int = 2  # attention blocks
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row_width % self.heads:
            raise ValueError(f"row_width is {self.row_width}; it must be a multiple of heads, {self.heads}")


class Branch(nn.Module):
    """Statistics t and learned features p of joined arrays.

    Statistics have no weights: what they are of a data set never changes.

    Parameters
    ----------
    join : Join
        The arrays.
    statistics : int
        Number of fixed statistics, without the values themselves.
    pooled : int
        Number of learned features.
    values : Values, optional
        The values themselves, where they are statistics too.

    Attributes
    ----------
    exchangeable : bool
        Whether single rows are all that counts, in any order.
    long : int
        Rows from which on padding costs more than a loop over pieces of a batch.
    """

    exchangeable = False
    long = 64

    def __init__(self, join: Join, statistics: int, pooled: int, values: Values | None = None) -> None:
        super().__init__()
        self.join, self.pooled, self.values = join, pooled, values
        self.statistics = statistics + (0 if values is None else values.statistics)

    def moments(self, rows: Rows) -> Moments:
        """Moments of each data set, and rows standardized by them."""
        return moments(rows.values, rows.weights)

    def measure(self, rows: Rows, found: Moments) -> Tensor:
        """Fixed statistics (batch, statistics), without the values themselves."""
        raise NotImplementedError

    def learn(self, rows: Rows, normal: Tensor) -> Tensor:
        """Learned features (batch, pooled), given also standardized rows."""
        raise NotImplementedError

    def fit(self, encoded: dict[str, Tensor], z: Tensor) -> None:
        """Learn what the statistics need from simulated data and parameters z (n, dim)."""
        if self.values is not None:
            self.values.fit(self.join(encoded).values.flatten(1), z)

    def raw_statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        """Fixed statistics (batch, statistics) of encoded arrays."""
        rows = self.join(encoded)
        return self.with_values(self.measure(rows, self.moments(rows)), rows)

    def with_values(self, statistics: Tensor, rows: Rows) -> Tensor:
        """Add the values themselves, where they are statistics too."""
        return statistics if self.values is None else torch.cat([statistics, self.values(rows.values.flatten(1))], -1)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Learned features (batch, pooled) of encoded arrays."""
        rows = self.join(encoded)
        return self.learn(rows, self.moments(rows).normal)


class Values(nn.Module):
    """The values themselves, and per array the log mean squares within and outside of a subspace.

    The subspace is the one that moves with the parameters: what remains of a linear model is its
    residual sum of squares.

    Parameters
    ----------
    sizes : sequence of int
        How many values each array has.
    dim : int
        Number of parameters: the dimension of the subspace whose complement is noise.
    """

    basis: Tensor
    weights: Tensor

    @classmethod
    def if_few(cls, join: Join, most: int, dim: int) -> Values | None:
        """All values of joined arrays, where they are always there, and so many at most."""
        number = math.prod(join.lengths) * join.channels
        return None if join.varies or number > most else cls([number], dim)

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        total = sum(self.sizes)
        self.energies = total >= 4 * (dim + 1)  # otherwise little is left outside of the subspace
        self.statistics = total + 2 * len(self.sizes) * self.energies
        if self.energies:
            self.register_buffer("basis", torch.zeros(total, dim))
            self.register_buffer("weights", torch.ones(total))

    def forward(self, x: Tensor) -> Tensor:
        """Statistics (batch, statistics) of values (batch, sum of sizes)."""
        if not self.energies:
            return x
        weighted = x * self.weights
        within = (weighted @ self.basis) @ self.basis.mT
        energies = [
            torch.log(piece.square().mean(-1, keepdim=True) + 1e-8)
            for part in (within, weighted - within)
            for piece in part.split(self.sizes, -1)
        ]
        return torch.cat([x, *energies], -1)

    @torch.no_grad()
    def fit(self, x: Tensor, z: Tensor) -> None:
        """Learn the subspace from simulated values (n, total) and parameters (n, dim)."""
        if not self.energies:
            return
        design = torch.cat([z.clamp(-5.0, 5.0), torch.ones_like(z[:, :1])], -1)
        slopes = torch.linalg.lstsq(design, x).solution
        noise = (x - design @ slopes).std(0, correction=0)
        weights = torch.where(noise > 1e-6, 1 / noise, 0.0)
        self.weights.copy_(weights / weights.mean().clamp_min(1e-6))
        self.basis.copy_(torch.linalg.qr((slopes[:-1] * self.weights).mT).Q)
