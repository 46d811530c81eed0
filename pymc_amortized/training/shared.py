"""One source of batches for several networks that are trained together."""

from collections.abc import Callable, Mapping
from typing import Any

from pymc_amortized.training.source import Batch, Batches, Reduce

Split = Callable[[Batch, int], Batch]
"""A network's part of a batch, given that batch's number."""


class Shared:
    """A source whose every batch is seen by several networks.

    Parameters
    ----------
    source : Batches
    """

    def __init__(self, source: Batches) -> None:
        self.source, self.number = source, 0
        self._batch: Batch | None = None

    def view(self, split: Split) -> "View":
        """Return the source as one of the networks sees it."""
        return View(self, split)

    def after(self, number: int) -> tuple[Batch, int]:
        """Return the present batch with its number, or the next one if it has no larger number than this."""
        if self._batch is None or self.number <= number:
            self._batch = self.source.next()
            self.number += 1
        return self._batch, self.number


class View:
    """What one network sees of a shared source; made by :meth:`Shared.view`."""

    def __init__(self, shared: Shared, split: Split) -> None:
        self._shared, self._split, self._seen = shared, split, 0
        self.fixed = shared.source.fixed

    @property
    def simulations(self) -> int:
        """Distinct simulations given out or held so far."""
        return self._shared.source.simulations

    @property
    def seconds(self) -> float:
        """Spent on simulating and preparing, for all networks."""
        return self._shared.source.seconds

    def next(self) -> Batch:
        """Return this network's part of a batch it has not seen."""
        batch, self._seen = self._shared.after(self._seen)
        return self._split(batch, self._seen)

    def reduce(self, reduce: Reduce) -> None:
        """Refuse: the other networks need what simulations are made of."""
        raise TypeError("Simulations that several networks share cannot be reduced for one of them.")

    def state(self) -> dict[str, Any]:
        """Return the state of the source, the number of its latest batch, and that of the latest one seen."""
        return self._shared.source.state() | {"number": self._shared.number, "seen": self._seen}

    def restore(self, state: Mapping[str, Any], *, exactly: bool = False) -> None:
        """Go on from where ``state`` was taken; what is shared goes on once."""
        self._seen, number = int(state["seen"]), int(state["number"])
        if self._shared.number < number:
            self._shared.source.restore(state, exactly=exactly)
            self._shared.number = number

    def close(self) -> None:
        """Let go of what works in the background."""
        self._shared.source.close()
