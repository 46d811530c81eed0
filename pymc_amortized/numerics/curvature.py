"""Functions of one number between Chebyshev points; curvatures of log densities that are such functions for all data.

In a linear model with normal errors, second derivatives in the coefficients depend on the scale of the errors, and not
on the data. Once they are known as a function of it, a third of the values of a density tells the same integral.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pymc_amortized.numerics.quadratic import LogDensities, Quadratic

NUMBER, REACH = 97, 6.0
"""Points, and how far they reach, in standard scales of the prior: beyond, what is not known is computed."""
CLOSE = 1e-9
"""Share of second derivatives that an interpolation may be off, or those of two data sets may differ: `mean` and slope
of a distribution that lies 100 scales away are then right to 1e-5."""
WORTH = 1.5
"""Times as many evaluations as are saved, at least, by what is known."""


def chebyshev_points(number: int, radius: float) -> np.ndarray:
    """Points (number,) between -radius and radius, both included."""
    return radius * np.cos(np.pi * np.arange(number) / (number - 1))


def chebyshev_weights(z: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Weights (..., n) of the values at Chebyshev points (n,) at z (...), which is clipped to where these lie.

    By the barycentric formula (Berrut & Trefethen 2004, SIAM Review 46(3)).
    """
    signs = (-1.0) ** np.arange(len(points))
    signs[[0, -1]] /= 2
    weights = np.clip(z, points[-1], points[0])[..., None] - points
    hit = np.nonzero(weights == 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(signs, weights, out=weights)
        weights /= weights.sum(axis=-1, keepdims=True)
    weights[hit[:-1]] = np.eye(len(points))[hit[-1]]
    return weights


@dataclass(frozen=True, eq=False)
class Curvature:
    """Minus second derivatives in parameters that are integrated out, given the only other one.

    Attributes
    ----------
    points : ndarray (n,)
        Of the other parameter.
    values : ndarray (n, q + q * q)
        Logarithms of the roots of the diagonal, and what is left of all when they are divided by these.
    """

    points: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, precision: np.ndarray) -> Curvature:
        """Interpolate between precisions (n, q, q) at points (n,)."""
        roots = np.sqrt(np.diagonal(precision, axis1=1, axis2=2))
        rest = precision / (roots[:, :, None] * roots[:, None])
        return cls(points, np.concatenate([np.log(roots), rest.reshape(len(points), -1)], axis=1))

    @classmethod
    def find(cls, quadratic: Quadratic, log_density: LogDensities) -> Curvature | None:
        """Find it by the densities of two data sets; None where these differ, or it is of no use."""
        q = len(quadratic.places)
        if len(quadratic.sampled) != 1 or WORTH * (q + 2) > quadratic.evaluations:
            return None
        points, by_values = chebyshev_points(2 * NUMBER - 1, REACH), replace(quadratic, by_gradients=False)
        at = np.zeros((2, len(points), quadratic.dim))
        at[..., quadratic.sampled] = points[:, None]
        steps = np.broadcast_to(by_values.steps, (2, *by_values.steps.shape))
        values, _, (precision, other) = by_values.by_values(log_density, at, steps, np.arange(2))
        if not np.isfinite(values).all() or not (np.diagonal(precision, axis1=1, axis2=2) > 0).all():
            return None
        found = cls.of(points[::2], precision[::2])
        roots = np.sqrt(np.diagonal(precision, axis1=1, axis2=2))
        apart = np.maximum(np.abs(other - precision), np.abs(found(points) - precision))
        return found if (apart <= CLOSE * roots[:, :, None] * roots[:, None]).all() else None

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Precisions (..., q, q) at z (...); NaN beyond the points."""
        found = chebyshev_weights(z, self.points) @ self.values
        q = int((self.values.shape[1] + 0.25) ** 0.5)
        roots = np.exp(found[..., :q])
        roots[np.abs(z) > self.points[0]] = np.nan
        return found[..., q:].reshape(*z.shape, q, q) * roots[..., :, None] * roots[..., None, :]
