r"""What the evidence of linear models is made of, for classifiers of rows.

With n rows, predictors X that include an intercept, and a normal prior of which the precision is k times that of the
noise, the log evidence of a linear model of y is (O'Hagan & Forster 2004, Bayesian Inference, chapter 11)

.. math:: e = \tfrac12 y^\top X (X^\top X + k)^{-1} X^\top y, \qquad d = \tfrac12 \log |X^\top X / k + 1|,

as e - d where the noise is known, and as :math:`-\tfrac{n}{2} \log(y^\top y - 2e) - d`, nearly, where it is not. These
parts are given for every channel that is observed, for an intercept alone, for all other channels and for all but one
of them, and for two k: what log Bayes factors of models with and without a covariate are sums of, whatever the size,
and nearly so where noise is not normal. Those of larger models are given as differences from the intercept's, which
are the ones that tell models apart, and may be small beside the parts themselves.
"""

import torch
from torch import Tensor

from pymc_amortized.networks.summary.join import Join
from pymc_amortized.networks.summary.layers import GUARD

__all__ = ["LinearModels"]


class LinearModels:
    """Parts of the log evidence of linear models between the channels of joined rows.

    Parameters
    ----------
    join : Join
        Whose rows these are; of two channels or more.
    """

    def __init__(self, join: Join) -> None:
        self.join = join
        given = [a.given for a, size in zip(join.arrays, join.sizes, strict=True) for _ in range(size)]
        self.responses = [i for i, known in enumerate(given) if not known]
        subsets = [self._subsets(i, join.channels) for i in self.responses]
        self.of = [i for i, some in zip(self.responses, subsets, strict=True) for _ in some]
        self.masks = torch.tensor([mask for some in subsets for mask in some])
        self.each = len(subsets[0]) if subsets else 0
        self.width = 2 * join.varies + len(self.responses) * (2 + 3 * self.each * len(GUARD.shrinkage))

    @staticmethod
    def _subsets(response: int, channels: int) -> list[list[float]]:
        """Which of the intercept and the channels predict: the intercept, all, and all but one."""
        others = [i for i in range(channels) if i != response]
        sets = [[], others, *([j for j in others if j != left] for left in others if len(others) > 1)]
        return [[1.0, *(float(i in chosen) for i in range(channels))] for chosen in sets]

    def __call__(self, encoded: dict[str, Tensor]) -> Tensor:
        """Encoded data -> parts (batch, width), on any scale, of the rows that lack nothing."""
        rows = self.join(encoded)
        x = torch.cat([torch.ones_like(rows.values[..., :1]), rows.values], -1)
        if rows.weights is not None:
            x = x * rows.weights.amin(-1, keepdim=True)
        gram = x.mT @ x
        n = gram[:, 0, :1]
        own = gram.diagonal(dim1=-2, dim2=-1)[:, [1 + i for i in self.responses]]
        parts = [own, n / 2 * torch.log(own + GUARD.ridge)]
        if self.join.varies:
            parts += [n, torch.log(n + 1)]
        for k in GUARD.shrinkage:
            parts += self._at(gram, n, k)
        return torch.cat(parts, -1)

    def _at(self, gram: Tensor, n: Tensor, k: float) -> list[Tensor]:
        """Parts of all models at one precision: (batch, responses * subsets) each."""
        masks = self.masks.to(gram)
        response = torch.tensor([1 + i for i in self.of], device=gram.device)
        chosen = gram[:, None] * masks[:, :, None] * masks[:, None]
        factor, _ = torch.linalg.cholesky_ex(chosen + k * torch.eye(gram.shape[-1], dtype=gram.dtype).to(gram))
        product = gram[:, response] * masks
        explained = torch.linalg.solve_triangular(factor, product[..., None], upper=False)[..., 0].square().sum(-1) / 2
        volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - gram.shape[-1] / 2 * torch.log(factor.new_tensor(k))
        own = gram.diagonal(dim1=-2, dim2=-1)[:, response]
        left = n / 2 * torch.log((own - 2 * explained).clamp_min(0.0) + GUARD.ridge * (own + 1))
        return [self._beside_first(part) for part in (explained, volume, left)]

    def _beside_first(self, part: Tensor) -> Tensor:
        """The first subset of every response, and what the others differ by."""
        by_response = part.unflatten(1, (len(self.responses), self.each))
        first, rest = by_response[..., :1], by_response[..., 1:]
        return torch.cat([first, rest - first], -1).flatten(1)
