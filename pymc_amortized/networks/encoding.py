r"""From named raw arrays to the numbers a network sees.

Every statistic comes from simulations and is robust. With :math:`w = (x - m)/s`,

- light tails give one channel, :math:`w` up to a limit and logarithmic beyond it;
- heavy tails give two, :math:`10 \tanh(w / 10)` for the bulk and a standardized
  :math:`\operatorname{asinh} w` (for counts: :math:`\log(1 + x)`) for the tail;
- binary values are standardized by their frequency, categories are one-hot.

Priors can explode (an autoregression with free coefficients reaches 1e293), so everything is
computed in float64 and clamped before it is squashed and cast to float32: no finite value gives an
infinite one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

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

__all__ = ["ArrayLayout", "DataEncoder", "Kind"]

Kind = Literal["real", "count", "binary", "categorical"]


@dataclass(frozen=True)
class ArrayLayout:
    """What the encoder has to know of one data array.

    Parameters
    ----------
    name : str
        Name of the variable.
    shape : tuple of int
        Shape in one data set.
    kind : {"real", "count", "binary", "categorical"}
        What the values are.
    rows : bool
        True if the leading axis is the exchangeable axis that all such arrays share.
    categories : int
        Number of levels, ``0 .. categories - 1``, of a categorical array; 0 takes it from the
        simulations.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    rows: bool = False
    categories: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(length) for length in self.shape))
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind of {self.name!r} is {self.kind!r}; allowed: {', '.join(get_args(Kind))}")
        if self.rows and not self.shape:
            raise ValueError(f"{self.name!r} is a scalar: it has no axis of rows")

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape over which statistics are kept: rows are exchangeable and share them."""
        return self.shape[1:] if self.rows else self.shape


class _ArrayEncoder(HostModule):
    """One raw array (batch, *shape) -> float32 (batch, *shape, channels)."""

    center: Tensor
    scale: Tensor
    tail_center: Tensor
    tail_scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, layout: ArrayLayout, heavy: bool) -> None:
        super().__init__()
        self.layout, self.heavy = layout, heavy
        zeros, ones = np.zeros(layout.feature_shape), np.ones(layout.feature_shape)
        for name in ("center", "tail_center", "low"):
            self.register_buffer(name, torch.as_tensor(zeros.copy()))
        for name in ("scale", "tail_scale", "high"):
            self.register_buffer(name, torch.as_tensor(ones.copy()))

    @classmethod
    def fit(cls, layout: ArrayLayout, raw: np.ndarray) -> _ArrayEncoder:
        if raw.shape[1:] != layout.shape:
            raise ValueError(f"{layout.name!r} has shape {raw.shape[1:]} per data set, expected {layout.shape}")
        values = np.asarray(raw, dtype=np.float64)
        if layout.rows:
            values = values.reshape(-1, *layout.feature_shape)
        if values.size == 0:
            return cls(replace(layout, categories=max(layout.categories, 1)), False)
        if layout.kind == "categorical" and not layout.categories:
            layout = replace(layout, categories=max(int(np.clip(values.max(), 0, 10_000)) + 1, 1))
        sample = thin(values, STATISTICS_SIZE)
        statistics: dict[str, np.ndarray] = {"low": values.min(axis=0), "high": values.max(axis=0)}
        heavy = False
        if layout.kind == "binary":
            frequency = sample.mean(axis=0)
            # A frequency of 1 % would make the rare value ten scales wide: stop there.
            spread = np.sqrt(np.clip(frequency * (1 - frequency), 0.01, None))
            statistics |= {"center": frequency, "scale": spread}
        elif layout.kind == "categorical":
            statistics |= {
                "low": np.zeros_like(values[0]),
                "high": np.full_like(values[0], layout.categories - 1),
            }
        else:
            center, scale = robust(sample)
            w = np.abs(np.clip((np.clip(sample, -LARGEST, LARGEST) - center) / scale, -LARGEST, LARGEST))
            heavy = bool(np.quantile(w, 0.999) > HEAVY)
            statistics |= {"center": center, "scale": scale}
        encoder = cls(layout, heavy)
        encoder._set(statistics)
        if heavy:
            tail_center, tail_scale = robust(encoder._tail(torch.as_tensor(sample)).numpy())
            encoder._set({"tail_center": tail_center, "tail_scale": np.maximum(tail_scale, 0.1)})
        return encoder

    def _set(self, statistics: Mapping[str, np.ndarray]) -> None:
        for name, value in statistics.items():
            getattr(self, name).copy_(torch.as_tensor(np.asarray(value, dtype=np.float64)))

    @property
    def channels(self) -> int:
        if self.layout.kind == "categorical":
            return self.layout.categories
        return 2 if self.heavy else 1

    def _tail(self, x: Tensor) -> Tensor:
        """What tells values in the tail apart: logarithmic in the value."""
        if self.layout.kind == "count":
            return torch.sign(x) * torch.log1p(x.abs().clamp_max(LARGEST))
        return torch.asinh(standardize(x, self.center, self.scale))

    def forward(self, raw: Tensor) -> Tensor:
        x = raw.to(device="cpu", dtype=torch.float64)
        if self.layout.kind == "categorical":
            return (x[..., None] == torch.arange(self.layout.categories)).float()
        w = standardize(x, self.center, self.scale)
        if not self.heavy:
            return squash(w, HEAVY).float()[..., None]
        tail = squash((self._tail(x) - self.tail_center) / self.tail_scale, HEAVY)
        return torch.stack([HEAVY * torch.tanh(w / HEAVY), tail], -1).float()

    def outside(self, raw: np.ndarray) -> float:
        low, high = (
            self.low.numpy() / 2,
            self.high.numpy() / 2,
        )  # halves: differences must not overflow
        half = np.asarray(raw, dtype=np.float64) / 2
        width = high - low
        width = np.where(width > 0, width, np.maximum(np.abs(low), 0.5))
        distance = np.maximum(np.maximum(low - half, half - high), 0.0) / width
        return float(np.nan_to_num(distance, nan=np.inf).max(initial=0.0))


class DataEncoder(HostModule):
    """Named raw arrays -> named float32 tensors (batch, *shape, channels), standardized."""

    def __init__(self, layouts: Sequence[ArrayLayout], heavy: Sequence[bool]) -> None:
        super().__init__()
        self._assemble([_ArrayEncoder(layout, tail) for layout, tail in zip(layouts, heavy, strict=True)])

    def _assemble(self, arrays: Sequence[_ArrayEncoder]) -> None:
        # A list rather than a ModuleDict: variables may be called "a.b", "values" or "train".
        self.arrays = nn.ModuleList(arrays)

    @classmethod
    def fit(cls, layouts: Sequence[ArrayLayout], data: Mapping[str, np.ndarray]) -> DataEncoder:
        """Learn the statistics.

        Parameters
        ----------
        layouts : sequence of ArrayLayout
            The arrays, in the order in which networks will see them.
        data : mapping of str to ndarray
            Simulated values, each (n, *shape).
        """
        names = [layout.name for layout in layouts]
        if len(set(names)) < len(names):
            raise ValueError(f"layouts name a variable twice: {names}")
        if missing := [name for name in names if name not in data]:
            raise KeyError(f"data lack {missing}; given: {sorted(data)}")
        encoder = cls([], [])
        encoder._assemble([_ArrayEncoder.fit(layout, np.asarray(data[layout.name])) for layout in layouts])
        return encoder

    def _encoders(self) -> list[_ArrayEncoder]:
        return [array for array in self.arrays if isinstance(array, _ArrayEncoder)]

    @property
    def layouts(self) -> tuple[ArrayLayout, ...]:
        """The layouts, numbers of categories filled in."""
        return tuple(array.layout for array in self._encoders())

    def channels(self, name: str) -> int:
        """Width of the last axis of an encoded variable."""
        return next(array.channels for array in self._encoders() if array.layout.name == name)

    def forward(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode (batch, *shape) to (batch, *shape, channels), float32 on the CPU."""
        return {array.layout.name: array(data[array.layout.name]) for array in self._encoders()}

    def outside(self, data: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Worst distance per variable beyond the simulated range, in its widths; 0 is inside."""
        return {array.layout.name: array.outside(data[array.layout.name]) for array in self._encoders()}

    def description(self) -> list[dict[str, Any]]:
        """All that is not a buffer, as JSON."""
        return [
            asdict(array.layout) | {"shape": list(array.layout.shape), "heavy": array.heavy}
            for array in self._encoders()
        ]

    @classmethod
    def from_description(cls, description: Sequence[Mapping[str, Any]]) -> DataEncoder:
        """Build the encoder whose statistics then come by ``load_state_dict``."""
        layouts = [ArrayLayout(**{k: v for k, v in entry.items() if k != "heavy"}) for entry in description]
        return cls(layouts, [bool(entry["heavy"]) for entry in description])
