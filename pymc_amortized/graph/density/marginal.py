"""The log density of a model's parameters, with all variables integrated out that belong to single groups."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets, gaps_of
from pymc_amortized.graph.density.given import LocalsFromPrior
from pymc_amortized.graph.density.log_density import Constrain, Data
from pymc_amortized.graph.density.missing import Rules
from pymc_amortized.graph.density.terms import Terms, reads_of
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.logs import logger
from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.numerics.sampling.independent import FEW, Blocks
from pymc_amortized.numerics.sampling.laplace import (
    Integrated,
    Normals,
    approximate,
    distances,
    integrate,
    lies_at_mode,
)

KEPT = 256
"""Data sets whose blocks are remembered."""
AT_ONCE = 2**21
"""Numbers of gradients that are computed at once."""
FIRST, ENOUGH, MOST = 16, 256, 2**14
"""Proposals for each block of locals at first, half as many for single values; where so many do not help, they miss
what matters; and numbers in all of them at most."""
NOISE = 0.05
"""Variance of the log of an estimated density that is small beside that of good importance weights."""
APART = 1e-3
"""Nats by which the density of draws may be off, of blocks that were drawn by themselves: rounding."""
STARTS, MANY_STARTS, WIDE = 8, 64, 4.0
"""Of searches for second modes of locals, and for a place of positive density; and how far away the former begin: in
standard deviations, or units of these."""
APART_SDS, LEAST_MASS = 3.0, 0.01
"""Standard deviations between two modes, and share of the mass of the first, above which a second one matters."""
SOLVED, FEW_SOLVED = 3, 4
"""Modes for each coefficient of a linear function that tells where others are; and times as many parameters, from which
on that is worth it."""
FEW_POINTS = 2
"""Parameters at which it is looked at first what each term reads."""
PER_INTEGRAL = ("log_integral", "drawn", "noise", "apart")
FAR = 30.0
"""Nats below the best of some draws, where a density need not be known well."""


class MarginalDensity:
    """Log density of parameters and data, with locals (:attr:`ModelSpec.locals`) integrated out.

    Which locals are independent of each other is found for each data set, by which terms of the log density change
    with them.

    Parameters
    ----------
    spec : ModelSpec
    rules : mapping of name to rule
        For missing values.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    band = None
    """How far missing values interact that are integrated over: none are."""

    def __init__(self, spec: ModelSpec, rules: Rules, compile_kwargs: CompileKwargs | None = None) -> None:
        self.spec, self.terms, self._compile_kwargs = spec, Terms(spec, rules, compile_kwargs), compile_kwargs
        self._blocks: OrderedDict[bytes, Blocks] = OrderedDict()

    def __call__(self, theta: np.ndarray, data: Data) -> np.ndarray:
        """Evaluate at `theta` (draws, dim) for one data set; returns (draws,)."""
        return self.integrated(theta, data).log_integral

    def of(self, datasets: DataSets) -> MarginalDensitiesOf:
        """Return the densities of some data sets."""
        return MarginalDensitiesOf(self, datasets)

    def drawn(self, theta: np.ndarray, data: Data, rng: np.random.Generator) -> Integrated:
        """Draw locals given each of `theta` (draws, dim)."""
        return self.integrated(theta, data, rng, draw=True)

    def integrated(
        self, theta: np.ndarray, data: Data, rng: np.random.Generator | None = None, *, draw: bool = False
    ) -> Integrated:
        """Integrate at `theta` (draws, dim) for one data set; NaN where these are not finite.

        Raises
        ------
        ValueError
            Where densities of single groups do not add up to that of all after all.
        """
        rng = np.random.default_rng(0) if rng is None else rng
        fine, number = np.isfinite(theta).all(axis=1), self.spec.number_of_locals(data)
        log_integral, noise, apart_ = np.full((3, len(theta)), np.nan)
        found = Integrated(log_integral, np.full((len(theta), number), np.nan), noise, apart_, np.full(1, np.inf))
        if not fine.any():
            return found
        for points in (FEW_POINTS, 16):  # what a term reads may not show where few look for it
            at = _At(self.terms, theta[fine], data, self.blocks(theta[fine], data, points))
            parts = at.integrated(rng, draw, self._start(at))
            apart = max(float(np.nanmax(part.apart, initial=0.0)) for part in parts)
            if apart <= APART:
                break
        else:
            names = ", ".join(p.name for p in self.spec.locals)
            raise ValueError(
                f"values of {names} that seemed independent of each other, given the parameters, are not so at the "
                f"draws (the log density differs by {apart:.2g}): the model has a term that reads several groups at "
                "some values only; run pm.sample on posterior.to_model(...)"
            )
        found = replace(found, pareto_k=np.max([part.pareto_k for part in parts], axis=0))
        for name in PER_INTEGRAL:
            getattr(found, name)[fine] = np.concatenate([getattr(part, name) for part in parts])
        return found

    def several_modes(self, theta: np.ndarray, data: Data) -> str | None:
        """Say where given some parameters (n, dim) a block of locals has several modes: proposals are made at one.

        Newton's method begins at other places: near the mode, farther away, and at draws from the prior.
        """
        rng = np.random.default_rng(0)
        at = _At(self.terms, theta, data, self.blocks(theta, data))
        first = approximate(at.slopes, at.blocks, self._start(at))
        main = approximate(at.slopes, at.blocks, np.repeat(first.mode, len(theta), axis=0))
        noise = rng.standard_normal((STARTS, *main.mode.shape))
        near, far = main.at(WIDE * noise[::2]), main.mode + WIDE * noise[1::2]
        starts = np.concatenate([near, far, self._from_prior(theta, data, 2 * STARTS)])
        rows = np.tile(np.arange(len(theta)), len(starts))
        at, main = replace(at, theta=theta[rows]), main.take(rows)
        other = approximate(at.slopes, at.blocks, starts.reshape(len(rows), -1))
        apart = (distances(main, other.mode) > APART_SDS) & (distances(other, main.mode) > APART_SDS)
        with np.errstate(invalid="ignore"):
            heavy = other.log_integrals - main.log_integrals > np.log(LEAST_MASS)
        some = (apart & heavy & lies_at_mode(at.slopes, other)).any(axis=0)
        if not some.any():
            return None
        names = ", ".join(p.name for p in self.spec.locals)
        return f"{some.sum()} of {len(some)} blocks of {names} have a second mode given the parameters"

    def _from_prior(self, theta: np.ndarray, data: Data, number: int) -> np.ndarray:
        """Draw locals from their prior given each of theta (n, dim): (number, n, q), or none at all."""
        points = np.tile(theta, (number, 1))
        zeros = np.zeros((len(points), self.spec.number_of_locals(data)))
        try:
            given = self._constrain(np.concatenate([points, zeros], axis=1), data)
            drawn = LocalsFromPrior(self.spec)(given, data, np.random.SeedSequence(0))["locals"]
        except Exception as error:  # of what has a density alone
            logger.debug("Values of groups cannot be drawn from their prior: %s", error)
            return np.empty((0, *zeros.shape))
        # what is simulated at the end of a range has no place on an unbounded scale
        return np.nan_to_num(drawn, posinf=0.0, neginf=0.0).reshape(number, len(theta), -1)

    @cached_property
    def _constrain(self) -> Constrain:
        return Constrain(self.spec, self._compile_kwargs)

    def _start(self, at: _At) -> np.ndarray:
        """Where to begin (1, q): at zero, or where each block has the highest density of some draws from its prior."""
        start, one = np.zeros((1, len(at.blocks.block_of))), replace(at, theta=at.theta[:1])
        if np.isfinite(one.sums(start, np.zeros(1, dtype=int))).all():
            return start
        tried = np.concatenate([start, self._from_prior(one.theta, at.data, MANY_STARTS)[:, 0]])
        heights = at.blocks.by_block(one.sums(tried, np.zeros(len(tried), dtype=int)))[:, :-1]
        best = np.nan_to_num(heights, nan=-np.inf, posinf=-np.inf).argmax(axis=0)
        return tried[best[at.blocks.block_of], np.arange(tried.shape[1])][None]

    def blocks(self, theta: np.ndarray, data: Data, points: int = FEW_POINTS) -> Blocks:
        """Which locals of a data set are independent of each other, given the parameters, by so many of these.

        Where few are looked at, data sets of the same context share them: the values observed seldom tell what reads
        what, and where they do after all, densities do not add up.
        """
        key = hashlib.blake2b(repr([points, *(data[r.dim] for r in self.spec.sizes)]).encode(), digest_size=16)
        for v in self.spec.context if points == FEW_POINTS else self.spec.data:
            key.update(np.ascontiguousarray(data[v.name]).tobytes())
            key.update(np.ascontiguousarray(data.get(gaps_of(v.name), ())).tobytes())
        name = key.digest()
        if name not in self._blocks:
            some = theta[np.linspace(0, len(theta) - 1, min(points, len(theta))).astype(int)]
            self._blocks[name] = self._found_blocks(some, data)
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[name]

    def _found_blocks(self, theta: np.ndarray, data: Data) -> Blocks:
        """Move each local by itself, at some points, and see which terms change."""
        reads = [reads_of(self.terms, one, data, seed) for seed, one in enumerate(theta)]
        found = Blocks.of(np.any(reads, axis=0))
        if max(part.size for part in found.parts) <= FEW:
            return found
        # a term may be the sum of a whole series: the neighbours in it are those that second derivatives tell
        return found.refined(self._interacting(theta[0], data, found) | self._interacting(theta[-1], data, found))

    def _interacting(self, theta: np.ndarray, data: Data, found: Blocks) -> np.ndarray:
        """Which locals (locals, locals) change each other's slopes."""
        at = _At(self.terms, np.tile(theta, (1 + len(found.block_of), 1)), data, found)
        rng = np.random.default_rng(1)
        point = rng.normal(size=len(found.block_of))
        moved = np.concatenate([point[None], point + np.diag(rng.normal(size=len(point)))])
        slopes = np.concatenate([at.slopes(moved[s], np.arange(len(moved))[s])[1] for s in blocks(len(moved), 256)])
        with np.errstate(invalid="ignore"):
            return ~(np.abs(slopes[1:] - slopes[0]) <= 1e-12 * np.abs(slopes[0]))


class MarginalDensitiesOf:
    """Log densities of some data sets, with locals integrated out.

    Parameters
    ----------
    density : MarginalDensity
    datasets : DataSets
    """

    differentiable = False

    def __init__(self, density: MarginalDensity, datasets: DataSets) -> None:
        self._density, self._datasets = density, datasets

    def __call__(self, theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Evaluate at theta (k, m, dim), for the data sets at index (k,): (k, m)."""
        found = np.empty(theta.shape[:2])
        for some, i in zip(range(len(index)), index, strict=True):
            found[some] = self._density(theta[some], self._datasets.one(self._density.spec, int(i)))
        return found


@dataclass(frozen=True, eq=False)
class _At:
    """The terms of one data set at some parameters, as functions of locals."""

    terms: Terms
    theta: np.ndarray
    data: Data
    blocks: Blocks

    def sums(self, local: np.ndarray, rows: np.ndarray) -> np.ndarray:
        full = np.concatenate([self.theta[rows], local], axis=1)
        return self.terms.in_blocks(full, self.data, self.blocks.cell_of, self.blocks.number_of_cells + 1)

    def slopes(self, local: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        full = np.concatenate([self.theta[rows], local], axis=1)
        found = self.terms.with_slopes(full, self.data, self.blocks.place, self.blocks.number + 1)
        return found[0], np.nan_to_num(found[1])

    def integrated(self, rng: np.random.Generator, draw: bool, start: np.ndarray) -> list[Integrated]:
        """Integrate, with more proposals until these are good; at some parameters at a time.

        Modes of all begin at that of the first, which begins at a start (1, q); of many, at what those of a few tell.
        """
        number = len(self.blocks.block_of)
        first = approximate(self.slopes, self.blocks, start)
        starts = self._starts(first)
        each = len(self.blocks.turns) * (number + self.blocks.number) + sum(
            len(part.blocks) * part.width for part in self.blocks.parts
        )
        most = max(AT_ONCE // each, 1)
        return [self._some(some, starts, first, rng, draw) for some in blocks(len(self.theta), most)]

    def _starts(self, first: Normals) -> np.ndarray:
        """Where to begin (n, q): modes of some parameters, as linear functions of these, no farther than they lie."""
        scale = np.maximum(self.theta.std(axis=0), 1e-300)
        features = np.column_stack([np.ones(len(self.theta)), (self.theta - self.theta.mean(axis=0)) / scale])
        number = SOLVED * features.shape[1]
        starts = np.repeat(first.mode, len(self.theta), axis=0)
        if len(self.theta) < FEW_SOLVED * number:
            return starts
        some = np.linspace(0, len(self.theta) - 1, number).astype(int)
        at = replace(self, theta=self.theta[some])
        modes = approximate(at.slopes, self.blocks, starts[some], roots=first.roots).mode
        found = features @ np.linalg.lstsq(features[some], modes, rcond=None)[0]
        return np.clip(found, modes.min(axis=0), modes.max(axis=0))

    def _some(
        self, some: slice, starts: np.ndarray, first: Normals, rng: np.random.Generator, draw: bool
    ) -> Integrated:
        """Integrate at some parameters."""
        at = replace(self, theta=self.theta[some])
        normals = approximate(at.slopes, self.blocks, starts[some], roots=first.roots)
        largest = max(part.size for part in self.blocks.parts)
        proposals = FIRST // 2 if largest == 1 else FIRST
        found = integrate(at.sums, normals, rng, proposals, draw=draw)
        # what lies far below the best counts for nothing, however well it is known
        (near,) = np.nonzero(found.log_integral > np.nanmax(found.log_integral, initial=-np.inf) - FAR)
        part, normals = replace(self, theta=at.theta[near]), normals.take(near)
        most = max(min(MOST // largest, ENOUGH), FIRST)
        while len(near) and found.noise[near].mean() > NOISE and 2 * proposals <= most:
            proposals *= 2
            again = integrate(part.sums, normals, rng, proposals, draw=draw)
            for name in PER_INTEGRAL:
                getattr(found, name)[near] = getattr(again, name)
            found = replace(found, pareto_k=again.pareto_k)
        return found
