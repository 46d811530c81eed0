"""Parameters in which a log density is quadratic, given the others: coefficients, group means, latent processes.

Their conditional distribution is normal, and a few values of the log density tell all of it (a second-order Taylor
series is exact), so that they are integrated out, and the others alone are left to be sampled (Rao-Blackwell; Casella &
Robert 1996), or drawn exactly, given the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pymc_amortized.numerics.coloring import star_coloring
from pymc_amortized.numerics.integrals import cholesky_factors, log_integral, log_normal

LogDensities = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Points (k, m, dim) of k targets, and their numbers (k,) -> log densities (k, m); maybe with a method ``gradients``,
which returns gradients (k, m, dim) too, and one ``moved``, which evaluates at points of which some places are moved."""

Conditional = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Log integrals (k, m), and means (k, m, q) and roots (k, m, q, q) of what was integrated."""

APART = 1e-3
"""How far a log density may be from the quadratic function, beside rounding."""
NEGLIGIBLE = 1e-6
"""Share of how much the log density changes that a difference of it may be to count as none."""

FIRST = 16
"""Targets that are looked at before all others: in most, what is not quadratic shows at once."""


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
    by_gradients : bool
        Whether gradients of the log density are there to tell second derivatives, and take less than its values.
    """

    places: np.ndarray
    pairs: np.ndarray
    dim: int
    by_gradients: bool = False

    def check(self, dim: int) -> None:
        """Raise a ValueError unless places are those of some of `dim` parameters, and pairs are among them."""
        places, pairs = self.places, self.pairs
        known = places.ndim == 1 and places.dtype.kind == "i" and set(places.tolist()) <= set(range(dim))
        if self.dim != dim or not known or len(set(places.tolist())) < len(places):
            raise ValueError(f"integrated parameters at {places.tolist()} of {dim}")
        among = pairs.shape[1:] == (2,) and pairs.dtype.kind == "i"
        if not among or not ((pairs >= 0) & (pairs < len(places))).all():
            raise ValueError(f"pairs {pairs.tolist()} of {len(places)} integrated parameters")

    def with_gradients(self) -> Quadratic:
        """Return the one by gradients, if that takes less than half: else ten seconds of compiling are not worth it."""
        other = replace(self, by_gradients=True)
        return other if 2 * other.evaluations < self.evaluations else self

    def first(self, number: int) -> Quadratic:
        """Return the one in which only the first so many parameters are integrated out."""
        pairs = self.pairs[(self.pairs < number).all(axis=1)]
        return Quadratic(self.places[:number], pairs, self.dim, self.by_gradients)

    @cached_property
    def sampled(self) -> np.ndarray:
        """Places (dim - q,) of the others."""
        return np.setdiff1d(np.arange(self.dim), self.places)

    @cached_property
    def steps(self) -> np.ndarray:
        """Points (steps, q) at which the quadratic function is evaluated, in units of a scale; the last one checks."""
        eye = np.eye(len(self.places))
        first, second = self.pairs.T
        uneven = (-1.0) ** np.arange(len(eye)) * (0.5 + np.arange(1, len(eye) + 1) * ((math.sqrt(5) - 1) / 2) % 0.5)
        zero = np.zeros((1, len(eye)))
        if len(eye) == 0:
            return zero
        some = [self.turns] if self.by_gradients else [eye, -eye, eye[first] + eye[second]]
        return np.concatenate([zero, *some, uneven[None]])

    @cached_property
    def turns(self) -> np.ndarray:
        """Which parameters (turns, q) are moved at once, so that gradients tell the second derivatives of each."""
        of = star_coloring(self.pairs, len(self.places))
        return (of == np.arange(max(of, default=-1) + 1)[:, None]).astype(float)

    @cached_property
    def _entries(self) -> np.ndarray:
        """For each second derivative, its two parameters, and in which turn the slope of which one tells it: (4, n)."""
        q, color = len(self.places), self.turns.argmax(axis=0)
        near = np.eye(q)
        near[tuple(self.pairs.T)] = near[tuple(self.pairs.T[::-1])] = 1.0
        entries = []
        for i, j in [*((i, i) for i in range(q)), *self.pairs.tolist()]:
            row, column = (i, j) if near[i] @ self.turns[color[j]] == 1 else (j, i)
            entries.append((i, j, color[column], row))
        return np.array(entries).T

    @property
    def evaluations(self) -> float:
        """What one integral takes, in evaluations of the log density."""
        # one with its gradient takes about as long as 2.5
        return 2.5 * (len(self.turns) + 1) + 1 if self.by_gradients else len(self.steps)

    def integrated(
        self,
        log_density: LogDensities,
        center: np.ndarray,
        scale: np.ndarray,
        curvature: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return the log density of the other parameters.

        Parameters
        ----------
        log_density : callable
            Of all parameters.
        center, scale : ndarray (n, q)
            Of each target, about where the integrated parameters lie.
        curvature : callable, optional
            Minus second derivatives (..., q, q) at the only other parameter (...), where they are known; else NaN.

        Returns
        -------
        callable
            Points (k, m, dim - q) and numbers of targets (k,) -> log integrals (k, m), and the conditional mean
            (k, m, q) and covariance (k, m, q, q) of what was integrated. The integral is -inf where the density is 0
            or cannot be evaluated, NaN where it is not quadratic after all.
        """
        conditional = self.conditional(log_density, center, scale, curvature)

        def of(points: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            log_p, mean, spread = conditional(points, index)
            return log_p, mean, spread @ spread.swapaxes(-2, -1)

        return of

    def holds(self, log_density: LogDensities, points: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Whether the quadratic functions found at points (n, dim - q) hold as far as the unit of parameters: (n,).

        Where other functions begin at some distance, probes at the scale of a posterior do not see them.
        """
        if not len(self.places):
            return np.ones(len(points), dtype=bool)
        index = np.arange(len(points))
        log_p, mean, root = (
            part[:, 0] for part in self.conditional(log_density, center, scale)(points[:, None], index)
        )
        far = np.random.default_rng(0).normal(size=(8, len(self.places)))
        every = np.empty((len(points), len(far), self.dim))
        every[..., self.sampled] = points[:, None]
        every[..., self.places] = far
        noise = np.linalg.solve(root[:, None], (far - mean[:, None])[..., None])[..., 0]
        change = 0.5 * np.square(noise).sum(axis=-1)
        expected = log_p[:, None] + log_normal(noise, root[:, None])
        with np.errstate(invalid="ignore"):
            apart = np.abs(log_density(every, index) - expected)
        return (apart <= APART + 1e-4 * change).all(axis=1)

    def conditional(
        self,
        log_density: LogDensities,
        center: np.ndarray,
        scale: np.ndarray,
        curvature: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return the log density of the other parameters, and the distribution of what was integrated.

        As :meth:`integrated` does, but with upper triangular roots of the conditional covariance, (k, m, q, q).

        Where the integral is -inf or NaN, mean and root are the center and the scale that were given.
        """
        q = len(self.places)

        def of(points: np.ndarray, index: np.ndarray, known: np.ndarray | None = None) -> Conditional:
            k, m, _ = points.shape
            width = scale[index][:, None]
            steps = self.steps if known is None else self.steps[[*range(q + 1), -1]]
            to = center[index][:, None] + steps * width
            at = np.empty((k, m, self.dim))
            at[..., self.sampled], at[..., self.places] = points, to[:, :1]
            if q == 0:
                values = _moved(log_density, at, self.places, to, index)
                return np.where(np.isnan(values), -np.inf, values)[..., 0], np.empty((k, m, 0)), np.empty((k, m, 0, 0))
            if known is not None:
                read = self._by_curvature(log_density, at, to, index, known * width[..., None] * width[..., None, :])
            elif self.by_gradients:
                read = self._by_gradients(log_density, at, to, index, width)
            else:
                read = self.by_values(log_density, at, to, index)
            log_p, mean, root = self._normal(*read)
            log_p += np.log(width).sum(axis=-1)
            return log_p, center[index][:, None] + width * mean, width[..., None] * root

        def quickly(points: np.ndarray, index: np.ndarray) -> Conditional:
            assert curvature is not None
            found = of(points, index, curvature(points[..., 0]))
            at, which = np.nonzero(~np.isfinite(found[0]))  # it is not known there, or not that of these data
            if len(at):
                for part, exact in zip(found, of(points[at, which][:, None], index[at]), strict=True):
                    part[at, which] = exact[:, 0]
            return found

        return of if curvature is None else quickly

    def by_values(
        self, log_density: LogDensities, at: np.ndarray, to: np.ndarray, index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values (k, m, steps) at points (k, m, dim) moved to (k, steps, q); slope and precision there."""
        q, (first, second) = len(self.places), self.pairs.T
        values = _moved(log_density, at, self.places, to, index)
        known = np.where(np.isfinite(values).all(axis=-1, keepdims=True), values, 0.0)
        at_zero, up, down, both, _ = np.split(known, np.cumsum([1, q, q, len(self.pairs)]), axis=-1)
        precision = np.zeros((*values.shape[:2], q, q))
        precision[..., np.arange(q), np.arange(q)] = 2 * at_zero - up - down
        mixed = up[..., first] + up[..., second] - at_zero - both
        precision[..., first, second] = precision[..., second, first] = mixed
        return values, (up - down) / 2, precision

    def _by_curvature(
        self, log_density: LogDensities, at: np.ndarray, to: np.ndarray, index: np.ndarray, precision: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, slope and precision (k, m, q, q), of which the last is known."""
        values = _moved(log_density, at, self.places, to, index)
        known = np.where(np.isfinite(values).all(axis=-1, keepdims=True), values, 0.0)
        slope = known[..., 1:-1] - known[..., :1] + np.diagonal(precision, axis1=-2, axis2=-1) / 2
        return values, slope, precision

    def _by_gradients(
        self, log_density: LogDensities, at: np.ndarray, to: np.ndarray, index: np.ndarray, width: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, slope and precision by gradients at all points but the last, where the value alone is needed."""
        q, every = len(self.places), _tiled(at, self.places, to)
        values, gradients = _evaluated(log_density.gradients, every[:, :, :-1], index)  # type: ignore[attr-defined]
        (check,) = _evaluated(log_density, every[:, :, -1:], index)
        slopes = gradients[..., self.places] * width[..., None, :]
        with np.errstate(invalid="ignore"):  # NaN where there are no gradients
            moved = slopes[:, :, :1] - slopes[:, :, 1:]  # (k, m, turns, q)
        precision = np.zeros((*values.shape[:2], q, q))
        first, second, turn, row = self._entries
        precision[..., first, second] = precision[..., second, first] = moved[:, :, turn, row]
        return np.concatenate([values, check], axis=-1), slopes[:, :, 0], precision

    def _normal(
        self, values: np.ndarray, slope: np.ndarray, precision: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log integral, mean and root of the covariance of quadratic functions, from what is known at their steps."""
        finite = np.isfinite(values)
        known = np.where(finite.all(axis=-1, keepdims=True), values, 0.0)
        at_zero, away = known[..., 0], self.steps[-1]
        with np.errstate(invalid="ignore"):
            expected = at_zero + slope @ away - 0.5 * (precision @ away) @ away
        size = np.abs(known).max(axis=-1)
        usable = finite.all(axis=-1) & (np.abs(known[..., -1] - expected) <= APART + 1e-11 * size)
        lost = size > 1e12  # what is left of such values after cancellation is rounding alone, of either sign
        usable &= ~lost
        root, usable = cholesky_factors(precision, usable)
        inverse = np.linalg.inv(root)
        whitened = (inverse @ np.where(usable[..., None], slope, 0.0)[..., None])[..., 0]
        log_p = at_zero + log_integral(whitened, root)
        spread = inverse.swapaxes(-2, -1)
        mean = (spread @ whitened[..., None])[..., 0]
        possible = finite.any(axis=-1) & ~lost  # somewhere: what is 0 in part is no quadratic function
        return np.where(usable, log_p, np.where(possible, np.nan, -np.inf)), mean, spread


def _moved(
    log_density: LogDensities, at: np.ndarray, places: np.ndarray, to: np.ndarray, index: np.ndarray
) -> np.ndarray:
    """Values (k, m, steps) at points (k, m, dim) of which parameters at places are moved to (k, steps, q)."""
    if hasattr(log_density, "moved"):
        return log_density.moved(at, places, to, index)
    return _evaluated(log_density, _tiled(at, places, to), index)[0]


def _tiled(at: np.ndarray, places: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Points (k, m, steps, dim) at points (k, m, dim) of which parameters at places are moved to (k, steps, q)."""
    every = np.repeat(at[:, :, None], to.shape[1], axis=2)
    every[..., places] = to[:, None]
    return every


def _evaluated(function: Callable[..., Any], points: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
    """Call what takes points (k, m, dim) at points (k, m, n, dim)."""
    k, m, n, dim = points.shape
    found = function(np.ascontiguousarray(points).reshape(k, m * n, dim), index)
    found = [found] if isinstance(found, np.ndarray) else found
    return [part.reshape(k, m, n, *part.shape[2:]) for part in found]


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
        directions = np.zeros((n, 8, dim))
        directions[..., tried] = rng.normal(size=(n, 8, len(tried)))
        directions[:, 0] = np.eye(dim)[j]
        if _is_quadratic(log_density, points, directions):
            places = tried
    pairs = _interacting(log_density, points, places) if places else np.empty((0, 2), dtype=int)
    return Quadratic(np.array(places, dtype=int), pairs, dim)


def _is_quadratic(log_density: LogDensities, points: np.ndarray, directions: np.ndarray) -> bool:
    """Whether third differences vanish in directions (n, directions, dim)."""
    n, number, dim = directions.shape
    steps = np.array([-1.5, -0.5, 0.5, 1.5])
    for some in filter(len, np.split(np.arange(n), [FIRST])):
        moved = points[some, None, None] + steps[:, None] * directions[some, :, None]
        values = log_density(moved.reshape(len(some), -1, dim), some).reshape(len(some), number, len(steps))
        if not np.isfinite(values).all():
            return False
        third = np.abs(values @ np.array([-1.0, 3.0, -3.0, 1.0]))
        change = np.ptp(values, axis=-1)
        if not (third <= NEGLIGIBLE * change + 1e-11 * np.abs(values).max(axis=-1)).all():
            return False
    return True


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
