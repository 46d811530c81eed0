"""How far data lie beyond what was simulated, and which of their elements is the farthest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Outside:
    """The element of each of n data sets that is farthest beyond its own simulated range.

    Attributes
    ----------
    distance : ndarray (n,)
        In widths of that range; 0 is inside.
    element : ndarray (n, ndim)
        Which element it is: an index along each axis of the variable.
    value, low, high : ndarray (n,)
        Its value, and the smallest and largest simulated one.
    """

    distance: np.ndarray
    element: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, low: np.ndarray, high: np.ndarray, seen: np.ndarray | None) -> Outside:
        """Compare values (n, *shape), of which those `seen` count, with their ranges.

        What is NaN is infinitely far out. A range without width is taken to be as wide as its value, or 1.
        """
        # halves: differences must not overflow
        half, below, above = np.asarray(values, dtype=np.float64) / 2, low / 2, high / 2
        width = above - below
        width = np.where(width > 0, width, np.maximum(np.abs(below), 0.5))
        distance = np.nan_to_num(np.maximum(np.maximum(below - half, half - above), 0.0) / width, nan=np.inf)
        if seen is not None:
            distance = np.where(seen, distance, 0.0)
        n, shape = len(half), distance.shape[1:]
        if not distance.size:
            nothing = np.zeros(n)
            return cls(nothing, np.zeros((n, len(shape)), int), nothing, nothing, nothing)
        worst = distance.reshape(n, -1).argmax(axis=1)
        at = (np.arange(n), worst)
        one, two, three, four = (
            np.broadcast_to(a, distance.shape).reshape(n, -1)[at] for a in (distance, half, below, above)
        )
        element = np.stack(np.unravel_index(worst, shape), axis=1) if shape else np.zeros((n, 0), int)
        return cls(one, element, 2 * two, 2 * three, 2 * four)
