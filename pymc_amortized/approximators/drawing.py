"""Draws for several data sets: what the network proposes, weighted where the model's density can be evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pymc_amortized.approximators.sampling import Draws, Mode, Source, draw
from pymc_amortized.graph.datasets import DataSets
from pymc_amortized.graph.density import LogDensity
from pymc_amortized.graph.spec import ModelSpec
from pymc_amortized.graph.tensors import CompileKwargs
from pymc_amortized.networks.network import PosteriorNetwork
from pymc_amortized.training import torch_threads


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
    network_data : callable
        Arguments ``data`` and ``sizes`` of the network, for data sets.
    """

    spec: ModelSpec
    network: PosteriorNetwork
    datasets: DataSets
    log_density: LogDensity
    obstacles: Sequence[str | None]
    network_data: Callable[[DataSets], dict[str, Any]]
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
        """The network's log density (n, data sets) at theta (n, data sets, dim)."""
        # one thread: many small operations, at which threads would only wait for each other
        with torch.inference_mode(), torch_threads(1):
            return self.network.log_prob(theta, **self.network_data(self.datasets.take(indices))).numpy()

    def source(self, indices: np.ndarray, *, weighted: bool, bounded: bool) -> Source:
        """Return what draws for some of the data sets.

        Parameters
        ----------
        indices : ndarray of int
        weighted : bool
            Whether the model's density is there.
        bounded : bool
            Whether the network draws within the range of what was simulated.
        """

        def propose(some: np.ndarray, n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
            with torch.inference_mode(), torch_threads(1):
                sample = self.network.sample_within if bounded else self.network.sample
                data = self.network_data(self.datasets.take(indices[some]))
                theta, log_q = sample(n, generator=generator, **data)
            return theta.numpy(), log_q.numpy()

        return Source(
            propose,
            lambda theta, some: self.log_q(theta, indices[some]),
            (lambda theta, index: self.log_p(theta, int(indices[index]))) if weighted else None,
            self.network.device,
        )


def draw_given(
    conditions: Conditions,
    *,
    draws: int,
    chains: int,
    mode: Mode,
    seed: np.random.SeedSequence,
    bounded: bool = False,
) -> list[Draws]:
    """Draw for all data sets; those without a density stay as the network draws them.

    Parameters
    ----------
    conditions : Conditions
    draws, chains : int
    mode : Mode
        What is done about weights.
    seed : numpy.random.SeedSequence
    bounded : bool
        Whether draws lie within the range of what was simulated; without a density they do.
    """
    free = np.array([obstacle is None for obstacle in conditions.obstacles])
    results: dict[int, Draws] = {}
    for weighted, child in zip((True, False), seed.spawn(2), strict=True):
        indices = np.flatnonzero(free == weighted)
        if len(indices) == 0:
            continue
        source = conditions.source(indices, weighted=weighted, bounded=bounded or not weighted)
        drawn = draw(source, len(indices), chains=chains, draws=draws, mode=mode if weighted else "raw", seed=child)
        results |= dict(zip(indices.tolist(), drawn, strict=True))
    return [results[i] for i in range(len(free))]
