"""Summary of images and other arrays with two axes in order."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.branch import Branch, Options, Values
from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.layers import GUARD, Moments, log_count, moments

__all__ = ["Grid", "GridBranch"]


@dataclass(frozen=True, kw_only=True)
class Grid(Options):
    """Options of the summary network for images and other data with two axes in order.

    Parameters
    ----------
    width, depth : int
        Of the network after pooling: width of its hidden layers, number of its residual blocks.
    row_width : int
        Channels of the convolutions.
    row_depth : int
        Number of residual convolutions at each resolution.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.

    Examples
    --------
    Passed on as ``pma.fit_posterior(model, summary=pma.Grid(row_width=48))``.

    >>> pma.Grid(row_width=48)
    Grid(width=128, depth=2, features=None, row_width=48, row_depth=1)
    """

    made_for = "grid"

    row_width: int = 24
    row_depth: int = 1

    def make_branch(self, join: Join, dim: int) -> Branch:
        """Build the branch of these arrays, for so many parameters."""
        return GridBranch(join, self, dim)


class GridBranch(Branch):
    """Moments, neighbours and places of mass; residual convolutions that know where they are."""

    def __init__(self, join: Join, options: Grid, dim: int) -> None:
        width, statistics = options.row_width, join.channels * (2 + 2 + 5 + 3) + 2 + 2 * join.present
        super().__init__(join, statistics, 3 * width, Values.if_few(join, 400, dim))
        self.enter = nn.Conv2d(join.everything + join.channels + 2, width, 3, padding=1)
        strides: list[int] = []
        longest = max(join.lengths)
        while longest > 8:  # cells along the longer side, at the coarsest
            strides += [2] + [1] * (options.row_depth - 1)
            longest = -(-longest // 2)
        strides += [1] * options.row_depth
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, stride, padding=1) for stride in strides)

    def moments(self, rows: Rows) -> Moments:
        """Moments over both axes."""
        weights = None if rows.weights is None else rows.weights.flatten(1, 2)
        found = moments(rows.values.flatten(1, 2), weights)
        return replace(found, normal=found.normal.reshape(rows.values.shape))

    def measure(self, rows: Rows, found: Moments) -> Tensor:
        """Means, log variances, neighbours' correlations, moments of place, centre and spread of mass."""
        normal = found.normal
        weight = torch.ones_like(normal[..., :1]) if rows.weights is None else rows.weights
        t = [found.mean, 2 * torch.log(found.scale)]
        t += [_neighbours(normal, weight, axis) for axis in (1, 2)]
        down, across = _coordinates(rows)
        for place in (down, across, down.square() - 1 / 3, across.square() - 1 / 3, down * across):
            t.append(_mean(normal * place, weight))
        t += _mass(normal.clamp(-GUARD.limit, GUARD.limit), weight, down, across)
        lengths = _lengths(rows)
        t += [log_count(lengths)]
        if rows.present is not None:
            share = rows.present.flatten(1, 2).sum(1)
            t += [log_count(share), share / rows.counts.clamp_min(1.0)]
        return torch.cat(t, -1)

    def learn(self, rows: Rows, normal: Tensor) -> Tensor:
        """Means over the grid of the last layer, also weighted by place."""
        places = torch.cat([c.expand(*normal.shape[:-1], 1) for c in _coordinates(rows)], -1)
        x = torch.cat([rows.everything(normal.clamp(-GUARD.limit, GUARD.limit)), places], -1)
        mask = None if rows.mask is None else rows.mask[..., None]
        h = (x if mask is None else x * mask).permute(0, 3, 1, 2)
        mask = None if mask is None else mask.permute(0, 3, 1, 2)
        places = places.permute(0, 3, 1, 2)
        h = nn.functional.silu(self.enter(h))
        h = h if mask is None else h * mask
        for layer in self.layers:
            step = layer.stride[0]  # type: ignore[index]
            mask = mask if mask is None else mask[..., ::step, ::step]
            places = places[..., ::step, ::step]
            h = h[..., ::step, ::step] + nn.functional.silu(layer(h))
            h = h if mask is None else h * mask
        count = h.new_tensor(h.shape[-1] * h.shape[-2]) if mask is None else mask.sum((-1, -2)).clamp_min(1.0)
        parts = [h, h * places[:, :1], h * places[:, 1:]]
        return torch.cat([part.sum((-1, -2)) / count for part in parts], -1)


def _lengths(rows: Rows) -> Tensor:
    """Lengths of both axes in each data set: (batch, 2)."""
    if rows.mask is None:
        return rows.values.new_tensor(rows.values.shape[1:3]).expand(len(rows.values), -1)
    return torch.stack([rows.mask.amax(2).sum(1), rows.mask.amax(1).sum(1)], -1)


def _coordinates(rows: Rows) -> tuple[Tensor, Tensor]:
    """From -1 to 1 along both axes of each data set: (batch, height, 1, 1) and (batch, 1, width, 1)."""
    lengths = _lengths(rows)
    parts = []
    for i in (0, 1):
        steps = torch.arange(rows.values.shape[1 + i], device=lengths.device, dtype=lengths.dtype)
        place = (2 * steps / (lengths[:, i : i + 1] - 1).clamp_min(1.0) - 1).clamp(-1.0, 1.0)
        parts.append(place)
    return parts[0][:, :, None, None], parts[1][:, None, :, None]


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1.0)


def _neighbours(normal: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Mean product of neighbours along an axis of (batch, height, width, channels)."""
    n = normal.shape[axis] - 1
    pairs = [v.narrow(axis, 1, n) * v.narrow(axis, 0, n) for v in (normal, weight)]
    return _mean(*pairs)


def _mass(normal: Tensor, weight: Tensor, down: Tensor, across: Tensor) -> list[Tensor]:
    """Centre along both axes, and log spread, of mass that is exponential in the values."""
    logits = torch.where(weight > 0, normal, -1e4)
    share = torch.softmax(logits.flatten(1, 2), 1).reshape(logits.shape) * weight
    centre = [(share * place).sum((1, 2)) for place in (down, across)]
    spread = sum(
        (share * place.square()).sum((1, 2)) - c.square() for place, c in zip((down, across), centre, strict=True)
    )
    return [*centre, torch.log(torch.as_tensor(spread).clamp_min(0.0) + 1e-4)]
