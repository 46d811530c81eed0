"""Modes of many posteriors at once.

Scouts are spread as widely as the prior. Adaptive importance sampling
(:mod:`pymc_amortized.numerics.sampling.amis`) begins at those that are higher than all others near them, and at the
highest point that is known. It moves to where the density is higher, and finds the moments and the mass of what it
comes to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pymc_amortized.numerics.sampling.amis import (
    ENOUGH,
    IMPOSSIBLE,
    SMALLEST,
    Found,
    LogDensities,
    adapt,
    quasi_normal,
)

LEAST = 1e-3
"""Mass, relative to what is known, that a mode has at least: less is not worth a proposal."""
UNSURE = 5.0
"""By how much the logarithm of a mass may be too small that rests on few effective points."""
POINTS = 32
"""Evaluations in each stage."""
FIRST, STAGES = 3, 8
"""Stages after which starts are dropped that have come to what is known, and in all."""


@dataclass(frozen=True, eq=False)
class Mode:
    """A mode: mean (dim + rest,), covariance (dim + rest, dim + rest) and the log of its mass."""

    mean: np.ndarray
    covariance: np.ndarray
    log_evidence: float


def find_modes(
    log_density: LogDensities,
    best: np.ndarray,
    covariance: np.ndarray,
    dim: int,
    *,
    thorough: np.ndarray,
    scouts: int = 256,
    starts: int = 8,
    further: Sequence[np.ndarray] = (),
) -> list[list[Mode]]:
    """Find the modes of n targets, in order of their mass; none where no scout tells of a second one.

    Parameters
    ----------
    log_density : callable
        As in :func:`adapt`, of parameters in units of the prior.
    best : ndarray (n, dim + rest)
        The highest point that is known of each target.
    covariance : ndarray (n, dim + rest, dim + rest)
        What is known of its shape.
    dim : int
        Parameters that are sampled; the others are integrated out.
    thorough : bool ndarray (n,)
        Which targets are followed from the highest point, and from as many scouts as are allowed, in any case.
    scouts : int
        Points, a power of 2, at which the density is evaluated first.
    starts : int
        How many of these are followed.
    further : sequence of ndarray (k, dim)
        For each target, points that are followed too.
    """
    n = len(best)
    theta, owner = _starts(log_density, best, dim, thorough, scouts, starts)
    theta = np.concatenate([theta, *further])
    owner = np.concatenate([owner, np.repeat(np.arange(len(further)), [len(points) for points in further])])
    width = np.clip(0.6 * scouts ** (-1 / dim), 0.02, 0.5)  # about half the distance between scouts
    # what is known comes first, one start for each target that is followed
    followed = np.unique(np.concatenate([np.flatnonzero(thorough), owner]))
    if len(followed) == 0:
        return [[] for _ in range(n)]
    first = np.concatenate([np.arange(len(followed)), np.searchsorted(followed, owner)])  # the start of what is known
    owner = np.concatenate([followed, owner])
    mean, proposed = best[owner].copy(), covariance[owner].copy()
    mean[len(followed) :, :dim] = theta
    scale = np.minimum(np.diagonal(proposed, axis1=1, axis2=2)[:, :dim], width**2)
    scale[len(followed) :] = width**2
    proposed[:, :dim, :dim] = scale[..., None] * np.eye(dim)
    found = adapt(_of_owners(log_density, owner), mean, proposed, quasi_normal(FIRST, POINTS, dim))
    clear = _finished(found)[first] & (first != np.arange(len(first)))
    same = ~_apart(found, np.arange(len(first)), first, dim)
    stay = ~(clear & same) & (found.ess > 0)
    owner, mean, proposed = owner[stay], found.mean[stay], found.covariance[stay]
    if len(owner) == 0:
        return [[] for _ in range(n)]
    found = adapt(_of_owners(log_density, owner), mean, proposed, quasi_normal(STAGES, POINTS, dim))
    order = np.argsort(owner, kind="stable")
    each = np.split(order, np.searchsorted(owner[order], np.arange(1, n)))
    return [_distinct(found, some, dim) for some in each]


def _finished(found: Found) -> np.ndarray:
    return (found.ess >= ENOUGH) & (found.inverse_temperature == 1)


def _of_owners(log_density: LogDensities, owner: np.ndarray) -> LogDensities:
    return lambda theta, index: log_density(theta, owner[index])


def _apart(found: Found, some: np.ndarray, others: np.ndarray, dim: int) -> np.ndarray:
    """Which of what was found (numbers k) lie where others (numbers k) have next to nothing, or the other way round.

    So a narrow mode within a wide one is another, once it is finished: until then it may have shrunk to a few points.
    """
    away = (found.mean[some] - found.mean[others])[:, :dim, None]

    def reached(which: np.ndarray) -> np.ndarray:
        width = found.covariance[which, :dim, :dim] + SMALLEST**2 * np.eye(dim)  # all weight may be that of one point
        return (away * np.linalg.solve(width, away)).sum(axis=(1, 2)) <= reach(dim) ** 2

    return ~reached(others) | (_finished(found)[some] & ~reached(some))


def reach(dim: int) -> float:
    """Standard deviations within which draws of a distribution of so many dimensions lie, and more."""
    return 3 + 2 * math.sqrt(dim)


def _starts(
    log_density: LogDensities, best: np.ndarray, dim: int, thorough: np.ndarray, scouts: int, starts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where to begin (k, dim), and for which targets (k,): at scouts that are higher than all others near them.

    Those on the way up to what is known are not. Of targets that are thoroughly searched, the best others follow.
    """
    n = len(best)
    spread, near, within = _scouts(scouts, dim)
    log_p = log_density(np.ascontiguousarray(np.broadcast_to(spread, (n, *spread.shape))), np.arange(n))[0]
    log_p = np.where(np.isfinite(log_p), log_p, IMPOSSIBLE)
    top = log_p >= log_p[:, near].max(axis=2)
    alone = top & (np.square(spread - best[:, None, :dim]).sum(axis=2) > within)
    wanted = (alone | thorough[:, None]) & (log_p > IMPOSSIBLE)
    theta, owners = [], []
    for i in np.flatnonzero(wanted.any(axis=1)):
        (some,) = np.nonzero(wanted[i])
        chosen = some[np.lexsort((-log_p[i, some], ~alone[i, some]))][:starts]
        theta.extend(spread[chosen])
        owners.extend([i] * len(chosen))
    return np.reshape(theta, (-1, dim)), np.array(owners, dtype=int)


@lru_cache
def _scouts(number: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scouts (number, dim), the nearest others of each (number, 2 dim + 1), and the squared distance of the last."""
    spread = quasi_normal(1, number, dim)[0]
    squared = np.square(spread).sum(axis=1)
    distance = squared[:, None] + squared - 2 * spread @ spread.T
    near = np.argsort(distance, axis=1)[:, 1 : 2 * dim + 2]
    return spread, near, np.take_along_axis(distance, near[:, -1:], axis=1)[:, 0]


def _distinct(found: Found, some: np.ndarray, dim: int) -> list[Mode]:
    """Those with mass that do not lie in one with more mass."""
    chosen: list[int] = []
    some = some[found.ess[some] > 0]
    unsure = np.where(_finished(found), 0.0, UNSURE)
    for k in some[np.argsort(-found.log_evidence[some], kind="stable")]:
        heavy = not chosen or found.log_evidence[k] + unsure[k] > found.log_evidence[chosen[0]] + np.log(LEAST)
        if heavy and _apart(found, np.full(len(chosen), k), np.array(chosen, dtype=int), dim).all():
            chosen.append(k)
    return [Mode(found.mean[k], found.covariance[k], float(found.log_evidence[k])) for k in chosen]
