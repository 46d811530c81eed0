"""Whether rows that share their parameters have the same distribution, whatever their place in the data set.

A function that draws rows may use what no argument tells of, a covariate say. Then rows at different places differ, and
a density of one row would be an average over places. Within a data set rows have the same parameters, so that ranks
within it are equally likely at every place: their means over data sets are compared (Friedman 1937), plain and weighted
by each parameter, and so are those of their squares.
"""

import numpy as np
from scipy import stats


def places_differ(values: np.ndarray, parameters: np.ndarray) -> bool:
    """Tell whether the place of a row matters.

    Parameters
    ----------
    values : ndarray (columns, n, rows)
        Of data sets whose rows share their parameters.
    parameters : ndarray (parameters, n)
    """
    chosen = np.unique(np.linspace(0, values.shape[2] - 1, 100).astype(int))
    if len(chosen) < 2:
        return False
    weights = [np.ones(values.shape[1]), *(_standardized(p) for p in parameters)]
    smallest = 1.0
    for column in values[:, :, chosen]:
        ranks = stats.rankdata(column, axis=1) - (len(chosen) + 1) / 2
        for scores in (ranks, ranks**2):
            smallest = min(smallest, *(_p_value(scores, w) for w in weights))
    return smallest < 1e-6 / (2 * len(values) * len(weights))  # a false alarm in a million trainings


def _standardized(parameter: np.ndarray) -> np.ndarray:
    """Ranks of a parameter, of mean 0: whatever its tails."""
    ranks = stats.rankdata(parameter)
    return (ranks - ranks.mean()) / max(float(ranks.std()), 1e-9)


def _p_value(scores: np.ndarray, weights: np.ndarray) -> float:
    """That weighted means of scores (n, places) are the same at all places."""
    centered = scores - scores.mean(1, keepdims=True)
    places = scores.shape[1]
    variance = (np.square(weights) * np.square(centered).sum(1)).sum() / (places - 1)  # of a sum, but for 1 / places
    if variance <= 0:
        return 1.0
    return float(stats.chi2.sf(np.square(weights @ centered).sum() / variance, places - 1))
