"""Seconds to the first answer: ``fit_posterior`` and ``sample`` beside ``pm.sample``, on a cold and on a warm cache.

    python benchmarks/first_answer.py linear_regression hierarchy      # models of tests/models.py, all by default
    python benchmarks/first_answer.py --steps 20 linear_regression     # trainings of so many steps

Break-even: seconds to the first answer, by the seconds that NUTS takes for one more data set, its model compiled once.
NUTS is nutpie's where that is installed and the model has no discrete parameters, as `pm.sample` takes it; PyMC's own
steps elsewhere. Each number is measured in a process of its own; importing does not count.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def one_more(model: Any) -> float:
    """Seconds of NUTS for one more data set: what compiling takes does not count."""
    import pymc as pm

    if importlib.util.find_spec("nutpie") and not model.discrete_value_vars:
        import nutpie

        compiled = nutpie.compile_pymc_model(model)
        start = time.perf_counter()
        nutpie.sample(compiled, draws=1000, tune=1000, chains=4, cores=1, seed=2, progress_bar=False)
        return time.perf_counter() - start
    with model:
        step = pm.NUTS() if not model.discrete_value_vars else None  # PyMC compiles others for each call
        start = time.perf_counter()
        pm.sample(progressbar=False, random_seed=2, cores=1, step=step)
    return time.perf_counter() - start


def measure(name: str, ours: bool, steps: int | None) -> dict[str, float]:
    """Seconds of the first answer and of one more, for a model of the registry."""
    sys.path.insert(0, str(ROOT / "tests"))
    import pymc as pm
    from models import MODELS

    import pymc_amortized as pma

    model = MODELS[name].build()
    start = time.perf_counter()
    if ours:
        training = None if steps is None else pma.Training(num_steps=steps)
        posterior = pma.fit_posterior(model, training=training, random_seed=1, progressbar=False)
        posterior.sample(random_seed=2, progressbar=False)
        first, start = time.perf_counter() - start, time.perf_counter()
        posterior.sample(random_seed=3, progressbar=False)
        return {"first": first, "more": time.perf_counter() - start}
    pm.sample(model=model, progressbar=False, random_seed=1, cores=1)
    first = time.perf_counter() - start
    return {"first": first, "more": one_more(model)}


def in_process(name: str, ours: bool, steps: int | None, cache: str) -> dict[str, float] | str:
    """Measure in a process of its own, with a cache."""
    command = [sys.executable, __file__, "--one", name, *(["--ours"] if ours else [])]
    command += [] if steps is None else ["--steps", str(steps)]
    flags = ",".join(filter(None, [os.environ.get("PYTENSOR_FLAGS"), f"base_compiledir={cache}"]))
    done = subprocess.run(command, env=os.environ | {"PYTENSOR_FLAGS": flags}, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:80]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a line for each model, and medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--one")
    parser.add_argument("--ours", action="store_true")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.ours, options.steps)))
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from models import MODELS

    ratios, evens = [], []
    print("model: ours cold, warm, one more | pm.sample cold, warm, one more | cold ratio | break-even, in data sets")
    for name in options.models or MODELS:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            ours = [in_process(name, True, options.steps, one) for _ in range(2)]
            theirs = [in_process(name, False, options.steps, other) for _ in range(2)]
        failed = next((found for found in ours + theirs if isinstance(found, str)), None)
        if failed is not None:
            print(f"{name}: {failed}", flush=True)
            continue
        cold, warm = (found["first"] for found in ours)
        nuts_cold, nuts_warm = (found["first"] for found in theirs)
        ratios.append(cold / nuts_cold)
        evens.append(warm / theirs[1]["more"])
        mores = [found[1]["more"] for found in (ours, theirs)]
        seconds = (
            f"{cold:.1f} s, {warm:.1f} s, {mores[0]:.2f} s | {nuts_cold:.1f} s, {nuts_warm:.1f} s, {mores[1]:.2f} s"
        )
        print(f"{name}: {seconds} | {ratios[-1]:.2f} | {evens[-1]:.0f}", flush=True)
    if ratios:
        print(f"median: cold ratio {median(ratios):.2f}, largest {max(ratios):.2f}; break-even {median(evens):.0f}")


if __name__ == "__main__":
    main()
