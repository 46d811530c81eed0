"""The evidence of several models beside the classifier's word: a table, and whether the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pymc_amortized.approximators.comparison.model_evidence import Evidences
from pymc_amortized.numerics.odds import Calibration, log_odds, posterior_weights
from pymc_amortized.numerics.thresholds import THRESHOLDS

DECISIVE = 5.0
"""Log odds from which on evidence is very strong (Kass & Raftery 1995, JASA 90: 2 log B above 10); how much stronger
changes no conclusion."""
NOTABLE = 0.5
"""Difference of log odds that is no disagreement, whatever errors are: it moves no probability by more than 0.12."""
ERRORS = 3.0
"""Standard errors that a disagreement has to be beyond."""
EXCUSED = 0.5
"""The largest error of the classifier's log odds that counts: a worse classifier must not excuse itself."""
DIGITS = {"log_ml": 2, "pareto_k": 2} | dict.fromkeys(
    ("se", "log_bf", "dse", "p_evidence", "p_se", "p_classifier", "ood_pvalue"), 3
)
"""Digits after the point that a table is printed with: those of a usual error."""


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


def disagreement(log_probability: np.ndarray, found: Evidences, calibration: Calibration, error: float) -> Disagreement:
    """Compare two answers.

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
    allowed = ERRORS * np.hypot(of_all, min(np.nan_to_num(error), EXCUSED)) * np.ones((1, number))
    return Disagreement(ours, theirs, np.maximum(allowed, NOTABLE))


class ComparisonTable(pd.DataFrame):
    """A table that is printed with as many digits as say something; its values are not rounded."""

    @property
    def _constructor(self) -> type[ComparisonTable]:
        return ComparisonTable

    def __repr__(self) -> str:
        return self._printed().to_string(index_names=False)

    def _repr_html_(self) -> str:
        return str(self._printed().to_html(index_names=False))

    def _printed(self) -> pd.DataFrame:
        plain = pd.DataFrame(self)
        some = {name: [_printed(v, digits) for v in plain[name]] for name, digits in DIGITS.items() if name in plain}
        return plain.assign(**some)


def _printed(value: float, digits: int) -> str:
    """Write a number with so many digits after the point; one that is not 0 is not written as 0."""
    smallest = 10.0**-digits
    if 0 < abs(value) < smallest / 2:
        return f"{'<' if value > 0 else '>-'}{smallest:.{digits}f}"
    return f"{value:.{digits}f}"


def evidence_table(
    names: Sequence[str],
    found: Evidences,
    classified: np.ndarray,
    prior: np.ndarray,
    pvalues: np.ndarray,
    apart: Disagreement,
) -> pd.DataFrame:
    """Lay out the comparison of one data set; see :meth:`AmortizedComparison.compare`."""
    log_ml, error = found.log_evidence[0], found.error[0]
    p = posterior_weights(log_ml, prior) if found.complete[0] else np.full(len(names), np.nan)
    # of p_k, by its slopes on the log evidences: p_k (1[k = j] - p_j)
    slopes = p[:, None] * (np.eye(len(p)) - p)
    order = np.argsort(-(p if found.complete[0] else classified), kind="stable")
    best = order[0]
    table = ComparisonTable(
        {
            "log_ml": log_ml,
            "se": error,
            "log_bf": log_ml - log_ml[best],
            "dse": np.where(np.arange(len(names)) == best, 0.0 * error, np.hypot(error, error[best])),
            "p_evidence": p,
            "p_se": np.sqrt(np.square(slopes * error).sum(1)),
            "p_classifier": classified,
            "pareto_k": found.pareto_k[0],
            "ood_pvalue": pvalues,
            "warning": apart.beyond[0]
            | (pvalues < THRESHOLDS.novel).all()
            | [n in found.known and np.isnan(v) for n, v in zip(names, log_ml, strict=True)],
        },
        index=pd.Index(names, name="model"),
    ).iloc[order]
    table.insert(0, "rank", range(len(names)))
    return table
