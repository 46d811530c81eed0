"""One training of a posterior and a likelihood: the same simulations, two networks, one loop."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pymc_amortized.approximators.fitting.arguments import target_of
from pymc_amortized.approximators.fitting.plan import Plan, SimulationCost, cheapest_step, others
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.fitting.simulating import seconds_of_simulator
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan, plan_simulations
from pymc_amortized.approximators.joint.batches import (
    covering_datasets,
    of_datasets,
    of_rows,
    row_tensors,
    rows_at_largest,
)
from pymc_amortized.approximators.likelihood.check import check_likelihood
from pymc_amortized.approximators.likelihood.error import simulations_to_check
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood, emulator_of
from pymc_amortized.approximators.likelihood.training import DEFAULT, HELD_OUT_ROWS, PILOT_ROWS
from pymc_amortized.approximators.posterior.check import Measure
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.approximators.posterior.training import TARGET, PosteriorFit
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.exchange import with_learned_density
from pymc_amortized.graph.rows.observed_rows import ObservedRows, add_row_parameters, some_rows
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.logs import logger
from pymc_amortized.networks.posterior_network import DensityChoice, PosteriorNetwork, SummaryChoice
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.fitting import fit_layout
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.training import Batch, Batches, Shared, Stopping, Task, Trained, fastest_step


class JointFit:
    """One training of both.

    It takes three snapshots of the model: `spec`; `simulated`, which is changed, so that simulations hold what rows
    depend on; and `alone`, whose sizes do not differ, with its `rows`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        simulated: ModelSpec,
        alone: ModelSpec,
        rows: ObservedRows,
        context: Mapping[str, Any],
        missing: Mapping[str, Any],
        setup: Setup,
        *,
        num_simulations: int | None,
        cores: int | None,
        sketched: bool | None,
        lags: int,
        scales: tuple[float, ...],
    ) -> None:
        self.spec, self.simulated, self.alone, self.rows = spec, simulated, alone, rows
        self.lags, self.scales = lags, scales
        self.read_from = rows_at_largest(simulated, rows)
        self.each = min(-(-DEFAULT.batch_size // setup.options.batch_size), self.read_from.rows)
        names = add_row_parameters(simulated, self.read_from)
        sampler = ContextSampler(simulated, context, missing)
        simulator = Simulator(simulated, context=sampler, deterministics=names, compile_kwargs=setup.compile_kwargs)

        def timed() -> float:
            return seconds_of_simulator(simulator, setup.seed(Stage.TIMING))

        def planned() -> SimulationPlan:
            return plan_simulations(timed, setup.options, num_simulations, cores, values=simulated.values)

        # the regression at which the likelihood starts takes more simulations than a posterior's statistics
        self.posterior = PosteriorFit(
            spec,
            context,
            missing,
            simulator,
            setup,
            setup.decide("simulations", SimulationPlan, planned),
            sketched=sketched,
            pilot=8192,
            target=target_of(spec, None, TARGET),
        )

    @property
    def setup(self) -> Setup:
        """How both are trained."""
        return self.posterior.setup

    def run(
        self,
        summary: SummaryChoice,
        density: DensityChoice,
        given: Mapping[str, str | Sequence[str]],
        size: RowSize,
        kinds: list[str | None],
    ) -> tuple[TrainedPosterior, AmortizedLikelihood]:
        """Simulate, choose the networks and train."""
        fit = self.posterior
        pilot = fit.pilot()
        statistics, held_out = fit.parts(pilot)
        layout, row_network = self._row_network(statistics, size, kinds)
        structure = fit.structure(pilot, given, self._start_density(row_network))
        gaps = fit.gaps(pilot)
        statistics = fit.see(statistics, structure, gaps, summary, density)
        if fit.inputs.sketch is not None:
            held_out = replace(held_out, extra=fit.inputs.sketch.of_simulations(held_out, fit.plan.cores))
        some = statistics.take(slice(self.posterior.pilot_size))
        network = fit.build(some, summary, density)
        network.to(self.setup.device), row_network.to(self.setup.device)
        steps = self.setup.decide("steps", Plan, lambda: self._plan_steps(network, row_network, layout, statistics))
        fit.train_by(steps.options)
        source = self._source(network, layout, statistics, steps.workers)
        measure = fit.measure(network, gaps, held_out)
        of_posterior, of_likelihood = self._train(network, row_network, layout, source, held_out, measure)
        posterior = fit.finish(network, gaps, of_posterior, held_out, pilot, measure)
        return posterior, self._likelihood(row_network.to("cpu"), of_likelihood, pilot)

    def _start_density(self, network: RowNetwork) -> ModelSpec | None:
        """The model with the likelihood before training, where it has no density of its own.

        Which parameters and covariates belong to which rows is said by the graph, whatever the density: that is enough
        to find out what the axes of the data are.
        """
        if self.spec.density_obstacle is None:
            return None
        emulator = emulator_of(network, self.rows)
        return with_learned_density(self.spec, rows_at_largest(self.spec, self.rows), emulator)

    def _row_network(
        self, statistics: Simulations, size: RowSize, kinds: list[str | None]
    ) -> tuple[Layout, RowNetwork]:
        """Choose the layout of rows, and start the network at a regression."""
        some = statistics.take(slice(self.posterior.pilot_size))
        rng = np.random.default_rng(self.setup.seed(Stage.PILOT, 1))
        each = min(-(-PILOT_ROWS // len(some)), self.read_from.rows)
        names = [number for p in self.rows.parameters for number in p.numbers]
        rows = some_rows(self.read_from, some, each, self.lags, rng, self.scales)
        layout, starts = fit_layout(names, rows, kinds, self.lags, self.scales)
        layout = covering_datasets(layout, rows, len(some))
        with self.setup.random_numbers():
            network = RowNetwork(layout, size)
        for position, start in enumerate(starts):
            network.start_at(position, *start)
        return layout, network

    def _both(
        self,
        network: PosteriorNetwork,
        layout: Layout,
        made: Simulations,
        each: int,
        stage: Stage,
        *path: int,
    ) -> Batch:
        """What the two networks take of simulations."""
        z, encoded = self.posterior.prepared(network, made)
        rng = np.random.default_rng(self.setup.seed(stage, *path, 3))
        rows = row_tensors(layout, some_rows(self.read_from, made, each, self.lags, rng, self.scales), len(made))
        return z, encoded | {name: value.to(z.device) for name, value in rows.items()}

    def _plan_steps(
        self, network: PosteriorNetwork, row_network: RowNetwork, layout: Layout, statistics: Simulations
    ) -> Plan:
        """Decide how many steps to make, by what one of each takes."""
        options, plan = self.setup.bounded, self.posterior.plan
        some = statistics.take(slice(options.batch_size))
        batch = self._both(network, layout, some, self.each, Stage.TIMING)
        if options.max_time is None and options.num_steps is None:
            # two thirds of what a posterior and a likelihood may take alone, one after the other
            options = replace(options, max_time=280.0)

        def timed(threads: int | None) -> tuple[float, int]:
            first, threads = fastest_step(network, *of_datasets(batch), threads)
            return first + fastest_step(row_network, *of_rows(batch), threads)[0], threads

        simulations = SimulationCost(plan.seconds_of_batch(options) / (options.passes or 1))
        cost = cheapest_step(timed, simulations, plan.cores, options)
        options = replace(options.planned(cost.seconds), threads=cost.threads)
        return Plan(options, others(plan.cores) if cost.ahead else 0, None)

    def _source(self, network: PosteriorNetwork, layout: Layout, statistics: Simulations, processes: int) -> Batches:
        def whole() -> Batch:
            width = sum(v.inputs for v in layout.parameters) + 4 * len(layout.columns) + layout.lag_size
            # numbers of rows that are kept of a fixed set of simulations: 256 MiB
            kept = max(min(self.read_from.rows, 2**26 // (len(statistics) * width)), self.each)
            return self._both(network, layout, statistics, kept, Stage.TRAINING)

        def fresh(made: Simulations, before: int) -> Batch:
            return self._both(network, layout, made, self.each, Stage.TRAINING, before)

        return self.posterior.source(whole, fresh, processes)

    def _train(
        self,
        network: PosteriorNetwork,
        row_network: RowNetwork,
        layout: Layout,
        source: Batches,
        held_out: Simulations,
        measure: Measure | None,
    ) -> list[Trained]:
        judged = max(min(HELD_OUT_ROWS // len(held_out), self.read_from.rows), 1)
        held = self._both(network, layout, held_out, judged, Stage.HELD_OUT)
        shared, options = Shared(source), self.setup.options
        of_likelihood = replace(
            options,
            learning_rate=2 / 3 * options.learning_rate,  # what the two are by default when trained alone
            weight_decay=0.0,
            batch_size=self.each * options.batch_size,
        )
        rows = shared.view(lambda batch, number: of_rows(batch, number, self.each))
        tasks = [
            Task(
                network,
                shared.view(of_datasets),
                of_datasets(held),
                options,
                stopping=Stopping(measure, self.posterior.target) if self.posterior.open_ended else None,
            ),
            Task(
                row_network,
                rows,
                of_rows(held),
                of_likelihood,
                stopping=Stopping.of_rows(self.read_from.rows) if self.posterior.open_ended else None,
            ),
        ]
        return self.setup.train_together(tasks)

    def _likelihood(self, network: RowNetwork, trained: Trained, pilot: Simulations) -> AmortizedLikelihood:
        plan = self.posterior.plan
        rows = trained.simulations * (self.each if plan.number is None else self.read_from.rows)
        likelihood = AmortizedLikelihood(
            spec=self.alone,
            rows=self.rows,
            network=network,
            history=trained.history,
            provenance=Provenance.of(trained, pilot, self.setup, plan, simulations=rows),
            state=trained.state,
        )
        some = pilot.take(slice(simulations_to_check(self.read_from.rows)))
        likelihood, remark = check_likelihood(likelihood, self.simulated, self.read_from, some, self.setup)
        logger.info("Likelihood: held-out loss %.3f a row. %s", trained.held_out_loss, remark)
        return likelihood
