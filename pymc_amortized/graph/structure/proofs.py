r"""What the density says about an axis of the data.

*Invariance.* Rows are exchangeable when permuting them, in every array that carries them, leaves the joint log density
unchanged. Tested on simulated data, where (unlike for placeholder zeros) a permutation changes the arrays.

*Independence.* Let :math:`z` and :math:`z'` be two data sets that differ in all rows. The log density is a sum over
rows exactly when for every part :math:`A` of the rows

.. math:: f(z_A, z'_B) + f(z'_A, z_B) = f(z) + f(z'), \qquad B = A^c.

Random halves see the coupling of any two rows with probability one half each: a covariate standardized in the graph, a
potential over rows, lags of any order, a covariance. As :math:`z'` serve the rows themselves in another order, so
that supports that depend on parameters are respected.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import LogDensity, Unconstrain
from pymc_amortized.graph.model.spec import ModelSpec, Parameter
from pymc_amortized.graph.structure.carriers import Array, Pair

TOLERANCE = 1e-8
"""Relative difference of log densities that rounding explains (sums of some thousand float64 terms)."""

Values = tuple[np.ndarray, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Change:
    """What a permutation did to the log density.

    Attributes
    ----------
    tried : int
        Prior draws at which it was tried.
    difference : float
        The largest difference of log densities; of the first beyond the tolerance, if one was.
    holds : bool
        Whether the log density stayed the same.
    """

    tried: int
    difference: float
    holds: bool


class Proofs:
    """Permutes simulations and asks the density.

    Parameters
    ----------
    spec : ModelSpec
        With all free variables among its parameters.
    arrays : dict of name to Array
    simulations : Simulations
    log_density : LogDensity
    seed : numpy.random.SeedSequence
    """

    def __init__(
        self,
        spec: ModelSpec,
        arrays: Mapping[str, Array],
        simulations: Simulations,
        log_density: LogDensity,
        seed: np.random.SeedSequence,
    ) -> None:
        self.arrays = arrays
        self._spec = spec
        self._simulations = simulations
        self._log_density = log_density
        self._entropy = seed.generate_state(4)
        self._before: dict[int, float] = {}
        self._parameters = {p.name: p for p in spec.parameters}
        starts = np.cumsum([0, *(p.size for p in spec.parameters)])
        self._starts = {p.name: int(start) for p, start in zip(spec.parameters, starts[:-1], strict=True)}

    def permuting(self, pairs: Iterable[Pair], moved: Pair) -> Change:
        """Permute an axis jointly in all `pairs`, at draws where that changes `moved`; stop where the density changes.

        Nothing was tried where no simulation is changed by a permutation.
        """
        pairs, largest, tried = list(pairs), 0.0, 0
        for index in self._informative(moved):
            order, _ = self._order(index, moved)
            theta, data = self._permuted(index, pairs, order)
            difference = abs(self._evaluate(theta, data) - self._base(index))
            tried += 1
            if not difference <= TOLERANCE * (1 + abs(self._base(index))):
                return Change(tried, float(difference), False)
            largest = max(largest, difference)
        return Change(tried, float(largest), tried > 0)

    def matters(self, pairs: Iterable[Pair], moved: Pair) -> bool:
        """Whether permuting some axes alone changes the density; True where it would be dear to find out."""
        pairs = list(pairs)
        if any(self._needs_constrained(pair) for pair in pairs):
            return True
        return not self.permuting(pairs, moved).holds

    def separable(self, pairs: Iterable[Pair], moved: Pair) -> bool | None:
        """Whether the log density is a sum over rows, in all `pairs` jointly; None where it cannot be tested.

        Arrays that carry the axis twice, and free variables that have no rows of unconstrained values, stay.
        """
        pairs = list(pairs)
        names = [name for name, _ in pairs]
        rows = [p for p in pairs if names.count(p[0]) == 1 and not self._needs_constrained(p)]
        tested = False
        for index in self._informative(moved):
            order, half = self._order(index, moved)
            z, other = self._values(index), self._permuted(index, rows, order)
            mixed = [self._mixed(rows, z, other, part) for part in (half, ~half)]
            f = np.array([self._base(index), *(self._evaluate(*v) for v in (other, *mixed))])
            if np.isfinite(f[:2]).all() and np.isneginf(f[2:]).any():
                return False  # which values a row can have depends on other rows
            if not np.isfinite(f).all():
                continue
            if abs(f[0] + f[1] - f[2] - f[3]) > TOLERANCE * (1 + np.abs(f).max()):
                return False
            tested = True
        return True if tested else None

    def _informative(self, moved: Pair) -> Iterable[int]:
        """Up to 16 draws with a finite density at which rows differ."""
        count = 0
        for index in range(len(self._simulations)):
            values, axis = self._simulations.data[moved[0]][index], moved[1]
            order, _ = self._order(index, moved)
            if np.array_equal(np.take(values, order, axis), values) or not np.isfinite(self._base(index)):
                continue
            yield index
            count += 1
            if count == 16:
                return

    def _order(self, index: int, moved: Pair) -> tuple[np.ndarray, np.ndarray]:
        """A permutation other than the identity, and a random part of the rows."""
        length = self.arrays[moved[0]].shape[moved[1]]
        rng = np.random.default_rng([index, length, *self._entropy])
        identity = np.arange(length)
        order, part = identity, np.zeros(length, dtype=bool)
        while np.array_equal(order, identity):
            order = rng.permutation(length)
        while part.all() or not part.any():
            part = rng.random(length) < 0.5
        return order, part

    def _values(self, index: int) -> Values:
        held = {v.name: self._spec.held[v.name] for v in self._spec.inputs}
        data = held | {name: values[index] for name, values in self._simulations.data.items()}
        return self._simulations.unconstrained[index], data

    def _base(self, index: int) -> float:
        if index not in self._before:
            self._before[index] = self._evaluate(*self._values(index))
        return self._before[index]

    def _evaluate(self, theta: np.ndarray, data: dict[str, np.ndarray]) -> float:
        if not np.isfinite(theta).all():
            return float("nan")
        with np.errstate(all="ignore"):
            return float(self._log_density(theta[None], data)[0])

    def _permuted(self, index: int, pairs: Iterable[Pair], order: np.ndarray) -> Values:
        theta, data = self._values(index)
        theta, data = theta.copy(), dict(data)
        constrained: dict[str, np.ndarray] = {}
        for name, axis in pairs:
            if name in data:
                data[name] = np.take(data[name], order, axis)
            elif self._needs_constrained((name, axis)):
                values = constrained.get(name, self._simulations.variables[name][index])
                constrained[name] = np.take(values, order, axis)
            else:
                part = self._part(theta, name)
                part[...] = np.take(part, order, axis)
        for name, values in constrained.items():
            self._part(theta, name)[...] = self._moved_on_own_scale(index, {name: values}, name)
        return theta, data

    def _mixed(self, pairs: list[Pair], first: Values, second: Values, part: np.ndarray) -> Values:
        """Rows `part` of the first, the others of the second."""
        theta, data = first[0].copy(), dict(first[1])
        for name, axis in pairs:
            if name in data:
                data[name] = _choose(part, first[1][name], second[1][name], axis)
            else:
                values = _choose(part, self._part(first[0], name), self._part(second[0], name), axis)
                self._part(theta, name)[...] = values
        return theta, data

    def _part(self, theta: np.ndarray, name: str) -> np.ndarray:
        """View of a parameter's unconstrained values."""
        p, start = self._parameters[name], self._starts[name]
        return theta[start : start + p.size].reshape(p.unconstrained_shape)

    def _needs_constrained(self, pair: Pair) -> bool:
        """Whether permuting a free variable is not permuting its unconstrained values."""
        p: Parameter | None = self._parameters.get(pair[0])
        if p is None or is_elementwise(p):
            return False
        # transforms of vectors act on the last axis
        batch = pair[1] < len(p.shape) - 1 and len(p.shape) == len(p.unconstrained_shape)
        return not (batch and p.shape[pair[1]] == p.unconstrained_shape[pair[1]])

    def _moved_on_own_scale(self, index: int, changed: dict[str, np.ndarray], name: str) -> np.ndarray:
        variables = {p: self._simulations.variables[p][index] for p in self._parameters} | changed
        variables |= {c.name: self._simulations.data[c.name][index] for c in self._spec.context}
        with np.errstate(all="ignore"):
            theta = self._unconstrain.one(variables)
        return self._part(theta, name)

    @cached_property
    def _unconstrain(self) -> Unconstrain:
        return Unconstrain(self._spec)


def is_elementwise(p: Parameter) -> bool:
    """Whether each unconstrained value is a function of one value of the variable alone."""
    known = (None, "log", "logodds", "interval", "circular", "log_exp_m1")  # PyMC's names of transforms
    return p.transform in known and (p.transform is None or p.shape == p.unconstrained_shape)


def _choose(part: np.ndarray, first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * first.ndim
    shape[axis] = len(part)
    return np.where(part.reshape(shape), first, second)
