"""Training an amortized posterior: the model's simulations, the networks they call for, and the loop."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pymc_amortized.approximators.fitting.groups import train_groups
from pymc_amortized.approximators.fitting.plan import Plan, plan_posterior
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.fitting.simulating import (
    PILOT,
    fixed_source,
    fresh_source,
    prepare_batch,
    report_pilot,
    reuse_sketched,
    stored_source,
    structure_of,
)
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan
from pymc_amortized.approximators.posterior.check import Measure, rank_corrected, report_efficiency, warn_if_off
from pymc_amortized.approximators.posterior.choosing import Sketched, build_network, choose_sketch, seconds_of_training
from pymc_amortized.approximators.posterior.compiled import Compiled
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.approximators.simulations.given import StoredSimulations
from pymc_amortized.approximators.simulations.simulate import CHUNK, simulate_to_store
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.density.rules import find_rules
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.simulation.atoms import refuse_prior_atoms
from pymc_amortized.graph.simulation.continuity import refuse_jumps
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.levels import hierarchy_levels
from pymc_amortized.inputs.group_network import GroupNetwork
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import halved
from pymc_amortized.logs import logger, working
from pymc_amortized.networks.choices import density_options
from pymc_amortized.networks.posterior_network import DensityChoice, PosteriorNetwork, SummaryChoice
from pymc_amortized.novelty.reference import RANKED, enough, learn_reference
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.stores.store import Manifest
from pymc_amortized.training import (
    Batch,
    Batches,
    Efficiency,
    Stopping,
    Trained,
    Training,
    TrainingState,
)
from pymc_amortized.training.options import EXPECTED_STEPS

TARGET = THRESHOLDS.wanted_efficiency
"""Importance efficiency that is good enough: the first proposals then give all the draws that are asked for."""
HELD_OUT = 2048
"""Simulations that judge the weights while training on fresh ones."""
FEW_HELD_OUT = 512
"""The same where each costs a sketch, and the density judges too: losses are known to 0.01, relative to each other."""
STATISTICS = 1024
"""Of the pilot, as many are sketched: means and scales of what networks are given are known to 3 %."""


class PosteriorFit:
    """One training, from the model to the posterior.

    Parameters
    ----------
    spec, context, missing, simulator
        Of the model.
    setup, plan
        How it is trained, and on how many simulations.
    given : Simulations or StoredSimulations, optional
        The user's, to train on.
    sketched : bool, optional
        Whether posteriors are to be sketched; None where it depends.
    pilot : int
        Simulations that statistics are learned from, unless there is a fixed set.
    target : Efficiency, optional
        At which training ends; None where it goes on as long as that brings something.
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
        given: Simulations | StoredSimulations | None = None,
        sketched: bool | None = None,
        pilot: int = PILOT,
        target: Efficiency | None = None,
    ) -> None:
        self.spec, self.context, self.missing, self.simulator = spec, context, missing, simulator
        self.setup, self.plan, self.given = setup, plan, given
        self.sketched, self.pilot_size = sketched, pilot
        self.target = target
        self.open_ended = setup.options.open_ended
        self.seconds = 0.0  # that a fixed set took
        self.groups: tuple[GroupNetwork, ...] = ()
        self.simulating, self.sketching = plan, 0.0  # the plan without sketches; seconds of one, where that decides
        self.inputs: Inputs  # known once there are simulations to look at

    def run(
        self, summary: SummaryChoice, density: DensityChoice, given: Mapping[str, str | Sequence[str]]
    ) -> TrainedPosterior:
        """Simulate, choose the networks and train."""
        pilot = self.pilot()
        structure = self.structure(pilot, given)
        gaps = self.gaps(pilot)
        seen = self.see(pilot, structure, gaps, summary, density)
        statistics, held_out = self.parts(seen)
        network = self.build(statistics.take(slice(PILOT)), summary, density)
        if self.spec.locals and self.spec.density_obstacle is not None:
            self.groups = train_groups(self.spec, structure, pilot.take(slice(PILOT)), self.setup, warn_if_off)
        return self._train(network, gaps, statistics, held_out, pilot, None)

    def resume(self, posterior: TrainedPosterior) -> TrainedPosterior:
        """Train a posterior's network further."""
        pilot, self.inputs, self.groups = self.pilot(), Inputs(self.spec, posterior.structure), posterior.groups
        seen = pilot if posterior.sketch is None else self._sketch_by(Sketched.by(posterior.sketch, pilot), pilot)
        statistics, held_out = self.parts(seen)
        network = copy.deepcopy(posterior.network)  # the posterior's own stays as it is
        return self._train(network, posterior.gaps, statistics, held_out, pilot, posterior.state)

    @working("Simulating")
    def pilot(self) -> Simulations:
        """Simulate what statistics are learned from: all of a fixed set, or take the user's."""
        if isinstance(self.given, StoredSimulations):
            pilot = self.given.pilot
        elif self.given is not None:
            pilot = self.given
        else:
            start = time.perf_counter()
            pilot = self._stored_pilot() if self.setup.checkpoint and self.plan.number else self._simulated_pilot()
            report_pilot(pilot, self.spec.potentials)
            self.seconds = time.perf_counter() - start
        refuse_prior_atoms(self.spec, pilot, by_user=self.given is not None)
        refuse_jumps(self.spec, pilot)
        return pilot

    def _simulated_pilot(self) -> Simulations:
        number = self.plan.number or self.pilot_size
        return self.simulator(number, self.setup.seed(Stage.PILOT), cores=self.plan.cores_for(number))

    def _stored_pilot(self) -> Simulations:
        """Simulate a fixed set to the checkpoint, chunk by chunk."""
        kept, number = self.setup.checkpoint, self.plan.number
        if kept is None or number is None or self.spec.locals or self.simulator.spec is not self.spec:
            return self._simulated_pilot()
        manifest = Manifest("simulations", "draw", number, CHUNK, (*self.setup.entropy, Stage.PILOT))
        cores = self.plan.cores_for(number)
        store = simulate_to_store(self.simulator, kept.simulations, manifest, cores=cores, progressbar=False)
        attempted, dropped = store.totals()
        made = StoredSimulations(store, self.spec, self.setup.compile_kwargs).read(slice(None))
        return replace(made, attempted=attempted, dropped=dropped)

    @working("Finding the structure of the data")
    def structure(
        self, pilot: Simulations, given: Mapping[str, str | Sequence[str]], weighed_by: ModelSpec | None = None
    ) -> Structure:
        """Find out what the axes of the data are."""
        seed, kwargs = self.setup.seed(Stage.STRUCTURE), self.setup.compile_kwargs
        structure = structure_of(self.spec, self.context, pilot, seed, given, kwargs, weighed_by)
        logger.info("Structure of the data:\n%s", structure)
        return structure

    @working("Finding out how to leave out missing values")
    def gaps(self, pilot: Simulations) -> dict[str, Rule | None]:
        """Find out how missing values are integrated out."""
        return find_rules(self.spec, pilot, self.setup.seed(Stage.STRUCTURE, 1))

    @working("Sketching posteriors")
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
        plan = self.plan = self.plan.holding(self.inputs.layout.values)
        pilot = pilot.take(slice(plan.number)) if plan.chosen else pilot
        stored = self.sketched is None and isinstance(self.given, StoredSimulations)  # each epoch would cost too much
        if self.sketched is False or stored or isinstance(summary, torch.nn.Module):
            return pilot

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
        self.plan = plan.slower(found.seconds, self.setup.options)
        self.setup = reuse_sketched(self.setup)
        if plan.chosen and len(pilot) > most(found.seconds):
            self.plan = replace(self.plan, number=most(found.seconds))
            logger.info("Sketching takes longer than simulating: the set has %d data sets now.", most(found.seconds))
        return self._sketch_by(found, pilot)

    def _sketch_by(self, found: Sketched, pilot: Simulations) -> Simulations:
        self.inputs = replace(self.inputs, sketch=found.sketch)
        always = math.inf if self.spec.locals else 0.0  # a number of steps repeats a training exactly
        self.sketching = found.seconds if self.open_ended else always
        self.simulator = self.simulator.with_extra(found.sketch.of_simulations)
        pilot = pilot.take(slice(self.plan.number or halved(STATISTICS, self.sketching)))
        return found.of_all(pilot, self.plan.cores_for(len(pilot)))

    @working("Simulating what is held out")
    def parts(self, pilot: Simulations) -> tuple[Simulations, Simulations]:
        """Simulations to learn from (fixed set) or to learn statistics from (fresh), and those held out."""
        seed = self.setup.seed(Stage.HELD_OUT)
        if self.plan.number is None:
            number = HELD_OUT if pilot.extra is None else halved(FEW_HELD_OUT, self.sketching)
            return pilot, self.simulator(number, seed, cores=self.plan.cores_for(number))
        order = np.random.default_rng(seed).permutation(len(pilot))
        size = min(max(round(self.setup.options.held_out * len(pilot)), 1), len(pilot) - 1, HELD_OUT)
        return pilot.take(order[size:]), pilot.take(order[:size])

    @working("Making the network")
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
        if isinstance(self.given, StoredSimulations):
            sketch = self.inputs.sketch
            blocks = self.given.training(None if sketch is None else sketch.of_simulations)
            return stored_source(self.setup, (fresh(made, 0) for made in blocks), self.given.beside)
        if self.plan.number is not None:
            return fixed_source(self.setup, fixed(), self.seconds)

        options = self.setup.options
        # starting a process costs as much as a short training
        alone = options.batch_size * EXPECTED_STEPS // (options.passes or 1) if self.open_ended else 0

        def make(n: int, before: int, workers: Workers | None) -> Batch:
            seed = self.setup.seed(Stage.TRAINING, before)
            cores = self.plan.cores_for(n) if before < alone else self.plan.cores
            # groups of one size are mixed by the batches, which take every k-th simulation
            made = self.simulator(n, seed, cores=cores, mixed=False, workers=workers)
            return fresh(made, before)

        return fresh_source(self.setup, make, self.simulator, processes, alone=alone)

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
        asked = self.setup.options.max_time
        batch = statistics.take(slice(self.setup.options.batch_size))
        steps = self.setup.decide(
            "steps",
            Plan,
            lambda: plan_posterior(
                network,
                lambda: self.prepared(network, batch),
                self.plan.seconds_of_batch(self.setup.options),
                self.plan.cores,
                self.setup.bounded,
                seconds_of_training(self.inputs),
            ),
        )
        self.train_by(steps.options)
        source = self.source(
            lambda: self.prepared(network, statistics), lambda made, _: self.prepared(network, made), steps.workers
        )
        held, measure = self.prepared(network, held_out), self.measure(network, gaps, held_out)
        stopping = Stopping(measure, self.target) if self.open_ended else None
        trained = self.setup.train(
            network, source, held, resume=state, last_layers=steps.last_layers, stopping=stopping
        )
        options = self.setup.options
        number = None if self.open_ended else options.num_steps
        self.train_by(replace(options, num_steps=number, max_time=asked))  # so that the same options repeat it
        return self.finish(network, gaps, trained, held_out, pilot, measure)

    def measure(
        self, network: PosteriorNetwork, gaps: Mapping[str, Rule | None], held_out: Simulations
    ) -> Measure | None:
        """What measures the network's efficiency; None without a density."""
        if self.spec.density_obstacle is not None:
            return None
        compiled = Compiled(self.spec, gaps, self.setup.compile_kwargs)
        measure = Measure(network, self.inputs, compiled, held_out, self.setup.seed(Stage.LOOP, 1))
        return measure if len(measure) else None

    def train_by(self, options: Training) -> None:
        """Take options of which the number of steps is planned."""
        self.setup = replace(self.setup, options=options)

    @working("Checking what was trained")
    def finish(
        self,
        network: PosteriorNetwork,
        gaps: Mapping[str, Rule | None],
        trained: Trained,
        held_out: Simulations,
        pilot: Simulations,
        measure: Measure | None,
    ) -> TrainedPosterior:
        """Put together what was trained, and say how good it is."""
        learned = pilot.take(slice(PILOT)) if self.plan.number is None else self.parts(pilot)[0].take(slice(PILOT))
        provenance = Provenance.of(trained, pilot, self.setup, self.plan, user_simulations=self.given is not None)
        settled = provenance.settled and all(one.settled for one in self.groups)
        posterior = TrainedPosterior(
            spec=self.spec,
            network=network,
            structure=self.inputs.structure,
            history=trained.history,
            provenance=replace(provenance, settled=settled),
            state=trained.state,
            context=self.context,
            missing=self.missing,
            gaps=gaps,
            reference=learn_reference(*self.inputs.summarized_by(network), learned, self._ranked(held_out)),
            sketch=self.inputs.sketch,
            compile_kwargs=self.setup.compile_kwargs,
            groups=self.groups,
        )
        if measure is not None:
            posterior.__dict__["compiled"] = measure.compiled
        report_efficiency(trained, measure, self.target)
        warn_if_off(network, self.inputs, held_out, self.setup.seed(Stage.LOOP, 2))
        one = held_out.take(slice(1))  # compiles what results need, so that the first call of sample need not
        posterior.compiled.variables_at(one.unconstrained, of_simulations(one), ())
        if measure is not None and measure.cheap and measure.in_doubt(self.setup.seed(Stage.LOOP, 4)):
            seed = self.setup.seed(Stage.LOOP, 3)
            off = rank_corrected(self.spec, posterior.compiled.log_joint, posterior.corrected, held_out, seed)
            return posterior.replaced(provenance=replace(posterior.provenance, off=off))
        return posterior

    def _ranked(self, held_out: Simulations) -> Simulations:
        """Simulations that neither the network nor a score has learned from; a sketch is no part of the score."""
        if self.plan.number is not None:
            return held_out
        number = enough(self.inputs, RANKED)
        alone = self.simulator.with_extra(None)
        return alone(number, self.setup.seed(Stage.NOVELTY), cores=self.simulating.cores_for(number))
