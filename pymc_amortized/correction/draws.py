"""Draws for one data set: how they came about, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.numerics.importance import Weights, tempered
from pymc_amortized.numerics.whitening import Whitening

WEIGHTED = ("weights", "mixture")
"""Rungs whose draws are proposals that were resampled by their weights. All others but "raw" are samplers."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    draws, chains : int
        Draws per chain, and chains, for each data set.
    max_nuts : int or None
        How many data sets may go to NUTS.
    max_time : float or None
        Seconds that NUTS may take in all.
    progressbar : bool
    """

    draws: int
    chains: int
    max_nuts: int | None = None
    max_time: float | None = None
    progressbar: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a data set has no draws that can be used."""

    reason: str
    details: str = ""


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
        Of chains of NUTS.
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

    @property
    def settled(self) -> bool:
        """Whether draws are corrected, and can be used."""
        return self.failure is None and self.rung != "raw"

    @property
    def stage(self) -> str:
        """What users are told of the draws: "raw", "psis", "nuts" or "failed"."""
        if self.failure:
            return "failed"
        return "psis" if self.rung in WEIGHTED else self.rung


def sample_stats(results: Sequence[Draws]) -> dict[str, tuple[list[str], np.ndarray]]:
    """Collect what is known of draws, proposals and data sets: name -> (dims, ndarray (datasets, *dims))."""
    per_draw = ["chain", "draw"]
    stats: dict[str, tuple[list[str], np.ndarray]] = {
        "stage": ([], np.array([r.stage for r in results])),
        "rung": ([], np.array([r.rung for r in results])),
        "log_q": (per_draw, np.stack([r.log_q for r in results])),
    }
    if all(r.weights is None and r.convergence is None for r in results):
        return stats
    stats["lp"] = (per_draw, np.stack([r.log_p for r in results]))
    most = max(r.log_weights.shape[1] for r in results)
    padded = np.full((len(results), len(results[0].log_weights), most), np.nan)
    for row, result in zip(padded, results, strict=True):
        row[:, : result.log_weights.shape[1]] = result.log_weights
    stats["proposal_log_weight"] = (["chain", "proposal"], padded)
    stats["pareto_k"] = ([], np.array([r.weights.pareto_k if r.weights else np.nan for r in results]))
    stats["importance_ess"] = ([], np.array([r.weights.ess if r.weights else np.nan for r in results]))
    for name in ("r_hat", "ess_bulk", "ess_tail", "divergences"):
        values = [getattr(r.convergence, name) if r.convergence else np.nan for r in results]
        stats[name] = ([], np.array(values, dtype=float))
    return stats
