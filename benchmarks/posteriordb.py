"""Models of posteriordb, fitted by defaults: seconds, stages, and errors beside its reference draws.

    python benchmarks/posteriordb.py [models ...] [--max-time 60]

Prints the table of docs/posteriordb.md. Errors are the largest of all parameters: of means in posterior sds, of sds in
per cent. "right": every mean is within 0.1 sd, and every sd within 10 %, beside four Monte Carlo errors; "marked": the
stage or a warning says that draws should not be used; "WRONG": neither.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import pymc_amortized as pma

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

HEADER = (
    "| model | parameters | seconds of fit | of sampling | stage | rung | Pareto k | mean off by | sd off by | |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def run(name: str, max_time: float | None, seed: int) -> None:
    """Fit a model, sample its posterior, and print a row of the table."""
    from posteriordb.models import MODELS
    from posteriordb.reference import compare

    reference, build = MODELS[name]
    model = build()
    dim = sum(np.size(value) for value in model.initial_point().values())
    started = time.perf_counter()
    try:
        posterior = pma.fit_posterior(model, max_time=max_time, random_seed=seed, progressbar=False)
    except Exception as error:  # the others are still wanted
        said = isinstance(error, ValueError) and not isinstance(error, np.linalg.LinAlgError)
        kind = "refused" if said else "CRASHED"
        print(f"| {name} | {dim} | | | {type(error).__name__}: {error} | | | | | {kind} |", flush=True)
        return
    fitted = time.perf_counter()
    dt = posterior.sample(random_seed=seed + 1, progressbar=False)
    sampled = time.perf_counter()
    found = compare(dt, reference)
    print(
        f"| {name} | {dim} | {fitted - started:.0f} | {sampled - fitted:.1f} | {found.stage} "
        f"| {dt.sample_stats['rung'].item()} | {float(dt.sample_stats['pareto_k']):.2f} "
        f"| {np.abs(found.mean).max():.2f} sd | {np.abs(found.sd).max():.0%} | {found.verdict} |",
        flush=True,
    )
    for line in (*found.doubts, *found.worst, *found.off):
        print(f"  {name}: {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the models that were asked for."""
    from posteriordb.models import MODELS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], default=[])
    parser.add_argument("--max-time", type=float, default=60.0, help="seconds of training")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(HEADER, flush=True)
    for name in options.models or MODELS:
        run(name, options.max_time, options.seed)


if __name__ == "__main__":
    main()
