"""Fixed statistics of rows that depend on each other through their covariates: a Gaussian process over places.

What moments over single rows cannot hold: range, smoothness and noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.kriging import KRIGED, NOISES, kriging
from pymc_amortized.networks.summary.variogram import Bins

__all__ = ["CoupledStatistics", "wants_pairs"]

LEVELS = (0.01, 0.03, 0.07, 0.15, 0.3, 0.5, 0.75)  # of simulated distances: short ones tell more
RANGES = (2, 5)  # the levels at which reference processes have their range
MOST_TARGETS = 4
MOST_ROWS = 96  # pairs of more would cost more than the rest of a training step


def wants_pairs(join: Join) -> bool:
    """Whether rows depend on each other, and have covariates that may say how."""
    targets, places = _columns(join)
    return len(join.axes) == 1 and join.axes[0].coupled and bool(places) and 0 < len(targets) <= MOST_TARGETS


class CoupledStatistics(nn.Module):
    """Variogram of each observed channel, and its fit by reference processes, over distances between covariates.

    Parameters
    ----------
    join : Join
        Whose rows these are.
    """

    edges: Tensor

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.targets, self.places = _columns(join)
        bins = len(LEVELS) + 1
        self.width = bins + len(self.targets) * (bins + KRIGED * len(NOISES) * len(RANGES))
        self.register_buffer("edges", torch.arange(1.0, len(LEVELS) + 1))

    @torch.no_grad()
    def fit(self, rows: Rows) -> None:
        """Learn distances that occur, from simulated data sets."""
        values, weights = self._thinned(rows)
        exist = weights[:256, :, self.places].amin(-1)
        distance = self._distances(values[:256])
        found = distance[torch.triu(exist[:, :, None] * exist[:, None, :], diagonal=1) > 0]
        if found.numel():
            thinned = found[:: max(found.numel() // 1_000_000, 1)]
            self.edges.copy_(torch.quantile(thinned, torch.tensor(LEVELS, dtype=found.dtype, device=found.device)))

    @torch.no_grad()
    def forward(self, rows: Rows) -> Tensor:
        """Numbers of pairs by distance, variograms and fits: (batch, width)."""
        values, weights = self._thinned(rows)
        exist = weights[..., self.places].amin(-1)
        distance = self._distances(values)
        bins = Bins(distance, self.edges, exist)
        parts = [bins.log_counts]
        for target in self.targets:
            y, seen = values[..., target], weights[..., target] * exist
            parts += [bins.variogram(y, seen), kriging(y, seen, distance, self.edges[list(RANGES)])]
        return torch.cat(parts, -1)

    def _distances(self, values: Tensor) -> Tensor:
        """(batch, rows, rows)."""
        place = values[..., self.places]
        return (place[:, :, None] - place[:, None, :]).square().sum(-1).sqrt()

    def _thinned(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Rows and weights; of many, some spread over the first covariate, whatever the order of rows."""
        values = rows.values
        weights = torch.ones_like(values) if rows.weights is None else rows.weights.expand_as(values)
        if values.shape[1] <= MOST_ROWS:
            return values, weights
        first = torch.where(weights[..., self.places[0]] > 0, values[..., self.places[0]], torch.inf)
        order = torch.argsort(first, dim=1)
        number = weights[..., self.places[0]].sum(1, keepdim=True).clamp_min(1.0)
        step = torch.linspace(0, 1, MOST_ROWS, device=values.device)
        chosen = torch.arange(MOST_ROWS, device=values.device).expand(len(values), -1)
        many = number > MOST_ROWS
        index = order.gather(1, torch.where(many, (step * (number - 1)).round().long(), chosen))[..., None]
        index = index.expand(-1, -1, values.shape[-1])
        return values.gather(1, index), weights.gather(1, index)


def _columns(join: Join) -> tuple[list[int], list[int]]:
    """Channels of observed arrays and of covariates."""
    targets: list[int] = []
    places: list[int] = []
    start = 0
    for array, size in zip(join.arrays, join.sizes, strict=True):
        (places if array.given and not array.groups else targets).extend(range(start, start + size))
        start += size
    return targets, places
