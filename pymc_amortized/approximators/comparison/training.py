"""One training of a comparison, from the models to the calibrated classifier."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.comparison.judgement import COMPARED, judged, warn_of_atoms, warn_of_resolution
from pymc_amortized.approximators.comparison.model_evidence import Kept
from pymc_amortized.approximators.comparison.targets import (
    CLEAR,
    KNOWN,
    SketchedEvidence,
    contradiction,
    find_evidence,
    known_share,
    targets,
)
from pymc_amortized.approximators.fitting.pace import available_cores
from pymc_amortized.approximators.fitting.plan import plan_classifier
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import Stage, stage_integer, stage_seed
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.posterior.training import (
    FEWEST,
    PILOT,
    SECONDS_WORTH_PROCESSES,
    SIMULATION_SECONDS,
    SKETCHED_PASSES,
    SKETCHED_REFILL,
    SLOW_BATCH,
    TIMED_SECONDS,
    structure_of,
)
from pymc_amortized.correction.evidence import kept_share
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.common import Common, common_structure
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import log_orderings
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.pool import Pool, labelled
from pymc_amortized.graph.simulation.simulator import describe_dropped
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import SLOWEST, TIMED, seconds_for_each
from pymc_amortized.networks.choices import SummaryChoice
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.novelty.reference import extents, learn_reference
from pymc_amortized.numerics.odds import Calibration
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.training import (
    Batch,
    Batches,
    FixedSimulations,
    FreshSimulations,
    Trained,
    Training,
    torch_threads,
    train,
)
from pymc_amortized.training.source import REFILL_BATCHES

logger = logging.getLogger("pymc_amortized")

BATCH = 1024
"""Fewest simulations in a batch of labels, which are noise. At equal time batches of 256 left 1.3 times the error in
log odds of a regression, and 4 times that of group effects."""
# Labels tell less than parameters do: simulations are used once, too (a pair of regressions, 180 s: log Bayes factors
# are off by 0.058 after 2,200 steps on 2.3 million simulations, by 0.116 after 5,000 on 1.1 million).
AVERAGING = 0.3
"""Smallest share of the steps that weights are averaged over, for the same reason. With that of posteriors, 0.03, the
errors in log odds of regressions of 30 and 100 rows were 0.049 and 0.045, with this 0.036 and 0.027."""
HELD_OUT = 4096
"""Simulations that judge the weights while training: a log score of 0.3 then has an error of 0.008."""
CALIBRATED = 32_768
"""Simulations of all models that probabilities are calibrated on: they show probabilities down to 3e-5."""
CONTRADICTED = 4096
"""Simulations of each model on which its density is held against its simulations."""
RANKED = 8192
"""Of these, simulations of each model that data sets are ranked among, as for posteriors."""


class ComparisonFit:
    """One training, from the models to the comparison."""

    def __init__(
        self,
        common: Common,
        specs: Mapping[str, ModelSpec],
        sources: Mapping[str, Any],
        gaps: Mapping[str, Any],
        options: Training,
        entropy: tuple[int, ...],
        device: torch.device,
        progressbar: bool,
        compile_kwargs: CompileKwargs | None,
    ) -> None:
        self.common, self.spec, self.specs = common, common.spec, dict(specs)
        self.sources, self.gaps = dict(sources), dict(gaps)
        self.options, self.entropy, self.device = options, entropy, device
        self.progressbar, self.compile_kwargs = progressbar, compile_kwargs
        self.pool = self.teacher = Pool(common, specs, sources, gaps, compile_kwargs)
        self.num_simulations: int | None = None
        self.sketched: bool | None = None
        self.cores, self.cost = 1, 0.0

    def _plan(self, num_simulations: int | None, cores: int | None) -> None:
        """Decide how many simulations to make, and in how many processes, by the simulators' speed."""
        self.num_simulations, self.cores = num_simulations, cores or 1
        cost = self._seconds_per_simulation()
        self.cost += cost
        budget = min(SIMULATION_SECONDS, (self.options.max_time or math.inf) / 2)
        batch = self.options.batch_size
        expected = self.cost * (num_simulations or batch * self.options.steps)
        expected = expected if num_simulations else min(expected, budget)
        if cores is None and expected > SECONDS_WORTH_PROCESSES:
            self.cores = available_cores()
        if num_simulations is None and cost * batch / self.cores > SLOW_BATCH:
            self.num_simulations = max(int(budget * self.cores / self.cost), FEWEST)
            logger.info(
                "One simulation takes %.2g ms: training on a fixed set of %d (num_simulations=%d repeats this).",
                1e3 * cost,
                self.num_simulations,
                self.num_simulations,
            )

    def _seconds_per_simulation(self) -> float:
        seed, n, seconds = stage_seed(self.entropy, Stage.TIMING), self.pool.number, 0.0
        self.pool.chunk(n, seed)  # compiles
        while seconds < TIMED_SECONDS and n < PILOT:
            n *= 4
            start = time.perf_counter()
            self.pool.chunk(n, seed)
            seconds = time.perf_counter() - start
        return seconds / n

    def run(
        self,
        summary: SummaryChoice,
        given: Mapping[str, str | Sequence[str]],
        posteriors: Mapping[str, AmortizedPosterior],
        prior: Mapping[str, float],
        num_simulations: int | None,
        cores: int | None,
    ) -> AmortizedComparison:
        """Simulate, choose the network, train, calibrate, and hold the two answers against each other."""
        self.seconds = time.perf_counter()
        pilot = self.pool.of_sizes(PILOT, stage_seed(self.entropy, Stage.PILOT))
        kept = self._kept(pilot)
        comparable = not warn_of_atoms(self.spec, pilot)
        structures, structure = self._structures(pilot, given, posteriors)
        everything = labelled(pilot)
        network = self._network(everything, pilot, structure, summary)
        found: SketchedEvidence | str = "a probability stands beside a density"
        if comparable and self.sketched is not False:
            found = self._evidence(structures, posteriors, pilot)
        self._teach(found)
        self._plan(num_simulations, cores)
        training_set, held_out, rest = self._parts()
        trained = self._train(network, structure, everything, training_set, held_out)
        calibration = self._calibration(network, structure, rest)
        inputs, labels = Inputs(self.spec, structure), rest.unconstrained[:, 0]
        references = {
            name: learn_reference(inputs, network, made, rest.take(labels == k).take(slice(RANKED)))
            for k, (name, made) in enumerate(pilot.items())
        }
        comparison = AmortizedComparison(
            specs=self.specs,
            common=self.common,
            network=network,
            structure=structure,
            prior=prior,
            calibration=calibration,
            references=references,
            posteriors=dict(posteriors),
            kept=kept,
            error=math.nan,
            history=trained.history,
            provenance=self._provenance(everything, trained),
            context=self.sources,
            missing=self.gaps,
            compile_kwargs=self.compile_kwargs,
        )
        comparison.__dict__["pool"] = self.pool
        warn_of_resolution(calibration)
        some = of_simulations(rest.take(slice(COMPARED)))
        return judged(comparison, trained, some, stage_seed(self.entropy, Stage.LOOP, 2))

    def _kept(self, pilot: Mapping[str, Simulations]) -> dict[str, Kept]:
        """Count what each model's density excludes, and say so where it matters."""
        kept = {}
        for name, made in pilot.items():
            share = kept_share(made.dropped, made.attempted)
            kept[name] = Kept(share, made.attempted, log_orderings(self.specs[name]))
            dropped = 1 - len(made) / made.attempted if made.dropped else 0.0
            if made.dropped:
                logger.log(
                    logging.WARNING if dropped > THRESHOLDS.excluded else logging.INFO,
                    "Of %d simulations of model %r, %.2f%% were dropped: %s. What is compared is the model with its "
                    "prior truncated to the rest.",
                    made.attempted,
                    name,
                    100 * dropped,
                    describe_dropped(made.dropped, made.attempted),
                )
        return kept

    def _structures(
        self,
        pilot: Mapping[str, Simulations],
        given: Mapping[str, str | Sequence[str]],
        posteriors: Mapping[str, AmortizedPosterior],
    ) -> tuple[dict[str, Structure], Structure]:
        """The structure of each model's data, and the one for all."""
        found = {}
        for k, (name, spec) in enumerate(self.specs.items()):
            if name in posteriors and not given:
                found[name] = posteriors[name].structure
                continue
            seed = stage_seed(self.entropy, Stage.STRUCTURE, k)
            sources = {c.name: self.sources[c.name] for c in spec.context}
            own = self.pool.simulators[name](64, seed) if not spec.sizes else pilot[name]
            found[name] = structure_of(spec, sources, own, seed, given, self.compile_kwargs)
        ranges = {r.dim: (r.smallest, r.largest) for r in self.spec.sizes}
        structure = common_structure(found, self.common.names).with_ranges(ranges)
        logger.info("Structure of the data, for all models:\n%s", structure)
        return found, structure

    def _teach(self, found: SketchedEvidence | str) -> None:
        """Have the classifier taught evidence, or labels, for a reason."""
        options = self.options
        if isinstance(found, str):
            if self.sketched:
                raise ValueError(f"sketch=True: the evidence of the models cannot be sketched: {found}")
            if self.sketched is None:
                logger.info("The classifier is taught by labels, not by sketches of the models' evidence: %s.", found)
            self.options = replace(
                options,
                batch_size=max(options.batch_size, BATCH),
                averaging=max(options.averaging, AVERAGING),
                passes=options.passes or 1,
            )
            return
        self.teacher = self.pool.sketching(found)
        if options.passes is None and options.num_steps is not None:
            self.options = replace(options, passes=SKETCHED_PASSES)

    def _evidence(
        self,
        structures: Mapping[str, Structure],
        posteriors: Mapping[str, AmortizedPosterior],
        pilot: Mapping[str, Simulations],
    ) -> SketchedEvidence | str:
        """What the classifier can be taught beside the number of the model; or why there is nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_integer(self.entropy, Stage.NETWORK))
            seed = stage_seed(self.entropy, Stage.STRUCTURE, len(self.specs))
            found = find_evidence(self.specs, structures, posteriors, pilot, seed, self.compile_kwargs)
        if isinstance(found, str):
            return found
        some = labelled({name: made.take(slice(CONTRADICTED)) for name, made in pilot.items()})
        seconds = seconds_for_each(found, some.take(slice(None, None, max(len(some) // TIMED, 1))))
        if seconds > SLOWEST and not self.sketched:
            return f"these would take {1e3 * seconds:.0f} ms for each data set"
        some = replace(some, sketch=found(some))
        share, off = known_share(some), contradiction(some)
        if share < KNOWN:
            return f"it is known of {share:.0%} of simulated data sets only"
        if off > CLEAR:
            logger.warning(
                "Simulated data sets do not come from the models as often as sketches of their evidence say (%.1f "
                "standard errors apart): a model's density is not that of its simulator, or sketches miss part of a "
                "posterior, a mode say. The classifier is taught by labels.",
                off,
            )
            return "these disagree with simulations"
        logger.info(
            "The classifier is taught the evidence of all models, sketched in %.2g ms for each data set and known of "
            "%.0f%%; the others have labels.",
            1e3 * seconds,
            100 * share,
        )
        self.cost = seconds
        return found

    def _network(
        self,
        everything: Simulations,
        pilot: Mapping[str, Simulations],
        structure: Structure,
        summary: SummaryChoice,
    ) -> ClassifierNetwork:
        names = list(pilot)
        largest = max(names, key=lambda name: pilot[name].unconstrained.shape[1])
        label = everything.unconstrained[:, 0].astype(int)
        inputs = Inputs(self.spec, structure)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_integer(self.entropy, Stage.NETWORK))
            return ClassifierNetwork.build(
                inputs.layout,
                label,
                **inputs(of_simulations(everything)),
                theta=pilot[largest].unconstrained,
                among=label == names.index(largest),
                summary=summary,
            )

    def _parts(self) -> tuple[Simulations | None, Simulations, Simulations]:
        """Simulations to train on (a fixed set alone), to judge weights by, and to calibrate on."""
        if self.num_simulations is None:
            held_out, rest = (
                pool(n, stage_seed(self.entropy, Stage.HELD_OUT, k), cores=self.cores)
                for k, (pool, n) in enumerate([(self.teacher, HELD_OUT), (self.pool, CALIBRATED)])
            )
            return None, held_out, rest
        made = self.teacher(self.num_simulations, stage_seed(self.entropy, Stage.HELD_OUT), cores=self.cores)
        size = min(max(round(self.options.held_out * len(made)), 1), HELD_OUT)
        calibrated = min(2 * size, len(made) // 4)
        return (
            made.take(slice(size + calibrated, None)),
            made.take(slice(size)),
            made.take(slice(size, size + calibrated)),
        )

    def _prepared(self, network: ClassifierNetwork, structure: Structure, made: Simulations) -> Batch:
        given = Inputs(self.spec, structure)(of_simulations(made))
        taught = targets(made, self.pool.number)
        z, encoded = network.prepare(taught, given["data"], self.device, sizes=given["sizes"])
        return z, network.measured(encoded)

    def _train(
        self,
        network: ClassifierNetwork,
        structure: Structure,
        everything: Simulations,
        training_set: Simulations | None,
        held_out: Simulations,
    ) -> Trained:
        some = np.random.default_rng(stage_seed(self.entropy, Stage.TRAINING, 0)).permutation(len(everything))
        network.to(self.device)
        batch = everything.take(some[: self.options.batch_size])
        simulating = self.cost * self.options.batch_size if training_set is None else 0.0
        plan = plan_classifier(
            network,
            lambda: self._prepared(network, structure, batch),
            simulating,
            self.cores,
            self.options,
        )
        self.options = plan.options
        held = self._prepared(network, structure, held_out)
        with torch_threads(self.options.threads or torch.get_num_threads()):
            return train(
                network,
                self._source(network, structure, training_set, plan.workers),
                held,
                self.options,
                seed=stage_integer(self.entropy, Stage.LOOP) % 2**63,
                progress=self.progressbar,
                device=self.device,
            )

    def _source(
        self, network: ClassifierNetwork, structure: Structure, training_set: Simulations | None, processes: int
    ) -> Batches:
        if training_set is not None:
            return FixedSimulations(
                *self._prepared(network, structure, training_set),
                self.options.batch_size,
                seed=stage_integer(self.entropy, Stage.TRAINING) % 2**63,
                device=self.device,
                seconds=time.perf_counter() - self.seconds,
            )
        source: FreshSimulations | None = None
        workers = Workers(self.teacher, processes) if processes else None

        def simulate(n: int) -> Batch:
            made = source.simulations if source is not None else 0
            seed = stage_seed(self.entropy, Stage.TRAINING, 1, made)
            return self._prepared(network, structure, self.teacher(n, seed, cores=self.cores, workers=workers))

        source = FreshSimulations(
            simulate,
            self.options.batch_size,
            device=self.device,
            workers=workers,
            passes=self.options.passes or 1,
            most=SKETCHED_REFILL if self.teacher.sketched else REFILL_BATCHES,
        )
        return source

    def _calibration(self, network: ClassifierNetwork, structure: Structure, rest: Simulations) -> Calibration:
        datasets = of_simulations(rest)
        logits = network.logits(**Inputs(self.spec, structure)(datasets))
        rng = np.random.default_rng(stage_seed(self.entropy, Stage.LOOP, 1))
        labels, at = rest.unconstrained[:, 0].astype(int), extents(self.spec, datasets)
        calibration = Calibration.fit(logits, labels, at, rng)
        off = contradiction(replace(rest, sketch=calibration(logits, at)))
        if off > CLEAR and self.teacher is not self.pool:
            logger.warning(
                "Simulated data sets do not come from the models as often as the classifier says (%.1f standard errors "
                "apart): it needs longer training, or the sketched evidence that it was taught misses part of a "
                "posterior, a mode say. Train longer, or by labels (sketch=False).",
                off,
            )
        return calibration

    def _provenance(self, pilot: Simulations, trained: Trained) -> Provenance:
        return Provenance.of(
            trained,
            pilot,
            entropy=self.entropy,
            training=self.options,
            num_simulations=self.num_simulations,
            cores=self.cores,
        )
