"""What speaks against a comparison: evidence that is missing, a classifier that contradicts it or cannot tell."""

from __future__ import annotations

import numpy as np

from pymc_amortized.approximators.comparison.agreement import DECISIVE, Disagreement
from pymc_amortized.approximators.comparison.model_evidence import Evidences
from pymc_amortized.correction.doubt import Doubt, labels_of
from pymc_amortized.numerics.odds import Calibration


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
        f"errors explain {apart.allowed[0, worst]:.2f} (odds beyond {DECISIVE:g} count as that)"
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
