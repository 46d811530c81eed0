r"""Terms that log Bayes factors are nearly linear in, in coordinates in which their weights are learned fast.

Log likelihood ratios of the commonest models are quadratic in statistics t. Where there are few of these, terms are
products of two of them beside t, also times the number of rows, where that differs; for rows of several channels, what
the evidence of linear models is made of. Such terms are nearly collinear, and their weights are learned
slowly one by one. With probabilities :math:`p_{ik}` of the regression that the network starts at, its Hessian is nearly
:math:`\sum_i h_i x_i x_i^\top` with :math:`h_i = 1 - \sum_k p_{ik}^2`: terms are given in coordinates in which that is
the identity (Fisher scoring, once), so that data sets that could come from several models decide what counts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pymc_amortized.networks.encoding.layout import mask_name
from pymc_amortized.networks.encoding.robust import squash
from pymc_amortized.networks.linear_models import LinearModels
from pymc_amortized.networks.summary.branch import Branch
from pymc_amortized.networks.summary.layers import Standardize
from pymc_amortized.networks.summary.summary_network import SummaryNetwork

__all__ = ["TERMS", "Terms"]

TERMS = "classifier:terms"
"""Name under which encoded data may hold their terms."""


class Terms(nn.Module):
    """Logits that are linear in terms of the data.

    Parameters
    ----------
    summary : SummaryNetwork
        Whose statistics the terms are made of.
    classes : int
    """

    pairs: Tensor
    center: Tensor
    turn: Tensor

    def __init__(self, summary: SummaryNetwork, classes: int) -> None:
        super().__init__()
        statistics, self.sized = summary.linear.in_features, summary.layout.sized
        # of more, the noise of learning their weights costs more than they tell (measured: four times)
        self.with_products = products(statistics, len(self.sized)) <= 64
        self.models = _linear_models([b for b in summary.branches if isinstance(b, Branch)])
        self.register_buffer("pairs", torch.triu_indices(statistics, statistics), persistent=False)
        self.products = Standardize(products(statistics, len(self.sized)) if self.with_products else 0)
        self.linear_models = Standardize(sum(models.width for models in self.models))
        self.width = statistics + len(self.products.center) + len(self.linear_models.center)
        self.turned = self.width <= 512  # their coordinates are estimated from thousands of simulations
        self.register_buffer("center", torch.zeros(self.width if self.turned else 0))
        self.register_buffer("turn", torch.eye(self.width if self.turned else 0))
        self.linear = nn.Linear(self.width, classes)

    def forward(self, t: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """Statistics (batch, statistics) and the data they are of -> logits (batch, classes)."""
        return self.linear(encoded[TERMS] if TERMS in encoded else self.measured(t, encoded))

    @torch.no_grad()
    def measured(self, t: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """All terms (batch, width) in the coordinates of the weights."""
        x = self._terms(t, encoded)
        return (x - self.center) @ self.turn.mT if self.turned else x

    @torch.no_grad()
    def start(self, t: Tensor, encoded: dict[str, Tensor], label: Tensor) -> None:
        """Learn scales and coordinates, and begin at the logistic regression."""
        if self.with_products:
            self.products.fit(self._products(t, encoded))
        if self.models:
            self.linear_models.fit(self._linear_models(encoded))
        x = self._terms(t, encoded).double()
        weight, bias = _logistic_regression(x, label, self.linear.out_features)
        if self.turned:
            center, factor = _coordinates(x, torch.softmax(x @ weight.mT + bias, -1))
            self.center.copy_(center)
            eye = torch.eye(len(center), dtype=factor.dtype)
            self.turn.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
            weight, bias = weight @ factor, bias + weight @ center
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)

    def _terms(self, t: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """All terms (batch, width), of location 0 and scale 1 over simulations."""
        parts = [t]
        if self.with_products:
            # heavy tails decide little: beyond this they count logarithmically
            parts.append(squash(self.products(self._products(t, encoded)), 4.0))
        if self.models:
            parts.append(self.linear_models(self._linear_models(encoded)))
        return torch.cat(parts, -1)

    def _products(self, t: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """Products, and all of these times the lengths of sized axes, on any scale."""
        found = t[:, self.pairs[0]] * t[:, self.pairs[1]]
        lengths = [encoded[mask_name(axis)].sum(1, keepdim=True) for axis in self.sized]
        return torch.cat([found, *(part for n in lengths for part in (n, n * t, n * found))], -1)

    def _linear_models(self, encoded: dict[str, Tensor]) -> Tensor:
        n, size = len(next(iter(encoded.values()))), 1_024  # data sets whose rows are copied at a time
        pieces = ({k: v[i : i + size] for k, v in encoded.items()} for i in range(0, n, size))
        return torch.cat([torch.cat([models(piece) for models in self.models], -1) for piece in pieces])


def products(statistics: int, sized: int) -> int:
    """Count the products of two of so many statistics, with lengths of sized axes."""
    pairs = statistics * (statistics + 1) // 2
    return pairs + sized * (1 + statistics + pairs)


def _linear_models(branches: Sequence[Branch]) -> list[LinearModels]:
    """Of rows of several channels, no more than are worth their noise: one response beside eight covariates."""
    found: list[LinearModels] = []
    for branch in branches:
        if branch.exchangeable and branch.join.channels > 1:
            models = LinearModels(branch.join)
            if models.responses and models.width + sum(m.width for m in found) <= 64:
                found.append(models)
    return found


def _coordinates(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Center (terms,), and Cholesky factor of the Hessian of a regression on x (n, terms) that gives p (n, classes).

    Where hardly any data set is undecided, the Hessian is that of all: the fewer, the nearer.
    """
    doubt = 1 - p.square().sum(1)
    undecided = doubt.sum().square() / doubt.square().sum().clamp_min(1e-300)
    share = (x.shape[1] / (x.shape[1] + undecided)) ** 2
    weight = (1 - share) * doubt / doubt.sum().clamp_min(1e-300) + share / len(x)
    center = weight @ x / weight.sum()
    hessian = ((x - center) * weight[:, None]).mT @ (x - center)
    return center, torch.linalg.cholesky(hessian + 1e-3 * torch.eye(len(hessian), dtype=x.dtype))


def _logistic_regression(t: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on terms t (n, terms), the penalty chosen on a held-out fifth: weight, bias."""
    t = t.detach().double()
    order = torch.randperm(len(t))
    held, rest = order[: len(t) // 5], order[len(t) // 5 :]

    def score(ridge: float) -> float:
        weight, bias = _regressed(t[rest], label[rest], classes, ridge)
        return float(nn.functional.cross_entropy(t[held] @ weight.mT + bias, label[held]))

    return _regressed(t, label, classes, min((1e-4, 1e-3, 1e-2, 1e-1), key=score))


def _regressed(t: Tensor, label: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        weight = torch.zeros(classes, t.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")  # need not converge

        def closure() -> float:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(t @ weight.mT + bias, label) + ridge * weight.square().sum()
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)
    return weight.detach(), bias.detach()
