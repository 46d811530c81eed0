"""What a model is at the moment, as digests by name: whether something that was made from it still holds."""

import functools
import hashlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pymc as pm
import torch
import xarray as xr
from pymc.distributions.custom import CustomDistRV, CustomSymbolicDistRV
from pymc.distributions.simulator import SimulatorRV
from pymc.logprob.abstract import _logprob
from pytensor.compile.ops import FromFunctionOp
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.op import Op
from pytensor.graph.traversal import ancestors
from pytensor.printing import debugprint
from pytensor.tensor.random.type import RandomGeneratorType
from pytensor.tensor.type_other import NoneTypeT

from pymc_amortized.graph.model.operations import walk

AT_ONCE = 2**24
"""Values that are read together, to be digested."""
_NO_CONTENT = (ModuleType, Variable, Op, pm.Model, np.random.Generator, np.random.RandomState, logging.Logger)
"""What functions read that has no content, or one that changes by itself, or one that is part of the graph."""


def value_of(var: Any) -> np.ndarray:
    """Value that a variable holds now."""
    if isinstance(var, SharedVariable):
        return np.asarray(var.get_value())
    return np.asarray(var.data if isinstance(var, Constant) else var.eval())


def fingerprint(
    model: pm.Model, context: Mapping[str, Any], arguments: Mapping[str, Any], *, with_data: bool = False
) -> dict[str, str]:
    """What depends on a model and arguments, by name: variables, fixed data, coordinates, arguments.

    Parameters
    ----------
    model : pymc.Model
    context : mapping of name to source
        What may vary.
    arguments : mapping of str to object
        Others.
    with_data : bool
        Whether the values count that the model holds for what varies, and not only their shapes.
    """
    values = [model.rvs_to_values[rv] for rv in model.observed_RVs]
    observed = set(ancestors(values))
    prints: dict[str, str] = {}
    for var, arrays in _variables(model):
        # models only grow: the same object is the same variable, as long as its model lives
        unnamed = [_digest(value_of(array)) for array in arrays if not array.name]
        prints[f"variable {var.name!r}"] = f"{id(var)} {model.rvs_to_transforms.get(var)!r} {unnamed}"
        prints |= {f"array {array.name!r}": _digest(value_of(array)) for array in arrays if array.name}
    for var in (*model.basic_RVs, *model.deterministics):
        if read := [_read_by(function) for function in _functions_of(var)]:
            prints[f"functions of {var.name!r}"] = str(read)
    for rv, value in zip(model.observed_RVs, values, strict=True):
        held = value_of(value)
        prints[f"shape of {rv.name!r}"] = _shape(model, rv, held.shape, context)
        if with_data:
            prints[f"values of {rv.name!r}"] = _digest(held)
    for var in model.data_vars:
        varies = not with_data and (var in observed or var.name in context)
        shape = _shape(model, var, value_of(var).shape, context)
        prints[f"data {var.name!r}"] = shape if varies else _digest(value_of(var))
    for name, length in model.dim_lengths.items():
        if name in context and not with_data:
            continue
        known = isinstance(length, SharedVariable | Constant)  # other lengths follow from data
        prints[f"dimension {name!r}"] = f"{value_of(length) if known else ''} {model.coords.get(name)!r}"
    prints |= {f"context {name!r}": _content(source) for name, source in context.items()}
    prints |= {f"argument {name!r}": _content(argument) for name, argument in arguments.items()}
    return prints


def _shape(model: pm.Model, var: Any, shape: tuple[int, ...], context: Mapping[str, Any]) -> str:
    """Describe a shape without the lengths of dimensions that may differ."""
    value = model.rvs_to_values.get(var)
    dims = model.named_vars_to_dims.get(var.name) or model.named_vars_to_dims.get(getattr(value, "name", None)) or ()
    named = [*dims, *[None] * (len(shape) - len(dims))]
    return str([dim if dim in context else n for n, dim in zip(shape, named, strict=True)])


def _variables(model: pm.Model) -> Iterator[tuple[Any, list[Any]]]:
    """Variables, each with the arrays without ``pm.Data`` that it is the first to read: shared ones and constants."""
    known_ones = {*model.data_vars, *model.dim_lengths.values()}
    for var in (*model.basic_RVs, *model.deterministics, *model.potentials):
        arrays = [
            v
            for v in walk([var], through_shapes=False)
            if isinstance(v, SharedVariable | Constant)
            and v not in known_ones
            and not isinstance(v.type, RandomGeneratorType)
            and (isinstance(v, SharedVariable) or isinstance(v.data, np.ndarray))
        ]
        known_ones.update(arrays)
        yield var, arrays


def _functions_of(var: Any) -> list[Any]:
    """Functions of the user's behind a variable: what draws it, what gives its density, what wraps Python code."""
    found: list[Any] = []
    for node in dict.fromkeys(v.owner for v in walk([var]) if v.owner is not None):
        kind = type(node.op)
        if issubclass(kind, CustomDistRV | CustomSymbolicDistRV):  # the density is written by a function, once
            found += [_logprob.dispatch(kind), getattr(kind, "_random_fn", None)]
        elif issubclass(kind, SimulatorRV | FromFunctionOp):
            found.append(getattr(kind, "fn", None) or vars(node.op).get("_FromFunctionOp__fn"))
    return found


def _read_by(function: Any, depth: int = 3) -> dict[str, str]:
    """What a function of the user's reads from where it was written, and functions that it calls."""
    if isinstance(function, functools.partial):
        held = _content((function.args, function.keywords))
        return {"arguments": held, **_read_by(function.func, depth)}
    if not inspect.isroutine(function) and not inspect.isclass(function) and callable(function):
        function = function.__call__  # an object with a state of its own
    if inspect.ismethod(function):
        return {"self": _hash(function.__self__), **_read_by(function.__func__, depth)}
    if not inspect.isfunction(function) or depth == 0:
        return {}
    variables = inspect.getclosurevars(function)
    found: dict[str, str] = {}
    for name, value in {**variables.globals, **variables.nonlocals}.items():
        if isinstance(value, _NO_CONTENT):
            continue
        if callable(value):
            found |= {f"{name}.{inner}": digest for inner, digest in _read_by(value, depth - 1).items()}
        else:
            found[name] = _content(value)
    return found


def _content(argument: Any) -> str:
    """Tell arguments apart by what they hold; what cannot be hashed, such as a lambda, by identity."""
    if isinstance(argument, Variable):
        arrays = [v for v in ancestors([argument]) if isinstance(v, SharedVariable | Constant)]
        values = [_digest(value_of(v)) for v in arrays if not isinstance(v.type, RandomGeneratorType | NoneTypeT)]
        return f"{debugprint(argument, file='str', id_type='', print_type=True)} {values}"
    if callable(argument) and not isinstance(argument, torch.nn.Module):
        return str(id(argument))
    return _hash(argument)


def _hash(value: Any) -> str:
    try:
        return str(joblib.hash(value))
    except Exception:  # whatever pickling may raise
        return str(id(value))


def _digest(value: np.ndarray) -> str:
    content = np.ascontiguousarray(value)
    return f"{value.shape} {value.dtype} {hashlib.blake2b(content.tobytes(), digest_size=16).hexdigest()}"


def digest(value: Any) -> str:
    """Digest of arrays and what holds them: of all values of a Dataset or DataTree, read in parts."""
    if isinstance(value, xr.DataTree):
        return str(joblib.hash({node.path: digest(node.to_dataset(inherit=False)) for node in value.subtree}))
    if not isinstance(value, xr.Dataset):
        return str(joblib.hash(value))
    content = hashlib.blake2b(digest_size=16)
    for name in sorted(value.variables, key=str):
        array = value[name].variable
        content.update(f"{name} {array.dims} {array.shape} {array.dtype}".encode())
        rows = max(AT_ONCE // max(array.size // max(array.shape[0], 1), 1), 1) if array.ndim else 1
        for start in range(0, array.shape[0], rows) if array.ndim else ():
            content.update(str(joblib.hash(_read_part(array[start : start + rows]))).encode())
        if not array.ndim:
            content.update(str(joblib.hash(_read_part(array))).encode())
    return content.hexdigest()


def _read_part(array: xr.Variable) -> np.ndarray:
    if not array.chunks:
        return np.ascontiguousarray(array.to_numpy())
    import dask

    with dask.config.set(scheduler="synchronous"):
        return np.ascontiguousarray(array.to_numpy())


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of what differs between two fingerprints."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
