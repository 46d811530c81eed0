"""What the networks are told about the data: arrays, their axes, and what the axes mean.

Arrays that share an axis name it alike. An axis without a name holds plain features: components of one observation,
each with a meaning of its own.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pymc_amortized.numerics.kinds import KINDS

__all__ = ["ArrayLayout", "AxisKind", "AxisLayout", "DataLayout", "mask_name"]

AxisKind = Literal["set", "sequence", "groups"]


@dataclass(frozen=True)
class AxisLayout:
    """One axis that arrays share.

    Parameters
    ----------
    name : str
        What arrays call it.
    length : int
        Its length, the largest where data sets differ.
    kind : {"set", "sequence", "groups"}
        Whether its entries are exchangeable, in an order, or groups with parameters of their own.
    sized : bool
        True if data sets differ in how many entries it has.
    index : str, optional
        For a set whose rows belong to groups: the integer array, with this axis alone, that says to which.
    groups : int
        Number of groups that ``index`` tells apart.
    coupled : bool
        True if entries depend on each other, given the parameters.
    alike : bool
        True for groups of which none has parameters of its own that a network learns.
    """

    name: str
    length: int
    kind: AxisKind
    sized: bool = False
    index: str | None = None
    groups: int = 0
    coupled: bool = False
    alike: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(AxisKind):
            raise ValueError(f"kind of axis {self.name!r} is {self.kind!r}; allowed: {', '.join(get_args(AxisKind))}")
        if self.length < 0:
            raise ValueError(f"length of axis {self.name!r} is {self.length}")
        if self.index is not None and (self.kind != "set" or self.groups < 1):
            raise ValueError(
                f"axis {self.name!r} has an index: it must be a set with at least one group, "
                f"not a {self.kind} with {self.groups}"
            )


@dataclass(frozen=True)
class ArrayLayout:
    """What the encoder has to know of one data array.

    Parameters
    ----------
    name : str
        Name of the variable.
    shape : tuple of int
        Shape in one data set, at the largest sizes.
    kind : str
        What the values are, of :data:`pymc_amortized.numerics.kinds.KINDS`.
    axes : tuple of str or None
        For each axis the name of an :class:`AxisLayout`, or None for plain features; by default all are plain.
    missing : bool
        True if NaN is data: a value that was not observed.
    categories : int
        Number of levels, ``0 .. categories - 1``, of a categorical array; 0 takes it from the simulations.
    given : bool
        True for covariates and other context, False for what is observed.
    statistic : bool
        True for what is known of the other arrays already: it is not joined with them.
    frame : bool
        True for a mean and a whitening matrix, flat, by which parameters are standardized once more in each data set.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    axes: tuple[str | None, ...] = ()
    missing: bool = False
    categories: int = 0
    given: bool = False
    statistic: bool = False
    frame: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(length) for length in self.shape))
        axes = tuple(self.axes) or (None,) * len(self.shape)
        object.__setattr__(self, "axes", axes)
        if self.kind not in KINDS:
            raise ValueError(f"kind of {self.name!r} is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if len(axes) != len(self.shape):
            raise ValueError(f"{self.name!r} has shape {self.shape}, but {len(axes)} axes: {axes}")
        named = [axis for axis in axes if axis is not None]
        if len(set(named)) < len(named):
            raise ValueError(f"{self.name!r} has an axis twice: {axes}")

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape over which statistics are kept: entries of named axes share them."""
        return tuple(length for length, axis in zip(self.shape, self.axes, strict=True) if axis is None)


@dataclass(frozen=True)
class DataLayout:
    """All arrays and the axes they share.

    Parameters
    ----------
    arrays : tuple of ArrayLayout
        In the order in which networks see them.
    axes : tuple of AxisLayout
        The named axes.
    """

    arrays: tuple[ArrayLayout, ...]
    axes: tuple[AxisLayout, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", tuple(self.arrays))
        object.__setattr__(self, "axes", tuple(self.axes))
        for what, names in (("array", [a.name for a in self.arrays]), ("axis", [a.name for a in self.axes])):
            if len(set(names)) < len(names):
                raise ValueError(f"the layout has an {what} twice: {names}")
        lengths = {axis.name: axis.length for axis in self.axes}
        for array in self.arrays:
            for axis, length in zip(array.axes, array.shape, strict=True):
                if axis is not None and lengths.get(axis) != length:
                    known = f"of length {lengths[axis]}" if axis in lengths else "unknown"
                    raise ValueError(f"axis {axis!r} of {array.name!r} has length {length}, but it is {known}")
        for axis_layout in self.axes:
            index = axis_layout.index
            if index is not None and [a.axes for a in self.arrays if a.name == index] != [(axis_layout.name,)]:
                raise ValueError(f"index {index!r} of axis {axis_layout.name!r} must be an array with that axis alone")

    def axis(self, name: str) -> AxisLayout:
        """The axis of that name."""
        return next(axis for axis in self.axes if axis.name == name)

    @property
    def values(self) -> int:
        """How many values a data set has at most."""
        return sum(math.prod(array.shape) for array in self.arrays)

    @property
    def sized(self) -> tuple[str, ...]:
        """Names of the axes whose length differs between data sets."""
        return tuple(axis.name for axis in self.axes if axis.sized)

    def groups_of(self, name: str) -> int:
        """Number of groups that an array tells apart as an index; 0 for any other array."""
        return next((axis.groups for axis in self.axes if axis.index == name), 0)

    def description(self) -> dict[str, Any]:
        """Everything, as JSON."""
        arrays = [asdict(a) | {"shape": list(a.shape), "axes": list(a.axes)} for a in self.arrays]
        return {"arrays": arrays, "axes": [asdict(axis) for axis in self.axes]}

    def __str__(self) -> str:
        axes = [
            f"{axis.kind} axis {axis.name!r}" + (f" with index {axis.index!r}" * (axis.index is not None))
            for axis in self.axes
        ]
        return ", ".join(axes) or "no named axis"


def mask_name(axis: str) -> str:
    """Name under which the encoded data hold the mask of a sized axis."""
    return f"mask:{axis}"
