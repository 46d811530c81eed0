"""Where a posterior lies, and how it is shaped, by draws whose weights may be poor.

A few large weights say nothing about a covariance. Weights are therefore tempered, raised to the largest power at which
they are still worth enough draws (nonlinear importance weights: Koblents & Míguez 2015, Statistics and Computing
25(2)): from poor weights comes a distribution between proposal and posterior, from good ones the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_amortized.graph.nuts.whitened import Whitening

WORTH = 25
"""Effective draws that moments are computed from, and so many for each dimension ..."""
WORTH_PER_DIMENSION = 5
"""... at which a sample covariance is known to a factor of two (its eigenvalues lie within (1 ± sqrt(1/5))^2 of the
true ones: Marchenko-Pastur)."""
HALVINGS = 20
"""Of the interval in which the power lies."""
STARTS = 64
"""Points that are kept for chains to start from."""
RIDGE = 1e-6
"""Share of the proposals' variances that is added to a covariance: it stays positive definite."""


def tempered(log_weights: np.ndarray, dim: int) -> np.ndarray:
    """Temper weights until they are worth enough draws for moments.

    Parameters
    ----------
    log_weights : ndarray (n,)
        Raw; -inf is a weight of zero.
    dim : int

    Returns
    -------
    ndarray (n,)
        Normalized weights; equal ones where none is positive.
    """
    finite = np.isfinite(log_weights)
    if not finite.any():
        return np.full(len(log_weights), 1 / len(log_weights))
    relative = np.where(finite, log_weights - log_weights[finite].max(), -np.inf)
    wanted = min(WORTH + WORTH_PER_DIMENSION * dim, finite.sum() / 2)
    low, high = 0.0, 1.0
    if _worth(relative) >= wanted:
        low = 1.0
    else:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if _worth(middle * relative) >= wanted else (low, middle)
    weights = np.where(finite, np.exp(low * np.where(finite, relative, 0.0)), 0.0)
    return weights / weights.sum()


def _worth(log_weights: np.ndarray) -> float:
    """Effective sample size."""
    weights = np.exp(log_weights)
    return float(weights.sum() ** 2 / np.square(weights).sum())


def whitening(theta: np.ndarray, weights: np.ndarray) -> Whitening:
    """Mean and covariance of weighted draws.

    Parameters
    ----------
    theta : ndarray (n, dim)
    weights : ndarray (n,)
        Normalized.
    """
    mean = weights @ theta
    centred = theta - mean
    covariance = (centred * weights[:, None]).T @ centred
    spread = theta.var(axis=0)
    covariance += np.diag(RIDGE * np.where(spread > 0, spread, 1.0))
    return Whitening(mean, np.linalg.cholesky(covariance))


@dataclass(frozen=True, eq=False)
class Start:
    """What NUTS begins with.

    Attributes
    ----------
    whitening : Whitening
        Place and shape of the posterior.
    points : ndarray (n, dim)
        Draws as dispersed as these, from which chains start.
    """

    whitening: Whitening
    points: np.ndarray

    @classmethod
    def of(cls, theta: np.ndarray, log_weights: np.ndarray, rng: np.random.Generator) -> Start:
        """Learn from proposals of all chains (chains, n, dim) and their raw log weights (chains, n).

        Without a density, weights are NaN and all draws count alike.
        """
        theta = theta.reshape(-1, theta.shape[-1])
        weights = tempered(log_weights.ravel(), theta.shape[1])
        points = theta[rng.choice(len(theta), STARTS, p=weights)]
        return cls(whitening(theta, weights), points)
