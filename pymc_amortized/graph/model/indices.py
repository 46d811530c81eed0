"""Arrays of the context that pick elements, and which numbers they may hold."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pymc as pm
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import Add, Cast, Sub
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.xtensor.indexing import Index

from pymc_amortized.graph.model.operations import walk
from pymc_amortized.graph.model.spec import ModelSpec


def index_limits(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Smallest and largest value of context arrays that pick elements: compiled code does not look whether these exist.

    Arrays that are used as they are, or counted from another number on (``effect[index - 1]``). Of a dim whose length
    differs between data sets, these are the limits at its largest.
    """
    limits: dict[str, tuple[int, int]] = {}
    for name, length, dim, shift in _picks(spec):
        length = spec.largest[dim] if dim in spec.largest else length
        if length:
            low, high = limits.get(name, (-shift, length - 1 - shift))
            limits[name] = (max(low, -shift), min(high, length - 1 - shift))
    return limits


def counted_by(spec: ModelSpec) -> dict[str, dict[str, int]]:
    """Context arrays that pick from dims whose length differs: dim -> array -> what is added to its values."""
    found: dict[str, dict[str, int]] = {}
    for name, _, dim, shift in spec.once(counted_by, None, lambda: list(_picks(spec))):
        if dim in spec.largest:
            found.setdefault(dim, {})[name] = shift
    return found


def _picks(spec: ModelSpec) -> Iterator[tuple[str, int | None, str | None, int]]:
    """Context arrays that pick elements: name, length and dim of the axis, and what is added to the values."""
    symbols = {spec.variable(v.name): v.name for v in spec.context}
    for node in indexing_nodes([*spec.model.basic_RVs, *spec.model.potentials, *spec.model.deterministics]):
        for index, axis in picked_axes(node):
            symbol, shift = shifted_index(index)
            if symbol in symbols:
                indexed = node.inputs[0]
                yield symbols[symbol], indexed.type.shape[axis], _dim_of(spec.model, indexed, axis), shift


def refuse_fixed_indices(spec: ModelSpec) -> None:
    """Refuse index arrays that stay the same, but pick from a dim whose length differs between data sets.

    Raises
    ------
    ValueError
    """
    given = {spec.variable(v.name) for v in spec.context}
    for node in indexing_nodes([*spec.model.basic_RVs, *spec.model.potentials, *spec.model.deterministics]):
        for index, axis in picked_axes(node):
            dim = _dim_of(spec.model, node.inputs[0], axis)
            if dim in spec.largest and given.isdisjoint(ancestors([index])):
                raise ValueError(
                    "context: an array of indices that is the same for all data sets picks from the dimension "
                    f"{dim!r}, whose length differs: make it pm.Data, and say where its values come from, as in "
                    f"context={{{dim!r}: ..., 'index': 'groups'}}"
                )


def _dim_of(model: pm.Model, var: Any, axis: int) -> str | None:
    """Dim along an axis of what is computed from variables with dims, elementwise or by leaving out axes."""
    dims = model.named_vars_to_dims.get(var.name) if var.name in model.named_vars else None
    if dims:
        return dims[axis]
    op = None if var.owner is None else var.owner.op
    if isinstance(op, Elemwise):
        wide = [v for v in var.owner.inputs if not v.type.broadcastable[axis]]
        return next((dim for v in wide if (dim := _dim_of(model, v, axis))), None)
    if isinstance(op, DimShuffle):
        place = op.new_order[axis]
        return _dim_of(model, var.owner.inputs[0], place) if isinstance(place, int) else None
    if isinstance(op, Subtensor):
        kept = [i for i, entry in enumerate(op.idx_list) if isinstance(entry, slice)]
        kept += range(len(op.idx_list), var.owner.inputs[0].type.ndim)
        return _dim_of(model, var.owner.inputs[0], kept[axis])
    return None


def picked_axes(node: Any) -> Iterator[tuple[Any, int]]:
    """Index arrays of a node, and the axes they pick from."""
    indexed, *indices = node.inputs
    if isinstance(node.op, Index):
        yield from zip(indices, range(indexed.type.ndim), strict=False)  # slices are among them
        return
    for axis, entry in enumerate(node.op.idx_list):
        if isinstance(entry, int):
            yield indices[entry], axis


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


def refuse_uncounted(
    values: Mapping[str, np.ndarray], counted: Mapping[str, Mapping[str, int]], lengths: Mapping[str, int], what: str
) -> None:
    """Refuse indices beyond the lengths of dims that differ between data sets.

    Parameters
    ----------
    values : mapping of name to ndarray
        Of data sets that have these lengths.
    counted : mapping
        From :func:`counted_by`.
    lengths : mapping of dim to int
    what : str
        Whose they are.
    """
    for dim, by in counted.items():
        for name, shift in by.items():
            largest = int(values[name].max(initial=-shift - 1))
            if largest + shift >= lengths[dim]:
                raise ValueError(
                    f"{what}: {name!r} holds {largest}, but the dimension {dim!r} has {lengths[dim]} elements there, "
                    f"counted from {-shift}"
                )


def indexing_nodes(roots: Iterable[Any]) -> Iterator[Any]:
    """Operations above some variables that pick elements by arrays of numbers, each once."""
    seen = set()
    for var in walk(list(roots), through_shapes=False):
        node = var.owner
        if node is not None and node not in seen and isinstance(node.op, AdvancedSubtensor | Index):
            seen.add(node)
            yield node
