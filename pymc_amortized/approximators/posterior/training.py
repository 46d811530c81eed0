"""Training an amortized posterior: the model's simulations, the networks they call for, and the loop."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from pymc_amortized.approximators.fitting.plan import plan_posterior
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.fitting.simulate import read_simulations, sources_again, training_simulator
from pymc_amortized.approximators.fitting.simulating import (
    PILOT,
    fixed_source,
    fresh_source,
    prepare_batch,
    report_drops,
    reuse_sketched,
    structure_of,
)
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan
from pymc_amortized.approximators.posterior.check import report_efficiency, warn_if_corrected_off, warn_if_off
from pymc_amortized.approximators.posterior.choosing import build_network, choose_sketch
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.correction.draws import Draws
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.continuity import refuse_jumps
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.density.rules import find_rules
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.levels import hierarchy_levels
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.simulation.atoms import refuse_prior_atoms
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import Sketch
from pymc_amortized.logs import logger
from pymc_amortized.networks.choices import density_options
from pymc_amortized.networks.posterior_network import DensityChoice, PosteriorNetwork, SummaryChoice
from pymc_amortized.novelty.reference import learn_reference
from pymc_amortized.training import Batch, Batches, Trained, Training, TrainingState, choose_device
from pymc_amortized.training.options import DEFAULT_SECONDS, SKETCHED_SECONDS

HELD_OUT = 2048
"""Simulations that judge the weights while training on fresh ones."""


class PosteriorFit:
    """One training, from the model to the posterior.

    Parameters
    ----------
    spec, context, missing, simulator
        Of the model.
    setup, plan
        How it is trained, and on how many simulations.
    given : Simulations, optional
        The user's, to train on.
    sketched : bool, optional
        Whether posteriors are to be sketched; None where it depends.
    pilot : int
        Simulations that statistics are learned from, unless there is a fixed set.
    """

    def __init__(
        self,
        spec: ModelSpec,
        context: Mapping[str, Any],
        missing: Mapping[str, Any],
        simulator: Simulator,
        setup: Setup,
        plan: SimulationPlan,
        *,
        given: Simulations | None = None,
        sketched: bool | None = None,
        pilot: int = PILOT,
    ) -> None:
        self.spec, self.context, self.missing, self.simulator = spec, context, missing, simulator
        self.setup, self.plan, self.given = setup, plan, given
        self.sketched, self.pilot_size = sketched, pilot
        self.seconds = 0.0  # that a fixed set took
        self.inputs: Inputs  # known once there are simulations to look at

    def run(
        self, summary: SummaryChoice, density: DensityChoice, given: Mapping[str, str | Sequence[str]]
    ) -> TrainedPosterior:
        """Simulate, choose the networks and train."""
        pilot = self.pilot()
        structure = self.structure(pilot, given)
        gaps = self.gaps(pilot)
        pilot = self.see(pilot, structure, gaps, summary, density)
        statistics, held_out = self.parts(pilot)
        network = self.build(statistics.take(slice(PILOT)), summary, density)
        return self._train(network, gaps, statistics, held_out, pilot, None)

    def resume(self, posterior: TrainedPosterior) -> TrainedPosterior:
        """Train a posterior's network further."""
        pilot, self.inputs = self.pilot(), Inputs(self.spec, posterior.structure)
        if posterior.sketch is not None:
            pilot = self._sketch_by(posterior.sketch, pilot)
        statistics, held_out = self.parts(pilot)
        network = copy.deepcopy(posterior.network)  # the posterior's own stays as it is
        return self._train(network, posterior.gaps, statistics, held_out, pilot, posterior.state)

    def pilot(self) -> Simulations:
        """Simulate what statistics are learned from: all of a fixed set, or take the user's."""
        pilot = self._simulated_pilot() if self.given is None else self.given
        refuse_prior_atoms(self.spec, pilot, by_user=self.given is not None)
        refuse_jumps(self.spec, pilot)
        return pilot

    def _simulated_pilot(self) -> Simulations:
        start = time.perf_counter()
        number = self.plan.number or self.pilot_size
        pilot = self.simulator(number, self.setup.seed(Stage.PILOT), cores=self.plan.cores)
        self.seconds = time.perf_counter() - start
        report_drops(pilot, because=", which truncates the prior")
        if self.spec.potentials:
            logger.warning(
                "The potentials %s are not simulated; importance weights bring them in. Where they matter much, "
                "check pareto_k.",
                list(self.spec.potentials),
            )
        return pilot

    def structure(
        self, pilot: Simulations, given: Mapping[str, str | Sequence[str]], weighed_by: ModelSpec | None = None
    ) -> Structure:
        """Find out what the axes of the data are."""
        seed = self.setup.seed(Stage.STRUCTURE)
        kwargs = self.setup.compile_kwargs
        structure = structure_of(self.spec, self.context, pilot, seed, given, kwargs, weighed_by)
        logger.info("Structure of the data:\n%s", structure)
        return structure

    def gaps(self, pilot: Simulations) -> dict[str, Rule | None]:
        """Find out how missing values are integrated out."""
        return find_rules(self.spec, pilot, self.setup.seed(Stage.STRUCTURE, 1), self.setup.compile_kwargs)

    def see(
        self,
        pilot: Simulations,
        structure: Structure,
        gaps: Mapping[str, Rule | None],
        summary: SummaryChoice,
        density: DensityChoice,
    ) -> Simulations:
        """Decide what networks are given of the data; returns the simulations with that."""
        self.inputs = Inputs(self.spec, structure)
        if self.sketched is False or isinstance(summary, torch.nn.Module):
            return pilot
        plan = self.plan

        def most(seconds: float) -> int:
            return max(plan.affordable(seconds), PILOT + HELD_OUT)  # as many as fresh simulations begin with

        found = choose_sketch(
            self.inputs,
            gaps,
            pilot,
            self.setup,
            wanted=self.sketched,
            most=(lambda seconds: math.inf) if plan.chosen else most,
            # a density of the user's is one of all parameters
            learns_all=density_options(density, self.spec.dim) is None,
        )
        if found is None:
            return pilot
        sketch, seconds = found
        self.plan = plan.slower(seconds, self.setup.options)
        self.setup = reuse_sketched(self.setup)
        if plan.chosen and len(pilot) > most(seconds):
            self.plan = replace(self.plan, number=most(seconds))
            logger.info("Sketching takes longer than simulating: the set has %d data sets now.", most(seconds))
        return self._sketch_by(sketch, pilot.take(slice(self.plan.number)))

    def _sketch_by(self, sketch: Sketch, pilot: Simulations) -> Simulations:
        self.inputs = replace(self.inputs, sketch=sketch)
        self.simulator = self.simulator.with_extra(sketch.of_simulations)
        return replace(pilot, extra=sketch.of_simulations(pilot, self.plan.cores))

    def parts(self, pilot: Simulations) -> tuple[Simulations, Simulations]:
        """Simulations to learn from (fixed set) or to learn statistics from (fresh), and those held out."""
        seed = self.setup.seed(Stage.HELD_OUT)
        if self.plan.number is None:
            return pilot, self.simulator(HELD_OUT, seed, cores=self.plan.cores)
        order = np.random.default_rng(seed).permutation(len(pilot))
        size = min(max(round(self.setup.options.held_out * len(pilot)), 1), len(pilot) - 1, HELD_OUT)
        return pilot.take(order[size:]), pilot.take(order[:size])

    def build(self, some: Simulations, summary: SummaryChoice, density: DensityChoice) -> PosteriorNetwork:
        """Choose the networks, and start them at what some simulations say."""
        with self.setup.random_numbers():
            return build_network(self.inputs, some, summary, density, hierarchy_levels(self.spec))

    def prepared(self, network: PosteriorNetwork, made: Simulations) -> Batch:
        """What the network takes of simulations."""
        return prepare_batch(network, self.inputs, made.unconstrained, made, self.setup.device)

    def source(self, fixed: Callable[[], Batch], fresh: Callable[[Simulations, int], Batch], processes: int) -> Batches:
        """Where training batches come from.

        Parameters
        ----------
        fixed : callable
            Returns what the fixed set is prepared to, if there is one.
        fresh : callable
            The same for simulations just made, and how many were made before.
        processes : int
            That simulate beside training.
        """
        if self.plan.number is not None:
            return fixed_source(self.setup, fixed(), self.seconds)

        def make(n: int, before: int, workers: Workers | None) -> Batch:
            seed = self.setup.seed(Stage.TRAINING, before)
            # groups of one size are mixed by the batches, which take every k-th simulation
            made = self.simulator(n, seed, cores=self.plan.cores, mixed=False, workers=workers)
            return fresh(made, before)

        return fresh_source(self.setup, make, self.simulator, processes)

    def _train(
        self,
        network: PosteriorNetwork,
        gaps: Mapping[str, Rule | None],
        statistics: Simulations,
        held_out: Simulations,
        pilot: Simulations,
        state: TrainingState | None,
    ) -> TrainedPosterior:
        network.to(self.setup.device)
        batch = statistics.take(slice(self.setup.options.batch_size))
        steps = plan_posterior(
            network,
            lambda: self.prepared(network, batch),
            self.plan.seconds_of_batch(self.setup.options),
            self.plan.cores,
            self.setup.options,
            DEFAULT_SECONDS if self.inputs.sketch is None else SKETCHED_SECONDS,
        )
        self.train_by(steps.options)
        source = self.source(
            lambda: self.prepared(network, statistics), lambda made, _: self.prepared(network, made), steps.workers
        )
        held = self.prepared(network, held_out)
        trained = self.setup.train(network, source, held, resume=state, last_layers=steps.last_layers)
        return self.finish(network, gaps, trained, held_out, pilot, statistics.take(slice(PILOT)))

    def train_by(self, options: Training) -> None:
        """Take options of which the number of steps is planned."""
        self.setup = replace(self.setup, options=options)

    def finish(
        self,
        network: PosteriorNetwork,
        gaps: Mapping[str, Rule | None],
        trained: Trained,
        held_out: Simulations,
        pilot: Simulations,
        learned: Simulations,
    ) -> TrainedPosterior:
        """Put together what was trained, and say how good it is."""
        posterior = TrainedPosterior(
            spec=self.spec,
            network=network,
            structure=self.inputs.structure,
            history=trained.history,
            provenance=Provenance.of(trained, pilot, self.setup, self.plan, user_simulations=self.given is not None),
            state=trained.state,
            context=self.context,
            missing=self.missing,
            gaps=gaps,
            reference=learn_reference(*self.inputs.summarized_by(network), learned, self._ranked(held_out)),
            sketch=self.inputs.sketch,
            compile_kwargs=self.setup.compile_kwargs,
        )
        few = of_simulations(held_out.take(slice(32)))
        known = self.spec.density_obstacle is None
        report_efficiency(trained, posterior.weights_of(few, self.setup.seed(Stage.LOOP, 1)) if known else [])
        warn_if_off(network, self.inputs, held_out, self.setup.seed(Stage.LOOP, 2))
        if known and len(held_out) > 20:
            self._check_corrected(posterior, held_out, trained.seconds_training / 10)
        return posterior

    def _check_corrected(self, posterior: TrainedPosterior, held_out: Simulations, seconds: float) -> None:
        """Rank corrected draws of as many data sets as that takes so many seconds for, at most 64."""

        def corrected(some: Simulations) -> list[Draws]:
            return posterior.corrected(of_simulations(some), self.setup.seed(Stage.LOOP, 3))

        corrected(held_out.take(slice(1)))  # compiles
        start = time.perf_counter()
        corrected(held_out.take(slice(4)))
        number = min(64, int(4 * seconds / (time.perf_counter() - start)))
        if number < 20:  # ranks of fewer say little
            return
        some = held_out.take(slice(number))
        log_joint = posterior.compiled.log_joint(some.unconstrained, of_simulations(some))
        warn_if_corrected_off(self.spec, corrected(some), log_joint, some, self.setup.seed(Stage.LOOP, 4))

    def _ranked(self, held_out: Simulations) -> Simulations:
        """Simulations that neither the network nor a score has learned from; a sketch is no part of the score."""
        if self.plan.number is not None:
            return held_out
        seed = self.setup.seed(Stage.NOVELTY)
        return self.simulator.with_extra(None)(8192, seed, cores=self.plan.cores)  # little beside those of training


def continue_training(
    posterior: TrainedPosterior,
    num_steps: int | None,
    *,
    max_time: float | None,
    context: Mapping[str, Any] | None,
    missing: Mapping[str, Any] | None,
    simulations: xr.DataTree | None,
    device: str | torch.device | None,
    progressbar: bool,
) -> TrainedPosterior:
    """Train a posterior further; :meth:`AmortizedPosterior.continue_training` says how."""
    if posterior.local_to is not None:
        raise ValueError("a refined posterior is trained by refine(), for its one data set")
    spec, provenance, kwargs = posterior.spec, posterior.provenance, posterior.compile_kwargs
    steps = provenance.training.steps if num_steps is None else num_steps
    options = replace(provenance.training, num_steps=steps, max_time=max_time)
    context = posterior.context if context is None else context
    sources, gaps = sources_again(spec, context, posterior.missing if missing is None else missing)
    simulator = training_simulator(spec, sources, gaps, kwargs)
    setup = Setup(options, provenance.entropy, choose_device(device), progressbar, kwargs)
    given = None
    if provenance.user_simulations:
        if simulations is None:
            raise ValueError("simulations: this posterior was trained on simulations of yours; pass them again")
        given = read_simulations(spec, simulations, kwargs)
    plan = SimulationPlan(provenance.num_simulations if given is None else len(given), provenance.cores)
    fit = PosteriorFit(spec, sources, gaps, simulator, setup, plan, given=given)
    return replace(fit.resume(posterior), learned=posterior.learned)
