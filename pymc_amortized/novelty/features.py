"""What a data set is compared with simulations by: its learned summary, and the shape of its residuals."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.inputs.data_inputs import DataInputs
from pymc_amortized.networks.encoding.encoder import DataEncoder, Sizes
from pymc_amortized.networks.summary.summary_network import encoded_arrays
from pymc_amortized.novelty.order import AnyOrder
from pymc_amortized.novelty.shape import ShapeStatistics
from pymc_amortized.numerics.blocks import blocks

__all__ = ["NoveltyFeatures"]


class Summarizing(Protocol):
    """A network that encodes and summarizes data."""

    encoder: DataEncoder

    @property
    def features(self) -> int:
        """Width of the summary."""
        ...

    def encode(self, data: Mapping[str, np.ndarray | Tensor], sizes: Sizes | None = None) -> dict[str, Tensor]:
        """Raw data (batch, *shape) -> what is summarized."""
        ...

    def summarize(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Encoded data -> features (batch, features)."""
        ...


class NoveltyFeatures:
    """Features of data sets, in two blocks.

    Parameters
    ----------
    network : Summarizing
        A posterior network, or a classifier.
    """

    def __init__(self, network: Summarizing) -> None:
        self.network = network
        self._shape = ShapeStatistics(encoded_arrays(network.encoder), network.encoder.layout)

    @property
    def blocks(self) -> tuple[int, int]:
        """Width of the summary, and number of statistics of shape."""
        return self.network.features, len(self.names)

    @property
    def names(self) -> list[str]:
        """What the statistics of shape are."""
        return self._shape.names

    def of(self, inputs: DataInputs, datasets: DataSets) -> np.ndarray:
        """Data sets -> features (n, width), the same in every order that means nothing to the model."""
        return self(**inputs(AnyOrder(inputs.spec, inputs.structure)(datasets)))

    @torch.inference_mode()
    def __call__(self, data: Mapping[str, np.ndarray], sizes: Sizes | None = None) -> np.ndarray:
        """Raw data (n, *shape) -> features (n, width), float64."""
        n = len(next(iter(data.values())))
        parts = []
        for rows in blocks(n, 1_000):
            some = {name: np.asarray(lengths)[rows] for name, lengths in (sizes or {}).items()}
            encoded = self.network.encode({name: values[rows] for name, values in data.items()}, some)
            summary = self.network.summarize(encoded).double().cpu()
            parts.append(torch.cat([summary, self._shape(encoded)], 1).numpy())
        return np.nan_to_num(np.concatenate(parts), posinf=1e30, neginf=-1e30)
