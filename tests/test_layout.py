"""The shape of the package: what may import what, docstrings, and the README's code."""

import ast
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from numpydoc.validate import validate

import pymc_amortized

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pymc_amortized"
DOWNSTREAM = {"approximators", "correction", "diagnostics", "inputs", "results", "sampling"}
PYMC = {"pymc", "pytensor", "arviz", "arviz_base", "arviz_plots", "arviz_stats"}


@dataclass(frozen=True)
class Room:
    """What the files of one subpackage never import."""

    libraries: set[str]
    siblings: set[str]


ROOMS = {
    "row_density": Room(PYMC | {"torch", "zuko", "safetensors"}, {"graph", "networks", "training"} | DOWNSTREAM),
    "graph": Room({"torch", "zuko", "safetensors"}, {"networks", "training"} | DOWNSTREAM),
    "networks": Room(PYMC, {"graph", "training"} | DOWNSTREAM),
    "training": Room(PYMC, {"graph"} | DOWNSTREAM),
    "approximators": Room(set(), {"diagnostics", "sampling"}),
}


def imported(tree: ast.AST, parents: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and absolute name of every import in a module of the package `parents`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def is_module(name: str) -> bool:
    """Tell a module or subpackage of the package from a name that its __init__ defines."""
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def trespasses(source: str, where: str, room: Room) -> list[str]:
    """Return `file:line imports name` for each import that the room does not allow."""
    found = []
    for line, name in imported(ast.parse(source), list(Path(where).parent.parts)):
        top, *rest = name.split(".")
        if top == PACKAGE.name:
            # A name that is no module stands in __init__, which is downstream of every room.
            bad = not rest or rest[0] in room.siblings or not is_module(rest[0])
        else:
            bad = top in room.libraries
        if bad:
            found.append(f"{where}:{line} imports {name}")
    return found


@pytest.mark.parametrize("name", ROOMS)
def test_imports_point_downstream(name):
    files = sorted((PACKAGE / name).rglob("*.py"))
    assert files, f"pymc_amortized/{name} holds no Python files"
    found = [
        line for file in files for line in trespasses(file.read_text(), file.relative_to(ROOT).as_posix(), ROOMS[name])
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("graph", "import torch.nn as nn"),
        ("graph", "from zuko import flows"),
        ("graph", "from ..networks.encoding.encoder import DataEncoder"),
        ("graph", "from .. import training"),
        ("graph", "from .. import fit_posterior"),
        ("graph", "def f():\n    import torch"),
        ("graph", "importlib.import_module('safetensors.torch')"),
        ("networks", "import pymc"),
        ("networks", "from arviz_base import rcParams"),
        ("networks", "from pymc_amortized.graph.model.spec import ModelSpec"),
        ("networks", "import pymc_amortized"),
        ("training", "from ..approximators import posterior"),
        ("training", "from pytensor import tensor"),
    ],
)
def test_a_trespass_is_seen(name, line):
    found = trespasses(line, f"pymc_amortized/{name}/module.py", ROOMS[name])
    assert len(found) == 1
    assert found[0].startswith(f"pymc_amortized/{name}/module.py:{line.count(chr(10)) + 1} ")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("graph", "import pymc, numpy"),
        ("graph", "from .model.spec import ModelSpec"),
        ("graph", "from ..graph.model import spec"),
        ("networks", "from torch import nn"),
        ("networks", "from .encoding import encoder"),
        ("training", "from ..networks.posterior_network import PosteriorNetwork"),
    ],
)
def test_other_imports_pass(name, line):
    assert trespasses(line, f"pymc_amortized/{name}/module.py", ROOMS[name]) == []


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
    absent = sorted(ROOMS[name].libraries)
    done = subprocess.run([sys.executable, "-c", ALONE, str(PACKAGE), name, *absent], capture_output=True, text=True)
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


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and code of each Python block that no `<!-- skip -->` stands before."""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not text[: match.start()].rstrip().endswith("<!-- skip -->"):
            yield text.count("\n", 0, match.start(1)), match.group(1)


def test_python_blocks():
    blocks = ["```python\nb\n```", "<!-- skip -->", "```python\nc\n```", "```sh\nd\n```"]
    text = "\n".join(["a", *blocks, "```python\ne\n```"])
    assert list(python_blocks(text)) == [(2, "b\n"), (12, "e\n")]


def test_readme_code_runs(tmp_path, monkeypatch):
    """The blocks run in order in one module, in a folder of their own; trained for a quarter of the time."""
    readme = ROOT / "README.md"
    blocks = list(python_blocks(readme.read_text(encoding="utf-8")))
    assert blocks, "README.md holds no Python block"
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    for line, code in blocks:
        # Empty lines before it let tracebacks point at the README's own lines.
        shorter = re.sub(r"(max_time\W+)20\b", r"\g<1>5", code)
        exec(compile("\n" * line + shorter, str(readme), "exec"), vars(module))
