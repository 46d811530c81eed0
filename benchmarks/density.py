"""The coupling spline of this project beside zuko's: training steps and draws.

Both have the same number of layers, hidden units and bins; zuko's ``NSF(passes=2, randperm=True)``
is its coupling spline flow. Ratios come from one run; each time is the best of several.

Run: python benchmarks/density.py [--dim 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
import zuko
from torch import Tensor, nn

from pymc_amortized.networks import CouplingSpline, Spline

FEATURES = 32


def best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def stepper(
    parameters: Iterator[nn.Parameter], log_prob: Callable[[Tensor, Tensor], Tensor], dim: int
) -> Callable[[], None]:
    """Ten training steps on a batch of 256."""
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=5e-4, fused=True)
    z, context = torch.randn(256, dim), torch.randn(256, FEATURES)

    def steps() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            (-log_prob(z, context).mean()).backward()
            nn.utils.clip_grad_norm_(trained, 5.0, foreach=True)
            optimizer.step()

    return steps


def report(what: str, unit: str, own: float, library: float) -> None:
    """One line of the table."""
    print(f"{what:44s} {own:8.2f} {unit:3s} {library:8.2f} {unit:3s}   {library / own:5.1f}x")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=5, help="number of parameters")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    dim = arguments.dim
    own = CouplingSpline(dim, FEATURES, Spline(hidden=64, bins=8))
    library = zuko.flows.NSF(
        dim,
        FEATURES,
        transforms=own.layers,
        hidden_features=(64, 64),
        bins=8,
        passes=2,
        randperm=True,
    )
    threads = arguments.threads
    print(f"{dim} parameters, {own.layers} layers, {threads} threads, torch {torch.__version__}")
    print(f"{'':44s} {'this project':>12s} {'zuko':>12s}    ratio")

    step = best(stepper(own.parameters(), own.log_prob, dim), 8)
    peer = best(stepper(library.parameters(), lambda z, c: library(c).log_prob(z), dim), 8)
    report("training step, batch 256", "ms", 100 * step, 100 * peer)

    with torch.no_grad():
        context = torch.randn(1000, FEATURES)
        draw = best(lambda: own.sample(100, context), 3)
        peer = best(lambda: library(context).rsample_and_log_prob((100,)), 2)
        report("1,000 data sets x 100 draws, densities", "s", draw, peer)
        single = context[:1]
        draw = best(lambda: own.sample(4000, single), 8)
        peer = best(lambda: library(single).rsample_and_log_prob((4000,)), 4)
        report("1 data set x 4,000 draws, densities", "ms", 1e3 * draw, 1e3 * peer)


if __name__ == "__main__":
    main()
