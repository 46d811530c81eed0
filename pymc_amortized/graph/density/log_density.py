"""The model's own log density, and the way from unconstrained draws to its variables, for many draws at once."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.logprob import transformed_conditional_logp
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.model.operations import has_density
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec, Parameter
from pymc_amortized.graph.model.step import flat_unconstrained, given_parameters, held_constants, length_inputs
from pymc_amortized.graph.model.tensors import (
    CompileKwargs,
    Loop,
    batched_input,
    call_in_halves,
    evaluated_shapes,
    interpret,
    like,
    plain,
    plain_input,
    split_vector,
)

Data = Mapping[str, np.ndarray]


class _DrawFunctions:
    """Graphs in terms of a flat vector of unconstrained parameters and of the data."""

    def __init__(self, spec: ModelSpec, compile_kwargs: CompileKwargs | None = None) -> None:
        self.spec = spec
        self._compile_kwargs = compile_kwargs
        self._vector = pt.vector(
            "theta", shape=(None if spec.locals or spec.open_ended else spec.dim,), dtype="float64"
        )

    what = "the log density"
    """What is compiled, as users are told."""

    @property
    def _function(self) -> Loop:
        """The compiled function of draws and data."""
        return self._once("function", self._graphs)

    def _graphs(self) -> list[Any]:
        """What it computes."""
        raise NotImplementedError

    @property
    def _kind(self) -> tuple[Any, ...]:
        """What tells its functions from others of the same spec."""
        return (type(self),)

    def _once(self, name: str, graphs: Callable[[], list[Any]]) -> Loop:
        return self.spec.once((*self._kind, name), self._compile_kwargs, lambda: self._compile(graphs()))

    def _in_terms_of_inputs(self, graphs: list[Any], data: Mapping[str, Any]) -> list[Any]:
        """Put the flat vector in the place of the value variables, and inputs in that of the data."""
        spec, model = self.spec, self.spec.model
        values = [model.rvs_to_values[model[p.name]] for p in spec.drawn]
        lengths = {r.dim: data[r.dim] for r in spec.sizes}
        parts = split_vector(self._vector, [p.unconstrained_at(lengths) for p in spec.drawn])
        replacements: dict[Any, Any] = {
            value: like(value, part.astype(value.type.dtype)) for value, part in zip(values, parts, strict=True)
        }
        for variable in spec.inputs:
            var = spec.variable(variable.name)
            old = model.rvs_to_values.get(var, var)
            replacements[old] = like(old, data[variable.name])
        for r in spec.sizes:
            replacements[model.dim_lengths[r.dim]] = data[r.dim]
        return graph_replace(graphs, replacements, strict=False)

    def _inputs(self) -> dict[str, Any]:
        """What is the same for all draws: data, and lengths of dimensions."""
        data = {v.name: plain_input(v.name, v.dtype, v.shape) for v in self.spec.inputs}
        return data | {shared.name: new for shared, new in length_inputs(self.spec).items()}

    @property
    def _input_names(self) -> list[str]:
        return [v.name for v in self.spec.inputs] + [r.dim for r in self.spec.sizes]

    def _compile(self, graphs: list[Any]) -> Loop:
        data = self._inputs()
        batch = batched_input("draws", "float64", self._vector.type.shape)
        return Loop(
            self._in_terms_of_inputs(graphs, data),
            sequences=[(self._vector, batch)],
            inputs=list(data.values()),
            compile_kwargs=self._compile_kwargs,
            what=self.what,
        )

    def _evaluate(self, theta: np.ndarray, data: Data) -> list[np.ndarray]:
        """Call the compiled function; NaN for draws at which compiled code raises."""
        inputs = [data[name] for name in self._input_names]
        return call_in_halves(
            self._function, [theta], inputs, lambda: [np.full((1, *shape), np.nan) for shape in self._shapes(data)]
        )

    def _shapes(self, data: Data) -> list[tuple[int, ...]]:
        """Shapes of what the compiled function returns for one draw."""
        raise NotImplementedError


class LogDensity(_DrawFunctions):
    """Joint log density of the value variables and the data, with Jacobians and potentials, as PyMC counts it."""

    def _graphs(self) -> list[Any]:
        return [self._total()]

    def _total(self) -> Any:
        """The graph, in terms of the model's value variables."""
        return self.spec.model.logp()

    def expression(self, theta: Any, data: Mapping[str, Any]) -> Any:
        """Return the log density as a scalar graph.

        Parameters
        ----------
        theta : vector variable (dim,)
        data : mapping of name to variable
            What stands for everything that :meth:`__call__` takes of a data set.
        """
        vector: Any = self._vector
        return graph_replace(self._in_terms_of_inputs([self._total()], data), {vector: theta}, strict=False)[0]

    def __call__(self, theta: np.ndarray, data: Data) -> np.ndarray:
        """Evaluate at `theta` (draws, dim) for one data set; returns (draws,).

        PyMC's density of a circular variable is periodic, and so improper; here it is that of one period.
        """
        log_density = self._evaluate(theta, data)[0]
        if self._circular.any():
            outside = (np.abs(theta[:, self._circular]) > np.pi).any(axis=1)
            log_density = np.where(outside, -np.inf, log_density)
        return log_density

    @cached_property
    def _circular(self) -> np.ndarray:
        return self.spec.circular

    def _shapes(self, data: Data) -> list[tuple[int, ...]]:
        return [()]


class LogPrior(LogDensity):
    """Log density of the value variables that are simulated: with Jacobians, without data and potentials."""

    what = "the log density of the prior"

    def _graphs(self) -> list[Any]:
        model = self.spec.model
        terms = _terms(model, [model[p.name] for p in self.spec.parameters])
        return [pt.add(*[plain(t).sum() for t in terms]) if len(terms) > 1 else plain(terms[0]).sum()]

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be evaluated; None where it can."""
        model = self.spec.model
        without = [p.name for p in self.spec.parameters if not has_density(model, model[p.name])]
        if self.spec.nuisance:
            return f"the marginal prior without {', '.join(p.name for p in self.spec.nuisance)} has no closed density"
        return f"{', '.join(without)} can be simulated only" if without else None


class Constrain(_DrawFunctions):
    """Free variables on their own scale and deterministics, from unconstrained draws."""

    what = "the way from draws to variables"

    @cached_property
    def names(self) -> list[str]:
        """Names of what is returned, in PyMC's order: free variables, then deterministics."""
        return [p.name for p in self.spec.drawn] + list(self.spec.deterministics)

    def _graphs(self) -> list[Any]:
        model = self.spec.model
        graphs = model.replace_rvs_by_values([model[name] for name in self.names])
        return [plain(g) for g in graphs]

    def __call__(self, theta: np.ndarray, data: Data) -> dict[str, np.ndarray]:
        """Map `theta` (draws, dim) to name -> (draws, *shape) for one data set."""
        return dict(zip(self.names, self._evaluate(theta, data), strict=True))

    def _shapes(self, data: Data) -> list[tuple[int, ...]]:
        model = self.spec.model
        shapes = evaluated_shapes(model, [model[name] for name in self.names])
        return [shapes[name] for name in self.names]


class Unconstrain:
    """Unconstrained parameters from variables on their own scale, for simulations made elsewhere."""

    def __init__(self, spec: ModelSpec, compile_kwargs: CompileKwargs | None = None) -> None:
        self.spec = spec
        self._compile_kwargs = compile_kwargs

    @property
    def _function(self) -> Loop:
        return self.spec.once(type(self), self._compile_kwargs, self._compiled)

    def _compiled(self) -> Loop:
        model = self.spec.model
        one, drawn = given_parameters(self.spec)
        replacements: dict[Any, Any] = {model[name]: like(model[name], symbol) for name, symbol in one.items()}
        sequences = [*drawn, *((model[c.name], batched_input(c.name, c.dtype, c.shape)) for c in self._context)]
        flat = flat_unconstrained(self.spec)
        replacements |= held_constants(self.spec)
        return Loop(
            graph_replace([flat], replacements, strict=False),
            sequences=sequences,
            compile_kwargs=self._compile_kwargs,
        )

    @cached_property
    def _interpreted(self) -> Any:
        """One draw, interpreted: for a few draws, compiling would take longer."""
        replacements: dict[Any, Any] = dict(held_constants(self.spec))
        inputs = []
        for v in self._wanted:
            var = self.spec.model[v.name]
            shape = v.open_shape if isinstance(v, Parameter) else v.shape
            inputs.append(plain_input(v.name, v.dtype, shape))
            replacements[var] = like(var, inputs[-1])
        (flat,) = graph_replace([flat_unconstrained(self.spec)], replacements, strict=False)
        return interpret(inputs, flat)

    def one(self, variables: Mapping[str, np.ndarray]) -> np.ndarray:
        """Map free and context variables of one draw, name -> (*shape), to (dim,)."""
        return self._interpreted(*[variables[v.name] for v in self._wanted])

    @property
    def _wanted(self) -> list[Parameter | DataVariable]:
        return [*self.spec.parameters, *self._context]

    @cached_property
    def _context(self) -> list[DataVariable]:
        """Context that a transform reads, such as a bound."""
        free = [self.spec.model[p.name] for p in self.spec.parameters]
        read = set(ancestors([flat_unconstrained(self.spec)], blockers=free))
        return [c for c in self.spec.context if self.spec.model[c.name] in read]

    def __call__(self, variables: Mapping[str, np.ndarray]) -> np.ndarray:
        """Map free and context variables, name -> (n, *shape), to (n, dim)."""
        values = [variables[v.name] for v in self._wanted]
        return self._function(len(values[0]), None, values)[0]


class LogDensityByVariable(_DrawFunctions):
    """Each variable's and potential's own part of the joint log density."""

    what = "the log density of each variable"

    def _graphs(self) -> list[Any]:
        model = self.spec.model
        with_density = [rv for rv in self._variables if rv in model.basic_RVs]
        graphs = _terms(model, with_density)
        graphs = model.replace_rvs_by_values([*graphs, *model.potentials])
        return [plain(g) for g in graphs]

    @cached_property
    def _variables(self) -> list[Any]:
        """Those that have a density."""
        model = self.spec.model
        return [rv for rv in model.basic_RVs if has_density(model, rv)] + list(model.potentials)

    def __call__(self, theta: np.ndarray, data: Data) -> dict[str, np.ndarray]:
        """Evaluate at `theta` (draws, dim) for one data set; returns name -> (draws, ...)."""
        values = self._function(len(theta), None, [theta], [data[name] for name in self._input_names])
        return dict(zip([v.name for v in self._variables], values, strict=True))


def _terms(model: pm.Model, variables: list[Any]) -> list[Any]:
    """Log density of each variable, by itself: model.logp derives that of all, and fails where one has none."""
    values = {rv: model.rvs_to_values[rv] for rv in variables}
    transforms = {rv: model.rvs_to_transforms[rv] for rv in variables}
    return list(transformed_conditional_logp(variables, rvs_to_values=values, rvs_to_transforms=transforms))
