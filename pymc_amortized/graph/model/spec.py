"""What a PyMC model says about its own inference: parameters, data and what may vary between data sets.

:class:`ModelSpec` is a frozen snapshot. It owns a copy of the model in which every dimension and every data
container that does not vary is a constant, so that nothing the user does to their model afterwards
(``pm.set_data``, new variables) can change what a trained network means. Everything that is compiled is
compiled from that copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import numpy as np
import pymc as pm
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.model.operations import density_obstacle
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.numerics.threads import TURN

MOST = 2**31
"""Length of a dim where any will do."""
T = TypeVar("T")
Role = Literal["observed", "context", "fixed", "constant"]


@dataclass(frozen=True)
class Parameter:
    """A free random variable, as the networks and the results see it."""

    name: str
    value_name: str
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]
    dtype: str
    transform: str | None
    sized: tuple[str | None, ...] = ()
    """For each axis, the dimension whose length differs between data sets; None, or no entry, where it does not."""

    @property
    def size(self) -> int:
        """Number of unconstrained values."""
        return int(np.prod(self.unconstrained_shape, dtype=int))

    def unconstrained_at(self, lengths: Mapping[str, Any]) -> tuple[Any, ...]:
        """Shape of unconstrained values in a data set in which dimensions have the given lengths."""
        shapes = zip_longest(self.unconstrained_shape, self.shape, self.sized)
        return tuple(k if d is None else lengths[d] + (k - n) for k, n, d in shapes)

    def at(self, lengths: Mapping[str, int]) -> Parameter:
        """Return it as it is in data sets in which dimensions have the given lengths."""
        own = zip_longest(self.shape, self.sized)
        shape = tuple(n if d is None else lengths[d] for n, d in own)
        return replace(self, shape=shape, unconstrained_shape=self.unconstrained_at(lengths), sized=())

    @property
    def open_shape(self) -> tuple[int | None, ...]:
        """Shape, with None for a length that differs between data sets."""
        return tuple(n if d is None else None for n, d in zip_longest(self.shape, self.sized))


@dataclass(frozen=True)
class DataVariable:
    """An observed variable, or a data container whose values vary between data sets."""

    name: str
    shape: tuple[int | None, ...]
    """None for the length of a dimension that differs between data sets."""
    dtype: str
    dims: tuple[str | None, ...]
    kind: str
    """Of :data:`pymc_amortized.numerics.kinds.KINDS`."""
    role: Role
    container: str | None = None
    """Name of the ``pm.Data`` that holds an observed variable's values, if there is one."""
    missing: bool = False
    """Whether values may be missing."""

    def shape_at(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """Shape in a data set in which dimensions have the given lengths."""
        return tuple(lengths[d] if n is None else n for n, d in zip(self.shape, self._dims, strict=True))  # type: ignore[index]

    def lengths(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Lengths of the dimensions that differ, read off the shape of an array."""
        return {d: k for n, k, d in zip(self.shape, shape, self._dims, strict=True) if n is None and d is not None}

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can hold the variable."""
        return len(shape) == len(self.shape) and all(n in (None, k) for n, k in zip(self.shape, shape, strict=True))

    @property
    def sized(self) -> tuple[str, ...]:
        """Dimensions of it that differ between data sets."""
        return tuple(d for n, d in zip(self.shape, self._dims, strict=True) if n is None and d is not None)

    @property
    def _dims(self) -> tuple[str | None, ...]:
        return self.dims or (None,) * len(self.shape)


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """A frozen snapshot of a model and of the roles its variables play.

    Attributes
    ----------
    model : pymc.Model
        The copy that everything is compiled from. The values of its observed variables are symbolic inputs,
        its data containers are private.
    parameters : tuple of Parameter
        The free variables whose posterior is wanted, in the model's order.
    nuisance : tuple of Parameter
        Free variables that are simulated and marginalized (``parameters=`` named a subset).
    locals : tuple of Parameter
        Free variables that are integrated out by the density, and drawn given the parameters.
    observed, context : tuple of DataVariable
        What is given at inference, in the model's order.
    fixed : tuple of DataVariable
        Data containers that stay at the values they held.
    held : dict of name to ndarray
        Values that the model held for all of these when it was read.
    sizes : tuple of Range
        Dimensions whose length differs between data sets.
    holds_data : bool
        Whether the observed ones are data; for a generative model they are one simulated draw.
    constants : tuple of DataVariable
        Unnamed arrays of the graph that may have rows in common with the data; their names are made up.
    symbols : dict of name to variable
        What stands for these in the snapshot's graph.
    labels : dict of name to list
        Labels of dims that are not among the coords of the snapshot.
    """

    model: pm.Model
    parameters: tuple[Parameter, ...]
    nuisance: tuple[Parameter, ...]
    observed: tuple[DataVariable, ...]
    context: tuple[DataVariable, ...]
    fixed: tuple[DataVariable, ...]
    held: dict[str, np.ndarray]
    holds_data: bool = True
    sizes: tuple[Range, ...] = ()
    constants: tuple[DataVariable, ...] = ()
    symbols: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, list[Any]] = field(default_factory=dict)
    locals: tuple[Parameter, ...] = ()
    _compiled: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled functions behind: other processes compile their own."""
        return {**self.__dict__, "_compiled": {}}

    def once(self, what: Any, compile_kwargs: Mapping[str, Any] | None, compiled: Callable[[], T]) -> T:
        """Return what is compiled from the model, which is kept: whoever asks again gets the same function.

        Parameters
        ----------
        what : hashable
            By which one function is told from another.
        compile_kwargs : mapping, optional
            How it is compiled.
        compiled : callable
            Compiles it.
        """
        key = (what, tuple(sorted((compile_kwargs or {}).items())))
        try:
            hash(key)
        except TypeError:  # of options that hold dicts, say
            return compiled()
        with TURN:
            if key not in self._compiled:
                self._compiled[key] = compiled()
            return self._compiled[key]

    def labels_of(self, dim: str | None) -> Any:
        """Labels of a dim; None where there are none."""
        return None if dim is None else self.labels.get(dim, self.model.coords.get(dim))

    @property
    def dim(self) -> int:
        """Length of the flattened unconstrained parameter vector."""
        return sum(p.size for p in self.parameters)

    @property
    def element_names(self) -> list[str]:
        """Names of the entries of that vector: ``slope[1]``."""
        places = ((p.name, place) for p in self.parameters for place in np.ndindex(p.unconstrained_shape))
        return [f"{name}[{', '.join(map(str, place))}]" if place else name for name, place in places]

    @property
    def circular(self) -> np.ndarray:
        """Mark the entries of that vector (dim,) that are angles, from -pi to pi."""
        return np.concatenate([np.full(p.size, p.transform == "circular") for p in self.parameters])

    @property
    def data(self) -> tuple[DataVariable, ...]:
        """Observed and context variables: what differs between data sets."""
        return self.observed + self.context

    @property
    def values(self) -> int:
        """How many values differ between data sets, at most."""
        return sum(math.prod(v.shape_at(self.largest)) for v in self.data)

    @property
    def inputs(self) -> tuple[DataVariable, ...]:
        """Everything the density is a function of, beside the parameters."""
        return self.observed + self.context + self.unchanging

    @property
    def unchanging(self) -> tuple[DataVariable, ...]:
        """Inputs of the density that are the same for all data sets."""
        return self.fixed + self.constants

    @property
    def unchanging_values(self) -> dict[str, np.ndarray]:
        """Values of the data containers that stay at what they held, by name."""
        return {v.name: self.held[v.name] for v in self.unchanging}

    def variable(self, name: str) -> Any:
        """Return the variable of the snapshot's graph that has a name, or stands for a constant array."""
        return self.symbols[name] if name in self.symbols else self.model[name]

    @property
    def largest(self) -> dict[str, int]:
        """The largest length of each dimension that varies."""
        return {r.dim: r.largest for r in self.sizes}

    def at(self, lengths: Mapping[str, int]) -> ModelSpec:
        """Return the spec with shapes as they are at some lengths; lengths stay inputs of what is compiled."""
        if not lengths:
            return self

        def fixed(variables: tuple[DataVariable, ...]) -> tuple[DataVariable, ...]:
            return tuple(replace(v, shape=v.shape_at(lengths)) for v in variables)

        return replace(
            self,
            observed=fixed(self.observed),
            context=fixed(self.context),
            parameters=tuple(p.at(lengths) for p in self.parameters),
            locals=tuple(p.at(lengths) for p in self.locals),
        )

    @property
    def drawn(self) -> tuple[Parameter, ...]:
        """Free variables of which posteriors hold draws: parameters, then what is drawn given these."""
        return self.parameters + self.locals

    def number_of_locals(self, lengths: Mapping[str, Any]) -> int:
        """How many unconstrained values are drawn given the parameters, at some lengths."""
        return sum(math.prod(p.unconstrained_at(lengths)) for p in self.locals)

    def of_any_length(self) -> ModelSpec:
        """Return the spec for data sets of any sizes, also those beyond what was trained for."""
        return replace(self, sizes=tuple(replace(r, smallest=0, largest=MOST) for r in self.sizes))

    def with_locals(self, names: Collection[str]) -> ModelSpec:
        """Return the spec with some more of its parameters as locals."""
        free = {True: self.locals, False: ()}
        for p in self.parameters:
            free[p.name in names] += (p,)
        return replace(self, parameters=free[False], locals=free[True])

    @property
    def open_ended(self) -> bool:
        """Whether the number of free values differs between data sets."""
        return any(any(p.sized) for p in self.drawn)

    def jointly(self) -> ModelSpec:
        """Return the spec with the posterior of all free variables wanted."""
        if not self.nuisance and not self.locals:
            return self
        free = {p.name: p for p in (*self.drawn, *self.nuisance)}
        ordered = tuple(free[rv.name] for rv in self.model.free_RVs)
        return replace(self, parameters=ordered, nuisance=(), locals=())

    @property
    def deterministics(self) -> tuple[str, ...]:
        """Deterministics that the wanted parameters and the data determine, in the model's order."""
        hidden = {self.model[p.name] for p in self.nuisance}
        return tuple(d.name for d in self.model.deterministics if hidden.isdisjoint(ancestors([d])))

    @property
    def potentials(self) -> tuple[str, ...]:
        """Names of the model's potentials."""
        return tuple(p.name for p in self.model.potentials)

    @cached_property
    def density_obstacle(self) -> str | None:
        """Why the model's joint log density cannot be evaluated; None where it can."""
        if self.nuisance:
            hidden = ", ".join(p.name for p in self.nuisance)
            return f"the marginal posterior without {hidden} has no closed density"
        return density_obstacle(self.model)
