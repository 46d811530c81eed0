"""What a model says once its free variables are given: predictions, and log densities variable by variable.

Both take the variables on their own scale, as results hold them: no transform is undone, so that values at the edge of
a support stay what they are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, reduce
from operator import and_
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pymc.logprob import transformed_conditional_logp
from pytensor.graph.replace import clone_replace, graph_replace
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.model.operations import has_density
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.step import flat_unconstrained, given_parameters, held_constants, length_inputs
from pymc_amortized.graph.model.tensors import INTERPRETED, CompileKwargs, Loop, interpret, like, plain, plain_input

Given = Mapping[str, np.ndarray]
"""Free variables on their own scale: name -> (n, *shape)."""
Data = Mapping[str, Any]
"""One data set: observed and context variables at their own lengths, and the lengths."""


def read_from_observed(spec: ModelSpec) -> list[str]:
    """Names of deterministics that are computed from observed variables, and so are predictions too."""
    model = spec.model
    observed = set(model.observed_RVs)
    return [name for name in spec.deterministics if not observed.isdisjoint(ancestors([model[name]]))]


class _Given:
    """What both have in common: free variables as sequences, context and lengths as inputs.

    Parameters
    ----------
    spec : ModelSpec
        All free variables must be among its parameters.
    names : sequence of str
        What is wanted.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(self, spec: ModelSpec, names: Sequence[str], compile_kwargs: CompileKwargs | None = None) -> None:
        self.spec, self.names = spec, tuple(names)
        self._compile_kwargs = compile_kwargs
        self._slices, self._sequences = given_parameters(spec)

    @cached_property
    def _lengths(self) -> dict[Any, Any]:
        return length_inputs(self.spec)

    def _draws(self, given: Given) -> list[np.ndarray]:
        return [np.ascontiguousarray(given[p.name], dtype=p.dtype) for p in self.spec.drawn]


class Predictive(_Given):
    """Observed variables, and what depends on them, drawn anew for each draw of the free variables."""

    def __call__(self, given: Given, data: Data, seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Draw name -> (n, *shape) for `n` draws of the free variables and the context of one data set."""
        names = [v.name for v in self._known] + [r.dim for r in self.spec.sizes] + list(self._further)
        draws = self._draws(given)
        values = self._loop(len(draws[0]), seed, draws, [data[name] for name in names])
        return dict(zip(self.names, values, strict=True))

    @property
    def _known(self) -> tuple[DataVariable, ...]:
        return self.spec.context

    @cached_property
    def _further(self) -> dict[str, Any]:
        return {}

    @property
    def _loop(self) -> Loop:
        return self.spec.once((type(self), self.names), self._compile_kwargs, self._compiled)

    def _compiled(self) -> Loop:
        model = self.spec.model
        known = {v.name: plain_input(v.name, v.dtype, v.shape) for v in self._known}
        replaced = {model[name]: like(model[name], symbol) for name, symbol in (self._slices | known).items()}
        outputs = clone_replace(
            self._outputs(replaced), held_constants(self.spec) | self._lengths, rebuild_strict=False
        )
        inputs = [*known.values(), *self._lengths.values(), *self._further.values()]
        return Loop(outputs, sequences=self._sequences, inputs=inputs, compile_kwargs=self._compile_kwargs)

    def _outputs(self, replaced: dict[Any, Any]) -> Any:
        return graph_replace([plain(self.spec.model[name]) for name in self.names], replaced, strict=False)


class PredictiveOfNewGroups(Predictive):
    """The same where some groups have no draws: they are drawn from their prior, given all other free variables.

    Data say by :func:`known` of each dim which of its entries have draws.

    Raises
    ------
    ValueError
        Where the prior of a group depends on other groups.
    """

    @cached_property
    def _further(self) -> dict[str, Any]:
        dims = dict.fromkeys(dim for p in self.spec.locals for dim in p.sized if dim)
        return {known(dim): plain_input(known(dim), "bool", (None,)) for dim in dims}

    def _outputs(self, replaced: dict[Any, Any]) -> Any:
        model, given = self.spec.model, dict(replaced)
        partly = {model[p.name]: p for p in self.spec.locals if any(p.sized)}
        for rv in (rv for rv in model.free_RVs if rv in partly):
            self._refuse_dependent(rv, partly[rv].sized)
            others = {old: new for old, new in given.items() if old is not rv}
            (fresh,) = graph_replace([plain(rv)], others, strict=False)
            behind = fresh.type.ndim - 1
            along = [(axis, self._further[known(dim)]) for axis, dim in enumerate(partly[rv].sized) if dim]
            drawn = reduce(and_, [pt.shape_padright(mask, behind - axis) for axis, mask in along])
            given[rv] = like(rv, pt.where(drawn, plain(given[rv]), fresh))
        return super()._outputs(given)

    def _refuse_dependent(self, rv: Any, sized: Sequence[str | None]) -> None:
        """Refuse variables of which one entry says something of others, given all other variables."""
        within = getattr(rv.owner.op, "ndim_supp", 0)
        together = [dim for dim in sized[max(len(sized) - within, 0) :] if dim] if within else []
        potentials = [p.name for p in self.spec.model.potentials if rv in ancestors([p])]
        if together or potentials:
            why = f"the potentials {potentials} read them" if potentials else f"along {together} they are one draw"
            raise ValueError(
                f"context: values of {rv.name!r} depend on each other ({why}), so those of new groups cannot be drawn "
                "alone: ask for groups that the result has"
            )


def known(dim: str) -> str:
    """Name under which data say which entries along a dim have draws."""
    return f"known {dim}"


class Redrawn(Predictive):
    """Variables, where some free ones are drawn anew from their prior, given all others.

    Parameters
    ----------
    spec, names, compile_kwargs
        As of the others.
    anew : collection of str
        Free variables.
    """

    def __init__(
        self, spec: ModelSpec, names: Sequence[str], anew: Collection[str], compile_kwargs: CompileKwargs | None = None
    ) -> None:
        super().__init__(spec, names, compile_kwargs)
        self._anew = frozenset(anew)

    @property
    def _loop(self) -> Loop:
        return self.spec.once((type(self), self.names, self._anew), self._compile_kwargs, self._compiled)

    def _outputs(self, replaced: dict[Any, Any]) -> Any:
        anew = {self.spec.model[name] for name in self._anew}
        return super()._outputs({old: new for old, new in replaced.items() if old not in anew})


class LocalsFromPrior(Predictive):
    """Locals on the scale of their value variables (n, number), drawn from their prior given the parameters."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, ["locals"], INTERPRETED)

    def _outputs(self, replaced: dict[Any, Any]) -> Any:
        anew = {self.spec.model[p.name] for p in self.spec.locals}
        given = {old: new for old, new in replaced.items() if old not in anew}
        flat = flat_unconstrained(replace(self.spec, parameters=self.spec.locals, locals=()))
        return graph_replace([flat], given, strict=False)


class Derived(Predictive):
    """Deterministics, from free variables and data."""

    @property
    def _known(self) -> tuple[DataVariable, ...]:
        return self.spec.data


class PredictiveGivenOthers(Predictive):
    """Observed variables drawn anew, each given the values of all the others."""

    @property
    def _known(self) -> tuple[DataVariable, ...]:
        return self.spec.data

    def _outputs(self, replaced: dict[Any, Any]) -> Any:
        variables = [self.spec.model[name] for name in self.names]
        others = [{old: new for old, new in replaced.items() if old is not v} for v in variables]
        return [graph_replace([plain(v)], o, strict=False)[0] for v, o in zip(variables, others, strict=True)]


class LogDensityGiven(_Given):
    """Log density of each variable given its parents: one term for each of its values, or of its rows."""

    def __call__(self, given: Given, data: Data) -> dict[str, np.ndarray]:
        """Evaluate name -> (n, ...) at `n` draws of the free variables, for one data set."""
        names = [v.name for v in self.spec.data] + [r.dim for r in self.spec.sizes]
        draws = self._draws(given)
        values = self._function(len(draws[0]), None, draws, [data[name] for name in names])
        return dict(zip(self.names, values, strict=True))

    @property
    def _function(self) -> Loop:
        return self.spec.once((type(self), self.names), self._compile_kwargs, self._compiled)

    def _compiled(self) -> Loop:
        graphs, data = self._terms()
        return Loop(graphs, sequences=self._sequences, inputs=data, compile_kwargs=self._compile_kwargs)

    @cached_property
    def once(self) -> Any:
        """The same for one draw, interpreted: free variables and data -> terms."""
        graphs, data = self._terms()
        inputs = [*self._slices.values(), *data]
        return interpret(inputs, graphs)

    def _terms(self) -> tuple[list[Any], list[Any]]:
        """The graph of each term, and its inputs but for the free variables."""
        spec, model = self.spec, self.spec.model
        data = {v.name: plain_input(v.name, v.dtype, v.shape) for v in spec.data}
        values = {rv: rv.type() for rv in model.basic_RVs if has_density(model, rv)}
        terms = transformed_conditional_logp(
            [model[name] for name in self.names], rvs_to_values=values, rvs_to_transforms={}, jacobian=False
        )
        observed = {v.name for v in spec.observed}
        replaced: dict[Any, Any] = {}
        for name, symbol in (self._slices | data).items():
            old = model[name] if name not in self._slices and name not in observed else values.get(model[name])
            if old is not None:
                replaced[old] = like(old, symbol)
        graphs = graph_replace([plain(term) for term in terms], replaced, strict=False)
        graphs = clone_replace(graphs, held_constants(spec) | self._lengths, rebuild_strict=False)
        return graphs, [*data.values(), *self._lengths.values()]
