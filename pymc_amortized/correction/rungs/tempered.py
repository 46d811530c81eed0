"""The rung for posteriors of several modes: tempered particles find them, and weights correct what they find.

Populations of particles go from the prior's scale to the posterior
(:mod:`pymc_amortized.numerics.sampling.tempering`). Mixtures fitted to them propose, and importance weights judge these
proposals as they judge all others. Where no mixture is like the posterior, the particles themselves are the draws, if
independent populations agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.draws import Draws, Failure, Request
from pymc_amortized.correction.proposals import Component, Proposals
from pymc_amortized.correction.rungs.rounds import Rounds
from pymc_amortized.correction.target import PosteriorTarget
from pymc_amortized.numerics.sampling.mixture import StudentMixture
from pymc_amortized.numerics.sampling.tempering import Particles, temper
from pymc_amortized.numerics.thresholds import THRESHOLDS

POPULATIONS = 4
"""That R-hat should compare (Vehtari et al. 2021)."""


@dataclass(frozen=True)
class Tempered:
    """The rung of tempered particles, one data set after the other, each twice if need be.

    Attributes
    ----------
    several : bool
        Whether it takes the data sets alone of which several modes were seen, or may have been.
    particles : tuple of int
        In each population, of the first attempt and of the second.
    components : int
        Of the mixture that is fitted to a population, at most.
    most : int
        Parameters beyond which populations of that size find nothing.
    few : int
        Parameters up to which chains of weights that disagree are taken for a sign of several modes: of more, heavy
        tails are as likely, and NUTS is quicker.
    """

    several: bool = False
    particles: tuple[int, ...] = (500, 2000)
    components: int = 12
    most: int = 30
    few: int = 12

    def obstacle(self, target: PosteriorTarget, index: int) -> str | None:
        """Why the density of a data set cannot be evaluated; None where it can."""
        return target.obstacles[index]

    def takes(self, draws: Draws) -> bool:
        """Whether it is the rung for a data set that is not settled yet."""
        dim = draws.theta.shape[-1]
        disagree = draws.weights is not None and draws.weights.r_hat > THRESHOLDS.r_hat
        stopped = draws.failure is not None and not draws.failure.reached
        fresh = draws.rung != "smc" and not stopped and dim <= self.most
        return fresh and (not self.several or draws.modes > 1 or (disagree and dim <= self.few))

    def settle(
        self,
        draws: Sequence[Draws],
        indices: Sequence[int],
        target: PosteriorTarget,
        request: Request,
        seed: np.random.SeedSequence,
    ) -> list[Draws]:
        """Replace the draws of some of all data sets; what is not settled then is marked."""
        if target.funnel:
            # particles enter its neck too seldom, and do not tell: NUTS comes first, then they may find several modes
            indices = [i for i in indices if draws[i].modes > 1 and not self.several]
        if not indices:
            return list(draws)
        results, left = list(draws), set(indices)
        stopped = request.budget.over
        seeds = dict(zip(indices, seed.spawn(len(indices)), strict=True))
        try:
            with request.budget.running():
                for index in request.budget.each(list(indices), "tempered particles", len(draws)):
                    if request.budget.left <= 0:
                        break
                    found = self._settled(index, results[index], target, request, seeds[index])
                    if found is not None:
                        results[index] = found
                        left.remove(index)
        except KeyboardInterrupt:
            request.budget.interrupt()
            stopped = request.budget.over
        for i in left:
            results[i] = replace(results[i], failure=Failure(stopped, reached=False))
        return results

    def _settled(
        self, index: int, before: Draws, target: PosteriorTarget, request: Request, seed: np.random.SeedSequence
    ) -> Draws | None:
        """Draws of one data set; None at the deadline."""
        result = before
        for number, child in zip(self.particles, seed.spawn(len(self.particles)), strict=True):
            particle_seed, proposal_seed, draw_seed = child.spawn(3)
            particles = populate(target, index, number, particle_seed, request.budget.deadline)
            if particles is None:
                if request.budget.left <= 0:
                    return None if result is before else result
                failure = Failure("tempered particles found no place of positive density")
                return replace(before, failure=failure, rung="smc")
            rng = np.random.default_rng(draw_seed)
            proposals = propose_from(target, index, particles, request, proposal_seed, self.components)
            result = replace(Draws.of(proposals, request, rng, rung="tempered"), start=before.start, modes=before.modes)
            if result.settled:
                return result
            result = self._particles(index, result, particles, target, request, rng)
            if result.settled:
                return result
        return result

    def _particles(
        self,
        index: int,
        before: Draws,
        particles: Particles,
        target: PosteriorTarget,
        request: Request,
        rng: np.random.Generator,
    ) -> Draws:
        """The particles as draws, marked where populations do not agree or are too few."""
        theta = target.gathered(index, unstandardized(target, particles.z))
        found = Convergence.of(theta, 0, target.spec.circular)
        rows = np.linspace(0, theta.shape[0] * theta.shape[1] - 1, request.chains * request.draws).round().astype(int)
        flat = target.scattered(index, theta.reshape(-1, theta.shape[-1])[rows], rng)
        shape = request.chains, request.draws
        log_q = target.log_q(flat[:, None], np.array([index]))[:, 0]
        failure = None
        if not found.converged:
            failure = Failure("populations of tempered particles do not agree", str(found))
        elif not particles.drift <= THRESHOLDS.drift:
            failure = Failure("tempered particles still drift", f"by {particles.drift:.1f} standard errors of a mean")
        return replace(
            before.sampled(found),
            theta=flat.reshape(*shape, -1),
            log_q=log_q.reshape(shape),
            log_p=target.log_p(flat, index).reshape(shape),
            rung="smc",
            failure=failure,
        )


def populate(
    target: PosteriorTarget, index: int, number: int, seed: np.random.SeedSequence, deadline: float
) -> Particles | None:
    """Populations of tempered particles from the posterior of one data set, in units of the prior."""

    def log_density(z: np.ndarray) -> np.ndarray:
        theta, log_det = target.standardizer.inverse(torch.from_numpy(z))
        return target.log_p(theta.numpy(), index) - log_det.numpy()

    rng = np.random.default_rng(seed)
    return temper(log_density, target.spec.dim, populations=POPULATIONS, particles=number, rng=rng, deadline=deadline)


def propose_from(
    target: PosteriorTarget,
    index: int,
    particles: Particles,
    request: Request,
    seed: np.random.SeedSequence,
    components: int,
) -> Proposals:
    """Proposals of the network, and three times as many of mixtures that are fitted to particles."""
    network_seed, fit_seed, mixture_seed = seed.spawn(3)
    theta, rng = unstandardized(target, particles.z), np.random.default_rng(fit_seed)
    component: Component = [
        StudentMixture.fit(some, np.full(len(some), 1 / len(some)), rng, components, target.symmetries)
        for some in (theta if request.sets >= POPULATIONS else theta.reshape(1, -1, theta.shape[-1]))
    ]
    source = target.source(np.array([index]), weighted=True, defended=True)
    planned = [component[i % len(component)] for i in range(request.sets)]
    proposals = source.empty(request.sets, planned)
    rounds = Rounds(source, {0: proposals}, request, network_seed)
    rounds.network(1)
    rounds.adapted(3 * rounds.first, np.random.default_rng(mixture_seed))
    return proposals


def unstandardized(target: PosteriorTarget, z: np.ndarray) -> np.ndarray:
    """From units of the prior to unconstrained parameters (..., dim)."""
    return target.standardizer.inverse(torch.from_numpy(z))[0].numpy()
