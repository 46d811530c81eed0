"""Cholesky factors of many precision matrices of one pattern: full ones, such with a diagonal part, and with a band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from scipy.linalg.lapack import dtrtri

FEW = 8
"""Size of matrices that are handled all at once."""
SMALLEST = 1e-8
"""Of a precision that is not positive."""


class Root(Protocol):
    """Lower Cholesky factors L of precisions, for n integrals and m blocks of one size."""

    def solve(self, x: np.ndarray) -> np.ndarray:
        """Return L^-1 x for x (..., n, m, size)."""
        ...

    def solve_transposed(self, x: np.ndarray) -> np.ndarray:
        """Return L^-T x for x (..., n, m, size)."""
        ...

    def transposed_times(self, x: np.ndarray) -> np.ndarray:
        """Return L^T x for x (n, m, size)."""
        ...

    @property
    def log_det(self) -> np.ndarray:
        """Log determinants (n, m) of L."""
        ...

    def take(self, rows: np.ndarray) -> Self:
        """Return those of some integrals."""
        ...

    def put(self, rows: np.ndarray, other: Self) -> None:
        """Replace those of some integrals."""
        ...


@dataclass(frozen=True, eq=False)
class Full:
    """Full factors.

    Attributes
    ----------
    values, inverse : ndarray (n, m, size, size)
        Factors and their inverses, which are needed several times.
    """

    values: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(cls, precision: np.ndarray) -> Full:
        """Factorize (n, m, size, size); what is not positive definite is made so, by the sizes of eigenvalues."""
        lower = cls._factors(precision)
        return cls(lower, _inverse(lower))

    @staticmethod
    def _factors(precision: np.ndarray) -> np.ndarray:
        if precision.shape[-1] == 1:
            return _roots(precision)
        try:
            return np.linalg.cholesky(precision)
        except np.linalg.LinAlgError:
            flat = np.nan_to_num(precision.reshape(-1, *precision.shape[-2:]), nan=0.0, posinf=0.0, neginf=0.0)
            values, vectors = np.linalg.eigh(flat)
            size = np.abs(values)
            size = np.maximum(size, 1e-6 * size.max(axis=-1, keepdims=True) + SMALLEST)
            mended = (vectors * size[:, None]) @ vectors.swapaxes(-1, -2)
            return np.linalg.cholesky(mended).reshape(precision.shape)

    def solve(self, x: np.ndarray) -> np.ndarray:
        """Return L^-1 x."""
        return _times(self.inverse, x)

    def solve_transposed(self, x: np.ndarray) -> np.ndarray:
        """Return L^-T x."""
        return _times(self.inverse.swapaxes(-1, -2), x)

    def transposed_times(self, x: np.ndarray) -> np.ndarray:
        """Return L^T x."""
        return _times(self.values.swapaxes(-1, -2), x)

    @property
    def log_det(self) -> np.ndarray:
        """Log determinants of L."""
        return np.log(np.diagonal(self.values, axis1=-2, axis2=-1)).sum(axis=-1)

    def take(self, rows: np.ndarray) -> Full:
        """Return those of some integrals."""
        return Full(self.values[rows], self.inverse[rows])

    def put(self, rows: np.ndarray, other: Full) -> None:
        """Replace those of some integrals."""
        self.values[rows], self.inverse[rows] = other.values, other.inverse


@dataclass(frozen=True, eq=False)
class Arrow:
    """Factors of matrices whose first k rows are diagonal, but for what they share with the others.

    Attributes
    ----------
    ends : ndarray (n, m, k)
        Of the diagonal.
    shared : ndarray (n, m, size - k, k)
    rest : Full
    """

    ends: np.ndarray
    shared: np.ndarray
    rest: Full

    @classmethod
    def of(cls, ends: np.ndarray, shared: np.ndarray, rest: np.ndarray) -> Arrow:
        """Factorize matrices given as attributes are; what is not positive definite is made so."""
        roots = _roots(ends)
        shared = shared / roots[..., None, :]
        return cls(roots, shared, Full.of(rest - shared @ shared.swapaxes(-1, -2)))

    def solve(self, x: np.ndarray) -> np.ndarray:
        """Return L^-1 x."""
        first, last = self._split(x)
        first = first / self.ends
        return np.concatenate([first, self.rest.solve(last - _times(self.shared, first))], axis=-1)

    def solve_transposed(self, x: np.ndarray) -> np.ndarray:
        """Return L^-T x."""
        first, last = self._split(x)
        last = self.rest.solve_transposed(last)
        return np.concatenate([(first - _times(self.shared.swapaxes(-1, -2), last)) / self.ends, last], axis=-1)

    def transposed_times(self, x: np.ndarray) -> np.ndarray:
        """Return L^T x."""
        first, last = self._split(x)
        first = self.ends * first + _times(self.shared.swapaxes(-1, -2), last)
        return np.concatenate([first, self.rest.transposed_times(last)], axis=-1)

    @property
    def log_det(self) -> np.ndarray:
        """Log determinants of L."""
        return np.log(self.ends).sum(axis=-1) + self.rest.log_det

    def take(self, rows: np.ndarray) -> Arrow:
        """Return those of some integrals."""
        return Arrow(self.ends[rows], self.shared[rows], self.rest.take(rows))

    def put(self, rows: np.ndarray, other: Arrow) -> None:
        """Replace those of some integrals."""
        self.ends[rows], self.shared[rows] = other.ends, other.shared
        self.rest.put(rows, other.rest)

    def _split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k = self.ends.shape[-1]
        return x[..., :k], x[..., k:]


def _roots(precision: np.ndarray) -> np.ndarray:
    size = np.nan_to_num(np.abs(precision), nan=1.0, posinf=1.0)
    return np.sqrt(np.maximum(size, SMALLEST))


def _times(matrices: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Multiply matrices (n, m, rows, size) by vectors (..., n, m, size)."""
    size = x.shape[-1]
    if size == 1:
        return matrices[..., 0] * x
    if size <= FEW:  # the many calls for tiny matrices would take most of the time
        return sum(matrices[..., j] * x[..., j, None] for j in range(size))
    columns = np.moveaxis(x.reshape(-1, *x.shape[-3:]), 0, -1)
    return np.moveaxis(matrices @ columns, -1, 0).reshape(*x.shape[:-1], matrices.shape[-2])


def _inverse(lower: np.ndarray) -> np.ndarray:
    """Invert lower triangular matrices (n, m, size, size)."""
    size = lower.shape[-1]
    if size > FEW:
        found = np.empty_like(lower)
        for one, inverse in zip(lower.reshape(-1, size, size), found.reshape(-1, size, size), strict=True):
            inverse[:] = dtrtri(one, lower=1)[0]
        return found
    found = np.zeros_like(lower)
    for i in range(size):
        found[..., i, i] = 1 / lower[..., i, i]
        for j in range(i):
            inner = (lower[..., i, j:i] * found[..., j:i, j]).sum(axis=-1)
            found[..., i, j] = -found[..., i, i] * inner
    return found


@dataclass(frozen=True, eq=False)
class Banded:
    """Factors of matrices with a band: the loop is over rows, for all integrals at once.

    Attributes
    ----------
    values : ndarray (size, band + 1, n, m)
        ``values[i, j]`` is L[i, i - j].
    """

    values: np.ndarray

    @classmethod
    def of(cls, precision: np.ndarray) -> Banded:
        """Factorize ``precision[i, j]``, which is the entry (i, i - j); pivots that are not positive become large."""
        size, width = precision.shape[:2]
        root = np.zeros_like(precision)
        for i in range(size):
            for j in range(min(width - 1, i), -1, -1):
                value = precision[i, j].copy()
                for k in range(j + 1, min(width - 1, i) + 1):
                    value -= root[i, k] * root[i - j, k - j]
                if j:
                    root[i, j] = value / root[i - j, 0]
                else:
                    usable = value > SMALLEST * np.abs(precision[i, 0])
                    root[i, 0] = np.sqrt(np.where(usable, value, np.abs(precision[i, 0]) + SMALLEST))
        return cls(root)

    def solve(self, x: np.ndarray) -> np.ndarray:
        """Return L^-1 x."""
        found = np.moveaxis(x, -1, 0).copy()
        for i in range(len(found)):
            for j in range(1, min(self.values.shape[1] - 1, i) + 1):
                found[i] -= self.values[i, j] * found[i - j]
            found[i] /= self.values[i, 0]
        return np.moveaxis(found, 0, -1)

    def solve_transposed(self, x: np.ndarray) -> np.ndarray:
        """Return L^-T x."""
        found = np.moveaxis(x, -1, 0).copy()
        size = len(found)
        for i in range(size - 1, -1, -1):
            for j in range(1, min(self.values.shape[1] - 1, size - 1 - i) + 1):
                found[i] -= self.values[i + j, j] * found[i + j]
            found[i] /= self.values[i, 0]
        return np.moveaxis(found, 0, -1)

    def transposed_times(self, x: np.ndarray) -> np.ndarray:
        """Return L^T x."""
        moved = np.moveaxis(x, -1, 0)
        found = self.values[:, 0] * moved
        for j in range(1, self.values.shape[1]):
            found[:-j] += self.values[j:, j] * moved[j:]
        return np.moveaxis(found, 0, -1)

    @property
    def log_det(self) -> np.ndarray:
        """Log determinants of L."""
        return np.log(self.values[:, 0]).sum(axis=0)

    def take(self, rows: np.ndarray) -> Banded:
        """Return those of some integrals."""
        return Banded(self.values[:, :, rows])

    def put(self, rows: np.ndarray, other: Banded) -> None:
        """Replace those of some integrals."""
        self.values[:, :, rows] = other.values
