r"""Fixed statistics of series: what a step has to do with the steps before it, over what is present.

Among them is how well exponential smoothing predicts the next value, for several memories. The predictor of :math:`y_t`
is the weighted mean of what is present before, with weights :math:`\lambda^{t - 1 - s}`. For a level that walks at
random under noise, one :math:`\lambda` makes it the Kalman filter's once that has settled (Muth 1960, "Optimal
properties of exponentially weighted forecasts"), and which one that is tells the ratio of walk to noise.
"""

import math

import torch
from torch import Tensor

from pymc_amortized.networks.encoding.robust import squash
from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.layers import GUARD

__all__ = ["MEMORIES", "LagStatistics", "smoothing_errors"]

LAGS = 4
MEMORIES = (0.25, 0.5, 0.7, 0.85, 0.93, 1.0)
"""Of exponential smoothing: 0 would be the change from the last step, 1 is the mean so far."""
SMALLEST = 1e-6
"""Residual variance, beside one of standardized values."""


def last_step(mask: Tensor) -> Tensor:
    """Index of the last step of each series in a mask (batch, steps): (batch,); 0 where there is none."""
    return (mask.sum(1) - 1).clamp_min(0.0).long()


class LagStatistics:
    """Autocorrelations, regressions on steps before, changes, errors of smoothing, and both ends; per channel.

    Parameters
    ----------
    join : Join
        Whose rows these are.
    """

    def __init__(self, join: Join) -> None:
        self.varies = join.varies
        shrunk = len(GUARD.shrinkage) if self.varies else 0
        self.width = join.channels * (LAGS + 2 + (2 + shrunk) + 3 + 1 + len(MEMORIES) + 2)

    def __call__(self, rows: Rows, normal: Tensor) -> Tensor:
        """Statistics (batch, width), given rows standardized within their data set."""
        weights = torch.ones_like(normal[..., :1]) if rows.weights is None else rows.weights
        log_scale = 0.5 * torch.log(_mean((rows.values - normal_center(rows, weights)).square(), weights) + GUARD.floor)
        t = [_lagged(normal, weights, k) for k in range(1, LAGS + 1)]
        # Squares that hang together while values do not are volatility that changes.
        square = (normal.square().clamp_max(GUARD.limit) - 1) * weights
        t += [_lagged(square, weights, k) for k in (1, 2)]
        one, residual, pairs = self._one_step(normal, weights)
        t += [one, residual + 2 * log_scale]
        if self.varies:
            t += [one * pairs / (pairs + k) for k in GUARD.shrinkage]
        first, second, residual = self._two_steps(normal, weights)
        t += [first, second, residual + 2 * log_scale]
        both = weights[:, 1:] * weights[:, :-1]
        t.append(torch.log(_mean((normal[:, 1:] - normal[:, :-1]).square(), both) + GUARD.floor) + 2 * log_scale)
        t.append(smoothing_errors(normal, weights) + 2 * log_scale.repeat(1, len(MEMORIES)))
        if rows.mask is None:
            last = rows.values[:, -1]
        else:
            last = rows.values[torch.arange(len(normal), device=normal.device), last_step(rows.mask)]
        return torch.cat([*t, rows.values[:, 0], last], -1)

    def _one_step(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slope of x_t on x_t-1, log residual variance, and the number of pairs; (batch, channels)."""
        both = weights[:, 1:] * weights[:, :-1]
        now, before = _centered(x[:, 1:], both), _centered(x[:, :-1], both)
        pairs = both.sum(1)
        xx, xy, yy = ((a * b * both).sum(1) for a, b in ((before, before), (before, now), (now, now)))
        slope = xy / (xx + self._ridge(pairs))
        residual = (yy - 2 * slope * xy + slope.square() * xx).clamp_min(0.0) / pairs.clamp_min(1.0)
        return squash(slope, GUARD.limit), torch.log(residual + SMALLEST), pairs

    def _two_steps(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes of x_t on x_t-1 and x_t-2, and log residual variance; (batch, channels)."""
        if x.shape[1] < 3:
            zero = x.new_zeros(x.shape[0], x.shape[2])
            return zero, zero, torch.full_like(zero, math.log(SMALLEST))
        all_three = weights[:, 2:] * weights[:, 1:-1] * weights[:, :-2]
        y, a, b = (_centered(part, all_three) for part in (x[:, 2:], x[:, 1:-1], x[:, :-2]))
        count = all_three.sum(1)
        products = ((a, a), (b, b), (a, b), (a, y), (b, y), (y, y))
        aa, bb, ab, ay, by, yy = ((p * q * all_three).sum(1) for p, q in products)
        ridge = self._ridge(count)
        aa, bb = aa + ridge, bb + ridge
        determinant = (aa * bb - ab.square()).clamp_min(1e-6)
        first, second = (bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant
        residual = (yy - first * ay - second * by).clamp_min(0.0) / count.clamp_min(1.0)
        return squash(first, GUARD.limit), squash(second, GUARD.limit), torch.log(residual + SMALLEST)

    def _ridge(self, count: Tensor) -> Tensor:
        return GUARD.ridge * count + (GUARD.few if self.varies else GUARD.ridge)


def normal_center(rows: Rows, weights: Tensor) -> Tensor:
    """Mean over steps, (batch, 1, channels)."""
    return _mean(rows.values, weights)[:, None]


def _mean(x: Tensor, weights: Tensor) -> Tensor:
    return (x * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def _centered(x: Tensor, weights: Tensor) -> Tensor:
    return (x - _mean(x, weights)[:, None]) * weights


def _lagged(x: Tensor, weights: Tensor, lag: int) -> Tensor:
    """Mean product of x (batch, steps, channels) with itself some steps before: (batch, channels)."""
    if x.shape[1] <= lag:
        return x.new_zeros(x.shape[0], x.shape[2])
    return _mean(x[:, lag:] * x[:, :-lag], weights[:, lag:] * weights[:, :-lag])


@torch.no_grad()
def smoothing_errors(normal: Tensor, weights: Tensor) -> Tensor:
    """Log mean squared errors of prediction, per memory and channel.

    Parameters
    ----------
    normal, weights : Tensor
        (batch, steps, channels): values, and 1 where there is one (weights may have one channel for all).

    Returns
    -------
    Tensor
        (batch, memories * channels).
    """
    past = smoothed(torch.stack([normal * weights, weights.expand_as(normal)]))[:, :, :-1]
    known = past[1] > 0
    error = normal[:, 1:, :, None] - past[0] / past[1].clamp_min(GUARD.floor)
    counted = known * weights[:, 1:, :, None]
    squares = (error.square() * counted).sum(1) / counted.sum(1).clamp_min(1.0)
    return torch.log(squares + GUARD.floor).mT.flatten(1)


def smoothed(x: Tensor) -> Tensor:
    """Sums (..., steps, channels, memories) of what came so far in (..., steps, channels), with weights that decay."""
    steps, channels = x.shape[-2:]
    block = 64  # steps whose sums are one matrix product; the next block goes on from its last
    flat = x.transpose(-1, -2).flatten(0, -2)
    before = torch.zeros(len(flat), len(MEMORIES), dtype=x.dtype, device=x.device)
    decay = torch.tensor(MEMORIES, dtype=x.dtype, device=x.device)
    ages = torch.arange(min(block, steps), device=x.device)
    age = ages[:, None] - ages
    within = (decay[:, None, None] ** age.clamp_min(0)).tril()  # of each step, what others in its block count for
    parts = []
    for part in flat.split(block, -1):
        length = part.shape[-1]
        own = (part @ within[:, :length, :length].reshape(-1, length).mT).unflatten(-1, (len(MEMORIES), length))
        own = own + before[..., None] * decay[:, None] ** (ages[:length] + 1)
        before = own[..., -1]
        parts.append(own)
    total = torch.cat(parts, -1)  # (series, memories, steps)
    return total.unflatten(0, (*x.shape[:-2], channels)).movedim(-1, -3)
