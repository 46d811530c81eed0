r"""How well reference Gaussian processes explain values at places: their profile likelihoods, as fixed statistics.

For a process with correlations :math:`R`, a share of noise included, the best variance of n values y about a mean is

.. math:: \hat\sigma^2 = (y - \hat\mu)^\top R^{-1} (y - \hat\mu) / n,
    \qquad \hat\mu = 1^\top R^{-1} y / 1^\top R^{-1} 1,

and :math:`\log \hat\sigma^2 + \log \det R / n` over a few :math:`R` is a coarse picture of the likelihood (Mardia &
Marshall 1984, "Maximum likelihood estimation of models for residual covariance in spatial regression").
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KRIGED", "NOISES", "kriging"]

NOISES = (0.05, 0.5)  # variances, beside the process's of 1
KRIGED = 4  # statistics of each process
SMALL = 1e-4  # of variances, beside encoded values of order one
NEAREST = 1e-3  # range of a process over places that are all the same


def kriging(y: Tensor, seen: Tensor, distance: Tensor, ranges: Tensor) -> Tensor:
    """Fits by processes of all ranges and noises, with Matérn's covariance of smoothness 3/2.

    Parameters
    ----------
    y, seen : Tensor
        (batch, rows): values, and 1 where there is one.
    distance : Tensor
        (batch, rows, rows) between places.
    ranges : Tensor
        (ranges,).

    Returns
    -------
    Tensor
        (batch, ranges * noises * 4): log variances about zero and about the mean, the mean, log determinants.
    """
    n = seen.sum(1).clamp_min(1.0)
    given = torch.stack([y * seen, seen], -1)
    # what is not there is far from everything else
    apart = distance + 1e6 * (1 - seen[:, :, None] * seen[:, None, :])
    found = []
    for reach in ranges:
        h = apart * (3**0.5 / reach.clamp_min(NEAREST))
        process = (1 + h) * torch.exp(-h)
        for noise in NOISES:
            process.diagonal(dim1=-2, dim2=-1).fill_(1 + noise)
            factor, _ = torch.linalg.cholesky_ex(process)
            white = torch.linalg.solve_triangular(factor, given, upper=False)
            (zero, cross), (_, ones) = (column.unbind(-1) for column in (white.mT @ white).unbind(-1))
            about = (zero - cross.square() / ones.clamp_min(SMALL)).clamp_min(0.0)
            determinant = 2 * (torch.log(factor.diagonal(dim1=-2, dim2=-1)) * seen).sum(1) / n
            variances = [torch.log(s / n + SMALL) for s in (zero, about)]
            found += [*variances, cross / ones.clamp_min(SMALL), determinant]
    return torch.stack(found, -1)
