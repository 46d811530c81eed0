"""NUTS on the learned likelihood beside NUTS on the exact one, and what the learned one costs.

For each model with a known density: the mean absolute error of the log density of a row, and for data sets of 100 and
1,000 rows the largest difference of posterior means, in posterior standard deviations, with its Monte Carlo error, the
range of the ratios of standard deviations, and the difference of the expected log predictive densities (LOO) beside its
standard error.

    python benchmarks/likelihood.py [--seconds 240] [--datasets 3] [--components 16] [--only normal poisson]
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import arviz as az
import numpy as np
import pymc as pm

import pymc_amortized as pma
from pymc_amortized.diagnostics.draw_comparison import compare_moments

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from drift_diffusion_model import log_density, simulate  # noqa: E402

SAMPLING = {"draws": 1000, "tune": 500, "chains": 2, "cores": 1, "progressbar": False}


def normal(rows, seed, values=None):
    x = np.random.default_rng(seed).normal(size=rows)
    with pm.Model() as model:
        intercept, slope = pm.Normal("intercept", 0, 2), pm.Normal("slope", 0, 2)
        noise = pm.LogNormal("noise", 0, 0.5)
        pm.Normal("y", intercept + slope * x, noise, observed=np.zeros(rows) if values is None else values)
    return model


def poisson(rows, seed, values=None):
    x = np.random.default_rng(seed).normal(size=rows)
    with pm.Model() as model:
        intercept, slope = pm.Normal("intercept", 0.5, 0.7), pm.Normal("slope", 0, 0.5)
        pm.Poisson("y", pm.math.exp(intercept + slope * x), observed=np.zeros(rows, int) if values is None else values)
    return model


def drift_diffusion(rows, seed, values=None):
    with pm.Model() as model:
        drift, boundary = pm.Normal("drift", 0, 1.5), pm.Uniform("boundary", 0.5, 2)
        bias, ndt = pm.Uniform("bias", 0.3, 0.7), pm.Uniform("ndt", 0.1, 0.5)
        pm.CustomDist(
            "y",
            drift,
            boundary,
            bias,
            ndt,
            random=simulate,
            logp=log_density,
            signature="(),(),(),()->(2)",
            observed=np.ones((rows, 2)) if values is None else values,
        )
    return model


def autoregression(rows, seed, values=None):
    with pm.Model() as model:
        rho, sigma = pm.Uniform("rho", -0.45, 0.45, shape=2), pm.LogNormal("sigma", 0, 0.3)
        pm.AR(
            "y",
            rho,
            sigma=sigma,
            init_dist=pm.Normal.dist(0, 1, shape=2),
            observed=np.zeros(rows) if values is None else values,
        )
    return model


MODELS = {"normal": normal, "poisson": poisson, "drift_diffusion": drift_diffusion, "autoregression": autoregression}


def posteriors(likelihood, build, rows, seed):
    """Learned and exact posterior of one data set from the prior."""
    model = build(rows, seed)
    drawn = pma.simulate(model, 1, random_seed=seed).prior_predictive["y"].values[0, 0]
    exact = build(rows, seed, drawn)
    learned = likelihood.to_model(model=exact)
    trees = []
    for m in (learned, exact):
        dt = pm.sample(model=m, random_seed=seed, initvals=_start(m, drawn), **SAMPLING)
        pm.compute_log_likelihood(dt, model=m, progressbar=False)
        trees.append(dt)
    return trees


def _start(model, values):
    """Where responses are possible: the exact density is 0 beyond the fastest one."""
    if "ndt" not in model.named_vars:
        return None
    return {"ndt": 0.1 + 0.5 * (min(values[:, 0].min(), 0.5) - 0.1)}


def compare(learned, exact):
    """Largest shift of a mean in sds and its error, ratios of sds, LOO difference and its standard error."""
    moments = compare_moments(learned, exact)
    shift, error, ratio, _ = np.concatenate(
        [v.transpose("statistic", ...).values.reshape(len(v["statistic"]), -1) for v in moments.values()], axis=1
    )
    worst = np.argmax(np.abs(shift))
    loos = [az.loo(dt, pointwise=True) for dt in (learned, exact)]
    return abs(shift[worst]), error[worst], ratio.min(), ratio.max(), loos[0].elpd - loos[1].elpd, loos[1].se


def cost(likelihood, build, seed=0):
    """Milliseconds of log density and gradient for 1,000 rows."""
    model = likelihood.to_model(model=build(1000, seed))
    function = model.logp_dlogp_function(ravel_inputs=True)
    point = pm.blocking.DictToArrayBijection.map(model.initial_point()).data
    function(point)
    start = time.perf_counter()
    for _ in range(200):
        function(point)
    return 1e3 * (time.perf_counter() - start) / 200


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--datasets", type=int, default=3)
    parser.add_argument("--components", type=int, default=None)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pymc").setLevel(logging.ERROR)
    for name in arguments.only:
        build = MODELS[name]
        start = time.perf_counter()
        size = pma.RowSize(components=arguments.components) if arguments.components else None
        likelihood = pma.fit_likelihood(
            build(100, 0), network=size, max_time=arguments.seconds, random_seed=1, progressbar=False
        )
        print(
            f"{name}: {time.perf_counter() - start:.0f} s in all, {likelihood.provenance.simulations:,} rows, "
            f"mean |error| {likelihood.error:.4f} per row, {cost(likelihood, build):.2f} ms for 1,000 rows",
            flush=True,
        )
        for rows in (100, 1000):
            for seed in range(1, 1 + arguments.datasets):
                shift, error, low, high, loo, se = compare(*posteriors(likelihood, build, rows, seed))
                print(
                    f"  {rows:5d} rows: means {shift:.2f} sd (mcse {error:.2f}), sds {low:.2f} to {high:.2f}, "
                    f"LOO {loo:+.2f} (se {se:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
