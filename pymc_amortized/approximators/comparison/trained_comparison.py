"""The record that training a comparison leaves, and what works on its arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr
from scipy.special import log_softmax

from pymc_amortized.approximators.comparison.model_evidence import Evidences, Kept, estimate_all, evidence_obstacle
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.data.reading import read_given
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.common import Common
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.attempts import Attempts
from pymc_amortized.graph.simulation.pool import Pool
from pymc_amortized.graph.simulation.sending import Sendable
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.novelty.reference import extents, features_of
from pymc_amortized.novelty.scores import Reference
from pymc_amortized.numerics.odds import Calibration
from pymc_amortized.results.cards import Card
from pymc_amortized.training import History


@dataclass(frozen=True, eq=False, repr=False)
class TrainedComparison[P: TrainedPosterior](Card, Sendable):
    """What training a comparison leaves.

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
    context : mapping or None
        Sources of the context variables; None after :func:`load`, as files hold none.
    missing : mapping or None
        Rates of missing values, or callables that draw which values are missing.
    compile_kwargs : mapping or None
        Passed to :func:`pymc.compile`.
    """

    INSIDE: ClassVar[bool] = True
    NEXT: ClassVar[str] = "comparison.probabilities(data)\ncomparison.compare(data)\ncomparison.save(path)"

    specs: Mapping[str, ModelSpec]
    common: Common
    network: ClassifierNetwork
    structure: Structure
    prior: Mapping[str, float]
    calibration: Calibration
    references: Mapping[str, Reference]
    posteriors: Mapping[str, P]
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

    def read(self, observed: Mapping[str, Any] | xr.Dataset | None, batched: bool = False) -> DataSets:
        """Read data sets, by default what all models held."""
        spec = self.common.spec
        if observed is None and not batched and not spec.holds_data:
            raise ValueError(
                "observed is needed: the models hold no data, or not the same, for " + str([v.name for v in spec.data])
            )
        return read_given(spec, self.common.limits, observed, batched=batched, models=list(self.specs.values()))

    def log_probabilities(self, datasets: DataSets, *, simulated: bool = False) -> np.ndarray:
        """Log probabilities (n, models) by the calibrated classifier, at equal prior weights.

        Parameters
        ----------
        datasets : DataSets
        simulated : bool
            Whether there are equal numbers of each model's simulations that can be used, as in training. Data have less
            probability under a model of whose draws many cannot be written down.
        """
        logits = self.network.logits(**Inputs(self.common.spec, self.structure)(datasets))
        found = self.calibration(logits, extents(self.common.spec, datasets))
        written = np.log([self.kept[name].written for name in self.names])
        return found if simulated or not written.any() else log_softmax(found + written, axis=1)

    def ood_pvalues(self, datasets: DataSets) -> np.ndarray:
        """How often each model simulates what is as unusual as each data set: (n, models).

        Parameters
        ----------
        datasets : DataSets
        """
        features = features_of(Inputs(self.common.spec, self.structure), self.network, datasets)
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
        estimates = {name: posterior.evidence_of for name, posterior in self.weighed.items()}
        found = estimate_all(self.specs, estimates, self.kept, self._simulators, datasets, proposals, seed)
        if not np.isneginf(found.log_evidence).any():
            return found
        return found.confirmed(self.calibration.resolved(self.log_probabilities(datasets)))

    @cached_property
    def weighed(self) -> dict[str, P]:
        """The posteriors whose model has a normalized density, and therefore evidence."""
        return {name: p for name, p in self.posteriors.items() if evidence_obstacle(self.specs[name]) is None}

    @cached_property
    def _simulators(self) -> Mapping[str, Attempts]:
        """Of each model, at contexts that are given."""
        if "pool" in self.__dict__:
            return {name: simulator.attempts for name, simulator in self.pool.simulators.items()}
        return {name: Attempts(spec, compile_kwargs=self.compile_kwargs) for name, spec in self.specs.items()}

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

    def with_posterior(self, name: str, posterior: P) -> Self:
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
        if not isinstance(posterior, TrainedPosterior):
            raise TypeError(f"posterior must be an AmortizedPosterior, got {type(posterior).__name__}")
        if posterior.spec is not self.posteriors[name].spec or posterior.local_to is not None:
            raise ValueError(f"posterior is not of the model {name!r} of this comparison: continue that one's training")
        return replace(self, posteriors=dict(self.posteriors) | {name: posterior})

    def with_sources(self, context: Mapping[str, Any], missing: Mapping[str, Any]) -> Self:
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
            f"{type(self).__name__}({', '.join(self.names)} | {data})\n"
            f"  structure: {structure}\n"
            f"  trained on {p.simulations:,} simulations, held-out loss {p.held_out_loss:.3f}, "
            f"{'settled' if p.settled else 'not settled'}; {evidence}"
        )
