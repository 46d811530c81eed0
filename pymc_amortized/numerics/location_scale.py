"""Where values lie, and how far they scatter, as functions of other numbers: linear, and linear on a log scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS = 5
RIDGE = 1e-6
"""Of weighted regressions, relative to the variances of what they are on."""


@dataclass(frozen=True, eq=False)
class LocationScale:
    """A normal distribution whose mean and log standard deviation are linear in what is given.

    Of values of groups, given the parameters of a hierarchy, on their unconstrained scales: where a standard deviation
    has a log transform, both are just that. What is left of values then has one scale, also where groups lie close
    together.

    Attributes
    ----------
    mean, log_sd : ndarray (width + 1, dim)
        Coefficients; the last row is the constant.
    smallest, largest : ndarray (dim,)
        Range of the log standard deviations that it was learned from.
    """

    mean: np.ndarray
    log_sd: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray

    @classmethod
    def fit(cls, given: np.ndarray, values: np.ndarray) -> LocationScale:
        """Learn from pairs, given (n, width) and values (n, dim): weighted least squares, some rounds."""
        x = _with_one(given)
        mean, log_sd = (np.zeros((x.shape[1], values.shape[1])) for _ in range(2))
        for _ in range(ROUNDS):
            weights = np.exp(-2 * x @ log_sd)
            mean = np.stack([_regression(x, w, y) for w, y in zip(weights.T, values.T, strict=True)], axis=1)
            square = np.square(values - x @ mean) + 1e-12
            # the mean log square of a standard normal variable is -1.27
            log_sd = np.stack([_regression(x, np.ones(len(x)), y) for y in (np.log(square.T) + 1.2704) / 2], axis=1)
        found = x @ log_sd
        return cls(mean, log_sd, found.min(axis=0), found.max(axis=0))

    def __call__(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return means and standard deviations (..., dim) at given numbers (..., width)."""
        x = _with_one(given)
        return x @ self.mean, np.exp(np.clip(x @ self.log_sd, self.smallest - 1, self.largest + 1))

    def check(self, width: int, dim: int) -> None:
        """Refuse coefficients of other shapes, or that are no numbers."""
        wanted = {"mean": (width + 1, dim), "log_sd": (width + 1, dim), "smallest": (dim,), "largest": (dim,)}
        wrong = [k for k, shape in wanted.items() if getattr(self, k).shape != shape]
        wrong += [k for k in wanted if not np.isfinite(getattr(self, k)).all()]
        if wrong:
            raise ValueError(f"the location and scale of groups have no usable {wrong}")


def _with_one(given: np.ndarray) -> np.ndarray:
    return np.concatenate([given, np.ones((*given.shape[:-1], 1))], axis=-1)


def _regression(x: np.ndarray, weights: np.ndarray, y: np.ndarray) -> np.ndarray:
    weights = weights / weights.max()
    gram = (x * weights[:, None]).T @ x
    return np.linalg.solve(gram + RIDGE * np.diag(np.diag(gram)), (x * weights[:, None]).T @ y)
