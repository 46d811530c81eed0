"""Training over more parameters than the prior reaches."""

from collections.abc import Mapping
from typing import Any

import pymc as pm
from pymc.distributions.shape_utils import change_dist_size
from pymc.logprob.transforms import LogTransform
from pymc.model.core import BaseModel
from pymc.model.fgraph import model_free_rv
from pytensor.graph.basic import Variable

from pymc_amortized.graph.model.copying import substitute
from pymc_amortized.graph.model.tensors import evaluated_shapes

type Region = Mapping[str, Any] | pm.Model | None
"""Ranges or distributions by free variable, a model in place of the one that is learned, or nothing."""


def widen(model: pm.Model, region: Region) -> pm.Model:
    """Return the model that is simulated in training.

    Parameters
    ----------
    model : pymc.Model
    region : mapping, pymc.Model or None
        (low, high), for a uniform distribution, or a PyMC distribution, by free variable; or a whole model.

    Raises
    ------
    KeyError, TypeError, ValueError
        A name is not one of a free variable, or what is given is neither a range nor a distribution.
    """
    if region is None:
        return model
    if isinstance(region, BaseModel):
        return region
    if not isinstance(region, Mapping):
        raise TypeError(f"region must be a mapping of free variables or a pymc.Model, got {type(region).__name__}")
    free = {rv.name: rv for rv in model.free_RVs}
    unknown = [name for name in region if name not in free]
    if unknown:
        raise KeyError(f"region: {unknown} given; the free variables are {sorted(free)}")
    shapes = evaluated_shapes(model, list(free.values()))
    drawn = {}
    for name, given in region.items():
        positive = isinstance(model.rvs_to_transforms[free[name]], LogTransform)
        drawn[name] = _distribution(name, given, shapes[name], free[name], positive)

    def replacements(memo: dict[Any, Any]) -> dict[Any, Any]:
        changed = {}
        for name, rv in drawn.items():
            old = memo[free[name]]
            value = rv.type(name=f"{name}_value")
            changed[old] = model_free_rv(rv, value, None, name, *old.owner.op.dims)
        return changed

    return substitute(model, replacements)


def _distribution(name: str, given: Any, shape: tuple[int, ...], rv: Any, positive: bool) -> Any:
    if not isinstance(given, Variable):
        try:
            low, high = (float(end) for end in given)
        except (TypeError, ValueError):
            raise TypeError(f"region[{name!r}] must be (low, high) or a PyMC distribution, got {given!r}") from None
        if not low < high:
            raise ValueError(f"region[{name!r}]: {low} is not below {high}")
        if low < 0 and positive:
            raise ValueError(f"region[{name!r}]: {name!r} is positive, and the range begins at {low}")
        given = pm.Uniform.dist(low, high)
    lead = shape[: len(shape) - given.type.ndim]
    wide = change_dist_size(given, lead, expand=True) if lead else given
    return rv.type.filter_variable(wide) if wide.type.ndim == rv.type.ndim else wide
