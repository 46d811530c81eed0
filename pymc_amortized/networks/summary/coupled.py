r"""Fixed statistics of rows that depend on each other through their covariates: a Gaussian process over places.

What moments over single rows cannot hold: range, smoothness and noise. Profile likelihoods say how well reference
processes explain the rows. For correlations :math:`R`, a share of noise included, the best variance of n values y about
a mean is

.. math:: \hat\sigma^2 = (y - \hat\mu)^\top R^{-1} (y - \hat\mu) / n,
    \qquad \hat\mu = 1^\top R^{-1} y / 1^\top R^{-1} 1,

and :math:`\log \hat\sigma^2 + \log \det R / n` over a few :math:`R` is a coarse picture of the likelihood (Mardia &
Marshall 1984, "Maximum likelihood estimation of models for residual covariance in spatial regression").
"""

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.join import Join, Rows

__all__ = ["NOISES", "CoupledStatistics", "kriging", "wants_pairs"]

NOISES = (0.05, 0.5)
"""Variances of the noise of reference processes, beside the process's of 1."""
SMALL = 1e-4
"""Of variances, beside encoded values of order one."""


def wants_pairs(join: Join) -> bool:
    """Whether rows depend on each other, and have covariates that may say how."""
    targets, places = _columns(join)
    return len(join.axes) == 1 and join.axes[0].coupled and bool(places) and 0 < len(targets) <= 4


class CoupledStatistics(nn.Module):
    """Fits of each observed channel by reference processes, over distances between covariates.

    Parameters
    ----------
    join : Join
        Whose rows these are.
    """

    most_rows = 96  # pairs of more would cost more than the rest of a training step
    ranges: Tensor

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.targets, self.places = _columns(join)
        self.register_buffer("ranges", torch.ones(2))
        self.width = len(self.targets) * 4 * len(NOISES) * len(self.ranges)

    @torch.no_grad()
    def fit(self, rows: Rows) -> None:
        """Learn distances that occur, from simulated data sets."""
        values, weights = self._thinned(rows)
        exist = weights[:256, :, self.places].amin(-1)
        distance = self._distances(values[:256])
        found = distance[torch.triu(exist[:, :, None] * exist[:, None, :], diagonal=1) > 0]
        if found.numel():
            thinned = found[:: max(found.numel() // 1_000_000, 1)]
            # short distances tell more
            levels = torch.tensor([0.07, 0.5], dtype=found.dtype, device=found.device)
            self.ranges.copy_(torch.quantile(thinned, levels))

    @torch.no_grad()
    def forward(self, rows: Rows) -> Tensor:
        """Fits (batch, width)."""
        values, weights = self._thinned(rows)
        exist = weights[..., self.places].amin(-1)
        distance = self._distances(values)
        parts = [
            kriging(values[..., target], weights[..., target] * exist, distance, self.ranges) for target in self.targets
        ]
        return torch.cat(parts, -1)

    def _distances(self, values: Tensor) -> Tensor:
        """(batch, rows, rows)."""
        place = values[..., self.places]
        return (place[:, :, None] - place[:, None, :]).square().sum(-1).sqrt()

    def _thinned(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Rows and weights; of many, some spread over the first covariate, whatever the order of rows."""
        values = rows.values
        weights = torch.ones_like(values) if rows.weights is None else rows.weights.expand_as(values)
        if values.shape[1] <= self.most_rows:
            return values, weights
        first = torch.where(weights[..., self.places[0]] > 0, values[..., self.places[0]], torch.inf)
        order = torch.argsort(first, dim=1)
        number = weights[..., self.places[0]].sum(1, keepdim=True).clamp_min(1.0)
        step = torch.linspace(0, 1, self.most_rows, device=values.device)
        chosen = torch.arange(self.most_rows, device=values.device).expand(len(values), -1)
        many = number > self.most_rows
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


def kriging(y: Tensor, seen: Tensor, distance: Tensor, ranges: Tensor) -> Tensor:
    """Fits by processes of all ranges and noises, with Matérn's covariance of smoothness 3/2.

    Parameters
    ----------
    y, seen : Tensor
        (batch, rows): values, and 1 where there is one.
    distance : Tensor
        (batch, rows, rows) between places.
    ranges : Tensor
        (ranges,).

    Returns
    -------
    Tensor
        (batch, ranges * noises * 4): log variances about zero and about the mean, the mean, log determinants.
    """
    n = seen.sum(1).clamp_min(1.0)
    given = torch.stack([y * seen, seen], -1)
    # what is not there is far from everything else
    apart = distance + 1e6 * (1 - seen[:, :, None] * seen[:, None, :])
    found = []
    for reach in ranges:
        h = apart * (3**0.5 / reach.clamp_min(1e-3))  # places may all be the same
        process = (1 + h) * torch.exp(-h)
        for noise in NOISES:
            process.diagonal(dim1=-2, dim2=-1).fill_(1 + noise)
            factor, _ = torch.linalg.cholesky_ex(process)
            white = torch.linalg.solve_triangular(factor, given, upper=False)
            (zero, cross), (_, ones) = (column.unbind(-1) for column in (white.mT @ white).unbind(-1))
            about = (zero - cross.square() / ones.clamp_min(SMALL)).clamp_min(0.0)
            determinant = 2 * (torch.log(factor.diagonal(dim1=-2, dim2=-1)) * seen).sum(1) / n
            variances = [torch.log(s / n + SMALL) for s in (zero, about)]
            found += [*variances, cross / ones.clamp_min(SMALL), determinant]
    return torch.stack(found, -1)
