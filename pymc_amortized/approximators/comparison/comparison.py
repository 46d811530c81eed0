"""Amortized comparison of several models of the same data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.approximators.comparison.doubts import check_agreement, check_evidences, check_resolution
from pymc_amortized.approximators.comparison.model_evidence import Evidences, Kept, estimated, evidence_obstacle
from pymc_amortized.approximators.comparison.table import disagreement, evidence_table
from pymc_amortized.approximators.fitting.arguments import check_integer
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.save import save
from pymc_amortized.correction.check_results import check_gaps, check_novelty, check_range
from pymc_amortized.correction.doubt import Doubt, tell
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.common import Common
from pymc_amortized.graph.model.indices import refuse_indices
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.pool import Pool
from pymc_amortized.graph.simulation.replicas import NoSources
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.novelty.features import NoveltyFeatures
from pymc_amortized.novelty.reference import extents
from pymc_amortized.novelty.scores import Reference
from pymc_amortized.numerics.odds import Calibration, posterior_weights, prior_weights
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.training import History

MODEL_DIM, AGAINST_DIM = "model", "against"


@dataclass(frozen=True, eq=False, repr=False)
class AmortizedComparison:
    """Which of several models does a data set come from? For every data set they could produce.

    Made by :func:`fit_comparison` or :func:`load`; immutable.

    Attributes
    ----------
    specs : mapping of name to ModelSpec
        Snapshots of the models.
    common : Common
        The data they share.
    network : ClassifierNetwork
        The trained classifier.
    structure : Structure
        What the axes of the data are, the coarsest of what holds in any of the models; ``print(comparison.structure)``.
    prior : dict of name to float
        Prior probabilities of the models, unless others are given.
    calibration : Calibration
        From the classifier's logits to probabilities, learned from simulations that it was not trained on.
    references : mapping of name to Reference
        Scores of each model's simulations, by which the novelty of data is judged.
    posteriors : mapping of name to AmortizedPosterior
        Of the models that have a normalized density, for their evidence; and those that were given.
    kept : mapping of name to Kept
        Which share of each model's simulations its density allows.
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

    specs: Mapping[str, ModelSpec]
    common: Common
    network: ClassifierNetwork
    structure: Structure
    prior: Mapping[str, float]
    calibration: Calibration
    references: Mapping[str, Reference]
    posteriors: Mapping[str, AmortizedPosterior]
    kept: Mapping[str, Kept]
    error: float
    history: History
    provenance: Provenance
    context: Mapping[str, Any] | None = None
    missing: Mapping[str, Any] | None = None
    compile_kwargs: CompileKwargs | None = None

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self.specs)

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
        datasets = self._read(observed, batched)
        log_p, pvalues = self.log_probabilities(datasets), self.ood_pvalues(datasets)
        resolved, doubts = self._resolved(log_p, weights, datasets)
        found = {
            "probability": self._laid(posterior_weights(log_p, weights), datasets),
            "resolved": self._laid(resolved, datasets),
            "ood_pvalue": self._laid(pvalues.max(1), datasets),
            "ood_pvalue_model": self._laid(pvalues, datasets),
        }
        priors = {f"prior_{name}": float(w) for name, w in zip(self.names, weights, strict=True)}
        doubts = self._check_data(datasets, pvalues.max(1)) + doubts
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
        datasets = self._read(observed, batched)
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
        return xr.Dataset(found, attrs=tell(self._check_data(datasets, pvalues), self.common.spec))

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
        datasets = self._read(observed, batched)
        found = self.evidence_of(datasets, proposals, seed_sequence(random_seed))
        arrays = {
            "log_marginal_likelihood": found.log_evidence,
            "mcse": found.error,
            "pareto_k": found.pareto_k,
            "importance_ess": found.ess,
        }
        doubts = check_evidences(found, self.names, datasets.labels)
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
            makes such data; which is logged.

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
        found = self.evidence_of(datasets, proposals, seed_sequence(random_seed))
        apart = disagreement(log_p, found, self.calibration, self.error)
        resolved, unresolved = self._resolved(log_p, weights, datasets)
        table = evidence_table(self.names, found, posterior_weights(log_p, weights)[0], weights, pvalues[0], apart)
        table["warning"] |= pd.Series(~resolved[0], index=self.names).reindex(table.index)
        doubts = self._check_data(datasets, pvalues.max(1)) + check_evidences(found, self.names, datasets.labels)
        doubts += check_agreement(apart, found, self.names, datasets.labels) + unresolved
        table.attrs |= tell(doubts, self.common.spec)
        return table

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights and a description, never code, to a file that :func:`load` reads; with all posteriors.

        Parameters
        ----------
        path : path-like
            An existing file is replaced.
        """
        save(self, path)

    def log_probabilities(self, datasets: DataSets) -> np.ndarray:
        """Log probabilities (n, models) by the calibrated classifier, at equal prior weights.

        Parameters
        ----------
        datasets : DataSets
        """
        logits = self.network.logits(**Inputs(self.common.spec, self.structure)(datasets))
        return self.calibration(logits, extents(self.common.spec, datasets))

    def ood_pvalues(self, datasets: DataSets) -> np.ndarray:
        """How often each model simulates what is as unusual as each data set: (n, models).

        Parameters
        ----------
        datasets : DataSets
        """
        features = NoveltyFeatures(self.network)(**Inputs(self.common.spec, self.structure)(datasets))
        at = extents(self.common.spec, datasets)
        return np.stack([self.references[name].pvalues(features, at) for name in self.names], axis=1)

    def evidence_of(self, datasets: DataSets, proposals: int, seed: np.random.SeedSequence) -> Evidences:
        """Estimate the evidence of every model on several data sets.

        Parameters
        ----------
        datasets : DataSets
        proposals : int
            For each.
        seed : numpy.random.SeedSequence
        """
        found = estimated(self.names, self.weighed, self.kept, self._simulators, datasets, proposals, seed)
        if not np.isneginf(found.log_evidence).any():
            return found
        return found.confirmed(self.calibration.resolved(self.log_probabilities(datasets)), self.names)

    @cached_property
    def weighed(self) -> dict[str, AmortizedPosterior]:
        """The posteriors whose model has a normalized density, and therefore evidence."""
        return {name: p for name, p in self.posteriors.items() if evidence_obstacle(self.specs[name]) is None}

    @cached_property
    def _simulators(self) -> Mapping[str, Simulator]:
        """Of each model, at contexts that are given."""
        if "pool" in self.__dict__:
            return self.pool.simulators
        return {
            name: Simulator(
                spec,
                context=NoSources(spec),
                deterministics=False,
                compile_kwargs=self.compile_kwargs,
            )
            for name, spec in self.specs.items()
        }

    @cached_property
    def pool(self) -> Pool:
        """Makes data sets like those of training."""
        spec, missing = self.common.spec, self.missing or {}
        unknown = any(v.missing and v.name not in missing for v in spec.observed)
        if unknown or (self.context is None and spec.context):
            raise ValueError(
                "context: the sources of context and gaps are needed to simulate further (files hold none): pass "
                "context= and missing= as in fit_comparison"
            )
        return Pool(self.common, self.specs, self.context or {}, missing, self.compile_kwargs)

    def with_posterior(self, name: str, posterior: AmortizedPosterior) -> AmortizedComparison:
        """Return the same with another posterior of a model, such as one that was trained further.

        Parameters
        ----------
        name : str
            Of the model.
        posterior : AmortizedPosterior
            From ``comparison.posteriors[name].continue_training()``.
        """
        if name not in self.posteriors:
            raise KeyError(f"name: {name!r} has no posterior here; {list(self.posteriors)} have one")
        if not isinstance(posterior, AmortizedPosterior):
            raise TypeError(f"posterior must be an AmortizedPosterior, got {type(posterior).__name__}")
        if posterior.spec is not self.posteriors[name].spec or posterior.local_to is not None:
            raise ValueError(f"posterior is not of the model {name!r} of this comparison: continue that one's training")
        return replace(self, posteriors=dict(self.posteriors) | {name: posterior})

    def with_sources(self, context: Mapping[str, Any], missing: Mapping[str, Any]) -> AmortizedComparison:
        """Return the same with sources of context and gaps, which files do not hold.

        Parameters
        ----------
        context, missing : mapping
        """
        return replace(self, context=dict(context), missing=dict(missing))

    def __repr__(self) -> str:
        p = self.provenance
        data = ", ".join(v.name for v in self.common.spec.data)
        structure = str(self.structure).replace("\n", "\n    ")
        without = [name for name in self.names if name not in self.weighed]
        evidence = f"without evidence of {', '.join(without)}" if without else "with the evidence of all"
        if np.isfinite(self.error):
            evidence += f", which differs by {self.error:.2f} in log odds"
        return (
            f"AmortizedComparison({', '.join(self.names)} | {data})\n"
            f"  structure: {structure}\n"
            f"  trained on {p.simulations:,} simulations, held-out loss {p.held_out_loss:.3f}, "
            f"{'settled' if p.settled else 'not settled'}; {evidence}"
        )

    def _prior(self, prior: Mapping[str, float] | None) -> np.ndarray:
        return prior_weights(self.prior if prior is None else prior, self.names)

    def _resolved(
        self, log_probability: np.ndarray, weights: np.ndarray, datasets: DataSets, most: float = 0.05
    ) -> tuple[np.ndarray, list[Doubt]]:
        """Which probabilities (n, models) are known to `most` under these prior weights, and doubt about the others."""
        unknown = self.calibration.unknown(log_probability, weights)
        return unknown <= most, check_resolution(unknown, most, self.calibration, weights, datasets.labels)

    def _read(self, observed: Mapping[str, Any] | xr.Dataset | None, batched: bool) -> DataSets:
        spec = self.common.spec
        if observed is None and not batched and not spec.holds_data:
            raise ValueError(
                "observed is needed: the models hold no data, or not the same, for " + str([v.name for v in spec.data])
            )
        datasets = read_datasets(spec, observed, batched=batched)
        refuse_indices(datasets.existing(spec), self.common.limits, "observed")
        return datasets

    def _read_one(self, observed: Mapping[str, Any] | xr.Dataset | None) -> DataSets:
        """Read a data set where there may not be several."""
        try:
            return self._read(observed, False)
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
        doubts = check_range(encoder.outside(**given), datasets.labels, context, encoder.ranges())
        doubts += check_gaps(spec, datasets, self.missing or {})
        return doubts + check_novelty(pvalues, datasets.labels, self.names)
