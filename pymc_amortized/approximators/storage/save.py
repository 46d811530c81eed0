"""Writing files: weights and a description, never code.

A file is in the safetensors format. Its metadata describe the networks (by names from a fixed registry) and the model
they were trained for: names, shapes, dims, transforms, digests of arrays, and each variable's log density at a few
points. The model itself is the user's to bring; whatever differs is named.

Each kind of object has a ``file.py`` in its room: a frozen dataclass of what a file holds, how that is taken from the
object (registered with :func:`contents`), and how the object is made from it again. The dataclass itself is written and
read by :mod:`pymc_amortized.approximators.storage.codec`. :mod:`pymc_amortized.approximators.load` knows all kinds.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import pymc as pm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pymc_amortized.approximators.storage.brought import Brought
from pymc_amortized.approximators.storage.checkpoint import write_whole
from pymc_amortized.approximators.storage.codec import Part, describe, read_record
from pymc_amortized.approximators.storage.seals import check_seal, sealed_metadata
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.ranks import writes_files

KEY = "pymc_amortized"
"""Of the description among a file's metadata."""
FORMAT = 5


def read_file[T](brought: Brought, kinds: Sequence[type], use: Callable[[Any], T]) -> T:
    """Read a file while it is open.

    Parameters
    ----------
    brought : Brought
        With its path.
    kinds : sequence of type
        Dataclasses that it may hold.
    use : callable
        Makes something of what it holds.
    """
    path = brought.path
    try:
        with safe_open(path, framework="pt") as file:
            description = _read_description(file.metadata() or {}, path.name)
            with brought.checking():
                check_seal(file.metadata(), KEY, Part(file))
                saved = read_record(kinds, description["contents"], Part(file))
            return use(saved)
    except SafetensorError as error:
        raise ValueError(f"{path.name!r} is damaged, or not a file of pymc_amortized: {error}") from None


def read_again[T](
    kind: type,
    read: Callable[[Any, Brought], T],
    path: Path,
    model: Any,
    compile_kwargs: CompileKwargs | None,
    summary: Any = None,
    density: Any = None,
) -> T:
    """Read what the same call has trained: its model and networks are at hand.

    Parameters
    ----------
    kind : type
        Dataclass of what the file holds.
    read : callable
        Makes something of that.
    path, model, compile_kwargs
        As in :func:`load`.
    summary, density : object
        The user's choices: networks of their own, or names and options.
    """
    own = [part if isinstance(part, nn.Module) or callable(part) else None for part in (summary, density)]
    brought = Brought(path, model, own[0], own[1], compile_kwargs)
    return read_file(brought, [kind], lambda saved: read(saved, brought))


@singledispatch
def contents(thing: Any) -> Any:
    """Return the dataclass of what a file holds of an object.

    Parameters
    ----------
    thing : AmortizedPosterior, AmortizedLikelihood, AmortizedJoint or AmortizedComparison
    """
    raise TypeError(f"{type(thing).__name__} cannot be saved")


def save(thing: Any, path: str | PathLike[str]) -> None:
    """Write what :func:`contents` gives to a file.

    Parameters
    ----------
    thing : AmortizedPosterior, AmortizedLikelihood, AmortizedJoint or AmortizedComparison
    path : path-like
        An existing file is replaced. Of processes that torchrun started, the first one alone writes.
    """
    if not writes_files():
        return
    path = Path(path)
    described, tensors = describe(contents(thing))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to save {path.name!r} in")
    versions = {"pymc_amortized": version("pymc-amortized"), "pymc": pm.__version__, "torch": torch.__version__}
    description = {"format": FORMAT, "versions": versions, "contents": described}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = sealed_metadata(KEY, json.dumps(description, allow_nan=False), plain)
    write_whole(path, lambda file: save_file(plain, file, metadata=metadata))


def _read_description(metadata: Mapping[str, str], file: str) -> dict[str, Any]:
    if KEY not in metadata:
        raise ValueError(f"{file!r} is a safetensors file, but not one that pymc_amortized wrote")
    try:
        description = json.loads(metadata[KEY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file!r} is damaged: its description cannot be read ({error})") from None
    given = description.get("format") if isinstance(description, dict) else None
    if given != FORMAT:
        raise ValueError(
            f"{file!r} has format {given!r}; this version of pymc_amortized "
            f"({version('pymc-amortized')}) reads format {FORMAT}"
        )
    return description
