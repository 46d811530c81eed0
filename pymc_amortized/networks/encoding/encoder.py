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

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.encoding.array_encoder import ArrayEncoder, encoder_of
from pymc_amortized.networks.encoding.layout import ArrayLayout, AxisLayout, DataLayout, mask_name
from pymc_amortized.networks.encoding.outside import Outside
from pymc_amortized.networks.encoding.robust import HostModule

__all__ = ["DataEncoder", "Sizes"]

Sizes = Mapping[str, np.ndarray | Tensor]


class DataEncoder(HostModule):
    """Named raw arrays -> named float32 tensors (batch, *shape, channels), standardized."""

    def __init__(self, layout: DataLayout, heavy: Sequence[bool]) -> None:
        super().__init__()
        self.axes = layout.axes
        # A list rather than a ModuleDict: variables may be called "a.b", "values" or "train".
        self.arrays = nn.ModuleList(
            encoder_of(array, layout.groups_of(array.name), tail)
            for array, tail in zip(layout.arrays, heavy, strict=True)
        )

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
        made = cls(layout, [False] * len(layout.arrays))
        for encoder in made._encoders():
            present = _present(encoder.layout, masks)
            encoder.fit(raws[encoder.layout.name], None if present is None else present.numpy())
        return made

    def _encoders(self) -> Iterator[ArrayEncoder]:
        return (array for array in self.arrays if isinstance(array, ArrayEncoder))

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

    def one(self, name: str, values: Tensor) -> Tensor:
        """Encode a single array without axes, (batch, *shape), in the same way."""
        return next(array for array in self._encoders() if array.layout.name == name)(values, None)

    def outside(self, data: Mapping[str, np.ndarray], sizes: Sizes | None = None) -> dict[str, Outside]:
        """Find what lies farthest beyond its simulated range, of each variable in each data set.

        What is missing or beyond a data set's size does not count, nor do statistics.
        """
        layout = self.layout
        masks = _masks(layout, {name: np.shape(values) for name, values in data.items()}, sizes)
        found = {}
        for encoder in self._encoders():
            array = encoder.layout
            if array.statistic or array.frame:
                continue
            present = _present(array, masks)
            ignore = array.missing or any(axis in layout.sized for axis in array.axes)
            seen = None if present is None else present.numpy()
            found[array.name] = encoder.outside(data[array.name], seen, ignore)
        return found

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
