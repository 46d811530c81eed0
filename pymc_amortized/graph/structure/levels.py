"""Levels of a hierarchical model: which free variables come first where a network factorizes the posterior."""

from collections.abc import Collection
from typing import Any

from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.model.spec import ModelSpec

__all__ = ["hierarchy_levels", "may_be_funnel"]

MOST = 4
"""A chain of variables, each given the one before it, is no hierarchy: what is deeper shares the last level."""


def may_be_funnel(spec: ModelSpec, exact: Collection[int] = ()) -> bool:
    """Whether the prior of a parameter depends on other ones: where these make it narrow, the posterior has a neck.

    Parameters
    ----------
    spec : ModelSpec
    exact : collection of int
        Places of unconstrained parameters that are drawn exactly given the others, in a neck or not.
    """
    free, start = set(spec.model.free_RVs), 0
    for parameter in spec.parameters:
        own, start = range(start, start + parameter.size), start + parameter.size
        if free.intersection(ancestors(spec.model[parameter.name].owner.inputs)) and not set(own) <= set(exact):
            return True
    return False


def hierarchy_levels(spec: ModelSpec) -> tuple[int, ...]:
    """Level of every unconstrained value of the parameters, counted from 0.

    What the prior of a variable depends on stands on a lower level. Among variables of one depth those with a transform
    come first: mostly they are scales, given which the posterior of locations is nearly normal.
    """
    model = spec.model
    free = set(model.free_RVs)
    depths: dict[Any, int] = {}

    def depth(rv: Any) -> int:
        if rv not in depths:
            parents = free.intersection(ancestors(rv.owner.inputs))
            depths[rv] = max((depth(parent) + 1 for parent in parents), default=0)
        return depths[rv]

    places = [(depth(model[p.name]), p.transform is None) for p in spec.parameters]
    ranks = {place: min(rank, MOST - 1) for rank, place in enumerate(sorted(set(places)))}
    return tuple(ranks[place] for place, p in zip(places, spec.parameters, strict=True) for _ in range(p.size))
