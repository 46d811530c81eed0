"""Summaries of exchangeable rows: a deep set, and a set transformer.

Both are invariant to the order of rows, and are told their number, without which X and (X, X) look alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.branch import Attention, Branch, Options
from pymc_amortized.networks.summary.coupled import CoupledStatistics, wants_pairs
from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.layers import (
    GUARD,
    AttentionBlock,
    Moments,
    Residual,
    masked_mean,
    row_depth,
)
from pymc_amortized.networks.summary.moments import RowStatistics

__all__ = ["Set", "SetBranch", "SetTransformer", "SetTransformerBranch"]


@dataclass(frozen=True, kw_only=True)
class Set(Options):
    """Options of the summary network for data with exchangeable rows: a deep set (Zaheer et al. 2017).

    Parameters
    ----------
    width, depth : int
        Of the network after pooling: width of its hidden layers, number of its residual blocks.
    row_width : int
        Width of the network that sees single rows.
    row_depth : int, optional
        Number of its residual blocks; by default 1 for up to 64 rows and none for more, where they
        cost more than they tell.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.

    Examples
    --------
    Passed on as ``pma.fit_posterior(model, summary=pma.Set(row_width=64))``.

    >>> pma.Set(row_width=64)
    Set(width=128, depth=2, features=None, row_width=64, row_depth=None)
    """

    made_for = "set"

    row_width: int = 32
    row_depth: int | None = None

    def make_branch(self, join: Join, dim: int) -> Branch:
        """Build the branch of these arrays, for so many parameters."""
        return SetBranch(join, self)


@dataclass(frozen=True, kw_only=True)
class SetTransformer(Attention):
    """Options of the summary network that lets exchangeable rows attend to each other (Lee et al. 2019).

    Parameters
    ----------
    width, depth : int
        Of the network after pooling: width of its hidden layers, number of its residual blocks.
    row_width : int
        Width of the network of the rows, a multiple of ``heads``.
    row_depth : int
        Number of attention blocks.
    heads : int
        Heads of each attention.
    points : int
        Inducing points through which rows attend to each other.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.

    Examples
    --------
    Passed on as ``pma.fit_posterior(model, summary=pma.SetTransformer(row_width=64, heads=8))``.

    >>> pma.SetTransformer(row_width=64, heads=8)
    SetTransformer(width=128, depth=2, features=None, row_width=64, row_depth=2, heads=8, points=16)
    """

    made_for = "set"

    points: int = 16

    def make_branch(self, join: Join, dim: int) -> Branch:
        """Build the branch of these arrays, for so many parameters."""
        return SetTransformerBranch(join, self)


class SetBranch(Branch):
    """Moments of the rows (and of pairs, where they depend on each other), and the mean of a network of single rows."""

    exchangeable = True

    def __init__(self, join: Join, options: Set) -> None:
        fixed, coupled = RowStatistics(join), CoupledStatistics(join) if wants_pairs(join) else None
        super().__init__(join, fixed.width + (coupled.width if coupled else 0), options.row_width)
        self.fixed, self.coupled = fixed, coupled
        self.long = self.long if coupled is None else 24  # rows that are compared with each other
        depth = row_depth(options.row_depth, join.lengths[0])
        self.row = Residual(join.everything + join.channels, options.row_width, depth, options.row_width)

    def fit(self, encoded: dict[str, Tensor], z: Tensor) -> None:
        """Learn which distances occur between rows."""
        if self.coupled is not None:
            self.coupled.fit(self.join(encoded))

    def measure(self, rows: Rows, found: Moments) -> Tensor:
        """Moments, regressions, and statistics of pairs of rows."""
        t = self.fixed(rows, found)
        return t if self.coupled is None else torch.cat([t, self.coupled(rows)], -1)

    def learn(self, rows: Rows, normal: Tensor) -> Tensor:
        """Mean over rows."""
        hidden = self.row.hidden(rows.everything(normal.clamp(-GUARD.limit, GUARD.limit)))
        # A mean commutes with the last layer, which then sees data sets instead of rows.
        return self.row.leave(masked_mean(hidden, rows.mask))


class SetTransformerBranch(Branch):
    """Moments of the rows, and rows that attend to each other through inducing points.

    Blocks of induced attention, then pooling by the attention of learned seeds: Lee et al. (2019), "Set Transformer".
    """

    exchangeable = True

    def __init__(self, join: Join, options: SetTransformer) -> None:
        fixed = RowStatistics(join)
        super().__init__(join, fixed.width, 2 * options.row_width)
        self.fixed = fixed
        width, depth = options.row_width, options.row_depth
        self.enter = nn.Linear(join.everything + join.channels, width)
        self.points = nn.Parameter(torch.randn(depth, options.points, width))
        self.seeds = nn.Parameter(torch.randn(2, width))
        self.collect, self.spread = (
            nn.ModuleList(AttentionBlock(width, options.heads) for _ in range(depth)) for _ in range(2)
        )
        self.pool = AttentionBlock(width, options.heads)

    def measure(self, rows: Rows, found: Moments) -> Tensor:
        """Moments and pair statistics."""
        return self.fixed(rows, found)

    def learn(self, rows: Rows, normal: Tensor) -> Tensor:
        """What the seeds see of rows that have seen each other."""
        x = self.enter(rows.everything(normal.clamp(-GUARD.limit, GUARD.limit)))
        batch = len(x)
        for points, collect, spread in zip(self.points, self.collect, self.spread, strict=True):
            x = spread(x, collect(points.expand(batch, -1, -1), x, rows.mask), None)
        return self.pool(self.seeds.expand(batch, -1, -1), x, rows.mask).flatten(1)
