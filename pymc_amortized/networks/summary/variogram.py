r"""The empirical variogram: how unlike two rows are, by how far apart they are.

.. math:: \gamma(h) = \tfrac12 \operatorname{mean} \{(y_i - y_j)^2 : |x_i - x_j| \approx h\}

(Matheron 1963, "Principles of geostatistics").
"""

from __future__ import annotations

import torch
from torch import Tensor

from pymc_amortized.networks.summary.moments import log_count

__all__ = ["Bins"]

SMALL = 1e-4  # of squares, beside encoded values of order one


class Bins:
    """Pairs of different rows that exist, by distance.

    Parameters
    ----------
    distance : Tensor
        (batch, rows, rows).
    edges : Tensor
        (bins - 1,): distances between bins.
    exist : Tensor
        (batch, rows): 1 where there is a row.
    """

    def __init__(self, distance: Tensor, edges: Tensor, exist: Tensor) -> None:
        self.bins = torch.bucketize(distance, edges).flatten(1)
        self.number = len(edges) + 1
        self.pairs = torch.triu(exist[:, :, None] * exist[:, None, :], diagonal=1)

    @property
    def log_counts(self) -> Tensor:
        """Logarithms of the numbers of pairs: (batch, bins)."""
        return log_count(self._sum(self.pairs))

    def variogram(self, y: Tensor, seen: Tensor) -> Tensor:
        """Logarithms of the variogram (batch, bins) of values (batch, rows), where seen (the same) is 1."""
        both = self.pairs * seen[:, :, None] * seen[:, None, :]
        unlike = 0.5 * (y[:, :, None] - y[:, None, :]).square() * both
        overall = unlike.sum((1, 2)) / both.sum((1, 2)).clamp_min(1.0)
        # without a pair at a distance, what is known of all of them
        return torch.log((self._sum(unlike) + overall[:, None]) / (self._sum(both) + 1.0) + SMALL)

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(values), self.number).scatter_add_(1, self.bins, values.flatten(1))
