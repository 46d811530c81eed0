"""Second derivatives of log densities of many unknowns, by gradients in as few directions as are needed."""

from collections.abc import Callable

import numpy as np

from pymc_amortized.numerics.sampling.independent import Blocks

Slopes = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Unknowns (n, q) and which of the integrals each row belongs to (n,) -> log densities of blocks (n, blocks + 1), and
the gradient (n, q) of the sum of all."""

STEP = 1e-5
"""Between gradients that tell curvatures; where densities are quadratic, any step tells them exactly."""
LEARNED, MOST_MATRICES, FEW_TURNS = 12, 6, 8
"""Full matrices of second derivatives that are learned from at once, how many may make up all, and from how many
directions on that is worth it."""
SAME, ROUGH = 1e-6, 0.02
"""Share of a matrix that rounding explains; and that may be missing where proposals alone are made with it."""
FARTHER, BENT = 0.1, 1e-4
"""Away from where second derivatives are not the same, but for a share, densities are not quadratic."""


def second_derivatives(
    slopes: Slopes, blocks: Blocks, x: np.ndarray, slope: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Minus second derivatives (turns, n, q) in all directions of turns, where gradients are known.

    Of normal variables they are sums of a few matrices, such as those of residuals and of a prior, each times a
    function of the parameters. Where some full ones show this, one random direction tells the factors of the others;
    what they do not explain is computed in full. Where a density is not quadratic, it is enough that they are so
    roughly.
    """
    turns, every = blocks.turns, np.arange(len(x))

    def along(directions: np.ndarray, some: np.ndarray, by: np.ndarray | None = None) -> np.ndarray:
        near, here = (x[some], slope[some]) if by is None else (x[some] + by, slopes(x[some] + by, rows[some])[1])
        moved = (near + STEP * directions[:, None]).reshape(-1, x.shape[1])
        there = slopes(moved, np.tile(rows[some], len(directions)))[1]
        return (here - there.reshape(len(directions), len(some), -1)) / STEP

    if len(turns) <= FEW_TURNS:
        return along(turns, every)
    curvature = np.empty((len(turns), *x.shape))

    def composed(matrices: list[np.ndarray], left: np.ndarray, share: float) -> np.ndarray:
        found, known = _composed(matrices, along, turns, left, share)
        curvature[:, left[known]] = found[:, known]
        return left[~known]

    left = composed(blocks.matrices, every, SAME)
    while len(left) and len(blocks.matrices) <= MOST_MATRICES:
        some, left = left[:LEARNED], left[LEARNED:]
        curvature[:, some] = along(turns, some)
        blocks.matrices[:] = _spanned([*blocks.matrices, *curvature[:, some].swapaxes(0, 1)], SAME)
        left = composed(blocks.matrices, left, SAME)
    if len(left) > LEARNED:
        few = np.linspace(0, len(left) - 1, LEARNED).astype(int)
        some, left = left[few], np.delete(left, few)
        curvature[:, some] = along(turns, some)
        weights, away = _random(len(turns)), FARTHER * _random(x.shape[1])
        here, there = weights @ curvature[:, some[0]], along((weights @ turns)[None], some[:1], away)[0, 0]
        if np.linalg.norm(there - here) > BENT * np.linalg.norm(here):
            left = composed(_spanned(list(curvature[:, some].swapaxes(0, 1)), ROUGH), left, ROUGH)
    if len(left):
        curvature[:, left] = along(turns, left)
    return curvature


def _composed(
    matrices: list[np.ndarray], along: Callable[..., np.ndarray], turns: np.ndarray, rows: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Second derivatives (turns, rows, q) that are sums of matrices, but for a share, and of which rows they are."""
    if not (len(rows) and 0 < len(matrices) <= MOST_MATRICES):
        return np.empty((len(turns), len(rows), turns.shape[1])), np.zeros(len(rows), dtype=bool)
    weights = _random(len(turns))
    held = np.array(matrices)  # another thread may add to them
    (probed,), told = along((weights @ turns)[None], rows), weights @ held
    factors = probed @ np.linalg.pinv(told)
    apart = np.linalg.norm(probed - factors @ told, axis=1)
    known = apart <= share * np.linalg.norm(probed, axis=1)
    return np.einsum("nk,ktq->tnq", factors, held, optimize=True), known


def _random(number: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=number)


def _spanned(matrices: list[np.ndarray], share: float) -> list[np.ndarray]:
    """Orthogonal matrices of which all finite ones are sums, but for a share."""
    flat = np.reshape(matrices, (len(matrices), -1))
    flat = flat[np.isfinite(flat).all(axis=1)]
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)  # parameters may be far apart
    if not len(flat):
        return []
    _, sizes, axes = np.linalg.svd(flat, full_matrices=False)
    return list(axes[sizes > share * sizes[0]].reshape(-1, *matrices[0].shape))
