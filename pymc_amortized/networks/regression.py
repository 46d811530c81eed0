r"""Linear regression of parameters on statistics: where a network starts.

The mean is linear in the statistics, and so is the logarithm of the residuals' scale: posteriors narrow as data sets
grow, and widen with their noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pymc_amortized.networks.density.protocols import WithStart
from pymc_amortized.networks.summary.summary_network import SummaryNetwork

__all__ = ["Start", "begin_at_regression", "regression_start"]

PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


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

    log_size = torch.log(residual.abs() + 1e-8) + 0.635  # the mean of log |e| for a standard normal e is -0.635
    center_size = log_size[held:].mean(0)

    def log_scale(penalty: float) -> Tensor:
        return (rotated @ slopes(log_size - center_size, penalty)).clamp(-3.0, 3.0)  # e-folds beside their mean

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


@torch.no_grad()
def begin_at_regression(summary: SummaryNetwork, density: nn.Module, encoded: dict[str, Tensor], z: Tensor) -> bool:
    """Let networks begin at the regression of z (n, dim) on the statistics of encoded data; tell whether they do.

    The first features of the summary become the predicted means; where there is room, the next ones log scales.
    """
    t, dim = summary.statistics(encoded), z.shape[1]
    # the normal equations of so many statistics take half a second
    if t.shape[1] > 1_500 or len(z) < 50 or summary.features < dim:
        return False
    start = regression_start(t.double(), z.double().clamp(-8.0, 8.0))
    summary.start_at(start.weight.float(), start.bias.float())
    if isinstance(density, WithStart):
        spread = summary.features >= 2 * dim
        if spread:
            summary.start_at(start.log_scale_weight.float(), start.log_scale_bias.float(), dim)
        density.start_at(start.covariance, spread)
    return True
