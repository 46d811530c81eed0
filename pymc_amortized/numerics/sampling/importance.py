r"""Importance correction of amortized draws by the model's exact density.

Draws :math:`\theta_s \sim q(\theta \mid y)` get the weights :math:`w_s = p(\theta_s, y) / q(\theta_s \mid y)`; Pareto
smoothing (Vehtari et al. 2024, JMLR 25(72)) tames their largest values and its shape :math:`\hat k` says whether they
can be trusted. Corrected draws are resampled from the weighted ones, systematically and in order, so that repeated
draws stand next to each other: ``az.ess`` and R-hat then see what the weights cost.
"""

from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats

from pymc_amortized.numerics.thresholds import THRESHOLDS


def k_threshold(proposals: int) -> float:
    """Largest Pareto k that `proposals` weights can be trusted with (Vehtari et al. 2024, eq. 13)."""
    return min(1 - 1 / np.log10(max(proposals, 11)), THRESHOLDS.pareto_k)


@dataclass(frozen=True, eq=False)
class Weights:
    """Smoothed importance weights of one data set.

    Attributes
    ----------
    weights : ndarray (chains, proposals)
        Smoothed and normalized within each chain.
    pareto_k : float
        Shape of the tail, over all chains; infinite where hardly any weight is positive.
    ess : float
        Importance effective sample size, the sum over chains.
    harmless : bool
        Whether all raw weights are about as good as constant, but for those that are zero.
    lost : float
        Share of the raw weights, in all, that smoothing took away: a mode that few proposals hit is no tail.
    heaviest : float
        Share of the raw weights, in all, that one proposal has.
    r_hat : float
        Of the weighted chains, where they differ by more than chance.
    """

    weights: np.ndarray
    pareto_k: float
    ess: float
    harmless: bool = False
    lost: float = 0.0
    heaviest: float = 0.0
    r_hat: float = 1.0

    @property
    def fault(self) -> str | None:
        """Why weights cannot be trusted, with the number that says so; None where they can.

        k is a shape without a scale: where no weight counts for much, the tail does not matter, whatever its shape.
        """
        threshold = k_threshold(int(np.count_nonzero(self.weights)))
        if not (self.harmless or self.pareto_k <= threshold):
            return f"Pareto k is {self.pareto_k:.2f} (wanted: at most {threshold:.2f})"
        if self.lost > THRESHOLDS.lost:
            return f"smoothing takes {self.lost:.0%} of the weight (wanted: at most {THRESHOLDS.lost:.0%})"
        if self.r_hat > THRESHOLDS.r_hat:
            return f"chains disagree: R-hat is {self.r_hat:.2f} (wanted: at most {THRESHOLDS.r_hat})"
        return None

    @property
    def reliable(self) -> bool:
        """Whether weights can be trusted, many or few."""
        return self.fault is None

    @property
    def heavy(self) -> bool:
        """Whether single weights, or a tail without a variance, count for much."""
        efficient = self.ess >= THRESHOLDS.wanted_efficiency * self.weights.size
        light = self.harmless or efficient or self.pareto_k <= THRESHOLDS.finite_variance
        return self.heaviest > THRESHOLDS.heaviest or not light

    def settle(self, draws: int) -> bool:
        """Whether weights can be trusted, and are worth enough of the draws asked for in all."""
        return not self.shortcoming(draws)

    def shortcoming(self, draws: int) -> str:
        """Why weights do not do for the draws asked for in all, with the number that says so; "" where they do."""
        if self.fault is not None:
            return self.fault
        enough = min(THRESHOLDS.fewest_effective, draws / 2)
        if self.ess < enough:
            return f"the effective sample size is {self.ess:.0f} (wanted: {enough:.0f})"
        if self.heaviest > THRESHOLDS.heaviest:
            return f"one proposal has {self.heaviest:.1%} of the weight (wanted: at most {THRESHOLDS.heaviest:.1%})"
        return f"Pareto k is {self.pareto_k:.2f} at a low efficiency" if self.heavy else ""

    def want_more(self, draws: int) -> bool:
        """Whether more proposals are worth their time, for so many draws in all."""
        few = self.ess < THRESHOLDS.wanted_efficiency * draws
        return few or self.lost > THRESHOLDS.notably_lost or self.heavy or not self.reliable


def smooth(log_ratios: np.ndarray, *, defended: bool = False) -> Weights:
    """Pareto-smooth raw log weights.

    Parameters
    ----------
    log_ratios : ndarray (chains, proposals)
        Log of target over proposal density; -inf is a weight of zero.
    defended : bool
        Whether a good part of the proposals comes from a distribution with heavy tails.

    Returns
    -------
    Weights
        Where a chain has no positive weight, its weights are equal.
    """
    log_weights = np.array(log_ratios, dtype=float)
    finite = np.isfinite(log_weights)
    k, lost, largest_raw, heaviest = np.inf, 0.0, np.inf, 1.0
    if finite.sum() >= THRESHOLDS.fewest_for_tail:
        raw = log_weights[finite] - log_weights[finite].max()
        # weights that small are zero, and beside numbers like 1e17 what smoothing divides by is rounded away
        near = np.maximum(raw, -1e4)
        smoothed, k = _smooth_tail(near)
        least = near.argmin()  # is not part of the tail, and tells by what the others were divided
        divided = smoothed[least] - near[least]
        total = np.exp(raw).sum()
        lost = float(1 - np.exp(smoothed - divided).sum() / total)
        largest_raw = max(len(raw), THRESHOLDS.fewest_positive * log_weights.size) / total
        heaviest = float(1 / total)
        log_weights[finite] = smoothed + (raw - near)
    largest = log_weights.max(axis=1, keepdims=True)
    empty = ~np.isfinite(largest)
    weights = np.where(empty, 1.0, np.exp(log_weights - np.where(empty, 0.0, largest)))
    weights /= weights.sum(axis=1, keepdims=True)
    if empty.any():
        k = np.inf  # draws of that chain are not draws from the target
    ess = np.where(empty[:, 0], 0.0, 1 / np.square(weights).sum(axis=1))
    most = THRESHOLDS.harmless
    if defended:
        most = max(THRESHOLDS.harmless_if_defended, THRESHOLDS.harmless_share * log_weights.size)
    harmless = largest_raw <= most and k < np.inf
    return Weights(weights, float(k), float(ess.sum()), bool(harmless), lost, heaviest)


def _smooth_tail(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    if np.ptp(log_weights) < 1e-10:  # the proposal is the target; there is no tail to fit
        return log_weights, -np.inf
    # arviz-stats takes the negated log weights, as in leave-one-out cross-validation
    with np.errstate(all="ignore"):  # of weights so heavy that k is far beyond any threshold
        smoothed, k = array_stats.psislw(log_weights.max() - log_weights)
    if not np.isfinite(k) or not np.isfinite(smoothed).all():
        return log_weights, np.inf
    return smoothed, float(k)


def by_parameter(theta: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Pareto k and Monte Carlo error of each parameter's mean.

    The mean of a parameter is one of weights times its distance from the middle: their tail may be heavier than that of
    the weights alone (Vehtari et al. 2024, section 2.4).

    Parameters
    ----------
    theta : ndarray (chains, proposals, dim)
    weights : Weights

    Returns
    -------
    pareto_k : ndarray (dim,)
        That of the weights where these are about constant.
    mcse : ndarray (dim,)
        In standard deviations of the posterior.
    """
    w = weights.weights[..., None]
    away = theta - (w * theta).sum(axis=1, keepdims=True)
    variance = (w * np.square(away)).sum(axis=1).mean(axis=0)
    error = np.sqrt(np.square(w * away).sum(axis=(0, 1))) / len(theta)
    with np.errstate(divide="ignore", invalid="ignore"):
        mcse = np.where(variance > 0, error / np.sqrt(variance), np.nan)
        tails = np.log(w) + np.log(np.abs(away))
    k = np.full(len(mcse), weights.pareto_k)
    if not weights.harmless:
        positive = np.isfinite(tails)
        k = np.array([_tail_of(tails[..., j][positive[..., j]]) for j in range(len(mcse))])
    return k, mcse


def _tail_of(log_values: np.ndarray) -> float:
    """Pareto k of positive values; infinite where there are few."""
    if len(log_values) < THRESHOLDS.fewest_for_tail:
        return np.inf
    return _smooth_tail(np.maximum(log_values - log_values.max(), -1e4))[1]


def tempered(log_weights: np.ndarray, dim: int) -> np.ndarray:
    """Temper weights until they are worth enough draws for moments.

    A few large weights say nothing about a covariance. Weights are raised to the largest power at which they are still
    worth enough draws (nonlinear importance weights: Koblents & Míguez 2015, Statistics and Computing 25(2)): from poor
    weights comes a distribution between proposal and target, from good ones the target.

    Parameters
    ----------
    log_weights : ndarray (n,)
        Raw; -inf is a weight of zero.
    dim : int

    Returns
    -------
    ndarray (n,)
        Normalized weights; equal ones where none is positive.
    """
    finite = np.isfinite(log_weights)
    if not finite.any():
        return np.full(len(log_weights), 1 / len(log_weights))
    relative = np.where(finite, log_weights - log_weights[finite].max(), -np.inf)
    # with 5 draws for each dimension a sample covariance is known to a factor of two (its eigenvalues lie within
    # (1 ± sqrt(1/5))^2 of the true ones: Marchenko-Pastur)
    power = largest_power(relative[None], min(25 + 5 * dim, finite.sum() / 2))
    weights = np.exp(np.where(finite, power * np.where(finite, relative, 0.0), -np.inf))
    return weights / weights.sum()


def largest_power(log_weights: np.ndarray, worth: float) -> np.ndarray:
    """Largest powers (n,), at most 1, to which weights can be raised so that they are worth enough draws.

    Parameters
    ----------
    log_weights : ndarray (n, m)
        Raw, of which the largest is 0.
    worth : float
        Effective draws.
    """
    power = np.ones(len(log_weights))
    (poor,) = np.nonzero(effective_size(log_weights) < worth)
    low, high = np.full(len(poor), -40.0), np.zeros(len(poor))  # of the logarithm, by bisection
    for _ in range(14 if len(poor) else 0):
        middle = (low + high) / 2
        fine = effective_size(np.exp(middle)[:, None] * log_weights[poor]) >= worth
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    power[poor] = np.exp(low)
    return power


def effective_size(log_weights: np.ndarray) -> np.ndarray:
    """Effective draws (...) that weights (..., m) are worth; of these, the largest logarithm is about 0."""
    weights = np.exp(log_weights)
    return np.square(weights.sum(axis=-1)) / np.square(weights).sum(axis=-1)


def resample(weights: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Systematic resampling within each chain.

    Parameters
    ----------
    weights : ndarray (chains, proposals)
        Normalized within each chain.
    draws : int
        Per chain.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (chains, draws) of int
        Indices of proposals, in increasing order.
    """
    positions = (rng.random((len(weights), 1)) + np.arange(draws)) / draws
    edges = np.cumsum(weights, axis=1)
    edges /= edges[:, -1:]
    chosen = [np.searchsorted(e, p, side="right") for e, p in zip(edges, positions, strict=True)]
    return np.minimum(np.stack(chosen), weights.shape[1] - 1)
