"""What the axes of the data are: exchangeable rows, groups, an order, or plain features.

Every axis of every observed variable is looked at. Which other arrays carry it is said by its dim or, where it has
none, found by the density (:mod:`pymc_amortized.graph.structure.carriers`); that its rows are exchangeable is proved by
the density (:mod:`pymc_amortized.graph.structure.proofs`); whether an order is one of time is read off the graph
(:mod:`pymc_amortized.graph.structure.clues`). What the user says wins over all of that.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.axes import Axis, AxisKind, Structure, UserKind, read_kinds
from pymc_amortized.graph.model.indices import counted_by
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.structure import clues as evidence
from pymc_amortized.graph.structure.assignment import assign
from pymc_amortized.graph.structure.carriers import (
    Array,
    Pair,
    Target,
    arrays_of,
    data_pairs,
    free_names,
    shown,
    targets_of,
)
from pymc_amortized.graph.structure.proofs import Change, Proofs
from pymc_amortized.graph.structure.symmetry import find_symmetries


def find_structure(
    spec: ModelSpec,
    simulations: Simulations,
    log_density: LogDensity | None,
    seed: np.random.SeedSequence,
    given: Mapping[str, UserKind] | None = None,
) -> Structure:
    """Find out what every axis of the observed variables is.

    Parameters
    ----------
    spec : ModelSpec
        All free variables must be among its parameters (:meth:`ModelSpec.jointly`).
    simulations : Simulations
        Some dozens; of each axis, the first 16 are used at which permuting it changes the data.
    log_density : LogDensity or None
        Of the same spec. Not used where the model has no density; then the graph decides.
    seed : numpy.random.SeedSequence
        For the permutations.
    given : mapping of str to str or sequence of str, optional
        What the user says: for an observed variable the kind of its first axis, the kinds of all its axes, or "flat".

    Raises
    ------
    KeyError, ValueError
        What is given names no observed variable, no kind or too many axes.
    ValueError
        By their lengths alone, arrays can be assigned to an axis in several ways that the density cannot tell apart.
    """
    arrays = arrays_of(spec)
    observed = [a for a in arrays.values() if a.role == "observed"]
    said = read_kinds({a.name: a.shape for a in observed}, given or {}, {a.name: a.dims for a in observed})
    shapes = {a.name: a.shape for a in arrays.values()}
    if spec.density_obstacle is not None or log_density is None:
        return Structure(_Finder(spec, arrays, None, said).axes(), shapes)
    finder = _Finder(spec, arrays, Proofs(spec, arrays, simulations, log_density, seed), said)
    return Structure(finder.axes(), shapes, *find_symmetries(spec, simulations, log_density))


MOST_QUANTITIES = 4
"""Of a system, such as susceptible, exposed, infected and recovered. Of so few, an order tells a network no more than
features do."""


@dataclass(frozen=True)
class _Found:
    """An axis on its way to being described."""

    target: Target
    pairs: tuple[Pair, ...]
    change: Change | None
    kind: AxisKind
    reason: str
    related: tuple[Pair, ...] = ()
    independent: bool | None = None
    grids: tuple[str, ...] = ()
    groups: dict[str, int] = field(default_factory=dict)

    @property
    def permutable(self) -> bool:
        return self.change is not None and self.change.holds


class _Finder:
    def __init__(
        self, spec: ModelSpec, arrays: dict[str, Array], proofs: Proofs | None, said: Mapping[Pair, AxisKind]
    ) -> None:
        self.spec = spec
        self.arrays = arrays
        self.proofs = proofs
        self.said = said

    def axes(self) -> tuple[Axis, ...]:
        """Every axis once, in the order of the observed variables."""
        found: list[_Found] = []
        claimed: set[Pair] = set()
        for target in targets_of(self.arrays):
            if target.base[0] in claimed:
                continue
            one = self._found(target)
            claimed |= {p for p in one.pairs if self.arrays[p[0]].role == "observed"}
            found.append(one)
        return tuple(self._axis(one) for one in _joined(self._as_systems(self._as_images(found)), self.arrays))

    def _found(self, target: Target) -> _Found:
        if self.proofs is None:
            found = self._by_graph(target)
        else:
            # what components of one draw share with a free variable does not make them rows
            free = target.base[0][1] not in evidence.event_axes(self.spec, target.base[0][0])
            strict = self._user_kind(target.base) is None
            pairs, change, related = assign(target, self.proofs, free=free, strict=strict)
            found = _Found(target, pairs, change, "features", "", related)
            found = self._permutable(found, self.proofs) if change.holds else self._ordered(found, change)
        return self._as_said(found)

    def _permutable(self, found: _Found, proofs: Proofs) -> _Found:
        """Kind of an axis that can be permuted."""
        target, pairs = found.target, found.pairs
        moved = target.base[0]
        free = free_names(self.arrays, pairs)
        held = data_pairs(self.arrays, pairs)
        independent = proofs.separable(held, moved)
        components = moved[1] in evidence.event_axes(self.spec, moved[0])
        own = [p for p in pairs if self.arrays[p[0]].role in ("observed", "free")]
        coupled = proofs.separable(own, moved) is False
        regular = tuple(evidence.grids(self.spec, self.arrays, held))
        change = found.change
        unchanged = f"permuting it{_with(free)} leaves the log density as it is"
        proof = (
            f"{unchanged} ({change.tried} prior draws, largest change {change.difference:.1g})" if change else unchanged
        )
        found = replace(found, independent=independent, grids=() if free else regular, reason=proof)
        observed = [name for name, _ in held if self.arrays[name].role == "observed"]
        if len(set(observed)) < len(observed):
            return replace(found, kind="features", reason="two axes of one array can only be permuted together")
        if free and components:
            reason = f"components of one draw of {moved[0]}, with its dim on {free[0]}"
            return replace(found, kind="features", reason=reason)
        ordered = self._order_of(held, regular, coupled, observed)
        if ordered:
            return replace(found, kind="sequence", reason=ordered)
        if free:
            return replace(found, kind="grouped")
        groups = evidence.group_index(self.spec, self.arrays, observed, held)
        if groups:
            return replace(found, kind="grouped", groups=groups, reason=f"{_groups_shown(groups)}; {proof}")
        return replace(found, kind="exchangeable")

    def _order_of(
        self, held: Sequence[Pair], regular: Sequence[str], coupled: bool, observed: Sequence[str]
    ) -> str | None:
        """Why rows that can be permuted together with a coordinate are a sequence nevertheless."""
        coordinates = [*regular, *evidence.coordinates(self.spec, self.arrays, held)] if coupled else []
        if coordinates:
            return f"rows depend on each other along the increasing coordinate {coordinates[0]}"
        for grid in regular:
            if any(evidence.basis_over(self.spec, name, grid) for name in observed):
                return f"a basis of waves over the regular grid {grid}: an approximate Gaussian process"
        return None

    def _ordered(self, found: _Found, change: Change) -> _Found:
        """Kind of an axis that cannot be permuted."""
        target = found.target
        moved = target.base[0]
        if self.proofs is not None and change.tried:
            independent = self.proofs.separable(data_pairs(self.arrays, target.base + found.related), moved)
            found = replace(found, independent=independent)
        everything = found.related + target.base + tuple(p for block in target.optional for p in block)
        why = evidence.sequence_evidence(self.spec, self.arrays, moved, everything)
        if not change.tried:
            result = "it could not be tested (at no simulation are its rows different and the log density finite)"
        else:
            result = f"permuting it changes the log density by {change.difference:.3g}"
        if why:
            return replace(found, kind="sequence", reason=f"{why}; {result}")
        if moved[1] in evidence.event_axes(self.spec, moved[0]):
            result = f"components of one draw of {moved[0]}; {result}"
        return replace(found, kind="features", reason=result)

    def _by_graph(self, target: Target) -> _Found:
        """Kind of an axis where the model has no density."""
        obstacle = self.spec.density_obstacle or "no density was given"
        moved = target.base[0]
        observed = [p for p in target.base if self.arrays[p[0]].role == "observed"]
        if observed == list(target.base) and all(evidence.drawn_independently(self.spec, p) for p in observed):
            reason = f"drawn independently with the same parameters, by the graph ({obstacle})"
            return _Found(target, target.base, None, "exchangeable", reason, independent=True)
        why = evidence.sequence_evidence(self.spec, self.arrays, moved, target.base)
        if why:
            return _Found(target, target.base, None, "sequence", f"{why} ({obstacle})")
        names = [name for name, _ in observed]
        free = free_names(self.arrays, target.base)
        groups = evidence.group_index(self.spec, self.arrays, names, target.base)
        counted = {name for by in counted_by(self.spec).values() for name in by}  # by dims whose length differs
        groups = {name: number for name, number in groups.items() if name in counted and not free}
        if groups or (free and target.name in self.spec.largest):
            reason = f"{_groups_shown(groups) or 'groups with their own ' + free[0]}, by the graph ({obstacle})"
            return _Found(target, target.base, None, "grouped", reason, groups=groups)
        advice = f"for a series say structure={{{moved[0]!r}: 'sequence'}}, for rows in any order 'exchangeable'"
        return _Found(target, target.base, None, "features", f"it cannot be tested: {obstacle}; {advice}")

    def _user_kind(self, pairs: Sequence[Pair]) -> AxisKind | None:
        kinds = {self.said[p]: p for p in pairs if p in self.said}
        if len(kinds) > 1:
            (one, first), (other, second) = list(kinds.items())[:2]
            raise ValueError(
                f"structure: {shown(self.arrays, first)} is said to be {one!r} and "
                f"{shown(self.arrays, second)} {other!r}, but they are the same axis"
            )
        return next(iter(kinds), None)

    def _as_said(self, found: _Found) -> _Found:
        kind = self._user_kind(found.pairs)
        if kind is None:
            return found
        reason = f"you said so (found: {found.kind}; {found.reason})"
        groups = found.groups
        pairs = found.pairs
        if not found.permutable and kind in ("exchangeable", "grouped", "sequence"):
            pairs = found.pairs + tuple(p for p in found.related if p not in found.pairs)
        if kind == "grouped" and not groups:
            names = [name for name, _ in pairs if self.arrays[name].role == "observed"]
            groups = evidence.group_index(self.spec, self.arrays, names, data_pairs(self.arrays, pairs))
        return replace(found, kind=kind, pairs=pairs, groups=groups if kind == "grouped" else {}, reason=reason)

    def _as_images(self, found: list[_Found]) -> list[_Found]:
        """Rows and columns of pixels can be permuted with their coordinates, but an image is what they are."""
        on_grid: Counter[str] = Counter()
        for one in found:
            on_grid.update({n for n, _ in one.target.base if one.grids and self.arrays[n].role == "observed"})
        return [
            replace(one, kind="sequence", reason=f"{one.grids[0]} is a regular grid along it, as along its other axis")
            if one.grids
            and one.kind == "exchangeable"
            and not self._user_kind(one.pairs)
            and on_grid[one.target.base[0][0]] > 1
            else one
            for one in found
        ]

    def _as_systems(self, found: list[_Found]) -> list[_Found]:
        """Quantities of one system, such as species, are side by side at each step: they have no order of their own."""
        orders: dict[str, int] = {}  # the length of the longest sequence of an observed variable
        for one in found:
            if one.kind == "sequence" and not one.permutable:
                name = one.target.base[0][0]
                orders[name] = max(orders.get(name, 0), one.target.length)
        return [
            replace(one, kind="features", reason=f"{one.target.length} quantities at each step; {one.reason}")
            if one.kind == "sequence"
            and not one.permutable
            and not self._user_kind(one.pairs)
            and one.target.length <= MOST_QUANTITIES < orders[one.target.base[0][0]]
            else one
            for one in found
        ]

    def _axis(self, one: _Found) -> Axis:
        named = [self.arrays[n].dims[i] for n, i in one.pairs]
        name = next((dim for dim in named if dim), one.target.name)
        pairs = one.pairs
        if one.kind == "sequence" and not one.permutable:
            pairs += tuple(p for p in one.related if p not in pairs)
        index = next(iter(one.groups), None)
        return Axis(
            name=name,
            length=one.target.length,
            kind=one.kind,
            carriers=data_pairs(self.arrays, pairs),
            reason=one.reason,
            independent=one.independent,
            index=index,
            groups=one.groups[index] if index else 0,
        )


def _joined(found: list[_Found], arrays: Mapping[str, Array]) -> list[_Found]:
    """Join unnamed sequences of one length in different observed variables: they are recorded together."""
    joined: list[_Found] = []
    for one in found:
        at = next((i for i, other in enumerate(joined) if _same_sequence(one, other)), None)
        if at is None:
            joined.append(one)
        else:
            first = joined[at]
            related = first.related + tuple(p for p in one.related if p not in first.related)
            both = [first.independent, one.independent]
            independent = False if False in both else None if None in both else True
            joined[at] = replace(first, pairs=first.pairs + one.pairs, related=related, independent=independent)
    return joined


def _same_sequence(one: _Found, other: _Found) -> bool:
    unnamed = not one.target.named and not other.target.named and one.target.length == other.target.length
    names = {name for name, _ in one.pairs}.isdisjoint(name for name, _ in other.pairs)
    return unnamed and names and one.kind == other.kind == "sequence" and not (one.permutable or other.permutable)


def _with(free: Sequence[str]) -> str:
    return f" together with {', '.join(free)}" if free else ""


def _groups_shown(groups: Mapping[str, int]) -> str:
    return " and ".join(f"{name} puts rows into {count} groups" for name, count in groups.items())
