"""How long a training step takes with its simulations, and who makes these."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from pymc_amortized.training import Training

WORKERS_FROM = 45.0
"""Seconds of training from which other processes are worth their start, which takes some ten."""
WORKERS_SHARE = 0.1
"""Of a training step, that simulating takes at least then."""

Timed = Callable[[int | None], tuple[float, int]]
"""Number of threads, or None for the fastest one -> seconds of a step, and that number."""


@dataclass(frozen=True, order=True)
class Pace:
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
class Making:
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


def pace_of(timed: Timed, making: Making, cores: int, options: Training) -> Pace:
    """Return the fastest way to make steps.

    Torch on all cores leaves none to others; on one, others may simulate meanwhile.

    Parameters
    ----------
    timed : callable
    making : Making
    cores : int
        Processes that may simulate.
    options : Training
    """
    tried = [options.threads] if options.threads or not making.simulating else [None, 1]
    paces = []
    for step, threads in (timed(number) for number in tried):
        ahead = worth_workers(step, making.seconds(cores, ahead=False), threads, options)
        paces.append(Pace(with_step(step, making.seconds(cores, ahead), ahead), threads, ahead, step))
    return min(paces)


def worth_workers(step: float, simulating: float, threads: int, options: Training) -> bool:
    """Whether others should simulate while this process trains, given the seconds that either takes for a step."""
    steps = options.planned(step + simulating).steps
    seconds = min(options.max_time or math.inf, steps * (step + simulating))
    return threads < available_cores() and seconds > WORKERS_FROM and simulating > WORKERS_SHARE * step


def others(cores: int) -> int:
    """Processes that simulate while this one trains."""
    return max(cores - 1, 1)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
