"""Draws of a trained network, weighted by the model's density and resampled, for many data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pymc_amortized.correction.adaptation import Start
from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.proposals import Proposals
from pymc_amortized.numerics.importance import Weights, resample

BLOCK = 2**17
"""Proposals that are drawn at once: enough to keep the processor busy, few enough for its caches."""
FEWEST_PROPOSALS = 1000
"""Per data set in all: with fewer, the tail of the weights says little."""
ROUNDS = (1, 4, 16)
"""Multiples of the first number of proposals, for data sets whose weights are still poor."""
ADAPTED_ROUNDS = 5
"""As many proposals as in the rounds after the first, but adapted to what was found before, come in so many rounds:
`benchmarks/escalation.py` settles more data sets with more and smaller rounds, few of them by the network's alone."""
FEWEST_EFFECTIVE = 400
"""Effective draws that estimates should rest on (Vehtari et al. 2021: 100 for each of four chains)."""
NOTABLY_LOST = 0.02
"""Share of the weights that smoothing may take away before more proposals are worth their time: about what it takes
from a tail of shape 0.5. A mode that a few proposals hit may have as much."""
HEAVIEST = 0.005
"""Share of the weights that one proposal may have before more are worth their time, and in the end: what lies five
standard deviations away changes a variance by an eighth."""
FINITE_VARIANCE = 0.5
"""Pareto k up to which weights have a variance. By networks that knew little, hierarchies ended at a k of 0.5 to 0.65,
with 3 to 12 effective draws of a hundred proposals and standard deviations that were 5 to 25 % too small."""
WANTED_EFFICIENCY = 0.5
"""Importance effective sample size per draw above which more proposals are not worth their time; per proposal, above
which a tail without a variance has little weight."""

Mode = Literal["raw", "network", "adapted", "start"]
"""What is done about weights: nothing; more proposals of the network; also of what they found; or only enough to know
where chains may start."""
Stage = Literal["raw", "psis", "nuts", "failed"]


@dataclass(frozen=True)
class Source:
    """Where draws come from, and what they are weighed by.

    Attributes
    ----------
    propose : callable
        Draws of the network: (indices of data sets, draws, generator) -> theta (draws, data sets, dim) and its log
        density (draws, data sets).
    log_prob : callable
        The network's log density: (theta (draws, data sets, dim), indices of data sets) -> (draws, data sets).
    log_density : callable or None
        The model's: (theta (draws, dim), index of a data set) -> (draws,).
    device : torch.device
        Of the network.
    defended : bool
        Whether a good part of the draws comes from distributions with heavy tails.
    """

    propose: Callable[[np.ndarray, int, torch.Generator], tuple[np.ndarray, np.ndarray]]
    log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray]
    log_density: Callable[[np.ndarray, int], np.ndarray] | None
    device: torch.device
    defended: bool = False


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
    stage : {"raw", "psis", "nuts", "failed"}
        How the draws came about, and whether that failed.
    start : Start or None
        What NUTS begins with, where it may have to.
    convergence : Convergence or None
        Of chains of NUTS.
    """

    theta: np.ndarray
    log_q: np.ndarray
    log_p: np.ndarray
    log_weights: np.ndarray
    weights: Weights | None
    undefined: int
    stage: Stage = "raw"
    start: Start | None = None
    convergence: Convergence | None = None


def draw(
    source: Source,
    n_datasets: int,
    *,
    chains: int,
    draws: int,
    mode: Mode,
    seed: np.random.SeedSequence,
) -> list[Draws]:
    """Draw from the posteriors of `n_datasets` data sets.

    Parameters
    ----------
    source : Source
    mode : Mode
        Draws are resampled by their weights except if "raw". Weights are computed in any case.

    Returns
    -------
    list of Draws
        One for each data set.
    """
    first = first_proposals(draws, chains) if source.log_density else draws
    block = max(1, BLOCK // (first * chains))
    starts = range(0, n_datasets, block)
    results: list[Draws] = []
    for start, child in zip(starts, seed.spawn(len(starts)), strict=True):
        indices = np.arange(start, min(start + block, n_datasets))
        torch_seed, resampling_seed = child.spawn(2)
        rounds = Rounds(source, {int(i): Proposals(chains, source.defended) for i in indices}, first, torch_seed)
        if source.log_density is None or mode in ("raw", "start"):
            rounds.network(1)
        else:
            rounds.until_good(draws, mode == "adapted", child)
        rng = np.random.default_rng(resampling_seed)
        results += [_settle(s, draws, mode, rng) for s in rounds.sets.values()]
    return results


def first_proposals(draws: int, chains: int) -> int:
    """Proposals per chain of the first round."""
    return max(draws, -(-FEWEST_PROPOSALS // chains))


class Rounds:
    """Rounds of proposals for several data sets."""

    def __init__(self, source: Source, sets: dict[int, Proposals], first: int, seed: np.random.SeedSequence) -> None:
        self.sets = sets
        self._source, self._first, self._made = source, first, 0
        self._pending = list(sets)
        self._generator = torch.Generator(device=source.device)
        self._generator.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))

    def until_good(self, draws: int, adapted: bool, seed: np.random.SeedSequence) -> None:
        """Propose until weights are good, at most the last round's number."""
        for target in ROUNDS:
            self.network(target)
            if not self._still_poor(draws):
                return
            if adapted:
                break
        if adapted:
            rng = np.random.default_rng(seed.spawn(1)[0])
            each = -(-self._first * (ROUNDS[-1] - self._made) // ADAPTED_ROUNDS)
            for number in range(ADAPTED_ROUNDS):
                self.adapted(each, rng)
                # of weights that were poor, the first that look good may only lack their largest
                if number and not self._still_poor(draws):
                    return

    def network(self, target: int) -> None:
        """Let the network propose, up to `target` times the first number."""
        per_chain = self._first * (target - self._made)
        self._made = target
        for some in self._blocks(per_chain):
            theta, log_q = self._source.propose(np.asarray(some), per_chain * self._chains, self._generator)
            self._add(some, theta, log_q)

    def adapted(self, per_chain: int, rng: np.random.Generator) -> None:
        """Propose from what was found so far."""
        for some in self._blocks(per_chain):
            theta = np.stack([self.sets[i].adapted(per_chain, rng) for i in some], axis=1)
            self._add(some, theta, self._source.log_prob(theta, np.asarray(some)))

    def _add(self, indices: list[int], theta: np.ndarray, log_q: np.ndarray) -> None:
        log_density = self._source.log_density
        for column, i in enumerate(indices):
            mine = np.ascontiguousarray(theta[:, column])
            if log_density:
                self.sets[i].add_weighted(mine, log_q[:, column], log_density(mine, i))
            else:
                self.sets[i].add(mine, log_q[:, column], np.full(len(mine), np.nan))

    def _still_poor(self, draws: int) -> bool:
        self._pending = [i for i in self._pending if _poor(self.sets[i], draws)]
        return bool(self._pending)

    def _blocks(self, per_chain: int) -> Iterator[list[int]]:
        largest = max(1, BLOCK // per_chain)
        for start in range(0, len(self._pending), largest):
            yield self._pending[start : start + largest]

    @property
    def _chains(self) -> int:
        return next(iter(self.sets.values())).chains


def _poor(proposals: Proposals, draws: int) -> bool:
    """Whether more proposals are worth their time."""
    weights = proposals.weights
    assert weights is not None
    few = weights.ess < WANTED_EFFICIENCY * proposals.chains * draws
    return few or weights.lost > NOTABLY_LOST or _heavy(weights) or not weights.reliable


def _settle(proposals: Proposals, draws: int, mode: Mode, rng: np.random.Generator) -> Draws:
    """Resample by the weights, if there are any; otherwise take the first draws as they are."""
    weights = proposals.weights
    resampled = weights is not None and mode != "raw"
    if weights is not None and resampled:
        # rounds come from different distributions: in their order, a chain would seem to drift
        order = rng.permuted(np.broadcast_to(np.arange(weights.weights.shape[1]), weights.weights.shape), axis=1)
        index = np.take_along_axis(order, resample(np.take_along_axis(weights.weights, order, axis=1), draws, rng), 1)
    else:
        index = np.broadcast_to(np.arange(draws), (proposals.chains, draws))
    settled = weights is not None and good_enough(weights, index.size)
    stage: Stage = "raw" if not resampled else "psis" if settled else "failed"
    unsure = mode == "start" or (mode == "adapted" and not settled)
    rows = np.arange(proposals.chains)[:, None]
    return Draws(
        proposals.theta[rows, index],
        proposals.log_q[rows, index],
        proposals.log_p[rows, index],
        proposals.log_weights,
        weights,
        proposals.undefined,
        stage,
        Start.of(proposals.theta, proposals.log_weights, rng) if unsure else None,
    )


def good_enough(weights: Weights, draws: int) -> bool:
    """Whether weights can be trusted, and are worth enough of the draws asked for."""
    enough = weights.ess >= min(FEWEST_EFFECTIVE, draws / 2)
    return weights.reliable and enough and not _heavy(weights)


def _heavy(weights: Weights) -> bool:
    """Whether single weights, or a tail without a variance, count for much."""
    light = weights.pareto_k <= FINITE_VARIANCE or weights.ess >= WANTED_EFFICIENCY * weights.weights.size
    return weights.heaviest > HEAVIEST or not (light or weights.harmless)


def sample_stats(results: list[Draws]) -> dict[str, tuple[list[str], np.ndarray]]:
    """Collect what is known of draws, proposals and data sets: name -> (dims, ndarray (datasets, *dims))."""
    per_draw = ["chain", "draw"]
    stats: dict[str, tuple[list[str], np.ndarray]] = {
        "stage": ([], np.array([r.stage for r in results])),
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
