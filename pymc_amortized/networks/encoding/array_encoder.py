"""One raw array -> what a network sees of it, by robust statistics of simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.networks.encoding.layout import ArrayLayout
from pymc_amortized.networks.encoding.robust import (
    HEAVY,
    LARGEST,
    STATISTICS_SIZE,
    HostModule,
    robust,
    squash,
    standardize,
    thin,
)

__all__ = ["ArrayEncoder"]


class ArrayEncoder(HostModule):
    """One raw array (batch, *shape) -> float32 (batch, *shape, channels)."""

    center: Tensor
    scale: Tensor
    tail_center: Tensor
    tail_scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, layout: ArrayLayout, heavy: bool, groups: int) -> None:
        super().__init__()
        self.layout, self.heavy, self.groups = layout, heavy, groups
        zeros, ones = np.zeros(layout.feature_shape), np.ones(layout.feature_shape)
        for name in ("center", "tail_center", "low"):
            self.register_buffer(name, torch.as_tensor(zeros.copy()))
        for name in ("scale", "tail_scale", "high"):
            self.register_buffer(name, torch.as_tensor(ones.copy()))

    @classmethod
    def fit(cls, layout: ArrayLayout, groups: int, raw: np.ndarray, present: np.ndarray | None) -> ArrayEncoder:
        """Learn the statistics of raw (n, *shape) where present, to be broadcast against it."""
        values, gaps = _by_feature(layout, raw, present)
        if layout.frame or values.size == 0 or (gaps is not None and gaps.all()):
            return cls(replace(layout, categories=max(layout.categories, layout.kind == "categorical")), False, groups)
        if layout.kind == "categorical" and not layout.categories:
            layout = replace(layout, categories=max(int(np.clip(np.nanmax(values), 0, 10_000)) + 1, 1))
        columns = _columns(values, gaps)
        statistics: dict[str, np.ndarray] = {
            "low": _each(columns, layout, lambda v: v.min(axis=0)),
            "high": _each(columns, layout, lambda v: v.max(axis=0)),
        }
        columns = [thin(column, STATISTICS_SIZE // len(columns)) for column in columns]
        heavy = False
        if layout.kind == "categorical" or groups:
            levels = groups or layout.categories
            statistics = {"low": np.zeros(layout.feature_shape), "high": np.full(layout.feature_shape, levels - 1.0)}
        elif layout.kind == "binary":
            frequency = _each(columns, layout, lambda v: v.mean(axis=0))
            # A frequency of 1 % would make the rare value ten scales wide: stop there.
            spread = np.sqrt(np.clip(frequency * (1 - frequency), 0.01, None))
            statistics |= {"center": frequency, "scale": spread}
        else:
            parts = [robust(column) for column in columns]
            statistics["center"], statistics["scale"] = (_stacked([p[i] for p in parts], layout) for i in (0, 1))
            wide = [_wide(c, *p) for c, p in zip(columns, parts, strict=True)]
            heavy = not layout.statistic and bool(np.quantile(np.concatenate(wide), 0.999) > HEAVY)
        encoder = cls(layout, heavy, groups)
        encoder._set(statistics)
        if heavy:
            encoder._fit_tail(columns)
        return encoder

    def _fit_tail(self, columns: Sequence[np.ndarray]) -> None:
        flat = zip(self.center.reshape(-1), self.scale.reshape(-1), strict=True)
        places = [(self.center, self.scale)] if len(columns) == 1 else list(flat)
        parts = [robust(self._tail(torch.as_tensor(c), *p).numpy()) for c, p in zip(columns, places, strict=True)]
        center, scale = (_stacked([p[i] for p in parts], self.layout) for i in (0, 1))
        self._set({"tail_center": center, "tail_scale": np.maximum(scale, 0.1)})

    def _set(self, statistics: Mapping[str, np.ndarray]) -> None:
        for name, value in statistics.items():
            getattr(self, name).copy_(torch.as_tensor(np.asarray(value, dtype=np.float64)))

    @property
    def values(self) -> int:
        """Channels of the values alone."""
        if self.groups:
            return 1
        if self.layout.kind == "categorical":
            return self.layout.categories
        return 2 if self.heavy else 1

    @property
    def channels(self) -> int:
        """Channels of all that is encoded."""
        return self.values + self.layout.missing

    def _tail(self, x: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        """What tells values in the tail apart: logarithmic in the value."""
        if self.layout.kind == "count":
            return torch.sign(x) * torch.log1p(x.abs().clamp_max(LARGEST))
        return torch.asinh(standardize(x, center, scale))

    def _along(self, statistic: Tensor) -> Tensor:
        """A statistic of the plain axes, to be broadcast against (batch, *shape)."""
        layout = self.layout
        return statistic.reshape(
            [1 if axis else length for axis, length in zip(layout.axes, layout.shape, strict=True)]
        )

    def forward(self, raw: Tensor, present: Tensor | None) -> Tensor:
        """Encode, given which entries exist (batch, *shape), None if all do; a frame stays as it is."""
        if self.layout.frame:
            return raw.double()
        x = raw.to(device="cpu", dtype=torch.float64)
        if self.layout.missing:
            observed = ~x.isnan()
            present = observed if present is None else observed & present
        if present is not None:
            x = torch.where(present, x, 0.0)
        out = self._encode(x)
        if present is not None:
            seen = present.float()[..., None]
            out = torch.where(seen > 0, out, 0.0)
            if self.layout.missing:
                out = torch.cat([out, seen.expand(*out.shape[:-1], 1)], -1)
        return out

    def _encode(self, x: Tensor) -> Tensor:
        if self.groups:
            number = x + 1
            return torch.where((number >= 1) & (number <= self.groups), number, 0.0).float()[..., None]
        if self.layout.kind == "categorical":
            return (x[..., None] == torch.arange(self.layout.categories)).float()
        center, scale = self._along(self.center), self._along(self.scale)
        w = standardize(x, center, scale)
        if not self.heavy:
            return squash(w, HEAVY).float()[..., None]
        tail = (self._tail(x, center, scale) - self._along(self.tail_center)) / self._along(self.tail_scale)
        return torch.stack([HEAVY * torch.tanh(w / HEAVY), squash(tail, HEAVY)], -1).float()

    def outside(self, raw: np.ndarray, present: np.ndarray | None, ignore_nan: bool) -> np.ndarray:
        """Worst distance of each data set (n,) beyond the simulated range, in units of its width."""
        # Halves: differences must not overflow.
        low, high = (self._along(bound).numpy() / 2 for bound in (self.low, self.high))
        half = np.asarray(raw, dtype=np.float64) / 2
        width = high - low
        width = np.where(width > 0, width, np.maximum(np.abs(low), 0.5))
        distance = np.maximum(np.maximum(low - half, half - high), 0.0) / width
        if present is not None:
            distance = np.where(present, distance, 0.0)
        distance = np.nan_to_num(distance, nan=0.0 if ignore_nan else np.inf)
        return distance.reshape(len(distance), -1).max(axis=1, initial=0.0)


def _by_feature(
    layout: ArrayLayout, raw: np.ndarray, present: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (n, *features) float64 of everything that shares statistics, and which of them are absent."""
    values = np.asarray(raw, dtype=np.float64)
    gaps = np.isnan(values) if layout.missing else None
    if present is not None:
        beyond = np.broadcast_to(~present, values.shape)
        gaps = beyond if gaps is None else gaps | beyond
    order = [0, *(1 + i for i, a in enumerate(layout.axes) if a), *(1 + i for i, a in enumerate(layout.axes) if not a)]
    values = values.transpose(order).reshape(-1, *layout.feature_shape)
    return values, None if gaps is None else gaps.transpose(order).reshape(values.shape)


def _columns(values: np.ndarray, gaps: np.ndarray | None) -> list[np.ndarray]:
    """All features at once (n, *features) if nothing is absent, else one by one (n_present,)."""
    if gaps is None or not gaps.any():
        return [values]
    flat, absent = values.reshape(len(values), -1), gaps.reshape(len(values), -1)
    columns = [flat[~absent[:, i], i] for i in range(flat.shape[1])]
    return [column if len(column) else np.zeros(1) for column in columns]


def _stacked(parts: Sequence[np.ndarray], layout: ArrayLayout) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.stack(parts).reshape(layout.feature_shape)


def _each(columns: Sequence[np.ndarray], layout: ArrayLayout, statistic: Callable[[np.ndarray], Any]) -> np.ndarray:
    return np.reshape(_stacked([statistic(column) for column in columns], layout), layout.feature_shape)


def _wide(values: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Absolute standardized values, in one dimension."""
    w = (np.clip(values, -LARGEST, LARGEST) - center) / scale
    return np.abs(np.clip(w, -LARGEST, LARGEST)).reshape(-1)
