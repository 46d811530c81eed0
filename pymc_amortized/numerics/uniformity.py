r"""Whether values that ought to be uniform are.

Let :math:`\theta^*` be drawn from the prior, :math:`y` simulated from it, and :math:`\theta_1, \dots, \theta_S` drawn
from the posterior given :math:`y`. Then :math:`\theta^*` is one more posterior draw, and its rank among the others is
uniform (Cook, Gelman & Rubin 2006; Talts et al. 2018, arXiv 1804.06788). The probability integral transform (PIT) is
that rank, spread over its interval by a random number:

.. math:: u = \frac{\#\{\theta_s < \theta^*\} + v \, (1 + \#\{\theta_s = \theta^*\})}{S + 1}, \qquad v \sim U(0, 1).

Three tests look at the values of many data sets. The empirical distribution function has to stay within a simultaneous
band of pointwise binomial intervals (Säilynoja, Bürkner & Vehtari 2022). The normal scores :math:`\Phi^{-1}(u)` have to
have mean 0 (else the posterior is biased) and variance 1 (else it is over- or under-confident); these are what tells
best what is wrong.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.special import ndtri

SMALLEST = 1e-15
"""P-values come from differences to one, which double precision cannot resolve further."""


def pit(
    draws: np.ndarray, truth: np.ndarray, rng: np.random.Generator, effective: float | np.ndarray | None = None
) -> np.ndarray:
    """Probability integral transform of true values among draws.

    Parameters
    ----------
    draws : ndarray (draws, ...)
    truth : ndarray (...)
    rng : numpy.random.Generator
        Breaks ties, and spreads each rank over its interval.
    effective : float or ndarray (...), optional
        How many independent draws these are worth; all by default. A rank among few is spread more widely.

    Returns
    -------
    ndarray (...)
        NaN where a draw or a true value is none.
    """
    number = len(draws)
    worth = np.clip(number if effective is None else effective, 1.0, number)
    share = rng.random(truth.shape)
    rank = ((draws < truth).sum(axis=0) + share * (draws == truth).sum(axis=0)) / number
    values = (rank * worth + share) / (worth + 1)
    return np.where(np.isnan(truth) | np.isnan(draws).any(axis=0), np.nan, values)


@dataclass(frozen=True)
class Uniformity:
    """What tests of uniformity say of one quantity.

    Attributes
    ----------
    number : int
        Values that were tested.
    p_uniform, p_bias, p_spread : float
        P-values of the ECDF band, of the mean and of the variance of the normal scores.
    bias : float
        By how many of its own sds the posterior lies too high.
    sd_ratio : float
        Its sd, in units of what it should be: below one it is over-confident. True values beyond all draws are only
        known to be there, so that it does not fall below 0.3 for hundreds of draws, however narrow the posterior.
    deviation : float
        Largest distance of the empirical distribution function from the diagonal.
    """

    number: int
    p_uniform: float
    p_bias: float
    p_spread: float
    bias: float
    sd_ratio: float
    deviation: float

    @property
    def p_value(self) -> float:
        """Of all three tests together (Bonferroni)."""
        return min(1.0, 3 * min(self.p_uniform, self.p_bias, self.p_spread))


def uniformity(values: np.ndarray) -> Uniformity:
    """Test whether values are uniform on (0, 1).

    Parameters
    ----------
    values : ndarray (n,)
        NaN is left out. Of fewer than ten, nothing is said.
    """
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 10:
        return Uniformity(n, 1.0, 1.0, 1.0, np.nan, np.nan, np.nan)
    scores = ndtri(np.clip(values, SMALLEST, 1 - SMALLEST))
    mean, variance = scores.mean(), scores.var(ddof=1)
    below = stats.chi2.cdf((n - 1) * variance, n - 1)
    above = stats.chi2.sf((n - 1) * variance, n - 1)
    ordered = np.sort(values)
    steps = np.arange(n + 1) / n
    return Uniformity(
        number=n,
        p_uniform=band_p_value(values),
        p_bias=float(2 * stats.norm.sf(abs(mean) * np.sqrt(n))),
        p_spread=float(min(1.0, 2 * min(below, above))),
        bias=float(-mean),
        sd_ratio=float(1 / np.sqrt(variance)),
        deviation=float(max(np.abs(steps[1:] - ordered).max(), np.abs(steps[:-1] - ordered).max())),
    )


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Adjust p-values for their number (Holm 1979): each below a level is significant among all at that level."""
    p = np.asarray(list(p_values), dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def band_p_value(values: np.ndarray) -> float:
    """P-value of the simultaneous ECDF band: the smallest pointwise tail, among those uniform values would show.

    Parameters
    ----------
    values : ndarray (n,)
        Finite.
    """
    n = len(values)
    points = _points(n)
    counts = np.searchsorted(np.sort(values), points, side="right")
    below, above = _tails(n)
    places = np.arange(len(points))
    tails = np.minimum(below[counts, places], above[counts, places])
    return float(np.clip(1 - _probability_within(*_limits(n, tails.min()), n), SMALLEST, 1.0))


@lru_cache(maxsize=64)
def band(n: int, prob: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the band that the empirical distribution function of `n` uniform values stays within with `prob`.

    Parameters
    ----------
    n : int
    prob : float

    Returns
    -------
    points, lower, upper : ndarray (points,)
        From (0, 0, 0) to (1, 1, 1).
    """
    inside, outside = 1e-12, 0.5  # a pointwise tail at which the band is wide enough, and one at which it is not
    for _ in range(60):
        middle = np.sqrt(inside * outside)
        if _probability_within(*_limits(n, middle), n) >= prob:
            inside = middle
        else:
            outside = middle
    lower, upper = _limits(n, inside)
    ends = ([0.0], [1.0])
    bounds = [np.concatenate([ends[0], part, ends[1]]) for part in (_points(n), lower / n, upper / n)]
    for array in bounds:
        array.flags.writeable = False  # the cache hands out the same arrays again
    return bounds[0], bounds[1], bounds[2]


def _points(n: int) -> np.ndarray:
    """Points at which the empirical distribution function is compared: finer ones see the same data."""
    number = min(n, 100)
    return np.arange(1, number) / number


@lru_cache(maxsize=4)
def _tails(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of at most, and of at least, each count at each point, (n + 1, points)."""
    counts = np.arange(n + 1)[:, None]
    return stats.binom.cdf(counts, n, _points(n)), stats.binom.sf(counts - 1, n, _points(n))


def _limits(n: int, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts at each point that have more than `tail` probability on either side: smallest and largest."""
    below, above = _tails(n)
    return (below <= tail).sum(axis=0), n - (above <= tail).sum(axis=0)


def _probability_within(lower: np.ndarray, upper: np.ndarray, n: int) -> float:
    """Return the probability that the counts of `n` uniform values up to each point all lie within limits.

    Exactly, by a recursion from point to point: the counts are a Poisson process, given that it comes to `n` at 1.
    """
    rate = n / (len(lower) + 1)
    step = stats.poisson.pmf(np.arange(n + 1), rate)
    step = step[: int(np.flatnonzero(step > 1e-20)[-1]) + 1]
    state, first = np.ones(1), 0  # probability of each count from `first` on
    for low, high in zip(lower, upper, strict=True):
        moved = np.convolve(state, step)
        reach = np.arange(low, high + 1) - first
        possible = (reach >= 0) & (reach < len(moved))
        state = np.where(possible, moved[np.clip(reach, 0, len(moved) - 1)], 0.0)
        first = low
        if not state.any():
            return 0.0
    last = n - first - np.arange(len(state))
    possible = (last >= 0) & (last < len(step))
    total = (state[possible] * step[last[possible]]).sum()
    return float(min(total / stats.poisson.pmf(n, n), 1.0))


def p_text(p: float) -> str:
    """Say a p-value, none smaller than can be told from zero."""
    return f"p = {p:.2g}" if p > SMALLEST else f"p < {SMALLEST:.0e}"


def describe(result: Uniformity) -> str:
    """Say in words and numbers how a posterior is off; the tests that are clear, the clearest first."""
    bias = f"biased {'high' if result.bias > 0 else 'low'} by {abs(result.bias):.2f} posterior sd"
    confidence = "over-confident" if result.sd_ratio < 1 else "under-confident"
    spread = f"{confidence}: its sd is about {result.sd_ratio:.2f} of what it should be"
    shape = f"its distribution is off by up to {result.deviation:.2f}"
    named = sorted([(result.p_bias, bias), (result.p_spread, spread), (result.p_uniform, shape)])
    clear = [words for p, words in named[:1] + [other for other in named[1:] if other[0] < 0.01]]
    if len(clear) > 1 and shape in clear:  # bias and spread say more
        clear.remove(shape)
    return " and ".join(clear)
