"""Name and version of this package, for the attributes of results: no module inside imports the package itself."""

from types import SimpleNamespace
from typing import Any

__version__ = "0.1.0"

LIBRARY: Any = SimpleNamespace(__name__="pymc_amortized", __version__=__version__)
"""What ArviZ asks for as the library that made a result; it takes a module, of which it reads these two names."""
