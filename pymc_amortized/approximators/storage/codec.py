"""Frozen dataclasses in files: plain values as JSON, arrays as tensors, read again by the types of their fields.

A file can hold what these types allow, and nothing else: nothing is called but the class that a field is declared with,
no array is larger than any that is written, and tensors of networks are left in the file, to be compared first.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

LARGEST = 1_000_000
"""Elements of an array beside the networks, and values of their options; more is an attempt on the memory."""


@dataclass(frozen=True)
class Part(Mapping[str, Tensor]):
    """The tensors that a file holds under a prefix, each read when it is asked for.

    Attributes
    ----------
    file : safe_open
    prefix : str
        Of the names of the tensors.
    """

    file: Any
    prefix: str = ""

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(self.prefix + name).clone()  # in memory of its own, aligned

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self.prefix) for key in self.file.keys() if key.startswith(self.prefix))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def form(self, name: str) -> tuple[list[int], str]:
        """Return the shape and the type of a tensor, which is not read."""
        piece = self.file.get_slice(self.prefix + name)
        return list(piece.get_shape()), str(piece.get_dtype())


def describe(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a value as JSON, and the tensors that stand beside it.

    Parameters
    ----------
    value : dataclass
        Its fields are numbers, strings, arrays, and collections and dataclasses of these.

    Returns
    -------
    described : Any
        Dataclasses are mappings with their name as "class". What is not finite is a string, as JSON has no such number.
    tensors : dict of str to Tensor
        By their place in `described`, with dots between.
    """
    tensors: dict[str, Tensor] = {}
    return _plain(value, "", tensors), tensors


def _plain(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if is_dataclass(value):
        values = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"class": type(value).__name__} | _plain(values, place, tensors)
    if isinstance(value, Mapping):
        if value and all(isinstance(v, Tensor) for v in value.values()):
            tensors |= {_inside(place, name): tensor for name, tensor in value.items()}
            return {}
        return {name: _plain(v, _inside(place, name), tensors) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, _inside(place, i), tensors) for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        tensors[place] = torch.from_numpy(np.array(value, order="C"))
        return "array"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{place} is of type {type(value).__name__}, which no file holds")


def _inside(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)


def read_record(classes: Sequence[type], described: Any, part: Part) -> Any:
    """Read what :func:`describe` gave of a dataclass.

    Parameters
    ----------
    classes : sequence of type
        Which ones it may be.
    described : Any
        Read from JSON: of any type, if the file is damaged.
    part : Part
        The tensors.

    Raises
    ------
    KeyError, TypeError, ValueError
        When a field is missing, unknown, or of another type than it is declared with.
    """
    return _record(classes, described, part, "")


def _record(classes: Sequence[type], given: Any, part: Part, place: str) -> Any:
    if not isinstance(given, Mapping):
        raise TypeError(f"{place}: {_short(given)}")
    kind = next((c for c in classes if c.__name__ == given["class"]), None)
    if kind is None:
        raise ValueError(f"{place} is {_short(given['class'])}; known: {', '.join(c.__name__ for c in classes)}")
    hints = _hints(kind)
    if set(given) != {"class", *hints}:
        raise KeyError(f"{place}: {sorted(set(given) ^ {'class', *hints})[:5]}")
    return kind(**{name: _value(hint, given[name], part, _inside(place, name)) for name, hint in hints.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Types of the fields of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _value(hint: Any, given: Any, part: Part, place: str) -> Any:
    """Read a value of a declared type."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return given
    if origin in (Union, UnionType):
        if given is None and NoneType in args:
            return None
        kinds = [kind for kind in args if kind is not NoneType]
        return _value(kinds[0], given, part, place) if len(kinds) == 1 else _record(kinds, given, part, place)
    if isinstance(hint, type) and is_dataclass(hint):
        return _record([hint], given, part, place)
    if hint is np.ndarray:
        return _array(part, place)
    if origin is Literal and isinstance(given, str) and given in args:
        return given
    if origin in (tuple, list) and isinstance(given, list):
        each = [args[0]] * len(given) if origin is list or args[-1] is ... else list(args)
        return origin(
            _value(kind, v, part, _inside(place, i)) for i, (kind, v) in enumerate(zip(each, given, strict=True))
        )
    if origin is Mapping and args[1] is Tensor:
        return Part(part.file, f"{part.prefix}{place}.")
    if origin in (dict, Mapping) and isinstance(given, dict):
        return {name: _value(args[1], v, part, _inside(place, name)) for name, v in given.items()}
    if hint is float and (given in ("inf", "-inf", "nan") or type(given) in (int, float)):
        return float(given)
    if hint in (bool, int, str) and type(given) is hint:
        return given
    raise TypeError(f"{place}: {_short(given)}")


def _array(part: Part, place: str) -> np.ndarray:
    if math.prod(part.form(place)[0]) > LARGEST:
        raise ValueError(f"array {place!r} is larger than any that is written")
    return part[place].numpy()


def _short(given: Any) -> str:
    return f"{given!r:.60}"
