"""NUTS for the data sets that weights do not settle.

Chains start from dispersed draws of what is known of a posterior and run in coordinates whitened by it
(:mod:`pymc_amortized.graph.nuts.whitened`). A run that did not converge is repeated once, longer and more carefully, in
coordinates that the first one learned; what then still fails is marked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pymc_amortized.correction.adaptation import STARTS, Start, whitening
from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.drawing import Conditions
from pymc_amortized.correction.rounds import Draws
from pymc_amortized.graph.nuts.pymc_sampler import OutOfTimeError, Settings
from pymc_amortized.graph.nuts.samplers import NoGradientError, Samplers

logger = logging.getLogger("pymc_amortized")

FEWEST_CHAINS = 4
"""That R-hat should compare (Vehtari et al. 2021), however many are returned."""
FEWEST_DRAWS = 500
"""Per chain: enough for R-hat and tail ESS to meet their thresholds when chains mix well."""
TUNE = 500
"""Less than PyMC's 1,000: the mass matrix is nearly right from the start."""
TARGET_ACCEPT = (0.8, 0.95)
"""Of the first attempt, PyMC's default, and of the second, what it advises after divergences."""
ELSEWHERE = 10.0
"""Standard deviations from where chains are, beyond which what is as dense is another mode."""
LONGER = 3
"""Times as many tuning steps and draws in the second attempt."""


@dataclass(frozen=True)
class Budget:
    """How much NUTS there may be.

    Attributes
    ----------
    max_nuts : int or None
        Data sets.
    max_time : float or None
        Seconds.
    """

    max_nuts: int | None = None
    max_time: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why a data set that needed NUTS has no converged chains."""

    index: int
    reason: str
    details: str = ""


def escalate(
    conditions: Conditions,
    results: Sequence[Draws],
    indices: Sequence[int],
    samplers: Samplers,
    *,
    budget: Budget,
    seed: np.random.SeedSequence,
    progressbar: bool,
) -> tuple[list[Draws], list[Failure]]:
    """Replace the draws of some data sets by those of NUTS.

    Parameters
    ----------
    conditions : Conditions
    results : sequence of Draws
        Of all data sets.
    indices : sequence of int
        Of data sets that go to NUTS.
    samplers : Samplers
    budget : Budget
    seed : numpy.random.SeedSequence
    progressbar : bool

    Returns
    -------
    results : list of Draws
        Those that NUTS did not settle are marked "failed".
    failures : list of Failure
    """
    results = list(results)
    for i in indices:
        results[i] = replace(results[i], stage="failed")
    allowed = indices[: budget.max_nuts]
    stopped = f"max_nuts={budget.max_nuts} was reached"
    finished: dict[int, Failure | None] = {}
    if allowed:
        logger.info("%d of %d data sets go to NUTS.", len(allowed), len(results))
        runs = _Runs(conditions, samplers, budget.max_time)
        try:
            with _Display(len(allowed), progressbar) as display:
                for index, child in zip(allowed, seed.spawn(len(allowed)), strict=True):
                    results[index], finished[index] = runs(index, results[index], child)
                    display.advance()
        except OutOfTimeError:
            stopped = f"max_time={budget.max_time:g} was reached"
        except KeyboardInterrupt:
            stopped = "NUTS was interrupted"
        except NoGradientError as error:
            stopped = f"the model has no gradient, which NUTS needs ({error})"
    not_run = [Failure(i, stopped) for i in indices if i not in finished]
    return results, [failure for failure in finished.values() if failure] + not_run


class _Runs:
    """NUTS for one data set after the other, until time is up."""

    def __init__(self, conditions: Conditions, samplers: Samplers, max_time: float | None) -> None:
        self._conditions, self._samplers = conditions, samplers
        self._deadline = np.inf if max_time is None else time.monotonic() + max_time

    def __call__(self, index: int, before: Draws, seed: np.random.SeedSequence) -> tuple[Draws, Failure | None]:
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
        for attempt, child in enumerate(seed.spawn(len(TARGET_ACCEPT))):
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
            found = Convergence.of(theta, divergences, self._conditions.spec.circular)
            if best is None or found.converged or not best[1].r_hat <= found.r_hat:
                best = theta, found
            if found.converged and divergences == 0:
                break
            start = _learned(theta, start, child)
        if best is None:
            return before, Failure(index, "NUTS stopped", reason)
        result = self._result(index, before, *best)
        if not best[1].converged:
            return result, Failure(index, "chains of NUTS did not converge", str(best[1]))
        if number := _elsewhere(before, result, self._conditions.spec.circular):
            details = f"{number} proposals as probable lie more than {ELSEWHERE:.0f} sds from all chains"
            return replace(result, stage="failed"), Failure(index, "NUTS found one mode of several", details)
        return result, None

    def _settings(self, shape: tuple[int, ...], attempt: int) -> Settings:
        chains, draws = shape
        factor = LONGER if attempt else 1
        return Settings(
            chains=max(chains, FEWEST_CHAINS),
            draws=factor * max(draws, FEWEST_DRAWS),
            tune=factor * TUNE,
            target_accept=TARGET_ACCEPT[attempt],
        )

    def _sample(
        self, index: int, start: Start, settings: Settings, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, int]:
        """Run chains; returns theta (chains, draws, dim) and the number of divergences."""
        spec, data = self._conditions.spec, self._conditions.given(index)
        compiled = self._samplers.compiled_for(self._samplers.needs(data))
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
        known = self._conditions.obstacles[index] is None
        log_p = self._conditions.log_p(flat, index) if known else np.full(len(flat), np.nan)
        log_q = self._conditions.log_q(flat[:, None], np.array([index]))[:, 0]
        return replace(
            before,
            theta=theta,
            log_q=log_q.reshape(chains, draws),
            log_p=log_p.reshape(chains, draws),
            stage="nuts" if convergence.converged else "failed",
            convergence=convergence,
        )


def _elsewhere(before: Draws, found: Draws, circular: np.ndarray) -> int:
    """How many draws from before lie far from those of NUTS, where the model's density is as high."""
    middle, sd = (statistic(found.theta, axis=(0, 1)) for statistic in (np.mean, np.std))
    far = (np.abs(before.theta - middle) > ELSEWHERE * sd)[..., ~circular].any(axis=-1)
    return int((far & (before.log_p >= np.median(found.log_p))).sum())


def _learned(theta: np.ndarray, start: Start, seed: np.random.SeedSequence) -> Start:
    """Learn from the second half of chains, which is nearer to the posterior."""
    late = theta[:, theta.shape[1] // 2 :].reshape(-1, theta.shape[-1])
    if not np.isfinite(late).all():
        return start
    points = late[np.random.default_rng(seed.spawn(1)[0]).integers(len(late), size=STARTS)]
    return Start(whitening(late, np.full(len(late), 1 / len(late))), points)


class _Display:
    """A progress bar, and a line that says how long the rest will take."""

    def __init__(self, total: int, shown: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not shown,
        )
        self._task = self._bar.add_task("NUTS", total=total)
        self._total, self._done, self._last = total, 0, time.monotonic()

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One more data set is done."""
        self._done += 1
        self._bar.advance(self._task)
        now = time.monotonic()
        if self._done == 2 and self._total > 2:  # the first one compiled
            logger.info("The other %d take about %.0f s.", self._total - 2, (self._total - 2) * (now - self._last))
        self._last = now
