"""Draws for several data sets: what the network proposes, weighted where the model's density can be evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pymc_amortized.correction.approximation import Approximation
from pymc_amortized.correction.rounds import Draws, Mode, Source, draw
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.posterior_network import PosteriorNetwork


@dataclass(frozen=True, eq=False)
class Conditions:
    """Data sets, with what it takes to draw given them.

    Attributes
    ----------
    spec : ModelSpec
    network : PosteriorNetwork
    datasets : DataSets
    log_density : LogDensity
        The model's.
    obstacles : sequence of str or None
        Why the density of each data set cannot be evaluated.
    inputs : Inputs
        What the network is given of data sets.
    """

    spec: ModelSpec
    network: PosteriorNetwork
    datasets: DataSets
    log_density: LogDensity
    obstacles: Sequence[str | None]
    inputs: Inputs
    compile_kwargs: CompileKwargs | None = None
    fixed: Mapping[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", {v.name: self.spec.held[v.name] for v in self.spec.unchanging})

    def given(self, index: int) -> dict[str, Any]:
        """One data set with what the model holds fixed, as densities take it."""
        return {**self.fixed, **self.datasets.one(self.spec, index)}

    def log_p(self, theta: np.ndarray, index: int) -> np.ndarray:
        """The model's log density (n,) at theta (n, dim)."""
        return self.log_density(theta, self.given(index))

    def log_q(self, theta: np.ndarray, indices: Any) -> np.ndarray:
        """Log density (n, data sets) of what is proposed, at theta (n, data sets, dim)."""
        return self._approximation(indices, defended=True).log_prob(theta)

    def _approximation(self, indices: Any, defended: bool) -> Approximation:
        return Approximation(self.network, self.inputs, self.datasets.take(indices), defended=defended)

    def source(self, indices: np.ndarray, *, weighted: bool, raw: bool) -> Source:
        """Return what draws for some of the data sets.

        Parameters
        ----------
        indices : ndarray of int
        weighted : bool
            Whether the model's density is there.
        raw : bool
            Whether draws stay as they are: the network's alone, within the range of what was simulated.
        """

        def of(some: np.ndarray) -> Approximation:
            return self._approximation(indices[some], defended=not raw)

        return Source(
            lambda some, n, generator: of(some).sample(n, generator, within=raw),
            lambda theta, some: of(some).log_prob(theta),
            (lambda theta, index: self.log_p(theta, int(indices[index]))) if weighted else None,
            self.network.device,
            defended=not raw and self.inputs.sketch is not None,
        )


def draw_given(
    conditions: Conditions,
    *,
    draws: int,
    chains: int,
    mode: Mode,
    seed: np.random.SeedSequence,
    raw: bool = False,
) -> list[Draws]:
    """Draw for all data sets; those without a density stay as the network draws them.

    Parameters
    ----------
    conditions : Conditions
    draws, chains : int
    mode : Mode
        What is done about weights.
    seed : numpy.random.SeedSequence
    raw : bool
        Whether draws stay as they are; without a density they do.
    """
    free = np.array([obstacle is None for obstacle in conditions.obstacles])
    results: dict[int, Draws] = {}
    for weighted, child in zip((True, False), seed.spawn(2), strict=True):
        indices = np.flatnonzero(free == weighted)
        if len(indices) == 0:
            continue
        source = conditions.source(indices, weighted=weighted, raw=raw or not weighted)
        drawn = draw(source, len(indices), chains=chains, draws=draws, mode=mode if weighted else "raw", seed=child)
        results |= dict(zip(indices.tolist(), drawn, strict=True))
    return [results[i] for i in range(len(free))]
