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
    say_once_that_uncorrected,
    warn_of_extrapolation,
    warn_of_poor_weights,
)
from pymc_amortized.approximators.inputs import network_data
from pymc_amortized.approximators.provenance import Provenance
from pymc_amortized.approximators.sampling import FEWEST_PROPOSALS, Draws, draw, sample_stats
from pymc_amortized.approximators.seeds import RandomState, seed_sequence
from pymc_amortized.correction import Weights
from pymc_amortized.graph.datasets import DataSets, read_datasets
from pymc_amortized.graph.density import Constrain, LogDensity
from pymc_amortized.graph.spec import ModelSpec
from pymc_amortized.graph.step import closed_model
from pymc_amortized.graph.structure import Rows
from pymc_amortized.graph.tensors import CompileKwargs, like
from pymc_amortized.networks.network import PosteriorNetwork
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
    structure : Rows
        What was found about the data's leading axis.
    history : History
        Losses during training; ``history.plot()`` draws them.
    provenance : Provenance
        How it was trained.
    """

    spec: ModelSpec
    network: PosteriorNetwork
    structure: Rows
    history: History
    provenance: Provenance
    state: TrainingState
    context: Mapping[str, Any] | None
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
            variables; each of the model's shape, after a leading axis of data sets if `batched`. By default, the
            data the model held at training.
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
            each proposal ``proposal_log_weight``, and for each data set ``pareto_k`` and ``importance_ess``.

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
        warn_of_extrapolation(self.network.encoder.outside(self._network_data(datasets, slice(None))))
        results = self._draw(datasets, draws, chains, correct, seed_sequence(random_seed), bounded=not correct)
        explain_impossible(self.spec, datasets, results, self.compile_kwargs)
        if correct:
            warn_of_poor_weights(results, datasets.labels)
        elif correction == "auto" and self.spec.density_obstacle:
            say_once_that_uncorrected(self.spec.density_obstacle)
        computed = self._constrain.names if any(groups.values()) else names
        variables = self._constrained(datasets, results, computed)
        attrs = {"sampling_time": time.perf_counter() - started, "correction": "psis" if correct else "none"}
        tree = posterior_tree(
            self.spec,
            datasets,
            variables=variables,
            sample_stats=sample_stats(results),
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
            values = self.network.log_prob(theta[:, None], self._network_data(datasets, slice(None)))
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
        values = read_datasets(self.spec, observed).one(0)
        model = closed_model(self.spec)
        symbols = {v.name: like(model[v.name], pt.constant(values[v.name])) for v in self.spec.observed}
        conditioned = pm.observe(model, symbols)
        with conditioned:
            for variable in self.spec.context:
                pm.set_data({variable.name: values[variable.name]})
        return conditioned

    def continue_training(
        self,
        num_steps: int | None = None,
        *,
        max_time: float | None = None,
        context: Mapping[str, Any] | None = None,
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

    def weights_of(self, data: Mapping[str, np.ndarray], seed: np.random.SeedSequence) -> list[Weights]:
        """Importance weights of the network's draws for several data sets.

        Parameters
        ----------
        data : mapping of name to ndarray ``(n, *shape)``
            Observed and context variables.
        seed : numpy.random.SeedSequence
        """
        n = len(next(iter(data.values())))
        datasets = DataSets(dict(data), np.arange(n), True)
        results = self._draw(datasets, FEWEST_PROPOSALS, 1, False, seed)
        return [r.weights for r in results if r.weights is not None]

    def __repr__(self) -> str:
        p = self.provenance
        shapes = ", ".join(f"{v.name}{list(v.shape) or ''}" for v in self.spec.parameters)
        data = ", ".join(f"{v.name}{list(v.shape) or ''}" for v in self.spec.data)
        return (
            f"AmortizedPosterior({shapes} | {data})\n"
            f"  structure: {self.structure}\n"
            f"  trained on {p.simulations:,} simulations, held-out loss {p.held_out_loss:.3f}, "
            f"{'settled' if p.settled else 'not settled'}"
        )

    @cached_property
    def _log_density(self) -> LogDensity:
        return LogDensity(self.spec, self.compile_kwargs)

    @cached_property
    def _constrain(self) -> Constrain:
        return Constrain(self.spec, self.compile_kwargs)

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
        def propose(indices: np.ndarray, n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
            # one thread: many small operations, at which threads would only wait for each other
            with torch.inference_mode(), torch_threads(1):
                features = self._network_data(datasets, indices)
                sample = self.network.sample_within if bounded else self.network.sample
                theta, log_q = sample(n, features, generator)
            return theta.numpy(), log_q.numpy()

        def log_density(theta: np.ndarray, index: int) -> np.ndarray:
            return self._log_density(theta, self._everything_given(datasets, index))

        return draw(
            propose,
            None if self.spec.density_obstacle else log_density,
            len(datasets),
            chains=chains,
            draws=draws,
            corrected=corrected,
            seed=seed,
            device=self.network.device,
        )

    def _network_data(self, datasets: DataSets, index: Any) -> dict[str, np.ndarray]:
        return network_data(self.spec, self.structure, datasets.take(index))

    def _everything_given(self, datasets: DataSets, index: int) -> dict[str, np.ndarray]:
        """One data set with what the model holds fixed, as densities take it."""
        return {**{v.name: self.spec.held[v.name] for v in self.spec.unchanging}, **datasets.one(index)}

    def _constrained(self, datasets: DataSets, results: list[Draws], names: list[str]) -> dict[str, np.ndarray]:
        chains, draws, dim = results[0].theta.shape
        out: dict[str, np.ndarray] = {}
        for i, result in enumerate(results):
            values = self._constrain(result.theta.reshape(chains * draws, dim), self._everything_given(datasets, i))
            for name in names:
                if i == 0:
                    shape = (len(results), chains, draws, *values[name].shape[1:])
                    out[name] = np.empty(shape, dtype=values[name].dtype)
                out[name][i] = values[name].reshape(out[name].shape[1:])
        return out

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
