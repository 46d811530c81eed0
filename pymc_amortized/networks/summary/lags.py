"""Fixed statistics of series: what a step has to do with the steps before it, over what is present."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pymc_amortized.networks.encoding.robust import squash
from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.layers import LIMIT
from pymc_amortized.networks.summary.moments import FEW, FLOOR, RIDGE, SHRINKAGE
from pymc_amortized.networks.summary.smoothing import MEMORIES, smoothing_errors

__all__ = ["LagStatistics"]

LAGS = 4
SMALLEST = 1e-6  # residual variance, beside one of standardized values


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
        shrunk = len(SHRINKAGE) if self.varies else 0
        self.width = join.channels * (LAGS + 2 + (2 + shrunk) + 3 + 1 + len(MEMORIES) + 2)

    def __call__(self, rows: Rows, normal: Tensor) -> Tensor:
        """Statistics (batch, width), given rows standardized within their data set."""
        weights = torch.ones_like(normal[..., :1]) if rows.weights is None else rows.weights
        log_scale = 0.5 * torch.log(_mean((rows.values - normal_center(rows, weights)).square(), weights) + FLOOR)
        t = [_lagged(normal, weights, k) for k in range(1, LAGS + 1)]
        # Squares that hang together while values do not are volatility that changes.
        square = (normal.square().clamp_max(LIMIT) - 1) * weights
        t += [_lagged(square, weights, k) for k in (1, 2)]
        one, residual, pairs = self._one_step(normal, weights)
        t += [one, residual + 2 * log_scale]
        if self.varies:
            t += [one * pairs / (pairs + k) for k in SHRINKAGE]
        first, second, residual = self._two_steps(normal, weights)
        t += [first, second, residual + 2 * log_scale]
        both = weights[:, 1:] * weights[:, :-1]
        t.append(torch.log(_mean((normal[:, 1:] - normal[:, :-1]).square(), both) + FLOOR) + 2 * log_scale)
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
        return squash(slope, LIMIT), torch.log(residual + SMALLEST), pairs

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
        return squash(first, LIMIT), squash(second, LIMIT), torch.log(residual + SMALLEST)

    def _ridge(self, count: Tensor) -> Tensor:
        return RIDGE * count + (FEW if self.varies else RIDGE)


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
