r"""From named raw arrays to the numbers a network sees.

Every statistic comes from simulations and is robust. With :math:`w = (x - m)/s`,

- light tails give one channel, :math:`w` up to a limit and logarithmic beyond it;
- heavy tails give two, :math:`10 \tanh(w / 10)` for the bulk and a standardized
  :math:`\operatorname{asinh} w` (for counts: :math:`\log(1 + x)`) for the tail;
- binary values are standardized by their frequency, categories are one-hot.

Statistics are shared by all entries of a named axis and kept for each position of a plain one. What
is absent, because it is missing or beyond a data set's size, counts in no statistic and is encoded
as exactly 0; arrays that may lack values have one more channel, last, that tells which are present.
An index of groups is encoded as the number of the group, counted from 1.

Priors can explode (an autoregression with free coefficients reaches 1e293), so everything is
computed in float64 and clamped before it is squashed and cast to float32: no finite value gives an
infinite one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.layout import ArrayLayout, AxisLayout, DataLayout
from pymc_amortized.networks.statistics import (
    HEAVY,
    LARGEST,
    STATISTICS_SIZE,
    HostModule,
    robust,
    squash,
    standardize,
    thin,
)

__all__ = ["DataEncoder", "mask_name"]

Sizes = Mapping[str, np.ndarray | Tensor]


def mask_name(axis: str) -> str:
    """Name under which the encoded data hold the mask of a sized axis."""
    return f"mask:{axis}"


class _ArrayEncoder(HostModule):
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
    def fit(cls, layout: ArrayLayout, groups: int, raw: np.ndarray, present: np.ndarray | None) -> _ArrayEncoder:
        values, gaps = _by_feature(layout, raw, present)
        if values.size == 0 or (gaps is not None and gaps.all()):
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
            heavy = bool(
                np.quantile(np.concatenate([_wide(c, *p) for c, p in zip(columns, parts, strict=True)]), 0.999) > HEAVY
            )
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

    def outside(self, raw: np.ndarray, present: np.ndarray | None, ignore_nan: bool) -> float:
        # Halves: differences must not overflow.
        low, high = (self._along(bound).numpy() / 2 for bound in (self.low, self.high))
        half = np.asarray(raw, dtype=np.float64) / 2
        width = high - low
        width = np.where(width > 0, width, np.maximum(np.abs(low), 0.5))
        distance = np.maximum(np.maximum(low - half, half - high), 0.0) / width
        if present is not None:
            distance = np.where(present, distance, 0.0)
        return float(np.nan_to_num(distance, nan=0.0 if ignore_nan else np.inf).max(initial=0.0))


class DataEncoder(HostModule):
    """Named raw arrays -> named float32 tensors (batch, *shape, channels), standardized."""

    def __init__(self, layout: DataLayout, heavy: Sequence[bool]) -> None:
        super().__init__()
        pairs = zip(layout.arrays, heavy, strict=True)
        self._assemble(layout.axes, [_ArrayEncoder(a, tail, layout.groups_of(a.name)) for a, tail in pairs])

    def _assemble(self, axes: tuple[AxisLayout, ...], arrays: Sequence[_ArrayEncoder]) -> None:
        # A list rather than a ModuleDict: variables may be called "a.b", "values" or "train".
        self.axes, self.arrays = axes, nn.ModuleList(arrays)

    @classmethod
    def fit(cls, layout: DataLayout, data: Mapping[str, np.ndarray], sizes: Sizes | None = None) -> DataEncoder:
        """Learn the statistics.

        Parameters
        ----------
        layout : DataLayout
            The arrays and their axes.
        data : mapping of str to ndarray
            Simulated values, each (n, *shape).
        sizes : mapping of str to ndarray, optional
            For sized axes, how many entries each data set has, (n,); by default all.
        """
        if missing := [array.name for array in layout.arrays if array.name not in data]:
            raise KeyError(f"data lack {missing}; given: {sorted(data)}")
        raws = {array.name: np.asarray(data[array.name]) for array in layout.arrays}
        for array in layout.arrays:
            _check_shape(array, layout, raws[array.name].shape[1:])
        masks = _masks(layout, {name: raw.shape for name, raw in raws.items()}, sizes)
        encoders = []
        for array in layout.arrays:
            present = _present(array, masks)
            seen = None if present is None else present.numpy()
            encoders.append(_ArrayEncoder.fit(array, layout.groups_of(array.name), raws[array.name], seen))
        encoder = cls(DataLayout(()), [])
        encoder._assemble(layout.axes, encoders)
        return encoder

    def _encoders(self) -> Iterator[_ArrayEncoder]:
        return (array for array in self.arrays if isinstance(array, _ArrayEncoder))

    @property
    def layout(self) -> DataLayout:
        """The layout, numbers of categories filled in."""
        return DataLayout(tuple(array.layout for array in self._encoders()), self.axes)

    def channels(self, name: str) -> int:
        """Width of the last axis of an encoded variable."""
        return next(array.channels for array in self._encoders() if array.layout.name == name)

    def forward(self, data: Mapping[str, Tensor], sizes: Sizes | None = None) -> dict[str, Tensor]:
        """Encode (batch, *shape) to (batch, *shape, channels), float32 on the CPU, with masks of sized axes."""
        masks = _masks(self.layout, {name: tuple(values.shape) for name, values in data.items()}, sizes)
        encoded = {
            array.layout.name: array(data[array.layout.name], _present(array.layout, masks))
            for array in self._encoders()
        }
        return encoded | {mask_name(axis): mask.float() for axis, mask in masks.items()}

    def outside(self, data: Mapping[str, np.ndarray], sizes: Sizes | None = None) -> dict[str, float]:
        """Worst distance per variable beyond the simulated range, in its widths; 0 is inside.

        What is missing or beyond a data set's size does not count.
        """
        layout = self.layout
        masks = _masks(layout, {name: np.shape(values) for name, values in data.items()}, sizes)
        distances = {}
        for encoder in self._encoders():
            array = encoder.layout
            present = _present(array, masks)
            ignore = array.missing or any(axis in layout.sized for axis in array.axes)
            seen = None if present is None else present.numpy()
            distances[array.name] = encoder.outside(data[array.name], seen, ignore)
        return distances

    def description(self) -> dict[str, Any]:
        """All that is not a buffer, as JSON."""
        return self.layout.description() | {"heavy": [array.heavy for array in self._encoders()]}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> DataEncoder:
        """Build the encoder whose statistics then come by ``load_state_dict``."""
        arrays = tuple(ArrayLayout(**{**a, "axes": tuple(a["axes"])}) for a in description["arrays"])
        axes = tuple(AxisLayout(**axis) for axis in description["axes"])
        return cls(DataLayout(arrays, axes), [bool(tail) for tail in description["heavy"]])


def _check_shape(array: ArrayLayout, layout: DataLayout, shape: tuple[int, ...]) -> None:
    """Sized axes may come padded to less than the largest length."""
    sized = [axis in layout.sized for axis in array.axes]
    fits = len(shape) == len(array.shape) and all(
        given <= length if may else given == length
        for given, length, may in zip(shape, array.shape, sized, strict=True)
    )
    if not fits:
        raise ValueError(f"{array.name!r} has shape {shape} per data set, expected {array.shape}")


def _masks(layout: DataLayout, shapes: Mapping[str, tuple[int, ...]], sizes: Sizes | None) -> dict[str, Tensor]:
    """Which entries of each sized axis exist: (batch, length), bool."""
    masks = {}
    for axis in layout.sized:
        carrier = next(array for array in layout.arrays if axis in array.axes)
        shape = shapes[carrier.name]
        length = shape[1 + carrier.axes.index(axis)]
        if sizes is None or axis not in sizes:
            masks[axis] = torch.ones(shape[0], length, dtype=torch.bool)
        else:
            size = torch.as_tensor(np.asarray(sizes[axis]), dtype=torch.long)
            masks[axis] = torch.arange(length) < size[:, None]
    return masks


def _present(array: ArrayLayout, masks: Mapping[str, Tensor]) -> Tensor | None:
    """Which entries of an array exist, to be broadcast against (batch, *shape); None if all do."""
    present: Tensor | None = None
    for position, axis in enumerate(array.axes):
        if axis is not None and axis in masks:
            mask = masks[axis]
            mask = mask.reshape(len(mask), *(-1 if i == position else 1 for i in range(len(array.axes))))
            present = mask if present is None else present & mask
    return present


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
