"""Exchanging an observed variable's distribution for the learned one."""

from __future__ import annotations

import warnings

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.model.fgraph import ModelVar, fgraph_from_model, model_from_fgraph, model_observed_rv
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.emulator import Emulator
from pymc_amortized.graph.rows import ObservedRows, arguments_like


def exchanged(model: pm.Model, observed: ObservedRows, emulator: Emulator, values: np.ndarray) -> pm.Model:
    """Return a copy of a model in which an observed variable has the learned distribution and other values.

    Parameters
    ----------
    model : pymc.Model
        In which the variable's distribution has the arguments that it was learned with.
    observed : ObservedRows
    emulator : Emulator
    values : ndarray
        Where the parameters are the same for all rows, these may be more or fewer.
    """
    name = observed.variable.name

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
    outputs = [new if output is old else output for output in fgraph.outputs]
    rebuilt = FunctionGraph(outputs=outputs, clone=False)
    rebuilt._coords, rebuilt._dim_lengths = fgraph._coords, fgraph._dim_lengths  # type: ignore[attr-defined]
    made = model_from_fgraph(rebuilt, mutate_fgraph=True)
    for dim, length in zip(model.named_vars_to_dims.get(name) or (), values.shape, strict=False):
        if dim is not None and int(made.dim_lengths[dim].eval()) != length:
            made.set_dim(dim, length, coord_values=tuple(range(length)))
    return made
