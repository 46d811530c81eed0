"""Copies of a model in which what does not vary between data sets is constant, and lengths that vary are inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.model.transform.optimization import freeze_dims_and_data
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.type import RandomGeneratorType

from pymc_amortized.graph.model.copying import substitute, without_gp_warning


def freeze(model: pm.Model, containers: set[str], varying: set[str]) -> pm.Model:
    """Copy the model with constant observations, and constant dimensions but for those that vary."""
    with without_gp_warning():
        if varying:
            plain_copy = _without_initial_values(freeze_dims_and_data(model, dims=[], data=[]))
            model = _with_free_lengths(plain_copy, sorted(varying), sorted(containers))
            containers = {name for name in containers if isinstance(model[name], SharedVariable)}
        fixed = [name for name in model.dim_lengths if name not in varying]
        frozen = freeze_dims_and_data(model, dims=fixed, data=sorted(containers))
        return _freeze_unregistered_shared(_without_initial_values(frozen))


def _without_initial_values(model: pm.Model) -> pm.Model:
    """They are not needed, and PyMC's graph functions refuse them."""
    for rv in model.rvs_to_initial_values:
        model.rvs_to_initial_values[rv] = None
    return model


def _freeze_unregistered_shared(model: pm.Model) -> pm.Model:
    """Make constants of shared variables that were used without ``pm.Data``."""
    registered = {*model.data_vars, *model.dim_lengths.values()}
    roots = [*model.basic_RVs, *model.deterministics, *model.potentials, *model.rvs_to_values.values()]
    loose = {
        v: v.type.constant_type(type=v.type, data=v.get_value(), name=v.name)
        for v in ancestors(roots)
        if isinstance(v, SharedVariable) and v not in registered and not isinstance(v.type, RandomGeneratorType)
    }
    if not loose:
        return model
    return substitute(model, lambda memo: {memo.get(v, v): constant for v, constant in loose.items()})


def _with_free_lengths(model: pm.Model, dims: Sequence[str], containers: Sequence[str]) -> pm.Model:
    """Copy a model so that the given dimensions have lengths of their own.

    Parameters
    ----------
    dims : sequence of str
        Dimensions that vary.
    containers : sequence of str
        Data containers that hold observations. Nothing reads their values, but shapes may come from them: they
        become arrays of zeros of the dimensions' lengths.
    """
    if not dims:
        return model
    lengths = {dim: pytensor.shared(np.asarray(_length(model, dim), dtype="int64"), name=dim) for dim in dims}

    def replacements(memo: dict[Any, Any]) -> dict[Any, Any]:
        old = {dim: model.dim_lengths[dim] for dim in dims}
        replaced = {memo.get(v, v): lengths[dim].astype(v.type.dtype) for dim, v in old.items()}
        for name in containers:
            carried = model.named_vars_to_dims.get(name) or ()
            if not lengths.keys().isdisjoint(carried):
                shape = [
                    lengths.get(d, n) for d, n in zip(carried, model[name].get_value(borrow=True).shape, strict=True)
                ]
                replaced[memo[model[name]].owner.inputs[0]] = pt.zeros(shape, dtype=model[name].type.dtype)
        return replaced

    freed = substitute(model, replacements)
    freed._dim_lengths.update(lengths)
    return freed


def _length(model: pm.Model, dim: str) -> int:
    return int(model.dim_lengths[dim].eval())
