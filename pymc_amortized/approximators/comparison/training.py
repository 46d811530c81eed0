"""One training of a comparison, from the models to the calibrated classifier."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pymc_amortized.approximators.comparison.agreement import DOUBTFUL, compare_odds, warn_of_resolution
from pymc_amortized.approximators.comparison.model_evidence import Kept, evidence_obstacle
from pymc_amortized.approximators.comparison.point_masses import warn_of_atoms
from pymc_amortized.approximators.comparison.targets import (
    CLEAR,
    SketchedEvidence,
    choose_evidence,
    contradiction,
    targets,
)
from pymc_amortized.approximators.comparison.trained_comparison import TrainedComparison
from pymc_amortized.approximators.fitting.plan import Plan, plan_classifier
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.fitting.simulating import (
    PILOT,
    fixed_source,
    fresh_source,
    prepare_batch,
    report_drops,
    reuse_sketched,
    seconds_of_one,
    structure_of,
)
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan, plan_simulations
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.correction.evidence import kept_share
from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations, rounded_share
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.common import Common, common_structure
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import log_orderings
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.pool import Pool, labelled
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.logs import logger, working
from pymc_amortized.networks.choices import SummaryChoice
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.novelty.reference import extents, learn_reference
from pymc_amortized.numerics.odds import Calibration
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.training import Batch, Batches, Stopping, Trained, report

HELD_OUT = 4096
"""Simulations that judge the weights while training: a log score of 0.3 then has an error of 0.008."""
LITTLE_NATS = 0.001
"""Held-out loss that a doubling of the steps has to bring: log odds that are off by 0.09 cost as much, at odds of 1."""


class ComparisonFit:
    """One training, from the models to the comparison.

    None for `sketched`, `num_simulations` or `cores` leaves the choice to the training.
    """

    def __init__(
        self,
        common: Common,
        specs: Mapping[str, ModelSpec],
        sources: Mapping[str, Any],
        gaps: Mapping[str, Any],
        setup: Setup,
        *,
        sketched: bool | None,
        num_simulations: int | None,
        cores: int | None,
    ) -> None:
        self.common, self.spec, self.specs = common, common.spec, dict(specs)
        self.sources, self.gaps, self.setup = dict(sources), dict(gaps), setup
        self.sketched, self.num_simulations, self.cores = sketched, num_simulations, cores
        self.pool = Pool(common, specs, sources, gaps, setup.compile_kwargs)
        self.pool.check_ends()  # before anything is trained

    def run[P: TrainedPosterior](
        self,
        summary: SummaryChoice,
        given: Mapping[str, str | Sequence[str]],
        posteriors: Mapping[str, P],
        prior: Mapping[str, float],
    ) -> TrainedComparison[P]:
        """Simulate, choose the network, train, calibrate, and hold the two answers against each other."""
        started = time.perf_counter()
        pilot = self.pool.of_sizes(PILOT, self.setup.seed(Stage.PILOT))
        kept = self._kept(pilot)
        comparable = not warn_of_atoms(self.spec, pilot)
        structures, structure = self._structures(pilot, given, posteriors)
        inputs, everything = Inputs(self.spec, structure), labelled(pilot)
        network = self._network(everything, pilot, inputs, summary)
        found: tuple[SketchedEvidence, float] | str = "a probability stands beside a density"
        if comparable and self.sketched is not False:
            found = choose_evidence(self.specs, structures, posteriors, pilot, self.setup, wanted=bool(self.sketched))
        teacher, setup, sketching = self._taught(found)

        def planned() -> SimulationPlan:
            known: dict[str, Any] = {"values": inputs.layout.values, "sketching": sketching}
            return plan_simulations(self._seconds_of_one, setup.options, self.num_simulations, self.cores, **known)

        plan = setup.decide("simulations", SimulationPlan, planned)
        training_set, held_out, rest = self._parts(teacher, plan)

        def prepare(made: Simulations) -> Batch:
            return prepare_batch(network, inputs, targets(made, self.pool.number), made, setup.device)

        network.to(setup.device)
        stopping = Stopping(little=LITTLE_NATS) if setup.options.open_ended else None
        steps = setup.decide("steps", Plan, lambda: self._steps(network, prepare, everything, setup, plan))
        setup = replace(setup, options=steps.options)
        held = prepare(held_out)
        if training_set is None:
            source: Batches = self._fresh(teacher, plan, setup, prepare, steps.workers)
        else:
            source = fixed_source(setup, prepare(training_set), time.perf_counter() - started)
        trained = setup.train(network, source, held, stopping=stopping)
        calibration = self._calibration(network, inputs, rest, taught=teacher is not self.pool)
        labels = rest.unconstrained[:, 0]
        references = {
            # as many are ranked as for posteriors
            name: learn_reference(inputs, network, made, rest.take(labels == k).take(slice(8192)))
            for k, (name, made) in enumerate(pilot.items())
        }
        comparison = TrainedComparison(
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
            provenance=Provenance.of(trained, everything, setup, plan),
            context=self.sources,
            missing=self.gaps,
            compile_kwargs=setup.compile_kwargs,
        )
        comparison.__dict__["pool"] = self.pool
        warn_of_resolution(calibration)
        return _judge(comparison, trained, of_simulations(rest.take(slice(48))), setup.seed(Stage.LOOP, 2))

    def _kept(self, pilot: Mapping[str, Simulations]) -> dict[str, Kept]:
        """Count what each model's density excludes, and say so where it matters."""
        kept = {}
        for name, made in pilot.items():
            share = kept_share(made.dropped, made.attempted)
            written = 1 - rounded_share(made.dropped, made.attempted)
            kept[name] = Kept(share, made.attempted, log_orderings(self.specs[name]), written)
            report_drops(
                made,
                of=f" of model {name!r}",
                notable=THRESHOLDS.excluded,
                rest=" What is compared is the model with its prior truncated to the rest.",
            )
        return kept

    @working("Finding the structure of the data")
    def _structures(
        self,
        pilot: Mapping[str, Simulations],
        given: Mapping[str, str | Sequence[str]],
        posteriors: Mapping[str, TrainedPosterior],
    ) -> tuple[dict[str, Structure], Structure]:
        """The structure of each model's data, and the one for all."""
        found = {}
        for k, (name, spec) in enumerate(self.specs.items()):
            if name in posteriors and not given:
                found[name] = posteriors[name].structure
                continue
            seed = self.setup.seed(Stage.STRUCTURE, k)
            sources = {c.name: self.sources[c.name] for c in spec.context}
            own = self.pool.simulators[name](64, seed) if not spec.sizes else pilot[name]
            found[name] = structure_of(spec, sources, own, seed, given, self.setup.compile_kwargs)
        ranges = {r.dim: (r.smallest, r.largest) for r in self.spec.sizes}
        structure = common_structure(found, self.common.names).with_ranges(ranges)
        logger.info("Structure of the data, for all models:\n%s", structure)
        return found, structure

    def _taught(self, found: tuple[SketchedEvidence, float] | str) -> tuple[Pool, Setup, float]:
        """Have the classifier taught evidence, or labels, for a reason.

        Returns what simulates, how it is trained, and seconds that a simulation takes longer.
        """
        options = self.setup.options
        if not isinstance(found, str):
            return self.pool.with_extra(found[0]), reuse_sketched(self.setup), found[1]
        if self.sketched:
            raise ValueError(f"sketch=True: the evidence of the models cannot be sketched: {found}")
        if self.sketched is None:
            logger.info("The classifier is taught by labels, not by sketches of the models' evidence: %s.", found)
        # Labels are noise. At equal time, batches of 256 left 1.3 times the error in log odds of a regression that
        # batches of 1,024 left, and 4 times that of group effects. Averaged over 0.03 of the steps, as for posteriors,
        # the errors in log odds of regressions of 30 and 100 rows were 0.049 and 0.045, over 0.3 of them 0.036 and
        # 0.027. Simulations are used once: log Bayes factors of two regressions (180 s) are off by 0.058 after 2,200
        # steps on 2.3 million simulations, by 0.116 after 5,000 on 1.1 million.
        setup = self.setup.with_options(
            batch_size=max(options.batch_size, 1024),
            averaging=max(options.averaging, 0.3),
            passes=options.passes or 1,
        )
        return self.pool, setup, 0.0

    def _seconds_of_one(self) -> float:
        seed, pool = self.setup.seed(Stage.TIMING), self.pool
        pool.chunk(pool.number, seed)  # compiles
        return seconds_of_one(lambda n: pool.chunk(n, seed), first=pool.number)

    def _network(
        self, everything: Simulations, pilot: Mapping[str, Simulations], inputs: Inputs, summary: SummaryChoice
    ) -> ClassifierNetwork:
        names = list(pilot)
        largest = max(names, key=lambda name: pilot[name].unconstrained.shape[1])
        label = everything.unconstrained[:, 0].astype(int)
        with self.setup.random_numbers():
            return ClassifierNetwork.build(
                inputs.layout,
                label,
                **inputs(of_simulations(everything)),
                theta=pilot[largest].unconstrained,
                among=label == names.index(largest),
                summary=summary,
            )

    @working("Simulating")
    def _parts(self, teacher: Pool, plan: SimulationPlan) -> tuple[Simulations | None, Simulations, Simulations]:
        """Simulations to train on (a fixed set alone), to judge weights by, and to calibrate on."""
        if plan.number is None:
            held_out = teacher(HELD_OUT, self.setup.seed(Stage.HELD_OUT, 0), cores=plan.cores)
            # so many show probabilities down to 3e-5
            rest = self.pool(32_768, self.setup.seed(Stage.HELD_OUT, 1), cores=plan.cores)
            return None, held_out, rest
        made = teacher(plan.number, self.setup.seed(Stage.HELD_OUT), cores=plan.cores)
        size = min(max(round(self.setup.options.held_out * len(made)), 1), HELD_OUT)
        calibrated = min(2 * size, len(made) // 4)
        return (
            made.take(slice(size + calibrated, None)),
            made.take(slice(size)),
            made.take(slice(size, size + calibrated)),
        )

    def _steps(
        self,
        network: ClassifierNetwork,
        prepare: Callable[[Simulations], Batch],
        everything: Simulations,
        setup: Setup,
        plan: SimulationPlan,
    ) -> Plan:
        """Decide how many steps to make, and in how many processes others simulate meanwhile."""
        some = np.random.default_rng(setup.seed(Stage.TRAINING, 0)).permutation(len(everything))
        batch = everything.take(some[: setup.options.batch_size])
        seconds = plan.seconds_of_batch(setup.options)
        return plan_classifier(network, lambda: prepare(batch), seconds, plan.cores, setup.bounded)

    def _fresh(
        self,
        teacher: Pool,
        plan: SimulationPlan,
        setup: Setup,
        prepare: Callable[[Simulations], Batch],
        processes: int,
    ) -> Batches:
        def make(n: int, before: int, workers: Workers | None) -> Batch:
            return prepare(teacher(n, setup.seed(Stage.TRAINING, 1, before), cores=plan.cores, workers=workers))

        return fresh_source(setup, make, teacher, processes)

    @working("Calibrating the classifier")
    def _calibration(
        self, network: ClassifierNetwork, inputs: Inputs, rest: Simulations, *, taught: bool
    ) -> Calibration:
        datasets = of_simulations(rest)
        logits = network.logits(**inputs(datasets))
        rng = np.random.default_rng(self.setup.seed(Stage.LOOP, 1))
        labels, at = rest.unconstrained[:, 0].astype(int), extents(self.spec, datasets)
        calibration = Calibration.fit(logits, labels, at, rng)
        off = contradiction(replace(rest, extra=calibration(logits, at)))
        if off > CLEAR and taught:
            logger.warning(
                "Simulated data sets do not come from the models as often as the classifier says (%.1f standard errors "
                "apart): it needs longer training, or the sketched evidence that it was taught misses part of a "
                "posterior, a mode say. Train longer, or by labels (sketch=False).",
                off,
            )
        return calibration


@working("Holding classifier and evidence against each other")
def _judge[P: TrainedPosterior](
    comparison: TrainedComparison[P], trained: Trained, datasets: DataSets, seed: np.random.SeedSequence
) -> TrainedComparison[P]:
    """Hold classifier and evidence against each other on simulated data sets, and report."""
    without = [name for name in comparison.names if name not in comparison.weighed]
    if without:
        reasons = {name: evidence_obstacle(comparison.specs[name]) or "it has no posterior" for name in without}
        logger.warning(
            "No evidence beside the classifier's word: %s.",
            "; ".join(f"model {name!r}: {reason}" for name, reason in reasons.items()),
        )
        report(trained)
        return comparison
    found = comparison.evidence_of(datasets, 2000, seed)
    apart = compare_odds(comparison.log_probabilities(datasets), found, comparison.calibration, math.nan)
    some = found.complete
    if not some.any():
        report(trained, "The evidence could be estimated for none of the simulated data sets.", doubtful=True)
        return comparison
    off = (apart.classifier - apart.evidence)[some]
    error = float(np.sqrt(np.square(off).mean()))
    remark = (
        f"On {some.sum()} of {len(some)} simulated data sets the evidence is known: log odds by the classifier "
        f"differ from it by {error:.2f} (root mean square), at most {np.abs(off).max():.2f}."
    )
    if error > 0.5:
        remark += " Look at the evidence (comparison.compare) where there is one, or train longer."
    doubtful = error > DOUBTFUL or not trained.settled or trained.history.restarts > 0
    report(trained, remark, doubtful=doubtful)
    return replace(comparison, error=error)
