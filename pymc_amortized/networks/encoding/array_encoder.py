"""One raw array -> what a network sees of it, by robust statistics of simulations; a class for each kind of data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.networks.encoding.layout import ArrayLayout
from pymc_amortized.networks.encoding.outside import Outside
from pymc_amortized.networks.encoding.robust import HEAVY, LARGEST, HostModule, robust, squash, standardize, thin

__all__ = ["ArrayEncoder", "encoder_of"]


class ArrayEncoder(HostModule):
    """One raw array (batch, *shape) -> float32 (batch, *shape, channels).

    Parameters
    ----------
    layout : ArrayLayout
    heavy : bool
        Whether the tails are heavy; learned by :meth:`fit`.
    """

    center: Tensor
    scale: Tensor
    tail_center: Tensor
    tail_scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, layout: ArrayLayout, heavy: bool = False) -> None:
        super().__init__()
        self.layout, self.heavy = layout, heavy
        for start, names in ((0, ("center", "tail_center", "low")), (1, ("scale", "tail_scale", "high"))):
            for name in names:
                self.register_buffer(name, torch.full(layout.feature_shape, start, dtype=torch.float64))

    def fit(self, raw: np.ndarray, present: np.ndarray | None) -> None:
        """Learn the statistics of raw (n, *shape) where present, to be broadcast against it."""
        values, gaps = _by_feature(self.layout, raw, present)
        if values.size == 0 or (gaps is not None and gaps.all()):
            return
        columns = _columns(values, gaps)
        self._set(low=self._stacked([c.min(axis=0) for c in columns]))
        self._set(high=self._stacked([c.max(axis=0) for c in columns]))
        self._learn([thin(column, len(columns)) for column in columns])

    def _learn(self, columns: Sequence[np.ndarray]) -> None:
        """Learn more than the range: of all features at once (n, *features), or of one after the other (n,)."""
        raise NotImplementedError

    def _encode(self, x: Tensor) -> Tensor:
        """Encode float64 (batch, *shape) to float32 (batch, *shape, values); what is absent is 0."""
        raise NotImplementedError

    def _set(self, **statistics: Any) -> None:
        for name, value in statistics.items():
            getattr(self, name).copy_(torch.as_tensor(np.asarray(value, dtype=np.float64)))

    def _stacked(self, parts: Sequence[Any]) -> np.ndarray:
        return np.reshape(parts[0] if len(parts) == 1 else np.stack(parts), self.layout.feature_shape)

    @property
    def values(self) -> int:
        """Channels of the values alone."""
        return 1

    @property
    def channels(self) -> int:
        """Channels of all that is encoded."""
        return self.values + self.layout.missing

    def _along(self, statistic: Tensor) -> Tensor:
        """A statistic of the plain axes, to be broadcast against (batch, *shape)."""
        layout = self.layout
        return statistic.reshape(
            [1 if axis else length for axis, length in zip(layout.axes, layout.shape, strict=True)]
        )

    def forward(self, raw: Tensor, present: Tensor | None) -> Tensor:
        """Encode, given which entries exist (batch, *shape), None if all do."""
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

    def outside(self, raw: np.ndarray, present: np.ndarray | None, ignore_nan: bool) -> Outside:
        """Find the element of each data set (n, *shape) that is farthest beyond its simulated range."""
        seen = None if present is None else np.broadcast_to(present, np.shape(raw))
        if ignore_nan:
            seen = ~np.isnan(raw) if seen is None else seen & ~np.isnan(raw)
        return Outside.of(raw, self._along(self.low).numpy(), self._along(self.high).numpy(), seen)


class RealEncoder(ArrayEncoder):
    """Real numbers: standardized, with a second channel for the tail where that is heavy."""

    @property
    def values(self) -> int:
        """Channels of the values alone."""
        return 2 if self.heavy else 1

    def _learn(self, columns: Sequence[np.ndarray]) -> None:
        parts = [robust(column) for column in columns]
        self._set(center=self._stacked([p[0] for p in parts]), scale=self._stacked([p[1] for p in parts]))
        wide = np.concatenate([_wide(c, *p) for c, p in zip(columns, parts, strict=True)])
        self.heavy = not self.layout.statistic and bool(np.quantile(wide, 0.999) > HEAVY)
        if self.heavy:
            tails = [self._tail(*map(torch.as_tensor, (c, *p))).numpy() for c, p in zip(columns, parts, strict=True)]
            parts = [robust(tail) for tail in tails]
            self._set(tail_center=self._stacked([p[0] for p in parts]))
            self._set(tail_scale=np.maximum(self._stacked([p[1] for p in parts]), 0.1))

    def _tail(self, x: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        """What tells values in the tail apart: logarithmic in the value."""
        return torch.asinh(standardize(x, center, scale))

    def _encode(self, x: Tensor) -> Tensor:
        center, scale = self._along(self.center), self._along(self.scale)
        w = standardize(x, center, scale)
        if not self.heavy:
            return squash(w, HEAVY).float()[..., None]
        tail = (self._tail(x, center, scale) - self._along(self.tail_center)) / self._along(self.tail_scale)
        return torch.stack([HEAVY * torch.tanh(w / HEAVY), squash(tail, HEAVY)], -1).float()


class CountEncoder(RealEncoder):
    """Whole numbers: the tail is the logarithm of the number itself."""

    def _tail(self, x: Tensor, center: Tensor, scale: Tensor) -> Tensor:
        return torch.sign(x) * torch.log1p(x.abs().clamp_max(LARGEST))


class BinaryEncoder(RealEncoder):
    """0 and 1: standardized by their frequency."""

    def _learn(self, columns: Sequence[np.ndarray]) -> None:
        frequency = self._stacked([c.mean(axis=0) for c in columns])
        # A frequency of 1 % would make the rare value ten scales wide: stop there.
        self._set(center=frequency, scale=np.sqrt(np.clip(frequency * (1 - frequency), 0.01, None)))


class CategoricalEncoder(ArrayEncoder):
    """Codes of categories: a channel for each, of which there are as many as in the simulations unless said."""

    @property
    def values(self) -> int:
        """Channels of the values alone."""
        return self.layout.categories

    def fit(self, raw: np.ndarray, present: np.ndarray | None) -> None:
        """Learn the categories of raw (n, *shape) where present; at least one."""
        super().fit(raw, present)
        self.layout = replace(self.layout, categories=max(self.layout.categories, 1))

    def _learn(self, columns: Sequence[np.ndarray]) -> None:
        categories = self.layout.categories or int(self.high.clamp(0, 10_000).max()) + 1
        self.layout = replace(self.layout, categories=categories)
        self._set(low=0, high=categories - 1)

    def _encode(self, x: Tensor) -> Tensor:
        return (x[..., None] == torch.arange(self.layout.categories)).float()


class GroupEncoder(ArrayEncoder):
    """An index of groups: the number of the group, counted from 1, and 0 for an unknown one."""

    def __init__(self, layout: ArrayLayout, groups: int) -> None:
        super().__init__(layout)
        self.groups = groups

    def _learn(self, columns: Sequence[np.ndarray]) -> None:
        self._set(low=0, high=self.groups - 1)

    def _encode(self, x: Tensor) -> Tensor:
        number = x + 1
        return torch.where((number >= 1) & (number <= self.groups), number, 0.0).float()[..., None]


class FrameEncoder(ArrayEncoder):
    """A mean and a whitening matrix, which stay as they are."""

    def fit(self, raw: np.ndarray, present: np.ndarray | None) -> None:
        """Learn nothing."""

    def forward(self, raw: Tensor, present: Tensor | None) -> Tensor:
        """Return the same in float64."""
        return raw.double()


ENCODERS: dict[str, type[ArrayEncoder]] = {
    "real": RealEncoder,
    "count": CountEncoder,
    "binary": BinaryEncoder,
    "categorical": CategoricalEncoder,
}
"""By kind of data."""


def encoder_of(layout: ArrayLayout, groups: int, heavy: bool = False) -> ArrayEncoder:
    """Make the encoder of an array, before its statistics are learned or loaded.

    Parameters
    ----------
    layout : ArrayLayout
    groups : int
        How many groups the array tells apart, as an index; 0 for any other.
    heavy : bool
        Whether its tails are heavy.
    """
    if layout.frame:
        return FrameEncoder(layout)
    return GroupEncoder(layout, groups) if groups else ENCODERS[layout.kind](layout, heavy)


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


def _wide(values: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Absolute standardized values, in one dimension."""
    w = (np.clip(values, -LARGEST, LARGEST) - center) / scale
    return np.abs(np.clip(w, -LARGEST, LARGEST)).reshape(-1)
