r"""Tempered sequential Monte Carlo: populations of particles from a wide distribution to a density with any modes.

Particles go through densities :math:`q^{1-\beta} p^\beta`, with :math:`q` standard normal and :math:`\beta` from 0 to 1
(Del Moral, Doucet & Jasra 2006, JRSS B 68(3)). Each step of :math:`\beta` is as large as half of the particles allow;
then they are resampled, and moved by differences of two others (ter Braak 2006, Statistics and Computing 16(3)), which
have the scale and the shape of the modes. Each population is independent of the others: where they agree, they can be
trusted. And where further moves change no mean: a funnel's neck is entered by all populations equally seldom, and they
agree on what is wrong.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pymc_amortized.numerics.sampling.importance import largest_power, resample
from pymc_amortized.numerics.sampling.student_t import log_student_t

WORTH = 0.5
"""Share of the particles that weights of one step are worth at least."""
WANTED = 0.25
"""Share of moves that are accepted: about what is best for differences (Roberts & Rosenthal 2001)."""
MOST_MOVES = 60
"""In one step, where hardly any is accepted."""
MOST_STEPS = 200


@dataclass(frozen=True, eq=False)
class Particles:
    """Independent populations of equally weighted particles.

    Attributes
    ----------
    z : ndarray (populations, n, dim)
    log_evidence : ndarray (populations,)
        Log integral of the density.
    drift : float
        By how many standard errors the mean of a coordinate, or of the log density, changes at most, as all are moved
        on for as long as they were before. About 2 to 3 where they have arrived.
    """

    z: np.ndarray
    log_evidence: np.ndarray
    drift: float


def temper(
    log_density: Callable[[np.ndarray], np.ndarray],
    dim: int,
    *,
    populations: int,
    particles: int,
    rng: np.random.Generator,
    deadline: float = math.inf,
) -> Particles | None:
    """Draw particles from a density; None at the deadline, or where the density is 0 nearly everywhere.

    Parameters
    ----------
    log_density : callable
        Points (n, dim), in units of a standard normal distribution -> (n,); NaN counts as -inf.
    dim : int
    populations, particles : int
        Particles in each population, an even number.
    rng : numpy.random.Generator
    deadline : float
        By ``time.monotonic``.
    """

    def known(z: np.ndarray) -> np.ndarray:
        values = log_density(z.reshape(-1, dim)).reshape(z.shape[:-1])
        return np.where(values < np.inf, values, -np.inf)  # NaN too

    state = _State(rng.normal(size=(populations, particles, dim)), known, rng)
    for _ in range(MOST_STEPS):
        if time.monotonic() > deadline or not state.alive:
            return None
        state.reweigh()
        last = bool((state.power == 1).all())
        # a random walk forgets where it began after some moves for each dimension
        longer = 2 if last else 1
        state.move_on(longer * (2 + dim / 2), longer * MOST_MOVES, deadline)
        if last:
            before = state.coordinates
            state.move_on(longer * (2 + dim / 2), longer * MOST_MOVES, deadline)
            if time.monotonic() > deadline:  # too few moves tell of no drift
                return None
            return Particles(state.z, state.log_evidence, _largest_change(before, state.coordinates))
    return None


def _largest_change(before: np.ndarray, after: np.ndarray) -> float:
    """Largest change (..., coordinates) of a mean, in its standard errors."""
    change = (after - before).reshape(-1, before.shape[-1])
    error = change.std(axis=0) / math.sqrt(len(change))
    return float(np.max(np.abs(change.mean(axis=0)) / np.maximum(error, 1e-300)))


class _State:
    """Populations on their way; arrays (populations, particles)."""

    def __init__(
        self, z: np.ndarray, log_density: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
    ) -> None:
        self.z, self._log_density, self._rng = z, log_density, rng
        self.log_p, self.log_q = log_density(z), self._normal(z)
        self.power, self.log_evidence, self._scale = (f(len(z)) for f in (np.zeros, np.zeros, np.ones))

    @staticmethod
    def _normal(z: np.ndarray) -> np.ndarray:
        return log_student_t(np.square(z).sum(axis=-1), z.shape[-1], math.inf)

    @property
    def alive(self) -> bool:
        """Whether each population has enough particles of positive density to go on."""
        return bool((np.isfinite(self.log_p).sum(axis=1) >= 10).all())

    def reweigh(self) -> None:
        """Take as large a step as the weights allow, and resample."""
        difference = self.log_p - self.log_q
        relative = difference - difference.max(axis=1, keepdims=True)
        possible = np.isfinite(relative)
        relative = np.where(possible, relative, -1e300)
        worth = WORTH * possible.sum(axis=1)
        powers = np.array([largest_power(row[None], number)[0] for row, number in zip(relative, worth, strict=True)])
        step = np.minimum(powers, 1 - self.power)
        weights = np.where(possible, np.exp(step[:, None] * relative), 0.0)
        self.log_evidence = self.log_evidence + step * difference.max(axis=1) + np.log(weights.mean(axis=1))
        self.power = self.power + step
        index = resample(weights / weights.sum(axis=1, keepdims=True), weights.shape[1], self._rng)
        self.z = np.take_along_axis(self.z, index[..., None], axis=1)
        self.log_p, self.log_q = (np.take_along_axis(part, index, axis=1) for part in (self.log_p, self.log_q))

    @property
    def coordinates(self) -> np.ndarray:
        """Positions, and the log density: (populations, particles, dim + 1)."""
        return np.concatenate([self.z, self.log_p[..., None]], axis=-1)

    def move_on(self, enough: float, most: int, deadline: float) -> None:
        """Move until each has been moved often enough on average, at most so many times."""
        accepted = 0.0
        for _ in range(most):
            accepted += self.move()
            if accepted > enough or time.monotonic() > deadline:
                return

    def move(self) -> float:
        """Move every particle once, one half by differences of the other half; returns the share that moved."""
        number, accepted = self.z.shape[1], 0.0
        for half in (slice(0, None, 2), slice(1, None, 2)):
            others = self.z[:, 1::2] if half.start == 0 else self.z[:, ::2]
            here = self.z[:, half]
            there = here + self._differences(others, here.shape[1])
            log_p, log_q = self._log_density(there), self._normal(there)
            power = self.power[:, None]
            with np.errstate(invalid="ignore"):  # from nowhere to nowhere
                change = power * (log_p - self.log_p[:, half]) + (1 - power) * (log_q - self.log_q[:, half])
            moved = np.log(self._rng.random(change.shape)) < change
            self.z[:, half] = np.where(moved[..., None], there, here)
            self.log_p[:, half] = np.where(moved, log_p, self.log_p[:, half])
            self.log_q[:, half] = np.where(moved, log_q, self.log_q[:, half])
            share = moved.mean(axis=1)
            self._scale = np.clip(self._scale * np.exp(0.5 * (share - WANTED)), 0.02, 2.0)
            accepted += float(share.min()) * here.shape[1] / number
        return accepted

    def _differences(self, others: np.ndarray, number: int) -> np.ndarray:
        """Scaled differences (populations, number, dim) of pairs of others: any two, or two that are akin.

        Particles stand in the order of those they descend from, so that neighbors are likely to share a mode.
        """
        populations, n, dim = others.shape
        first = self._rng.integers(n, size=(populations, number))
        akin = (first + self._rng.integers(1, max(n // 16, 2), size=first.shape)) % n
        second = np.where(self._rng.random(first.shape) < 0.5, akin, self._rng.integers(n, size=first.shape))
        pair = [np.take_along_axis(others, index[..., None], axis=1) for index in (first, second)]
        spread = self._scale[:, None] * np.exp(0.3 * self._rng.normal(size=first.shape))
        return (2.38 / math.sqrt(2 * dim)) * spread[..., None] * (pair[0] - pair[1])
