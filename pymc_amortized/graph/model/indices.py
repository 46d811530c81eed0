"""Arrays of the context that pick elements, and which numbers they may hold."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from pytensor.graph.basic import Constant
from pytensor.scalar.basic import Add, Cast, Sub
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.subtensor import AdvancedSubtensor
from pytensor.xtensor.indexing import Index

from pymc_amortized.graph.model.operations import walk
from pymc_amortized.graph.model.spec import ModelSpec


def index_limits(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Smallest and largest value of context arrays that pick elements: compiled code does not look whether these exist.

    Arrays that are used as they are, or counted from another number on (``effect[index - 1]``).
    """
    limits: dict[str, tuple[int, int]] = {}
    symbols = {spec.variable(v.name): v.name for v in spec.context}
    for node in indexing_nodes([*spec.model.basic_RVs, *spec.model.potentials, *spec.model.deterministics]):
        for index, length in picked_axes(node):
            symbol, shift = shifted_index(index)
            if length and symbol in symbols:
                low, high = limits.get(symbols[symbol], (-shift, length - 1 - shift))
                limits[symbols[symbol]] = (max(low, -shift), min(high, length - 1 - shift))
    return limits


def picked_axes(node: Any) -> Iterator[tuple[Any, int | None]]:
    """Index arrays of a node, and the lengths of the axes they pick from."""
    indexed, *indices = node.inputs
    if isinstance(node.op, Index):
        yield from zip(indices, indexed.type.shape, strict=False)  # slices are among them
        return
    for axis, entry in enumerate(node.op.idx_list):
        if isinstance(entry, int):
            yield indices[entry], indexed.type.shape[axis]


def shifted_index(var: Any) -> tuple[Any, int]:
    """What an index is computed from, seen through casts and added constants, and what is added."""
    op = None if var.owner is None else var.owner.op
    if isinstance(op, DimShuffle):
        return shifted_index(var.owner.inputs[0])
    if not isinstance(op, Elemwise):
        return var, 0
    if isinstance(op.scalar_op, Cast):
        return shifted_index(var.owner.inputs[0])
    if isinstance(op.scalar_op, Add | Sub) and len(var.owner.inputs) == 2:
        one, two = var.owner.inputs
        sign = -1 if isinstance(op.scalar_op, Sub) else 1
        if (added := _whole_constant(two)) is not None:
            symbol, shift = shifted_index(one)
            return symbol, shift + sign * added
        if sign == 1 and (added := _whole_constant(one)) is not None:
            symbol, shift = shifted_index(two)
            return symbol, shift + added
    return var, 0


def _whole_constant(var: Any) -> int | None:
    """A whole number that is a constant of the graph."""
    while var.owner is not None and isinstance(var.owner.op, DimShuffle):
        var = var.owner.inputs[0]
    if not isinstance(var, Constant) or np.size(var.data) != 1:
        return None
    value = float(np.asarray(var.data).reshape(()))
    return int(value) if value == int(value) else None


def refuse_indices(values: Mapping[str, np.ndarray], limits: Mapping[str, tuple[int, int]], what: str) -> None:
    """Refuse numbers that pick elements which do not exist."""
    for name, (low, high) in limits.items():
        index = np.trunc(values[name])
        if index.size and (index.min() < low or index.max() > high):
            wrong = index[(index < low) | (index > high)].flat[0]
            hint = "; indices count from 0" if wrong == high + 1 else ""
            raise ValueError(
                f"{what}: {name!r} is an index of {high - low + 1} elements, {low} to {high}; got {wrong:g}{hint}"
            )


def indexing_nodes(roots: Iterable[Any]) -> Iterator[Any]:
    """Operations above some variables that pick elements by arrays of numbers, each once."""
    seen = set()
    for var in walk(list(roots), through_shapes=False):
        node = var.owner
        if node is not None and node not in seen and isinstance(node.op, AdvancedSubtensor | Index):
            seen.add(node)
            yield node
