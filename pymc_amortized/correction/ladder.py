"""The ladder from the network's draws to corrected ones: what is tried in turn until the draws of a data set are good.

A rung is an object with a method ``settle``. First come those that add proposals until importance weights are good,
for a block of data sets at a time (:mod:`pymc_amortized.correction.rungs.rounds`). Then come samplers, which replace
the draws of data sets that weights do not settle: tempered particles where several modes were seen, else NUTS
(:mod:`pymc_amortized.correction.rungs.tempered`, :mod:`pymc_amortized.correction.rungs.nuts`). A new rung is a file of
its own and a place in :data:`LADDERS`. What counts as good stands in :mod:`pymc_amortized.numerics.thresholds` alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from pymc_amortized.correction.check_results import (
    check_corrected,
    check_defined,
    check_failures,
    check_possible,
    check_symmetric,
    check_weights,
)
from pymc_amortized.correction.doubt import Doubt
from pymc_amortized.correction.draws import Draws, Failure, Request
from pymc_amortized.correction.groups import draw_groups, search_modes
from pymc_amortized.correction.proposals import Proposals
from pymc_amortized.correction.rungs.nuts import Nuts
from pymc_amortized.correction.rungs.rounds import AT_ONCE, Mixture, Network, ProposingRung, Rounds
from pymc_amortized.correction.rungs.tempered import Tempered
from pymc_amortized.correction.target import PosteriorTarget, Source
from pymc_amortized.graph.density.marginal import MarginalDensity
from pymc_amortized.logs import working


class SamplingRung(Protocol):
    """A rung that replaces the draws of data sets which weights do not settle."""

    def obstacle(self, target: PosteriorTarget, index: int) -> str | None:
        """Why a data set cannot be sampled; None where it can."""
        ...

    def takes(self, draws: Draws) -> bool:
        """Whether it is the rung for a data set that is not settled yet."""
        ...

    def settle(
        self,
        draws: Sequence[Draws],
        indices: Sequence[int],
        target: PosteriorTarget,
        request: Request,
        seed: np.random.SeedSequence,
    ) -> list[Draws]:
        """Replace the draws of some of all data sets; what is not settled then is marked, with the failure."""
        ...


@dataclass(frozen=True)
class Ladder:
    """What is tried in turn, until the draws of a data set are good.

    Attributes
    ----------
    proposing : tuple of ProposingRung
        Each adds proposals for data sets whose weights are poor.
    sampling : tuple of SamplingRung
        Each replaces the draws of data sets that are not settled yet.
    every : bool
        Whether the first of these replaces the draws of all data sets.
    resampled : bool
        Whether draws are resampled by their weights; these are computed in any case.
    defended : bool
        Whether proposals also come from distributions with heavy tails, where there is a sketch.
    """

    proposing: tuple[ProposingRung, ...]
    sampling: tuple[SamplingRung, ...] = ()
    every: bool = False
    resampled: bool = True
    defended: bool = True

    def obstacles(self, target: PosteriorTarget) -> list[str | None]:
        """Why draws of each data set stay the network's own; None where some rung corrects them."""
        found = list(target.obstacles)
        for rung in self.sampling:
            found = [obstacle and rung.obstacle(target, i) for i, obstacle in enumerate(found)]
        return found


LADDERS: dict[str | None, Ladder] = {
    None: Ladder((Network(),), resampled=False, defended=False),
    "psis": Ladder((Network(), Network(4), Network(16))),
    "auto": Ladder((Network(), Mixture()), (Tempered(several=True), Nuts(), Tempered())),
    "nuts": Ladder((Network(),), (Nuts(),), every=True),
}
"""By the name of the correction."""
FIRST = Ladder((Network(),))
"""What the first proposals and a search give."""
WEIGHED = Ladder((Network(),), resampled=False)
"""For the weights of proposals alone."""


def draw_corrected(
    target: PosteriorTarget, ladder: Ladder, request: Request, seed: np.random.SeedSequence
) -> tuple[list[Draws], list[Doubt]]:
    """Draw from the posterior of every data set, and find what speaks against the draws.

    Raises
    ------
    ValueError
        When a data set holds a value that the model cannot produce.
    """
    draws, labels = draw_proposals(target, ladder, request, seed), target.datasets.labels
    doubts = check_possible(target, draws)
    if not ladder.resampled:
        return draws, doubts + check_symmetric(target, draws)
    doubts += check_defined(draws, labels) + check_corrected(ladder.obstacles(target), labels)
    if not ladder.sampling:
        gaps = any(mask.any() for mask in target.datasets.missing.values())
        # what is said of poor weights is said once; values of groups may fail with good ones
        others = [d if d.weights and d.weights.settle(d.log_q.size) else replace(d, failure=None) for d in draws]
        return draws, doubts + check_weights(draws, labels, gaps=gaps) + check_failures(others, labels)
    request.budget.escalate()
    for number, rung in enumerate(ladder.sampling):
        every = ladder.every and number == 0
        rest = [
            i
            for i, d in enumerate(draws)
            if (every or (not d.settled and rung.takes(d))) and rung.obstacle(target, i) is None
        ]
        if rest and request.budget.left > 0:  # what is compiled would be compiled for nothing
            draws = rung.settle(draws, rest, target, request, seed.spawn(1)[0])
            settled = _with_locals(target, {i: draws[i] for i in rest}, seed)
            draws = [settled.get(i, d) for i, d in enumerate(draws)]
        elif rest:
            late = Failure(request.budget.over, reached=False)
            draws = [replace(d, failure=late) if i in rest else d for i, d in enumerate(draws)]
    return draws, doubts + check_failures(draws, labels)


def draw_proposals(
    target: PosteriorTarget, ladder: Ladder, request: Request, seed: np.random.SeedSequence
) -> list[Draws]:
    """Draw for all data sets by the proposing rungs; those without a density stay as the network draws them."""
    free = np.array([obstacle is None for obstacle in target.obstacles])
    results: dict[int, Draws] = {}
    for weighted, child in zip((True, False), seed.spawn(2), strict=True):
        indices = np.flatnonzero(free == weighted)
        if len(indices) == 0:
            continue
        source = target.source(indices, weighted=weighted, defended=weighted and ladder.defended)
        drawn = propose(source, len(indices), ladder, request, child)
        results |= dict(zip(indices.tolist(), drawn, strict=True))
        if weighted:  # what is disproved at the draws is drawn again, without weights
            free[[i for i in indices.tolist() if target.disprove(i, results[i].theta)]] = False
            if ladder.resampled:
                results |= _with_locals(target, results, seed)
    return [results[i] for i in range(len(free))]


def _with_locals(target: PosteriorTarget, draws: Mapping[int, Draws], seed: np.random.SeedSequence) -> dict[int, Draws]:
    """Add locals to settled draws of some data sets that have none, and mark where locals cannot be trusted.

    Chains of NUTS have locals, but all of them may have begun at one of several modes.
    """
    density = target.log_density
    if not isinstance(density, MarginalDensity):
        return dict(draws)
    without = [i for i, d in draws.items() if d.settled and d.locals is None]
    seeds = dict(zip(without, seed.spawn(len(without)), strict=True))
    found = {i: draw_groups(density, target.given(i), draws[i].theta, seeds[i]) for i in without}
    with_locals = {
        i: replace(draws[i], locals=groups.values, pareto_k_of_groups=groups.pareto_k, failure=groups.failure)
        for i, groups in found.items()
    }
    sampled = [i for i, d in draws.items() if d.settled and d.locals is not None and target.obstacles[i] is None]
    marked = {i: replace(draws[i], failure=search_modes(density, target.given(i), draws[i].theta)) for i in sampled}
    return dict(draws) | with_locals | marked


def propose(source: Source, number: int, ladder: Ladder, request: Request, seed: np.random.SeedSequence) -> list[Draws]:
    """Draw for `number` data sets of a source, block by block."""
    block = max(1, AT_ONCE // (request.first * request.chains))
    starts = range(0, number, block)
    results: list[Draws] = []
    for start, child in zip(starts, seed.spawn(len(starts)), strict=True):
        indices = range(start, min(start + block, number))
        torch_seed, resampling_seed = child.spawn(2)
        which = f" for data sets {start + 1:,} to {indices.stop:,} of {number:,}" if number > 1 else ""
        with working(f"Drawing and weighing{which}"):
            try:
                rounds = _climbed(source, indices, ladder, request, child, torch_seed)
            except KeyboardInterrupt:
                if not request.budget.interruptible:
                    raise
                request.budget.interrupt()  # these were left in the middle: the first proposals are made again
                rounds = _climbed(source, indices, ladder, request, child, torch_seed)
        rng = np.random.default_rng(resampling_seed)
        results += [
            Draws.of(proposals, request, rng, rung=_rung(proposals, ladder), unsure=ladder.every)
            for proposals in rounds.sets.values()
        ]
    return results


def _climbed(
    source: Source,
    indices: Sequence[int],
    ladder: Ladder,
    request: Request,
    seed: np.random.SeedSequence,
    torch_seed: np.random.SeedSequence,
) -> Rounds:
    """Propose for some data sets, as far as time allows."""
    chains = request.sets if source.log_density else request.chains
    rounds = Rounds(source, {i: source.empty(chains) for i in indices}, request, torch_seed)
    rounds.climb(ladder.proposing, seed, searched=ladder.resampled)
    return rounds


def _rung(proposals: Proposals, ladder: Ladder) -> str:
    if proposals.weights is None or not ladder.resampled:
        return "raw"
    return "mixture" if proposals.mixed else "weights"
