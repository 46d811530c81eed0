"""Judging weights on held-out simulations, and keeping the best."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.ranks import agree
from pymc_amortized.training.settling import NEGLIGIBLE, Evaluation
from pymc_amortized.training.source import Batch, Reduce
from pymc_amortized.training.state import group, prefixed
from pymc_amortized.training.weights import FlatWeights, scalar_loss


class Judge:
    """Computes held-out losses and keeps the weights with the lowest.

    Attributes
    ----------
    evaluations : list of Evaluation
        Of the present cycle.
    parameters : int
        How many the network infers.
    negligible : float
        How much of the loss, for each of them, is not worth more training.
    best : Tensor
        The best weights so far, the initial ones before there are any.
    best_loss : float
        Their held-out loss, inf before there is any.
    """

    def __init__(self, network: nn.Module, weights: FlatWeights, held_out: Batch, batch_size: int) -> None:
        self.network, self.weights = network, weights
        self.chunks, self.sizes = _chunked(held_out, batch_size)
        self.parameters, self.negligible = held_out[0].shape[-1], getattr(network, "negligible", NEGLIGIBLE)
        self.evaluations: list[Evaluation] = []
        self.best, self.best_loss = weights.copy(), math.inf
        self.best_buffers = weights.copied_buffers()

    @torch.no_grad()
    def losses(self, vector: Tensor, buffers: Mapping[str, Tensor] | None = None) -> np.ndarray:
        """Return the held-out loss of these weights, chunk by chunk."""
        self.network.eval()
        try:
            with self.weights.replaced(vector, buffers):
                losses = [scalar_loss(self.network, chunk) for chunk in self.chunks]
        finally:
            self.network.train()
        return agree(torch.stack(losses).cpu().numpy().astype(np.float64))

    def evaluate(self, fraction: float, vector: Tensor) -> bool:
        """Judge these weights at this share of the training; return whether they are the best."""
        evaluation = Evaluation(fraction, self.losses(vector), self.sizes)
        self.evaluations.append(evaluation)
        if evaluation.loss >= self.best_loss:
            return False
        self.keep(vector, evaluation.loss)
        return True

    @torch.no_grad()
    def reduce(self, reduce: Reduce) -> None:
        """Reduce the held-out simulations to what is still needed of them."""
        self.chunks = [(z, reduce(encoded)) for z, encoded in self.chunks]

    def keep(self, vector: Tensor, loss: float) -> None:
        """Keep these weights and the present buffers as the best."""
        self.best_loss = loss
        self.best.copy_(vector)
        self.best_buffers = self.weights.copied_buffers()

    def use_best(self) -> None:
        """Give the network the best weights."""
        self.weights.set(self.best, self.best_buffers)

    def tensors(self) -> dict[str, Tensor]:
        """Return what ``restore`` needs, with ``best_loss``."""
        losses = np.array([e.losses for e in self.evaluations]).reshape(-1, len(self.sizes))
        fractions = np.array([e.fraction for e in self.evaluations], dtype=np.float64)
        return {
            **prefixed("best", {"weights": self.best}),
            **prefixed("best_buffers", self.best_buffers),
            **prefixed("evaluations", {"losses": torch.from_numpy(losses)}),
            **prefixed("evaluations", {"fractions": torch.from_numpy(fractions)}),
        }

    def restore(self, tensors: Mapping[str, Tensor], best_loss: float | None) -> None:
        """Take over the best weights of an earlier training.

        The held-out simulations may be others than they were. Losses are compared on these, so the
        best weights are judged anew, and earlier evaluations count only if that gives what it gave.
        """
        self.best.copy_(tensors["best.weights"])
        for name, value in group(tensors, "best_buffers").items():
            self.best_buffers[name].copy_(value)
        if best_loss is None:
            return
        losses = self.losses(self.best, self.best_buffers)
        self.best_loss = Evaluation(0.0, losses, self.sizes).loss
        earlier = tensors["evaluations.losses"].cpu().numpy()
        if earlier.shape[1:] == losses.shape and math.isclose(self.best_loss, best_loss, rel_tol=1e-5, abs_tol=1e-5):
            fractions = tensors["evaluations.fractions"].tolist()
            self.evaluations = [Evaluation(f, row, self.sizes) for f, row in zip(fractions, earlier, strict=True)]


def _chunked(held_out: Batch, batch_size: int) -> tuple[list[Batch], np.ndarray]:
    """Cut held-out simulations into chunks no larger than a batch; return them and their sizes."""
    z, encoded = held_out
    if len(z) == 0:
        raise ValueError("held_out must hold at least one simulation, got none.")
    count = min(max(8, math.ceil(len(z) / batch_size)), len(z))  # their spread gives the loss's standard error
    parts = torch.arange(len(z), device=z.device).tensor_split(count)
    chunks = [(z[rows], {name: value[rows] for name, value in encoded.items()}) for rows in parts]
    return chunks, np.array([len(rows) for rows in parts], dtype=np.float64)
