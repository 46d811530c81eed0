"""Where an argument of a distribution comes from: the named variables that it picks from, or is computed from."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytensor.graph.basic import Constant, equal_computations
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.row_arguments import without_new_axes


def name_behind(spec: ModelSpec, var: Any) -> str | None:
    """Name of the model's variable that an argument is, or picks elements from."""
    var = without_new_axes(var, 0)
    if var.owner is not None and isinstance(var.owner.op, AdvancedSubtensor | Subtensor):
        return name_behind(spec, var.owner.inputs[0])
    return var.name if var.name in spec.model.named_vars else None


def recompute(spec: ModelSpec, var: Any, given: Mapping[str, Any]) -> Any:
    """Compute an argument of the distribution from other values of the named variables behind it, row by row."""
    picked = name_behind(spec, var)
    if picked is not None and picked in given:
        return given[picked]
    if isinstance(var, Constant):
        return var
    inputs = [recompute(spec, i, given) for i in var.owner.inputs]
    # axes are added for broadcasting only, which happens anyway
    return inputs[0] if isinstance(var.owner.op, DimShuffle) else var.owner.op(*inputs)


def unambiguous_leaves(spec: ModelSpec, var: Any, core_ndim: int) -> tuple[str, ...]:
    """Leaves of a variable by which it can be computed row by row; ("",) where values by name do not tell it.

    Of ``b[0] + b[1] * x``, one value of ``b`` for each row is not what the two are picked from; axes of a row's own
    numbers cannot be told from those of rows.
    """
    leaves = _leaves(spec, var)
    if core_ndim or "" in leaves:
        return ("",)
    behind: dict[str, Any] = {}
    for picked in _picked(spec, var):
        name = name_behind(spec, picked) or ""
        if not _same_pick(behind.setdefault(name, picked), picked):
            return ("",)
    return leaves


def picked_differently(spec: ModelSpec, parameters: Sequence[Any]) -> set[str]:
    """Names of variables from which parameters pick different elements, as ``Normal(b[0], exp(b[1]))`` does."""
    first: dict[str, Any] = {}
    different = set()
    for picked in (v for parameter in parameters for v in _picked(spec, parameter)):
        name = name_behind(spec, picked) or ""
        if not _same_pick(first.setdefault(name, picked), picked):
            different.add(name)
    return different


def _leaves(spec: ModelSpec, var: Any) -> tuple[str, ...]:
    """Named variables from which a variable is computed element by element; none where it is not."""
    if var.name in spec.model.named_vars:
        return (var.name,)
    if isinstance(var, Constant):
        return ()
    picked = name_behind(spec, var)
    if picked is not None:
        return (picked,)
    if var.owner is None or not isinstance(var.owner.op, Elemwise | DimShuffle):
        return ("",)
    found = [leaf for i in var.owner.inputs for leaf in _leaves(spec, i)]
    return tuple(dict.fromkeys(found)) if "" not in found else ("",)


def _picked(spec: ModelSpec, var: Any) -> list[Any]:
    """Variables at which :func:`_leaves` finds names."""
    if isinstance(var, Constant):
        return []
    if name_behind(spec, var) is not None:
        return [without_new_axes(var, 0)]
    return [found for i in var.owner.inputs for found in _picked(spec, i)]


def _same_pick(one: Any, other: Any) -> bool:
    return one is other or equal_computations([one], [other])
