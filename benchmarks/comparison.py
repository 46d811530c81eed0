"""Probabilities of models: next to closed forms and to ``pm.sample_smc``, and how long they take.

    python benchmarks/comparison.py [--max-time 60] [--repeats 4] [--only counts]

Conjugate pairs: error of log Bayes factors below 5, by the classifier and by the evidence, over simulated data sets,
and the debiased expected calibration error on 20,000 of them at every size. Others: log Bayes factors of one data set
beside those of repeated runs of ``pm.sample_smc``. Then 10,000 data sets and three models, timed.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pymc as pm
from scipy import special, stats

import pymc_amortized as pma
from pymc_amortized.graph.data.datasets import of_simulations

ROWS = 20
CALIBRATED = 20_000
EXACT = 3_000
"""Data sets at each size beside the closed form."""
EVIDENCES = 50
WANTED = 0.25, 0.02
"""Error of log Bayes factors below 5, and expected calibration error."""
MADE = np.random.default_rng(4)


@dataclass(frozen=True)
class Pair:
    models: Callable[[], dict[str, pm.Model]]
    exact: Callable[[Mapping[str, np.ndarray]], float]
    """Log Bayes factor of the first against the second model, of one data set."""
    context: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[dict[str, int] | None, ...] = (None,)


def two_priors() -> dict[str, pm.Model]:
    models = {}
    for name, spread in (("narrow", 0.2), ("wide", 1.0)):
        with pm.Model() as models[name]:
            pm.Normal("y", pm.Normal("mu", 0, spread), 1, observed=np.zeros(ROWS))
    return models


def two_priors_exact(data: Mapping[str, np.ndarray]) -> float:
    narrow, wide = (
        stats.multivariate_normal(np.zeros(ROWS), np.eye(ROWS) + s**2).logpdf(data["y"]) for s in (0.2, 1.0)
    )
    return float(narrow - wide)


def fair_coin() -> dict[str, pm.Model]:
    with pm.Model(coords={"toss": range(ROWS)}) as fair:
        pm.Beta("unused", 1, 1)
        pm.Bernoulli("y", 0.5, observed=np.zeros(ROWS, dtype=int), dims="toss")
    with pm.Model(coords={"toss": range(ROWS)}) as bent:
        pm.Bernoulli("y", pm.Beta("p", 1, 1), observed=np.zeros(ROWS, dtype=int), dims="toss")
    return {"fair": fair, "bent": bent}


def fair_coin_exact(data: Mapping[str, np.ndarray]) -> float:
    heads, tosses = data["y"].sum(), len(data["y"])
    return float(-tosses * np.log(2) - special.betaln(1 + heads, 1 + tosses - heads))


def slope_or_none() -> dict[str, pm.Model]:
    with pm.Model(coords={"obs": range(ROWS)}) as without:
        pm.Normal("y", pm.Normal("intercept", 0, 1), 1, observed=np.zeros(ROWS), dims="obs")
    with pm.Model() as with_slope:
        x = pm.Data("x", np.linspace(-1, 1, ROWS), dims="obs")
        mean = pm.Normal("intercept", 0, 1) + pm.Normal("slope", 0, 0.7) * x
        pm.Normal("y", mean, 1, observed=np.zeros(ROWS), dims="obs")
    return {"without": without, "with": with_slope}


def slope_or_none_exact(data: Mapping[str, np.ndarray]) -> float:
    y, x = data["y"], data["x"]
    flat = np.eye(len(y)) + 1
    without, with_slope = (
        stats.multivariate_normal(np.zeros(len(y)), c).logpdf(y) for c in (flat, flat + 0.49 * np.outer(x, x))
    )
    return float(without - with_slope)


PAIRS = {
    "two_priors": Pair(two_priors, two_priors_exact),
    "fair_coin": Pair(fair_coin, fair_coin_exact, {"toss": (5, 100)}, tuple({"toss": n} for n in (5, 20, 100))),
    "slope": Pair(
        slope_or_none,
        slope_or_none_exact,
        {"obs": (10, 100), "x": pm.Normal.dist(0, 1)},
        tuple({"obs": n} for n in (10, 30, 100)),
    ),
}


def counts(y: np.ndarray | None = None) -> dict[str, pm.Model]:
    y = MADE.negative_binomial(2.0, 0.4, size=40) if y is None else y
    models = {}
    for name in ("poisson", "negbin", "zip"):
        with pm.Model(coords={"patient": range(len(y))}) as models[name]:
            mu = pm.LogNormal("mu", 1, 1)
            if name == "poisson":
                pm.Poisson("visits", mu, observed=y, dims="patient")
            elif name == "negbin":
                pm.NegativeBinomial("visits", mu=mu, alpha=pm.Exponential("alpha", 0.5), observed=y, dims="patient")
            else:
                pm.ZeroInflatedPoisson("visits", psi=pm.Beta("psi", 2, 2), mu=mu, observed=y, dims="patient")
    return models


def nested() -> dict[str, pm.Model]:
    x = np.linspace(-1, 1, 30)
    y = 0.4 * x + 0.5 * MADE.normal(size=30)
    models = {}
    for name in ("without", "with"):
        with pm.Model() as models[name]:
            slope = pm.Normal("slope", 0, 1) * x if name == "with" else 0.0
            mean = pm.Normal("intercept", 0, 1) + slope
            pm.Normal("y", mean, pm.HalfNormal("noise", 1), observed=y)
    return models


def groups() -> dict[str, pm.Model]:
    y = 0.5 + 0.3 * MADE.normal(size=(8, 1)) + MADE.normal(size=(8, 6))
    models = {}
    for name in ("pooled", "groups"):
        with pm.Model(coords={"group": range(8), "row": range(6)}) as models[name]:
            mean = pm.Normal("mu", 0, 1)
            if name == "groups":
                mean = mean + pm.HalfNormal("tau", 0.7) * pm.Normal("effect", 0, 1, dims="group")[:, None]
            pm.Normal("y", mean, pm.HalfNormal("noise", 2), observed=y, dims=("group", "row"))
    return models


SMC = {"nested": nested, "counts": counts, "groups": groups}


def compared(name: str, models: dict[str, pm.Model], max_time: float, **kwargs: Any) -> pma.AmortizedComparison:
    print(f"-- {name}", flush=True)
    return pma.fit_comparison(models, random_seed=1, max_time=max_time, progressbar=False, **kwargs)


def beside_closed_form(name: str, pair: Pair, max_time: float) -> None:
    comparison = compared(name, pair.models(), max_time, context=pair.context)
    for lengths in pair.lengths:
        made = comparison.pool(EXACT, np.random.SeedSequence(2), lengths=lengths)
        datasets = of_simulations(made)
        spec = comparison.common.spec
        exact = np.array([pair.exact(datasets.one(spec, i)) for i in range(len(datasets))])
        log_p = comparison.log_probabilities(datasets)
        near = np.abs(exact) < 5
        off = np.abs(log_p[:, 0] - log_p[:, 1] - exact)[near]
        found = comparison.evidence_of(datasets.take(slice(EVIDENCES)), 10_000, np.random.SeedSequence(3))
        evidence = found.log_evidence[:, 0] - found.log_evidence[:, 1] - exact[:EVIDENCES]
        errors = np.abs(evidence) / np.hypot(found.error[:, 0], found.error[:, 1])
        check = pma.check_comparison(comparison, num_datasets=CALIBRATED, lengths=lengths, random_seed=4)
        scores = check["scores"]
        print(
            f"{name} {lengths or ''}: classifier off by {np.sqrt(np.square(off).mean()):.3f} (root mean square), "
            f"{np.quantile(off, 0.99):.3f} (99 %), {off.max():.3f} (largest; wanted: {WANTED[0]}); evidence by "
            f"{np.nanmax(np.abs(evidence)):.4f} at most, {np.nanmax(errors):.1f} reported errors, without answer "
            f"{int(np.isnan(evidence).sum())} of {EVIDENCES}; calibration error "
            f"{float(scores['expected_calibration_error']):.4f} (wanted: {WANTED[1]}), p = "
            f"{float(scores['p_value']):.2g}",
            flush=True,
        )


def smc_evidence(model: pm.Model, repeats: int) -> tuple[float, float]:
    with model:
        tree = pm.sample_smc(2000, chains=repeats, cores=1, random_seed=1, progressbar=False)
    stages = tree.sample_stats["log_marginal_likelihood"].to_numpy()
    runs = np.array([chain[-1] for chain in _last(stages)])
    return float(runs.mean()), float(runs.std(ddof=1) / np.sqrt(len(runs)))


def _last(stages: np.ndarray) -> list[np.ndarray]:
    """The estimate of each chain after its last stage; SMC reports one for each stage."""
    return [np.asarray([v for v in np.ravel(chain) if v is not None and np.isfinite(v)]) for chain in stages]


def beside_smc(name: str, build: Callable[[], dict[str, pm.Model]], max_time: float, repeats: int) -> None:
    models = build()
    comparison = compared(name, models, max_time)
    comparison.compare(random_seed=0)  # compiles
    started = time.perf_counter()
    table = comparison.compare(random_seed=1)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    smc = {k: smc_evidence(model, repeats) for k, model in models.items()}
    theirs = time.perf_counter() - started
    log_p = comparison.bayes_factors()["log_bayes_factor"]
    first, *others = table.index
    for other in others:
        by_smc = smc[other][0] - smc[first][0]
        error = float(np.hypot(smc[other][1], smc[first][1]))
        print(
            f"{name}: {other} against {first}: evidence {table.log_bf[other]:.3f} ± {table.dse[other]:.3f}, classifier "
            f"{float(log_p.sel(model=other, against=first)):.3f}, SMC {by_smc:.3f} ± {error:.3f}",
            flush=True,
        )
    print(f"{name}: {ours:.2f} s, SMC {theirs:.0f} s", flush=True)


def timed(max_time: float) -> None:
    comparison = compared("10,000 data sets", counts(), max_time, posteriors=False)
    rng = np.random.default_rng(5)
    y = rng.negative_binomial(2.0, rng.uniform(0.2, 0.8, size=(10_000, 1)), size=(10_000, 40))
    comparison.probabilities({"visits": y[:10]}, batched=True)
    started = time.perf_counter()
    comparison.probabilities({"visits": y}, batched=True)
    print(f"10,000 data sets, 3 models: {time.perf_counter() - started:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-time", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--only", choices=[*PAIRS, *SMC, "time"])
    arguments = parser.parse_args()
    logging.getLogger("pymc").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    for name, pair in PAIRS.items():
        if arguments.only in (None, name):
            beside_closed_form(name, pair, arguments.max_time)
    for name, build in SMC.items():
        if arguments.only in (None, name):
            beside_smc(name, build, arguments.max_time, arguments.repeats)
    if arguments.only in (None, "time"):
        timed(arguments.max_time)


if __name__ == "__main__":
    main()
