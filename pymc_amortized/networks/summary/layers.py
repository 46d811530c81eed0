"""Layers that the summary networks share. What is masked gives exactly nothing to what is not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pymc_amortized.networks.encoding.robust import squash

__all__ = ["LIMIT", "AttentionBlock", "Residual", "Standardize", "masked_mean", "row_depth"]

LIMIT = 10.0  # standardized statistics beyond it count logarithmically
ABSENT = -1e4  # logit of what is masked: exp of it is 0 in float32, and yet all may be masked


FEW_ROWS = 64  # a deeper row network costs more with more rows than it tells beside the statistics


def row_depth(given: int | None, rows: int) -> int:
    """Depth of the network of single rows: as given, else by their number."""
    return given if given is not None else int(rows <= FEW_ROWS)


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
        return squash((t - self.center) / self.scale, LIMIT)


def masked_mean(h: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (batch, rows, width) over the rows in the mask (batch, rows); 0 where there are none."""
    if mask is None:
        return h.mean(1)
    return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1.0)


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
            bias = (ABSENT * (1 - mask))[:, None, None]
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (self.query(self.norm_x(x)), key, value))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        h = x + self.leave(seen.transpose(1, 2).flatten(2))
        return h + self.each(self.norm(h))
