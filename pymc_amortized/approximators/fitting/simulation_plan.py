"""How many simulations a training makes, by how many processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pymc_amortized.approximators.fitting.plan import available_cores
from pymc_amortized.logs import logger
from pymc_amortized.training import Training


@dataclass(frozen=True)
class Limits:
    """What simulating may cost."""

    seconds: float = 60.0
    """For a fixed set, at most, unless the user says otherwise: about what training costs."""
    slow_batch: float = 0.05
    """Seconds for the simulations of one batch: several training steps. Slower ones are simulated once and reused."""
    slowest_batch: float = 0.5
    """The same where training ends when it is good enough, and uses each of the latest simulations several times."""
    fewest: int = 2000
    """A fixed set chosen for a slow simulator is not smaller than this, whatever it costs."""
    values: int = 2**29
    """That networks are given, of all simulations of such a set: 2 GiB in single precision."""
    processes: float = 20.0
    """Seconds from which several processes simulate: starting them and compiling in each costs about 10 s."""


LIMITS = Limits()


@dataclass(frozen=True)
class SimulationPlan:
    """How many simulations a training makes, and who makes them."""

    number: int | None
    """Size of the fixed set; None for fresh ones at every step."""
    cores: int = 1
    """Processes that simulate."""
    seconds: float = 0.0
    """What one simulation takes one process; 0 where nothing hangs on it."""
    budget: float = LIMITS.seconds
    """Seconds that all of them may take before training."""
    chosen: bool = False
    """Whether there is a fixed set because simulations take long."""
    free: bool = False
    """Whether the number of processes was left open by the user."""
    values: int = 1
    """How many values networks are given of each."""

    def slower(self, seconds: float, options: Training) -> SimulationPlan:
        """Plan for simulations that take so much longer each."""
        return replace(self, seconds=self.seconds + seconds).with_processes(options)

    def with_processes(self, options: Training) -> SimulationPlan:
        """Take several processes where what simulations cost is worth their start, unless the user has chosen."""
        expected = self.seconds * (self.number or options.expected_simulations)
        if self.number is None or self.chosen:
            expected = min(expected, self.budget)
        return replace(self, cores=available_cores()) if self.free and expected > LIMITS.processes else self

    def cores_for(self, number: int) -> int:
        """Return how many processes make so many simulations: one where starting others would take longer.

        What is made is the same.
        """
        known = self.free and self.seconds > 0
        return 1 if known and self.seconds * number < LIMITS.processes else self.cores

    def affordable(self, seconds: float) -> int:
        """Return how many simulations can be made, or sketched, at a cost of so many seconds each, and held."""
        return min(int(self.budget * self.cores / seconds), LIMITS.values // max(self.values, 1))

    def holding(self, values: int) -> SimulationPlan:
        """Plan for networks that are given so many values of each simulation: no more of them than can be held."""
        plan = replace(self, values=values)
        if not self.chosen or self.number is None:
            return plan
        return replace(plan, number=min(self.number, max(plan.affordable(self.seconds), LIMITS.fewest)))

    def seconds_of_batch(self, options: Training) -> float:
        """Seconds that one process takes for the simulations of a batch; 0 for a fixed set."""
        return 0.0 if self.number is not None else self.seconds * options.batch_size


def plan_simulations(
    timed: Callable[[], float],
    options: Training,
    number: int | None,
    cores: int | None,
    *,
    values: int = 1,
    sketching: float = 0.0,
) -> SimulationPlan:
    """Decide how many simulations to make, and in how many processes, by the simulator's speed.

    Parameters
    ----------
    timed : callable
        Returns the seconds that one simulation takes.
    options : Training
    number, cores : int, optional
        What the user has chosen.
    values : int
        That are known of each simulation.
    sketching : float
        Seconds for each simulation that come on top.
    """
    budget = min(LIMITS.seconds, (options.max_time or math.inf) / 2)
    if number is not None and cores is not None:
        return SimulationPlan(number, cores, budget=budget)
    seconds = timed()
    plan = SimulationPlan(number, cores or 1, seconds + sketching, budget, free=cores is None).with_processes(options)
    slow = LIMITS.slowest_batch if options.open_ended else LIMITS.slow_batch
    if number is not None or seconds * options.batch_size / plan.cores <= slow:
        return plan
    used = math.inf if options.num_steps is None else options.num_steps * options.batch_size
    wanted = int(max(min(plan.affordable(plan.seconds), used), LIMITS.fewest))
    plan = replace(plan, number=wanted, chosen=True).holding(values)
    assert plan.number is not None
    say_fixed_set(seconds, plan.number)
    return plan


def say_fixed_set(seconds: float, number: int) -> None:
    """Log that simulations take too long to be made afresh."""
    logger.info(
        "One simulation takes %.2g ms: training on a fixed set of %d (num_simulations=%d repeats this).",
        1e3 * seconds,
        number,
        number,
    )
