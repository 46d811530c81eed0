"""Are corrected posteriors calibrated? Simulation-based calibration of every model of the tests' registry.

Each model that has a density is fitted by defaults. Data sets from its prior are answered with `correction="auto"`; the
ranks of every parameter, of the log density and of random points are tested for uniformity, adjusted for their number.
Of 40 models without fault, two have a p-value below 0.05. Data sets that are not settled, whatever time it takes,
are marked for users, and left out here.

Run: python benchmarks/calibration.py [models ...] [--datasets 200] [--seed 1]
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import pymc_amortized as pma

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from models import MODELS  # noqa: E402


def run(name: str, datasets: int, seed: int) -> str:
    """Return a row of the table."""
    start = time.perf_counter()
    posterior = pma.fit_posterior(MODELS[name].build(), random_seed=seed, progressbar=False)
    fitted = time.perf_counter()
    options = {"correction": "auto", "max_time": None, "random_seed": seed + 1, "progressbar": False}
    check = pma.check_calibration(posterior, num_datasets=datasets, draws=250, **options)
    adjusted = {q: float(check["calibration"].sel(metric="p_adjusted")[q].min()) for q in check["prior_sbc"]}
    worst = min(adjusted, key=adjusted.__getitem__)
    good = (~check["sample_stats"]["stage"].isin(["failed", "not reached"])).to_numpy().mean()
    seconds = f"{fitted - start:.0f} | {time.perf_counter() - fitted:.0f}"
    return f"| {name} | {len(adjusted)} | {adjusted[worst]:.3f} ({worst}) | {good:.0%} | {seconds} |"


def main() -> None:
    """Run the models that were asked for."""
    known = [name for name, case in MODELS.items() if case.has_density]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[[], *known], default=[])
    parser.add_argument("--datasets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print("| model | quantities | smallest adjusted p | settled | fit (s) | check (s) |\n|---|---|---|---|---|---|")
    for name in options.models or known:
        try:
            print(run(name, options.datasets, options.seed), flush=True)
        except Exception as error:  # one model ends no others
            print(f"| {name} | {type(error).__name__}: {str(error)[:100]} | | | | |", flush=True)


if __name__ == "__main__":
    main()
