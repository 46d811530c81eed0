"""Where the values of context variables come from during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pymc.distributions.shape_utils import change_dist_size
from pytensor.graph.basic import Variable

from pymc_amortized.graph.spec import DataVariable, ModelSpec
from pymc_amortized.graph.tensors import DrawLoop, plain

Source = Any
"""A PyMC distribution (``pm.Normal.dist(0, 1)``), ``"resample"``, or a callable ``rng -> array``."""


class ContextSampler:
    """Draws values of the context variables, one set for each simulation.

    Parameters
    ----------
    spec : ModelSpec
    sources : mapping of name to source
        For each context variable of the spec: a PyMC distribution created by ``.dist()`` (drawn independently for
        every element when it is scalar), ``"resample"`` (rows drawn with replacement from the values the
        model held; containers of the same length are resampled together), or a callable that takes a
        :class:`numpy.random.Generator` and returns the values for one data set.
    """

    def __init__(self, spec: ModelSpec, sources: Mapping[str, Source]) -> None:
        self._variables = spec.context
        self._sources = dict(sources)
        self._held = spec.held
        self._loops: dict[str, DrawLoop] = {}
        for variable in spec.context:
            self._check(variable, sources[variable.name])

    def __call__(self, n: int, seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Return `n` values of every context variable: name -> (n, *shape)."""
        rows_seed, *seeds = seed.spawn(1 + len(self._variables))
        values = {}
        for variable, child in zip(self._variables, seeds, strict=True):
            source = self._sources[variable.name]
            if isinstance(source, str):
                values[variable.name] = self._resample(variable, n, rows_seed)
            elif isinstance(source, Variable):
                values[variable.name] = self._draw(variable, n, child)
            else:
                values[variable.name] = self._call(variable, source, n, child)
        return values

    def _check(self, variable: DataVariable, source: Source) -> None:
        name = variable.name
        if isinstance(source, str):
            if source != "resample":
                raise ValueError(f"context[{name!r}]: {source!r} is not understood; did you mean 'resample'?")
            if not variable.shape:
                raise ValueError(f"context[{name!r}]: a scalar has no rows to resample; give a distribution")
        elif isinstance(source, Variable):
            self._loops[name] = DrawLoop([plain(_sized(name, source, variable.shape))])
        elif callable(source) and not isinstance(source, type):
            self._try(variable, source)
        else:
            raise TypeError(
                f"context[{name!r}] must be a PyMC distribution (pm.Normal.dist(0, 1)), 'resample' or a callable "
                f"rng -> array, got {type(source).__name__}"
            )

    def _resample(self, variable: DataVariable, n: int, seed: np.random.SeedSequence) -> np.ndarray:
        rows = variable.shape[0]
        # the same generator for every container of this length: rows stay together
        rng = np.random.default_rng([rows, *seed.generate_state(4)])
        return self._held[variable.name][rng.integers(rows, size=(n, rows))]

    def _draw(self, variable: DataVariable, n: int, seed: np.random.SeedSequence) -> np.ndarray:
        (values,) = self._loops[variable.name](n, seed)
        return values.astype(variable.dtype, copy=False)

    def _call(
        self,
        variable: DataVariable,
        source: Callable[[np.random.Generator], Any],
        n: int,
        seed: np.random.SeedSequence,
    ) -> np.ndarray:
        rng = np.random.default_rng(seed)
        values = np.empty((n, *variable.shape), dtype=variable.dtype)
        for i in range(n):
            value = np.asarray(source(rng))
            if value.shape != variable.shape or not np.isfinite(value).all():
                raise ValueError(
                    f"context[{variable.name!r}]: the callable returned {_described(value)}, "
                    f"the container holds numbers of shape {variable.shape}"
                )
            values[i] = value
        return values

    def _try(self, variable: DataVariable, source: Callable[[np.random.Generator], Any]) -> None:
        try:
            self._call(variable, source, 1, np.random.SeedSequence(0))
        except TypeError as error:
            raise TypeError(f"context[{variable.name!r}]: the callable rng -> array fails: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled functions behind."""
        return {**self.__dict__, "_loops": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile again what was left behind."""
        self.__dict__.update(state)
        for variable in self._variables:
            self._check(variable, self._sources[variable.name])


def _sized(name: str, dist: Any, shape: tuple[int, ...]) -> Any:
    if dist.type.ndim == 0 and shape:
        return change_dist_size(dist, shape)
    if dist.type.shape != shape:
        raise ValueError(
            f"context[{name!r}]: the distribution has shape {dist.type.shape}, the container has {shape}; "
            "a scalar distribution is drawn independently for every element"
        )
    return dist


def _described(value: np.ndarray) -> str:
    return f"shape {value.shape}" if np.isfinite(value).all() else "NaN or infinite values"
