r"""Fixed statistics of joined rows: moments and regressions, over what is present.

With n rows, the posterior mean of a normal mean is :math:`n / (n + c)` times that of the rows. Where data sets differ
in n, means and regressions are therefore given also times :math:`n / (n + k)` for two k, between which a
linear map finds the c of the model.
"""

import torch
from torch import Tensor

from pymc_amortized.networks.encoding.robust import squash
from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.layers import GUARD, Moments, log_count, moments

__all__ = ["RowStatistics", "pair_statistics"]


def pair_statistics(correlation: Tensor, scale: Tensor, ridge: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Correlations, and each channel's regression on all others with its log residual variance.

    ``correlation`` is (batch, channels, channels), ``scale`` (batch, channels), ``ridge`` (batch, 1)
    or a number. With P the inverse of the correlation matrix, the coefficient of channel j in the
    regression of channel i is -P_ij / P_ii (in units of their scales) and the residual variance
    1 / P_ii.
    """
    channels = scale.shape[-1]
    precision = _precision(correlation, ridge)
    diagonal = precision.diagonal(dim1=-2, dim2=-1).clamp_min(1e-6)
    coefficients = -precision / diagonal[..., None] * (scale[..., None] / scale[..., None, :])
    upper = torch.triu_indices(channels, channels, 1, device=scale.device)
    apart = ~torch.eye(channels, dtype=torch.bool, device=scale.device)
    return (
        correlation[..., upper[0], upper[1]],
        squash(coefficients[..., apart], GUARD.limit),
        2 * torch.log(scale) - torch.log(diagonal),
    )


def _precision(correlation: Tensor, ridge: Tensor | float) -> Tensor:
    """Inverse of correlations (batch, channels, channels)."""
    eye = torch.eye(correlation.shape[-1], dtype=correlation.dtype, device=correlation.device)
    factor, _ = torch.linalg.cholesky_ex(correlation + (ridge[..., None] if isinstance(ridge, Tensor) else ridge) * eye)
    return torch.cholesky_inverse(factor)


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
        self.pairs = 1 < channels <= 24  # which give 852 pairwise statistics
        shrunk = len(GUARD.shrinkage) if self.varies else 0
        self.width = (2 + shrunk) * channels + 1 + 2 * join.present
        if self.pairs:
            self.width += channels * (channels - 1) // 2 + channels + (1 + shrunk) * channels * (channels - 1)
            self.width += (1 + 2 * channels) * self.missing

    def __call__(self, rows: Rows, found: Moments) -> Tensor:
        """Statistics (batch, width) of rows with these moments."""
        t = [found.mean, 2 * torch.log(found.scale), log_count(rows.counts)]
        if self.varies:
            t += [found.mean * found.count / (found.count + k) for k in GUARD.shrinkage]
        if rows.present is not None:
            present = rows.present.sum(1)
            t += [log_count(present), present / rows.counts.clamp_min(1.0)]
        if self.pairs:
            t += self._pairs(rows, found)
        return torch.cat(t, -1)

    def _pairs(self, rows: Rows, found: Moments) -> list[Tensor]:
        extra = []
        correlation, scale, n = _correlation(found), found.scale, found.count
        if self.missing and rows.weights is not None:
            mean, correlation, scale, n = _completed(rows, rows.weights, found)
            extra += [log_count(n), mean, 2 * torch.log(scale)]
        apart, slopes, residual = pair_statistics(correlation, scale, _ridge(scale, n) if self.varies else GUARD.ridge)
        if self.varies:
            extra += [slopes * n / (n + k) for k in GUARD.shrinkage]
        return [apart, slopes, residual, *extra]


def _correlation(found: Moments) -> Tensor:
    return found.normal.mT @ found.normal / found.count.clamp_min(1.0)[..., None]


def _ridge(scale: Tensor, n: Tensor) -> Tensor:
    """Penalty of correlations between channels (batch, channels) over n rows (batch, 1)."""
    channels = scale.shape[-1]
    return GUARD.ridge + GUARD.few * (channels / (n + channels)) ** 2


def _completed(rows: Rows, weights: Tensor, found: Moments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, correlation and scale by one step of EM for a normal distribution, from its complete rows.

    Rows that lack a value still tell of the others, and those of it (Dempster, Laird & Rubin 1977). Where few rows are
    complete, the start leans on what is present of each channel. Also gives the number of complete rows.
    """
    complete = moments(rows.values, weights.amin(-1, keepdim=True))
    n = complete.count
    share = n / (n + found.scale.shape[-1])
    mean, scale = (share * c + (1 - share) * f for c, f in ((complete.mean, found.mean), (complete.scale, found.scale)))
    precision = _precision(_correlation(complete), _ridge(scale, n))
    variance = 1 / precision.diagonal(dim1=-2, dim2=-1)
    slopes = torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device) - precision * variance[..., None]
    filled = (rows.values - mean[:, None]) / scale[:, None] * weights
    for _ in range(2):  # rows that lack one value are filled by the first, those that lack more nearly by the second
        filled = torch.where(weights > 0, filled, (filled @ slopes.mT).clamp(-GUARD.limit, GUARD.limit))
    exist = weights.new_ones(1, 1, 1) if rows.mask is None else rows.mask[..., None]
    total = exist.expand(len(n), rows.values.shape[1], 1)
    after = moments(filled, total.expand_as(filled))
    gap = 1 - weights.sum(1) / total.sum(1).clamp_min(1.0)
    widened = torch.sqrt(after.scale.square() + gap * variance)
    shrunk = after.scale / widened
    correlation = _correlation(after) * shrunk[..., None] * shrunk[..., None, :]
    correlation = correlation + torch.diag_embed(1 - correlation.diagonal(dim1=-2, dim2=-1))
    return mean + scale * after.mean, correlation, scale * widened, n
