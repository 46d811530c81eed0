"""The log density of a model's parameters, with all variables integrated out that belong to single groups."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from pymc_amortized.graph.density.log_density import Data
from pymc_amortized.graph.density.missing import Rules
from pymc_amortized.graph.density.terms import Terms, reads_of
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.numerics.sampling.laplace import Blocks, Integrated, Normals, approximate, integrate, joined

KEPT = 256
"""Data sets whose blocks are remembered."""
AT_ONCE = 2**21
"""Numbers of gradients that are computed at once."""
FIRST, MOST = 16, 1024
"""Proposals for each block of locals, at first and at most."""
NOISE = 0.05
"""Variance of the log of an estimated density that is small beside that of good importance weights."""
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

    def __init__(self, spec: ModelSpec, rules: Rules, compile_kwargs: CompileKwargs | None = None) -> None:
        self.spec, self.terms = spec, Terms(spec, rules, compile_kwargs)
        self._blocks: OrderedDict[bytes, Blocks] = OrderedDict()

    def __call__(self, theta: np.ndarray, data: Data) -> np.ndarray:
        """Evaluate at `theta` (draws, dim) for one data set; returns (draws,)."""
        return self.integrated(theta, data).log_integral

    def drawn(self, theta: np.ndarray, data: Data, rng: np.random.Generator) -> Integrated:
        """Draw locals given each of `theta` (draws, dim)."""
        return self.integrated(theta, data, rng, draw=True)

    def integrated(
        self, theta: np.ndarray, data: Data, rng: np.random.Generator | None = None, *, draw: bool = False
    ) -> Integrated:
        """Integrate at `theta` (draws, dim) for one data set; NaN where these are not finite."""
        rng = np.random.default_rng(0) if rng is None else rng
        fine, number = np.isfinite(theta).all(axis=1), self.spec.number_of_locals(data)
        found = Integrated(*(np.full((len(theta), *more), np.nan) for more in ((), (number,), (), (0, 0))))
        if not fine.any():
            return found
        at = _At(self.terms, theta[fine], data, self.blocks(theta[fine], data))
        for name, values in zip(("log_integral", "drawn", "noise"), at.integrated(rng, draw), strict=False):
            getattr(found, name)[fine] = values
        return found

    def blocks(self, theta: np.ndarray, data: Data) -> Blocks:
        """Which locals of a data set are independent of each other, given the parameters."""
        key = hashlib.blake2b(digest_size=16)
        for v in self.spec.context:
            key.update(np.ascontiguousarray(data[v.name]).tobytes())
        key.update(repr([data[r.dim] for r in self.spec.sizes]).encode())
        name = key.digest()
        if name not in self._blocks:
            self._blocks[name] = self._found_blocks(theta, data)
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[name]

    def _found_blocks(self, theta: np.ndarray, data: Data) -> Blocks:
        return Blocks.of(reads_of(self.terms, theta[0], data) | reads_of(self.terms, theta[-1], data))


@dataclass(frozen=True, eq=False)
class _At:
    """The terms of one data set at some parameters, as functions of locals."""

    terms: Terms
    theta: np.ndarray
    data: Data
    blocks: Blocks

    def sums(self, local: np.ndarray, rows: np.ndarray) -> np.ndarray:
        full = np.concatenate([self.theta[rows], local], axis=1)
        return self.terms.in_blocks(full, self.data, self.blocks.place, self.blocks.number + 1)

    def slopes(self, local: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        full = np.concatenate([self.theta[rows], local], axis=1)
        found = self.terms.with_slopes(full, self.data, self.blocks.place, self.blocks.number + 1)
        return found[0], np.nan_to_num(found[1])

    def integrated(self, rng: np.random.Generator, draw: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log integrals (n,), draws of locals (n, q) and noise (n,): with more proposals until these are good.

        Modes of all begin at that of the first.
        """
        number = len(self.blocks.block_of)
        first = approximate(self.slopes, self.blocks, np.zeros((1, number)))
        normals = self._approximated(np.repeat(first.mode, len(self.theta), axis=0))
        found = integrate(self.sums, normals, rng, FIRST, draw=draw)
        total, drawn, noise, proposals = found.log_integral, found.drawn, found.noise, FIRST
        # what lies far below the best counts for nothing, however well it is known
        (near,) = np.nonzero(total > np.nanmax(total, initial=-np.inf) - FAR)
        while len(near) and noise[near].mean() > NOISE and proposals < MOST:
            proposals *= 2
            part = _At(self.terms, self.theta[near], self.data, self.blocks)
            again = integrate(part.sums, normals.take(near), rng, proposals, draw=draw)
            total[near], drawn[near], noise[near] = again.log_integral, again.drawn, again.noise
        return total, drawn, noise

    def _approximated(self, start: np.ndarray) -> Normals:
        """Approximate some at a time."""
        widest = sum(m * size * size for m, size in (members.shape for _, members in self.blocks.parts))
        each = len(self.blocks.turns) * (start.shape[1] + self.blocks.number) + widest
        parts = []
        for some in blocks(len(start), max(AT_ONCE // each, 1)):
            part = _At(self.terms, self.theta[some], self.data, self.blocks)
            parts.append(approximate(part.slopes, self.blocks, start[some]))
        return joined(parts)
