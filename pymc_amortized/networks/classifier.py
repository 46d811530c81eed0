r"""The classifier network: from which of several models data come.

With equal numbers of simulations of each of K models, the minimum of the cross-entropy

.. math:: -\log \frac{e^{f_m(x)}}{\sum_k e^{f_k(x)}}

is at :math:`f_m(x) - f_k(x) = \log p(x \mid m) - \log p(x \mid k)`: differences of logits are log Bayes factors
(Radev et al. 2021, arXiv 2004.10629; Elsemüller et al. 2024, arXiv 2301.11873). Data are encoded and summarized as for
posteriors. Logits begin at the multinomial logistic regression on statistics and further terms, and the summary network
adds to these what is not linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.choices import SUMMARIES, SummaryChoice, choose_summary, describe, read_summary
from pymc_amortized.networks.encode import encode, encode_in_blocks
from pymc_amortized.networks.encoding.encoder import DataEncoder, Sizes
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.networks.summary.branch import Options
from pymc_amortized.networks.summary.layers import Residual
from pymc_amortized.networks.summary.summary_network import STATISTICS, SummaryNetwork
from pymc_amortized.networks.terms import TERMS, Terms
from pymc_amortized.numerics.blocks import blocks

__all__ = ["ClassifierNetwork"]


class Head(nn.Module):
    """Logits of a user's summary."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear, self.residual = nn.Linear(width, classes), Residual(width, 64, 1, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, width) to (batch, classes)."""
        return self.linear(features) + self.residual(features)


class ClassifierNetwork(nn.Module):
    """Encoder, summary network, and logits of the models.

    Use :meth:`build` or :meth:`from_description`.
    """

    def __init__(
        self,
        encoder: DataEncoder,
        summary: nn.Module,
        *,
        width: int,
        classes: int,
        dim: int,
        summary_options: Options | None,
    ) -> None:
        super().__init__()
        self.encoder, self.summary = encoder, summary
        self.width, self.classes, self.dim = width, classes, dim
        self.summary_options = summary_options
        self.head: Head | Terms
        if isinstance(summary, SummaryNetwork):
            self.head = Terms(summary, classes)
            for weights in summary.linear.parameters():  # the head has the same terms, in other coordinates
                nn.init.zeros_(weights).requires_grad_(False)
        else:
            self.head = Head(width, classes)

    @classmethod
    def build(
        cls,
        layout: DataLayout,
        label: np.ndarray,
        data: Mapping[str, np.ndarray],
        *,
        theta: np.ndarray,
        among: np.ndarray,
        sizes: Sizes | None = None,
        summary: SummaryChoice = "auto",
    ) -> ClassifierNetwork:
        """Choose and start the networks.

        Parameters
        ----------
        layout : DataLayout
            The data arrays and their axes.
        label : ndarray (n,)
            Number of the model that each data set was simulated from.
        data : mapping of str to ndarray
            The data, (n, *shape) each.
        theta : ndarray (m, dim)
            Parameters of the largest of the models, and
        among : ndarray (m,)
            which of the data sets were simulated with them: what moves with these is told from noise.
        sizes, summary
            As in :meth:`PosteriorNetwork.build`.
        """
        classes, dim = int(label.max()) + 1, theta.shape[1]
        encoder = DataEncoder.fit(layout, data, sizes)
        encoded = encode_in_blocks(encoder, data, sizes)
        module, width, options = choose_summary(summary, encoder, dim, encoded, features=classes)
        network = cls(encoder, module, width=width, classes=classes, dim=dim, summary_options=options)
        if options is not None:
            network._start(torch.as_tensor(label, dtype=torch.long), encoded, theta, torch.as_tensor(among))
        return network.float()

    def _start(self, label: Tensor, encoded: dict[str, Tensor], theta: np.ndarray, among: Tensor) -> None:
        """Learn the statistics' scales, and begin at the logistic regression on the statistics."""
        summary = self.summary
        assert isinstance(summary, SummaryNetwork)
        z, _ = ParameterStandardizer.fit(theta)(torch.as_tensor(theta))
        summary.fit({name: values[among] for name, values in encoded.items()}, z)
        summary.rescale(encoded)
        assert isinstance(self.head, Terms)
        self.head.start(summary.statistics(encoded), encoded, label)

    @property
    def device(self) -> torch.device:
        """Where the networks live; statistics stay on the CPU."""
        return next(self.parameters()).device

    def prepare(
        self,
        targets: np.ndarray,
        data: Mapping[str, np.ndarray],
        device: torch.device | str | None = None,
        *,
        sizes: Sizes | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """From arrays, what :meth:`loss` takes: probabilities of models (n, classes) and encoded data, float32."""
        place = device or self.device
        z = torch.as_tensor(targets, dtype=torch.float32)
        return z.to(place), encode_in_blocks(self.encoder, data, sizes, place)

    def measured(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add to prepared data what no training changes: statistics and terms of a built-in summary."""
        if not isinstance(self.summary, SummaryNetwork) or not isinstance(self.head, Terms):
            return encoded
        known = self.summary.measured(encoded)
        return known | {TERMS: self.head.measured(self.summary.standardize(known[STATISTICS]), known)}

    def loss(self, z: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of probabilities z (batch, classes), given prepared data; a scalar."""
        return nn.functional.cross_entropy(self(encoded), z)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Logits (batch, classes) of prepared data."""
        return self._with_statistics(encoded)[0]

    def _with_statistics(self, encoded: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Logits (batch, classes), and a built-in summary's statistics (batch, statistics)."""
        if not isinstance(self.head, Terms):
            return self.head(self.summary(encoded)), None
        assert isinstance(self.summary, SummaryNetwork)
        rest, t = self.summary.with_statistics(encoded)
        return self.head(t, encoded) + rest, t

    def encode(self, data: Mapping[str, np.ndarray | Tensor], sizes: Sizes | None = None) -> dict[str, Tensor]:
        """Raw data (batch, *shape) -> what :meth:`summarize` takes, on the CPU."""
        return encode(self.encoder, data, sizes)

    @property
    def features(self) -> int:
        """Width of :meth:`summarize`."""
        return self.width + self._statistics

    @property
    def _statistics(self) -> int:
        """Statistics among the features: what is the same in all models is not learned, but may be new."""
        if not isinstance(self.summary, SummaryNetwork):
            return 0
        width = self.summary.linear.in_features
        return width if width <= 512 else 0

    def summarize(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Encoded data -> features (batch, features) that data sets are compared with simulations by."""
        placed = {name: values.to(self.device) for name, values in encoded.items()}
        if not isinstance(self.head, Terms):
            return self.summary(placed)
        logits, t = self._with_statistics(placed)
        return torch.cat([logits, t], -1) if t is not None and self._statistics else logits

    @torch.inference_mode()
    def logits(self, data: Mapping[str, np.ndarray], sizes: Sizes | None = None) -> np.ndarray:
        """Raw data (n, *shape) -> logits (n, classes), float64."""
        parts = []
        for rows in blocks(len(next(iter(data.values()))), 1_000):
            some = {name: np.asarray(lengths)[rows] for name, lengths in (sizes or {}).items()}
            encoded = self.encode({name: values[rows] for name, values in data.items()}, some)
            logits = self({name: values.to(self.device) for name, values in encoded.items()})
            parts.append(logits.double().cpu().numpy())
        return np.concatenate(parts)

    def description(self) -> dict[str, Any]:
        """All that is not a weight or buffer, as JSON; a user's own module is named "user"."""
        return {
            "width": self.width,
            "classes": self.classes,
            "dim": self.dim,
            "encoder": self.encoder.description(),
            "summary": describe(self.summary_options, SUMMARIES),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any], *, summary: nn.Module | None = None) -> ClassifierNetwork:
        """Build the network whose weights then come by ``load_state_dict``."""
        encoder = DataEncoder.from_description(description["encoder"])
        dim = int(description["dim"])
        module, options = read_summary(description["summary"], encoder, dim, summary)
        return cls(
            encoder,
            module,
            width=int(description["width"]),
            classes=int(description["classes"]),
            dim=dim,
            summary_options=options,
        ).float()
