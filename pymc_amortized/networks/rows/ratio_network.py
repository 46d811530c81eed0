r"""The log ratio of a row as a torch module, trained by contrastive estimation.

NRE-C (Miller, Weniger & Forré 2022, arXiv 2210.06170): a row comes with :math:`K` sets of parameters. Either it was
drawn with one of them, or, with probability :math:`1 / (1 + \gamma)`, with none. The classifier that says which

.. math:: q(k \mid \theta_{1 \dots K}, y) = \frac{\gamma\, e^{f(\theta_k, y)}}{K + \gamma \sum_j e^{f(\theta_j, y)}},
    \qquad q(0 \mid \theta_{1 \dots K}, y) = \frac{K}{K + \gamma \sum_j e^{f(\theta_j, y)}}

is best where :math:`f(\theta, y) = \log p(y \mid \theta) - \log p(y)`: the class of none is what makes the ratio
normalized, which it is up to a function of :math:`y` without it.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pymc_amortized.networks.rows.row_network import TORCH, RowWeights
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.ratio import log_ratio, shapes
from pymc_amortized.row_density.row_layout import Layout

__all__ = ["RatioNetwork"]


class RatioNetwork(RowWeights):
    """The log ratio of a row.

    Parameters
    ----------
    layout : Layout
    size : RowSize
    """

    def __init__(self, layout: Layout, size: RowSize) -> None:
        super().__init__(layout, size, [shapes(layout, size)])

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
        # the paper finds more sets of parameters better, and 10 to 100 worth their time
        k = min(16, n - 1)
        if k < 1:
            raise ValueError("a ratio needs at least two rows in a batch")
        rows = torch.arange(n, device=f.device)
        shared = torch.cat([(rows + j) % n for j in range(k + 1)])
        logits = log_ratio(TORCH, self.size, self.weights_of(0), f, g.repeat(1, k + 1), shared).view(k + 1, n)
        gamma = 1.0  # odds of any against none: the paper's default, at which its results are best or close to it
        drawn = math.log(gamma) + logits[0] - _log_total(logits[:k], gamma)
        none = math.log(k) - _log_total(logits[1:], gamma)
        return -(gamma * drawn + none).mean() / (1 + gamma)


def _log_total(logits: Tensor, gamma: float) -> Tensor:
    """``log(K + gamma * sum(exp(logits)))`` over the first axis, of length K."""
    constant = torch.full_like(logits[:1], math.log(len(logits)))
    return torch.cat([constant, logits + math.log(gamma)]).logsumexp(0)
