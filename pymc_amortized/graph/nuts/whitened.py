r"""A model that NUTS finds easy: with a posterior's parameters standardized by what is known of it already.

.. math:: \theta = \mu + L z, \qquad z \in \mathbb R^d \text{ flat}, \qquad \log p(\theta, y) \text{ as a potential.}

With the mean :math:`\mu` and the Cholesky factor :math:`L` of an approximate posterior, the posterior of :math:`z` is
centred and nearly isotropic, and a sampler's identity mass matrix is right from the start (Hoffman et al. 2019,
arXiv:1903.03704, do so by a flow). Both are data of this model, beside all that varies between data sets: it is
compiled once for all of them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pymc_amortized.graph.data.datasets import gaps_of
from pymc_amortized.graph.density.imputed import Slots
from pymc_amortized.graph.density.log_density import Data, LogDensity
from pymc_amortized.graph.density.missing import LogDensityWithGaps, Rules
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.numerics.sampling.whitening import Whitening

NAME = "whitened_parameters"
"""Of the one variable of a whitened model."""


class WhitenedModel:
    """The posterior of any data set, as a ``pm.Model`` of one vector.

    Parameters
    ----------
    spec : ModelSpec
    rules : mapping of name to rule
        How missing values are left out of the density, for variables that may have gaps.
    slots : mapping of name to int
        For variables whose missing values are parameters instead, how many there can be.
    number_of_locals : int
        Values that are drawn given the parameters, in data sets of this size.

    Attributes
    ----------
    model : pymc.Model
        Its only variable holds the standardized parameters, then the slots of missing values.
    shared : dict of name to shared variable
        What differs between data sets.
    """

    def __init__(self, spec: ModelSpec, rules: Rules, slots: Mapping[str, int], number_of_locals: int = 0) -> None:
        self.spec, self.dim = spec, spec.dim + number_of_locals
        self._slots = [Slots(spec, v, slots[v.name]) for v in spec.observed if v.name in slots]
        # rows with an imputed value count: only rules of the other variables leave something out
        rules = {name: None if name in slots else rule for name, rule in rules.items()}
        gaps = any(v.missing for v in spec.observed)
        self._density = LogDensityWithGaps(spec, rules) if gaps else LogDensity(spec)
        self.shared = self._shared_variables()
        with pm.Model() as self.model:
            z = pm.Flat(NAME, shape=(self.size,))
            pm.Potential("log_density", self._log_density(z))

    @property
    def size(self) -> int:
        """Number of parameters, locals and slots included."""
        return self.dim + sum(s.number for s in self._slots)

    def values(self, data: Data, whitening: Whitening) -> dict[str, np.ndarray]:
        """Return what :attr:`shared` holds for one data set.

        Parameters
        ----------
        data : mapping of name to array
            What densities take of it.
        whitening : Whitening
        """
        filled = self._density.filled(data) if isinstance(self._density, LogDensityWithGaps) else data
        values = {name: np.asarray(filled[name]) for name in self.shared if name in filled}
        for s in self._slots:
            values |= s.values(data[s.variable.name], data[gaps_of(s.variable.name)])
        return values | {"mean of theta": whitening.mean, "factor of theta": whitening.factor}

    def _shared_variables(self) -> dict[str, Any]:
        """Shared variables, holding the data the model held."""
        spec, dim = self.spec, self.dim
        shared: dict[str, Any] = {}
        for v in spec.data:
            held = np.asarray(spec.held[v.name], dtype=v.dtype)
            shared[v.name] = pytensor.shared(held, name=v.name, shape=v.shape)
            if v.missing:
                name = gaps_of(v.name)
                shared[name] = pytensor.shared(np.zeros(held.shape, dtype=bool), name=name, shape=v.shape)
        for r in spec.sizes:
            length = spec.model.dim_lengths[r.dim].get_value()
            shared[r.dim] = pytensor.shared(np.asarray(length, dtype="int64"), name=r.dim)
        for s in self._slots:
            shared |= s.shared
        for name, value in {"mean of theta": np.zeros(dim), "factor of theta": np.eye(dim)}.items():
            shared[name] = pytensor.shared(value, name=name, shape=value.shape)
        return shared

    def _log_density(self, z: Any) -> Any:
        spec = self.spec
        theta = self.shared["mean of theta"] + self.shared["factor of theta"] @ z[: self.dim]
        data = {v.name: pt.constant(spec.held[v.name], name=v.name) for v in spec.unchanging} | self.shared
        terms, start = [], self.dim
        for s in self._slots:
            name = s.variable.name
            data[name], term = s.graph(z[start : start + s.number], self.shared[name])
            terms.append(term)
            start += s.number
        return sum(terms, start=self._density.expression(theta, data))
