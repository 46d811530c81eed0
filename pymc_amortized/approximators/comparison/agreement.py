"""The two answers of a comparison, by classifier and by evidence: how far they agree, what speaks against them."""

from dataclasses import dataclass

import numpy as np

from pymc_amortized.approximators.comparison.model_evidence import Evidences
from pymc_amortized.correction.doubt import Doubt, labels_of
from pymc_amortized.logs import logger
from pymc_amortized.numerics.odds import Calibration, log_odds, posterior_weights

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


def check_evidences(found: Evidences, labels: np.ndarray) -> list[Doubt]:
    """Find models whose evidence could not be estimated, or whose density is 0, for some data sets."""
    doubts = []
    for k, (name, column) in enumerate(found.found.items()):
        zero = np.isneginf(found.log_evidence[:, k])
        if zero.any():
            some = "" if len(labels) == 1 else f" on {zero.sum()} of {len(labels)} data sets"
            finding = (
                f"Model {name!r} has density 0 wherever its posterior looked{some}, and the classifier finds no trace "
                "of it: it is taken as impossible there (log marginal likelihood -inf, probability 0)"
            )
            advice = "Do the data lie in its support?"
            doubts.append(Doubt("impossible", finding, advice, datasets=labels_of(labels, zero)))
        without = np.flatnonzero(found.doubted[:, k])
        if len(without):
            first = without[0]
            some = f" for {len(without)} of {len(labels)} data sets (first: {labels[first]})"
            finding = (
                f"Model {name!r} has no log marginal likelihood (NaN){'' if len(labels) == 1 else some}: "
                f"{column[first].doubt}"
            )
            advice = (
                "What is left there is the classifier. Train its posterior longer "
                f"(comparison.posteriors[{name!r}].continue_training, then with_posterior({name!r}, ...)), or run "
                "pm.sample_smc."
            )
            doubts.append(Doubt("evidence", finding, advice, column[first].pareto_k, labels_of(labels, without)))
    return doubts


def check_agreement(apart: Disagreement, found: Evidences, labels: np.ndarray) -> list[Doubt]:
    """Find out whether classifier and evidence contradict each other, for one data set."""
    if not apart.beyond[0].any():
        return []
    worst = int(np.argmax(np.abs(apart.classifier[0] - apart.evidence[0]) - apart.allowed[0]))
    finding = (
        f"Classifier and evidence disagree: log odds of model {list(found.found)[worst]!r} are "
        f"{apart.classifier[0, worst]:.2f} by the classifier and {apart.evidence[0, worst]:.2f} by the evidence, where "
        f"errors explain {apart.allowed[0, worst]:.2f} (log odds above {DECISIVE:g} are counted as {DECISIVE:g})"
    )
    safer = (
        "The evidence comes from the exact density, and is the safer one: Pareto k is small."
        if np.isfinite(found.pareto_k[0]).all()
        else "A density of 0 at all proposals is no proof that a model is impossible."
    )
    advice = (
        f"{safer} The classifier knows only data like its simulations. Where densities of models are of different "
        "kinds (an atom in one of them), the classifier is right."
    )
    number = float(apart.classifier[0, worst] - apart.evidence[0, worst])
    return [Doubt("disagreement", finding, advice, number, labels_of(labels, np.arange(1)))]


def check_classifier(error: float, labels: np.ndarray) -> list[Doubt]:
    """Doubt a classifier whose log odds were far from the evidence on simulated data sets (`error`; NaN if unknown)."""
    if not error > DOUBTFUL:
        return []
    finding = f"The classifier is rough: on simulated data sets its log odds are off by {error:.2f} (root mean square)"
    advice = "Take the evidence (comparison.compare), or train longer (max_time=)."
    return [Doubt("calibration", finding, advice, error, labels_of(labels, np.arange(len(labels))))]


def check_resolution(
    unknown: np.ndarray, most: float, calibration: Calibration, weights: np.ndarray, labels: np.ndarray
) -> list[Doubt]:
    """Find data sets whose probabilities (n, models) may be off by more than `most` under prior weights (models,)."""
    far = (unknown > most).any(1)
    if not far.any():
        return []
    where = "" if len(labels) == 1 else f" ({far.sum()} of {len(labels)} data sets)"
    prior_odds = np.log(weights.max() / weights[weights > 0].min())
    finding = (
        f"Under these prior weights the classifier cannot tell probabilities better than to {unknown.max():.2f}{where}"
        f": it resolves log Bayes factors up to {calibration.largest:.1f}, and the log prior odds reach "
        f"{prior_odds:.1f}"
    )
    advice = "The evidence has no such limit (comparison.compare)."
    return [Doubt("resolution", finding, advice, float(unknown.max()), labels_of(labels, far))]


def warn_of_resolution(calibration: Calibration) -> None:
    """Log that the classifier cannot tell very strong evidence, where its mistakes or few simulations hide it."""
    if calibration.largest < DECISIVE:
        logger.warning(
            "The classifier tells log Bayes factors up to %.1f: on the simulations that it was calibrated on, it is "
            "surely wrong too often, or there are too few, to show larger ones. What is beyond is given as about that "
            "(resolved=False). Train longer or on more simulations; the evidence has no such limit.",
            calibration.largest,
        )
