"""Which arrays go into which branch: the user's choice where it fits, the structure of the data elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from pymc_amortized.networks.encoding.layout import AxisLayout, DataLayout
from pymc_amortized.networks.summary.branch import Arrangement, Branch, Options
from pymc_amortized.networks.summary.join import EncodedArray, Join, Whole

__all__ = ["Auto", "check_fit", "make_branches", "structural_joins"]


@dataclass(frozen=True, kw_only=True)
class Auto(Options):
    """Options of summary networks that are chosen by the structure of the data."""


@dataclass(frozen=True)
class _Plan:
    """One branch: what it is made for, its axes, and the arrays joined along them.

    The user's options are in it where they apply to it whatever its structure.
    """

    arrangement: Arrangement
    axes: tuple[AxisLayout, ...]
    arrays: tuple[EncodedArray, ...]
    chosen: Options | None = None


def check_fit(layout: DataLayout, options: Options) -> None:
    """Refuse a choice that the data have no axis for."""
    kinds = [[layout.axis(name).kind for name in array.axes if name is not None] for array in layout.arrays]
    match options.made_for:
        case "set" | "sequence":
            needed, there = "data with a named axis", any(kinds)
        case "grid":
            needed, there = "an array with two sequence axes", any(kind.count("sequence") >= 2 for kind in kinds)
        case "groups":
            needed, there = "a groups axis or an index of groups", any(map(_is_grouped, layout.axes))
        case "values" | None:
            return
        case unknown:
            raise ValueError(
                f"summary {type(options).__name__} is made_for {unknown!r}; known: {', '.join(get_args(Arrangement))}"
            )
    if not there:
        raise ValueError(f"summary {type(options).__name__} needs {needed}; the data have {layout}")


def _is_grouped(axis: AxisLayout) -> bool:
    return axis.kind == "groups" or axis.index is not None


def _chosen_axis(array: EncodedArray, layout: DataLayout, options: Options) -> AxisLayout | None:
    """The axis of an array that the user's choice applies to: one it is made for; without one in the data, any."""
    kind = options.made_for
    if kind not in ("set", "sequence"):
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


def _arrangement(axes: tuple[AxisLayout, ...]) -> Arrangement:
    """What the structure asks for."""
    if any(map(_is_grouped, axes)):
        return "groups"
    if len(axes) == 2:
        return "grid"
    if axes[0].kind == "set":
        return "set"
    return "sequence" if axes[0].length >= 8 else "values"  # of a shorter series each has a meaning of its own


def _plans(arrays: Sequence[EncodedArray], layout: DataLayout, options: Options) -> list[_Plan]:
    named = [array for array in arrays if any(array.axes)]
    if not named or options.made_for == "values":
        return [_Plan("values", (), tuple(arrays))]
    seen: dict[tuple[AxisLayout, ...], list[EncodedArray]] = {}
    chosen: set[tuple[AxisLayout, ...]] = set()
    for array in named:
        axis = _chosen_axis(array, layout, options)
        axes = _primary(array, layout) if axis is None else (axis,)
        seen.setdefault(axes, []).append(array)
        if axis is not None:
            chosen.add(axes)
    _absorb(seen)
    return [
        _Plan(_arrangement(axes), axes, tuple(members), options if axes in chosen else None)
        for axes, members in seen.items()
    ]


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
    arrays: Sequence[EncodedArray],
    layout: DataLayout,
    options: Options,
    by_arrangement: Mapping[Arrangement, Options],
    dim: int,
) -> tuple[list[Branch], Whole]:
    """Build the branches, and what joins the arrays that belong to none of them.

    Parameters
    ----------
    arrays : sequence of EncodedArray
    layout : DataLayout
    options : Options
        The user's choice.
    by_arrangement : mapping of str to Options
        What the structure of the data is summarized by elsewhere.
    dim : int
        Number of parameters.
    """
    plans = _plans(arrays, layout, options)
    inside = {array.name for plan in plans for array in plan.arrays}
    networks = [
        plan.chosen or (options if options.made_for == plan.arrangement else by_arrangement[plan.arrangement])
        for plan in plans
    ]
    pairs = list(zip(plans, networks, strict=True))
    seen = {axis.name for plan, network in pairs if network.made_for != "values" for axis in plan.axes}
    hidden = [axis for axis in layout.axes if axis.sized and axis.name not in seen]
    whole = Whole([array for array in arrays if array.name not in inside], hidden)
    return [network.make_branch(_join(plan, network, layout, whole), dim) for plan, network in pairs], whole


def _join(plan: _Plan, network: Options, layout: DataLayout, whole: Whole) -> Join:
    """Join the arrays: single values along no axis, rows in groups without the index of these."""
    index = plan.axes[0].index if network.made_for == "groups" else None
    arrays = [array for array in plan.arrays if index is None or array.name != index]
    return Join(arrays, () if network.made_for == "values" else plan.axes, layout, whole)


def structural_joins(arrays: Sequence[EncodedArray], layout: DataLayout) -> list[Join]:
    """Join arrays as the structure of the data asks for, whatever summarizes them."""
    nothing = Whole((), ())
    return [Join(plan.arrays, plan.axes, layout, nothing) for plan in _plans(arrays, layout, Auto())]
