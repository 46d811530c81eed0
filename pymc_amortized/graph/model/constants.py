"""Unnamed arrays of a model's graph that may belong to the rows of its data.

``x @ beta`` with a NumPy array `x`, known standard errors, an index of groups: PyTensor keeps them as constants. To
permute or cut rows, their values must be inputs of what is compiled. In the snapshot of a model they therefore become
named shared variables, which :mod:`pymc_amortized.graph.model.step` turns back into constants for the simulator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytensor
from pymc.distributions.continuous import InterpolatedRV
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors
from pytensor.tensor.shape import Reshape, Shape, Shape_i
from pytensor.tensor.type import TensorType
from pytensor.xtensor.type import XTensorType, xtensor_shared

from pymc_amortized.graph.model.copying import substitute


@dataclass(frozen=True, eq=False)
class RowConstant:
    """An array of the graph that may have rows in common with the data."""

    name: str
    symbol: Any
    """The shared variable that stands for it in the snapshot."""
    value: np.ndarray
    dims: tuple[str, ...]


def open_constants(model: pm.Model, lengths: set[int]) -> tuple[pm.Model, list[RowConstant]]:
    """Put shared variables in the place of constant arrays with an axis of one of the given lengths.

    Returns
    -------
    model : pymc.Model
        A copy; the model itself where there is nothing to do.
    constants : list of RowConstant
    """
    symbols: dict[tuple[Any, ...], Any] = {}  # equal arrays are one
    replaced: dict[Any, Any] = {}
    for constant in _arrays(model, lengths):
        value = np.asarray(constant.data)
        content = (value.dtype.str, value.shape, value.tobytes(), str(constant.type))
        if content not in symbols:
            taken = {*model.named_vars, *(symbol.name for symbol in symbols.values())}
            symbols[content] = _shared(constant, _unused_name(constant.name, taken))
        replaced[constant] = symbols[content]
    if not replaced:
        return model, []
    opened = substitute(model, lambda memo: {memo.get(old, old): new for old, new in replaced.items()})
    roots = [*opened.basic_RVs, *opened.potentials, *opened.deterministics]
    names = [symbol.name for symbol in symbols.values()]
    found = {v.name: v for v in ancestors(roots) if isinstance(v, SharedVariable) and v.name in names}
    return opened, [
        RowConstant(name, found[name], np.asarray(found[name].get_value()), _dims(found[name]))
        for name in names
        if name in found
    ]


def _arrays(model: pm.Model, lengths: set[int]) -> Iterator[Constant]:
    """Constant arrays that hold values of the model, not shapes."""
    registered = set(model.data_vars)
    roots = [*model.basic_RVs, *model.potentials, *model.deterministics]
    for var in _valued(roots):
        if not isinstance(var, Constant) or var in registered or not isinstance(var.type, TensorType | XTensorType):
            continue
        value = np.asarray(var.data)
        finite = value.dtype.kind in "bui" or (value.dtype.kind == "f" and np.isfinite(value).all())
        # PyMC looks at infinite bounds while it derives densities: they stay what they are
        if finite and any(length > 1 and length in lengths for length in value.shape):
            yield var


def _valued(roots: Sequence[Any]) -> Iterator[Any]:
    """Ancestors of `roots` whose values matter: not those that only say or lend a shape, or that PyMC must know."""
    stack, seen = list(reversed(roots)), set()
    while stack:
        var = stack.pop()
        if var in seen:
            continue
        seen.add(var)
        yield var
        if var.owner is not None and not isinstance(var.owner.op, Shape | Shape_i):
            kept = _kept_inputs(var.owner)
            stack.extend(i for i in reversed(var.owner.inputs) if i not in kept)


def _kept_inputs(node: Any) -> list[Any]:
    """Inputs of a node that hold a shape, or that must stay constants."""
    op = getattr(node.op, "core_op", node.op)
    if isinstance(op, InterpolatedRV):  # its density reads the values of its points
        return list(node.inputs)
    if isinstance(op, Reshape):
        return [node.inputs[1]]
    if op is not node.op or not hasattr(op, "size_param"):
        return []
    try:
        size = op.size_param(node)
    except ValueError:  # custom distributions need not say which of their inputs that is
        return []
    return [] if size is None else [size]


def _unused_name(name: str | None, taken: set[str]) -> str:
    if name and name not in taken:
        return name
    stem = name or "constant"
    return next(new for i in range(len(taken) + 1) if (new := f"{stem} {i}") not in taken)


def _shared(constant: Any, name: str) -> Any:
    value = np.asarray(constant.data)
    if isinstance(constant.type, XTensorType):
        return xtensor_shared(value, dims=constant.type.dims, shape=value.shape, name=name)
    return pytensor.shared(value, name=name, shape=value.shape)


def _dims(var: Any) -> tuple[str, ...]:
    return tuple(var.type.dims) if isinstance(var.type, XTensorType) else ()
