r"""Mixtures of multivariate Student t distributions, fitted to weighted draws.

How many components there are is chosen by the Bayesian information criterion of a mixture of normal distributions
(expectation maximization; Dempster, Laird & Rubin 1977): one more, as long as it pays. The tails are then those of
Student t distributions with 5 degrees of freedom: heavier than most posteriors', and with a variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc_amortized.numerics.sampling.student_t import draw_student_t, log_student_t
from pymc_amortized.numerics.sampling.symmetry import Symmetries
from pymc_amortized.numerics.sampling.whitening import Whitening

FREEDOM = 5.0
MOST_DRAWS = 1000
"""That a mixture is fitted to: more change its moments by less than its tails are wide."""
STEPS = 12
"""Of expectation maximization, from centers that lie far apart."""
AT_ONCE = 2**18
"""Numbers that are computed at once: what fits into the caches of a processor."""


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
        affine, log_shares = self._images
        block = max(1, AT_ONCE // log_shares.size // theta.shape[1])
        squared = (affine.squared(theta[i : i + block]) for i in range(0, len(theta), block))
        found = [log_sum_exp(log_student_t(s, theta.shape[1], FREEDOM) + log_shares) for s in squared]
        return np.concatenate(found)

    @cached_property
    def _images(self) -> tuple[_Affine, np.ndarray]:
        """What whitens the images of each component, and logarithms of their shares, with those of the determinants."""
        affine = _Affine.of(np.stack([p.mean for p in self.places]), np.stack([p.factor for p in self.places]))
        log_shares = np.log(self.shares) + affine.log_det
        if self.symmetries is None:
            return affine, log_shares
        maps = len(self.symmetries)
        return affine.after(self.symmetries.matrices), np.repeat(log_shares, maps) - math.log(maps)


@dataclass(frozen=True, eq=False)
class _Affine:
    """Maps z -> matrix z - offset by which components are standard: matrices (k, dim, dim), offsets (k, dim)."""

    matrices: np.ndarray
    offsets: np.ndarray
    log_det: np.ndarray

    @classmethod
    def of(cls, means: np.ndarray, factors: np.ndarray) -> _Affine:
        inverse = np.linalg.inv(factors)
        log_det = -np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        return cls(inverse, (inverse @ means[..., None])[..., 0], log_det)

    def after(self, maps: np.ndarray) -> _Affine:
        """Each after each of some maps (m, dim, dim) of determinant 1 or -1: k * m of them."""
        matrices = (self.matrices[:, None] @ maps).reshape(-1, *maps.shape[1:])
        return _Affine(matrices, np.repeat(self.offsets, len(maps), axis=0), np.repeat(self.log_det, len(maps)))

    def squared(self, z: np.ndarray) -> np.ndarray:
        """Squared distances (n, k) of z (n, dim) from the middle of each component."""
        k, dim = self.offsets.shape
        away = z @ self.matrices.reshape(-1, dim).T - self.offsets.ravel()
        return np.square(away, out=away).reshape(-1, k, dim).sum(axis=2)


def log_sum_exp(terms: np.ndarray) -> np.ndarray:
    """Logarithm (...) of sums of exponentials of terms (..., k), not all of which need be finite.

    That of SciPy takes ten times as long for few terms.
    """
    largest = terms.max(axis=-1)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return largest + np.log(np.exp(terms - largest[..., None]).sum(axis=-1))


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
            found = cls.of(z, weights, np.exp(terms - log_sum_exp(terms)[:, None]).T)
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
        """Log density (n, k) of each component at z (n, dim), with its share."""
        affine = _Affine.of(self.means, self.factors)
        return log_student_t(affine.squared(z), z.shape[1], math.inf) + np.log(self.shares) + affine.log_det

    def log_likelihood(self, z: np.ndarray, weights: np.ndarray) -> float:
        """Weighted mean of the log density."""
        return float(weights @ log_sum_exp(self.log_terms(z)))
