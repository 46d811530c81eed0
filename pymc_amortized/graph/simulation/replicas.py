"""Data that a model simulates at the sizes, covariates and gaps of data sets in hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.sizes import cut
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import SimulationError, Simulator


class NoSources(ContextSampler):
    """Stands in a simulator whose contexts are given one by one."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec


class Replicas:
    """Simulator of data like those in hand.

    Parameters
    ----------
    spec : ModelSpec
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(self, spec: ModelSpec, compile_kwargs: CompileKwargs | None = None) -> None:
        self.spec = spec
        self._shapes = {v.name: v for v in spec.data}
        self._simulator = Simulator(spec, context=NoSources(spec), deterministics=False, compile_kwargs=compile_kwargs)

    def __call__(self, datasets: DataSets, n: int, seed: np.random.SeedSequence) -> Iterator[DataSets]:
        """Simulate, for each data set, `n` others of its sizes, covariates and gaps.

        Raises
        ------
        SimulationError
            When hardly any simulation at the context of a data set can be used.
        """
        for i, child in enumerate(seed.spawn(len(datasets))):
            yield self._of(datasets, i, n, child)

    def _of(self, datasets: DataSets, i: int, n: int, seed: np.random.SeedSequence) -> DataSets:
        lengths = {dim: int(each[i]) for dim, each in datasets.lengths.items()}

        def repeated(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
            own = cut(arrays[name][i], self._shapes[name].shape_at(lengths))
            return np.repeat(own[None], n, axis=0)

        context = {c.name: repeated(c.name, datasets.values) for c in self.spec.context}
        made = self._simulator.of_lengths(n, seed, lengths, context)
        if len(made) < n:
            raise SimulationError(
                f"only {len(made)} of {made.attempted} simulations at the size and context of data set "
                f"{datasets.labels[i]} can be used: {made.dropped}"
            )
        return DataSets(
            {v.name: made.data[v.name] for v in self.spec.data},
            np.arange(n),
            True,
            {dim: np.full(n, length) for dim, length in lengths.items()},
            {name: repeated(name, datasets.missing) for name in datasets.missing},
        )
