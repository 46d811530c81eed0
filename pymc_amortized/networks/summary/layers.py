"""Layers that the summary networks share. What is masked gives exactly nothing to what is not."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pymc_amortized.networks.encoding.robust import squash

__all__ = [
    "GUARD",
    "AttentionBlock",
    "Moments",
    "Residual",
    "Standardize",
    "log_count",
    "masked_mean",
    "moments",
    "row_depth",
]


@dataclass(frozen=True)
class Guard:
    """Numbers that keep statistics finite, and of use where there are few rows."""

    limit: float = 10.0  # standardized statistics beyond it count logarithmically
    floor: float = 1e-10  # of a variance: the rounding of float32 beside values of order one
    ridge: float = 1e-4  # of correlations: one-hot channels are collinear, and float32 has seven digits
    few: float = 0.5  # correlations of c channels over few rows n are shrunk by this times (c / (n + c))^2
    shrinkage: tuple[float, float] = (1.0, 10.0)  # k in n / (n + k), times which means and regressions are given too


GUARD = Guard()


def row_depth(given: int | None, rows: int) -> int:
    """Depth of the network of single rows: as given, else by their number.

    A deeper one costs more with more rows than it tells beside the statistics.
    """
    return given if given is not None else int(rows <= 64)


class Residual(nn.Module):
    """A residual network: in -> width, ``depth`` blocks, width -> out."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.leave = nn.Linear(width, outputs)

    def hidden(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to the last hidden values (..., width)."""
        h = nn.functional.silu(self.enter(x))
        for block in self.blocks:
            h = h + block(h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return self.leave(self.hidden(x))


class Standardize(nn.Module):
    """Statistics (batch, width) to location 0 and scale 1 over simulations."""

    center: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, t: Tensor) -> None:
        """Learn location and scale from (n, width)."""
        scale, center = torch.std_mean(t, 0, correction=0)
        self.center.copy_(center)
        self.scale.copy_(torch.where(scale > 1e-6, scale, 1.0))

    def forward(self, t: Tensor) -> Tensor:
        """Standardize (batch, width)."""
        return squash((t - self.center) / self.scale, GUARD.limit)


def masked_mean(h: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (batch, rows, width) over the rows in the mask (batch, rows); 0 where there are none."""
    if mask is None:
        return h.mean(1)
    return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1.0)


@dataclass(frozen=True)
class Moments:
    """Moments over rows.

    Attributes
    ----------
    count : Tensor
        (batch, channels or 1): how many are present.
    mean, scale : Tensor
        (batch, channels).
    normal : Tensor
        (batch, rows, channels), standardized within the data set; 0 where absent.
    """

    count: Tensor
    mean: Tensor
    scale: Tensor
    normal: Tensor


def moments(values: Tensor, weights: Tensor | None) -> Moments:
    """Moments of values (batch, rows, channels) where weights (the same, or 1 channel) are 1."""
    if weights is None:
        count = values.new_full((len(values), 1), values.shape[1])
        mean = values.mean(1)
        centered = values - mean[:, None]
        variance = centered.square().mean(1)
    else:
        count = weights.sum(1)
        mean = (values * weights).sum(1) / count.clamp_min(1.0)
        centered = (values - mean[:, None]) * weights
        variance = centered.square().sum(1) / count.clamp_min(1.0)
    scale = torch.sqrt(variance + GUARD.floor)
    return Moments(count, mean, scale, centered / scale[:, None])


def log_count(count: Tensor) -> Tensor:
    """Logarithm of a number, which may be 0."""
    return torch.log(count.clamp_min(0.5))


class AttentionBlock(nn.Module):
    """Pre-normalized multihead attention of x to y, and a small network of each row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_y, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.leave = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.each = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Map x (batch, m, width), y (batch, n, width) and the mask of y (batch, n) to (batch, m, width)."""
        key, value = self.key_value(self.norm_y(y)).chunk(2, -1)
        bias = None
        if mask is not None:
            value = value * mask[..., None]
            # of what is masked, exp is 0 in float32, and yet all may be masked
            bias = (-1e4 * (1 - mask))[:, None, None]
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (self.query(self.norm_x(x)), key, value))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        h = x + self.leave(seen.transpose(1, 2).flatten(2))
        return h + self.each(self.norm(h))
