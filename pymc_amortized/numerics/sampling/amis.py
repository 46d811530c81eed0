"""Moments of many posteriors at once, each by a few hundred evaluations of its density.

Adaptive multiple importance sampling (Cornuet, Marin, Mira & Robert 2012, arXiv 0907.1254) with quasi-random points and
tempered weights: the first stage draws from a normal distribution that is given, every other from one with the moments
found so far, and all points of all stages are weighted by the mixture of the normals that they come from. As long as
the weights rest on a few points only, the density is flattened. The result is a deterministic function of the density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.stats import chi2, norm, qmc

from pymc_amortized.numerics.sampling.importance import largest_power
from pymc_amortized.numerics.sampling.student_t import log_student_t

Evaluated = tuple[np.ndarray, np.ndarray, np.ndarray]
LogDensities = Callable[[np.ndarray, np.ndarray], Evaluated]
"""Points (k, m, dim) of k targets, and their numbers (k,) -> log densities (k, m), and the mean (k, m, rest) and
covariance (k, m, rest, rest) that further parameters have at each point, over which these densities are integrated."""

FEWEST = 8.0
"""Effective points that moments rest on at least; the density is flattened until they do."""
ENOUGH = 24.0
"""Effective points at which a target is done."""
SMALLEST = 1e-6
"""Scale that is added to every stage's: points must not fall together."""
IMPOSSIBLE = -1e100
"""Stands for the log density where there is none."""


@dataclass(frozen=True)
class Found:
    """What was found of each of n targets.

    Attributes
    ----------
    mean : ndarray (n, dim + rest)
        Of the parameters that are sampled, then of those that are integrated out.
    covariance : ndarray (n, dim + rest, dim + rest)
    third : ndarray (n, dim + rest)
        Skewness of each parameter.
    log_evidence : ndarray (n,)
        Log integral of the density.
    ess : ndarray (n,)
        Effective points behind the moments; 0 where all are impossible.
    inverse_temperature : ndarray (n,)
        Power of the density whose moments these are; 1 where enough points carry weight.
    latest : ndarray (n,)
        Effective points among those of the last stage: few where no normal distribution is like the density.
    """

    mean: np.ndarray
    covariance: np.ndarray
    third: np.ndarray
    log_evidence: np.ndarray
    ess: np.ndarray
    inverse_temperature: np.ndarray
    latest: np.ndarray

    def at(self, places: np.ndarray) -> Found:
        """Return what was found with the moments of the parameters at some places."""
        covariance = self.covariance[:, places[:, None], places]
        return replace(self, mean=self.mean[:, places], covariance=covariance, third=self.third[:, places])


@lru_cache
def quasi_normal(stages: int, points: int, dim: int) -> np.ndarray:
    """Standard normal points (stages, points, dim) that fill the space evenly, each stage by itself.

    Those of a stage have mean 0 and covariance 1, and so are exact for a normal density that is met.
    """
    if dim == 0:
        return np.empty((stages, points, 0))
    sobol = qmc.Sobol(dim, scramble=False)
    shift = np.random.default_rng(0).random(dim)
    normal = norm.ppf((np.stack([sobol.random(points) for _ in range(stages)]) + shift) % 1.0)
    normal -= normal.mean(axis=1, keepdims=True)
    factor = np.linalg.cholesky(normal.swapaxes(1, 2) @ normal / points)
    return normal @ np.linalg.inv(factor).swapaxes(1, 2)


def adapt(
    log_density: LogDensities,
    mean: np.ndarray,
    covariance: np.ndarray,
    points: np.ndarray,
    *,
    careful: bool = False,
) -> Found:
    """Find the moments of n targets.

    Parameters
    ----------
    log_density : callable
        Need not be normalized. What is infinite counts as impossible; a target that has NaN has no effective points.
    mean : ndarray (n, dim + rest)
        Of the normal distributions that the first stage draws from, a little more widely.
    covariance : ndarray (n, dim + rest, dim + rest)
        Of these distributions; positive definite.
    points : ndarray (stages, m, dim)
        From :func:`quasi_normal`.
    careful : bool
        For integrals that have to be right: draws from Student t distributions, which see what lies in tails, and the
        first stage from a standard one, which sees other modes, if they are not narrow.
    """
    n, number = mean.shape
    dim = points.shape[2]
    if dim == 0:
        return _exact(log_density, n)
    found = Found(mean.copy(), covariance.copy(), *(np.zeros(shape) for shape in ((n, number), n, n, n, n)))
    active, mixture = np.arange(n), _Mixture(n, dim, number - dim, 5.0 if careful else math.inf)
    for stage, normal in enumerate(points):
        ess = found.ess[active] if stage > careful else np.full(n, np.inf)  # what was given is not doubted
        center, proposed = found.mean[active, :dim], _proposed(found.covariance[active, :dim, :dim], ess)
        if careful and stage == 0:
            center, proposed = np.zeros_like(center), np.broadcast_to(np.eye(dim), proposed.shape)
        theta = mixture.extend(center, proposed, normal)
        mixture.weigh(*log_density(theta, active))
        if careful and stage == 0:  # the next one is from the normal distribution that is given
            continue
        for name, values in vars(mixture.moments()).items():
            getattr(found, name)[active] = values
        found.ess[active[mixture.broken]] = 0.0
        unfinished = (found.ess[active] < ENOUGH) & ~mixture.broken
        active = active[unfinished]
        if len(active) == 0:
            break
        mixture.keep(unfinished)
    return found


def _exact(log_density: LogDensities, n: int) -> Found:
    """Moments of targets all of whose parameters are integrated out: of normal distributions."""
    log_p, mean, covariance = (part[:, 0] for part in log_density(np.empty((n, 1, 0)), np.arange(n)))
    possible = np.isfinite(log_p)
    log_evidence = np.where(possible, log_p, IMPOSSIBLE)
    enough = ENOUGH * possible
    return Found(mean, covariance, np.zeros_like(mean), log_evidence, enough, np.ones(n), enough)


def _proposed(covariance: np.ndarray, ess: np.ndarray) -> np.ndarray:
    """Widen covariances (n, dim, dim), and trust correlations a little less where few effective points say so."""
    eye = np.eye(covariance.shape[-1])
    # a correlation is believed by half where 16 times the effective points are as many as the parameters
    doubt = (len(eye) / (16.0 * ess + len(eye)))[:, None, None]
    # wider by a fifth than what was found: what lies beyond light tails would not be seen
    return 1.2**2 * (covariance - doubt * covariance * (1 - eye)) + SMALLEST**2 * eye


class _Mixture:
    """Points of all stages, their log densities, and the normal distributions that they come from.

    Attributes
    ----------
    theta : ndarray (n, m, dim)
    rest : ndarray (n, m, rest)
        Mean of the further parameters at each point.
    within : ndarray (n, m, rest, rest)
        Their covariance.
    log_p : ndarray (n, m)
    log_q : ndarray (n, m)
        Log of the sum of the normals' densities.
    broken : bool ndarray (n,)
        Where a density was NaN.
    """

    def __init__(self, n: int, dim: int, rest: int, freedom: float = math.inf) -> None:
        self._freedom = freedom
        self.theta, self.rest, self.within = (np.empty((n, 0, *shape)) for shape in ((dim,), (rest,), (rest, rest)))
        self.log_p, self.log_q, self.broken = np.empty((n, 0)), np.empty((n, 0)), np.zeros(n, dtype=bool)
        self._means, self._inverses, self._log_scales = (
            np.empty((n, 0, dim)),
            np.empty((n, 0, dim, dim)),
            np.empty((n, 0)),
        )

    def extend(self, mean: np.ndarray, covariance: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Draw from another normal distribution by standard points (m, dim); returns the points (n, m, dim)."""
        factor = np.linalg.cholesky(covariance)
        inverse = np.linalg.inv(factor)
        log_scale = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        points = normal * _radii(len(normal), self._freedom)[:, None]
        new = mean[:, None] + points @ factor.swapaxes(1, 2)
        own = log_student_t(np.square(points).sum(axis=1), len(normal[0]), self._freedom) - log_scale[:, None]
        others = self._log_density(new[:, None], self._means, self._inverses, self._log_scales)
        at_new = np.logaddexp.reduce(np.concatenate([others, own[:, None]], axis=1), axis=1)
        here = (part[:, None] for part in (mean, inverse, log_scale))
        at_old = np.logaddexp(self.log_q, self._log_density(self.theta[:, None], *here)[:, 0])
        self.theta = np.concatenate([self.theta, new], axis=1)
        self.log_q = np.concatenate([at_old, at_new], axis=1)
        self._means = np.concatenate([self._means, mean[:, None]], axis=1)
        self._inverses = np.concatenate([self._inverses, inverse[:, None]], axis=1)
        self._log_scales = np.concatenate([self._log_scales, log_scale[:, None]], axis=1)
        return new

    def weigh(self, log_p: np.ndarray, rest: np.ndarray, within: np.ndarray) -> None:
        """Take what the densities are at the latest points."""
        self.broken = self.broken | np.isnan(log_p).any(axis=1)
        log_p = np.where(np.isfinite(log_p), log_p, IMPOSSIBLE)
        for name, values in (("log_p", log_p), ("rest", rest), ("within", within)):
            setattr(self, name, np.concatenate([getattr(self, name), values], axis=1))

    def _log_density(
        self, theta: np.ndarray, mean: np.ndarray, inverse: np.ndarray, log_scale: np.ndarray
    ) -> np.ndarray:
        """Log densities (n, k, m) of k distributions at points (n, 1, m, dim), by the inverse of Cholesky factors."""
        z = (theta - mean[:, :, None]) @ inverse.swapaxes(2, 3)
        return log_student_t(np.square(z).sum(axis=3), theta.shape[-1], self._freedom) - log_scale[:, :, None]

    def keep(self, some: np.ndarray) -> None:
        """Go on with some of the targets."""
        for name, values in vars(self).items():
            if isinstance(values, np.ndarray):
                setattr(self, name, values[some])

    def moments(self) -> Found:
        """Moments of the weighted points."""
        log_weight = self.log_p - self.log_q
        largest = log_weight.max(axis=1, keepdims=True)
        relative = log_weight - largest
        power = largest_power(relative, FEWEST)
        weight = np.exp(power[:, None] * relative)
        total = weight.sum(axis=1, keepdims=True)
        stages, points = self._means.shape[1], self.log_p.shape[1]
        log_evidence = largest[:, 0] + np.log(np.exp(relative).sum(axis=1) * stages / points)
        weight /= total
        theta, dim = np.concatenate([self.theta, self.rest], axis=2), self.theta.shape[2]
        mean = (weight[:, None] @ theta)[:, 0]
        away = theta - mean[:, None]
        covariance = (weight[:, :, None] * away).swapaxes(1, 2) @ away
        covariance[:, dim:, dim:] += np.einsum("nm,nmij->nij", weight, self.within)
        sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)) + SMALLEST
        away /= sd[:, None]
        cubes = away**3
        cubes[:, :, dim:] += 3 * away[:, :, dim:] * np.diagonal(self.within, axis1=2, axis2=3) / sd[:, None, dim:] ** 2
        third = (weight[:, None] @ cubes)[:, 0]
        possible = self.log_p.max(axis=1) > IMPOSSIBLE
        last = weight[:, -(points // stages) :]
        latest = np.square(last.sum(axis=1)) / np.maximum(np.square(last).sum(axis=1), 1e-300)
        ess = possible / np.square(weight).sum(axis=1)
        return Found(mean, covariance, third, log_evidence, ess, power, latest)


@lru_cache
def _radii(number: int, freedom: float) -> np.ndarray:
    """By what normal points are multiplied, evenly, to become those of a Student t distribution."""
    if math.isinf(freedom):
        return np.ones(number)
    levels = np.random.default_rng(1).permutation((np.arange(number) + 0.5) / number)
    return np.sqrt(freedom / chi2.ppf(levels, freedom))
