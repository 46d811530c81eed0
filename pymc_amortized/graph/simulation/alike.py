"""Simulations of one data set's own kind: its sizes, covariates and gaps, and parameters that are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.replace import graph_replace

from pymc_amortized.graph.data.datasets import DataSets, gaps_of
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import length_inputs, simulation_graph
from pymc_amortized.graph.model.tensors import CompileKwargs, DrawLoop, batched_input, like
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator


class ContextOfOne(ContextSampler):
    """Lengths, context and gaps of one data set, again and again.

    Parameters
    ----------
    spec : ModelSpec
    datasets : DataSets
        The data set, alone.
    """

    def __init__(self, spec: ModelSpec, datasets: DataSets) -> None:
        self._spec, self._variables = spec, ()
        self._fixed_lengths = {dim: int(n[0]) for dim, n in datasets.lengths.items()}
        one = datasets.one(spec, 0)
        self._values = {c.name: one[c.name] for c in spec.context}
        self._masks = {v.name: one[gaps_of(v.name)] for v in spec.observed if v.missing}

    def lengths(self, seed: np.random.SeedSequence) -> dict[str, int]:
        """Return the data set's lengths."""
        return dict(self._fixed_lengths)

    def __call__(
        self, n: int, seed: np.random.SeedSequence, lengths: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Return its context `n` times."""
        return {name: np.repeat(value[None], n, axis=0) for name, value in self._values.items()}

    def gaps(
        self, n: int, seed: np.random.SeedSequence, lengths: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Return its gaps `n` times."""
        return {name: np.repeat(mask[None], n, axis=0) for name, mask in self._masks.items()}


class LocalSimulator(Simulator):
    """Simulator of data sets like one: of its sizes, covariates and gaps.

    Parameters
    ----------
    spec : ModelSpec
    datasets : DataSets
        The data set, alone.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(self, spec: ModelSpec, datasets: DataSets, compile_kwargs: CompileKwargs | None = None) -> None:
        context = ContextOfOne(spec, datasets)
        super().__init__(spec, context=context, deterministics=False, compile_kwargs=compile_kwargs)

    def check_ends(self) -> None:
        """There is one size only."""


class SimulatorGiven(LocalSimulator):
    """The same for parameters that are given: its loop has the free variables among its sequences."""

    def given(self, variables: Mapping[str, np.ndarray], seed: np.random.SeedSequence) -> Simulations:
        """Simulate one data set for each draw of the free variables, name -> (n, *shape).

        Draws at which the model excludes what is simulated are dropped.
        """
        n = len(next(iter(variables.values())))
        context_seed, gaps_seed, seed = seed.spawn(3)
        lengths = self.context.lengths(context_seed)
        sequences = {**self.context(n, context_seed, lengths), **variables}
        made = self._chunk(n, seed, sequences, lengths)
        gaps = self.context.gaps(len(made), gaps_seed, lengths)
        data = {name: values for name, values in made.data.items() if name not in variables}
        return self._padded(replace(made, data=data, missing=gaps), lengths)

    @property
    def _sequenced(self) -> list[str]:
        return [*super()._sequenced, *(p.name for p in self.spec.parameters)]

    @cached_property
    def _loop(self) -> DrawLoop:
        spec, model = self.spec, self.spec.model
        slices = {p.name: pt.tensor(p.name, dtype=p.dtype, shape=p.shape) for p in spec.parameters}
        placeholders = {model[name]: like(model[name], symbol) for name, symbol in slices.items()}
        outputs = simulation_graph(spec, self._value_names, placeholders)
        sequences: list[tuple[Any, Any]] = [
            (model[c.name], batched_input(c.name, c.dtype, c.shape)) for c in spec.context
        ]
        sequences += [(slices[p.name], batched_input(f"{p.name}_draws", p.dtype, p.shape)) for p in spec.parameters]
        lengths = length_inputs(spec)
        outputs = graph_replace(outputs, lengths, strict=False) if lengths else outputs
        return DrawLoop(
            outputs, sequences=sequences, inputs=list(lengths.values()), compile_kwargs=self._compile_kwargs
        )
