"""Which arrays go into which branch: the user's choice where it fits, the structure of the data elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymc_amortized.networks.encoding.layout import AxisLayout, DataLayout
from pymc_amortized.networks.summary import options as opt
from pymc_amortized.networks.summary.branch import Branch
from pymc_amortized.networks.summary.flat import FlatBranch
from pymc_amortized.networks.summary.grid import GridBranch
from pymc_amortized.networks.summary.grouped import GroupedBranch
from pymc_amortized.networks.summary.join import EncodedArray, Join, Whole
from pymc_amortized.networks.summary.sequences import SequenceBranch, TransformerBranch
from pymc_amortized.networks.summary.sets import SetBranch, SetTransformerBranch

__all__ = ["check_fit", "make_branches", "structural_joins"]

SHORT = 8  # steps; in a shorter series every value has a meaning of its own

# The kind of axis that each choice is made for; without one in the data it takes any.
_MADE_FOR: dict[type[opt.Options], str] = {
    opt.Set: "set",
    opt.SetTransformer: "set",
    opt.Sequence: "sequence",
    opt.Transformer: "sequence",
}


@dataclass(frozen=True)
class _Plan:
    """One branch: its network, its axes, and the arrays joined along them."""

    options: opt.Options
    axes: tuple[AxisLayout, ...]
    arrays: tuple[EncodedArray, ...]


def check_fit(layout: DataLayout, options: opt.Options) -> None:
    """Refuse a choice that the data have no axis for."""
    kinds = [[layout.axis(name).kind for name in array.axes if name is not None] for array in layout.arrays]
    name = type(options).__name__
    if type(options) in _MADE_FOR and not any(kinds):
        raise ValueError(f"summary {name} needs data with a named axis; the data have {layout}")
    if isinstance(options, opt.Grid) and not any(kind.count("sequence") >= 2 for kind in kinds):
        raise ValueError(f"summary Grid needs an array with two sequence axes; the data have {layout}")
    if isinstance(options, opt.Grouped) and not any(_grouped(axis) for axis in layout.axes):
        raise ValueError(f"summary Grouped needs a groups axis or an index of groups; the data have {layout}")


def _grouped(axis: AxisLayout) -> bool:
    return axis.kind == "groups" or axis.index is not None


def _chosen_axis(array: EncodedArray, layout: DataLayout, options: opt.Options) -> AxisLayout | None:
    """The axis of an array that the user's choice applies to."""
    kind = _MADE_FOR.get(type(options))
    if kind is None:
        return None
    axes = [layout.axis(name) for name in array.axes if name is not None]
    if any(axis.kind == kind for axis in layout.axes):
        axes = [axis for axis in axes if axis.kind == kind]
    return next(iter(axes), None)


def _primary(array: EncodedArray, layout: DataLayout) -> tuple[AxisLayout, ...]:
    """The axes along which an array is seen, by the structure of the data."""
    axes = [layout.axis(name) for name in array.axes if name is not None]
    sets = [axis for axis in axes if axis.kind == "set"]
    for axis in axes:
        if axis.kind == "groups":
            return (axis, *sets[:1])
    sets.sort(key=lambda axis: axis.index is None)
    return tuple(sets[:1] or axes[:2])


def _structural(axes: tuple[AxisLayout, ...]) -> opt.Options:
    """The network that the structure asks for."""
    if any(_grouped(axis) for axis in axes):
        return opt.Grouped()
    if len(axes) == 2:
        return opt.Grid()
    if axes[0].kind == "set":
        return opt.Set()
    return opt.Sequence() if axes[0].length >= SHORT else opt.Flat()


def _plans(arrays: Sequence[EncodedArray], layout: DataLayout, options: opt.Options) -> list[_Plan]:
    named = [array for array in arrays if any(array.axes)]
    if not named or isinstance(options, opt.Flat):
        return [_Plan(options if isinstance(options, opt.Flat) else opt.Flat(), (), tuple(arrays))]
    seen: dict[tuple[AxisLayout, ...], list[EncodedArray]] = {}
    chosen: dict[tuple[AxisLayout, ...], opt.Options] = {}
    for array in named:
        forced = _chosen_axis(array, layout, options)
        axes = _primary(array, layout) if forced is None else (forced,)
        seen.setdefault(axes, []).append(array)
        if forced is not None:
            chosen[axes] = options
    _absorb(seen)
    plans = []
    for axes, members in seen.items():
        own = chosen.get(axes) or _structural(axes)
        plans.append(_Plan(options if type(own) is type(options) else own, axes, tuple(members)))
    return plans


def _absorb(seen: dict[tuple[AxisLayout, ...], list[EncodedArray]]) -> None:
    """Arrays whose axes all belong to a larger branch join it."""
    for axes in sorted(seen, key=len):
        for other in [o for o in seen if len(o) > len(axes) and set(axes) < set(o)]:
            names = {axis.name for axis in other}
            moving = [array for array in seen[axes] if {a for a in array.axes if a} <= names]
            seen[other] += moving
            seen[axes] = [array for array in seen[axes] if array not in moving]
    for axes in [axes for axes, members in seen.items() if not members]:
        del seen[axes]


def make_branches(
    arrays: Sequence[EncodedArray], layout: DataLayout, options: opt.Options, dim: int
) -> tuple[list[Branch], Whole]:
    """Build the branches, and what joins the arrays that belong to none of them."""
    plans = _plans(arrays, layout, options)
    inside = {array.name for plan in plans for array in plan.arrays}
    axes = {a.name for plan in plans if not isinstance(plan.options, opt.Flat) for a in plan.axes}
    hidden = [axis for axis in layout.axes if axis.sized and axis.name not in axes]
    whole = Whole([array for array in arrays if array.name not in inside], hidden)
    return [_branch(plan, layout, whole, dim) for plan in plans], whole


def structural_joins(arrays: Sequence[EncodedArray], layout: DataLayout) -> list[Join]:
    """Join arrays as the structure of the data asks for, whatever summarizes them."""
    nothing = Whole((), ())
    return [Join(plan.arrays, plan.axes, layout, nothing) for plan in _plans(arrays, layout, opt.Auto())]


def _branch(plan: _Plan, layout: DataLayout, whole: Whole, dim: int) -> Branch:
    options, axes, arrays = plan.options, plan.axes, plan.arrays
    match options:
        case opt.Flat():
            return FlatBranch(Join(arrays, (), layout, whole), dim)
        case opt.Set():
            return SetBranch(Join(arrays, axes, layout, whole), options)
        case opt.SetTransformer():
            return SetTransformerBranch(Join(arrays, axes, layout, whole), options)
        case opt.Sequence():
            return SequenceBranch(Join(arrays, axes, layout, whole), options, dim)
        case opt.Transformer():
            return TransformerBranch(Join(arrays, axes, layout, whole), options, dim)
        case opt.Grid():
            return GridBranch(Join(arrays, axes, layout, whole), options, dim)
        case opt.Grouped():
            index = axes[0].index
            arrays = tuple(array for array in arrays if array.name != index)
            groups = axes[0].groups if index is not None else axes[0].length
            return GroupedBranch(Join(arrays, axes, layout, whole), options, dim, index, groups)
    raise TypeError(f"no branch for {type(options).__name__}")
