"""Summary networks: options, and the network that they describe."""

from pymc_amortized.networks.summary.network import LEARNED, STATISTICS, SummaryNetwork
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
from pymc_amortized.networks.summary.rows import EncodedArray

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
