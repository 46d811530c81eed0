"""From arrays to ArviZ: the one place where groups, dims and coordinates are laid out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from arviz_base import generate_dims_coords, make_attrs
from pymc.backends.arviz import coords_and_dims_for_inferencedata

from pymc_amortized.graph.data.datasets import (
    DATASET_DIM,
    DISTANCE,
    LOG_JOINT,
    PARAMETER_DIM,
    DataSets,
    of_simulations,
)
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.results.version import MADE_BY

Arrays = Mapping[str, np.ndarray]


def posterior_tree(
    spec: ModelSpec,
    datasets: DataSets,
    *,
    variables: Arrays,
    sample_stats: Mapping[str, tuple[Sequence[str], np.ndarray]],
    attrs: Mapping[str, Any],
) -> xr.DataTree:
    """Lay out posterior draws as ``pm.sample`` does, after a leading ``dataset`` dim if batched.

    Parameters
    ----------
    spec : ModelSpec
    datasets : DataSets
    variables : mapping of name to ndarray (datasets, chains, draws, *shape)
    sample_stats : mapping of name to (dims, ndarray (datasets, *dims))
    attrs : mapping
        Attributes of the posterior group.
    """
    lead = [DATASET_DIM] if datasets.batched else []

    def squeezed(arrays: Arrays) -> dict[str, np.ndarray]:
        return {k: v if datasets.batched else v[0] for k, v in arrays.items()}

    stats = {k: v for k, (_, v) in sample_stats.items()}
    stat_dims = {k: [*lead, *dims] for k, (dims, _) in sample_stats.items()}
    observed = {v.name: datasets.shown(v) for v in spec.observed}
    groups = {
        "posterior": _dataset(spec, squeezed(variables), [*lead, "chain", "draw"], datasets, attrs),
        "sample_stats": _stats_dataset(spec, squeezed(stats), stat_dims, datasets, attrs),
        "observed_data": _dataset(spec, squeezed(observed), lead, datasets),
    }
    constants = constant_data(spec, datasets)
    if constants:
        groups["constant_data"] = constants
    return xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})


def check_layout(spec: ModelSpec) -> None:
    """Lay out results of one draw, so that names and labels which cannot be together are found before training.

    Raises
    ------
    ValueError
    """
    largest = spec.largest
    _refuse_names_of_results(spec)
    values = {v.name: np.zeros((1, *v.shape_at(largest)), v.dtype) for v in spec.data}
    gaps = {v.name: np.zeros(values[v.name].shape, bool) for v in spec.observed if v.missing}
    lengths = {dim: np.array([n]) for dim, n in largest.items()}
    variables = {p.name: np.zeros((1, 1, 1, *p.shape)) for p in spec.at(largest).drawn}
    for batched in (False, True):
        sets = DataSets(values, np.arange(1), batched, lengths, gaps)
        try:
            posterior_tree(spec, sets, variables=variables, sample_stats={}, attrs={})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"results of the model cannot be laid out as a DataTree: {error}") from error


def _refuse_names_of_results(spec: ModelSpec) -> None:
    """Refuse variables and dims named like what stands beside them in results, the few names that are not theirs."""
    model = spec.model
    free = {p.name for p in spec.drawn}
    named = {*free, *spec.deterministics, *(v.name for v in (*spec.data, *spec.fixed))}
    ranks = {name: model[name].type.ndim for name in named if not model.named_vars_to_dims.get(name)}
    reserved = {"chain", "draw", DATASET_DIM, *(f"{name}_dim_{i}" for name, n in ranks.items() for i in range(n))}
    reserved |= {f"{dim}_length" for dim in spec.largest}
    reserved |= {
        f"{v.name}_{what}" for v in spec.observed if v.missing for what in ("missing", "present", "unobserved")
    }
    given = {*named, *model.dim_lengths}
    taken = sorted(reserved & given | {LOG_JOINT, DISTANCE} & {*free, *model.dim_lengths})
    if taken:
        raise ValueError(f"the model has a variable or dim named {taken}, which results have themselves: rename it")


def sample_group(spec: ModelSpec, arrays: Arrays, datasets: DataSets) -> xr.Dataset:
    """Lay out one group of what was computed for every draw, name -> ndarray (datasets, chains, draws, ...)."""
    lead = [DATASET_DIM] if datasets.batched else []
    squeezed = {k: v if datasets.batched else v[0] for k, v in arrays.items()}
    return _dataset(spec, squeezed, [*lead, "chain", "draw"], datasets)


def prior_tree(spec: ModelSpec, simulations: Simulations) -> xr.DataTree:
    """Lay out simulations as ``pm.sample_prior_predictive`` does."""
    sample = ["chain", "draw"]
    one = DataSets({}, np.arange(1), False)
    sets = of_simulations(simulations)
    predictive = {v.name: sets.shown(v)[None] for v in spec.observed}
    prior = {name: values[None] for name, values in simulations.variables.items()}
    groups = {
        "prior": _dataset(spec, prior, sample, one, drop_counts(simulations.attempted, simulations.dropped)),
        "prior_predictive": _dataset(spec, predictive, sample, one),
    }
    context = {c.name: sets.shown(c)[None] for c in spec.context}
    context |= {f"{dim}_length": lengths[None] for dim, lengths in simulations.lengths.items()}
    if context:
        groups["prior_context"] = _dataset(spec, context, sample, one)
    if spec.fixed:
        groups["constant_data"] = _dataset(spec, {v.name: spec.held[v.name].copy() for v in spec.fixed}, [], one)
    return xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})


def drop_counts(attempted: int, dropped: Mapping[str, int]) -> dict[str, int]:
    """Attributes that say how many simulations were made, and why some were dropped."""
    return {"simulations_attempted": attempted} | {f"dropped {reason}": count for reason, count in dropped.items()}


def constant_data(spec: ModelSpec, datasets: DataSets) -> xr.Dataset | None:
    """Lay out all that is given beside the observed variables: covariates, lengths, gaps; None where nothing is."""
    context = {c.name: datasets.shown(c) for c in spec.context}
    context |= {f"{dim}_length": lengths for dim, lengths in datasets.lengths.items()}
    context |= {f"{name}_missing": mask for name, mask in datasets.missing.items()}
    context = context if datasets.batched else {name: values[0] for name, values in context.items()}
    lead = [DATASET_DIM] if datasets.batched else []
    parts = []
    if spec.fixed:
        fixed = {v.name: spec.held[v.name].copy() for v in spec.fixed}
        parts.append(_dataset(spec, fixed, [], DataSets({}, np.arange(1), False)))
    if context:
        parts.append(_dataset(spec, context, lead, datasets))
    return xr.merge(parts, combine_attrs="override") if parts else None


def _dataset(
    spec: ModelSpec,
    arrays: Arrays,
    sample_dims: list[str],
    datasets: DataSets,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    coords, dims = coords_and_dims_for_inferencedata(spec.model)
    used = {d for name in arrays for d in dims.get(name, ())}
    varying = {r.dim for r in spec.sizes}
    coords = {name: labels for name, labels in coords.items() if name in used - varying}
    coords |= {dim: labels for dim, labels in datasets.coords.items() if dim in used}
    dims |= {v.name: list(v.dims) for v in spec.data if v.name in arrays and v.dims and v.sized}
    unnamed = {v.name: [f"{v.name}_dim_{i}" for i in range(len(v.shape))] for v in spec.observed}  # as ArviZ does
    dims |= {f"{v.name}_missing": dims.get(v.name, unnamed[v.name]) for v in spec.observed if v.missing}
    if DATASET_DIM in sample_dims:
        coords[DATASET_DIM] = datasets.labels
    variables: dict[str, tuple[Sequence[Any], np.ndarray]] = {}
    labels: dict[str, Any] = {}
    for name, values in arrays.items():
        # a log density has fewer axes than its variable where that is multivariate
        named = [*sample_dims, *dims.get(name, ())][: values.ndim]
        # dims of users may be called "sample"
        own, numbers = generate_dims_coords(values.shape, name, dims=named, check_conventions=False)
        variables[name], labels = (own, values), labels | numbers
    # what ArviZ averages over: draws, never data sets; so that one of many can be taken out and plotted
    averaged = [d for d in sample_dims if d != DATASET_DIM]
    return xr.Dataset(  # as a whole: ``dict_to_dataset`` merges variables, and takes three times as long
        variables,
        coords={dim: coords.get(dim, numbers) for dim, numbers in labels.items()},
        attrs=make_attrs(MADE_BY | dict(attrs or {}), sample_dims=averaged),
    )


def _stats_dataset(
    spec: ModelSpec,
    stats: Arrays,
    dims: Mapping[str, list[str]],
    datasets: DataSets,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    # laid out by hand: some statistics belong to a data set or a proposal, not to a draw
    variables = {name: (dims[name], values) for name, values in stats.items()}
    sizes = {d: n for name in stats for d, n in zip(dims[name], stats[name].shape, strict=True)}
    coords: dict[str, Any] = {d: np.arange(n) for d, n in sizes.items()}
    if DATASET_DIM in coords:
        coords[DATASET_DIM] = datasets.labels
    if PARAMETER_DIM in coords:
        coords[PARAMETER_DIM] = spec.element_names
    return xr.Dataset(variables, coords=coords, attrs=make_attrs(MADE_BY | dict(attrs)))
