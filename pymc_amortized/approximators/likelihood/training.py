"""One training of a likelihood: rows of simulations, a network for a row, and the loop."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pymc_amortized.approximators.fitting.plan import SimulationCost, available_cores, cheapest_step, others
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.fitting.simulating import (
    fixed_source,
    fresh_source,
    report_drops,
    seconds_of_one,
)
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan, say_fixed_set
from pymc_amortized.approximators.likelihood.check import check_likelihood
from pymc_amortized.approximators.likelihood.error import simulations_to_check
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood, LikelihoodKind
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.observed_rows import ObservedRows, add_row_parameters
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.logs import logger, working
from pymc_amortized.networks.rows.ratio_network import RatioNetwork
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.fitting import fit_layout
from pymc_amortized.row_density.places import places_differ
from pymc_amortized.row_density.prepared import Rows, inside, prepare, prepare_together, usable
from pymc_amortized.row_density.ratio import prepare_pairs, without_bounds
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.training import Batch, Batches, Stopping, Training, fastest_step, report
from pymc_amortized.training.options import MOST_PASSES

DEFAULT = Training(batch_size=4096, learning_rate=2e-3, weight_decay=0.0, evaluations=25)
"""Large batches, as rows are cheap; no decay, which would pull the linear part away from its regression."""
PART = 8
"""Rows of one simulation that a batch holds together where they share their parameters, for which the network is then
evaluated once. The other rows of the simulation are in other batches: so the parameters in a batch are many."""
PILOT_ROWS = 400_000
"""Rows that the region, the transforms and the regression are learned from: its slopes are then right to 0.2 %."""
SCALES = (3.0, 10.0, 30.0, 100.0)
"""Of averages of earlier rows: from just beyond the lags to the length of an ordinary series."""
HELD_OUT_ROWS = 20_000
"""Rows that judge the weights."""


@dataclass(frozen=True)
class Start:
    """What is decided first: who simulates, and how much is simulated that the layout is learned from."""

    plan: SimulationPlan
    pilot: int


@dataclass(frozen=True)
class Steps:
    """What is decided of the training: how many simulations and steps it makes.

    Attributes
    ----------
    options : Training
    plan : SimulationPlan
    rows : int
        That are used of each simulation.
    workers : int
        Processes that simulate beside training.
    """

    options: Training
    plan: SimulationPlan
    rows: int
    workers: int


class LikelihoodFit:
    """One training of a likelihood.

    The snapshot `spec`, with its `rows`, is that of the user's model. That of the model that is simulated, whose prior
    may be wider, is `simulated`, with the rows `read_from`; it is changed.
    """

    def __init__(
        self,
        spec: ModelSpec,
        rows: ObservedRows,
        simulated: ModelSpec,
        read_from: ObservedRows,
        sources: Mapping[str, Any],
        setup: Setup,
        *,
        kind: LikelihoodKind,
        lags: int,
        scales: tuple[float, ...],
        num_simulations: int | None,
        cores: int | None,
    ) -> None:
        self.spec, self.rows, self.simulated, self.read_from = spec, rows, simulated, read_from
        self.setup, self.kind, self.lags, self.scales = setup, kind, lags, scales
        names = add_row_parameters(simulated, read_from)
        context = ContextSampler(simulated, sources)
        self.simulator = Simulator(
            simulated, context=context, deterministics=names, compile_kwargs=setup.compile_kwargs
        )
        start = setup.decide("simulations", Start, lambda: self._start(SimulationPlan(num_simulations), cores))
        self.plan, self.pilot_size = start.plan, start.pilot

    def _start(self, plan: SimulationPlan, cores: int | None) -> Start:
        """Time the simulator, and choose in how many processes it runs."""
        self.simulator.check_ends()  # compiles
        seed = self.setup.seed(Stage.TIMING)
        plan = replace(plan, seconds=seconds_of_one(lambda n: self.simulator.chunk(n, seed)))
        slow = plan.seconds * self._pilot_size(plan) > self._pilot_seconds
        plan = replace(plan, cores=cores or (available_cores() if slow else 1))
        return Start(plan, self._pilot_size(plan))

    def run(self, size: RowSize, kinds: list[str | None]) -> AmortizedLikelihood:
        """Simulate, choose the layout and train."""
        pilot = self.simulator(self.pilot_size, self.setup.seed(Stage.PILOT), cores=self.plan.cores)
        report_drops(pilot)
        self._check_places(pilot)
        most = -(-PILOT_ROWS // len(pilot))
        layout, network = self._network(self._rows(pilot, most, Stage.PILOT), size, kinds)
        held_out = self._held_out(layout, pilot)
        open_ended = self.setup.options.open_ended
        source = self._source(network, layout, pilot)
        stopping = Stopping.of_rows(self.read_from.rows) if open_ended else None
        trained = self.setup.train(network, source, held_out, stopping=stopping)
        trained = replace(trained, simulations=trained.simulations * self.part)
        network.to("cpu")
        likelihood = AmortizedLikelihood(
            spec=self.spec,
            rows=self.rows,
            network=network,
            history=trained.history,
            provenance=Provenance.of(trained, pilot, self.setup, self.plan),
            state=trained.state,
        )
        made = self.simulator(simulations_to_check(self.read_from.rows), self.setup.seed(Stage.HELD_OUT, 1))
        likelihood, remark = check_likelihood(likelihood, self.simulated, self.read_from, made, self.setup)
        doubtful = trained.stopped in ("interrupt", "diverged") or trained.overfit > 0 or not trained.settled
        report(trained, remark, doubtful=doubtful)
        return likelihood

    def _check_places(self, pilot: Simulations) -> None:
        """Warn where rows that should be alike are not."""
        total = self.read_from.rows
        if not rows_share(self.read_from) or total < 2:
            return
        rows = self.read_from.of_simulations(pilot, 0, None)
        values = rows.values.reshape(len(rows.values), -1, total)
        if places_differ(values, rows.parameters.reshape(len(rows.parameters), -1, total)[:, :, 0]):
            logger.warning(
                "Rows of %r with the same parameters differ by their place in the data set: what is drawn depends on "
                "something that is no argument of its distribution, a covariate say. The learned density averages over "
                "that. Pass it as an argument, or say structure={%r: 'features'} if the places matter.",
                self.rows.variable.name,
                self.rows.variable.name,
            )

    @working("Making the network")
    def _network(self, rows: Rows, size: RowSize, kinds: list[str | None]) -> tuple[Layout, RowNetwork | RatioNetwork]:
        """Choose the layout; the network of a density starts at a regression."""
        names = [number for p in self.rows.parameters for number in p.numbers]
        layout, starts = fit_layout(names, rows, kinds, self.lags, self.scales)
        with self.setup.random_numbers():
            if self.kind == "ratio":
                layout = without_bounds(layout, rows)
                return layout, RatioNetwork(layout, size)
            network = RowNetwork(layout, size)
        for position, start in enumerate(starts):
            network.start_at(position, *start)
        return layout, network

    @property
    def _seconds(self) -> float:
        """That the training may take.

        Errors per row add up over a data set, and fall with the number of rows trained on: longer than for a posterior.
        """
        return self.setup.bounded.max_time or 240.0

    @property
    def _pilot_seconds(self) -> float:
        """That the simulations may take from which statistics are learned."""
        return 0.15 * self._seconds

    def _pilot_size(self, plan: SimulationPlan) -> int:
        if plan.number is not None:
            return plan.number
        # what matters for a regression is the number of rows, for a region that of simulations
        wanted = max(8192, PILOT_ROWS // self.read_from.rows)
        affordable = int(self._pilot_seconds / max(plan.seconds, 1e-9))
        return max(min(wanted, affordable), 500)

    @cached_property
    def part(self) -> int:
        """Rows of one simulation that are evaluated together."""
        together = self.kind == "density" and rows_share(self.read_from)
        return rows_together(self.read_from.rows) if together else 1

    @property
    def _batch_size(self) -> int:
        """In parts."""
        return max(self.setup.options.batch_size // self.part, 1)

    def _parts(self, wanted: float) -> int:
        """Rows to use of each simulation: at least so many, if there are, in whole parts."""
        most = self.read_from.rows // self.part
        return self.part * int(min(max(math.ceil(min(wanted, self.read_from.rows) / self.part), 1), most))

    def _rows(self, made: Simulations, most: int, stage: Stage, *path: int) -> Rows:
        """Rows of simulations, at most so many of each."""
        total = self.read_from.rows
        chosen = None
        if most < total:
            rng = np.random.default_rng(self.setup.seed(stage, *path, 1))
            # with replacement would repeat rows; a random start of a random permutation does not
            order = rng.permutation(total)
            chosen = order[(rng.integers(total, size=(len(made), 1)) + np.arange(most)) % total]
        return self.read_from.of_simulations(made, self.lags, chosen, self.scales)

    def _prepared(self, layout: Layout, rows: Rows, *path: int) -> Batch:
        """What the network takes of the rows inside the region, in random order."""
        fine = inside(layout, list(rows.parameters[:, :: self.part]))
        rows = rows.take(np.flatnonzero(np.repeat(fine, self.part)))
        if self.part > 1:
            log_slope, encoded = prepare_together(layout, rows, self.part)
            kept = np.flatnonzero(encoded["fine"].any(1))
        else:
            log_slope, encoded = (prepare_pairs if self.kind == "ratio" else prepare)(layout, rows)
            kept = np.flatnonzero(usable(log_slope, encoded))
        kept = np.random.default_rng(self.setup.seed(Stage.TRAINING, *path, 2)).permutation(kept)
        return torch.from_numpy(log_slope[kept]), {k: torch.from_numpy(v[kept]) for k, v in encoded.items()}

    @working("Preparing what is held out")
    def _held_out(self, layout: Layout, pilot: Simulations) -> Batch:
        if self.plan.number is not None:
            made = pilot.take(slice(0, max(len(pilot) // 10, 1)))
        else:
            n = min(len(pilot), max(HELD_OUT_ROWS // min(self.read_from.rows, 10), 1))
            made = self.simulator(n, self.setup.seed(Stage.HELD_OUT), cores=self.plan.cores)
        return self._prepared(layout, self._rows(made, self._parts(HELD_OUT_ROWS / len(made)), Stage.HELD_OUT), 0)

    def _source(self, network: RowNetwork | RatioNetwork, layout: Layout, pilot: Simulations) -> Batches:
        """Where batches come from, and how many steps there will be."""
        network.to(self.setup.device)
        steps = self.setup.decide("steps", Steps, lambda: self._steps(network, layout, pilot))
        self.plan, self.setup = steps.plan, replace(self.setup, options=steps.options)
        if self.plan.number is not None:
            return self._fixed(layout, pilot, self.plan.number)
        return self._fresh(layout, steps.rows, steps.workers)

    def _steps(self, network: RowNetwork | RatioNetwork, layout: Layout, pilot: Simulations) -> Steps:
        """Decide it by what a step takes."""
        options, plan, cores = self.setup.options, self.plan, self.plan.cores
        some = self._rows(
            pilot.take(slice(options.batch_size)), self._parts(options.batch_size / len(pilot)), Stage.TRAINING
        )
        z, encoded = self._prepared(layout, some)
        z, encoded = z[: self._batch_size], {k: v[: self._batch_size] for k, v in encoded.items()}

        def timed(threads: int | None) -> tuple[float, int]:
            return fastest_step(network, z, encoded, threads)

        step, _ = timed(options.threads or 1)  # the other cores simulate
        per_row = plan.seconds / cores * options.batch_size
        # so many rows of each simulation are used that simulating a batch takes no longer than half a step
        each = self._parts(per_row / (0.5 * step))
        simulating = per_row / each
        passes = options.passes or 1
        if options.passes is None and options.num_steps is None:
            passes = min(max(math.ceil(simulating / step), 1), MOST_PASSES)  # if it takes longer than a step even so
        simulating /= passes
        seconds = self._seconds
        if plan.number is None and simulating > 3 * step:  # made once and reused, in part of the time
            budget = 0.6 * seconds
            number = max(int(budget * cores / plan.seconds), len(pilot))
            plan, seconds = replace(plan, number=number), seconds - budget
            say_fixed_set(plan.seconds, number)
        options = replace(options, max_time=seconds, passes=passes)
        simulations = SimulationCost(simulating * cores if plan.number is None else 0.0)
        cost = cheapest_step(timed, simulations, cores, options)
        options = replace(options.planned(cost.seconds), threads=cost.threads)
        return Steps(options, plan, each, others(cores) if cost.ahead else 0)

    def _fixed(self, layout: Layout, pilot: Simulations, number: int) -> Batches:
        start, more = time.perf_counter(), number - len(pilot)
        own = pilot if more > 0 else pilot.take(slice(len(pilot) // 10, None))  # others are held out
        parts = [self._prepared(layout, self._rows(own, self._parts(math.inf), Stage.TRAINING), 1)]
        if more > 0:
            made = self.simulator(more, self.setup.seed(Stage.TRAINING, 0), cores=self.plan.cores)
            parts.append(self._prepared(layout, self._rows(made, self._parts(math.inf), Stage.TRAINING), 2))
        z = torch.cat([part[0] for part in parts])
        encoded = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
        return fixed_source(self.setup, (z, encoded), time.perf_counter() - start, self._batch_size)

    def _fresh(self, layout: Layout, each: int, processes: int) -> Batches:
        def make(n: int, before: int, workers: Workers | None) -> Batch:
            number, seed = -(-n * self.part // each), self.setup.seed(Stage.TRAINING, before)
            made = self.simulator(number, seed, cores=self.plan.cores, workers=workers)
            return self._prepared(layout, self._rows(made, each, Stage.TRAINING, before), before)

        return fresh_source(self.setup, make, self.simulator, processes, self._batch_size)


def default_training(kind: LikelihoodKind, rows: ObservedRows) -> Training:
    """How a likelihood is trained, unless the user says otherwise."""
    if kind == "ratio":  # each of the rows is evaluated at the parameters of sixteen others as well
        return replace(DEFAULT, batch_size=1024)
    return replace(DEFAULT, batch_size=PART * 1024) if rows_share(rows) else DEFAULT


def default_size(kind: LikelihoodKind, rows: ObservedRows) -> RowSize:
    """Size of the networks, unless the user says otherwise."""
    if kind == "ratio":  # one network for all columns, which has to find the shape of a density by itself
        return RowSize(hidden=64, depth=2)
    # Where all rows share their parameters, networks are evaluated once for all of them, and may be larger: this one
    # has errors of 0.010 a row for a drift-diffusion model, the smaller one of 0.012 after as long a training.
    return RowSize(depth=2, components=16) if rows_share(rows) else RowSize()


def number_of_lags(lags: int | None, rows: ObservedRows) -> int:
    """How many rows before the present one it depends on: 4 in a series, unless the user says otherwise."""
    return (lags or 4) if rows.series else 0


def scales_of_averages(lags: int | None, rows: ObservedRows) -> tuple[float, ...]:
    """How many rows back averages of a series reach that stand for a hidden state; none where the user names lags."""
    return SCALES if rows.series and lags is None else ()


def rows_together(total: int) -> int:
    """How many of so many rows are evaluated together: about `PART`, with few left over."""
    if total <= PART:
        return total
    return max(range(PART // 2, PART + 1), key=lambda part: total // part * part + 0.2 * total * part / PART)


def rows_share(rows: ObservedRows) -> bool:
    """Whether all rows of a data set have the same parameters."""
    return not rows.series and all(p.batch_ndim == 0 for p in rows.parameters)
