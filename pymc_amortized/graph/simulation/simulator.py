"""The prior predictive distribution of a model as one compiled, batched function.

One simulation draws every random variable once. Beside the values, the compiled step returns for each variable whether
the model gives that draw a finite log density (and its transform a finite image): random number generators
accept parameters that the density refuses (a negative scale, an overflowing rate, an unordered vector under
an ordering transform), and such draws are not draws of the model. They are dropped and counted.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from pytensor.graph.replace import graph_replace

from pymc_amortized.graph.data.simulations import Simulations, concatenate
from pymc_amortized.graph.model.sizes import at, group_sizes, padded
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import length_inputs, simulation_graph
from pymc_amortized.graph.model.tensors import CompileKwargs, DrawLoop, batched_input, evaluated_shapes
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.parallel import Task, Workers, in_chunks

CHUNK_BYTES = 64 * 2**20
LARGEST_CHUNK = 8192
SMALLEST_ACCEPTANCE = 0.01
"""Below this share of usable simulations a model is refused: rejection would cost 100 times the simulator."""
FEW = 32
"""Simulations that tell a model of which each one raises."""
FEWEST_AT_ONCE = 32
"""Simulations: of fewer, the call itself takes most of the time."""
_ROW = "number of the context"


class SimulationError(ValueError):
    """Hardly any simulation of the model can be used."""


class Simulator:
    """Compiled simulator of a model's prior predictive distribution.

    Parameters
    ----------
    spec : ModelSpec
    context : ContextSampler, optional
        Where the values of context variables come from.
    deterministics : bool or sequence of str
        Whether to return deterministics too, or which; training does not need them.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        context: ContextSampler | None = None,
        deterministics: bool | Sequence[str] = True,
        compile_kwargs: CompileKwargs | None = None,
    ) -> None:
        self.spec = spec
        self.context = context or ContextSampler(spec, {})
        named = deterministics if not isinstance(deterministics, bool) else None
        self._deterministics = tuple(named) if named is not None else spec.deterministics if deterministics else ()
        self._compile_kwargs = compile_kwargs
        self._ends_checked = False
        self._sketch: Callable[[Simulations], np.ndarray] | None = None

    def sketching(self, sketch: Callable[[Simulations], np.ndarray] | None) -> Simulator:
        """Return the same, whose simulations come with a sketch of their posteriors, (n, width), or without."""
        simulator = copy.copy(self)
        simulator._sketch = sketch
        return simulator

    def __call__(
        self,
        n: int,
        seed: int | np.random.SeedSequence,
        *,
        cores: int = 1,
        mixed: bool = True,
        workers: Workers | None = None,
    ) -> Simulations:
        """Simulate until `n` usable draws are there.

        Where sizes differ they are made in groups of one size, and then mixed unless that is not wanted. The result is
        a pure function of `n` and `seed`: it does not depend on `cores`, or on whether `workers` make them.

        Raises
        ------
        SimulationError
            When fewer than one in a hundred simulations can be used.
        """
        seed = _fresh(seed)
        self.check_ends()
        parts: list[Simulations] = []
        usable = attempted = 0
        while usable < n:
            rate = max(usable / attempted, SMALLEST_ACCEPTANCE) if attempted else 1.0
            sizes = self._chunk_sizes(int(np.ceil((n - usable) / rate)))
            tasks = list(zip(sizes, seed.spawn(len(sizes)), strict=True))
            parts += in_chunks(self, tasks, cores=cores, workers=workers)
            usable = sum(len(p) for p in parts)
            attempted = sum(p.attempted for p in parts)
            if attempted >= 1000 and usable < SMALLEST_ACCEPTANCE * attempted:
                raise SimulationError(_too_few(concatenate(parts)))
        simulations = concatenate(parts)
        if not self.spec.sizes or not mixed:
            return simulations if len(simulations) == n else simulations.take(slice(n))
        (mixing,) = seed.spawn(1)  # sizes come in groups, and are wanted in any order
        return simulations.take(np.random.default_rng(mixing).permutation(len(simulations))[:n])

    def of_lengths(
        self,
        n: int,
        seed: np.random.SeedSequence,
        lengths: dict[str, int],
        context: dict[str, np.ndarray] | None = None,
    ) -> Simulations:
        """Simulate until `n` usable draws of one size are there; the lengths are among their data.

        Values of the context variables, each (n, *shape), may be given instead of drawn; further arrays are kept beside
        the draws.
        """
        seed, parts = _fresh(seed), []
        attempted = usable = 0
        while usable < n and attempted < n / SMALLEST_ACCEPTANCE:
            context_seed, child = seed.spawn(2)
            given = self.context(n, context_seed, lengths) if context is None else context
            parts.append(self._chunk(n, child, given, lengths))
            attempted, usable = attempted + parts[-1].attempted, usable + len(parts[-1])
        made = concatenate(parts).take(slice(n))
        return replace(made, data=made.data | {dim: np.full(len(made), length) for dim, length in lengths.items()})

    def of_contexts(
        self, n: int, seed: np.random.SeedSequence, lengths: dict[str, int], context: dict[str, np.ndarray]
    ) -> Simulations:
        """Simulate until there is a usable draw at each of `n` values of the context, in that order.

        What is dropped may depend on the context; draws from those that are left would come from other contexts. There
        are fewer where hardly any simulation at some context can be used.
        """
        if not self.spec.context:  # nothing depends on it
            return self.of_lengths(n, seed, lengths, context)
        seed, parts, without, attempted = _fresh(seed), [], np.arange(n), 0
        found = np.empty(0, dtype=int)
        while len(without) and attempted < n / SMALLEST_ACCEPTANCE:
            _, child = seed.spawn(2)
            rows = np.resize(without, max(len(without), min(n, FEWEST_AT_ONCE)))
            made = self._chunk(len(rows), child, {k: v[rows] for k, v in context.items()} | {_ROW: rows}, lengths)
            of_row, first = np.unique(made.data.pop(_ROW), return_index=True)
            parts.append(made.take(first))
            found, attempted = np.concatenate([found, of_row]), attempted + made.attempted
            without = np.setdiff1d(without, of_row)
        made = concatenate(parts).take(np.argsort(found))
        return replace(made, data=made.data | {dim: np.full(len(made), length) for dim, length in lengths.items()})

    def attempt(
        self, n: int, seed: np.random.SeedSequence, lengths: dict[str, int], context: dict[str, np.ndarray]
    ) -> Simulations:
        """Attempt one simulation at each of `n` values of the context."""
        return self._chunk(n, seed, context, lengths)

    def chunk(self, n: int, seed: np.random.SeedSequence) -> Simulations:
        """Attempt `n` simulations of one size in one call of the compiled function."""
        return self.chunks([(n, seed)])

    def chunks(self, tasks: list[Task]) -> Simulations:
        """Attempt simulations of several sizes, each in one call, and sketch them together."""
        made = concatenate([self._attempted(*task) for task in tasks])
        return made if self._sketch is None else replace(made, sketch=self._sketch(made))

    @property
    def sketched(self) -> bool:
        """Whether simulations come with a sketch."""
        return self._sketch is not None

    def _attempted(self, n: int, seed: np.random.SeedSequence) -> Simulations:
        context_seed, seed = seed.spawn(2)
        if not self.spec.sizes and not any(v.missing for v in self.spec.observed):
            return self._chunk(n, seed, self.context(n, context_seed), {})
        lengths_seed, context_seed, gaps_seed = context_seed.spawn(3)
        lengths = self.context.lengths(lengths_seed)
        made = self._chunk(n, seed, self.context(n, context_seed, lengths), lengths)
        gaps = self.context.gaps(len(made), gaps_seed, lengths)
        return self._padded(replace(made, missing=gaps), lengths)

    def _padded(self, made: Simulations, lengths: dict[str, int]) -> Simulations:
        """Fill arrays up to the largest lengths."""
        if not lengths:
            return made
        n, shapes = len(made), {v.name: v.shape_at(self.spec.largest) for v in self.spec.data}
        largest = self._shapes_at_largest
        return replace(
            made,
            variables={k: padded(v, (n, *largest[k])) for k, v in made.variables.items()},
            data={k: padded(v, (n, *shapes[k])) for k, v in made.data.items()},
            missing={k: padded(v, (n, *shapes[k])) for k, v in made.missing.items()},
            lengths={dim: np.full(n, length) for dim, length in lengths.items()},
        )

    def _chunk(
        self, n: int, seed: np.random.SeedSequence, context: dict[str, np.ndarray], lengths: dict[str, int]
    ) -> Simulations:
        loop = self._loop  # a graph that cannot be compiled is no failed simulation
        try:
            outputs = loop(
                n, seed, [context[name] for name in self._sequenced], [lengths[r.dim] for r in self.spec.sizes]
            )
        except Exception as error:  # a model's own function may raise anything
            raised = self._nothing(f"{type(error).__name__}: {error}".splitlines()[0], lengths, context)
            if n == 1:
                return raised
            # compiled code does not say which draw raised: draw anew, in halves, until it stands alone
            half = n // 2
            parts = zip((slice(half), slice(half, n)), seed.spawn(2), strict=True)
            halves = [
                self._chunk(part.stop - (part.start or 0), child, {k: v[part] for k, v in context.items()}, lengths)
                for part, child in parts
            ]
            return concatenate([raised, *halves])
        return self._usable(outputs, context)

    def _usable(self, outputs: list[np.ndarray], context: dict[str, np.ndarray]) -> Simulations:
        finite, theta, *values = outputs
        named = dict(zip(self._value_names, values, strict=True))
        observed = {v.name: named.pop(v.name) for v in self.spec.observed}
        data = {**observed, **context}  # also what this model does not read
        everything = Simulations(theta, named, data, len(theta))
        fine = finite.all(axis=1)
        if fine.all():
            return everything
        first = Counter(self._checks[i] for i in np.argmin(finite[~fine], axis=1))
        kept = everything.take(fine)
        return replace(kept, attempted=len(theta), dropped=dict(first))

    def _nothing(self, reason: str, lengths: dict[str, int], context: Mapping[str, np.ndarray]) -> Simulations:
        """One attempted simulation that raised."""
        spec = self.spec
        model = spec.model
        return Simulations(
            np.empty((0, spec.dim)),
            {n: np.empty((0, *self._shapes[n]), model[n].type.dtype) for n in self._variable_names},
            {v.name: np.empty((0, *v.shape_at(lengths)), v.dtype) for v in spec.observed}
            | {name: values[:0] for name, values in context.items()},
            1,
            {f"raised {reason}": 1},
        )

    def check_ends(self) -> None:
        """Refuse, once, a model that cannot be simulated at all, or at the smallest or largest lengths."""
        if self._ends_checked:
            return
        if not self.spec.sizes:
            self._check_some()
        ends = [{r.dim: r.smallest for r in self.spec.sizes}, self.spec.largest]
        for lengths in ends if self.spec.sizes else []:
            context_seed, seed = np.random.SeedSequence(0).spawn(2)
            made = self._chunk(4, seed, self.context(4, context_seed, lengths), lengths)
            raised = next((reason for reason in made.dropped if reason.startswith("raised")), None)
            shapes = {v.name: (made.data[v.name].shape[1:], v.shape_at(lengths)) for v in self.spec.data}
            wrong = next((f"{name!r} has shape {a}" for name, (a, b) in shapes.items() if a != b), None)
            if wrong or (len(made) == 0 and raised):
                at_lengths = " and ".join(f"{dim} is {n}" for dim, n in lengths.items())
                raise ValueError(
                    f"the model cannot be simulated where {at_lengths} ({wrong or raised}): arrays that have the "
                    "dimension must be pm.Data with dims=..., not constants of the length they have now"
                )
        self._ends_checked = True

    def _check_some(self) -> None:
        """Refuse a model whose own functions raise at each of a few draws: thousands would take minutes to say so."""
        context_seed, seed = np.random.SeedSequence(0).spawn(2)
        made = self._chunk(FEW, seed, self.context(FEW, context_seed), {})
        if not len(made) and all(reason.startswith("raised") for reason in made.dropped):
            raise SimulationError(_too_few(made))

    @property
    def _sequenced(self) -> list[str]:
        """What differs from draw to draw without being random here."""
        return [c.name for c in self.spec.context]

    @cached_property
    def _variable_names(self) -> list[str]:
        return [p.name for p in self.spec.parameters] + list(self._deterministics)

    @cached_property
    def _value_names(self) -> list[str]:
        return self._variable_names + [v.name for v in self.spec.observed]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        model = self.spec.model
        return evaluated_shapes(model, [model[name] for name in self._variable_names])

    @cached_property
    def _shapes_at_largest(self) -> dict[str, tuple[int, ...]]:
        """Shapes of variables where every dimension is at its largest."""
        model, largest = self.spec.model, self.spec.largest
        dims = {name: tuple(model.named_vars_to_dims.get(name) or ()) for name in self._variable_names}
        return {name: at(self._shapes[name], dims[name], largest) for name in self._variable_names}

    @cached_property
    def _checks(self) -> list[str]:
        return [f"{name}: log density or transform not finite" for name in self._checked_names]

    @cached_property
    def _checked_names(self) -> list[str]:
        return [rv.name for rv in self.spec.model.basic_RVs]

    @cached_property
    def _loop(self) -> DrawLoop:
        """The compiled loop; its outputs are the checks, the flat parameters and every named value."""
        spec, model = self.spec, self.spec.model
        outputs = simulation_graph(spec, self._value_names)
        sequences = []
        for c in spec.context:
            batched = batched_input(c.name, c.dtype, c.shape)
            sequences.append((model[c.name], batched))
        lengths = length_inputs(spec)
        outputs = graph_replace(outputs, lengths, strict=False) if lengths else outputs
        return DrawLoop(
            outputs, sequences=sequences, inputs=list(lengths.values()), compile_kwargs=self._compile_kwargs
        )

    @cached_property
    def _bytes_per_draw(self) -> int:
        shapes = [self._shapes[n] for n in self._variable_names]
        shapes += [v.shape_at(self.spec.largest) for v in self.spec.data]
        return 8 * (self.spec.dim + sum(int(np.prod(s, dtype=int)) for s in shapes))

    @property
    def largest_chunk(self) -> int:
        """Simulations that are made in one call, where all are of one size."""
        return int(np.clip(CHUNK_BYTES // self._bytes_per_draw, 1, LARGEST_CHUNK))

    def _chunk_sizes(self, n: int) -> list[int]:
        if self.spec.sizes:
            return group_sizes(n)
        largest = self.largest_chunk
        whole, rest = divmod(n, largest)
        return [largest] * whole + [rest] * (rest > 0)

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled functions behind: another process compiles its own."""
        return {k: v for k, v in self.__dict__.items() if k != "_loop"}


def _fresh(seed: int | np.random.SeedSequence) -> np.random.SeedSequence:
    """Spawning changes a seed sequence: work on a copy."""
    if isinstance(seed, np.random.SeedSequence):
        return np.random.SeedSequence(entropy=seed.entropy, spawn_key=seed.spawn_key, pool_size=seed.pool_size)
    return np.random.SeedSequence(seed)


def _too_few(simulations: Simulations) -> str:
    raised = all(reason.startswith("raised") for reason in simulations.dropped)
    reasons = ", ".join(
        f"{reason} ({count} of {simulations.attempted})"
        for reason, count in sorted(simulations.dropped.items(), key=lambda item: -item[1])
    )
    return f"only {len(simulations)} of {simulations.attempted} simulations of the model can be used: {reasons}. " + (
        "Is there an error in the function that draws?" if raised else "Narrow the priors to where it is defined"
    )


def describe_dropped(dropped: Mapping[str, int], attempted: int) -> str:
    """Say in one line which simulations were dropped and why."""
    return "; ".join(f"{reason}: {count / attempted:.2%}" for reason, count in dropped.items())
