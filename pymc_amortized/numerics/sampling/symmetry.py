"""Symmetries of a density: linear maps of its argument that leave it as it is.

Labels of a mixture's components can be permuted, signs of factors and loadings flipped: a density with such symmetries
has as many copies of each mode as there are ways to do so. What is known in one copy is known in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

MOST = 48
"""Maps of a group: four labels (24) and a sign. A larger group is left with those of its first generators."""


@dataclass(frozen=True, eq=False)
class Symmetries:
    """A group of linear maps.

    Attributes
    ----------
    matrices : ndarray (maps, dim, dim)
        The identity first. Entries are -1, 0 and 1.
    toward : ndarray (dim,)
        Of the images of a point, the one farthest in this direction stands for all, where nothing better is known.
    """

    matrices: np.ndarray
    toward: np.ndarray

    @classmethod
    def generated(cls, generators: Sequence[np.ndarray], toward: np.ndarray, most: int = MOST) -> Self | None:
        """Close generators (dim, dim) under composition, leaving out those that make a group too large.

        None where there is nothing but the identity.
        """
        group = np.eye(len(toward), dtype=np.int8)[None]
        used: list[np.ndarray] = []
        for generator in generators:
            tried = [*used, generator.astype(np.int8)]
            closed = _closed(tried, most)
            if closed is not None and len(closed) > len(group):
                group, used = closed, tried
        return cls(group.astype(float), toward) if len(group) > 1 else None

    def __len__(self) -> int:
        return len(self.matrices)

    def of(self, places: Sequence[int] | None) -> Self | None:
        """Those that map some places among themselves, as maps of these; None where there are no others."""
        if places is None:
            return self
        rest = np.setdiff1d(np.arange(len(self.toward)), places)
        inside = self.matrices[:, places][:, :, places]
        apart = (self.matrices[:, places][:, :, rest] == 0).all(axis=(1, 2))
        apart &= (self.matrices[:, rest][:, :, places] == 0).all(axis=(1, 2))
        maps = np.unique(inside[apart], axis=0)
        order = np.argsort(~(maps == np.eye(len(places))).all(axis=(1, 2)), kind="stable")  # the identity first
        return type(self)(maps[order], self.toward[places]) if len(maps) > 1 else None

    def images(self, theta: np.ndarray) -> np.ndarray:
        """Images (maps, ..., dim) of theta (..., dim)."""
        return np.stack([theta @ matrix.T for matrix in self.matrices])

    def moved(self, theta: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Map theta (..., dim) by the maps at `which` (...)."""
        return np.einsum("...ij,...j->...i", self.matrices[which], theta)

    def scattered(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Map each of theta (..., dim) by one of the maps at random."""
        return self.moved(theta, rng.integers(len(self), size=theta.shape[:-1]))

    def representatives(
        self, theta: np.ndarray, distance: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> np.ndarray:
        """Of the images of each of theta (..., dim), the one that is nearest.

        Parameters
        ----------
        theta : ndarray
        distance : callable, optional
            (maps, ..., dim) -> (maps, ...); by default how little far images are in the direction of `toward`.
        """
        images = self.images(theta)
        nearest = (-images @ self.toward if distance is None else distance(images)).argmin(axis=0)
        return np.take_along_axis(images, nearest[None, ..., None], axis=0)[0]

    def gathered(self, theta: np.ndarray, center: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
        """Of the images of each of theta (..., dim), the one nearest to a center (dim,).

        Distances are in units of a scale (dim,), by default the standard deviations of all theta.
        """
        scale = np.maximum(theta.reshape(-1, theta.shape[-1]).std(axis=0) if scale is None else scale, 1e-12)
        return self.representatives(theta, lambda images: np.square((images - center) / scale).sum(axis=-1))


def _closed(generators: Sequence[np.ndarray], most: int) -> np.ndarray | None:
    """The group that matrices generate; None where it has too many elements."""
    identity = np.eye(len(generators[0]), dtype=np.int8)
    known, new = {identity.tobytes(): identity}, [identity]
    while new:
        products = [matrix @ generator for matrix in new for generator in generators]
        new = [p for p in {p.tobytes(): p for p in products}.values() if p.tobytes() not in known]
        known |= {p.tobytes(): p for p in new}
        if len(known) > most:
            return None
    return np.stack(list(known.values()))
