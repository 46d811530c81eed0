"""Objects for other processes, with what PyMC knows about the distributions in them.

How a distribution is weighed, resized or transformed is registered by its class, with functions of single dispatch
(``_logprob``, ``_support_point``, ...). A ``CustomDist`` makes a class of its own in the process that builds the model,
and registers there: another process that unpickles the class knows nothing of it. So registrations travel along.
"""

import importlib
import io
import sys
from collections.abc import Iterator
from dataclasses import fields
from types import FunctionType
from typing import Any, cast

import cloudpickle

Registration = tuple[str, str, type, Any]
"""Module and name of a function of single dispatch, a class, and what is registered for it."""
LIBRARIES = ("pymc", "pytensor")


class Sendable:
    """A frozen dataclass that pickles as a whole: its fields, with the models in them, and nothing that is compiled.

    So it can be copied, and sent to other processes, which compile anew, from PyTensor's cache on disk.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (pack(self),)


def pack(value: Any) -> bytes:
    """Pickle an object, with what is registered for the classes in it that other processes cannot import."""
    content, classes = _pickled(value)
    parts: list[bytes] = []
    known: set[type] = set()
    while new := classes - known:
        known |= new
        classes = set()
        for registration in _registrations(new):
            try:
                part, needed = _pickled(registration)
            except Exception:  # whatever pickling a user's function may raise: without it, this process works alone
                continue
            parts.append(part)
            classes |= needed
    return cloudpickle.dumps((parts, content))


def unpack(payload: bytes) -> Any:
    """Undo :func:`pack`."""
    parts, content = cloudpickle.loads(payload)
    for part in parts:
        module, name, cls, implementation = cloudpickle.loads(part)
        getattr(importlib.import_module(module), name).register(cls)(implementation)
    return cloudpickle.loads(content)


class _Recorder(cloudpickle.Pickler):
    """Pickles, and keeps the classes that it meets."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.classes: set[type] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            self.classes.add(obj)
        if isinstance(obj, Sendable):  # one pickle for all that belongs together: models in it stay one
            return _made, (type(obj), {field.name: getattr(obj, field.name) for field in fields(cast(Any, obj))})
        return super().reducer_override(obj)


def _made(kind: type, values: dict[str, Any]) -> Any:
    return kind(**values)


def _pickled(value: Any) -> tuple[bytes, set[type]]:
    file = io.BytesIO()
    recorder = _Recorder(file)
    recorder.dump(value)
    return file.getvalue(), recorder.classes


def _registrations(classes: set[type]) -> Iterator[Registration]:
    """What is registered for classes, and is not there as soon as their modules are imported."""
    for module, name, function in _dispatchers():
        for cls in classes.intersection(function.registry):
            implementation = function.registry[cls]
            if not (_can_import(cls) and _can_import(implementation)):
                yield module, name, cls, implementation


def _dispatchers() -> Iterator[tuple[str, str, Any]]:
    """Functions of single dispatch of PyMC and PyTensor, each once."""
    seen = set()
    for module, content in list(sys.modules.items()):
        if module.partition(".")[0] not in LIBRARIES or content is None:
            continue
        for name, value in list(vars(content).items()):
            if isinstance(value, FunctionType) and hasattr(value, "registry") and value not in seen:
                seen.add(value)
                yield module, name, value


def _can_import(value: Any) -> bool:
    """Whether another process finds the same object by its name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    found: Any = sys.modules.get(module) if module and module != "__main__" else None
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value
