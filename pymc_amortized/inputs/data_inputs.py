"""A model's data as networks see them, by the model's variables and the structure of its axes alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.axes import Axis, Structure
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
        largest = spec.largest
        arrays = [
            ArrayLayout(
                v.name, v.shape_at(largest), v.kind, _axis_names(v, axes), v.missing, given=v.role != "observed"
            )
            for v in (*spec.data, *_companions(spec, self.structure))
        ]
        used = {name for array in arrays for name in array.axes}
        return DataLayout(tuple(arrays), tuple(_axis_layout(spec, a) for a in axes if a.name in used))

    def __call__(self, datasets: DataSets) -> dict[str, Any]:
        """Return what varies between data sets, and arrays of the model that belong to rows.

        Returns
        -------
        dict
            ``data``: name -> (n, *shape), NaN where a value is missing. ``sizes``: name of an axis -> (n,).
        """
        data = {v.name: _with_gaps(v, datasets) for v in self.spec.data}
        for v in _companions(self.spec, self.structure):
            held = self.spec.held[v.name]
            data[v.name] = np.broadcast_to(held, (len(datasets), *held.shape))
        return {"data": data, "sizes": datasets.lengths}


def _with_gaps(variable: DataVariable, datasets: DataSets) -> np.ndarray:
    values = datasets.values[variable.name]
    if not variable.missing:
        return values
    return np.where(datasets.missing[variable.name], np.nan, values.astype("float64", copy=False))


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
        axis.name, length, kind, sized=sized, index=axis.index, groups=axis.groups, coupled=axis.independent is False
    )


def _companions(spec: ModelSpec, structure: Structure) -> list[DataVariable]:
    """Arrays that are the same for all data sets and tell rows apart where their order does not."""
    rows = [axis for axis in _named_axes(spec, structure) if axis.kind in ("exchangeable", "grouped")]
    carriers = [pair[0] for axis in rows for pair in axis.carriers]
    return [v for v in spec.unchanging if carriers.count(v.name) == 1]
