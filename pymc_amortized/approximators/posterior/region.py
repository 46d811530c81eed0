r"""The prior, truncated to where the posterior of one data set lies.

The region is the highest-density region of the network's posterior at the data (Deistler et al. 2022, arXiv
2210.04815):

.. math::

    \{\theta : \log q(\theta \mid x_o) \ge t\}, \qquad q(\log q \ge t) = 1 - 10^{-4}.

Training on simulations from the prior truncated to it gives the posterior at :math:`x_o` without any change of the
loss: inside the region the truncated prior is the prior, but for a constant. Where draws corrected by the model's
density are known, the region is made to hold them too.

Draws of the prior that fall inside are taken where they are many. Elsewhere an ensemble of Markov chains moves within
the region by differences of its own members (ter Braak 2006, *Statistics and Computing* 16), one half in turn by those
of the other; it needs the prior's density and no tuning, whatever the region's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pymc_amortized.correction.approximation import Approximation

LogDensityOf = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Region:
    """Where the posterior of one data set lies.

    Attributes
    ----------
    approximation : Approximation
        That posterior.
    threshold : float
        Smallest log density inside.
    """

    approximation: Approximation
    threshold: float

    @classmethod
    def around(cls, approximation: Approximation, corrected: np.ndarray | None, generator: torch.Generator) -> Region:
        """Find the region; `corrected` draws (n, dim) lie inside."""
        _, log_q = approximation.sample(20_000, generator)  # two of them fall below the threshold
        threshold = float(np.quantile(log_q, 1e-4))  # the mass outside, as in the paper
        region = cls(approximation, threshold)
        if corrected is not None and len(corrected):
            threshold = min(threshold, float(region.log_q(corrected).min()))
        return cls(approximation, threshold)

    def log_q(self, theta: np.ndarray, block: int = 2**15) -> np.ndarray:
        """Log density of the network (n,) at theta (n, dim), a block at a time."""
        starts = range(0, len(theta), block)
        parts = [self.approximation.log_prob(theta[start : start + block, None])[:, 0] for start in starts]
        return np.concatenate(parts) if parts else np.empty(0)

    def holds(self, theta: np.ndarray) -> np.ndarray:
        """Tell which theta (n, dim) lie inside: (n,)."""
        return self.log_q(theta) >= self.threshold

    def sample(
        self,
        n: int,
        log_prior: LogDensityOf,
        rng: np.random.Generator,
        generator: torch.Generator,
        chains: int = 1024,
    ) -> np.ndarray:
        """Draw from the prior inside the region, by its density: (n, dim)."""

        def target(theta: np.ndarray) -> np.ndarray:
            log_density = np.full(len(theta), -np.inf)
            inside = self.holds(theta)
            log_density[inside] = np.nan_to_num(log_prior(theta[inside]), nan=-np.inf)
            return log_density

        theta, log_q = (part[:, 0] for part in self.approximation.sample(8 * chains, generator))
        log_weights = target(theta) - log_q
        log_weights = np.where(np.isfinite(log_weights), log_weights, -np.inf)
        if np.isfinite(log_weights).sum() < 2 * theta.shape[1] + 2:
            raise ValueError("the prior has no density where the network's posterior of this data set lies")
        weights = np.exp(log_weights - log_weights.max())
        start = theta[rng.choice(len(theta), chains, p=weights / weights.sum())]
        burn_in = 30 + 4 * theta.shape[1]  # from draws of the posterior to the region's edge
        kept = ensemble(target, start, burn_in=burn_in, keep=-(-n // chains), thin=5, rng=rng)
        return kept[rng.permutation(len(kept))[:n]]


def ensemble(
    target: LogDensityOf,
    start: np.ndarray,
    *,
    burn_in: int,
    keep: int,
    thin: int,
    rng: np.random.Generator,
    long_jumps: float = 0.1,
    jitter: float = 1e-4,
) -> np.ndarray:
    """Run differential evolution Markov chains.

    Parameters
    ----------
    target : callable
        theta (n, dim) -> log density (n,), but for a constant.
    start : ndarray (chains, dim)
        An even number of chains, more than twice the dimension.
    burn_in, keep, thin : int
        Moves before the first states that are kept, how many times all states are kept, and moves between these.
    rng : numpy.random.Generator
    long_jumps : float
        Share of moves by whole differences, which lead from mode to mode (ter Braak 2006).
    jitter : float
        Scale of the noise of a move, in standard deviations of the ensemble: so that every point can be reached.

    Returns
    -------
    ndarray (keep * chains, dim)
    """
    theta, log_density = start.copy(), target(start)
    halves = np.array_split(np.arange(len(theta)), 2)
    kept = []
    for move in range(burn_in + thin * keep):
        for mine, others in (halves, halves[::-1]):
            first, second = _pairs(others, len(mine), rng)
            jump = 2.38 / np.sqrt(2 * theta.shape[1]) * np.exp(rng.normal(0, 0.3, size=(len(mine), 1)))
            jump = np.where(rng.random((len(mine), 1)) < long_jumps, 1.0, jump)
            noise = jitter * theta[others].std(axis=0) * rng.normal(size=(len(mine), theta.shape[1]))
            proposed = theta[mine] + jump * (theta[first] - theta[second]) + noise
            new = target(proposed)
            accepted = np.log(rng.random(len(mine))) < new - log_density[mine]
            theta[mine[accepted]], log_density[mine[accepted]] = proposed[accepted], new[accepted]
        if move >= burn_in and (move - burn_in) % thin == thin - 1:
            kept.append(theta.copy())
    return np.concatenate(kept)


def _pairs(among: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two different members for each of `n`."""
    first = rng.integers(len(among), size=n)
    second = (first + rng.integers(1, len(among), size=n)) % len(among)
    return among[first], among[second]
