"""What several models of the same data have in common.

The data are those that every model observes, and the context that any of them reads: a covariate that a model does not
read changes nothing about its distribution of the data. What is fixed in a model (covariates that belong to rows)
is told to the networks for all of them, each array once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from pymc_amortized.graph.model.axes import Axis, AxisKind, Structure
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec

Names = Mapping[str, Mapping[str, str]]
"""For each model, what its fixed arrays are called in common."""


@dataclass(frozen=True, eq=False)
class Common:
    """The data of several models.

    Attributes
    ----------
    spec : ModelSpec
        With the data of all of them. Its graph is that of the first: nothing is simulated by it.
    names : mapping of model to mapping of name to name
        What the fixed arrays of each model are called in `spec`.
    limits : mapping of name to (int, int)
        Smallest and largest of the indices that context holds.
    """

    spec: ModelSpec
    names: Names
    limits: Mapping[str, tuple[int, int]]


def common_data(specs: Mapping[str, ModelSpec], limits: Iterable[Mapping[str, tuple[int, int]]] = ()) -> Common:
    """Join the data of several models.

    Parameters
    ----------
    specs : mapping of name to ModelSpec
        At least two, in order.
    limits : iterable of mapping
        Smallest and largest indices of context, by model.

    Raises
    ------
    ValueError
        When they observe different variables, dims, sizes or context; the message names the model and what differs.
    """
    for one, two in combinations(specs.items(), 2):
        refuse_other_data(one, two)
    context = _context(specs)
    _refuse_copies(specs, context)
    fixed, held, names = _fixed(specs)
    own = next(iter(specs.values()))
    observed = tuple(_common_kind(v, [_named(s.observed, v.name) for s in specs.values()]) for v in own.observed)
    symbols = {c.name: model.variable(c.name) for c in context for model in specs.values() if _has(model.context, c)}
    holds = all(s.holds_data for s in specs.values()) and _same_held(specs, [v.name for v in (*observed, *context)])
    spec = replace(
        own,
        observed=observed,
        context=context,
        fixed=tuple(v for v in fixed if v.role == "fixed"),
        constants=tuple(v for v in fixed if v.role == "constant"),
        held=_held(specs, [v.name for v in (*observed, *context)]) | held,
        symbols={name: symbol for name, symbol in symbols.items() if not _has(own.context, name)},
        labels=_all_labels(specs, (*observed, *context)),
        holds_data=holds,
    )
    narrowest: dict[str, tuple[int, int]] = {}
    for each in limits:
        for name, (low, high) in each.items():
            before = narrowest.get(name, (low, high))
            narrowest[name] = (max(low, before[0]), min(high, before[1]))
    return Common(spec, names, narrowest)


def refuse_other_data(one: tuple[str, ModelSpec], two: tuple[str, ModelSpec]) -> None:
    """Name the first difference between the data, and the sizes, of two models."""
    (first, a), (second, b) = one, two
    ours, theirs = [v.name for v in a.observed], [v.name for v in b.observed]
    if set(ours) != set(theirs):
        raise ValueError(
            f"models observe different variables: {first!r} {ours}, {second!r} {theirs}. Give what is the same data "
            "the same name in all models, or say by observed= which variables are data"
        )
    for v in a.observed:
        _refuse_other_variable(first, v, second, _named(b.observed, v.name), "observed variable")
    for v in (*a.observed, *a.context):
        if _has(b.context, v) and not _has(a.observed, v):
            _refuse_other_variable(first, v, second, _named(b.context, v.name), "context variable")
    for v in (*a.observed, *a.context, *a.fixed):
        for dim in set(v.dims) - {None, *a.largest} if _has((*b.observed, *b.context, *b.fixed), v) else ():
            labels = [_labels(s, dim) for s in (a, b)]
            if None not in labels and labels[0] != labels[1]:
                raise ValueError(
                    f"models {first!r} and {second!r} label dim {dim!r} of {v.name!r} differently: "
                    f"{_shown(labels[0])} and {_shown(labels[1])}. Give both the same coords, in the same order"
                )
    if set(a.sizes) != set(b.sizes):
        raise ValueError(
            f"models {first!r} and {second!r} are for different sizes of data: {_ranges(a)} and {_ranges(b)}"
        )


def _refuse_other_variable(first: str, v: DataVariable, second: str, w: DataVariable, what: str) -> None:
    shown = [(_shape(v), _shape(w)), (v.dims, w.dims), (_measure(v), _measure(w))]
    words = ("shape", "dims", "values")
    for word, (ours, theirs) in zip(words, shown, strict=True):
        if ours != theirs and not (word == "dims" and not (ours and theirs)):  # a name on one side alone says nothing
            remedy = "A density and a probability are in no proportion" if word == "values" else "Make them the same"
            raise ValueError(
                f"{what} {v.name!r} has {word} {_words(ours)} in model {first!r}, {_words(theirs)} in {second!r}. "
                f"{remedy}"
            )
    if v.missing != w.missing:
        raise ValueError(f"{what} {v.name!r} may have gaps in one of the models {first!r} and {second!r} alone")


def _words(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _shape(v: DataVariable) -> tuple[Any, ...]:
    """Shape, with the names of dims whose length differs between data sets."""
    return tuple(d if n is None else n for n, d in zip(v.shape, v.dims or v.shape, strict=True))


def _measure(v: DataVariable) -> str:
    return "continuous" if np.dtype(v.dtype).kind == "f" else "discrete"


def _labels(spec: ModelSpec, dim: str | None) -> list[Any] | None:
    labels = spec.labels_of(dim)
    return None if labels is None else list(labels)


def _all_labels(specs: Mapping[str, ModelSpec], variables: Iterable[DataVariable]) -> dict[str, list[Any]]:
    """Labels of the dims of variables, of whichever model has them."""
    dims = {dim for v in variables for dim in v.dims if dim is not None}
    found = {dim: [labels for s in specs.values() if (labels := _labels(s, dim)) is not None] for dim in dims}
    return {dim: labels[0] for dim, labels in found.items() if labels}


def _shown(labels: Any) -> str:
    return f"{str(labels[:3])[:-1]}, ...]" if len(labels) > 3 else str(labels)


def _ranges(spec: ModelSpec) -> str:
    return str({r.dim: (r.smallest, r.largest) for r in spec.sizes})


def _named(variables: Iterable[DataVariable], name: str) -> DataVariable:
    return next(v for v in variables if v.name == name)


def _has(variables: Iterable[DataVariable], which: DataVariable | str) -> bool:
    name = which if isinstance(which, str) else which.name
    return any(v.name == name for v in variables)


def _common_kind(variable: DataVariable, versions: list[DataVariable]) -> DataVariable:
    """Describe a variable so that values of all models fit: counts where kinds of discrete values differ."""
    dims = next((v.dims for v in versions if v.dims), ())
    container = next((v.container for v in versions if v.container), None)
    kinds = {v.kind for v in versions}
    widest = np.result_type(*(np.dtype(v.dtype) for v in versions)).name
    kind = variable.kind if len(kinds) == 1 else "count"
    return replace(variable, dims=dims, container=container, kind=kind, dtype=widest)


def _context(specs: Mapping[str, ModelSpec]) -> tuple[DataVariable, ...]:
    """Context of any model, each variable once."""
    versions: dict[str, list[DataVariable]] = {}
    for spec in specs.values():
        for c in spec.context:
            versions.setdefault(c.name, []).append(c)
    return tuple(_common_kind(own[0], own) for own in versions.values())


def _refuse_copies(specs: Mapping[str, ModelSpec], context: Iterable[DataVariable]) -> None:
    """Refuse a model that has the values of context baked in, or fixed, where they differ between data sets."""
    for c in context:
        values = next(s.held[c.name] for s in specs.values() if _has(s.context, c))
        for name, spec in specs.items():
            for v in spec.unchanging:
                held = spec.held[v.name]
                same = held.shape == values.shape and held.size > 1 and np.array_equal(held, values)
                if v.name == c.name or (same and not _has(spec.context, c)):
                    raise ValueError(
                        f"context {c.name!r} differs between data sets, but model {name!r} holds its values fixed: "
                        f"use pm.Data({c.name!r}, ...) there too"
                    )


def _fixed(specs: Mapping[str, ModelSpec]) -> tuple[list[DataVariable], dict[str, np.ndarray], Names]:
    """Fixed arrays of all models, equal ones once; their values; and what each model's are called."""
    taken = {v.name for spec in specs.values() for v in spec.data}
    variables: list[DataVariable] = []
    held: dict[str, np.ndarray] = {}
    names: dict[str, dict[str, str]] = {name: {} for name in specs}
    for model, spec in specs.items():
        for v in spec.unchanging:
            values = spec.held[v.name]
            name = next((n for n, other in held.items() if _equal(values, other)), None)
            if name is None:
                name = v.name if v.name not in taken else f"{model}: {v.name}"
                variables.append(replace(v, name=name))
                held[name] = values
                taken.add(name)
            names[model][v.name] = name
    return variables, held, names


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and one.dtype.kind == two.dtype.kind and bool(np.array_equal(one, two))


def _held(specs: Mapping[str, ModelSpec], names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: next(s.held[name] for s in specs.values() if name in s.held) for name in names}


def _same_held(specs: Mapping[str, ModelSpec], names: Iterable[str]) -> bool:
    """Whether the models hold the same data."""

    def versions(name: str) -> set[Any]:
        values = [s.held[name] for s in specs.values() if name in s.held]
        return {(v.shape, np.asarray(v, dtype=float).tobytes()) for v in values}

    return all(len(versions(name)) == 1 for name in names)


def common_structure(structures: Mapping[str, Structure], names: Names) -> Structure:
    """Find for every axis the coarsest kind that any model has.

    Rows that one model cannot tell apart and another puts into groups are grouped; an order that means something to
    one of them is kept. A summary for that structure loses nothing that any of the models' distributions depends on.

    Parameters
    ----------
    structures : mapping of name to Structure
    names : mapping
        What fixed arrays are called in common.

    Raises
    ------
    ValueError
        When models put the same rows into groups by different indices.
    """
    axes = [_renamed(axis, names[model]) for model, structure in structures.items() for axis in structure.axes]
    joined: list[list[Axis]] = []
    for axis in axes:
        touching = [group for group in joined if any(_touch(axis, other) for other in group)]
        for group in touching:
            joined.remove(group)
        joined.append([other for group in touching for other in group] + [axis])
    shapes = {
        names[model].get(name, name): shape
        for model, structure in structures.items()
        for name, shape in structure.shapes.items()
    }
    return Structure(tuple(_joined(group) for group in joined), shapes)


def _renamed(axis: Axis, names: Mapping[str, str]) -> Axis:
    carriers = tuple((names.get(name, name), i) for name, i in axis.carriers)
    return replace(axis, carriers=carriers, index=names.get(axis.index, axis.index) if axis.index else None)


def _touch(one: Axis, two: Axis) -> bool:
    return not set(one.carriers).isdisjoint(two.carriers)


def _joined(axes: list[Axis]) -> Axis:
    # each kind keeps all that a summary of an earlier one keeps
    coarser: tuple[AxisKind, ...] = ("exchangeable", "grouped", "sequence", "features")
    kind = max((axis.kind for axis in axes), key=coarser.index)
    decisive = next(axis for axis in axes if axis.kind == kind)
    independent = [axis.independent for axis in axes]
    indices = [(axis.index, axis.groups) for axis in axes if axis.kind == "grouped"]
    if len(different := sorted({name for name, _ in indices if name})) > 1:
        rows = sorted({name for axis in axes for name, _ in axis.carriers})
        raise ValueError(
            f"the models put the rows of {rows} into groups by different indices, {different}: a summary sorts rows by "
            f"one. structure={{{decisive.carriers[0][0]!r}: 'exchangeable'}} compares them by all columns of the rows"
        )
    # where the entries themselves are groups in one model, they are kept apart, whatever index another has
    index, groups = indices[0] if kind == "grouped" and all(name for name, _ in indices) else (None, 0)
    return replace(
        decisive,
        carriers=tuple(dict.fromkeys(pair for axis in axes for pair in axis.carriers)),
        independent=False if False in independent else None if None in independent else True,
        index=index,
        groups=groups,
    )
