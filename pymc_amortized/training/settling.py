"""Whether training has settled, judged by the held-out loss."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Stopped = Literal["steps", "time", "patience", "interrupt", "diverged"]

# Training has settled when its last fifth brought no more than this many nats ...
SETTLED_SHARE = 0.2
SETTLED_NATS = 0.02
# ... by more than this many standard errors of the difference.
STANDARD_ERRORS = 2.0


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
    return mean, float(
        np.sqrt(np.average((lower - mean) ** 2, weights=first.sizes) / (len(lower) - 1))
    )


def last_gain(evaluations: list[Evaluation], share: float = SETTLED_SHARE) -> tuple[float, float]:
    """Return what the last share of the training brought, in nats, and its standard error."""
    if not evaluations:
        return math.nan, math.nan
    last = evaluations[-1]
    before = [e for e in evaluations[:-1] if e.fraction <= last.fraction * (1 - share) + 1e-9]
    if not before or not np.isfinite(last.losses).all():
        return math.nan, math.nan
    return difference(before[-1], last)


def rise(evaluations: list[Evaluation]) -> float:
    """Return how far the last held-out loss is above the best, 0 if within the noise."""
    if len(evaluations) < 2:
        return 0.0
    best = min(evaluations, key=lambda e: e.loss)
    above, error = difference(evaluations[-1], best)
    return above if above > max(STANDARD_ERRORS * error, SETTLED_NATS) else 0.0


def is_settled(stopped: Stopped, gain: float, error: float, overfit: float) -> bool:
    """Apply the rule that ``Trained.settled`` states."""
    if stopped in ("interrupt", "diverged") or overfit > 0:
        return False
    return gain - STANDARD_ERRORS * (error if math.isfinite(error) else 0.0) <= SETTLED_NATS
