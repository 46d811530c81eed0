"""By which operations a distribution draws: what tells two distributions of the same arguments apart.

A mixture of normal distributions and one of Laplace distributions are the same operation, as are two
``pm.CustomDist(dist=...)``. The description is the same for any number of rows, for parameters that rows share or not,
and for any names of variables.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from pymc.distributions.custom import CustomSymbolicDistRV
from pymc.distributions.distribution import SymbolicRandomVariable
from pymc.distributions.timeseries import EulerMaruyamaRV
from pymc.distributions.truncated import TruncatedRV
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant
from pytensor.scalar.basic import Cast, Second
from pytensor.scan.op import Scan
from pytensor.tensor.basic import Alloc
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.type_other import NoneTypeT

from pymc_amortized.graph.model.operations import core_op

MADE_BY_USERS = (CustomSymbolicDistRV, EulerMaruyamaRV)
"""Operations whose inner graph is the user's: of PyMC's own, names tell what they do."""


def describe_drawing(var: Any, distributions: Sequence[Any]) -> dict[str, Any]:
    """Describe how a distribution draws, beyond its own operation's name; empty for one that has nothing to add.

    Parameters
    ----------
    var : TensorVariable
        What it draws.
    distributions : list of TensorVariable
        Those among its arguments.
    """
    op = core_op(var)
    inner = [_kind(core_op(v)) for v in distributions]
    if isinstance(op, TruncatedRV):
        inner.append(_kind(op.base_rv_op))
    described: dict[str, Any] = {}
    if inner:
        described["of"] = inner
    beside_arguments = ("ar_order", "constant_term", "dt")
    settings = {key: _plain(getattr(op, key)) for key in beside_arguments if hasattr(op, key)}
    if settings:
        described["settings"] = settings
    graphs = [lines_of(core_op(v).fgraph) for v in (var, *distributions) if isinstance(core_op(v), MADE_BY_USERS)]
    if graphs:
        described["by"] = graphs
    return described


def _kind(op: Any) -> str:
    # CustomDist takes the name of the variable into that of its class
    return "CustomDist" if isinstance(op, CustomSymbolicDistRV) else type(op).__name__


def _plain(value: Any) -> Any:
    return np.asarray(getattr(value, "data", value)).item()


def lines_of(graph: Any) -> list[str]:
    """Write down a graph, one operation in a line, after those that it takes from."""
    lines: dict[str, str] = {}
    inputs = [v for v in graph.inputs if not isinstance(v.type, RandomType)]
    known = {v: f"input {i}" for i, v in enumerate(inputs)}
    outputs = [_label(v, known, lines) for v in graph.outputs if not isinstance(v.type, RandomType)]
    return [*lines, "gives " + ", ".join(outputs)]


def _label(var: Any, known: dict[Any, str], lines: dict[str, str]) -> str:
    """Return what stands for a variable in later lines, having written those that it needs."""
    if var not in known:
        known[var] = _new_label(var, known, lines)
    return known[var]


def _new_label(var: Any, known: dict[Any, str], lines: dict[str, str]) -> str:
    if isinstance(var, Constant | SharedVariable):
        return _number(var.data if isinstance(var, Constant) else var.get_value())
    if var.owner is None:
        return "input"
    op, inputs = var.owner.op, var.owner.inputs
    same = _broadcast_of(op, inputs)
    if same is not None:
        return _label(same, known, lines)
    if isinstance(op, RandomVariable) or (isinstance(op, SymbolicRandomVariable) and op.extended_signature):
        inputs = op.dist_params(var.owner)
    labels = [_label(v, known, lines) for v in inputs if not isinstance(v.type, RandomType | NoneTypeT)]
    if isinstance(op, OpFromGraph) and (isinstance(op, MADE_BY_USERS) or not isinstance(op, SymbolicRandomVariable)):
        inner = [v for v in op.fgraph.inputs if not isinstance(v.type, RandomType | NoneTypeT)]
        if len(inner) == len(labels):
            within = dict(zip(inner, labels, strict=True))
            return _label(op.fgraph.outputs[var.index], within, lines)
    line = f"{_name(op, var.owner)}({', '.join(labels)})"
    if len(var.owner.outputs) > 1:
        line += f"[{var.index}]"
    return lines.setdefault(line, f"#{len(lines)}")


def _broadcast_of(op: Any, inputs: list[Any]) -> Any | None:
    """The input that an operation only repeats, or gives axes of length 1: which depends on how many rows there are."""
    if isinstance(op, DimShuffle):
        kept = [axis for axis in op.new_order if axis != "x"]
        return inputs[0] if kept == sorted(kept) else None
    if isinstance(op, SpecifyShape | Alloc):
        return inputs[0]
    if isinstance(op, Elemwise) and isinstance(op.scalar_op, Second):
        return inputs[1]
    if isinstance(op, Elemwise) and isinstance(op.scalar_op, Cast) and op.scalar_op.o_type.dtype.startswith("float"):
        return inputs[0]
    return None


def _name(op: Any, node: Any) -> str:
    if isinstance(op, Elemwise):
        return type(op.scalar_op).__name__
    if isinstance(op, Blockwise):
        return _name(op.core_op, node)
    if isinstance(op, Scan):
        return f"Scan[{'; '.join(lines_of(op.fgraph))}]"
    if isinstance(op, CAReduce):  # axes from the last on, as there may be more for rows
        axes = range(node.inputs[0].type.ndim) if op.axis is None else op.axis
        return f"{type(op).__name__}{[axis - node.inputs[0].type.ndim for axis in axes]}"
    if isinstance(op, Subtensor | AdvancedSubtensor):
        return str(op)
    return _kind(op)


def _number(data: Any) -> str:
    array = np.asarray(data)
    if array.dtype.kind not in "buif":
        return str(data)
    distinct = np.unique(array)
    if len(distinct) == 1:  # repeated over rows or not
        return repr(float(distinct[0]))
    if array.size <= 8:  # of more numbers only a digest is kept
        return str(array.astype(float).tolist())
    return f"{array.shape} {hashlib.sha256(array.astype(float).tobytes()).hexdigest()[:16]}"
