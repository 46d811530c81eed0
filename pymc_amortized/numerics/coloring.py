"""Which columns of a sparse symmetric matrix one product can tell at once."""

import numpy as np


def star_coloring(pairs: np.ndarray, number: int) -> np.ndarray:
    """Colors (number,) by which a sparse symmetric matrix is known from one product for each color.

    Parameters
    ----------
    pairs : int ndarray (p, 2)
        Which rows and columns have an entry off the diagonal.
    number : int
        Of rows.

    Notes
    -----
    An entry (i, j) is read in row i of the product of j's color, if j is the only one of that color that i has an entry
    with, or the other way round (Coleman & Moré 1984, Mathematical Programming 28). Colors are chosen greedily, first
    for rows with many entries, of which none to a few get one of their own.
    """
    near = np.zeros((number, number), dtype=bool)
    near[tuple(pairs.T)] = near[tuple(pairs.T[::-1])] = True
    tried = [_greedy(near, pairs, hubs) for hubs in range(min(number, 4) + 1)]
    return min(tried, key=lambda colors: colors.max(initial=-1))


def _greedy(near: np.ndarray, pairs: np.ndarray, hubs: int) -> np.ndarray:
    number = len(near)
    colors = np.full(number, -1)

    def alone(i: int, j: int) -> bool:
        return np.count_nonzero(near[i] & (colors == colors[j])) == 1 and colors[i] != colors[j]

    def readable() -> bool:
        known = [(i, j) for i, j in pairs.tolist() if colors[i] >= 0 and colors[j] >= 0]
        return all(alone(i, j) or alone(j, i) for i, j in known)

    for turn, row in enumerate(np.argsort(-near.sum(axis=1), kind="stable")):
        for color in range(turn if turn < hubs else 0, number):
            colors[row] = color
            if readable():
                break
    return colors
