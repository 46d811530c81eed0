"""Data sets cut into their groups: each group of a plate becomes a data set of its own.

A plate is a dim of free variables, such as schools. An index array over the rows tells the group of each: by it rows
belong to groups, and classes to schools. Given the parameters, groups are independent of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.axes import Factor
from pymc_amortized.graph.model.indices import counted_by
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.structure.clues import event_axes


@dataclass(frozen=True)
class Plate:
    """A dim of free variables, with all that belongs to its groups.

    Attributes
    ----------
    dim : str
    spec : ModelSpec
        Of all groups.
    parents : dict of str to (str, str, int)
        For each dim below it, such as that of its rows: the dim that it belongs to, the index array that says to which
        entry, and what is added to its values.
    """

    dim: str
    spec: ModelSpec
    parents: Mapping[str, tuple[str, str, int]] = field(default_factory=dict)

    @property
    def of_group(self) -> ModelSpec:
        """Of one group: its values are the parameters, those of plates below it are the locals."""
        spec, inside = self.spec, {self.dim, *self.parents}
        kept = self._own
        one = {v.name: replace(v, shape=tuple(1 if d == self.dim else n for n, d in self._axes(v))) for v in kept}
        sizes = tuple(
            Range(r.dim, 0 if r.dim in inside else r.smallest, r.largest)
            for r in spec.sizes
            if r.dim != self.dim and (r.dim in inside or any(r.dim in v.sized for v in kept))
        )
        return replace(
            spec,
            parameters=tuple(p.at({self.dim: 1}) for p in spec.locals if self.dim in p.sized),
            locals=tuple(p for p in spec.locals if {*p.sized} & {*self.parents}),
            nuisance=(),
            observed=tuple(one[v.name] for v in spec.observed if v.name in one),
            context=tuple(one[v.name] for v in spec.context if v.name in one),
            sizes=sizes,
        )

    @property
    def _own(self) -> list[DataVariable]:
        """Data that belong to groups, and covariates that all groups share; without the index that tells them apart."""
        inside = {self.dim, *self.parents}
        observed = [v for v in self.spec.observed if inside.intersection(v.sized)]
        along = inside.union(*(v.sized for v in observed))
        return observed + [c for c in self.spec.context if c.name not in self.picks and along.issuperset(c.sized)]

    @property
    def picks(self) -> list[str]:
        """Index arrays that tell its groups apart."""
        return [index for parent, index, _ in self.parents.values() if parent == self.dim]

    @staticmethod
    def _axes(variable: DataVariable) -> list[tuple[int | None, str | None]]:
        dims = variable.dims or (None,) * len(variable.shape)
        return list(zip(variable.shape, dims, strict=True))

    @property
    def all_plates(self) -> list[Plate]:
        """The plate itself, and those of free values within it."""
        dims = {d for p in self.of_group.locals for d in p.sized if d}
        return [self, *(replace(self, dim=dim, parents=_below(dim, self.parents)) for dim in sorted(dims))]

    def cut(self, datasets: DataSets) -> Groups:
        """Cut data sets into groups, in the order of data sets and of groups within each."""
        numbers = datasets.lengths[self.dim]
        first = np.cumsum(numbers) - numbers
        group, place = {self.dim: first[:, None] + np.arange(max(numbers.max(initial=0), 1))}, {}
        place[self.dim] = np.zeros_like(group[self.dim])
        owner = np.repeat(np.arange(len(datasets)), numbers)
        found = Groups(owner, group, place, datasets.lengths, {}, datasets)
        for dim in self._in_order():
            parent, index, shift = self.parents[dim]
            picked = _within(datasets.values[index] + shift, group[parent].shape[1])
            group[dim], place[dim] = np.take_along_axis(group[parent], picked, axis=1), np.zeros_like(picked)
            there = found.there(dim)
            place[dim][there], found.counts[dim] = _places(group[dim][there], len(found.owner))
        own, values, missing = self.of_group, {}, {}
        for v in own.data:
            values[v.name] = found.cut(self._renumbered(v.name, datasets, place), v.dims)
            if v.missing:
                missing[v.name] = found.cut(datasets.missing[v.name], v.dims)
        lengths = {r.dim: datasets.lengths[r.dim][found.owner] for r in own.sizes} | found.counts
        made = DataSets(values, np.arange(len(found.owner)), True, lengths, missing)
        return replace(found, datasets=made)

    def _in_order(self) -> list[str]:
        """Dims below the plate, each after the one that it belongs to."""
        found: list[str] = []
        while len(found) < len(self.parents):
            found += [d for d, (p, *_) in self.parents.items() if d not in found and p in (self.dim, *found)]
        return found

    def _renumbered(self, name: str, datasets: DataSets, place: Mapping[str, np.ndarray]) -> np.ndarray:
        """Values of a variable; those that pick entries of a dim below count these within their group."""
        values = datasets.values[name]
        for parent, index, shift in self.parents.values():
            if index == name:
                picked = _within(values + shift, place[parent].shape[1])
                return (np.take_along_axis(place[parent], picked, axis=1) - shift).astype(values.dtype)
        return values


@dataclass(frozen=True)
class Groups:
    """Groups of data sets, and where each of their entries stands in the whole.

    Attributes
    ----------
    owner : ndarray of int (groups,)
        Of each group, the data set that it is of.
    group, place : dict of str to ndarray of int (data sets, largest)
        For the dim of the plate, and each below it: the group of each entry, and its place there.
    lengths : dict of str to ndarray of int (data sets,)
        Of the whole data sets.
    counts : dict of str to ndarray of int (groups,)
        How many entries of each dim below the plate belong to a group.
    datasets : DataSets
        One for each group.
    """

    owner: np.ndarray
    group: Mapping[str, np.ndarray]
    place: Mapping[str, np.ndarray]
    lengths: Mapping[str, np.ndarray]
    counts: dict[str, np.ndarray]
    datasets: DataSets

    def there(self, dim: str) -> np.ndarray:
        """Mark entries (data sets, largest) along a dim that exist."""
        return np.arange(self.group[dim].shape[1]) < self.lengths[dim][:, None]

    def cut(self, array: np.ndarray, dims: Sequence[str | None]) -> np.ndarray:
        """Cut an array (data sets, *shape) along the axis that belongs to groups, if it has one: (groups, ...)."""
        axis = self._axis(dims)
        if axis is None:
            return array[self.owner]
        dim = dims[axis - 1]
        assert dim is not None
        there = self.there(dim)
        moved, group, place = np.moveaxis(array, axis, 1), self.group[dim][there], self.place[dim][there]
        cut = np.zeros((len(self.owner), max(place.max(initial=0) + 1, 1), *moved.shape[2:]), dtype=array.dtype)
        cut[group, place] = moved[:, : there.shape[1]][there]
        return np.moveaxis(cut, 1, axis)

    def joined(self, array: np.ndarray, dims: Sequence[str | None]) -> np.ndarray:
        """Put an array (groups, ...) together again along its axis that belongs to groups; NaN beyond the ends."""
        axis = self._axis(dims)
        assert axis is not None
        dim, moved = dims[axis - 1], np.moveaxis(array, axis, 1)
        assert dim is not None
        there = self.there(dim)
        whole = np.full((*there.shape, *moved.shape[2:]), np.nan)
        whole[there] = moved[self.group[dim][there], self.place[dim][there]]
        return np.moveaxis(whole, 1, axis)

    def _axis(self, dims: Sequence[str | None]) -> int | None:
        return next((i for i, dim in enumerate(dims, 1) if dim in self.group), None)


def _within(index: np.ndarray, length: int) -> np.ndarray:
    """Return indices as such, also those of entries beyond the length of a data set."""
    return np.clip(index, 0, length - 1).astype(int)


def _places(group: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Count entries within their group: the place of each, in their order, and how many each group has."""
    counts = np.bincount(group, minlength=number)
    order = np.argsort(group, kind="stable")
    places = np.empty_like(group)
    places[order] = np.arange(len(group)) - (np.cumsum(counts) - counts)[group[order]]
    return places, counts


def find_plates(spec: ModelSpec) -> tuple[Plate, ...]:
    """Find the plates of a model by its index arrays, those of a plate within another as a part of that.

    Raises
    ------
    ValueError
        Groups overlap: rows pick from two plates, or values belong to two.
    """
    dims = {d for p in spec.locals for d in p.sized if d}
    for p in spec.locals:
        axis, *more = [i for i, d in enumerate(p.sized) if d]
        if more or axis in event_axes(spec, p.name) or p.unconstrained_shape != p.shape or p.transform == "ordered":
            raise ValueError(not_independent(spec, f"the values of {p.name!r}", f"along {p.sized[axis]!r}"))
    parents: dict[str, tuple[str, str, int]] = {}
    for parent, by in counted_by(spec).items():
        for index, shift in by.items():
            (dim, *others) = next(v for v in spec.context if v.name == index).sized or (None,)
            if parent not in dims or others:
                continue
            if dim is None:
                raise ValueError(
                    f"context: {index!r} puts rows into groups along {parent!r}, so that their number differs between "
                    "groups: give the dim of the rows a range too, as in context={'row': (smallest, largest)}"
                )
            if dim in parents or dim == parent:
                several = sorted({index, parents[dim][1] if dim in parents else index})
                raise ValueError(not_independent(spec, f"rows along {dim!r}", f"which {several} put into groups twice"))
            parents[dim] = (parent, index, shift)
    plates = tuple(Plate(dim, spec, _below(dim, parents)) for dim in sorted(dims) if dim not in parents)
    for plate in plates:
        twice = [v.name for v in spec.data if len({plate.dim, *plate.parents}.intersection(v.sized)) > 1]
        if twice or not plate.of_group.observed:
            raise ValueError(
                not_independent(spec, f"the data {twice or [v.name for v in spec.observed]}", f"by {plate.dim!r}")
            )
    inside = dims.union(parents)
    if hidden := [p.name for p in spec.nuisance if inside.isdisjoint(p.sized)]:
        raise ValueError(
            f"parameters: values of groups, {[p.name for p in spec.locals]}, are drawn given all that groups have in "
            f"common, but {hidden} are left out: name them, too"
        )
    return plates


def factors_of_plates(spec: ModelSpec) -> tuple[Factor, ...]:
    """Say which values belong to each plate, at the largest lengths."""
    found, given = [], tuple(p.name for p in spec.parameters)
    for plate in find_plates(spec):
        own, below = plate.of_group.parameters, plate.of_group.locals
        size, more = sum(p.size for p in own), plate.of_group.number_of_locals(spec.largest)
        names = tuple(p.name for p in (*own, *below))
        found.append(Factor(names, spec.largest[plate.dim], size, size + more, given))
    return tuple(found)


def not_independent(spec: ModelSpec, what: str, how: str) -> str:
    """Say why a model is refused."""
    return (
        f"context: {what} do not fall into independent groups, {how}, and there is no density that tells how they "
        f"depend on each other: {spec.density_obstacle}. Leave the dimension out of context="
    )


def _below(dim: str, parents: Mapping[str, tuple[str, str, int]]) -> dict[str, Any]:
    own = {d: entry for d, entry in parents.items() if entry[0] == dim}
    return {k: v for d in own for k, v in _below(d, parents).items()} | own
