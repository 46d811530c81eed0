"""NUTS for the data sets that weights do not settle.

Chains start from dispersed draws of what is known of a posterior and run in coordinates whitened by it
(:mod:`pymc_amortized.graph.nuts.whitened`). A run that did not converge is repeated once, longer and more carefully, in
coordinates that the first one learned; what then still fails is marked.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.draws import Draws, Failure, Request, Start
from pymc_amortized.correction.target import PosteriorTarget
from pymc_amortized.graph.nuts.pymc_sampler import OutOfTimeError, Settings
from pymc_amortized.graph.nuts.samplers import NoGradientError
from pymc_amortized.logs import logger
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.numerics.whitening import Whitening
from pymc_amortized.training.progress import CountBar


@dataclass(frozen=True)
class Nuts:
    """The rung of NUTS, one data set after the other, each twice if need be.

    Attributes
    ----------
    fewest_chains : int
        That R-hat should compare (Vehtari et al. 2021), however many are returned.
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
    fewest_draws: int = 500
    tune: int = 500
    target_accept: tuple[float, ...] = (0.8, 0.95)
    longer: int = 3

    def obstacle(self, target: PosteriorTarget, index: int) -> str | None:
        """Why NUTS cannot sample for a data set: the density, or what is missing. None where it can."""
        return target.sampling_obstacle(index)

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
        allowed = indices[: request.max_nuts]
        stopped = f"max_nuts={request.max_nuts} was reached"
        left = set(indices)
        if allowed:
            logger.info("%d of %d data sets go to NUTS.", len(allowed), len(results))
            runs = _Runs(self, target, request.max_time)
            try:
                with CountBar("NUTS", len(allowed), shown=request.progressbar, ticking=True) as display:
                    for index, child in zip(allowed, seed.spawn(len(allowed)), strict=True):
                        results[index] = runs(index, results[index], child)
                        left.remove(index)
                        display.advance(1)
                        runs.say_how_long(len(indices) - len(left), len(allowed))
            except OutOfTimeError:
                stopped = f"max_time={request.max_time:g} was reached"
            except KeyboardInterrupt:
                stopped = "NUTS was interrupted"
            except NoGradientError as error:
                stopped = f"the model has no gradient, which NUTS needs ({error})"
        for i in left:
            results[i] = replace(results[i], failure=Failure(stopped))
        return results


class _Runs:
    """NUTS for one data set after the other, until time is up."""

    def __init__(self, nuts: Nuts, target: PosteriorTarget, max_time: float | None) -> None:
        self._nuts, self._target, self._last = nuts, target, time.monotonic()
        self._deadline = np.inf if max_time is None else time.monotonic() + max_time

    def say_how_long(self, done: int, total: int) -> None:
        """Log how long the rest takes, once it is known."""
        now = time.monotonic()
        if done == 2 and total > 2:  # the first one compiled
            logger.info("The other %d take about %.0f s.", total - 2, (total - 2) * (now - self._last))
        self._last = now

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
        best: tuple[np.ndarray, Convergence] | None = None
        reason = ""
        for attempt, child in enumerate(seed.spawn(len(self._nuts.target_accept))):
            shape = before.log_q.shape
            try:
                theta, divergences = self._sample(index, start, self._settings(shape, attempt), child)
            except OutOfTimeError:
                if best is None or not best[1].converged:
                    raise
                break  # the first attempt was good enough, but for a few divergences
            except RuntimeError as error:  # no chain found a point to start from
                reason = str(error).strip().splitlines()[0]
                continue
            found = Convergence.of(theta, divergences, self._target.spec.circular)
            if best is None or found.converged or not best[1].r_hat <= found.r_hat:
                best = theta, found
            if found.converged and divergences == 0:
                break
            start = _learned(theta, start, child)
        if best is None:
            return replace(before, failure=Failure("NUTS stopped", reason))
        return self._judged(before, self._result(index, before, *best))

    def _judged(self, before: Draws, result: Draws) -> Draws:
        """Mark draws of chains that did not converge, or that missed a mode."""
        convergence = result.convergence
        assert convergence is not None
        if not convergence.converged:
            return replace(result, failure=Failure("chains of NUTS did not converge", str(convergence)))
        if number := _elsewhere(before, result, self._target.spec.circular):
            far = f"{number} proposals as probable lie more than {THRESHOLDS.elsewhere:.0f} sds from all chains"
            return replace(result, failure=Failure("NUTS found one mode of several", far))
        return result

    def _settings(self, shape: tuple[int, ...], attempt: int) -> Settings:
        (chains, draws), nuts = shape, self._nuts
        factor = nuts.longer if attempt else 1
        return Settings(
            chains=max(chains, nuts.fewest_chains),
            draws=factor * max(draws, nuts.fewest_draws),
            tune=factor * nuts.tune,
            target_accept=nuts.target_accept[attempt],
        )

    def _sample(
        self, index: int, start: Start, settings: Settings, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, int]:
        """Run chains; returns theta (chains, draws, dim) and the number of divergences."""
        spec, samplers, data = self._target.spec, self._target.samplers, self._target.given(index)
        compiled = samplers.compiled_for(samplers.needs(data))
        if time.monotonic() > self._deadline:
            raise OutOfTimeError
        run_seed, slot_seed = seed.spawn(2)
        slots = np.random.default_rng(slot_seed).normal(size=(len(start.points), compiled.whitened.size - spec.dim))
        starts = np.concatenate([start.whitening.z(start.points), slots], axis=1)
        values = compiled.whitened.values(data, start.whitening)
        chains = compiled.sampler(values, starts, settings, run_seed, self._deadline)
        theta = start.whitening.theta(chains.z[..., : spec.dim])
        # PyMC's density of an angle is periodic, and chains may have gone round
        theta[..., spec.circular] = (theta[..., spec.circular] + np.pi) % (2 * np.pi) - np.pi
        return theta, chains.divergences

    def _result(self, index: int, before: Draws, theta: np.ndarray, convergence: Convergence) -> Draws:
        """As many chains and draws as were asked for, evenly spaced."""
        chains, draws = before.log_q.shape
        theta = theta[:chains, np.linspace(0, theta.shape[1] - 1, draws).round().astype(int)]
        flat = theta.reshape(chains * draws, -1)
        known = self._target.obstacles[index] is None
        log_p = self._target.log_p(flat, index) if known else np.full(len(flat), np.nan)
        log_q = self._target.log_q(flat[:, None], np.array([index]))[:, 0]
        return replace(
            before,
            theta=theta,
            log_q=log_q.reshape(chains, draws),
            log_p=log_p.reshape(chains, draws),
            rung="nuts",
            failure=None,
            convergence=convergence,
        )


def _elsewhere(before: Draws, found: Draws, circular: np.ndarray) -> int:
    """How many draws from before lie far from those of NUTS, where the model's density is as high."""
    middle, sd = (statistic(found.theta, axis=(0, 1)) for statistic in (np.mean, np.std))
    far = (np.abs(before.theta - middle) > THRESHOLDS.elsewhere * sd)[..., ~circular].any(axis=-1)
    return int((far & (before.log_p >= np.median(found.log_p))).sum())


def _learned(theta: np.ndarray, start: Start, seed: np.random.SeedSequence) -> Start:
    """Learn from the second half of chains, which is nearer to the posterior."""
    late = theta[:, theta.shape[1] // 2 :].reshape(-1, theta.shape[-1])
    if not np.isfinite(late).all():
        return start
    points = late[np.random.default_rng(seed.spawn(1)[0]).integers(len(late), size=len(start.points))]
    return Start(Whitening.of(late, np.full(len(late), 1 / len(late))), points)
