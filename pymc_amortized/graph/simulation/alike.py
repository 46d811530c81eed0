"""Simulations of data sets in hand: at their sizes, covariates and gaps."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets, gaps_of
from pymc_amortized.graph.data.simulations import SimulationError, Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.attempts import Attempts


class ContextOfOne:
    """Lengths, context and gaps of one data set, again and again.

    Parameters
    ----------
    spec : ModelSpec
    datasets : DataSets
    index : int
        Which of them.
    """

    ends: tuple[dict[str, int], ...] = ()

    def __init__(self, spec: ModelSpec, datasets: DataSets, index: int = 0) -> None:
        self._lengths = {dim: int(n[index]) for dim, n in datasets.lengths.items()}
        one = datasets.one(spec, index)
        self._values = {c.name: one[c.name] for c in spec.context}
        self._gaps = {v.name: one[gaps_of(v.name)] for v in spec.observed if v.missing}

    def lengths(self, seed: np.random.SeedSequence) -> dict[str, int]:
        """Return the data set's lengths."""
        return dict(self._lengths)

    def __call__(self, n: int, seed: np.random.SeedSequence, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return its context `n` times."""
        return {name: np.repeat(value[None], n, axis=0) for name, value in self._values.items()}

    def gaps(self, n: int, seed: np.random.SeedSequence, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return its gaps `n` times."""
        return {name: np.repeat(mask[None], n, axis=0) for name, mask in self._gaps.items()}


class SimulatorGiven:
    """Simulator of data sets like one, for free variables that are given.

    Parameters
    ----------
    spec : ModelSpec
    datasets : DataSets
        The data set, alone.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(self, spec: ModelSpec, datasets: DataSets, compile_kwargs: CompileKwargs | None = None) -> None:
        self._context = ContextOfOne(spec, datasets)
        self._attempts = Attempts(spec, given=True, compile_kwargs=compile_kwargs)

    def __call__(self, variables: Mapping[str, np.ndarray], seed: np.random.SeedSequence) -> Simulations:
        """Simulate one data set for each draw of the free variables, name -> (n, *shape).

        Draws at which the model excludes what is simulated are dropped.
        """
        n = len(next(iter(variables.values())))
        context_seed, gaps_seed, seed = seed.spawn(3)
        lengths = self._context.lengths(context_seed)
        made = self._attempts(n, seed, lengths, {**self._context(n, context_seed, lengths), **variables})
        gaps = self._context.gaps(len(made), gaps_seed, lengths)
        data = {name: values for name, values in made.data.items() if name not in variables}
        return self._attempts.padded(replace(made, data=data, missing=gaps), lengths)


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
        self._attempts = Attempts(spec, compile_kwargs=compile_kwargs)

    def __call__(self, datasets: DataSets, n: int, seed: np.random.SeedSequence) -> Iterator[DataSets]:
        """Simulate, for each data set, `n` others of its sizes, covariates and gaps.

        Raises
        ------
        SimulationError
            When hardly any simulation at the context of a data set can be used.
        """
        for i, child in enumerate(seed.spawn(len(datasets))):
            context = ContextOfOne(self.spec, datasets, i)
            lengths = context.lengths(child)
            made = self._attempts.of_lengths(n, child, lengths, context)
            if len(made) < n:
                raise SimulationError(
                    f"only {len(made)} of {made.attempted} simulations at the size and context of data set "
                    f"{datasets.labels[i]} can be used: {made.dropped}"
                )
            yield DataSets(
                {v.name: made.data[v.name] for v in self.spec.data},
                np.arange(n),
                True,
                {dim: np.full(n, length) for dim, length in lengths.items()},
                context.gaps(n, child, lengths),
            )
