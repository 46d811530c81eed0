"""Robust statistics of simulations, and arithmetic that no finite value can overflow.

A location is a median, a scale is an interquartile range over 1.349 (a standard deviation where
the values are normal). Statistics stay on the CPU in float64, whatever device the networks live
on: some accelerators have no float64, and the simulations come from the CPU anyway.
"""

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["HEAVY", "LARGEST", "HostModule", "robust", "squash", "standardize", "thin"]

# 99.9 % of normal values lie within 3.3 scales, of exponential ones within 8.5, of t(3) within 13.
HEAVY = 10.0
LARGEST = 1e300  # leaves room for the arithmetic of float64


class HostModule(nn.Module):
    """A module of float64 statistics that stays on the CPU when its parent moves or is cast."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return self


def squash(w: Tensor, limit: float) -> Tensor:
    """Identity up to ``limit`` in absolute value, logarithmic beyond; the same shape."""
    inside = w.clamp(-limit, limit)
    excess = w - inside
    if not w.requires_grad and w.device.type == "cpu" and not excess.any():
        return inside  # nearly always: logarithms are what encoding would spend its time on
    return inside + torch.sign(excess) * torch.log1p(excess.abs())


def standardize(x: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    """``(x - center) / scale``, finite for every finite ``x``."""
    return ((x.clamp(-LARGEST, LARGEST) - center) / scale).clamp(-LARGEST, LARGEST)


def robust(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and scale of (n, *features) along the first axis; each (*features).

    Where the quartiles coincide (zero inflation), wider quantiles decide, then the standard
    deviation, and a constant has scale 1.
    """
    values = np.clip(values, -LARGEST, LARGEST)
    # Pairs of tail probabilities and their distance under a normal law.
    pairs = ((0.25, 0.75, 1.349), (0.05, 0.95, 3.290), (0.005, 0.995, 5.152))
    levels = [0.5, *(level for low, high, _ in pairs for level in (low, high))]
    median, *quantiles = np.quantile(values / 4, levels, axis=0) * 4  # interpolation must not overflow
    scale = np.zeros_like(median)
    floor = 1e-9 * np.abs(median) + 1e-290  # differences below are rounding, not spread
    for index, (_, _, distance) in enumerate(pairs):
        spread = quantiles[2 * index + 1] / distance - quantiles[2 * index] / distance
        scale = np.where(scale > floor, scale, spread)
    largest = np.maximum(np.abs(values).max(axis=0), 1e-290)
    scale = np.where(scale > floor, scale, (values / largest).std(axis=0) * largest)
    return median, np.where(scale > floor, scale, 1.0)


def thin(values: np.ndarray, parts: int = 1) -> np.ndarray:
    """Every k-th simulation of (n, ...), one of so many parts of an array, for quantiles of it.

    About two million values remain of the array: their quantiles take a fraction of a second.
    """
    step = max(1, values.size // (2_000_000 // parts))
    return values[:: min(step, max(1, len(values) // 200))]
