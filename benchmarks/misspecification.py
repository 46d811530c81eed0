"""How often data are called unlike what a model simulates: data of the model, and data with an error planted.

For each model a posterior is trained for some seconds. Data sets are drawn by hand, from the prior and with the
covariates of training. Shown is the share of p-values below 5 %: of single data sets by ``sample_stats["ood_pvalue"]``
and by ``check_misspecification``, and of collections of 20 by its test of all together. Beside them stands a peer of
the same run: the same test of collections by the learned summary alone (Schmitt et al. 2021, arXiv 2112.08866).

Run: python benchmarks/misspecification.py [models ...] [--max-time 30] [--collections 20]
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm

import pymc_amortized as pma
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.novelty.scores import Discrepancy, Whitening

TOGETHER = 20
SIMULATIONS = 200
ROWS = 50
HEADER = """\
Wanted: 0.05 for data of the model; as much as can be elsewhere.

                               one data set         20 data sets
                               ood     check    check    summary alone"""


def regression():
    with pm.Model() as model:
        x = pm.Data("x", np.zeros(ROWS))
        a, b, s = pm.Normal("a", 0, 1), pm.Normal("b", 0, 1), pm.HalfNormal("s", 1)
        pm.Normal("y", a + b * x, s, observed=np.zeros(ROWS))
    return model


def regression_data(rng, kind):
    x, noise = rng.normal(size=(2, ROWS))
    a, b, s = rng.normal(), rng.normal(), abs(rng.normal())
    if kind == "Student t noise (3)":
        noise = rng.standard_t(3, size=ROWS)
    elif kind == "5 % outliers":
        noise = outliers(rng, noise, 6 * rng.choice([-1, 1], size=ROWS))
    mean = np.exp(a + b * x) if kind == "log link" else a + b * x
    return {"x": x, "y": mean + s * noise + 6 * (kind == "shifted by 6 prior sd")}


def poisson():
    with pm.Model() as model:
        x = pm.Data("x", np.zeros(ROWS))
        a, b = pm.Normal("a", 1, 0.7), pm.Normal("b", 0, 0.5)
        pm.Poisson("y", pm.math.exp(a + b * x), observed=np.zeros(ROWS, dtype=int))
    return model


def poisson_data(rng, kind):
    x, a, b = rng.normal(size=ROWS), rng.normal(1, 0.7), rng.normal(0, 0.5)
    mean = np.exp(a + b * x + 2.5 * (kind == "shifted by 3.6 prior sd"))
    if kind == "identity link":
        mean = np.maximum(np.exp(a) * (1 + b * x), 0.05)
    elif kind == "negative binomial (4)":
        mean = mean * rng.gamma(4, 1 / 4, size=ROWS)
    y = rng.poisson(mean)
    return {"x": x, "y": outliers(rng, y, 4 * y + 10) if kind == "5 % outliers" else y}


def logistic():
    with pm.Model() as model:
        x = pm.Data("x", np.zeros(2 * ROWS))
        a, b = pm.Normal("a", 0, 1), pm.Normal("b", 0, 1.5)
        pm.Bernoulli("y", logit_p=a + b * x, observed=np.zeros(2 * ROWS, dtype=int))
    return model


def logistic_data(rng, kind):
    x, a, b = rng.normal(size=2 * ROWS), rng.normal(), rng.normal(0, 1.5)
    eta = a + b * x + 4 * (kind == "shifted by 4 prior sd")
    p = 1 / (1 + np.exp(-(a + b * (x**2 - 1)) if kind == "quadratic" else -eta))
    if kind == "complementary log-log link":
        p = 1 - np.exp(-np.exp(eta))
    elif kind == "Cauchy link":
        p = 0.5 + np.arctan(2 * eta) / np.pi
    return {"x": x, "y": (rng.uniform(size=2 * ROWS) < p).astype(int)}


def groups():
    with pm.Model() as model:
        mu, tau, s = pm.Normal("mu", 0, 1), pm.HalfNormal("tau", 1), pm.HalfNormal("s", 1)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta[:, None], s, observed=np.zeros((8, 10)))
    return model


def groups_data(rng, kind):
    noise, effects = rng.normal(size=(8, 10)), rng.normal(size=(8, 1))
    mu, tau, s = rng.normal(), abs(rng.normal()), abs(rng.normal())
    if kind == "Student t noise (3)":
        noise = rng.standard_t(3, size=(8, 10))
    elif kind == "5 % outliers":
        noise = outliers(rng, noise, 6 * rng.choice([-1, 1], size=(8, 10)))
    elif kind == "one odd group":
        effects[0] += 6
    return {"y": mu + 5 * (kind == "shifted by 5 prior sd") + tau * effects + s * noise}


def outliers(rng, values, added):
    """Add something to one value in twenty."""
    return np.where(rng.uniform(size=values.shape) < 0.05, values + added, values)


@dataclass(frozen=True)
class Case:
    """A model, data by kind of error, and the kinds."""

    build: Callable[[], pm.Model]
    data: Callable[[np.random.Generator, str], dict[str, Any]]
    kinds: Sequence[str]
    covariates: bool = True


RIGHT = "the model's own"
CASES = {
    "regression": Case(
        regression, regression_data, ["5 % outliers", "Student t noise (3)", "log link", "shifted by 6 prior sd"]
    ),
    "poisson": Case(
        poisson, poisson_data, ["5 % outliers", "negative binomial (4)", "identity link", "shifted by 3.6 prior sd"]
    ),
    "logistic": Case(
        logistic, logistic_data, ["quadratic", "complementary log-log link", "Cauchy link", "shifted by 4 prior sd"]
    ),
    "groups": Case(
        groups, groups_data, ["5 % outliers", "Student t noise (3)", "one odd group", "shifted by 5 prior sd"], False
    ),
}


def rates(posterior, case, kind, collections, rng):
    """Shares of p-values below 5 %."""
    ood, single, together, alone = [], [], [], []
    width = posterior.network.features
    for i in range(collections):
        data = [case.data(rng, kind) for _ in range(TOGETHER)]
        stacked = {name: np.stack([d[name] for d in data]) for name in data[0]}
        sets = read_datasets(posterior.spec, stacked, batched=True)
        ood += posterior.ood_pvalues(sets).tolist()
        check = pma.check_misspecification(
            posterior, stacked, batched=True, num_simulations=SIMULATIONS, random_seed=[7, i]
        )
        single += check.pvalue.values.tolist()
        together.append(check.mmd_pvalue.item())
        alone.append(_alone(posterior, sets, width, i))
    return [np.mean(np.array(p) <= 0.05) for p in (ood, single, together, alone)]


def _alone(posterior, sets, width, seed) -> float:
    """P-value of the test of a collection that knows the learned summary only."""
    replicas = posterior.compiled.replicas(sets, SIMULATIONS, np.random.SeedSequence([8, seed]))
    made = np.stack([posterior.features_of(some)[:, :width] for some in replicas])
    half = SIMULATIONS // 2
    pool = made[:, :half].reshape(-1, width)
    center, scale = pool.mean(0), pool.std(0)
    whitening = Whitening.fit((pool - center) / scale, (width,))

    def turn(features):
        return whitening((features - center) / scale)

    discrepancy = Discrepancy.fit(turn(pool), np.random.default_rng(0))
    null = np.array([discrepancy(turn(made[:, i])) for i in range(half, SIMULATIONS)])
    return (1 + np.sum(null >= discrepancy(turn(posterior.features_of(sets)[:, :width])))) / (half + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(CASES), metavar="model", help=", ".join(CASES))
    parser.add_argument("--max-time", type=float, default=30.0)
    parser.add_argument("--collections", type=int, default=20)
    given = parser.parse_args()
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    print(HEADER)
    for name in given.models:
        case, rng = CASES[name], np.random.default_rng(1)
        context = {"x": pm.Normal.dist(0, 1)} if case.covariates else None
        posterior = pma.fit_posterior(
            case.build(), context=context, random_seed=1, max_time=given.max_time, progressbar=False
        )
        print(name)
        for kind in (RIGHT, *case.kinds):
            found = rates(posterior, case, kind, given.collections, rng)
            print(f"  {kind:26s}" + "{:7.2f}{:9.2f}{:9.2f}{:13.2f}".format(*found), flush=True)


if __name__ == "__main__":
    main()
