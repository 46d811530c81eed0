"""The model's log density of many data sets, at parameters of each one's own, in one compiled loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.replace import graph_replace

from pymc_amortized.graph.data.datasets import DataSets, gaps_of
from pymc_amortized.graph.density.log_density import Data
from pymc_amortized.graph.density.missing import LogDensityWithGaps, Rules, divided, filled, joined
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs, Loop, batched_input, call_in_halves
from pymc_amortized.numerics.bands import BandedGaps
from pymc_amortized.numerics.blocks import blocks

Gradients = Literal["parameters", "gaps"] | None
"""With respect to what log densities are differentiated."""

WIDEST = 8
"""Band of the precision of values that may be missing, beyond which integrating over these takes too long."""


class EachLogDensity(LogDensityWithGaps):
    """Joint log density of the value variables and what is present of the data.

    What depends on missing values beyond the term of their own row counts as if these rows were missing altogether.

    Parameters
    ----------
    spec : ModelSpec
    rules : mapping of name to rule
        From :func:`find_rules`.
    band : int, optional
        How far values interact that are to be integrated over; by default, none are. From :func:`find_band`.
    """

    def __init__(
        self, spec: ModelSpec, rules: Rules, band: int | None = None, compile_kwargs: CompileKwargs | None = None
    ) -> None:
        super().__init__(spec, rules, compile_kwargs)
        self.band = band

    @property
    def integrated(self) -> list[DataVariable]:
        """Variables whose missing values are integrated over."""
        return [v for v in self._gappy if self.rules[v.name] == "quadratic"]

    def compiled(self, gradients: Gradients = None) -> Loop:
        """Return the compiled loop over pairs of data and parameters."""
        return self.spec.once((*self._kind, gradients), self._compile_kwargs, lambda: self._compiled(gradients))

    def _compiled(self, gradients: Gradients) -> Loop:
        spec = self.spec
        one = self._inputs()  # what stands for one data set
        carriers = {v.name: v for v in spec.data} | {gaps_of(v.name): v for v in self._gappy}
        rows = {name: one[name].type() for name in carriers}
        own = {r.dim: one[r.dim] for r in spec.sizes}
        fixed = [one[v.name] for v in spec.unchanging]
        integrated = {v.name for v in self.integrated}
        total = self._in_terms_of_inputs([self._total()], one)[0]
        cut: dict[Any, Any] = {one[name]: _cut(row, carriers[name], own) for name, row in rows.items()}
        (log_density,) = graph_replace([total], cut, strict=False)
        outputs = [log_density]
        if gradients is not None:
            of: Any = [self._vector] if gradients == "parameters" else [rows[v.name] for v in self.integrated]
            slopes: Any = pt.grad(log_density, of)
            outputs.append(pt.concatenate([slope.flatten() for slope in slopes]))
        draws = batched_input("draws", "float64", (spec.dim,))
        numbers = [(pt.lscalar(name), pt.lvector(name)) for name in ("index", "row")]
        picked = [(v, _every(v), int(name in integrated)) for name, v in rows.items()]
        picked += [(length, _every(length), 0) for length in own.values()]
        return Loop(
            outputs,
            sequences=[*numbers, (self._vector, draws)],
            picked=picked,
            inputs=fixed,
            compile_kwargs=self._compile_kwargs,
            what=self.what if gradients is None else f"{self.what} and its gradient",
        )

    @property
    def _picked_names(self) -> list[str]:
        own = [*(v.name for v in self.spec.data), *(gaps_of(v.name) for v in self._gappy)]
        return [*own, *(r.dim for r in self.spec.sizes)]

    def evaluate(
        self, theta: np.ndarray, index: np.ndarray, row: np.ndarray, arrays: Data, gradients: Gradients = None
    ) -> list[np.ndarray]:
        """Call a compiled loop; NaN where compiled code raises.

        Parameters
        ----------
        theta : ndarray (pairs, dim)
        index : ndarray (pairs,)
            Of the data set of each.
        row : ndarray (pairs,)
            In the arrays of integrated variables, which may hold more.
        arrays : mapping of name to ndarray
            Data of all data sets, lengths, and what is the same for all.
        gradients : {"parameters", "gaps"} or None
            With respect to what gradients (pairs, width) are returned too: theta, where nothing is integrated, or the
            integrated variables.
        """
        width = theta.shape[1] if gradients == "parameters" else sum(arrays[v.name][0].size for v in self.integrated)
        nothing = [np.full(1, np.nan), np.full((1, width), np.nan)][: 1 if gradients is None else 2]
        fixed = [arrays[v.name] for v in self.spec.unchanging]
        picked = [arrays[name] for name in self._picked_names]
        return call_in_halves(self.compiled(gradients), [index, row, theta], fixed, lambda: nothing, picked)

    def of(self, datasets: DataSets) -> DensitiesOf:
        """Return the densities of some data sets."""
        return DensitiesOf(self, datasets)


class DensitiesOf:
    """Log densities of some data sets.

    Parameters
    ----------
    density : EachLogDensity
    datasets : DataSets
    """

    def __init__(self, density: EachLogDensity, datasets: DataSets) -> None:
        self._density, self._n, spec = density, len(datasets), density.spec
        missing = {gaps_of(name): mask for name, mask in datasets.missing.items()}
        lengths = {dim: np.asarray(n, dtype="int64") for dim, n in datasets.lengths.items()}
        possible = {
            v.name: filled(v, datasets.values[v.name], datasets.missing[v.name], datasets.outside(v), spec.held[v.name])
            for v in spec.observed
            if v.missing
        }
        arrays = {**datasets.values, **possible, **missing, **lengths, **spec.unchanging_values}
        # another layout in memory would be compiled again
        self._arrays = {name: np.asarray(values, order="C") for name, values in arrays.items()}
        self._gaps: BandedGaps | None = None
        if density.integrated and density.band is not None:
            self._gaps = BandedGaps(joined(density.integrated, datasets.missing), density.band)
            self._arrays |= divided(
                density.integrated, self._gaps.probed(joined(density.integrated, self._arrays)), self._arrays
            )

    def __call__(self, theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Evaluate at theta (k, m, dim), for the data sets at index (k,); returns (k, m), NaN where that fails."""
        return np.where(self._outside(theta), -np.inf, self._evaluated(theta, index))

    def gradients(self, theta: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate with gradients (k, m, dim), where nothing of the data is integrated over."""
        log_p, slope = self._pairs(theta, index, "parameters")
        return np.where(self._outside(theta), -np.inf, log_p), slope

    @property
    def differentiable(self) -> bool:
        """Whether :meth:`gradients` are those of the densities."""
        return self._gaps is None

    def _outside(self, theta: np.ndarray) -> np.ndarray:
        """Where an angle is beyond its one period."""
        return (np.abs(theta[..., self._density.spec.circular]) > np.pi).any(axis=-1)

    def _evaluated(self, theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        if self._gaps is None:
            return self._pairs(theta, index)[0]
        complete = self._gaps.counts[index] == 0
        found = np.empty(theta.shape[:2])
        (found[complete],) = self._pairs(theta[complete], index[complete])
        (rest,) = np.nonzero(~complete)
        for part in blocks(len(rest), self._gaps.block(theta.shape[1])):
            some = rest[part]
            pairs = [self._pairs(theta[some], index[some], "gaps", probe) for probe in range(self._gaps.probes + 1)]
            found[some] = pairs[0][0] + self._gaps.integral(index[some], np.stack([slope for _, slope in pairs]))
        return found

    def _pairs(
        self, theta: np.ndarray, index: np.ndarray, gradients: Gradients = None, probe: int = 0
    ) -> list[np.ndarray]:
        """Log densities (k, m), and gradients (k, m, width), at data that are filled where they are missing."""
        k, m, dim = theta.shape
        index = np.repeat(index, m)
        row = index + probe * self._n
        found = self._density.evaluate(theta.reshape(k * m, dim), index, row, self._arrays, gradients)
        return [part.reshape(k, m, *part.shape[1:]) for part in found]

    def slopes(self, theta: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Gradient with respect to the integrated variables of the only data set, there and with each place moved."""
        variables = self._density.integrated
        row = joined(variables, self._arrays)
        rows = np.concatenate([row, row + np.eye(row.shape[1])[places]])
        arrays = self._arrays | divided(variables, rows, self._arrays)
        index = np.arange(len(rows))
        return self._density.evaluate(np.tile(theta, (len(rows), 1)), 0 * index, index, arrays, "gaps")[1]


def find_band(density: EachLogDensity, datasets: DataSets, theta: np.ndarray) -> int | None:
    """Find how far values that are to be integrated over interact; None if some do over more than a few places.

    Parameters
    ----------
    density : EachLogDensity
    datasets : DataSets
        Simulations; the two longest are looked at, at 256 places at most.
    theta : ndarray (n, dim)
        Their parameters.
    """
    band = 0
    variables = density.integrated
    for i in np.argsort(-sum(datasets.lengths.values(), np.zeros(len(datasets))), kind="stable")[:2]:
        one = datasets.take(np.array([i]))
        of = DensitiesOf(density, one)
        existing = ~np.concatenate([one.outside(v).reshape(-1) for v in variables])
        (places,) = np.nonzero(existing)
        places = places[:: -(-len(places) // 256)]
        slopes = of.slopes(theta[i], places)
        second = np.abs(slopes[0] - slopes[1:])
        apart = np.abs(np.arange(second.shape[1]) - places[:, None])
        near = second > 1e-9 * second.max()  # less is rounding
        if not np.isfinite(second).all() or (apart[near] > WIDEST).any():
            return None
        band = max(band, int(apart[near].max(initial=0)))
    return band


def _every(one: Any) -> Any:
    """An input for many of what a variable stands for."""
    return batched_input(one.name, one.type.dtype, one.type.shape)


def _cut(row: Any, variable: DataVariable, lengths: Mapping[str, Any]) -> Any:
    """The part of a padded array that exists."""
    if not variable.sized:
        return row
    dims = [d if n is None else None for n, d in zip(variable.shape, variable.dims, strict=True)]
    return row[tuple(slice(None, lengths[d]) if d else slice(None) for d in dims)]
