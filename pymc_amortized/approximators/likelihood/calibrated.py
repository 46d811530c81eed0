r"""Whether posteriors under a learned likelihood are calibrated, without drawing from any.

Let :math:`y` be simulated with parameters :math:`\theta_0`, and :math:`\theta_1, \dots, \theta_M` be those of other
simulations. Before y is known, all are alike. So given y and the set, the right one is number k with probability

.. math:: w_k = p(y \mid \theta_k) / \sum_j p(y \mid \theta_j),

and the share of weight below :math:`\theta_0`, with a random part of its own, is uniform: for every M, as far as the
likelihood is the right one. This is simulation-based calibration (Talts et al. 2018, arXiv 1804.06788) of the posterior
over the set, whose draws are known.
"""

import numpy as np
from scipy.special import softmax

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.logs import logger
from pymc_amortized.numerics.uniformity import describe, holm, p_text, uniformity
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.prepared import Rows, inside, past_of
from pymc_amortized.row_density.ratio import RowRatio

DATASETS = 200
"""Enough for a bias of 0.3 posterior sd, or an sd that is off by a quarter, to be beyond doubt."""
EVALUATIONS = 1_000_000
"""Rows whose density is evaluated in all: some seconds."""


def rank_parameters(
    density: RowDensity | RowRatio, read_from: ObservedRows, made: Simulations, rng: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """Rank the parameters of simulations in their posteriors under the learned likelihood.

    Parameters
    ----------
    density : RowDensity or RowRatio
    read_from : ObservedRows
        Of the model that was simulated.
    made : Simulations
        That nothing was trained on.
    rng : numpy.random.Generator

    Returns
    -------
    dict of name to ndarray (simulations,) or None
        For each number that rows depend on, and for the "log likelihood": uniform if all is well. None where rows of a
        data set do not share their parameters, or there are too few simulations.
    """
    layout, each = density.layout, read_from.rows
    if any(p.batch_ndim for p in read_from.parameters):
        return None
    rows = read_from.of_simulations(made, layout.lags, None, layout.scales)
    theta = rows.parameters.reshape(len(rows.parameters), len(made), each)[:, :, 0]
    usable = np.flatnonzero(
        inside(layout, list(theta)) & np.isfinite(rows.values.reshape(-1, len(made), each)).all((0, 2))
    )
    number = min(DATASETS, len(usable))
    others = min(len(usable) - 1, EVALUATIONS // (number * each)) if number else 0
    if number < 50 or others < 20:
        return None
    quantities: dict[str, list[float]] = {name: [] for name in [*(p.name for p in layout.parameters), "log likelihood"]}
    for i in usable[:number]:
        chosen = np.append(i, rng.permutation(usable[usable != i])[:others])
        log_p = _log_likelihoods(density, rows.take(slice(i * each, (i + 1) * each)), theta[:, chosen])
        weights = softmax(np.where(np.isnan(log_p), -np.inf, log_p))
        for values, found in zip([*theta[:, chosen], log_p], quantities.values(), strict=True):
            at = values == values[0]
            found.append(weights[values < values[0]].sum() + rng.random() * weights[at].sum())
    return {name: np.clip(found, 0.0, 1.0) for name, found in quantities.items() if len(set(found)) > 1}


def _log_likelihoods(density: RowDensity | RowRatio, rows: Rows, theta: np.ndarray) -> np.ndarray:
    """Log likelihoods (m,) of parameters (parameters, m), by the rows of one data set."""
    number, m = len(rows), theta.shape[1]
    values = [np.tile(y, m) for y in rows.values]
    past = [[np.tile(part, m) for part in lag] for lag in past_of(rows)]
    shared = np.repeat(np.arange(m), number)
    return np.asarray(density.log_density(NUMPY, values, list(theta), past, shared)).reshape(m, number).sum(1)


def warn_if_not_calibrated(ranks: dict[str, np.ndarray] | None, name: str) -> None:
    """Log of which parameters posteriors under the learned likelihood are biased, too wide or too narrow."""
    if ranks is None:
        return
    results = [uniformity(values) for values in ranks.values()]
    adjusted = holm(result.p_value for result in results)
    # the same level, for the same reason, as that of a posterior's final check
    names, wrong = list(ranks), [int(i) for i in np.argsort(adjusted) if adjusted[i] < 0.001]
    if wrong:
        logger.warning(
            "On %d simulated data sets posteriors under the learned likelihood of %r are not calibrated:\n  %s\nTrain "
            "longer (max_time=), with a larger network=, or take the posterior from fit_posterior or fit_joint.",
            len(next(iter(ranks.values()))),
            name,
            "\n  ".join(f"{names[i]}: {describe(results[i])} ({p_text(float(adjusted[i]))})" for i in wrong[:5]),
        )
