"""The model's log density of many data sets, at parameters of each one's own, in one compiled loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.graph.replace import graph_replace

from pymc_amortized.graph.data.datasets import DataSets, gaps_of
from pymc_amortized.graph.density.log_density import Data
from pymc_amortized.graph.density.missing import LogDensityWithGaps, Rules
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs, batched_input
from pymc_amortized.numerics.bands import log_integral

WIDEST = 8
"""Band of the precision of values that may be missing, beyond which integrating over these takes too long."""
PROBED = 2
"""Data sets that show which values interact."""
BLOCK_BYTES = 32 * 2**20
"""Memory for the gradients of a block of densities."""
MOST_PROBED = 256
"""Of their places."""
NEGLIGIBLE = 1e-9
"""Of the largest second derivative, what is rounding."""


class EachLogDensity(LogDensityWithGaps):
    """Joint log density of the value variables and what is present of the data.

    What depends on missing values beyond the term of their own row counts as if these rows were missing altogether.

    Parameters
    ----------
    spec : ModelSpec
    rules : mapping of name to rule
        From :func:`find_rules`.
    band : int, optional
        How far values interact that are to be integrated over; by default, none are. From :meth:`find_band`.
    """

    def __init__(
        self, spec: ModelSpec, rules: Rules, band: int | None = None, compile_kwargs: CompileKwargs | None = None
    ) -> None:
        super().__init__(spec, rules, compile_kwargs)
        self.band = band

    def __getstate__(self) -> dict[str, Any]:
        """Other processes compile for themselves."""
        compiled = ("_values", "_slopes", "_gradients")
        return {name: value for name, value in self.__dict__.items() if name not in compiled}

    @property
    def integrated(self) -> list[DataVariable]:
        """Variables whose missing values are integrated over."""
        return [v for v in self._gappy if self.rules[v.name] == "quadratic"]

    @cached_property
    def _values(self) -> Any:
        """The compiled loop over pairs of data and parameters: log densities."""
        return self._compiled(lambda log_density, rows, theta: [log_density])

    @cached_property
    def _gradients(self) -> Any:
        """The same, and their gradients with respect to the parameters."""
        return self._compiled(lambda log_density, rows, theta: [log_density, pt.grad(log_density, theta)])

    @cached_property
    def _slopes(self) -> Any:
        """The same, and their gradients with respect to the integrated variables."""

        def outputs(log_density: Any, rows: Mapping[str, Any], theta: Any) -> list[Any]:
            slopes: Any = pt.grad(log_density, [rows[v.name] for v in self.integrated])
            return [log_density, pt.concatenate([slope.flatten() for slope in slopes])]

        return self._compiled(outputs)

    def _compiled(self, outputs: Callable[[Any, Mapping[str, Any], Any], list[Any]]) -> Any:
        spec = self.spec
        one = self._inputs()  # what stands for one data set
        carriers = {v.name: v for v in spec.data} | {gaps_of(v.name): v for v in self._gappy}
        every = {name: batched_input(name, one[name].type.dtype, one[name].type.shape) for name in carriers}
        lengths = {r.dim: pt.lvector(r.dim) for r in spec.sizes}
        fixed = [one[v.name] for v in spec.unchanging]
        index, row, thetas = pt.lvector("index"), pt.lvector("row"), batched_input("draws", "float64", (spec.dim,))
        total = self._in_terms_of_inputs([self._total()], one)[0]
        integrated = {v.name for v in self.integrated}

        def step(i: Any, r: Any, theta: Any) -> list[Any]:
            own = {dim: length[i] for dim, length in lengths.items()}
            rows = {name: values[r if name in integrated else i] for name, values in every.items()}
            values = {name: _cut(rows[name], carriers[name], own) for name in every}
            symbols: dict[Any, Any] = {one[name]: value for name, value in (values | own).items()}
            symbols[self._vector] = theta
            return outputs(graph_replace([total], symbols, strict=False)[0], rows, theta)

        looped = pytensor.scan(step, sequences=[index, row, thetas], return_updates=False)
        looped = looped if isinstance(looped, list) else [looped]
        inputs = [index, row, thetas, *every.values(), *lengths.values(), *fixed]
        return pm.compile(inputs, looped, on_unused_input="ignore", **(self._compile_kwargs or {}))

    @property
    def _input_names(self) -> list[str]:
        own = [*(v.name for v in self.spec.data), *(gaps_of(v.name) for v in self._gappy)]
        return [*own, *(r.dim for r in self.spec.sizes), *(v.name for v in self.spec.unchanging)]

    def evaluate(
        self,
        theta: np.ndarray,
        index: np.ndarray,
        arrays: Data,
        row: np.ndarray | None = None,
        gradients: bool = False,
    ) -> list[np.ndarray]:
        """Call a compiled loop; NaN where compiled code raises.

        It does not say at which pair of data and parameters: halve until it stands alone.

        Parameters
        ----------
        theta : ndarray (pairs, dim)
        index : ndarray (pairs,)
            Of the data set of each.
        arrays : mapping of name to ndarray
            Data of all data sets, lengths, and what is the same for all.
        row : ndarray (pairs,), optional
            In the arrays of integrated variables, which may hold more; then gradients (pairs, width) with respect to
            these are returned too.
        gradients : bool
            Whether gradients (pairs, dim) with respect to theta are returned, of densities in which nothing is
            integrated.
        """
        function, rows = (self._values, index) if row is None else (self._slopes, row)
        try:
            return (self._gradients if gradients else function)(
                index, rows, theta, *[arrays[name] for name in self._input_names]
            )
        except (ArithmeticError, IndexError, np.linalg.LinAlgError):
            half = len(theta) // 2
            if half == 0:
                width = theta.shape[1] if gradients else sum(arrays[v.name][0].size for v in self.integrated)
                both = gradients or row is not None
                return [np.full(1, np.nan)] + ([np.full((1, width), np.nan)] if both else [])
            parts = [
                self.evaluate(theta[h], index[h], arrays, None if row is None else row[h], gradients)
                for h in (slice(half), slice(half, None))
            ]
            return [np.concatenate(pair) for pair in zip(*parts, strict=True)]

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
        held = {v.name: spec.held[v.name] for v in spec.unchanging}
        arrays = {**_filled(spec, datasets), **missing, **lengths, **held}
        # another layout in memory would be compiled again
        self._arrays = {name: np.asarray(values, order="C") for name, values in arrays.items()}
        self._gaps: _Gaps | None = None
        if density.integrated and density.band is not None:
            self._gaps = _Gaps(_joined(density.integrated, datasets.missing), density.band)
            self._arrays |= _divided(
                density.integrated, self._gaps.probed(_joined(density.integrated, self._arrays)), self._arrays
            )

    def __call__(self, theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Evaluate at theta (k, m, dim), for the data sets at index (k,); returns (k, m), NaN where that fails."""
        found, circular = self._evaluated(theta, index), self._density.spec.circular
        return np.where((np.abs(theta[..., circular]) > np.pi).any(axis=-1), -np.inf, found)

    def gradients(self, theta: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same with gradients (k, m, dim), where nothing of the data is integrated over."""
        k, m, dim = theta.shape
        log_p, slope = self._density.evaluate(
            theta.reshape(k * m, dim), np.repeat(index, m), self._arrays, gradients=True
        )
        beyond = (np.abs(theta[..., self._density.spec.circular]) > np.pi).any(axis=-1)
        return np.where(beyond, -np.inf, log_p.reshape(k, m)), slope.reshape(k, m, dim)

    @property
    def differentiable(self) -> bool:
        """Whether :meth:`gradients` are those of the densities."""
        return self._gaps is None

    def _evaluated(self, theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        if self._gaps is None:
            return self._plainly(theta, index)
        complete = self._gaps.counts[index] == 0
        found = np.empty(theta.shape[:2])
        found[complete] = self._plainly(theta[complete], index[complete])
        (rest,) = np.nonzero(~complete)
        size = self._gaps.block(theta.shape[1])
        for some in (rest[start : start + size] for start in range(0, len(rest), size)):
            probes = range(self._gaps.probes + 1)
            pairs = [self._with_slopes(theta[some], index[some], probe) for probe in probes]
            found[some] = pairs[0][0] + self._gaps.integral(index[some], np.stack([slope for _, slope in pairs]))
        return found

    def slopes(self, theta: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Gradient with respect to the integrated variables of the only data set, there and with each place moved."""
        variables = self._density.integrated
        row = _joined(variables, self._arrays)
        rows = np.concatenate([row, row + np.eye(row.shape[1])[places]])
        arrays = self._arrays | _divided(variables, rows, self._arrays)
        index = np.arange(len(rows))
        return self._density.evaluate(np.tile(theta, (len(rows), 1)), 0 * index, arrays, index)[1]

    def _plainly(self, theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Log densities (k, m) at data that are filled where they are missing."""
        k, m, dim = theta.shape
        (log_p,) = self._density.evaluate(theta.reshape(k * m, dim), np.repeat(index, m), self._arrays)
        return log_p.reshape(k, m)

    def _with_slopes(self, theta: np.ndarray, index: np.ndarray, probe: int) -> tuple[np.ndarray, np.ndarray]:
        """The same at probed data, with gradients (k, m, width)."""
        k, m, dim = theta.shape
        index = np.repeat(index, m)
        row = index + probe * self._n
        log_p, slope = self._density.evaluate(theta.reshape(k * m, dim), index, self._arrays, row)
        return log_p.reshape(k, m), slope.reshape(k, m, -1)


class _Gaps:
    """What is missing of data sets, and what moves when it is probed.

    Where values interact only with those at most ``band`` places away, every (2 band + 1)-th can be moved at once
    (Curtis, Powell & Reid 1974).

    Parameters
    ----------
    missing : bool ndarray (n, width)
        All variables that are integrated, flat.
    band : int
    """

    def __init__(self, missing: np.ndarray, band: int) -> None:
        self.width, self.counts = missing.shape[1], missing.sum(axis=1)
        self._missing, self._band = missing, band
        self.probes = 2 * band + 1
        most = int(self.counts.max(initial=0))
        # places of missing values in order, then some that are not missing
        self._places = np.argsort(~missing, axis=1, kind="stable")[:, :most]
        self._real = np.arange(most) < self.counts[:, None]

    def probed(self, values: np.ndarray) -> np.ndarray:
        """The values (n, width), and then for each probe the same with some of the missing ones larger by 1."""
        turns = np.arange(self.width) % self.probes == np.arange(self.probes)[:, None, None]
        return np.concatenate([values, (values + (self._missing & turns)).reshape(-1, self.width)])

    def block(self, m: int) -> int:
        """How many data sets to take at once, at m parameters each."""
        return max(BLOCK_BYTES // (8 * m * (self.probes + 1) * max(self.width, 1)), 1)

    def integral(self, index: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Log integrals (k, m), from gradients (1 + probes, k, m, width): as the data are, and at each probe."""
        slope, moved = slopes[0], slopes[1:]
        places, real = self._places[index], self._real[index]  # (k, most)
        most = int(self.counts[index].max())
        places, real = places[:, :most], real[:, :most]
        k, m = slope.shape[:2]
        which = np.arange(k)[:, None]
        g = np.where(real[:, :, None], slope[which, :, places], 0.0)  # (k, most, m)
        curvature = np.zeros((most, self._band + 1, k, m))
        for j in range(self._band + 1):
            before = np.roll(places, j, axis=1)
            near = real & (places - before <= self._band) & (np.arange(most) >= j)
            second = slope[which, :, places] - moved[before % self.probes, which, :, places]
            curvature[:, j] = np.where(near[:, :, None], second, float(j == 0)).swapaxes(0, 1)
        return log_integral(g.swapaxes(0, 1), curvature, self.counts[index][:, None])


def find_band(density: EachLogDensity, datasets: DataSets, theta: np.ndarray) -> int | None:
    """Find how far values that are to be integrated over interact; None if some do over more than a few places.

    Parameters
    ----------
    density : EachLogDensity
    datasets : DataSets
        Simulations; the longest are looked at.
    theta : ndarray (n, dim)
        Their parameters.
    """
    band = 0
    variables = density.integrated
    for i in np.argsort(-sum(datasets.lengths.values(), np.zeros(len(datasets))), kind="stable")[:PROBED]:
        one = datasets.take(np.array([i]))
        of = DensitiesOf(density, one)
        existing = ~np.concatenate([one.outside(v).reshape(-1) for v in variables])
        (places,) = np.nonzero(existing)
        places = places[:: -(-len(places) // MOST_PROBED)]
        slopes = of.slopes(theta[i], places)
        second = np.abs(slopes[0] - slopes[1:])
        apart = np.abs(np.arange(second.shape[1]) - places[:, None])
        near = second > NEGLIGIBLE * second.max()
        if not np.isfinite(second).all() or (apart[near] > WIDEST).any():
            return None
        band = max(band, int(apart[near].max(initial=0)))
    return band


def _joined(variables: Sequence[DataVariable], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Several variables of each data set as one row: (n, width)."""
    return np.concatenate([arrays[v.name].reshape(len(arrays[v.name]), -1) for v in variables], axis=1)


def _divided(
    variables: Sequence[DataVariable], rows: np.ndarray, like: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Undo :func:`_joined`."""
    ends = np.cumsum([like[v.name][0].size for v in variables])
    parts = np.split(rows, ends[:-1], axis=1)
    return {
        v.name: np.ascontiguousarray(part).reshape(len(rows), *like[v.name].shape[1:])
        for v, part in zip(variables, parts, strict=True)
    }


def _filled(spec: ModelSpec, datasets: DataSets) -> dict[str, np.ndarray]:
    """Values with possible ones where some are missing: nothing depends on them, but gradients must be finite."""
    values = dict(datasets.values)
    for v in (v for v in spec.observed if v.missing):
        mask, known = datasets.missing[v.name], datasets.shown(v).astype("float64").reshape(len(datasets), -1)
        some = np.isfinite(known).any(axis=1)
        middle = np.full(len(known), float(np.median(spec.held[v.name])))
        middle[some] = np.nanquantile(
            known[some], 0.5, axis=1, method="lower"
        )  # a value of its own: maybe a whole number
        middle = middle.reshape(-1, *[1] * (mask.ndim - 1))
        values[v.name] = np.where(mask, middle, values[v.name]).astype(v.dtype)
    return values


def _cut(row: Any, variable: DataVariable, lengths: Mapping[str, Any]) -> Any:
    """The part of a padded array that exists."""
    if not variable.sized:
        return row
    dims = [d if n is None else None for n, d in zip(variable.shape, variable.dims, strict=True)]
    return row[tuple(slice(None, lengths[d]) if d else slice(None) for d in dims)]
