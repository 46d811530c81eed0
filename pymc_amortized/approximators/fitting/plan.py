"""How many steps a training makes, what one takes with its simulations, and when its last layers go on alone."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import joblib
import numpy as np
from torch import Tensor, nn

from pymc_amortized.ranks import agree, ranks_here
from pymc_amortized.training import Batch, LastLayers, Reduce, Training, fastest_step, torch_threads
from pymc_amortized.training.options import DEFAULT_SECONDS, MOST_PASSES, WHOLE

Timed = Callable[[int | None], tuple[float, int]]
"""Number of threads, or None for the fastest one -> seconds of a step, and that number."""


@dataclass(frozen=True, order=True)
class StepCost:
    """What a step takes, simulating included, and how.

    Attributes
    ----------
    seconds : float
    threads : int
        That torch computes with.
    ahead : bool
        Whether other processes simulate while this one trains.
    step : float
        Seconds without simulating.
    """

    seconds: float
    threads: int
    ahead: bool
    step: float


@dataclass(frozen=True)
class SimulationCost:
    """What making the simulations of a step takes.

    Attributes
    ----------
    simulating : float
        Seconds in one process, of several; 0 if there are none to make.
    preparing : float
        Seconds in this process.
    """

    simulating: float
    preparing: float = 0.0

    def seconds(self, cores: int, ahead: bool) -> float:
        """By so many processes, beside training or in turn with it."""
        return self.simulating / (others(cores) if ahead else cores) + self.preparing


def with_step(step: float, making: float, ahead: bool) -> float:
    """Seconds of a step with its simulations."""
    return max(step, making) if ahead else step + making


def cheapest_step(timed: Timed, simulations: SimulationCost, cores: int, options: Training) -> StepCost:
    """Return the fastest way to make steps.

    Torch on all cores leaves none to others; on one, others may simulate meanwhile.

    Parameters
    ----------
    timed : callable
    simulations : SimulationCost
    cores : int
        Processes that may simulate.
    options : Training
    """
    tried = [options.threads] if options.threads or not simulations.simulating else [None, 1]
    costs = []
    for step, threads in (timed(number) for number in tried):
        ahead = worth_workers(step, simulations.seconds(cores, ahead=False), threads, options)
        costs.append(StepCost(with_step(step, simulations.seconds(cores, ahead), ahead), threads, ahead, step))
    return min(costs)


def worth_workers(step: float, simulating: float, threads: int, options: Training) -> bool:
    """Whether others should simulate while this process trains, given the seconds that either takes for a step."""
    steps = options.planned(step + simulating).steps
    seconds = min(options.max_time or math.inf, steps * (step + simulating))
    # starting other processes takes some ten seconds
    return threads < available_cores() and seconds > 45.0 and simulating > 0.1 * step


def others(cores: int) -> int:
    """Processes that simulate while this one trains."""
    return max(cores - 1, 1)


def available_cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota, and that others leave idle.

    Ranks on one machine share them.
    """
    _, here = ranks_here()
    allowed = max(joblib.cpu_count() // here, 1)
    if not hasattr(os, "getloadavg"):
        return allowed
    busy = os.getloadavg()[0] - here  # this process is one of those that run
    return agree(int(np.clip(round(((os.cpu_count() or 1) - busy) / here), 1, allowed)))


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes
    ----------
    options : Training
        With the number of steps.
    workers : int
        Processes that simulate while this one trains; 0 where it simulates by itself.
    last_layers : LastLayers or None
        None where all of the network is trained to the end.
    """

    options: Training
    workers: int
    last_layers: LastLayers | None


def plan_posterior(
    network: nn.Module,
    prepare: Callable[[], Batch],
    simulating: float,
    cores: int,
    options: Training,
    seconds: float = DEFAULT_SECONDS,
) -> Plan:
    """Decide by what a step takes, and what its simulations take.

    Parameters
    ----------
    network : nn.Module
        On its device; with a method ``reduced``.
    prepare : callable
        Prepares the simulations of one batch.
    simulating : float
        Seconds that one process takes for these; 0 where they are there already.
    cores : int
        Processes that may simulate.
    options : Training
    seconds : float
        That training takes, where the user has not chosen.
    """
    making, (z, encoded) = _made(prepare, simulating)
    cost = cheapest_step(lambda threads: fastest_step(network, z, encoded, threads), making, cores, options)
    whole, later, reducing = _last_layers(network, z, encoded, cost, options)
    step = whole * cost.step + (1 - whole) * later
    workers = others(cores) if cost.ahead else 0
    if cost.ahead and making.simulating / workers > MOST_PASSES * step:  # this process would mostly wait
        workers = cores
    made = making.simulating / (workers or cores) + making.preparing
    reducing = reducing if making.simulating else 0.0  # of a fixed set, once
    passes = _passes(made + (1 - whole) * reducing, step, options)
    first = with_step(cost.step, made / passes, cost.ahead)
    later = with_step(later, (made + reducing) / passes, cost.ahead)
    each = whole * first + (1 - whole) * later
    options = replace(options.planned(each, seconds), threads=cost.threads, passes=passes, whole=whole)
    if whole == 1:
        return Plan(options, workers, None)
    return Plan(options, workers, LastLayers(whole, whole * first / each))


def _last_layers(
    network: nn.Module, z: Tensor, encoded: dict[str, Tensor], cost: StepCost, options: Training
) -> tuple[float, float, float]:
    """After what share of the steps the last layers go on alone, and seconds of a step and of reducing its batch."""
    whole = options.whole or (WHOLE if options.num_steps is None else 1.0)
    if whole == 1:
        return 1.0, cost.step, 0.0
    with torch_threads(cost.threads):
        reduce: Reduce = network.reduced  # type: ignore[assignment]
        reduced = reduce(encoded)
        if reduced is encoded:
            return 1.0, cost.step, 0.0
        reducing, _ = _clocked(lambda: float(sum(v.sum() for v in reduce(encoded).values())))
    later, _ = fastest_step(network, z, reduced, cost.threads)
    if options.whole is None and later > 0.7 * cost.step:  # not worth it
        return 1.0, cost.step, 0.0
    return whole, later, reducing


def plan_classifier(
    network: nn.Module, prepare: Callable[[], Batch], simulating: float, cores: int, options: Training
) -> Plan:
    """Decide the same for a classifier, all of which is trained to the end."""
    making, (z, encoded) = _made(prepare, simulating)
    cost = cheapest_step(lambda threads: fastest_step(network, z, encoded, threads), making, cores, options)
    workers = others(cores) if cost.ahead else 0
    made = making.simulating / (workers or cores) + making.preparing
    passes = _passes(made, cost.step, options)
    seconds = with_step(cost.step, made / passes, cost.ahead)
    return Plan(replace(options.planned(seconds), threads=cost.threads, passes=passes), workers, None)


def _passes(making: float, step: float, options: Training) -> int:
    """How often a simulation is used: so that making them takes no longer than half of the steps."""
    if options.passes is not None or options.num_steps is not None:
        return options.passes or 1
    return min(max(math.ceil(making / (0.5 * step)), 1), MOST_PASSES)


def _made(prepare: Callable[[], Batch], simulating: float) -> tuple[SimulationCost, Batch]:
    """What making the simulations of a batch takes, and the batch."""
    prepare()  # what is done once is not counted
    preparing, batch = _clocked(prepare)
    return SimulationCost(simulating, preparing if simulating else 0.0), batch


def _clocked[T](function: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = function()
    return agree(time.perf_counter() - start), result
