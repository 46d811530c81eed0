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

from pymc_amortized.approximators.fitting.arguments import (
    Correction,
    budget,
    chosen_names,
    corrected,
    flat_point,
    wanted_groups,
    whole,
)
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.fitting.simulate import sources_again
from pymc_amortized.approximators.posterior.compiled import Compiled
from pymc_amortized.approximators.posterior.predictive import Kind
from pymc_amortized.correction.approximation import Approximation
from pymc_amortized.correction.correct import draw_corrected
from pymc_amortized.correction.doubt import (
    say_that_uncorrected,
    warn_of_extrapolation,
    warn_of_many_gaps,
    warn_of_novelty,
)
from pymc_amortized.correction.drawing import Conditions, draw_given
from pymc_amortized.correction.evidence import (
    Evidence,
    estimate,
    evidence_dataset,
    refuse_evidence,
    warn_of_no_evidence,
    warn_of_truncation,
)
from pymc_amortized.correction.rounds import FEWEST_PROPOSALS, sample_stats
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.indices import refuse_indices
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.step import closed_model, log_orderings
from pymc_amortized.graph.model.tensors import CompileKwargs, like
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import Sketch
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.novelty.reference import extents, features_of
from pymc_amortized.novelty.scores import Reference
from pymc_amortized.numerics.importance import Weights
from pymc_amortized.results.unpacking import one_dataset
from pymc_amortized.results.writing import posterior_tree
from pymc_amortized.training import History, TrainingState


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
        Scores of simulations, by which the novelty of data is judged.
    sketch : Sketch or None
        What the model's density tells the network of each posterior.
    local_to : DataSets or None
        The one data set that it was refined for (:meth:`refine`); None for an amortized posterior.
    learned : ModelSpec or None
        The model with a learned likelihood, by whose density draws are corrected (:func:`fit_joint`, where the model
        has none of its own).
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
    sketch: Sketch | None = None
    compile_kwargs: CompileKwargs | None = None
    local_to: DataSets | None = None
    learned: ModelSpec | None = None

    def sample(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        draws: int = 1000,
        chains: int = 4,
        batched: bool = False,
        correction: Correction = "auto",
        max_nuts: int | None = None,
        max_time: float | None = None,
        var_names: Sequence[str] | None = None,
        random_seed: RandomState = None,
        idata_kwargs: Mapping[str, Any] | None = None,
        progressbar: bool = True,
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
        correction : {"auto", "psis", "nuts", None}
            "psis" resamples proposals by Pareto-smoothed importance weights of the model's exact log density: draws of
            the network and, where there is a sketch of the posterior, a quarter from around that. "auto", where the
            model has a density, goes further for each data set whose weights are poor: proposals from a mixture of
            these and what was found so far, then NUTS, compiled once for all data sets. "nuts" runs NUTS for every data
            set, from amortized starts. None returns the network's own draws; weights are reported all the same.
        max_nuts : int, optional
            At most so many data sets go to NUTS; 0 leaves it at importance weights.
        max_time : float, optional
            Seconds after which NUTS is stopped.
        var_names : sequence of str, optional
            Variables to return; all free variables and deterministics by default.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.
        idata_kwargs : mapping, optional
            ``log_likelihood=True`` or ``log_prior=True`` add these groups.
        progressbar : bool
            Whether to show the progress of NUTS, if it runs; Ctrl-C leaves what is not done yet as "failed".

        Returns
        -------
        xarray.DataTree
            Groups ``posterior``, ``sample_stats``, ``observed_data`` and ``constant_data``, as from ``pm.sample``.
            ``sample_stats`` holds for each draw ``lp`` (the model's log density) and ``log_q`` (that of the proposals:
            the network's own, equal to :meth:`logp`, with ``correction=None``; of angles, before they are wrapped), for
            each proposal ``proposal_log_weight``, and for each data set ``stage``, ``pareto_k``, ``importance_ess`` and
            ``ood_pvalue``; where NUTS ran, also the worst ``r_hat``, ``ess_bulk`` and ``ess_tail`` of its parameters,
            and ``divergences`` (of all it drew, at least four chains of 500; what was asked for is taken from these).
            The stage is "raw" (the network's own draws), "psis", "nuts" or "failed": such draws are the best there are,
            and should not be used. The p-value says how often the model simulates data as unusual as these, covariates
            included, at about that size (:func:`check_misspecification` simulates at exactly that size, with those
            covariates). Where draws were corrected by a learned likelihood (:func:`fit_joint`), the attribute
            ``density`` of ``posterior`` and ``sample_stats`` is "learned".

        Raises
        ------
        ValueError, TypeError, KeyError
            When an argument or the data do not fit the model; the message names it.
        """
        started = time.perf_counter()
        draws, chains = whole("draws", draws), whole("chains", chains)
        names = chosen_names(var_names, self.compiled.constrain.names)
        groups = wanted_groups(idata_kwargs)
        correct = corrected(self.weighed_by, correction)
        datasets = self._read(observed, batched)
        allowed = budget(max_nuts, max_time)
        datasets = self.inputs.sketched(datasets)
        context = [c.name for c in self.spec.context]
        encoder = self.network.encoder
        warn_of_extrapolation(encoder.outside(**self.inputs(datasets)), datasets.labels, context, encoder.ranges())
        warn_of_many_gaps(self.spec, datasets, self.missing or {})
        ood = self.ood_pvalues(datasets)
        warn_of_novelty(ood, datasets.labels)
        results = draw_corrected(
            self._conditions(datasets),
            correction if correct else None,
            self.compiled.samplers,
            draws=draws,
            chains=chains,
            budget=allowed,
            seed=seed_sequence(random_seed),
            progressbar=progressbar,
        )
        if correction == "auto" and (obstacle := self.weighed_by.density_obstacle):
            say_that_uncorrected(self.spec, obstacle, len(datasets), len(datasets))
        computed = self.compiled.constrain.names if any(groups.values()) else names
        variables = self.compiled.variables(datasets, results, computed)
        attrs = {"sampling_time": time.perf_counter() - started, "correction": correction if correct else "none"}
        attrs |= self._marks() if correct else {}
        tree = posterior_tree(
            self.spec,
            datasets,
            variables=variables,
            sample_stats=sample_stats(results) | {"ood_pvalue": ([], ood)},
            attrs=attrs | self.provenance.attributes(),
        )
        return self._with_groups(tree, groups, names)

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
            ``model.compile_logp()(point)`` gives log importance weights of draws with ``correction=None``; others come
            from more than the network (``log_q`` in :meth:`sample`).
        """
        theta, lead = flat_point(self.spec, point)
        datasets = self._read(observed)
        if len(theta) == 0:
            return np.empty(lead)
        return self.approximation(datasets).log_prob(theta[:, None])[:, 0].reshape(lead)

    def log_marginal_likelihood(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        batched: bool = False,
        proposals: int = 10_000,
        random_seed: RandomState = None,
    ) -> xr.Dataset:
        """Estimate the log marginal likelihood of one data set, or of many, by importance sampling.

        Parameters
        ----------
        observed, batched
            As in :meth:`sample`. What is missing is integrated out.
        proposals : int
            For each data set: half from the network, half from a Student t around what it found. Their number is
            fixed, which keeps the estimate unbiased.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.

        Returns
        -------
        xarray.Dataset
            For each data set ``log_marginal_likelihood`` under the model's own density (a warning says so where that
            excludes draws from its prior, as ordered transforms do), its Monte Carlo standard error ``mcse``, and
            ``pareto_k`` and ``importance_ess`` of the weights. Where these are poor (k above 0.5), the first two are
            NaN, and that is logged. Where the likelihood is a learned one (:func:`fit_joint`), the attribute
            ``density`` is "learned": its own error is not part of `mcse`.

        Raises
        ------
        ValueError
            When the model's density cannot be evaluated or is not normalized (``pm.Potential``).
        """
        refuse_evidence(self.weighed_by)
        proposals = whole("proposals", proposals, smallest=FEWEST_PROPOSALS)
        datasets = self._read(observed, batched)
        found = self.evidence_of(datasets, proposals, seed_sequence(random_seed))
        warn_of_no_evidence(found, datasets.labels)
        warn_of_truncation(self.provenance.dropped, self.provenance.attempted, log_orderings(self.spec))
        return evidence_dataset(datasets, found).assign_attrs(self._marks())

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
        datasets = self._read(observed)
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

    def sample_posterior_predictive(
        self,
        tree: xr.DataTree,
        *,
        var_names: Sequence[str] | None = None,
        random_seed: RandomState = None,
        extend_inferencedata: bool = False,
    ) -> xr.DataTree:
        """Draw from the posterior predictive distribution of every data set of a result.

        What ``pm.sample_posterior_predictive`` does for one data set, compiled once for all of them. Values,
        covariates, lengths and gaps are read from the result itself.

        Parameters
        ----------
        tree : xarray.DataTree
            From :meth:`sample`, with every free variable; of one data set, or of many.
        var_names : sequence of str, optional
            By default the observed variables, and the deterministics that are computed from them.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.
        extend_inferencedata : bool
            Whether to add the group to `tree` in place and return that, as in PyMC.

        Returns
        -------
        xarray.DataTree
            Group ``posterior_predictive`` with dims ``([dataset,] chain, draw, ...)``, NaN beyond the length of a data
            set, and the groups of the data.

        Raises
        ------
        KeyError, ValueError, TypeError
            When a group or variable is not there.
        """
        return self.compiled.predictions.sample(
            tree, var_names=var_names, seed=seed_sequence(random_seed), extend_inferencedata=extend_inferencedata
        )

    def compute_log_likelihood(
        self,
        tree: xr.DataTree,
        *,
        var_names: Sequence[str] | None = None,
        extend_inferencedata: bool = True,
    ) -> xr.DataTree | xr.Dataset:
        """Compute the pointwise log likelihood of every data set of a result.

        What ``pm.compute_log_likelihood`` does for one data set, compiled once for all of them.

        Parameters
        ----------
        tree : xarray.DataTree
            From :meth:`sample`, with every free variable; of one data set, or of many.
        var_names : sequence of str, optional
            Observed variables; all by default.
        extend_inferencedata : bool
            Whether to add the group ``log_likelihood`` to `tree` in place and return that, as in PyMC; otherwise
            the group alone is returned.

        Returns
        -------
        xarray.DataTree or xarray.Dataset
            Dims ``([dataset,] chain, draw, ...)``; NaN beyond the length of a data set, and for each term that reads a
            missing value. ``az.loo(posterior.one_dataset(tree, label))`` goes on from there.

        Raises
        ------
        KeyError, ValueError, TypeError
            When a group or variable is not there, or a variable has no density.
        """
        return self.compiled.predictions.log_density(
            tree, "likelihood", var_names=var_names, extend_inferencedata=extend_inferencedata
        )

    def one_dataset(self, tree: xr.DataTree, dataset: Any = None) -> xr.DataTree:
        """Take one data set out of a result, with only what exists, for ArviZ.

        Where all data sets have one size and no gaps, this is ``tree.sel(dataset=dataset)``. Otherwise NaN would
        spoil what ArviZ computes: dimensions are cut to the data set's length, and missing values left out of
        ``observed_data``, ``posterior_predictive`` and ``log_likelihood``; the axes of a variable with gaps become one,
        ``<name>_present``, with the positions of what is there.

        Parameters
        ----------
        tree : xarray.DataTree
            From :meth:`sample`.
        dataset : scalar, optional
            Label of a data set; not for a result of one data set.

        Returns
        -------
        xarray.DataTree

        Raises
        ------
        KeyError, ValueError
            When there is no such data set.
        """
        return one_dataset(self.spec, tree, dataset)

    def _with_gaps(self, variable: DataVariable, datasets: DataSets) -> np.ndarray:
        """Values of one data set as the conditioned model observes them."""
        values = datasets.shown(variable)[0]
        if values.dtype.kind == "f" and np.dtype(variable.dtype).kind != "f":
            raise ValueError(
                f"{variable.name!r} has missing values, which a model of {variable.dtype} values cannot hold: "
                "drop these entries"
            )
        return values

    def refine(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        rounds: int = 3,
        num_simulations: int | None = None,
        max_time: float | None = None,
        device: str | torch.device | None = None,
        random_seed: RandomState = None,
        progressbar: bool = True,
    ) -> AmortizedPosterior:
        """Train on around one data set, and return a posterior of that data set alone.

        For a data set that the amortized network fits badly. Each round simulates data sets of its size, covariates
        and gaps from the prior truncated to the highest-density region of the posterior found so far, and trains on
        these. The result is no longer amortized: it refuses other data sets.

        Parameters
        ----------
        observed : mapping of name to array_like, or xarray.Dataset, optional
            One data set, as in :meth:`sample`; by default, what the model held at training.
        rounds : int
            How many times the region is found anew.
        num_simulations : int, optional
            Simulations of a round; by default 16,384, or what the amortized training made do with.
        max_time : float, optional
            Seconds of training in all rounds together; 60 by default. Compiling and simulating come on top.
        device, progressbar
            As in :func:`fit_posterior`.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.

        Returns
        -------
        AmortizedPosterior
            With ``local_to``. Where the model has a density, a round that lowers the importance efficiency at the data
            set is not kept.

        Raises
        ------
        ValueError, TypeError, KeyError
            When an argument or the data do not fit.

        Notes
        -----
        The method is truncated sequential neural posterior estimation (Deistler et al. 2022, arXiv 2210.04815).
        """
        from pymc_amortized.approximators.fitting.simulate import FEWEST_USABLE
        from pymc_amortized.approximators.posterior.refine import refine

        if max_time is not None and not (isinstance(max_time, int | float) and 0 < max_time < np.inf):
            raise ValueError(f"max_time must be a number of seconds > 0, got {max_time!r}")
        if num_simulations is not None:
            num_simulations = whole("num_simulations", num_simulations, smallest=FEWEST_USABLE)
        return refine(
            self,
            self._read(observed),
            rounds=whole("rounds", rounds),
            num_simulations=num_simulations,
            max_time=max_time,
            device=device,
            random_seed=random_seed,
            progressbar=progressbar,
        )

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
            Callables that draw which values are missing, needed after :func:`load` likewise; rates are in the file.
        simulations : xarray.DataTree, optional
            The simulations it was trained on, if they were yours.
        device, progressbar
            As in :func:`fit_posterior`.
        """
        from pymc_amortized.approximators.posterior.fit import continue_fit

        if self.local_to is not None:
            raise ValueError("a refined posterior is trained by refine(), for its one data set")
        options = replace(
            self.provenance.training,
            num_steps=self.provenance.training.steps if num_steps is None else num_steps,
            max_time=max_time,
        )
        further = continue_fit(
            self,
            options,
            context=context,
            missing=missing,
            simulations=simulations,
            device=device,
            progressbar=progressbar,
        )
        return replace(further, learned=self.learned)

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights and a description, never code, to a file that :func:`load` reads.

        Parameters
        ----------
        path : path-like
            An existing file is replaced.
        """
        from pymc_amortized.approximators.load import save

        if self.local_to is not None:
            raise ValueError(
                "a refined posterior is that of one data set and is not saved: save its draws "
                "(posterior.sample().to_netcdf(path)), or the amortized posterior it came from"
            )
        save(self, path)

    def approximation(self, datasets: DataSets) -> Approximation:
        """What the network says of the posteriors of several data sets.

        Parameters
        ----------
        datasets : DataSets
        """
        return Approximation(self.network, self.inputs, datasets)

    def weights_of(self, datasets: DataSets, seed: np.random.SeedSequence) -> list[Weights]:
        """Importance weights of the network's draws for several data sets; only for those that have a density.

        Parameters
        ----------
        datasets : DataSets
        seed : numpy.random.SeedSequence
        """
        conditions = self._conditions(datasets)
        results = draw_given(conditions, draws=FEWEST_PROPOSALS, chains=1, mode="raw", seed=seed)
        return [r.weights for r in results if r.weights is not None]

    def evidence_of(self, datasets: DataSets, proposals: int, seed: np.random.SeedSequence) -> list[Evidence]:
        """Estimate the marginal likelihood of several data sets, of a model that has a normalized density.

        Parameters
        ----------
        datasets : DataSets
        proposals : int
            For each.
        seed : numpy.random.SeedSequence
        """
        return estimate(self._conditions(datasets), proposals, seed)

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
        return features_of(*self.inputs.summarized_by(self.network), datasets)

    def corrected_draws(self, datasets: DataSets, seed: np.random.SeedSequence) -> np.ndarray:
        """Corrected unconstrained draws (n, dim) of one data set that has a density."""
        (result,) = draw_given(self._conditions(datasets), draws=FEWEST_PROPOSALS, chains=1, mode="adapted", seed=seed)
        return result.theta[0]

    def replaced(self, **changes: Any) -> AmortizedPosterior:
        """Return the same with other fields; what is compiled from the model is shared."""
        new = replace(self, **changes)
        new.__dict__["compiled"] = self.compiled
        return new

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
            + ("\n  refined for one data set; not amortized" if self.local_to is not None else "")
            + ("\n  draws are corrected by the learned likelihood" if self.learned is not None else "")
        )

    def _read(self, observed: Mapping[str, Any] | xr.Dataset | None, batched: bool = False) -> DataSets:
        """Read data sets; a refined posterior knows its own only."""
        if self.local_to is not None and observed is None and not batched:
            return self.local_to
        datasets = read_datasets(self.spec, observed, batched=batched)
        if self.local_to is not None and (len(datasets) > 1 or not datasets.equals(self.local_to)):
            raise ValueError(
                "this posterior was refined for one data set and is no longer amortized: for other data, sample the "
                "posterior it was refined from, or refine that anew"
            )
        refuse_indices(datasets.existing(self.spec), self.compiled.limits, "observed")
        return datasets

    @property
    def weighed_by(self) -> ModelSpec:
        """The model whose density corrects draws: its own, or one with a learned likelihood."""
        return self.learned or self.spec

    def _marks(self) -> dict[str, str]:
        """What results that rest on a learned density say so by."""
        return {"density": "learned"} if self.learned is not None else {}

    @cached_property
    def inputs(self) -> Inputs:
        """What the network is given of data sets: arguments ``data`` and ``sizes``."""
        return Inputs(self.spec, self.structure, self.sketch)

    @cached_property
    def compiled(self) -> Compiled:
        """What is compiled from the model."""
        return Compiled(self.spec, self.gaps, self.compile_kwargs, self.learned)

    @cached_property
    def simulator(self) -> Simulator:
        """Makes data sets like those of training, and their parameters."""
        sources, gaps = sources_again(self, None, None)
        context = ContextSampler(self.spec, sources, gaps)
        return Simulator(self.spec, context=context, deterministics=False, compile_kwargs=self.compile_kwargs)

    def _conditions(self, datasets: DataSets) -> Conditions:
        return Conditions(
            self.weighed_by,
            self.network,
            self.inputs.sketched(datasets),
            self.compiled.log_density,
            self.compiled.obstacles(datasets),
            self.inputs,
            self.compile_kwargs,
        )

    def _with_groups(self, tree: xr.DataTree, groups: Mapping[str, bool], names: list[str]) -> xr.DataTree:
        """Add log densities, which read every free variable; then leave what was asked for."""
        if not any(groups.values()):
            return tree
        kinds: dict[str, Kind] = {"log_likelihood": "likelihood", "log_prior": "prior"}
        for group in (name for name, wanted in groups.items() if wanted):
            self.compiled.predictions.log_density(tree, kinds[group], var_names=None, extend_inferencedata=True)
        tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset()[names])
        return tree


def _extent(variable: DataVariable) -> str:
    """Shape, with the names of dimensions whose length varies."""
    names = [d if n is None else str(n) for n, d in zip(variable.shape, variable.dims or variable.shape, strict=True)]
    return f"[{', '.join(map(str, names))}]" if names else ""
