"""Which entries of a model's context its graph never reads, such as columns of a matrix of which it takes others."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Shape, Shape_i
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pymc_amortized.graph.model.spec import ModelSpec

PICKS = (Subtensor, AdvancedSubtensor, DimShuffle)
"""Operations that give some entries of an array, unchanged."""


def unread_entries(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Mark the entries of each context variable (*shape) that neither densities nor draws depend on.

    Variables of which every entry may be read are left out; so are entries picked by what is not constant.
    """
    model = spec.model
    clients: dict[Any, list[Any]] = defaultdict(list)
    for var in ancestors([*model.basic_RVs, *model.potentials]):
        for given in [] if var.owner is None else var.owner.inputs:
            clients[given].append(var)
    found = {}
    for variable in spec.context:
        places = np.arange(np.prod(shape := variable.shape_at(spec.largest), dtype=int)).reshape(shape)
        unread = ~np.isin(places, _read(spec.variable(variable.name), places, clients))
        if unread.any():
            found[variable.name] = unread
    return found


def _read(var: Any, places: np.ndarray, clients: dict[Any, list[Any]]) -> np.ndarray:
    """Which of the places (shape of var) what is computed from a variable reads."""
    read = [np.empty(0, dtype=int)]
    for client in clients[var]:
        op, others = client.owner.op, [v for v in client.owner.inputs if v is not var]
        if isinstance(op, Shape | Shape_i):
            continue
        if isinstance(op, Elemwise) and not others:  # a cast, say
            read.append(_read(client, places, clients))
        elif isinstance(op, PICKS) and client.owner.inputs[0] is var and all(isinstance(v, Constant) for v in others):
            picked = op.make_node(pt.as_tensor(places), *others).outputs[0].eval()
            read.append(_read(client, picked, clients))
        else:
            return places.ravel()
    return np.concatenate(read)
