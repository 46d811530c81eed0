"""When a training of unknown length stops: it is good enough, or twice the steps would bring little.

It is looked at after 25, 50, 100, ... steps, so that what is decided is at most twice as late as it could be, and what
the last doubling brought foretells the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pymc_amortized.training.settling import Evaluation, last_gain
from pymc_amortized.training.state import Decided

FIRST_CHECK = 25
"""Steps, after one before any: what exact conditional distributions and sketches leave to learn takes no more."""
FEWEST_FOR_GAIN = 400
"""Steps before a doubling that brought little ends training: losses of sequences and mixtures stay for some hundred
steps where they began, and fall then."""
LITTLE_NATS = 0.01
"""Held-out loss that a doubling has to bring: a Kullback-Leibler divergence as of a mean that is off by 0.14 standard
deviations."""
LITTLE_EFFICIENCY = 0.02
"""Importance efficiency that a doubling has to bring: of 4,000 draws, 80."""


@dataclass(frozen=True)
class Efficiency:
    """Importance efficiency over simulated data sets.

    Attributes
    ----------
    typical : float
        Its median.
    hardest : float
        What nine tenths of the data sets reach.
    """

    typical: float
    hardest: float

    @classmethod
    def of(cls, efficiencies: np.ndarray) -> "Efficiency":
        """Summarize the efficiencies (n,) of data sets."""
        return cls(float(np.median(efficiencies)), float(np.quantile(efficiencies, 0.1)))

    def reaches(self, target: "Efficiency") -> bool:
        """Whether both are at least those of a target."""
        return self.typical >= target.typical and self.hardest >= target.hardest

    def above(self, other: "Efficiency") -> float:
        """By how much it is better, where it is most."""
        return max(self.typical - other.typical, self.hardest - other.hardest)

    @classmethod
    def wanted(cls, typical: float) -> "Efficiency":
        """Return what is good enough: the hardest tenth may have half of what is typical."""
        return cls(typical, typical / 2)

    def __str__(self) -> str:
        return f"{self.typical:.0%} (median; {self.hardest:.0%} in the hardest tenth)"


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
        if steps < FEWEST_FOR_GAIN or not last_gain(evaluations)[0] < self.little:
            return None
        grown = len(measured) > 1 and measured[-1].above(measured[-2]) >= LITTLE_EFFICIENCY
        return None if grown else "gain"
