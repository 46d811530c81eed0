r"""Mixtures of multivariate Student t distributions, fitted to weighted draws.

How many components there are is chosen by the Bayesian information criterion of a mixture of normal distributions
(expectation maximization; Dempster, Laird & Rubin 1977): one more, as long as it pays. The tails are then those of
Student t distributions with 5 degrees of freedom: heavier than most posteriors', and with a variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, special

from pymc_amortized.numerics.sampling.student_t import draw_student_t, log_student_t
from pymc_amortized.numerics.sampling.symmetry import Symmetries
from pymc_amortized.numerics.sampling.whitening import Whitening

FREEDOM = 5.0
MOST_DRAWS = 1000
"""That a mixture is fitted to: more change its moments by less than its tails are wide."""
STEPS = 12
"""Of expectation maximization, from centers that lie far apart."""


@dataclass(frozen=True, eq=False)
class StudentMixture:
    """A mixture of Student t distributions.

    Attributes
    ----------
    places : sequence of Whitening
        Place and shape of each component.
    shares : ndarray (components,)
        Their probabilities.
    symmetries : Symmetries or None
        Maps over whose images each component is spread.
    """

    places: Sequence[Whitening]
    shares: np.ndarray
    symmetries: Symmetries | None = None

    @classmethod
    def fit(
        cls,
        theta: np.ndarray,
        weights: np.ndarray,
        rng: np.random.Generator,
        most: int = 8,
        symmetries: Symmetries | None = None,
    ) -> StudentMixture:
        """Fit to draws (n, dim) and their normalized weights (n,), with `most` components at most.

        Where there are symmetries, it is fitted to those images that lie near the heaviest draw.
        """
        if symmetries is not None:
            theta = symmetries.gathered(theta, theta[weights.argmax()])
        whole = Whitening.of(theta, weights)
        effective = 1 / np.square(weights).sum()
        if len(theta) > MOST_DRAWS:
            some = rng.choice(len(theta), MOST_DRAWS, p=weights)
            theta, weights = theta[some], np.full(MOST_DRAWS, 1 / MOST_DRAWS)
        z, dim = whole.z(theta), theta.shape[1]
        best, numbers = _Normals.one(z, weights), 1 + dim + dim * (dim + 1) / 2
        score = 2 * effective * best.log_likelihood(z, weights)
        for number in range(2, most + 1):
            if effective < number * (2 * dim + 5):  # components of fewer draws have no covariance
                break
            tried = _Normals.several(z, weights, number, rng)
            value = 2 * effective * tried.log_likelihood(z, weights) - (number - 1) * numbers * math.log(effective)
            if value <= score:
                break
            best, score = tried, value
        places = [Whitening(whole.theta(m), whole.factor @ f) for m, f in zip(best.means, best.factors, strict=True)]
        return cls(places, best.shares, symmetries)

    def draw(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Draw (number, dim), in random order."""
        of = rng.choice(len(self.shares), number, p=self.shares)
        z = draw_student_t(number, len(self.places[0].mean), FREEDOM, rng)
        theta = np.empty_like(z)
        for k, place in enumerate(self.places):
            theta[of == k] = place.theta(z[of == k])
        return theta if self.symmetries is None else self.symmetries.scattered(theta, rng)

    def log_density(self, theta: np.ndarray) -> np.ndarray:
        """Log density (n,) at theta (n, dim)."""
        if self.symmetries is None:
            return self._log_density(theta)
        return self.symmetries.averaged(self._log_density, theta)

    def _log_density(self, theta: np.ndarray) -> np.ndarray:
        terms = []
        for place, share in zip(self.places, self.shares, strict=True):
            z = linalg.solve_triangular(place.factor, (theta - place.mean).T, lower=True, check_finite=False)
            density = log_student_t(np.square(z).sum(axis=0), len(z), FREEDOM)
            terms.append(density - np.log(np.abs(np.diag(place.factor))).sum() + math.log(share))
        return terms[0] if len(terms) == 1 else special.logsumexp(terms, axis=0)


@dataclass(frozen=True, eq=False)
class _Normals:
    """A mixture of normal distributions: means (k, dim), Cholesky factors (k, dim, dim), shares (k,)."""

    means: np.ndarray
    factors: np.ndarray
    shares: np.ndarray

    @classmethod
    def one(cls, z: np.ndarray, weights: np.ndarray) -> _Normals:
        return cls.of(z, weights, np.ones((1, len(z))))

    @classmethod
    def several(cls, z: np.ndarray, weights: np.ndarray, number: int, rng: np.random.Generator) -> _Normals:
        centers = z[[rng.choice(len(z), p=weights)]]
        while len(centers) < number:  # k-means++: far from all others (Arthur & Vassilvitskii 2007)
            away = weights * np.square(z[:, None] - centers).sum(axis=2).min(axis=1)
            if not away.sum() > 0:  # there are no more points than centers
                break
            centers = np.concatenate([centers, z[[rng.choice(len(z), p=away / away.sum())]]])
        nearest = np.square(z[:, None] - centers).sum(axis=2).argmin(axis=1)
        found = cls.of(z, weights, (nearest == np.arange(len(centers))[:, None]).astype(float))
        for _ in range(STEPS):
            terms = found.log_terms(z)
            found = cls.of(z, weights, np.exp(terms - special.logsumexp(terms, axis=0)))
        return found

    @classmethod
    def of(cls, z: np.ndarray, weights: np.ndarray, belongs: np.ndarray) -> _Normals:
        """Moments of draws (n, dim), of which shares (k, n) belong to each component."""
        own = belongs * weights
        shares = np.maximum(own.sum(axis=1), 1e-12)
        means = own @ z / shares[:, None]
        away = z - means[:, None]
        covariances = (away * (own / shares[:, None])[..., None]).swapaxes(1, 2) @ away
        covariances += 1e-6 * np.eye(z.shape[1])
        return cls(means, np.linalg.cholesky(covariances), shares / shares.sum())

    def log_terms(self, z: np.ndarray) -> np.ndarray:
        """Log density (k, n) of each component at z (n, dim), with its share."""
        away = np.linalg.solve(self.factors, (z - self.means[:, None]).swapaxes(1, 2))
        scales = np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(axis=1)
        squared = np.square(away).sum(axis=1)
        return log_student_t(squared, z.shape[1], math.inf) + (np.log(self.shares) - scales)[:, None]

    def log_likelihood(self, z: np.ndarray, weights: np.ndarray) -> float:
        """Weighted mean of the log density."""
        return float(weights @ special.logsumexp(self.log_terms(z), axis=0))
