"""Exchanging an observed variable's distribution for the learned one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.model.fgraph import ModelVar, fgraph_from_model, model_from_fgraph, model_observed_rv
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors, io_toposort

from pymc_amortized.graph.rows.emulator import Emulator
from pymc_amortized.graph.rows.observed_rows import ObservedRows, arguments_like


def exchanged(model: pm.Model, observed: ObservedRows, emulator: Emulator, values: np.ndarray) -> pm.Model:
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
    with warnings.catch_warnings():
        # PyMC warns that GP objects should not be reused with a copied model; nobody can reach the copy's.
        warnings.filterwarnings("ignore", message="Detected variables likely created by GP")
        fgraph, memo = fgraph_from_model(model)
    old = memo[model[name]]
    inner = old.owner.inputs[0]
    named = {v for v in ancestors([inner]) if v.owner is not None and isinstance(v.owner.op, ModelVar)}
    parameters = arguments_like(observed, inner, named)
    length = values.shape[observed.batch_ndim] if observed.series else None
    rv = emulator.dist(*parameters, length=length, size=values.shape[: observed.batch_ndim])
    rv.name = name
    value = pt.constant(np.asarray(values, dtype=rv.type.dtype), name=f"{name}_observed")
    new = model_observed_rv(rv, value, name, *old.owner.op.dims)
    # outputs rather than fgraph.replace, which wants the same number of rows
    resized = values.shape != tuple(model[name].shape.eval())
    outputs = [o for o in fgraph.outputs if o is old or not resized or old not in ancestors([o])]
    rebuilt = FunctionGraph(outputs=_followed(outputs, old, new), clone=False)
    rebuilt._coords, rebuilt._dim_lengths = (  # type: ignore[attr-defined]
        fgraph._coords | {dim: tuple(range(n)) for dim, n in lengths.items()},
        fgraph._dim_lengths | {dim: pt.constant(n, name=dim, dtype="int64") for dim, n in lengths.items()},
    )
    made = model_from_fgraph(rebuilt, mutate_fgraph=True)
    for kind in ("free_RVs", "observed_RVs", "deterministics"):  # back into the order they were written in
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
