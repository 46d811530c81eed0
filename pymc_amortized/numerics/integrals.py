"""Integrals of exponentials of quadratic functions, for many of them at once."""

import math

import numpy as np

LOG_2PI = math.log(2 * math.pi)


def cholesky_factors(precision: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky factors of what is positive definite, and which are; others become the identity."""
    eye = np.eye(precision.shape[-1])
    precision = np.where(usable[..., None, None], precision, eye)
    try:
        return np.linalg.cholesky(precision), usable
    except np.linalg.LinAlgError:  # one by one: what is usable must not depend on its neighbours
        each = precision.reshape(-1, *eye.shape)
        usable = usable & np.array([_has_cholesky_factor(p) for p in each]).reshape(usable.shape)
        return np.linalg.cholesky(np.where(usable[..., None, None], precision, eye)), usable


def _has_cholesky_factor(matrix: np.ndarray) -> bool:
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def log_integral(whitened: np.ndarray, root: np.ndarray) -> np.ndarray:
    r"""Log integral of :math:`\exp(g^\top y - y^\top P y / 2)`.

    Parameters
    ----------
    whitened : ndarray (..., q)
        :math:`L^{-1} g`.
    root : ndarray (..., q, q)
        :math:`L`, the Cholesky factor of P.
    """
    log_det = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
    return 0.5 * np.square(whitened).sum(axis=-1) - log_det + 0.5 * whitened.shape[-1] * LOG_2PI


def log_normal(noise: np.ndarray, root: np.ndarray, log_det: np.ndarray | None = None) -> np.ndarray:
    """Log density of a normal distribution where standard noise (..., q) leads by the root of its covariance.

    The log determinant (...) of the root is computed where it is not known.
    """
    if log_det is None:
        log_det = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
    return -0.5 * np.square(noise).sum(axis=-1) - log_det - 0.5 * noise.shape[-1] * LOG_2PI


def banded_log_integral(slope: np.ndarray, curvature: np.ndarray, counts: np.ndarray) -> np.ndarray:
    r"""Log integral of :math:`\exp(g^\top y - y^\top H y / 2)` over y, for banded positive definite H.

    Parameters
    ----------
    slope : ndarray (size, ...)
        g; 0 beyond the values of a density that has fewer.
    curvature : ndarray (size, band + 1, ...)
        ``curvature[a, j]`` is H[a, a - j]; beyond the values of a density the diagonal is 1, the rest 0.
    counts : ndarray (...)
        How many values there are.

    Returns
    -------
    ndarray (...)
        NaN where H is not positive definite.
    """
    size, width = curvature.shape[:2]
    below, diagonal = np.zeros_like(curvature), np.ones_like(slope)  # of H = L D L'
    y = slope.copy()
    with np.errstate(all="ignore"):
        for a in range(size):
            diagonal[a] = curvature[a, 0]
            for j in range(min(width - 1, a), 0, -1):
                value = curvature[a, j].copy()
                for i in range(j + 1, min(width - 1, a) + 1):
                    value -= below[a, i] * diagonal[a - i] * below[a - j, i - j]
                below[a, j] = value / diagonal[a - j]
                diagonal[a] -= below[a, j] * value
                y[a] -= below[a, j] * y[a - j]
        total = 0.5 * (np.square(y) / diagonal - np.log(diagonal)).sum(axis=0) + 0.5 * LOG_2PI * counts
    return np.where((diagonal > 0).all(axis=0), total, np.nan)
