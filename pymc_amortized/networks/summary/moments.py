r"""Fixed statistics of joined rows: moments and regressions, over what is present.

With n rows, the posterior mean of a normal mean is :math:`n / (n + c)` times that of the rows. Where data sets differ
in n, means and regressions are therefore given also times :math:`n / (n + k)` for two k, between which a
linear map finds the c of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pymc_amortized.networks.statistics import squash
from pymc_amortized.networks.summary.layers import LIMIT
from pymc_amortized.networks.summary.rows import Join, Rows

__all__ = ["Moments", "RowStatistics", "moments", "pair_statistics"]

PAIRS_UP_TO = 24  # channels of a row: 24 give 852 pairwise statistics
RIDGE = 1e-4  # relative: one-hot channels are collinear, and float32 has seven digits
FEW = 0.5  # correlations of c channels over n rows are shrunk by this times (c / (n + c))^2 where there may be few rows
SHRINKAGE = (1.0, 10.0)  # k in n / (n + k)
FLOOR = 1e-10  # of a variance: the rounding of float32 beside values of order one


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
    scale = torch.sqrt(variance + FLOOR)
    return Moments(count, mean, scale, centered / scale[:, None])


def pair_statistics(correlation: Tensor, scale: Tensor, ridge: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Correlations, and each channel's regression on all others with its log residual variance.

    ``correlation`` is (batch, channels, channels), ``scale`` (batch, channels), ``ridge`` (batch, 1)
    or a number. With P the inverse of the correlation matrix, the coefficient of channel j in the
    regression of channel i is -P_ij / P_ii (in units of their scales) and the residual variance
    1 / P_ii.
    """
    channels = scale.shape[-1]
    eye = torch.eye(channels, dtype=scale.dtype, device=scale.device)
    penalty = ridge[..., None] if isinstance(ridge, Tensor) else ridge
    factor, _ = torch.linalg.cholesky_ex(correlation + penalty * eye)
    precision = torch.cholesky_inverse(factor)
    diagonal = precision.diagonal(dim1=-2, dim2=-1).clamp_min(1e-6)
    coefficients = -precision / diagonal[..., None] * (scale[..., None] / scale[..., None, :])
    upper = torch.triu_indices(channels, channels, 1, device=scale.device)
    apart = ~torch.eye(channels, dtype=torch.bool, device=scale.device)
    return (
        correlation[..., upper[0], upper[1]],
        squash(coefficients[..., apart], LIMIT),
        2 * torch.log(scale) - torch.log(diagonal),
    )


def log_count(count: Tensor) -> Tensor:
    """Logarithm of a number, which may be 0."""
    return torch.log(count.clamp_min(0.5))


class RowStatistics:
    """Moments over rows, and regressions of channels on each other where there are few enough.

    Parameters
    ----------
    join : Join
        Whose rows these are.
    """

    def __init__(self, join: Join) -> None:
        channels = join.channels
        self.varies, self.missing = join.varies, join.present > 0
        self.pairs = 1 < channels <= PAIRS_UP_TO
        shrunk = len(SHRINKAGE) if self.varies else 0
        self.width = (2 + shrunk) * channels + 1 + 2 * join.present
        if self.pairs:
            self.width += channels * (channels - 1) // 2 + channels + (1 + shrunk) * channels * (channels - 1)
            self.width += (1 + 2 * channels) * self.missing

    def __call__(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Statistics (batch, width), and rows standardized within their data set."""
        found = moments(rows.values, rows.weights)
        t = [found.mean, 2 * torch.log(found.scale), log_count(rows.counts)]
        if self.varies:
            t += [found.mean * found.count / (found.count + k) for k in SHRINKAGE]
        if rows.present is not None:
            present = rows.present.sum(1)
            t += [log_count(present), present / rows.counts.clamp_min(1.0)]
        if self.pairs:
            t += self._pairs(rows, found)
        return torch.cat(t, -1), found.normal

    def _pairs(self, rows: Rows, found: Moments) -> list[Tensor]:
        extra = []
        if self.missing and rows.weights is not None:
            complete = rows.weights.amin(-1, keepdim=True)
            found = moments(rows.values, complete)
            # intercepts need means over the very rows that slopes were found in
            extra += [log_count(found.count), found.mean, 2 * torch.log(found.scale)]
        n = found.count
        correlation = found.normal.mT @ found.normal / n.clamp_min(1.0)[..., None]
        channels = found.scale.shape[-1]
        ridge: Tensor | float = RIDGE + FEW * (channels / (n + channels)) ** 2 if self.varies else RIDGE
        apart, slopes, residual = pair_statistics(correlation, found.scale, ridge)
        if self.varies:
            extra += [slopes * n / (n + k) for k in SHRINKAGE]
        return [apart, slopes, residual, *extra]
