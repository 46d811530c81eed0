"""Amortized comparison of several models of the same data."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.approximators.comparison.agreement import (
    check_agreement,
    check_classifier,
    check_evidences,
    check_resolution,
    compare_odds,
)
from pymc_amortized.approximators.comparison.table import evidence_table
from pymc_amortized.approximators.comparison.trained_comparison import TrainedComparison
from pymc_amortized.approximators.fitting.arguments import check_integer
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.save import save
from pymc_amortized.correction.check_results import check_gaps, check_range, check_unlike
from pymc_amortized.correction.doubt import Doubt, tell
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.numerics.odds import posterior_weights, prior_weights
from pymc_amortized.numerics.thresholds import THRESHOLDS

MODEL_DIM, AGAINST_DIM = "model", "against"


@dataclass(frozen=True, eq=False, repr=False)
class AmortizedComparison(TrainedComparison[AmortizedPosterior]):
    """Which of several models does a data set come from? For every data set they could produce.

    Made by :func:`fit_comparison` or :func:`load`; immutable.

    Attributes
    ----------
    structure : Structure
        What the axes of the data are, the coarsest of what holds in any of the models; ``print(comparison.structure)``.
    prior : dict of name to float
        Prior probabilities of the models, unless others are given.
    posteriors : mapping of name to AmortizedPosterior
        Of the models that have a normalized density, for their evidence; and those that were given.
    error : float
        Root mean square difference between log odds by the classifier and by the evidence on simulated data sets,
        where these are below 5; NaN where they could not be compared.
    history : History
        Losses of the classifier during training.
    provenance : Provenance
        How it was trained.

    Examples
    --------
    With the comparison of :func:`fit_comparison`'s example:

    >>> comparison.names
    ['narrow', 'wide']
    >>> factors = comparison.bayes_factors({"y": [3.1, 2.2, 2.5, 3.8]})
    >>> float(factors["log_bayes_factor"].sel(model="wide", against="narrow")) > 0
    True
    """

    @classmethod
    def of(cls, trained: TrainedComparison[AmortizedPosterior]) -> Self:
        """Give the record of a training the methods that users call."""
        new = cls(**{field.name: getattr(trained, field.name) for field in fields(trained)})
        new.__dict__.update(vars(trained))  # what was compiled already is shared
        return new

    def probabilities(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        batched: bool = False,
        prior: Mapping[str, float] | None = None,
    ) -> xr.Dataset:
        """Give the posterior probabilities of the models, for one data set or for many, by the classifier.

        Parameters
        ----------
        observed : mapping of name to array_like, or xarray.Dataset, optional
            As in :meth:`AmortizedPosterior.sample`, with the context of all models; by default, the data that the
            models held.
        batched : bool
            Whether `observed` holds many data sets.
        prior : mapping of name to float, optional
            Prior weights of all models, in any unit; by default those of the comparison.

        Returns
        -------
        xarray.Dataset
            For each data set, along ``model``, ``probability``; ``resolved``, False where the prior weights are so
            unequal that what the classifier cannot tell from 0 moves the probability by more than 0.05 (logged); and
            ``ood_pvalue_model``: how often that model simulates data as unusual. ``ood_pvalue`` is the largest of
            these: a p-value for the hypothesis that any of the models is right. Where it is small, none of them
            simulates such data, probabilities say little, and a warning is logged. What is logged is also in the
            attribute ``doubts``, as in :meth:`AmortizedPosterior.sample`.

        Raises
        ------
        KeyError, ValueError, TypeError
            When data or prior weights do not fit the models; the message names what differs.
        """
        weights = self._prior(prior)
        datasets = self.read(observed, batched)
        log_p, pvalues = self.log_probabilities(datasets), self.ood_pvalues(datasets)
        resolved, doubts = self._resolved(log_p, weights, datasets)
        found = {
            "probability": self._laid(posterior_weights(log_p, weights), datasets),
            "resolved": self._laid(resolved, datasets),
            "ood_pvalue": self._laid(pvalues.max(1), datasets),
            "ood_pvalue_model": self._laid(pvalues, datasets),
        }
        priors = {f"prior_{name}": float(w) for name, w in zip(self.names, weights, strict=True)}
        doubts = self._check_data(datasets, pvalues.max(1)) + check_classifier(self.error, datasets.labels) + doubts
        return xr.Dataset(found, attrs=priors | tell(doubts, self.common.spec))

    def bayes_factors(
        self, observed: Mapping[str, Any] | xr.Dataset | None = None, *, batched: bool = False
    ) -> xr.Dataset:
        """Give the Bayes factors of all pairs of models, for one data set or for many, by the classifier.

        Parameters
        ----------
        observed, batched
            As in :meth:`probabilities`. Bayes factors do not depend on prior weights of models.

        Returns
        -------
        xarray.Dataset
            ``log_bayes_factor`` and ``bayes_factor`` of each ``model`` over the one it is held ``against``, and
            ``resolved``: False where the classifier can only tell that one of them is hardly possible. Simulations
            cannot show how hardly: such a Bayes factor is larger, or smaller, than the one given.
            ``ood_pvalue`` as in :meth:`probabilities`.
        """
        datasets = self.read(observed, batched)
        log_p = self.log_probabilities(datasets)
        resolved = self.calibration.resolved(log_p)
        pvalues = self.ood_pvalues(datasets).max(1)
        log_factor = log_p[:, :, None] - log_p[:, None, :]
        found = {
            "log_bayes_factor": self._laid(log_factor, datasets),
            "bayes_factor": self._laid(np.exp(log_factor), datasets),
            "resolved": self._laid(resolved[:, :, None] & resolved[:, None, :], datasets),
            "ood_pvalue": self._laid(pvalues, datasets),
        }
        doubts = self._check_data(datasets, pvalues) + check_classifier(self.error, datasets.labels)
        return xr.Dataset(found, attrs=tell(doubts, self.common.spec))

    def log_marginal_likelihood(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        batched: bool = False,
        proposals: int = 10_000,
        random_seed: RandomState = None,
    ) -> xr.Dataset:
        """Estimate the evidence of every model that has a density, for one data set or for many.

        Parameters
        ----------
        observed, batched
            As in :meth:`probabilities`.
        proposals : int
            For each data set and model, as in :meth:`AmortizedPosterior.log_marginal_likelihood`.
        random_seed : int, sequence of int, numpy.random.Generator, optional
            Of everything random; a generator is advanced.

        Returns
        -------
        xarray.Dataset
            Along ``model``: ``log_marginal_likelihood``, its standard error ``mcse``, ``pareto_k`` and
            ``importance_ess``; NaN where there is no density, or weights are poor, -inf where the density is 0 wherever
            the posterior looked (logged). Unlike the posterior's own method
            this is under the prior that simulations come from: normalized over what the density allows.
        """
        proposals = check_integer("proposals", proposals, smallest=THRESHOLDS.fewest_proposals)
        datasets = self.read(observed, batched)
        found = self.evidence_of(datasets, proposals, seed_sequence(random_seed))
        arrays = {
            "log_marginal_likelihood": found.log_evidence,
            "mcse": found.error,
            "pareto_k": found.pareto_k,
            "importance_ess": found.ess,
        }
        doubts = check_evidences(found, datasets.labels)
        laid = {name: self._laid(values, datasets) for name, values in arrays.items()}
        return xr.Dataset(laid, attrs=tell(doubts, self.common.spec))

    def compare(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        prior: Mapping[str, float] | None = None,
        proposals: int = 10_000,
        random_seed: RandomState = None,
    ) -> pd.DataFrame:
        """Compare the models on one data set: by the evidence of each, and by the classifier beside it.

        Parameters
        ----------
        observed, prior
            As in :meth:`probabilities`.
        proposals, random_seed
            As in :meth:`log_marginal_likelihood`.

        Returns
        -------
        pandas.DataFrame
            One row a model, the most probable first: ``rank``; ``log_ml``, its log marginal likelihood, with standard
            error ``se``; ``log_bf``, its log Bayes factor against the first, with ``dse``; posterior probabilities by
            the evidence (``p_evidence``, with standard error ``p_se``) and by the classifier (``p_classifier``);
            ``pareto_k`` of the importance weights; ``ood_pvalue``, how often the model simulates data as unusual;
            and ``warning``, True where the evidence could not be estimated, where the two disagree beyond their errors,
            where the classifier cannot tell the probability under such prior weights, or, in all rows, where no model
            makes such data; which is logged. ``elpd`` and ``elpd_diff`` are ``log_ml`` and ``log_bf`` once more, not
            printed: so ``az.plot_compare`` draws the table, with its own name for what the axis shows.

        Notes
        -----
        ``az.compare`` asks another question: which model predicts further rows of this data set best. The evidence
        asks which one predicted all of them, before any was seen: it depends on the prior of every parameter, and
        goes on depending on it however many rows there are.
        """
        weights = self._prior(prior)
        proposals = check_integer("proposals", proposals, smallest=THRESHOLDS.fewest_proposals)
        datasets = self._read_one(observed)
        log_p, pvalues = self.log_probabilities(datasets), self.ood_pvalues(datasets)
        told = self._check_data(datasets, pvalues.max(1))
        tell(told, self.common.spec)
        found = self.evidence_of(datasets, proposals, seed_sequence(random_seed))
        apart = compare_odds(log_p, found, self.calibration, self.error)
        resolved, unresolved = self._resolved(log_p, weights, datasets)
        table = evidence_table(found, posterior_weights(log_p, weights)[0], weights, pvalues[0], apart.beyond[0])
        table["warning"] |= pd.Series(~resolved[0], index=self.names).reindex(table.index)
        doubts = check_evidences(found, datasets.labels) + check_agreement(apart, found, datasets.labels) + unresolved
        table.attrs |= tell(doubts, self.common.spec, told)
        return table

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights and a description, never code, to a file that :func:`load` reads; with all posteriors.

        Parameters
        ----------
        path : path-like
            An existing file is replaced.
        """
        save(self, path)

    def _prior(self, prior: Mapping[str, float] | None) -> np.ndarray:
        return prior_weights(self.prior if prior is None else prior, self.names)

    def _resolved(
        self, log_probability: np.ndarray, weights: np.ndarray, datasets: DataSets, most: float = 0.05
    ) -> tuple[np.ndarray, list[Doubt]]:
        """Which probabilities (n, models) are known to `most` under these prior weights, and doubt about the others."""
        unknown = self.calibration.unknown(log_probability, weights)
        return unknown <= most, check_resolution(unknown, most, self.calibration, weights, datasets.labels)

    def _read_one(self, observed: Mapping[str, Any] | xr.Dataset | None) -> DataSets:
        """Read a data set where there may not be several."""
        try:
            return self.read(observed)
        except (TypeError, ValueError) as error:
            several = "compare takes one data set; probabilities and log_marginal_likelihood take"
            raise type(error)(str(error).replace("pass batched=True for", several)) from None

    def _laid(self, values: np.ndarray, datasets: DataSets) -> xr.DataArray:
        """Lay out (n, ...) with the dims that there are."""
        dims = (DATASET_DIM, MODEL_DIM, AGAINST_DIM)[: values.ndim]
        coords = {DATASET_DIM: datasets.labels, MODEL_DIM: self.names, AGAINST_DIM: self.names}
        array = xr.DataArray(values, dims=dims, coords={dim: coords[dim] for dim in dims})
        return array if datasets.batched else array.isel({DATASET_DIM: 0}, drop=True)

    def _check_data(self, datasets: DataSets, pvalues: np.ndarray) -> list[Doubt]:
        """Find data sets that the classifier extrapolates to, or that none of the models makes."""
        spec = self.common.spec
        encoder = self.network.encoder
        given = Inputs(spec, self.structure)(datasets)
        context = [c.name for c in spec.context]
        doubts = check_range(encoder.outside(**given), datasets.labels, context)
        doubts += check_gaps(spec, datasets, self.missing or {})
        return check_unlike(doubts, pvalues, datasets.labels, self.names)
