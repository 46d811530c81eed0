"""Seconds that a calibration check takes: 500 data sets of a regression, 1,000 draws each, raw and corrected.

Run: python benchmarks/diagnostics.py
"""

from __future__ import annotations

import time

import numpy as np
import pymc as pm

import pymc_amortized as pma


def regression() -> pm.Model:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 2))
    with pm.Model(coords={"covariate": ["age", "dose"]}) as model:
        intercept = pm.Normal("intercept", 0, 2)
        slope = pm.Normal("slope", 0, 2, dims="covariate")
        noise = pm.HalfNormal("noise", 2)
        pm.Normal("y", intercept + x @ slope, noise, observed=rng.normal(size=40))
    return model


def main() -> None:
    posterior = pma.fit_posterior(regression(), max_time=20, random_seed=1, progressbar=False)
    for correction in (None, None, "psis"):
        start = time.perf_counter()
        check = pma.check_calibration(posterior, correction=correction, random_seed=2, progressbar=False)
        seconds = time.perf_counter() - start
        smallest = min(float(check["calibration"].sel(metric="p_adjusted")[q].min()) for q in check["prior_sbc"])
        what = "the network's own draws" if correction is None else "corrected draws"
        print(f"500 data sets x 1,000 of {what}: {seconds:5.1f} s (smallest adjusted p-value {smallest:.2f})")
    start = time.perf_counter()
    pma.check_local_calibration(posterior, random_seed=2, progressbar=False)
    print(f"near one data set, 300 of 10,000 simulations x 200 draws: {time.perf_counter() - start:5.1f} s")
    print("the first of these lines includes compiling")


if __name__ == "__main__":
    main()
