"""How long a call may work on data sets that importance weights do not settle."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pymc_amortized.logs import logger, working_seconds
from pymc_amortized.training.progress import CountBar


class Budget:
    """Seconds of escalation: all work beyond the first proposals, or of a whole call; without compiling.

    Parameters
    ----------
    seconds : float or None
        That it may take; None for no limit.
    progressbar : bool
    whole : bool
        Whether what comes before escalation counts, too.
    kept : bool
        Whether what is done by then is kept when a user interrupts escalation.
    """

    def __init__(
        self, seconds: float | None = None, progressbar: bool = False, *, whole: bool = False, kept: bool = False
    ) -> None:
        self.seconds, self.progressbar = math.inf if seconds is None else seconds, progressbar
        self._kept, self._interrupted = kept, False
        self._spent = 0.0
        self._begun = working_seconds() if whole else None
        self._since: float | None = None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        if self._interrupted:
            return 0.0
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self.seconds - self._spent - running

    @property
    def deadline(self) -> float:
        """When they are over, by ``time.monotonic``, if the clock runs until then."""
        return time.monotonic() + self.left

    @property
    def over(self) -> str:
        """Why there is nothing left."""
        return "sampling was interrupted" if self._interrupted else f"max_time={self.seconds:g} was reached"

    @property
    def interruptible(self) -> bool:
        """Whether an interrupt ends escalation alone: it has begun, and was not interrupted before."""
        return self._kept and self._spent > 0 and not self._interrupted

    def interrupt(self) -> None:
        """Be over, whatever is left, because a user does not want to wait."""
        self._interrupted = True
        logger.warning(
            "Interrupted: nothing is corrected further. Draws that are not good yet are marked; a second interrupt "
            "ends the call without a result."
        )

    def escalate(self) -> None:
        """Count what the first proposals took, if that is part of the budget."""
        if self._begun is not None:
            self._spent = working_seconds() - self._begun

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the clock run."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock, for what is compiled."""
        self._stop()
        try:
            yield
        finally:
            self._since = time.monotonic()

    def _stop(self) -> None:
        if self._since is not None:
            self._spent += time.monotonic() - self._since
        self._since = None

    def each(self, indices: list[int], what: str, total: int) -> Iterator[int]:
        """Go through data sets, with a progress bar, and say after the first one how long the others take."""
        logger.info("%d of %d data sets go to %s.", len(indices), total, what)
        with CountBar(what, len(indices), shown=self.progressbar, ticking=True) as display:
            for done, index in enumerate(indices):
                before = self.left
                yield index
                display.advance(1)
                rest = len(indices) - done - 1
                seconds = rest * (before - self.left)
                if done == 0 and rest and (seconds > 5 or seconds > self.left):
                    bound = "" if math.isinf(self.seconds) else f"; max_time={self.seconds:g} bounds all of it"
                    logger.info("The other %d take about %.0f s%s.", rest, seconds, bound)
