"""What training found and sampling doubts is seen without any configuration, as what PyMC says is."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

logger = logging.getLogger("pymc_amortized")


class Unconfigured(logging.StreamHandler):
    """Writes to the standard error as long as nobody has configured logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless the root logger's handlers do."""
        if not logging.root.handlers:
            super().emit(record)


def show_by_default() -> None:
    """Show messages from INFO on, if logging is not configured yet."""
    if not logging.root.handlers and not logger.handlers:
        logger.setLevel(logging.INFO)
        logger.addHandler(Unconfigured())


_shown: ContextVar[bool] = ContextVar("shown", default=True)
_doing: list[object] = []
_compiled = [0.0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the package's logger from saying anything."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def show_progress(shown: bool) -> None:
    """Say what takes long from now on, or be silent about it: ``progressbar=`` of what the user called last."""
    _shown.set(shown)


@contextmanager
def working(what: str, silent: float = 2.0, remark: str = "") -> Iterator[None]:
    """Say what is being done once that has taken some seconds, again after twice as long, and what it took in the end.

    Of tasks within tasks, the innermost speaks. Can be a decorator.
    """
    if not _shown.get():
        yield
        return
    start, done, task = time.perf_counter(), threading.Event(), object()

    def speak() -> None:
        wait, passed = silent, ""
        while not done.wait(wait):
            if _doing[-1:] == [task]:
                logger.info("%s ...%s", what, passed)
            wait *= 2
            passed = f" {time.perf_counter() - start + wait:.0f} s"

    _doing.append(task)
    threading.Thread(target=speak, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        _doing.remove(task)
        if (seconds := time.perf_counter() - start) > silent:
            logger.info("%s took %.0f s%s.", what, seconds, remark)


@contextmanager
def compiling(what: str, silent: float = 2.0) -> Iterator[None]:
    """Say the same of what is compiled, and stop the clock of :func:`working_seconds`."""
    start = time.perf_counter()
    try:
        with working(f"Compiling {what}", silent, "; another time it comes from the cache on disk"):
            yield
    finally:
        _compiled[0] += time.perf_counter() - start


def working_seconds() -> float:
    """Seconds by a clock that stands still while something is compiled."""
    return time.perf_counter() - _compiled[0]
