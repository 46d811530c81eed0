"""Summary networks: options, and the network that they describe."""

from pymc_amortized.networks.summary.join import EncodedArray
from pymc_amortized.networks.summary.options import (
    Auto,
    Flat,
    Grid,
    Grouped,
    Options,
    Sequence,
    Set,
    SetTransformer,
    Transformer,
)
from pymc_amortized.networks.summary.summary_network import LEARNED, STATISTICS, SummaryNetwork

__all__ = [
    "LEARNED",
    "STATISTICS",
    "Auto",
    "EncodedArray",
    "Flat",
    "Grid",
    "Grouped",
    "Options",
    "Sequence",
    "Set",
    "SetTransformer",
    "SummaryNetwork",
    "Transformer",
]
