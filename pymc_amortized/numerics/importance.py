r"""Importance correction of amortized draws by the model's exact density.

Draws :math:`\theta_s \sim q(\theta \mid y)` get the weights :math:`w_s = p(\theta_s, y) / q(\theta_s \mid y)`; Pareto
smoothing (Vehtari et al. 2024, JMLR 25(72)) tames their largest values and its shape :math:`\hat k` says whether they
can be trusted. Corrected draws are resampled from the weighted ones, systematically and in order, so that repeated
draws stand next to each other: ``az.ess`` and R-hat then see what the weights cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats

FEWEST_FOR_TAIL = 25
"""Fewer finite weights than this do not make a tail that a Pareto distribution can be fitted to."""
HARMLESS_WEIGHT, HARMLESS_IF_DEFENDED = 2.0, 5.0
"""Largest weight, in units of the mean of those that are not zero, of weights that are as good as constant: k says what
may lie where the proposal has next to nothing. Where a part of it has heavy tails there is less of that: a share of 2 %
five standard deviations away gives weights of 10 and more, four or five of them among a thousand such proposals."""
HARMLESS_SHARE = 0.002
"""Of all weights, that one of many such proposals may have: with four like it, the share of what they stand for is
known to 0.4 %, by which a variance is off by a tenth if that is five standard deviations away."""
MOST_LOST = 0.1
"""Share of the weights that smoothing may take away. Of weights that follow a Pareto distribution of shape 0.7 it takes
more from one set of 4,000 in ten; from a mode that three proposals hit, all but a hundredth."""
BEYOND_DOUBLES = 1e4
"""Log weights that far below the largest are zero in double precision."""
FEWEST_POSITIVE = 0.1
"""Share of the proposals that at least have to have weight then."""


def k_threshold(proposals: int) -> float:
    """Largest Pareto k that `proposals` weights can be trusted with (Vehtari et al. 2024, eq. 13)."""
    return min(1 - 1 / np.log10(max(proposals, 11)), 0.7)


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
    """

    weights: np.ndarray
    pareto_k: float
    ess: float
    harmless: bool = False
    lost: float = 0.0
    heaviest: float = 0.0

    @property
    def reliable(self) -> bool:
        """Whether k is small enough for that many proposals of positive weight, and smoothing left most of the weight.

        k is a shape without a scale: where no weight counts for much, the tail does not matter, whatever its shape.
        """
        threshold = k_threshold(int(np.count_nonzero(self.weights)))
        return self.lost <= MOST_LOST and (self.harmless or self.pareto_k <= threshold)


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
    if finite.sum() >= FEWEST_FOR_TAIL:
        raw = log_weights[finite] - log_weights[finite].max()
        near = np.maximum(raw, -BEYOND_DOUBLES)  # beside numbers like 1e17 what smoothing divides by is rounded away
        smoothed, k = _smooth_tail(near)
        least = near.argmin()  # is not part of the tail, and tells by what the others were divided
        divided = smoothed[least] - near[least]
        total = np.exp(raw).sum()
        lost = float(1 - np.exp(smoothed - divided).sum() / total)
        largest_raw = max(len(raw), FEWEST_POSITIVE * log_weights.size) / total
        heaviest = float(1 / total)
        log_weights[finite] = smoothed + (raw - near)
    largest = log_weights.max(axis=1, keepdims=True)
    empty = ~np.isfinite(largest)
    weights = np.where(empty, 1.0, np.exp(log_weights - np.where(empty, 0.0, largest)))
    weights /= weights.sum(axis=1, keepdims=True)
    if empty.any():
        k = np.inf  # draws of that chain are not draws from the target
    ess = np.where(empty[:, 0], 0.0, 1 / np.square(weights).sum(axis=1))
    most = max(HARMLESS_IF_DEFENDED, HARMLESS_SHARE * log_weights.size) if defended else HARMLESS_WEIGHT
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
