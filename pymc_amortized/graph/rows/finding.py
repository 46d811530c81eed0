"""Finding out what an observed variable's rows are, and what the distribution of one row depends on.

PyMC draws a variable from its distribution's parameters: ``pm.CustomDist("rt", drift[subject], boundary, random=...)``
says that a response time depends on one drift and one boundary, whatever the model above says about these. That
conditional distribution is what is learned: of few numbers, the same in every model that uses it, and exact about
which rows depend on what. Axes over which a distribution repeats its draws hold rows that are independent given their
parameters, by PyMC's own contract; a ``pm.Simulator`` does with its size what it likes, so that the user has to say.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from pymc.distributions.simulator import SimulatorRV
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.model.axes import FLAT, KINDS
from pymc_amortized.graph.model.operations import core_op, is_time_series, op_name
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.rows.fingerprint import describe_drawing
from pymc_amortized.graph.rows.observed_rows import ObservedRows, RowParameter
from pymc_amortized.graph.rows.origins import name_behind, picked_differently, unambiguous_leaves
from pymc_amortized.graph.rows.row_arguments import arguments_of, inner_distributions, without_new_axes

MOST_COLUMNS = 32
"""A row of more numbers than this is refused: each has a network of its own."""


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
    is_series = is_time_series(op)
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
    stripped = {i: without_new_axes(arguments[i][0], arguments[i][1]) for i in varying}
    behind = {i: name_behind(spec, arguments[i][0]) for i in varying}
    leaves = {i: () if behind[i] else unambiguous_leaves(spec, stripped[i], arguments[i][1]) for i in varying}
    different = picked_differently(spec, [stripped[i] for i in varying if behind[i] or "" not in leaves[i]])
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


def arguments_like(observed: ObservedRows, var: Any, named: Collection[Any]) -> list[Any]:
    """The row parameters in a copy of the graph in which `var` is the observed variable."""
    arguments = arguments_of(var, named)
    return [without_new_axes(arguments[p.position][0], len(p.core_shape)) for p in observed.parameters]


def distribution_of(spec: ModelSpec, observed: ObservedRows) -> list[Any]:
    """Describe a row's distribution but for what it varies with: its operations, and its other arguments; as JSON."""
    var = spec.model[observed.variable.name]
    named = {*spec.model.basic_RVs}
    varying = {p.position for p in observed.parameters}
    described: list[Any] = [type(core_op(var)).__name__]
    beyond = describe_drawing(var, inner_distributions(var, named))
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


def _varies(spec: ModelSpec, parameter: Any, core_ndim: int) -> bool:
    """Whether it differs between simulations or between rows."""
    above = set(ancestors([parameter]))
    if not above.isdisjoint(spec.model.basic_RVs):
        return True
    rows = {spec.variable(c.name) for c in spec.context}
    if without_new_axes(parameter, core_ndim).type.ndim > core_ndim:  # else the same for all rows, as weights may be
        rows |= {spec.variable(v.name) for v in spec.unchanging if np.size(spec.held[v.name]) > 1}
    return not above.isdisjoint(rows)


def _core_shape(var: Any, parameter: Any, core_ndim: int) -> tuple[int, ...]:
    shape = parameter.type.shape[parameter.type.ndim - core_ndim :]
    if None in shape:
        shape = tuple(int(n) for n in parameter.shape.eval()[parameter.type.ndim - core_ndim :])
    return tuple(shape)


def _column_kind(variable: DataVariable, var: Any) -> str | None:
    if np.dtype(variable.dtype).kind == "f":
        return None
    # what ends somewhere is categories where it has few values
    bounded = ("BinomialRV", "BernoulliRV", "CategoricalRV", "DiscreteUniformRV", "BetaBinomialRV")
    return None if op_name(var) in bounded or variable.dtype == "bool" else "count"
