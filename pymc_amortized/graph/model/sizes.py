"""Dimensions whose length differs between data sets.

In the snapshot of a model the length of such a dimension is a shared variable of its own, whatever it was computed
from. Every compiled function takes the lengths as inputs: one compilation serves every size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm

GROUP = 64
"""Simulations of one size: enough for the cost of a call to vanish, few enough for many sizes in a training batch."""
SIZES = 128
"""Fewer simulations than this many groups are made in smaller groups."""


@dataclass(frozen=True)
class Range:
    """Lengths that a dimension may have, both ends included."""

    dim: str
    smallest: int
    largest: int

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a length, uniform on a logarithmic scale: what a row tells counts relative to how many there are."""
        low, high = np.log(self.smallest - 0.5), np.log(self.largest + 0.5)
        return int(np.clip(np.rint(np.exp(rng.uniform(low, high))), self.smallest, self.largest))


def is_range(source: Any) -> bool:
    """Whether a value of ``context=`` is meant as a range of lengths."""
    return isinstance(source, tuple | list | int | np.integer) and not isinstance(source, bool)


def read_range(model: pm.Model, dim: str, source: Any) -> Range:
    """Check the range of a dimension's length.

    Raises
    ------
    TypeError, ValueError
        When it is not a pair of increasing positive integers.
    """
    whole = isinstance(source, tuple | list) and len(source) == 2
    if not whole or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in source):
        raise TypeError(
            f"context[{dim!r}] is a dimension: give its smallest and largest length, as in (10, 500); got {source!r}"
        )
    smallest, largest = map(int, source)
    if not 1 <= smallest <= largest:
        raise ValueError(f"context[{dim!r}] must be 1 <= smallest <= largest, got {source!r}")
    return Range(dim, smallest, largest)


def group_sizes(n: int) -> list[int]:
    """Cut `n` simulations into groups of one size each."""
    return parts_of(n, int(np.clip(n // SIZES, 1, GROUP)))


def parts_of(n: int, each: int) -> list[int]:
    """Cut `n` into parts of a size, and a rest."""
    whole, rest = divmod(n, each)
    return [each] * whole + [rest] * (rest > 0)


def at(shape: tuple[int, ...], dims: Sequence[str | None], lengths: Mapping[str, int]) -> tuple[int, ...]:
    """Return a shape with the lengths of some of its dims replaced."""
    named = [*dims, *[None] * (len(shape) - len(dims))]
    return tuple(int(lengths.get(d, n)) if d else n for d, n in zip(named, shape, strict=True))


def cut(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the leading part of an array along each axis."""
    return array[tuple(map(slice, shape))]


def padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Fill an array up to a shape, with NaN where it can hold one and 0 elsewhere."""
    if array.shape == shape:
        return array
    out = np.full(shape, np.nan if array.dtype.kind == "f" else 0, dtype=array.dtype)
    out[tuple(map(slice, array.shape))] = array
    return out
