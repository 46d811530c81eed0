"""Name and version of this package, for the attributes of results: no module inside imports the package itself."""

__version__ = "0.1.0"

MADE_BY = {"inference_library": "pymc_amortized", "inference_library_version": __version__}
"""What results say of where they come from; ArviZ would look into the installed package's metadata at each call."""
