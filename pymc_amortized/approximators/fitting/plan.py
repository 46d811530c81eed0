"""How many steps a training makes, at what pace, and when its last layers go on alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from pymc_amortized.approximators.fitting.pace import Making, Pace, others, pace_of, with_step
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.training import Batch, Condensing, Reduce, Training, fastest_step, torch_threads
from pymc_amortized.training.options import DEFAULT_SECONDS, MOST_PASSES, WHOLE

WORTH = 0.7
"""Of a step of all of the network, what one of its last layers takes at most where these go on alone."""
MAKING = 0.5
"""Share of a step that making its simulations may take, in turn with it or beside it, where it slows the step down."""
WAITING = 1.0
"""How much longer than a step its simulations may take, used as often as they may be, before no core is left to it."""


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes
    ----------
    options : Training
        With the number of steps.
    workers : int
        Processes that simulate while this one trains; 0 where it simulates by itself.
    condensing : Condensing or None
        None where all of the network is trained to the end.
    """

    options: Training
    workers: int
    condensing: Condensing | None


def plan_posterior(
    network: PosteriorNetwork,
    prepare: Callable[[], Batch],
    simulating: float,
    cores: int,
    options: Training,
    seconds: float = DEFAULT_SECONDS,
) -> Plan:
    """Decide by what a step takes, and what its simulations take.

    Parameters
    ----------
    network : PosteriorNetwork
        On its device.
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
    pace = pace_of(lambda threads: fastest_step(network, z, encoded, threads), making, cores, options)
    whole, later, reducing = _last_layers(network, z, encoded, pace, options)
    step = whole * pace.step + (1 - whole) * later
    workers = others(cores) if pace.ahead else 0
    if pace.ahead and making.simulating / workers > WAITING * MOST_PASSES * step:  # this process would mostly wait
        workers = cores
    made = making.simulating / (workers or cores) + making.preparing
    reducing = reducing if making.simulating else 0.0  # of a fixed set, once
    passes = _passes(made + (1 - whole) * reducing, step, options)
    first = with_step(pace.step, made / passes, pace.ahead)
    later = with_step(later, (made + reducing) / passes, pace.ahead)
    each = whole * first + (1 - whole) * later
    options = replace(options.planned(each, seconds), threads=pace.threads, passes=passes, whole=whole)
    if whole == 1:
        return Plan(options, workers, None)

    def freeze() -> Reduce:
        return copy.deepcopy(network).eval().condensed

    return Plan(options, workers, Condensing(freeze, whole, whole * first / each))


def _last_layers(
    network: PosteriorNetwork, z: Tensor, encoded: dict[str, Tensor], pace: Pace, options: Training
) -> tuple[float, float, float]:
    """After what share of the steps the last layers go on alone, and seconds of a step and of reducing its batch."""
    whole = options.whole or (WHOLE if options.num_steps is None else 1.0)
    if whole == 1:
        return 1.0, pace.step, 0.0
    with torch_threads(pace.threads):
        reduced = network.condensed(encoded)
        if reduced is encoded:
            return 1.0, pace.step, 0.0
        reducing, _ = _clocked(lambda: float(sum(v.sum() for v in network.condensed(encoded).values())))
    later, _ = fastest_step(network, z, reduced, pace.threads)
    if options.whole is None and later > WORTH * pace.step:
        return 1.0, pace.step, 0.0
    return whole, later, reducing


def plan_classifier(
    network: ClassifierNetwork, prepare: Callable[[], Batch], simulating: float, cores: int, options: Training
) -> Plan:
    """Decide the same for a classifier, all of which is trained to the end."""
    making, (z, encoded) = _made(prepare, simulating)
    pace = pace_of(lambda threads: fastest_step(network, z, encoded, threads), making, cores, options)
    workers = others(cores) if pace.ahead else 0
    made = making.simulating / (workers or cores) + making.preparing
    passes = _passes(made, pace.step, options)
    seconds = with_step(pace.step, made / passes, pace.ahead)
    return Plan(replace(options.planned(seconds), threads=pace.threads, passes=passes), workers, None)


def _passes(making: float, step: float, options: Training) -> int:
    """How often a simulation is used: so that making them takes no longer than part of the steps."""
    if options.passes is not None or options.num_steps is not None:
        return options.passes or 1
    return min(max(math.ceil(making / (MAKING * step)), 1), MOST_PASSES)


def _made(prepare: Callable[[], Batch], simulating: float) -> tuple[Making, Batch]:
    """What making the simulations of a batch takes, and the batch."""
    prepare()  # what is done once is not counted
    preparing, batch = _clocked(prepare)
    return Making(simulating, preparing if simulating else 0.0), batch


def _clocked[T](function: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
