"""The amortized posterior of a PyMC model."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, Literal

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import torch
import xarray as xr

from pymc_amortized.approximators.sampling import FEWEST_PROPOSALS, Draws, draw, warn_of_poor_weights
from pymc_amortized.approximators.seeds import RandomState, seed_sequence
from pymc_amortized.correction import Weights
from pymc_amortized.graph.datasets import DataSets, read_datasets
from pymc_amortized.graph.density import Constrain, LogDensity, LogDensityByVariable
from pymc_amortized.graph.spec import ModelSpec
from pymc_amortized.graph.structure import Rows
from pymc_amortized.graph.tensors import CompileKwargs, like
from pymc_amortized.networks.network import PosteriorNetwork
from pymc_amortized.results import posterior_tree
from pymc_amortized.training import History, Training, TrainingState, torch_threads

logger = logging.getLogger("pymc_amortized")

Correction = Literal["auto", "psis"] | None
FAR_OUTSIDE = 0.1
"""Data this far beyond the simulated range, in units of its width, are warned about."""


@dataclass(frozen=True)
class Provenance:
    """How a posterior was trained: all that is needed to repeat or continue it.

    Attributes
    ----------
    entropy : tuple of int
        Seed of everything random.
    training : Training
    num_simulations : int or None
        Size of the fixed set of simulations; None for fresh ones at every step.
    cores : int
        Processes that simulated.
    simulations : int
        Simulations that training consumed.
    attempted : int
        Simulations made for statistics and held-out data, including dropped ones.
    dropped : dict of str to int
        Why some of those were dropped.
    settled : bool
        Whether the loss had settled.
    held_out_loss : float
    user_simulations : bool
        Whether the simulations were the user's.
    """

    entropy: tuple[int, ...]
    training: Training
    num_simulations: int | None
    cores: int
    simulations: int
    attempted: int
    dropped: dict[str, int]
    settled: bool
    held_out_loss: float
    user_simulations: bool


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
        draws, chains = positive("draws", draws), positive("chains", chains)
        names = self._checked_names(var_names)
        extras = _checked_idata_kwargs(idata_kwargs, batched)
        corrected = self._checked_correction(correction)
        datasets = read_datasets(self.spec, observed, batched=batched)
        self._warn_if_outside(datasets)
        seed = seed_sequence(random_seed)
        results = self._draw(datasets, draws, chains, corrected, seed)
        if any(np.all(np.isneginf(r.log_weights)) for r in results):
            self._explain_impossible(datasets, results)
        if corrected:
            warn_of_poor_weights(results, datasets.labels)
        variables = self._constrained(datasets, results, names)
        tree = posterior_tree(
            self.spec,
            datasets,
            variables=variables,
            sample_stats=_sample_stats(results),
            attrs=self._attrs(corrected, time.perf_counter() - started),
        )
        return self._with_extras(tree, observed, extras)

    def logp(self, point: Mapping[str, Any], observed: Mapping[str, Any] | xr.Dataset | None = None) -> np.ndarray:
        """Log density of the network's posterior over the unconstrained value variables.

        Parameters
        ----------
        point : mapping of name to array_like
            Value variables as in ``model.initial_point()`` (``"tau_log__"``), each (..., *shape) with the same
            leading shape.
        observed : mapping of name to array_like, optional
            One data set; by default, what the model held.

        Returns
        -------
        ndarray (...)
            Normalized over the value variables, Jacobians included, as PyMC counts. Subtracting it from
            ``model.compile_logp()(point)`` gives log importance weights.
        """
        theta, lead = self._flat(point)
        datasets = read_datasets(self.spec, observed)
        with torch.inference_mode():
            values = self.network.log_prob(theta[:, None], self._features_of(datasets, slice(None)))
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
        model = self.spec.model
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
        data : mapping of name to ndarray (n, *shape)
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
    ) -> list[Draws]:
        fixed = {v.name: self.spec.held[v.name] for v in self.spec.fixed}

        def propose(indices: np.ndarray, n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
            # one thread: many small operations, at which threads would only wait for each other
            with torch.inference_mode(), torch_threads(1):
                features = self._features_of(datasets, indices)
                theta, log_q = self.network.sample(n, features, generator)
            return theta.numpy(), log_q.numpy()

        def log_density(theta: np.ndarray, index: int) -> np.ndarray:
            return self._log_density(theta, {**fixed, **datasets.one(index)})

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

    def _features_of(self, datasets: DataSets, index: Any) -> dict[str, np.ndarray]:
        return network_data(self.spec, self.structure, datasets.take(index))

    def _constrained(self, datasets: DataSets, results: list[Draws], names: list[str]) -> dict[str, np.ndarray]:
        fixed = {v.name: self.spec.held[v.name] for v in self.spec.fixed}
        chains, draws, dim = results[0].theta.shape
        out: dict[str, np.ndarray] = {}
        for i, result in enumerate(results):
            values = self._constrain(result.theta.reshape(chains * draws, dim), {**fixed, **datasets.one(i)})
            for name in names:
                if i == 0:
                    shape = (len(results), chains, draws, *values[name].shape[1:])
                    out[name] = np.empty(shape, dtype=values[name].dtype)
                out[name][i] = values[name].reshape(out[name].shape[1:])
        return out

    def _flat(self, point: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, ...]]:
        expected = {p.value_name: p for p in self.spec.parameters}
        if set(point) != set(expected):
            raise KeyError(f"point holds {sorted(point)}; the value variables are {sorted(expected)}")
        parts, lead = [], None
        for name, parameter in expected.items():
            value = np.asarray(point[name], dtype=float)
            split = value.ndim - len(parameter.unconstrained_shape)
            if split < 0 or value.shape[split:] != parameter.unconstrained_shape:
                raise ValueError(
                    f"point[{name!r}] has shape {value.shape}; expected (..., "
                    f"{', '.join(map(str, parameter.unconstrained_shape))})"
                )
            if lead is not None and value.shape[:split] != lead:
                raise ValueError(f"point[{name!r}] has leading shape {value.shape[:split]}, others {lead}")
            lead = value.shape[:split]
            parts.append(value.reshape(-1, parameter.size))
        return np.concatenate(parts, axis=1), lead or ()

    def _checked_names(self, var_names: Sequence[str] | None) -> list[str]:
        allowed = self._constrain.names
        if var_names is None:
            return allowed
        if isinstance(var_names, str):
            raise TypeError(f"var_names must be a sequence of names, got the string {var_names!r}")
        unknown = [name for name in var_names if name not in allowed]
        if unknown or not var_names:
            raise KeyError(f"var_names: {unknown or 'no names'} given; available are {allowed}")
        return [name for name in allowed if name in var_names]

    def _checked_correction(self, correction: Correction) -> bool:
        obstacle = self.spec.density_obstacle
        if correction not in ("auto", "psis", None):
            raise ValueError(f"correction must be 'auto', 'psis' or None, got {correction!r}")
        if correction == "psis" and obstacle:
            raise ValueError(f"correction='psis' needs the model's density: {obstacle}")
        if correction is None and self.spec.potentials:
            raise ValueError(
                f"correction=None is refused: the model's potentials {list(self.spec.potentials)} are no part of the "
                "simulations, only the importance weights bring them in"
            )
        if obstacle and correction == "auto":
            _say_once_that_uncorrected(obstacle)
        return correction is not None and obstacle is None

    def _warn_if_outside(self, datasets: DataSets) -> None:
        everything = self._features_of(datasets, slice(None))
        for name, distance in self.network.encoder.outside(everything).items():
            if distance > FAR_OUTSIDE:
                logger.warning(
                    "Some values of %r lie beyond anything the model simulated, by %.2g times the simulated range: "
                    "the network extrapolates. Check units, or widen the priors.",
                    name,
                    distance,
                )

    def _explain_impossible(self, datasets: DataSets, results: list[Draws]) -> None:
        """No proposal is possible under the model: because of the data, or because of the network."""
        index = next(i for i, r in enumerate(results) if np.all(np.isneginf(r.log_weights)))
        fixed = {v.name: self.spec.held[v.name] for v in self.spec.fixed}
        theta = results[index].theta.reshape(-1, self.spec.dim)
        parts = LogDensityByVariable(self.spec, self.compile_kwargs)(theta, {**fixed, **datasets.one(index)})
        where = f" of data set {datasets.labels[index]}" if datasets.batched else ""
        for variable in self.spec.observed:
            part = parts[variable.name].reshape(len(theta), -1)
            never = np.all(~np.isfinite(part), axis=0)
            if never.any():
                value = datasets.values[variable.name][index]
                element = int(np.argmax(never))
                shown = value.flat[element] if part.shape[1] == value.size else value
                raise ValueError(
                    f"the value {shown} of {variable.name!r}{where} (element {element}) has no density under the "
                    "model at any proposed parameter: it is outside the variable's support, or far from "
                    "anything the prior can produce"
                )
        names = [n for n, part in parts.items() if not np.isfinite(part).any()]
        logger.warning(
            "No proposed parameter%s has a finite log density (%s): its draws are uncorrected.",
            where,
            ", ".join(names) or "jointly",
        )

    def _attrs(self, corrected: bool, seconds: float) -> dict[str, Any]:
        p = self.provenance
        attrs: dict[str, Any] = {
            "sampling_time": seconds,
            "correction": "psis" if corrected else "none",
            "trained_on_simulations": p.simulations,
            "training_settled": int(p.settled),
        }
        if p.dropped:
            attrs["prior_truncated"] = "; ".join(
                f"{reason}: {count} of {p.attempted} simulations" for reason, count in p.dropped.items()
            )
        return attrs

    def _with_extras(self, tree: xr.DataTree, observed: Any, extras: Mapping[str, bool]) -> xr.DataTree:
        if not any(extras.values()):
            return tree
        with self.to_model(observed):
            if extras.get("log_likelihood"):
                pm.compute_log_likelihood(tree, progressbar=False)
            if extras.get("log_prior"):
                pm.compute_log_prior(tree, progressbar=False)
        return tree


def network_data(spec: ModelSpec, rows: Rows, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays the network sees: what varies, and fixed covariates that belong to exchangeable rows."""
    n = len(next(iter(values.values())))
    companions = {v.name: np.broadcast_to(spec.held[v.name], (n, *v.shape)) for v in spec.fixed if v.name in rows.names}
    return {**values, **companions}


def _sample_stats(results: list[Draws]) -> dict[str, tuple[list[str], np.ndarray]]:
    per_draw = ["chain", "draw"]
    stats: dict[str, tuple[list[str], np.ndarray]] = {"log_q": (per_draw, np.stack([r.log_q for r in results]))}
    if results[0].weights is None:
        return stats
    stats["lp"] = (per_draw, np.stack([r.log_p for r in results]))
    most = max(r.log_weights.shape[1] for r in results)
    padded = [
        np.pad(r.log_weights, ((0, 0), (0, most - r.log_weights.shape[1])), constant_values=np.nan) for r in results
    ]
    stats["proposal_log_weight"] = (["chain", "proposal"], np.stack(padded))
    weights = [r.weights for r in results if r.weights is not None]
    stats["pareto_k"] = ([], np.array([w.pareto_k for w in weights]))
    stats["importance_ess"] = ([], np.array([w.ess for w in weights]))
    return stats


_said: set[str] = set()


def _say_once_that_uncorrected(obstacle: str) -> None:
    if obstacle not in _said:
        _said.add(obstacle)
        logger.warning("Draws are the network's own, uncorrected: %s.", obstacle)


def positive(name: str, value: Any) -> int:
    """Check that an argument is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a positive integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value}")
    return int(value)


def _checked_idata_kwargs(kwargs: Mapping[str, Any] | None, batched: bool) -> dict[str, bool]:
    kwargs = dict(kwargs or {})
    unknown = sorted(set(kwargs) - {"log_likelihood", "log_prior"})
    if unknown:
        raise ValueError(f"idata_kwargs: {unknown} given; allowed are 'log_likelihood' and 'log_prior'")
    if batched and any(kwargs.values()):
        raise ValueError("idata_kwargs is for one data set; use to_model for each with batched=True")
    return {name: bool(value) for name, value in kwargs.items()}
