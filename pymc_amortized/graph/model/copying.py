"""Copies of a model with other variables in its graph."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pymc as pm
from pymc.model.fgraph import fgraph_from_model, model_from_fgraph
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace


@contextmanager
def without_gp_warning() -> Iterator[None]:
    """Silence PyMC's warning that GP objects should not be reused with a copied model; nobody can reach the copy's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected variables likely created by GP")
        yield


def open_model(model: pm.Model) -> tuple[FunctionGraph, dict[Any, Any]]:
    """Copy a model's graph; return it with the memo of what became what."""
    with without_gp_warning():
        return fgraph_from_model(model)


def close_model(
    fgraph: FunctionGraph, outputs: Sequence[Any], lengths: Mapping[str, Any] | None = None, coords: Any = None
) -> pm.Model:
    """Make a model of a graph's outputs, with other lengths and coords of some dims."""
    rebuilt: Any = FunctionGraph(outputs=outputs, clone=False)
    opened: Any = fgraph
    rebuilt._coords, rebuilt._dim_lengths = opened._coords | (coords or {}), opened._dim_lengths | (lengths or {})
    with without_gp_warning():
        return model_from_fgraph(rebuilt, mutate_fgraph=True)


def substitute(model: pm.Model, replacements: Callable[[dict[Any, Any]], dict[Any, Any]]) -> pm.Model:
    """Return a copy of a model with other variables in its graph.

    Parameters
    ----------
    model : pymc.Model
    replacements : callable
        Maps the memo of PyMC's copy (variable to copied variable) to what is replaced by what.
    """
    fgraph, memo = open_model(model)
    return close_model(fgraph, clone_replace(fgraph.outputs, replace=replacements(memo), rebuild_strict=False))
