"""Data that a model simulates at the sizes, covariates and gaps of data sets in hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pymc_amortized.graph.context import ContextSampler
from pymc_amortized.graph.datasets import DataSets
from pymc_amortized.graph.simulator import SimulationError, Simulator
from pymc_amortized.graph.sizes import cut
from pymc_amortized.graph.spec import ModelSpec
from pymc_amortized.graph.tensors import CompileKwargs


class _NoSources(ContextSampler):
    """Stands in a simulator whose contexts are given one by one."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec


def replicas(
    spec: ModelSpec,
    datasets: DataSets,
    n: int,
    seed: np.random.SeedSequence,
    compile_kwargs: CompileKwargs | None = None,
) -> Iterator[DataSets]:
    """Simulate, for each data set, `n` others of its sizes, covariates and gaps.

    Raises
    ------
    SimulationError
        When hardly any simulation at the context of a data set can be used.
    """
    simulator = Simulator(spec, context=_NoSources(spec), deterministics=False, compile_kwargs=compile_kwargs)
    for i, child in enumerate(seed.spawn(len(datasets))):
        lengths = {dim: int(each[i]) for dim, each in datasets.lengths.items()}

        def own(array: np.ndarray, name: str, i: int = i, lengths: dict[str, int] = lengths) -> np.ndarray:
            """One data set's part of an array, `n` times."""
            shape = next(v for v in spec.data if v.name == name).shape_at(lengths)
            return np.repeat(cut(array[i], shape)[None], n, axis=0)

        context = {c.name: own(datasets.values[c.name], c.name) for c in spec.context}
        made = simulator.of_lengths(n, child, lengths, context)
        if len(made) < n:
            raise SimulationError(
                f"only {len(made)} of {made.attempted} simulations at the size and context of data set "
                f"{datasets.labels[i]} can be used: {made.dropped}"
            )
        yield DataSets(
            {v.name: made.data[v.name] for v in spec.data},
            np.arange(n),
            True,
            {dim: np.full(n, length) for dim, length in lengths.items()},
            {name: own(mask, name) for name, mask in datasets.missing.items()},
        )
