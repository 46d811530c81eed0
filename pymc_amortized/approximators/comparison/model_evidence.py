"""The evidence of several models, each under the prior that its simulations come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pymc_amortized.correction.evidence import Evidence, kept_share, refuse_evidence
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.simulation.attempts import Attempts

Estimate = Callable[[DataSets, int, np.random.SeedSequence], list[Evidence]]

KEPT_OF = 4096
"""Simulations at the size and context of a data set: a share of half is then known to 2 %."""


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
    written : float
        Share of what the density allows that can be written down: other draws overflow, or are rounded to a bound. They
        belong to the model, and a classifier sees none of them.
    """

    share: float
    attempted: int
    log_orderings: float = 0.0
    written: float = 1.0

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
    found : mapping of name to sequence of Evidence
        Of each model, by data set, under the prior that its simulations come from. NaN, without a doubt, where a model
        has no posterior with a density; -inf where its density is 0 wherever it was looked at.
    """

    found: Mapping[str, Sequence[Evidence]]

    @cached_property
    def log_evidence(self) -> np.ndarray:
        """Log marginal likelihoods (n, models)."""
        return self._array("log_marginal_likelihood")

    @cached_property
    def error(self) -> np.ndarray:
        """Standard errors (n, models) of these."""
        return self._array("mcse")

    @cached_property
    def pareto_k(self) -> np.ndarray:
        """Pareto k (n, models) of the importance weights."""
        return self._array("pareto_k")

    @cached_property
    def ess(self) -> np.ndarray:
        """Effective numbers (n, models) of the importance weights."""
        return self._array("importance_ess")

    @property
    def doubted(self) -> np.ndarray:
        """Where (n, models) there should be an estimate and is none."""
        without = [[e.doubt is not None for e in column] for column in self.found.values()]
        return np.array(without).T & np.isnan(self.log_evidence)

    @property
    def complete(self) -> np.ndarray:
        """Which data sets have the evidence of all models, and are possible under one: (n,)."""
        return ~np.isnan(self.log_evidence).any(1) & np.isfinite(self.log_evidence).any(1)

    def confirmed(self, possible: np.ndarray) -> Evidences:
        """Return the same with NaN where a density of 0 at all proposals is all that speaks against a model.

        Proposals may have missed a support that is narrow and depends on parameters.

        Parameters
        ----------
        possible : bool ndarray (n, models)
            Where the classifier takes a model for possible.
        """
        doubt = (
            "the model's density is 0 at all proposals, but the classifier takes it for possible. Do the data lie in "
            "its support? If so, proposals missed where it is not 0"
        )
        missed = np.isneginf(self.log_evidence) & possible
        return Evidences(
            {
                name: [_unknown(e, doubt) if no else e for e, no in zip(column, missed[:, k], strict=True)]
                for k, (name, column) in enumerate(self.found.items())
            }
        )

    def _array(self, name: str) -> np.ndarray:
        return np.array([[getattr(e, name) for e in column] for column in self.found.values()]).T


def estimate_all(
    specs: Mapping[str, ModelSpec],
    estimates: Mapping[str, Estimate],
    kept: Mapping[str, Kept],
    simulators: Mapping[str, Attempts],
    datasets: DataSets,
    proposals: int,
    seed: np.random.SeedSequence,
) -> Evidences:
    """Estimate the evidence of every model on several data sets.

    Parameters
    ----------
    specs : mapping of name to ModelSpec
        Of all models.
    estimates : mapping of name to callable
        Estimate the evidence under the density of those models that have one.
    kept : mapping of name to Kept
    simulators : mapping of name to Attempts
        At contexts that are given.
    datasets : DataSets
        Of all models.
    proposals : int
        For each data set and model.
    seed : numpy.random.SeedSequence
    """
    nothing = Evidence(np.nan, np.nan, np.nan, np.nan)
    no_such_type = replace(nothing, doubt="the model's data are of a type that cannot hold these", impossible=True)
    by_model: dict[str, list[Evidence]] = {name: [nothing] * len(datasets) for name in specs}
    for (name, spec), child in zip(specs.items(), seed.spawn(len(specs)), strict=True):
        if name not in estimates:
            continue
        own = data_of(spec, datasets)
        found = estimates[name](own, proposals, child)
        kept_at = [kept[name]] * len(datasets)
        if kept[name].share < 1 and (spec.sizes or spec.context):
            kept_at = _kept_at(spec, simulators[name], kept[name], own, child)
        by_model[name] = [
            _under_kept(e if fit else no_such_type, k)
            for e, k, fit in zip(found, kept_at, fits(own, datasets), strict=True)
        ]
    return Evidences(by_model)


def _under_kept(found: Evidence, kept: Kept) -> Evidence:
    """Estimate the evidence under the prior that is left of a model's own."""
    if found.impossible:
        return replace(found, log_marginal_likelihood=-np.inf, mcse=0.0)
    if found.doubt is not None:
        return found
    if kept.share <= 40 / KEPT_OF:  # as in training, which refuses a model of which one simulation in a hundred is left
        return _unknown(found, f"hardly any of {KEPT_OF} simulations of its size and context has a density")
    error = float(np.hypot(found.mcse, kept.log_error))
    return replace(found, log_marginal_likelihood=found.log_marginal_likelihood - kept.log_share, mcse=error)


def _unknown(found: Evidence, doubt: str) -> Evidence:
    return replace(found, log_marginal_likelihood=np.nan, mcse=np.nan, doubt=doubt, impossible=False)


def _kept_at(
    spec: ModelSpec, simulator: Attempts, kept: Kept, datasets: DataSets, seed: np.random.SeedSequence
) -> list[Kept]:
    """Which share of simulations a model's density allows at the size and context of each data set."""
    found = []
    for i, child in enumerate(seed.spawn(len(datasets))):
        one = datasets.one(spec, i)
        lengths = {r.dim: int(one[r.dim]) for r in spec.sizes}
        context = {c.name: np.repeat(np.asarray(one[c.name])[None], KEPT_OF, axis=0) for c in spec.context}
        made = simulator(KEPT_OF, child, lengths, context)
        share = kept_share(made.dropped, made.attempted)
        found.append(Kept(max(share, 1 / KEPT_OF), made.attempted, kept.log_orderings, kept.written))
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
