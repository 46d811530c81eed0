"""What training found and sampling doubts is seen without any configuration, as what PyMC says is."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def compiling(what: str, silent: float = 3.0) -> Iterator[None]:
    """Say that something is being compiled once that has taken some seconds, and what it took in the end."""
    start = time.perf_counter()
    timer = threading.Timer(silent, logger.info, (f"Compiling {what} ...",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if (seconds := time.perf_counter() - start) > silent:
        logger.info("Compiled %s in %.0f s; another time it comes from the cache on disk.", what, seconds)
