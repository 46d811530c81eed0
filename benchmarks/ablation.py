"""What each part of the networks' inputs buys: held-out loss and importance efficiency, with it and without.

Every part is taken away on the real path, on models that it was made for, by default and without a sketch
(``sketch=False``: as for a simulator that has no density); steps and seeds are the same. Statistics are set to zero,
so that networks keep their sizes and begin at the same weights.

Loss: mean negative log density of the parameters that 1,000 new data sets were simulated with, in nats. Efficiency: the
median over 100 of them of the importance effective sample size per draw of the network. Both of all parameters. For
classifiers, the loss is the mean distance (Kullback-Leibler, nats) from the exact probabilities of the models.

Trainings are short, which is when statistics help most: what buys little here buys less in a long one.

Run: python benchmarks/ablation.py [features ...] [--models ...] [--steps 200] [--seeds 1] [--paths default plain]
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from scipy import special, stats

import pymc_amortized as pma
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.inputs import sketch
from pymc_amortized.networks import terms
from pymc_amortized.networks.summary import coupled, lags, moments

SIMULATIONS, HELD_OUT, WEIGHED = 4_000, 1_000, 100
GROUPS = 6
QUIET = {"progressbar": False, "cores": 1}

Build = Callable[[], pm.Model]


@dataclass(frozen=True)
class Case:
    """A model, and how it is fitted; ``density`` says whether draws can be weighed."""

    build: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    density: bool = True


# Series


def ar1() -> pm.Model:
    with pm.Model() as model:
        rho, sigma = pm.Uniform("rho", -1, 1), pm.HalfNormal("sigma", 1)
        pm.AR("y", pt.stack([rho]), sigma, init_dist=pm.Normal.dist(0, 1, shape=1), observed=np.zeros(60))
    return model


def ar2() -> pm.Model:
    with pm.Model(coords={"obs": range(20)}) as model:
        rho, sigma = pm.Normal("rho", [0.5, -0.2], 0.2), pm.HalfNormal("sigma", 1)
        start = pm.Normal.dist(0, 1, shape=2)
        pm.AR("y", rho, sigma, init_dist=start, observed=np.zeros(20), dims="obs")
    return model


def local_level() -> pm.Model:
    """A random walk under noise, integrated out; lengths differ."""
    with pm.Model(coords={"obs": range(15)}) as model:
        n = model.dim_lengths["obs"]
        level, noise = pm.HalfNormal("level", 0.5), pm.HalfNormal("noise", 1)
        t = pt.arange(n).astype("float64")
        covariance = 1.0 + level**2 * pt.minimum(t[:, None], t) + (noise**2 + 1e-6) * pt.eye(n)
        pm.MvNormal("y", pt.zeros(n), covariance, observed=np.zeros(15), dims="obs")
    return model


def volatility() -> pm.Model:
    """Variances that walk at random: the marginal of its parameters has no density."""
    with pm.Model() as model:
        scale, mean = pm.HalfNormal("scale", 0.5), pm.Normal("mean", 0, 1)
        walk = pm.GaussianRandomWalk("walk", sigma=scale, init_dist=pm.Normal.dist(0, 0.5), shape=60)
        pm.Normal("y", mean, pt.exp(walk / 2), observed=np.zeros(60))
    return model


# Rows that depend on each other through covariates


def places(width: int) -> Callable[..., np.ndarray]:
    """Places in a square of five by five, or on a line."""
    return lambda rng, obs=25: rng.uniform(0, 5, size=(obs, width))


def gaussian_process(width: int, sized: bool) -> pm.Model:
    n = 15 if sized else 25
    with pm.Model(coords={"obs": range(n)}) as model:
        rows = model.dim_lengths["obs"] if sized else n
        length, scale = pm.Gamma("length", 4, 4), pm.HalfNormal("scale", 1)
        x = pm.Data("x", places(width)(np.random.default_rng(0), n), dims=("obs", None))
        covariance = scale**2 * pm.gp.cov.Matern52(width, ls=length)(x) + 0.1 * pt.eye(rows)
        pm.MvNormal("y", pt.zeros(rows), covariance, observed=np.zeros(n), dims="obs")
    return model


def field_on_line() -> pm.Model:
    return gaussian_process(1, sized=True)


def field_on_square() -> pm.Model:
    return gaussian_process(2, sized=False)


def counts_on_line() -> pm.Model:
    """Counts of a latent field: the marginal of its parameters has no density."""
    with pm.Model(coords={"obs": range(25)}) as model:
        length, scale = pm.Gamma("length", 4, 4), pm.HalfNormal("scale", 1)
        x = pm.Data("x", places(1)(np.random.default_rng(0), 25), dims=("obs", None))
        covariance = scale**2 * pm.gp.cov.Matern52(1, ls=length)(x) + 1e-6 * pt.eye(25)
        f = pm.MvNormal("f", pt.zeros(25), covariance, dims="obs")
        pm.Poisson("y", pt.exp(1.0 + f), observed=np.zeros(25, dtype=int), dims="obs")
    return model


# Exchangeable rows


def normal_rows() -> pm.Model:
    with pm.Model(coords={"obs": range(20)}) as model:
        mu, sigma = pm.Normal("mu", 0, 1), pm.HalfNormal("sigma", 1)
        pm.Normal("y", mu, sigma, observed=np.zeros(20), dims="obs")
    return model


def gamma_rows() -> pm.Model:
    with pm.Model(coords={"obs": range(40)}) as model:
        shape, rate = pm.LogNormal("shape", 0.5, 0.7), pm.LogNormal("rate", 0, 0.7)
        pm.Gamma("y", shape, rate, observed=np.ones(40), dims="obs")
    return model


def sized_regression() -> pm.Model:
    with pm.Model(coords={"obs": range(20)}) as model:
        x = pm.Data("x", np.zeros((20, 2)), dims=("obs", None))
        mean = pm.Normal("a", 0, 1) + x @ pm.Normal("b", 0, 1, shape=2)
        pm.Normal("y", mean, pm.HalfNormal("s", 1), observed=np.zeros(20), dims="obs")
    return model


# Many parameters in which the density is quadratic


def regression() -> pm.Model:
    x = np.random.default_rng(1).normal(size=(60, 5))
    with pm.Model() as model:
        mean = pm.Normal("intercept", 0, 1) + pm.Data("x", x) @ pm.Normal("slope", 0, 1, shape=5)
        pm.Normal("y", mean, pm.HalfNormal("noise", 1), observed=np.zeros(60))
    return model


def group_means() -> pm.Model:
    with pm.Model(coords={"group": range(GROUPS), "row": range(5)}) as model:
        mean, noise = pm.Normal("mean", 0, 1, dims="group"), pm.HalfNormal("noise", 1)
        pm.Normal("y", mean[:, None], noise, observed=np.zeros((GROUPS, 5)), dims=("group", "row"))
    return model


def hierarchy() -> pm.Model:
    with pm.Model(coords={"group": range(GROUPS), "row": range(5)}) as model:
        mu, tau, noise = pm.Normal("mu", 0, 1), pm.HalfNormal("tau", 1), pm.HalfNormal("noise", 1)
        theta = pm.Normal("theta", mu, tau, dims="group")
        pm.Normal("y", theta[:, None], noise, observed=np.zeros((GROUPS, 5)), dims=("group", "row"))
    return model


def eight_schools() -> pm.Model:
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
        pm.Normal("y", mu + tau * pm.Normal("z", 0, 1, shape=8), error, observed=np.zeros(8))
    return model


# Pairs of models, with exact log Bayes factors of the first against the second


def slope_or_none() -> dict[str, pm.Model]:
    return _regressions(1, known=True)


def slope_or_none_exact(data: Mapping[str, np.ndarray]) -> float:
    return _evidence(data, [], 1.0) - _evidence(data, [0], 1.0)


def second_slope() -> dict[str, pm.Model]:
    return _regressions(2, known=True)


def second_slope_exact(data: Mapping[str, np.ndarray]) -> float:
    return _evidence(data, [0], 1.0) - _evidence(data, [0, 1], 1.0)


def unknown_noise() -> dict[str, pm.Model]:
    return _regressions(1, known=False)


def unknown_noise_exact(data: Mapping[str, np.ndarray]) -> float:
    """Over the noise by quadrature."""
    noise, weight = np.polynomial.legendre.leggauss(60)
    noise = 2.5 * (noise + 1)
    prior = np.log(weight * 2.5) + stats.halfnorm.logpdf(noise)
    without, with_slope = (special.logsumexp(prior + [_evidence(data, used, s) for s in noise]) for used in ([], [0]))
    return float(without - with_slope)


def two_priors() -> dict[str, pm.Model]:
    models = {}
    for name, spread in (("narrow", 0.2), ("wide", 1.0)):
        with pm.Model(coords={"obs": range(20)}) as models[name]:
            pm.Normal("y", pm.Normal("mu", 0, spread), 1, observed=np.zeros(20), dims="obs")
    return models


def two_priors_exact(data: Mapping[str, np.ndarray]) -> float:
    n = len(data["y"])
    narrow, wide = (stats.multivariate_normal(np.zeros(n), np.eye(n) + s**2).logpdf(data["y"]) for s in (0.2, 1.0))
    return float(narrow - wide)


def _regressions(columns: int, known: bool) -> dict[str, pm.Model]:
    """Lines on all but the last covariate, and on all."""
    models = {}
    for name, used in (("without", columns - 1), ("with", columns)):
        with pm.Model(coords={"obs": range(20)}) as models[name]:
            x = pm.Data("x", np.zeros((20, columns)), dims=("obs", None))
            mean = pm.Normal("intercept", 0, 1) + 0.0 * x.sum(1)
            if used:
                mean = mean + x[:, :used] @ pm.Normal("slope", 0, 0.7, shape=used)
            pm.Normal("y", mean, 1.0 if known else pm.HalfNormal("noise", 1), observed=np.zeros(20), dims="obs")
    return models


def _evidence(data: Mapping[str, np.ndarray], used: list[int], noise: float) -> float:
    y, x = data["y"], data["x"][:, used]
    design = np.concatenate([np.ones((len(y), 1)), 0.7 * x], 1)
    inner = np.eye(design.shape[1]) + design.T @ design / noise**2
    beta = design.T @ y / noise**2
    quadratic = y @ y / noise**2 - beta @ np.linalg.solve(inner, beta)
    return float(-0.5 * (quadratic + len(y) * np.log(2 * np.pi * noise**2) + np.linalg.slogdet(inner)[1]))


# What is taken away


@contextmanager
def zeroed(owner: type, method: str, columns: Callable[[Any, Any], list[slice]]) -> Iterator[None]:
    """Set columns of the statistics that a method returns to zero."""
    original = getattr(owner, method)

    def without(self: Any, rows: Any, *args: Any) -> Any:
        found = original(self, rows, *args).clone()
        for some in columns(self, rows):
            found[:, some] = 0.0
        return found

    with patch.object(owner, method, without):
        yield


def _of_lags(self: Any, rows: Any) -> list[slice]:
    channels = rows.values.shape[-1]
    return [slice(0, self.width - channels * (2 + len(lags.MEMORIES)))]


def _of_smoothing(self: Any, rows: Any) -> list[slice]:
    channels = rows.values.shape[-1]
    end = self.width - 2 * channels
    return [slice(end - channels * len(lags.MEMORIES), end)]


def _of_moments(self: Any, rows: Any) -> list[slice]:
    """All but the number of rows."""
    count = 2 * rows.values.shape[-1]
    return [slice(0, count), slice(count + 1, self.width)]


def no_lags():
    return zeroed(lags.LagStatistics, "__call__", _of_lags)


def no_smoothing():
    return zeroed(lags.LagStatistics, "__call__", _of_smoothing)


def neither_lags():
    return zeroed(lags.LagStatistics, "__call__", lambda *a: [*_of_lags(*a), *_of_smoothing(*a)])


def no_kriging():
    return zeroed(coupled.CoupledStatistics, "forward", lambda self, rows: [slice(0, self.width)])


def no_moments():
    return zeroed(moments.RowStatistics, "__call__", _of_moments)


@contextmanager
def no_pairs() -> Iterator[None]:
    original = moments.pair_statistics
    with patch.object(moments, "pair_statistics", lambda *args: tuple(0.0 * part for part in original(*args))):
        yield


def no_conditionals():
    return patch.object(sketch, "_number_drawn", lambda quadratic: 0)


def no_linear_terms():
    return patch.object(terms, "_linear_models", lambda branches: [])


def no_products():
    return patch.object(terms, "PRODUCTS_UP_TO", 0)


@contextmanager
def neither_terms() -> Iterator[None]:
    with no_linear_terms(), no_products():
        yield


SERIES = ("ar1", "ar2", "local_level", "volatility")
FIELDS = ("field_on_line", "field_on_square", "counts_on_line")
COMPARED = ("slope_or_none", "second_slope", "unknown_noise", "two_priors")
FEATURES: dict[str, tuple[tuple[str, ...], dict[str, Callable[[], Any]]]] = {
    "series": (SERIES, {"smoothing": no_smoothing, "lags": no_lags, "lags and smoothing": neither_lags}),
    "coupled": (FIELDS, {"kriging": no_kriging}),
    "moments": (("normal_rows", "gamma_rows", "sized_regression"), {"moments": no_moments, "pairs": no_pairs}),
    "conditionals": (("regression", "group_means", "hierarchy"), {"exact conditionals": no_conditionals}),
    "terms": (
        COMPARED,
        {"linear models": no_linear_terms, "products": no_products, "linear models and products": neither_terms},
    ),
    "sketch": (("regression", "ar2", "local_level", "hierarchy", "eight_schools"), {}),
}
CASES = {
    "ar1": Case(ar1),
    "ar2": Case(ar2, {"context": {"obs": (20, 100)}}),
    "local_level": Case(local_level, {"context": {"obs": (15, 40)}}),
    "volatility": Case(volatility, {"parameters": ["scale", "mean"]}, density=False),
    "field_on_line": Case(field_on_line, {"context": {"obs": (15, 40), "x": places(1)}}),
    "field_on_square": Case(field_on_square, {"context": {"x": places(2)}}),
    "counts_on_line": Case(
        counts_on_line,
        {
            "context": {"x": places(1)},
            "parameters": ["length", "scale"],
            "structure": {"y": "exchangeable"},  # groups of one row each, otherwise
        },
        density=False,
    ),
    "normal_rows": Case(normal_rows, {"context": {"obs": (5, 100)}}),
    "gamma_rows": Case(gamma_rows),
    "sized_regression": Case(sized_regression, {"context": {"obs": (10, 100), "x": pm.Normal.dist(0, 1)}}),
    "regression": Case(regression),
    "group_means": Case(group_means),
    "hierarchy": Case(hierarchy),
    "eight_schools": Case(eight_schools),
}
EXACT = {
    f.__name__.removesuffix("_exact"): f
    for f in (slope_or_none_exact, second_slope_exact, unknown_noise_exact, two_priors_exact)
}


def fitted(case: Case, steps: int, seed: int, path: str) -> tuple[float, float]:
    """Loss and efficiency of one training."""
    posterior = pma.fit_posterior(
        case.build(),
        num_simulations=SIMULATIONS,
        training=pma.Training(num_steps=steps, batch_size=128, evaluations=10, threads=1),
        sketch=None if path == "default" else False,
        random_seed=seed,
        **QUIET,
        **case.options,
    )
    made = posterior.simulator(HELD_OUT, np.random.SeedSequence(1_000))
    datasets = posterior.inputs.sketched(of_simulations(made))
    log_q = posterior.approximation(datasets).log_prob(made.unconstrained[None])[0]
    if not case.density:
        return float(-log_q.mean()), np.nan
    found = posterior.weights_of(datasets.take(slice(WEIGHED)), np.random.SeedSequence(2_000))
    return float(-log_q.mean()), float(np.median([w.ess / w.weights.size for w in found]))


def compared(name: str, steps: int, seed: int, path: str) -> tuple[float, float]:
    """Mean distance from exact probabilities, and root mean square error of log Bayes factors below 5."""
    context = {} if name == "two_priors" else {"x": pm.Normal.dist(0, 1)}
    comparison = pma.fit_comparison(
        globals()[name](),
        context={"obs": (10, 100), **context},
        posteriors=False,
        sketch=None if path == "default" else False,
        training=pma.Training(num_steps=steps, batch_size=128, evaluations=10, threads=1),
        random_seed=seed,
        **QUIET,
    )
    datasets = of_simulations(comparison.pool(2 * HELD_OUT, np.random.SeedSequence(1_000)))
    exact = np.array([EXACT[name](datasets.one(comparison.common.spec, i)) for i in range(len(datasets))])
    log_p = comparison.log_probabilities(datasets)
    truth = np.stack([special.log_expit(exact), special.log_expit(-exact)], 1)
    distance = (np.exp(truth) * (truth - log_p)).sum(1).mean()
    off = (log_p[:, 0] - log_p[:, 1] - exact)[np.abs(exact) < 5]
    return float(distance), float(np.sqrt(np.square(off).mean()))


def run(feature: str, arguments: argparse.Namespace) -> None:
    """Print a line for each training."""
    models, taken = FEATURES[feature]
    for name in models:
        if arguments.models and name not in arguments.models:
            continue
        measure, subject = (compared, name) if feature == "terms" else (fitted, CASES[name])
        for path in paths(feature, name, arguments.paths):
            for without, away in {"": ExitStack, **taken}.items():
                if arguments.without and without and without not in arguments.without:
                    continue
                for seed in range(1, 1 + arguments.seeds):
                    started = time.perf_counter()
                    with away():
                        loss, efficiency = measure(subject, arguments.steps, seed, path)
                    label = f"without {without}" if without else "with all"
                    print(
                        f"{feature:12s} {name:15s} {path:16s} {label:34s} seed {seed}  {loss:8.4f}  "
                        f"{efficiency:6.3f}  {time.perf_counter() - started:4.0f} s",
                        flush=True,
                    )


def paths(feature: str, name: str, wanted: list[str]) -> list[str]:
    """Ways to train: by default and without a sketch, or what the feature itself is an option of."""
    if feature == "sketch":
        return ["default", "plain"]
    if feature == "conditionals":  # without a sketch there are none
        return ["default"]
    return ["plain"] if name in CASES and not CASES[name].density else wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", nargs="*", help=f"of {', '.join(FEATURES)}; all by default")
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--without", nargs="*", help="only these parts")
    parser.add_argument("--paths", nargs="*", default=["default", "plain"], choices=["default", "plain"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pymc").setLevel(logging.ERROR)
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    for feature in arguments.features or FEATURES:
        run(feature, arguments)


if __name__ == "__main__":
    main()
