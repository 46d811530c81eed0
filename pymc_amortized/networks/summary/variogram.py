r"""The empirical variogram: how unlike two rows are, by how far apart they are.

.. math:: \gamma(h) = \tfrac12 \operatorname{mean} \{(y_i - y_j)^2 : |x_i - x_j| \approx h\}.

For rows that depend on each other through their covariates (a Gaussian process over places) it holds what moments over
single rows cannot: range, smoothness and noise (Matheron 1963, "Principles of geostatistics").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.moments import log_count
from pymc_amortized.networks.summary.rows import Join, Rows

__all__ = ["Variogram", "wants_variogram"]

LEVELS = (0.01, 0.03, 0.07, 0.15, 0.3, 0.5, 0.75)  # of simulated distances: short ones tell more
MOST_TARGETS = 4
MOST_ROWS = 96  # pairs of more would cost more than the rest of a training step
SMALL = 1e-4


def wants_variogram(join: Join) -> bool:
    """Whether rows depend on each other, and have covariates that may say how."""
    targets, places = _columns(join)
    return len(join.axes) == 1 and join.axes[0].coupled and bool(places) and 0 < len(targets) <= MOST_TARGETS


class Variogram(nn.Module):
    """Variogram of each observed channel over the distance between rows' covariates.

    Parameters
    ----------
    join : Join
        Whose rows these are.
    """

    edges: Tensor

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.targets, self.places = _columns(join)
        self.width = (len(self.targets) + 1) * (len(LEVELS) + 1)
        self.register_buffer("edges", torch.arange(1.0, len(LEVELS) + 1))

    @torch.no_grad()
    def fit(self, rows: Rows) -> None:
        """Learn distances that occur, from simulated data sets."""
        values, weights = self._thinned(rows)
        distance, pairs = self._pairs(values[:256], weights[:256])
        found = distance[pairs > 0]
        if found.numel():
            thinned = found[:: max(found.numel() // 1_000_000, 1)]
            self.edges.copy_(torch.quantile(thinned, torch.tensor(LEVELS, dtype=found.dtype, device=found.device)))

    @torch.no_grad()
    def forward(self, rows: Rows) -> Tensor:
        """Logarithms of the variogram and of the numbers of pairs: (batch, width)."""
        values, weights = self._thinned(rows)
        distance, pairs = self._pairs(values, weights)
        bins = torch.bucketize(distance, self.edges).flatten(1)
        counts = self._sum(pairs, bins)
        parts = [log_count(counts)]
        for target in self.targets:
            y, seen = values[..., target], weights[..., target]
            both = pairs * seen[:, :, None] * seen[:, None, :]
            unlike = 0.5 * (y[:, :, None] - y[:, None, :]).square() * both
            number = self._sum(both, bins)
            overall = unlike.sum((1, 2)) / both.sum((1, 2)).clamp_min(1.0)
            # without a pair at a distance, what is known of all of them
            each = (self._sum(unlike, bins) + overall[:, None]) / (number + 1.0)
            parts.append(torch.log(each + SMALL))
        return torch.cat(parts, -1)

    def _sum(self, values: Tensor, bins: Tensor) -> Tensor:
        return values.new_zeros(len(values), len(LEVELS) + 1).scatter_add_(1, bins, values.flatten(1))

    def _pairs(self, values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Distances, and which are of two different rows that exist: (batch, rows, rows) each."""
        place = values[..., self.places]
        exist = weights[..., self.places].amin(-1)
        pairs = torch.triu(exist[:, :, None] * exist[:, None, :], diagonal=1)
        return (place[:, :, None] - place[:, None, :]).square().sum(-1).sqrt(), pairs

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
