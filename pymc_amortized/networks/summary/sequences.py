"""Summaries of series: convolutions with a recurrent network, and a transformer.

Long series are shortened by strided convolutions first. What lies beyond the end of a series is set to
0 after every convolution, as if the series were padded by zeros on both sides.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.branch import Attention, Branch, Options, Values
from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.lags import LagStatistics, last_step
from pymc_amortized.networks.summary.layers import GUARD, AttentionBlock, Moments, masked_mean
from pymc_amortized.networks.summary.moments import RowStatistics

__all__ = ["Sequence", "SequenceBranch", "Transformer", "TransformerBranch"]


@dataclass(frozen=True, kw_only=True)
class Sequence(Options):
    """Options of the summary network for series: convolutions and a recurrent network.

    Parameters
    ----------
    width, depth : int
        Of the network after pooling: width of its hidden layers, number of its residual blocks.
    row_width : int
        Width of the convolutions and of the recurrent state.
    row_depth : int
        Number of convolutions at least; long series have more, that shorten them.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.

    Examples
    --------
    Passed on as ``pma.fit_posterior(model, summary=pma.Sequence(row_depth=3))``.

    >>> pma.Sequence(row_depth=3)
    Sequence(width=128, depth=2, features=None, row_width=32, row_depth=3)
    """

    made_for = "sequence"

    row_width: int = 32
    row_depth: int = 2

    def make_branch(self, join: Join, dim: int) -> Branch:
        """Build the branch of these arrays, for so many parameters."""
        return SequenceBranch(join, self, dim)


@dataclass(frozen=True, kw_only=True)
class Transformer(Attention):
    """Options of the summary network for series in which steps attend to each other (Vaswani et al. 2017).

    Parameters
    ----------
    width, depth : int
        Of the network after pooling: width of its hidden layers, number of its residual blocks.
    row_width : int
        Width of the network of the steps, a multiple of ``heads``.
    row_depth : int
        Number of attention blocks.
    heads : int
        Heads of each attention.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.

    Examples
    --------
    Passed on as ``pma.fit_posterior(model, summary=pma.Transformer(row_width=64, heads=8))``.

    >>> pma.Transformer(row_width=64, heads=8)
    Transformer(width=128, depth=2, features=None, row_width=64, row_depth=2, heads=8)
    """

    made_for = "sequence"

    def make_branch(self, join: Join, dim: int) -> Branch:
        """Build the branch of these arrays, for so many parameters."""
        return TransformerBranch(join, self, dim)


class _SeriesBranch(Branch):
    """Moments over time, lags, and the values themselves where they are few and always there."""

    def __init__(self, join: Join, pooled: int, dim: int) -> None:
        fixed, lags = RowStatistics(join), LagStatistics(join)
        super().__init__(join, fixed.width + lags.width, pooled, Values.if_few(join, 512, dim))
        self.fixed, self.lags = fixed, lags

    def measure(self, rows: Rows, found: Moments) -> Tensor:
        """Moments and lags."""
        return torch.cat([self.fixed(rows, found), self.lags(rows, found.normal)], -1)


class _Stem(nn.Module):
    """Convolutions (batch, steps, inputs) -> (batch, most steps, width) at most, masked.

    Each step that is left costs a recurrent network as much as a small network does.
    """

    def __init__(self, inputs: int, width: int, steps: int, most: int, depth: int) -> None:
        super().__init__()
        halvings = max(0, math.ceil(math.log2(max(steps, 1) / most)))
        strides = [4] * (halvings // 2) + [2] * (halvings % 2)
        strides += [1] * max(depth - len(strides), 0)
        self.enter = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 5, stride, padding=2) for stride in strides)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the mean of single steps (batch, width), the shortened series, and its mask."""
        h = nn.functional.silu(self.enter(x))
        if mask is not None:
            h = h * mask[..., None]
        single = masked_mean(h, mask)
        h = h.mT
        for layer in self.layers:
            step = layer.stride[0]  # type: ignore[index]
            mask = mask if mask is None else mask[:, ::step]
            h = h[..., ::step] + nn.functional.silu(layer(h))
            if mask is not None:
                h = h * mask[:, None]
        return single, h.mT, mask


class SequenceBranch(_SeriesBranch):
    """Convolutions, then a gated recurrent network: its mean and its state at the end of each series."""

    def __init__(self, join: Join, options: Sequence, dim: int) -> None:
        width = options.row_width
        super().__init__(join, 3 * width, dim)
        self.stem = _Stem(join.everything + join.channels, width, join.lengths[0], 32, options.row_depth)
        self.recurrent = nn.GRU(width, width, batch_first=True)

    def learn(self, rows: Rows, normal: Tensor) -> Tensor:
        """Means over steps before and after, and the last state."""
        single, h, mask = self.stem(rows.everything(normal.clamp(-GUARD.limit, GUARD.limit)), rows.mask)
        states, _ = self.recurrent(h)
        return torch.cat([single, masked_mean(states, mask), _at_the_end(states, mask)], -1)


class TransformerBranch(_SeriesBranch):
    """Steps that know how far from both ends they are attend to each other: Vaswani et al. (2017)."""

    waves = 8  # frequencies of a position

    def __init__(self, join: Join, options: Transformer, dim: int) -> None:
        width = options.row_width
        super().__init__(join, 3 * width, dim)
        inputs = join.everything + join.channels + 4 * self.waves
        self.stem = _Stem(inputs, width, join.lengths[0], 128, 1)
        self.blocks = nn.ModuleList(AttentionBlock(width, options.heads) for _ in range(options.row_depth))

    def learn(self, rows: Rows, normal: Tensor) -> Tensor:
        """Means over steps before and after, and the last step."""
        x = torch.cat([rows.everything(normal.clamp(-GUARD.limit, GUARD.limit)), self._positions(rows)], -1)
        single, h, mask = self.stem(x, rows.mask)
        for block in self.blocks:
            h = block(h, h, mask)
        return torch.cat([single, masked_mean(h, mask), _at_the_end(h, mask)], -1)

    def _positions(self, rows: Rows) -> Tensor:
        """Sines and cosines of the distance from both ends: (batch, steps, 4 waves)."""
        batch, steps = rows.values.shape[:2]
        start = torch.arange(steps, device=rows.values.device, dtype=rows.values.dtype).expand(batch, -1)
        both = torch.stack([start, rows.counts - 1 - start], -1)
        longest = max(self.join.lengths[0], 2)
        lengths = torch.logspace(
            0, math.log10(longest), self.waves, device=both.device
        )  # from one step to all, in radians
        angles = (both[..., None] / lengths).flatten(2)
        return torch.cat([angles.sin(), angles.cos()], -1)


def _at_the_end(h: Tensor, mask: Tensor | None) -> Tensor:
    """The last step that exists, (batch, width); 0 where there is none."""
    if mask is None:
        return h[:, -1]
    last = h[torch.arange(len(h), device=h.device), last_step(mask)]
    return last * (mask[:, :1] > 0)
