"""The prior predictive distribution of a model as one compiled, batched function.

One simulation draws every random variable once. It is usable if the model gives each variable's draw a finite log
density, and its transform a finite image (:mod:`pymc_amortized.graph.simulation.checks`): random number generators
accept parameters that the density refuses (a negative scale, an unordered vector under an ordering transform), and such
draws are not draws of the model. Others are, but cannot be written down: counts overflow, and what lies near a bound is
rounded to it. Both are dropped, and counted apart.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from pytensor.graph.replace import graph_replace

from pymc_amortized.graph.data.simulations import (
    SimulationError,
    Simulations,
    concatenate,
    excluded,
    raised,
    rounded,
)
from pymc_amortized.graph.model.operations import DrawnShapeError
from pymc_amortized.graph.model.sizes import at, padded
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import FINE, ROUNDED, given_parameters, length_inputs, simulation_graph
from pymc_amortized.graph.model.tensors import CompileKwargs, Loop, batched_input, evaluated_shapes, like
from pymc_amortized.graph.simulation.checks import Checks
from pymc_amortized.graph.simulation.ordered import OrderedDraws

LARGEST_CHUNK = 8192
"""Simulations in one call, at most."""
SMALLEST_ACCEPTANCE = 0.01
"""Below this share of usable simulations a model is refused: rejection would cost 100 times the simulator."""

Arrays = dict[str, np.ndarray]
Contexts = Arrays | Callable[[int, np.random.SeedSequence, dict[str, int]], Arrays]
"""Values of context variables, each (n, *shape), or what draws them."""


class Attempts:
    """Attempts simulations of a model, at sizes and contexts that are given.

    Parameters
    ----------
    spec : ModelSpec
    deterministics : sequence of str
        Names of the deterministics that are computed too.
    given : bool
        Whether parameters are given like the context, by their names, instead of drawn; locals are drawn anew.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        deterministics: Sequence[str] = (),
        *,
        given: bool = False,
        compile_kwargs: CompileKwargs | None = None,
    ) -> None:
        self.spec = spec
        self._variable_names = [*(p.name for p in spec.drawn), *deterministics]
        self._value_names = [*self._variable_names, *(v.name for v in spec.observed)]
        self._given = given
        self._compile_kwargs = compile_kwargs
        self._ordered = OrderedDraws(spec)
        # without a joint density of parameters alone each draw is checked as it is made
        each = spec.density_obstacle or spec.locals or spec.open_ended
        self._checks = None if each else Checks(spec, compile_kwargs)

    def __call__(self, n: int, seed: np.random.SeedSequence, lengths: dict[str, int], context: Arrays) -> Simulations:
        """Attempt one simulation at each of `n` values of the context; further arrays are kept beside the draws."""
        loop = self._loop  # a graph that cannot be compiled is no failed simulation
        if self._checks is not None:
            self._checks.compile()
        names = [c.name for c in self.spec.context] + [p.name for p in self.spec.parameters if self._given]
        own: Arrays = {}
        out_of_order: dict[str, int] = {}
        if self._drawn_alone:
            ordered_seed, seed = seed.spawn(2)
            own, out_of_order = self._ordered(n, ordered_seed)
        given = [context[name] for name in names] + list(own.values())
        try:
            outputs = loop(n, seed, given, [lengths[r.dim] for r in self.spec.sizes])
            made = self._usable(outputs, lengths, context)
        except DrawnShapeError as error:
            raise SimulationError(str(error).splitlines()[0]) from None
        except Exception as error:  # a model's own function may raise anything
            nothing = self.nothing(f"{type(error).__name__}: {error}".splitlines()[0], lengths, context)
            if n == 1:
                return nothing
            # compiled code does not say which draw raised: draw anew, in halves, until it stands alone
            half = n // 2
            parts = zip((slice(half), slice(half, n)), seed.spawn(2), strict=True)
            halves = [
                self(part.stop - (part.start or 0), child, lengths, {k: v[part] for k, v in context.items()})
                for part, child in parts
            ]
            return concatenate([nothing, *halves])
        # counted as if all else had been simulated of them
        dropped = dict(Counter(made.dropped) + Counter(out_of_order))
        return replace(made, attempted=made.attempted + sum(out_of_order.values()), dropped=dropped)

    def compile(self, lengths: Mapping[str, int], context: Arrays) -> None:
        """Compile all that simulating takes, with values of the context for no simulation."""
        own = self._ordered(0, np.random.SeedSequence(0))[0] if self._drawn_alone else {}
        given = [*(context[c.name] for c in self.spec.context), *own.values()]
        self._loop(0, np.random.SeedSequence(0), given, [lengths[r.dim] for r in self.spec.sizes])
        if self._checks is not None:
            self._checks.compile()

    def of_lengths(
        self, n: int, seed: int | np.random.SeedSequence, lengths: dict[str, int], context: Contexts
    ) -> Simulations:
        """Attempt until `n` usable simulations of one size are there; the lengths are among their data."""
        seed, parts = fresh(seed), []
        attempted = usable = 0
        while usable < n and attempted < n / SMALLEST_ACCEPTANCE:
            context_seed, child = seed.spawn(2)
            parts.append(self(n, child, lengths, context(n, context_seed, lengths) if callable(context) else context))
            attempted, usable = attempted + n, usable + len(parts[-1])
        return _with_lengths(concatenate(parts).take(slice(n)), lengths)

    def of_contexts(
        self, n: int, seed: np.random.SeedSequence, lengths: dict[str, int], context: Arrays
    ) -> Simulations:
        """Attempt until there is a usable simulation at each of `n` values of the context, in that order.

        What is dropped may depend on the context; draws from those that are left would come from other contexts. There
        are fewer where hardly any simulation at some context can be used.
        """
        if not self.spec.context:  # nothing depends on it
            return self.of_lengths(n, seed, lengths, context)
        row = "number of the context"
        seed, parts, without, attempted = fresh(seed), [], np.arange(n), 0
        found = np.empty(0, dtype=int)
        while len(without) and attempted < n / SMALLEST_ACCEPTANCE:
            _, child = seed.spawn(2)
            # of fewer than 32, the call itself takes most of the time
            rows = np.resize(without, max(len(without), min(n, 32)))
            made = self(len(rows), child, lengths, {k: v[rows] for k, v in context.items()} | {row: rows})
            of_row, first = np.unique(made.data.pop(row), return_index=True)
            parts.append(made.take(first))
            found, attempted = np.concatenate([found, of_row]), attempted + len(rows)
            without = np.setdiff1d(without, of_row)
        return _with_lengths(concatenate(parts).take(np.argsort(found)), lengths)

    def padded(self, made: Simulations, lengths: Mapping[str, int]) -> Simulations:
        """Fill arrays of one size up to the largest lengths."""
        if not lengths:
            return made
        n, model, ends = len(made), self.spec.model, self.spec.largest
        dims = {name: tuple(model.named_vars_to_dims.get(name) or ()) for name in self._variable_names}
        shapes = {v.name: v.shape_at(ends) for v in self.spec.data}
        return replace(
            made,
            variables={k: padded(v, (n, *at(self._shapes[k], dims[k], ends))) for k, v in made.variables.items()},
            data={k: padded(v, (n, *shapes[k])) for k, v in made.data.items()},
            missing={k: padded(v, (n, *shapes[k])) for k, v in made.missing.items()},
            lengths={dim: np.full(n, length) for dim, length in lengths.items()},
        )

    @property
    def _drawn_alone(self) -> list[str]:
        return [] if self._given else self._ordered.names

    @property
    def largest_chunk(self) -> int:
        """Simulations that are made in one call of some 64 MiB, where all are of one size."""
        shapes = [self._shapes[n] for n in self._variable_names]
        shapes += [v.shape_at(self.spec.largest) for v in self.spec.data]
        each = 8 * (self.spec.dim + sum(int(np.prod(s, dtype=int)) for s in shapes))
        return int(np.clip(64 * 2**20 // each, 1, LARGEST_CHUNK))

    def _usable(self, outputs: list[np.ndarray], lengths: dict[str, int], context: Arrays) -> Simulations:
        theta, *values = outputs
        named = dict(zip(self._value_names, values, strict=False))
        if self._checks is None:
            doubtful, checks = np.ones(len(theta), dtype=bool), values[-1]
        else:
            doubtful, checks = self._checks(theta, named | context, lengths)
        observed = {v.name: named.pop(v.name) for v in self.spec.observed}
        data = {**observed, **context}  # also what this model does not read
        everything = Simulations(theta, named, data, len(theta))
        checks = checks[wrong := (checks != FINE).any(axis=1)]
        if not len(checks):
            return everything
        fine = ~doubtful
        fine[doubtful] = ~wrong
        names, first = [rv.name for rv in self.spec.model.basic_RVs], (checks != FINE).argmax(axis=1)
        found = zip(first.tolist(), checks[np.arange(len(first)), first].tolist(), strict=True)
        dropped = Counter(rounded(names[i]) if why == ROUNDED else excluded(names[i]) for i, why in found)
        return replace(everything.take(fine), attempted=len(theta), dropped=dict(dropped))

    def nothing(self, reason: str, lengths: dict[str, int], context: Arrays) -> Simulations:
        """One attempted simulation that raised."""
        spec, model = self.spec, self.spec.model
        return Simulations(
            np.empty((0, spec.dim)),
            {n: np.empty((0, *self._shapes[n]), model[n].type.dtype) for n in self._variable_names},
            {v.name: np.empty((0, *v.shape_at(lengths)), v.dtype) for v in spec.observed}
            | {name: values[:0] for name, values in context.items()},
            1,
            {raised(reason): 1},
        )

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        model = self.spec.model
        return evaluated_shapes(model, [model[name] for name in self._variable_names])

    @property
    def _loop(self) -> Loop:
        what = (type(self), *self._value_names, self._given)
        return self.spec.once(what, self._compile_kwargs, self._compiled)

    def _compiled(self) -> Loop:
        """The compiled loop: the flat parameters, every named value, and checks if they are made here."""
        spec, model = self.spec, self.spec.model
        slices, drawn = given_parameters(spec)
        wanted = [p.name for p in spec.parameters] if self._given else self._drawn_alone
        kept = [i for i, name in enumerate(slices) if name in wanted]
        slices, drawn = {name: slices[name] for i, name in enumerate(slices) if i in kept}, [drawn[i] for i in kept]
        outputs = simulation_graph(
            spec,
            self._value_names,
            {model[name]: like(model[name], symbol) for name, symbol in slices.items()},
            checked=self._checks is None,
        )
        sequences = [*((model[c.name], batched_input(c.name, c.dtype, c.shape)) for c in spec.context), *drawn]
        lengths = length_inputs(spec)
        outputs = graph_replace(outputs, lengths, strict=False) if lengths else outputs
        return Loop(
            outputs,
            sequences=sequences,
            inputs=list(lengths.values()),
            compile_kwargs=self._compile_kwargs,
            what="the simulator",
        )


def fresh(seed: int | np.random.SeedSequence) -> np.random.SeedSequence:
    """Copy a seed sequence, which spawning would change."""
    if isinstance(seed, np.random.SeedSequence):
        return np.random.SeedSequence(entropy=seed.entropy, spawn_key=seed.spawn_key, pool_size=seed.pool_size)
    return np.random.SeedSequence(seed)


def _with_lengths(made: Simulations, lengths: Mapping[str, int]) -> Simulations:
    return replace(made, data=made.data | {dim: np.full(len(made), length) for dim, length in lengths.items()})
