"""Amortized Bayesian inference for PyMC models."""

from importlib import import_module
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any

import pymc as _pm

from pymc_amortized.logs import show_by_default
from pymc_amortized.results.version import __version__ as __version__

if TYPE_CHECKING or current_process().name == "MainProcess":
    from pymc_amortized.names import *  # noqa: F403
    from pymc_amortized.names import __all__ as __all__
    from pymc_amortized.names import sample_amortized
else:
    # Processes that take tasks from this one are there in a third of the time: the simulator needs neither torch nor
    # plots. What users write in them finds its names all the same.

    def __getattr__(name: str) -> Any:
        """Import what users see when they ask for it."""
        names = import_module("pymc_amortized.names")
        if name not in ("__all__", *names.__all__):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(names, name)

    def sample_amortized(*args: Any, **kwargs: Any) -> Any:
        """Import the front door, and go through it."""
        return import_module("pymc_amortized.sampling").sample_amortized(*args, **kwargs)


def __dir__() -> list[str]:
    """Show users what is theirs, without the rooms."""
    return sorted(import_module("pymc_amortized.names").__all__)


_pm.sample_amortized = sample_amortized

show_by_default()
