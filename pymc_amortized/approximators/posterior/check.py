"""A short check at the end of training: calibration on simulations that it did not see."""

from __future__ import annotations

import logging

import numpy as np
import torch

from pymc_amortized.correction.approximation import Approximation
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.numerics.uniformity import describe, holm, p_text, pit, uniformity

logger = logging.getLogger("pymc_amortized")

DATASETS = 200
"""Enough for a bias of 0.3 posterior sd, or an sd that is off by a quarter, to be beyond doubt."""
DRAWS = 100
"""Ranks among more would be finer than so many data sets can tell; takes well under a second."""
LEVEL = 0.001
"""Probability of a warning about a network without fault; one with a small fault stays far below 1 %."""
MOST_NAMED = 5


def warn_if_off(network: PosteriorNetwork, inputs: Inputs, held_out: Simulations, seed: np.random.SeedSequence) -> None:
    """Log which parameters the network is biased, over- or under-confident about.

    Parameters
    ----------
    network : PosteriorNetwork
    inputs : Inputs
        What it is given of data.
    held_out : Simulations
        Not used for training.
    seed : numpy.random.SeedSequence
    """
    spec = inputs.spec
    known = held_out.take(slice(DATASETS))
    if spec.dim == 0 or spec.potentials:  # with potentials, simulations are not draws of the model
        return
    torch_seed, own_seed = seed.spawn(2)
    generator = torch.Generator(device=network.device)
    generator.manual_seed(int(torch_seed.generate_state(1, np.uint64)[0] >> 1))
    theta, _ = Approximation(network, inputs, of_simulations(known)).sample(DRAWS, generator, within=True)
    values = pit(theta, known.unconstrained, np.random.default_rng(own_seed))
    results = [uniformity(column) for column in values.T]
    adjusted = holm(r.p_value for r in results)
    order = [int(i) for i in np.argsort(adjusted) if adjusted[i] < LEVEL]
    if not order:
        return
    names = element_names(spec)
    lines = [f"{names[i]}: {describe(results[i])} ({p_text(float(adjusted[i]))})" for i in order[:MOST_NAMED]]
    if len(order) > MOST_NAMED:
        lines.append(f"and {len(order) - MOST_NAMED} more")
    repaired = (
        "The correction by the model's density repairs this where Pareto k is small; check_calibration(posterior, "
        "correction='psis') tells. For a better network train"
        if spec.density_obstacle is None
        else "No density of the model corrects this: train"
    )
    logger.warning(
        "On %d simulated data sets the network is not calibrated, on the unconstrained scale:\n  %s\n%s longer "
        "(posterior.continue_training).",
        len(known),
        "\n  ".join(lines),
        repaired,
    )


def element_names(spec: ModelSpec) -> list[str]:
    """Names of the flat unconstrained parameters: ``slope[1]``."""
    names = []
    for p in spec.parameters:
        for place in np.ndindex(p.unconstrained_shape):
            names.append(f"{p.name}[{', '.join(map(str, place))}]" if place else p.name)
    return names
