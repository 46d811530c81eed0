"""Neural networks of the amortized posterior: torch and NumPy, nothing of PyMC."""

from pymc_amortized.networks.choices import DensityChoice, SummaryChoice
from pymc_amortized.networks.density.coupling import ConditionalDensity, CouplingSpline, Spline
from pymc_amortized.networks.density.flows import ZukoDensity
from pymc_amortized.networks.encoding.encoder import DataEncoder
from pymc_amortized.networks.encoding.layout import ArrayLayout, AxisLayout, DataLayout
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.networks.summary import (
    Flat,
    Grid,
    Grouped,
    Sequence,
    Set,
    SetTransformer,
    SummaryNetwork,
    Transformer,
)

__all__ = [
    "ArrayLayout",
    "AxisLayout",
    "ConditionalDensity",
    "CouplingSpline",
    "DataEncoder",
    "DataLayout",
    "DensityChoice",
    "Flat",
    "Grid",
    "Grouped",
    "ParameterStandardizer",
    "PosteriorNetwork",
    "Sequence",
    "Set",
    "SetTransformer",
    "Spline",
    "SummaryChoice",
    "SummaryNetwork",
    "Transformer",
    "ZukoDensity",
]
