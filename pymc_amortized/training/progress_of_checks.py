"""A progress bar for checks, in the looks of that of training."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from pymc_amortized.training.progress import BLUE, PLAIN_CLOCKS


class Progress:
    """Counts what is done. A context manager.

    Parameters
    ----------
    title : str
    total : int
    shown : bool
        Whether to show anything.
    """

    def __init__(self, title: str, total: int, *, shown: bool) -> None:
        self._display = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, complete_style=BLUE, finished_style=BLUE),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(theme=PLAIN_CLOCKS),
            auto_refresh=False,
            expand=True,
            disable=not shown,
        )
        self._task = self._display.add_task(title, total=total)

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._display.refresh()
        self._display.stop()

    def advance(self, number: int) -> None:
        """Count `number` more."""
        self._display.update(self._task, advance=number, refresh=True)
