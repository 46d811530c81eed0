"""What a distribution is called with: its arguments, how many axes each has for one row, and what they are called."""

import inspect
from collections.abc import Collection, Sequence
from typing import Any

from pymc.distributions.distribution import SymbolicRandomVariable
from pymc.distributions.mixture import _BaseMixtureRV
from pymc.distributions.truncated import TruncatedRV
from pytensor.graph.traversal import ancestors
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.type_other import NoneTypeT

from pymc_amortized.graph.model.operations import core_op

ARGUMENTS = {
    "NormalRV": ("mu", "sigma"),
    "StudentTRV": ("nu", "mu", "sigma"),
    "LogNormalRV": ("mu", "sigma"),
    "LaplaceRV": ("mu", "b"),
    "GammaRV": ("alpha", "scale"),
    "ExponentialRV": ("scale",),
    "BetaRV": ("alpha", "beta"),
    "UniformRV": ("lower", "upper"),
    "WeibullBetaRV": ("alpha", "beta"),
    "PoissonRV": ("mu",),
    "NegBinomialRV": ("n", "p"),
    "BernoulliRV": ("p",),
    "BinomialRV": ("n", "p"),
    "CategoricalRV": ("p",),
}
"""What the arguments of PyMC's distributions are called, where the operation that draws takes them as they are."""


def arguments_of(var: Any, named: Collection[Any]) -> list[tuple[Any, int, str | None]]:
    """What a distribution is called with: each argument, its core dimensions, its name if a simulator says so.

    Parameters
    ----------
    var : TensorVariable
        What it draws.
    named : collection of variables
        Random variables of the model, at which to stop: distributions of distributions are looked into.
    """
    node, op = var.owner, core_op(var)
    if isinstance(op, RandomVariable):
        parameters = list(op.dist_params(node))
        return list(zip(parameters, op.ndims_params, _argument_names(op, len(parameters)), strict=True))
    if isinstance(op, TruncatedRV) and isinstance(op.base_rv_op, RandomVariable):
        return _truncated_arguments(op.base_rv_op, node.inputs)
    if not isinstance(op, SymbolicRandomVariable) or op.extended_signature is None:
        raise ValueError(f"{var.name!r} is drawn by {type(op).__name__}, whose parameters are not known")
    found: list[tuple[Any, int, str | None]] = []
    parameters = op.dist_params(node)
    for parameter, core in zip(parameters, op.ndims_params, strict=True):
        if _is_drawn(parameter, named):  # a distribution: what it takes is what counts
            stacked = _stacked(op, len(parameters), parameter, core)
            found += [(p, _core_ndim(p, n, stacked), name) for p, n, name in arguments_of(parameter, named)]
        elif not isinstance(parameter.type, NoneTypeT):
            found.append((parameter, core, None))
    return found


def _truncated_arguments(base: RandomVariable, inputs: Sequence[Any]) -> list[tuple[Any, int, str | None]]:
    """Arguments of a truncated distribution, whose operation has them behind a generator and a size, without saying."""
    _, _, *parameters, lower, upper = inputs
    names = _argument_names(base, len(parameters))
    return [*zip(parameters, base.ndims_params, names, strict=True), (lower, 0, "lower"), (upper, 0, "upper")]


def _is_drawn(argument: Any, named: Collection[Any]) -> bool:
    """Whether a distribution's argument is another distribution, rather than a variable of the model."""
    above = ancestors([argument], blockers=named)
    return argument not in named and any(isinstance(v.type, RandomType) for v in above)


def inner_distributions(var: Any, named: Collection[Any]) -> list[Any]:
    """Distributions that a distribution is made of, at any depth, in the order of its arguments."""
    op = core_op(var)
    if not isinstance(op, SymbolicRandomVariable) or op.extended_signature is None:
        return []
    found = []
    for parameter in op.dist_params(var.owner):
        if _is_drawn(parameter, named):
            found += [parameter, *inner_distributions(parameter, named)]
    return found


def _stacked(op: Any, count: int, inner: Any, core_ndim: int) -> int:
    """Axes of a distribution's draws that belong to one row of the distribution made of it: components, first values.

    Its own arguments say nothing of them: ``mu`` of ``pm.NormalMixture`` is that of a normal distribution, a number.
    """
    if isinstance(op, _BaseMixtureRV):  # whose signature does not count the axes of vectors
        return int(count == 2)  # the weights, and one distribution that draws all components
    return max(core_ndim - int(core_op(inner).ndim_supp), 0) if core_op(inner) is not None else 0


def _core_ndim(argument: Any, core_ndim: int, stacked: int) -> int:
    """Core dimensions of a stacked distribution's argument: no more where it is the same for all that is stacked."""
    same = without_new_axes(argument, core_ndim).type.ndim == core_ndim
    return core_ndim if same else core_ndim + stacked


def _argument_names(op: Any, count: int) -> list[str | None]:
    known = ARGUMENTS.get(type(op).__name__)
    if known is not None and len(known) == count:
        return list(known)
    function = getattr(type(op), "_random_fn", None) or getattr(type(op), "fn", None)
    if function is None:
        return [None] * count
    try:
        names = [p for p in inspect.signature(function).parameters if p not in ("rng", "size")]
    except (TypeError, ValueError):
        return [None] * count
    return list(names) if len(names) == count else [None] * count


def without_new_axes(var: Any, core_ndim: int) -> Any:
    """Undo leading axes of length 1, which say nothing."""
    while (
        var.owner is not None
        and isinstance(var.owner.op, DimShuffle)
        and var.owner.op.is_left_expand_dims
        and var.owner.inputs[0].type.ndim >= core_ndim
    ):
        var = var.owner.inputs[0]
    return var
