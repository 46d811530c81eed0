r"""Importance correction of amortized draws by the model's exact density.

Draws :math:`\theta_s \sim q(\theta \mid y)` get the weights :math:`w_s = p(\theta_s, y) / q(\theta_s \mid y)`; Pareto
smoothing (Vehtari et al. 2024, JMLR 25(72)) tames their largest values and its shape :math:`\hat k` says whether they
can be trusted. Corrected draws are resampled from the weighted ones, systematically and in order, so that repeated
draws stand next to each other: ``az.ess`` and R-hat then see what the weights cost.
"""

from dataclasses import dataclass

import numpy as np

from pymc_amortized.numerics.thresholds import THRESHOLDS

NEAR, FAR = 4.0, 25.0
"""Squared distances, in variances, from and up to which a heavy proposal counts by its own: near the middle a weight
changes a mean and an evidence still."""

HEAVY = 64
"""Of the heaviest proposals, that are looked at: of more, none has a share that matters."""


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
    influence : float
        Share of a variance, at most, that one proposal makes by its raw weight: as if it lay far away, where it is not
        known where it lies.
    r_hat : float
        Of the weighted chains, where they differ by more than chance.
    """

    weights: np.ndarray
    pareto_k: float
    ess: float
    harmless: bool = False
    lost: float = 0.0
    influence: float = 0.0
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
        return self.influence > THRESHOLDS.influence or not light

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
        if self.influence > THRESHOLDS.influence:
            return f"one proposal makes {self.influence:.0%} of a variance (wanted: at most {THRESHOLDS.influence:.0%})"
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
    return smooth_each(log_ratios[None], defended=defended)[0]


def smooth_each(log_ratios: np.ndarray, *, defended: bool = False) -> list[Weights]:
    """Pareto-smooth the raw log weights (n, chains, proposals) of `n` data sets, each as :func:`smooth` does."""
    log_weights = np.array(log_ratios, dtype=float)
    flat = log_weights.reshape(len(log_weights), -1)
    finite, size = np.isfinite(flat), flat.shape[1]
    counts = finite.sum(axis=1)
    k, lost, largest_raw, influence = (np.full(len(flat), start) for start in (np.inf, 0.0, np.inf, FAR))
    for count in np.unique(counts[counts >= THRESHOLDS.fewest_for_tail]):
        some = counts == count
        own = finite & some[:, None]
        raw = flat[own].reshape(-1, count)
        raw -= raw.max(axis=1, keepdims=True)
        # weights that small are zero, and beside numbers like 1e17 what smoothing divides by is rounded away
        near = np.maximum(raw, -1e4)
        smoothed, k[some] = _smooth_tails(near)
        least = near.argmin(axis=1)[:, None]  # is not part of the tail, and tells by what the others were divided
        divided = np.take_along_axis(smoothed, least, 1) - np.take_along_axis(near, least, 1)
        total = np.exp(raw).sum(axis=1)
        lost[some] = 1 - np.exp(smoothed - divided).sum(axis=1) / total
        largest_raw[some] = max(count, THRESHOLDS.fewest_positive * size) / total
        influence[some] = FAR / total
        flat[own] = (smoothed + (raw - near)).ravel()
    largest = log_weights.max(axis=2, keepdims=True)
    empty = ~np.isfinite(largest)
    weights = np.where(empty, 1.0, np.exp(log_weights - np.where(empty, 0.0, largest)))
    weights /= weights.sum(axis=2, keepdims=True)
    k[empty.any(axis=(1, 2))] = np.inf  # draws of an empty chain are not draws from the target
    ess = np.where(empty[..., 0], 0.0, 1 / np.square(weights).sum(axis=2)).sum(axis=1)
    most = max(THRESHOLDS.harmless_if_defended, THRESHOLDS.harmless_share * size) if defended else THRESHOLDS.harmless
    harmless = (largest_raw <= most) & (k < np.inf)
    numbers = (values.tolist() for values in (k, ess, harmless, lost, influence))
    return [Weights(*each) for each in zip(weights, *numbers, strict=True)]


def _smooth_tails(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth the tails of log weights (n, m), and tell their shapes (n,): -inf where all weights are equal.

    As ``array_stats.psislw`` of ArviZ does, but for all data sets at once: one by one takes as long as their densities.
    """
    m = log_weights.shape[1]
    number = int(3 * m**0.5) if m > 225 else m // 5
    smoothed, k = log_weights.copy(), np.where(np.ptp(log_weights, axis=1) < 1e-10, -np.inf, np.inf)
    (some,) = np.nonzero(k == np.inf)  # elsewhere the proposal is the target; there is no tail to fit
    relative = log_weights[some] - log_weights[some].max(axis=1, keepdims=True)
    largest = np.argpartition(relative, m - number - 1, axis=1)[:, m - number - 1 :]
    values = np.take_along_axis(relative, largest, 1)
    order = np.argsort(values, axis=1)[:, 1:]  # the first is the cutoff, and lies below the tail
    places, cutoff = np.take_along_axis(largest, order, 1), np.exp(values.min(axis=1, keepdims=True))
    tail = np.take_along_axis(values, order, 1)
    with np.errstate(all="ignore"):  # of weights so heavy that k is far beyond any threshold
        found, scale = (part[:, None] for part in _fit_pareto(np.exp(tail) - cutoff))
        levels = np.log1p(-(np.arange(number) + 0.5) / number)
        tamed = np.log(cutoff + scale * np.where(found == 0, -levels, np.expm1(-found * levels) / found))
        tamed = np.minimum(tamed, tail[:, -1:])
        np.put_along_axis(relative, places, tamed, 1)
        relative -= np.log(np.exp(relative).sum(axis=1, keepdims=True))
    fine = np.isfinite(found[:, 0]) & np.isfinite(relative).all(axis=1)
    k[some[fine]], smoothed[some[fine]] = found[fine, 0], relative[fine]
    return smoothed, k


def _fit_pareto(excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shapes and scales (n,) of generalized Pareto distributions; NaN where values (n, m), in order, follow none.

    By the empirical Bayes estimate of Zhang & Stephens (2009, Technometrics 51(3)), with the prior of the shape of
    Vehtari et al. 2024, appendix C.
    """
    m = excess.shape[1]
    number = 30 + int(m**0.5)
    quartile, levels = excess[:, int(m / 4 + 0.5) - 1, None], 1 - np.sqrt(number / (np.arange(number) + 0.5))
    b = levels / (3 * quartile) + 1 / excess[:, -1:]
    slope = np.log1p(-b[..., None] * excess[:, None]).mean(axis=2)
    score = m * (np.log(-b / slope) - slope - 1)
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    weight[weight < 10 * np.finfo(float).eps] = 0.0
    b = (b * weight).sum(axis=1) / weight.sum(axis=1)
    slope = np.log1p(-b[:, None] * excess).mean(axis=1)
    scale = np.where(quartile[:, 0] > excess[:, 0], -slope / b, np.nan)
    return np.where(scale > 0, (m * slope + 5) / (m + 10), np.nan), scale


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
    w = weights.weights[:, None]
    away = theta - w @ theta
    squared = np.square(away)
    variance, error = (w @ squared).mean(axis=0)[0], np.sqrt((np.square(w) @ squared).sum(axis=(0, 1))) / len(theta)
    with np.errstate(divide="ignore", invalid="ignore"):
        mcse = np.where(variance > 0, error / np.sqrt(variance), np.nan)
    if weights.harmless:
        return np.full(len(mcse), weights.pareto_k), mcse
    with np.errstate(divide="ignore"):
        tails = np.log(weights.weights)[..., None] + np.log(np.abs(away))
    positive = np.isfinite(tails)
    return np.array([_tail_of(tails[..., j][positive[..., j]]) for j in range(len(mcse))]), mcse


def influence(theta: np.ndarray, log_weights: np.ndarray) -> float:
    """Share of a variance, at most, that one proposal makes.

    Parameters
    ----------
    theta : ndarray (n, dim)
    log_weights : ndarray (n,)
        Raw.
    """
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    heavy = np.argsort(weights)[-HEAVY:]
    # quantiles, because what lies far out makes a variance large, beside which nothing seems to lie far out
    drawn = theta[resample(weights[None], 1000, np.random.default_rng(0))[0]]
    low, middle, high = np.quantile(drawn, [0.16, 0.5, 0.84], axis=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        squared = np.square((theta[heavy] - middle) / ((high - low) / 2))
    squared = np.nan_to_num(squared, nan=NEAR, posinf=FAR).max(axis=1)
    return float((weights[heavy] * np.clip(squared, NEAR, FAR)).max())


def _tail_of(log_values: np.ndarray) -> float:
    """Pareto k of positive values; infinite where there are few."""
    return np.inf if len(log_values) < THRESHOLDS.fewest_for_tail else float(tail_shapes(log_values[None])[0])


def tail_shapes(log_values: np.ndarray) -> np.ndarray:
    """Pareto k (n,) of the largest of values (n, m); -inf where all are equal, infinite where no tail can be fitted."""
    with np.errstate(invalid="ignore"):
        return _smooth_tails(np.maximum(log_values - log_values.max(axis=1, keepdims=True), -1e4))[1]


def tempered(log_weights: np.ndarray, dim: int) -> np.ndarray:
    """Temper weights until they are worth enough draws for moments.

    A few large weights say nothing about a covariance. Weights are raised to the largest power at which they are still
    worth enough draws (nonlinear importance weights: Koblents & Míguez 2015, Statistics and Computing 25(2)): from poor
    weights comes a distribution between proposal and target, from good ones the target.

    Parameters
    ----------
    log_weights : ndarray (..., n)
        Raw; -inf is a weight of zero.
    dim : int

    Returns
    -------
    ndarray (..., n)
        Normalized weights; equal ones where none is positive.
    """
    finite = np.isfinite(log_weights)
    largest = np.max(log_weights, axis=-1, keepdims=True, where=finite, initial=-np.inf)
    possible = finite.any(axis=-1, keepdims=True)
    relative = np.where(finite, log_weights, -np.inf) - np.where(possible, largest, 0.0)
    relative = np.where(possible, relative, 0.0)
    # with 5 draws for each dimension a sample covariance is known to a factor of two (its eigenvalues lie within
    # (1 ± sqrt(1/5))^2 of the true ones: Marchenko-Pastur)
    worth = np.minimum(25 + 5 * dim, finite.sum(axis=-1) / 2)
    power = largest_power(relative.reshape(-1, relative.shape[-1]), worth.reshape(-1))
    weights = np.exp(power.reshape(possible.shape) * relative)
    return weights / weights.sum(axis=-1, keepdims=True)


def largest_power(log_weights: np.ndarray, worth: float | np.ndarray) -> np.ndarray:
    """Largest powers (n,), at most 1, to which weights can be raised so that they are worth enough draws.

    Parameters
    ----------
    log_weights : ndarray (n, m)
        Raw, of which the largest is 0.
    worth : float or ndarray (n,)
        Effective draws.
    """
    power, worth = np.ones(len(log_weights)), np.broadcast_to(worth, len(log_weights))
    (poor,) = np.nonzero(effective_size(log_weights) < worth)
    low, high = np.full(len(poor), -40.0), np.zeros(len(poor))  # of the logarithm, by bisection
    for _ in range(14 if len(poor) else 0):
        middle = (low + high) / 2
        fine = effective_size(np.exp(middle)[:, None] * log_weights[poor]) >= worth[poor]
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
