"""What training found and sampling doubts is seen without any configuration, as what PyMC says is."""

import logging

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
