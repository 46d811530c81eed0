"""Which draws of a model its own density allows, and why it refuses the others."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from pytensor.graph.replace import clone_replace, graph_replace

from pymc_amortized.graph.density.each import EachLogDensity
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec, Parameter
from pymc_amortized.graph.model.step import EXCLUDED, check_graph, held_constants, length_inputs
from pymc_amortized.graph.model.tensors import (
    INTERPRETED,
    CompileKwargs,
    Loop,
    batched_input,
    call_in_halves,
    like,
    plain_input,
)

FEW = 2048
"""Draws that are asked one by one by interpreted code: in the time, about, that compiling it would take."""


class Checks:
    """Tells which draws have finite log densities, all variables and transforms.

    Most do, and the joint log density says so at once: it is compiled anyway, to weigh what is drawn. Only the others
    are asked variable by variable.

    Parameters
    ----------
    spec : ModelSpec
        With all free variables among its parameters, and a density.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(self, spec: ModelSpec, compile_kwargs: CompileKwargs | None = None) -> None:
        self._spec, self._compile_kwargs = spec, compile_kwargs
        gappy = any(v.missing for v in spec.observed)
        complete = replace(spec, observed=tuple(replace(v, missing=False) for v in spec.observed)) if gappy else spec
        self._density = EachLogDensity(complete, {}, compile_kwargs=compile_kwargs)
        self._asked = 0

    def compile(self) -> None:
        """Compile what every draw is asked by."""
        self._density.compiled()

    def __call__(
        self, theta: np.ndarray, drawn: Mapping[str, np.ndarray], lengths: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which draws are doubtful (n,), and for these what :func:`check_graph` says of each variable.

        Parameters
        ----------
        theta : ndarray (n, dim)
            Unconstrained parameters.
        drawn : mapping of name to ndarray (n, *shape)
            Free, observed and context variables.
        lengths : mapping of name to int
            Of the dimensions that vary.
        """
        n = np.arange(len(theta))
        arrays = {**drawn, **{dim: np.full(len(n), k) for dim, k in lengths.items()}, **self._spec.unchanging_values}
        with np.errstate(all="ignore"):
            doubtful = ~np.isfinite(theta).all(axis=1)
            doubtful[~doubtful] = ~np.isfinite(self._density.evaluate(theta, n, n, arrays)[0])[~doubtful]
            if not doubtful.any():
                return doubtful, np.empty((0, len(self._spec.model.basic_RVs)), dtype="int8")
            return doubtful, self._of_each([drawn[name][doubtful] for name in self._names], list(lengths.values()))

    def _of_each(self, values: list[np.ndarray], lengths: list[int]) -> np.ndarray:
        self._asked += len(values[0])
        kwargs = INTERPRETED if self._asked <= FEW else self._compile_kwargs
        loop = self._spec.once(type(self), kwargs, lambda: self._loop(kwargs))
        excluded = np.full((1, len(self._spec.model.basic_RVs)), EXCLUDED, dtype="int8")
        return call_in_halves(loop, values, lengths, lambda: [excluded])[0]

    @property
    def _names(self) -> list[str]:
        return [v.name for v in self._every]

    @property
    def _every(self) -> list[Parameter | DataVariable]:
        return [*self._spec.parameters, *self._spec.data]

    def _loop(self, compile_kwargs: CompileKwargs | None) -> Loop:
        spec, model = self._spec, self._spec.model
        every = self._every
        one = [plain_input(v.name, v.dtype, v.shape) for v in every]
        replaced = {model[v.name]: like(model[v.name], symbol) for v, symbol in zip(every, one, strict=True)}
        lengths = length_inputs(spec)
        checks = graph_replace([check_graph(model)], replaced | lengths, strict=False)
        checks = clone_replace(checks, held_constants(spec), rebuild_strict=False)
        sequences = [(s, batched_input(v.name, v.dtype, v.shape)) for v, s in zip(every, one, strict=True)]
        return Loop(checks, sequences=sequences, inputs=list(lengths.values()), compile_kwargs=compile_kwargs)
