"""Results as a store keeps them: the same arrays, of the same types and lengths, for every chunk of data sets."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import xarray as xr

from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.results.unpacking import SAMPLE_DIMS

QUANTILES = {"5%": 0.05, "50%": 0.5, "95%": 0.95}
STATISTICS = {"mean": ("mean",), "sd": ("sd",), "quantiles": tuple(QUANTILES)}
"""What draws can be reduced to, and the labels that this has in a result."""
OF_SOME = ("energy", "tree_depth")
"""Statistics of draws that there are only where NUTS ran."""


def thin_draws(tree: xr.DataTree, thin: int) -> xr.DataTree:
    """Keep every so many draws of each chain."""
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    kept = {n: g.isel(draw=slice(None, None, thin)) if "draw" in g.dims else g for n, g in groups.items()}
    return xr.DataTree.from_dict(kept)


def reduce_draws(tree: xr.DataTree, statistics: Sequence[str]) -> xr.DataTree:
    """Put a group ``summary`` in the place of the draws: labels of STATISTICS along the dim ``statistic``."""
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    posterior, stats = groups.pop("posterior"), groups.pop("sample_stats")
    summary = posterior.map(lambda draws: _summary(draws, statistics), keep_attrs=True)
    summary = summary.assign_coords(statistic=np.array(statistics)).drop_vars(SAMPLE_DIMS, errors="ignore")
    each = [name for name in stats.data_vars if not set(SAMPLE_DIMS) & set(stats[name].dims)]
    stats = stats[each].drop_vars(SAMPLE_DIMS, errors="ignore")
    return xr.DataTree.from_dict({"summary": summary, "sample_stats": stats} | groups)


def _summary(draws: xr.DataArray, statistics: Sequence[str]) -> xr.DataArray:
    dims = list(SAMPLE_DIMS)
    ways = {"mean": lambda: draws.mean(dims), "sd": lambda: draws.std(dims, ddof=1)}
    parts = [
        ways[name]() if name in ways else draws.quantile(QUANTILES[name], dims).drop_vars("quantile")
        for name in statistics
    ]
    lead = [d for d in draws.dims if d == DATASET_DIM]
    return xr.concat(parts, "statistic").transpose(*lead, "statistic", ...).astype(np.result_type(draws.dtype, "f4"))


def even(tree: xr.DataTree, largest: Mapping[str, int], gappy: Collection[str]) -> xr.DataTree:
    """Make a chunk of results like all others.

    Parameters
    ----------
    tree : DataTree
    largest : mapping of dim to int
        Lengths up to which arrays are filled, with NaN.
    gappy : collection of str
        Data that may hold NaN in another chunk.
    """
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    stats = groups["sample_stats"]
    if "log_q" in stats:
        unknown = {name: xr.full_like(stats["log_q"], np.nan) for name in OF_SOME if name not in stats}
        groups["sample_stats"] = stats.assign(unknown)
    return xr.DataTree.from_dict({name: _evened(group, largest, gappy) for name, group in groups.items()})


def _evened(group: xr.Dataset, largest: Mapping[str, int], gappy: Collection[str]) -> xr.Dataset:
    group = group.drop_vars([dim for dim in largest if dim in group.coords])
    evened = {}
    for name, values in group.data_vars.items():
        width = {dim: (0, n - values.sizes[dim]) for dim, n in largest.items() if dim in values.dims}
        if values.dtype.kind in "iu" and (width or name in gappy):
            values = values.astype(float)
        evened[name] = values.pad(width, constant_values=False if values.dtype.kind == "b" else np.nan)
    return xr.Dataset(evened, coords=group.drop_dims([d for d in largest if d in group.dims]).coords, attrs=group.attrs)
