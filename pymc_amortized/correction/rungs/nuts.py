"""NUTS for the data sets that weights do not settle.

Chains start from dispersed draws of what is known of a posterior and run in coordinates whitened by it
(:mod:`pymc_amortized.graph.nuts.whitened`). A run that did not converge is repeated once, longer and more carefully, in
coordinates that the first one learned; what then still fails is marked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pymc_amortized.correction.budget import Budget
from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.draws import Draws, Failure, Request, Start
from pymc_amortized.correction.target import PosteriorTarget
from pymc_amortized.graph.nuts.pymc_sampler import Chains, OutOfTimeError, Settings
from pymc_amortized.graph.nuts.samplers import NoGradientError
from pymc_amortized.numerics.sampling.mixture import StudentMixture
from pymc_amortized.numerics.sampling.whitening import Whitening
from pymc_amortized.numerics.threads import TURN
from pymc_amortized.numerics.thresholds import THRESHOLDS

FOR_LOCALS = 1000
"""Draws by which locals are standardized."""
POINTS = 64
"""Of those that lie far from all chains, from which others start."""


@dataclass(frozen=True)
class Nuts:
    """The rung of NUTS, one data set after the other, each twice if need be.

    Attributes
    ----------
    fewest_chains : int
        That R-hat should compare (Vehtari et al. 2021), however many are returned.
    most_chains : int
        Beyond which fewer are run, and cut: each has to be tuned.
    fewest_draws : int
        Per chain: enough for R-hat and tail ESS to meet their thresholds when chains mix well.
    tune : int
        Less than PyMC's 1,000: the mass matrix is nearly right from the start.
    target_accept : tuple of float
        Of the first attempt, PyMC's default, and of the second, what it advises after divergences.
    longer : int
        Times as many tuning steps and draws in the second attempt.
    """

    fewest_chains: int = 4
    most_chains: int = 16
    fewest_draws: int = 500
    tune: int = 500
    target_accept: tuple[float, ...] = (0.8, 0.95)
    longer: int = 3

    def obstacle(self, target: PosteriorTarget, index: int) -> str | None:
        """Why NUTS cannot sample for a data set: the density, or what is missing. None where it can."""
        return target.sampling_obstacle(index)

    def takes(self, draws: Draws) -> bool:
        """It takes what is left, but for several modes: chains do not go from one to the other."""
        return draws.rung != "smc"

    def settle(
        self,
        draws: Sequence[Draws],
        indices: Sequence[int],
        target: PosteriorTarget,
        request: Request,
        seed: np.random.SeedSequence,
    ) -> list[Draws]:
        """Replace the draws of some of all data sets, as far as is asked for; mark what is not settled then."""
        results = list(draws)
        allowed = list(indices[: request.max_nuts])
        stopped, reached = f"max_nuts={request.max_nuts} was reached", False
        left = set(indices)
        if allowed:
            runs, seeds = _Runs(self, target, request.budget), dict(zip(allowed, seed.spawn(len(allowed)), strict=True))
            try:
                with request.budget.running():
                    for index in request.budget.each(allowed, "NUTS", len(results)):
                        results[index] = runs(index, results[index], seeds[index])
                        left.remove(index)
            except OutOfTimeError:
                stopped = request.budget.over
            except KeyboardInterrupt:
                request.budget.interrupt()
                stopped = request.budget.over
            except NoGradientError as error:
                stopped, reached = f"the model has no gradient, which NUTS needs ({error})", True
        for i in left:
            results[i] = replace(results[i], failure=Failure(stopped, reached=reached))
        return results


@dataclass(frozen=True, eq=False)
class Far:
    """Mass that seems to lie far from all chains, its Monte Carlo error, and proposals there (n, dim)."""

    mass: float
    error: float
    points: np.ndarray

    def __str__(self) -> str:
        away = f"more than {THRESHOLDS.elsewhere:.0f} sds from all chains"
        return f"{self.mass:.1%} +- {self.error:.1%} of the mass lie {away}, and chains from there do not come back"


class _Runs:
    """NUTS for one data set after the other, until time is up."""

    def __init__(self, nuts: Nuts, target: PosteriorTarget, budget: Budget) -> None:
        self._nuts, self._target, self._budget = nuts, target, budget

    def __call__(self, index: int, before: Draws, seed: np.random.SeedSequence) -> Draws:
        """Sample for one data set, twice if need be.

        Raises
        ------
        OutOfTimeError, NoGradientError
        """
        start = before.start
        if start is None:  # without weights, draws count alike
            unknown = np.full(before.log_q.shape, np.nan)
            start = Start.of(before.theta, unknown, np.random.default_rng(seed.spawn(1)[0]))
        start = self._with_locals(index, before, start, seed)
        best: tuple[Chains, Convergence] | None = None
        reason = ""
        for attempt, child in enumerate(seed.spawn(len(self._nuts.target_accept))):
            shape = before.log_q.shape
            try:
                chains = self._sample(index, start, self._settings(shape, attempt), child)
            except OutOfTimeError:
                if best is None or not best[1].converged:
                    raise
                break  # the first attempt was good enough, but for a few divergences
            except RuntimeError as error:  # no chain found a point to start from
                reason = str(error).strip().splitlines()[0]
                continue
            chains = replace(chains, z=self._target.gathered(index, chains.z))
            found = self._convergence(chains.z, chains.divergences)
            best = chains, found  # the second one is longer: what it finds counts
            if found.converged and chains.divergences == 0:
                break
            start = _learned(chains.z, start, child)
        if best is None:
            return replace(before, failure=Failure("NUTS stopped", reason))
        judged = self._judged(self._result(index, before, *best))
        if judged.settled and (far := self._elsewhere(index, before, judged)):
            judged = self._visited(index, judged, best[0], start, far, seed.spawn(1)[0])
        rng = np.random.default_rng(seed.spawn(1)[0])
        return replace(judged, theta=self._target.scattered(index, judged.theta, rng))

    def _convergence(self, z: np.ndarray, divergences: int) -> Convergence:
        circular = self._target.spec.circular
        return Convergence.of(z, divergences, np.pad(circular, (0, z.shape[-1] - len(circular))))

    def _with_locals(self, index: int, before: Draws, start: Start, seed: np.random.SeedSequence) -> Start:
        """Begin with locals too, drawn given some draws of the parameters."""
        if not self._target.spec.locals:
            return start
        rng = np.random.default_rng(seed.spawn(1)[0])
        some = rng.choice(before.theta.reshape(-1, before.theta.shape[-1]), FOR_LOCALS)
        full = self._target.with_locals(some, index, rng)
        full = full[np.isfinite(full).all(axis=1)]
        return Start(Whitening.of(full, np.full(len(full), 1 / len(full))), full[: len(start.points)])

    def _judged(self, result: Draws) -> Draws:
        """Mark draws of chains that did not converge."""
        convergence = result.convergence
        assert convergence is not None
        if convergence.converged:
            return result
        return replace(result, failure=Failure("chains of NUTS did not converge", str(convergence)))

    def _visited(
        self, index: int, result: Draws, chains: Chains, start: Start, far: Far, seed: np.random.SeedSequence
    ) -> Draws:
        """Mark draws that missed a mode: chains that start far away, where there seems to be mass, do not come back.

        In many dimensions, weights alone cannot tell a mode from a tail.
        """
        points = self._target.with_locals(far.points, index, np.random.default_rng(index))
        try:
            more = self._sample(index, replace(start, points=points), self._settings(result.log_q.shape, 0), seed)
        except (OutOfTimeError, RuntimeError):
            return replace(result, failure=Failure("NUTS found one mode of several", str(far)))
        z = [chains.z, self._target.gathered(index, more.z)]
        both = np.concatenate([part[:, -min(len(part[0]) for part in z) :] for part in z])
        if self._convergence(both, 0).r_hat < THRESHOLDS.r_hat:
            return result
        return replace(result, failure=Failure("NUTS found one mode of several", str(far)))

    def _elsewhere(self, index: int, before: Draws, found: Draws) -> Far | None:
        """Find out whether a part of the posterior's mass lies far from all chains.

        The mass there is the mean weight of proposals that lie far, that near the chains the mean weight of proposals
        fitted to them.
        """
        if before.proposed is None or self._target.obstacles[index] is not None:
            return None
        theta, log_weights = before.proposed
        circular = self._target.spec.circular
        draws = found.theta.reshape(-1, theta.shape[-1])
        middle, sd = draws.mean(axis=0), draws.std(axis=0)
        symmetries = self._target.symmetries_at(index, draws)
        theta = theta if symmetries is None else symmetries.gathered(theta, middle, sd)
        far = (np.abs(theta - middle) > THRESHOLDS.elsewhere * sd)[:, ~circular].any(axis=1)
        if not far.any():
            return None
        rng = np.random.default_rng(index)
        near = StudentMixture.fit(draws, np.full(len(draws), 1 / len(draws)), rng, symmetries=symmetries)
        fitted = near.draw(1000, rng)
        log_near = self._target.log_p(fitted, index) - near.log_density(fitted)
        log_far = np.where(far, log_weights, -np.inf)
        largest = np.nanmax([*log_near, *log_far])
        if not np.isfinite(largest):
            return None
        inside, outside = (np.exp(np.nan_to_num(part - largest, nan=-np.inf)) for part in (log_near, log_far))
        mass = outside.mean() / (outside.mean() + inside.mean())
        errors = [part.std() / np.sqrt(len(part)) / max(part.mean(), 1e-300) for part in (inside, outside)]
        if not mass > THRESHOLDS.mass_elsewhere:
            return None
        some = rng.choice(len(theta), POINTS, p=outside / outside.sum())
        return Far(float(mass), float(mass * (1 - mass) * np.hypot(*errors)), theta[some])

    def _settings(self, shape: tuple[int, ...], attempt: int) -> Settings:
        """As many chains as are asked for, or fewer that are longer."""
        (chains, draws), nuts = shape, self._nuts
        factor = nuts.longer if attempt else 1
        number = next(n for n in range(min(chains, nuts.most_chains), 0, -1) if chains % n == 0)
        return Settings(
            chains=max(number, nuts.fewest_chains),
            draws=factor * max(draws * chains // number, nuts.fewest_draws),
            tune=factor * nuts.tune,
            target_accept=nuts.target_accept[attempt],
        )

    def _sample(self, index: int, start: Start, settings: Settings, seed: np.random.SeedSequence) -> Chains:
        """Run chains; those that are returned are unconstrained (chains, draws, dim)."""
        spec, samplers, data = self._target.spec, self._target.samplers, self._target.given(index)
        with self._budget.paused():
            with TURN:
                compiled = samplers.compiled_for(samplers.needs(data), spec.number_of_locals(data))
        if self._budget.left <= 0:
            raise OutOfTimeError
        run_seed, slot_seed = seed.spawn(2)
        slots = np.random.default_rng(slot_seed).normal(
            size=(len(start.points), compiled.whitened.size - compiled.whitened.dim)
        )
        starts = np.concatenate([start.whitening.z(start.points), slots], axis=1)
        values = compiled.whitened.values(data, start.whitening)
        chains = compiled.sampler(values, starts, settings, run_seed, self._budget.deadline)
        theta = start.whitening.theta(chains.z[..., : compiled.whitened.dim])
        # PyMC's density of an angle is periodic, and chains may have gone round
        (angles,) = np.nonzero(spec.circular)
        theta[..., angles] = (theta[..., angles] + np.pi) % (2 * np.pi) - np.pi
        return replace(chains, z=theta)

    def _result(self, index: int, before: Draws, chains: Chains, convergence: Convergence) -> Draws:
        """As many chains and draws as were asked for, evenly spaced."""
        shape = before.log_q.shape
        own = next(n for n in range(min(len(chains.z), shape[0]), 0, -1) if shape[0] % n == 0)
        some = np.linspace(0, chains.z.shape[1] - 1, shape[0] * shape[1] // own).round().astype(int)
        flat, dim = chains.z[:own, some].reshape(shape[0] * shape[1], -1), self._target.spec.dim
        flat, local = flat[:, :dim], flat[:, dim:]
        known = self._target.obstacles[index] is None
        log_p = self._target.log_p(flat, index) if known else np.full(len(flat), np.nan)
        log_q = self._target.log_q(flat[:, None], np.array([index]))[:, 0]
        return replace(
            before.sampled(replace(convergence, mcse=convergence.mcse[:dim])),
            locals=local.reshape(*shape, -1) if local.size else None,
            theta=flat.reshape(*shape, -1),
            log_q=log_q.reshape(shape),
            log_p=log_p.reshape(shape),
            rung="nuts",
            failure=None,
            per_draw={name: values[:own, some].reshape(shape) for name, values in chains.per_draw.items()},
        )


def _learned(theta: np.ndarray, start: Start, seed: np.random.SeedSequence) -> Start:
    """Learn from the second half of chains, which is nearer to the posterior."""
    late = theta[:, theta.shape[1] // 2 :].reshape(-1, theta.shape[-1])
    if not np.isfinite(late).all():
        return start
    points = late[np.random.default_rng(seed.spawn(1)[0]).integers(len(late), size=len(start.points))]
    return Start(Whitening.of(late, np.full(len(late), 1 / len(late))), points)
