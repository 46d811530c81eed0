"""Short checks at the end of training, on simulations that it did not see: efficiency and calibration."""

from collections.abc import Sequence

import numpy as np

from pymc_amortized.correction.approximation import Approximation
from pymc_amortized.correction.draws import Draws
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.logs import logger
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.numerics.sampling.importance import Weights
from pymc_amortized.numerics.uniformity import describe, holm, p_text, pit, uniformity
from pymc_amortized.training import Trained, report
from pymc_amortized.training.device import torch_generator


def report_efficiency(trained: Trained, weights: Sequence[Weights]) -> None:
    """Log how training went, and how efficient its result is where the density can tell.

    Parameters
    ----------
    trained : Trained
    weights : sequence of Weights
        Importance weights on simulated data sets; none without a density.
    """
    if not weights:
        report(trained)
        return
    efficiency = float(np.median([w.ess / w.weights.size for w in weights]))
    poor = sum(not w.reliable for w in weights)
    remark = (
        f"On {len(weights)} simulated data sets the importance efficiency is {efficiency:.0%} (median); "
        f"{poor} have a Pareto k too large."
    )
    # below 0.05, twenty proposals buy less than one independent draw; sampling makes at most 16 for each
    doubtful = efficiency < 0.05 or poor > 0.1 * len(weights)
    report(trained, remark, doubtful=doubtful or trained.history.restarts > 0)


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
    # enough for a bias of 0.3 posterior sd, or an sd that is off by a quarter, to be beyond doubt
    known = held_out.take(slice(200))
    if spec.dim == 0 or spec.potentials:  # with potentials, simulations are not draws of the model
        return
    torch_seed, own_seed = seed.spawn(2)
    generator = torch_generator(torch_seed, network.device)
    approximation = Approximation(network, inputs, of_simulations(known))
    # ranks among more draws would be finer than so many data sets can tell
    theta, _ = approximation.sample(100, generator, within=True)
    values = pit(theta, known.unconstrained, np.random.default_rng(own_seed))
    lines = _what_is_off(values, element_names(spec))
    if not lines:
        return
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


def warn_if_corrected_off(
    spec: ModelSpec,
    draws: Sequence[Draws],
    log_joint: np.ndarray,
    known: Simulations,
    seed: np.random.SeedSequence,
) -> None:
    """Log which quantities corrected draws are off in: parameters, the log density, or a random direction.

    Parameters
    ----------
    spec : ModelSpec
    draws : sequence of Draws
        For each simulated data set; those that are not settled are left out.
    log_joint : ndarray (n,)
        Of the true parameters.
    known : Simulations
    seed : numpy.random.SeedSequence
    """
    some = [i for i, d in enumerate(draws) if d.settled]
    if spec.dim == 0 or spec.potentials or not some:
        return
    rng = np.random.default_rng(seed)
    truth = known.unconstrained[some]
    theta = np.stack([draws[i].theta.reshape(-1, spec.dim) for i in some], axis=1)
    direction = rng.normal(size=spec.dim) / theta.std(axis=0).mean(axis=0)
    drawn = [*np.moveaxis(theta, 2, 0), np.stack([draws[i].log_p.ravel() for i in some], axis=1), theta @ direction]
    true = [*truth.T, log_joint[some], truth @ direction]
    worth = np.array([w.ess if (w := draws[i].weights) is not None else np.nan for i in some]).clip(1, len(theta))
    values = [pit(sample, value, rng, worth) for sample, value in zip(drawn, true, strict=True)]
    names = [*element_names(spec), "the log density", "a random direction"]
    if lines := _what_is_off(np.column_stack(values), names):
        logger.warning(
            "On %d simulated data sets corrected draws are not calibrated:\n  %s\nA mode may be missed, or the model's "
            "density may not be that of its simulations. check_calibration(posterior, correction='auto') tells more.",
            len(some),
            "\n  ".join(lines),
        )


def _what_is_off(values: np.ndarray, names: Sequence[str]) -> list[str]:
    """Say which columns of PIT values (n, quantities) are not uniform, and how."""
    results = [uniformity(column) for column in values.T]
    adjusted = holm(r.p_value for r in results)
    # the probability of a warning about draws without fault; one with a small fault stays far below 1 %
    order = [int(i) for i in np.argsort(adjusted) if adjusted[i] < 0.001]
    lines = [f"{names[i]}: {describe(results[i])} ({p_text(float(adjusted[i]))})" for i in order[:5]]
    return lines + ([f"and {len(order) - 5} more"] if len(order) > 5 else [])


def element_names(spec: ModelSpec) -> list[str]:
    """Names of the flat unconstrained parameters: ``slope[1]``."""
    names = []
    for p in spec.parameters:
        for place in np.ndindex(p.unconstrained_shape):
            names.append(f"{p.name}[{', '.join(map(str, place))}]" if place else p.name)
    return names
