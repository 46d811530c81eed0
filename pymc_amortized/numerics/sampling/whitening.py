"""Place and shape of a distribution, by which its draws are standardized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Whitening:
    """Place and shape of an approximate posterior.

    Attributes
    ----------
    mean : ndarray (dim,)
    factor : ndarray (dim, dim)
        Lower triangular: the Cholesky factor of the covariance.
    """

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, theta: np.ndarray, weights: np.ndarray) -> Whitening:
        """Mean and covariance of weighted draws.

        Parameters
        ----------
        theta : ndarray (n, dim)
        weights : ndarray (n,)
            Normalized.
        """
        mean, covariance = moments(theta, weights)
        return cls(mean, np.linalg.cholesky(covariance))

    def theta(self, z: np.ndarray) -> np.ndarray:
        """Map standardized draws (..., dim) to unconstrained parameters."""
        return self.mean + z @ self.factor.T

    def z(self, theta: np.ndarray) -> np.ndarray:
        """Standardize unconstrained parameters (..., dim)."""
        return np.linalg.solve(self.factor, (theta - self.mean)[..., None])[..., 0]


def moments(theta: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (..., dim) and covariances (..., dim, dim) of draws (..., n, dim) with normalized weights (..., n)."""
    mean = (weights[..., None, :] @ theta)[..., 0, :]
    centred = theta - mean[..., None, :]
    covariance = (centred * weights[..., None]).swapaxes(-2, -1) @ centred
    spread = theta.var(axis=-2)
    # a share of the variances of all draws, whatever their weights, keeps it positive definite
    covariance += 1e-6 * np.where(spread > 0, spread, 1.0)[..., None] * np.eye(theta.shape[-1])
    return mean, covariance
