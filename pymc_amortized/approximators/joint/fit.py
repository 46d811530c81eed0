"""Training a posterior and a likelihood together.

What is shared, and what is not (cf. JANA: Radev et al. 2023, arXiv 2302.09125):

- One model is compiled into one simulator, and every simulated data set is used twice: as a whole by the posterior, row
  by row by the likelihood. So are the simulations that statistics are learned from, and those held out.
- Both networks make their steps in turn in one loop, with one clock and one schedule.
- Weights are not shared. In JANA too the summary network serves the posterior alone, and the likelihood is a network
  of the parameters. Here it is a mixture for each row in terms of a few numbers, small enough to become a PyTensor
  graph that costs microseconds a row. It has no encoder of data that a posterior could use, and the posterior's encoder
  of rows would gain nothing from an objective that never asks what they tell. Each network keeps its own optimizer,
  learning rate and best weights, so that neither is worse for the other's company.
- What couples them is self-consistency (:mod:`pymc_amortized.approximators.joint.consistency`), if it is wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import torch

from pymc_amortized.approximators.fitting.arguments import check_integer, read_mapping
from pymc_amortized.approximators.fitting.pace import Making, others, pace_of
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import RandomState, Stage, stage_integer, stage_seed
from pymc_amortized.approximators.fitting.simulate import FEWEST_USABLE, read_model
from pymc_amortized.approximators.fitting.training_arguments import read_entropy, read_sketch_option
from pymc_amortized.approximators.joint.batches import covering_datasets, of_datasets, of_rows, row_tensors
from pymc_amortized.approximators.joint.consistency import SelfConsistency, consistency_obstacle
from pymc_amortized.approximators.joint.joint import AmortizedJoint, learned_posterior, rows_at_largest
from pymc_amortized.approximators.likelihood.error import checked, row_error
from pymc_amortized.approximators.likelihood.fit import column_kinds
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood, emulator_of
from pymc_amortized.approximators.likelihood.training import DEFAULT, HELD_OUT_ROWS, LAGS, PILOT_ROWS, default_size
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.posterior.training import PosteriorFit
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.suitability import has_density
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.rows.learned import refuse_followers, with_learned_density
from pymc_amortized.graph.rows.observed_rows import ObservedRows, find_rows
from pymc_amortized.graph.rows.samples import add_sized_row_parameters, some_rows
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.networks.choices import check_choices
from pymc_amortized.networks.posterior_network import DensityChoice, PosteriorNetwork, SummaryChoice
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.fitting import fit_layout
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.training import (
    Batch,
    Batches,
    Shared,
    Task,
    Trained,
    Training,
    choose_device,
    fastest_step,
    torch_threads,
    train_together,
)

logger = logging.getLogger("pymc_amortized")

Term = Callable[[], torch.Tensor] | None

DEFAULT_SECONDS = 280.0
"""Two thirds of what a posterior and a likelihood may take alone, one after the other."""
SLOWER = 2 / 3
"""Learning rate of the likelihood, relative to the posterior's: what they are by default when trained alone."""
PILOT = 8192
"""Simulations that statistics are learned from: for the regression at which the likelihood starts, more than for a
posterior."""
LARGEST_SET = 2**26
"""Numbers of rows that are kept of a fixed set of simulations: 256 MiB."""


def fit_joint(
    model: pm.Model | None = None,
    *,
    variable: str | None = None,
    observed: Sequence[str] | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    structure: Mapping[str, str | Sequence[str]] | None = None,
    kinds: Mapping[str, Any] | None = None,
    lags: int | None = None,
    summary: SummaryChoice = "auto",
    density: DensityChoice = "spline",
    sketch: bool | None = None,
    network: RowSize | None = None,
    self_consistency: bool = False,
    num_simulations: int | None = None,
    training: Training | None = None,
    max_time: float | None = None,
    cores: int | None = None,
    device: str | torch.device | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
    compile_kwargs: CompileKwargs | None = None,
) -> AmortizedJoint:
    """Learn the posterior and the likelihood of a model from the same simulations.

    For models that can be simulated only: the learned likelihood corrects the draws of the learned posterior, gives
    pointwise log likelihoods, and the evidence. Where the model has a density of its own, that corrects the draws.

    Parameters
    ----------
    model : pymc.Model, optional
        The context's model by default.
    variable : str, optional
        The observed variable whose likelihood is learned; by default the only one, or the only one without a density.
        The others need a density for draws to be corrected.
    observed, context, missing
        As in :func:`fit_posterior`.
    structure : mapping of name to kind, optional
        As in :func:`fit_posterior` and :func:`fit_likelihood`.
    kinds, lags
        As in :func:`fit_likelihood`.
    summary, density, sketch
        As in :func:`fit_posterior`.
    network : RowSize, optional
        Size of the likelihood's networks.
    self_consistency : bool
        Whether the variance of log prior + learned log likelihood - log posterior over draws is made small as well,
        which it is for every data set when both are right (Schmitt et al. 2024, arXiv 2310.04395). It takes time, and
        may help a little where simulations are few: for a regression of 50 rows it lowered the posterior's held-out
        loss by 0.06 at 500 simulations and by 0.03 at 2,000 (``benchmarks/joint.py``).
    num_simulations : int, optional
        Train on a fixed set of so many simulations. By default fresh ones are made at every step, or, where that would
        take long, as many as can be made in a minute.
    training : Training, optional
        Steps of each network, batch size (in data sets), and the like. The learning rate is the posterior's; the
        likelihood's is two thirds of it, without weight decay.
    max_time : float, optional
        Seconds that training may take, 280 by default.
    cores, device
        As in :func:`fit_posterior`.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.
    progressbar, compile_kwargs
        As in :func:`fit_posterior`.

    Returns
    -------
    AmortizedJoint

    Raises
    ------
    ValueError, KeyError, TypeError
        When the model cannot be simulated or learned, or an argument is wrong; the message names it.

    Notes
    -----
    The method is jointly amortized neural approximation (JANA: Radev et al. 2023, arXiv 2302.09125), row by row.

    Examples
    --------
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 2.0)
    ...     observed = pm.Normal("y", mu, 1.0, observed=[0.4, 1.9, 0.7, 1.2])
    >>> brief = {"training": pma.Training(num_steps=30), "random_seed": 1, "progressbar": False}
    >>> joint = pma.fit_joint(model, num_simulations=1000, **brief)
    >>> draws = joint.posterior.sample({"y": [1.1, 0.2, 1.5, 0.8]}, draws=100, random_seed=1)
    >>> joint.likelihood.logp([0.0, 1.0], {"mu": 0.5}).shape
    (2,)
    """
    options = _options(training, max_time)
    place = choose_device(device)
    if num_simulations is not None:
        num_simulations = check_integer("num_simulations", num_simulations, smallest=FEWEST_USABLE)
    if network is not None and not isinstance(network, RowSize):
        raise TypeError(f"network must be a pymc_amortized.RowSize, got {type(network).__name__}")
    if not isinstance(self_consistency, bool):
        raise TypeError(f"self_consistency must be True or False, got {self_consistency!r}")
    lags = None if lags is None else check_integer("lags", lags)
    cores = None if cores is None else check_integer("cores", cores)
    context, structure = read_mapping("context", context), read_mapping("structure", structure)
    check_choices(summary, density)
    model = pm.modelcontext(model)
    spec, sources, gaps = read_model(model, observed, None, context, missing)
    alone = take_snapshot(model, observed=observed, context=sources)
    rows = find_rows(alone, _chosen(alone, variable), structure)
    if spec.density_obstacle:
        refuse_followers(spec, rows.variable.name)
    obstacle = consistency_obstacle(spec, rows) if self_consistency else None
    if obstacle:
        raise ValueError(f"self_consistency: {obstacle}")
    entropy = read_entropy(random_seed)
    fit = _JointFit(spec, sources, gaps, options, entropy, place, progressbar, compile_kwargs)
    fit.sketched = read_sketch_option(sketch, summary)
    fit.simulate_rows(read_model(model, observed, None, context, missing)[0], alone, rows)
    fit.lags, fit.consistent = ((lags or LAGS) if rows.series else 0), self_consistency
    fit.plan(num_simulations, cores)
    size = network or default_size(rows)
    return fit.run_jointly(summary, density, structure, size, column_kinds(rows, read_mapping("kinds", kinds)))


class _JointFit(PosteriorFit):
    """One training of both."""

    learns_all = True  # the consistency of the two is seen at draws of the network alone
    lags = 0
    each = 1
    consistent = False
    simulated: ModelSpec
    alone: ModelSpec
    rows: ObservedRows
    read_from: ObservedRows

    def simulate_rows(self, simulated: ModelSpec, alone: ModelSpec, rows: ObservedRows) -> None:
        """Have simulations hold what rows depend on.

        Parameters
        ----------
        simulated : ModelSpec
            Another snapshot of the model, to be changed.
        alone : ModelSpec
            One of the model as it stands, whose sizes do not differ.
        rows : ObservedRows
            Its rows.
        """
        self.simulated, self.alone, self.rows = simulated, alone, rows
        self.read_from = rows_at_largest(simulated, rows)
        names = add_sized_row_parameters(simulated, self.read_from)
        sampler = ContextSampler(simulated, self.context, self.missing)
        self.simulator = Simulator(simulated, context=sampler, deterministics=names, compile_kwargs=self.compile_kwargs)

    def run_jointly(
        self,
        summary: SummaryChoice,
        density: DensityChoice,
        given: Mapping[str, str | Sequence[str]],
        size: RowSize,
        kinds: list[str | None],
    ) -> AmortizedJoint:
        """Simulate, choose the networks and train."""
        pilot = self._pilot()
        statistics, held_out = self._parts(pilot)
        layout, row_network = self._row_network(statistics, size, kinds)
        structure = self._structure(pilot, given, self._start_density(row_network))
        gaps = self._gaps(pilot)
        statistics = self._see(statistics, structure, gaps, summary, density)
        if self.inputs.sketch is not None:
            held_out = replace(held_out, sketch=self.inputs.sketch.of_simulations(held_out, self.cores))
        some = statistics.take(slice(PILOT))
        network = self._built(some, summary, density)
        self.each = min(-(-DEFAULT.batch_size // self.options.batch_size), self.read_from.rows)
        self._plan_joint_steps(network, row_network, layout, statistics)
        terms = self._terms(network, row_network, statistics)
        source = self._joint_source(network, layout, statistics)
        trained = self._train_both(network, row_network, layout, source, held_out, terms)
        posterior = AmortizedPosterior.of(self._finished(network, gaps, trained[0], held_out, pilot, some))
        likelihood = self._likelihood(row_network.to("cpu"), trained[1], pilot)
        if self.spec.density_obstacle:
            posterior = learned_posterior(posterior, likelihood)
        return AmortizedJoint(posterior, likelihood)

    def _pilot_size(self) -> int:
        if self.num_simulations is not None:
            return self.num_simulations
        return PILOT

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
        some = statistics.take(slice(PILOT))
        rng = np.random.default_rng(stage_seed(self.entropy, Stage.PILOT, 1))
        each = min(-(-PILOT_ROWS // len(some)), self.read_from.rows)
        names = [number for p in self.rows.parameters for number in p.numbers]
        rows = some_rows(self.read_from, some, each, self.lags, rng)
        layout, starts = fit_layout(names, rows, kinds, self.lags)
        layout = covering_datasets(layout, rows, len(some))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_integer(self.entropy, Stage.NETWORK))
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
        z, encoded = self._prepared(network, made)
        rng = np.random.default_rng(stage_seed(self.entropy, stage, *path, 3))
        rows = row_tensors(layout, some_rows(self.read_from, made, each, self.lags, rng), len(made))
        return z, encoded | {name: value.to(z.device) for name, value in rows.items()}

    def _plan_joint_steps(
        self,
        network: PosteriorNetwork,
        row_network: RowNetwork,
        layout: Layout,
        statistics: Simulations,
    ) -> None:
        """Decide how many steps to make, by what one of each takes."""
        network.to(self.device), row_network.to(self.device)
        some = statistics.take(slice(self.options.batch_size))
        batch = self._both(network, layout, some, self.each, Stage.TIMING)
        if self.options.max_time is None and self.options.num_steps is None:
            self.options = replace(self.options, max_time=DEFAULT_SECONDS)

        def timed(threads: int | None) -> tuple[float, int]:
            first, threads = fastest_step(network, *of_datasets(batch), threads)
            return first + fastest_step(row_network, *of_rows(batch), threads)[0], threads

        making = Making(self.simulating / (self.options.passes or 1))
        pace = pace_of(timed, making, self.cores, self.options)
        self.workers = others(self.cores) if pace.ahead else 0
        self.options = replace(self.options.planned(pace.seconds), threads=pace.threads)

    def _joint_source(self, network: PosteriorNetwork, layout: Layout, statistics: Simulations) -> Batches:
        def whole() -> Batch:
            width = sum(v.inputs for v in layout.parameters) + 4 * len(layout.columns) + layout.lag_size
            kept = max(min(self.read_from.rows, LARGEST_SET // (len(statistics) * width)), self.each)
            return self._both(network, layout, statistics, kept, Stage.TRAINING)

        return self._batches(
            whole,
            lambda simulations, before: self._both(network, layout, simulations, self.each, Stage.TRAINING, before),
        )

    def _terms(self, network: PosteriorNetwork, row_network: RowNetwork, statistics: Simulations) -> tuple[Term, Term]:
        """What is added to the losses of the two networks."""
        if not self.consistent:
            return None, None
        seed = stage_seed(self.entropy, Stage.LOOP, 3)
        networks = (network, row_network)
        term = SelfConsistency(
            self.simulated, self.read_from, self.inputs, networks, statistics, seed, self.compile_kwargs
        )
        return term.of_posterior, term.of_likelihood

    def _train_both(
        self,
        network: PosteriorNetwork,
        row_network: RowNetwork,
        layout: Layout,
        source: Batches,
        held_out: Simulations,
        terms: tuple[Term, Term],
    ) -> list[Trained]:
        judged = max(min(HELD_OUT_ROWS // len(held_out), self.read_from.rows), 1)
        held = self._both(network, layout, held_out, judged, Stage.HELD_OUT)
        shared = Shared(source)
        rate = SLOWER * self.options.learning_rate
        of_likelihood = replace(
            self.options, learning_rate=rate, weight_decay=0.0, batch_size=self.each * self.options.batch_size
        )
        tasks = [
            Task(network, shared.view(of_datasets), of_datasets(held), self.options, None, terms[0]),
            Task(
                row_network,
                shared.view(lambda batch, number: of_rows(batch, number, self.each)),
                of_rows(held),
                of_likelihood,
                None,
                terms[1],
            ),
        ]
        with torch_threads(self.options.threads or torch.get_num_threads()):
            return train_together(
                tasks,
                seed=stage_integer(self.entropy, Stage.LOOP) % 2**63,
                progress=self.progressbar,
                device=self.device,
            )

    def _likelihood(self, network: RowNetwork, trained: Trained, pilot: Simulations) -> AmortizedLikelihood:
        rows = trained.simulations * (self.each if self.num_simulations is None else self.read_from.rows)
        likelihood = AmortizedLikelihood(
            spec=self.alone,
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
                simulations=rows,
            ),
            state=trained.state,
        )
        some = pilot.take(slice(checked(self.read_from.rows)))
        error, remark = row_error(likelihood, self.simulated, self.read_from, some, self.compile_kwargs)
        logger.info("Likelihood: held-out loss %.3f a row. %s", trained.held_out_loss, remark)
        return replace(likelihood, error=error)


def _options(training: Training | None, max_time: float | None) -> Training:
    if training is not None and not isinstance(training, Training):
        raise TypeError(f"training must be a pymc_amortized.Training, got {type(training).__name__}")
    options = training or Training()
    return options if max_time is None else replace(options, max_time=max_time)


def _chosen(spec: ModelSpec, variable: str | None) -> str:
    """The variable to learn: what the user says, or the only candidate."""
    names = [v.name for v in spec.observed]
    if variable is not None:
        if variable not in names:
            raise KeyError(f"variable: {variable!r} is not observed; the observed variables are {names}")
        return variable
    without = [name for name in names if not has_density(spec.model, spec.model[name])]
    candidates = names if len(names) == 1 else without
    if len(candidates) != 1:
        raise ValueError(
            f"variable: the model observes {names}, of which {without or 'none'} have no density; say whose likelihood "
            "is to be learned"
        )
    return candidates[0]
