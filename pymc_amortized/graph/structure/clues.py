"""What a model's graph says about an axis of its data: time, coordinates, groups, components of one draw."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from pymc.distributions.simulator import SimulatorRV
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import Cos, Sin
from pytensor.scan.op import Scan
from pytensor.tensor.basic import ARange
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.extra_ops import CumOp
from pytensor.tensor.random.op import RandomVariable

from pymc_amortized.graph.model.indices import counted_by, indexing_nodes, picked_axes, shifted_index
from pymc_amortized.graph.model.operations import core_op, is_time_series, op_name, walk
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.structure.carriers import Array, Pair, is_grid, is_monotone


def event_axes(spec: ModelSpec, name: str) -> range:
    """Axes of an observed variable that one draw of its distribution spans."""
    var = spec.model[name]
    ndim = var.type.ndim
    return range(ndim - int(getattr(core_op(var), "ndim_supp", 0)), ndim)


def grids(spec: ModelSpec, arrays: Mapping[str, Array], pairs: Iterable[Pair]) -> list[str]:
    """Fixed arrays that are equally spaced coordinates along an axis."""
    return [
        name for name, axis in pairs if arrays[name].role in ("fixed", "constant") and is_grid(spec.held[name], axis)
    ]


def sequence_evidence(spec: ModelSpec, arrays: Mapping[str, Array], pair: Pair, related: Iterable[Pair]) -> str | None:
    """Why an axis whose rows cannot be permuted is ordered; None where nothing says so.

    Parameters
    ----------
    spec : ModelSpec
    arrays : dict of name to Array
    pair : tuple of str and int
        An observed variable and its axis.
    related : iterable of pairs
        What has the axis, or may have it.
    """
    name, axis = pair
    var = spec.model[name]
    related = list(related)
    for other, along in [pair, *(p for p in related if arrays[p[0]].role in ("free", "observed"))]:
        if _is_time(spec.model[other], along):
            what = op_name(spec.model[other]).removesuffix("RV")
            return f"{other} is a time series ({what})" if other == name else f"it is the time of {other} ({what})"
    if axis in event_axes(spec, name):
        if _has_scan(var):
            return f"{name} is computed by a scan"
    else:
        for ancestor in _graph(var):
            if is_time_series(core_op(ancestor)):
                return f"{name} depends on the time series {ancestor.name} ({op_name(ancestor).removesuffix('RV')})"
            if _has_scan(ancestor):
                return f"{name} is computed by a scan"
            if ancestor.owner is not None and isinstance(ancestor.owner.op, CumOp):
                return f"{name} is computed by cumulation"
    if axis in event_axes(spec, name):  # hyperparameters of free variables are no coordinates of its components
        direct = set(ancestors([var], blockers=spec.model.free_RVs))
        related = [p for p in related if arrays[p[0]].role == "observed" or spec.variable(p[0]) in direct]
    regular = grids(spec, arrays, related)
    if regular:
        return f"{regular[0]} is a regular grid along it"
    if any(_computes_with_positions(v) for v in ancestors([var], blockers=spec.model.free_RVs)):
        return f"{name} is computed from the numbers of its entries (arange)"
    return _kernel(spec, arrays, var, related)


def _computes_with_positions(var: Any) -> bool:
    """Whether a variable is arithmetic with 0, 1, 2, ..., which elsewhere are but indices."""
    if var.owner is None or not isinstance(var.owner.op, Elemwise):
        return False
    inputs = list(var.owner.inputs)
    while any(v.owner is not None and isinstance(v.owner.op, DimShuffle) for v in inputs):
        inputs = [v.owner.inputs[0] if v.owner and isinstance(v.owner.op, DimShuffle) else v for v in inputs]
    return any(v.owner is not None and isinstance(v.owner.op, ARange) for v in inputs)


def coordinates(spec: ModelSpec, arrays: Mapping[str, Array], pairs: Iterable[Pair]) -> list[str]:
    """Fixed arrays that hold one increasing number for each entry of an axis."""
    return [n for n, i in pairs if arrays[n].role in ("fixed", "constant") and is_monotone(spec.held[n], i)]


def _kernel(spec: ModelSpec, arrays: Mapping[str, Array], var: Any, related: Iterable[Pair]) -> str | None:
    """Covariances over one increasing coordinate."""
    increasing = coordinates(spec, arrays, related)
    if increasing and any("Cholesky" in _node_name(v) or op_name(v) == "MvNormalRV" for v in _graph(var)):
        return f"{increasing[0]} is an increasing coordinate of a covariance"
    return None


def basis_over(spec: ModelSpec, observed: str, grid: str) -> bool:
    """Whether a coordinate enters through several sines or cosines: the basis of an approximate Gaussian process."""
    symbol = spec.variable(grid)
    for var in _graph(spec.model[observed]):
        op = None if var.owner is None else var.owner.op
        waves = isinstance(op, Elemwise) and isinstance(op.scalar_op, Sin | Cos)
        if waves and var.type.ndim > 1 and min(var.type.shape[-2:], key=lambda n: n or 0) != 1:
            if symbol in set(ancestors([var])):
                return True
    return False


def group_index(
    spec: ModelSpec, arrays: Mapping[str, Array], observed: Iterable[str], pairs: Iterable[Pair]
) -> dict[str, int]:
    """Integer arrays with nothing but the axis that pick from something that depends on free variables.

    Returns
    -------
    dict of str to int
        How many groups each tells apart; the most first.
    """
    free = set(spec.model.free_RVs)
    nodes = indexing_nodes([spec.model[name] for name in observed])
    picks = [
        (index, node.inputs[0].type.shape[axis])
        for node in nodes
        if not free.isdisjoint(ancestors([node.inputs[0]]))
        for index, axis in picked_axes(node)
    ]
    found: dict[str, int] = {}
    for name, _ in pairs:
        array = arrays[name]
        if len(array.shape) != 1 or array.role in ("observed", "free") or np.dtype(array.dtype).kind not in "iu":
            continue
        largest, smallest = int(spec.held[name].max()), int(spec.held[name].min())
        largest = max([largest, *(spec.largest[d] - 1 for d, by in counted_by(spec).items() if name in by)])
        symbol = spec.variable(name)
        for index, length in picks:
            if smallest < 0 or symbol not in set(ancestors([index])):
                continue
            read, shift = shifted_index(index)
            # an index that is computed from it otherwise says nothing of how many groups it tells apart
            number = length - shift if read is symbol and length else 0
            found[name] = max(found.get(name, 0), largest + 1, number)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def drawn_independently(spec: ModelSpec, pair: Pair) -> bool:
    """Whether the graph alone shows that rows are independent and identically distributed.

    They are where the axis is one over which the distribution repeats its draws with the same parameters, and nothing
    else of the model depends on them. A ``pm.Simulator`` may do with its size what it likes.
    """
    name, axis = pair
    var = spec.model[name]
    op = core_op(var)
    if not isinstance(op, RandomVariable) or isinstance(op, SimulatorRV) or op is not var.owner.op:
        return False
    if axis in event_axes(spec, name):
        return False
    batch = var.type.ndim - op.ndim_supp
    for parameter, core in zip(op.dist_params(var.owner), op.ndims_params, strict=True):
        own = axis - batch + parameter.type.ndim - core
        if own >= 0 and not parameter.type.broadcastable[own]:
            return False
    others = [v for v in (*spec.model.basic_RVs, *spec.model.potentials) if v is not var]
    return var not in set(ancestors(others))


def _graph(var: Any) -> Iterator[Any]:
    return walk([var], through_shapes=False)


def _node_name(var: Any) -> str:
    """Name of the operation, also inside one that works on batches."""
    op = None if var.owner is None else var.owner.op
    return type(getattr(op, "core_op", op)).__name__


def _is_time(var: Any, axis: int) -> bool:
    """Whether an axis is the time of a time series: the first that one draw spans."""
    return is_time_series(core_op(var)) and axis == var.type.ndim - core_op(var).ndim_supp


def _has_scan(var: Any) -> bool:
    op = None if var.owner is None else var.owner.op
    if isinstance(op, OpFromGraph):
        inner = walk(op.inner_outputs, through_shapes=False)
        return any(v.owner is not None and isinstance(v.owner.op, Scan) for v in inner)
    return isinstance(op, Scan)
