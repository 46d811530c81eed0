"""The summary networks: training steps and draws, by rows, complete and padded.

Padded data sets have between half of the rows and all of them. The ratio is of the padded step to the complete one:
what masks cost.

Run: python benchmarks/summary.py [--threads 2] [--rows 10 100 1000] [--networks set grouped ...]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from pymc_amortized.networks import ArrayLayout, AxisLayout, DataLayout, PosteriorNetwork

BATCH = 256
DIM = 5
GROUPS = 10
DRAWS, DATA_SETS = 100, 100
NETWORKS = ("flat", "set", "set_transformer", "sequence", "transformer", "grid", "grouped")


def best(work: Callable[[], object], seconds: float = 1.0) -> float:
    """Seconds of the fastest of several runs, after one to warm up."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def layout(name: str, rows: int, sized: bool) -> DataLayout:
    """Rows of one response and two covariates; a square of about as many cells for the grid."""
    if name == "grid":
        side = max(round(math.sqrt(rows)), 3)
        axes = (AxisLayout("down", side, "sequence", sized), AxisLayout("across", side, "sequence"))
        return DataLayout((ArrayLayout("y", (side, side), "real", ("down", "across")),), axes)
    kind = "sequence" if name in ("sequence", "transformer") else "set"
    arrays = [ArrayLayout("y", (rows,), "real", ("row",)), ArrayLayout("x", (rows, 2), "real", ("row", None))]
    index = None
    if name == "grouped":
        index = "group"
        arrays.append(ArrayLayout("group", (rows,), "count", ("row",)))
    axis = AxisLayout("row", rows, kind, sized, index, GROUPS if index else 0)
    return DataLayout(tuple(arrays), (axis,))


def simulate(data_layout: DataLayout, n: int) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Normal parameters and data that depend on the first of them."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(n, DIM))
    data: dict[str, np.ndarray] = {}
    for array in data_layout.arrays:
        shape = (n, *array.shape)
        if array.kind == "count":
            data[array.name] = rng.integers(0, GROUPS, shape)
        else:
            data[array.name] = theta[:, 0].reshape(-1, *[1] * len(array.shape)) + rng.normal(size=shape)
    sizes = {a.name: rng.integers(-(-a.length // 2), a.length + 1, n) for a in data_layout.axes if a.sized}
    return theta, data, sizes


def measure(name: str, rows: int, sized: bool) -> tuple[float, float]:
    """Milliseconds of a training step, and draws per second with their densities."""
    data_layout = layout(name, rows, sized)
    theta, data, sizes = simulate(data_layout, 512)
    network = PosteriorNetwork.build(data_layout, theta, data, sizes=sizes, summary=name)
    z, encoded = network.prepare(theta[:BATCH], {k: v[:BATCH] for k, v in data.items()}, sizes=cut(sizes, BATCH))
    trained = list(network.parameters())
    optimizer = torch.optim.AdamW(trained, lr=5e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        network.loss(z, encoded).backward()
        nn.utils.clip_grad_norm_(trained, 5.0, foreach=True)
        optimizer.step()

    some = {k: v[:DATA_SETS] for k, v in data.items()}
    with torch.no_grad():
        draw = best(lambda: network.sample(DRAWS, some, sizes=cut(sizes, DATA_SETS)), 0.3)
    return 1e3 * best(step), DRAWS * DATA_SETS / draw


def cut(sizes: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Sizes of the first data sets."""
    return {name: size[:n] for name, size in sizes.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{DIM} parameters, batch {BATCH}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"draws: {DATA_SETS} data sets x {DRAWS}, with densities")
    print(f"{'':24s} {'step, complete':>16s} {'padded':>9s} {'ratio':>6s}   {'draws/s, complete':>18s} {'padded':>10s}")
    for name in arguments.networks:
        for rows in arguments.rows:
            (complete, draws), (padded, padded_draws) = (measure(name, rows, sized) for sized in (False, True))
            times = f"{complete:13.1f} ms {padded:7.1f} ms {padded / complete:5.1f}x"
            print(f"{name:16s}{rows:6d} {times:>36s}   {draws:18,.0f} {padded_draws:10,.0f}", flush=True)


if __name__ == "__main__":
    main()
