"""The simulations of a training: what one takes, how many are made, by how many processes; and batches of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pymc_amortized.approximators.fitting.plan import available_cores
from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.sizes import GROUP
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.pool import Pool
from pymc_amortized.graph.simulation.simulator import Simulator, describe_dropped
from pymc_amortized.graph.structure.structure import find_structure
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.training import Batch, FixedSimulations, FreshSimulations, Training
from pymc_amortized.training.source import REFILL_BATCHES

logger = logging.getLogger("pymc_amortized")

PILOT = 4096
"""Simulations from which standardization and the networks' starting point are learned."""


@dataclass(frozen=True)
class Limits:
    """What simulating may cost."""

    seconds: float = 60.0
    """For a fixed set, at most, unless the user says otherwise: about what training costs."""
    slow_batch: float = 0.05
    """Seconds for the simulations of one batch: several training steps. Slower ones are simulated once and reused."""
    fewest: int = 2000
    """A fixed set chosen for a slow simulator is not smaller than this, whatever it costs."""
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

    def slower(self, seconds: float, options: Training) -> SimulationPlan:
        """Plan for simulations that take so much longer each."""
        return replace(self, seconds=self.seconds + seconds).with_processes(options)

    def with_processes(self, options: Training) -> SimulationPlan:
        """Take several processes where what simulations cost is worth their start, unless the user has chosen."""
        expected = self.seconds * (self.number or options.batch_size * options.steps)
        if self.number is None or self.chosen:
            expected = min(expected, self.budget)
        return replace(self, cores=available_cores()) if self.free and expected > LIMITS.processes else self

    def affordable(self, seconds: float) -> int:
        """Return how many simulations can be made, or sketched, at a cost of so many seconds each."""
        return int(self.budget * self.cores / seconds)

    def seconds_of_batch(self, options: Training) -> float:
        """Seconds that one process takes for the simulations of a batch; 0 for a fixed set."""
        return 0.0 if self.number is not None else self.seconds * options.batch_size


def plan_simulations(
    timed: Callable[[], float],
    options: Training,
    number: int | None,
    cores: int | None,
    *,
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
    sketching : float
        Seconds for each simulation that come on top.
    """
    budget = min(LIMITS.seconds, (options.max_time or math.inf) / 2)
    if number is not None and cores is not None:
        return SimulationPlan(number, cores, budget=budget)
    seconds = timed()
    plan = SimulationPlan(number, cores or 1, seconds + sketching, budget, free=cores is None).with_processes(options)
    if number is not None or seconds * options.batch_size / plan.cores <= LIMITS.slow_batch:
        return plan
    plan = replace(plan, number=max(plan.affordable(plan.seconds), LIMITS.fewest), chosen=True)
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


def seconds_of_one(make: Callable[[int], object], most: int = PILOT, first: int = 1) -> float:
    """Time what makes so many simulations, and is compiled: with as many as it takes to see beyond the cost of a call.

    The first call is for four times `first` simulations, the last for at most four times `most`.
    """
    n, seconds = first, 0.0
    while seconds < 0.1 and n < most:
        n *= 4
        start = time.perf_counter()
        make(n)
        seconds = time.perf_counter() - start
    return seconds / n


def report_drops(made: Simulations, *, of: str = "", because: str = "", notable: float = 0.01, rest: str = "") -> None:
    """Log which simulations were dropped, and warn above a share: the prior is visibly not what was written."""
    if not made.dropped:
        return
    share = sum(made.dropped.values()) / made.attempted
    logger.log(
        logging.WARNING if share > notable else logging.INFO,
        "Of %d simulations%s, %.2f%% were dropped%s: %s.%s",
        made.attempted,
        of,
        100 * share,
        because,
        describe_dropped(made.dropped, made.attempted),
        rest,
    )


def reuse_sketched(setup: Setup) -> Setup:
    """Use each simulation that comes with a sketch four times, where the number of steps is given."""
    if setup.options.passes is None and setup.options.num_steps is not None:
        return setup.with_options(passes=4)
    return setup


def training_simulator(
    spec: ModelSpec,
    context: Mapping[str, Any] | None,
    missing: Mapping[str, Any] | None,
    compile_kwargs: CompileKwargs | None,
) -> Simulator:
    """Make what simulates for training, without deterministics."""
    sampler = ContextSampler(spec, context or {}, missing or {})
    return Simulator(spec, context=sampler, deterministics=False, compile_kwargs=compile_kwargs)


def seconds_of_simulator(simulator: Simulator, seed: np.random.SeedSequence) -> float:
    """Time a simulator as training uses it: for one simulation."""
    simulator.check_ends()  # compiles
    # training makes many at a time: fewer would come in smaller groups where sizes differ
    return seconds_of_one(lambda n: simulator.chunk(n, seed), GROUP if simulator.spec.sizes else PILOT)


def prepare_batch(
    network: PosteriorNetwork | ClassifierNetwork,
    inputs: Inputs,
    targets: np.ndarray,
    made: Simulations,
    device: torch.device,
) -> Batch:
    """Prepare simulations for the loss of a network, with what it learns of each: targets (n, width)."""
    given = inputs(of_simulations(made))
    z, encoded = network.prepare(targets, given["data"], device, sizes=given["sizes"])
    return z, network.measured(encoded)


def fixed_source(setup: Setup, batch: Batch, seconds: float, batch_size: int | None = None) -> FixedSimulations:
    """Make batches of a fixed set that is prepared, and took some seconds to simulate."""
    size = batch_size or setup.options.batch_size
    return FixedSimulations(*batch, size, seed=setup.integer(Stage.TRAINING), device=setup.device, seconds=seconds)


def fresh_source(
    setup: Setup,
    make: Callable[[int, int, Workers | None], Batch],
    simulator: Simulator | Pool,
    processes: int,
    batch_size: int | None = None,
) -> FreshSimulations:
    """Make batches of simulations as training goes.

    Parameters
    ----------
    setup : Setup
    make : callable
        Makes and prepares so many simulations, given how many were made before, and the processes that help.
    simulator : Simulator or Pool
        What these processes run.
    processes : int
        That simulate beside training; 0 for none.
    batch_size : int, optional
        By default that of the options.
    """
    source: FreshSimulations | None = None
    workers = Workers(simulator, processes) if processes else None

    def simulate(n: int) -> Batch:
        return make(n, source.simulations if source is not None else 0, workers)

    source = FreshSimulations(
        simulate,
        batch_size or setup.options.batch_size,
        device=setup.device,
        workers=workers,
        passes=setup.options.passes or 1,
        # sketches take seconds: training ends with one refill
        most=8 if simulator.sketched else REFILL_BATCHES,
    )
    return source


def structure_of(
    spec: ModelSpec,
    sources: Mapping[str, Any],
    pilot: Simulations,
    seed: np.random.SeedSequence,
    given: Mapping[str, str | Sequence[str]],
    compile_kwargs: CompileKwargs | None,
    weighed_by: ModelSpec | None = None,
) -> Structure:
    """Look at simulations of one size, with all free variables, which the density is a function of.

    The density may be that of another snapshot of the same model.
    """
    joint = spec.jointly()
    lengths = spec.largest  # what begins or repeats after some rows is seen there
    if spec.nuisance or lengths:
        simulator = Simulator(joint, context=ContextSampler(joint, sources), compile_kwargs=compile_kwargs)
        pilot = simulator.of_lengths(32, seed, lengths)
    fixed = (weighed_by or joint).at(lengths)
    structure = find_structure(fixed, pilot, LogDensity(fixed, compile_kwargs), seed, given)
    return structure.with_ranges({r.dim: (r.smallest, r.largest) for r in spec.sizes})
