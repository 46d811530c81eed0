"""The progress bar of training, in the looks of PyMC's."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.style import Style
from rich.table import Column, Table
from rich.theme import Theme

# PyMC's blue, and its plain clocks.
BLUE = Style.parse("rgb(31,119,180)")
PLAIN_CLOCKS = Theme({"progress.elapsed": "none", "progress.remaining": "none"})
# Seconds between updates.
INTERVAL = 0.1


@dataclass(frozen=True)
class Status:
    """Where training stands.

    Attributes
    ----------
    step : int
        Steps made in this training.
    fraction : float
        Share of the training that is done, in [0, 1]: by steps, or by time where ``max_time``
        binds.
    loss : float
        Training loss of the last step.
    held_out_loss : float
        At the last evaluation.
    seconds : float
        Since training began.
    """

    step: int
    fraction: float
    loss: float
    held_out_loss: float
    seconds: float


Callback = Callable[[Status], None]


class _Table(Progress):
    """A progress display with column headings, as PyMC's."""

    def make_tasks_table(self, tasks: "list[Task]") -> Table:  # type: ignore[override]
        """Return one row per task, under headings."""
        columns = [c.get_table_column().copy() for c in self.columns if not isinstance(c, str)]
        table = Table(*columns, padding=(0, 1), expand=self.expand, box=SIMPLE_HEAD)
        for task in tasks:
            table.add_row(*(c(task) for c in self.columns if not isinstance(c, str)))
        return table


class ProgressBar:
    """Shows a ``Status`` when called with one. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        def text(field: str, heading: str) -> TextColumn:
            return TextColumn(f"{{task.fields[{field}]}}", table_column=Column(heading, no_wrap=True))

        self._display = _Table(
            BarColumn(
                bar_width=None,
                table_column=Column("Progress", ratio=1),
                complete_style=BLUE,
                finished_style=BLUE,
            ),
            text("step", "Step"),
            text("loss", "Loss"),
            text("held_out", "Held-out loss"),
            TimeElapsedColumn(table_column=Column("Elapsed", no_wrap=True)),
            text("remaining", "Remaining"),
            console=console or Console(theme=PLAIN_CLOCKS),
            # Its own refreshing thread would take the interpreter from the training loop.
            auto_refresh=False,
            expand=True,
        )
        self._task = self._display.add_task("Training", total=1.0, step="0", loss="", held_out="", remaining="-:--:--")

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.refresh()
        self._display.stop()

    def __call__(self, status: Status) -> None:
        """Show where training stands."""
        remaining = "-:--:--"
        if status.fraction > 0:
            remaining = _clock(status.seconds * (1 / status.fraction - 1))
        self._display.update(
            self._task,
            completed=min(status.fraction, 1.0),
            step=f"{status.step:,}",
            loss=f"{status.loss:.3f}",
            held_out=f"{status.held_out_loss:.3f}",
            remaining=remaining,
            refresh=True,
        )


class Throttled:
    """Calls back at most once per interval, and never if there is nobody to call."""

    def __init__(self, callback: Callback | None, interval: float = INTERVAL) -> None:
        self.callback, self.interval = callback, interval
        self._next = 0.0 if callback is not None else float("inf")

    def due(self, now: float) -> bool:
        """Whether it is time to call (``now`` by ``time.perf_counter``)."""
        return now >= self._next

    def __call__(self, status: Status) -> None:
        """Call now."""
        if self.callback is not None:
            self.callback(status)
            self._next = time.perf_counter() + self.interval


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
