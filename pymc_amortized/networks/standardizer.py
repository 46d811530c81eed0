"""Standardization of the unconstrained parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.networks.statistics import (
    HEAVY,
    LARGEST,
    STATISTICS_SIZE,
    HostModule,
    robust,
    standardize,
    thin,
)

__all__ = ["ParameterStandardizer"]

MARGIN = 0.1  # of the simulated range, by which parameters may lie beyond it


class ParameterStandardizer(HostModule):
    r"""Unconstrained parameters (float64) <-> standardized ones (float32), one by one.

    With :math:`w = (\theta - m) / s`, light tails give :math:`z = w`, heavy ones :math:`z =
    (\operatorname{asinh}(w) - a) / b`. Both are monotonic, and both have an exact derivative.

    Parameters
    ----------
    dim : int
        Number of unconstrained parameters.
    """

    center: Tensor
    scale: Tensor
    heavy: Tensor
    tail_center: Tensor
    tail_scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name, value in (
            ("center", 0.0),
            ("scale", 1.0),
            ("tail_center", 0.0),
            ("tail_scale", 1.0),
            ("low", -math.inf),
            ("high", math.inf),
        ):
            self.register_buffer(name, torch.full((dim,), value, dtype=torch.float64))
        self.register_buffer("heavy", torch.zeros(dim, dtype=torch.bool))

    @classmethod
    def fit(cls, theta: np.ndarray) -> ParameterStandardizer:
        """Learn locations, scales and which tails are heavy from simulated parameters (n, dim)."""
        theta = np.asarray(theta, dtype=np.float64)
        if theta.ndim != 2 or 0 in theta.shape:
            raise ValueError(f"theta has shape {theta.shape}, expected (simulations, parameters), neither 0")
        standardizer = cls(theta.shape[1])
        sample = thin(theta, STATISTICS_SIZE)
        center, scale = robust(sample)
        w = np.clip((np.clip(sample, -LARGEST, LARGEST) - center) / scale, -LARGEST, LARGEST)
        heavy = np.quantile(np.abs(w), 0.999, axis=0) > HEAVY
        tail_center, tail_scale = robust(np.arcsinh(w))
        standardizer.center.copy_(torch.as_tensor(center))
        standardizer.scale.copy_(torch.as_tensor(scale))
        standardizer.heavy.copy_(torch.as_tensor(heavy))
        standardizer.tail_center.copy_(torch.as_tensor(tail_center))
        standardizer.tail_scale.copy_(torch.as_tensor(tail_scale))
        low, high = theta.min(axis=0), theta.max(axis=0)
        standardizer.low.copy_(torch.as_tensor(low - MARGIN * (high - low)))
        standardizer.high.copy_(torch.as_tensor(high + MARGIN * (high - low)))
        return standardizer

    def of(self, places: Sequence[int] | np.ndarray) -> ParameterStandardizer:
        """Return that of some of the parameters."""
        part = ParameterStandardizer(len(places))
        for name, values in self.named_buffers():
            getattr(part, name).copy_(values[torch.as_tensor(places)])
        return part

    def linear(self, places: Sequence[int] | np.ndarray) -> ParameterStandardizer:
        """Return one that is linear in some of the parameters, heavy though their tails may be."""
        other = copy.deepcopy(self)
        other.heavy[torch.as_tensor(places)] = False
        return other

    @property
    def dim(self) -> int:
        """Number of unconstrained parameters."""
        return len(self.center)

    def within(self, theta: Tensor) -> Tensor:
        """Tell which theta (..., dim) lie in the simulated range or little beyond: (...)."""
        return ((theta >= self.low) & (theta <= self.high)).all(-1)

    def _log_slope(self, w: Tensor) -> Tensor:
        """Sum over parameters of log |dz / dtheta|: (..., dim) -> (...)."""
        heavy = w[..., self.heavy]
        tails = -torch.log(self.tail_scale[self.heavy]) - torch.log(torch.hypot(torch.ones_like(heavy), heavy))
        return tails.sum(-1) - torch.log(self.scale).sum()

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
        """The same with z in float64."""
        w = standardize(theta.to(device="cpu", dtype=torch.float64), self.center, self.scale)
        z, heavy = w.clone(), self.heavy
        z[..., heavy] = (torch.asinh(w[..., heavy]) - self.tail_center[heavy]) / self.tail_scale[heavy]
        # Squares of what is cast to float32 may overflow to a density of zero, never to NaN.
        return z.clamp(-1e30, 1e30), self._log_slope(w)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`: theta (..., dim) float64 and log |dz / dtheta| there (...)."""
        w, heavy = z.to(device="cpu", dtype=torch.float64, copy=True), self.heavy
        # sinh overflows float64 beyond 710.
        stretched = self.tail_center[heavy] + self.tail_scale[heavy] * w[..., heavy]
        w[..., heavy] = torch.sinh(stretched.clamp(-690.0, 690.0))
        return (self.center + self.scale * w).clamp(-LARGEST, LARGEST), self._log_slope(w)
