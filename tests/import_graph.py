"""Which module of a package imports which, read from its source.

A graph maps each module to what it imports, wherever the import stands: at the top, in a function,
below ``TYPE_CHECKING``. A name that is taken from a package's ``__init__`` leads to the module that
defines it, so that a chain or circle of modules is the same however its imports are spelled.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

type Graph = dict[str, set[str]]


def read_sources(package: Path) -> dict[str, str]:
    """Map the path of each file of a package, as in ``package/room/module.py``, to its source."""
    return {file.relative_to(package.parent).as_posix(): file.read_text() for file in sorted(package.rglob("*.py"))}


def module_name(path: str) -> str:
    """Return the dotted name of the module at a path; an ``__init__`` has that of its package."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(source: str, path: str) -> Iterator[tuple[str, str | None]]:
    """Yield the module and the name that each import of a source asks for; no name where it is the module itself."""
    parents = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((start, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value, None


def import_graph(sources: Mapping[str, str]) -> Graph:
    """Return what each module imports, of the package and of libraries; packages stand by their ``__init__``."""
    asked = {module_name(path): list(imported(source, path)) for path, source in sources.items()}
    packages = {module_name(path) for path in sources if path.endswith("/__init__.py")}
    passed_on = {package: {name: start for start, name in asked[package] if name} for package in packages}

    def defined_in(start: str, name: str | None) -> str:
        """Follow a name from ``__init__`` to ``__init__``; the package's face is followed no further."""
        if name is None or start not in asked:
            return start
        if f"{start}.{name}" in asked:
            return f"{start}.{name}"
        if "." in start and name in passed_on.get(start, {}):
            return defined_in(passed_on[start][name], name)
        return start

    return {module: {defined_in(*pair) for pair in pairs} - {module} for module, pairs in asked.items()}


def modules_alone(graph: Graph, sources: Mapping[str, str]) -> Graph:
    """Return the graph of the package's modules, without each ``__init__`` and without libraries."""
    modules = {module_name(path) for path in sources if not path.endswith("/__init__.py")}
    return {module: graph[module] & modules for module in modules}


def find_circle(graph: Graph) -> list[str]:
    """Return modules that import each other in a circle, the first once more at the end; empty without circles."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest chain of modules of which each imports the next one."""
    chains: dict[str, list[str]] = {}
    for module in TopologicalSorter(graph).static_order():
        chains[module] = [module, *max((chains[below] for below in graph[module]), key=len, default=[])]
    return max(chains.values(), key=len)
