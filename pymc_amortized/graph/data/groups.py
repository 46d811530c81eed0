"""How many groups a data set has, where no array of the data is as long as their number.

Index arrays count them: the largest index tells how many there are at least. A user may say it, by the name of the dim:
a number, or the labels of all groups, also of those without rows.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.indices import counted_by
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.logs import logger


def dims_of_groups(spec: ModelSpec) -> list[str]:
    """Dims whose length differs, and that no array of the data has."""
    carried = {dim for v in spec.data for dim in v.sized}
    return [r.dim for r in spec.sizes if r.dim not in carried]


def dims_given(spec: ModelSpec) -> list[str]:
    """Dims whose length differs, of which a user may give the length or labels by name: no data have that name."""
    names = {v.name for v in spec.data}
    return [r.dim for r in spec.sizes if r.dim not in names]


def held_groups(spec: ModelSpec) -> dict[str, Any]:
    """Labels of the groups that the model held, or their number."""
    model = spec.model
    held = {dim: model.coords.get(dim) for dim in dims_of_groups(spec)}
    return {dim: model.dim_lengths[dim].get_value() if labels is None else labels for dim, labels in held.items()}


def read_groups(spec: ModelSpec, given: Mapping[str, Any], batched: bool) -> dict[str, np.ndarray]:
    """Numbers of groups, or lengths of other dims, that a user gives: dim -> () or (data sets,)."""
    return {dim: _number(dim, given[dim], batched) for dim in dims_given(spec) if dim in given}


def labels_of_groups(spec: ModelSpec, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Labels of the groups of one data set, where they are given."""
    return {dim: np.asarray(given[dim]) for dim in dims_given(spec) if np.ndim(given.get(dim, 0)) == 1}


def count_groups(spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Number of groups of one data set along each dim that none of its arrays has.

    Raises
    ------
    ValueError
        Nothing tells the number.
    """
    counted, found = counted_by(spec), {}
    for dim in dims_of_groups(spec):
        by = counted.get(dim, {})
        if dim not in arrays and not by:
            raise ValueError(f"observed: say how many there are along {dim!r}, as in {{{dim!r}: 12}}, or give labels")
        numbers = [int(arrays[name].max(initial=-shift - 1)) + shift + 1 for name, shift in by.items()]
        found[dim] = int(arrays[dim]) if dim in arrays else max(numbers)
    return found


def known_groups(spec: ModelSpec, known: DataSets, wanted: DataSets, index: int) -> dict[str, np.ndarray]:
    """Find the place that each wanted entry along a dim has among those known of a data set; -1 where it is new.

    Where both have labels, these tell. Otherwise an index means the same group, and as many entries are the same ones.

    Raises
    ------
    ValueError
        Only those that are wanted have labels.
    """
    places = {}
    counted, dims = counted_by(spec), {dim for p in spec.locals for dim in p.sized if dim}
    for dim in sorted(dims):
        before, number = (int(sets.lengths[dim][index]) for sets in (known, wanted))
        labels, others = (pd.Index(sets.coords[dim]) if dim in sets.coords else None for sets in (known, wanted))
        if others is not None and (labels is None or _are_numbers(labels)) and not _are_numbers(others):
            raise ValueError(
                f"context: {dim!r} has labels, but the result has none: which of its entries are the same ones? Give "
                f"labels to both (posterior.sample({{..., {dim!r}: labels}}))"
            )
        if labels is not None and others is not None and labels.is_unique:
            places[dim] = np.asarray(labels.get_indexer(others))
            if new := [str(label) for label, place in zip(others, places[dim], strict=True) if place < 0]:
                logger.info(
                    "%r: %d of %d labels are not in the result (%s): values of these groups are drawn from their "
                    "prior, given the parameters.",
                    dim,
                    len(new),
                    len(others),
                    ", ".join(new[:5]),
                )
        elif dim in counted or before == number:
            places[dim] = np.where(np.arange(number) < before, np.arange(number), -1)
        else:
            places[dim] = np.full(number, -1)
    return places


def _are_numbers(labels: pd.Index) -> bool:
    """Whether labels are those that say nothing: 0, 1, 2, ..."""
    return np.array_equal(labels, np.arange(len(labels)))


def _number(dim: str, value: Any, batched: bool) -> np.ndarray:
    labels = value.to_numpy() if isinstance(value, xr.DataArray) else np.asarray(value)
    if labels.ndim == 1 and not batched:
        if len(set(labels.tolist())) < len(labels):
            twice = next(label for label, number in Counter(labels.tolist()).items() if number > 1)
            raise ValueError(f"observed[{dim!r}]: the labels of groups must differ, and {twice!r} is there twice")
        return np.asarray(len(labels))
    if labels.dtype.kind not in "iu" or labels.ndim > batched:
        raise TypeError(f"observed[{dim!r}] must be the number of groups, or their labels; got {value!r}")
    return labels
