"""Calibration near one data set.

A posterior may be calibrated on average over everything that its model can simulate, and wrong where it matters.
Simulated data sets near the observed one are judged here: by the tests of :func:`check_calibration`, and by the local
classifier two-sample test of Linhart, Gramfort & Rodrigues (2023, arXiv 2306.03580). A classifier learns to tell the
true parameters of nearby simulations from draws of the network for the same data; where there is nothing to learn,
its guesses at draws for the observed data set stay at one half. The statistic is the mean square of how far they do
not, and its null distribution comes from exchanging true parameters and draws at random.

Nearness is that of what a regression of the parameters on features of the data (the network's and simple ones)
predicts: the parameters themselves, and how far they lie from this prediction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import Correction, check_correction, check_integer, read_names
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.diagnostics.calibration import FEWEST_DRAWS, Check
from pymc_amortized.diagnostics.simulated import sample_known, simulate_known
from pymc_amortized.diagnostics.statistics import flatten_draws, standardize
from pymc_amortized.diagnostics.two_sample import Features
from pymc_amortized.diagnostics.verdict import LEVEL, log_verdict
from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.reading import read_given
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.indices import index_limits

FARTHEST = 5.0
"""Standardized values are cut off here: one wild simulation must not decide what is near."""


def check_local_calibration(
    posterior: AmortizedPosterior,
    observed: Mapping[str, Any] | xr.Dataset | None = None,
    *,
    num_simulations: int = 10_000,
    num_datasets: int = 300,
    draws: int = 200,
    correction: Correction = None,
    var_names: Sequence[str] | None = None,
    simulations: xr.DataTree | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
) -> xr.DataTree:
    """Check a posterior on simulated data sets that are like an observed one, and warn of what is off there.

    Parameters
    ----------
    posterior : AmortizedPosterior
        From :func:`fit_posterior` or :func:`load`.
    observed : mapping of name to array_like, or xarray.Dataset, optional
        One data set, as in ``posterior.sample``; by default, what the model held.
    num_simulations : int
        Simulations among which those nearest are found.
    num_datasets : int
        How many of the nearest are judged.
    draws : int
        Posterior draws for each.
    correction : {None, "psis", "auto"}
        Which draws are judged: the network's own, or those that ``posterior.sample`` corrects.
    var_names, simulations, context, missing
        As in :func:`check_calibration`.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.
    progressbar : bool
        Whether to show how far it is.

    Returns
    -------
    xarray.DataTree
        The groups of :func:`check_calibration`, of the nearest simulations, which its plots take too; and ``c2st``
        with the ``statistic`` of the local classifier test, its ``p_value``, and ``null``, the 95 % quantile of the
        statistic of a posterior that is calibrated there.

    Raises
    ------
    ValueError, TypeError, KeyError
        When an argument does not fit the model; the message names it.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> check = pma.check_local_calibration(
    ...     posterior, {"y": np.zeros(4)}, num_simulations=500, num_datasets=50, random_seed=1, progressbar=False
    ... )
    >>> 0 <= float(check["c2st"]["p_value"]) <= 1
    True
    """
    spec = posterior.spec
    num_simulations = check_integer("num_simulations", num_simulations, smallest=100)
    num_datasets = check_integer("num_datasets", num_datasets, smallest=50)
    if num_datasets >= num_simulations:
        raise ValueError(f"num_datasets ({num_datasets}) must be smaller than num_simulations ({num_simulations})")
    draws = check_integer("draws", draws, smallest=FEWEST_DRAWS)
    check_correction(posterior.weighed_by, correction)
    names = read_names(var_names, [p.name for p in spec.parameters] + list(spec.deterministics))
    names = [p.name for p in spec.parameters] if var_names is None else names
    varying = [name for name in names if set(spec.model.named_vars_to_dims.get(name) or ()) & set(spec.largest)]
    if varying:
        raise ValueError(
            f"var_names: the lengths of {varying} differ between data sets, so that they cannot be compared"
        )
    here = read_given(spec, index_limits(spec), observed)
    simulate_seed, sample_seed, here_seed, own_seed = seed_sequence(random_seed).spawn(4)
    known = simulate_known(
        posterior, num_simulations, simulate_seed, simulations=simulations, context=context, missing=missing
    )
    near = known.take(find_nearest(posterior, known, here, num_datasets))
    rng = np.random.default_rng(own_seed)
    check = Check(posterior, names, {}, draws, correction, rng)
    check.run(near, sample_seed, progressbar=progressbar)
    tree, findings = check.tree()
    at = sample_known(posterior, here.many(), draws, correction, names, here_seed)
    drawn = {name: flatten_draws(at["posterior"].to_dataset()[name]) for name in names}
    points, _ = standardize(drawn, {name: values[0] for name, values in drawn.items()})
    true, drawn_once = (np.concatenate(part) for part in zip(*check.pairs, strict=True))
    c2st = run_local_c2st(true, drawn_once, points[:, 0], rng)
    tree["c2st"] = xr.DataTree(xr.Dataset(c2st))
    extra = []
    if c2st["p_value"] < LEVEL:
        extra.append(f"a classifier tells true parameters from draws (local C2ST, p = {c2st['p_value']:.2g})")
    log_verdict(findings, f"Calibration on the {len(near)} of {len(known)} simulations nearest", check.advice(), extra)
    return tree


def find_nearest(posterior: AmortizedPosterior, known: Simulations, here: DataSets, number: int) -> np.ndarray:
    """Indices of the simulations that are most like a data set, (number,)."""
    sets = of_simulations(known)
    features, feature = _features(posterior, sets), _features(posterior, here)
    middle, scale = _robust(features)
    x = np.clip((features - middle) / scale, -FARTHEST, FARTHEST)
    x_here = np.clip((feature - middle) / scale, -FARTHEST, FARTHEST)
    location, spread = _robust(known.unconstrained)
    z = np.clip((known.unconstrained - location) / spread, -FARTHEST, FARTHEST)
    mean, mean_here = _predicted(x, z, x_here)
    log_error = np.log(np.abs(z - mean) + 1e-3)
    width, width_here = _predicted(x, log_error, x_here)
    distance = np.square(mean - mean_here).sum(axis=1) + np.square(width - width_here).sum(axis=1)
    return np.argsort(distance, kind="stable")[:number]


def _robust(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84], axis=0)
    return middle, np.where(high > low, (high - low) / 2, 1.0)


def _predicted(x: np.ndarray, z: np.ndarray, x_here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression's predictions where it learned, and here."""
    mean, center = z.mean(axis=0), x.mean(axis=0)
    penalty = 10.0 * np.eye(x.shape[1])  # inverse prior variance of standardized coefficients
    gram = (x - center).T @ (x - center) + penalty
    slope = np.linalg.solve(gram, (x - center).T @ (z - mean))
    return mean + (x - center) @ slope, mean + (x_here - center) @ slope


def _features(posterior: AmortizedPosterior, datasets: DataSets) -> np.ndarray:
    """The network's features, values or moments of every variable, and lengths: (data sets, features)."""
    with torch.inference_mode():
        learned = posterior.network.context(**posterior.inputs(datasets)).features
    n = len(datasets)
    parts = [learned.cpu().double().numpy().reshape(n, -1)]
    for variable in posterior.spec.data:
        values = datasets.shown(variable).astype(float).reshape(n, -1)
        if values.shape[1] <= 200 and not variable.sized and not variable.missing:
            parts.append(values)
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=1), 1)
        mean = np.where(known, values, 0.0).sum(axis=1) / count
        variance = np.where(known, np.square(values - mean[:, None]), 0.0).sum(axis=1) / count
        parts.append(np.column_stack([mean, np.sqrt(variance), np.log1p(variance), known.mean(axis=1)]))
    parts += [np.log(lengths.astype(float))[:, None] for lengths in datasets.lengths.values()]
    return np.nan_to_num(np.concatenate(parts, axis=1), posinf=0.0, neginf=0.0)


def run_local_c2st(
    true: np.ndarray, drawn: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Test whether true parameters and draws differ where the observed data set is.

    Parameters
    ----------
    true, drawn : ndarray (simulations, columns)
        True parameters of simulations nearby, and one draw for each, standardized by its posterior.
    points : ndarray (draws, columns)
        Draws for the observed data set, standardized likewise.
    rng : numpy.random.Generator
        Of random features and of exchanges.

    Returns
    -------
    dict
        ``statistic``, ``p_value`` and ``null``.

    Notes
    -----
    The classifier is a penalized linear regression of the label on quadratic and random features. Its coefficients are
    linear in the labels, so that each exchange of true values and draws costs one matrix product.
    """
    true, drawn, points = (np.clip(part, -FARTHEST, FARTHEST) for part in (true, drawn, points))
    both = np.concatenate([true, drawn])
    both, points = (part[:, np.ptp(both, axis=0) > 0] for part in (both, points))
    features = Features.fit(both, rng)
    x = features(both)
    difference = (x[: len(true)] - x[len(true) :]) / 2
    gram = x.T @ x + np.diag(4 * features.penalty)  # a logistic regression's curvature is a quarter
    signs = rng.choice([-1.0, 1.0], size=(len(true), 1 + 999))  # exchanges: p-values down to 0.001
    signs[:, 0] = 1.0
    guesses = features(points) @ np.linalg.solve(gram, difference.T @ signs)
    statistics = np.square(guesses).mean(axis=0)
    return {
        "statistic": float(statistics[0]),
        "p_value": float(np.mean(statistics >= statistics[0])),
        "null": float(np.quantile(statistics[1:], 0.95)),
    }
