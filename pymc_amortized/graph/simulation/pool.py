"""Simulations of several models, pooled: equal numbers of each, of the same sizes, from the same sources of context.

What a data set is given (its size, covariates and gaps) must tell nothing of the model: sizes are drawn for all models
at once, and each model makes up for what it drops at that size and context.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pymc_amortized.graph.data.simulations import SimulationError, Simulations, concatenate
from pymc_amortized.graph.model.common import Common
from pymc_amortized.graph.model.indices import refuse_indices
from pymc_amortized.graph.model.sizes import SIZES, group_sizes, padded, parts_of
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.parallel import Maker, Workers, in_chunks
from pymc_amortized.graph.simulation.simulator import Simulator


class Pool(Maker):
    """Simulator of data sets from several models.

    What it returns are :class:`Simulations` whose only parameter is the number of the model, counted from 0.

    Parameters
    ----------
    common : Common
        Of these models.
    specs : mapping of name to ModelSpec
    sources : mapping of name to source
        For the context of all models.
    gaps : mapping of name to rate
        For the observed variables.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(
        self,
        common: Common,
        specs: Mapping[str, ModelSpec],
        sources: Mapping[str, Any],
        gaps: Mapping[str, Any],
        compile_kwargs: CompileKwargs | None = None,
    ) -> None:
        self.spec, self.limits = common.spec, dict(common.limits)
        self.context = ContextSampler(common.spec, sources, gaps)
        self.simulators = {
            name: Simulator(
                spec,
                context=ContextSampler(spec, {c.name: sources[c.name] for c in spec.context}),
                deterministics=False,
                compile_kwargs=compile_kwargs,
            )
            for name, spec in specs.items()
        }

    @property
    def number(self) -> int:
        """How many models there are."""
        return len(self.simulators)

    def __call__(
        self,
        n: int,
        seed: np.random.SeedSequence,
        *,
        cores: int = 1,
        lengths: Mapping[str, int] | None = None,
        workers: Workers | None = None,
    ) -> Simulations:
        """Simulate `n` data sets, in any order; all of one size where lengths are given.

        The result does not depend on `cores`, or on whether `workers` make them.
        """
        self.check_ends()
        chunk_seed, mixing = seed.spawn(2)
        if lengths is not None:
            made = labelled(self.each(-(-n // self.number), chunk_seed, lengths))
        else:
            sizes = self._chunk_sizes(n)
            tasks = list(zip(sizes, chunk_seed.spawn(len(sizes)), strict=True))
            made = concatenate(in_chunks(self, tasks, cores=cores, workers=workers))
        return made.take(np.random.default_rng(mixing).permutation(len(made))[:n])

    def _attempted(self, n: int, seed: np.random.SeedSequence) -> Simulations:
        """Simulate `n` data sets of one size, or a few more, of all models in turn."""
        return labelled(self.each(-(-n // self.number), seed))

    def each(
        self, n: int, seed: np.random.SeedSequence, lengths: Mapping[str, int] | None = None
    ) -> dict[str, Simulations]:
        """Simulate `n` data sets of each model, with its own parameters, all of one size."""
        lengths_seed, *seeds = seed.spawn(1 + self.number)
        at = self.context.lengths(lengths_seed) if lengths is None else dict(lengths)
        return {name: self._of_one(name, n, child, at) for name, child in zip(self.simulators, seeds, strict=True)}

    def of_sizes(self, n: int, seed: np.random.SeedSequence) -> dict[str, Simulations]:
        """Simulate `n` data sets of each model, with its own parameters, of all sizes."""
        self.check_ends()
        sizes = group_sizes(n) if self.spec.sizes else [n]
        groups = [self.each(size, child) for size, child in zip(sizes, seed.spawn(len(sizes)), strict=True)]
        return {name: concatenate([group[name] for group in groups]) for name in self.simulators}

    def check_ends(self) -> None:
        """Refuse a model that cannot be simulated at the smallest or largest sizes."""
        for name, simulator in self.simulators.items():
            try:
                simulator.check_ends()
            except ValueError as error:
                raise ValueError(f"models[{name!r}]: {error}") from None

    def _of_one(self, name: str, n: int, seed: np.random.SeedSequence, lengths: dict[str, int]) -> Simulations:
        context_seed, simulation_seed, gaps_seed = seed.spawn(3)
        context = self.context(n, context_seed, lengths)
        refuse_indices(context, self.limits, "context")
        made = self.simulators[name].attempts.of_contexts(n, simulation_seed, lengths, context)
        if len(made) < n:
            raise SimulationError(
                f"models[{name!r}]: only {len(made)} of {made.attempted} simulations can be used"
                f"{f' where lengths are {lengths}' if lengths else ''}: {', '.join(made.dropped)}. Narrow the priors "
                f"{'and the context ' if self.simulators[name].spec.context else ''}to where the model is defined"
            )
        gaps = self.context.gaps(n, gaps_seed, lengths)
        largest = self.spec.largest
        shapes = {v.name: (v.dtype, (n, *v.shape_at(largest))) for v in self.spec.data}
        return replace(
            made,
            variables={},
            data={k: padded(made.data[k].astype(dtype, copy=False), shape) for k, (dtype, shape) in shapes.items()},
            missing={k: padded(mask, shapes[k][1]) for k, mask in gaps.items()},
            lengths={dim: np.full(n, length) for dim, length in lengths.items()},
        )

    def _chunk_sizes(self, n: int) -> list[int]:
        if self.spec.sizes:
            # at most 256 of one size and model in one call: batches of a classifier are large
            each = int(np.clip(n // (self.number * SIZES), 1, 256))
            return [part * self.number for part in parts_of(-(-n // self.number), each)]
        return parts_of(n, min(simulator.attempts.largest_chunk for simulator in self.simulators.values()))


def labelled(each: Mapping[str, Simulations]) -> Simulations:
    """Join simulations of several models; their parameter is the number of the model.

    Reasons of dropped simulations are preceded by the model's name.
    """
    parts = [
        replace(
            made,
            unconstrained=np.full((len(made), 1), float(k)),
            dropped={f"{name}: {why}": count for why, count in made.dropped.items()},
        )
        for k, (name, made) in enumerate(each.items())
    ]
    return concatenate(parts)
