r"""Standardization of the unconstrained parameters.

With :math:`w = (\theta - m) / s`, light tails give :math:`z = w`, heavy ones :math:`z = (\operatorname{asinh}(w) - a) /
b`. Where the right tail of :math:`\theta` is much lighter than the left one, :math:`\theta` is bent before that,

.. math:: \theta \to \log(\exp(\exp(\theta - k)) - 1),

with its median :math:`k`: for the logarithm of a scale whose prior has light tails, small ones stay on a logarithmic
scale, and large ones are on their own. On the logarithmic scale a few draws too far to the right would be scales many
times too large.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.encoding.robust import HEAVY, LARGEST, HostModule, robust, standardize, thin

__all__ = ["ParameterStandardizer"]

STRAIGHT, HIGHEST = 40.0, 600.0  # of what is bent: below, the difference is rounded away; above, exp overflows


class ParameterStandardizer(HostModule):
    """Unconstrained parameters (float64) <-> standardized ones (float32), one by one.

    All maps are monotonic, and have an exact derivative.

    Parameters
    ----------
    dim : int
        Number of unconstrained parameters.
    """

    center: Tensor
    scale: Tensor
    heavy: Tensor
    bent: Tensor
    knee: Tensor
    tail_center: Tensor
    tail_scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        start = {"center": 0.0, "scale": 1.0, "knee": 0.0, "tail_center": 0.0, "tail_scale": 1.0}
        for name, value in (start | {"low": -math.inf, "high": math.inf}).items():
            self.register_buffer(name, torch.full((dim,), value, dtype=torch.float64))
        for name in ("heavy", "bent"):
            self.register_buffer(name, torch.zeros(dim, dtype=torch.bool))

    @classmethod
    def fit(cls, theta: np.ndarray) -> ParameterStandardizer:
        """Learn locations, scales and which tails are heavy from simulated parameters (n, dim)."""
        theta = np.asarray(theta, dtype=np.float64)
        if theta.ndim != 2 or 0 in theta.shape:
            raise ValueError(f"theta has shape {theta.shape}, expected (simulations, parameters), neither 0")
        standardizer = cls(theta.shape[1])
        sample = np.clip(thin(theta), -LARGEST, LARGEST)
        standardizer.knee.copy_(torch.as_tensor(np.median(sample, axis=0)))
        standardizer.bent.copy_(_worth_bending(sample, standardizer.knee))
        sample = standardizer._bend(torch.as_tensor(sample)).numpy()
        center, scale = robust(sample)
        w = np.clip((sample - center) / scale, -LARGEST, LARGEST)
        heavy = (np.quantile(np.abs(w), 0.999, axis=0) > HEAVY) & ~standardizer.bent.numpy()
        tail_center, tail_scale = robust(np.arcsinh(w))
        low, high = theta.min(axis=0), theta.max(axis=0)
        margin = 0.1 * (high - low)  # parameters may lie so far beyond the simulated range
        learned = {"center": center, "scale": scale, "tail_center": tail_center, "tail_scale": tail_scale}
        for name, values in (learned | {"heavy": heavy, "low": low - margin, "high": high + margin}).items():
            getattr(standardizer, name).copy_(torch.as_tensor(values))
        return standardizer

    def of(self, places: Sequence[int] | np.ndarray) -> ParameterStandardizer:
        """Return the standardizer of some of the parameters."""
        part = ParameterStandardizer(len(places))
        for name, values in self.named_buffers():
            getattr(part, name).copy_(values[torch.as_tensor(places)])
        return part

    def linear(self, places: Sequence[int] | np.ndarray) -> ParameterStandardizer:
        """Return one that is linear in some of the parameters, heavy though their tails may be."""
        other, some = copy.deepcopy(self), torch.as_tensor(places, dtype=torch.long)
        other.heavy[some] = False
        back = some[other.bent[some]]  # their center and scale are those of what was bent
        other.bent[back] = False
        other.center[back] = self.knee[back]
        return other

    @property
    def dim(self) -> int:
        """Number of unconstrained parameters."""
        return len(self.center)

    def within(self, theta: Tensor) -> Tensor:
        """Tell which theta (..., dim) lie in the simulated range or little beyond: (...)."""
        return ((theta >= self.low) & (theta <= self.high)).all(-1)

    def _log_slope(self, theta: Tensor, w: Tensor) -> Tensor:
        """Sum over parameters of log |dz / dtheta|: (..., dim) -> (...)."""
        total = theta.new_zeros(theta.shape[:-1]) - torch.log(self.scale).sum()
        if self.heavy.any():
            heavy = w[..., self.heavy]
            tails = -torch.log(self.tail_scale[self.heavy]) - torch.log(torch.hypot(torch.ones_like(heavy), heavy))
            total += tails.sum(-1)
        if self.bent.any():
            total += _log_bend_slope(self._above_knee(theta)).sum(-1)
        return total

    def _above_knee(self, theta: Tensor) -> Tensor:
        """Of parameters that are bent, how far they lie above where they are: (..., bent)."""
        return theta[..., self.bent] - self.knee[self.bent]

    def _bend(self, theta: Tensor) -> Tensor:
        if not self.bent.any():
            return theta
        bent = theta.clone()
        bent[..., self.bent] = bend(self._above_knee(theta))
        return bent

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Standardize.

        Parameters
        ----------
        theta : Tensor
            (..., dim), unconstrained.

        Returns
        -------
        z : Tensor
            (..., dim), float32, on the CPU.
        log_det : Tensor
            (...), float64: log |dz / dtheta|.
        """
        z, log_det = self.exact(theta)
        return z.float(), log_det

    def exact(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Standardize as :meth:`forward` does, with z in float64."""
        theta = theta.to(device="cpu", dtype=torch.float64)
        w = standardize(self._bend(theta), self.center, self.scale)
        z, heavy = w, self.heavy
        if heavy.any():
            z = w.clone()
            z[..., heavy] = (torch.asinh(w[..., heavy]) - self.tail_center[heavy]) / self.tail_scale[heavy]
        # Squares of what is cast to float32 may overflow to a density of zero, never to NaN.
        return z.clamp(-1e30, 1e30), self._log_slope(theta, w)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`: theta (..., dim) float64 and log |dz / dtheta| there (...)."""
        w, heavy = z.to(device="cpu", dtype=torch.float64, copy=True), self.heavy
        # sinh overflows float64 beyond 710.
        if heavy.any():
            stretched = self.tail_center[heavy] + self.tail_scale[heavy] * w[..., heavy]
            w[..., heavy] = torch.sinh(stretched.clamp(-690.0, 690.0))
        theta = (self.center + self.scale * w).clamp(-LARGEST, LARGEST)
        if self.bent.any():
            theta[..., self.bent] = self.knee[self.bent] + unbend(theta[..., self.bent])
        return theta, self._log_slope(theta, w)


def _worth_bending(sample: np.ndarray, knee: Tensor) -> Tensor:
    """Tell for which parameters (n, dim) the right tail is much lighter than the left, and bent is not heavy."""
    low, high = np.quantile(sample, [0.001, 0.999], axis=0)
    # the left one reaches 4 times as far for the logarithm of a half-normal scale, 1.7 times for that of a gamma's
    lopsided = (knee.numpy() - low) > 2.0 * (high - knee.numpy())
    bent = bend(torch.as_tensor(sample) - knee).numpy()
    center, scale = robust(bent)
    light = np.quantile((bent - center) / scale, 0.999, axis=0) < 6.0  # exponential tails reach 5.1
    return torch.as_tensor(lopsided & light)


def bend(x: Tensor) -> Tensor:
    """Map x to itself far to the left, and to exp(x) far to the right."""
    u = x.clamp(-STRAIGHT, HIGHEST).exp()
    return torch.where(x < -STRAIGHT, x, u + torch.log(-torch.expm1(-u)))


def unbend(y: Tensor) -> Tensor:
    """Undo :func:`bend`."""
    return torch.where(y < -STRAIGHT, y, nn.functional.softplus(y.clamp(min=-STRAIGHT), threshold=STRAIGHT).log())


def _log_bend_slope(x: Tensor) -> Tensor:
    """Log of the derivative of :func:`bend`."""
    x = x.clamp(-STRAIGHT, HIGHEST)
    return x - torch.log(-torch.expm1(-x.exp()))
