"""What is said of a comparison at the end of its training: whether its two answers can agree, and whether they do."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pymc_amortized.approximators.comparison import AmortizedComparison
from pymc_amortized.approximators.comparison_evidence import evidence_obstacle
from pymc_amortized.approximators.comparison_table import DECISIVE, disagreement
from pymc_amortized.graph.datasets import DataSets
from pymc_amortized.graph.simulator import Simulations
from pymc_amortized.graph.spec import DataVariable, ModelSpec
from pymc_amortized.odds import Calibration
from pymc_amortized.training import Trained, report

logger = logging.getLogger("pymc_amortized")

COMPARED = 48
"""Simulated data sets on which classifier and evidence are held against each other."""
COMPARED_PROPOSALS = 2000
DOUBTFUL = 0.25
"""Difference of log odds between classifier and evidence that is warned about: it moves a probability by 0.06."""
LOOKED_AT = 200_000
"""Values of a variable and model among which repeated ones are looked for: what is one in ten thousand comes up 20
times."""
REPEATED = 10
"""Times that a value comes up before it counts as an atom; continuous values do not come up twice."""


def judged(
    comparison: AmortizedComparison, trained: Trained, datasets: DataSets, seed: np.random.SeedSequence
) -> AmortizedComparison:
    """Hold classifier and evidence against each other on simulated data sets, and report."""
    without = [name for name in comparison.names if name not in comparison.weighed]
    if without:
        reasons = {name: evidence_obstacle(comparison.specs[name]) or "posteriors=False" for name in without}
        logger.warning(
            "No evidence beside the classifier's word: %s.",
            "; ".join(f"model {name!r}: {reason}" for name, reason in reasons.items()),
        )
        report(trained)
        return comparison
    found = comparison.evidence_of(datasets, COMPARED_PROPOSALS, seed)
    apart = disagreement(comparison.log_probabilities(datasets), found, comparison.calibration, math.nan)
    some = found.complete
    if not some.any():
        report(trained, "The evidence could be estimated for none of the simulated data sets.", doubtful=True)
        return comparison
    off = (apart.classifier - apart.evidence)[some]
    error = float(np.sqrt(np.square(off).mean()))
    remark = (
        f"On {some.sum()} of {len(some)} simulated data sets the evidence is known: log odds by the classifier "
        f"differ from it by {error:.2f} (root mean square), at most {np.abs(off).max():.2f}."
    )
    doubtful = error > DOUBTFUL or not trained.settled or trained.history.restarts > 0
    report(trained, remark, doubtful=doubtful)
    return replace(comparison, error=error)


def warn_of_resolution(calibration: Calibration) -> None:
    """Log that the classifier cannot tell very strong evidence, where its mistakes or few simulations hide it."""
    if calibration.largest < DECISIVE:
        logger.warning(
            "The classifier tells log Bayes factors up to %.1f: on the simulations that it was calibrated on, it is "
            "surely wrong too often, or there are too few, to show larger ones. What is beyond is given as about that "
            "(resolved=False). Train longer or on more simulations; the evidence has no such limit.",
            calibration.largest,
        )


def warn_of_atoms(spec: ModelSpec, pilot: Mapping[str, Simulations]) -> None:
    """Log where one model gives a value of a continuous variable with positive probability, and another never does.

    Parameters
    ----------
    spec : ModelSpec
        Of the data of all models.
    pilot : mapping of name to Simulations
    """
    for v in spec.observed:
        if np.dtype(v.dtype).kind != "f":
            continue
        values = {name: _values(v, made)[:LOOKED_AT] for name, made in pilot.items()}
        atoms = {name: _atoms(each) for name, each in values.items()}
        for name, (found, counts) in atoms.items():
            for other in pilot:
                alone = ~np.isin(found, values[other])
                if other != name and alone.any():
                    k = int(np.argmax(np.where(alone, counts, 0)))
                    logger.warning(
                        "Model %r gives %r the value %.4g in %.2g%% of its simulated entries, model %r never: at data "
                        "with that value a probability stands beside a density, and their evidence is in no "
                        "proportion. Believe the classifier there.",
                        name,
                        v.name,
                        found[k],
                        100 * counts[k] / len(values[name]),
                        other,
                    )


def _values(v: DataVariable, made: Simulations) -> np.ndarray:
    """All entries of a variable that exist, in any order."""
    array = np.asarray(made.data[v.name])
    exists = np.ones(array.shape, dtype=bool)
    for i, (dim, length) in enumerate(zip(v.dims, v.shape, strict=False)):
        if length is None and dim is not None:
            before = np.arange(array.shape[1 + i]) < np.asarray(made.lengths[dim])[:, None]
            exists &= before.reshape(len(array), *(-1 if j == i else 1 for j in range(array.ndim - 1)))
    return array[exists]


def _atoms(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that come up again and again, and how often."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts >= REPEATED], counts[counts >= REPEATED]
