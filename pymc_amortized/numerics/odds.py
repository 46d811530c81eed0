r"""From a classifier's logits to probabilities of models that can be believed.

With equal prior weights the classifier says :math:`q_k(x) \propto e^{f_k(x)}`. On simulations that it was not trained
on it is calibrated: logits are divided by a temperature, which may depend on the size of the data (Guo et al. 2017,
arXiv 1706.04599), if that lowers the log score beyond its error; and a share :math:`\epsilon` of every probability is
given to all models alike,

.. math:: p_k(x) = (1 - \epsilon)\, q_k(x) + \epsilon / K.

No N simulations can show that a probability below about 1/N is right, so that :math:`\epsilon` is at least :math:`1/N`.
It bounds the Bayes factors that the classifier claims: what is beyond that is known to be large, not how large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

UNRESOLVED = 2.0
"""A probability below this multiple of what it is given in any case says no more than that it is small."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What brings a classifier's logits to calibrated probabilities, at equal prior weights.

    Attributes
    ----------
    temperature : ndarray (1 + k,)
        Log temperature, and its slopes on what data sets are given (their log sizes and the like).
    center : ndarray (k,)
        Of these.
    share : float
        The share of every probability that all models get alike.
    """

    temperature: np.ndarray
    center: np.ndarray
    share: float

    def __call__(self, logits: np.ndarray, extents: np.ndarray) -> np.ndarray:
        """Log probabilities (n, models) at equal prior weights, from logits (n, models) at extents (n, k)."""
        scaled = log_softmax(logits / _temperatures(self.temperature, extents - self.center)[:, None], axis=1)
        uniform = np.log(self.share) - np.log(logits.shape[1])
        return np.logaddexp(np.log1p(-self.share) + scaled, uniform)

    def resolved(self, log_probability: np.ndarray) -> np.ndarray:
        """Which probabilities (n, models) at equal prior weights are more than the share that all get."""
        return log_probability > np.log(UNRESOLVED * self.share / log_probability.shape[1])

    def unknown(self, log_probability: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """How far probabilities (n, models) under prior weights may lie from those that are given.

        What is not resolved at equal weights lies anywhere between 0 and what it is given; a large prior weight makes
        much of that.
        """
        given = posterior_weights(log_probability, prior)
        without = np.where(self.resolved(log_probability), log_probability, -np.inf)
        return np.abs(given - posterior_weights(without, prior))

    @property
    def largest(self) -> float:
        """Log Bayes factor beyond which the classifier says no more than that it is large: of two models."""
        return float(np.log(2 / (UNRESOLVED * self.share)))

    @classmethod
    def fit(cls, logits: np.ndarray, labels: np.ndarray, extents: np.ndarray, rng: np.random.Generator) -> Calibration:
        """Learn from simulations that the classifier was not trained on.

        Parameters
        ----------
        logits : ndarray (n, models)
        labels : ndarray (n,)
            Numbers of the models that the data sets come from, about equally often each.
        extents : ndarray (n, k)
        rng : numpy.random.Generator
            Splits these.
        """
        center = extents.mean(0)
        offsets = extents - center
        halves = np.array_split(rng.permutation(len(labels)), 2)
        none = np.zeros(1 + extents.shape[1])
        gains = np.zeros(len(labels))
        for one, other in (halves, halves[::-1]):
            learned = _temperature(logits[one], labels[one], offsets[one])
            gains[other] = _scores(learned, logits[other], labels[other], offsets[other])
            gains[other] -= _scores(none, logits[other], labels[other], offsets[other])
        # a temperature has to improve the log score on simulations it was not learned from by three standard errors
        better = gains.mean() > 3.0 * gains.std(ddof=1) / np.sqrt(len(gains))
        temperature = _temperature(logits, labels, offsets) if better else none
        log_q = _scores(temperature, logits, labels, offsets)
        smallest, number = 1 / len(labels), logits.shape[1]
        shares = [share for s in (1.0, 3.0, 10.0, 30.0, 100.0, 300.0) if (share := s * smallest) < 0.5]
        best = max(shares, key=lambda e: np.logaddexp(np.log1p(-e) + log_q, np.log(e / number)).mean())
        return cls(temperature, center, best)


def _temperatures(coefficients: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.exp(np.clip(coefficients[0] + offsets @ coefficients[1:], -5.0, 5.0))


def _scores(coefficients: np.ndarray, logits: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Log probability (n,) of the true model."""
    scaled = log_softmax(logits / _temperatures(coefficients, offsets)[:, None], axis=1)
    return scaled[np.arange(len(labels)), labels]


def _temperature(logits: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    start = np.zeros(1 + offsets.shape[1])
    found = minimize(lambda c: -_scores(c, logits, labels, offsets).mean(), start, method="BFGS")
    return found.x if np.isfinite(found.fun) else start


def prior_weights(prior: Mapping[str, Any] | None, names: Sequence[str]) -> np.ndarray:
    """Read prior weights of models (models,), which need not add up to 1; None is one for all.

    Raises
    ------
    TypeError, KeyError, ValueError
    """
    if prior is None:
        return np.full(len(names), 1 / len(names))
    if not isinstance(prior, Mapping):
        raise TypeError(f"prior must map models to weights, as in {{{names[0]!r}: 2, ...}}; got {prior!r}")
    if set(prior) != set(names):
        raise KeyError(f"prior: weights of {sorted(map(str, prior))} given; the models are {list(names)}")
    if not all(isinstance(w, Real) and not isinstance(w, bool) for w in prior.values()):
        raise TypeError(f"prior: weights must be numbers, got {dict(prior)!r}")
    weights = np.array([float(prior[name]) for name in names])
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"prior: weights must be finite, none below 0 and not all 0; got {dict(prior)!r}")
    return weights / weights.sum()


def posterior_weights(log_evidence: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Posterior probabilities (..., models) from log marginal likelihoods, up to a constant, and prior weights."""
    with np.errstate(divide="ignore"):  # a model of weight 0 is none
        return softmax(log_evidence + np.log(prior), axis=-1)


def log_odds(log_probability: np.ndarray) -> np.ndarray:
    """Log odds (..., models) of each model against all others, from log probabilities."""
    number = log_probability.shape[-1]
    others = np.where(np.eye(number, dtype=bool), -np.inf, log_probability[..., None, :])
    return log_probability - logsumexp(others, axis=-1)
