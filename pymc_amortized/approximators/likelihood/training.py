"""One training of a likelihood: rows of simulations, a network for a row, and the loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pymc_amortized.approximators.fitting.pace import Making, available_cores, others, pace_of
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import Stage, stage_integer, stage_seed
from pymc_amortized.approximators.likelihood.error import checked, row_error
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood, LikelihoodKind
from pymc_amortized.approximators.posterior.training import NOTABLE_DROPS
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.rows.observed_rows import ObservedRows, add_row_parameters
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.simulator import Simulator, describe_dropped
from pymc_amortized.networks.rows.ratio_network import RatioNetwork
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.fitting import fit_layout
from pymc_amortized.row_density.places import places_differ
from pymc_amortized.row_density.prepared import Rows, inside, prepare, prepare_together, usable
from pymc_amortized.row_density.ratio import prepare_pairs, without_bounds
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.training import (
    Batch,
    Batches,
    FixedSimulations,
    FreshSimulations,
    Training,
    fastest_step,
    torch_threads,
    train,
)
from pymc_amortized.training.trained import summary_line

logger = logging.getLogger("pymc_amortized")

DEFAULT_SECONDS = 240.0
"""Errors per row add up over a data set, and fall with the number of rows trained on: longer than for a posterior."""
DEFAULT = Training(batch_size=4096, learning_rate=2e-3, weight_decay=0.0, evaluations=25)
"""Large batches, as rows are cheap; no decay, which would pull the linear part away from its regression."""
PART = 8
"""Rows of one simulation that a batch holds together where they share their parameters, for which the network is then
evaluated once. The other rows of the simulation are in other batches: so the parameters in a batch are many."""
SHARED = replace(DEFAULT, batch_size=PART * 1024)
RATIO = replace(DEFAULT, batch_size=1024)
"""Each of these rows is evaluated at the parameters of sixteen others as well."""
RATIO_SIZE = RowSize(hidden=64, depth=2)
"""One network for all columns of a row, which has to find the shape of a density by itself."""
SHARED_SIZE = RowSize(depth=2, components=16)
"""Where all rows share their parameters, networks are evaluated once for all of them, and may be larger: this one has
errors of 0.010 a row for a drift-diffusion model, the smaller one of 0.012 after as long a training."""
PILOT_ROWS = 400_000
"""Rows that the region, the transforms and the regression are learned from: its slopes are then right to 0.2 %."""
FEWEST_PILOT = 500
MOST_PILOT = 8192
"""Simulations for these rows: what matters for a regression is the number of rows, for a region that of simulations."""
PILOT_SHARE = 0.15
"""Of the time, that these may take."""
HELD_OUT_ROWS = 20_000
SIMULATING_SHARE = 0.5
"""Time that simulating a batch may take, in training steps: so many rows of each simulation are used."""
MOST_PASSES = 8
"""If simulating a batch takes more than a step even so, rows are used several times, so many at most."""
SLOW = 3.0
"""If it still takes more steps than this, simulations are made once and reused."""
SIMULATING_BUDGET = 0.6
"""Share of the time that these may take."""
LAGS = 4
"""Rows before the present one that a series depends on, unless the user says otherwise."""


class LikelihoodFit:
    """One training of a likelihood."""

    lags = 0
    kind: LikelihoodKind = "density"
    device: torch.device
    progressbar = True
    num_simulations: int | None = None
    cores = 1
    cost = 0.0
    held_out_of_pilot = False

    def __init__(
        self,
        spec: ModelSpec,
        simulated: ModelSpec,
        rows: ObservedRows,
        read_from: ObservedRows,
        sources: Mapping[str, Any],
        options: Training,
        entropy: tuple[int, ...],
        compile_kwargs: CompileKwargs | None,
    ) -> None:
        self.spec, self.rows, self.read_from = spec, rows, read_from
        self.options, self.entropy, self.compile_kwargs = options, entropy, compile_kwargs
        names = add_row_parameters(simulated, read_from)
        context = ContextSampler(simulated, sources)
        self.simulator = Simulator(simulated, context=context, deterministics=names, compile_kwargs=compile_kwargs)
        self.simulated = simulated

    def plan(self, num_simulations: int | None, cores: int | None) -> None:
        """Time the simulator."""
        self.num_simulations = num_simulations
        seed, n, seconds = stage_seed(self.entropy, Stage.TIMING), 1, 0.0
        self.simulator.check_ends()  # compiles
        while seconds < 0.1 and n < 4096:
            n *= 4
            start = time.perf_counter()
            self.simulator.chunk(n, seed)
            seconds = time.perf_counter() - start
        self.cost = seconds / n
        slow = self.cost * self._pilot_size() > PILOT_SHARE * self._seconds()
        self.cores = cores or (available_cores() if slow else 1)

    def run(self, size: RowSize, kinds: list[str | None]) -> AmortizedLikelihood:
        """Simulate, choose the layout and train."""
        pilot = self.simulator(self._pilot_size(), stage_seed(self.entropy, Stage.PILOT), cores=self.cores)
        _report_drops(pilot)
        self._check_places(pilot)
        most = -(-PILOT_ROWS // len(pilot))
        layout, network = self._network(self._rows(pilot, most, Stage.PILOT), size, kinds)
        held_out = self._held_out(layout, pilot)
        source = self._source(network, layout, pilot)
        with torch_threads(self.options.threads or torch.get_num_threads()):
            seed = stage_integer(self.entropy, Stage.LOOP) % 2**63
            trained = train(
                network,
                source,
                held_out,
                self.options,
                seed=seed,
                progress=self.progressbar,
                device=self.device,
            )
        trained = replace(trained, simulations=trained.simulations * self.part)
        network.to("cpu")
        likelihood = AmortizedLikelihood(
            spec=self.spec,
            rows=self.rows,
            network=network,
            history=trained.history,
            provenance=Provenance.of(
                trained,
                pilot,
                entropy=self.entropy,
                training=self.options,
                num_simulations=self.num_simulations,
                cores=self.cores,
            ),
            state=trained.state,
        )
        error, remark = None, ""
        if self.kind == "density":
            made = self.simulator(checked(self.read_from.rows), stage_seed(self.entropy, Stage.HELD_OUT, 1))
            error, remark = row_error(likelihood, self.simulated, self.read_from, made, self.compile_kwargs)
        doubtful = trained.stopped in ("interrupt", "diverged") or trained.overfit > 0 or not trained.settled
        logger.log(logging.WARNING if doubtful else logging.INFO, f"{summary_line(trained)} {remark}".rstrip())
        return replace(likelihood, error=error)

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

    def _network(self, rows: Rows, size: RowSize, kinds: list[str | None]) -> tuple[Layout, RowNetwork | RatioNetwork]:
        """Choose the layout; the network of a density starts at a regression."""
        names = [number for p in self.rows.parameters for number in p.numbers]
        layout, starts = fit_layout(names, rows, kinds, self.lags)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_integer(self.entropy, Stage.NETWORK))
            if self.kind == "ratio":
                layout = without_bounds(layout, rows)
                return layout, RatioNetwork(layout, size)
            network = RowNetwork(layout, size)
        for position, start in enumerate(starts):
            network.start_at(position, *start)
        return layout, network

    def _seconds(self) -> float:
        return self.options.max_time or DEFAULT_SECONDS

    def _pilot_size(self) -> int:
        if self.num_simulations is not None:
            return self.num_simulations
        wanted = max(MOST_PILOT, PILOT_ROWS // self.read_from.rows)
        affordable = int(PILOT_SHARE * self._seconds() / max(self.cost, 1e-9))
        return max(min(wanted, affordable), FEWEST_PILOT)

    @cached_property
    def part(self) -> int:
        """Rows of one simulation that are evaluated together."""
        together = self.kind == "density" and rows_share(self.read_from)
        return rows_together(self.read_from.rows) if together else 1

    @property
    def _batch_size(self) -> int:
        """In parts."""
        return max(self.options.batch_size // self.part, 1)

    def _parts(self, wanted: float) -> int:
        """Rows to use of each simulation: at least so many, if there are, in whole parts."""
        most = self.read_from.rows // self.part
        return self.part * int(min(max(math.ceil(min(wanted, self.read_from.rows) / self.part), 1), most))

    def _rows(self, made: Simulations, most: int, stage: Stage, *path: int) -> Rows:
        """Rows of simulations, at most so many of each."""
        total = self.read_from.rows
        chosen = None
        if most < total:
            rng = np.random.default_rng(stage_seed(self.entropy, stage, *path, 1))
            # with replacement would repeat rows; a random start of a random permutation does not
            order = rng.permutation(total)
            chosen = order[(rng.integers(total, size=(len(made), 1)) + np.arange(most)) % total]
        return self.read_from.of_simulations(made, self.lags, chosen)

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
        kept = np.random.default_rng(stage_seed(self.entropy, Stage.TRAINING, *path, 2)).permutation(kept)
        return torch.from_numpy(log_slope[kept]), {k: torch.from_numpy(v[kept]) for k, v in encoded.items()}

    def _held_out(self, layout: Layout, pilot: Simulations) -> Batch:
        self.held_out_of_pilot = self.num_simulations is not None
        if self.held_out_of_pilot:
            made = pilot.take(slice(0, max(len(pilot) // 10, 1)))
        else:
            n = min(len(pilot), max(HELD_OUT_ROWS // min(self.read_from.rows, 10), 1))
            made = self.simulator(n, stage_seed(self.entropy, Stage.HELD_OUT), cores=self.cores)
        return self._prepared(layout, self._rows(made, self._parts(HELD_OUT_ROWS / len(made)), Stage.HELD_OUT), 0)

    def _source(self, network: RowNetwork | RatioNetwork, layout: Layout, pilot: Simulations) -> Batches:
        """Where batches come from, and how many steps there will be."""
        batch_size = self.options.batch_size
        some = self._rows(pilot.take(slice(batch_size)), self._parts(batch_size / len(pilot)), Stage.TRAINING)
        z, encoded = self._prepared(layout, some)
        z, encoded = z[: self._batch_size], {k: v[: self._batch_size] for k, v in encoded.items()}
        network.to(self.device)

        def timed(threads: int | None) -> tuple[float, int]:
            return fastest_step(network, z, encoded, threads)

        step, _ = timed(self.options.threads or 1)  # the other cores simulate
        per_row = self.cost / self.cores * batch_size
        each = self._parts(per_row / (SIMULATING_SHARE * step))
        simulating = per_row / each
        passes = self.options.passes or 1
        if self.options.passes is None and self.options.num_steps is None:
            passes = min(max(math.ceil(simulating / step), 1), MOST_PASSES)
        simulating /= passes
        seconds = self._seconds()
        if self.num_simulations is None and simulating > SLOW * step:
            budget = SIMULATING_BUDGET * seconds
            self.num_simulations = max(int(budget * self.cores / self.cost), len(pilot))
            seconds -= budget
            logger.info(
                "One simulation takes %.2g ms: training on a fixed set of %d.", 1e3 * self.cost, self.num_simulations
            )
        self.options = replace(self.options, max_time=seconds, passes=passes)
        making = Making(simulating * self.cores if self.num_simulations is None else 0.0)
        pace = pace_of(timed, making, self.cores, self.options)
        self.options = replace(self.options.planned(pace.seconds), threads=pace.threads)
        if self.num_simulations is not None:
            return self._fixed(layout, pilot)
        return self._fresh(layout, each, pace.ahead)

    def _fixed(self, layout: Layout, pilot: Simulations) -> Batches:
        assert self.num_simulations is not None
        start, more = time.perf_counter(), self.num_simulations - len(pilot)
        rows = self._rows(
            pilot.take(slice(len(pilot) // 10, None)) if more <= 0 else pilot, self._parts(math.inf), Stage.TRAINING
        )
        parts = [self._prepared(layout, rows, 1)]
        if more > 0:
            made = self.simulator(more, stage_seed(self.entropy, Stage.TRAINING, 0), cores=self.cores)
            parts.append(self._prepared(layout, self._rows(made, self._parts(math.inf), Stage.TRAINING), 2))
        z = torch.cat([part[0] for part in parts])
        encoded = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
        seed = stage_integer(self.entropy, Stage.TRAINING) % 2**63
        return FixedSimulations(
            z, encoded, self._batch_size, seed=seed, device=self.device, seconds=time.perf_counter() - start
        )

    def _fresh(self, layout: Layout, each: int, ahead: bool) -> Batches:
        source: FreshSimulations | None = None
        workers = Workers(self.simulator, others(self.cores)) if ahead else None

        def simulate(n: int) -> Batch:
            at = source.simulations if source is not None else 0
            seed = stage_seed(self.entropy, Stage.TRAINING, at)
            made = self.simulator(-(-n * self.part // each), seed, cores=self.cores, workers=workers)
            return self._prepared(layout, self._rows(made, each, Stage.TRAINING, at), at)

        passes = self.options.passes or 1
        source = FreshSimulations(simulate, self._batch_size, device=self.device, workers=workers, passes=passes)
        return source


def default_size(rows: ObservedRows) -> RowSize:
    """Size of the networks of a density, unless the user says otherwise."""
    return SHARED_SIZE if rows_share(rows) else RowSize()


def rows_together(total: int) -> int:
    """How many of so many rows are evaluated together: about `PART`, with few left over."""
    if total <= PART:
        return total
    return max(range(PART // 2, PART + 1), key=lambda part: total // part * part + 0.2 * total * part / PART)


def rows_share(rows: ObservedRows) -> bool:
    """Whether all rows of a data set have the same parameters."""
    return not rows.series and all(p.batch_ndim == 0 for p in rows.parameters)


def _report_drops(pilot: Simulations) -> None:
    if pilot.dropped:
        share = sum(pilot.dropped.values()) / pilot.attempted
        logger.log(
            logging.WARNING if share > NOTABLE_DROPS else logging.INFO,
            "Of %d simulations, %.2f%% were dropped: %s.",
            pilot.attempted,
            100 * share,
            describe_dropped(pilot.dropped, pilot.attempted),
        )
