"""A posterior and a likelihood trained together, beside each trained alone; and what the likelihood is good for.

The same model is written twice: with its density, and as a simulator that has none.

1. Held-out losses and seconds: alone one after the other, and together.
2. The log evidence by the learned likelihood beside a closed form or quadrature.
3. Draws of the simulator, corrected by the learned likelihood, beside NUTS on the exact density: the largest shift of a
   mean in posterior sds, and the ratios of sds.

    python benchmarks/joint.py [--seconds 120] [--only losses evidence nuts]
"""

import argparse
import logging
import time
import warnings

import numpy as np
import pymc as pm
from scipy import stats

import pymc_amortized as pma

ROWS, PRIOR_SD, NOISE = 50, 2.0, 1.0
X = np.random.default_rng(0).normal(size=ROWS)
QUIET = {"random_seed": 1, "progressbar": False}
DATASETS = 5


def draw(mu, sigma, rng=None, size=None):
    return rng.normal(mu, sigma, size=size)


def regression(exact, known_noise=False, values=None):
    """A line with noise, which is known where the evidence has a closed form."""
    with pm.Model() as model:
        intercept, slope = pm.Normal("intercept", 0, PRIOR_SD), pm.Normal("slope", 0, PRIOR_SD)
        noise = NOISE if known_noise else pm.LogNormal("noise", 0, 0.5)
        observed = np.zeros(ROWS) if values is None else values
        if exact:
            pm.Normal("y", intercept + slope * X, noise, observed=observed)
        else:
            pm.CustomDist("y", intercept + slope * X, noise, random=draw, observed=observed)
    return model


def data(known_noise=False, count=DATASETS):
    return pma.simulate(regression(True, known_noise), count, random_seed=5).prior_predictive["y"].values[0]


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    return function(*args, **kwargs), time.perf_counter() - start


def losses(seconds):
    """1. Alone, each with its share of the time as by default (180 and 240 s); then together, with two thirds of it."""
    model = regression(exact=True)
    posterior, first = timed(pma.fit_posterior, model, max_time=seconds * 0.4, **QUIET)
    likelihood, second = timed(pma.fit_likelihood, model, max_time=seconds * 0.6, **QUIET)
    joint, both = timed(pma.fit_joint, model, max_time=seconds * 2 / 3, **QUIET)
    print(f"alone: {first:.0f} s + {second:.0f} s; together: {both:.0f} s, compiling included")
    pairs = (("posterior", posterior, joint.posterior), ("likelihood", likelihood, joint.likelihood))
    for name, alone, together in pairs:
        values = [part.provenance.held_out_loss for part in (alone, together)]
        print(f"  {name}: held-out loss {values[0]:.3f} alone, {values[1]:.3f} together")


def evidence(seconds):
    """2. With known noise, the data are multivariate normal."""
    joint = pma.fit_joint(regression(exact=False, known_noise=True), max_time=seconds, **QUIET)
    ys = data(known_noise=True)
    covariance = NOISE**2 * np.eye(ROWS) + PRIOR_SD**2 * (1 + np.outer(X, X))
    exact = stats.multivariate_normal(np.zeros(ROWS), covariance).logpdf(ys)
    found = joint.log_marginal_likelihood({"y": ys}, batched=True, random_seed=1)
    for truth, value, error in zip(exact, *(found[k].values for k in ("log_marginal_likelihood", "mcse")), strict=True):
        print(f"  log evidence {value:.2f} (mcse {error:.3f}), exactly {truth:.2f}: {value - truth:+.2f}")


def against_nuts(joint, ys, corrections):
    """Largest shifts of means and ratios of sds, for each way of correction."""
    for correction in corrections:
        shifts, ratios, efficiency = [], [], []
        for y in ys:
            dt = joint.posterior.sample({"y": y}, correction=correction, random_seed=1, progressbar=False)
            for name, (mean, sd) in reference(y).items():
                mine = dt["posterior"][name].values
                shifts.append(abs(mine.mean() - mean) / sd)
                ratios.append(mine.std() / sd)
            efficiency.append(float(dt["sample_stats"]["importance_ess"]) / 4000)
        print(
            f"    {correction or 'raw'}: means {np.max(shifts):.2f} sd (mean {np.mean(shifts):.2f}), "
            f"sds {min(ratios):.2f} to {max(ratios):.2f}, "
            f"importance ESS {np.median(efficiency):.2f} for each draw (median)",
            flush=True,
        )


KEPT = {}


def reference(y):
    """Posterior means and sds by NUTS on the exact density."""
    key = y.tobytes()
    if key not in KEPT:
        dt = pm.sample(
            model=regression(True, values=y), draws=2000, tune=500, chains=2, cores=1, random_seed=1, progressbar=False
        )
        KEPT[key] = {k: (float(v.mean()), float(v.std())) for k, v in dt["posterior"].data_vars.items()}
    return KEPT[key]


def nuts(seconds):
    """3. The simulator's posterior beside NUTS."""
    joint = pma.fit_joint(regression(exact=False), max_time=seconds, **QUIET)
    against_nuts(joint, data(), (None, "psis"))


PARTS = {"losses": losses, "evidence": evidence, "nuts": nuts}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--only", nargs="*", default=list(PARTS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pymc").setLevel(logging.ERROR)
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    for name in arguments.only:
        print(f"{name}:", flush=True)
        PARTS[name](arguments.seconds)


if __name__ == "__main__":
    main()
