"""What is said of a comparison at the end of its training: whether its two answers can agree, and whether they do."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.comparison.model_evidence import evidence_obstacle
from pymc_amortized.approximators.comparison.table import DECISIVE, disagreement
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.simulation.atoms import atoms
from pymc_amortized.numerics.odds import Calibration
from pymc_amortized.training import Trained, report

logger = logging.getLogger("pymc_amortized")

COMPARED = 48
"""Simulated data sets on which classifier and evidence are held against each other."""
COMPARED_PROPOSALS = 2000
DOUBTFUL = 0.25
"""Difference of log odds between classifier and evidence that is warned about: it moves a probability by 0.06."""
RARE = 1e-4
"""Share of entries below which equal numbers may be rounding."""
POOR = 0.5
"""Difference from which on the evidence is the better answer."""
LOOKED_AT = 200_000
"""Values of a variable and model among which repeated ones are looked for: what is one in ten thousand comes up 20
times."""


def judged(
    comparison: AmortizedComparison, trained: Trained, datasets: DataSets, seed: np.random.SeedSequence
) -> AmortizedComparison:
    """Hold classifier and evidence against each other on simulated data sets, and report."""
    without = [name for name in comparison.names if name not in comparison.weighed]
    if without:
        reasons = {name: evidence_obstacle(comparison.specs[name]) or "it has no posterior" for name in without}
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
    if error > POOR:
        remark += " Look at the evidence (comparison.compare) where there is one, or train longer."
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


def warn_of_atoms(spec: ModelSpec, pilot: Mapping[str, Simulations]) -> bool:
    """Log where one model gives values of a continuous variable positive probability, and another never does.

    Returns whether there are any.

    Parameters
    ----------
    spec : ModelSpec
        Of the data of all models.
    pilot : mapping of name to Simulations
    """
    said = False
    for v in spec.observed:
        if np.dtype(v.dtype).kind == "f":
            if _warn_of_values(v, {name: _values(v, made)[:LOOKED_AT] for name, made in pilot.items()}):
                said = True
                continue
            for what in [c.name for c in spec.context if c.shape in ((), v.shape)]:
                equal = {name: _equal_to(v, made, what) for name, made in pilot.items()}
                said |= _warn_of_kind(v, f"the value of {what!r}", equal)
            said |= _warn_of_kind(v, "one value several times", {name: _ties(v, made) for name, made in pilot.items()})
    return said


def _warn_of_values(v: DataVariable, values: Mapping[str, np.ndarray]) -> bool:
    """Log single values that one model gives a probability; return whether there are any."""
    said = False
    for name, each in values.items():
        found, counts = atoms(each)
        for other in values:
            alone = ~np.isin(found, values[other])
            if other != name and alone.any():
                k = int(np.argmax(np.where(alone, counts, 0)))
                _say_atom(v, f"the value {found[k]:.4g}", name, counts[k] / len(each), other)
                said = True
    return said


def _warn_of_kind(v: DataVariable, what: str, shares: Mapping[str, float]) -> bool:
    """Log a kind of value that has a share of one model's entries and none of another's; return whether there is."""
    said = False
    for name, share in shares.items():
        without = [other for other in shares if shares[other] == 0]
        if share > RARE and without:
            _say_atom(v, what, name, share, without[0])
            said = True
    return said


def _say_atom(v: DataVariable, what: str, name: str, share: float, other: str) -> None:
    logger.warning(
        "Model %r gives %r %s in %.2g%% of its simulated entries, model %r never: at data with that a probability "
        "stands beside a density, and their evidence is in no proportion. Believe the classifier there.",
        name,
        v.name,
        what,
        100 * share,
        other,
    )


def _equal_to(v: DataVariable, made: Simulations, context: str) -> float:
    """Share of a variable's entries that are those of an array of context, a limit say."""
    array, limit = np.asarray(made.data[v.name]), np.asarray(made.data[context])
    return float((array == limit.reshape(len(array), *limit.shape[1:], *[1] * (array.ndim - limit.ndim))).mean())


def _ties(v: DataVariable, made: Simulations) -> float:
    """Share of a variable's entries that another of the same data set repeats: at a limit that is a parameter, say."""
    array = np.sort(np.asarray(made.data[v.name]).reshape(len(made), -1), axis=1)
    again = (array[:, 1:] == array[:, :-1]) & np.isfinite(array[:, 1:])
    return float(again.sum() / max(np.isfinite(array).sum(), 1))


def _values(v: DataVariable, made: Simulations) -> np.ndarray:
    """All entries of a variable that exist, in any order."""
    array = np.asarray(made.data[v.name])
    exists = np.ones(array.shape, dtype=bool)
    for i, (dim, length) in enumerate(zip(v.dims, v.shape, strict=False)):
        if length is None and dim is not None:
            before = np.arange(array.shape[1 + i]) < np.asarray(made.lengths[dim])[:, None]
            exists &= before.reshape(len(array), *(-1 if j == i else 1 for j in range(array.ndim - 1)))
    return array[exists]
