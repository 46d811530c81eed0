r"""The marginal likelihood of data, by importance sampling.

.. math:: p(y) = \int p(\theta, y)\, d\theta \approx \frac1N \sum_n \frac{p(\theta_n, y)}{q(\theta_n)}, \qquad
    \theta_n \sim q,

without bias if :math:`q` and :math:`N` are fixed beforehand. Here :math:`q` is half the network and half a mixture of
Student t distributions, fitted to draws that were made first and then put aside: a defensive mixture (Hesterberg 1995,
Technometrics 37(2)), whose weights are bounded where either covers the posterior. Weights are raw: smoothing would bias
their mean. They have to pass what weights of draws have to; where they do not, tempered particles tell what to propose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from pymc_amortized.correction.budget import Budget
from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.doubt import Doubt, labels_of, say_how_many, say_where
from pymc_amortized.correction.draws import Request
from pymc_amortized.correction.groups import draw_groups
from pymc_amortized.correction.proposals import Proposals
from pymc_amortized.correction.rungs.rounds import Mixture, Network, Rounds
from pymc_amortized.correction.rungs.tempered import Tempered, populate, propose_from, unstandardized
from pymc_amortized.correction.target import TRIED, PosteriorTarget
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets
from pymc_amortized.graph.data.simulations import truncating
from pymc_amortized.graph.density.marginal import MarginalDensity
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.numerics.sampling.importance import Weights, resample
from pymc_amortized.numerics.thresholds import THRESHOLDS

GROUPS_AT = 256
"""Draws of the parameters at which values of groups are drawn, to see whether these can be trusted."""
SETS = 4
"""Sets of proposals, which have to agree as chains do."""
SECONDS = 60.0
"""That the estimates of a call may take beyond what weights give at once."""


@dataclass(frozen=True)
class Evidence:
    """Log marginal likelihood of one data set."""

    log_marginal_likelihood: float
    mcse: float
    pareto_k: float
    importance_ess: float
    doubt: str | None = None
    impossible: bool = False
    """Whether the density was 0 at all proposals."""
    unsure: bool = False
    """Whether the density itself is not known well."""

    @classmethod
    def of(cls, proposals: Proposals) -> Evidence:
        """Estimate from proposals of a fixed number; NaN where they do not carry an estimate."""
        log_weights, weights = proposals.log_weights.ravel(), proposals.weights
        assert weights is not None
        largest = log_weights.max()
        relative = np.exp(log_weights - (largest if largest > -np.inf else 0.0))
        # each may have weighed as much as the heaviest of the others
        unknown = proposals.undefined * relative.max() / max(relative.sum(), 1.0)
        heaviest = relative.max() / max(relative.sum(), 1.0)
        doubt = _doubt(proposals, weights, largest, unknown, heaviest)
        if doubt:
            impossible = not proposals.undefined and bool(largest == -np.inf)
            return cls(np.nan, np.nan, weights.pareto_k, weights.ess, doubt, impossible)
        mean = relative.mean()
        error = relative.std(ddof=1) / np.sqrt(len(relative)) / mean  # of the logarithm, by its slope
        return cls(float(largest + np.log(mean)), float(np.hypot(error, unknown)), weights.pareto_k, weights.ess)


def _doubt(proposals: Proposals, weights: Weights, largest: float, unknown: float, heaviest: float) -> str | None:
    """Why weights do not carry an estimate."""
    number = proposals.log_weights.size
    if proposals.undefined and (unknown > THRESHOLDS.excluded or largest == -np.inf):
        return f"the log density was NaN or infinite at {proposals.undefined} of {number} proposals"
    if largest == -np.inf:
        return "the model's density is 0 at all proposals: such data may be impossible under it"
    if weights.pareto_k == np.inf:
        return "all but a few proposals have no density (do the data lie in the model's support?)"
    if weights.pareto_k > THRESHOLDS.finite_variance and not weights.harmless:
        return f"Pareto k is {weights.pareto_k:.2f}, above {THRESHOLDS.finite_variance}"
    if heaviest > THRESHOLDS.heaviest:
        return f"one proposal has {heaviest:.1%} of the weight (wanted: at most {THRESHOLDS.heaviest:.1%})"
    return weights.shortcoming(number) or None


def refuse_evidence(spec: ModelSpec) -> None:
    """Refuse models without a normalized density.

    Raises
    ------
    ValueError
    """
    if spec.density_obstacle:
        raise ValueError(f"the log marginal likelihood needs the model's density: {spec.density_obstacle}")
    if spec.potentials:
        raise ValueError(
            f"the model has potentials {list(spec.potentials)}: its density is not normalized, and has no marginal "
            "likelihood"
        )


def estimate(target: PosteriorTarget, proposals: int, seed: np.random.SeedSequence) -> list[Evidence]:
    """Estimate the marginal likelihood of every data set.

    Parameters
    ----------
    target : PosteriorTarget
    proposals : int
        Per data set, half of them by the network.
    seed : numpy.random.SeedSequence
    """
    results = {
        i: Evidence(np.nan, np.nan, np.nan, np.nan, obstacle)
        for i, obstacle in enumerate(target.obstacles)
        if obstacle is not None
    }
    budget = Budget(SECONDS)
    pilot = Request(THRESHOLDS.fewest_proposals // SETS, SETS, budget=budget)
    final = Request(max(proposals // (2 * SETS), 1), SETS, budget=budget)
    free = np.array([i for i in range(len(target.datasets)) if i not in results], dtype=int)
    together = list(blocks(len(free), 16))  # data sets whose proposals are in memory at a time
    for rows, child in zip(together, seed.spawn(len(together)), strict=True):
        block_seed, tempered_seed = child.spawn(2)
        found = _by_weights(target, free[rows], pilot, final, block_seed)
        for (index, evidence), own in zip(found.items(), tempered_seed.spawn(len(found)), strict=True):
            hopeless = evidence.impossible or evidence.unsure or target.obstacles[index]
            hopeful = evidence.doubt and not hopeless
            results[index] = (_tempered(target, index, final, own) if hopeful else None) or evidence
    return [results[i] for i in range(len(target.datasets))]


def _by_weights(
    target: PosteriorTarget, block: np.ndarray, pilot: Request, final: Request, seed: np.random.SeedSequence
) -> dict[int, Evidence]:
    """Estimates for some data sets, by the network and what a pilot finds."""
    source = target.source(block, weighted=True, defended=True)
    pilot_seed, rounds_seed, final_seed, mixture_seed = seed.spawn(4)
    first = {i: source.empty(pilot.sets) for i in range(len(block))}
    Rounds(source, first, pilot, pilot_seed).climb((Network(), Mixture()), rounds_seed)
    rng = np.random.default_rng(mixture_seed)
    second = Rounds(source, {i: p.successor(rng) for i, p in first.items()}, final, final_seed)
    second.network(1)
    second.adapted(second.first, rng)
    return {int(block[i]): _judged(target, int(block[i]), p) for i, p in second.sets.items()}


def _tempered(target: PosteriorTarget, index: int, request: Request, seed: np.random.SeedSequence) -> Evidence | None:
    """Estimate by proposals that are fitted to tempered particles; None where these are no better."""
    rung, (first, second) = Tempered(), seed.spawn(2)
    if target.funnel or target.spec.dim > rung.most or request.budget.left <= 0:
        return None
    with request.budget.running():
        particles = populate(target, index, rung.particles[-1], first, request.budget.deadline)
        if particles is None:
            return None
        proposals = propose_from(target, index, particles, request, second, rung.components)
    evidence = _judged(target, index, proposals)
    if evidence.doubt is None or evidence.unsure:
        return evidence
    agreed = Convergence.of(unstandardized(target, particles.z), 0, target.spec.circular).converged
    if proposals.undefined or not agreed or not particles.drift <= THRESHOLDS.drift:
        return None
    largest = particles.log_evidence.max()
    each = np.exp(particles.log_evidence - largest)
    error = each.std(ddof=1) / np.sqrt(len(each)) / each.mean()
    return replace(
        evidence, log_marginal_likelihood=float(largest + np.log(each.mean())), mcse=float(error), doubt=None
    )


def _judged(target: PosteriorTarget, index: int, proposals: Proposals) -> Evidence:
    """Estimate, unless what is missing of a data set cannot be integrated out at the heaviest proposals after all."""
    found = Evidence.of(proposals)
    heaviest = np.argsort(proposals.log_weights.ravel())[-TRIED:]
    if found.doubt is None and target.disprove(index, proposals.theta.reshape(-1, target.spec.dim)[heaviest]):
        return Evidence(np.nan, np.nan, found.pareto_k, found.importance_ess, target.obstacles[index])
    if found.doubt is None and isinstance(target.log_density, MarginalDensity):  # as draws are
        weights = np.exp(proposals.log_weights.ravel() - proposals.log_weights.max())
        some = resample(weights[None] / weights.sum(), GROUPS_AT, np.random.default_rng(0))[0]
        theta = proposals.theta.reshape(-1, target.spec.dim)[some]
        groups = draw_groups(target.log_density, target.given(index), theta[None], np.random.SeedSequence(0))
        if groups.failure is not None:
            told = f"{groups.failure.reason}: {groups.failure.details}"
            return Evidence(np.nan, np.nan, found.pareto_k, found.importance_ess, told, unsure=True)
    return found


def kept_share(dropped: Mapping[str, int], attempted: int) -> float:
    """Share of the prior's simulations that the model's density allows.

    Those that raised say nothing of it, nor do draws that overflow or are rounded: the density has their mass.
    """
    truncated = sum(truncating(dropped).values())
    return 1 - truncated / max(attempted - sum(dropped.values()) + truncated, 1)


def check_truncation(dropped: Mapping[str, int], attempted: int, log_orderings: float = 0.0) -> list[Doubt]:
    """Find out whether the model's density excludes draws from its prior, and so is not normalized.

    Parameters
    ----------
    dropped : mapping of str to int
        Why simulations were dropped.
    attempted : int
    log_orderings : float
        Log of how many orderings of draws were taken for one.
    """
    kept = kept_share(dropped, attempted) * np.exp(-log_orderings)
    if kept >= 1 - THRESHOLDS.excluded:
        return []
    finding = (
        f"The model's density allows {100 * kept:.1f}% of its prior's simulations (an ordered transform, bounds): over "
        "these it is not normalized"
    )
    advice = f"The log marginal likelihood under the truncated prior is larger by {-np.log(kept):.2f}."
    return [Doubt("truncation", finding, advice, float(kept))]


def evidence_dataset(datasets: DataSets, found: list[Evidence]) -> xr.Dataset:
    """Lay out estimates, after a ``dataset`` dim if batched."""
    names = ("log_marginal_likelihood", "mcse", "pareto_k", "importance_ess")
    arrays = {name: np.array([getattr(e, name) for e in found]) for name in names}
    if not datasets.batched:
        return xr.Dataset({name: ((), values[0]) for name, values in arrays.items()})
    coords = {DATASET_DIM: datasets.labels}
    return xr.Dataset({name: (DATASET_DIM, values) for name, values in arrays.items()}, coords=coords)


def check_evidence(found: list[Evidence], labels: np.ndarray) -> list[Doubt]:
    """Find data sets that have no estimate."""
    without = np.flatnonzero([e.doubt is not None for e in found])
    if len(without) == 0:
        return []
    first = int(without[0])
    subject = say_how_many(len(without), len(found), "The data set has", "{} have")
    where = say_where(labels, first) and f", the first{say_where(labels, first)}"
    finding = f"{subject} no log marginal likelihood (NaN){where}: {found[first].doubt}"
    advice = (
        "Train longer (posterior = posterior.continue_training()), or run pm.sample_smc on posterior.to_model(...)."
    )
    return [Doubt("evidence", finding, advice, found[first].pareto_k, labels_of(labels, without))]
