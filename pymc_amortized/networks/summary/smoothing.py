r"""Fixed statistics of series: how well exponential smoothing predicts the next value, for several memories.

The predictor of :math:`y_t` is the weighted mean of what is present before, with weights :math:`\lambda^{t - 1 - s}`.
For a level that walks at random under noise, one :math:`\lambda` makes it the Kalman filter's once that has settled
(Muth 1960, "Optimal properties of exponentially weighted forecasts"), and which one that is tells the ratio of walk to
noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pymc_amortized.networks.summary.moments import FLOOR

__all__ = ["MEMORIES", "smoothing_errors"]

MEMORIES = (0.25, 0.5, 0.7, 0.85, 0.93, 1.0)  # a lambda of 0 is the change from the last step, of 1 the mean so far


BLOCK = 64  # steps whose sums are one matrix product; the next block goes on from its last


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
    error = normal[:, 1:, :, None] - past[0] / past[1].clamp_min(FLOOR)
    counted = known * weights[:, 1:, :, None]
    squares = (error.square() * counted).sum(1) / counted.sum(1).clamp_min(1.0)
    return torch.log(squares + FLOOR).mT.flatten(1)


def smoothed(x: Tensor) -> Tensor:
    """Sums (..., steps, channels, memories) of what came so far in (..., steps, channels), with weights that decay."""
    steps, channels = x.shape[-2:]
    flat = x.transpose(-1, -2).flatten(0, -2)
    before = torch.zeros(len(flat), len(MEMORIES), dtype=x.dtype, device=x.device)
    decay = torch.tensor(MEMORIES, dtype=x.dtype, device=x.device)
    ages = torch.arange(min(BLOCK, steps), device=x.device)
    age = ages[:, None] - ages
    within = (decay[:, None, None] ** age.clamp_min(0)).tril()  # of each step, what others in its block count for
    parts = []
    for part in flat.split(BLOCK, -1):
        length = part.shape[-1]
        own = (part @ within[:, :length, :length].reshape(-1, length).mT).unflatten(-1, (len(MEMORIES), length))
        own = own + before[..., None] * decay[:, None] ** (ages[:length] + 1)
        before = own[..., -1]
        parts.append(own)
    total = torch.cat(parts, -1)  # (series, memories, steps)
    return total.unflatten(0, (*x.shape[:-2], channels)).movedim(-1, -3)
