"""Unknowns of a density that fall into independent blocks, and the pattern of their second derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

from pymc_amortized.numerics.sampling.precision import Arrow, Banded, Full, Root

FEW = 8
"""Unknowns of a block, up to which evenly spread points are better than random ones."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Unknowns that are independent of each other, but for those of one block.

    Attributes
    ----------
    block_of : int ndarray (q,)
        Number of each unknown's block.
    place : int ndarray (terms,)
        Number of the block that each term of the log density belongs to; the number of blocks for those of none.
    pairs : int ndarray (p, 2)
        Unknowns that share a term.
    reads : sparse matrix (terms, q)
        Which unknowns each term reads.
    matrices : list of ndarray (turns, q)
        Of which second derivatives seem to be sums, as far as that is known; too many where they are not.
    """

    block_of: np.ndarray
    place: np.ndarray
    pairs: np.ndarray
    reads: csr_matrix
    matrices: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, reads: np.ndarray) -> Blocks:
        """Find them from which unknowns each term reads: bool (terms, q)."""
        sparse = csr_matrix(reads, dtype=float)
        near = (sparse.T @ sparse).tocoo()
        number, block_of = connected_components(near)
        first, some = reads.argmax(axis=1), reads.any(axis=1)
        upper = near.row < near.col
        pairs = np.column_stack([near.row[upper], near.col[upper]])
        return cls(block_of, np.where(some, block_of[first], number), pairs, sparse)

    def refined(self, near: np.ndarray) -> Blocks:
        """Return the same, with those pairs alone of which it is true (q, q) that they interact."""
        first, second = self.pairs.T
        return replace(self, pairs=self.pairs[near[first, second] | near[second, first]], matrices=[])

    @cached_property
    def number(self) -> int:
        """How many blocks there are."""
        return int(self.block_of.max(initial=-1)) + 1

    @cached_property
    def parts(self) -> list[Part]:
        """Blocks of one size each; of the large ones, each by itself."""
        sizes = np.bincount(self.block_of, minlength=self.number)
        order = np.argsort(self.block_of, kind="stable")
        starts = np.cumsum(sizes) - sizes
        found = []
        for size in np.unique(sizes):
            (some,) = np.nonzero(sizes == size)
            members = order[starts[some][:, None] + np.arange(size)]
            if size <= FEW:
                found.append(Part(some, members, size - 1))
            else:
                found += [self._large(np.array([of]), own) for of, own in zip(some, members, strict=True)]
        return found

    def _large(self, of: np.ndarray, own: np.ndarray) -> Part:
        """A block of many unknowns, in an order in which those that share terms are close."""
        place = np.full(len(self.block_of), -1)
        place[own] = np.arange(len(own))
        first, second = place[self.pairs[np.isin(self.pairs[:, 0], own)]].T
        near = csr_matrix((np.ones(2 * len(first)), (np.r_[first, second], np.r_[second, first])), (len(own),) * 2)
        order = reverse_cuthill_mckee(near, symmetric_mode=True)
        rank = np.argsort(order)
        band = int(np.abs(rank[first] - rank[second]).max(initial=0))
        if 4 * band < len(own):
            return Part(of, own[order][None], band)
        apart = _unconnected(near)
        return Part(of, own[np.argsort(~apart, kind="stable")][None], len(own) - 1, int(apart.sum()))

    @cached_property
    def cells(self) -> list[np.ndarray]:
        """For each part, numbers of further sums of terms: those of what is independent in its block, given the rest.

        Each is of one of the unknowns that are apart. There are none where a term reads several of these.
        """
        found, number = [], self.number
        for part in self.parts:
            several = part.apart == 1 or (self.reads[:, part.members[0, : part.apart]] > 0).sum(axis=1).max() > 1
            found.append(number + np.arange(0 if several else part.apart))
            number += len(found[-1])
        return found

    @cached_property
    def cell_of(self) -> np.ndarray:
        """Number of the cell that each term belongs to, or of its block; how many there are for those of none."""
        cell_of = np.where(self.place == self.number, self.number_of_cells, self.place)
        for part, cells in zip(self.parts, self.cells, strict=True):
            terms, which = self.reads[:, part.members[0, : len(cells)]].nonzero()
            cell_of[terms] = cells[which]
        return cell_of

    @cached_property
    def number_of_cells(self) -> int:
        """How many sums there are of blocks and of what is independent in these."""
        return self.number + sum(map(len, self.cells))

    def by_block(self, sums: np.ndarray) -> np.ndarray:
        """Add up cells (..., cells + 1): (..., blocks + 1)."""
        if self.number_of_cells == self.number:
            return sums
        found = np.concatenate([sums[..., : self.number], sums[..., -1:]], axis=-1)
        for part, cells in zip(self.parts, self.cells, strict=True):
            if len(cells):
                found[..., part.blocks[0]] += sums[..., cells].sum(axis=-1)
        return found

    @cached_property
    def turns(self) -> np.ndarray:
        """Unknowns (turns, q) that are moved at once, so that gradients tell all second derivatives."""
        colors = np.zeros(len(self.block_of), dtype=int)
        for part in self.parts:
            colors[part.members] = part.colors
        return (colors == np.arange(colors.max(initial=0) + 1)[:, None]).astype(float)


@dataclass(frozen=True, eq=False)
class Part:
    """Blocks of one size.

    Attributes
    ----------
    blocks : int ndarray (m,)
        Their numbers.
    members : int ndarray (m, size)
        Their unknowns.
    band : int
        How far apart those are that share a term; less than the size by one where any do.
    apart : int
        How many of the first ones share terms with others alone, where any may share one.
    """

    blocks: np.ndarray
    members: np.ndarray
    band: int
    apart: int = 1

    @property
    def size(self) -> int:
        """Unknowns of each block."""
        return self.members.shape[1]

    @property
    def full(self) -> bool:
        """Whether any unknowns may share a term."""
        return self.band == self.size - 1

    @property
    def colors(self) -> np.ndarray:
        """Which unknowns (size,) of a block may be moved at once."""
        if self.full:
            return np.maximum(np.arange(self.size) - (self.apart - 1), 0)
        return np.arange(self.size) % (2 * self.band + 1)

    @property
    def width(self) -> int:
        """Numbers that the precision of a block takes."""
        return self.size * (self.size - self.apart + 1 if self.full else self.band + 1)

    def root(self, curvature: np.ndarray) -> Root:
        """Cholesky factors from minus second derivatives (turns, n, q), of all unknowns in the direction of turns."""
        own = np.moveaxis(curvature[:, :, self.members], (0, 3), (0, 1))  # (turns, size, n, m)
        if self.full and (k := self.apart) > 1:  # all of these are moved at once: what they share, the others tell
            others = np.moveaxis(own[1 : self.size - k + 1], (0, 1), (2, 3))
            rest = others[..., k:]
            return Arrow.of(np.moveaxis(own[0, :k], 0, 2), others[..., :k], (rest + rest.swapaxes(-1, -2)) / 2)
        if self.full:
            precision = np.moveaxis(own[self.colors], (0, 1), (3, 2))
            return Full.of((precision + precision.swapaxes(-1, -2)) / 2)
        places, colors = np.arange(self.size), self.colors
        precision = np.zeros((self.size, self.band + 1, *own.shape[2:]))
        for j in range(self.band + 1):
            i = places[j:]
            precision[j:, j] = (own[colors[i - j], i] + own[colors[i], i - j]) / 2
        return Banded.of(precision)


def _unconnected(near: csr_matrix) -> np.ndarray:
    """Mark unknowns (q,) of which no two share a term, as many as are found from those with few neighbours on."""
    chosen, blocked = np.zeros(near.shape[0], dtype=bool), np.zeros(near.shape[0], dtype=bool)
    for i in np.argsort(np.diff(near.indptr), kind="stable"):
        if not blocked[i]:
            chosen[i] = True
            blocked[near.indices[near.indptr[i] : near.indptr[i + 1]]] = True
    return chosen
