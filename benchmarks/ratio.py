"""A learned ratio beside a learned density, where a density is hard: rows on a curve, and densities that jump.

Both are trained as long, on the same model. For data sets of 50 rows the posterior of two parameters with uniform
priors is found on a grid, by the exact density and by what was learned. Shown are, over data sets, the median and the
largest shift of a mean in exact posterior sds, the range of ratios of sds, and the mean distance (Kullback-Leibler, in
nats) of the learned posterior from the exact one.

    python benchmarks/ratio.py [--seconds 120] [--datasets 10] [--only circle parabola edge stairs]
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pymc as pm
from scipy import stats

import pymc_amortized as pma

ROWS = 50
NOISE = 0.03  # beside a radius of 1 to 2
COARSE, FINE, REACH = 201, 25, 6.0  # points of a grid along each parameter; posterior sds to either side


@dataclass(frozen=True)
class Case:
    """A distribution of rows: how to draw it, its exact log density, and the ranges of its two parameters."""

    draw: Callable[..., np.ndarray]
    log_density: Callable[..., np.ndarray]
    ranges: dict[str, tuple[float, float]]
    signature: str = "(),()->()"


def draw_circle(radius, angle, rng=None, size=None):
    """Near a circle, most around an angle."""
    turn = rng.vonmises(angle, 2.0, size=size)
    distance = rng.normal(radius, NOISE, size=size)
    return np.stack([distance * np.cos(turn), distance * np.sin(turn)], -1)


def circle(y, radius, angle):
    distance, turn = np.hypot(y[..., 0], y[..., 1]), np.arctan2(y[..., 1], y[..., 0])
    return stats.norm.logpdf(distance, radius, NOISE) + stats.vonmises.logpdf(turn, 2.0, loc=angle) - np.log(distance)


def draw_parabola(curvature, center, rng=None, size=None):
    """The second number follows from the first, nearly."""
    x = rng.normal(center, 1.0, size=size)
    return np.stack([x, curvature * x**2 + NOISE * rng.normal(size=size)], -1)


def parabola(y, curvature, center):
    x = y[..., 0]
    return stats.norm.logpdf(x, center) + stats.norm.logpdf(y[..., 1], curvature * x**2, NOISE)


def draw_edge(start, mean, rng=None, size=None):
    """Nothing before the start, most right after it."""
    return start + rng.exponential(mean, size=size)


def edge(y, start, mean):
    return np.where(y >= start, -(y - start) / mean - np.log(mean), -np.inf)


def draw_stairs(low, high, rng=None, size=None):
    """Uniform on three steps, whose heights are parameters."""
    u, within = rng.random(size), rng.random(size)
    step = (u > low).astype(int) + (u > low + high)
    return np.choose(step, [within, 1 + 0.5 * within, 1.5 + 2 * within])


def stairs(y, low, high):
    height = np.where(y < 1, low, np.where(y < 1.5, 2 * high, (1 - low - high) / 2))
    return np.where((y >= 0) & (y < 3.5), np.log(height), -np.inf)


PAIR = "(),()->(2)"
CASES = {
    "circle": Case(draw_circle, circle, {"radius": (1, 2), "angle": (-1, 1)}, PAIR),
    "parabola": Case(draw_parabola, parabola, {"curvature": (-1, 1), "center": (-1, 1)}, PAIR),
    "edge": Case(draw_edge, edge, {"start": (0, 2), "mean": (0.5, 2)}),
    "stairs": Case(draw_stairs, stairs, {"low": (0.1, 0.45), "high": (0.1, 0.45)}),
}


def model_of(case: Case) -> pm.Model:
    width = (ROWS, 2) if case.signature == PAIR else (ROWS,)
    with pm.Model() as model:
        parameters = [pm.Uniform(name, *ends) for name, ends in case.ranges.items()]
        pm.CustomDist("y", *parameters, random=case.draw, signature=case.signature, observed=np.ones(width))
    return model


def grid(ends: list[tuple[float, float]], points: int) -> np.ndarray:
    """Middles of cells (points ** 2, 2)."""
    axes = [low + (high - low) * (np.arange(points) + 0.5) / points for low, high in ends]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def posterior(log_density: Callable[..., np.ndarray], y: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Log probabilities of parameters (k, 2), given rows."""
    parts = []
    for some in np.array_split(theta, max(len(theta) * len(y) // 100_000, 1)):
        rows = np.broadcast_to(y, (len(some), *y.shape))
        a, b = (np.repeat(column[:, None], len(y), 1) for column in some.T)
        parts.append(log_density(rows, a, b).sum(1))
    total = np.concatenate(parts)
    return total - np.logaddexp.reduce(total)


def moments(log_p: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = np.exp(log_p)
    mean = p @ theta
    return mean, np.sqrt(p @ (theta - mean) ** 2)


def around(case: Case, y: np.ndarray) -> np.ndarray:
    """A grid where the exact posterior is."""
    ends = list(case.ranges.values())
    for _ in range(3):
        theta = grid(ends, COARSE)
        mean, sd = moments(posterior(case.log_density, y, theta), theta)
        sd = np.maximum(sd, 0.5 * (np.array(ends)[:, 1] - np.array(ends)[:, 0]) / COARSE)
        ends = [
            (max(low, m - REACH * s), min(high, m + REACH * s))
            for (low, high), m, s in zip(case.ranges.values(), mean, sd, strict=True)
        ]
    return grid(ends, FINE)


def compare(name: str, case: Case, seconds: float, count: int) -> None:
    """Train both kinds, and print a line for each."""
    model = model_of(case)
    ys = pma.simulate(model, count, random_seed=5).prior_predictive["y"].values[0]
    grids = [around(case, y) for y in ys]
    exact = [posterior(case.log_density, y, theta) for y, theta in zip(ys, grids, strict=True)]
    for kind in ("density", "ratio"):
        started = time.perf_counter()
        likelihood = pma.fit_likelihood(model, kind=kind, max_time=seconds, random_seed=1, progressbar=False)
        seconds_taken = time.perf_counter() - started

        def learned(rows, a, b, likelihood=likelihood):
            return likelihood.logp(rows, dict(zip(case.ranges, (a, b), strict=True)))

        shifts, ratios, distances = [], [], []
        for y, theta, truth in zip(ys, grids, exact, strict=True):
            found = posterior(learned, y, theta)
            (mean, sd), (wanted, scale) = moments(found, theta), moments(truth, theta)
            shifts.append(np.abs(mean - wanted).max() / scale[np.abs(mean - wanted).argmax()])
            ratios += list(sd / scale)
            there = np.exp(found) > 0
            distances.append(np.sum(np.exp(found[there]) * (found[there] - np.maximum(truth[there], -50.0))))
        print(
            f"{name:9s} {kind:8s} {seconds_taken:4.0f} s  shift of a mean {np.median(shifts):5.2f} sd (median), "
            f"{max(shifts):6.2f} (largest); sds {min(ratios):.2f} to {max(ratios):.2f} (median "
            f"{np.median(ratios):.2f}); distance {np.mean(distances):.3f} nats",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--datasets", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pymc").setLevel(logging.ERROR)
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    for name in arguments.only:
        compare(name, CASES[name], arguments.seconds, arguments.datasets)


if __name__ == "__main__":
    main()
