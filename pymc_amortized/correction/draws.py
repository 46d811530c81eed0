"""Draws for one data set: how they came about, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pymc_amortized.correction.budget import Budget
from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.proposals import Proposals
from pymc_amortized.graph.data.datasets import PARAMETER_DIM
from pymc_amortized.numerics.sampling.importance import Weights, by_parameter, resample, tempered
from pymc_amortized.numerics.sampling.whitening import Whitening
from pymc_amortized.numerics.thresholds import THRESHOLDS

WEIGHTED = ("weights", "mixture", "tempered")
"""Rungs whose draws are proposals that were resampled by their weights. All others but "raw" are samplers."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    draws, chains : int
        Draws per chain, and chains, for each data set.
    max_nuts : int or None
        How many data sets may go to samplers.
    budget : Budget
        Seconds that all may take which weights of the first proposals do not settle.
    """

    draws: int
    chains: int
    max_nuts: int | None = None
    budget: Budget = field(default_factory=Budget)

    @property
    def first(self) -> int:
        """Proposals per chain of the first round."""
        return max(self.draws, -(-THRESHOLDS.fewest_proposals // self.chains))

    @property
    def sets(self) -> int:
        """Sets of proposals whose weights are normalized together: the chains, or several of few draws each."""
        most = max(self.chains * self.first // THRESHOLDS.fewest_per_set, 1)
        return next(n for n in range(min(self.chains, most), 0, -1) if self.chains % n == 0)


@dataclass(frozen=True)
class Failure:
    """Why a data set has no draws that can be used, and whether everything was tried."""

    reason: str
    details: str = ""
    reached: bool = True


@dataclass(frozen=True, eq=False)
class Start:
    """What a sampler begins with.

    Attributes
    ----------
    whitening : Whitening
        Place and shape of the posterior.
    points : ndarray (n, dim)
        Draws as dispersed as these, from which chains start.
    """

    whitening: Whitening
    points: np.ndarray

    @classmethod
    def of(cls, theta: np.ndarray, log_weights: np.ndarray, rng: np.random.Generator, points: int = 64) -> Start:
        """Learn from proposals of all chains (chains, n, dim) and their raw log weights (chains, n).

        Without a density, weights are NaN and all draws count alike.
        """
        theta = theta.reshape(-1, theta.shape[-1])
        weights = tempered(log_weights.ravel(), theta.shape[1])
        return cls(Whitening.of(theta, weights), theta[rng.choice(len(theta), points, p=weights)])


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws for one data set.

    Attributes
    ----------
    theta : ndarray (chains, draws, dim)
    log_q, log_p : ndarray (chains, draws)
        Log densities of the network and of the model at the draws; the latter NaN without a density.
    log_weights : ndarray (chains, proposals)
        Raw log weights of everything that was proposed.
    weights : Weights or None
        What became of them.
    undefined : int
        Proposals at which the model's log density was NaN or +inf.
    rung : str
        Name of the rung of the ladder that the draws come from; "raw" without a correction.
    failure : Failure or None
        Why these, the best draws there are, should not be used.
    start : Start or None
        What a sampler begins with, where one may have to.
    convergence : Convergence or None
        Of chains of NUTS, or populations of particles.
    modes : int
        How many were found.
    by_parameter : tuple of ndarray or None
        Pareto k and Monte Carlo error, in posterior standard deviations, of each parameter's mean (dim,).
    proposed : tuple of ndarray or None
        Some of all proposals (n, dim) and their raw log weights (n,), where a sampler may have to be held against them.
    per_draw : mapping of str to ndarray
        What a sampler says of each draw (chains, draws).
    locals : ndarray (chains, draws, number) or None
        Where they were drawn already; else they will be, given theta.
    pareto_k_of_groups : float
        Worst of the weights that the locals of a block were chosen by, given theta.
    """

    theta: np.ndarray
    log_q: np.ndarray
    log_p: np.ndarray
    log_weights: np.ndarray
    weights: Weights | None
    undefined: int
    rung: str = "raw"
    failure: Failure | None = None
    start: Start | None = None
    convergence: Convergence | None = None
    modes: int = 1
    by_parameter: tuple[np.ndarray, np.ndarray] | None = None
    proposed: tuple[np.ndarray, np.ndarray] | None = None
    per_draw: Mapping[str, np.ndarray] = field(default_factory=dict)
    locals: np.ndarray | None = None
    pareto_k_of_groups: float = np.nan

    @classmethod
    def of(
        cls, proposals: Proposals, request: Request, rng: np.random.Generator, *, rung: str, unsure: bool = False
    ) -> Draws:
        """Resample proposals by their weights, or take the first as they are for the rung "raw".

        Parameters
        ----------
        proposals : Proposals
        request : Request
        rng : numpy.random.Generator
        rung : str
        unsure : bool
            Whether a sampler may have to begin with them, though they are settled.
        """
        weights, sets = proposals.weights, proposals.chains
        each = request.draws * request.chains // sets
        resampled = weights is not None and rung != "raw"
        index = np.broadcast_to(np.arange(each), (sets, each))
        if weights is not None and resampled:
            # rounds come from different distributions: in their order, a chain would seem to drift
            order = rng.permuted(np.broadcast_to(np.arange(weights.weights.shape[1]), weights.weights.shape), axis=1)
            shuffled = np.take_along_axis(weights.weights, order, axis=1)
            index = np.take_along_axis(order, resample(shuffled, each, rng), 1)
        failure = None
        if weights is not None and resampled and not weights.settle(index.size):
            failure = Failure("the weights are poor", weights.shortcoming(index.size))
            unsure = True
        rows, dealt = np.arange(sets)[:, None], (request.chains, request.draws)
        theta, log_weights = proposals.theta, proposals.log_weights
        return cls(
            theta[rows, index].reshape(*dealt, -1),
            proposals.log_q[rows, index].reshape(dealt),
            proposals.log_p[rows, index].reshape(dealt),
            log_weights,
            weights,
            proposals.undefined,
            rung=rung,
            failure=failure,
            start=Start.of(theta, log_weights, rng) if unsure else None,
            modes=proposals.modes,
            by_parameter=None if weights is None else by_parameter(theta, weights),
            proposed=_some(theta, log_weights, rng) if unsure else None,
        )

    def sampled(self, found: Convergence) -> Draws:
        """Return the same with what is known of a sampler's chains: Monte Carlo errors are theirs."""
        k = np.full(len(found.mcse), np.nan) if self.by_parameter is None else self.by_parameter[0]
        return replace(self, convergence=found, by_parameter=(k, found.mcse))

    @property
    def settled(self) -> bool:
        """Whether draws are corrected, and can be used."""
        return self.failure is None and self.rung != "raw"

    @property
    def stage(self) -> str:
        """What users are told of the draws: "raw", "psis", "smc", "nuts", "failed" or "not reached"."""
        if self.failure:
            return "failed" if self.failure.reached else "not reached"
        return "psis" if self.rung in WEIGHTED else self.rung


def sample_stats(results: Sequence[Draws], *, weights: bool) -> dict[str, tuple[list[str], np.ndarray]]:
    """Collect what is known of draws and data sets: name -> (dims, ndarray (datasets, *dims)).

    `weights` of all proposals are large.
    """
    per_draw = ["chain", "draw"]
    stats: dict[str, tuple[list[str], np.ndarray]] = {
        "stage": ([], np.array([r.stage for r in results])),
        "rung": ([], np.array([r.rung for r in results])),
        "log_q": (per_draw, np.stack([r.log_q for r in results])),
    }
    if all(r.weights is None and r.convergence is None for r in results):
        return stats
    stats["lp"] = (per_draw, np.stack([r.log_p for r in results]))
    if weights:
        stats["proposal_log_weight"] = (["chain", "proposal"], _padded_weights(results))
    stats["num_proposals"] = ([], np.array([r.log_weights.size for r in results]))
    stats["pareto_k"] = ([], np.array([r.weights.pareto_k if r.weights else np.nan for r in results]))
    stats["importance_ess"] = ([], np.array([r.weights.ess if r.weights else np.nan for r in results]))
    if any(r.locals is not None for r in results):
        stats["pareto_k_of_groups"] = ([], np.array([r.pareto_k_of_groups for r in results]))
    nothing = np.full((2, results[0].theta.shape[-1]), np.nan)
    k, mcse = np.stack([nothing if r.by_parameter is None else r.by_parameter for r in results], axis=1)
    stats |= {"pareto_k_of_mean": ([PARAMETER_DIM], k), "mcse_of_mean": ([PARAMETER_DIM], mcse)}
    for name in ("r_hat", "ess_bulk", "ess_tail", "divergences"):
        values = [getattr(r.convergence, name) if r.convergence else np.nan for r in results]
        stats[name] = ([], np.array(values, dtype=float))
    for name in {name for r in results for name in r.per_draw}:
        unknown = np.full(results[0].log_q.shape, np.nan)
        stats[name] = (per_draw, np.stack([r.per_draw.get(name, unknown) for r in results]))
    return stats


def _padded_weights(results: Sequence[Draws]) -> np.ndarray:
    """Log weights (datasets, chains, proposals), NaN where other data sets got more of them."""
    chains = len(results[0].log_q)
    most = max(-(-r.log_weights.size // chains) for r in results)
    padded = np.full((len(results), chains * most), np.nan)
    for row, result in zip(padded, results, strict=True):
        sets = result.log_weights
        if len(sets) == chains:  # each in its row
            row.reshape(chains, most)[:, : sets.shape[1]] = sets
        else:
            row[: sets.size] = sets.ravel()
    return padded.reshape(len(results), chains, most)


def _some(theta: np.ndarray, log_weights: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some of all proposals, few enough to be kept for many data sets."""
    theta, log_weights = theta.reshape(-1, theta.shape[-1]), log_weights.ravel()
    some = rng.choice(len(theta), min(len(theta), 4000), replace=False)
    return theta[some], log_weights[some]
