"""The evidence of several models beside the classifier's word, as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pymc_amortized.approximators.comparison.model_evidence import Evidences
from pymc_amortized.numerics.odds import posterior_weights
from pymc_amortized.numerics.thresholds import THRESHOLDS


class ComparisonTable(pd.DataFrame):
    """A table that is printed with as many digits as say something; its values are not rounded.

    ``elpd`` and ``elpd_diff``, which repeat others under the names that ``az.plot_compare`` takes, are not printed.
    """

    @property
    def _constructor(self) -> type[ComparisonTable]:
        return ComparisonTable

    def __repr__(self) -> str:
        return self._printed().to_string(index_names=False)

    def _repr_html_(self) -> str:
        return str(self._printed().to_html(index_names=False))

    def _printed(self) -> pd.DataFrame:
        plain = pd.DataFrame(self).drop(columns=["elpd", "elpd_diff"], errors="ignore")
        digits = {"log_ml": 2, "pareto_k": 2}  # those of a usual error
        digits |= dict.fromkeys(("se", "log_bf", "dse", "p_evidence", "p_se", "p_classifier", "ood_pvalue"), 3)
        some = {name: [_printed(v, number) for v in plain[name]] for name, number in digits.items() if name in plain}
        return plain.assign(**some)


def _printed(value: float, digits: int) -> str:
    """Write a number with so many digits after the point; one that is not 0 is not written as 0."""
    smallest = 10.0**-digits
    if 0 < abs(value) < smallest / 2:
        return f"{'<' if value > 0 else '>-'}{smallest:.{digits}f}"
    return f"{value:.{digits}f}"


def evidence_table(
    found: Evidences,
    classified: np.ndarray,
    prior: np.ndarray,
    pvalues: np.ndarray,
    beyond: np.ndarray,
) -> pd.DataFrame:
    """Lay out the comparison of one data set; see :meth:`AmortizedComparison.compare`.

    Parameters
    ----------
    found : Evidences
    classified, prior, pvalues : ndarray (models,)
        Probabilities by the classifier, prior weights, and how often each model simulates data as unusual.
    beyond : bool ndarray (models,)
        Where classifier and evidence disagree beyond their errors.
    """
    names, log_ml, error = list(found.found), found.log_evidence[0], found.error[0]
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
            "warning": beyond | (pvalues < THRESHOLDS.novel).all() | found.doubted[0],
            "elpd": log_ml,
            "elpd_diff": log_ml - log_ml[best],
        },
        index=pd.Index(names, name="model"),
    ).iloc[order]
    table.insert(0, "rank", range(len(names)))
    return table
