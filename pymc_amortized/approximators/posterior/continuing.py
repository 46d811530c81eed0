"""Training a posterior further, and fits that go on after their process was killed."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import read_target, target_of
from pymc_amortized.approximators.fitting.models import sources_again, training_simulator
from pymc_amortized.approximators.fitting.setup import Setup, end_of_call
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.approximators.posterior.training import TARGET, PosteriorFit
from pymc_amortized.approximators.simulations.given import read_given
from pymc_amortized.training import Training, choose_device


def continue_training(
    posterior: TrainedPosterior,
    num_steps: int | None,
    *,
    max_time: float | None,
    target_efficiency: float | None,
    training: Training | None,
    context: Mapping[str, Any] | None,
    missing: Mapping[str, Any] | None,
    simulations: xr.DataTree | str | PathLike[str] | None,
    device: str | torch.device | None,
    progressbar: bool,
) -> TrainedPosterior:
    """Train a posterior further; :meth:`AmortizedPosterior.continue_training` says how."""
    if posterior.local_to is not None:
        raise ValueError("a refined posterior is trained by refine(), for its one data set")
    spec, provenance, kwargs = posterior.spec, posterior.provenance, posterior.compile_kwargs
    if training is not None and num_steps is not None:
        raise ValueError("num_steps and training exclude each other: training=Training(num_steps=...) says both")
    options = training or replace(provenance.training, max_time=None)
    options = options if num_steps is None else replace(options, num_steps=num_steps)
    if target_efficiency is not None and num_steps is None and training is None:
        options = replace(options, num_steps=None)
    wanted = read_target(target_efficiency, options)
    begun = not posterior.state.values["standing"]["finished"]
    target = target_of(spec, wanted, TARGET if begun else None)
    options = options if max_time is None else replace(options, max_time=max_time)
    context = posterior.context if context is None else context
    sources, gaps = sources_again(spec, context, posterior.missing if missing is None else missing)
    simulator = training_simulator(spec, sources, gaps, kwargs)
    setup = Setup(options, provenance.entropy, choose_device(device), progressbar, kwargs, end_of_call(max_time))
    given = None
    if provenance.user_simulations:
        if simulations is None:
            raise ValueError("simulations: this posterior was trained on simulations of yours; pass them again")
        given = read_given(simulations, spec, sources, kwargs, gaps)
    plan = SimulationPlan(provenance.num_simulations if given is None else len(given), provenance.cores)
    fit = PosteriorFit(spec, sources, gaps, simulator, setup, plan, given=given, target=target)
    return replace(fit.resume(posterior), learned=posterior.learned)
