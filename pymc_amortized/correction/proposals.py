r"""Proposals from a mixture of the network and what its proposals have found.

Where a network's own draws make poor weights, further proposals come from mixtures of Student t distributions, fitted
to the weighted draws so far, round by round (adaptive multiple importance sampling: Cornuet et al. 2012, Scandinavian
Journal of Statistics 39(4)). A draw's weight is the model's density over that of the whole mixture,

.. math:: w = \frac{p(\theta, y)}{\frac1N \sum_r n_r q_r(\theta)},

wherever it came from (the balance heuristic: Veach & Guibas 1995): bounded where either the network or a t has mass,
so that the network's proposals that missed the posterior count for little. Each chain has its own mixture, from its
own draws. What one chain has not found, the others may: weights of chains that differ are not trusted.

In each round, as many come from the network as make the weights' second moment smallest: where it is only a little off,
in many dimensions, it is better than any t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pymc_amortized.correction.convergence import weighted_r_hat
from pymc_amortized.numerics.sampling.importance import Weights, effective_size, influence, smooth_each, tempered
from pymc_amortized.numerics.sampling.mixture import StudentMixture, log_sum_exp
from pymc_amortized.numerics.sampling.symmetry import Symmetries
from pymc_amortized.numerics.thresholds import THRESHOLDS

MOST_COMPONENTS, FEWEST_FOR_SEVERAL = 8, 100.0
"""Of a mixture, and effective draws of a chain without which it has one: a few heavy draws are no modes."""
MOST_PARAMETERS = 24
"""Beyond which no mixture is fitted: a funnel of 36 parameters, of which none had the neck, had a Pareto k of 0.27."""
SHARES = 0.0, 0.5, 1.0
"""Of a round's draws, that may come from the network."""
Component = Sequence[StudentMixture]
"""What the chains propose from, one mixture for each."""


@dataclass(eq=False)
class Proposals:
    """Proposals for one data set, growing until their weights are good enough.

    Attributes
    ----------
    chains : int
        Sets of proposals whose weights are normalized each for itself.
    defended : bool
        Whether a good part of what the network proposes has heavy tails.
    undefined : int
        Proposals at which the model's log density was NaN or +inf.
    weights : Weights or None
        Without a density, there are none.
    planned : component or None
        What the next draws come from; by default, a mixture that is adapted to all draws so far.
    modes : int
        How many were found.
    symmetries : Symmetries or None
        Of the posterior.
    funnel : bool
        Whether the posterior may have a neck that mixtures do not find.
    """

    chains: int
    defended: bool = False
    undefined: int = 0
    weights: Weights | None = None
    planned: Component | None = None
    modes: int = 1
    symmetries: Symmetries | None = None
    funnel: bool = False
    _theta: list[np.ndarray] = field(default_factory=list)
    _log_q: list[np.ndarray] = field(default_factory=list)
    _log_p: list[np.ndarray] = field(default_factory=list)
    _components: list[tuple[int, Component]] = field(default_factory=list)
    _log_adapted: list[np.ndarray] = field(default_factory=list)
    _log_planned: np.ndarray | None = None

    def add(self, theta: np.ndarray, log_q: np.ndarray, log_p: np.ndarray | None = None) -> None:
        """Deal out draws (n, dim) to the chains, with log densities (n,) of the network and, if it has one, the model.

        Where the model's density is not a number, a draw gets no weight.
        """
        add_each([self], theta[None], log_q[None], None if log_p is None else log_p[None])

    def _dealt(self, theta: np.ndarray, log_q: np.ndarray, log_p: np.ndarray) -> None:
        for parts, values in ((self._theta, theta), (self._log_q, log_q), (self._log_p, log_p)):
            parts.append(values.reshape(self.chains, -1, *values.shape[1:]))
        new = [_log_density(component, self._theta[-1]) + np.log(number) for number, component in self._components]
        nothing = np.full(self._log_q[-1].shape, -np.inf)
        self._log_adapted.append(log_sum_exp(np.stack([nothing, *new], axis=-1)))

    def plan(self, rng: np.random.Generator) -> float:
        """Plan what the next draws come from; return the share of them that the network should draw."""
        if self.planned is not None:
            return SHARES[0]
        if self.funnel or self.theta.shape[-1] > MOST_PARAMETERS:
            return SHARES[-1]
        self.planned = self.fitted(rng)
        log_q, log_t = _finite(self.log_q), _log_density(self.planned, self.theta)
        self._log_planned = log_t
        weighted = np.isfinite(self.log_weights)
        if not weighted.any():
            return SHARES[0]
        log_p = (self.log_weights + self.log_p)[weighted]
        with np.errstate(divide="ignore", over="ignore"):
            second = []
            for share in SHARES:
                log_mixture = np.logaddexp(log_q + np.log(share), log_t + np.log1p(-share))[weighted]
                second.append(log_sum_exp(log_p - log_mixture))
        share = SHARES[int(np.argmin(second))]
        if share == 1:
            self.planned = self._log_planned = None
        return share

    def adapted(self, per_chain: int, rng: np.random.Generator) -> np.ndarray:
        """Add the component that is planned to each chain's mixture, and draw from it: (chains * per_chain, dim)."""
        component = self.fitted(rng) if self.planned is None else self.planned
        log_t = _log_density(component, self.theta) if self._log_planned is None else self._log_planned
        self._log_adapted = [np.logaddexp(_joined(self._log_adapted), log_t + np.log(per_chain))]
        self.planned = self._log_planned = None
        self._components.append((per_chain, component))
        return np.concatenate([mixture.draw(per_chain, rng) for mixture in component])

    def fitted(self, rng: np.random.Generator) -> Component:
        """Fit a mixture to the draws of each chain: of one component where few draws carry the weight."""
        fitted = []
        for theta, log_weights in zip(self.theta, self.log_weights, strict=True):
            weights, possible = tempered(log_weights, theta.shape[1]), log_weights.max() > -np.inf
            rich = possible and effective_size(log_weights - log_weights.max()) > FEWEST_FOR_SEVERAL
            most = MOST_COMPONENTS if rich else 1
            fitted.append(StudentMixture.fit(theta, weights, rng, most, self.symmetries))
        return fitted

    def want_more(self, draws: int) -> bool:
        """Whether more proposals are worth their time, for so many draws in all."""
        return self.weights is not None and self.weights.want_more(draws)

    def hopeless(self, most: int) -> bool:
        """Whether even so many proposals of the network, in all, would be worth too few draws."""
        found = self.weights
        return found is not None and (
            found.pareto_k > 1 or found.ess * most / found.weights.size < THRESHOLDS.fewest_effective
        )

    @property
    def mixed(self) -> bool:
        """Whether some are adapted to what was found before."""
        return bool(self._components)

    def successor(self, rng: np.random.Generator) -> Proposals:
        """Return empty proposals, whose component is adapted to these."""
        planned = self.fitted(rng)
        return Proposals(
            self.chains,
            self.defended,
            planned=planned,
            modes=self.modes,
            symmetries=self.symmetries,
            funnel=self.funnel,
        )

    @property
    def theta(self) -> np.ndarray:
        """All proposals (chains, proposals, dim)."""
        return _joined(self._theta)

    @property
    def log_q(self) -> np.ndarray:
        """The network's log density at them (chains, proposals)."""
        return _joined(self._log_q)

    @property
    def log_p(self) -> np.ndarray:
        """The model's log density at them (chains, proposals)."""
        return _joined(self._log_p)

    @property
    def log_weights(self) -> np.ndarray:
        """Raw log weights (chains, proposals)."""
        return self.log_p - self._log_mixture()

    def _influence(self) -> float:
        """Share of a variance, at most, that one proposal makes, near the heaviest of its images."""
        theta, log_weights = self.theta.reshape(-1, self.theta.shape[-1]), self.log_weights.ravel()
        if self.symmetries is not None:
            theta = self.symmetries.gathered(theta, theta[log_weights.argmax()])
        return influence(theta, log_weights)

    def _log_mixture(self) -> np.ndarray:
        log_q = self.log_q
        if not self._components:
            return log_q
        n = log_q.shape[1]
        drawn = sum(number for number, _ in self._components)
        return np.logaddexp(_finite(log_q) + np.log((n - drawn) / n), _joined(self._log_adapted) - np.log(n))


def _finite(log_q: np.ndarray) -> np.ndarray:
    """Log density of a network: one that cannot say has nothing there."""
    return np.nan_to_num(log_q, nan=-np.inf, posinf=np.inf)


def _log_density(component: Component, theta: np.ndarray) -> np.ndarray:
    """Log density (chains, n) of each chain's mixture at its draws (chains, n, dim)."""
    return np.stack([mixture.log_density(own) for mixture, own in zip(component, theta, strict=True)])


def add_each(sets: Sequence[Proposals], theta: np.ndarray, log_q: np.ndarray, log_p: np.ndarray | None = None) -> None:
    """Add draws (sets, n, dim), with log densities (sets, n), to the proposals for several data sets."""
    known = np.full(log_q.shape, np.nan)
    if log_p is not None:
        undefined = np.isnan(log_p) | (log_p == np.inf)
        known = np.where(undefined, -np.inf, log_p)
        for proposals, number in zip(sets, undefined.sum(axis=1).tolist(), strict=True):
            proposals.undefined += number
    for proposals, *values in zip(sets, theta, log_q, known, strict=True):
        proposals._dealt(*values)
    if log_p is not None:
        _weigh(sets)


def _weigh(sets: Sequence[Proposals]) -> None:
    """Weigh all proposals of each set; those of equally many at once."""
    alike: dict[tuple[int, bool], list[Proposals]] = {}
    for proposals in sets:
        number = sum(part.shape[1] for part in proposals._log_q)
        alike.setdefault((number, proposals.defended or proposals.mixed), []).append(proposals)
    for (_, defended), some in alike.items():
        weights = smooth_each(np.stack([p.log_weights for p in some]), defended=defended)
        theta, log_p, normalized = (
            np.stack(parts)
            for parts in ([p.theta for p in some], [p.log_p for p in some], [w.weights for w in weights])
        )
        r_hat = weighted_r_hat(theta, log_p, normalized)
        for proposals, found, agreement in zip(some, weights, r_hat.tolist(), strict=True):
            heavy = THRESHOLDS.influence < found.influence and found.pareto_k < np.inf
            share = proposals._influence() if heavy else found.influence
            proposals.weights = replace(found, r_hat=agreement, influence=share)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
