"""Whether chains agree: those of NUTS (Vehtari et al. 2021, Bayesian Analysis 16(2)), and weighted proposals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats
from scipy import special

from pymc_amortized.numerics.thresholds import THRESHOLDS


@dataclass(frozen=True)
class Convergence:
    """What is known of a run of NUTS: the worst over all parameters."""

    r_hat: float
    ess_bulk: float
    ess_tail: float
    divergences: int
    chains: int
    draws: int
    mcse: np.ndarray
    """Monte Carlo error of each parameter's mean (dim,), in standard deviations of the posterior."""

    @classmethod
    def of(cls, theta: np.ndarray, divergences: int, circular: np.ndarray) -> Convergence:
        """Look at chains.

        Parameters
        ----------
        theta : ndarray (chains, draws, dim)
            Unconstrained.
        divergences : int
        circular : bool ndarray (dim,)
            Which are angles.
        """
        # an angle is a point on a circle: near pi it jumps without having moved
        angles = theta[..., circular]
        values = np.concatenate([theta[..., ~circular], np.cos(angles), np.sin(angles)], axis=-1)
        axes = {"chain_axis": 0, "draw_axis": 1}
        with np.errstate(all="ignore"):  # of a chain that never moved
            r_hat = array_stats.rhat(values, method="rank", **axes)
            bulk = array_stats.ess(values, method="bulk", **axes)
            tail = array_stats.ess(values, method="tail", prob=(0.05, 0.95), **axes)
        chains, draws = theta.shape[:2]
        straight, around = np.count_nonzero(~circular), np.flatnonzero(circular)
        each = np.empty(len(circular))
        each[~circular] = bulk[:straight]
        each[around] = bulk[straight:].reshape(2, -1).min(axis=0)
        worst = float(np.max(r_hat)), float(np.min(bulk)), float(np.min(tail))
        return cls(*worst, divergences, chains, draws, 1 / np.sqrt(np.maximum(each, 1.0)))

    @property
    def converged(self) -> bool:
        """Whether the draws can be used; NaN, of a parameter that never moved, is a no."""
        return all(fine for _, fine, _ in self._judged())

    def _judged(self) -> list[tuple[str, bool, str]]:
        """Each number, whether it is fine, and what is wanted."""
        enough = THRESHOLDS.ess_per_chain * self.chains
        most = THRESHOLDS.divergences * self.chains * self.draws
        return [
            (f"R-hat {self.r_hat:.3f}", self.r_hat < THRESHOLDS.r_hat, f"below {THRESHOLDS.r_hat}"),
            (f"bulk ESS {self.ess_bulk:.0f}", self.ess_bulk > enough, f"above {enough}"),
            (f"tail ESS {self.ess_tail:.0f}", self.ess_tail > enough, f"above {enough}"),
            (f"{self.divergences} divergences", self.divergences <= most, f"at most {most:.0f}"),
        ]

    def __str__(self) -> str:
        return ", ".join(text if fine else f"{text} (wanted: {bound})" for text, fine, bound in self._judged())


def weighted_r_hat(theta: np.ndarray, log_p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R-hat of proposals that are weighted chain by chain: the largest that is not a matter of chance.

    Parameters
    ----------
    theta : ndarray (..., chains, n, dim)
        Of one data set, or of several.
    log_p : ndarray (..., chains, n)
        The model's log density, which is compared like a parameter.
    weights : ndarray (..., chains, n)
        Normalized within each chain.

    Returns
    -------
    ndarray (...)
        1 where chains differ no more than their Monte Carlo errors say.
    """
    *lead, chains, n, dim = theta.shape
    if chains == 1:
        return np.ones(lead)
    values = np.empty((*lead, chains, n, dim + 1))
    values[..., :-1], values[..., -1] = theta, np.where(np.isfinite(log_p), log_p, 0.0)
    heaviest = weights.reshape(*lead, -1).argmax(axis=-1)[..., None, None]
    # of what does not vary, means differ by nothing then, not by rounding
    values -= np.take_along_axis(values.reshape(*lead, -1, dim + 1), heaviest, axis=-2)[..., None, :, :]
    means = (weights[..., None, :] @ values)[..., 0, :]
    values -= means[..., None, :]
    np.clip(values, -1e100, 1e100, out=values)  # squares of what has no weight must not be infinite
    both = np.stack([weights, np.square(weights)], axis=-2) @ np.square(values, out=values)
    within, errors = both[..., 0, :], both[..., 1, :]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        precision = 1 / errors
        center = (precision * means).sum(axis=-2, keepdims=True) / precision.sum(axis=-2, keepdims=True)
        chance = special.chdtrc(chains - 1, (precision * np.square(means - center)).sum(axis=-2))
        r_hat = np.sqrt(1 + means.var(axis=-2, ddof=1) / within.mean(axis=-2))
    differ = ~(chance > THRESHOLDS.by_chance / (dim + 1)) & (np.ptp(means, axis=-2) > 0)
    return np.max(r_hat, axis=-1, where=differ, initial=1.0)
