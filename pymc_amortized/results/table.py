"""Results as a data frame: one row for each data set."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.results.unpacking import SAMPLE_DIMS, group_of

STATISTICS = ("stage", "pareto_k", "importance_ess", "ood_pvalue")


def summary_table(tree: xr.DataTree, names: Sequence[str], quantiles: Sequence[float]) -> pd.DataFrame:
    """Summarize draws: moments and quantiles of each element of variables, then what was judged.

    Parameters
    ----------
    tree : xarray.DataTree
        Of one data set or of many.
    names : sequence of str
        Variables.
    quantiles : sequence of float
        Between 0 and 1.
    """
    posterior, stats = group_of(tree, "posterior"), group_of(tree, "sample_stats")
    many = DATASET_DIM in posterior.dims
    columns: dict[str, np.ndarray] = {}
    for name in names:
        for label, draws in _elements(posterior[name]):
            values = draws.transpose(*[DATASET_DIM] * many, *SAMPLE_DIMS).to_numpy()
            values = values.reshape(-1, values.shape[-2] * values.shape[-1])
            columns |= {f"{label} mean": values.mean(axis=1), f"{label} sd": values.std(axis=1, ddof=1)}
            at = np.quantile(values, quantiles, axis=1)
            columns |= {f"{label} {100 * q:g}%": each for q, each in zip(quantiles, at, strict=True)}
    columns |= {name: np.atleast_1d(stats[name].to_numpy()) for name in STATISTICS if name in stats}
    index = pd.Index(posterior[DATASET_DIM].to_numpy() if many else [0], name=DATASET_DIM)
    return pd.DataFrame(columns, index)


def _elements(values: xr.DataArray) -> Iterator[tuple[str, xr.DataArray]]:
    """Every element of a variable, by its labels as ArviZ writes them."""
    own = [str(dim) for dim in values.dims if dim not in (DATASET_DIM, *SAMPLE_DIMS)]
    for index in product(*[range(values.sizes[dim]) for dim in own]):
        place = dict(zip(own, index, strict=True))
        labels = [str(values[dim].to_numpy()[i]) if dim in values.coords else str(i) for dim, i in place.items()]
        yield f"{values.name}[{', '.join(labels)}]" if labels else str(values.name), values.isel(place)
