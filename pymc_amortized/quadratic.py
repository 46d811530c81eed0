"""Parameters in which a log density is quadratic, given the others: coefficients, group means, latent processes.

Their conditional distribution is normal, and a few values of the log density tell all of it (a second-order Taylor
series is exact), so that they are integrated out, and the others alone are left to be sampled (Rao-Blackwell; Casella &
Robert 1996), or drawn exactly, given the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LogDensities = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Points (k, m, dim) of k targets, and their numbers (k,) -> log densities (k, m)."""

STEPS = np.array([-1.5, -0.5, 0.5, 1.5])
DIRECTIONS = 8
"""Random directions in which third differences have to vanish."""
NEGLIGIBLE, ROUNDING = 1e-6, 1e-11
"""Of how much the log density changes, and of its size, what a third difference may be."""
APART, DIGITS = 1e-3, 1e-11
"""Absolutely, and of its size, how far a log density may be from the quadratic function."""
LOG_2PI = math.log(2 * math.pi)
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Which parameters are integrated out.

    Attributes
    ----------
    places : int ndarray (q,)
        Of these parameters.
    pairs : int ndarray (p, 2)
        Of these, counted among them, which ones interact.
    dim : int
        Number of all parameters.
    """

    places: np.ndarray
    pairs: np.ndarray
    dim: int

    def description(self) -> dict[str, Any]:
        """All of it as JSON, but the number of parameters."""
        return {"places": self.places.tolist(), "pairs": self.pairs.tolist()}

    @classmethod
    def from_description(cls, described: Mapping[str, Any], dim: int) -> Quadratic:
        """Undo :meth:`description`; a ValueError where it cannot be one."""
        places, pairs = (np.array(described[name], dtype=int) for name in ("places", "pairs"))
        pairs = pairs.reshape(-1, 2)
        if places.ndim != 1 or not set(places.tolist()) <= set(range(dim)) or len(set(places.tolist())) < len(places):
            raise ValueError(f"integrated parameters at {places.tolist()} of {dim}")
        if not ((pairs >= 0) & (pairs < len(places))).all():
            raise ValueError(f"pairs {pairs.tolist()} of {len(places)} integrated parameters")
        return cls(places, pairs, dim)

    def first(self, number: int) -> Quadratic:
        """The same with only the first so many parameters integrated out."""
        return Quadratic(self.places[:number], self.pairs[(self.pairs < number).all(axis=1)], self.dim)

    @property
    def sampled(self) -> np.ndarray:
        """Places (dim - q,) of the others."""
        return np.setdiff1d(np.arange(self.dim), self.places)

    @property
    def probes(self) -> np.ndarray:
        """Points (probes, q) at which the quadratic function is evaluated, in units of a scale; the last one checks."""
        eye = np.eye(len(self.places))
        first, second = self.pairs.T
        uneven = (-1.0) ** np.arange(len(eye)) * (0.5 + np.arange(1, len(eye) + 1) * GOLDEN % 0.5)
        zero = np.zeros((1, len(eye)))
        if len(eye) == 0:
            return zero
        return np.concatenate([zero, eye, -eye, eye[first] + eye[second], uneven[None]])

    def integrated(
        self, log_density: LogDensities, center: np.ndarray, scale: np.ndarray
    ) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return the log density of the other parameters.

        Parameters
        ----------
        log_density : callable
            Of all parameters.
        center, scale : ndarray (n, q)
            Of each target, about where the integrated parameters lie.

        Returns
        -------
        callable
            Points (k, m, dim - q) and numbers of targets (k,) -> log integrals (k, m), and the conditional mean
            (k, m, q) and covariance (k, m, q, q) of what was integrated. The integral is -inf where the density is 0
            or cannot be evaluated, NaN where it is not quadratic after all.
        """
        conditional = self.conditional(log_density, center, scale)

        def of(points: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            log_p, mean, spread = conditional(points, index)
            return log_p, mean, spread @ spread.swapaxes(-2, -1)

        return of

    def conditional(
        self, log_density: LogDensities, center: np.ndarray, scale: np.ndarray
    ) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The same, with upper triangular roots of the conditional covariance, (k, m, q, q), in its place.

        Where the integral is -inf or NaN, mean and root are the center and the scale that were given.
        """
        probes, sampled = self.probes, self.sampled

        def of(points: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            k, m, _ = points.shape
            every = np.empty((k, m, len(probes), self.dim))
            every[..., sampled] = points[:, :, None]
            every[..., self.places] = (center[index][:, None] + probes * scale[index][:, None])[:, None]
            values = log_density(every.reshape(k, m * len(probes), self.dim), index).reshape(k, m, len(probes))
            values = np.where(np.isnan(values), -np.inf, values)
            if len(probes) == 1:
                return values[..., 0], np.empty((k, m, 0)), np.empty((k, m, 0, 0))
            log_p, mean, root = self._normal(values)
            width = scale[index][:, None]
            log_p += np.log(width).sum(axis=-1)
            return log_p, center[index][:, None] + width * mean, width[..., None] * root

        return of

    def _normal(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log integral, mean and root of the covariance of quadratic functions, from their values (k, m, probes)."""
        q, (first, second) = len(self.places), self.pairs.T
        finite = np.isfinite(values)
        known = np.where(finite.all(axis=-1, keepdims=True), values, 0.0)
        at_zero, up, down, both, check = np.split(known, np.cumsum([1, q, q, len(self.pairs)]), axis=-1)
        slope = (up - down) / 2
        precision = np.zeros((*values.shape[:2], q, q))
        precision[..., np.arange(q), np.arange(q)] = 2 * at_zero - up - down
        mixed = up[..., first] + up[..., second] - at_zero - both
        precision[..., first, second] = precision[..., second, first] = mixed
        away = self.probes[-1]
        expected = at_zero[..., 0] + slope @ away - 0.5 * (precision @ away) @ away
        allowed = APART + DIGITS * np.abs(known).max(axis=-1)
        usable = finite.all(axis=-1) & (np.abs(check[..., 0] - expected) <= allowed)
        root, usable = _roots(precision, usable)
        inverse = np.linalg.inv(root)
        whitened = (inverse @ np.where(usable[..., None], slope, 0.0)[..., None])[..., 0]
        log_det = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
        log_p = at_zero[..., 0] + 0.5 * np.square(whitened).sum(axis=-1) - log_det + 0.5 * q * LOG_2PI
        spread = inverse.swapaxes(-2, -1)
        mean = (spread @ whitened[..., None])[..., 0]
        possible = finite.any(axis=-1)  # somewhere: what is 0 in part is no quadratic function
        return np.where(usable, log_p, np.where(possible, np.nan, -np.inf)), mean, spread


def _roots(precision: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky factors of what is positive definite, and which are; others become the identity."""
    eye = np.eye(precision.shape[-1])
    precision = np.where(usable[..., None, None], precision, eye)
    try:
        return np.linalg.cholesky(precision), usable
    except np.linalg.LinAlgError:
        usable = usable & (np.linalg.eigvalsh(precision)[..., 0] > 0)
        return np.linalg.cholesky(np.where(usable[..., None, None], precision, eye)), usable


def find_quadratic(log_density: LogDensities, points: np.ndarray) -> Quadratic:
    """Find a set of parameters, as large as comes, in which log densities are jointly quadratic.

    Parameters
    ----------
    log_density : callable
    points : ndarray (n, dim)
        One of each target, in units in which parameters are of the order of 1.
    """
    n, dim = points.shape
    rng = np.random.default_rng(0)
    places: list[int] = []
    for j in range(dim):
        tried = [*places, j]
        directions = np.zeros((n, DIRECTIONS, dim))
        directions[..., tried] = rng.normal(size=(n, DIRECTIONS, len(tried)))
        directions[:, 0] = np.eye(dim)[j]
        if _is_quadratic(log_density, points, directions):
            places = tried
    pairs = _interacting(log_density, points, places) if places else np.empty((0, 2), dtype=int)
    return Quadratic(np.array(places, dtype=int), pairs, dim)


def _is_quadratic(log_density: LogDensities, points: np.ndarray, directions: np.ndarray) -> bool:
    """Whether third differences vanish in directions (n, directions, dim)."""
    n, number, dim = directions.shape
    moved = points[:, None, None] + STEPS[:, None] * directions[:, :, None]
    values = log_density(moved.reshape(n, -1, dim), np.arange(n)).reshape(n, number, len(STEPS))
    if not np.isfinite(values).all():
        return False
    third = np.abs(values @ np.array([-1.0, 3.0, -3.0, 1.0]))
    change = np.ptp(values, axis=-1)
    return bool((third <= NEGLIGIBLE * change + ROUNDING * np.abs(values).max(axis=-1)).all())


def _interacting(log_density: LogDensities, points: np.ndarray, places: list[int]) -> np.ndarray:
    """Pairs (p, 2) whose mixed second difference is not 0 for all targets."""
    n, dim = points.shape
    first, second = np.triu_indices(len(places), 1)
    eye = np.eye(dim)[places]
    steps = np.concatenate([0 * eye[:1], eye, eye[first] + eye[second]])
    values = log_density(points[:, None] + steps, np.arange(n))
    at_zero, up, both = np.split(values, np.cumsum([1, len(places)]), axis=1)
    mixed = np.abs(up[:, first] + up[:, second] - at_zero - both)
    near = (mixed > NEGLIGIBLE * np.ptp(values, axis=1, keepdims=True)).any(axis=0)
    return np.column_stack([first[near], second[near]])
