"""The simulations of a training: what one takes, what was dropped, what their axes are, and batches of them."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations, describe_dropped, truncating
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.sizes import GROUP
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import INTERPRETED, CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.pool import Pool
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.grouping import factors_of_plates
from pymc_amortized.graph.structure.plates import choose_locals, find_factors, may_have_locals
from pymc_amortized.graph.structure.structure import find_structure
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.logs import logger, working
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.ranks import agree, number_of_ranks, rank
from pymc_amortized.stores.batches import BlockBatches
from pymc_amortized.training import Batch, FixedSimulations, FreshSimulations
from pymc_amortized.training.source import REFILL_BATCHES

PILOT = 4096
"""Simulations from which standardization and the networks' starting point are learned."""


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
    return agree(seconds / n)


def report_drops(made: Simulations, **how: Any) -> None:
    """Log which simulations were dropped; :func:`report_counts` says how."""
    report_counts(made.attempted, made.dropped, **how)


def report_counts(
    attempted: int,
    counts: Mapping[str, int],
    *,
    of: str = "",
    because: str = "",
    notable: float = 0.01,
    rest: str = "",
) -> None:
    """Log which simulations were dropped, and warn above a share: the prior is visibly not what was written.

    Draws that overflow or are rounded, and those that raise, are no part of that: the model has such data, and nothing
    learns from them.
    """
    truncated = truncating(counts)
    others = {why: count for why, count in counts.items() if why not in truncated}
    told = ((truncated, because, rest), (others, "", " The prior stays what it is; nothing is learned of such draws."))
    for dropped, what, then in told:
        share = sum(dropped.values()) / max(attempted, 1)
        if dropped:
            logger.log(
                logging.WARNING if share > notable else logging.INFO,
                "Of %d simulations%s, %.2f%% were dropped%s: %s.%s",
                attempted,
                of,
                100 * share,
                what,
                describe_dropped(dropped, attempted),
                then,
            )


def report_pilot(pilot: Simulations, potentials: Sequence[str]) -> None:
    """Say what was dropped of the first simulations, and what is not simulated."""
    report_drops(pilot, because=", which truncates the prior")
    if potentials:
        logger.warning(
            "The potentials %s are not simulated; importance weights bring them in. Where they matter much, "
            "check pareto_k.",
            list(potentials),
        )


def reuse_sketched(setup: Setup) -> Setup:
    """Use each simulation that comes with a sketch four times, where the number of steps is given."""
    if setup.options.passes is None and setup.options.num_steps is not None:
        return setup.with_options(passes=4)
    return setup


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


@working("Preparing the simulations on disk")
def stored_source(setup: Setup, blocks: Iterable[Batch], beside: str | None) -> BlockBatches:
    """Make batches of simulations that are larger than memory, from prepared blocks."""
    seed, size = setup.integer(Stage.TRAINING), setup.options.batch_size
    return BlockBatches(blocks, size, seed=seed, device=setup.device, beside=beside)


def fresh_source(
    setup: Setup,
    make: Callable[[int, int, Workers | None], Batch],
    simulator: Simulator | Pool,
    processes: int,
    batch_size: int | None = None,
    alone: int = 0,
) -> FreshSimulations:
    """Make batches of simulations as training goes.

    Parameters
    ----------
    setup : Setup
    make : callable
        Makes and prepares so many simulations, given how many were made before, and the processes that help. That
        number says which random numbers to take: it is another one on each rank.
    simulator : Simulator or Pool
        What these processes run.
    processes : int
        That simulate beside training; 0 for none.
    batch_size : int, optional
        By default that of the options.
    alone : int
        Simulations that this process makes before these are started.
    """

    def simulate(n: int) -> Batch:
        return make(n, number_of_ranks() * source.simulations + rank(), source.workers)

    source = FreshSimulations(
        simulate,
        batch_size or setup.options.batch_size,
        device=setup.device,
        workers=(lambda: Workers(simulator, processes)) if processes else None,
        alone=alone,
        passes=setup.options.passes or 1,
        # sketches take seconds: training ends with one refill
        most=8 if simulator.has_extra else REFILL_BATCHES,
    )
    return source


def separate_locals(spec: ModelSpec, sources: Mapping[str, Any], setup: Setup) -> ModelSpec:
    """Return the spec with variables of groups as locals, where that makes posteriors easier."""
    if not may_have_locals(spec):
        return spec

    def choose() -> ModelSpec:
        simulator = Simulator(spec, context=ContextSampler(spec, sources), compile_kwargs=INTERPRETED)
        return choose_locals(spec, simulator.of_lengths(3, setup.seed(Stage.STRUCTURE, 2), spec.largest))

    with working("Finding groups"):
        return spec.once(separate_locals, None, choose)


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
    if spec.nuisance or spec.locals or lengths:
        simulator = Simulator(joint, context=ContextSampler(joint, sources), compile_kwargs=compile_kwargs)
        pilot = simulator.of_lengths(32, seed, lengths)
    fixed = (weighed_by or joint).at(lengths)
    structure = find_structure(fixed, pilot, LogDensity(fixed, INTERPRETED), seed, given)
    if spec.nuisance or spec.locals:  # symmetries are those of all parameters together
        structure = replace(structure, symmetries=None, symmetric=())
    if spec.locals:
        found = find_factors(spec, pilot) if spec.density_obstacle is None else factors_of_plates(spec)
        structure = replace(structure, factors=found)
    return structure.with_ranges({r.dim: (r.smallest, r.largest) for r in spec.sizes})
