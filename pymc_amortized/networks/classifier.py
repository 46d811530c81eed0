r"""The classifier network: from which of several models data come.

With equal numbers of simulations of each of K models, the minimum of the cross-entropy

.. math:: -\log \frac{e^{f_m(x)}}{\sum_k e^{f_k(x)}}

is at :math:`f_m(x) - f_k(x) = \log p(x \mid m) - \log p(x \mid k)`: differences of logits are log Bayes factors
(Radev et al. 2021, arXiv 2004.10629; Elsemüller et al. 2024, arXiv 2301.11873). Data are encoded and summarized as for
posteriors.

Log likelihood ratios of the commonest models are quadratic in statistics t. Where there are few of these, logits
therefore see products of two beside what the summary network makes of them, also times the number of rows, where that
differs, and begin at the multinomial logistic regression on all of these.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.choices import (
    SUMMARIES,
    SummaryChoice,
    describe,
    dry_run,
    from_registry,
    make_summary,
    summary_options,
)
from pymc_amortized.networks.encoding import DataEncoder, Sizes, mask_name
from pymc_amortized.networks.layout import DataLayout
from pymc_amortized.networks.network import encoded_in_blocks, tensors_of
from pymc_amortized.networks.standardizer import ParameterStandardizer
from pymc_amortized.networks.statistics import squash
from pymc_amortized.networks.summary import Options, SummaryNetwork
from pymc_amortized.networks.summary.layers import Residual, Standardize

__all__ = ["ClassifierNetwork"]

HEAD = 64  # width of the network that turns a user's summary into logits
AT_ONCE = 1_000  # data sets
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # penalties of the regression that the network starts at, per simulation
ITERATIONS = 100  # of that regression; it need not converge
WIDEST = 512  # statistics up to which they serve as features for novelty themselves
LIMIT = 4.0  # scales beyond which products count logarithmically: they have heavy tails, which decide little
PRODUCTS_UP_TO = 64  # of more, the noise of learning their weights costs more than they tell (measured: four times)


class Products(nn.Module):
    """Products of two of few statistics (batch, statistics), and all of these times the lengths of sized axes."""

    pairs: Tensor

    def __init__(self, statistics: int, sized: tuple[str, ...]) -> None:
        super().__init__()
        self.sized = sized
        self.register_buffer("pairs", torch.triu_indices(statistics, statistics), persistent=False)
        self.width = products(statistics, len(sized))
        self.standardize = Standardize(self.width)

    def raw(self, t: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """Products (batch, width), on any scale."""
        found = t[:, self.pairs[0]] * t[:, self.pairs[1]]
        lengths = [encoded[mask_name(axis)].sum(1, keepdim=True) for axis in self.sized]
        return torch.cat([found, *(part for n in lengths for part in (n, n * t, n * found))], -1)

    def forward(self, t: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """Products (batch, width) of location 0 and scale 1 over simulations."""
        return squash(self.standardize(self.raw(t, encoded)), LIMIT)


def products(statistics: int, sized: int) -> int:
    """Width of :class:`Products`."""
    pairs = statistics * (statistics + 1) // 2
    return pairs + sized * (1 + statistics + pairs)


class Head(nn.Module):
    """Logits of a user's summary."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear, self.residual = nn.Linear(width, classes), Residual(width, HEAD, 1, classes)

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
        self.products: Products | None = None
        self.head: nn.Module | None = None
        if not isinstance(summary, SummaryNetwork):
            self.head = Head(width, classes)  # a built-in summary gives logits itself
        elif products(summary.linear.in_features, len(encoder.layout.sized)) <= PRODUCTS_UP_TO:
            self.products = Products(summary.linear.in_features, encoder.layout.sized)
            self.head = nn.Linear(self.products.width, classes, bias=False)

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
        options = summary_options(summary, encoder.layout, dim)
        encoded = encoded_in_blocks(encoder, data, sizes, None)
        if options is not None:
            options, width = replace(options, features=classes), classes
            module: nn.Module = make_summary(options, encoder, dim)
        else:
            assert isinstance(summary, nn.Module)
            module = copy.deepcopy(summary)  # the user's stays as it is
            width = dry_run(module, encoded)
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
        t = summary.statistics(encoded)
        if self.products is None:
            summary.start_at(*_logistic_regression(t, label, self.classes))
            return
        assert isinstance(self.head, nn.Linear)
        with torch.no_grad():
            self.products.standardize.fit(self.products.raw(t, encoded))
            terms = torch.cat([t, self.products(t, encoded)], -1)
        weight, bias = _logistic_regression(terms, label, self.classes)
        summary.start_at(weight[:, : t.shape[1]], bias)
        with torch.no_grad():
            self.head.weight.copy_(weight[:, t.shape[1] :])

    @property
    def device(self) -> torch.device:
        """Where the networks live; statistics stay on the CPU."""
        return next(self.parameters()).device

    def prepare(
        self,
        label: np.ndarray,
        data: Mapping[str, np.ndarray],
        device: torch.device | str | None = None,
        *,
        sizes: Sizes | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """From arrays, what :meth:`loss` takes: labels (n, 1) and encoded data, float32."""
        place = device or self.device
        z = torch.as_tensor(label, dtype=torch.float32).reshape(-1, 1)
        return z.to(place), encoded_in_blocks(self.encoder, data, sizes, place)

    def loss(self, z: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of labels z (batch, 1), given prepared data; a scalar."""
        return nn.functional.cross_entropy(self(encoded), z[:, 0].long())

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Logits (batch, classes) of prepared data."""
        if self.head is None:
            return self.summary(encoded)
        if self.products is None:
            return self.head(self.summary(encoded))
        assert isinstance(self.summary, SummaryNetwork)
        logits, t = self.summary.with_statistics(encoded)
        return logits + self.head(self.products(t, encoded))

    def encode(self, data: Mapping[str, np.ndarray | Tensor], sizes: Sizes | None = None) -> dict[str, Tensor]:
        """Raw data (batch, *shape) -> what :meth:`summarize` takes, on the CPU."""
        return self.encoder(tensors_of(self.encoder, data), sizes)

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
        return width if width <= WIDEST else 0

    def summarize(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Encoded data -> features (batch, features) that data sets are compared with simulations by."""
        placed = {name: values.to(self.device) for name, values in encoded.items()}
        if not self._statistics:
            return self.summary(placed)
        assert isinstance(self.summary, SummaryNetwork)
        return torch.cat(self.summary.with_statistics(placed), -1)

    @torch.inference_mode()
    def logits(self, data: Mapping[str, np.ndarray], sizes: Sizes | None = None) -> np.ndarray:
        """Raw data (n, *shape) -> logits (n, classes), float64."""
        parts = []
        for rows in (slice(start, start + AT_ONCE) for start in range(0, len(next(iter(data.values()))), AT_ONCE)):
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
        options = from_registry(description["summary"], SUMMARIES, "summary", summary)
        dim = int(description["dim"])
        module = make_summary(options, encoder, dim) if isinstance(options, Options) else copy.deepcopy(summary)
        assert module is not None
        return cls(
            encoder,
            module,
            width=int(description["width"]),
            classes=int(description["classes"]),
            dim=dim,
            summary_options=options if isinstance(options, Options) else None,
        ).float()


def _logistic_regression(t: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on terms t (n, terms), the penalty chosen on a held-out fifth: weight, bias."""
    t = t.detach().double()
    order = torch.randperm(len(t))
    held, rest = order[: len(t) // 5], order[len(t) // 5 :]

    def score(ridge: float) -> float:
        weight, bias = _regressed(t[rest], label[rest], classes, ridge)
        return float(nn.functional.cross_entropy(t[held] @ weight.mT + bias, label[held]))

    weight, bias = _regressed(t, label, classes, min(RIDGES, key=score))
    return weight.float(), bias.float()


def _regressed(t: Tensor, label: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        weight = torch.zeros(classes, t.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> float:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(t @ weight.mT + bias, label) + ridge * weight.square().sum()
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)
    return weight.detach(), bias.detach()
