"""The terms of a model's log density, added up in blocks that parameters of their own belong to."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pytensor.tensor as pt

from pymc_amortized.graph.data.datasets import gaps_of, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import Data, Unconstrain
from pymc_amortized.graph.density.missing import LogDensityWithGaps
from pymc_amortized.graph.model.sizes import cut
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import INTERPRETED, call_in_halves, interpret, plain_input
from pymc_amortized.numerics.blocks import blocks

AT_ONCE = 2**21
"""Terms that are computed at once."""
PLACE, NUMBER = "block of each term", "number of blocks"
"""Further inputs: for each term the number of its block, and how many blocks there are."""


class Terms(LogDensityWithGaps):
    """Elements of which the joint log density is the sum: priors, likelihoods, Jacobians and potentials.

    Draws are whole vectors: parameters, then locals (:attr:`ModelSpec.locals`).
    """

    what = "the log density in blocks"

    def _obstacle(self, variable: DataVariable, data: Data) -> str | None:
        if self.rules[variable.name] == "quadratic" and data[gaps_of(variable.name)].any():
            names = ", ".join(p.name for p in self.spec.locals)
            return f"missing values of {variable.name!r} cannot be integrated out together with {names}"
        return super()._obstacle(variable, data)

    def each(self, theta: np.ndarray, data: Data) -> np.ndarray:
        """All terms (draws, terms) at theta (draws, dim + locals)."""
        number = self.number(data)
        return self.in_blocks(theta, data, np.arange(number), number)

    def in_blocks(self, theta: np.ndarray, data: Data, place: np.ndarray, number: int) -> np.ndarray:
        """Sums (draws, number) of the terms of each block, given the block of each term."""
        return self._called(self._once("blocks", self._sums), theta, data, place, number)[0]

    def with_slopes(self, theta: np.ndarray, data: Data, place: np.ndarray, number: int) -> list[np.ndarray]:
        """The same, and the gradient (draws, locals) of the sum of all."""
        return self._called(self._once("slopes", self._slopes), theta, data, place, number)

    def number(self, data: Data) -> int:
        """How many terms there are at the lengths of a data set."""
        inputs = [self.filled(data)[name] for name in super()._input_names]
        theta = np.zeros(self.spec.dim + self.spec.number_of_locals(data))
        return int(self.spec.once((*self._kind, "number"), None, self._counted)(theta, *inputs))

    def _called(self, loop: Any, theta: np.ndarray, data: Data, place: np.ndarray, number: int) -> list[np.ndarray]:
        values: dict[str, Any] = {**self.filled(data), PLACE: place, NUMBER: number}
        inputs = [values[name] for name in self._input_names]
        widths = (number, theta.shape[1] - self.spec.dim)
        return call_in_halves(loop, [theta], inputs, lambda: [np.full((1, width), np.nan) for width in widths])

    def _flat(self) -> Any:
        return pt.concatenate([term.flatten() for term in self._terms()])

    def _sums(self) -> list[Any]:
        place, number = self._block_inputs.values()
        return [pt.inc_subtensor(pt.zeros(number)[place], self._flat())]

    def _slopes(self) -> list[Any]:
        model = self.spec.model
        values: Any = [model.rvs_to_values[model[p.name]] for p in self.spec.locals]
        slopes: Any = pt.grad(self._total(), values)
        return [*self._sums(), pt.concatenate([slope.flatten() for slope in slopes])]

    def _counted(self) -> Any:
        inputs = super()._inputs()
        (flat,) = self._in_terms_of_inputs([self._flat()], inputs)
        return interpret([self._vector, *inputs.values()], flat.shape[0])

    @cached_property
    def _block_inputs(self) -> dict[str, Any]:
        return {PLACE: plain_input("place", "int64", (None,)), NUMBER: plain_input("number", "int64", ())}

    def _inputs(self) -> dict[str, Any]:
        return super()._inputs() | self._block_inputs

    @property
    def _input_names(self) -> list[str]:
        return [*super()._input_names, PLACE, NUMBER]


def points_of(spec: ModelSpec, simulations: Simulations) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Parameters and locals of simulations, unconstrained, one vector each; and their data, as densities take them."""
    datasets = of_simulations(simulations)
    if not datasets.lengths:  # those of one size have lengths among their data
        datasets = replace(datasets, lengths={r.dim: simulations.data[r.dim] for r in spec.sizes})
    none = {v.name: np.zeros(simulations.data[v.name].shape, dtype=bool) for v in spec.observed if v.missing}
    datasets = replace(datasets, missing=none | datasets.missing)
    points, sets = list(simulations.unconstrained), [datasets.one(spec, i) for i in range(len(simulations))]
    if not spec.locals:
        return points, sets
    points, unconstrain = [], Unconstrain(replace(spec, parameters=spec.drawn, locals=()), INTERPRETED)
    for i, data in enumerate(sets):
        own = spec.at({r.dim: data[r.dim] for r in spec.sizes})
        variables = {p.name: cut(simulations.variables[p.name][i], p.shape) for p in own.drawn}
        points.append(unconstrain.one(variables | {c.name: data[c.name] for c in spec.context}))
    return points, sets


def reads_of(terms: Terms, theta: np.ndarray, data: Data, seed: int = 0) -> np.ndarray:
    """Find which locals each term reads, bool (terms, locals): each is moved by itself, at parameters (dim,)."""
    number, rng = terms.spec.number_of_locals(data), np.random.default_rng(seed)
    point = np.concatenate([theta, rng.normal(size=number)])
    before = terms.each(point[None], data)
    reads = np.zeros((before.shape[1], number), dtype=bool)
    for some in blocks(number, max(AT_ONCE // len(reads), 1)):
        index = np.arange(some.start, some.stop)
        moved = np.tile(point, (len(index), 1))
        moved[np.arange(len(index)), len(theta) + index] += rng.normal(size=len(index))
        # what is not a number tells nothing
        reads[:, some] = ((terms.each(moved, data) != before) & ~np.isnan(before)).T
    return reads
