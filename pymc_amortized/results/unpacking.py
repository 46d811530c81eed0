"""Reading results: from the groups of a DataTree back to data sets and draws."""

from typing import Any

import numpy as np
import xarray as xr

from pymc_amortized.graph.data.arrays import cast_with_gaps
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets, outside_of
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec

SAMPLE_DIMS = ("chain", "draw")
PER_VALUE = ("observed_data", "posterior_predictive", "log_likelihood")
"""Groups with an entry for each value of the data, of which those that are missing can be left out."""


def group_of(tree: xr.DataTree, name: str) -> xr.Dataset:
    """Return a group of a result.

    Raises
    ------
    TypeError, KeyError
        It is no result, or has no such group.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"expected a DataTree, as from posterior.sample; got {type(tree).__name__}")
    if name not in tree.children:
        reduced = ", as reduce= keeps no draws" if name == "posterior" and "summary" in tree.children else ""
        raise KeyError(f"the result has no group {name!r}{reduced}; it has {sorted(tree.children)}")
    return tree[name].to_dataset()


def is_batched(tree: xr.DataTree) -> bool:
    """Whether a result is one of several data sets."""
    return DATASET_DIM in group_of(tree, "posterior").dims


def read_draws(spec: ModelSpec, tree: xr.DataTree) -> dict[str, np.ndarray]:
    """Draws of every free variable, name -> (data sets, chains, draws, *shape).

    Raises
    ------
    KeyError, ValueError
        When a free variable is not in the posterior group, or of another shape.
    """
    posterior = group_of(tree, "posterior")
    lacking = [p.name for p in spec.drawn if p.name not in posterior.data_vars]
    if lacking:
        raise KeyError(
            f"the posterior group lacks {lacking}: predictions and log densities need every free variable "
            "(leave var_names out of sample)"
        )
    draws = {}
    for p in spec.drawn:
        values, shape = _with_lead(posterior[p.name], SAMPLE_DIMS), p.open_shape
        own = values.shape[3:]
        if len(own) != len(shape) or any(k not in (n, None) for n, k in zip(own, shape, strict=True)):
            raise ValueError(
                f"posterior group: {p.name!r} has shape {values.shape[3:]} per draw; the model's is {shape}"
            )
        draws[p.name] = values
    return draws


def read_result(spec: ModelSpec, tree: xr.DataTree) -> DataSets:
    """Data sets that a result was drawn for, as its groups ``observed_data`` and ``constant_data`` hold them.

    Raises
    ------
    KeyError, ValueError
        When a variable is not there, or of another shape.
    """
    batched, groups = is_batched(tree), _data_of(tree)
    shown = _shown(spec, groups)
    number = len(next(iter(shown.values())))
    lengths = {}
    for r in spec.sizes:
        given = groups.get(f"{r.dim}_length")
        if given is None:
            longest = next(v.lengths(shown[v.name].shape[1:])[r.dim] for v in spec.data if r.dim in v.sized)
        lengths[r.dim] = np.full(number, longest) if given is None else np.broadcast_to(_with_lead(given), number)
    missing = {v.name: _gaps(v, shown[v.name], groups, lengths) for v in spec.observed if v.missing}
    labels = groups.coords[DATASET_DIM].to_numpy() if batched and DATASET_DIM in groups.coords else np.arange(number)
    shown_labels = dict(group_of(tree, "posterior").coords) | dict(groups.coords)
    own = [] if batched else [dim for dim in lengths if dim in shown_labels]
    coords = {dim: shown_labels[dim].to_numpy()[: lengths[dim][0]] for dim in own}
    values = {v.name: cast_with_gaps(v, shown[v.name]) for v in spec.data}
    return DataSets(values, labels, batched, lengths, missing, coords)


def _data_of(tree: xr.DataTree) -> xr.Dataset:
    observed = group_of(tree, "observed_data")
    constant = group_of(tree, "constant_data") if "constant_data" in tree.children else xr.Dataset()
    return observed.merge(constant, compat="override")


def _shown(spec: ModelSpec, groups: xr.Dataset) -> dict[str, np.ndarray]:
    """Values (data sets, *shape) of the data variables, NaN where there is none."""
    lacking = [v.name for v in spec.data if v.name not in groups]
    if lacking:
        raise KeyError(f"the result's groups observed_data and constant_data lack {lacking}")
    if cut := [v.name for v in spec.data if f"{v.name}_present" in groups[v.name].dims]:
        raise ValueError(
            f"the result was cut by one_dataset: where {cut} are missing is not in it. Predict for the whole result "
            "first, then take the data set out"
        )
    shown = {v.name: _with_lead(groups[v.name]) for v in spec.data}
    number = max(len(values) for values in shown.values())
    for v in spec.data:
        if not v.fits(shown[v.name].shape[1:]):
            raise ValueError(f"the result's {v.name!r} has shape {shown[v.name].shape[1:]}; the model's is {v.shape}")
    return {name: np.broadcast_to(values, (number, *values.shape[1:])) for name, values in shown.items()}


def _with_lead(values: xr.DataArray, sample_dims: tuple[str, ...] = ()) -> np.ndarray:
    """Values with a leading axis of data sets, after which the sample dims come."""
    batched = DATASET_DIM in values.dims
    array = values.transpose(*([DATASET_DIM] if batched else []), *sample_dims, ...).to_numpy()
    return array if batched else array[None]


def _gaps(variable: DataVariable, shown: np.ndarray, groups: xr.Dataset, lengths: dict[str, np.ndarray]) -> np.ndarray:
    given = groups.get(f"{variable.name}_missing")
    if given is not None:
        return np.broadcast_to(_with_lead(given).astype(bool), shown.shape)
    return np.isnan(shown) & ~outside_of(variable, shown, lengths)


def one_dataset(spec: ModelSpec, tree: xr.DataTree, dataset: Any = None) -> xr.DataTree:
    """Take one data set out of a result; see :meth:`AmortizedPosterior.one_dataset`."""
    groups = {name: _selected(group_of(tree, name), dataset, is_batched(tree)) for name in tree.children}
    constant = groups.get("constant_data", xr.Dataset())
    lengths = {r.dim: int(constant[f"{r.dim}_length"]) for r in spec.sizes if f"{r.dim}_length" in constant}
    groups = {
        name: group.isel({dim: slice(n) for dim, n in lengths.items() if dim in group.dims})
        for name, group in groups.items()
    }
    lacking = {v.name: _lacking(v, groups) for v in spec.observed}
    read = any(mask is not None and bool(mask.any()) for mask in lacking.values())
    for v in spec.observed:
        mask = _with_what_reads(lacking[v.name], v, groups) if read else None
        for name in PER_VALUE:
            if name in groups and v.name in groups[name]:
                groups[name] = _of_what_exists(groups[name], v, mask, whole=name != "log_likelihood")
    return xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})


def _lacking(variable: DataVariable, groups: dict[str, xr.Dataset]) -> xr.DataArray | None:
    """Which values of a variable one data set lacks; None where it may lack none."""
    if not variable.missing:
        return None
    mask = groups.get("constant_data", xr.Dataset()).get(f"{variable.name}_missing")
    if mask is None and variable.name in groups.get("observed_data", ()):
        # pm.sample_posterior_predictive(extend_inferencedata=True) puts other constants in their place
        mask = groups["observed_data"][variable.name].isnull()
    return mask


def _with_what_reads(
    mask: xr.DataArray | None, variable: DataVariable, groups: dict[str, xr.Dataset]
) -> xr.DataArray | None:
    """Add the values whose log likelihood reads a missing one, unless none would be left."""
    terms = groups.get("log_likelihood", xr.Dataset()).get(variable.name)
    if terms is None:
        return mask
    unknown = terms.isnull().all([d for d in SAMPLE_DIMS if d in terms.dims])
    if bool(unknown.all()) or not bool(unknown.any()):
        return mask
    return unknown if mask is None else mask | unknown


def _selected(group: xr.Dataset, dataset: Any, batched: bool) -> xr.Dataset:
    if not batched:
        if dataset is not None:
            raise ValueError(f"dataset={dataset!r} was given, but the result is of a single data set")
        return group
    if DATASET_DIM not in group.dims:
        return group
    labels = group.indexes[DATASET_DIM]
    if dataset not in labels:
        shown = ", ".join(map(repr, labels[:5].tolist())) + (", ..." if len(labels) > 5 else "")
        raise KeyError(f"dataset: there is no data set {dataset!r}; the result has {shown}")
    return group.sel({DATASET_DIM: dataset})


def _of_what_exists(group: xr.Dataset, variable: DataVariable, mask: xr.DataArray | None, *, whole: bool) -> xr.Dataset:
    """Leave out missing values of a variable, in the dtype that it has without them.

    Where some are, its axes become one, with the positions of what is there: other variables may have their gaps
    elsewhere along the same dimensions.
    """
    values, name = group[variable.name], variable.name
    if mask is not None and bool(mask.any()):
        axes = [d for d in mask.dims if d in values.dims]
        present = ~mask.any([d for d in mask.dims if d not in axes])
        flat = f"{name}_present"
        lead = [d for d in values.dims if d not in axes]
        index = np.flatnonzero(present.transpose(*axes).to_numpy())
        array = values.transpose(*lead, *axes).to_numpy()
        array = array.reshape(*array.shape[: len(lead)], -1)[..., index]
        coords = {d: values.coords[d] for d in lead if d in values.coords} | {flat: index}
        values = xr.DataArray(array, dims=[*lead, flat], coords=coords, attrs=values.attrs)
        group = group.drop_vars(name)
    if whole and values.dtype != np.dtype(variable.dtype) and not values.isnull().any():
        values = values.astype(variable.dtype)
    return group.assign({name: values})
