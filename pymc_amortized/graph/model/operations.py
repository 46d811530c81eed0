"""What the variables of a model's graph are drawn by, and whether that has a density."""

from collections.abc import Iterator, Sequence
from typing import Any

import pymc as pm
from pymc.distributions.simulator import SimulatorRV
from pytensor.graph.basic import Variable
from pytensor.graph.replace import clone_replace
from pytensor.tensor.shape import Shape, Shape_i


def op_name(var: Any) -> str:
    """Name of the operation that draws a variable."""
    return type(core_op(var)).__name__


def core_op(var: Any) -> Any:
    """Return the operation that draws a variable, seen through ``pymc.dims`` wrappers."""
    return None if var.owner is None else getattr(var.owner.op, "core_op", var.owner.op)


def is_time_series(op: Any) -> bool:
    """Whether an operation draws along a time axis: one of PyMC's time series, or one that inherits from them."""
    series = {"AutoRegressiveRV", "GARCH11RV", "RandomWalkRV", "EulerMaruyamaRV"}
    return any(cls.__name__ in series for cls in type(op).__mro__)


def walk(roots: Sequence[Any], *, through_shapes: bool = True) -> Iterator[Variable]:
    """Ancestors of `roots`; optionally not those that only lend their shape."""
    stack, seen = list(roots), set()
    while stack:
        var = stack.pop()
        if var in seen:
            continue
        seen.add(var)
        yield var
        if var.owner is None:
            continue
        if through_shapes or not isinstance(var.owner.op, Shape | Shape_i):
            stack.extend(var.owner.inputs)


def has_density(model: pm.Model, rv: Any) -> bool:
    """Whether PyMC can evaluate the log density of a variable given its parents."""
    return _variable_obstacle(model, rv) is None


def density_obstacle(model: pm.Model) -> str | None:
    """Why the joint log density of a model cannot be evaluated; None where it can."""
    obstacles = (_variable_obstacle(model, rv) for rv in model.basic_RVs)
    return next((obstacle for obstacle in obstacles if obstacle), None)


def _variable_obstacle(model: pm.Model, rv: Any) -> str | None:
    if isinstance(core_op(rv), SimulatorRV):
        return f"{rv.name!r} is a pm.Simulator, which has no density"
    # random parents are hidden, which PyMC would take apart to derive the density
    parents = {v: v.type() for v in model.basic_RVs if v is not rv}
    (alone,) = clone_replace([rv], parents)
    try:
        pm.logp(alone, rv.type(), warn_rvs=False)
    except (NotImplementedError, RuntimeError) as error:
        return f"{rv.name!r} has no log density ({str(error).splitlines()[0]})"
    return None
