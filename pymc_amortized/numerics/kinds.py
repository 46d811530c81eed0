"""Kinds of data, and which values each can have.

:data:`KINDS` is the one list of their names, by which models, arrays and files call them. What a room does with a kind
is a class of that room, under the same name: an encoder (:mod:`pymc_amortized.networks.encoding.array_encoder`), a
column of a learned density (:mod:`pymc_amortized.row_density.columns`). A new kind is a line here and a class there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["KINDS", "DataKind"]


@dataclass(frozen=True)
class DataKind:
    """What the values of a variable are.

    Attributes
    ----------
    name : str
    allowed : str
        Possible values, for messages.
    possible : callable
        Tells which values (...) of an array are possible; NaN is not.
    changed : callable
        Takes values and a spread, and returns possible values of which each differs from the one given.
    continuous : bool
        Whether values have a density.
    ordered : bool
        Whether a larger number means more.
    """

    name: str
    allowed: str
    possible: Callable[[np.ndarray], np.ndarray]
    changed: Callable[[np.ndarray, float | np.ndarray], np.ndarray]
    continuous: bool = False
    ordered: bool = True


KINDS = {
    kind.name: kind
    for kind in (
        DataKind("real", "numbers", lambda v: ~np.isnan(v), lambda v, spread: v + spread + 1e-6, continuous=True),
        DataKind("count", "whole numbers", lambda v: v == np.floor(v), lambda v, _: v + 1),
        DataKind("binary", "0 or 1", lambda v: (v == 0) | (v == 1), lambda v, _: 1 - v),
        DataKind(
            "categorical",
            "0, 1, 2, ...",
            lambda v: (v >= 0) & (v == np.floor(v)),
            lambda v, _: np.where(v > 0, 0, 1),
            ordered=False,
        ),
    )
}
