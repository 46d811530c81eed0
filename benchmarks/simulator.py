"""The compiled simulator beside PyMC's own: one call for all draws, or one call for each.

For every model of the tests' registry: the time of one simulation by the simulator that training uses, and by the
function that ``pm.sample_prior_predictive`` compiles, called once for each draw as it does. Regressions and hierarchies
are also written out in NumPy by hand, all draws at once. Compiling is left out on every side; each time is the best of
several, the sides taking turns, and ratios come from one run.

This project's simulator does more than the others: it also returns the unconstrained parameters, and whether the
model gives every draw a finite log density.

Run: python benchmarks/simulator.py [models ...] [--seconds 0.3] [--repeats 5]
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType

import numpy as np
import pymc as pm
from pymc.pytensorf import reseed_rngs
from pymc.sampling.forward import compile_forward_sampling_function
from pytensor.tensor.random.type import RandomGeneratorType

from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.simulator import Simulator

Simulate = Callable[[int], object]

REGISTRY = Path(__file__).parents[1] / "tests" / "models.py"
LARGEST = 2**17
OWN_WORK = {
    "autoregression": "inner loop over time",
    "garch": "inner loop over time",
    "beta_binomial": "SciPy's generator, in Python",
    "epidemic": "inner loop over time",
    "scan_simulator": "inner loop over time",
    "custom_random": "Python function",
    "python_simulator": "Python function",
}
"""Models whose own inner loop or Python function a faster outer loop cannot help much."""


def registry() -> ModuleType:
    """The tests' models, which are no part of the package."""
    spec = importlib.util.spec_from_file_location("models", REGISTRY)
    module = importlib.util.module_from_spec(spec)
    sys.modules["models"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def own(model: pm.Model) -> Simulate:
    simulator = Simulator(take_snapshot(model))
    return lambda n: simulator(n, 1)


def pymc_loop(model: pm.Model) -> Simulate:
    """What ``pm.sample_prior_predictive`` compiles and calls."""
    outputs = [model[v.name] for v in sorted(model.basic_RVs + model.deterministics, key=lambda v: v.name)]
    function, _ = compile_forward_sampling_function(
        outputs,
        vars_in_trace=[],
        basic_rvs=model.basic_RVs,
        random_seed=1,
        model=model,
        allow_input_downcast=True,
        accept_inplace=True,
    )

    generators = [v for v in function.get_shared() if isinstance(v.type, RandomGeneratorType)]

    def simulate(n: int) -> list:
        draws = []
        while len(draws) < n:
            try:
                draws.append(function())
            except ZeroDivisionError:  # compiled code raises where NumPy warns, and would do so again
                reseed_rngs(generators, len(draws))
        return draws

    return simulate


def regression(rows: int, features: int) -> tuple[pm.Model, Simulate]:
    """A linear regression, and the same by hand."""
    x = np.random.default_rng(0).normal(size=(rows, features))
    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0.0, 1.0)
        beta = pm.Normal("beta", 0.0, 1.0, shape=features)
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", intercept + pm.Data("x", x) @ beta, sigma, observed=np.zeros(rows))

    def simulate(n: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(1)
        intercept = rng.normal(size=n)
        beta = rng.normal(size=(n, features))
        sigma = np.abs(rng.normal(size=n))
        y = intercept[:, None] + beta @ x.T + sigma[:, None] * rng.normal(size=(n, rows))
        unconstrained = np.column_stack([intercept, beta, np.log(sigma)])
        return unconstrained, intercept, beta, sigma, y

    return model, simulate


def hierarchy(groups: int, rows: int) -> tuple[pm.Model, Simulate]:
    """A normal hierarchy with so many rows in each group, and the same by hand."""
    group = np.repeat(np.arange(groups), rows)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0)
        tau = pm.HalfNormal("tau", 1.0)
        theta = pm.Normal("theta", mu, tau, shape=groups)
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", theta[group], sigma, observed=np.zeros(len(group)))

    def simulate(n: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(1)
        mu = rng.normal(size=n)
        tau = np.abs(rng.normal(size=n))
        theta = mu[:, None] + tau[:, None] * rng.normal(size=(n, groups))
        sigma = np.abs(rng.normal(size=n))
        y = theta[:, group] + sigma[:, None] * rng.normal(size=(n, len(group)))
        unconstrained = np.column_stack([mu, np.log(tau), theta, np.log(sigma)])
        return unconstrained, mu, tau, theta, sigma, y

    return model, simulate


BY_HAND = {
    "regression, 30 rows, 2 features": lambda: regression(30, 2),
    "regression, 100 rows, 5 features": lambda: regression(100, 5),
    "hierarchy, 5 groups of 6": lambda: hierarchy(5, 6),
    "hierarchy, 20 groups of 30": lambda: hierarchy(20, 30),
}


def seconds(simulate: Simulate, n: int) -> float:
    start = time.perf_counter()
    simulate(n)
    return time.perf_counter() - start


def enough(simulate: Simulate, target: float, largest: int) -> int:
    """A number of simulations that takes about so many seconds."""
    n = 16
    simulate(n)
    while (taken := seconds(simulate, n)) < target / 4 and n < largest:
        n *= 4
    return min(max(int(n * target / taken), 1), largest)


def best(sides: list[Simulate], target: float, repeats: int, largest: int = LARGEST) -> list[float]:
    """Seconds for one simulation by each side, the best of several rounds."""
    sizes = [enough(simulate, target, largest) for simulate in sides]
    rounds = [[seconds(s, n) / n for s, n in zip(sides, sizes, strict=True)] for _ in range(repeats)]
    return [min(times) for times in zip(*rounds, strict=True)]


def wanted(name: str, tags: frozenset[str]) -> float:
    """How many times faster than PyMC's loop a model has to be."""
    if name in OWN_WORK:
        return 1.0
    return 10.0 if tags & {"regression", "glm"} else 2.0


def against_pymc(cases: dict, target: float, repeats: int) -> dict[str, float]:
    print("Microseconds for one simulation, and the ratio to PyMC's function called once for each draw\n")
    print(f"{'model':24s} {'here':>9s} {'PyMC':>9s} {'ratio':>8s}  wanted")
    ratios = {}
    for name, case in cases.items():
        model = case.build()
        mine, theirs = best([own(model), pymc_loop(model)], target, repeats)
        ratios[name] = theirs / mine
        least = wanted(name, case.tags)
        remark = OWN_WORK.get(name, "") if ratios[name] >= least else "MISSED"
        print(
            f"{name:24s} {1e6 * mine:9.2f} {1e6 * theirs:9.2f} {ratios[name]:7.1f}x  {least:4.0f}x  {remark}",
            flush=True,
        )
    return ratios


def by_kind(cases: dict, ratios: dict[str, float]) -> None:
    print(f"\n{'kind (models have several)':28s} models     least    median")
    kinds = sorted({tag for case in cases.values() for tag in case.tags})
    groups = {kind: [ratios[n] for n, case in cases.items() if kind in case.tags] for kind in kinds}
    groups["all but own work"] = [r for n, r in ratios.items() if n not in OWN_WORK]
    groups["all"] = list(ratios.values())
    for kind, values in groups.items():
        if values:
            print(f"{kind:28s} {len(values):6d} {min(values):8.1f}x {median(values):8.1f}x")


def against_numpy(target: float, repeats: int) -> None:
    print(f"\n{'microseconds':34s} {'here':>9s} {'by hand':>9s} {'ratio':>8s}  wanted")
    for name, build in BY_HAND.items():
        model, by_hand = build()
        mine, theirs = best([own(model), by_hand], target, repeats, LARGEST // 8)
        print(f"{name:34s} {1e6 * mine:9.2f} {1e6 * theirs:9.2f} {mine / theirs:7.2f}x   <= 2x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names in the registry; all of them by default")
    parser.add_argument("--seconds", type=float, default=0.3, help="that one timing should take")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    models = registry().MODELS
    cases = {name: models[name] for name in arguments.models or models}
    ratios = against_pymc(cases, arguments.seconds, arguments.repeats)
    by_kind(cases, ratios)
    against_numpy(arguments.seconds, arguments.repeats)


if __name__ == "__main__":
    main()
