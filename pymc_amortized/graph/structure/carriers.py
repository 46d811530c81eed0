"""Which arrays of a model may share an axis.

Named dims say it: every array with a dim carries it. Where there are no names, arrays with an axis of the same length
are candidates, and the density decides (:mod:`pymc_amortized.graph.structure.proofs`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pymc_amortized.graph.model.spec import ModelSpec

Pair = tuple[str, int]
"""An array, and which of its axes."""
Role = Literal["observed", "context", "fixed", "constant", "free"]

SHORTEST_GRID = 5
"""Shorter arrays, like three prior means, are regular by chance."""


@dataclass(frozen=True)
class Array:
    """What has axes: data, what is the same for all data sets, free variables."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[str | None, ...]
    role: Role
    dtype: str


def arrays_of(spec: ModelSpec) -> dict[str, Array]:
    """All arrays of a model by name: observed ones first, free variables last."""
    named = spec.model.named_vars_to_dims
    arrays = [Array(v.name, v.shape_at({}), _padded(v.dims, v.shape), v.role, v.dtype) for v in spec.inputs]
    for p in (*spec.parameters, *spec.nuisance):
        arrays.append(Array(p.name, p.shape, _padded(named.get(p.name, ()), p.shape), "free", p.dtype))
    return {a.name: a for a in sorted(arrays, key=lambda a: get_args(Role).index(a.role))}


def _padded(dims: Sequence[str | None], shape: Sequence[int | None]) -> tuple[str | None, ...]:
    return tuple(dims) if len(dims) == len(shape) else (None,) * len(shape)


@dataclass(frozen=True)
class Target:
    """An axis of the data, before it is known what it is.

    Attributes
    ----------
    name : str
        Its dim, or "y[0]".
    length : int
    base : tuple of Pair
        What certainly carries it.
    optional : tuple of tuple of Pair
        What may carry it, by its length alone; pairs that go together stand together.
    named : bool
        Whether it has a dim.
    """

    name: str
    length: int
    base: tuple[Pair, ...]
    optional: tuple[tuple[Pair, ...], ...]
    named: bool


def targets_of(arrays: dict[str, Array]) -> list[Target]:
    """Return every axis of observed variables with at least two entries, each dim once."""
    found: dict[str, Target] = {}
    for array in arrays.values():
        if array.role != "observed":
            continue
        for axis, (length, dim) in enumerate(zip(array.shape, array.dims, strict=True)):
            name = dim or f"{array.name}[{axis}]"
            if length > 1 and name not in found:
                found[name] = _target(arrays, name, length, dim, (array.name, axis))
    return list(found.values())


def _target(arrays: dict[str, Array], name: str, length: int, dim: str | None, pair: Pair) -> Target:
    same_length = [(a.name, i, a.dims[i]) for a in arrays.values() for i, n in enumerate(a.shape) if n == length]
    base = tuple((n, i) for n, i, d in same_length if d == dim) if dim else (pair,)
    optional: list[tuple[Pair, ...]] = [((n, i),) for n, i, d in same_length if d is None and (n, i) != pair]
    if dim is None:  # a named axis goes with all that has the name
        others = dict.fromkeys(d for _, _, d in same_length if d is not None)
        optional += [tuple((n, i) for n, i, d in same_length if d == other) for other in others]
    return Target(name, length, base, tuple(optional), dim is not None)


def data_pairs(arrays: dict[str, Array], pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Return what is data or held by the model, observed first."""
    kept = [p for p in dict.fromkeys(pairs) if arrays[p[0]].role != "free"]
    order = list(arrays)
    return tuple(sorted(kept, key=lambda p: (order.index(p[0]), p[1])))


def free_names(arrays: dict[str, Array], pairs: Iterable[Pair]) -> tuple[str, ...]:
    """Names of the free variables among carriers."""
    return tuple(dict.fromkeys(name for name, _ in pairs if arrays[name].role == "free"))


def shown(arrays: Mapping[str, Array], pair: Pair) -> str:
    """Name an axis for a reader."""
    name, axis = pair
    return name if len(arrays[name].shape) == 1 else f"axis {axis} of {name}"


def is_grid(values: np.ndarray, axis: int) -> bool:
    """Whether positions along an axis are equally spaced: each column regular and increasing, or constant."""
    columns = np.moveaxis(np.asarray(values, dtype=float), axis, 0).reshape(values.shape[axis], -1)
    if len(columns) < SHORTEST_GRID:
        return False
    steps = np.diff(columns, axis=0)
    regular = np.isclose(steps, steps[:1], rtol=1e-6, atol=0.0).all(axis=0)  # as np.linspace rounds
    return bool((regular & (steps[0] >= 0)).all() and (steps[0] > 0).any())


def is_monotone(values: np.ndarray, axis: int) -> bool:
    """Whether an array is one increasing coordinate along an axis."""
    columns = np.moveaxis(np.asarray(values, dtype=float), axis, 0).reshape(values.shape[axis], -1)
    return columns.shape[1] == 1 and len(columns) >= SHORTEST_GRID and bool((np.diff(columns[:, 0]) > 0).all())
