"""Which values an observed variable can have whatever the parameters are: read off its distribution.

Bounds of continuous distributions are those of PyMC's default transforms, bounds of counts stand in :data:`COUNTS`. A
bound that depends on a parameter says nothing: only data sets with no possible parameter at all are refused here, and
no possible one is. What is not known (a ``CustomDist``, a ``Simulator``) has no bounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.distributions.transforms import _default_transform
from pymc.logprob.transforms import IntervalTransform, LogOddsTransform, LogTransform, SimplexTransform
from pytensor.graph.replace import clone_replace, graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.xtensor.type import XTensorType

from pymc_amortized.graph.data.datasets import DataSets, gaps_of
from pymc_amortized.graph.model.operations import core_op, op_name, walk
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.step import held_constants, length_inputs, own_log_density
from pymc_amortized.graph.model.tensors import INTERPRETED, interpret, like, plain_input
from pymc_amortized.numerics.threads import TURN

Bounds = tuple[Any, Any]
"""Smallest and largest value: numbers, or graphs that broadcast with the variable."""
NONE: Bounds = (-np.inf, np.inf)
COUNTS: dict[str, Callable[..., Bounds]] = {
    "BernoulliRV": lambda p: (0, 1),
    "BetaBinomialRV": lambda n, alpha, beta: (0, n),
    "BinomialRV": lambda n, p: (0, n),
    "CategoricalRV": lambda p: (0, np.inf if p.type.shape[-1] is None else p.type.shape[-1] - 1),
    "DiracDeltaRV": lambda c: (c, c),
    "DirichletMultinomialRV": lambda n, a: (0, n),
    "DiscreteUniformRV": lambda lower, upper: (lower, upper),
    "DiscreteWeibullRV": lambda q, beta: (0, np.inf),
    "GeometricRV": lambda p: (1, np.inf),
    "HyperGeometricRV": lambda good, bad, n: (0, n),
    "MultinomialRV": lambda n, p: (0, n),
    "NegBinomialRV": lambda n, p: (0, np.inf),
    "PoissonRV": lambda mu: (0, np.inf),
}
"""Bounds of distributions that have no transform, by their parameters."""
PRIOR_DRAWS = 100
"""At which the density at an end of a range is tried: often there is one only where a parameter is 1, say."""


def bounds_of(rv: Any) -> Bounds:
    """Find the bounds of a variable; those that depend on random variables are infinite."""
    lower, upper = _bounds(rv)
    return (-np.inf if _is_random(lower) else lower, np.inf if _is_random(upper) else upper)


def _is_random(bound: Any) -> bool:
    graph = walk([bound], through_shapes=False) if hasattr(bound, "type") else ()
    return any(isinstance(v.type, RandomType) for v in graph)


def _bounds(rv: Any) -> Bounds:
    node, op, name = rv.owner, core_op(rv), op_name(rv)
    if any("MixtureRV" in cls.__name__ for cls in type(op).__mro__):
        return _hull([bounds_of(component) for component in node.inputs[2:]])
    if name == "TruncatedRV":
        *inputs, lower, upper = node.inputs
        base = bounds_of(op.base_rv_op.make_node(*inputs).default_output())
        return pt.maximum(base[0], lower), pt.minimum(base[1], upper)
    if name == "CensoredRV":
        base, lower, upper = node.inputs
        return tuple(pt.clip(bound, lower, upper) for bound in bounds_of(base))
    if node is None or not hasattr(op, "ndims_params"):
        return NONE
    parameters = _parameters(rv, op)
    if name in COUNTS:
        lower, upper = COUNTS[name](*parameters)
        return _padded(rv, op, lower), _padded(rv, op, upper)
    transform = _default_transform(op, rv)
    if isinstance(transform, IntervalTransform):
        inputs = [node.inputs[0], None, *parameters] if isinstance(op, RandomVariable) else node.inputs
        lower, upper = transform.args_fn(*inputs)
        return -np.inf if lower is None else lower, np.inf if upper is None else upper
    if isinstance(transform, LogOddsTransform | SimplexTransform):
        return 0, 1
    return (0, np.inf) if isinstance(transform, LogTransform) else NONE


def _hull(each: Sequence[Bounds]) -> Bounds:
    """Bounds of a mixture: of the only component, along whose axis it mixes, or of several."""
    lower, upper = zip(*each, strict=True)
    if len(each) == 1:
        return _over_all(pt.min, lower[0]), _over_all(pt.max, upper[0])
    numbers = not any(hasattr(b, "type") for b in (*lower, *upper))
    smaller, larger = (min, max) if numbers else (pt.minimum, pt.maximum)
    return reduce(smaller, lower), reduce(larger, upper)


def _over_all(extreme: Callable[[Any], Any], bound: Any) -> Any:
    return extreme(bound) if hasattr(bound, "type") else bound


def _parameters(rv: Any, op: Any) -> list[Any]:
    """Take the parameters that a variable is drawn by; dims are laid out along its own, and others after them."""
    given = rv.owner.inputs[-len(op.ndims_params) :]
    return [_along(rv.type.dims, v) if isinstance(v.type, XTensorType) else v for v in given]


def _along(dims: Sequence[str], var: Any) -> Any:
    own = var.type.dims
    places = [own.index(d) if d in own else "x" for d in dims]
    return var.values.dimshuffle([*places, *(i for i, d in enumerate(own) if d not in dims)])


def _padded(rv: Any, op: Any, bound: Any) -> Any:
    """Give a bound the axes that a multivariate variable has beyond its parameters; with dims it has them."""
    plain_graph = hasattr(bound, "type") and not isinstance(rv.type, XTensorType)
    return pt.shape_padright(bound, op.ndim_supp) if plain_graph and op.ndim_supp else bound


@dataclass(frozen=True)
class Supports:
    """Bounds of the observed variables of a model, for any data set.

    Attributes
    ----------
    bounds : dict of name to (lower, upper)
        Of those that have some.
    """

    spec: ModelSpec
    bounds: dict[str, Bounds]

    @classmethod
    def of(cls, spec: ModelSpec) -> "Supports":
        """Read them off a model, once."""
        return spec.once(cls, None, lambda: cls._read(spec))

    @classmethod
    def _read(cls, spec: ModelSpec) -> "Supports":
        found = {v.name: bounds_of(spec.model[v.name]) for v in spec.observed}
        return cls(spec, {name: bounds for name, bounds in found.items() if bounds != NONE})

    def at(self, data: Mapping[str, Any]) -> dict[str, Bounds]:
        """Return the bounds as numbers, for one data set and its lengths."""
        graphs = [b for bounds in self.bounds.values() for b in bounds if hasattr(b, "type")]
        if not graphs:
            return self.bounds
        names, function = self.spec.once((type(self), "graphs"), None, lambda: self._compiled(graphs))
        values = iter(function(*[data[name] for name in names]))
        return {
            name: tuple(next(values) if hasattr(b, "type") else b for b in bounds)
            for name, bounds in self.bounds.items()
        }

    def _compiled(self, graphs: list[Any]) -> tuple[list[str], Callable[..., Any]]:
        spec = self.spec
        graphs = clone_replace(graphs, held_constants(spec), rebuild_strict=False)
        used = set(ancestors(graphs))
        context = [c for c in spec.context if spec.variable(c.name) in used]
        symbols = {c.name: plain_input(c.name, c.dtype, c.shape) for c in context}
        lengths = {shared: new for shared, new in length_inputs(spec).items() if shared in used}
        replaced = {spec.variable(name): like(spec.variable(name), symbol) for name, symbol in symbols.items()}
        graphs = graph_replace(graphs, replaced | lengths, strict=False)
        names = [*symbols, *(new.name for new in lengths.values())]
        return names, interpret([*symbols.values(), *lengths.values()], graphs)

    def excludes(self, name: str, end: float) -> bool:
        """Whether a continuous variable has no finite density at an end of its range, at prior draws of parameters.

        Not known where covariates, which other data sets have others of, or other elements say what it is there.
        """
        rv = self.spec.model[name]
        others = {self.spec.variable(v.name) for v in self.spec.inputs if v.name != name}
        if getattr(core_op(rv), "ndim_supp", 1) > 0 or others.intersection(ancestors(rv.owner.inputs)):
            return False
        return self.spec.once((type(self), name, end), None, lambda: self._excluded(name, end))

    def _excluded(self, name: str, end: float) -> bool:
        spec = self.spec
        rv = spec.model[name]
        ends = like(rv, pt.constant(np.full(spec.held[name].shape, end, dtype=rv.type.dtype)))
        at_end = graph_replace([own_log_density(spec.model, rv)[0]], {rv: ends}, strict=False)
        (density,) = clone_replace(at_end, held_constants(spec), rebuild_strict=False)
        with TURN, np.errstate(all="ignore"):
            drawn = pm.draw(density, draws=PRIOR_DRAWS, random_seed=0, **INTERPRETED)
        return not np.isfinite(drawn).any()

    def fault(self, data: Mapping[str, Any]) -> str | None:
        """Say which value of a data set is possible at no parameters; None where all are possible."""
        for name, (lower, upper) in self.at(data).items():
            values = np.asarray(data[name])
            outside = (values < lower) | (values > upper)
            lacking = []
            if values.dtype.kind == "f":
                for end in (lower, upper):
                    at_end = values == end if isinstance(end, int) else np.False_
                    if np.any(at_end) and self.excludes(name, end):
                        outside |= at_end
                        lacking.append(end)
            outside &= ~data.get(gaps_of(name), np.False_)
            if outside.any():
                place = tuple(int(i) for i in np.argwhere(outside)[0])
                low, high = (np.broadcast_to(b, values.shape)[place] for b in (lower, upper))
                whole = "" if values.dtype.kind == "f" else "whole "
                allowed = f"{whole}numbers {_range(low, high, lacking)} ({_name(self.spec.model[name])})"
                return f"{name!r} must hold {allowed}; got {values[place]} at {place}"
        return None


def _range(lower: float, upper: float, lacking: Sequence[float]) -> str:
    low = f"above {lower:g}" if lower in lacking else f"from {lower:g}"
    high = f"below {upper:g}" if upper in lacking else f"up to {upper:g}"
    return " ".join(text for text, end in ((low, lower), (high, upper)) if np.isfinite(end))


def _name(rv: Any) -> str:
    return (getattr(core_op(rv), "_print_name", None) or (op_name(rv).removesuffix("RV"),))[0]


def refuse_impossible(specs: Sequence[ModelSpec], datasets: DataSets) -> None:
    """Refuse data sets with a value that none of some models can produce, whatever the parameters are.

    Raises
    ------
    ValueError
        Naming the data set, the variable, the value and its place, and what is allowed.
    """
    supports = [Supports.of(spec) for spec in specs]
    if not all(s.bounds for s in supports):
        return
    for i, label in enumerate(datasets.labels):
        faults = [s.fault(datasets.one(s.spec, i)) for s in supports]
        if all(faults):
            raise ValueError(f"data set {label}: {faults[0]}" if datasets.batched else faults[0])


def refuse_impossible_held(specs: Sequence[ModelSpec]) -> None:
    """Refuse models that hold such data; what is all 0 or all 1, or may have gaps, is a placeholder.

    Raises
    ------
    ValueError
    """
    faults = [Supports.of(spec).fault(_held(spec)) if spec.holds_data else None for spec in specs]
    if all(faults):
        raise ValueError(f"the data in the model: {faults[0]}")


def _held(spec: ModelSpec) -> dict[str, Any]:
    """What the model holds, as one data set; placeholders are gaps."""
    data: dict[str, Any] = dict(spec.held)
    for v in spec.data:
        data |= v.lengths(data[v.name].shape)
    return data | {gaps_of(v.name): np.True_ for v in spec.observed if _is_placeholder(v, data[v.name])}


def _is_placeholder(variable: DataVariable, value: np.ndarray) -> bool:
    return variable.missing or not value.any() or bool((value == 1).all())
