"""Training a likelihood: the model's simulations cut into rows, a network for a row, and the loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import torch

from pymc_amortized.approximators.arguments import mapping, whole
from pymc_amortized.approximators.fit import NOTABLE_DROPS, available_cores, training_entropy
from pymc_amortized.approximators.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.provenance import Provenance
from pymc_amortized.approximators.row_error import CHECKED, row_error
from pymc_amortized.approximators.seeds import RandomState, Stage, stage_integer, stage_seed
from pymc_amortized.approximators.simulations import read_model
from pymc_amortized.graph.context import ContextSampler
from pymc_amortized.graph.region import Region, widened
from pymc_amortized.graph.rows import ObservedRows, add_row_parameters, find_rows
from pymc_amortized.graph.simulator import Simulations, Simulator, describe_dropped
from pymc_amortized.graph.spec import ModelSpec
from pymc_amortized.graph.tensors import CompileKwargs
from pymc_amortized.networks.rows import RowNetwork
from pymc_amortized.rows.columns import Kind, Layout
from pymc_amortized.rows.density import RowSize
from pymc_amortized.rows.fitting import fit_layout
from pymc_amortized.rows.prepared import Rows, inside, prepare, usable
from pymc_amortized.training import (
    Batch,
    Batches,
    FixedSimulations,
    FreshSimulations,
    Training,
    choose_device,
    fastest_step,
    torch_threads,
    train,
)
from pymc_amortized.training.trained import summary_line

logger = logging.getLogger("pymc_amortized")

DEFAULT_SECONDS = 90.0
"""Errors per row add up over a data set, and fall with the number of rows trained on: longer than for a posterior."""
DEFAULT = Training(batch_size=4096, learning_rate=2e-3, weight_decay=0.0, evaluations=25)
"""Large batches, as rows are cheap; no decay, which would pull the linear part away from its regression."""
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
SLOW = 3.0
"""If simulating a batch takes more steps than this even so, simulations are made once and reused."""
LAGS = 4
"""Rows before the present one that a series depends on, unless the user says otherwise."""


def fit_likelihood(
    model: pm.Model | None = None,
    *,
    variable: str | None = None,
    observed: list[str] | None = None,
    context: Mapping[str, Any] | None = None,
    region: Region = None,
    structure: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Any] | None = None,
    lags: int | None = None,
    network: RowSize | None = None,
    training: Training | None = None,
    max_time: float | None = None,
    num_simulations: int | None = None,
    cores: int | None = None,
    device: str | torch.device | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
    compile_kwargs: CompileKwargs | None = None,
) -> AmortizedLikelihood:
    """Learn the distribution of an observed variable's rows, given the parameters they are drawn with.

    What is learned is the conditional distribution that the model's graph names: for
    ``pm.CustomDist("rt", drift[subject], boundary, random=...)`` that of one response time, given one drift and one
    boundary. It can be used in any other model with such rows.

    Parameters
    ----------
    model : pymc.Model, optional
        The context's model by default. Its prior says for which parameters the likelihood is learned.
    variable : str, optional
        The observed variable; needed where there are several. The others keep their distributions.
    observed : sequence of str, optional
        Variables that will be observed, for a model that holds no data.
    context : mapping of name to source, optional
        Where values of data containers come from in training, as in :func:`fit_posterior`.
    region : mapping of name to range or distribution, or pymc.Model, optional
        Free variables that are drawn from other distributions in training, usually wider ones: ``{"drift": (-5, 5)}``
        or ``{"drift": pm.Normal.dist(0, 3)}``; or a model with the same observed variable.
    structure : mapping of name to kind, optional
        What the axes of an observed variable are, from the first on, where the graph does not say so: "exchangeable"
        for independent rows, "sequence" for those of a series, "features" for the numbers of one row.
    kinds : mapping of name to kind, optional
        What the numbers of a row are: "real", "count" or "categorical", or a sequence of these; found in simulations
        by default.
    lags : int, optional
        For a series: how many rows before the present one it depends on, 4 by default.
    network : RowSize, optional
        Size of the networks.
    training : Training, optional
        Steps, batch size (in rows), learning rate and the like.
    max_time : float, optional
        Seconds that training may take, 90 by default.
    num_simulations : int, optional
        Train on a fixed set of so many simulations. By default fresh ones are made as training goes, unless that would
        take longer than training itself.
    cores : int, optional
        Processes that simulate.
    device : str or torch.device, optional
        Where to train.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random.
    progressbar : bool
        Whether to show the progress of training.
    compile_kwargs : mapping, optional
        Passed to ``pymc.compile``.

    Returns
    -------
    AmortizedLikelihood

    Raises
    ------
    ValueError, KeyError, TypeError
        When the model cannot be simulated or learned, or an argument is wrong; the message names it.

    Notes
    -----
    Neural likelihood estimation by maximum likelihood on simulations (Papamakarios, Sterratt & Murray 2019,
    arXiv 1805.07226), row by row as in Boelts et al. 2022 (eLife 11:e77220) for mixed data.
    """
    options = _options(training, max_time)
    if lags is not None:
        lags = whole("lags", lags)
    if num_simulations is not None:
        num_simulations = whole("num_simulations", num_simulations, smallest=20)
    if network is not None and not isinstance(network, RowSize):
        raise TypeError(f"network must be a pymc_amortized.RowSize, got {type(network).__name__}")
    context, structure = mapping("context", context), mapping("structure", structure)
    model = pm.modelcontext(model)
    spec, sources, _ = read_model(model, observed, None, context, None)
    rows = find_rows(spec, _chosen(spec, variable), structure)
    simulated, _, _ = read_model(widened(model, region), observed, None, context, None)
    read_from = find_rows(simulated, rows.variable.name, structure)
    _refuse_other_rows(rows, read_from)
    fit = _Fit(spec, simulated, rows, read_from, sources, options, training_entropy(random_seed), compile_kwargs)
    fit.device, fit.progressbar = choose_device(device), progressbar
    fit.lags = (lags or LAGS) if rows.series else 0
    fit.plan(num_simulations, whole("cores", cores) if cores is not None else None)
    return fit.run(network or RowSize(), column_kinds(rows, mapping("kinds", kinds)))


class _Fit:
    """One training of a likelihood."""

    lags = 0
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
        self.simulator.chunk(n, seed)  # compiles
        while seconds < 0.1 and n < 4096:
            n *= 4
            start = time.perf_counter()
            self.simulator.chunk(n, seed)
            seconds = time.perf_counter() - start
        self.cost = seconds / n
        slow = self.cost * self._pilot_size() > PILOT_SHARE * self._seconds()
        self.cores = cores or (available_cores() if slow else 1)

    def run(self, size: RowSize, kinds: list[Kind | None]) -> AmortizedLikelihood:
        """Simulate, choose the layout and train."""
        pilot = self.simulator(self._pilot_size(), stage_seed(self.entropy, Stage.PILOT), cores=self.cores)
        _report_drops(pilot)
        most = -(-PILOT_ROWS // len(pilot))
        names = [number for p in self.rows.parameters for number in p.numbers]
        layout, starts = fit_layout(names, self._rows(pilot, most, Stage.PILOT), kinds, self.lags)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_integer(self.entropy, Stage.NETWORK))
            network = RowNetwork(layout, size)
        for position, start in enumerate(starts):
            network.start_at(position, *start)
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
        network.to("cpu")
        likelihood = AmortizedLikelihood(
            spec=self.spec,
            rows=self.rows,
            network=network,
            history=trained.history,
            provenance=Provenance(
                entropy=self.entropy,
                training=self.options,
                num_simulations=self.num_simulations,
                cores=self.cores,
                simulations=trained.simulations,
                attempted=pilot.attempted,
                dropped=pilot.dropped,
                settled=trained.settled,
                held_out_loss=float(trained.held_out_loss),
                user_simulations=False,
            ),
            state=trained.state,
        )
        made = self.simulator(CHECKED, stage_seed(self.entropy, Stage.HELD_OUT, 1))
        error, remark = row_error(likelihood, self.simulated, self.read_from, made, self.compile_kwargs)
        doubtful = trained.stopped in ("interrupt", "diverged") or trained.overfit > 0
        logger.log(logging.WARNING if doubtful else logging.INFO, f"{summary_line(trained)} {remark}".rstrip())
        return replace(likelihood, error=error)

    def _seconds(self) -> float:
        return self.options.max_time or DEFAULT_SECONDS

    def _pilot_size(self) -> int:
        if self.num_simulations is not None:
            return self.num_simulations
        wanted = max(MOST_PILOT, PILOT_ROWS // self.read_from.rows)
        affordable = int(PILOT_SHARE * self._seconds() / max(self.cost, 1e-9))
        return max(min(wanted, affordable), FEWEST_PILOT)

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
        rows = rows.take(np.flatnonzero(inside(layout, list(rows.parameters))))
        log_slope, encoded = prepare(layout, rows)
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
        most = max(HELD_OUT_ROWS // len(made), 1)
        return self._prepared(layout, self._rows(made, most, Stage.HELD_OUT), 0)

    def _source(self, network: RowNetwork, layout: Layout, pilot: Simulations) -> Batches:
        """Where batches come from, and how many steps there will be."""
        total, batch_size = self.read_from.rows, self.options.batch_size
        trial = self._prepared(
            layout, self._rows(pilot.take(slice(batch_size)), -(-batch_size // len(pilot)), Stage.TRAINING)
        )
        z, encoded = trial
        z, encoded = z[:batch_size], {k: v[:batch_size] for k, v in encoded.items()}
        network.to(self.device)
        step, threads = fastest_step(network, z, encoded, self.options.threads)
        per_row = self.cost / self.cores * batch_size
        each = int(np.clip(math.ceil(per_row / (SIMULATING_SHARE * step)), 1, total))
        simulating = per_row / each
        if self.num_simulations is None and simulating > SLOW * step:
            budget = 0.6 * self._seconds()
            self.num_simulations = max(int(budget * self.cores / self.cost), len(pilot))
            logger.info(
                "One simulation takes %.2g ms: training on a fixed set of %d.", 1e3 * self.cost, self.num_simulations
            )
        if self.num_simulations is not None:
            simulating = 0.0
        seconds = self._seconds() if self.options.max_time is None else self.options.max_time
        planned = replace(self.options, max_time=seconds).planned(step + simulating)
        self.options = replace(planned, threads=threads)
        if self.num_simulations is not None:
            return self._fixed(layout, pilot)
        return self._fresh(layout, each)

    def _fixed(self, layout: Layout, pilot: Simulations) -> Batches:
        assert self.num_simulations is not None
        start, more = time.perf_counter(), self.num_simulations - len(pilot)
        rows = self._rows(
            pilot.take(slice(len(pilot) // 10, None)) if more <= 0 else pilot, self.read_from.rows, Stage.TRAINING
        )
        parts = [self._prepared(layout, rows, 1)]
        if more > 0:
            made = self.simulator(more, stage_seed(self.entropy, Stage.TRAINING, 0), cores=self.cores)
            parts.append(self._prepared(layout, self._rows(made, self.read_from.rows, Stage.TRAINING), 2))
        z = torch.cat([part[0] for part in parts])
        encoded = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
        seed = stage_integer(self.entropy, Stage.TRAINING) % 2**63
        return FixedSimulations(
            z, encoded, self.options.batch_size, seed=seed, device=self.device, seconds=time.perf_counter() - start
        )

    def _fresh(self, layout: Layout, each: int) -> Batches:
        source: FreshSimulations | None = None

        def simulate(n: int) -> Batch:
            at = source.simulations if source is not None else 0
            made = self.simulator(-(-n // each), stage_seed(self.entropy, Stage.TRAINING, at), cores=self.cores)
            return self._prepared(layout, self._rows(made, each, Stage.TRAINING, at), at)

        source = FreshSimulations(simulate, self.options.batch_size, device=self.device)
        return source


def _options(training: Training | None, max_time: float | None) -> Training:
    if training is not None and not isinstance(training, Training):
        raise TypeError(f"training must be a pymc_amortized.Training, got {type(training).__name__}")
    options = training or DEFAULT
    return options if max_time is None else replace(options, max_time=max_time)


def _chosen(spec: ModelSpec, variable: str | None) -> str:
    names = [v.name for v in spec.observed]
    if variable is None:
        if len(names) > 1:
            raise ValueError(f"variable: the model observes {names}; say whose likelihood is to be learned")
        return names[0]
    if variable not in names:
        raise KeyError(f"variable: {variable!r} is not observed; the observed variables are {names}")
    return variable


def column_kinds(rows: ObservedRows, given: dict[str, Any]) -> list[Kind | None]:
    name = rows.variable.name
    unknown = sorted(set(given) - {name})
    if unknown:
        raise KeyError(f"kinds: {unknown} given; the variable is {name!r}")
    said = given.get(name)
    if said is None:
        return [rows.kind] * rows.columns
    kinds: list[Any] = [said] * rows.columns if isinstance(said, str) else list(said)
    allowed = ("real", "count", "categorical")
    if len(kinds) != rows.columns or any(k not in allowed for k in kinds):
        raise ValueError(f"kinds[{name!r}] must be one of {allowed} for each of {rows.columns} numbers, got {said!r}")
    return list(kinds)


def _refuse_other_rows(rows: ObservedRows, wider: ObservedRows) -> None:
    """The model that is simulated must have rows of the same parameters."""
    ours, theirs = ([p.name for p in r.parameters] for r in (rows, wider))
    if ours != theirs or rows.event_shape != wider.event_shape or rows.series != wider.series:
        raise ValueError(f"region: its rows depend on {theirs}, those of the model on {ours}")


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
