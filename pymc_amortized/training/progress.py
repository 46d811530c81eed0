"""Progress bars in the looks of PyMC's: of training, and of anything that is counted."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text
from rich.theme import Theme

from pymc_amortized.logs import logger

LOG_SECONDS = 30.0
"""Between lines in a log, where no bar can be shown."""


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


class _Bar:
    """One bar among other columns. A context manager.

    Parameters
    ----------
    kind : type
        Of display: with headings, or without.
    columns : tuple of ProgressColumn
        What stands before and after the bar, which is in the place of None.
    ticking : bool
        Whether clocks go on between updates. That takes a thread, which a training loop would have to wait for.
    """

    def __init__(
        self,
        kind: type[Progress],
        *columns: ProgressColumn | None,
        console: Console | None = None,
        ticking: bool = False,
        shown: bool = True,
    ) -> None:
        blue = Style.parse("rgb(31,119,180)")  # PyMC's, as its plain clocks
        heading = Column("Progress", ratio=1)
        bar = BarColumn(bar_width=None, table_column=heading, complete_style=blue, finished_style=blue)
        console = console or Console(theme=Theme({"progress.elapsed": "none", "progress.remaining": "none"}))
        live = console.is_terminal or console.is_jupyter
        self._logs, self._logged = shown and not live, time.perf_counter()
        self._display = kind(
            *(bar if column is None else column for column in columns),
            console=console,
            auto_refresh=ticking,
            expand=True,
            disable=not (shown and live),
        )

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.refresh()
        self._display.stop()

    def _log(self, say: Callable[[], str]) -> None:
        """Say where it stands once in a while, where no bar can be shown: in the log of a batch job."""
        if self._logs and time.perf_counter() > self._logged + LOG_SECONDS:
            self._logged = time.perf_counter()
            logger.info("%s", say())


class ProgressBar(_Bar):
    """Shows a ``Status`` when called with one. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        def text(field: str, heading: str) -> TextColumn:
            return TextColumn(f"{{task.fields[{field}]}}", table_column=Column(heading, no_wrap=True))

        super().__init__(
            _Table,
            None,
            text("step", "Step"),
            text("loss", "Loss"),
            text("held_out", "Held-out loss"),
            TimeElapsedColumn(table_column=Column("Elapsed", no_wrap=True)),
            text("remaining", "Remaining"),
            console=console,
        )
        self._task = self._display.add_task("Training", total=1.0, step="0", loss="", held_out="", remaining="-:--:--")

    def __call__(self, status: Status) -> None:
        """Show where training stands."""
        remaining = "-:--:--"
        if status.fraction > 0:
            remaining = _clock(status.seconds * (1 / status.fraction - 1))
        self._display.update(
            self._task,
            completed=min(status.fraction, 1.0),
            step=f"{status.step:,}",
            loss="" if math.isnan(status.loss) else f"{status.loss:.3f}",  # before any step
            held_out=f"{status.held_out_loss:.3f}",
            remaining=remaining,
            refresh=True,
        )
        self._log(
            lambda: (
                f"Training: step {status.step:,}, held-out loss {status.held_out_loss:.3f}, "
                f"{_clock(status.seconds)} elapsed, {remaining} remaining at most"
            )
        )


class _Rate(ProgressColumn):
    """How many were done in a second, lately."""

    def render(self, task: Task) -> Text:
        """Return the rate, if it is known."""
        return Text("" if task.speed is None else f"{task.speed:,.3g}/s")


class CountBar(_Bar):
    """Counts what is done. A context manager.

    Parameters
    ----------
    title : str
    total : int
    shown : bool
        Whether to show anything.
    ticking : bool
        Whether clocks go on while one is being done.
    rate : bool
        Whether to show how many are done in a second.
    """

    def __init__(self, title: str, total: int, *, shown: bool, ticking: bool = False, rate: bool = False) -> None:
        name, clocks = TextColumn("{task.description}"), (TimeElapsedColumn(), TimeRemainingColumn())
        counts = (MofNCompleteColumn(), *[_Rate()] * rate)
        super().__init__(Progress, name, None, *counts, *clocks, shown=shown, ticking=ticking)
        self._task = self._display.add_task(title, total=total)
        self._title, self._total, self._begun = title, total, time.perf_counter()
        self._done = self._before = 0

    def skip(self, number: int) -> None:
        """Count `number` that were done before."""
        self._begun, self._before = time.perf_counter(), number
        self._display.update(self._task, advance=number, refresh=True)

    def advance(self, number: int = 1) -> None:
        """Count `number` more."""
        self._done += number
        self._display.update(self._task, advance=number, refresh=True)
        self._log(self._said)

    def _said(self) -> str:
        rate = self._done / (time.perf_counter() - self._begun)
        done = self._before + self._done
        left = _clock((self._total - done) / rate) if rate else "-:--:--"
        return f"{self._title}: {done:,} of {self._total:,}, {rate:,.3g}/s, {left} remaining"


class Throttled:
    """Calls back at most once per interval of so many seconds, and never if there is nobody to call."""

    def __init__(self, callback: Callback | None, interval: float = 0.1) -> None:
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
