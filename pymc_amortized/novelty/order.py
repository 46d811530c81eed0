r"""Data sets in an order that is random, and yet the same whatever order they came in.

What a model does not tell apart, novelty must not tell apart either: the same rows, sorted, are as likely as in any
other order. Networks and statistics see positions nevertheless: of neighbours, of values in a branch for few of them,
of columns. So data sets, and the simulations that they are compared with, are first brought into an order of their
own: rows are sorted by a hash of what they hold, then put into the permutation that a random number generator draws
whose seed is a hash of all rows. Of what is exchangeable this changes no distribution; and two data sets that differ in
order alone become one.

Each axis is moved in all the data that carry it at once. Rows at which arrays differ that are the same for all data
sets (covariates that the model holds fixed) keep to their places: only those with the same values change theirs.
Where entries are independent along a second axis as well, each of its slices has an order of its own. The hash of a row
does not depend on the order along other axes: it is a sum over these, refined once by the hashes of what it meets there
(Weisfeiler & Leman 1968), which tells apart what random rows and columns can be told apart by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets, outside_of
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.structure.unread import unread_entries

ODD = np.uint64(0x9E3779B97F4A7C15)
"""Steps of the generator: 2^64 over the golden ratio (SplitMix64: Steele, Lea & Flood 2014)."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Movable:
    """Places along one or several axes that the order of data means nothing in.

    Attributes
    ----------
    carriers : dict of str to tuple of int
        Data that have them, and which of their axes they are: several, where entries change places in all directions.
    classes : ndarray (length,)
        Integers: entries of one class can change places.
    dim : str or None
        Of the axis, where its length differs between data sets.
    slices : dict of str to tuple of int
        Further axes of the same data, at each entry of which these entries change places by themselves.
    """

    carriers: dict[str, tuple[int, ...]]
    classes: np.ndarray
    dim: str | None = None
    slices: dict[str, tuple[int, ...]] = field(default_factory=dict)


def movable_axes(spec: ModelSpec, structure: Structure) -> list[Movable]:
    """Find the axes of the data along which order means nothing; what moves in several ways comes first."""
    data, sized = {v.name for v in spec.data}, set(spec.largest)
    found: list[Movable] = []
    for axis in structure.axes:
        names = [name for name, _ in axis.carriers]
        if axis.kind not in ("exchangeable", "grouped") or len(set(names)) < len(names):
            continue
        carriers: dict[str, tuple[int, ...]] = {name: (i,) for name, i in axis.carriers if name in data}
        held = [np.moveaxis(spec.held[name], i, 0) for name, i in axis.carriers if name not in data]
        classes = _classes(held, axis.length)
        if len(np.unique(classes)) < axis.length:
            dim = axis.name if axis.name in sized else None
            found += [Movable(carriers, classes, dim), *_by_slices(axis, Movable(carriers, classes, dim), structure)]
    return sorted(found, key=lambda movable: (not movable.slices, -len(next(iter(movable.carriers.values())))))


def _classes(held: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Which entries of an axis arrays (length, ...) do not tell apart."""
    if not held:
        return np.zeros(length, dtype=int)
    flat = np.concatenate([values.reshape(len(values), -1) for values in held], axis=1).astype(float)
    return np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1)


def _by_slices(axis: Axis, movable: Movable, structure: Structure) -> Iterator[Movable]:
    """Where the density is a sum over this axis and over others of the same data, entries move in each slice of these.

    Or in all directions, where these are exchangeable by themselves too, and nothing tells their entries apart.
    """
    if axis.independent is not True or not _alone(axis):
        return
    names = list(movable.carriers)
    carried = [(o, dict(o.carriers)) for o in structure.axes if o is not axis and o.independent]
    others = [(o, own) for o, own in carried if own.keys() >= movable.carriers.keys()]
    plain = not movable.classes.any() and movable.dim is None
    same = [own for o, own in others if plain and _alone(o) and own.keys() == movable.carriers.keys()]
    slices = [own for _, own in others if own not in same]
    if others:
        together = {name: (*movable.carriers[name], *(own[name] for own in same)) for name in names}
        length = axis.length * math.prod(structure.shapes[names[0]][own[names[0]]] for own in same)
        classes = np.zeros(length, dtype=int) if same else movable.classes
        yield Movable(together, classes, movable.dim, {name: tuple(own[name] for own in slices) for name in names})


def _alone(axis: Axis) -> bool:
    """Whether rows can change places without any parameters."""
    return axis.kind == "exchangeable" or (axis.kind == "grouped" and axis.index is not None)


class AnyOrder:
    """Brings data sets into an order of their own, without the entries of their context that the model never reads.

    Parameters
    ----------
    spec : ModelSpec
    structure : Structure
    """

    def __init__(self, spec: ModelSpec, structure: Structure) -> None:
        self.spec = spec
        found = movable_axes(spec, structure)
        self.entries = [m for m in found if m.slices]
        self.axes = [m for m in found if not m.slices]
        self.unread = unread_entries(spec)

    def __call__(self, datasets: DataSets) -> DataSets:
        """Return the data sets with everything moved along the axes whose order means nothing."""
        values, missing = dict(datasets.values), dict(datasets.missing)
        for name, unread in self.unread.items():
            absent = unread[tuple(map(slice, values[name].shape[1:]))]
            values[name] = np.where(absent, np.zeros((), values[name].dtype), values[name])
        if not self.axes or not len(datasets):
            return replace(datasets, values=values, extra=None)
        for movable in self.entries:
            hashed = self._hashed(values, missing, datasets.lengths)
            self._move_entries(movable, hashed, (values, missing), datasets.lengths)
        colors = _colors(self._hashed(values, missing, datasets.lengths), self.axes)
        orders = [_order(hashes, m, datasets.lengths) for m, hashes in zip(self.axes, colors, strict=True)]
        for movable, order in zip(self.axes, orders, strict=True):
            for name, (own,) in movable.carriers.items():
                for arrays in (part for part in (values, missing) if name in part):
                    index = _along(order, 1 + own, arrays[name].ndim)
                    arrays[name] = np.take_along_axis(arrays[name], index, 1 + own)
        return replace(datasets, values=values, missing=missing, extra=None)

    def _move_entries(
        self, movable: Movable, hashed: Arrays, arrays: Sequence[dict[str, np.ndarray]], lengths: Arrays
    ) -> None:
        """Move entries in each slice by itself."""
        folds = {name: _Fold(hashed[name].shape, movable.slices[name], own) for name, own in movable.carriers.items()}
        folded = {name: fold(hashed[name]) for name, fold in folds.items()}
        alone = replace(movable, carriers=dict.fromkeys(folds, (0,)))
        (colors,) = _colors(folded, [alone])
        times = len(colors) // len(next(iter(hashed.values())))
        order = _order(colors, alone, {dim: np.repeat(n, times) for dim, n in lengths.items()})
        for name, fold in folds.items():
            for part in (part for part in arrays if name in part):
                values = fold(part[name])
                part[name] = fold.back(np.take_along_axis(values, _along(order, 1, values.ndim), 1))

    def _hashed(self, values: Arrays, missing: Arrays, lengths: Arrays) -> dict[str, np.ndarray]:
        """Hash every value with its place along axes whose order means something; 0 beyond a data set's length."""
        free = {(name, own) for movable in self.axes for name, (own,) in movable.carriers.items()}
        found = {}
        for number, variable in enumerate(self.spec.data):
            name = variable.name
            known = np.array(values[name], dtype=np.float64) + 0.0  # no -0.0
            known = np.where(missing[name], np.nan, known) if name in missing else known
            bits = np.where(np.isnan(known), 0.5, known).view(np.uint64)
            bits = _mixed(bits ^ _mixed(np.isnan(known) + np.uint64(2 * number)))
            for i in (i for i in range(known.ndim - 1) if (name, i) not in free):
                bits = _mixed(bits + _along(_mixed(np.arange(known.shape[1 + i])), 1 + i, known.ndim))
            found[name] = np.where(outside_of(variable, known, lengths), np.uint64(0), bits | np.uint64(1))
        return found


class _Fold:
    """Arrays (n, *shape) -> (n * slices, places, rest), and back."""

    def __init__(self, shape: tuple[int, ...], slices: Sequence[int], places: Sequence[int]) -> None:
        first = [0, *(1 + i for i in slices)]
        middle = [1 + i for i in places]
        self.order = [*first, *middle, *(i for i in range(len(shape)) if i not in (*first, *middle))]
        self.moved = tuple(shape[i] for i in self.order)
        self.folded = math.prod(self.moved[: len(first)]), math.prod(shape[i] for i in middle), -1

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values.transpose(self.order).reshape(self.folded)

    def back(self, folded: np.ndarray) -> np.ndarray:
        """Undo it."""
        return folded.reshape(self.moved).transpose(np.argsort(self.order))


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Mix the bits of integers: the last step of SplitMix64."""
    bits = np.asarray(bits, dtype=np.uint64) + ODD
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Put the last axis of values ([n,] length) at an axis of so many."""
    shape = [1] * ndim
    shape[axis] = values.shape[-1]
    if values.ndim > 1:
        shape[0] = len(values)
    return values.reshape(shape)


def _colors(hashed: Arrays, axes: Sequence[Movable]) -> list[np.ndarray]:
    """Hash every entry of each axis (n, length), whatever the order along the others."""
    colors: list[np.ndarray] = []
    for _ in range(1 if len(axes) == 1 else 3):  # of rows alone, then twice by those of what they meet
        before = colors
        colors = []
        for movable in axes:
            name, (own,) = next(iter(movable.carriers.items()))
            total = _mixed(movable.classes[: hashed[name].shape[1 + own]])[None]
            for name, (own,) in movable.carriers.items():
                bits = hashed[name]
                for other, seen in zip(axes, before, strict=False):
                    if other is not movable and name in other.carriers:
                        bits = np.where(bits > 0, bits + _along(seen, 1 + other.carriers[name][0], bits.ndim), 0)
                bits = np.where(bits > 0, _mixed(bits), np.uint64(0))
                total = total + bits.sum(axis=tuple(i for i in range(1, bits.ndim) if i != 1 + own), dtype=np.uint64)
            colors.append(_mixed(total))
    return colors


def _order(colors: np.ndarray, movable: Movable, lengths: Arrays) -> np.ndarray:
    """Which entry (n, length) comes to each place, by hashes (n, length) of the entries."""
    n, length = colors.shape
    beyond = np.zeros((n, length), dtype=bool)
    if movable.dim is not None:
        beyond = np.arange(length) >= lengths[movable.dim][:, None]
    seeds = np.where(beyond, np.uint64(0), colors).sum(1, dtype=np.uint64)[:, None]
    _, classes, number = np.unique(movable.classes[:length], return_inverse=True, return_counts=True)
    (some,) = np.nonzero(number[classes] > 1)  # the others are alone in their class, and stay
    order = np.tile(np.arange(length), (n, 1))
    order[:, some] = some[_shuffled(colors[:, some], classes[some], beyond[:, some], seeds)]
    return order


def _shuffled(colors: np.ndarray, classes: np.ndarray, beyond: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Shuffle entries within each class (length,), what is beyond the end by itself, by hashes (n, length)."""
    n, length = colors.shape
    keys = _mixed(seeds + ODD * np.arange(length, dtype=np.uint64))
    if not (classes != classes[:1]).any() and not beyond.any():  # a third of the time
        return np.take_along_axis(np.argsort(colors, axis=1), np.argsort(keys, axis=1), 1)
    kinds = np.broadcast_to(classes, (n, length))
    places = np.lexsort((kinds, beyond))
    entries = np.lexsort((colors, kinds, beyond))
    of_places = (np.take_along_axis(part, places, 1) for part in (kinds, beyond))
    drawn = np.lexsort((keys, *of_places))
    order = np.empty((n, length), dtype=int)
    np.put_along_axis(order, places, np.take_along_axis(entries, drawn, 1), 1)
    return order
