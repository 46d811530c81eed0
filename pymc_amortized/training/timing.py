"""How long a training step takes, to plan by."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pymc_amortized.training.device import torch_threads

TRIED = 4


def fastest_step(
    network: nn.Module, z: Tensor, encoded: Mapping[str, Tensor], threads: int | None = None
) -> tuple[float, int]:
    """Time a loss with its gradient on a batch, on one thread and on all that torch may use.

    Threads wait for each other at every operation: on a machine that does other work besides, two can be ten
    times slower than one.

    Parameters
    ----------
    network : nn.Module
        With a method ``loss(z, encoded)``; it stays as it is.
    z : Tensor
        (batch, dim)
    encoded : mapping
        Named tensors (batch, ...).
    threads : int, optional
        The only number of threads to try.

    Returns
    -------
    seconds : float
    threads : int
        The faster number of threads.
    """
    allowed = torch.get_num_threads()
    if z.device.type != "cpu":
        return _seconds(network, z, encoded), allowed
    timed = []
    for number in [threads] if threads else sorted({1, allowed}):
        with torch_threads(number):
            timed.append((_seconds(network, z, encoded), number))
    return min(timed)


def _seconds(network: nn.Module, z: Tensor, encoded: Mapping[str, Tensor]) -> float:
    """Median of a few trials, after one that does not count."""
    weights = [p for p in network.parameters() if p.requires_grad]
    seconds = []
    for _ in range(TRIED):
        start = time.perf_counter()
        with torch.enable_grad():
            loss = network.loss(z, encoded)  # type: ignore[operator]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        float(sum(g.sum() for g in gradients if g is not None))  # waits for the device
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[1]
