"""Where the numbers of a check stand: dims and coordinates of its groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from arviz_base import xarray_sel_iter
from arviz_base.labels import BaseLabeller

from pymc_amortized.diagnostics.verdict import DISTANCE
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.numerics.uniformity import band

BAND_PROB = 0.95
"""Probability that all of a calibrated curve lies within its band."""


def label_elements(values: xr.DataArray) -> np.ndarray:
    """What ArviZ calls each element of a variable, (*shape)."""
    found = np.empty(values.shape, dtype=object)
    selections = xarray_sel_iter(values.to_dataset(name=values.name), skip_dims=set())
    for place, (name, selection, position) in zip(np.ndindex(values.shape), selections, strict=True):
        found[place] = BaseLabeller().make_label_flat(name, selection, position)
    return found


def rename_clashing_dims(template: xr.Dataset) -> xr.Dataset:
    """Rename dims of a model that have the names of dims of results."""
    results = {"chain", "draw", DATASET_DIM, "metric", "level", "estimate", "score", "statistic"}
    return template.rename({dim: f"{dim}_" for dim in template.dims if dim in results})


def lay_out(template: xr.Dataset, lead: Sequence[str], arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Lay out arrays (*lead, *shape), of variables that a template has without their leading dims."""
    variables = {name: ((*lead, *template[name].dims), array) for name, array in arrays.items()}
    sizes = dict(zip(lead, next(iter(arrays.values())).shape, strict=False))
    coords = dict(template.coords) | {dim: np.arange(n) for dim, n in sizes.items()}
    return xr.Dataset(variables, coords=coords)


def lay_out_along(
    dim: str, entries: Sequence[str], template: xr.Dataset, arrays: Mapping[str, np.ndarray]
) -> xr.Dataset:
    """Lay out arrays (entries, data sets, *shape)."""
    return lay_out(template, [dim, DATASET_DIM], arrays).assign_coords({dim: list(entries)})


def compute_coverage(template: xr.Dataset, pits: Mapping[str, np.ndarray], number: int) -> xr.Dataset:
    """Share of true values within central intervals, and of TARP's balls, at each nominal level."""
    shares, levels = {}, np.round(np.linspace(0, 1, 101), 2)
    for name, values in pits.items():
        inside = values if name == DISTANCE else np.abs(2 * values - 1)
        known = np.isfinite(inside).sum(axis=0)
        counts = np.stack([(inside <= level).sum(axis=0) for level in levels])
        shares[name] = counts / np.where(known > 0, known, np.nan)
    laid = lay_out(template, ["level"], shares)
    points, lower, upper = band(number, BAND_PROB)
    bounds: dict[str, Any] = {
        "level": levels,
        "band_lower": ("level", np.interp(levels, points, lower)),
        "band_upper": ("level", np.interp(levels, points, upper)),
    }
    return laid.assign_coords(bounds)


def compute_scores(recovered: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Contraction and z-score of each data set, (2, data sets, *shape)."""
    found = {}
    for name, (true, mean, _, sd) in recovered.items():
        prior_variance = np.nanvar(true, axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # what does not vary has neither
            found[name] = np.stack([1 - np.square(sd) / prior_variance, (mean - true) / sd])
    return found
