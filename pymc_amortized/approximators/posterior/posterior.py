"""The amortized posterior of a PyMC model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import torch
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import (
    Correction,
    explain_sampler_arguments,
    read_point,
    refuse_store_arguments,
)
from pymc_amortized.approximators.fitting.seeds import RandomState
from pymc_amortized.approximators.posterior.continuing import continue_training
from pymc_amortized.approximators.posterior.refine import refine
from pymc_amortized.approximators.posterior.sample import sample, sample_to_store
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.approximators.posterior.workflow import PosteriorWorkflow
from pymc_amortized.approximators.storage.save import save
from pymc_amortized.ranks import together
from pymc_amortized.training import Training


@dataclass(frozen=True, eq=False, repr=False)
class AmortizedPosterior(PosteriorWorkflow):
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
    local_to : DataSets or None
        The one data set that it was refined for (:meth:`refine`); None for an amortized posterior.
    learned : ModelSpec or None
        The model with a learned likelihood, by whose density draws are corrected (:func:`fit_joint`, where the model
        has none of its own).

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> many = posterior.sample({"y": np.zeros((3, 4))}, batched=True, draws=100, random_seed=1)
    >>> dict(many.posterior["mu"].sizes)["dataset"]
    3
    >>> posterior.logp({"mu": 0.5}, {"y": np.zeros(4)}).shape
    ()
    """

    @classmethod
    def of(cls, trained: TrainedPosterior) -> Self:
        """Give the record of a training the methods that users call."""
        new = cls(**{field.name: getattr(trained, field.name) for field in fields(trained)})
        new.__dict__.update(vars(trained))  # what was compiled already is shared
        return new

    @explain_sampler_arguments
    def sample(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        draws: int = 1000,
        chains: int = 4,
        batched: bool = False,
        correction: Correction = "auto",
        max_nuts: int | None = None,
        max_time: float | Literal["auto"] | None = "auto",
        var_names: Sequence[str] | None = None,
        random_seed: RandomState = None,
        idata_kwargs: Mapping[str, Any] | None = None,
        progressbar: bool = True,
        dtype: Literal["float64", "float32"] = "float64",
        store: str | PathLike[str] | None = None,
        thin: int = 1,
        reduce: str | None = None,
        cores: int = 1,
        client: Any = None,
    ) -> xr.DataTree:
        """Draw from the posterior of one data set, or of many.

        Parameters
        ----------
        observed : mapping of name to array_like, or xarray.Dataset, optional
            Values of the observed variables, by their name or that of their ``pm.Data``, and of context
            variables; each of the model's shape, after a leading axis of data sets if `batched`. A data set may be a
            data frame: other columns are left out. Data sets of different lengths come as a list of mappings or
            frames, a mapping from labels to them, a ``DataFrame.groupby(...)``, as lists of arrays, or as an
            ``xarray.Dataset`` with NaN in all variables beyond the end of each. NaN is a missing value where the
            posterior was trained for them. By default, the data the model held at training.
        draws, chains : int
            Draws per chain, and chains, for each data set.
        batched : bool
            Whether `observed` holds many data sets; the result then has a leading ``dataset`` dim.
        correction : {"auto", "psis", "nuts", None}
            "psis" resamples proposals by Pareto-smoothed importance weights of the model's exact log density: draws of
            the network and, where there is a sketch of the posterior, a quarter from around that. "auto", where the
            model has a density, goes further for each data set whose weights are poor: proposals from a mixture of
            these and what was found so far, then tempered particles, where several modes were seen, or NUTS, compiled
            once for all data sets. "nuts" runs NUTS for every data set, from amortized starts. None returns the
            network's own draws; weights are reported all the same.
        max_nuts : int, optional
            At most so many data sets go to NUTS; 0 for none.
        max_time : float, "auto" or None
            Seconds for the whole call, without compiling; None for no limit. The first proposals are always made; what
            they do not settle gets the time that is left. "auto" is a minute for that with ``correction="auto"``, and
            no limit with "nuts".
        var_names : sequence of str, optional
            Variables to return; all free variables and deterministics by default. Of a batch, deterministics along
            dims of the data are left out where they would take more than 256 MiB; the log names them.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.
        idata_kwargs : mapping, optional
            ``log_likelihood=True`` or ``log_prior=True`` add these groups; ``proposal_log_weight`` says whether the
            weights of all proposals are kept, which are by default for one data set only.
        progressbar : bool
            Whether to show the progress of what takes long, if it runs; Ctrl-C leaves what is not done yet as "not
            reached".
        dtype : {"float64", "float32"}
            Of real-valued draws, and of what `sample_stats` holds of each; the second makes them half as large.
        store : path-like, optional
            A folder that the results of many data sets are written to in zarr's format, chunk by chunk: they, and
            `observed` if that is an ``xarray.Dataset`` from ``xarray.open_zarr``, may be larger than memory. After an
            interruption the same call goes on with the chunks that are missing; without a seed it takes the one that
            it began with. `max_time` is that of each chunk. The arguments below are for stores alone.
        thin : int
            Every so many draws of each chain are kept.
        reduce : str, optional
            Instead of draws, what they are reduced to: some of "mean", "sd" and "quantiles" (5, 50, 95 %), as in
            ``"mean sd quantiles"``; the group ``summary`` then takes the place of ``posterior``.
        cores : int
            Processes that sample.
        client : distributed.Client, optional
            A client of Dask, whose workers sample and write: they have to see the path. The result depends on neither.

        Returns
        -------
        xarray.DataTree
            Groups ``posterior``, ``sample_stats``, ``observed_data`` and ``constant_data``, as from ``pm.sample``.
            ``sample_stats`` holds for each draw ``lp`` (the model's log density) and ``log_q`` (that of the proposals:
            the network's own, equal to :meth:`logp`, with ``correction=None``; of angles, before they are wrapped), for
            each proposal ``proposal_log_weight``, and for each data set ``stage``, ``pareto_k``, ``importance_ess`` (of
            ``num_proposals``) and ``ood_pvalue``; for each unconstrained parameter (dim ``parameter``)
            ``pareto_k_of_mean`` and ``mcse_of_mean``, the Monte Carlo error of its mean in posterior standard
            deviations; where NUTS ran, also the worst ``r_hat``, ``ess_bulk`` and ``ess_tail`` of its parameters, and
            ``divergences`` (of all it drew, at least four chains of 500; what was asked for is taken from these), and
            ``energy`` and ``tree_depth`` of each draw. The stage is "raw" (the network's own draws), "psis", "smc"
            (tempered particles), "nuts", "failed" or "not reached" (by a limit or Ctrl-C): draws of the last two
            are the best there are, and should not be used. ``rung`` says where draws come from, failed ones too: "raw",
            "weights", "mixture" (of the network and what was found so far), "tempered" (proposals fitted to particles),
            "smc" or "nuts". The p-value says how often the model simulates data as unusual as these, covariates
            included, at about that size (:func:`check_misspecification` simulates at exactly that size, with those
            covariates). Where draws were corrected by a learned likelihood (:func:`fit_joint`), the attribute
            ``density`` of ``posterior`` and ``sample_stats`` is "learned". What is logged as a warning is also in their
            attribute ``doubts``: a JSON list (read it by ``json.loads``) of objects with a ``kind``, the ``finding``,
            the ``advice``, the ``number`` that speaks against the result, and labels of the ``datasets`` concerned.
            With `store`, the same groups of all data sets, of which nothing is read before it is asked for; data that
            differ in length are filled up with NaN.

        Raises
        ------
        ValueError, TypeError, KeyError
            When an argument or the data do not fit the model; the message names it.
        """
        how: dict[str, Any] = {
            "draws": draws,
            "chains": chains,
            "correction": correction,
            "max_nuts": max_nuts,
            "max_time": max_time,
            "var_names": var_names,
            "idata_kwargs": idata_kwargs,
            "dtype": dtype,
        }
        shown: dict[str, Any] = {"random_seed": random_seed, "progressbar": progressbar}
        if store is None:
            refuse_store_arguments(thin=(thin, 1), reduce=(reduce, None), cores=(cores, 1), client=(client, None))
            return sample(self, observed, batched=batched, **how, **shown)
        if not batched:
            raise ValueError("store= is for the results of many data sets: pass batched=True")
        stored: dict[str, Any] = {"thin": thin, "reduce": reduce, "cores": cores, "client": client}
        return sample_to_store(self, observed, store, **stored, **how, **shown)

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
        theta, lead = read_point(self.spec, point)
        datasets = self.read(observed)
        if len(theta) == 0:
            return np.empty(lead)
        return self.approximation(datasets).log_prob(theta[:, None])[:, 0].reshape(lead)

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
        return refine(
            self,
            self.read(observed),
            rounds=rounds,
            num_simulations=num_simulations,
            max_time=max_time,
            device=device,
            random_seed=random_seed,
            progressbar=progressbar,
        )

    @together()
    def continue_training(
        self,
        num_steps: int | None = None,
        *,
        max_time: float | None = None,
        target_efficiency: float | None = None,
        training: Training | None = None,
        context: Mapping[str, Any] | None = None,
        missing: Mapping[str, Any] | None = None,
        simulations: xr.DataTree | str | PathLike[str] | None = None,
        device: str | torch.device | None = None,
        progressbar: bool = True,
    ) -> AmortizedPosterior:
        """Train further, from where training stopped, and return a new posterior.

        Parameters
        ----------
        num_steps : int, optional
            Steps of a new schedule when the last one was finished; as many as before by default, if their number was
            given, and else until twice the steps would bring little. An interrupted training first finishes its own.
        max_time : float, optional
            Seconds that the whole call may take, compiling aside.
        target_efficiency : float, optional
            As in :func:`fit_posterior`: stops once this is reached.
        training : Training, optional
            Other options than before.
        context : mapping, optional
            Sources of the context variables, needed after :func:`load` (files hold none).
        missing : mapping, optional
            Callables that draw which values are missing, needed after :func:`load` likewise; rates are in the file.
        simulations : xarray.DataTree or path-like, optional
            The simulations it was trained on, if they were yours.
        device, progressbar
            As in :func:`fit_posterior`.
        """
        return type(self).of(
            continue_training(
                self,
                num_steps,
                max_time=max_time,
                target_efficiency=target_efficiency,
                training=training,
                context=context,
                missing=missing,
                simulations=simulations,
                device=device,
                progressbar=progressbar,
            )
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights and a description, never code, to a file that :func:`load` reads.

        Parameters
        ----------
        path : path-like
            An existing file is replaced.
        """
        save(self, path)
