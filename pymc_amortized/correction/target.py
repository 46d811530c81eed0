"""The posteriors that are drawn from: data sets, what proposes draws, and the density that judges these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from pymc_amortized.correction.proposals import Component, Proposals
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.density.marginal import MarginalDensity
from pymc_amortized.graph.density.missing import LogDensityWithGaps
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.nuts.samplers import Samplers
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.numerics.sampling.mixture import StudentMixture
from pymc_amortized.numerics.sampling.symmetry import Symmetries

Search = Callable[[np.ndarray, Sequence[Proposals]], list[StudentMixture | None]]

TRIED = 16
"""Draws at which the rules for what is missing of a data set are tried."""


@dataclass(frozen=True)
class Source:
    """Where draws come from, and what they are weighed by.

    Attributes
    ----------
    propose : callable
        Draws of the network: (indices of data sets, draws, generator) -> theta (draws, data sets, dim) and its log
        density (draws, data sets).
    log_prob : callable
        The network's log density: (theta (draws, data sets, dim), indices of data sets) -> (draws, data sets).
    log_density : callable or None
        The model's: (theta (draws, dim), index of a data set) -> (draws,).
    device : torch.device
        Of the network.
    search : callable
        Modes: (indices of data sets, their proposals) -> mixtures.
    defended : bool
        Whether a good part of the draws comes from distributions with heavy tails.
    symmetries : Symmetries or None
        Of the posteriors.
    funnel : bool
        Whether posteriors may have a neck that mixtures do not find.
    """

    propose: Callable[[np.ndarray, int, torch.Generator], tuple[np.ndarray, np.ndarray]]
    log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray]
    log_density: Callable[[np.ndarray, int], np.ndarray] | None
    device: torch.device
    search: Search
    defended: bool = False
    symmetries: Symmetries | None = None
    funnel: bool = False

    def empty(self, chains: int, planned: Component | None = None) -> Proposals:
        """Proposals for one data set that come from here, none so far."""
        return Proposals(chains, self.defended, planned=planned, symmetries=self.symmetries, funnel=self.funnel)


class Approximate(Protocol):
    """The approximate posteriors of some data sets."""

    def sample(self, draws: int, generator: torch.Generator, *, within: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Draw theta (draws, data sets, dim), with log densities (draws, data sets)."""
        ...

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        """Log density (draws, data sets) of theta (draws, data sets, dim)."""
        ...


@dataclass(frozen=True, eq=False)
class PosteriorTarget:
    """The posteriors of some data sets, with what it takes to draw from them.

    Attributes
    ----------
    spec : ModelSpec
    datasets : DataSets
    approximate : callable
        (data sets, defended) -> their approximate posteriors, with heavy tails if defended.
    log_density : LogDensity
        The model's.
    obstacles : list of str or None
        Why the density of each data set cannot be evaluated; more are found at draws (:meth:`disprove`).
    samplers : Samplers
        What NUTS has compiled.
    device : torch.device
        Of the network.
    standardizer : ParameterStandardizer
        Of all parameters.
    search : callable
        Modes: (indices of data sets, their proposals) -> mixtures.
    sketched : bool
        Whether approximate posteriors have heavy tails if defended.
    symmetries : Symmetries or None
        Of the posteriors, as simulations showed them; :meth:`gathered` and :meth:`scattered` try them anew.
    funnel : bool
        Whether posteriors may have a neck that mixtures and particles do not find.
    disproved : dict of int to str
        By data set, a variable whose missing values are not what a rule takes them for.
    """

    spec: ModelSpec
    datasets: DataSets
    approximate: Callable[[DataSets, bool], Approximate]
    log_density: LogDensity | MarginalDensity
    obstacles: list[str | None]
    samplers: Samplers
    device: torch.device
    standardizer: ParameterStandardizer
    search: Search
    sketched: bool
    compile_kwargs: CompileKwargs | None = None
    symmetries: Symmetries | None = None
    funnel: bool = False
    disproved: dict[int, str] = field(default_factory=dict)

    def given(self, index: int) -> dict[str, Any]:
        """One data set, as densities take it."""
        return self.datasets.one(self.spec, index)

    def log_p(self, theta: np.ndarray, index: int) -> np.ndarray:
        """The model's log density (n,) at theta (n, dim)."""
        return self.log_density(theta, self.given(index))

    def with_locals(self, theta: np.ndarray, index: int, rng: np.random.Generator) -> np.ndarray:
        """Parameters (n, dim) of a data set and, drawn given these, locals."""
        if not isinstance(self.log_density, MarginalDensity):
            return theta
        return np.concatenate([theta, self.log_density.drawn(theta, self.given(index), rng).drawn], axis=1)

    def disprove(self, index: int, theta: np.ndarray) -> bool:
        """Try the rules for what is missing of a data set at draws (..., dim); where one fails, note it as an obstacle.

        Rules are found on simulations, which can only disprove them, and not for this data set.
        """
        density, missing = self.log_density, self.datasets.missing.values()
        if not isinstance(density, LogDensityWithGaps) or not any(mask[index].any() for mask in missing):
            return False
        theta = theta.reshape(-1, theta.shape[-1])
        found = density.disproved(theta[np.linspace(0, len(theta) - 1, TRIED).astype(int)], self.given(index))
        if found is not None:
            self.disproved[index], self.obstacles[index] = found
        return found is not None

    def gathered(self, index: int, theta: np.ndarray) -> np.ndarray:
        """Map draws (..., dim) to those images that lie near each other."""
        symmetries = self.symmetries_at(index, theta)
        return theta if symmetries is None else symmetries.gathered(theta, theta.reshape(-1, theta.shape[-1])[-1])

    def scattered(self, index: int, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Map each draw (..., dim) to one of its images: the step of a permutation sampler.

        Frühwirth-Schnatter 2001, Journal of the American Statistical Association 96(453).
        """
        symmetries = self.symmetries_at(index, theta)
        return theta if symmetries is None else symmetries.scattered(theta, rng)

    def symmetries_at(self, index: int, theta: np.ndarray) -> Symmetries | None:
        """Symmetries of the posterior of a data set, if its density at draws (..., dim) has them."""
        if self.symmetries is None or self.obstacles[index] is not None:
            return None
        theta = theta.reshape(-1, theta.shape[-1])
        some = theta[np.linspace(0, len(theta) - 1, TRIED).astype(int)]
        log_p = np.stack([self.log_p(image, index) for image in self.symmetries.images(some)])
        return self.symmetries if np.allclose(log_p, log_p[0], rtol=1e-8, atol=1e-6, equal_nan=True) else None

    def sampling_obstacle(self, index: int) -> str | None:
        """Why NUTS cannot sample for a data set: what is missing of it can neither be left out nor be sampled."""
        given = self.given(index)
        if index in self.disproved and self.disproved[index] not in self.samplers.needs(given):
            return self.obstacles[index]
        return self.obstacles[index] and self.samplers.obstacle(given)

    def log_q(self, theta: np.ndarray, indices: Any) -> np.ndarray:
        """Log density (n, data sets) of what is proposed, at theta (n, data sets, dim)."""
        return self.approximate(self.datasets.take(indices), True).log_prob(theta)

    def source(self, indices: np.ndarray, *, weighted: bool, defended: bool) -> Source:
        """Return what draws for some of the data sets.

        Parameters
        ----------
        indices : ndarray of int
        weighted : bool
            Whether the model's density is there.
        defended : bool
            Whether some of the draws come from distributions with heavy tails. Otherwise they are the network's alone,
            within the range of what was simulated.
        """

        def of(some: np.ndarray) -> Approximate:
            return self.approximate(self.datasets.take(indices[some]), defended)

        return Source(
            lambda some, n, generator: of(some).sample(n, generator, within=not defended),
            lambda theta, some: of(some).log_prob(theta),
            (lambda theta, index: self.log_p(theta, int(indices[index]))) if weighted else None,
            self.device,
            search=lambda some, sets: self.search(indices[some], sets),
            defended=defended and self.sketched,
            symmetries=self.symmetries,
            funnel=self.funnel,
        )
