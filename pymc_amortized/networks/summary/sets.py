"""Summaries of exchangeable rows: a deep set, and a set transformer.

Both are invariant to the order of rows, and are told their number, without which X and (X, X) look alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.branch import Branch
from pymc_amortized.networks.summary.coupled import CoupledStatistics, wants_pairs
from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.layers import LIMIT, AttentionBlock, Residual, masked_mean, row_depth
from pymc_amortized.networks.summary.moments import Moments, RowStatistics
from pymc_amortized.networks.summary.options import Set, SetTransformer

__all__ = ["SetBranch", "SetTransformerBranch"]


class SetBranch(Branch):
    """Moments of the rows (and of pairs, where they depend on each other), and the mean of a network of single rows."""

    def __init__(self, join: Join, options: Set) -> None:
        fixed, coupled = RowStatistics(join), CoupledStatistics(join) if wants_pairs(join) else None
        super().__init__(join, fixed.width + (coupled.width if coupled else 0), options.row_width)
        self.fixed, self.coupled = fixed, coupled
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
        hidden = self.row.hidden(rows.everything(normal.clamp(-LIMIT, LIMIT)))
        # A mean commutes with the last layer, which then sees data sets instead of rows.
        return self.row.leave(masked_mean(hidden, rows.mask))


class SetTransformerBranch(Branch):
    """Moments of the rows, and rows that attend to each other through inducing points.

    Blocks of induced attention, then pooling by the attention of learned seeds: Lee et al. (2019), "Set Transformer".
    """

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
        x = self.enter(rows.everything(normal.clamp(-LIMIT, LIMIT)))
        batch = len(x)
        for points, collect, spread in zip(self.points, self.collect, self.spread, strict=True):
            x = spread(x, collect(points.expand(batch, -1, -1), x, rows.mask), None)
        return self.pool(self.seeds.expand(batch, -1, -1), x, rows.mask).flatten(1)
