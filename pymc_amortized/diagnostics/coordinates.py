"""Where the numbers of a check stand: dims and coordinates of its groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from arviz_base import xarray_sel_iter
from arviz_base.labels import BaseLabeller

from pymc_amortized.diagnostics.verdict import METRICS, Finding
from pymc_amortized.graph.data.datasets import DATASET_DIM, DISTANCE
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


def free_name(name: str, template: xr.Dataset) -> str:
    """Return a name of ours for a dim or coordinate beside users' variables, dims and coordinates.

    Where these have it already, an underscore is put behind: names of users stay as they are.
    """
    while name in template.variables or name in template.dims:
        name += "_"
    return name


def own_dim(found: xr.Dataset) -> str:
    """Return the dim of ours along which a group holds its numbers: the first of every variable."""
    return str(next(iter(found.data_vars.values())).dims[0])


def take_entry(found: xr.Dataset, entry: str) -> xr.Dataset:
    """Take what a group holds under a label of its own dim."""
    dim = own_dim(found)
    return found.isel({dim: found[dim].to_numpy().tolist().index(entry)}, drop=True)


def lay_out(template: xr.Dataset, lead: Sequence[str], arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Lay out arrays (*lead, *shape), of variables that a template has without their leading dims."""
    lead = [free_name(dim, template) for dim in lead]
    variables = {name: ((*lead, *template[name].dims), array) for name, array in arrays.items()}
    sizes = dict(zip(lead, next(iter(arrays.values())).shape, strict=False))
    coords = dict(template.coords) | {dim: np.arange(n) for dim, n in sizes.items()}
    return xr.Dataset(variables, coords=coords)


def lay_out_along(
    dim: str, entries: Sequence[str], template: xr.Dataset, arrays: Mapping[str, np.ndarray]
) -> xr.Dataset:
    """Lay out arrays (entries, data sets, *shape)."""
    return lay_out(template, [dim, DATASET_DIM], arrays).assign_coords({free_name(dim, template): list(entries)})


def lay_out_findings(findings: Sequence[Finding], template: xr.Dataset) -> xr.Dataset:
    """Lay out findings along ``metric``, of quantities whose dims and coordinates a template has."""
    arrays = {str(name): np.full((len(METRICS), *v.shape), np.nan) for name, v in template.data_vars.items()}
    for f in findings:
        values = [f.p_adjusted if m == "p_adjusted" else getattr(f.result, m) for m in METRICS]
        np.moveaxis(arrays[f.name], 0, -1)[f.index] = values
    return lay_out(template, ["metric"], arrays).assign_coords({free_name("metric", template): list(METRICS)})


def compute_coverage(template: xr.Dataset, pits: Mapping[str, np.ndarray], number: int) -> xr.Dataset:
    """Share of true values within central intervals, and of TARP's balls, at each nominal level."""
    shares, levels = {}, np.round(np.linspace(0, 1, 101), 2)
    for name, values in pits.items():
        inside = values if name == DISTANCE else np.abs(2 * values - 1)
        known = np.isfinite(inside).sum(axis=0)
        counts = np.stack([(inside <= level).sum(axis=0) for level in levels])
        shares[name] = counts / np.where(known > 0, known, np.nan)
    laid, level = lay_out(template, ["level"], shares), free_name("level", template)
    points, *bounds = band(number, BAND_PROB)
    coords: dict[str, Any] = {level: levels}
    for name, bound in zip(("band_lower", "band_upper"), bounds, strict=True):
        coords[free_name(name, template)] = (level, np.interp(levels, points, bound))
    return laid.assign_coords(coords)


def compute_scores(recovered: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Contraction and z-score of each data set, (2, data sets, *shape)."""
    found = {}
    for name, (true, mean, _, sd) in recovered.items():
        prior_variance = np.nanvar(true, axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # what does not vary has neither
            found[name] = np.stack([1 - np.square(sd) / prior_variance, (mean - true) / sd])
    return found
