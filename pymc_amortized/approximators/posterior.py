"""The amortized posterior of a PyMC model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import torch
import xarray as xr
from pytensor.graph.traversal import ancestors

from pymc_amortized.approximators.arguments import (
    Correction,
    chosen_names,
    corrected,
    flat_point,
    wanted_groups,
    whole,
)
from pymc_amortized.approximators.doubt import (
    explain_impossible,
    say_that_uncorrected,
    warn_of_extrapolation,
    warn_of_many_gaps,
    warn_of_novelty,
    warn_of_poor_weights,
)
from pymc_amortized.approximators.inputs import network_data
from pymc_amortized.approximators.novelty import extents, features_of
from pymc_amortized.approximators.provenance import Provenance
from pymc_amortized.approximators.sampling import FEWEST_PROPOSALS, Draws, draw, sample_stats
from pymc_amortized.approximators.seeds import RandomState, seed_sequence
from pymc_amortized.correction import Weights
from pymc_amortized.graph.context import refuse_indices
from pymc_amortized.graph.datasets import DataSets, read_datasets
from pymc_amortized.graph.density import Constrain, LogDensity
from pymc_amortized.graph.evidence import index_limits
from pymc_amortized.graph.missing import LogDensityWithGaps, Rule
from pymc_amortized.graph.replicas import Replicas
from pymc_amortized.graph.sizes import padded
from pymc_amortized.graph.spec import DataVariable, ModelSpec
from pymc_amortized.graph.step import closed_model
from pymc_amortized.graph.structure import Structure
from pymc_amortized.graph.tensors import CompileKwargs, like
from pymc_amortized.networks.network import PosteriorNetwork
from pymc_amortized.novelty import Reference
from pymc_amortized.results import posterior_tree
from pymc_amortized.training import History, TrainingState, torch_threads


@dataclass(frozen=True, eq=False, repr=False)
class AmortizedPosterior:
    """A neural posterior of every data set a model could produce.

    Made by :func:`fit_posterior` or :func:`load`; immutable.

    Attributes
    ----------
    spec : ModelSpec
        Snapshot of the model.
    network : PosteriorNetwork
        The trained network.
    structure : Structure
        What was found about every axis of the data, and why; ``print(posterior.structure)``.
    history : History
        Losses during training; ``history.plot()`` draws them.
    provenance : Provenance
        How it was trained.
    gaps : mapping
        How missing values of each variable that may have them are integrated out of the model's density; None where
        they cannot be.
    reference : Reference or None
        Scores of simulations, by which the novelty of data is judged; files of older versions hold none.
    """

    spec: ModelSpec
    network: PosteriorNetwork
    structure: Structure
    history: History
    provenance: Provenance
    state: TrainingState
    context: Mapping[str, Any] | None
    missing: Mapping[str, Any] | None
    gaps: Mapping[str, Rule | None]
    reference: Reference | None = None
    compile_kwargs: CompileKwargs | None = None

    def sample(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        draws: int = 1000,
        chains: int = 4,
        batched: bool = False,
        correction: Correction = "auto",
        var_names: Sequence[str] | None = None,
        random_seed: RandomState = None,
        idata_kwargs: Mapping[str, Any] | None = None,
    ) -> xr.DataTree:
        """Draw from the posterior of one data set, or of many.

        Parameters
        ----------
        observed : mapping of name to array_like, or xarray.Dataset, optional
            Values of the observed variables, by their name or that of their ``pm.Data``, and of context
            variables; each of the model's shape, after a leading axis of data sets if `batched`. Data sets of different
            lengths come as a list of such mappings, as lists of arrays, or as an ``xarray.Dataset`` with NaN in all
            variables beyond the end of each. NaN is a missing value where the posterior was trained for them. By
            default, the data the model held at training.
        draws, chains : int
            Draws per chain, and chains, for each data set.
        batched : bool
            Whether `observed` holds many data sets; the result then has a leading ``dataset`` dim.
        correction : {"auto", "psis", None}
            "psis" resamples by Pareto-smoothed importance weights of the model's exact log density. "auto" does
            so where the model has one. None returns the network's own draws; weights are reported all the same.
        var_names : sequence of str, optional
            Variables to return; all free variables and deterministics by default.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.
        idata_kwargs : mapping, optional
            ``log_likelihood=True`` or ``log_prior=True`` add these groups, for one data set.

        Returns
        -------
        xarray.DataTree
            Groups ``posterior``, ``sample_stats``, ``observed_data`` and ``constant_data``, as from ``pm.sample``.
            ``sample_stats`` holds for each draw ``lp`` (the model's log density) and ``log_q`` (the network's), for
            each proposal ``proposal_log_weight``, and for each data set ``pareto_k``, ``importance_ess`` and
            ``ood_pvalue``: how often the model simulates data as unusual as these, covariates included, at about that
            size (:func:`check_misspecification` simulates at exactly that size, with those covariates).

        Raises
        ------
        ValueError, TypeError, KeyError
            When an argument or the data do not fit the model; the message names it.
        """
        started = time.perf_counter()
        draws, chains = whole("draws", draws), whole("chains", chains)
        names = chosen_names(var_names, self._constrain.names)
        groups = wanted_groups(idata_kwargs, batched)
        correct = corrected(self.spec, correction)
        datasets = read_datasets(self.spec, observed, batched=batched)
        refuse_indices(datasets.values, self._limits, "observed")
        context = [c.name for c in self.spec.context]
        warn_of_extrapolation(self.network.encoder.outside(**self._network_data(datasets)), context)
        warn_of_many_gaps(self.spec, datasets, self.missing or {})
        ood = self.ood_pvalues(datasets)
        warn_of_novelty(ood, datasets.labels)
        results = self._draw(datasets, draws, chains, correct, seed_sequence(random_seed), bounded=not correct)
        explain_impossible(self.spec, datasets, results, self.compile_kwargs)
        if correct:
            gaps = any(mask.any() for mask in datasets.missing.values())
            warn_of_poor_weights(results, datasets.labels, gaps=gaps)
        elif correction == "auto" and self.spec.density_obstacle:
            say_that_uncorrected(self.spec.density_obstacle, len(datasets), len(datasets))
        computed = self._constrain.names if any(groups.values()) else names
        variables = self._constrained(datasets, results, computed)
        attrs = {"sampling_time": time.perf_counter() - started, "correction": "psis" if correct else "none"}
        tree = posterior_tree(
            self.spec,
            datasets,
            variables=variables,
            sample_stats=sample_stats(results) | {"ood_pvalue": ([], ood)},
            attrs=attrs | self.provenance.attributes(),
        )
        return self._with_groups(tree, observed, groups, names)

    def logp(self, point: Mapping[str, Any], observed: Mapping[str, Any] | xr.Dataset | None = None) -> np.ndarray:
        """Log density of the network's posterior over the unconstrained value variables.

        Parameters
        ----------
        point : mapping of name to array_like
            Value variables as in ``model.initial_point()`` (``"tau_log__"``), each ``(..., *shape)`` with the same
            leading shape.
        observed : mapping of name to array_like, optional
            One data set; by default, what the model held.

        Returns
        -------
        ndarray (...)
            Normalized over the value variables, Jacobians included, as PyMC counts. Subtracting it from
            ``model.compile_logp()(point)`` gives log importance weights.
        """
        theta, lead = flat_point(self.spec, point)
        datasets = read_datasets(self.spec, observed)
        if len(theta) == 0:
            return np.empty(lead)
        with torch.inference_mode():
            values = self.network.log_prob(theta[:, None], **self._network_data(datasets))
        return values.numpy()[:, 0].reshape(lead)

    def to_model(self, observed: Mapping[str, Any] | xr.Dataset | None = None) -> pm.Model:
        """Return the model conditioned on one data set, for everything that follows ``pm.sample``.

        Parameters
        ----------
        observed : mapping of name to array_like, optional
            As in :meth:`sample`; by default, what the model held.

        Returns
        -------
        pymc.Model
            A copy, to be used as a context: ``with posterior.to_model({"y": y}): pm.compute_log_likelihood(dt)``.
        """
        datasets = read_datasets(self.spec, observed)
        values = datasets.one(self.spec, 0)
        model = closed_model(self.spec)
        symbols = {v.name: like(model[v.name], pt.constant(self._with_gaps(v, datasets))) for v in self.spec.observed}
        conditioned = pm.observe(model, symbols)
        for r in self.spec.sizes:
            labels = datasets.coords.get(r.dim, range(values[r.dim]))
            conditioned.set_dim(r.dim, values[r.dim], coord_values=tuple(labels))
        with conditioned:
            for variable in self.spec.context:
                pm.set_data({variable.name: values[variable.name]})
        return conditioned

    def _with_gaps(self, variable: DataVariable, datasets: DataSets) -> np.ndarray:
        """Values of one data set as the conditioned model observes them."""
        values = datasets.shown(variable)[0]
        if values.dtype.kind == "f" and np.dtype(variable.dtype).kind != "f":
            raise ValueError(
                f"{variable.name!r} has missing values, which a model of {variable.dtype} values cannot hold: "
                "drop these entries"
            )
        return values

    def continue_training(
        self,
        num_steps: int | None = None,
        *,
        max_time: float | None = None,
        context: Mapping[str, Any] | None = None,
        missing: Mapping[str, Any] | None = None,
        simulations: xr.DataTree | None = None,
        device: str | torch.device | None = None,
        progressbar: bool = True,
    ) -> AmortizedPosterior:
        """Train further, from where training stopped, and return a new posterior.

        Parameters
        ----------
        num_steps : int, optional
            Steps of a new schedule when the last one was finished; as many as before by default. An interrupted
            training first finishes its own.
        max_time : float, optional
            Seconds after which to stop.
        context : mapping, optional
            Sources of the context variables, needed after :func:`load` (files hold none).
        missing : mapping, optional
            Rates of missing values, needed after :func:`load` likewise.
        simulations : xarray.DataTree, optional
            The simulations it was trained on, if they were yours.
        device, progressbar
            As in :func:`fit_posterior`.
        """
        from pymc_amortized.approximators.fit import continue_fit

        options = replace(
            self.provenance.training,
            num_steps=self.provenance.training.steps if num_steps is None else num_steps,
            max_time=max_time,
        )
        return continue_fit(
            self,
            options,
            context=context,
            missing=missing,
            simulations=simulations,
            device=device,
            progressbar=progressbar,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights and a description, never code, to a file that :func:`load` reads.

        Parameters
        ----------
        path : path-like
            An existing file is replaced.
        """
        from pymc_amortized.approximators.files import save

        save(self, path)

    def weights_of(self, datasets: DataSets, seed: np.random.SeedSequence) -> list[Weights]:
        """Importance weights of the network's draws for several data sets; only for those that have a density.

        Parameters
        ----------
        datasets : DataSets
        seed : numpy.random.SeedSequence
        """
        results = self._draw(datasets, FEWEST_PROPOSALS, 1, False, seed)
        return [r.weights for r in results if r.weights is not None]

    def ood_pvalues(self, datasets: DataSets) -> np.ndarray:
        """How often the model simulates what is as unusual as each data set: (n,); NaN without a reference.

        Parameters
        ----------
        datasets : DataSets
        """
        if self.reference is None:
            return np.full(len(datasets), np.nan)
        return self.reference.pvalues(self.features_of(datasets), extents(self.spec, datasets))

    def features_of(self, datasets: DataSets) -> np.ndarray:
        """What data sets are compared with simulations by: (n, width).

        Parameters
        ----------
        datasets : DataSets
        """
        return features_of(self.spec, self.structure, self.network, datasets)

    @cached_property
    def replicas(self) -> Replicas:
        """Simulator of data of the sizes, covariates and gaps of data sets in hand; it needs no sources of these."""
        return Replicas(self.spec, self.compile_kwargs)

    def __repr__(self) -> str:
        p = self.provenance
        shapes = ", ".join(f"{v.name}{list(v.shape) or ''}" for v in self.spec.parameters)
        data = ", ".join(f"{v.name}{_extent(v)}" for v in self.spec.data)
        structure = str(self.structure).replace("\n", "\n    ")
        return (
            f"AmortizedPosterior({shapes} | {data})\n"
            f"  structure: {structure}\n"
            f"  trained on {p.simulations:,} simulations, held-out loss {p.held_out_loss:.3f}, "
            f"{'settled' if p.settled else 'not settled'}"
        )

    @cached_property
    def _log_density(self) -> LogDensity:
        if any(v.missing for v in self.spec.observed):
            return LogDensityWithGaps(self.spec, self.gaps, self.compile_kwargs)
        return LogDensity(self.spec, self.compile_kwargs)

    @cached_property
    def _constrain(self) -> Constrain:
        return Constrain(self.spec, self.compile_kwargs)

    @cached_property
    def _limits(self) -> dict[str, int]:
        return index_limits(self.spec)

    def _obstacles(self, datasets: DataSets) -> list[str | None]:
        """Why the density of each data set cannot be evaluated; None where it can."""
        everywhere = self.spec.density_obstacle
        if everywhere or not isinstance(self._log_density, LogDensityWithGaps):
            return [everywhere] * len(datasets)
        return [self._log_density.obstacle(datasets.one(self.spec, i)) for i in range(len(datasets))]

    def _draw(
        self,
        datasets: DataSets,
        draws: int,
        chains: int,
        corrected: bool,
        seed: np.random.SeedSequence,
        *,
        bounded: bool = False,
    ) -> list[Draws]:
        """Draw for all data sets; those without a density stay as the network draws them."""
        obstacles = self._obstacles(datasets)
        free = np.array([obstacle is None for obstacle in obstacles])
        results: dict[int, Draws] = {}
        for weighted, child in zip((True, False), seed.spawn(2), strict=True):
            indices = np.flatnonzero(free == weighted)
            if len(indices) == 0:
                continue
            some = datasets if len(indices) == len(datasets) else datasets.take(indices)
            bound = bounded or not weighted
            drawn = self._draw_some(some, draws, chains, corrected and weighted, weighted, child, bounded=bound)
            results |= dict(zip(indices.tolist(), drawn, strict=True))
        without = [obstacle for obstacle in obstacles if obstacle]
        if corrected and without:
            say_that_uncorrected(without[0], len(without), len(datasets))
        return [results[i] for i in range(len(datasets))]

    def _draw_some(
        self,
        datasets: DataSets,
        draws: int,
        chains: int,
        corrected: bool,
        weighted: bool,
        seed: np.random.SeedSequence,
        *,
        bounded: bool,
    ) -> list[Draws]:
        def propose(indices: np.ndarray, n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
            # one thread: many small operations, at which threads would only wait for each other
            with torch.inference_mode(), torch_threads(1):
                sample = self.network.sample_within if bounded else self.network.sample
                theta, log_q = sample(n, generator=generator, **self._network_data(datasets.take(indices)))
            return theta.numpy(), log_q.numpy()

        def log_density(theta: np.ndarray, index: int) -> np.ndarray:
            return self._log_density(theta, self._everything_given(datasets, index))

        return draw(
            propose,
            log_density if weighted else None,
            len(datasets),
            chains=chains,
            draws=draws,
            corrected=corrected,
            seed=seed,
            device=self.network.device,
        )

    def _network_data(self, datasets: DataSets) -> dict[str, Any]:
        """Arguments ``data`` and ``sizes`` of the network."""
        return network_data(self.spec, self.structure, datasets)

    def _everything_given(self, datasets: DataSets, index: int) -> dict[str, Any]:
        """One data set with what the model holds fixed, as densities take it."""
        return {**{v.name: self.spec.held[v.name] for v in self.spec.unchanging}, **datasets.one(self.spec, index)}

    def _constrained(self, datasets: DataSets, results: list[Draws], names: list[str]) -> dict[str, np.ndarray]:
        """Variables (datasets, chains, draws, *shape) on their own scale, up to the longest data set."""
        chains, draws, dim = results[0].theta.shape
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for i, result in enumerate(results):
            values = self._constrain(result.theta.reshape(chains * draws, dim), self._everything_given(datasets, i))
            unknown = self._read_from_gaps(datasets, i)
            for name in names:
                value = values[name].reshape(chains, draws, *values[name].shape[1:])
                parts[name].append(np.full(value.shape, np.nan) if name in unknown else value)
        return {name: _stacked(values) for name, values in parts.items()}

    def _read_from_gaps(self, datasets: DataSets, index: int) -> set[str]:
        """Deterministics that are computed from values which one data set lacks."""
        model = self.spec.model
        lacking = {model[name] for name, mask in datasets.missing.items() if mask[index].any()}
        return {d.name for d in model.deterministics if lacking and not lacking.isdisjoint(ancestors([d]))}

    def _with_groups(
        self, tree: xr.DataTree, observed: Any, groups: Mapping[str, bool], names: list[str]
    ) -> xr.DataTree:
        """Add log densities by PyMC, which reads every free variable; then leave what was asked for."""
        if not any(groups.values()):
            return tree
        model = self.to_model(observed)
        if groups.get("log_likelihood"):
            pm.compute_log_likelihood(tree, model=model, progressbar=False)
        if groups.get("log_prior"):
            pm.stats.compute_log_prior(tree, model=model, progressbar=False)
        tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset()[names])
        return tree


def _extent(variable: DataVariable) -> str:
    """Shape, with the names of dimensions whose length varies."""
    names = [d if n is None else str(n) for n, d in zip(variable.shape, variable.dims or variable.shape, strict=True)]
    return f"[{', '.join(map(str, names))}]" if names else ""


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """Stack arrays, filling them up with NaN to the shape of the largest."""
    largest = tuple(int(n) for n in np.max([a.shape for a in arrays], axis=0))
    if all(a.shape == largest for a in arrays):
        return np.stack(arrays)
    return np.stack([padded(a if a.dtype.kind == "f" else a.astype("float64"), largest) for a in arrays])
