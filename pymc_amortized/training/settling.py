"""Whether training has settled, judged by the held-out loss."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Stopped = Literal["steps", "time", "target", "gain", "patience", "interrupt", "diverged"]

NEGLIGIBLE = 0.05
"""Nats per parameter that are not worth more training: a Kullback-Leibler divergence as of a mean that is off by 0.3
standard deviations."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A held-out loss, in parts: chunks of held-out simulations, the same ones every time."""

    fraction: float
    losses: np.ndarray
    sizes: np.ndarray

    @property
    def loss(self) -> float:
        """Mean over the held-out simulations; inf if it is not finite."""
        mean = float(np.average(self.losses, weights=self.sizes))
        return mean if math.isfinite(mean) else math.inf


def difference(first: Evaluation, second: Evaluation) -> tuple[float, float]:
    """Return how much lower the second loss is and the standard error of that.

    Both are losses on the same simulations, so the error is that of the paired differences, chunk
    by chunk, which is far below the error of either.
    """
    with np.errstate(invalid="ignore"):
        lower = first.losses - second.losses
    mean = float(np.average(lower, weights=first.sizes))
    if len(lower) < 2 or not math.isfinite(mean):
        return mean, math.nan
    return mean, float(np.sqrt(np.average((lower - mean) ** 2, weights=first.sizes) / (len(lower) - 1)))


def last_gain(evaluations: list[Evaluation]) -> tuple[float, float]:
    """Return what the second half of training brought, and the standard error of that.

    It foretells what twice the steps would bring: on a problem with four modes the second halves of 400, 800 and 1,600
    steps brought 0.47, 0.41 and 0.42 nats, and twice the steps 0.59, 0.50 and 0.42. The last few steps foretell
    nothing: annealing makes their gain small in any case.
    """
    if not evaluations:
        return math.nan, math.nan
    last = evaluations[-1]
    before = [e for e in evaluations[:-1] if e.fraction <= last.fraction / 2 + 1e-9]
    if not before or not np.isfinite(last.losses).all():
        return math.nan, math.nan
    return difference(before[-1], last)


def stalled(evaluations: list[Evaluation], after: float, negligible: float = NEGLIGIBLE) -> bool:
    """Tell whether all of a network was still learning when its last layers went on alone.

    Its second half brought more then than the last layers did in all the time that followed: they made up for what the
    others had not learned yet where they could.

    Parameters
    ----------
    evaluations : list of Evaluation
    after : float
        Share of the training after which the last layers went on alone.
    negligible : float
        A gain that is not worth more training.
    """
    whole = [e for e in evaluations if e.fraction < after]
    whole += [e for e in evaluations if e.fraction >= after][:1]
    gain, error = last_gain(whole)
    if not math.isfinite(gain):
        return False
    followed, _ = difference(whole[-1], evaluations[-1])
    return _sure(gain, error) > max(followed, negligible)


def _sure(gain: float, error: float) -> float:
    """Return how much of a gain is believed: what is left without two of its standard errors."""
    return gain - 2.0 * (error if math.isfinite(error) else 0.0)


def rise(evaluations: list[Evaluation], negligible: float = NEGLIGIBLE) -> float:
    """Return how far the last held-out loss is above the best, 0 if within the noise."""
    if len(evaluations) < 2:
        return 0.0
    best = min(evaluations, key=lambda e: e.loss)
    above, error = difference(evaluations[-1], best)
    return above if above > max(2.0 * error, negligible) else 0.0


def enough_to_judge(steps: int, evaluations: int) -> bool:
    """Tell whether a training was long enough for its second half to say anything."""
    return steps >= 100 and evaluations >= 4  # the second half of a handful of steps brings little in any case


def is_settled(stopped: Stopped, gain: float, error: float, overfit: float, negligible: float = NEGLIGIBLE) -> bool:
    """Apply the rule that ``Trained.settled`` states."""
    if stopped in ("interrupt", "diverged") or overfit > 0:
        return False
    if stopped in ("target", "gain"):
        return True
    return _sure(gain, error) <= negligible
