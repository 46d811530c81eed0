r"""The log ratio of a row as a torch module, trained by contrastive estimation.

NRE-C (Miller, Weniger & Forré 2022, arXiv 2210.06170): a row comes with :math:`K` sets of parameters. Either it was
drawn with one of them, or, with probability :math:`1 / (1 + \gamma)`, with none. The classifier that says which

.. math:: q(k \mid \theta_{1 \dots K}, y) = \frac{\gamma\, e^{f(\theta_k, y)}}{K + \gamma \sum_j e^{f(\theta_j, y)}},
    \qquad q(0 \mid \theta_{1 \dots K}, y) = \frac{K}{K + \gamma \sum_j e^{f(\theta_j, y)}}

is best where :math:`f(\theta, y) = \log p(y \mid \theta) - \log p(y)`: the class of none is what makes the ratio
normalized, which it is up to a function of :math:`y` without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.rows.row_network import TORCH
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.columns import Layout
from pymc_amortized.row_density.ratio import log_ratio, shapes

__all__ = ["RatioNetwork"]

CONTRASTS = 16
"""Sets of parameters that a row is shown. The paper finds larger ones better, and 10 to 100 worth their time."""
GAMMA = 1.0
"""Odds of any against none: the paper's default, at which its results are best or close to it."""


class RatioNetwork(nn.Module):
    """The log ratio of a row.

    Parameters
    ----------
    layout : Layout
    size : RowSize
    """

    def __init__(self, layout: Layout, size: RowSize) -> None:
        super().__init__()
        self.layout, self.size = layout, size
        weights = nn.ParameterDict()
        for name, shape in shapes(layout, size).items():
            value = torch.zeros(shape)
            if name in ("enter", "given") or (name.startswith("middle") and len(shape) == 2):
                nn.init.normal_(value, std=shape[1] ** -0.5)
            weights[name] = nn.Parameter(value)
        nn.init.normal_(weights["enter_bias"], std=0.5)
        self.weights = nn.ModuleList([weights])

    def loss(self, z: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """Mean negative log probability of the right classes; a scalar.

        Parameters
        ----------
        z : Tensor
            (batch, 1), not used.
        encoded : mapping
            "parameters" (batch, inputs) and "features" (batch, numbers) of rows in random order: the parameters of
            the following rows are those that a row was not drawn with.
        """
        f, g = encoded["parameters"].mT, encoded["features"].mT
        n = f.shape[1]
        k = min(CONTRASTS, n - 1)
        if k < 1:
            raise ValueError("a ratio needs at least two rows in a batch")
        rows = torch.arange(n, device=f.device)
        shared = torch.cat([(rows + j) % n for j in range(k + 1)])
        weights = dict(self.weights[0].items())  # type: ignore[operator]
        logits = log_ratio(TORCH, self.size, weights, f, g.repeat(1, k + 1), shared).view(k + 1, n)
        drawn = math.log(GAMMA) + logits[0] - _log_total(logits[:k], k)
        none = math.log(k) - _log_total(logits[1:], k)
        return -(GAMMA * drawn + none).mean() / (1 + GAMMA)

    def log_ratio(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Log ratio (batch,) of prepared rows."""
        weights = dict(self.weights[0].items())  # type: ignore[operator]
        return log_ratio(TORCH, self.size, weights, encoded["parameters"].mT, encoded["features"].mT)

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """The weights in float64, for NumPy and PyTensor."""
        weights: Any = self.weights[0]
        return [{name: value.detach().cpu().double().numpy() for name, value in weights.items()}]


def _log_total(logits: Tensor, k: int) -> Tensor:
    """``log(K + gamma * sum(exp(logits)))`` over the first axis."""
    constant = torch.full_like(logits[:1], math.log(k))
    return torch.cat([constant, logits + math.log(GAMMA)]).logsumexp(0)
