"""Posterior predictive draws and pointwise log likelihoods of many data sets, next to PyMC's own functions.

The peer is used as fast as its user can: one model, whose data are set for every data set, so that what PyMC can
keep compiled stays compiled. It is timed on a few data sets after a first call.

    python benchmarks/predictive.py [data sets] [draws]
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import numpy as np
import pymc as pm
import xarray as xr

import pymc_amortized as pma

PEER_DATASETS = 5
ROWS = 30
CHAINS = 4


def regression() -> pm.Model:
    rng = np.random.default_rng(0)
    with pm.Model(coords={"obs": np.arange(ROWS)}) as model:
        x = pm.Data("x", rng.normal(size=ROWS), dims="obs")
        y_data = pm.Data("y_data", rng.normal(size=ROWS), dims="obs")
        intercept = pm.Normal("intercept", 0, 1)
        slope = pm.Normal("slope", 0, 1)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", intercept + slope * x, sigma, observed=y_data, dims="obs")
    return model


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peer_seconds(model: pm.Model, dts: xr.DataTree, function: Callable[[xr.DataTree], object]) -> float:
    """Seconds per data set of a function of PyMC's, after a first call."""
    taken = []
    for i in range(PEER_DATASETS + 1):
        one = dts.isel(dataset=i)
        with model:
            pm.set_data({"y_data": one.observed_data.y.values})
            taken.append(seconds(lambda: function(one)))  # noqa: B023
    return float(np.mean(taken[1:]))


def main(datasets: int = 1000, draws: int = 1000) -> None:
    model = regression()
    posterior = pma.fit_posterior(model, random_seed=1, max_time=10, progressbar=False)
    ys = pma.simulate(model, datasets, random_seed=2).prior_predictive["y"].values[0]
    dts = posterior.sample({"y": ys}, batched=True, draws=draws // CHAINS, chains=CHAINS, random_seed=3)
    small = dts.isel(dataset=slice(2))
    quiet = {"progressbar": False, "extend_inferencedata": False}
    pairs = {
        "posterior predictive": (
            lambda dt: posterior.sample_posterior_predictive(dt, random_seed=4),
            lambda dt: pm.sample_posterior_predictive(dt, random_seed=4, **quiet),
        ),
        "pointwise log likelihood": (
            lambda dt: posterior.compute_log_likelihood(dt, extend_inferencedata=False),
            lambda dt: pm.compute_log_likelihood(dt, **quiet),
        ),
    }
    print(f"{datasets} data sets of {ROWS} rows x {draws} draws")
    for name, (ours, theirs) in pairs.items():
        first = seconds(lambda: ours(small))  # noqa: B023
        here = seconds(lambda: ours(dts))  # noqa: B023
        peer = peer_seconds(model, dts, theirs) * datasets
        print(
            f"{name:26} {here:6.2f} s (compiling once: {first:.1f} s); "
            f"PyMC {peer:7.1f} s (by {PEER_DATASETS} of them): {peer / here:.0f} times as long"
        )


if __name__ == "__main__":
    logging.getLogger("pymc").setLevel(logging.ERROR)
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    main(*map(int, sys.argv[1:]))
