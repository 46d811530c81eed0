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
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import pymc as pm
import torch

from pymc_amortized.approximators.fitting.arguments import read_count, read_mapping, read_sketch_option
from pymc_amortized.approximators.fitting.models import read_anew, read_model, refuse_groups
from pymc_amortized.approximators.fitting.seeds import RandomState
from pymc_amortized.approximators.fitting.setup import Setup, read_setup
from pymc_amortized.approximators.joint.file import SavedJoint, read_joint
from pymc_amortized.approximators.joint.joint import AmortizedJoint, learned_posterior
from pymc_amortized.approximators.joint.training import JointFit
from pymc_amortized.approximators.likelihood.fit import read_column_kinds, read_size, read_variable
from pymc_amortized.approximators.likelihood.training import default_size, number_of_lags, scales_of_averages
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.simulations.given import FEWEST_USABLE
from pymc_amortized.approximators.storage.checkpoint import about_fit, kept_fit
from pymc_amortized.approximators.storage.models import describe_model
from pymc_amortized.approximators.storage.save import read_again
from pymc_amortized.graph.data.support import refuse_impossible_held
from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.rows.exchange import refuse_followers
from pymc_amortized.graph.rows.finding import find_rows
from pymc_amortized.networks.choices import check_choices
from pymc_amortized.networks.posterior_network import DensityChoice, SummaryChoice
from pymc_amortized.ranks import together
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.training import Training


@together()
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
    num_simulations: int | None = None,
    training: Training | None = None,
    max_time: float | None = None,
    checkpoint: str | PathLike[str] | None = None,
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
    num_simulations : int, optional
        Train on a fixed set of so many simulations. By default fresh ones are made at every step, or, where that would
        take long, as many as can be made in a minute.
    training : Training, optional
        Steps of each network, batch size (in data sets), and the like. The learning rate is the posterior's; the
        likelihood's is two thirds of it, without weight decay.
    max_time : float, optional
        Seconds that the whole call may take, compiling aside. By default, training may take 280.
    checkpoint, cores, device
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
    >>> joint.likelihood.parameters
    ('mu',)
    """
    setup = read_setup(training, max_time, random_seed, device, progressbar, compile_kwargs)
    num_simulations = read_count("num_simulations", num_simulations, smallest=FEWEST_USABLE)
    lags, cores = read_count("lags", lags), read_count("cores", cores)
    context, structure = read_mapping("context", context), read_mapping("structure", structure)
    check_choices(summary, density)
    sketch = read_sketch_option(sketch, summary)
    model = model_of(model)
    spec, sources, gaps = read_model(model, observed, None, context, missing)
    refuse_groups(spec, "fit_joint")
    refuse_impossible_held([spec])
    alone = take_snapshot(model, observed=observed, context=sources)
    rows = find_rows(alone, read_variable(alone, variable, without_density=True), structure)
    if spec.density_obstacle:
        refuse_followers(spec, rows.variable.name)
    size = read_size(network, default_size("density", rows))
    columns = read_column_kinds(rows, read_mapping("kinds", kinds))

    def about() -> dict[str, Any]:
        return about_fit(
            "fit_joint",
            describe_model(spec, sources, gaps),
            variable=rows.variable.name,
            structure=structure,
            kinds=columns,
            lags=lags,
            summary=summary,
            density=density,
            sketch=sketch,
            network=size,
            num_simulations=num_simulations,
            training=setup.options,
        )

    def fit(setup: Setup) -> AmortizedJoint:
        made = JointFit(
            spec,
            read_anew(model, observed, None, context, missing)[0],  # row parameters are added to it
            alone,
            rows,
            sources,
            gaps,
            setup,
            num_simulations=num_simulations,
            cores=cores,
            sketched=sketch,
            lags=number_of_lags(lags, rows),
            scales=scales_of_averages(lags, rows),
        )
        trained, likelihood = made.run(summary, density, structure, size, columns)
        posterior = AmortizedPosterior.of(trained)
        posterior = learned_posterior(posterior, likelihood) if spec.density_obstacle else posterior
        return AmortizedJoint(posterior, likelihood)

    def again(path: Path) -> AmortizedJoint:
        joint = read_again(SavedJoint, read_joint, path, model, compile_kwargs, summary, density)
        return replace(joint, posterior=replace(joint.posterior, context=sources, missing=gaps))

    return kept_fit(checkpoint, about, setup, fit, again, any_seed=random_seed is None)
