r"""From draws and true values to numbers, one per data set: everything that a check keeps of a batch.

Expected coverage is tested with random points (TARP; Lemos et al. 2023, arXiv 2302.03026): the share of draws that
are closer to a reference point than the truth is uniform, whatever the reference, as long as it does not depend on
the truth. Here each data set has its own, standard normal in coordinates that are standardized by the median and the
interquartile range of the posterior's draws: so all parameters count alike, however much is learned about each, and
the balls around the reference cut through the posterior.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from arviz_stats import ess

from pymc_amortized.correction.draws import WEIGHTED
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.numerics.uniformity import pit

Quantity = Callable[[xr.Dataset, xr.Dataset], Any]
"""(draws, data) of one data set -> one number for each draw."""
Numbers = dict[str, np.ndarray]
"""Name of a quantity -> (data sets, *shape)."""

SAMPLE = ("chain", "draw")


def count_effective_draws(tree: xr.DataTree, names: Sequence[str]) -> np.ndarray:
    """Return how many independent draws those of each data set are worth, (data sets,)."""
    posterior, stats = tree["posterior"], tree["sample_stats"]
    number, total = posterior.sizes[DATASET_DIM], posterior.sizes["chain"] * posterior.sizes["draw"]
    worth = np.full(number, float(total))
    if posterior.attrs.get("correction", "none") == "none":
        return worth
    if "importance_ess" in stats:
        worth = stats["importance_ess"].to_numpy().copy()
    for i in np.flatnonzero(~np.isin(stats["rung"].to_numpy(), ("raw", *WEIGHTED))):  # draws of a sampler
        some = posterior.to_dataset()[list(names)].isel({DATASET_DIM: i})
        least = min(float(values.min()) for values in ess(some).data_vars.values())
        worth[i] = least if np.isfinite(least) else 1.0
    return np.clip(np.where(np.isnan(worth), total, worth), 1.0, total)


def flatten_draws(values: xr.DataArray) -> np.ndarray:
    """(data set, chain, draw, *shape) -> (draws, data sets, *shape)."""
    array = values.transpose(DATASET_DIM, *SAMPLE, ...).to_numpy()
    return np.moveaxis(array.reshape(len(array), -1, *array.shape[3:]), 1, 0)


def summarize_draws(draws: np.ndarray) -> Numbers:
    """Posterior mean, median and sd (data sets, *shape) of draws (draws, data sets, *shape)."""
    return {"mean": draws.mean(axis=0), "median": np.median(draws, axis=0), "sd": draws.std(axis=0, ddof=1)}


def rank_truth(draws: np.ndarray, truth: np.ndarray, rng: np.random.Generator, effective: np.ndarray) -> np.ndarray:
    """PIT values (data sets, *shape), of draws (draws, data sets, *shape) that are worth `effective` (data sets,)."""
    worth = effective.reshape(-1, *[1] * (truth.ndim - 1))
    return pit(draws, truth, rng, np.broadcast_to(worth, truth.shape))


def standardize(draws: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Standardize by the median and the interquartile range of each posterior.

    Parameters
    ----------
    draws : mapping of name to ndarray (draws, data sets, *shape)
    truth : mapping of name to ndarray (data sets, *shape)

    Returns
    -------
    draws : ndarray (draws, data sets, columns)
    truth : ndarray (data sets, columns)
        Zero where all draws are the same.
    """
    first = next(iter(draws.values()))
    flat = np.concatenate([values.reshape(*first.shape[:2], -1) for values in draws.values()], axis=-1)
    flat_truth = np.concatenate([truth[name].reshape(first.shape[1], -1) for name in draws], axis=-1)
    low, middle, high = np.quantile(flat, [0.25, 0.5, 0.75], axis=0)
    scale = (high - low) / 1.349  # sds of a normal distribution
    weight = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1.0), 0.0)
    return (flat - middle) * weight, (flat_truth - middle) * weight


def rank_distance(draws: np.ndarray, truth: np.ndarray, rng: np.random.Generator, effective: np.ndarray) -> np.ndarray:
    """PIT values (data sets,) of the truth's distance from a random point among those of the draws.

    Parameters
    ----------
    draws : ndarray (draws, data sets, columns)
        Standardized.
    truth : ndarray (data sets, columns)
    """
    reference = rng.standard_normal(truth.shape)
    squared = np.square(draws - reference).sum(axis=-1)
    return pit(squared, np.square(truth - reference).sum(axis=-1), rng, effective)


def evaluate_quantity(
    name: str, quantity: Quantity, tree: xr.DataTree, truth: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate a user's test quantity.

    Returns
    -------
    draws : ndarray (draws, data sets)
    truth : ndarray (data sets,)
    """
    posterior = tree["posterior"].to_dataset()
    data = xr.merge(
        [tree[g].to_dataset() for g in ("observed_data", "constant_data") if g in tree.children],
        combine_attrs="override",
    )
    lead = {DATASET_DIM: posterior[DATASET_DIM], "chain": [0], "draw": [0]}
    known = xr.Dataset(
        {key: (posterior[key].dims, np.asarray(truth[key])[:, None, None]) for key in map(str, posterior.data_vars)},
        coords={k: v for k, v in posterior.coords.items() if k not in SAMPLE} | lead,
    )
    found, expected = [], []
    for i in range(posterior.sizes[DATASET_DIM]):
        one = data.isel({DATASET_DIM: i})
        found.append(_evaluated(name, quantity, posterior.isel({DATASET_DIM: i}), one))
        expected.append(_evaluated(name, quantity, known.isel({DATASET_DIM: i}), one))
    return np.stack(found, axis=1), np.concatenate(expected)


def _evaluated(name: str, quantity: Quantity, draws: xr.Dataset, data: xr.Dataset) -> np.ndarray:
    value = quantity(draws, data)
    sizes = {dim: draws.sizes[dim] for dim in SAMPLE}
    if isinstance(value, xr.DataArray) and set(value.dims) == set(SAMPLE):
        return value.transpose(*SAMPLE).to_numpy().astype(float).ravel()
    shape = f"{type(value).__name__} of dims {value.dims}" if isinstance(value, xr.DataArray) else type(value).__name__
    raise ValueError(
        f"quantities[{name!r}] must return a DataArray with the dims {SAMPLE} alone, one number for each draw "
        f"of {sizes}; it returned a {shape}"
    )
