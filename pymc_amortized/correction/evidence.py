r"""The marginal likelihood of data, by importance sampling.

.. math:: p(y) = \int p(\theta, y)\, d\theta \approx \frac1N \sum_n \frac{p(\theta_n, y)}{q(\theta_n)}, \qquad
    \theta_n \sim q,

without bias if :math:`q` and :math:`N` are fixed beforehand. Here :math:`q` is half the network and half a Student t
with mean and covariance of draws that were made first and then put aside: a defensive mixture (Hesterberg 1995,
Technometrics 37(2)), whose weights are bounded where either covers the posterior. Weights are raw: smoothing would bias
their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pymc_amortized.correction.doubt import Doubt, labels_of, say_how_many, say_where
from pymc_amortized.correction.proposals import Proposals
from pymc_amortized.correction.rounds import Mixture, Network, Rounds
from pymc_amortized.correction.target import TRIED, PosteriorTarget
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets
from pymc_amortized.graph.data.simulations import truncating
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.numerics.importance import smooth
from pymc_amortized.numerics.thresholds import THRESHOLDS


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

    @classmethod
    def of(cls, proposals: Proposals) -> Evidence:
        """Estimate from proposals of a fixed number; NaN where they do not carry an estimate."""
        log_weights = proposals.log_weights.ravel()
        weights = smooth(log_weights[None], defended=True)
        largest = log_weights.max()
        doubt = None
        relative = np.exp(log_weights - (largest if largest > -np.inf else 0.0))
        # each may have weighed as much as the heaviest of the others
        unknown = proposals.undefined * relative.max() / max(relative.sum(), 1.0)
        if proposals.undefined and (unknown > THRESHOLDS.excluded or largest == -np.inf):
            doubt = f"the log density was NaN or infinite at {proposals.undefined} of {log_weights.size} proposals"
        elif largest == -np.inf:
            doubt = "the model's density is 0 at all proposals: such data may be impossible under it"
        elif weights.pareto_k == np.inf:
            doubt = "all but a few proposals have no density (do the data lie in the model's support?)"
        elif weights.pareto_k > THRESHOLDS.finite_variance and not weights.harmless:
            doubt = f"Pareto k is {weights.pareto_k:.2f}, above {THRESHOLDS.finite_variance}"
        if doubt:
            impossible = not proposals.undefined and bool(largest == -np.inf)
            return cls(np.nan, np.nan, weights.pareto_k, weights.ess, doubt, impossible)
        mean = relative.mean()
        error = relative.std(ddof=1) / np.sqrt(len(relative)) / mean  # of the logarithm, by its slope
        return cls(float(largest + np.log(mean)), float(np.hypot(error, unknown)), weights.pareto_k, weights.ess)


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
    free = np.array([i for i in range(len(target.datasets)) if i not in results], dtype=int)
    first = THRESHOLDS.fewest_proposals
    together = list(blocks(len(free), 16))  # data sets whose proposals are in memory at a time
    for rows, child in zip(together, seed.spawn(len(together)), strict=True):
        block = free[rows]
        source = target.source(block, weighted=True, defended=True)
        pilot_seed, rounds_seed, final_seed, mixture_seed = child.spawn(4)
        pilot = Rounds(source, {i: Proposals(1, source.defended) for i in range(len(block))}, first, pilot_seed)
        pilot.climb((Network(), Mixture()), first, rounds_seed)
        half = proposals // 2
        final = Rounds(source, {i: p.successor() for i, p in pilot.sets.items()}, half, final_seed)
        final.network(1)
        final.adapted(proposals - half, np.random.default_rng(mixture_seed))
        results |= {int(block[i]): _judged(target, int(block[i]), p) for i, p in final.sets.items()}
    return [results[i] for i in range(len(target.datasets))]


def _judged(target: PosteriorTarget, index: int, proposals: Proposals) -> Evidence:
    """Estimate, unless what is missing of a data set cannot be integrated out at the heaviest proposals after all."""
    found = Evidence.of(proposals)
    heaviest = np.argsort(proposals.log_weights.ravel())[-TRIED:]
    if found.doubt is None and target.disprove(index, proposals.theta.reshape(-1, target.spec.dim)[heaviest]):
        return Evidence(np.nan, np.nan, found.pareto_k, found.importance_ess, target.obstacles[index])
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
    advice = "Train longer (posterior.continue_training), or run pm.sample_smc on posterior.to_model(...)."
    return [Doubt("evidence", finding, advice, found[first].pareto_k, labels_of(labels, without))]
