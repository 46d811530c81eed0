"""Ordered vectors of a prior that depend on nothing: drawn by themselves, until they are in order.

Whether a vector is in order is known before anything else is simulated. The simulator's own draws would be thrown away
with all that is simulated of them, 24 of 25 for five cut points of an ordinal regression.
"""

from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pymc.distributions.shape_utils import change_dist_size
from pymc.distributions.transforms import Ordered
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import random_generator_type

from pymc_amortized.graph.data.simulations import SimulationError, excluded
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import held_constants, sorted_variables
from pymc_amortized.graph.model.tensors import interpret

FEWEST = 1e-4
"""Share of vectors that are in order, below which a model is refused."""
AT_ONCE = 2**20
"""Numbers that are drawn at once."""


class OrderedDraws:
    """Draws those free variables of a model that an ordering transform restricts, and that depend on nothing.

    Parameters
    ----------
    spec : ModelSpec
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._shapes = {p.name: p.shape for p in spec.parameters}

    @cached_property
    def names(self) -> list[str]:
        """Names of these variables."""
        return [p.name for p in self._spec.parameters if self._alone(self._spec.model[p.name])]

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled functions behind."""
        return {"_spec": self._spec, "_shapes": self._shapes}

    def __call__(self, n: int, seed: np.random.SeedSequence) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Draw `n` vectors of each, name -> (n, *shape), and count those that were not in order, by reason.

        They are counted as if all vectors had been drawn together: the shares that are in order multiply.

        Raises
        ------
        SimulationError
            When hardly any vector is in order.
        """
        rng, found, shares = np.random.default_rng(seed), {}, {}
        for name in self.names:
            most = AT_ONCE // max(int(np.prod(self._shapes[name])), 1)
            parts, usable, tried = [np.empty((0, *self._shapes[name]))], 0, 0
            while usable < n:
                rate = max(usable / tried, FEWEST) if tried else 0.5
                drawn, free = self._functions[name](rng, min(max(int((n - usable) / rate), 32), most))
                (places,) = np.nonzero(np.isfinite(free).reshape(len(free), -1).all(axis=1))
                places = places[: n - usable]
                tried += int(places[-1]) + 1 if len(places) + usable == n else len(drawn)
                usable += len(places)
                parts.append(drawn[places])
                if tried > 100 / FEWEST and usable < FEWEST * tried:
                    raise SimulationError(f"only {usable} of {tried} draws of {name!r} are in the order that it has")
            found[name] = np.concatenate(parts)
            shares[name] = n / tried
        dropped, left = Counter[str](), n / float(np.prod(list(shares.values())))
        for name, share in shares.items():
            dropped[excluded(name)] = round(left * (1 - share))
            left *= share
        return found, dict(+dropped)

    def _alone(self, rv: Any) -> bool:
        spec, model = self._spec, self._spec.model
        if not isinstance(model.rvs_to_transforms[rv], Ordered) or not isinstance(rv.owner.op, RandomVariable):
            return False
        others = {v for v in model.basic_RVs if v is not rv} | {spec.variable(c.name) for c in spec.context}
        others |= {model.dim_lengths[r.dim] for r in spec.sizes}
        return rv not in sorted_variables(model) and others.isdisjoint(ancestors([rv]))

    @cached_property
    def _functions(self) -> dict[str, Any]:
        return {name: self._function(self._spec.model[name]) for name in self.names}

    def _function(self, rv: Any) -> Any:
        """From a generator and a number to vectors, and these on the scale of the transform."""
        number, generator = pt.lscalar("number"), random_generator_type()
        (alone,) = clone_replace([rv], held_constants(self._spec))
        many = change_dist_size(alone, (number,), expand=True)
        (many,) = clone_replace([many], {many.owner.inputs[0]: generator})
        free = self._spec.model.rvs_to_transforms[rv].forward(many, *many.owner.inputs)
        inputs = [pytensor.In(generator, mutable=True), number]
        return interpret(inputs, [many, free])
