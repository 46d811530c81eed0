"""Exchanging an observed variable's distribution for the learned one, in a model or in a snapshot of one.

Everything that is compiled from a snapshot (log densities, samplers, pointwise likelihoods) can so be compiled with the
learned density: for data of any size the snapshot allows, as rows have one density each.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.model.fgraph import ModelVar, model_observed_rv
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import ancestors, io_toposort

from pymc_amortized.graph.model.copying import close_model, open_model
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.emulator import Emulator
from pymc_amortized.graph.rows.finding import arguments_like
from pymc_amortized.graph.rows.observed_rows import ObservedRows


def exchange_distribution(model: pm.Model, observed: ObservedRows, emulator: Emulator, values: np.ndarray) -> pm.Model:
    """Return a copy of a model in which an observed variable has the learned distribution and other values.

    Parameters
    ----------
    model : pymc.Model
        In which the variable's distribution has the arguments that it was learned with.
    observed : ObservedRows
    emulator : Emulator
    values : ndarray
        Where the parameters are the same for all rows, these may be more or fewer. Deterministics that are computed
        from the variable are left out then, as what else they are computed from may have its old shape.

    Raises
    ------
    ValueError
        There are more or fewer rows along a dim that other variables have, too.
    """
    name = observed.variable.name
    lengths = _other_lengths(model, name, values.shape)
    fgraph, memo = open_model(model)
    old = memo[model[name]]
    rv = _learned(old, observed, emulator, values.shape)
    value = pt.constant(np.asarray(values, dtype=rv.type.dtype), name=f"{name}_observed")
    new = model_observed_rv(rv, value, name, *old.owner.op.dims)
    # outputs rather than fgraph.replace, which wants the same number of rows
    resized = values.shape != tuple(model[name].shape.eval())
    outputs = [o for o in fgraph.outputs if o is old or not resized or old not in ancestors([o])]
    made = close_model(
        fgraph,
        _followed(outputs, old, new),
        {dim: pt.constant(n, name=dim, dtype="int64") for dim, n in lengths.items()},
        {dim: tuple(range(n)) for dim, n in lengths.items()},
    )
    return _in_the_order_of(model, made)


def with_learned_density(spec: ModelSpec, rows: ObservedRows, emulator: Emulator) -> ModelSpec:
    """Return the snapshot with the learned distribution of one observed variable.

    Deterministics that are computed from the variable are left out: densities do not need them.

    Parameters
    ----------
    spec : ModelSpec
    rows : ObservedRows
        Found in this snapshot.
    emulator : Emulator

    Raises
    ------
    ValueError
        When another variable's distribution, or a potential, is computed from the variable.
    """
    name = rows.variable.name
    refuse_followers(spec, name)
    fgraph, memo = open_model(spec.model)
    old = memo[spec.model[name]]
    variable = next(v for v in spec.observed if v.name == name)  # of `rows`, lengths are fixed
    dims = variable.dims or (None,) * len(variable.shape)
    free = {dim: memo.get(length, length) for dim, length in spec.model.dim_lengths.items()}
    lengths = [free[dim] if n is None else n for n, dim in zip(variable.shape, dims, strict=True)]
    new = model_observed_rv(_learned(old, rows, emulator, lengths), old.owner.inputs[1], name, *old.owner.op.dims)
    outputs = [new if output is old else output for output in fgraph.outputs]
    made = close_model(fgraph, [o for o in outputs if old not in ancestors([o])])
    model = _in_the_order_of(spec.model, made)
    roots = [*model.basic_RVs, *model.potentials, *model.deterministics]
    found = {v.name: v for v in ancestors(roots) if isinstance(v, SharedVariable)}
    # a constant that only the exchanged distribution read is an input that nothing uses
    symbols = {key: found.get(key, symbol) for key, symbol in spec.symbols.items()}
    return replace(spec, model=model, symbols=symbols)


def refuse_followers(spec: ModelSpec, name: str) -> None:
    """Refuse a model in which another distribution or a potential is computed from an observed variable.

    Raises
    ------
    ValueError
    """
    model = spec.model
    for var in (*model.basic_RVs, *model.potentials):
        if var is not model[name] and model[name] in ancestors([var]):
            raise ValueError(f"{var.name!r} is computed from {name!r}, whose learned distribution it would not follow")


def _learned(old: Any, observed: ObservedRows, emulator: Emulator, lengths: Sequence[Any]) -> Any:
    """A random variable of the learned distribution with the arguments of the observed one in a copied graph."""
    inner = old.owner.inputs[0]
    named = {v for v in ancestors([inner]) if v.owner is not None and isinstance(v.owner.op, ModelVar)}
    rv = emulator.dist(
        *arguments_like(observed, inner, named),
        length=lengths[observed.batch_ndim] if observed.series else None,
        size=lengths[: observed.batch_ndim],
    )
    rv.name = observed.variable.name
    return rv


def _in_the_order_of(model: pm.Model, made: pm.Model) -> pm.Model:
    """Bring the variables of a copied model into the order in which they were written."""
    for kind in ("free_RVs", "observed_RVs", "deterministics"):
        order = {v.name: i for i, v in enumerate(getattr(model, kind))}
        getattr(made, kind).sort(key=lambda v, order=order: order[v.name])
    return made


def _other_lengths(model: pm.Model, name: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Lengths of the variable's dims that new values change."""
    lengths = {}
    for dim, length in zip(model.named_vars_to_dims.get(name) or (), shape, strict=False):
        if dim is None or int(model.dim_lengths[dim].eval()) == length:
            continue
        others = [key for key, dims in model.named_vars_to_dims.items() if dim in dims and key != name]
        others = [key for key in others if model[name] not in ancestors([model[key]])]
        if others:
            raise ValueError(
                f"observed[{name!r}] has {length} rows along the dim {dim!r}, which {', '.join(map(repr, others))} "
                f"has, too, with {int(model.dim_lengths[dim].eval())}; give {name!r} a dim of its own, or as many rows"
            )
        lengths[dim] = length
    return lengths


def _followed(outputs: list[Any], old: Any, new: Any) -> list[Any]:
    """Outputs of a graph with another variable in the place of one, and all that is computed from it."""
    made = {old: new}
    for node in io_toposort([old], outputs):
        if any(v in made for v in node.inputs):
            again = node.clone_with_new_inputs([made.get(v, v) for v in node.inputs], strict=False)
            made.update(zip(node.outputs, again.outputs, strict=True))
    for before, after in made.items():
        after.name = before.name
    return [made.get(output, output) for output in outputs]
