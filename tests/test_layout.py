"""The shape of the package: what may import what, and its docstrings."""

import inspect
import subprocess
import sys
import types
from collections.abc import Iterator
from graphlib import CycleError
from pathlib import Path

import pytest
from import_graph import find_circle, import_graph, longest_chain, modules_alone, read_sources
from numpydoc.validate import validate

import pymc_amortized

ROOT = Path(__file__).resolve().parents[1]
FACE = "pymc_amortized"
SOURCES = read_sources(ROOT / FACE)
GRAPH = import_graph(SOURCES)
MODULES = modules_alone(GRAPH, SOURCES)

# The rooms of the house from the top down. A module imports from its own room and from those below it.
ORDER = """
    names
    sampling
    diagnostics
    approximators.load
    approximators.comparison approximators.joint approximators.posterior approximators.likelihood
    approximators.simulations approximators.storage approximators.fitting
    stores
    correction novelty inputs results
    graph.rows graph.structure graph.nuts graph.simulation graph.density graph.data graph.model
    networks networks.rows networks.summary networks.density networks.encoding
    row_density training numerics
    ranks
    logs
""".split()

PYMC = {"pymc", "pytensor", "arviz", "arviz_base", "arviz_plots", "arviz_stats"}
TORCH = {"torch", "zuko", "safetensors"}
# The libraries and lower rooms that a room does without.
WITHOUT = {
    "graph": TORCH | {"networks", "training"},
    "networks": PYMC,
    "training": PYMC,
    "row_density": PYMC | TORCH | {"training"},
    "numerics": {"pymc", "pytensor", "logs"} | TORCH,
}


def room_of(module: str) -> str:
    """Return the innermost room that holds a module; the package's face is in none."""
    inside = module.removeprefix(f"{FACE}.")
    return max((room for room in ORDER if f"{inside}.".startswith(f"{room}.")), key=len, default="")


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports of a graph that lead from a room to one above it."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if module != FACE
        and other.startswith(f"{FACE}.")
        and ORDER.index(room_of(other)) < ORDER.index(room_of(module))
    ]


def of_face(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules that import the package's own ``__init__``."""
    return [module for module, others in graph.items() if FACE in others]


def trespasses(graph: dict[str, set[str]], room: str) -> list[str]:
    """Return the imports of what a room does without."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if f"{module}.".startswith(f"{FACE}.{room}.")
        and WITHOUT[room].intersection(other.removeprefix(f"{FACE}.").split(".")[:1])
    ]


def planted(modules: dict[str, str]) -> dict[str, set[str]]:
    """Return the graph of a small package: the source of each ``room/module``."""
    files = {f"{FACE}/{name}.py": source for name, source in modules.items()}
    faces = {f"{Path(file).parent.as_posix()}/__init__.py": "" for file in files}
    return import_graph({f"{FACE}/__init__.py": "", **faces, **files})


def test_every_module_is_in_a_room():
    lost = [module.removeprefix(f"{FACE}.") for module in GRAPH if module != FACE and not room_of(module)]
    assert [module for module in lost if not any(room.startswith(f"{module}.") for room in ORDER)] == []


def test_no_module_is_in_a_circle():
    assert find_circle(MODULES) == []


@pytest.mark.parametrize("room", ORDER)
def test_no_import_points_up(room):
    assert upward({module: others for module, others in GRAPH.items() if room_of(module) == room}) == []


def test_nobody_imports_the_face():
    assert of_face(GRAPH) == []


def test_chains_are_short():
    chain = longest_chain(MODULES)
    assert len(chain) <= 19, "\n".join(chain)


def test_folders_and_files_are_small():
    folders = [Path(path).parent.as_posix() for path in SOURCES]
    assert {folder for folder in folders if folders.count(folder) > 15} == set()
    assert {path for path, source in SOURCES.items() if source.count("\n") > 400} == set()


@pytest.mark.parametrize("room", WITHOUT)
def test_rooms_do_without(room):
    assert trespasses(GRAPH, room) == []


def test_the_face_shows_public_names_alone():
    assert dir(pymc_amortized) == sorted(pymc_amortized.__all__)


@pytest.mark.parametrize(
    "back",
    [
        "from pymc_amortized.graph.a import f",
        "from ..graph import a",
        "from .between import f",
        "def g():\n    import pymc_amortized.graph.a",
        "if TYPE_CHECKING:\n    from pymc_amortized.graph.a import f",
        "importlib.import_module('pymc_amortized.graph.a')",
    ],
)
def test_a_planted_circle_is_seen(back):
    graph = planted(
        {
            "graph/a": "from pymc_amortized.inputs import f",
            "inputs/__init__": "from pymc_amortized.inputs.b import f",
            "inputs/b": back,
            "inputs/between": "from pymc_amortized.graph.a import f",
        }
    )
    assert f"{FACE}.inputs.b" in graph[f"{FACE}.graph.a"]
    assert set(find_circle(graph)) >= {f"{FACE}.graph.a", f"{FACE}.inputs.b"}
    with pytest.raises(CycleError):
        longest_chain(graph)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("graph/model/spec", "from ..rows import samples"),
        ("graph/model/spec", "from pymc_amortized.sampling import sample_amortized"),
        ("graph/data/__init__", "from ...inputs import sketch"),
        ("networks/rows/density", "from pymc_amortized.networks.classifier import f"),
        ("logs", "from .numerics import odds"),
    ],
)
def test_a_planted_import_upward_is_seen(name, line):
    below = {"graph/rows/samples": "", "sampling": "", "inputs/sketch": "", "networks/classifier": ""}
    assert len(upward(planted({**below, "numerics/odds": "from ..logs import log", name: line}))) == 1


@pytest.mark.parametrize(
    "line", ["import pymc_amortized", "from .. import fit_posterior", "from pymc_amortized import x"]
)
def test_a_planted_import_of_the_face_is_seen(line):
    assert of_face(planted({"graph/a": f"def f():\n    {line}", "graph/b": "from .. import a", "a": ""})) == [
        f"{FACE}.graph.a"
    ]


def test_a_planted_chain_is_measured():
    graph = planted({"a": "from .b import f, g", "b": "from . import c", "c": "import numpy", "d": "from .c import f"})
    chain = longest_chain({module: others - {"numpy"} for module, others in graph.items()})
    assert chain == [f"{FACE}.{name}" for name in "abc"]


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("graph", "import torch.nn as nn"),
        ("graph", "from zuko import flows"),
        ("graph", "from ..networks.encoding.encoder import DataEncoder"),
        ("graph", "from .. import training"),
        ("graph", "def f():\n    import torch"),
        ("graph", "importlib.import_module('safetensors.torch')"),
        ("networks", "import pymc"),
        ("networks", "from arviz_base import rcParams"),
        ("training", "from pytensor import tensor"),
    ],
)
def test_a_trespass_is_seen(room, line):
    others = {"training/loop": "", "networks/encoding/encoder": ""}
    assert len(trespasses(planted({**others, f"{room}/module": line}), room)) == 1


def test_other_imports_pass():
    lines = "import pymc, numpy\nfrom .model.spec import ModelSpec\nfrom . import model"
    graph = planted({"graph/module": lines, "graph/model/spec": "", "networks/module": "from torch import nn"})
    assert trespasses(graph, "graph") == trespasses(graph, "networks") == []


# The package's __init__ imports every room, so an empty module with its name and path stands in
# for it; None in sys.modules makes the import of a library fail wherever it is attempted.
ALONE = """
import importlib, pkgutil, sys, types
path, room, *absent = sys.argv[1:]
sys.modules.update(dict.fromkeys(absent))
front = sys.modules["pymc_amortized"] = types.ModuleType("pymc_amortized")
front.__path__ = [path]
package = importlib.import_module(f"pymc_amortized.{room}")
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
"""


@pytest.mark.parametrize("name", ["graph", "networks", "training"])
def test_a_room_stands_without_the_other_libraries(name):
    absent = sorted(WITHOUT[name] & (PYMC | TORCH))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(ROOT / FACE), name, *absent], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# What numpydoc's validation is asked for: a summary, and every parameter and result described.
CHECKS = {"GL08", "SS01", "PR01", "PR02", "PR03", "PR07", "RT01"}
# A short method says it all in its summary; fields of a result class are its attributes.
FEWER_CHECKS = {"GL08", "SS01", "PR02"}


def public_names() -> Iterator[str]:
    """Yield the dotted name of everything public that carries a docstring."""
    for name in pymc_amortized.__all__:
        value = getattr(pymc_amortized, name)
        if not callable(value):
            continue
        yield name
        if isinstance(value, type):
            yield from (
                f"{name}.{attribute}"
                for attribute, member in vars(value).items()
                if not attribute.startswith("_")
                and isinstance(member, types.FunctionType | classmethod | staticmethod | property)
            )


@pytest.mark.parametrize("name", list(public_names()))
def test_public_names_are_documented(name):
    errors = validate(f"pymc_amortized.{name}")["errors"]
    checks = CHECKS if inspect.isfunction(getattr(pymc_amortized, name, None)) else FEWER_CHECKS
    assert not [f"{code} {text}" for code, text in errors if code in checks]
