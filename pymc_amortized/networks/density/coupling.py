r"""The conditional density q(z | context) of standardized parameters that is built in.

It is a Gaussian whose noise is bent by splines:

.. math::

    u = A(c) (z - m(c)), \qquad v = L_c(u), \qquad e = T_c(v), \qquad e \sim N(0, I),

with :math:`A` a lower-triangular factor of the precision (diagonal for many parameters), :math:`L`
locations and scales that follow the levels of a hierarchy, and :math:`T` coupling layers of
rational-quadratic splines (Dinh et al. 2017, Durkan et al. 2019) that start as the identity. The
Gaussian takes location, width and correlation, however narrow the posterior is beside the prior;
the levels take the funnels of hierarchies; the splines see noise of unit scale and add the shape.
What depends on the context alone is computed once per data set, not once per draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.density.gaussian import COMPUTED, GaussianHead, Level, affine
from pymc_amortized.networks.density.protocols import DensityOptions
from pymc_amortized.networks.density.spline import rational_quadratic, spline_size
from pymc_amortized.numerics.blocks import blocks

__all__ = ["CouplingSpline", "Spline"]

Prepared = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]
CHUNK = 8_192  # draws at once in sampling: intermediate results then stay within the cache


@dataclass(frozen=True)
class Spline(DensityOptions):
    """Options of the built-in density.

    Parameters
    ----------
    layers : int, optional
        Number of coupling layers; by default 2 for one or two parameters, 4 for more.
    hidden : int
        Width of the two hidden layers of each.
    bins : int
        Number of bins of each spline.

    Examples
    --------
    Passed on as ``pma.fit_posterior(model, density=pma.Spline(layers=6))``.

    >>> pma.Spline(layers=6)
    Spline(layers=6, hidden=64, bins=8)
    """

    layers: int | None = None
    hidden: int = 64
    bins: int = 8

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 0:
            raise ValueError(f"layers is {self.layers}; it must be at least 0")
        if self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; it must be at least 1")
        if not 2 <= self.bins <= 128:
            raise ValueError(f"bins is {self.bins}; it must lie between 2 and 128")

    def resolve(self, dim: int) -> Spline:
        """The options for so many parameters, with nothing left to choose."""
        return self if self.layers is not None else replace(self, layers=1 if dim == 1 else 2 if dim == 2 else 4)

    def make_density(self, dim: int, features: int, levels: tuple[int, ...]) -> CouplingSpline:
        """Build the density of so many parameters, given so many features."""
        return CouplingSpline(dim, features, self, levels)


class CouplingSpline(nn.Module):
    """A conditional Gaussian bent by coupling layers of rational-quadratic splines.

    Parameters
    ----------
    dim : int
        Number of parameters.
    features : int
        Width of the context.
    options : Spline
        Size of the splines.
    levels : sequence of int, optional
        Level of each parameter in the model's hierarchy; those of lower levels come first, and the location and scale
        of the others depend on them.
    """

    order: Tensor
    back: Tensor
    permutations: Tensor
    inverses: Tensor

    def __init__(
        self, dim: int, features: int, options: Spline | None = None, levels: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.options = options = (options or Spline()).resolve(dim)
        layers, hidden = options.layers or 0, options.hidden
        self.dim, self.features, self.layers, self.kept = dim, features, layers, dim // 2
        with COMPUTED:
            permutations = _alternating_permutations(dim, layers)
            self.register_buffer("permutations", permutations)
            self.register_buffer("inverses", permutations.argsort(-1))
        self.head = GaussianHead(dim, features)
        level_of = tuple(levels if levels is not None else (0,) * dim)
        order = sorted(range(dim), key=level_of.__getitem__)
        self.register_buffer("order", torch.tensor(order, dtype=torch.long))
        self.register_buffer("back", torch.tensor(sorted(range(dim), key=order.__getitem__), dtype=torch.long))
        starts = [i for i in range(1, dim) if level_of[order[i]] != level_of[order[i - 1]]]
        self.levels_given = nn.ModuleList(
            Level(start, stop, features, hidden) for start, stop in pairwise([*starts, dim])
        )
        size = (dim - self.kept) * spline_size(options.bins)
        self.project = nn.ModuleList(nn.Linear(features, hidden) for _ in range(layers))
        self.enter = nn.ModuleList(nn.Linear(self.kept, hidden, bias=False) for _ in range(layers if self.kept else 0))
        self.middle = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.leave = nn.ModuleList(nn.Linear(hidden, size) for _ in range(layers))
        for last in self.leave:  # start at the identity
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def start_at(self, covariance: Tensor, spread: bool = False) -> None:
        """Begin at a normal distribution: see :class:`WithStart`."""
        self.head.start_at(covariance, self.order, spread)

    def normal(self, context: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Mean (batch, dim) and covariance (batch, dim, dim) of where it begins, given context (batch, features)."""
        mean, factor, _, _ = (part.cpu().double() for part in self.head(context))
        root = torch.linalg.inv(factor if factor.ndim == 3 else torch.diag_embed(factor))
        back = self.back.cpu()
        return mean.numpy(), (root @ root.mT)[:, back][:, :, back].numpy()

    def _given(self, reverse: bool = False) -> list[Level]:
        """What lower levels say of higher ones; from the lowest, or from the highest."""
        levels: list[Any] = list(self.levels_given)
        return levels[::-1] if reverse else levels

    def _project(self, layer: int, context: Tensor) -> Tensor:
        """What contexts (batch, features) add to a layer's first hidden values (hidden, batch)."""
        return affine(self.project[layer], context.mT)

    def _raw(self, layer: int, kept: Tensor, projected: Tensor) -> Tensor:
        """Spline parameters (3 * bins - 1, moved, draws, batch), given (kept, draws, batch)."""
        h = projected[:, None]
        if self.kept:  # otherwise the splines depend on the context alone, not on the draw
            h = h + self.enter[layer](kept.movedim(0, -1)).movedim(-1, 0)
        shape = h.shape[1:]
        h = affine(self.middle[layer], torch.relu(h).flatten(1)).relu_()
        return affine(self.leave[layer], h).view(-1, self.dim - self.kept, *shape)

    def _base_log_prob(self, e: Tensor) -> Tensor:
        """Standard normal log density of (dim, draws, batch): (draws, batch)."""
        return -0.5 * (e * e).sum(0) - 0.5 * self.dim * math.log(2 * math.pi)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Log densities (..., batch) of z (..., batch, dim), given context (batch, features)."""
        z, leading = z.reshape(-1, *z.shape[-2:]), z.shape[:-1]
        if torch.is_grad_enabled() or z.shape[:2].numel() <= CHUNK:
            return self._log_prob(z, context).reshape(leading)
        out = z.new_empty(z.shape[:2])
        for sets in blocks(len(context), CHUNK):
            for some in blocks(len(z), max(1, CHUNK // len(context))):
                out[some, sets] = self._log_prob(z[some, sets], context[sets])
        return out.reshape(leading)

    def _log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Log densities (draws, batch) of z (draws, batch, dim)."""
        mean, factor, shift, log_det = self.head(context)
        u = (_per_set(factor, (z - mean)[..., self.order]) + shift).movedim(-1, 0)
        for level in self._given(reverse=True):
            u, change = level(u, level.project(context))
            log_det = log_det + change
        for layer in range(self.layers):
            kept, moved = u[self.permutations[layer]].tensor_split([self.kept])
            moved, change = rational_quadratic(moved, self._raw(layer, kept, self._project(layer, context)))
            u, log_det = torch.cat([kept, moved]), log_det + change.sum(0)
        return self._base_log_prob(u) + log_det

    def sample(self, draws: int, context: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw, with the log density of every draw.

        Parameters
        ----------
        draws : int
            Number of draws per data set.
        context : Tensor
            (batch, features), on the generator's device.
        generator : torch.Generator, optional
            Source of all randomness; torch's global one by default.

        Returns
        -------
        z : Tensor
            (draws, batch, dim).
        log_prob : Tensor
            (draws, batch).
        """
        batch = len(context)
        z = context.new_empty(draws, batch, self.dim)
        log_prob = context.new_empty(draws, batch)
        for sets in blocks(batch, max(1, CHUNK // max(draws, 1))):
            prepared = self._prepare(context[sets])
            for some in blocks(draws, CHUNK):
                # Parameters first: see rational_quadratic.
                noise = z.new_empty(self.dim, some.stop - some.start, sets.stop - sets.start)
                noise.normal_(generator=generator)
                z[some, sets], log_prob[some, sets] = self._bend(noise, prepared)
        return z, log_prob

    def _prepare(self, context: Tensor) -> Prepared:
        """Mean, inverse factor, log determinant and every level's and layer's projection of contexts."""
        mean, factor, shift, log_det = self.head(context)
        if self.head.full:
            inverse = torch.linalg.solve_triangular(factor, self.head.eye.expand_as(factor), upper=False)
        else:
            inverse = 1 / factor
        return (
            mean,
            inverse,
            shift,
            log_det,
            [level.project(context) for level in self._given()],
            [self._project(layer, context) for layer in range(self.layers)],
        )

    def _bend(self, e: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Noise (dim, draws, batch) to draws (draws, batch, dim) and log densities."""
        mean, inverse_factor, shift, log_det, given, projected = prepared
        log_prob = self._base_log_prob(e) + log_det
        for layer in reversed(range(self.layers)):
            kept, moved = e.tensor_split([self.kept])
            raw = self._raw(layer, kept, projected[layer])
            moved, change = rational_quadratic(moved, raw, inverse=True)
            log_prob = log_prob - change.sum(0)
            e = torch.cat([kept, moved])[self.inverses[layer]]
        for level, own in zip(self._given(), given, strict=True):
            e, change = level(e, own, inverse=True)
            log_prob = log_prob + change
        return mean + _per_set(inverse_factor, e.movedim(0, -1) - shift)[..., self.back], log_prob


def _per_set(factor: Tensor, x: Tensor) -> Tensor:
    """Multiply (draws, batch, dim) by each data set's factor (batch, dim, dim) or (batch, dim)."""
    if factor.ndim == 2:
        return x * factor
    return torch.einsum("bij,sbj->sbi", factor, x)


def _alternating_permutations(dim: int, layers: int) -> Tensor:
    """Orders (layers, dim): random, each odd one its predecessor reversed: all get moved."""
    generator = torch.Generator().manual_seed(0)
    orders: list[Tensor] = []
    for layer in range(layers):
        orders.append(orders[-1].flip(0) if layer % 2 else torch.randperm(dim, generator=generator))
    return torch.stack(orders) if orders else torch.zeros(0, dim, dtype=torch.long)
