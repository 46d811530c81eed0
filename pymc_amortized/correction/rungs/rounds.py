"""Rounds of proposals for several data sets at once, and the rungs of the ladder that make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pymc_amortized.correction.draws import Request
from pymc_amortized.correction.proposals import Proposals, add_each
from pymc_amortized.correction.target import Source

AT_ONCE = 2**17
"""Proposals that are drawn at once: enough to keep the processor busy, few enough for its caches."""


class ProposingRung(Protocol):
    """A rung of the ladder that adds proposals where weights are poor."""

    def settle(self, rounds: Rounds, seed: np.random.SeedSequence) -> None:
        """Propose for the data sets that are pending."""
        ...


class Rounds:
    """Rounds of proposals for several data sets.

    Parameters
    ----------
    source : Source
    sets : dict of int to Proposals
        What was proposed for each data set.
    request : Request
        Also says how long they may go on.
    seed : numpy.random.SeedSequence
        Of the network's draws.
    """

    def __init__(
        self, source: Source, sets: dict[int, Proposals], request: Request, seed: np.random.SeedSequence
    ) -> None:
        self.sets, self.made = sets, 0
        self._source, self._request = source, request
        self._chains = next(iter(sets.values())).chains
        self.first = (request.first if source.log_density else request.draws) * request.chains // self._chains
        self._pending = list(sets)
        self._generator = torch.Generator(device=source.device)
        self._generator.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))

    def climb(self, rungs: Sequence[ProposingRung], seed: np.random.SeedSequence, *, searched: bool = True) -> None:
        """Climb rungs until the weights of all data sets are good; without a density, the first alone.

        Parameters
        ----------
        rungs : sequence of ProposingRung
        seed : numpy.random.SeedSequence
        searched : bool
            Whether every data set is searched for modes that the first rung does not know.
        """
        rungs[0].settle(self, seed)
        if self._source.log_density is None:
            return
        if searched:
            self.search(np.random.default_rng(seed.spawn(1)[0]))
        with self._request.budget.running():
            for rung in rungs[1:]:
                if not self.still_poor():
                    return
                rung.settle(self, seed)

    def network(self, multiple: int) -> None:
        """Let the network propose, up to `multiple` times the first number."""
        per_chain = self.first * (multiple - self.made)
        self.made = multiple
        for some in self._blocks(self._pending, per_chain):
            theta, log_q = self._source.propose(np.asarray(some), per_chain * self._chains, self._generator)
            self._add(some, theta, log_q)

    def search(self, rng: np.random.Generator) -> None:
        """Look for modes, and propose from them where there are several, or weights are poor."""
        for some in self._blocks(list(self.sets), self.first):
            found = self._source.search(np.asarray(some), [self.sets[i] for i in some])
            more = []
            for i, modes in zip(some, found, strict=True):
                # one mode of a funnel is without its neck
                poor = self._poor(i) and not self.sets[i].funnel
                if modes is not None and (len(modes.shares) > 1 or poor):
                    self.sets[i].planned, self.sets[i].modes = [modes] * self._chains, len(modes.shares)
                    more.append(i)
            if more:
                self._adapted(more, self.first, 0.0, rng)

    def adapted(self, per_chain: int, rng: np.random.Generator, multiple: int | None = None) -> None:
        """Propose from what was found so far, and from the network as far as that is better.

        Data sets for which the network's would be too few, even if they were `multiple` times the first, are given up.
        """
        alike: dict[float, list[int]] = {}
        for i in self._pending:
            alike.setdefault(self.sets[i].plan(rng), []).append(i)
        if multiple is not None and 1.0 in alike:
            most = multiple * self.first * self._chains
            alike[1.0] = [i for i in alike[1.0] if not self.sets[i].hopeless(most)]
            self._pending = [i for indices in alike.values() for i in indices]
        for share, indices in alike.items():
            for some in self._blocks(indices, per_chain):
                self._adapted(some, per_chain, share, rng)

    def _adapted(self, some: list[int], per_chain: int, share: float, rng: np.random.Generator) -> None:
        own, which, parts = round(share * per_chain), np.asarray(some), []
        if own > 0:
            parts.append(self._source.propose(which, own * self._chains, self._generator))
        if own < per_chain:
            theta = np.stack([self.sets[i].adapted(per_chain - own, rng) for i in some], axis=1)
            parts.append((theta, self._source.log_prob(theta, which)))
        theta, log_q = (
            np.concatenate([v.reshape(self._chains, -1, *v.shape[1:]) for v in values], axis=1)
            for values in zip(*parts, strict=True)
        )
        self._add(some, theta.reshape(-1, *theta.shape[2:]), log_q.reshape(-1, len(some)))

    def still_poor(self) -> bool:
        """Whether there are data sets for which more proposals are worth their time; only these stay pending."""
        self._pending = [i for i in self._pending if self._poor(i)]
        return bool(self._pending) and self._request.budget.left > 0

    def _poor(self, index: int) -> bool:
        return self.sets[index].want_more(self._request.draws * self._request.chains)

    def _add(self, indices: list[int], theta: np.ndarray, log_q: np.ndarray) -> None:
        log_density = self._source.log_density
        theta = np.ascontiguousarray(theta.swapaxes(0, 1))
        log_p = (
            np.stack([log_density(mine, i) for mine, i in zip(theta, indices, strict=True)]) if log_density else None
        )
        add_each([self.sets[i] for i in indices], theta, np.ascontiguousarray(log_q.T), log_p)

    def _blocks(self, indices: list[int], per_chain: int) -> Iterator[list[int]]:
        largest = max(1, AT_ONCE // per_chain)
        for start in range(0, len(indices), largest):
            yield indices[start : start + largest]


@dataclass(frozen=True)
class Network:
    """Importance weights of the network's draws, so many times as many as in the first round."""

    multiple: int = 1

    def settle(self, rounds: Rounds, seed: np.random.SeedSequence) -> None:
        """Propose for the data sets that are pending."""
        rounds.network(self.multiple)


@dataclass(frozen=True)
class Mixture:
    """Importance weights of a mixture: of the network, and of Student t distributions around what was found.

    Attributes
    ----------
    multiple : int
        Times as many proposals as in the first round, in all.
    rounds : int
        In which the further ones come: `benchmarks/escalation.py` settles more data sets with more and smaller rounds,
        few of them by the network's alone.
    """

    multiple: int = 16
    rounds: int = 5

    def settle(self, rounds: Rounds, seed: np.random.SeedSequence) -> None:
        """Propose for the data sets that are pending."""
        rng = np.random.default_rng(seed.spawn(1)[0])
        each = -(-rounds.first * (self.multiple - rounds.made) // self.rounds)
        for number in range(self.rounds):
            rounds.adapted(each, rng, self.multiple)
            # of weights that were poor, the first that look good may only lack their largest
            if number and not rounds.still_poor():
                return
