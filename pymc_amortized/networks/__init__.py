"""Neural networks of the amortized posterior: torch and NumPy, nothing of PyMC."""

from pymc_amortized.networks.choices import DensityChoice, SummaryChoice
from pymc_amortized.networks.density import ConditionalDensity, CouplingSpline, Spline
from pymc_amortized.networks.encoding import ArrayLayout, DataEncoder
from pymc_amortized.networks.library import ZukoDensity
from pymc_amortized.networks.network import PosteriorNetwork
from pymc_amortized.networks.standardizer import ParameterStandardizer
from pymc_amortized.networks.summary import EncodedArray, Flat, FlatSummary, Set, SetSummary

__all__ = [
    "ArrayLayout",
    "ConditionalDensity",
    "CouplingSpline",
    "DataEncoder",
    "DensityChoice",
    "EncodedArray",
    "Flat",
    "FlatSummary",
    "ParameterStandardizer",
    "PosteriorNetwork",
    "Set",
    "SetSummary",
    "Spline",
    "SummaryChoice",
    "ZukoDensity",
]
