"""Networks in files: tensors, and what they have to be like, checked before memory is taken."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pymc_amortized.approximators.storage.codec import LARGEST, Part
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.training import TrainingState


@dataclass(frozen=True)
class SavedNetwork:
    """What a file holds of a network.

    Attributes
    ----------
    description : Any
        As JSON; from the method of this name.
    weights : mapping of str to Tensor
        With what is not trained.
    """

    description: Any
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, network: PosteriorNetwork | ClassifierNetwork) -> SavedNetwork:
        """Describe a network."""
        return cls(network.description(), network.state_dict())

    def is_own(self, what: str) -> bool:
        """Whether a part of it, "summary" or "density", is one of the user's own."""
        entry = self.description.get(what) if isinstance(self.description, Mapping) else None
        return isinstance(entry, Mapping) and entry.get("kind") == "user"

    def build[N: nn.Module](self, make: Callable[[Callable[[Any], Any]], N]) -> N:
        """Build the network and fill it, after comparing names, sizes and dtypes, tensor by tensor.

        Parameters
        ----------
        make : callable
            Builds it; what it is given is to be applied to modules of the user's own.
        """
        stored = cast(Part, self.weights)
        _refuse_large_options(self.description, len(stored))
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            wanted = make(_on_meta).state_dict()
        differing = sorted(set(stored) ^ set(wanted))[:5]
        if differing:
            raise ValueError(f"the weights in the file are not those of the network it describes: {differing}")
        for name, tensor in wanted.items():
            if not is_lazy(tensor):  # a lazy one takes its shape from the file
                _refuse_other_tensor(stored, name, tensor)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, to be overwritten
            network = make(lambda module: module)
        weights = dict(stored)
        learned = {name for name, _ in network.named_parameters()}
        for name, weight in weights.items():  # a buffer may be the infinite end of a range
            if weight.is_floating_point() and not (weight.isfinite() if name in learned else ~weight.isnan()).all():
                raise ValueError(f"weight {name!r} in the file is not a number")
        network.load_state_dict(weights)
        return network.eval()


def check_layout(described: DataLayout, expected: DataLayout) -> None:
    """Compare layouts: the network must read the data of this model, in its order."""
    for ours, theirs in zip_longest(expected.arrays, described.arrays):
        if ours is not None and theirs is not None and ours.kind == "categorical":
            ours = replace(ours, categories=theirs.categories)  # learned from simulations
        if ours != theirs:
            raise ValueError(f"the network in the file reads {theirs}, the model provides {ours}")
    if expected.axes != described.axes:
        raise ValueError(f"the network in the file reads {described.axes}, the model provides {expected.axes}")


_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def _refuse_other_tensor(part: Part, name: str, wanted: Tensor) -> None:
    """Compare a tensor in the file with what is needed, before memory is taken."""
    given = part.form(name)
    if given[0] != list(wanted.shape) or given[1] != _DTYPES.get(wanted.dtype):
        raise ValueError(
            f"weight {name!r} has shape {given[0]} and dtype {given[1]}; "
            f"{list(wanted.shape)} and {str(wanted.dtype).removeprefix('torch.')} are needed"
        )


def _on_meta(module: Any) -> Any:
    """Copy a module without memory for its weights."""
    if not isinstance(module, nn.Module) or any(is_lazy(p) for p in module.parameters()):
        return module
    return copy.deepcopy(module).to("meta")


def _refuse_large_options(description: Any, tensors: int) -> None:
    """Refuse sizes that no file of this size can hold the weights of."""
    if isinstance(description, Mapping):
        for name, value in description.items():
            if (name == "layers" or name.endswith("depth")) and isinstance(value, int) and value > tensors:
                raise ValueError(f"the file describes a network of {value} {name}, but holds {tensors} tensors")
            _refuse_large_options(value, tensors)
    elif isinstance(description, list):
        for value in description:
            _refuse_large_options(value, tensors)
    elif isinstance(description, int) and abs(description) > LARGEST:
        raise ValueError(f"the file describes a network with an option of {description}")


def read_state(saved: TrainingState, network: nn.Module) -> TrainingState:
    """Read where training stood; no tensor of it is much larger than the network it belongs to."""
    # beside a small network, held-out losses and generators may be that large
    largest = max(sum(t.numel() for t in network.state_dict().values()), 100_000)
    stored = cast(Part, saved.tensors)
    for name in stored:
        size = math.prod(stored.form(name)[0])
        if size > largest:
            raise ValueError(f"tensor {name!r} of the state has {size} elements, more than the whole network")
    missing = {"now.weights", "now.average", "best.weights"} - set(stored)
    if missing:
        raise KeyError(f"the state of training ({sorted(missing)})")
    return TrainingState(dict(stored), saved.values)
