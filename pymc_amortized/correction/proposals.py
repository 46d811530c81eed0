r"""Proposals from a mixture of the network and what its proposals have found.

Where a network's own draws make poor weights, further proposals come from Student t distributions with the mean and the
covariance of the weighted draws so far, round by round (adaptive multiple importance sampling: Cornuet et al. 2012,
Scandinavian Journal of Statistics 39(4)). A draw's weight is the model's density over that of the whole mixture,

.. math:: w = \frac{p(\theta, y)}{\frac1N \sum_r n_r q_r(\theta)},

wherever it came from (the balance heuristic: Veach & Guibas 1995): bounded where either the network or a t has mass,
so that the network's proposals that missed the posterior count for little. Each chain has its own components, from its
own draws: what one chain has not found, the others may, and R-hat sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import linalg, special

from pymc_amortized.numerics.importance import Weights, smooth, tempered
from pymc_amortized.numerics.student_t import draw_student_t, log_student_t
from pymc_amortized.numerics.whitening import Whitening


@dataclass(eq=False)
class Proposals:
    """Proposals for one data set, growing until their weights are good enough.

    Attributes
    ----------
    chains : int
    defended : bool
        Whether a good part of what the network proposes has heavy tails.
    undefined : int
        Proposals at which the model's log density was NaN or +inf.
    weights : Weights or None
        Without a density, there are none.
    planned : component or None
        What further draws come from; by default, a distribution that is adapted to all draws so far.
    """

    chains: int
    defended: bool = False
    undefined: int = 0
    weights: Weights | None = None
    planned: _Component | None = None
    _theta: list[np.ndarray] = field(default_factory=list)
    _log_q: list[np.ndarray] = field(default_factory=list)
    _log_p: list[np.ndarray] = field(default_factory=list)
    _components: list[tuple[int, _Component]] = field(default_factory=list)

    def add(self, theta: np.ndarray, log_q: np.ndarray, log_p: np.ndarray | None = None) -> None:
        """Deal out draws (n, dim) to the chains, with log densities (n,) of the network and, if it has one, the model.

        Where the model's density is not a number, a draw gets no weight.
        """
        known = np.full(len(theta), np.nan)
        if log_p is not None:
            undefined = np.isnan(log_p) | (log_p == np.inf)
            self.undefined += int(undefined.sum())
            known = np.where(undefined, -np.inf, log_p)
        for parts, values in ((self._theta, theta), (self._log_q, log_q), (self._log_p, known)):
            parts.append(values.reshape(self.chains, -1, *values.shape[1:]))
        if log_p is not None:
            self.weights = smooth(self.log_weights, defended=self.defended or self.mixed)

    def adapted(self, per_chain: int, rng: np.random.Generator) -> np.ndarray:
        """Add a component to each chain's mixture, and draw from it: (chains * per_chain, dim)."""
        component = self.planned or _Component.of(self.theta, self.log_weights)
        self._components.append((per_chain, component))
        return component.draw(per_chain, rng).reshape(-1, self._theta[0].shape[-1])

    def want_more(self, draws: int) -> bool:
        """Whether more proposals are worth their time, for so many draws per chain."""
        return self.weights is not None and self.weights.want_more(self.chains * draws)

    @property
    def mixed(self) -> bool:
        """Whether some are adapted to what was found before."""
        return bool(self._components)

    def successor(self) -> Proposals:
        """Return empty proposals, whose component is adapted to these."""
        return Proposals(self.chains, self.defended, planned=_Component.of(self.theta, self.log_weights))

    @property
    def theta(self) -> np.ndarray:
        """All proposals (chains, proposals, dim)."""
        return np.concatenate(self._theta, axis=1)

    @property
    def log_q(self) -> np.ndarray:
        """The network's log density at them (chains, proposals)."""
        return np.concatenate(self._log_q, axis=1)

    @property
    def log_p(self) -> np.ndarray:
        """The model's log density at them (chains, proposals)."""
        return np.concatenate(self._log_p, axis=1)

    @property
    def log_weights(self) -> np.ndarray:
        """Raw log weights (chains, proposals)."""
        return self.log_p - self._log_mixture()

    def _log_mixture(self) -> np.ndarray:
        log_q = self.log_q
        if not self._components:
            return log_q
        n = log_q.shape[1]
        drawn = sum(number for number, _ in self._components)
        # a network that cannot say has nothing there
        terms = [np.nan_to_num(log_q, nan=-np.inf, posinf=np.inf) + np.log((n - drawn) / n)]
        theta = self.theta
        terms += [component.log_density(theta) + np.log(number / n) for number, component in self._components]
        return special.logsumexp(terms, axis=0)


@dataclass(frozen=True, eq=False)
class _Component:
    """A Student t distribution for each chain, standard in whitened coordinates: scales may differ by any factor.

    With 5 degrees of freedom, tails are heavier than most posteriors', and have a variance.
    """

    places: list[Whitening]
    freedom: float = 5.0

    @classmethod
    def of(cls, theta: np.ndarray, log_weights: np.ndarray) -> _Component:
        pairs = zip(theta, log_weights, strict=True)
        return cls([Whitening.of(draws, tempered(some, draws.shape[1])) for draws, some in pairs])

    def draw(self, per_chain: int, rng: np.random.Generator) -> np.ndarray:
        """Draw (chains, per_chain, dim)."""
        return np.stack([p.theta(draw_student_t(per_chain, len(p.mean), self.freedom, rng)) for p in self.places])

    def log_density(self, theta: np.ndarray) -> np.ndarray:
        """Log densities (chains, n) at theta (chains, n, dim), by the chain's own distribution."""
        found = []
        for place, t in zip(self.places, theta, strict=True):
            z = linalg.solve_triangular(place.factor, (t - place.mean).T, lower=True)
            density = log_student_t(np.square(z).sum(axis=0), len(z), self.freedom)
            found.append(density - np.log(np.diag(place.factor)).sum())
        return np.stack(found)
