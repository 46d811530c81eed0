"""Networks in files: tensors, and what they have to be like, checked before memory is taken."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.novelty.features import NoveltyFeatures, Summarizing
from pymc_amortized.novelty.reference import number_of_extents, reference_of
from pymc_amortized.novelty.scores import Reference

KEY = "pymc_amortized"
LARGEST_STATE = 100_000
"""Elements that a tensor of the training's state may have beside a small network (held-out losses, generators)."""
LARGEST_OPTION = 1_000_000
"""No built-in network has an option beyond this; a larger number is an attempt on the memory."""


def write(path: str | PathLike[str], description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a description and tensors."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to save {path.name!r} in")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={KEY: json.dumps(description, allow_nan=False)})


class Part:
    """What a file holds under a prefix, in the ways of an open safetensors file.

    Parameters
    ----------
    file : safe_open or Part
    prefix : str
    """

    def __init__(self, file: Any, prefix: str) -> None:
        self._file, self._prefix = file, prefix

    def keys(self) -> list[str]:
        """Names of the tensors, without the prefix."""
        return [key.removeprefix(self._prefix) for key in self._file.keys() if key.startswith(self._prefix)]

    def get_slice(self, key: str) -> Any:
        """A tensor that is not read yet."""
        return self._file.get_slice(self._prefix + key)

    def get_tensor(self, key: str) -> Tensor:
        """Read a tensor."""
        return self._file.get_tensor(self._prefix + key)


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Say of a description that cannot be followed that the file is damaged."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path.name!r} is damaged: its description lacks or garbles {error}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name!r} is damaged: {error}") from error


def refuse_other_modules(described: Any, path: Path, **given: Any) -> None:
    """A network of the user's own has to be given again, and only that."""
    for what, module in given.items():
        entry = described.get(what) if isinstance(described, Mapping) else None
        own = isinstance(entry, Mapping) and entry.get("kind") == "user"
        if own and module is None:
            raise ValueError(f"{path.name!r} was trained with a {what} network of your own: pass it as {what}=")
        if module is not None and not own:
            raise ValueError(f"{what} was given, but {path.name!r} has a built-in {what} network")


def read_network[N: nn.Module](file: Any, make: Callable[[Callable[[Any], Any]], N], prefix: str = "network.") -> N:
    """Build a network and fill it, after comparing names, sizes and dtypes, tensor by tensor.

    Parameters
    ----------
    file : safe_open or Part
    make : callable
        Builds the network; what it is given is to be applied to modules of the user's own.
    prefix : str
        Of the network's tensors.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        wanted = make(on_meta).state_dict()
    part = Part(file, prefix)
    differing = sorted(set(part.keys()) ^ set(wanted))[:5]
    if differing:
        raise ValueError(f"the weights in the file are not those of the network it describes: {differing}")
    for name, tensor in wanted.items():
        if not is_lazy(tensor):  # a lazy one takes its shape from the file
            _refuse_other_tensor(part, name, tensor)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, to be overwritten
        network = make(lambda module: module)
    weights = {name: part.get_tensor(name) for name in wanted}
    learned = {name for name, _ in network.named_parameters()}
    for name, weight in weights.items():  # a buffer may be the infinite end of a range
        if weight.is_floating_point() and not (weight.isfinite() if name in learned else ~weight.isnan()).all():
            raise ValueError(f"weight {name!r} in the file is not a number")
    network.load_state_dict(weights)
    return network.eval()


def refuse_other_layout(described: DataLayout, expected: DataLayout) -> None:
    """Compare layouts: the network must read the data of this model, in its order."""
    for ours, theirs in zip_longest(expected.arrays, described.arrays):
        if ours is not None and theirs is not None and ours.kind == "categorical":
            ours = replace(ours, categories=theirs.categories)  # learned from simulations
        if ours != theirs:
            raise ValueError(f"the network in the file reads {theirs}, the model provides {ours}")
    if expected.axes != described.axes:
        raise ValueError(f"the network in the file reads {described.axes}, the model provides {expected.axes}")


def _refuse_other_tensor(file: Any, name: str, wanted: Tensor) -> None:
    """Compare a tensor in the file with what is needed, before memory is taken."""
    piece = file.get_slice(name)
    given = (list(piece.get_shape()), str(piece.get_dtype()))
    if given[0] != list(wanted.shape) or given[1] not in _DTYPES.get(wanted.dtype, ()):
        raise ValueError(
            f"weight {name!r} has shape {given[0]} and dtype {given[1]}; "
            f"{list(wanted.shape)} and {str(wanted.dtype).removeprefix('torch.')} are needed"
        )


_DTYPES = {
    torch.float32: ("F32",),
    torch.float64: ("F64",),
    torch.int64: ("I64",),
    torch.bool: ("BOOL",),
    torch.uint8: ("U8",),
    torch.int32: ("I32",),
    torch.float16: ("F16",),
    torch.bfloat16: ("BF16",),
}


def on_meta(module: Any) -> Any:
    """Copy a module without memory for its weights."""
    if not isinstance(module, nn.Module) or any(is_lazy(p) for p in module.parameters()):
        return module
    return copy.deepcopy(module).to("meta")


def refuse_large_options(description: Any, tensors: int) -> None:
    """Refuse sizes that no file of this size can hold the weights of."""
    if isinstance(description, Mapping):
        for name, value in description.items():
            if (name == "layers" or name.endswith("depth")) and isinstance(value, int) and value > tensors:
                raise ValueError(f"the file describes a network of {value} {name}, but holds {tensors} tensors")
            refuse_large_options(value, tensors)
    elif isinstance(description, list):
        for value in description:
            refuse_large_options(value, tensors)
    elif isinstance(description, int) and abs(description) > LARGEST_OPTION:
        raise ValueError(f"the file describes a network with an option of {description}")


def state_tensors(file: Any, network: nn.Module) -> dict[str, Tensor]:
    """Read where training stood; no tensor of it is larger than the network it belongs to."""
    largest = max(sum(t.numel() for t in network.state_dict().values()), LARGEST_STATE)
    tensors = {}
    part = Part(file, "state.")
    for key in part.keys():
        size = math.prod(part.get_slice(key).get_shape())
        if size > largest:
            raise ValueError(f"tensor 'state.{key}' in the file has {size} elements, more than the whole network")
        tensors[key] = part.get_tensor(key)
    missing = [name for name in ("now.weights", "now.average", "best.weights") if name not in tensors]
    if missing:
        raise KeyError(f"the state of training ({missing})")
    return tensors


def read_reference(file: Any, prefix: str, network: Summarizing, spec: ModelSpec) -> Reference | None:
    """Read what novelty is judged by, if it is there."""
    part = Part(file, prefix)
    if any(math.prod(part.get_slice(key).get_shape()) > LARGEST_OPTION for key in part.keys()):
        raise ValueError("an array of the reference is larger than any that is written")
    width = sum(NoveltyFeatures(network).blocks)
    return reference_of({key: part.get_tensor(key) for key in part.keys()}, width, number_of_extents(spec))
