"""The graph of one simulation: values, unconstrained values, and whether the model's density accepts them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.distributions.simulator import SimulatorRV
from pymc.distributions.transforms import Ordered
from pymc.logprob.utils import CheckParameterValue
from pytensor.graph.replace import clone_replace, graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.graph.utils import MissingInputError
from pytensor.tensor.random.op import RandomVariable

from pymc_amortized.graph.model.copying import substitute
from pymc_amortized.graph.model.operations import core_op
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import batched_input, like, plain, plain_input

FINE, EXCLUDED, ROUNDED = 0, 1, 2
"""A draw that the model's density allows; one that it excludes; and one that overflows, or is rounded to a bound."""


def held_constants(spec: ModelSpec) -> dict[Any, Any]:
    """What is the same for all data sets in the snapshot, and constants of the values it holds."""
    return {spec.variable(v.name): _constant(spec, v) for v in spec.unchanging}


def closed_model(spec: ModelSpec) -> pm.Model:
    """Return the snapshot as the model was written: with constants for what it held in unnamed arrays."""
    constants = {spec.symbols[v.name]: _constant(spec, v) for v in spec.constants}
    return (
        substitute(spec.model, lambda memo: {memo.get(v, v): c for v, c in constants.items()})
        if constants
        else spec.model
    )


def _constant(spec: ModelSpec, variable: DataVariable) -> Any:
    var = spec.variable(variable.name)
    return like(var, pt.constant(spec.held[variable.name], name=variable.name))


def length_inputs(spec: ModelSpec) -> dict[Any, Any]:
    """Lengths of the snapshot's dimensions that vary, and the inputs that stand in for them."""
    lengths = {r.dim: spec.model.dim_lengths[r.dim] for r in spec.sizes}
    return {shared: shared.type.clone()(name=dim) for dim, shared in lengths.items()}


def given_parameters(spec: ModelSpec) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """What stands for one draw of each free variable, by name; and each with an input for many draws of it."""
    one = {p.name: plain_input(p.name, p.dtype, p.open_shape) for p in spec.drawn}
    return one, [(one[p.name], batched_input(f"{p.name}_draws", p.dtype, p.open_shape)) for p in spec.drawn]


def flat_unconstrained(spec: ModelSpec) -> Any:
    """Parameters on the scale of their value variables, as one vector."""
    model = spec.model
    values = [unconstrained(model, model[p.name]).flatten() for p in spec.parameters]
    return pt.concatenate(values).astype("float64")


def simulation_graph(
    spec: ModelSpec, names: list[str], given: Mapping[Any, Any] | None = None, *, checked: bool = True
) -> list[Any]:
    """One simulation: the flat parameters, and the named values; then its :func:`check_graph`, unless not wanted.

    What is `given` stands in the place of free variables.
    """
    model = spec.model
    outputs = [flat_unconstrained(spec), *(plain(model[name]) for name in names)]
    outputs += [check_graph(model)] if checked else []
    outputs = _sort_exchangeable(model, outputs, given or {})
    outputs = graph_replace(outputs, given, strict=False) if given else outputs
    # rebuilt, so that the shapes of constants become static and compiled loops need not check them
    return clone_replace(outputs, held_constants(spec), rebuild_strict=False)


def unconstrained(model: pm.Model, rv: Any) -> Any:
    """Value of a free variable on the scale of its value variable."""
    transform = model.rvs_to_transforms[rv]
    return plain(rv if transform is None else transform.forward(rv, *rv.owner.inputs))


def check_graph(model: pm.Model) -> Any:
    """:data:`FINE`, :data:`EXCLUDED` or :data:`ROUNDED` for each variable, in the order of ``model.basic_RVs``."""
    return pt.stack([_check(model, rv) for rv in model.basic_RVs])


def _check(model: pm.Model, rv: Any) -> Any:
    """Whether the draw has a finite log density given its parents, and a finite unconstrained image; or why not.

    A draw of a free variable is excluded unless it lies at a bound where there is no density, or at infinity: then it
    is one of the prior's, rounded. One of an observed variable is excluded where its parameters allow no value.
    """
    log_density, allowed = own_log_density(model, rv)
    if rv in model.free_RVs:
        free = unconstrained(model, rv)
        fine = pt.isfinite(free).all() & pt.isfinite(log_density).all()
        rounded = ~pt.isnan(free).any() & (pt.isinf(free).any() | pt.eq(log_density, np.inf).any())
    else:
        fine, rounded = pt.isfinite(log_density).all(), allowed
    return pt.switch(fine, FINE, pt.switch(rounded, ROUNDED, EXCLUDED)).astype("int8")


def own_log_density(model: pm.Model, rv: Any) -> tuple[Any, Any]:
    """Log density of a draw given its parents, of which it uses the same draws; and whether these allow any value.

    Parents are hidden from PyMC while it derives the density: it would take apart and duplicate random ones.
    """
    if isinstance(core_op(rv), SimulatorRV):
        return plain(rv), pt.constant(True)  # what PyMC calls its density simulates again
    value = rv.type()
    parents = {v: v.type() for v in model.basic_RVs if v is not rv}
    (alone,) = clone_replace([rv], parents)
    try:
        density = pm.logp(alone, value, warn_rvs=False)
    except (NotImplementedError, RuntimeError, MissingInputError):
        return plain(rv), pt.constant(True)  # a variable without density is fine where its value is finite
    drawn = {value: rv, **{placeholder: v for v, placeholder in parents.items()}}
    found = graph_replace([plain(density), _allowed(alone, plain(density), value)], drawn, strict=False)
    return found[0], found[1]


def _allowed(alone: Any, density: Any, value: Any) -> Any:
    """Whether parameters of a variable are numbers that PyMC's own checks allow, whatever its value."""
    checks = [v.owner for v in ancestors([density]) if v.owner and isinstance(v.owner.op, CheckParameterValue)]
    conditions = [c for node in checks for c in node.inputs[1:] if value not in set(ancestors([c]))]
    node = alone.owner
    parameters = node.op.dist_params(node) if isinstance(node.op, RandomVariable) else []
    numbers = [~pt.isnan(p).any() for p in map(plain, parameters) if p.type.dtype.startswith("float")]
    return pt.all(pt.stack([pt.constant(True), *(pt.as_tensor(c).all() for c in conditions), *numbers]))


def _sort_exchangeable(model: pm.Model, outputs: list[Any], given: Mapping[Any, Any]) -> list[Any]:
    """Sort independent, identically distributed elements that an ordering transform restricts.

    The density under the transform is that of the ordered vector; for exchangeable elements, sorting draws from it
    where rejecting would keep one draw in k!.
    """
    replacements: dict[Any, Any] = {}
    for rv in sorted_variables(model):
        if rv in given:
            continue
        sign = 1 if model.rvs_to_transforms[rv].ascending else -1
        replacements[rv] = sign * pt.sort(sign * rv, axis=-1)
    return graph_replace(outputs, replacements, strict=False) if replacements else outputs


def sorted_variables(model: pm.Model) -> list[Any]:
    """Free variables whose draws are sorted rather than rejected."""
    found: list[Any] = []
    for rv in model.free_RVs:
        if not isinstance(model.rvs_to_transforms[rv], Ordered) or not _identically_distributed(rv):
            continue
        if set(found).isdisjoint(ancestors([rv])):  # else its parent is sorted already: left to rejection
            found.append(rv)
    return found


def log_orderings(spec: ModelSpec) -> float:
    """Log of how many orderings of prior draws the simulator takes for the one that the density allows.

    The density of a vector of k exchangeable elements under an ordering transform integrates to 1 / k!.
    """
    shapes = {p.name: p.shape for p in (*spec.drawn, *spec.nuisance)}
    total = 0.0
    for rv in sorted_variables(spec.model):
        *batch, length = shapes[rv.name]
        total += math.prod(batch) * math.lgamma(length + 1)
    return total


def _identically_distributed(rv: Any) -> bool:
    op = rv.owner.op
    if not isinstance(op, RandomVariable) or op.ndim_supp > 0 or rv.type.ndim == 0:
        return False
    return all(p.type.ndim == 0 or p.type.broadcastable[-1] for p in op.dist_params(rv.owner))
