"""Differences of two sets of draws, and which of them are more than Monte Carlo error."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from arviz_base import make_attrs
from arviz_stats import ess, mcse
from scipy import stats

from pymc_amortized.approximators.fitting.arguments import read_names
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.diagnostics.coordinates import free_name, lay_out
from pymc_amortized.diagnostics.statistics import SAMPLE
from pymc_amortized.diagnostics.two_sample import guess_labels, take_normal_scores
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.logs import logger
from pymc_amortized.results.version import MADE_BY


def compare_draws(
    a: xr.DataTree,
    b: xr.DataTree,
    *,
    var_names: Sequence[str] | None = None,
    random_seed: RandomState = None,
) -> xr.DataTree:
    """Compare draws of one posterior with a reference, such as amortized ones with those of ``pm.sample``.

    Parameters
    ----------
    a, b : xarray.DataTree
        Results of ``posterior.sample`` for one data set or of ``pm.sample``; `b` is the reference.
    var_names : sequence of str, optional
        Variables to compare; by default, all that both have and that vary.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of thinning and of the classifier.

    Returns
    -------
    xarray.DataTree
        - ``moments``: for each variable, along ``statistic``, the ``shift`` of the mean of `a` from that of `b` in
          sds of `b` and the ``sd_ratio`` of `a` to `b`, each with its Monte Carlo standard error (``_mcse``). Where a
          variable or dim is called ``statistic``, this dim is ``statistic_``.
        - ``c2st``: ``c2st``, the held-out accuracy of a classifier that tells the draws of `a` from those of `b`
          (0.5: it cannot; 1: no overlap), its ``standard_error`` where there is no difference, the ``p_value`` of that,
          and ``draws``, how many of each it saw.

    Raises
    ------
    TypeError, KeyError, ValueError
        When one of them holds no posterior of one data set, they have no variable in common, or their shapes differ.

    Notes
    -----
    The classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545) takes draws to be
    independent. Draws of Markov chains are not, nor are resampled ones: each set is thinned to its effective sample
    size, and what is repeated is one draw that counts as often. The classifier (logistic regression on quadratic and
    random features) learns from the first half of each and is judged by the second: where there is no difference,
    each draw is guessed right with probability one half.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> a, b = (posterior.sample({"y": np.zeros(4)}, draws=200, random_seed=seed) for seed in (1, 2))
    >>> found = pma.compare_draws(a, b, random_seed=1)
    >>> bool(np.abs(found["moments"]["mu"].sel(statistic="shift")) < 0.5)
    True
    """
    first, second = _both(a, b, var_names)
    rng = np.random.default_rng(seed_sequence(random_seed))
    moments = _moments(first, second)
    groups = {"moments": moments, "c2st": _c2st(first, second, rng)}
    attrs = make_attrs(MADE_BY)
    return xr.DataTree.from_dict({name: group.assign_attrs(attrs) for name, group in groups.items()})


def compare_moments(a: xr.DataTree, b: xr.DataTree, var_names: Sequence[str] | None = None) -> xr.Dataset:
    """Compare means and sds alone; the group ``moments`` of :func:`compare_draws`.

    Parameters
    ----------
    a, b, var_names
        As there.
    """
    return _moments(*_both(a, b, var_names))


def _both(a: xr.DataTree, b: xr.DataTree, var_names: Sequence[str] | None) -> tuple[xr.Dataset, xr.Dataset]:
    """Check two sets of draws, and take the variables that both have."""
    first, second = _posterior("a", a), _posterior("b", b)
    names = _common(first, second, var_names)
    first, second = first[names], second[names]
    _refuse_other_shapes(first, second)
    return first, _aligned(first, second)


def _aligned(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Bring the second into the first's order of labels, where both have some."""
    for dim in [str(d) for d in first.dims if d not in SAMPLE and d in second.dims]:
        if dim not in first.indexes or dim not in second.indexes:
            continue
        ours, theirs = first.indexes[dim], second.indexes[dim]
        if ours.equals(theirs):
            continue
        if set(ours) != set(theirs):
            raise ValueError(f"a and b have different labels along {dim!r}: {list(ours)[:5]} and {list(theirs)[:5]}")
        second = second.sel({dim: ours})
    return second


def _posterior(argument: str, tree: xr.DataTree) -> xr.Dataset:
    if not isinstance(tree, xr.DataTree) or "posterior" not in tree.children:
        raise TypeError(f"{argument} must be a DataTree with a posterior group, got {type(tree).__name__}")
    posterior = tree["posterior"].to_dataset()
    if DATASET_DIM in posterior.dims:
        raise ValueError(f"{argument} holds many data sets: choose one, {argument}.isel({DATASET_DIM}=0)")
    missing = [dim for dim in SAMPLE if dim not in posterior.dims]
    if missing:
        raise ValueError(f"{argument}: the posterior has no dims {missing}, but {list(map(str, posterior.dims))}")
    return posterior


def _common(first: xr.Dataset, second: xr.Dataset, var_names: Sequence[str] | None) -> list[str]:
    both = [str(name) for name in first.data_vars if name in second.data_vars]
    if not both:
        raise KeyError(f"a and b have no variable in common: {list(first.data_vars)} and {list(second.data_vars)}")
    return read_names(var_names, both)


def _refuse_other_shapes(first: xr.Dataset, second: xr.Dataset) -> None:
    for name in first.data_vars:
        shapes = [tuple(n for d, n in ds[name].sizes.items() if d not in SAMPLE) for ds in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name!r} has shape {shapes[0]} in a and {shapes[1]} in b")


def _moments(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Shift and ratio of sds of each variable, with errors by the delta method."""
    arrays = {}
    sides = []
    for ds in (first, second):
        mean, sd = ds.mean(SAMPLE), ds.std(SAMPLE, ddof=1)
        sides.append((mean, sd, mcse(ds, method="mean"), mcse(ds, method="sd")))
    (mean_a, sd_a, mean_error_a, sd_error_a), (mean_b, sd_b, mean_error_b, sd_error_b) = sides
    for name in map(str, first.data_vars):
        with np.errstate(divide="ignore", invalid="ignore"):  # what does not vary has neither
            scale, ratio = sd_b[name].to_numpy(), sd_a[name].to_numpy() / sd_b[name].to_numpy()
            shift = (mean_a[name].to_numpy() - mean_b[name].to_numpy()) / scale
            shift_error = np.hypot(mean_error_a[name].to_numpy(), mean_error_b[name].to_numpy()) / scale
            relative = np.hypot(
                sd_error_a[name].to_numpy() / sd_a[name].to_numpy(), sd_error_b[name].to_numpy() / scale
            )
        arrays[name] = np.stack([shift, shift_error, ratio, ratio * relative])
    entries = ["shift", "shift_mcse", "sd_ratio", "sd_ratio_mcse"]
    return lay_out(mean_b, ["statistic"], arrays).assign_coords({free_name("statistic", mean_b): entries})


def _c2st(first: xr.Dataset, second: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    sets = [_independent(ds) for ds in (first, second)]
    number = min(len(draws) for draws, _ in sets)
    fewest = 50  # independent draws: from fewer a classifier learns nothing
    if number < fewest:
        few = [len(draws) for draws, _ in sets]
        logger.warning("Only %d and %d independent draws: too few for a classifier (%d), c2st is NaN.", *few, fewest)
        return xr.Dataset({"c2st": np.nan, "standard_error": np.nan, "p_value": np.nan, "draws": number})
    half = min(number, 5000) // 2  # the error of its accuracy is then half a percent
    parts = [_halves(draws, counts, half, rng) for draws, counts in sets]
    train, test = (np.concatenate([draws for draws, _ in some]) for some in zip(*parts, strict=True))
    train_counts, test_counts = (np.concatenate([counts for _, counts in some]) for some in zip(*parts, strict=True))
    scores = take_normal_scores(np.concatenate([train, test]))
    labels = np.repeat([0.0, 1.0], half)
    right = guess_labels(scores[: 2 * half], labels, scores[2 * half :], labels, rng, train_counts)
    found = np.average(right, weights=test_counts)
    error = 0.5 * np.sqrt(np.square(test_counts).sum()) / test_counts.sum()
    p_value = float(stats.norm.sf((found - 0.5) / error))
    return xr.Dataset({"c2st": found, "standard_error": error, "p_value": p_value, "draws": 2 * half})


def _halves(
    draws: np.ndarray, counts: np.ndarray, number: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Choose `number` draws each from the first and the second half: neighbours in a chain must not help to guess.

    Counts become weights of mean one, so that both sides of a comparison weigh the same.
    """
    middle = len(draws) // 2
    halves = []
    for part in (slice(0, middle), slice(middle, None)):
        some = np.sort(rng.permutation(len(draws[part]))[:number])
        chosen = counts[part][some]
        halves.append((draws[part][some], chosen / chosen.mean()))
    return halves


def _independent(posterior: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Draws (n, columns), chain after chain, thinned to their effective sample size, and how often each occurs (n,)."""
    chains, draws = (posterior.sizes[dim] for dim in SAMPLE)
    columns = [posterior[n].transpose(*SAMPLE, ...).to_numpy().reshape(chains, draws, -1) for n in posterior.data_vars]
    values = np.concatenate(columns, axis=-1).astype(float)
    varying = values[:, :, np.ptp(values.reshape(chains * draws, -1), axis=0) > 0]
    worth = ess(xr.Dataset({"x": ((*SAMPLE, "column"), varying)}))["x"]
    step = max(round(chains * draws / max(float(worth.min()), 1.0)), 1)
    thinned = values[:, ::step].reshape(-1, values.shape[-1])
    _, place, counts = np.unique(thinned, axis=0, return_index=True, return_counts=True)
    order = np.argsort(place)
    return thinned[place[order]], counts[order].astype(float)
