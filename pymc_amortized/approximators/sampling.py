"""Draws of a trained network, weighted by the model's density and resampled, for many data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pymc_amortized.correction import Weights, resample, smooth

BLOCK = 2**17
"""Proposals that are drawn at once: enough to keep the processor busy, few enough for its caches."""
FEWEST_PROPOSALS = 1000
"""Per data set in all: with fewer, the tail of the weights says little."""
ROUNDS = (1, 4, 16)
"""Multiples of the first number of proposals, for data sets whose weights are still poor."""
WANTED_EFFICIENCY = 0.5
"""Importance effective sample size per draw above which more proposals are not worth their time."""

Propose = Callable[[np.ndarray, int, torch.Generator], tuple[np.ndarray, np.ndarray]]
"""(indices of data sets, draws) -> theta (draws, data sets, dim) and its log density (draws, data sets)."""
LogDensityAt = Callable[[np.ndarray, int], np.ndarray]
"""(theta (draws, dim), index of a data set) -> log density (draws,)."""


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
    """

    theta: np.ndarray
    log_q: np.ndarray
    log_p: np.ndarray
    log_weights: np.ndarray
    weights: Weights | None
    undefined: int


class _Proposals:
    """Proposals for one data set, growing until their weights are good enough."""

    def __init__(self, chains: int) -> None:
        self.chains = chains
        self.theta: list[np.ndarray] = []
        self.log_q: list[np.ndarray] = []
        self.log_p: list[np.ndarray] = []
        self.weights: Weights | None = None
        self.undefined = 0

    def add(self, theta: np.ndarray, log_q: np.ndarray, log_p: np.ndarray) -> None:
        """Add draws (n, dim) with their log densities (n,), dealt out to the chains."""
        self.theta.append(theta.reshape(self.chains, -1, theta.shape[-1]))
        self.log_q.append(log_q.reshape(self.chains, -1))
        self.log_p.append(log_p.reshape(self.chains, -1))

    def add_weighted(self, theta: np.ndarray, log_q: np.ndarray, log_p: np.ndarray) -> None:
        """The same with a density of the model: where it is not a number, a proposal gets no weight."""
        undefined = np.isnan(log_p) | (log_p == np.inf)
        self.undefined += int(undefined.sum())
        self.add(theta, log_q, np.where(undefined, -np.inf, log_p))
        self.weigh()

    def log_weights(self) -> np.ndarray:
        return np.concatenate(self.log_p, axis=1) - np.concatenate(self.log_q, axis=1)

    def weigh(self) -> None:
        self.weights = smooth(self.log_weights())

    def poor(self, draws: int) -> bool:
        assert self.weights is not None
        short = self.weights.ess < WANTED_EFFICIENCY * self.chains * draws
        return short or not self.weights.reliable

    def settle(self, draws: int, rng: np.random.Generator | None) -> Draws:
        """Resample; without a generator, take the first draws as they are."""
        theta, log_q, log_p = (np.concatenate(p, axis=1) for p in (self.theta, self.log_q, self.log_p))
        if rng is None or self.weights is None:
            index = np.broadcast_to(np.arange(draws), (self.chains, draws))
        else:
            index = resample(self.weights.weights, draws, rng)
        rows = np.arange(self.chains)[:, None]
        return Draws(
            theta[rows, index],
            log_q[rows, index],
            log_p[rows, index],
            log_p - log_q,
            self.weights,
            self.undefined,
        )


def draw(
    propose: Propose,
    log_density: LogDensityAt | None,
    n_datasets: int,
    *,
    chains: int,
    draws: int,
    corrected: bool,
    seed: np.random.SeedSequence,
    device: torch.device,
) -> list[Draws]:
    """Draw from the posteriors of `n_datasets` data sets.

    Parameters
    ----------
    propose : callable
        Draws from the network.
    log_density : callable or None
        The model's joint log density.
    corrected : bool
        Whether draws are resampled by their weights. Weights are computed in any case.

    Returns
    -------
    list of Draws
        One for each data set.
    """
    first = max(draws, -(-FEWEST_PROPOSALS // chains)) if log_density else draws
    block = max(1, BLOCK // (first * chains))
    starts = range(0, n_datasets, block)
    results: list[Draws] = []
    for start, child in zip(starts, seed.spawn(len(starts)), strict=True):
        indices = np.arange(start, min(start + block, n_datasets))
        generator = torch.Generator(device=device)
        torch_seed, resampling_seed = child.spawn(2)
        generator.manual_seed(int(torch_seed.generate_state(1, np.uint64)[0] >> 1))
        sets = {int(i): _Proposals(chains) for i in indices}
        _propose_until_good(sets, propose, log_density, first, draws if corrected else None, generator)
        rng = np.random.default_rng(resampling_seed) if corrected else None
        results += [s.settle(draws, rng) for s in sets.values()]
    return results


def _propose_until_good(
    sets: dict[int, _Proposals],
    propose: Propose,
    log_density: LogDensityAt | None,
    first: int,
    draws: int | None,
    generator: torch.Generator,
) -> None:
    pending, made = list(sets), 0
    for target in ROUNDS:
        per_chain = first * (target - made)
        made = target
        largest = max(1, BLOCK // per_chain)
        for start in range(0, len(pending), largest):
            some = pending[start : start + largest]
            _propose_once(sets, some, propose, log_density, per_chain, generator)
        if log_density is None or draws is None:
            return
        pending = [i for i in pending if sets[i].poor(draws)]
        if not pending:
            return


def _propose_once(
    sets: dict[int, _Proposals],
    indices: list[int],
    propose: Propose,
    log_density: LogDensityAt | None,
    per_chain: int,
    generator: torch.Generator,
) -> None:
    chains = next(iter(sets.values())).chains
    theta, log_q = propose(np.asarray(indices), per_chain * chains, generator)
    for column, i in enumerate(indices):
        mine = np.ascontiguousarray(theta[:, column])
        if log_density:
            sets[i].add_weighted(mine, log_q[:, column], log_density(mine, i))
        else:
            sets[i].add(mine, log_q[:, column], np.full(len(mine), np.nan))


def sample_stats(results: list[Draws]) -> dict[str, tuple[list[str], np.ndarray]]:
    """Collect what is known of draws, proposals and data sets: name -> (dims, ndarray (datasets, *dims))."""
    per_draw = ["chain", "draw"]
    stats: dict[str, tuple[list[str], np.ndarray]] = {"log_q": (per_draw, np.stack([r.log_q for r in results]))}
    if all(r.weights is None for r in results):
        return stats
    stats["lp"] = (per_draw, np.stack([r.log_p for r in results]))
    most = max(r.log_weights.shape[1] for r in results)
    padded = np.full((len(results), len(results[0].log_weights), most), np.nan)
    for row, result in zip(padded, results, strict=True):
        row[:, : result.log_weights.shape[1]] = result.log_weights
    stats["proposal_log_weight"] = (["chain", "proposal"], padded)
    stats["pareto_k"] = ([], np.array([r.weights.pareto_k if r.weights else np.nan for r in results]))
    stats["importance_ess"] = ([], np.array([r.weights.ess if r.weights else np.nan for r in results]))
    return stats
