r"""Linear regression of parameters on statistics: where a network starts.

The mean is linear in the statistics, and so is the logarithm of the residuals' scale: posteriors narrow as data sets
grow, and widen with their noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Start", "regression_start"]

PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
LOG_NORMAL = -0.635  # mean of log |e| for a standard normal e
WIDEST = 3.0  # e-folds that predicted scales may lie beside their mean


@dataclass(frozen=True)
class Start:
    """Predictions that are linear in statistics (n, statistics).

    Attributes
    ----------
    weight, bias : Tensor
        (dim, statistics) and (dim,): of the mean.
    log_scale_weight, log_scale_bias : Tensor
        The same, of the log scale of what is left; 0 where data sets do not differ in it.
    covariance : Tensor
        (dim, dim), of what is left in units of its scale.
    """

    weight: Tensor
    bias: Tensor
    log_scale_weight: Tensor
    log_scale_bias: Tensor
    covariance: Tensor


def regression_start(t: Tensor, z: Tensor) -> Start:
    """Ridge regressions of z (n, dim) and of its log residuals on t (n, statistics).

    Penalties are chosen on a held-out fifth.
    """
    held = max(len(t) // 5, 1)
    center_t, center_z = t[held:].mean(0), z[held:].mean(0)
    x = t[held:] - center_t
    values, vectors = torch.linalg.eigh(x.mT @ x)
    values, rotated = values.clamp_min(0.0), (t - center_t) @ vectors

    def slopes(y: Tensor, penalty: float) -> Tensor:
        """Of centered y (n, dim), in the rotated statistics."""
        return rotated[held:].mT @ y[held:] / (values + penalty * len(x))[:, None]

    def mean_error(penalty: float) -> float:
        residual = (z - center_z)[:held] - rotated[:held] @ slopes(z - center_z, penalty)
        return float(residual.square().mean(0).log().sum())

    penalty = min(PENALTIES, key=mean_error)
    slope = slopes(z - center_z, penalty)
    residual = z - center_z - rotated @ slope
    # What was fitted lies closer than what is new: by its leverage, as in leaving each out.
    leverage = (rotated.square() / (values + penalty * len(x))).sum(1)
    residual[held:] /= (1 - leverage[held:, None]).clamp_min(0.1)

    log_size = torch.log(residual.abs() + 1e-8) - LOG_NORMAL
    center_size = log_size[held:].mean(0)

    def log_scale(penalty: float) -> Tensor:
        return (rotated @ slopes(log_size - center_size, penalty)).clamp(-WIDEST, WIDEST)

    def scale_error(penalty: float) -> float:
        scale = log_scale(penalty)[:held]
        # The best constant factor is left free: it comes with the covariance.
        return float(((residual[:held] / scale.exp()).square().mean(0).log() / 2 + scale.mean(0)).sum())

    best = min((*PENALTIES, float("inf")), key=scale_error)
    units = residual / log_scale(best).exp()
    covariance = units.mT @ units / len(units)
    covariance = covariance + torch.diag(0.01 * covariance.diagonal() + 1e-10)
    weight, scale_weight = (vectors @ slope).mT, (vectors @ slopes(log_size - center_size, best)).mT
    return Start(weight, center_z - weight @ center_t, scale_weight, -scale_weight @ center_t, covariance)
