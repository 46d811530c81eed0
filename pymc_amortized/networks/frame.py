"""Frames: means and whitening matrices by which parameters are standardized once more in each data set.

A frame (batch, dim + dim * dim) comes with the data, float64: the mean and, flat, the lower-triangular whitening matrix
of standardized parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Context", "unwhiten", "whiten"]


@dataclass(frozen=True)
class Context:
    """What a density is conditioned on.

    Attributes
    ----------
    features : Tensor
        (batch, features), on the network's device.
    frame : Tensor or None
        (batch, dim + dim * dim), float64 on the CPU: mean and whitening matrix of standardized parameters.
    """

    features: Tensor
    frame: Tensor | None


def whiten(z: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Standardize z (..., batch, dim) by frames (batch, dim + dim * dim); with log |du / dz| (batch,)."""
    dim = z.shape[-1]
    whitening = frame[:, dim:].unflatten(-1, (dim, dim))
    u = torch.einsum("bij,...bj->...bi", whitening, z - frame[:, :dim])
    return u, whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def unwhiten(u: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Undo :func:`whiten`, of u (draws, batch, dim); with the same log determinant."""
    dim = u.shape[-1]
    whitening = frame[:, dim:].unflatten(-1, (dim, dim))
    z = torch.linalg.solve_triangular(whitening, u.permute(1, 2, 0), upper=False).permute(2, 0, 1)
    return z + frame[:, :dim], whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
