"""A posterior in the Bayesian workflow: evidence, the conditioned model, predictions, pointwise log likelihoods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import Correction, check_integer, read_names
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.sample import sample, sample_groups
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.correction.check_results import check_calibrated
from pymc_amortized.correction.doubt import tell
from pymc_amortized.correction.evidence import check_evidence, check_truncation, evidence_dataset, refuse_evidence
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.spec import DataVariable
from pymc_amortized.graph.model.step import closed_model, log_orderings
from pymc_amortized.graph.model.tensors import like
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.results.table import summary_table
from pymc_amortized.results.unpacking import one_dataset

MOST_DRAWN = 20_000_000
"""Numbers that are drawn at once for a table: some hundred megabytes, with what they are weighed by."""


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorWorkflow(TrainedPosterior):
    """A trained posterior with what goes on around sampling."""

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
            As in :meth:`AmortizedPosterior.sample`. What is missing is integrated out.
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
            ``density`` is "learned": its own error is not part of `mcse`. The attribute ``doubts`` holds what is
            logged, as in :meth:`AmortizedPosterior.sample`.

        Raises
        ------
        ValueError
            When the model's density cannot be evaluated or is not normalized (``pm.Potential``).
        """
        refuse_evidence(self.weighed_by)
        proposals = check_integer("proposals", proposals, smallest=THRESHOLDS.fewest_proposals)
        datasets = self.read(observed, batched)
        found = self.evidence_of(datasets, proposals, seed_sequence(random_seed))
        doubts = check_evidence(found, datasets.labels) + check_calibrated(self.provenance.off)
        doubts += check_truncation(self.provenance.dropped, self.provenance.attempted, log_orderings(self.spec))
        return evidence_dataset(datasets, found).assign_attrs(self.marks | tell(doubts, self.spec))

    def table(
        self,
        observed: Mapping[str, Any] | xr.Dataset | xr.DataTree,
        *,
        quantiles: Sequence[float] = (0.05, 0.5, 0.95),
        var_names: Sequence[str] | None = None,
        draws: int = 1000,
        chains: int = 4,
        correction: Correction = "auto",
        max_time: float | Literal["auto"] | None = "auto",
        random_seed: RandomState = None,
        progressbar: bool = True,
    ) -> pd.DataFrame:
        """Summarize the posteriors of many data sets, one row for each.

        Data sets are sampled in blocks, and only the summary of each block is kept: memory does not grow with their
        number.

        Parameters
        ----------
        observed : mapping, list, data frames or xarray.Dataset, or xarray.DataTree
            Many data sets, as with ``batched=True``; or a result that is summarized as it is.
        quantiles : sequence of float
            Between 0 and 1.
        var_names : sequence of str, optional
            Variables; the free ones by default.
        draws, chains, correction, max_time, random_seed, progressbar
            As in :meth:`AmortizedPosterior.sample`; `max_time` is that of each block.

        Returns
        -------
        pandas.DataFrame
            Indexed by the labels of the data sets. For each element of each variable its mean, its sd and its
            quantiles, as in ``"effect[rain] mean"``, ``"effect[rain] sd"`` and ``"effect[rain] 5%"``; then ``stage``,
            ``pareto_k``, ``importance_ess`` and ``ood_pvalue``.

        Raises
        ------
        ValueError, TypeError, KeyError
            When an argument or the data do not fit the model; the message names it.
        """
        names = read_names(var_names, self.compiled.constrain.names)
        names = [p.name for p in self.spec.parameters] if var_names is None else names
        if not quantiles or not all(0 < q < 1 for q in quantiles):
            raise ValueError(f"quantiles must lie between 0 and 1, got {quantiles!r}")
        if isinstance(observed, xr.DataTree) and observed.children:
            return summary_table(observed, names, quantiles)
        draws, chains = check_integer("draws", draws), check_integer("chains", chains)
        datasets, rng = self.read(observed, True), np.random.default_rng(seed_sequence(random_seed))
        size = max(MOST_DRAWN // (draws * chains * max(self.spec.dim, 1)), 1)
        parts = []
        for start in range(0, len(datasets), size):
            block = datasets.take(np.arange(start, min(start + size, len(datasets))))
            tree = sample(
                self,
                block,
                draws=draws,
                chains=chains,
                batched=True,
                correction=correction,
                max_nuts=None,
                max_time=max_time,
                var_names=names,
                random_seed=rng,
                idata_kwargs=None,
                progressbar=progressbar,
            )
            parts.append(summary_table(tree, names, quantiles))
        return pd.concat(parts)

    def to_model(self, observed: Mapping[str, Any] | xr.Dataset | None = None) -> pm.Model:
        """Return the model conditioned on one data set, for everything that follows ``pm.sample``.

        Parameters
        ----------
        observed : mapping of name to array_like, optional
            As in :meth:`AmortizedPosterior.sample`; by default, what the model held.

        Returns
        -------
        pymc.Model
            A copy, to be used as a context: ``with posterior.to_model({"y": y}): pm.compute_log_likelihood(dt)``.
        """
        datasets = self.read(observed)
        values = datasets.one(self.spec, 0)
        model = closed_model(self.spec)
        symbols = {v.name: like(model[v.name], pt.constant(_observed_values(v, datasets))) for v in self.spec.observed}
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
        context: Mapping[str, Any] | xr.Dataset | None = None,
        predictions: bool = False,
        var_names: Sequence[str] | None = None,
        random_seed: RandomState = None,
        extend_inferencedata: bool = False,
    ) -> xr.DataTree:
        """Draw from the posterior predictive distribution of every data set of a result.

        What ``pm.sample_posterior_predictive`` does for one data set, compiled once for all of them. Values,
        covariates, lengths and gaps are read from the result itself. All values are new ones:
        :meth:`sample_missing` draws what is missing given what is present.

        Parameters
        ----------
        tree : xarray.DataTree
            From :meth:`AmortizedPosterior.sample`, with every free variable; of one data set, or of many.
        context : mapping of name to array_like, or xarray.Dataset, optional
            Other covariates, for ``predictions=True``: of any length; one set for all data sets, or one for each.
        predictions : bool
            Whether the result is of other data than those observed: the groups are then named as in PyMC.
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
            set, and the groups of the data; or ``predictions`` and ``predictions_constant_data``.

        Raises
        ------
        KeyError, ValueError, TypeError
            When a group or variable is not there.
        """
        return self.compiled.predictions.sample(
            tree,
            context=context,
            predictions=predictions,
            var_names=var_names,
            seed=seed_sequence(random_seed),
            extend_inferencedata=extend_inferencedata,
        )

    def sample_groups(
        self,
        tree: xr.DataTree,
        observed: Mapping[str, Any] | xr.Dataset,
        *,
        var_names: Sequence[str] | None = None,
        random_seed: RandomState = None,
    ) -> xr.DataTree:
        """Draw values of further groups of a hierarchy, given the draws of the parameters in a result.

        For groups that come later: each draw of the parameters is kept, and values of the new groups are drawn given it
        and their own data. Nothing is trained or weighed, and data of the groups before are not needed. The parameters
        learn nothing from the new groups; where these are many beside those before, sample all of them together.

        Parameters
        ----------
        tree : xarray.DataTree
            From :meth:`AmortizedPosterior.sample`, of one data set, with all parameters.
        observed : mapping of name to array_like, or xarray.Dataset
            Data of the new groups, as in :meth:`AmortizedPosterior.sample`; of any size, also of no row.
        var_names : sequence of str, optional
            Variables to return; all free variables and deterministics by default.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.

        Returns
        -------
        xarray.DataTree
            As from ``sample``, with the chains and draws of `tree`. ``sample_stats`` holds ``pareto_k_of_groups``.

        Raises
        ------
        KeyError, ValueError, TypeError
            When the model has no values of groups that are integrated out, or data do not fit.

        Examples
        --------
        .. code-block:: python

            dt = posterior.sample({"y": y, "basement": x, "county_index": index})
            new = posterior.sample_groups(dt, {"y": y_new, "basement": x_new, "county_index": np.zeros(4, int)})
            new.posterior["effect"].dims  # ("chain", "draw", "county"), of one county
        """
        return sample_groups(self, tree, observed, var_names=var_names, random_seed=random_seed)

    def sample_missing(
        self,
        tree: xr.DataTree,
        *,
        var_names: Sequence[str] | None = None,
        random_seed: RandomState = None,
        extend_inferencedata: bool = True,
    ) -> xr.DataTree | xr.Dataset:
        """Draw what is missing, given what is present and each draw of the parameters (imputation).

        Parameters
        ----------
        tree : xarray.DataTree
            From :meth:`AmortizedPosterior.sample`, with every free variable; of one data set, or of many.
        var_names : sequence of str, optional
            Observed variables with gaps; all by default.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.
        extend_inferencedata : bool
            Whether to add the variables to the group ``posterior`` of `tree` in place and return that; otherwise
            they are returned alone.

        Returns
        -------
        xarray.DataTree or xarray.Dataset
            Named as PyMC names imputed values: ``y`` is the whole variable, with its own dims, and ``y_unobserved``
            holds the missing values alone, in the order of the data. Values that are present are the same in every
            draw.

        Raises
        ------
        KeyError, ValueError
            When nothing is missing, or when there is no rule for these gaps (``posterior.gaps``).
        """
        return self.compiled.predictions.missing(
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
            From :meth:`AmortizedPosterior.sample`, with every free variable; of one data set, or of many.
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
            From :meth:`AmortizedPosterior.sample`.
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


def _observed_values(variable: DataVariable, datasets: DataSets) -> np.ndarray:
    """Values of one data set as the conditioned model observes them."""
    values = datasets.shown(variable)[0]
    if values.dtype.kind == "f" and np.dtype(variable.dtype).kind != "f":
        raise ValueError(
            f"{variable.name!r} has missing values, which a model of {variable.dtype} values cannot hold: "
            "drop these entries"
        )
    return values
