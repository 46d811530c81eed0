"""Dataclasses in files: what is written is read again, and nothing that their types do not allow."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from pymc_amortized.approximators.storage.codec import Part, describe, read_record
from pymc_amortized.numerics.quadratic import Quadratic
from pymc_amortized.row_density.columns import CountColumn, RealColumn
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.row_density.row_parameters import Combination, Parameter
from pymc_amortized.training import History, Training


class Stored(dict[str, Tensor]):
    """Tensors in the ways of an open file."""

    class Slice:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def get_shape(self) -> list[int]:
            return list(self.tensor.shape)

        def get_dtype(self) -> str:
            return str(self.tensor.dtype)

    def get_slice(self, key: str) -> Slice:
        return self.Slice(self[key])

    def get_tensor(self, key: str) -> Tensor:
        return self[key]


def again(value: Any, change: Any = None) -> Any:
    described, tensors = describe(value)
    described = json.loads(json.dumps(described, allow_nan=False))
    if change is not None:
        change(described)
    return read_record([type(value)], described, Part(Stored(tensors)))


@dataclass(frozen=True)
class Circle:
    radius: float


@dataclass(frozen=True)
class Square:
    side: int


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Square
    color: Literal["red", "blue"] | None
    corners: tuple[tuple[str, int], ...]
    size: tuple[int, float] | None
    names: list[str]
    counts: Mapping[str, int]
    kept: dict[str, bool]
    anything: Any
    weights: Mapping[str, Tensor] = field(default_factory=dict)


DRAWING = Drawing(
    Square(3), "red", (("a", 1), ("b", 2)), (1, -math.inf), ["x"], {"n": 2}, {"k": True}, {"deep": [1, None]}
)


@pytest.mark.parametrize(
    "value",
    [
        Training(num_steps=7, clip_norm=math.inf),
        Layout(
            (Parameter("a", "log", 0.0, 1.0, -2.0, 2.0, (0.5, 2.0), (1.0, 2.0)),),
            (CountColumn(top=9.0), RealColumn(transform="above", bound=0)),
            (0, 1),
            2,
            (Combination((1.0, -1.0), 0.0, 1.0),),
        ),
        Circle(math.inf),
        Drawing(Circle(1.0), None, (), None, [], {}, {}, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_written_is_read_again(value):
    read = again(value)
    assert type(read) is type(value)
    changed = {name: given for name, given in vars(read).items() if name != "weights"}
    assert changed == {name: given for name, given in vars(value).items() if name != "weights"}


def test_arrays_keep_their_types_and_whatever_is_not_finite():
    history = History(*(np.array([0.0, 1.0, 2.0]) for _ in range(2)), *(np.array([np.nan, np.inf, 1.0]),) * 3, 1)
    read = again(history)
    for name in ("step", "seconds", "loss", "held_out_loss", "learning_rate"):
        np.testing.assert_array_equal(getattr(read, name), getattr(history, name))
        assert getattr(read, name).dtype == getattr(history, name).dtype
        assert not getattr(read, name).flags.writeable
    assert read.skipped_steps == 1
    quadratic = again(Quadratic(np.array([0, 2]), np.empty((0, 2), dtype=int), 3))
    assert quadratic.places.tolist() == [0, 2] and quadratic.pairs.shape == (0, 2) and quadratic.dim == 3


def test_tensors_of_networks_stay_in_the_file():
    value = Drawing(Circle(1.0), None, (), None, [], {}, {}, None, {"linear.weight": torch.ones(2, 3)})
    weights = again(value).weights
    assert isinstance(weights, Part) and list(weights) == ["linear.weight"]
    assert torch.equal(weights["linear.weight"], torch.ones(2, 3))


def setting(*path: str | int, value: Any) -> Any:
    def change(described: Any) -> None:
        for key in path[:-1]:
            described = described[key]
        described[path[-1]] = value

    return change


WRONG = {
    "a class that is not known": setting("shape", "class", value="os.system"),
    "a class of another field": setting("shape", "class", value="Drawing"),
    "no class": lambda described: described["shape"].pop("class"),
    "a field too many": setting("shape", "surprise", value=1),
    "a field too few": lambda described: described.pop("size"),
    "text for a number": setting("shape", "side", value="3"),
    "a number that is not whole": setting("shape", "side", value=3.0),
    "true for a number": setting("shape", "side", value=True),
    "another word": setting("color", value="green"),
    "a number for a word": setting("color", value=1),
    "a number for a list": setting("corners", value=3),
    "a pair of one": setting("corners", 0, value=["a"]),
    "a pair of three": setting("corners", 0, value=["a", 1, 2]),
    "text for a pair": setting("corners", 0, value="ab"),
    "null": setting("names", value=None),
    "a list for a mapping": setting("counts", value=[]),
    "a number for a dataclass": setting("shape", value=3),
    "a number for text": setting("names", 0, value=1),
    "a word that is no number": setting("size", 1, value="many"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_types_do_not_allow_is_refused(name):
    assert again(DRAWING).shape == DRAWING.shape
    with pytest.raises((KeyError, TypeError, ValueError)):
        again(DRAWING, WRONG[name])


def test_checks_of_the_class_itself_are_made():
    with pytest.raises(TypeError, match="num_steps"):
        again(Training(), setting("num_steps", value="x"))
    with pytest.raises(ValueError, match="learning_rate"):
        again(Training(), setting("learning_rate", value=-1.0))
    with pytest.raises(ValueError, match="one length"):
        History(step=np.arange(3))


def test_arrays_that_are_too_large_are_refused_before_they_are_read():
    described, tensors = describe(Quadratic(np.arange(2), np.empty((0, 2), dtype=int), 2))
    stored = Stored(tensors | {"places": torch.empty(1_000_001, device="meta")})
    with pytest.raises(ValueError, match="'places' is larger than any"):
        read_record([Quadratic], described, Part(stored))


def test_what_no_file_holds_is_not_written():
    with pytest.raises(TypeError, match="anything is of type function"):
        describe(Drawing(Circle(1.0), None, (), None, [], {}, {}, lambda: None))
