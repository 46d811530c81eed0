"""Linear regression of parameters on statistics: where a network starts."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ridge_regression"]


def ridge_regression(t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression of z (n, dim) on t (n, statistics), the penalty chosen on a held-out fifth.

    Returns weight (dim, statistics), bias (dim,), and the covariance (dim, dim) of what is left
    out.
    """
    held = max(len(t) // 5, 1)
    center_t, center_z = t[held:].mean(0), z[held:].mean(0)
    x, y = t[held:] - center_t, z[held:] - center_z
    values, vectors = torch.linalg.eigh(x.mT @ x)
    target = vectors.mT @ (x.mT @ y)
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        slopes = vectors @ (target / (values.clamp_min(0.0) + penalty * len(x))[:, None])
        residual = z[:held] - center_z - (t[:held] - center_t) @ slopes
        error = float(residual.square().mean(0).log().sum())
        if best is None or error < best[0]:
            best = error, slopes, residual
    assert best is not None
    _, slopes, residual = best
    covariance = residual.mT @ residual / len(residual)
    covariance = covariance + torch.diag(0.01 * covariance.diagonal() + 1e-10)
    return slopes.mT, center_z - center_t @ slopes, covariance
