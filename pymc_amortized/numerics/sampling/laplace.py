"""Integrals over many unknowns that fall into independent blocks, by normal approximations and importance sampling.

In a block, the log density is approximated by a quadratic function at its mode (Laplace). Where it is quadratic, that
is its integral. Elsewhere the approximation proposes values, and the integral is estimated without bias by importance
sampling; in blocks of a few unknowns from evenly spread points (randomly shifted, Cranley & Patterson 1976, SIAM
Journal on Numerical Analysis 13), with heavy tails. In a block of many, values that are independent of each other given
a few others, as those of persons given items are, are integrated one by one for each proposal of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.numerics.integrals import LOG_2PI
from pymc_amortized.numerics.sampling.importance import tail_shapes
from pymc_amortized.numerics.sampling.independent import FEW, Blocks
from pymc_amortized.numerics.sampling.precision import Root
from pymc_amortized.numerics.sampling.second_derivatives import FEW_TURNS, MOST_MATRICES, Slopes, second_derivatives
from pymc_amortized.numerics.sampling.student_t import log_student_t

Sums = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Unknowns (n, q) and which of the integrals each row belongs to (n,) -> sums of terms (n, cells + 1), the last one of
those that read none of the unknowns."""

PROMISED = 0.3
"""Share of the change that steps promise, below which second derivatives are those of another place."""
CLOSE = 0.01
"""Nats by which a mode may be missed: it is where proposals are made."""
INNER = 4
"""Points for each unknown of those that are independent given others. By four, the variance of the log integral over
the abilities of 100 persons, given 20 items, was 0.02; by six it was 0.0005. The number of proposals divides it."""
FEWEST_FOR_TAILS = 10
"""Weights that tell the shape of their tail."""
AT_ONCE = 2**22
"""Numbers in one call of a density."""
WIDE = 4.0
"""Standard deviations, about, as far as a density has to be quadratic."""
SPREAD = (2.0, 1.75, 1.3)
"""How much wider than the approximation proposals are in blocks of one, two and three unknowns. Evenly spread points
integrate a smooth bump that ends before they do almost exactly: of one unknown, the variance by 16 points falls from
6e-4 to 3e-7, of two from 2e-3 to 4e-4, of three by 64 points from 2e-3 to 6e-4 (counts and binary data)."""
TIGHT = 1e-6
"""Nats that rounding explains where a density is quadratic, and a share of its change."""


@dataclass(frozen=True, eq=False)
class Normals:
    """Normal approximations of all blocks, for n integrals.

    Attributes
    ----------
    mode : ndarray (n, q)
    height : ndarray (n, blocks + 1)
        Log densities there; the last one is that of what reads no unknown.
    roots : list of Root
        Cholesky factors of precisions, for each part.
    """

    blocks: Blocks
    mode: np.ndarray
    height: np.ndarray
    roots: list[Root]

    @property
    def log_integrals(self) -> np.ndarray:
        """Of the approximations: (n, blocks)."""
        found = self.height[:, :-1].copy()
        for part, root in zip(self.blocks.parts, self.roots, strict=True):
            found[:, part.blocks] += 0.5 * part.size * LOG_2PI - root.log_det
        return found

    def at(self, noise: np.ndarray) -> np.ndarray:
        """Where standard noise (..., n, q) leads."""
        found = np.empty_like(noise)
        for part, root in zip(self.blocks.parts, self.roots, strict=True):
            found[..., part.members] = root.solve_transposed(noise[..., part.members])
        return found + self.mode

    def take(self, rows: np.ndarray) -> Normals:
        """Return those of some integrals."""
        roots = [root.take(rows) for root in self.roots]
        return replace(self, mode=self.mode[rows], height=self.height[rows], roots=roots)


def approximate(
    slopes: Slopes, blocks_: Blocks, start: np.ndarray, most: int = 20, *, roots: list[Root] | None = None
) -> Normals:
    """Find modes by Newton's method from a start (n, q), each block with its own length of steps.

    Of what takes more than `most` steps the approximation is poor, and so are estimates by it. Where second derivatives
    take long, those of one place serve for several steps, as long as steps are about as good as they promise.

    Parameters
    ----------
    slopes : callable
    blocks_ : Blocks
    start : ndarray (n, q)
    most : int
    roots : list of Root, optional
        Those of one integral, to begin with where second derivatives take long.
    """
    n, number = len(start), blocks_.number
    x = np.array(start, dtype=float)
    height, slope = slopes(x, np.arange(n))
    slow = len(blocks_.turns) > FEW_TURNS and not 0 < len(blocks_.matrices) <= MOST_MATRICES
    stale = np.full(n, slow and roots is not None)
    if slow and roots is not None:
        roots = [root.take(np.zeros(n, dtype=int)) for root in roots]
    else:
        roots = _roots(slopes, blocks_, x, slope, np.arange(n))
    step, length, active = _newton(blocks_, roots, slope), np.ones((n, number)), np.arange(n)
    for _ in range(most):
        decrement = _by_block(blocks_, slope[active] * step[active])
        active = active[(decrement > CLOSE).any(axis=1)]
        if not len(active):
            break
        taken = length[active][:, blocks_.block_of] * step[active]
        tried = x[active] + taken
        found, slope_there = slopes(tried, active)
        change = found[:, :-1] - height[active, :-1]
        with np.errstate(invalid="ignore"):
            better = change >= -1e-9 * (1 + np.abs(height[active, :-1]))
        expected = _by_block(blocks_, slope[active] * taken) * (1 - length[active] / 2)
        quadratic = (np.abs(change - expected) <= TIGHT * (1 + np.abs(expected))).all(axis=1) & better.all(axis=1)
        own = better[:, blocks_.block_of]
        x[active] = np.where(own, tried, x[active])
        slope[active] = np.where(own, slope_there, slope[active])
        height[active, :-1] = np.where(better, found[:, :-1], height[active, :-1])
        length[active] = np.where(better, np.minimum(4 * length[active], 1.0), length[active] / 4)
        poor = (change < PROMISED * expected).any(axis=1) if slow else True
        stale[active[~quadratic]] = slow
        bent = active[~quadratic & better.any(axis=1) & poor]
        if len(bent):
            stale[bent] = False
            for root, new in zip(roots, _roots(slopes, blocks_, x[bent], slope[bent], bent), strict=True):
                root.put(bent, new)
        step[active] = _newton(blocks_, [root.take(active) for root in roots], slope[active])
    (old,) = np.nonzero(stale)
    if len(old):
        for root, new in zip(roots, _roots(slopes, blocks_, x[old], slope[old], old), strict=True):
            root.put(old, new)
        step = _newton(blocks_, roots, slope)
    # the last steps, exact where densities are quadratic; not from where it is far to the mode
    decrement = _by_block(blocks_, slope * step)
    near = decrement <= CLOSE
    height[:, :-1] += np.where(near, decrement / 2, 0.0)
    return Normals(blocks_, x + np.where(near[:, blocks_.block_of], step, 0.0), height, roots)


def lies_at_mode(slopes: Slopes, normals: Normals) -> np.ndarray:
    """Whether approximations (n, blocks) are those at modes, to a tenth of a nat."""
    slope = slopes(normals.mode, np.arange(len(normals.mode)))[1]
    return _by_block(normals.blocks, slope * _newton(normals.blocks, normals.roots, slope)) < 10 * CLOSE


def distances(normals: Normals, x: np.ndarray) -> np.ndarray:
    """Distances (n, blocks) of x (n, q) from modes, in standard deviations."""
    away = np.empty((len(x), normals.blocks.number))
    for part, root in zip(normals.blocks.parts, normals.roots, strict=True):
        own = (x - normals.mode)[:, part.members]
        away[:, part.blocks] = np.sqrt(np.square(root.transposed_times(own)).sum(axis=-1))
    return away


def _by_block(blocks_: Blocks, values: np.ndarray) -> np.ndarray:
    """Add up values (n, q) within blocks: (n, blocks)."""
    found = np.empty((len(values), blocks_.number))
    for part in blocks_.parts:
        found[:, part.blocks] = values[:, part.members].sum(axis=-1)
    return found


def _newton(blocks_: Blocks, roots: list[Root], slope: np.ndarray) -> np.ndarray:
    step = np.empty_like(slope)
    for part, root in zip(blocks_.parts, roots, strict=True):
        step[:, part.members] = root.solve_transposed(root.solve(slope[:, part.members]))
    return step


def _roots(slopes: Slopes, blocks_: Blocks, x: np.ndarray, slope: np.ndarray, rows: np.ndarray) -> list[Root]:
    """Cholesky factors of minus second derivatives, made positive definite."""
    curvature = second_derivatives(slopes, blocks_, x, slope, rows)
    return [part.root(curvature) for part in blocks_.parts]


@dataclass(frozen=True, eq=False)
class Integrated:
    """Log integrals over the unknowns, and values of these.

    Attributes
    ----------
    log_integral : ndarray (n,)
    drawn : ndarray (n, q)
        One draw of the unknowns for each integral; NaN where none was asked for.
    noise : ndarray (n,)
        Estimates of the variances of the logs of the integrals, each of them rough.
    apart : ndarray (n,)
        By how much log densities at draws are not the sums of those of their blocks; 0 where nothing was combined.
    pareto_k : ndarray (blocks,)
        Largest shape of the tails of the weights that draws of each block were chosen by; -inf where it is exact.
    """

    log_integral: np.ndarray
    drawn: np.ndarray
    noise: np.ndarray
    apart: np.ndarray
    pareto_k: np.ndarray


def integrate(sums: Sums, normals: Normals, rng: np.random.Generator, number: int, *, draw: bool = False) -> Integrated:
    """Integrate over the unknowns of all blocks, by `number` proposals for each block that is not quadratic."""
    n, q = normals.mode.shape
    total = normals.log_integrals.sum(axis=1) + normals.height[:, -1]
    noise = rng.standard_normal((n, q))
    tried, flat = normals.at(noise), np.isfinite(total)
    size = 1e-11 * np.abs(normals.height)
    for there, at in ((tried, noise), (normals.at(WIDE * noise), WIDE * noise)):
        (some,) = np.nonzero(flat)
        if not len(some):
            break
        change = np.pad(0.5 * _by_block(normals.blocks, np.square(at[some])), ((0, 0), (0, 1)))
        with np.errstate(invalid="ignore"):
            apart = np.abs(normals.blocks.by_block(sums(there[some], some)) - normals.height[some] + change)
            flat[some] = (apart <= TIGHT * (1 + change) + size[some]).all(axis=1)
    (bent,) = np.nonzero(~flat & np.isfinite(total))
    found = Integrated(
        total,
        tried if draw else np.full((n, q), np.nan),
        np.zeros(n),
        np.zeros(n),
        np.full(normals.blocks.number, -np.inf),
    )
    for some in blocks(len(bent), max(AT_ONCE // (number * (q + normals.blocks.number_of_cells)), 1)):
        at = bent[some]
        halves, drawn, expected, loose, k = _weighed(sums, normals.take(at), at, number, rng, draw)
        mean = np.logaddexp(*halves) - math.log(2)
        with np.errstate(invalid="ignore"):
            found.noise[at] = np.square(np.tanh((halves[0] - halves[1]) / 2)).sum(axis=1)
        found.log_integral[at] = mean.sum(axis=1) + normals.height[at, -1]
        if draw:
            found.drawn[at] = drawn
            loose = np.maximum(loose, np.abs(sums(drawn, at)[:, :-1] - expected).max(axis=1, initial=0.0))
            np.maximum(found.pareto_k, k, out=found.pareto_k)
        found.apart[at] = loose
    return found


def _weighed(
    sums: Sums, normals: Normals, index: np.ndarray, number: int, rng: np.random.Generator, draw: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Estimates (2, n, blocks) by halves of proposals, draws, and their densities.

    Draws are (n, q), densities those of each cell by itself (n, cells). Then, by how much the density changes that
    should read no unknown (n,), and shapes of the tails of the weights of all integrals together (blocks,).
    """
    blocks_, (n, q), rows = normals.blocks, normals.mode.shape, np.arange(len(index))
    noise, log_q = np.empty((number, n, q)), np.empty((number, n, blocks_.number_of_cells))
    kinds = list(zip(blocks_.parts, normals.roots, blocks_.cells, strict=True))
    for part, root, cells in kinds:
        k, inner = len(cells), INNER if len(cells) else 1
        of_part, density = _proposed(number // inner, n, len(part.members), part.size - k, rng)
        noise[..., part.members[:, k:]] = np.repeat(of_part, inner, axis=0)
        log_q[..., part.blocks] = np.repeat(density + root.log_det, inner, axis=0)
        if k:
            within, log_q[..., cells] = _spread(INNER, number // INNER, n, k, 1, rng)
            noise[..., part.members[0, :k]] = within[..., 0]
    at = normals.at(noise)
    found = sums(at.reshape(number * n, q), np.tile(index, number)).reshape(number, n, -1)
    log_w = np.nan_to_num(found[..., :-1] - log_q, nan=-np.inf, posinf=-np.inf)
    with np.errstate(invalid="ignore"):
        loose = np.abs(found[..., -1] - normals.height[:, -1]).max(axis=0)
    halves, tails = np.empty((2, n, blocks_.number)), np.full(blocks_.number, -np.inf)
    picked = np.empty((n, q), dtype=int)  # which proposal each unknown is drawn from
    of_cell = np.empty(log_q.shape[1:], dtype=int)
    for part, _, cells in kinds:
        own = log_w[..., part.blocks]
        if k := len(cells):
            each = log_w[..., cells].reshape(-1, INNER, n, k)
            mean = logsumexp(each, axis=1, keepdims=True) - math.log(INNER)
            own = own[::INNER] + mean.sum(axis=(1, 3))[..., None]
        halves[..., part.blocks] = logsumexp(own.reshape(2, -1, *own.shape[1:]), axis=1) - math.log(len(own) // 2)
        if not draw:
            continue
        first = (own + rng.gumbel(size=own.shape)).argmax(axis=0)
        tails[part.blocks] = _tails(own - np.logaddexp(*halves[..., part.blocks]))
        if k:
            chosen = each[first[:, 0], :, rows]
            tails[part.blocks] = np.maximum(tails[part.blocks], _tails((each - mean).reshape(number, n, k)).max())
            first = INNER * first
            of_cell[:, cells] = first + (chosen + rng.gumbel(size=chosen.shape)).argmax(axis=1)
            picked[:, part.members[0, :k]] = of_cell[:, cells]
        of_cell[:, part.blocks] = first
        picked[:, part.members[:, k:]] = first[..., None]
    if not draw:
        return halves, np.empty((0, q)), np.empty((0, 0)), loose, tails
    drawn = np.take_along_axis(at, picked[None], axis=0)[0]
    return halves, drawn, np.take_along_axis(found[..., :-1], of_cell[None], axis=0)[0], loose, tails


def _tails(relative: np.ndarray) -> np.ndarray:
    """Shapes of the tails of log weights (number, n, m), those of all integrals together: (m,); few tell nothing."""
    together = np.moveaxis(relative, 2, 0).reshape(relative.shape[2], -1)
    return tail_shapes(together) if together.shape[1] >= FEWEST_FOR_TAILS else np.full(len(together), -np.inf)


def _proposed(number: int, n: int, m: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noise (number, n, m, size) in two independent halves, and its log density (number, n, m)."""
    if size > FEW:
        half = rng.standard_normal((2, number // 4, n, m, size))
        noise = np.concatenate([half, -half], axis=1).reshape(number, n, m, size)
        return noise, -0.5 * np.square(noise).sum(axis=-1) - 0.5 * size * LOG_2PI
    return _spread(number // 2, 2, n, m, size, rng)


def _spread(
    number: int, times: int, n: int, m: int, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """So many times as many evenly spread points, each time shifted anew: noise as above, with heavy tails."""
    points = _evenly_spread(number, size)
    u = (points[None, :, None, None] + rng.random((times, 1, n, m, size))) % 1.0
    u = np.clip(u, 1e-12, 1 - 1e-12).reshape(times * number, n, m, size)
    noise, spread = _t4_quantile(u), SPREAD[size - 1] if size <= len(SPREAD) else 1.0
    return spread * noise, log_student_t(np.square(noise), 1, 4.0).sum(axis=-1) - size * math.log(spread)


def _evenly_spread(number: int, size: int) -> np.ndarray:
    """Points (number, size) of the unit cube: a grid along the first axis, multiples of irrational numbers on others.

    Those are powers of the root of x^size = x + 1, of two dimensions the golden ratio (Niederreiter 1992, Random Number
    Generation and Quasi-Monte Carlo Methods, chapter 3, on such sequences).
    """
    root = 1.5
    for _ in range(60):
        root = (1 + root) ** (1 / size)
    k = np.arange(number)[:, None]
    return np.concatenate([k / number, (k * root ** -np.arange(1.0, size)) % 1.0], axis=1)


def _t4_quantile(u: np.ndarray) -> np.ndarray:
    """Quantiles of Student's t with four degrees of freedom (Shaw 2006, Journal of Computational Finance 9(4))."""
    root = np.sqrt(4 * u * (1 - u))
    return np.sign(u - 0.5) * 2 * np.sqrt(np.maximum(np.cos(np.arccos(np.minimum(root, 1.0)) / 3) / root - 1, 0.0))
