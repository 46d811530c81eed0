"""Training an amortized posterior: the model's simulations, the networks they call for, and the loop."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from pymc_amortized.approximators.fitting.pace import available_cores
from pymc_amortized.approximators.fitting.plan import plan_posterior
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import (
    Stage,
    stage_integer,
    stage_seed,
)
from pymc_amortized.approximators.fitting.simulate import read_simulations, sources_again
from pymc_amortized.approximators.posterior.check import warn_if_off
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.density.missing import Rule, find_rules
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.levels import hierarchy_levels
from pymc_amortized.graph.model.sizes import GROUP
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.atoms import refuse_prior_atoms
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.simulator import Simulator, describe_dropped
from pymc_amortized.graph.structure.structure import find_structure
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import SLOWEST, Sketch, make_sketch, seconds_for_each
from pymc_amortized.networks.choices import density_options
from pymc_amortized.networks.posterior_network import DensityChoice, PosteriorNetwork, SummaryChoice
from pymc_amortized.novelty.reference import learn_reference
from pymc_amortized.training import (
    Batch,
    Batches,
    Condensing,
    FixedSimulations,
    FreshSimulations,
    Trained,
    Training,
    TrainingState,
    choose_device,
    report,
    torch_threads,
    train,
)
from pymc_amortized.training.options import DEFAULT_SECONDS, SKETCHED_SECONDS
from pymc_amortized.training.source import REFILL_BATCHES

logger = logging.getLogger("pymc_amortized")

PILOT = 4096
"""Simulations from which standardization and the networks' starting point are learned."""
STRUCTURE_SIMULATIONS = 32
"""Simulations at which the density is asked what the axes of the data are."""
HELD_OUT = 2048
"""Simulations that judge the weights while training on fresh ones."""
TIMED_SECONDS = 0.1
"""How long the simulator is tried to learn its speed."""
SIMULATION_SECONDS = 60.0
"""What simulating may cost at most, unless the user says otherwise: about what training costs."""
SLOW_BATCH = 0.05
"""Seconds that simulating one batch may take: several training steps. Slower ones are simulated once and reused."""
FEWEST = 2000
"""A fixed set chosen for a slow simulator is not smaller than this, whatever it costs."""
SECONDS_WORTH_PROCESSES = 20.0
"""Starting processes and compiling in each costs about 10 s."""
CHECKED = 32
"""Held-out data sets on which the importance efficiency is measured at the end."""
DOUBTFUL_EFFICIENCY = 0.05
"""Below this, twenty proposals buy less than one independent draw; sampling makes at most 16 for each."""
DOUBTFUL_SHARE = 0.1
RANKED = 8192
"""Fresh simulations that data sets are ranked among for novelty; beside those of training they cost nothing."""
SKETCHED_REFILL = 8
"""Batches that are made at a time with their sketches, which takes seconds: training ends with one of them."""
SKETCHED_PASSES = 4
"""How often a simulation is used that comes with a sketch, where the number of steps is given."""
NOTABLE_DROPS = 0.01
"""A share of dropped simulations that is warned about: the prior is visibly not what was written."""


class PosteriorFit:
    """One training, from the model to the posterior."""

    learns_all = False
    """Whether the network is to learn what could be drawn exactly, too."""

    def __init__(
        self,
        spec: ModelSpec,
        context: Mapping[str, Any],
        missing: Mapping[str, Any],
        options: Training,
        entropy: tuple[int, ...],
        device: torch.device,
        progressbar: bool,
        compile_kwargs: CompileKwargs | None,
    ) -> None:
        self.spec, self.context, self.missing = spec, context, missing
        self.options, self.entropy = options, entropy
        self.device, self.progressbar, self.compile_kwargs = device, progressbar, compile_kwargs
        sampler = ContextSampler(spec, context, missing)
        self.simulator = Simulator(spec, context=sampler, deterministics=False, compile_kwargs=compile_kwargs)
        self.num_simulations: int | None = None
        self.chosen = False  # their number, because they take long
        self.cores, self.fixed_cores = 1, False
        self.given: Simulations | None = None
        self.seconds = 0.0
        self.cost = 0.0
        self.workers = 0
        self.condensing: Condensing | None = None
        self.sketched: bool | None = None
        self.inputs: Inputs

    def use(self, simulations: Simulations) -> None:
        """Train on the user's simulations."""
        self.given, self.num_simulations = simulations, len(simulations)

    def plan(self, num_simulations: int | None, cores: int | None) -> None:
        """Decide how many simulations to make, and in how many processes, by the simulator's speed."""
        self.num_simulations = num_simulations
        self.cores, self.fixed_cores = cores or 1, cores is not None
        if num_simulations is not None and cores is not None:
            return
        self.cost = cost = self._seconds_per_simulation()
        batch_cost = cost * self.options.batch_size
        self._choose_cores()
        if num_simulations is None and batch_cost / self.cores > SLOW_BATCH:
            self.chosen = True
            self.num_simulations = max(self._affordable(cost), FEWEST)
            logger.info(
                "One simulation takes %.2g ms: training on a fixed set of %d (num_simulations=%d repeats this).",
                1e3 * cost,
                self.num_simulations,
                self.num_simulations,
            )

    def _choose_cores(self) -> None:
        """Take several processes where what simulations cost is worth their start, unless the user has chosen."""
        number = self.num_simulations or self.options.batch_size * self.options.steps
        if not self.fixed_cores and min(self.cost * number, self._budget) > SECONDS_WORTH_PROCESSES:
            self.cores = available_cores()

    @property
    def _budget(self) -> float:
        """Seconds that simulations may take, all of them, before training."""
        return min(SIMULATION_SECONDS, (self.options.max_time or math.inf) / 2)

    def _affordable(self, cost: float) -> int:
        """Return how many simulations can be made, or sketched, at a cost of so many seconds each."""
        return int(self._budget * self.cores / cost)

    def _seconds_per_simulation(self) -> float:
        """Time the simulator, with as many simulations as it takes to see beyond the cost of a call."""
        seed, n, seconds = stage_seed(self.entropy, Stage.TIMING), 1, 0.0
        # as training does, which makes many at a time: fewer would come in smaller groups where sizes differ
        most = PILOT if not self.spec.sizes else GROUP
        self.simulator.check_ends()  # compiles
        while seconds < TIMED_SECONDS and n < most:
            n *= 4
            start = time.perf_counter()
            self.simulator.chunk(n, seed)
            seconds = time.perf_counter() - start
        return seconds / n

    def run(
        self, summary: SummaryChoice, density: DensityChoice, given: Mapping[str, str | Sequence[str]]
    ) -> TrainedPosterior:
        """Simulate, choose the networks and train."""
        pilot = self._pilot()
        structure = self._structure(pilot, given)
        gaps = self._gaps(pilot)
        pilot = self._see(pilot, structure, gaps, summary, density)
        statistics, held_out = self._parts(pilot)
        some = statistics.take(slice(PILOT))
        network = self._built(some, summary, density)
        self._plan_steps(network, statistics)
        source = self._source(network, statistics)
        return self._train(network, gaps, source, held_out, pilot, some, None)

    def _gaps(self, pilot: Simulations) -> dict[str, Rule | None]:
        return find_rules(self.spec, pilot, stage_seed(self.entropy, Stage.STRUCTURE, 1), self.compile_kwargs)

    def _see(
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_integer(self.entropy, Stage.NETWORK))
            made = make_sketch(self.spec, structure, gaps, pilot.take(slice(PILOT)), self.compile_kwargs)
        if isinstance(made, str):
            if self.sketched:
                raise ValueError(f"sketch=True: the posterior cannot be sketched by the density: {made}")
            logger.info("Posteriors are not sketched by the density: %s.", made)
            return pilot
        sketch, seconds = made, seconds_for_each(made.of_simulations, pilot)
        most = max(self._affordable(seconds), PILOT + HELD_OUT)  # as many as fresh simulations begin with
        if self.sketched is None and (seconds > SLOWEST or (len(pilot) > most and not self.chosen)):
            logger.info(
                "Posteriors are not sketched by the density, which would take %.2g ms for each of %d data sets before "
                "training (sketch=True does it all the same).",
                1e3 * seconds,
                len(pilot),
            )
            return pilot
        if self.learns_all or density_options(density, self.spec.dim) is None:  # the user's is of all parameters
            sketch = replace(sketch, number_drawn=0)
        logger.info(
            "Posteriors are sketched by the density, in %.2g ms for each data set%s.",
            1e3 * seconds,
            _exactly(self.spec, sketch),
        )
        self.cost += seconds
        self._choose_cores()
        if self.options.passes is None and self.options.num_steps is not None:
            self.options = replace(self.options, passes=SKETCHED_PASSES)
        if self.chosen and len(pilot) > most:
            self.num_simulations = most
            logger.info("Sketching takes longer than simulating: the set has %d data sets now.", most)
        return self._sketch_by(sketch, pilot.take(slice(self.num_simulations)))

    def _sketch_by(self, sketch: Sketch, pilot: Simulations) -> Simulations:
        self.inputs = replace(self.inputs, sketch=sketch)
        self.simulator = self.simulator.sketching(sketch.of_simulations)
        return replace(pilot, sketch=sketch.of_simulations(pilot, self.cores))

    def _built(self, some: Simulations, summary: SummaryChoice, density: DensityChoice) -> PosteriorNetwork:
        """Choose the networks, and start them at what some simulations say."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_integer(self.entropy, Stage.NETWORK))
            return PosteriorNetwork.build(
                self.inputs.layout,
                some.unconstrained,
                **self.inputs(of_simulations(some)),
                summary=summary,
                density=density,
                levels=hierarchy_levels(self.spec),
                standardizer=None if self.inputs.sketch is None else self.inputs.sketch.start.standardizer,
                places=None if self.inputs.sketch is None else self.inputs.sketch.learned,
            )

    def resume(self, posterior: TrainedPosterior) -> TrainedPosterior:
        """Train a posterior's network further."""
        pilot, self.inputs = self._pilot(), Inputs(self.spec, posterior.structure)
        if posterior.sketch is not None:
            pilot = self._sketch_by(posterior.sketch, pilot)
        statistics, held_out = self._parts(pilot)
        network = copied(posterior.network)
        self._plan_steps(network, statistics)
        source = self._source(network, statistics)
        some = statistics.take(slice(PILOT))
        return self._train(network, posterior.gaps, source, held_out, pilot, some, posterior.state)

    def _pilot(self) -> Simulations:
        pilot = self.given if self.given is not None else self._simulated_pilot()
        refuse_prior_atoms(self.spec, pilot, by_user=self.given is not None)
        return pilot

    def _simulated_pilot(self) -> Simulations:
        start = time.perf_counter()
        pilot = self.simulator(self._pilot_size(), stage_seed(self.entropy, Stage.PILOT), cores=self.cores)
        self.seconds = time.perf_counter() - start
        share = sum(pilot.dropped.values()) / pilot.attempted
        if pilot.dropped:
            logger.log(
                logging.WARNING if share > NOTABLE_DROPS else logging.INFO,
                "Of %d simulations, %.2f%% were dropped, which truncates the prior: %s.",
                pilot.attempted,
                100 * share,
                describe_dropped(pilot.dropped, pilot.attempted),
            )
        if self.spec.potentials:
            logger.warning(
                "The potentials %s are not simulated; importance weights bring them in. Where they matter much, "
                "check pareto_k.",
                list(self.spec.potentials),
            )
        return pilot

    def _pilot_size(self) -> int:
        return self.num_simulations or PILOT

    def _parts(self, pilot: Simulations) -> tuple[Simulations, Simulations]:
        """Simulations to learn from (fixed set) or to learn statistics from (fresh), and those held out."""
        if self.num_simulations is None:
            held_out = self.simulator(HELD_OUT, stage_seed(self.entropy, Stage.HELD_OUT), cores=self.cores)
            return pilot, held_out
        order = np.random.default_rng(stage_seed(self.entropy, Stage.HELD_OUT)).permutation(len(pilot))
        size = min(max(round(self.options.held_out * len(pilot)), 1), len(pilot) - 1, HELD_OUT)
        return pilot.take(order[size:]), pilot.take(order[:size])

    def _structure(
        self, pilot: Simulations, given: Mapping[str, str | Sequence[str]], weighed_by: ModelSpec | None = None
    ) -> Structure:
        seed = stage_seed(self.entropy, Stage.STRUCTURE)
        structure = structure_of(self.spec, self.context, pilot, seed, given, self.compile_kwargs, weighed_by)
        logger.info("Structure of the data:\n%s", structure)
        return structure

    def _prepared(
        self, network: PosteriorNetwork, simulations: Simulations
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        given = self.inputs(of_simulations(simulations))
        z, encoded = network.prepare(simulations.unconstrained, given["data"], self.device, sizes=given["sizes"])
        return z, network.measured(encoded)

    def _plan_steps(self, network: PosteriorNetwork, statistics: Simulations) -> None:
        """Decide how many steps to make, by what one takes."""
        network.to(self.device)
        batch = statistics.take(slice(self.options.batch_size))
        plan = plan_posterior(
            network,
            lambda: self._prepared(network, batch),
            self.simulating,
            self.cores,
            self.options,
            DEFAULT_SECONDS if self.inputs.sketch is None else SKETCHED_SECONDS,
        )
        self.workers, self.options, self.condensing = plan.workers, plan.options, plan.condensing

    @property
    def simulating(self) -> float:
        """Seconds that one process takes for the simulations of a batch; 0 for a fixed set."""
        return 0.0 if self.num_simulations is not None else self.cost * self.options.batch_size

    def _source(self, network: PosteriorNetwork, statistics: Simulations) -> Batches:
        return self._batches(
            lambda: self._prepared(network, statistics),
            lambda simulations, before: self._prepared(network, simulations),
        )

    def _batches(self, fixed: Callable[[], Batch], fresh: Callable[[Simulations, int], Batch]) -> Batches:
        """Where training batches come from.

        Parameters
        ----------
        fixed : callable
            Returns what the fixed set is prepared to, if there is one.
        fresh : callable
            The same for simulations just made, and how many were made before.
        """
        if self.num_simulations is not None:
            return FixedSimulations(
                *fixed(),
                self.options.batch_size,
                seed=stage_integer(self.entropy, Stage.TRAINING) % 2**63,
                device=self.device,
                seconds=self.seconds,
            )
        source: FreshSimulations | None = None
        workers = Workers(self.simulator, self.workers) if self.workers else None

        def simulate(n: int) -> Batch:
            before = source.simulations if source is not None else 0
            seed = stage_seed(self.entropy, Stage.TRAINING, before)
            # groups of one size are mixed by the batches, which take every k-th simulation
            return fresh(self.simulator(n, seed, cores=self.cores, mixed=False, workers=workers), before)

        source = FreshSimulations(
            simulate,
            self.options.batch_size,
            device=self.device,
            workers=workers,
            passes=self.options.passes or 1,
            most=REFILL_BATCHES if self.inputs.sketch is None else SKETCHED_REFILL,
        )
        return source

    def _train(
        self,
        network: PosteriorNetwork,
        gaps: Mapping[str, Rule | None],
        source: Batches,
        held_out: Simulations,
        pilot: Simulations,
        learned: Simulations,
        state: TrainingState | None,
    ) -> TrainedPosterior:
        with torch_threads(self.options.threads or torch.get_num_threads()):
            trained: Trained = train(
                network,
                source,
                self._prepared(network, held_out),
                self.options,
                seed=stage_integer(self.entropy, Stage.LOOP) % 2**63,
                resume=state,
                progress=self.progressbar,
                device=self.device,
                condensing=self.condensing,
            )
        return self._finished(network, gaps, trained, held_out, pilot, learned)

    def _finished(
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
            provenance=Provenance.of(
                trained,
                pilot,
                entropy=self.entropy,
                training=self.options,
                num_simulations=self.num_simulations,
                cores=self.cores,
                user_simulations=self.given is not None,
            ),
            state=trained.state,
            context=self.context,
            missing=self.missing,
            gaps=gaps,
            reference=learn_reference(*self.inputs.summarized_by(network), learned, self._ranked(held_out)),
            sketch=self.inputs.sketch,
            compile_kwargs=self.compile_kwargs,
        )
        self._report(trained, posterior, held_out)
        warn_if_off(network, self.inputs, held_out, stage_seed(self.entropy, Stage.LOOP, 2))
        return posterior

    def _ranked(self, held_out: Simulations) -> Simulations:
        """Simulations that neither the network nor a score has learned from; a sketch is no part of the score."""
        if self.num_simulations is not None:
            return held_out
        return self.simulator.sketching(None)(RANKED, stage_seed(self.entropy, Stage.NOVELTY), cores=self.cores)

    def _report(self, trained: Trained, posterior: TrainedPosterior, held_out: Simulations) -> None:
        """Log how training went, and how efficient its result is where the density can tell."""
        if self.spec.density_obstacle is not None:
            report(trained)
            return
        seed = stage_seed(self.entropy, Stage.LOOP, 1)
        weights = posterior.weights_of(of_simulations(held_out.take(slice(CHECKED))), seed)
        if not weights:
            report(trained)
            return
        efficiency = float(np.median([w.ess / w.weights.size for w in weights]))
        poor = sum(not w.reliable for w in weights)
        remark = (
            f"On {len(weights)} simulated data sets the importance efficiency is {efficiency:.0%} (median); "
            f"{poor} have a Pareto k too large."
        )
        doubtful = efficiency < DOUBTFUL_EFFICIENCY or poor > DOUBTFUL_SHARE * len(weights)
        report(trained, remark, doubtful=doubtful or trained.history.restarts > 0)


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
    spec, provenance = posterior.spec, posterior.provenance
    steps = provenance.training.steps if num_steps is None else num_steps
    options = replace(provenance.training, num_steps=steps, max_time=max_time)
    sources, gaps = sources_again(
        spec,
        posterior.context if context is None else context,
        posterior.missing if missing is None else missing,
    )
    fit = PosteriorFit(
        spec,
        sources,
        gaps,
        options,
        provenance.entropy,
        choose_device(device),
        progressbar,
        posterior.compile_kwargs,
    )
    if provenance.user_simulations:
        if simulations is None:
            raise ValueError("simulations: this posterior was trained on simulations of yours; pass them again")
        fit.use(read_simulations(spec, simulations, posterior.compile_kwargs))
    else:
        fit.num_simulations, fit.cores = provenance.num_simulations, provenance.cores
    return replace(fit.resume(posterior), learned=posterior.learned)


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
        pilot = simulator.of_lengths(STRUCTURE_SIMULATIONS, seed, lengths)
    fixed = (weighed_by or joint).at(lengths)
    structure = find_structure(fixed, pilot, LogDensity(fixed, compile_kwargs), seed, given)
    return structure.with_ranges({r.dim: (r.smallest, r.largest) for r in spec.sizes})


def copied(network: PosteriorNetwork) -> PosteriorNetwork:
    """Copy a network, so that training the copy leaves the original as it is."""
    return copy.deepcopy(network)


def _exactly(spec: ModelSpec, sketch: Sketch) -> str:
    """Say which parameters are drawn exactly."""
    if not sketch.number_drawn:
        return ""
    names = np.array([p.name for p in spec.parameters for _ in range(p.size)])[sketch.drawn.places]
    learned = spec.dim - sketch.number_drawn
    return (
        f"; given the other {learned}, {sketch.number_drawn} of {spec.dim} parameters are normal and drawn exactly "
        f"({', '.join(dict.fromkeys(names))})"
    )
