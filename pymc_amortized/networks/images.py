"""Parameters that symmetries map to others: a density of one of all images, and draws scattered over all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.numerics.sampling.symmetry import Symmetries

__all__ = ["averaged", "describe_symmetries", "read_symmetries", "scattered"]


def averaged(symmetries: Symmetries | None, log_prob: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Log of the mean density (...) at all images of theta (..., dim): that of draws which are scattered."""
    if symmetries is None:
        return log_prob(theta)
    images = symmetries.images(theta.numpy())
    return torch.stack([log_prob(torch.from_numpy(image)) for image in images]).logsumexp(0) - np.log(len(images))


def scattered(symmetries: Symmetries | None, theta: Tensor, generator: torch.Generator | None) -> Tensor:
    """Map each of theta (..., dim) to one of its images."""
    if symmetries is None:
        return theta
    device = "cpu" if generator is None else generator.device
    which = torch.randint(len(symmetries), theta.shape[:-1], generator=generator, device=device)
    return torch.from_numpy(symmetries.moved(theta.numpy(), which.cpu().numpy()))


def describe_symmetries(symmetries: Symmetries | None) -> Any:
    """As JSON."""
    if symmetries is None:
        return None
    return {"matrices": symmetries.matrices.astype(int).tolist(), "toward": symmetries.toward.tolist()}


def read_symmetries(given: Any, dim: int) -> Symmetries | None:
    """Read what :func:`describe_symmetries` gave, which may be anything.

    Raises
    ------
    ValueError
        When these are no maps of so many parameters.
    """
    if given is None:
        return None
    matrices, toward = np.asarray(given["matrices"], dtype=float), np.asarray(given["toward"], dtype=float)
    maps = matrices.ndim == 3 and matrices.shape[1:] == (dim, dim) and toward.shape == (dim,)
    if not maps or not np.isin(matrices, (-1, 0, 1)).all() or not np.isfinite(toward).all():
        raise ValueError(f"symmetries are no maps of {dim} parameters")
    return Symmetries(matrices, toward)
