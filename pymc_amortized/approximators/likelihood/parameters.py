"""Parameters for a learned likelihood, given by name: read, and refused where they do not fit its rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable

from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.graph.rows.origins import recompute


def parameter_names(rows: ObservedRows) -> tuple[str, ...]:
    """Names of what rows depend on: of the model's own variables, where a parameter is computed from these."""
    names: list[str] = []
    for p in rows.parameters:
        names += p.leaves if p.leaves and "" not in p.leaves else [p.name]
    return tuple(dict.fromkeys(names))


def read_parameters(given: Mapping[str, Any], spec: ModelSpec, rows: ObservedRows) -> list[Any]:
    """Read the arguments of a row's distribution from values by name, as PyTensor variables.

    Parameters
    ----------
    given : mapping of name to array_like or TensorVariable
        By the names of :func:`parameter_names`, or of the distribution's own arguments.
    spec : ModelSpec
    rows : ObservedRows

    Raises
    ------
    TypeError, ValueError
        When parameters are missing, unknown, not finite, no real numbers, or of the wrong shape.
    """
    names = [p.name for p in rows.parameters]
    wanted = names if set(given) == set(names) else list(parameter_names(rows))
    if set(given) != set(wanted):
        unknown, missing = sorted(set(given) - set(wanted)), [n for n in wanted if n not in given]
        parts = [f"unknown: {unknown}" if unknown else "", f"missing: {missing}" if missing else ""]
        raise TypeError(
            f"the likelihood of {rows.variable.name!r} takes the parameters {wanted}; "
            + ", ".join(part for part in parts if part)
        )
    for name, value in given.items():
        if not isinstance(value, Variable) and not np.isfinite(np.asarray(value, dtype=float)).all():
            raise ValueError(f"{name!r} must be finite, got {value!r}")
    arguments = []
    for p in rows.parameters:
        if p.name in given:
            argument = given[p.name]
        else:
            argument = recompute(spec, p.variable, {name: pt.as_tensor(value) for name, value in given.items()})
        argument = pt.as_tensor(argument)
        core = argument.type.shape[argument.type.ndim - len(p.core_shape) :]
        if argument.type.ndim < len(p.core_shape) or any(
            n not in (None, m) for n, m in zip(core, p.core_shape, strict=True)
        ):
            raise ValueError(f"{p.name!r} has shape {argument.type.shape}; its last axes must be {p.core_shape}")
        if argument.type.dtype == "bool" or argument.type.dtype.startswith("complex"):
            raise TypeError(f"{p.name!r} must be real numbers, got {argument.type.dtype}")
        arguments.append(argument)
    return arguments


def spread(values: np.ndarray, arguments: Sequence[np.ndarray], rows: ObservedRows) -> np.ndarray:
    """Repeat rows (..., event) where parameters are more; refuse those that do not broadcast."""
    own = len(rows.event_shape) + rows.series
    shapes = {"the rows": values.shape[: values.ndim - own]} | _leading(arguments, rows)
    lead = _broadcast(shapes)
    if lead is None:
        raise ValueError(f"parameters and rows do not broadcast: {_shown(shapes)}")
    return np.broadcast_to(values, lead + values.shape[values.ndim - own :])


def check_over_rows(arguments: Sequence[Any], shape: tuple[int, ...], rows: ObservedRows) -> None:
    """Refuse parameters, PyTensor variables, that do not broadcast over the rows of data of a shape."""
    batch = shape[: len(shape) - len(rows.event_shape) - rows.series]
    for p, argument in zip(rows.parameters, arguments, strict=True):
        lead = argument.type.shape[: argument.type.ndim - len(p.core_shape)]
        known = tuple(1 if n is None else n for n in lead)
        if _broadcast({p.name: known, "": batch}) != batch:
            raise ValueError(f"{p.name!r} has shape {lead}, which does not broadcast over the rows {batch}")


def check_draws(arguments: Sequence[np.ndarray], shape: tuple[int, ...] | None, rows: ObservedRows) -> None:
    """Refuse parameters that do not broadcast against each other, or to the shape of draws that is wanted."""
    shapes = _leading(arguments, rows)
    together = _broadcast(shapes)
    if together is None or (shape is not None and _broadcast({"": together, "shape": shape}) != shape):
        wanted = "" if shape is None else f" to shape {shape}"
        raise ValueError(f"parameters do not broadcast{wanted}: {_shown(shapes)}")


def _leading(arguments: Sequence[np.ndarray], rows: ObservedRows) -> dict[str, tuple[int, ...]]:
    pairs = zip(rows.parameters, arguments, strict=True)
    return {repr(p.name): a.shape[: a.ndim - len(p.core_shape)] for p, a in pairs}


def _broadcast(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        return None


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
