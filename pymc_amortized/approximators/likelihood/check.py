"""What a learned likelihood is worth, on simulations that it was not trained on: logged where something is off."""

from dataclasses import replace

import numpy as np

from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.likelihood.calibrated import rank_parameters, warn_if_not_calibrated
from pymc_amortized.approximators.likelihood.error import row_error
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.likelihood.remembered import find_forgotten, warn_if_forgotten
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.row_density.evaluation import RowDensity


def check_likelihood(
    likelihood: AmortizedLikelihood, simulated: ModelSpec, read_from: ObservedRows, made: Simulations, setup: Setup
) -> tuple[AmortizedLikelihood, str]:
    """Compare it with the exact density, where there is one; test what it knows of the past, and its posteriors.

    That it is normalized needs no test: mixtures of normal densities, transformed, their masses in intervals that cover
    all counts, and frequencies of categories, add up to 1 whatever the network says.

    Parameters
    ----------
    likelihood : AmortizedLikelihood
    simulated : ModelSpec
        The model that was simulated, with the row parameters among its deterministics.
    read_from : ObservedRows
        Its rows.
    made : Simulations
        See :func:`~pymc_amortized.approximators.likelihood.error.simulations_to_check`.
    setup : Setup

    Returns
    -------
    likelihood : AmortizedLikelihood
        With what was found.
    remark : str
        The error in words.
    """
    density, name = likelihood.density, read_from.variable.name
    error, remark, forgotten = None, "", None
    rng = np.random.default_rng(setup.seed(Stage.HELD_OUT, 2))
    if isinstance(density, RowDensity):
        error, remark = row_error(density, simulated, read_from, made, setup.compile_kwargs)
        if not simulated.sizes:
            forgotten = find_forgotten(density, read_from, made, rng)
            warn_if_forgotten(forgotten, name, density.layout)
    if not simulated.sizes:
        warn_if_not_calibrated(rank_parameters(density, read_from, made, rng), name)
    return replace(likelihood, error=error, forgotten=forgotten), remark
