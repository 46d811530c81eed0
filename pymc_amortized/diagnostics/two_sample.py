r"""A classifier that is fitted in closed form or by a few Newton steps: regression on quadratic and random features.

What tells two normal distributions apart is a quadratic function of the coordinates; what tells others apart is
approximated by random cosines (Rahimi & Recht 2007). Coordinates are first mapped to normal scores of their pooled
ranks, so that neither units nor heavy tails matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri
from scipy.stats import rankdata

COSINES = 150
"""How many random ones are features."""


def take_normal_scores(values: np.ndarray) -> np.ndarray:
    """Map each column of (n, columns) to normal scores of its ranks; columns that do not vary are dropped."""
    values = values[:, np.ptp(values, axis=0) > 0]
    return ndtri((rankdata(values, axis=0) - 0.5) / len(values))


@dataclass(frozen=True, eq=False)
class Features:
    """A fixed map from coordinates (n, columns) to standardized features (n, features)."""

    frequencies: np.ndarray
    phases: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @property
    def penalty(self) -> np.ndarray:
        """Inverse prior variance of each coefficient: simple differences come first, the constant is free."""
        columns = len(self.frequencies)
        products = len(self.mean) - columns - COSINES
        return np.repeat([1e-6, 1.0, 10.0, 100.0], [1, columns, products, COSINES])

    @classmethod
    def fit(cls, coordinates: np.ndarray, rng: np.random.Generator) -> Features:
        """Choose random cosines, and learn the features' scales."""
        columns = coordinates.shape[1]
        # coarse and fine structure, in units of the typical distance of standard normal points
        width = np.sqrt(2 * columns) * rng.choice((0.5, 1.0, 2.0), size=COSINES)
        frequencies = rng.standard_normal((columns, COSINES)) / width * np.sqrt(2)
        phases = rng.uniform(0, 2 * np.pi, COSINES)
        raw = _raw(coordinates, frequencies, phases)
        scale = raw.std(axis=0)
        return cls(frequencies, phases, raw.mean(axis=0), np.where(scale > 1e-9, scale, 1.0))

    def __call__(self, coordinates: np.ndarray) -> np.ndarray:
        """Return features, the first of which is constant."""
        raw = _raw(coordinates, self.frequencies, self.phases)
        return np.column_stack([np.ones(len(raw)), (raw - self.mean) / self.scale])


def _raw(x: np.ndarray, frequencies: np.ndarray, phases: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(x.shape[1])
    if len(i) > 300:  # too many products: squares alone
        i = j = np.arange(x.shape[1])
    return np.column_stack([x, x[:, i] * x[:, j], np.cos(x @ frequencies + phases)])


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, penalty: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Coefficients (features,) of a penalized logistic regression of labels (n,) in {0, 1}, by Newton's method.

    Rows count by their weights (n,), if given.
    """
    counts = np.ones(len(labels)) if weights is None else weights
    beta = np.zeros(features.shape[1])
    for _ in range(8):
        p = expit(features @ beta)
        weight = counts * np.maximum(p * (1 - p), 1e-6)
        hessian = (features * weight[:, None]).T @ features + np.diag(penalty)
        step = np.linalg.solve(hessian, features.T @ (counts * (labels - p)) - penalty * beta)
        beta = beta + step
        if np.abs(step).max() < 1e-4:
            break
    return beta


def guess_labels(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    rng: np.random.Generator,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Whether each label of a test set is guessed right, by what was learned from a training set.

    Parameters
    ----------
    train, test : ndarray (n, columns)
        Coordinates, standardized together.
    train_labels, test_labels : ndarray (n,)
        0 or 1.
    weights : ndarray (n,), optional
        How much each row of the training set counts.
    """
    features = Features.fit(train, rng)
    beta = fit_logistic(features(train), train_labels, features.penalty, weights)
    return (features(test) @ beta > 0) == test_labels
