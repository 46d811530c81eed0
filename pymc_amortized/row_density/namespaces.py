"""The few functions of array libraries in which the density of a row is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

Array = Any
"""Of whichever library."""


Arrays = Any
"""A namespace with the functions of :class:`NumpyArrays`: what libraries call differently. Operators, ``.sum(0)``,
``@`` and indexing are the same everywhere."""


class NumpyArrays:
    """NumPy's."""

    exp, log, log1p, expm1, tanh = np.exp, np.log, np.log1p, np.expm1, np.tanh
    abs, maximum, minimum = np.abs, np.maximum, np.minimum
    where = staticmethod(np.where)
    sigmoid, log_ndtr = special.expit, special.log_ndtr

    @staticmethod
    def silu(x: Array) -> Array:
        """``x * sigmoid(x)``."""
        return x * special.expit(x)

    @staticmethod
    def split(x: Array, sizes: Sequence[int]) -> Sequence[Array]:
        """Cut the first axis into parts."""
        return np.split(x, np.cumsum(sizes)[:-1])

    @staticmethod
    def softplus(x: Array) -> Array:
        """``log(1 + exp(x))``."""
        return np.logaddexp(0.0, x)

    @staticmethod
    def stack(parts: Sequence[Array]) -> Array:
        """Stack on a new first axis, broadcasting."""
        return np.stack(np.broadcast_arrays(*parts))

    @staticmethod
    def concatenate(parts: Sequence[Array]) -> Array:
        """Join along the first axis, broadcasting the second."""
        rows = max(p.shape[1] for p in parts)
        return np.concatenate([np.broadcast_to(p, (p.shape[0], rows)) for p in parts])

    @staticmethod
    def logsumexp(x: Array) -> Array:
        """Over the first axis."""
        return special.logsumexp(x, axis=0)


NUMPY = NumpyArrays()


def equal(xp: Arrays, y: Array, level: float) -> Array:
    """Tell which values are a level, but for rounding."""
    return xp.abs(y - level) < 1e-6 * max(1.0, abs(level))
