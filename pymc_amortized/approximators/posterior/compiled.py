"""What a posterior has compiled from its model, each when it is first needed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from pytensor.graph.traversal import ancestors

from pymc_amortized.approximators.posterior.predictions.predictive import Predictions, stacked
from pymc_amortized.correction.draws import Draws
from pymc_amortized.graph.data.datasets import DataSets, gaps_of
from pymc_amortized.graph.density.given import Derived
from pymc_amortized.graph.density.log_density import Constrain, LogDensity, Unconstrain
from pymc_amortized.graph.density.marginal import MarginalDensity
from pymc_amortized.graph.density.missing import LogDensityWithGaps, Rule
from pymc_amortized.graph.model.indices import index_limits
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.nuts.samplers import Samplers
from pymc_amortized.graph.simulation.alike import Replicas
from pymc_amortized.inputs.group_network import GroupNetwork, draw_groups


class Compiled:
    """Functions of a model for any of its data sets.

    Parameters
    ----------
    spec : ModelSpec
    gaps : mapping of name to rule
        How missing values are integrated out.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    learned : ModelSpec, optional
        The same with a learned likelihood: what densities are compiled from. Predictions are the simulator's own.
    groups : sequence of GroupNetwork
        What draws locals where no density does.
    """

    def __init__(
        self,
        spec: ModelSpec,
        gaps: Mapping[str, Rule | None],
        compile_kwargs: CompileKwargs | None,
        learned: ModelSpec | None = None,
        groups: Sequence[GroupNetwork] = (),
    ) -> None:
        self.groups = groups
        self.spec, self.gaps, self.compile_kwargs = spec, gaps, compile_kwargs
        self._weighed_by = learned or spec

    @cached_property
    def log_density(self) -> LogDensity | MarginalDensity:
        """Joint log density of unconstrained parameters and data, locals integrated out."""
        if self._weighed_by.locals:
            return MarginalDensity(self._weighed_by, self.gaps, self.compile_kwargs)
        if any(v.missing for v in self.spec.observed):
            return LogDensityWithGaps(self._weighed_by, self.gaps, self.compile_kwargs)
        return LogDensity(self._weighed_by, self.compile_kwargs)

    @cached_property
    def constrain(self) -> Constrain:
        """From unconstrained parameters to free variables and deterministics."""
        return Constrain(self.spec, self.compile_kwargs)

    @cached_property
    def unconstrain(self) -> Unconstrain:
        """From parameters on their own scale to unconstrained ones."""
        return Unconstrain(replace(self.spec, locals=()), self.compile_kwargs)

    @cached_property
    def predictions(self) -> Predictions:
        """Posterior predictive draws and pointwise log likelihoods."""
        return Predictions(self.spec, self.compile_kwargs, self._weighed_by, self.gaps)

    @cached_property
    def replicas(self) -> Replicas:
        """Simulator of data of the sizes, covariates and gaps of data sets in hand; it needs no sources of these."""
        return Replicas(self.spec, self.compile_kwargs)

    @cached_property
    def samplers(self) -> Samplers:
        """NUTS."""
        return Samplers(self._weighed_by, self.gaps, self.compile_kwargs)

    @cached_property
    def limits(self) -> dict[str, tuple[int, int]]:
        """How large the indices may be that data hold."""
        return index_limits(self.spec)

    def obstacles(self, datasets: DataSets) -> list[str | None]:
        """Why the density of each data set cannot be evaluated; None where it can."""
        everywhere = self._weighed_by.density_obstacle
        if everywhere:
            return [everywhere] * len(datasets)
        density = self.log_density
        density = density.terms if isinstance(density, MarginalDensity) else density
        if not isinstance(density, LogDensityWithGaps):
            return [None] * len(datasets)
        return [density.obstacle(datasets.one(self.spec, i)) for i in range(len(datasets))]

    def log_joint(self, theta: np.ndarray, datasets: DataSets) -> np.ndarray:
        """Joint log density (n,) at one point of theta (n, dim) for each data set; NaN where there is none."""
        values = np.full(len(datasets), np.nan)
        for i, obstacle in enumerate(self.obstacles(datasets)):
            if obstacle is None:
                values[i] = self.log_density(theta[i : i + 1], datasets.one(self.spec, i))[0]
        return values

    def derived(
        self, variables: Mapping[str, np.ndarray], datasets: DataSets, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Deterministics (n, *shape) that follow from free variables (n, *shape), for one point of each data set."""
        function, parts = Derived(self.spec, names, self.compile_kwargs), []
        for i in range(len(datasets)):
            own = self.spec.at({dim: int(n[i]) for dim, n in datasets.lengths.items()})
            given = {p.name: variables[p.name][i][tuple(map(slice, p.shape))][None] for p in own.drawn}
            parts.append(function(given, datasets.one(self.spec, i), np.random.SeedSequence(i)))
        return {name: stacked([part[name][0] for part in parts]) for name in names}

    def variables_at(self, theta: np.ndarray, datasets: DataSets, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Free variables and deterministics (n, *shape) at one point of theta (n, dim) for each data set.

        Locals are drawn.
        """
        each = [datasets.one(self.spec, i) for i in range(len(theta))]
        rng = np.random.default_rng(0)
        points = [self.constrain(self.with_locals(theta[i : i + 1], data, rng), data) for i, data in enumerate(each)]
        return {name: stacked([point[name][0] for point in points]) for name in names}

    def variables(
        self, datasets: DataSets, results: Sequence[Draws], names: Sequence[str], seed: np.random.SeedSequence
    ) -> dict[str, np.ndarray]:
        """Variables (datasets, chains, draws, *shape) of draws, NaN beyond a data set's length."""
        chains, draws, dim = results[0].theta.shape
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for i, (result, child) in enumerate(zip(results, seed.spawn(len(results)), strict=True)):
            theta, data = result.theta.reshape(chains * draws, dim), datasets.one(self.spec, i)
            if result.locals is None:
                full = self.with_locals(theta, data, np.random.default_rng(child))
            else:
                full = np.concatenate([theta, result.locals.reshape(chains * draws, -1)], axis=1)
            values = self.constrain(full, data)
            unknown = self._read_from_gaps(datasets, i)
            for name in names:
                value = values[name].reshape(chains, draws, *values[name].shape[1:])
                parts[name].append(np.full(value.shape, np.nan) if name in unknown else value)
        return {name: stacked(values) for name, values in parts.items()}

    def with_locals(self, theta: np.ndarray, data: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
        """Draws (n, dim) and, given these, those of locals."""
        if not self.spec.locals:
            return theta
        if self.groups:
            lengths = {r.dim: np.array([data[r.dim]]) for r in self.spec.sizes}
            values = {v.name: np.asarray(data[v.name])[None] for v in self.spec.data}
            gaps = {v.name: data[gaps_of(v.name)][None] for v in self.spec.observed if v.missing}
            one = DataSets(values, np.arange(1), True, lengths, gaps)
            return np.concatenate([theta, draw_groups(self.spec, self.groups, theta, one, rng)], axis=1)
        assert isinstance(self.log_density, MarginalDensity)
        return np.concatenate([theta, self.log_density.drawn(theta, data, rng).drawn], axis=1)

    def _read_from_gaps(self, datasets: DataSets, index: int) -> set[str]:
        """Deterministics that are computed from values which one data set lacks."""
        model = self.spec.model
        lacking = {model[name] for name, mask in datasets.missing.items() if mask[index].any()}
        return {d.name for d in model.deterministics if lacking and not lacking.isdisjoint(ancestors([d]))}
