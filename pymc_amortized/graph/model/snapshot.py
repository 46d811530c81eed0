"""Taking the snapshot of a model: a copy in which everything that does not vary between data sets is constant."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.model.constants import open_constants
from pymc_amortized.graph.model.copying import without_gp_warning
from pymc_amortized.graph.model.freezing import freeze
from pymc_amortized.graph.model.indices import refuse_fixed_indices
from pymc_amortized.graph.model.operations import op_name, with_checked_shapes
from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec, Parameter, Role
from pymc_amortized.graph.model.suitability import (
    check_names,
    holders_of_observations,
    refuse_unsuited,
    refuse_unsuited_parameters,
    refuse_unsuited_sizes,
)
from pymc_amortized.graph.model.tensors import evaluated_shapes, plain


def take_snapshot(
    model: pm.Model | None = None,
    *,
    observed: Sequence[str] | None = None,
    parameters: Sequence[str] | None = None,
    context: Iterable[str] = (),
    sizes: Sequence[Range] = (),
    missing: Iterable[str] = (),
    order: Collection[str] = (),
) -> ModelSpec:
    """Read a model, and keep a copy that nothing done to the model afterwards can change.

    Parameters
    ----------
    model : pymc.Model, optional
        The model; the context's model by default.
    observed : sequence of str, optional
        Names of the variables that will be observed, for models that hold no data.
    parameters : sequence of str, optional
        Free variables whose joint marginal posterior is wanted; all by default.
    context : iterable of str
        Data containers whose values vary between data sets.
    sizes : sequence of Range
        Dimensions whose length varies between data sets.
    missing : iterable of str
        Observed variables of which values may be missing.
    order : collection of str
        Variables that come first, in this order; by default all have the model's.

    Raises
    ------
    ValueError, KeyError
        When the model cannot be simulated or a name is not one the model has.
    """
    model = _with_named_dims(model_of(model))
    context, sizes, missing = tuple(context), tuple(sizes), frozenset(missing)
    _check_context(model, context)
    containers = refuse_unsuited(model, observed, context)
    order = list(dict.fromkeys([*order, *(v.name for v in (*model.basic_RVs, *model.deterministics))]))
    without_data = set(observed or ()) - {rv.name for rv in model.observed_RVs}
    if without_data:
        model = _observe_placeholders(model, sorted(without_data))
    refuse_unsuited_parameters(model)
    wanted = _choose_parameters(model, parameters)
    holders = holders_of_observations(model)
    refuse_unsuited_sizes(model, [r.dim for r in sizes], context, holders)
    held = _held_values(model)
    frozen = freeze(model, holders, {r.dim for r in sizes})
    axes = _Axes.of(frozen, containers, {r.dim for r in sizes})
    lengths = {n for rv in frozen.observed_RVs for n in axes.shape(rv.name) if n is not None}
    snapshot = _with_symbolic_observations(frozen, {rv.name: axes.shape(rv.name) for rv in frozen.observed_RVs})
    snapshot, constants = open_constants(snapshot, lengths)
    _tidy(snapshot, order, holders)

    def described(names: Iterable[str], role: Role) -> tuple[DataVariable, ...]:
        return tuple(_described(snapshot[n], snapshot, axes, role, containers.get(n), n in missing) for n in names)

    free = [_parameter(snapshot, rv, axes) for rv in snapshot.free_RVs]
    spec = ModelSpec(
        model=snapshot,
        parameters=tuple(p for p in free if p.name in wanted and not any(p.sized)),
        nuisance=tuple(p for p in free if p.name not in wanted),
        locals=tuple(p for p in free if p.name in wanted and any(p.sized)),
        observed=described([rv.name for rv in snapshot.observed_RVs], "observed"),
        context=described(context, "context"),
        fixed=described([v.name for v in snapshot.data_vars if v.name not in context], "fixed"),
        held=held | {c.name: c.value for c in constants},
        holds_data=not without_data,
        sizes=sizes,
        constants=tuple(
            DataVariable(c.name, c.value.shape, c.value.dtype.name, c.dims, _array_kind(c.value), "constant")
            for c in constants
        ),
        symbols={c.name: c.symbol for c in constants},
    )
    _refuse_empty(spec)
    _refuse_misfits(spec)
    refuse_fixed_indices(spec)
    return spec


@dataclass(frozen=True)
class _Axes:
    """Shapes and dims of a model's variables, by name, and the dims whose length varies."""

    shapes: dict[str, tuple[int, ...]]
    dims: dict[str, tuple[str | None, ...]]
    varying: set[str]

    @classmethod
    def of(cls, model: pm.Model, containers: Mapping[str, str], varying: set[str]) -> _Axes:
        shapes, dims = evaluated_shapes(model, [*model.basic_RVs, *model.data_vars]), _dims_of(model, containers)
        return cls(shapes, dims | {rv.name: _own_dims(model, rv.name) for rv in model.free_RVs}, varying)

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Shape with None for a length that varies."""
        dims = self.dims[name] or (None,) * len(self.shapes[name])
        return tuple(None if d in self.varying else n for n, d in zip(self.shapes[name], dims, strict=True))


def _described(
    var: Any, model: pm.Model, axes: _Axes, role: Role, container: str | None, missing: bool
) -> DataVariable:
    dtype = model.rvs_to_values.get(var, var).type.dtype
    return DataVariable(
        var.name, axes.shape(var.name), dtype, axes.dims[var.name], _kind(var), role, container, missing
    )


def _with_named_dims(model: pm.Model) -> pm.Model:
    """Name dims that are None as ArviZ does; PyMC's graph functions refuse them."""
    named = {name: tuple(dims) for name, dims in model.named_vars_to_dims.items() if dims and None in dims}
    if not named:
        return model
    named = {name: tuple(d or f"{name}_dim_{i}" for i, d in enumerate(dims)) for name, dims in named.items()}
    clone = object.__new__(type(model))  # copy.copy would go through the graph functions
    clone.__dict__.update(model.__dict__)
    clone._coords, clone._dim_lengths = dict(model._coords), dict(model._dim_lengths)
    clone.named_vars_to_dims = model.named_vars_to_dims | named
    for name, dims in named.items():
        for axis, dim in enumerate(dims):
            if dim not in clone._dim_lengths:
                clone._coords[dim], clone._dim_lengths[dim] = None, plain(model[name]).shape[axis]
    return clone


def _check_context(model: pm.Model, context: tuple[str, ...]) -> None:
    containers = {v.name for v in model.data_vars}
    for name in context:
        if name not in containers:
            raise KeyError(
                f"context: the model has no data container or dimension named {name!r}; "
                f"it has {sorted({*containers, *model.dim_lengths})}"
            )


def _observe_placeholders(model: pm.Model, observed: Sequence[str]) -> pm.Model:
    """Mark variables as observed, with one simulated draw standing for the data to come."""
    draws = pm.draw(with_checked_shapes([model[name] for name in observed]), random_seed=0)
    return pm.observe(model, dict(zip(observed, draws, strict=True)))


def _choose_parameters(model: pm.Model, parameters: Sequence[str] | None) -> set[str]:
    free = [rv.name for rv in model.free_RVs]
    if parameters is None:
        return set(free)
    parameters = check_names("parameters", parameters)
    unknown = [name for name in parameters if name not in free]
    if unknown or not parameters:
        raise KeyError(f"parameters: {unknown or 'no names'} given; the free variables are {free}")
    _refuse_borrowed_bounds(model, set(parameters))
    return set(parameters)


def _refuse_borrowed_bounds(model: pm.Model, wanted: set[str]) -> None:
    """A transform whose bounds depend on another variable cannot be undone without that variable."""
    hidden = {rv for rv in model.free_RVs if rv.name not in wanted}
    for rv in model.free_RVs:
        transform = model.rvs_to_transforms[rv]
        if rv.name not in wanted or transform is None:
            continue
        back = transform.backward(model.rvs_to_values[rv], *rv.owner.inputs)
        borrowed = sorted(h.name for h in hidden.intersection(ancestors([back])))
        if borrowed:
            raise ValueError(
                f"parameters: the range of {rv.name!r} depends on {borrowed}, "
                "which must then be among the parameters too"
            )


def _held_values(model: pm.Model) -> dict[str, np.ndarray]:
    """Values of observations and data containers, by the name of the observed variable or container."""
    held = {rv.name: model.rvs_to_values[rv] for rv in model.observed_RVs}
    held |= {var.name: var for var in model.data_vars}
    return {name: _value(var) for name, var in held.items()}


def _value(var: Any) -> np.ndarray:
    if isinstance(var, SharedVariable):
        return np.asarray(var.get_value())
    return np.asarray(var.data if isinstance(var, Constant) else plain(var).eval())


def _dims_of(model: pm.Model, containers: Mapping[str, str]) -> dict[str, tuple[str | None, ...]]:
    """Dims of observed variables (their container's, where they have none of their own) and data containers."""
    own = {v.name: _own_dims(model, v.name) for v in (*model.observed_RVs, *model.data_vars)}
    return {name: dims or own.get(containers.get(name, ""), ()) for name, dims in own.items()}


def _own_dims(model: pm.Model, name: str) -> tuple[str | None, ...]:
    return tuple(model.named_vars_to_dims.get(name) or ())


def _with_symbolic_observations(model: pm.Model, shapes: Mapping[str, tuple[int | None, ...]]) -> pm.Model:
    """Observe inputs rather than constants: a constant may be shared with the rest of the graph."""
    symbols = {}
    for rv in model.observed_RVs:
        symbol = model.rvs_to_values[rv].type.clone(shape=shapes[rv.name])(name=f"{rv.name}_value")
        symbols[rv.name] = symbol
    with without_gp_warning():
        return pm.observe(model, symbols)


def _tidy(model: pm.Model, order: Sequence[str], containers: Iterable[str]) -> None:
    """Give variables back the order they were written in, and forget containers of observations.

    PyMC's graph functions order variables topologically; the containers have become constants that nothing reads.
    """
    for variables in (model.free_RVs, model.observed_RVs, model.deterministics):
        variables.sort(key=lambda v: order.index(v.name))
    for name in containers:
        model.data_vars.remove(model.named_vars.pop(name))
        model.named_vars_to_dims.pop(name, None)


def _parameter(model: pm.Model, rv: Any, axes: _Axes) -> Parameter:
    value, shapes = model.rvs_to_values[rv], axes.shapes
    transform = model.rvs_to_transforms[rv]
    return Parameter(
        name=rv.name,
        value_name=value.name,
        shape=shapes[rv.name],
        unconstrained_shape=shapes[value.name],
        dtype=rv.type.dtype,
        transform=None if transform is None else getattr(transform, "name", type(transform).__name__),
        sized=tuple(d if d in axes.varying else None for d in axes.dims[rv.name]),
    )


def _array_kind(value: np.ndarray) -> str:
    return {"f": "real", "b": "binary"}.get(value.dtype.kind, "count")


def _kind(var: Any) -> str:
    if var.type.dtype == "bool" or op_name(var) == "BernoulliRV":
        return "binary"
    if op_name(var) == "CategoricalRV":
        return "categorical"
    return "real" if var.type.dtype.startswith("float") else "count"


def _refuse_empty(spec: ModelSpec) -> None:
    shapes: dict[str, tuple[int | None, ...]] = {v.name: v.shape for v in spec.data}
    shapes |= {p.name: p.shape for p in spec.parameters}
    for name, shape in shapes.items():
        if 0 in shape:
            raise ValueError(f"{name!r} has shape {shape}: an empty variable cannot be learned from")


def _refuse_misfits(spec: ModelSpec) -> None:
    """Refuse values in the model that do not have its own shape: PyMC fails at their first log density."""
    for v in spec.data:
        given = spec.held[v.name].shape
        if not v.fits(given):
            dims = f" (dims {v.dims})" if v.dims else ""
            raise ValueError(
                f"the model holds values of {v.name!r} of shape {given}, but what it computes has shape "
                f"{v.shape}{dims}: were data or coords set (pm.set_data) for some variables and not for others? Shapes "
                "that differ between data sets are those of dims in context={...}"
            )
