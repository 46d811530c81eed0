"""Data sets that a network was not trained for: how many settle at which stage, and are they right?

    python benchmarks/escalation.py [--datasets 1000] [--max-time 20] [--nuts 50]

A regression with a conjugate normal-inverse-gamma prior, whose posterior is known in closed form. The data sets are
simulated from a prior twice as wide as the model's: noise and coefficients, in units of the noise, are twice as large.
Prints the share that settles at each stage, the time for each, the largest error of posterior means and sds next to
the closed form, the share marked failed, and the same for plain NUTS by ``correction="nuts"`` and by ``pm.sample``.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings

import arviz as az
import numpy as np
import pymc as pm
import xarray as xr

import pymc_amortized as pma

SHAPE, SCALE, SPREAD, ROWS, WIDER = 3.0, 2.0, 1.5, 20, 2.0
DESIGN = np.random.default_rng(3).normal(size=(ROWS, 3))
DRAWS = 500
WANTED_ERROR = 0.1
"""In posterior sds, beside four Monte Carlo errors."""
WANTED_FAILED = 0.05


def regression() -> pm.Model:
    with pm.Model() as model:
        variance = pm.InverseGamma("variance", SHAPE, SCALE)
        beta = pm.Normal("beta", 0.0, SPREAD * pm.math.sqrt(variance), shape=DESIGN.shape[1])
        pm.Normal("y", pm.math.dot(DESIGN, beta), pm.math.sqrt(variance), observed=np.zeros(ROWS))
    return model


def datasets(number: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    sd = WIDER * np.sqrt(SCALE / rng.gamma(SHAPE, size=(number, 1)))
    beta = WIDER * SPREAD * sd * rng.normal(size=(number, DESIGN.shape[1]))
    return beta @ DESIGN.T + sd * rng.normal(size=(number, ROWS))


def closed_form(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means and sds (data sets, parameters) of beta and log variance."""
    from scipy import special

    precision = DESIGN.T @ DESIGN + np.eye(DESIGN.shape[1]) / SPREAD**2
    mean = np.linalg.solve(precision, DESIGN.T @ y.T).T
    shape = SHAPE + ROWS / 2
    scale = SCALE + (np.square(y).sum(1) - np.einsum("si,ij,sj->s", mean, precision, mean)) / 2
    sd = np.sqrt(np.outer(scale / (shape - 1), np.diag(np.linalg.inv(precision))))
    log_mean, log_sd = np.log(scale) - special.digamma(shape), np.sqrt(special.polygamma(1, shape))
    return np.column_stack([mean, log_mean]), np.column_stack([sd, np.full(len(y), log_sd)])


def errors(draws: xr.Dataset, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of means, in posterior sds, and Monte Carlo errors: the worst parameter of each data set."""
    mean, sd = closed_form(y)
    beta = draws["beta"].transpose("dataset", "chain", "draw", ...).to_numpy()
    log_variance = np.log(draws["variance"].transpose("dataset", "chain", "draw").to_numpy())
    values = np.concatenate([beta, log_variance[..., None]], axis=-1)
    off = np.abs(values.mean((1, 2)) - mean) / sd
    off_sd = np.abs(values.std((1, 2)) / sd - 1)
    ess = [az.ess(az.convert_to_dataset({"v": v}), method="mean")["v"].to_numpy() for v in values]
    allowed = WANTED_ERROR + 4 / np.sqrt(np.array(ess))
    worst = np.argmax(off - allowed, axis=1)
    rows = np.arange(len(off))
    return np.column_stack([off[rows, worst], off_sd.max(1)]), allowed[rows, worst]


def report(name: str, dt: xr.DataTree, y: np.ndarray, seconds: float) -> None:
    stage = dt.sample_stats["stage"].to_numpy()
    off, allowed = errors(dt.posterior.to_dataset(), y)
    settled = stage != "failed"
    counts = {s: int((stage == s).sum()) for s in ("psis", "nuts", "failed", "raw") if (stage == s).any()}
    beyond = int((off[settled, 0] > allowed[settled]).sum())
    print(
        f"{name:34s} {seconds / len(y):7.3f} s each   {counts}\n"
        f"{'':34s} largest error of a mean {off[settled, 0].max():.3f} sd, beyond {WANTED_ERROR} sd + 4 Monte Carlo "
        f"errors: {beyond} (wanted: 0); of an sd {off[settled, 1].max():.0%}; "
        f"failed {1 - settled.mean():.1%} (wanted: at most {WANTED_FAILED:.0%})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--max-time", type=float, default=20.0, help="seconds of training")
    parser.add_argument("--nuts", type=int, default=50, help="data sets for plain NUTS")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    posterior = pma.fit_posterior(regression(), random_seed=1, max_time=arguments.max_time, progressbar=False)
    y = datasets(arguments.datasets)
    common = {"batched": True, "draws": DRAWS, "random_seed": 1, "progressbar": False}
    posterior.sample({"y": y[:2]}, **common)  # compiles

    def run(name: str, some: np.ndarray, **kwargs: object) -> None:
        started = time.perf_counter()
        dt = posterior.sample({"y": some}, **common, **kwargs)
        report(name, dt, some, time.perf_counter() - started)

    own = pma.simulate(regression(), arguments.datasets, random_seed=2).prior_predictive["y"].values[0]
    run("the model's own prior, auto", own)
    run("twice as wide, psis", y, correction="psis")
    run("twice as wide, auto without NUTS", y, max_nuts=0)
    run("twice as wide, auto", y)  # compiles NUTS, if it needs it
    some = y[: arguments.nuts]
    run("twice as wide, nuts", some, correction="nuts")
    started = time.perf_counter()
    with posterior.to_model({"y": some[0]}):
        pm.sample(DRAWS, chains=4, progressbar=False, quiet=True, random_seed=1)
    print(f"{'pm.sample, one data set':34s} {time.perf_counter() - started:7.3f} s")


if __name__ == "__main__":
    main()
