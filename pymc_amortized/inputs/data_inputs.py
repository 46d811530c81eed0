"""A model's data as networks see them, by the model's variables and the structure of its axes alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.graph.model.indices import counted_by
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.networks import ArrayLayout, AxisLayout, DataLayout
from pymc_amortized.networks.encoding.layout import AxisKind


@dataclass(frozen=True, eq=False)
class DataInputs:
    """From data sets to the arrays that networks are given.

    Attributes
    ----------
    spec : ModelSpec
    structure : Structure
    """

    spec: ModelSpec
    structure: Structure

    @property
    def layout(self) -> DataLayout:
        """Describes the arrays to the networks."""
        spec, axes = self.spec, _named_axes(self.spec, self.structure)
        largest, by_name = spec.largest, {v.name: v for v in spec.data}
        arrays = []
        for v in (*spec.data, *_companions(spec, self.structure)):
            row = by_name[self._by_row[v.name][-1][0]] if v.name in self._by_row else None
            shape, names = v.shape_at(largest), _axis_names(v, axes)
            if row is not None:
                shape, names = row.shape_at(largest) + shape[1:], _axis_names(row, axes) + names[1:]
            arrays.append(ArrayLayout(v.name, shape, v.kind, names, v.missing, given=v.role != "observed"))
        used = {name for array in arrays for name in array.axes}
        return DataLayout(tuple(arrays), tuple(_axis_layout(spec, a) for a in axes if a.name in used))

    @property
    def _by_row(self) -> dict[str, list[tuple[str, int]]]:
        """Covariates of groups, which networks are given row by row: the arrays that tell each row's group, and shifts.

        Of dims whose length differs, and that no observed variable has. Of groups within groups it takes several.
        """
        spec, counted = self.spec, counted_by(self.spec)
        rows, dim_of = {dim for v in spec.observed for dim in v.sized}, {v.name: v.dims[:1] for v in spec.context}
        found: dict[str, list[tuple[str, int]]] = {}
        for v in spec.context:
            path: list[tuple[str, int]] = []
            dims = v.dims[:1]
            while dims and dims[0] in counted and dims[0] not in rows and len(path) < len(counted):
                path.append(next(iter(counted[dims[0]].items())))
                dims = dim_of[path[-1][0]]
            if path:
                found[v.name] = path
        return found

    def __call__(self, datasets: DataSets) -> dict[str, Any]:
        """Return what varies between data sets, and arrays of the model that belong to rows.

        Returns
        -------
        dict
            ``data``: name -> (n, *shape), NaN where a value is missing. ``sizes``: name of an axis -> (n,).
        """
        data = {v.name: _with_gaps(v, datasets) for v in self.spec.data}
        for name, path in self._by_row.items():
            for by, shift in path:
                data[name] = _picked(data[name], datasets.values[by], shift)
        for v in _companions(self.spec, self.structure):
            held = self.spec.held[v.name]
            data[v.name] = np.broadcast_to(held, (len(datasets), *held.shape))
        return {"data": data, "sizes": datasets.lengths}


def _with_gaps(variable: DataVariable, datasets: DataSets) -> np.ndarray:
    values = datasets.values[variable.name]
    if not variable.missing:
        return values
    return np.where(datasets.missing[variable.name], np.nan, values.astype("float64", copy=False))


def _picked(values: np.ndarray, index: np.ndarray, shift: int) -> np.ndarray:
    """For each row the value (n, rows, ...) of its group, from those of groups (n, groups, ...)."""
    places = np.clip(index + shift, 0, values.shape[1] - 1)
    return np.take_along_axis(values, places.reshape(*places.shape, *[1] * (values.ndim - 2)), axis=1)


def _named_axes(spec: ModelSpec, structure: Structure) -> list[Axis]:
    """Axes that mean more to a network than a number of features: each length that varies does."""
    named = []
    for axis in structure.axes:
        carriers = [name for name, _ in axis.carriers]
        twice = sorted({name for name in carriers if carriers.count(name) > 1})
        if axis.name in spec.largest:
            if twice:
                raise ValueError(
                    f"context: {twice} have the dimension {axis.name!r} twice, which cannot vary in length"
                )
            named.append(axis)
        elif axis.kind != "features" and not twice:  # a matrix over the rows tells them apart: places are kept
            named.append(axis)
    return named


def _axis_names(variable: DataVariable, axes: list[Axis]) -> tuple[str | None, ...]:
    carried = {i: axis.name for axis in axes for name, i in axis.carriers if name == variable.name}
    return tuple(carried.get(i) for i in range(len(variable.shape)))


def _axis_layout(spec: ModelSpec, axis: Axis) -> AxisLayout:
    ranges = {r.dim: r for r in spec.sizes}
    sized = axis.name in ranges
    kinds: dict[str, AxisKind] = {"exchangeable": "set", "grouped": "groups"}
    kind = kinds.get(axis.kind, "sequence")
    if axis.index is not None:
        kind = "set"
    length = ranges[axis.name].largest if sized else axis.length
    return AxisLayout(
        axis.name,
        length,
        kind,
        sized=sized,
        index=axis.index,
        groups=axis.groups,
        coupled=axis.independent is False,
        alike=bool(spec.locals),
    )


def _companions(spec: ModelSpec, structure: Structure) -> list[DataVariable]:
    """Arrays that are the same for all data sets and tell rows apart where their order does not."""
    rows = [axis for axis in _named_axes(spec, structure) if axis.kind in ("exchangeable", "grouped")]
    carriers = [pair[0] for axis in rows for pair in axis.carriers]
    return [v for v in spec.unchanging if carriers.count(v.name) == 1]
