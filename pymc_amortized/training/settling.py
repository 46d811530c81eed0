"""Whether training has settled, judged by the held-out loss, and when one of unknown length stops.

It stops where it is good enough, or twice the steps would bring little. That is looked at after 25, 50, 100, ... steps,
so that what is decided is at most twice as late as it could be, and what the last doubling brought foretells the next.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Decided = Literal["target", "gain"]
"""Good enough; twice the steps would bring little."""
Stopped = Literal["steps", "time", "target", "gain", "patience", "interrupt", "diverged"]

NEGLIGIBLE = 0.05
"""Nats per parameter that are not worth more training: a Kullback-Leibler divergence as of a mean that is off by 0.3
standard deviations."""


FIRST_CHECK = 25
"""Steps, after one before any: what exact conditional distributions and sketches leave to learn takes no more."""
FEWEST_FOR_GAIN = 400
"""Steps before a doubling that brought little ends training: losses of sequences and mixtures stay for some hundred
steps where they began, and fall then."""
LITTLE_NATS = 0.01
"""Held-out loss that a doubling has to bring: a Kullback-Leibler divergence as of a mean that is off by 0.14 standard
deviations."""
MOST_MISSED = 0.025
"""Share of simulated data sets whose true parameters may lie where hardly anything is proposed: three of 128."""
LITTLE_EFFICIENCY = 0.02
"""Importance efficiency that a doubling has to bring: of 4,000 draws, 80."""


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


@dataclass(frozen=True)
class Efficiency:
    """Importance efficiency over simulated data sets.

    Attributes
    ----------
    typical : float
        Its median.
    hardest : float
        What nine tenths of the data sets reach.
    missed : float
        Share of the data sets whose true parameters lie where hardly anything is proposed: in a mode that the network
        does not have, of which weights cannot tell.
    """

    typical: float
    hardest: float
    missed: float = 0.0

    @classmethod
    def of(cls, efficiencies: np.ndarray, missed: float = 0.0) -> "Efficiency":
        """Summarize the efficiencies (n,) of data sets."""
        return cls(float(np.median(efficiencies)), float(np.quantile(efficiencies, 0.1)), missed)

    def reaches(self, target: "Efficiency") -> bool:
        """Whether both are at least those of a target, and hardly any parameters are missed."""
        return self.typical >= target.typical and self.hardest >= target.hardest and self.missed <= MOST_MISSED

    def short_of(self, target: "Efficiency") -> str:
        """Say which of what a target wants is not reached."""
        wanted = [str(target)] if self.typical < target.typical or self.hardest < target.hardest else []
        if self.missed > MOST_MISSED:
            wanted.append(f"at most {MOST_MISSED:.1%} of true parameters where next to nothing is proposed")
        return ", and ".join(wanted)

    def above(self, other: "Efficiency") -> float:
        """By how much it is better, where it is most."""
        return max(self.typical - other.typical, self.hardest - other.hardest)

    @classmethod
    def wanted(cls, typical: float) -> "Efficiency":
        """Return what is good enough: the hardest tenth may have half of what is typical."""
        return cls(typical, typical / 2)

    def __str__(self) -> str:
        missed = (
            f"; {self.missed:.0%} of true parameters lie where it proposes next to nothing"
            if self.missed > MOST_MISSED
            else ""
        )
        return f"{self.typical:.0%} (median; {self.hardest:.0%} in the hardest tenth{missed})"


@dataclass(frozen=True, eq=False)
class Stopping:
    """When a training of unknown length stops.

    Attributes
    ----------
    measure : callable or None
        Returns the efficiency of the network as it is; None where there is no density: the held-out loss decides.
    target : Efficiency or None
        What is good enough; None where training goes on as long as a doubling brings something.
    little : float
        Held-out loss that is little for a doubling.
    """

    measure: Callable[[], Efficiency] | None = None
    target: Efficiency | None = None
    little: float = LITTLE_NATS

    @classmethod
    def of_rows(cls, rows: int) -> "Stopping":
        """For a loss per row: errors of all rows of a data set add up."""
        return cls(little=LITTLE_NATS / rows)

    def reason(self, measured: Sequence[Efficiency], evaluations: list[Evaluation], steps: int) -> Decided | None:
        """Return why to stop, if there is a reason.

        Parameters
        ----------
        measured : sequence of Efficiency
            After each doubling, the last one now; empty without a density.
        evaluations : list of Evaluation
            Of the held-out loss, the last one now.
        steps : int
            Made so far.
        """
        if measured and self.target is not None and measured[-1].reaches(self.target):
            return "target"
        grown = len(measured) > 1 and measured[-1].above(measured[-2]) >= LITTLE_EFFICIENCY
        if steps < FEWEST_FOR_GAIN or grown:
            return None
        return "gain" if self._typically_done(measured) or last_gain(evaluations)[0] < self.little else None

    def _typically_done(self, measured: Sequence[Efficiency]) -> bool:
        """Whether only the hardest data sets are short of the target, and the last doubling did not help these either.

        The held-out loss may go on falling by such data sets alone: an autoregression whose prior has explosive series
        took three minutes, to 91 % (median; 0 % in the hardest tenth). The last doubling brought 1 % of it.
        """
        if self.target is None or len(measured) < 2:
            return False
        return measured[-1].typical >= self.target.typical and measured[-1].missed <= MOST_MISSED
