"""What the variables of a model's graph are drawn by, and whether that has a density."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pymc as pm
from pymc.distributions.custom import CustomDistRV
from pymc.distributions.simulator import SimulatorRV
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.replace import clone_replace, graph_replace
from pytensor.graph.traversal import toposort
from pytensor.graph.utils import MissingInputError
from pytensor.tensor.random.op import RandomVariable
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
    except MissingInputError:  # as HSSM's where trials may lapse: of one data set alone, in constants
        return (
            f"{rv.name!r} has a log density that evaluates its data while it is derived, so data cannot vary; with "
            "HSSM, build the model with p_outlier=None, lapse=None"
        )
    except (NotImplementedError, RuntimeError) as error:
        return f"{rv.name!r} has no log density ({str(error).splitlines()[0]})"
    return None


class DrawnShapeError(ValueError):
    """A function of the user's returned draws of another shape than the variable has."""


def is_drawn_by_user(op: Any) -> bool:
    """Whether draws come from a Python function of the user's: it may return what it likes."""
    if not isinstance(op, RandomVariable):
        return False
    library = type(op).rng_fn.__module__.partition(".")[0] in ("pymc", "pytensor")
    return isinstance(op, SimulatorRV | CustomDistRV) or not library


def with_checked_shapes(outputs: Sequence[Any]) -> list[Any]:
    """Copy a graph so that draws of another shape than their variable's are an error: they would be repeated to fit."""
    outputs = list(outputs)
    nodes = [node for node in toposort(outputs) if is_drawn_by_user(node.op)]
    for node in reversed(nodes):  # what comes before is replaced after it
        made = Apply(_checked(node.op), node.inputs, [v.clone() for v in node.outputs])
        outputs = graph_replace(outputs, dict(zip(node.outputs, made.outputs, strict=True)), strict=False)
    return outputs


def _checked(op: Any) -> Any:
    """Copy an operation, with draws whose shapes are compared."""
    name = str(op.name).removeprefix("Simulator_").removeprefix("CustomDist_")  # as PyMC names it after its variable

    def rng_fn(self: Any, rng: np.random.Generator, *arguments: Any) -> Any:
        *parameters, size = arguments
        value = op.rng_fn(rng, *arguments)
        given, expected = np.shape(value), _shape_of_draws(op, parameters, size)
        if given != expected:
            raise DrawnShapeError(
                f"{name!r}: the function that draws returned shape {given}, the variable has {expected}; numbers would "
                "be repeated to fill it. Return size= numbers, as in rng.normal(mu, 1, size=size)"
            )
        return value

    checked = copy.copy(op)
    # a class of its own: PyTensor makes operations anew from their class
    checked.__class__ = type(type(op).__name__, (type(op),), {"rng_fn": rng_fn})
    return checked


def _shape_of_draws(op: Any, parameters: Sequence[Any], size: tuple[int, ...] | None) -> tuple[int, ...]:
    shapes = [np.shape(p) for p in parameters]
    if size is None:
        size = np.broadcast_shapes(*(s[: len(s) - n] for s, n in zip(shapes, op.ndims_params, strict=True)))
    support = op._supp_shape_from_params(parameters, param_shapes=shapes) if op.ndim_supp else ()
    return (*map(int, size), *map(int, support))
