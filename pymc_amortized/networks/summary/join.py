"""Arrays joined along the axes they share, with what is absent set apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pymc_amortized.networks.encoding.layout import AxisLayout, DataLayout, mask_name

__all__ = ["EncodedArray", "Join", "Rows", "Whole", "trimmed"]


@dataclass(frozen=True)
class EncodedArray:
    """What a summary network has to know of one encoded array (batch, *shape, channels)."""

    name: str
    shape: tuple[int, ...]
    channels: int  # of values, without the one that tells what is present
    axes: tuple[str | None, ...]
    missing: bool = False
    groups: int = 0  # of an index
    given: bool = False  # a covariate
    statistic: bool = False  # of the others

    @property
    def one_hot(self) -> bool:
        """Whether it is an index of few groups; the number of one of more is seen as a number."""
        return 0 < self.groups <= 16

    def width(self, along: Sequence[str] = ()) -> int:
        """Values per entry of the axes it is seen along."""
        lengths = [length for length, axis in zip(self.shape, self.axes, strict=True) if axis not in along]
        return math.prod(lengths) * self.channels


@dataclass(frozen=True)
class Rows:
    """Arrays of a batch, joined.

    Attributes
    ----------
    values : Tensor
        (batch, *axes, channels), 0 where absent.
    weights : Tensor or None
        (batch, *axes, channels or 1): 1 where present; None if all is.
    mask : Tensor or None
        (batch, *axes): 1 for entries that exist; None if all do.
    present : Tensor or None
        (batch, *axes, channels): which values of arrays that may lack some are present.
    whole : Tensor
        (batch, width): what belongs to the data set as a whole.
    """

    values: Tensor
    weights: Tensor | None
    mask: Tensor | None
    present: Tensor | None
    whole: Tensor

    def everything(self, normal: Tensor | None = None) -> Tensor:
        """What the networks of single rows see: (batch, *axes, width)."""
        parts = [self.values] + [part for part in (normal, self.present) if part is not None]
        shape = self.values.shape[:-1]
        whole = self.whole.reshape(shape[0], *[1] * (len(shape) - 1), -1).expand(*shape, -1)
        return torch.cat([*parts, whole], -1)

    @property
    def counts(self) -> Tensor:
        """Entries that exist in each data set: (batch, 1)."""
        if self.mask is None:
            return self.values.new_full((len(self.values), 1), math.prod(self.values.shape[1:-1]))
        return self.mask.flatten(1).sum(1, keepdim=True)


class Whole:
    """What belongs to a data set as a whole: arrays without named axes, and how many entries hidden axes have."""

    def __init__(self, arrays: Sequence[EncodedArray], sized: Sequence[AxisLayout]) -> None:
        self.arrays, self.sized = tuple(arrays), tuple(sized)
        self.width = sum(a.width() + (a.missing and a.width() // a.channels) for a in arrays) + len(sized)

    def __call__(self, encoded: dict[str, Tensor]) -> Tensor:
        """Join to (batch, width)."""
        parts = [encoded[array.name].flatten(1) for array in self.arrays]
        parts += [encoded[mask_name(a.name)].sum(1, keepdim=True).clamp_min(0.5).log() for a in self.sized]
        first = next(iter(encoded.values()))
        return torch.cat(parts, -1) if parts else first.new_zeros(len(first), 0)


class Join:
    """Joins arrays entry by entry along one or more axes; other axes become channels.

    Parameters
    ----------
    arrays : sequence of EncodedArray
        An array that lacks one of the axes is repeated along it.
    axes : sequence of AxisLayout
        The axes.
    layout : DataLayout
        All axes of the data.
    whole : Whole
        What every entry sees.
    """

    def __init__(
        self, arrays: Sequence[EncodedArray], axes: Sequence[AxisLayout], layout: DataLayout, whole: Whole
    ) -> None:
        self.arrays, self.axes, self.layout, self.whole = tuple(arrays), tuple(axes), layout, whole
        self.along = tuple(axis.name for axis in axes)
        self.sizes = [self._width(array) for array in arrays]
        self.channels = sum(self.sizes)
        self.elements = [a.width(self.along) // a.channels for a in arrays]
        self.present = sum(n for n, a in zip(self.elements, arrays, strict=True) if a.missing)
        self.sized = any(axis.sized for axis in axes)
        self.lengths = tuple(axis.length for axis in axes)

    @property
    def varies(self) -> bool:
        """Whether data sets differ in how much there is."""
        return self.sized or self.present > 0

    @property
    def everything(self) -> int:
        """Width of what networks of single rows see, without anything standardized."""
        return self.channels + self.present + self.whole.width

    def _width(self, array: EncodedArray) -> int:
        return array.width(self.along) * (array.groups if array.one_hot else 1)

    def mask(self, encoded: dict[str, Tensor]) -> Tensor | None:
        """Which entries exist: (batch, *axes); None if all do."""
        mask: Tensor | None = None
        for position, axis in enumerate(self.axes):
            if axis.sized:
                one = encoded[mask_name(axis.name)]
                one = one.reshape(len(one), *(-1 if i == position else 1 for i in range(len(self.axes))))
                mask = one if mask is None else mask * one
        if mask is None:
            return None
        lengths = [self._length(axis, encoded) for axis in self.axes]
        return mask.expand(len(mask), *lengths)

    def _length(self, axis: AxisLayout, encoded: dict[str, Tensor]) -> int:
        for array in self.arrays:
            if axis.name in array.axes:
                return encoded[array.name].shape[1 + array.axes.index(axis.name)]
        return axis.length

    def _arranged(self, array: EncodedArray, encoded: dict[str, Tensor], lengths: Sequence[int]) -> Tensor:
        """One array as (batch, *axes, elements, channels)."""
        x = encoded[array.name]
        if array.groups:
            x = _index_channels(x, array)
        for i, axis in enumerate(array.axes):  # padding was cut for the batch: channels need it back
            short = array.shape[i] - x.shape[1 + i]
            if axis not in self.along and short:
                x = torch.nn.functional.pad(x, [0, 0] * (x.ndim - 2 - i) + [0, short])
        own = [array.axes.index(axis) for axis in self.along if axis in array.axes]
        rest = [i for i in range(len(array.axes)) if i not in own]
        x = x.permute(0, *(1 + i for i in own), *(1 + i for i in rest), -1)
        x = x.flatten(1 + len(own), -2) if rest else x[..., None, :]
        for position, axis in enumerate(self.along):
            if axis not in array.axes:
                x = x.unsqueeze(1 + position)
        return x.expand(-1, *lengths, -1, -1)

    def __call__(self, encoded: dict[str, Tensor]) -> Rows:
        """Join."""
        lengths = [self._length(axis, encoded) for axis in self.axes]
        mask = self.mask(encoded)
        values, weights, present = [], [], []
        for array in self.arrays:
            x = self._arranged(array, encoded, lengths)
            seen = x.new_ones(()).expand(*x.shape[:-1], 1)
            if array.missing:
                x, seen = x[..., :-1], x[..., -1:]
                present.append(seen.flatten(-2))
            if mask is not None:
                seen = seen * mask[..., None, None]
                x = torch.where(mask[..., None, None] > 0, x, 0.0)
            values.append(x.flatten(-2))
            if self.present:
                weights.append(seen.expand_as(x).flatten(-2))
        if self.present:
            weight: Tensor | None = torch.cat(weights, -1)
        else:
            weight = None if mask is None else mask[..., None]
        present_all = torch.cat(present, -1) if present else None
        if present_all is not None and mask is not None:
            present_all = present_all * mask[..., None]
        return Rows(torch.cat(values, -1), weight, mask, present_all, self.whole(encoded))


def _index_channels(x: Tensor, array: EncodedArray) -> Tensor:
    """Numbers of groups, counted from 1, as channels for networks that do not sort by them."""
    number, rest = x[..., :1], x[..., 1:]
    if array.one_hot:
        levels = torch.arange(1, array.groups + 1, device=x.device, dtype=x.dtype)
        return torch.cat([(number == levels).to(x.dtype), rest], -1)
    return torch.cat([number / array.groups, rest], -1)


def trimmed(encoded: dict[str, Tensor], arrays: Sequence[EncodedArray], layout: DataLayout) -> dict[str, Tensor]:
    """Cut sized axes to the longest data set of the batch."""
    out = dict(encoded)
    for axis in layout.sized:
        mask = out[mask_name(axis)]
        longest = max(int(mask.sum(1).max()), 1) if len(mask) else mask.shape[1]
        if longest == mask.shape[1]:
            continue
        out[mask_name(axis)] = mask[:, :longest]
        for array in arrays:
            if axis in array.axes:
                out[array.name] = out[array.name].narrow(1 + array.axes.index(axis), 0, longest)
    return out
