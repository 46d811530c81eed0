"""Training an amortized posterior: the door."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import pymc as pm
import torch
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import (
    read_count,
    read_mapping,
    read_sketch_option,
    read_target,
    target_of,
)
from pymc_amortized.approximators.fitting.models import read_model, training_simulator
from pymc_amortized.approximators.fitting.seeds import RandomState, Stage
from pymc_amortized.approximators.fitting.setup import Setup, read_setup
from pymc_amortized.approximators.fitting.simulating import seconds_of_simulator, separate_locals
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan, plan_simulations
from pymc_amortized.approximators.posterior.file import SavedPosterior, read_posterior
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.posterior.training import TARGET, PosteriorFit
from pymc_amortized.approximators.simulations.given import FEWEST_USABLE, read_given
from pymc_amortized.approximators.storage.checkpoint import about_fit, content_of, kept_fit
from pymc_amortized.approximators.storage.models import describe_model
from pymc_amortized.approximators.storage.save import read_again
from pymc_amortized.graph.data.support import refuse_impossible_held
from pymc_amortized.graph.model.axes import read_kinds
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.networks.choices import DensityChoice, SummaryChoice, check_choices, density_options
from pymc_amortized.ranks import together
from pymc_amortized.training import Training


@together()
def fit_posterior(
    model: pm.Model | None = None,
    *,
    observed: Sequence[str] | None = None,
    parameters: Sequence[str] | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    structure: Mapping[str, str | Sequence[str]] | None = None,
    simulations: xr.DataTree | str | PathLike[str] | None = None,
    num_simulations: int | None = None,
    summary: SummaryChoice = "auto",
    density: DensityChoice = "spline",
    sketch: bool | None = None,
    training: Training | None = None,
    max_time: float | None = None,
    target_efficiency: float | None = None,
    checkpoint: str | PathLike[str] | None = None,
    cores: int | None = None,
    device: str | torch.device | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
    compile_kwargs: CompileKwargs | None = None,
) -> AmortizedPosterior:
    """Train a network on a model's own simulations to give the posterior of any data set.

    Parameters
    ----------
    model : pymc.Model, optional
        The context's model by default. It is copied: later changes to it do not reach the posterior.
    observed : sequence of str, optional
        Variables that will be observed, for a model that holds no data.
    parameters : sequence of str, optional
        Free variables whose joint marginal posterior is wanted; all by default. A subset has no closed
        density, so that its draws are not corrected.
    context : mapping of name to source, optional
        What differs between data sets beside observed values. For a dimension, its smallest and largest length:
        ``{"obs": (10, 500)}``; training draws lengths uniformly on a logarithmic scale. For a data container (also a
        scalar one that holds a hyperparameter), where its values come from in training: a PyMC distribution
        (``pm.Normal.dist(0, 1)``), ``"resample"`` (rows drawn with replacement from what the container holds), or a
        callable that takes a :class:`numpy.random.Generator`, and by keyword the lengths it asks for
        (``lambda rng, obs: ...``), and returns one value.
    missing : mapping of name to rate or callable, optional
        Observed variables of which values may be missing (NaN, at inference): the mean share of missing values in
        training (each simulated data set has its own share, uniform from 0 to twice that), or a callable
        ``(rng, shape)`` that returns True where a value is missing. Which ones are missing must not depend on their
        values.
    structure : mapping of name to kind, optional
        What the axes of an observed variable are, where the model's density and graph do not find it: "exchangeable",
        "sequence", "grouped" or "features" for its first axis, a sequence of these for all its axes, or "flat".
    simulations : xarray.DataTree or path-like, optional
        Groups ``prior`` and ``prior_predictive``, as from :func:`simulate` or ``pm.sample_prior_predictive``, to train
        on instead of new simulations. Or the path of a store that :func:`simulate` wrote: where that holds more than
        1 GiB, training reads it in blocks.
    num_simulations : int, optional
        Train on a fixed set of so many simulations. By default fresh ones are made at every step, or, where that would
        take more than a minute, as many as can be made in a minute.
    summary : str, options or torch.nn.Module
        Network that condenses the data: "flat", "set", "set_transformer", "sequence", "transformer", "grid", "grouped"
        or options of one of these. "auto" chooses by the structure of the data. A module of your own maps encoded
        arrays (a dict of tensors ``(batch, *shape, channels)``, 0 where there is no value, the last channel telling
        which values are present where some may be missing; and ``"mask:<dim>"`` ``(batch, length)`` for a dimension
        whose length differs) to (batch, features).
    density : "spline", Spline, torch.nn.Module or callable
        Conditional density of the standardized unconstrained parameters: a module with ``log_prob(z, context)`` and
        ``sample(draws, context, generator)``, or a function ``(dim, features)`` that makes one. One that has a method
        ``loss(z, context)`` is trained by that. The built-in one is not trained for what can be drawn exactly, given
        the other parameters.
    sketch : bool, optional
        Whether the built-in summary is also given rough moments of the posterior of each data set, found by some
        hundred evaluations of the model's density: by default where it has one, up to 24 parameters (of which 12 in
        which its logarithm is not quadratic: the others are integrated out, and drawn from their exact distribution,
        given these), missing values can be integrated out, and that takes no more than 20 ms. Draws come much closer to
        the exact posterior; a data set takes about a millisecond longer. True refuses models of which there is no
        sketch.
    training : Training, optional
        Steps, batch size, learning rate and the like. Without a number of steps, training stops when it is good enough:
        after 0, 25, 50, 100, ... steps the importance efficiency is measured on 128 simulated data sets.
    max_time : float, optional
        Seconds that the whole call may take, compiling aside. ``Training(max_time=...)`` bounds the training alone.
    target_efficiency : float, optional
        In (0, 1): training stops once half of the simulated data sets have this importance efficiency, and nine tenths
        half of it; or when a doubling of the steps brings little, which is said as a warning. By default 0.5. Without a
        density, training stops when the last doubling lowered the held-out loss by less than 0.01 nats.
    checkpoint : path-like, optional
        A folder in which the fit keeps what it has, at least every half minute of training. When its process was
        killed, the same call goes on from there; without a seed it takes the one that it began with. When it was done,
        the same call reads the posterior. Another model, or other arguments, are refused. Of processes that torchrun
        started the first one writes, and all have to see the folder.
    cores : int, optional
        Processes that simulate. By default several, where simulating takes long, and one beside training, where
        that takes a minute or more.
    device : str or torch.device, optional
        Where to train; CUDA, MPS or the CPU, whichever is there.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.
    progressbar : bool
        Whether to show the progress of training.
    compile_kwargs : mapping, optional
        Passed to ``pymc.compile``.

    Returns
    -------
    AmortizedPosterior

    Raises
    ------
    ValueError, KeyError, TypeError
        When the model cannot be simulated or learned, or an argument is wrong; the message names it.

    Notes
    -----
    The method is neural posterior estimation by maximum likelihood on simulations (Papamakarios & Murray 2016;
    Radev et al. 2020, arXiv 2003.06281).

    Examples
    --------
    Train on a normal mean, for a moment only; then draw for new data:

    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 2.0)
    ...     observed = pm.Normal("y", mu, 1.0, observed=[0.4, 1.9, 0.7, 1.2])
    >>> brief = {"training": pma.Training(num_steps=30), "random_seed": 1, "progressbar": False}
    >>> posterior = pma.fit_posterior(model, **brief)
    >>> draws = posterior.sample({"y": [1.1, 0.2, 1.5, 0.8]}, draws=100, random_seed=1)
    >>> draws.posterior["mu"].sizes["draw"]
    100

    A hierarchy with any number of groups, from 3 to 9 here:

    >>> with pm.Model(coords={"site": range(4)}) as model:
    ...     site = pm.Data("site_index", [0, 1, 2, 3, 3], dims="visit")
    ...     mu, tau = pm.Normal("mu", 1.0, 1.0), pm.HalfNormal("tau", 1.0)
    ...     rate = pm.Normal("rate", mu, tau, dims="site")
    ...     y = pm.Poisson("y", pm.math.exp(rate[site]), observed=[2, 0, 5, 3, 4], dims="visit")
    >>> sizes = {"site": (3, 9), "visit": (3, 20), "site_index": "groups"}
    >>> groups = pma.fit_posterior(model, context=sizes, **brief)
    >>> draws = groups.sample({"y": [4, 1, 0], "site_index": [0, 0, 2]}, draws=50, random_seed=1)
    >>> draws.posterior["rate"].sizes["site"]
    3
    """
    setup = read_setup(training, max_time, random_seed, device, progressbar, compile_kwargs)
    num_simulations = read_count("num_simulations", num_simulations, smallest=FEWEST_USABLE)
    cores = read_count("cores", cores)
    context, structure = read_mapping("context", context), read_mapping("structure", structure)
    check_choices(summary, density)
    sketch = read_sketch_option(sketch, summary)
    wanted = read_target(target_efficiency, setup.options)
    spec, sources, gaps = read_model(model, observed, parameters, context, missing)
    refuse_impossible_held([spec])
    # a density of the user's is one of all parameters
    if simulations is None and density_options(density, spec.dim) is not None:
        spec = separate_locals(spec, sources, setup)
    target = target_of(spec, wanted, TARGET)
    read_kinds({v.name: v.shape for v in spec.observed}, structure, {v.name: v.dims for v in spec.observed})
    simulator = training_simulator(spec, sources, gaps, compile_kwargs)
    given = None
    if simulations is not None:
        if num_simulations is not None:
            raise ValueError("num_simulations and simulations exclude each other")
        given = read_given(simulations, spec, sources, compile_kwargs, gaps)
        num_simulations = len(given)

    def timed() -> float:
        return seconds_of_simulator(simulator, setup.seed(Stage.TIMING)) if given is None else 0.0

    def about() -> dict[str, Any]:
        return about_fit(
            "fit_posterior",
            describe_model(spec, sources, gaps),
            simulations=content_of(simulations),
            structure=structure,
            num_simulations=num_simulations,
            summary=summary,
            density=density,
            sketch=sketch,
            training=setup.options,
            target_efficiency=wanted,
        )

    def fit(setup: Setup) -> AmortizedPosterior:
        def planned() -> SimulationPlan:
            return plan_simulations(timed, setup.options, num_simulations, cores, values=spec.values)

        plan = setup.decide("simulations", SimulationPlan, planned)
        made = PosteriorFit(spec, sources, gaps, simulator, setup, plan, given=given, sketched=sketch, target=target)
        return AmortizedPosterior.of(made.run(summary, density, structure))

    def again(path: Path) -> AmortizedPosterior:
        read = partial(read_posterior, kind=AmortizedPosterior)
        found = read_again(SavedPosterior, read, path, model, compile_kwargs, summary, density)
        return replace(found, context=sources, missing=gaps)

    return kept_fit(checkpoint, about, setup, fit, again, any_seed=random_seed is None)
