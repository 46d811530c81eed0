"""Whether the two answers of a comparison agree: the classifier's, and the evidence."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from pymc_amortized.approximators.comparison.model_evidence import Evidences, evidence_obstacle
from pymc_amortized.approximators.comparison.trained_comparison import TrainedComparison
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.numerics.odds import Calibration, log_odds, posterior_weights
from pymc_amortized.training import Trained, report

logger = logging.getLogger("pymc_amortized")

DECISIVE = 5.0
"""Log odds from which on evidence is very strong (Kass & Raftery 1995, JASA 90: 2 log B above 10); how much stronger
changes no conclusion."""
DOUBTFUL = 0.25
"""Difference of log odds between classifier and evidence that is warned about: it moves a probability by 0.06."""


@dataclass(frozen=True, eq=False)
class Disagreement:
    """Log odds of each model against all others, at equal prior weights, none beyond 5.

    Attributes
    ----------
    classifier, evidence : ndarray (n, models)
        NaN where the evidence of some model is not known.
    allowed : ndarray (n, models)
        Difference that errors explain.
    """

    classifier: np.ndarray
    evidence: np.ndarray
    allowed: np.ndarray

    @property
    def beyond(self) -> np.ndarray:
        """Where they differ by more: (n, models)."""
        return np.abs(self.classifier - self.evidence) > self.allowed


def compare_odds(log_probability: np.ndarray, found: Evidences, calibration: Calibration, error: float) -> Disagreement:
    """Compare log odds by the classifier with those by the evidence.

    Parameters
    ----------
    log_probability : ndarray (n, models)
        By the classifier, at equal prior weights.
    found : Evidences
    calibration : Calibration
        Tells what the classifier does not resolve; the evidence is brought to the same resolution.
    error : float
        Of the classifier's log odds, as seen on simulations; NaN is none.
    """
    number = log_probability.shape[1]
    with np.errstate(invalid="ignore"):
        exact = posterior_weights(found.log_evidence, np.full(number, 1 / number))
        resolved = np.log((1 - calibration.share) * exact + calibration.share / number)
        ours, theirs = (np.clip(log_odds(p), -DECISIVE, DECISIVE) for p in (log_probability, resolved))
        of_all = np.sqrt(np.square(found.error).sum(1, keepdims=True))
    # three standard errors; a worse classifier must not excuse itself
    allowed = 3.0 * np.hypot(of_all, min(np.nan_to_num(error), 0.5)) * np.ones((1, number))
    # a difference of 0.5 is none, whatever errors are: it moves no probability by more than 0.12
    return Disagreement(ours, theirs, np.maximum(allowed, 0.5))


def judge[P: TrainedPosterior](
    comparison: TrainedComparison[P], trained: Trained, datasets: DataSets, seed: np.random.SeedSequence
) -> TrainedComparison[P]:
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
    found = comparison.evidence_of(datasets, 2000, seed)
    apart = compare_odds(comparison.log_probabilities(datasets), found, comparison.calibration, math.nan)
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
    if error > 0.5:
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
