"""Kinds of axes, and what is known about those of a model's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Literal, get_args

from pymc_amortized.numerics.sampling.symmetry import Symmetries

AxisKind = Literal["exchangeable", "sequence", "grouped", "features"]
UserKind = str | Sequence[str]
"""What a user says of a variable: the kind of its first axis, the kinds of all of its axes, or "flat"."""
KINDS: tuple[str, ...] = get_args(AxisKind)
FLAT = "flat"


@dataclass(frozen=True)
class Axis:
    """One axis of the data, and every array that carries it.

    Attributes
    ----------
    name : str
        Its dim where there is one, else for example "y[0]".
    length : int
        At the model's own size; the largest where it varies.
    smallest : int or None
        The smallest length, where it varies.
    kind : {"exchangeable", "sequence", "grouped", "features"}
        "exchangeable": rows can be permuted, jointly in all carriers. "grouped": they can be permuted jointly with
        free variables, or `index` maps them to groups. "sequence": the order matters. "features": none of these.
    carriers : tuple of (str, int)
        Arrays and which of their axes it is: observed first, then context, fixed, constants.
    reason : str
        Why, with the numbers it rests on.
    independent : bool or None
        Whether rows are independent given the parameters; None where that could not be tested.
    index : str or None
        The integer array that maps rows to groups.
    groups : int
        How many groups `index` tells apart.
    """

    name: str
    length: int
    kind: AxisKind
    carriers: tuple[tuple[str, int], ...]
    reason: str
    independent: bool | None = None
    index: str | None = None
    groups: int = 0
    smallest: int | None = None

    def __str__(self) -> str:
        """Return a line like "obs (30, exchangeable; x, y): why"."""
        ranks = [name if axis == 0 else f"{name}[axis {axis}]" for name, axis in self.carriers]
        rows = {True: "; independent given the parameters", False: "; not independent given the parameters", None: ""}
        length = self.length if self.smallest is None else f"{self.smallest} to {self.length}"
        return f"{self.name}: {length}, {self.kind} ({', '.join(ranks)}): {self.reason}{rows[self.independent]}"


@dataclass(frozen=True)
class Factor:
    """Blocks of free variables that are independent of each other, given the parameters.

    Attributes
    ----------
    names : tuple of str
        Variables whose values are in each block.
    number, smallest, largest : int
        Of blocks, and of values in one.
    given : tuple of str
        The parameters.
    """

    names: tuple[str, ...]
    number: int
    smallest: int
    largest: int
    given: tuple[str, ...]

    @property
    def values(self) -> str:
        """How many values a block has, in words."""
        if self.largest == 1:
            return "one value"
        return f"{self.smallest if self.smallest == self.largest else f'{self.smallest} to {self.largest}'} values"

    def __str__(self) -> str:
        what, given = " and ".join(self.names), ", ".join(self.given)
        if self.number == 1:
            return f"{what}: {self.values} that depend on each other, given {given}"
        return f"{what}: {self.number} groups of {self.values}, independent of each other given {given}"


@dataclass(frozen=True)
class Structure:
    """What the axes of the data are.

    Attributes
    ----------
    axes : tuple of Axis
        Every axis of an observed variable that has at least two entries, each once.
    shapes : dict of str to tuple of int
        Of all arrays.
    symmetries : Symmetries or None
        Maps of the unconstrained parameters that leave every posterior as it is.
    symmetric : tuple of str
        What these swap and mirror.
    factors : tuple of Factor
        Which free variables fall into groups that are independent of each other, given the parameters.
    """

    axes: tuple[Axis, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    symmetries: Symmetries | None = None
    symmetric: tuple[str, ...] = ()
    factors: tuple[Factor, ...] = ()

    def axes_of(self, name: str) -> tuple[Axis | None, ...]:
        """Return what each axis of an array is; None for plain features.

        Raises
        ------
        KeyError
            There is no such array.
        """
        if name not in self.shapes:
            raise KeyError(f"no array is named {name!r}; there are {sorted(self.shapes)}")
        special = {pair: axis for axis in self.axes if axis.kind != "features" for pair in axis.carriers}
        return tuple(special.get((name, i)) for i in range(len(self.shapes[name])))

    @property
    def rows(self) -> Axis | None:
        """The first axis whose entries are exchangeable, and independent given the parameters."""
        return next((axis for axis in self.axes if axis.kind == "exchangeable" and axis.independent), None)

    def with_ranges(self, ranges: Mapping[str, tuple[int, int]]) -> Structure:
        """Return the structure with the smallest and largest lengths of axes that vary, by name."""
        axes = tuple(
            replace(axis, smallest=ranges[axis.name][0], length=ranges[axis.name][1]) if axis.name in ranges else axis
            for axis in self.axes
        )
        return replace(self, axes=axes)

    def __str__(self) -> str:
        """Return a line for each axis, each symmetry of the posterior, and each kind of groups."""
        axes = list(map(str, self.axes)) or ["the data have no axis with more than one entry"]
        same = [f"the posterior is symmetric, the log density stays as it is: {moves}" for moves in self.symmetric]
        return "\n".join([*axes, *same, *map(str, self.factors)])

    def _repr_html_(self) -> str:
        return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in str(self).splitlines()) + "</ul>"


def read_kinds(
    shapes: Mapping[str, tuple[int | None, ...]],
    given: Mapping[str, UserKind],
    dims: Mapping[str, Sequence[str | None]] | None = None,
) -> dict[tuple[str, int], AxisKind]:
    """Check what a user says about axes.

    Parameters
    ----------
    shapes : mapping
        Shapes of the observed variables.
    given : mapping
        Kinds by observed variable.
    dims : mapping, optional
        Dims of the observed variables, which messages speak of.

    Returns
    -------
    dict
        Kind of each axis that the user speaks of.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"structure must map names of observed variables to kinds, got {type(given).__name__}")
    said: dict[tuple[str, int], AxisKind] = {}
    for name, kinds in given.items():
        if name not in shapes:
            carriers = [v for v, names in (dims or {}).items() if name in names]
            hint = f"; {name!r} is a dimension of {carriers}: structure={{{carriers[0]!r}: ...}}" if carriers else ""
            raise KeyError(f"structure: no observed variable is named {name!r}; there are {sorted(shapes)}{hint}")
        for axis, kind in enumerate(_kinds_of(name, kinds, len(shapes[name]))):
            said[name, axis] = kind
    return said


def _kinds_of(name: str, kinds: UserKind, ndim: int) -> Sequence[AxisKind]:
    if isinstance(kinds, str) and kinds == FLAT:
        return ["features"] * ndim
    if isinstance(kinds, str):
        kinds = [kinds]
    if not isinstance(kinds, Sequence):
        raise TypeError(f"structure[{name!r}] must be a kind or a sequence of kinds, got {type(kinds).__name__}")
    if len(kinds) > ndim:
        raise ValueError(f"structure[{name!r}]: {len(kinds)} kinds given for {ndim} axes")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"structure[{name!r}]: {kind!r} is no kind of axis; there are {[*KINDS, FLAT]}")
    return kinds  # type: ignore[return-value]
