r"""Conditional densities q(z | context) of standardized parameters.

The built-in one is a Gaussian whose noise is bent by splines:

.. math::

    u = A(c) (z - m(c)), \qquad e = T_c(u), \qquad e \sim N(0, I),

with :math:`A` a lower-triangular factor of the precision (diagonal for many parameters) and
:math:`T` coupling layers of rational-quadratic splines (Dinh et al. 2017, Durkan et al. 2019) that
start as the identity. The Gaussian takes location, width and correlation, however narrow the
posterior is beside the prior; the splines see noise of unit scale and add the shape. What depends
on the context alone is computed once per data set, not once per draw.

A user's own density is any module with the two methods of :class:`ConditionalDensity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pymc_amortized.networks.spline import rational_quadratic, spline_size

__all__ = ["ConditionalDensity", "CouplingSpline", "Spline"]

FULL_FACTOR_UP_TO = 32  # parameters; 528 numbers per data set
CHUNK = 8_192  # draws at once in sampling: intermediate results then stay within the cache


@runtime_checkable
class ConditionalDensity(Protocol):
    """What a density has to offer, a user's own as well (as a ``torch.nn.Module``)."""

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Log densities (..., batch) of z (..., batch, dim), given context (batch, features)."""
        ...

    def sample(self, draws: int, context: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw (draws, batch, dim), with log densities (draws, batch), given (batch, features)."""
        ...


@dataclass(frozen=True)
class Spline:
    """Options of the built-in density.

    Parameters
    ----------
    layers : int, optional
        Number of coupling layers; by default 2 for one or two parameters, 4 for more.
    hidden : int
        Width of the two hidden layers of each.
    bins : int
        Number of bins of each spline.
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
        """The same options with nothing left to choose."""
        return self if self.layers is not None else replace(self, layers=1 if dim == 1 else 2 if dim == 2 else 4)


class _GaussianHead(nn.Module):
    """Mean and precision factor, (batch, dim, dim) or (batch, dim), of contexts."""

    below: Tensor
    eye: Tensor

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.dim, self.full = dim, 1 < dim <= FULL_FACTOR_UP_TO
        self.mean = nn.Linear(features, dim)
        # All dim x dim entries although half are masked: that is faster than scattering a triangle.
        self.factor = nn.Linear(features, dim * dim if self.full else dim)
        self.register_buffer("below", torch.ones(dim, dim).tril(-1))
        self.register_buffer("eye", torch.eye(dim))
        nn.init.zeros_(self.mean.bias)
        nn.init.zeros_(self.factor.bias)
        nn.init.zeros_(self.factor.weight)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, factor, and the log determinant of the factor (batch,)."""
        raw = self.factor(context)
        if self.full:
            raw = raw.unflatten(-1, (self.dim, self.dim))
        # No context may overflow: e^12 is 160,000.
        log_diagonal = 12.0 * torch.tanh((raw.diagonal(dim1=-2, dim2=-1) if self.full else raw) / 12.0)
        factor = log_diagonal.exp()
        if self.full:
            # Columns in units of the diagonal: the entries below it then do not depend on scales.
            factor = (raw * self.below + self.eye) * factor[..., None, :]
        return self.mean(context), factor, log_diagonal.sum(-1)

    def start_at(self, residual_covariance: Tensor, spread: bool = False) -> None:
        """Set the mean to the first features, the precision to that of residuals (dim, dim).

        With ``spread``, residuals are in units that depend on the data: exponentials of the next features.
        """
        with torch.no_grad():
            self.mean.weight.copy_(torch.eye(*self.mean.weight.shape))
            self.mean.bias.zero_()
            covariance = residual_covariance.double().to(self.eye.device)
            if self.full:
                # u = A r is white if A is the inverse of the covariance's lower Cholesky factor.
                factor = torch.linalg.inv(torch.linalg.cholesky(covariance)).tril()
            else:
                factor = torch.diag(covariance.diagonal().rsqrt())
            log_diagonal = factor.diagonal().log().clamp(-8.0, 8.0)
            start = 12.0 * torch.atanh(log_diagonal / 12.0)
            if self.full:
                start = (factor / factor.diagonal()).tril(-1) + torch.diag(start)
            self.factor.bias.copy_(start.flatten())
            self.factor.weight.zero_()
            if spread:
                step = self.dim + 1 if self.full else 1
                self.factor.weight[::step, self.dim : 2 * self.dim] = -torch.eye(self.dim)


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
    """

    permutations: Tensor
    inverses: Tensor

    def __init__(self, dim: int, features: int, options: Spline | None = None) -> None:
        super().__init__()
        self.options = options = (options or Spline()).resolve(dim)
        layers, hidden = options.layers or 0, options.hidden
        self.dim, self.features, self.layers, self.kept = dim, features, layers, dim // 2
        permutations = _alternating_permutations(dim, layers)
        self.register_buffer("permutations", permutations)
        self.register_buffer("inverses", permutations.argsort(-1))
        self.head = _GaussianHead(dim, features)
        size = (dim - self.kept) * spline_size(options.bins)
        self.project = nn.ModuleList(nn.Linear(features, hidden) for _ in range(layers))
        self.enter = nn.ModuleList(nn.Linear(self.kept, hidden, bias=False) for _ in range(layers if self.kept else 0))
        self.middle = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.leave = nn.ModuleList(nn.Linear(hidden, size) for _ in range(layers))
        for last in self.leave:  # start at the identity
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def _project(self, layer: int, context: Tensor) -> Tensor:
        """What contexts (batch, features) add to a layer's first hidden values (hidden, batch)."""
        return _affine(self.project[layer], context.mT)

    def _raw(self, layer: int, kept: Tensor, projected: Tensor) -> Tensor:
        """Spline parameters (3 * bins - 1, moved, draws, batch), given (kept, draws, batch)."""
        h = projected[:, None]
        if self.kept:  # otherwise the splines depend on the context alone, not on the draw
            h = h + self.enter[layer](kept.movedim(0, -1)).movedim(-1, 0)
        shape = h.shape[1:]
        h = _affine(self.middle[layer], torch.relu(h).flatten(1)).relu_()
        return _affine(self.leave[layer], h).view(-1, self.dim - self.kept, *shape)

    def _base_log_prob(self, e: Tensor) -> Tensor:
        """Standard normal log density of (dim, draws, batch): (draws, batch)."""
        return -0.5 * (e * e).sum(0) - 0.5 * self.dim * math.log(2 * math.pi)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Log densities (..., batch) of z (..., batch, dim), given context (batch, features)."""
        z, leading = z.reshape(-1, *z.shape[-2:]), z.shape[:-1]
        if torch.is_grad_enabled() or z.shape[:2].numel() <= CHUNK:
            return self._log_prob(z, context).reshape(leading)
        out = z.new_empty(z.shape[:2])
        for sets in _chunks(len(context), CHUNK):
            for some in _chunks(len(z), max(1, CHUNK // len(context))):
                out[some, sets] = self._log_prob(z[some, sets], context[sets])
        return out.reshape(leading)

    def _log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Log densities (draws, batch) of z (draws, batch, dim)."""
        mean, factor, log_det = self.head(context)
        u = _per_set(factor, z - mean).movedim(-1, 0)
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
        for sets in _chunks(batch, max(1, CHUNK // max(draws, 1))):
            prepared = self._prepare(context[sets])
            for some in _chunks(draws, CHUNK):
                # Parameters first: see rational_quadratic.
                noise = z.new_empty(self.dim, some.stop - some.start, sets.stop - sets.start)
                noise.normal_(generator=generator)
                z[some, sets], log_prob[some, sets] = self._bend(noise, prepared)
        return z, log_prob

    def _prepare(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Mean, inverse factor, log determinant and every layer's projection of contexts."""
        mean, factor, log_det = self.head(context)
        if self.head.full:
            inverse = torch.linalg.solve_triangular(factor, self.head.eye.expand_as(factor), upper=False)
        else:
            inverse = 1 / factor
        return (
            mean,
            inverse,
            log_det,
            [self._project(layer, context) for layer in range(self.layers)],
        )

    def _bend(self, e: Tensor, prepared: tuple[Tensor, Tensor, Tensor, list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Noise (dim, draws, batch) to draws (draws, batch, dim) and log densities."""
        mean, inverse_factor, log_det, projected = prepared
        log_prob = self._base_log_prob(e) + log_det
        for layer in reversed(range(self.layers)):
            kept, moved = e.tensor_split([self.kept])
            raw = self._raw(layer, kept, projected[layer])
            moved, change = rational_quadratic(moved, raw, inverse=True)
            log_prob = log_prob - change.sum(0)
            e = torch.cat([kept, moved])[self.inverses[layer]]
        return mean + _per_set(inverse_factor, e.movedim(0, -1)), log_prob


def _affine(layer: nn.Module, h: Tensor) -> Tensor:
    """A linear layer on columns: (in, n) -> (out, n)."""
    assert isinstance(layer, nn.Linear)
    return torch.addmm(layer.bias[:, None], layer.weight, h)


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


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
