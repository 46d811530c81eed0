"""What an observed variable's rows are, and what the distribution of one row depends on.

PyMC draws a variable from its distribution's parameters: ``pm.CustomDist("rt", drift[subject], boundary, random=...)``
says that a response time depends on one drift and one boundary, whatever the model above says about these. That
conditional distribution is what is learned: of few numbers, the same in every model that uses it, and exact about
which rows depend on what. Axes over which a distribution repeats its draws hold rows that are independent given their
parameters, by PyMC's own contract; a ``pm.Simulator`` does with its size what it likes, so that the user has to say.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
from pymc.distributions.distribution import SymbolicRandomVariable
from pymc.distributions.mixture import _BaseMixtureRV
from pymc.distributions.simulator import SimulatorRV
from pymc.distributions.truncated import TruncatedRV
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, equal_computations
from pytensor.graph.traversal import ancestors
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.type_other import NoneTypeT

from pymc_amortized.graph.drawing import drawing
from pymc_amortized.graph.evidence import TIME_SERIES
from pymc_amortized.graph.kinds import FLAT, KINDS
from pymc_amortized.graph.simulator import Simulations
from pymc_amortized.graph.spec import DataVariable, ModelSpec
from pymc_amortized.graph.suitability import core_op
from pymc_amortized.rows.columns import Kind as ColumnKind
from pymc_amortized.rows.prepared import Rows

MOST_COLUMNS = 32
"""A row of more numbers than this is refused: each has a network of its own."""
BOUNDED = frozenset({"BinomialRV", "BernoulliRV", "CategoricalRV", "DiscreteUniformRV", "BetaBinomialRV"})
"""Discrete distributions that end somewhere: with few values these are categories."""


@dataclass(frozen=True, eq=False)
class RowParameter:
    """One argument of the observed variable's distribution that is not the same in all simulations.

    Attributes
    ----------
    name : str
        That of the model's variable behind it, or of the simulator's argument.
    variable : Any
        In the graph of the spec's model.
    core_shape : tuple of int
        What one row takes of it.
    batch_ndim : int
        Number of leading axes that say to which rows it belongs.
    position : int
        Among the arguments of the distribution.
    leaves : tuple of str
        Named variables that it is computed from element by element, where it has no name of its own.
    """

    name: str
    variable: Any
    core_shape: tuple[int, ...]
    batch_ndim: int
    position: int
    leaves: tuple[str, ...] = ()

    @property
    def numbers(self) -> list[str]:
        """Names of its numbers in one row."""
        if not self.core_shape:
            return [self.name]
        return [f"{self.name}[{', '.join(map(str, i))}]" for i in np.ndindex(*self.core_shape)]


@dataclass(frozen=True, eq=False)
class ObservedRows:
    """How values of an observed variable fall into rows.

    Attributes
    ----------
    variable : DataVariable
    batch_ndim : int
        Leading axes of independent rows, or of independent series.
    series : bool
        Whether the next axis is that of a series, in which a row depends on those before it.
    event_shape : tuple of int
        The remaining axes: the numbers of one row.
    parameters : tuple of RowParameter
    kind : str or None
        Of the numbers, where the distribution tells.
    """

    variable: DataVariable
    batch_ndim: int
    series: bool
    event_shape: tuple[int, ...]
    parameters: tuple[RowParameter, ...]
    kind: ColumnKind | None

    @property
    def columns(self) -> int:
        """Numbers of one row."""
        return int(np.prod(self.event_shape, dtype=int))

    def of_simulations(self, made: Simulations, lags: int, chosen: np.ndarray | None) -> Rows:
        """Read rows off simulations whose deterministics hold the parameters.

        Parameters
        ----------
        lags : int
        chosen : ndarray (n, k), optional
            Which rows of each simulation to take; all by default.
        """
        n = len(made)
        shape = self.variable.shape_at({})
        length = shape[self.batch_ndim] if self.series else 1
        batch = shape[: self.batch_ndim]
        values = made.data[self.variable.name].reshape(n, -1, length, self.columns).astype("float64")
        parameters = []
        for i, p in enumerate(self.parameters):
            array = np.asarray(made.variables[hidden_name(i)], dtype="float64")
            lead = array.shape[1 : 1 + p.batch_ndim]
            array = array.reshape(n, *(1,) * (len(batch) - p.batch_ndim), *lead, -1)
            array = np.broadcast_to(array, (n, *batch, array.shape[-1])).reshape(n, -1, 1, array.shape[-1])
            parameters.append(np.broadcast_to(array, (n, array.shape[1], length, array.shape[-1])))
        stacked = np.concatenate(parameters, -1)
        past = None
        if lags:
            gaps = np.full((*values.shape[:2], lags, self.columns), np.nan)
            before = np.concatenate([gaps, values], axis=2)
            past = np.stack([before[:, :, lags - lag : lags - lag + length] for lag in range(1, lags + 1)], axis=3)
        return Rows(
            _rows(stacked, chosen).T,
            _rows(values, chosen).T,
            None if past is None else np.moveaxis(_rows(past, chosen), 0, -1),
        )

    @property
    def rows(self) -> int:
        """Rows of one simulation."""
        shape = self.variable.shape_at({})
        return int(np.prod(shape[: self.batch_ndim + self.series], dtype=int))


def _rows(array: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
    """(n, series, length, ...) to (rows, ...), some of them where chosen."""
    flat = array.reshape(len(array), -1, *array.shape[3:])
    if chosen is not None:
        flat = flat[np.arange(len(flat))[:, None], chosen]
    return flat.reshape(-1, *flat.shape[2:])


def hidden_name(i: int) -> str:
    """Name of the deterministic that holds a row parameter in the model that is simulated."""
    return f"row parameter {i}"


def add_row_parameters(spec: ModelSpec, observed: ObservedRows) -> list[str]:
    """Have the spec's own model compute the row parameters, and return their names."""
    names = []
    with spec.model:
        for i, p in enumerate(observed.parameters):
            pm.Deterministic(hidden_name(i), p.variable)
            names.append(hidden_name(i))
    return names


def find_rows(spec: ModelSpec, name: str, structure: Mapping[str, Any]) -> ObservedRows:
    """Find out what one row of an observed variable is.

    Raises
    ------
    ValueError
        The rows are not known, or one has too many numbers; the message says what to write.
    """
    variable = next(v for v in spec.observed if v.name == name)
    var = spec.model[name]
    op = core_op(var)
    batch_ndim, series = _axes(variable, op, structure.get(name))
    shape = variable.shape_at({})
    event_shape = shape[batch_ndim + series :]
    if int(np.prod(event_shape, dtype=int)) > MOST_COLUMNS:
        raise ValueError(
            f"one row of {name!r} would have {int(np.prod(event_shape))} numbers, at most {MOST_COLUMNS} can be "
            f"learned: say structure={{{name!r}: 'exchangeable'}} if its entries are independent given the "
            "parameters, or 'sequence' if they are a series"
        )
    parameters = _parameters(spec, var, batch_ndim, shape)
    if not parameters:
        raise ValueError(f"nothing that {name!r} depends on varies: there is no likelihood to learn")
    return ObservedRows(variable, batch_ndim, series, event_shape, parameters, _column_kind(variable, var))


def _axes(variable: DataVariable, op: Any, said: Any) -> tuple[int, bool]:
    """Number of axes of independent rows, and whether the next is that of a series."""
    ndim = len(variable.shape)
    batch_ndim = ndim - int(getattr(op, "ndim_supp", 0))
    is_series = any(cls.__name__ in TIME_SERIES for cls in type(op).__mro__)
    if isinstance(op, SimulatorRV):
        batch_ndim = 0
    if said is None:
        if isinstance(op, SimulatorRV) and ndim and int(np.prod(variable.shape_at({}))) > MOST_COLUMNS:
            raise ValueError(
                f"{variable.name!r} is a pm.Simulator: say structure={{{variable.name!r}: 'exchangeable'}} if its "
                "rows are independent given the parameters, or 'sequence' if they are a series"
            )
        return batch_ndim, is_series
    kinds = [said] if isinstance(said, str) else list(said)
    kinds = ["features"] * ndim if kinds == [FLAT] else kinds
    unknown = [k for k in kinds if k not in KINDS or k == "grouped"]
    if unknown or len(kinds) > ndim:
        raise ValueError(
            f"structure[{variable.name!r}]: {said!r} given for {ndim} axes; 'exchangeable', 'sequence', 'features' are "
            "possible for each, from the first on"
        )
    rank = {"exchangeable": 0, "sequence": 1, "features": 2}
    order = [rank[k] for k in kinds]
    if order != sorted(order) or order.count(1) > 1:
        raise ValueError(
            f"structure[{variable.name!r}]: {said!r}; axes of independent rows come first, then one of a series at "
            "most, then those of one row"
        )
    return order.count(0), 1 in order


def _parameters(spec: ModelSpec, var: Any, batch_ndim: int, shape: tuple[int, ...]) -> tuple[RowParameter, ...]:
    found: list[RowParameter] = []
    arguments = arguments_of(var, {*spec.model.basic_RVs})
    varying = [i for i, (parameter, core_ndim, _) in enumerate(arguments) if _varies(spec, parameter, core_ndim)]
    stripped = {i: _without_new_axes(arguments[i][0], arguments[i][1]) for i in varying}
    behind = {i: _name_behind(spec, arguments[i][0]) for i in varying}
    leaves = {i: () if behind[i] else _unambiguous(spec, stripped[i], arguments[i][1]) for i in varying}
    different = _picked_differently(spec, [stripped[i] for i in varying if behind[i] or "" not in leaves[i]])
    for i in varying:
        if not different.isdisjoint(leaves[i]):
            leaves[i] = ("",)  # one value by this name is not what the others are computed from
    names = _names(spec, var.name, {i: None if name in different else name for i, name in behind.items()}, arguments)
    for i in varying:
        parameter, core_ndim, _ = arguments[i]
        ndim = stripped[i].type.ndim - core_ndim
        if ndim > batch_ndim:
            raise ValueError(
                f"{var.name!r}: its parameter {names[i]!r} differs along an axis that is not one of independent rows; "
                "this is not supported"
            )
        core_shape = _core_shape(var, parameter, core_ndim)
        found.append(RowParameter(names[i], stripped[i], core_shape, ndim, i, leaves[i]))
    return tuple(found)


def _names(
    spec: ModelSpec, drawn: str, behind: Mapping[int, str | None], arguments: Sequence[tuple[Any, int, str | None]]
) -> dict[int, str]:
    """A name of its own for each argument that varies, by its position.

    That of the model's variable behind it; or what the distribution calls it, with a number where it is one of a
    mixture, whose components call theirs the same; or else the observed variable's name with a number.
    """
    said = [argument for _, _, argument in arguments]
    given = list(behind.values())
    names = {i: name for i, name in behind.items() if name is not None and given.count(name) == 1}
    unnamed = [i for i in behind if i not in names]
    for i in unnamed:
        name, argument = f"{drawn}_{i}", said[i]
        if argument is not None:
            alone = [said[j] for j in unnamed].count(argument) == 1
            numbered = argument if alone else f"{argument}_{said[:i].count(argument)}"
            # of exp(mu), "mu" would be two things
            name = name if numbered in spec.model.named_vars or numbered in names.values() else numbered
        while name in spec.model.named_vars or name in names.values():
            name += "_"
        names[i] = name
    return names


def _picked_differently(spec: ModelSpec, parameters: Sequence[Any]) -> set[str]:
    """Names of variables from which parameters pick different elements, as ``Normal(b[0], exp(b[1]))`` does."""
    first: dict[str, Any] = {}
    different = set()
    for picked in (v for parameter in parameters for v in _picked(spec, parameter)):
        name = _name_behind(spec, picked) or ""
        if not _same_pick(first.setdefault(name, picked), picked):
            different.add(name)
    return different


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
    same = _without_new_axes(argument, core_ndim).type.ndim == core_ndim
    return core_ndim if same else core_ndim + stacked


def arguments_like(observed: ObservedRows, var: Any, named: Collection[Any]) -> list[Any]:
    """The row parameters in a copy of the graph in which `var` is the observed variable."""
    arguments = arguments_of(var, named)
    return [_without_new_axes(arguments[p.position][0], len(p.core_shape)) for p in observed.parameters]


def distribution_of(spec: ModelSpec, observed: ObservedRows) -> list[Any]:
    """Describe a row's distribution but for what it varies with: its operations, and its other arguments; as JSON."""
    var = spec.model[observed.variable.name]
    named = {*spec.model.basic_RVs}
    varying = {p.position for p in observed.parameters}
    described: list[Any] = [type(core_op(var)).__name__]
    beyond = drawing(var, inner_distributions(var, named))
    if beyond:
        described.append(beyond)
    for i, (argument, _, _) in enumerate(arguments_of(var, named)):
        if i not in varying:
            read = set(ancestors([argument]))
            given = {v: spec.held[name] for name, v in spec.symbols.items() if v in read and name in spec.held}
            inputs = {v: x for v, x in given.items() if not isinstance(v, SharedVariable)}
            value = np.asarray(argument.eval(inputs), dtype="float64")
            if observed.series and argument.type.dtype.startswith("int") and value.ndim == 0:
                value = value - _steps(spec, observed)  # AR counts the steps after its first values
            distinct = np.unique(value)  # repeated over rows or not
            described.append([i, distinct.tolist() if len(distinct) == 1 else value.tolist()])
    return described


def _steps(spec: ModelSpec, observed: ObservedRows) -> int:
    """How long a series is where the model's own data are."""
    name, axis = observed.variable.name, observed.batch_ndim
    return int(observed.variable.shape[axis] or np.shape(spec.held[name])[axis])


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


def _varies(spec: ModelSpec, parameter: Any, core_ndim: int) -> bool:
    """Whether it differs between simulations or between rows."""
    above = set(ancestors([parameter]))
    if not above.isdisjoint(spec.model.basic_RVs):
        return True
    rows = {spec.variable(c.name) for c in spec.context}
    if _without_new_axes(parameter, core_ndim).type.ndim > core_ndim:  # else the same for all rows, as weights may be
        rows |= {spec.variable(v.name) for v in spec.unchanging if np.size(spec.held[v.name]) > 1}
    return not above.isdisjoint(rows)


def _without_new_axes(var: Any, core_ndim: int) -> Any:
    """Undo leading axes of length 1, which say nothing."""
    while (
        var.owner is not None
        and isinstance(var.owner.op, DimShuffle)
        and var.owner.op.is_left_expand_dims
        and var.owner.inputs[0].type.ndim >= core_ndim
    ):
        var = var.owner.inputs[0]
    return var


def _core_shape(var: Any, parameter: Any, core_ndim: int) -> tuple[int, ...]:
    shape = parameter.type.shape[parameter.type.ndim - core_ndim :]
    if None in shape:
        shape = tuple(int(n) for n in parameter.shape.eval()[parameter.type.ndim - core_ndim :])
    return tuple(shape)


def _name_behind(spec: ModelSpec, var: Any) -> str | None:
    """Name of the model's variable that an argument is, or picks elements from."""
    var = _without_new_axes(var, 0)
    if var.owner is not None and isinstance(var.owner.op, AdvancedSubtensor | Subtensor):
        return _name_behind(spec, var.owner.inputs[0])
    return var.name if var.name in spec.model.named_vars else None


def _unambiguous(spec: ModelSpec, var: Any, core_ndim: int) -> tuple[str, ...]:
    """Leaves of a variable by which it can be computed row by row; ("",) where values by name do not tell it.

    Of ``b[0] + b[1] * x``, one value of ``b`` for each row is not what the two are picked from; axes of a row's own
    numbers cannot be told from those of rows.
    """
    leaves = _leaves(spec, var)
    if core_ndim or "" in leaves:
        return ("",)
    behind: dict[str, Any] = {}
    for picked in _picked(spec, var):
        name = _name_behind(spec, picked) or ""
        if not _same_pick(behind.setdefault(name, picked), picked):
            return ("",)
    return leaves


def _picked(spec: ModelSpec, var: Any) -> list[Any]:
    """Variables at which :func:`_leaves` finds names."""
    if isinstance(var, Constant):
        return []
    if _name_behind(spec, var) is not None:
        return [_without_new_axes(var, 0)]
    return [found for i in var.owner.inputs for found in _picked(spec, i)]


def _same_pick(one: Any, other: Any) -> bool:
    return one is other or equal_computations([one], [other])


def _leaves(spec: ModelSpec, var: Any) -> tuple[str, ...]:
    """Named variables from which a variable is computed element by element; none where it is not."""
    if var.name in spec.model.named_vars:
        return (var.name,)
    if isinstance(var, Constant):
        return ()
    picked = _name_behind(spec, var)
    if picked is not None:
        return (picked,)
    if var.owner is None or not isinstance(var.owner.op, Elemwise | DimShuffle):
        return ("",)
    found = [leaf for i in var.owner.inputs for leaf in _leaves(spec, i)]
    return tuple(dict.fromkeys(found)) if "" not in found else ("",)


def recomputed(spec: ModelSpec, var: Any, given: Mapping[str, Any]) -> Any:
    """Compute an argument of the distribution from other values of the named variables behind it, row by row."""
    picked = _name_behind(spec, var)
    if picked is not None and picked in given:
        return given[picked]
    if isinstance(var, Constant):
        return var
    inputs = [recomputed(spec, i, given) for i in var.owner.inputs]
    # axes are added for broadcasting only, which happens anyway
    return inputs[0] if isinstance(var.owner.op, DimShuffle) else var.owner.op(*inputs)


def _column_kind(variable: DataVariable, var: Any) -> ColumnKind | None:
    if np.dtype(variable.dtype).kind == "f":
        return None
    return None if type(core_op(var)).__name__ in BOUNDED or variable.dtype == "bool" else "count"


def shown(parameters: Sequence[RowParameter]) -> str:
    """Names of parameters, for messages."""
    return ", ".join(p.name for p in parameters)
