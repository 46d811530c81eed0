"""The evidence of several models, each under the prior that its simulations come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.correction.evidence import Evidence, kept_share, refuse_evidence
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.simulation.simulator import Simulator

KEPT_OF = 4096
"""Simulations at the size and context of a data set: a share of half is then known to 2 %."""
FEWEST_KEPT = 40
"""As in training, where a model is refused of which fewer than one in a hundred simulations can be used."""

MISSED = (
    "the model's density is 0 at all proposals, but the classifier takes it for possible. Do the data lie in its "
    "support? If so, proposals missed where it is not 0"
)

OUT_OF_TYPE = Evidence(np.nan, np.nan, np.nan, np.nan, "the model's data are of a type that cannot hold these", True)


@dataclass(frozen=True)
class Kept:
    """Which share of a model's simulations its own density allows.

    Attributes
    ----------
    share : float
    attempted : int
        Simulations that this was seen on.
    log_orderings : float
        Log of how many orderings of a vector were taken for the one that an ordering transform allows.
    """

    share: float
    attempted: int
    log_orderings: float = 0.0

    @property
    def log_share(self) -> float:
        """Logarithm of what the density integrates to."""
        return float(np.log(self.share)) - self.log_orderings

    @property
    def log_error(self) -> float:
        """Standard error of the logarithm of the share."""
        return float(np.sqrt((1 - self.share) / (max(self.share, 1e-12) * max(self.attempted, 1))))


@dataclass(frozen=True, eq=False)
class Evidences:
    """Estimates for several data sets and models.

    Attributes
    ----------
    log_evidence, error, pareto_k, ess : ndarray (n, models)
        NaN where there are none; the evidence is -inf where a model's density is 0 wherever it was looked at.
    doubts : mapping of name to list of str or None
        Why there are none, by model.
    known : frozenset of str
        Models that have a posterior with a density.
    """

    log_evidence: np.ndarray
    error: np.ndarray
    pareto_k: np.ndarray
    ess: np.ndarray
    doubts: Mapping[str, list[str | None]]
    known: frozenset[str]

    def confirmed(self, possible: np.ndarray, names: Sequence[str]) -> Evidences:
        """Return the same with NaN where a density of 0 at all proposals is all that speaks against a model.

        Proposals may have missed a support that is narrow and depends on parameters.

        Parameters
        ----------
        possible : bool ndarray (n, models)
            Where the classifier takes a model for possible.
        names : sequence of str
            Of the models.
        """
        missed = np.isneginf(self.log_evidence) & possible
        doubts = {
            name: [MISSED if no else doubt for doubt, no in zip(self.doubts[name], missed[:, k], strict=True)]
            for k, name in enumerate(names)
        }
        log_evidence, error = (np.where(missed, np.nan, values) for values in (self.log_evidence, self.error))
        return replace(self, log_evidence=log_evidence, error=error, doubts=doubts)

    @property
    def complete(self) -> np.ndarray:
        """Which data sets have the evidence of all models, and are possible under one: (n,)."""
        return ~np.isnan(self.log_evidence).any(1) & np.isfinite(self.log_evidence).any(1)


def estimated(
    names: Sequence[str],
    posteriors: Mapping[str, TrainedPosterior],
    kept: Mapping[str, Kept],
    simulators: Mapping[str, Simulator],
    datasets: DataSets,
    proposals: int,
    seed: np.random.SeedSequence,
) -> Evidences:
    """Estimate the evidence of every model on several data sets.

    Parameters
    ----------
    names : sequence of str
        Of all models.
    posteriors : mapping of name to TrainedPosterior
        Of those that have a density.
    kept : mapping of name to Kept
    simulators : mapping of name to Simulator
        At contexts that are given.
    datasets : DataSets
        Of all models.
    proposals : int
        For each data set and model.
    seed : numpy.random.SeedSequence
    """
    doubts: dict[str, list[str | None]] = {}
    columns = []
    for name, child in zip(names, seed.spawn(len(names)), strict=True):
        if name not in posteriors:
            columns.append(np.full((4, len(datasets)), np.nan))
            doubts[name] = [None] * len(datasets)
            continue
        posterior = posteriors[name]
        own = data_of(posterior.spec, datasets)
        found = posterior.evidence_of(own, proposals, child)
        found = [e if fit else OUT_OF_TYPE for e, fit in zip(found, fits(own, datasets), strict=True)]
        kept_at = [kept[name]] * len(datasets)
        if kept[name].share < 1 and (posterior.spec.sizes or posterior.spec.context):
            kept_at = _kept_at(posterior.spec, simulators[name], kept[name], own, child)
        pairs = list(zip(found, kept_at, strict=True))
        doubts[name] = [_doubt(e, k) for e, k in pairs]
        columns.append(np.array([_column(*pair) for pair in pairs]).T)
    log_evidence, error, k, ess = np.stack(columns, axis=-1)
    return Evidences(log_evidence, error, k, ess, doubts, frozenset(posteriors))


def _doubt(found: Evidence, kept: Kept) -> str | None:
    if found.doubt is None and kept.share <= FEWEST_KEPT / KEPT_OF:
        return f"hardly any of {KEPT_OF} simulations of its size and context has a density"
    return found.doubt


def _column(found: Evidence, kept: Kept) -> tuple[float, float, float, float]:
    """Log evidence under the prior that is left, its error, Pareto k and effective number of weights."""
    if found.impossible:
        return -np.inf, 0.0, found.pareto_k, found.importance_ess
    if _doubt(found, kept) is not None:
        return np.nan, np.nan, found.pareto_k, found.importance_ess
    error = float(np.hypot(found.mcse, kept.log_error))
    return found.log_marginal_likelihood - kept.log_share, error, found.pareto_k, found.importance_ess


def _kept_at(
    spec: ModelSpec, simulator: Simulator, kept: Kept, datasets: DataSets, seed: np.random.SeedSequence
) -> list[Kept]:
    """Which share of simulations a model's density allows at the size and context of each data set."""
    found = []
    for i, child in enumerate(seed.spawn(len(datasets))):
        one = datasets.one(spec, i)
        lengths = {r.dim: int(one[r.dim]) for r in spec.sizes}
        context = {c.name: np.repeat(np.asarray(one[c.name])[None], KEPT_OF, axis=0) for c in spec.context}
        made = simulator.attempt(KEPT_OF, child, lengths, context)
        share = kept_share(made.dropped, made.attempted)
        found.append(Kept(max(share, 1 / KEPT_OF), made.attempted, kept.log_orderings))
    return found


def fits(own: DataSets, datasets: DataSets) -> np.ndarray:
    """Which data sets (n,) a model's types of numbers can hold: not 300 where its data are bytes."""
    same = np.ones(len(datasets), dtype=bool)
    for name, values in own.values.items():
        as_given = datasets.values[name]
        if values.dtype != as_given.dtype and values.dtype.kind in "biu":
            same &= (values == as_given).reshape(len(values), -1).all(axis=1)
    return same


def data_of(spec: ModelSpec, datasets: DataSets) -> DataSets:
    """Take what one of the models reads."""
    return DataSets(
        {v.name: datasets.values[v.name].astype(v.dtype, copy=False) for v in spec.data},
        datasets.labels,
        datasets.batched,
        dict(datasets.lengths),
        {v.name: datasets.missing[v.name] for v in spec.observed if v.missing},
        dict(datasets.coords),
    )


def evidence_obstacle(spec: ModelSpec) -> str | None:
    """Why a model has no evidence; None where it has."""
    try:
        refuse_evidence(spec)
    except ValueError as error:
        return str(error)
    return None
