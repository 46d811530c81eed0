r"""Whether probabilities of models can be believed: scores, confusion and calibration on simulated data sets.

Of the data sets to which a model is given probability p, a share p must come from it. In bins of equal numbers,
with mean probability :math:`\bar p_b`, share :math:`\bar y_b` and size :math:`n_b`, the squared calibration error

.. math:: \sum_b \frac{n_b}{n} \left[ (\bar y_b - \bar p_b)^2 - \frac{\bar y_b (1 - \bar y_b)}{n_b - 1} \right]

is free of the bias by which a plain one is positive for perfect probabilities (Kumar, Liang & Ma 2019, arXiv
1909.10155, section 4; Bröcker 2012). Its root, averaged over models, is an upper bound on the error in absolute values.
Whether it could be zero is tested by drawing models from the probabilities themselves (consistency resampling: Bröcker
& Smith 2007).
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from arviz_base import make_attrs
from scipy import stats

from pymc_amortized.approximators.comparison.agreement import DOUBTFUL
from pymc_amortized.approximators.comparison.comparison import MODEL_DIM, AmortizedComparison
from pymc_amortized.approximators.fitting.arguments import check_integer, read_mapping
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.diagnostics.coordinates import BAND_PROB
from pymc_amortized.diagnostics.simulated import read_lengths
from pymc_amortized.diagnostics.verdict import LEVEL
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.simulation.context import read_missing
from pymc_amortized.logs import logger
from pymc_amortized.numerics.odds import posterior_weights, prior_weights
from pymc_amortized.numerics.uniformity import p_text
from pymc_amortized.results.version import MADE_BY

FEWEST = 100
"""Data sets from which on errors are given."""


def check_comparison(
    comparison: AmortizedComparison,
    *,
    num_datasets: int = 5000,
    prior: Mapping[str, float] | None = None,
    lengths: Mapping[str, int] | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    random_seed: RandomState = None,
) -> xr.DataTree:
    """Check a comparison on data sets of which the model is known, and warn where its probabilities are off.

    Parameters
    ----------
    comparison : AmortizedComparison
        From :func:`fit_comparison` or :func:`load`.
    num_datasets : int
        Data sets to simulate, of models drawn from their prior weights.
    prior : mapping of name to float, optional
        Prior weights of the models; by default those of the comparison.
    lengths : mapping of dim to int, optional
        Check data sets of this size alone; of all sizes, as in training, by default.
    context, missing : mapping, optional
        As in :func:`fit_comparison`; needed for comparisons that were read from a file.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.

    Returns
    -------
    xarray.DataTree
        - ``predictions``: for each data set the number of its ``true_model`` and the ``probability`` of each model.
        - ``scores``: ``log_score`` (mean log probability of the true model; the higher, the better) and its standard
          error, ``brier_score``, ``accuracy`` (share of data sets of which the most probable model is the true one),
          and for each model ``calibration_error``, debiased, with the mean over models in
          ``expected_calibration_error`` and its ``p_value``. The attribute ``calibrated`` is 1 where that is above 5 %.
        - ``confusion``: of the data sets of each ``true_model``, the ``share`` that is given to each ``chosen`` one,
          and the mean ``probability`` it gets.
        - ``reliability``: for each model, along ``bin``, mean ``probability``, ``share`` of data sets that come from
          it, and ``lower`` and ``upper``, within which that lies with 95 % probability if probabilities are right.
        - ``by_size``, where sizes differ: the scores in ranges of each dimension's length.

    Raises
    ------
    ValueError, TypeError, KeyError
        When an argument does not fit the models; the message names it.

    Notes
    -----
    The debiased estimator is that of Kumar, Liang & Ma (2019, arXiv 1909.10155), of the root mean square error in bins
    of equal numbers of data sets; the p-value comes from consistency resampling (Bröcker & Smith 2007).

    Examples
    --------
    With the comparison of :func:`fit_comparison`'s example:

    >>> check = pma.check_comparison(comparison, num_datasets=500, random_seed=1)
    >>> 0.5 < float(check["scores"]["accuracy"]) <= 1
    True
    """
    if not isinstance(comparison, AmortizedComparison):
        raise TypeError(f"comparison must be what fit_comparison returns, got {type(comparison).__name__}")
    number = check_integer("num_datasets", num_datasets, smallest=FEWEST)
    weights = prior_weights(comparison.prior if prior is None else prior, comparison.names)
    if context is not None or missing is not None:
        sources = {k: v for k, v in read_mapping("context", context).items() if k not in comparison.common.spec.largest}
        gaps = read_missing(missing, [v.name for v in comparison.common.spec.observed])
        comparison = comparison.with_sources(sources, gaps)
    simulating, drawing = seed_sequence(random_seed).spawn(2)
    rng = np.random.default_rng(drawing)
    lengths = None if lengths is None else read_lengths(comparison.common.spec.sizes, lengths)
    made = _of_prior(comparison, number, weights, lengths, simulating, rng)
    datasets, label = of_simulations(made), made.unconstrained[:, 0].astype(int)
    probability = posterior_weights(comparison.log_probabilities(datasets, simulated=True), weights)
    tree = judge_probabilities(comparison.names, label, probability, rng, _extents(comparison, datasets, lengths))
    _warn(tree, comparison.error)
    return tree


def _of_prior(
    comparison: AmortizedComparison,
    number: int,
    weights: np.ndarray,
    lengths: dict[str, int] | None,
    seed: np.random.SeedSequence,
    rng: np.random.Generator,
) -> Simulations:
    """Simulate data sets of models drawn from their weights; the simulator gives equal numbers of each."""
    wanted = rng.multinomial(number, weights)
    made = comparison.pool(int(wanted.max() * len(weights)) + 10 * len(weights), seed, lengths=lengths)
    label = made.unconstrained[:, 0]
    chosen = np.concatenate([np.flatnonzero(label == k)[:n] for k, n in enumerate(wanted)])
    return made.take(rng.permutation(chosen))


def _extents(comparison: AmortizedComparison, datasets: DataSets, lengths: Any) -> dict[str, np.ndarray]:
    """Lengths of the dimensions that differ."""
    return {} if lengths is not None else {r.dim: datasets.lengths[r.dim] for r in comparison.common.spec.sizes}


def judge_probabilities(
    names: list[str],
    label: np.ndarray,
    probability: np.ndarray,
    rng: np.random.Generator,
    lengths: Mapping[str, np.ndarray] | None = None,
) -> xr.DataTree:
    """Judge probabilities (n, models) of data sets that come from models of known number (n,).

    Parameters
    ----------
    names : list of str
    label : ndarray (n,)
    probability : ndarray (n, models)
    rng : numpy.random.Generator
        For the test of calibration.
    lengths : mapping of name to ndarray (n,), optional
        Sizes of the data sets.
    """
    coords = {MODEL_DIM: names}
    predictions = xr.Dataset(
        {"true_model": (DATASET_DIM, label), "probability": ((DATASET_DIM, MODEL_DIM), probability)},
        {DATASET_DIM: np.arange(len(label)), **coords},
    )
    scores = _scores(names, label, probability, rng)
    groups = {
        "predictions": predictions,
        "scores": scores.assign_attrs(calibrated=int(float(scores["p_value"]) >= LEVEL), level=LEVEL),
        "confusion": _confusion(names, label, probability),
        "reliability": _reliability(names, label, probability),
    }
    for dim, length in (lengths or {}).items():
        groups["by_size"] = _by_size(names, label, probability, dim, length, rng, groups.get("by_size"))
    made = make_attrs(MADE_BY | {"num_datasets": len(label)})
    return xr.DataTree.from_dict({name: group.assign_attrs(made | group.attrs) for name, group in groups.items()})


def estimate_calibration_errors(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Squared calibration errors (models,), debiased: they may be below 0.

    Parameters
    ----------
    label : ndarray (n,)
    probability : ndarray (n, models)
    """
    return np.array([_squared_error(label == k, p) for k, p in enumerate(probability.T)])


def _squared_error(is_it: np.ndarray, p: np.ndarray) -> float:
    total = 0.0
    for rows in _bins(p):
        n, share = len(rows), is_it[rows].mean()
        total += n / len(p) * ((share - p[rows].mean()) ** 2 - share * (1 - share) / (n - 1))
    return total


def _bins(p: np.ndarray) -> list[np.ndarray]:
    """Rows in bins of equal numbers, by probability: 15, as in most papers since Guo et al. (2017), of 20 at least."""
    number = int(np.clip(len(p) // 20, 1, 15))
    return np.array_split(np.argsort(p, kind="stable"), number)


def _root(squared: Any) -> Any:
    return np.sqrt(np.maximum(squared, 0.0))


def _scores(names: list[str], label: np.ndarray, probability: np.ndarray, rng: np.random.Generator) -> xr.Dataset:
    n = len(label)
    with np.errstate(divide="ignore"):
        log_p = np.log(probability[np.arange(n), label])
    squared = estimate_calibration_errors(label, probability)
    null = _null(probability, rng)
    values: dict[str, Any] = {
        "log_score": log_p.mean(),
        "log_score_error": log_p.std(ddof=1) / np.sqrt(n),
        "brier_score": np.square(probability - np.eye(len(names))[label]).sum(1).mean(),
        "accuracy": (probability.argmax(1) == label).mean(),
        "calibration_error": (MODEL_DIM, _root(squared)),
        "expected_calibration_error": float(_root(squared.mean())),
        "p_value": (1 + (null >= squared.mean()).sum()) / (len(null) + 1),
    }
    return xr.Dataset(values, {MODEL_DIM: names})


def _null(probability: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Errors, averaged over models, of models drawn from the probabilities themselves."""
    below = np.cumsum(probability, axis=1)[:, :-1]
    draws = ((rng.random((len(below), 1)) > below).sum(1) for _ in range(500))  # a p-value of 5 % has an error of 1 %
    return np.array([estimate_calibration_errors(drawn, probability).mean() for drawn in draws])


def _confusion(names: list[str], label: np.ndarray, probability: np.ndarray) -> xr.Dataset:
    number = len(names)
    chosen = np.eye(number)[probability.argmax(1)]
    share, mean = (
        np.stack([values[label == k].mean(0) if (label == k).any() else np.full(number, np.nan) for k in range(number)])
        for values in (chosen, probability)
    )
    dims = ("true_model", "chosen")
    return xr.Dataset(
        {
            "share": (dims, share),
            "probability": (dims, mean),
            "number": ("true_model", np.bincount(label, minlength=number)),
        },
        {"true_model": names, "chosen": names},
    )


def _reliability(names: list[str], label: np.ndarray, probability: np.ndarray) -> xr.Dataset:
    tail = (1 - BAND_PROB) / 2
    columns: dict[str, list[np.ndarray]] = {"probability": [], "share": [], "lower": [], "upper": [], "number": []}
    for k, p in enumerate(probability.T):
        bins = _bins(p)
        mean, number = np.array([p[rows].mean() for rows in bins]), np.array([len(rows) for rows in bins])
        columns["probability"].append(mean)
        columns["share"].append(np.array([(label[rows] == k).mean() for rows in bins]))
        columns["lower"].append(stats.binom.ppf(tail, number, mean) / number)
        columns["upper"].append(stats.binom.ppf(1 - tail, number, mean) / number)
        columns["number"].append(number)
    arrays = {name: ((MODEL_DIM, "bin"), np.stack(values)) for name, values in columns.items()}
    return xr.Dataset(arrays, {MODEL_DIM: names, "bin": np.arange(len(columns["share"][0]))})


def _by_size(
    names: list[str],
    label: np.ndarray,
    probability: np.ndarray,
    dim: str,
    length: np.ndarray,
    rng: np.random.Generator,
    before: xr.Dataset | None,
) -> xr.Dataset:
    """Scores in four ranges of length with about as many data sets each."""
    edges = np.unique(np.quantile(length, [0.25, 0.5, 0.75], method="nearest"))
    group = np.searchsorted(edges, length, side="left")
    parts = []
    for g in np.unique(group):
        rows = group == g
        if rows.sum() >= FEWEST:
            ends = f"{dim} {length[rows].min()} to {length[rows].max()}"
            parts.append(_scores(names, label[rows], probability[rows], rng).expand_dims(size=[ends]))
    found = [*([] if before is None else [before]), *parts]
    return xr.concat(found, dim="size") if found else xr.Dataset()


def _warn(tree: xr.DataTree, error_of_odds: float) -> None:
    """Log what was found; `error_of_odds` is the classifier's against the evidence, NaN if not known."""
    scores = tree["scores"].to_dataset()
    error, p = float(scores["expected_calibration_error"]), float(scores["p_value"])
    line = f"Calibration of model probabilities on {len(tree['predictions']['true_model'])} simulated data sets:"
    sharp = ""
    if error_of_odds > DOUBTFUL:
        sharp = (
            f" But log odds of single data sets differ from the evidence by {error_of_odds:.2f} (root mean square), "
            "which calibration does not see: take the evidence (comparison.compare), or train longer."
        )
    if p >= LEVEL:
        level = logging.WARNING if sharp else logging.INFO
        good = "%s nothing is off (expected calibration error %.4f, debiased; p = %.2g).%s"
        logger.log(level, good, line, error, p, sharp)
        return
    found = tree["predictions"].to_dataset()
    k = int(scores["calibration_error"].to_numpy().argmax())
    worst = str(scores[MODEL_DIM].values[k])
    values = found["probability"].values[:, k]
    is_it = found["true_model"].values == k
    bias, spread = is_it.mean() - values.mean(), float(np.cov(values, is_it)[0, 1] / max(values.var(ddof=1), 1e-12))
    if abs(bias) > abs(1 - spread) * values.std():
        how = f"model {worst!r} comes up in {is_it.mean():.1%}, and gets {values.mean():.1%} on average"
    else:
        how = f"probabilities of model {worst!r} are {'over' if spread < 1 else 'under'}-confident (slope {spread:.2f})"
    logger.warning(
        "%s the expected calibration error is %.3f (debiased; %s): %s. Train longer, or with other sizes of the "
        "networks; where evidence is known, comparison.compare is exact.%s",
        line,
        error,
        p_text(p),
        how,
        sharp,
    )
