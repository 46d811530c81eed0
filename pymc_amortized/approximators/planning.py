"""How many steps a training makes, at what pace, and when its last layers go on alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pymc_amortized.approximators.pace import others, pace_of
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.networks.network import PosteriorNetwork
from pymc_amortized.training import Batch, Condensing, Training, fastest_step
from pymc_amortized.training.options import MOST_PASSES, WHOLE

MAKING = 0.5
"""Share of a step that making its simulations may take, in turn with it or beside it, where it slows the step down."""


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes
    ----------
    options : Training
        With the number of steps.
    ahead : bool
        Whether other processes simulate while this one trains.
    condensing : Condensing or None
        None where all of the network is trained to the end.
    """

    options: Training
    ahead: bool
    condensing: Condensing | None


def plan_training(
    network: PosteriorNetwork | ClassifierNetwork,
    prepare: Callable[[], Batch],
    simulating: float,
    cores: int,
    options: Training,
) -> Plan:
    """Decide by what a step takes, and what its simulations take.

    Parameters
    ----------
    network : PosteriorNetwork or ClassifierNetwork
        On its device.
    prepare : callable
        Prepares the simulations of one batch.
    simulating : float
        Seconds that one process takes for these; 0 where they are there already.
    cores : int
        Processes that may simulate.
    options : Training
    """
    prepare()  # what is done once is not counted
    preparing, (z, encoded) = _clocked(prepare)
    making = simulating + preparing if simulating else 0.0
    pace = pace_of(lambda threads: fastest_step(network, z, encoded, threads), making, cores, options)
    first, (reducing, reduced) = pace.step, _clocked(lambda: network.condensed(encoded))
    if reduced is encoded:
        later, share = first, 1.0
    else:
        (later, _), share = fastest_step(network, z, reduced, pace.threads), WHOLE
        making += (1 - share) * reducing if simulating else 0.0
    step = share * first + (1 - share) * later
    making /= others(cores) if pace.ahead else cores
    passes = options.passes or 1
    if options.passes is None and options.num_steps is None:
        passes = min(max(math.ceil(making / (MAKING * step)), 1), MOST_PASSES)
    seconds = max(step, making / passes) if pace.ahead else step + making / passes
    options = replace(options.planned(seconds), threads=pace.threads, passes=passes)
    condensing = None if reduced is encoded else Condensing(network.condensed, share, share * first / step)
    return Plan(options, pace.ahead, condensing)


def _clocked[T](function: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
