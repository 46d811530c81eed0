"""Neural networks of the amortized posterior: torch and NumPy, nothing of PyMC."""

from pymc_amortized.networks.choices import *  # noqa: F403  # the networks that are registered there
from pymc_amortized.networks.choices import DensityChoice, SummaryChoice
from pymc_amortized.networks.choices import __all__ as _registered
from pymc_amortized.networks.density.coupling import CouplingSpline
from pymc_amortized.networks.density.protocols import ConditionalDensity
from pymc_amortized.networks.encoding.encoder import DataEncoder
from pymc_amortized.networks.encoding.layout import ArrayLayout, AxisLayout, DataLayout
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.networks.summary.summary_network import SummaryNetwork

__all__ = [
    "ArrayLayout",
    "AxisLayout",
    "ConditionalDensity",
    "CouplingSpline",
    "DataEncoder",
    "DataLayout",
    "DensityChoice",
    "ParameterStandardizer",
    "PosteriorNetwork",
    "SummaryChoice",
    "SummaryNetwork",
]
__all__ += _registered
