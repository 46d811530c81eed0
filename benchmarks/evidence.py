"""Log marginal likelihoods from importance weights, next to closed forms and to ``pm.sample_smc``.

    python benchmarks/evidence.py [--max-time 20] [--repeats 4]

For two conjugate models: the largest difference from the closed form over simulated data sets, and in units of the
reported error. For three others: the difference from the mean of repeated runs of ``pm.sample_smc``, in units of both
errors, and the time of each.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable

import numpy as np
import pymc as pm
from scipy import stats

import pymc_amortized as pma

ROWS, DATASETS = 20, 50
DESIGN = np.random.default_rng(3).normal(size=(ROWS, 2))
SHAPE, SCALE, SPREAD = 3.0, 2.0, 1.5
WANTED = 0.05, 3.0
"""Largest difference from a closed form, and from SMC in reported errors."""


def normal_mean() -> pm.Model:
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 1.0, 2.0), 3.0, observed=np.zeros(ROWS))
    return model


def normal_mean_evidence(y: np.ndarray) -> np.ndarray:
    return stats.multivariate_normal(np.ones(ROWS), 9.0 * np.eye(ROWS) + 4.0).logpdf(y)


def conjugate_regression() -> pm.Model:
    with pm.Model() as model:
        variance = pm.InverseGamma("variance", SHAPE, SCALE)
        beta = pm.Normal("beta", 0.0, SPREAD * pm.math.sqrt(variance), shape=2)
        pm.Normal("y", pm.math.dot(DESIGN, beta), pm.math.sqrt(variance), observed=np.zeros(ROWS))
    return model


def conjugate_regression_evidence(y: np.ndarray) -> np.ndarray:
    shape = SCALE / SHAPE * (np.eye(ROWS) + SPREAD**2 * DESIGN @ DESIGN.T)
    return stats.multivariate_t(np.zeros(ROWS), shape, 2 * SHAPE).logpdf(y)


def logistic_regression() -> pm.Model:
    rng = np.random.default_rng(1)
    y = rng.random(ROWS) < 1 / (1 + np.exp(-DESIGN @ [1.0, -1.0]))
    with pm.Model() as model:
        beta = pm.Normal("beta", 0.0, 1.5, shape=2)
        pm.Bernoulli("y", logit_p=pm.math.dot(DESIGN, beta), observed=y.astype(int))
    return model


def counts() -> pm.Model:
    y = np.random.default_rng(2).negative_binomial(2.0, 0.3, size=ROWS)
    with pm.Model() as model:
        mu = pm.LogNormal("mu", 1.0, 1.0)
        alpha = pm.Exponential("alpha", 0.5)
        pm.NegativeBinomial("y", mu=mu, alpha=alpha, observed=y)
    return model


def eight_schools() -> pm.Model:
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 5.0)
        z = pm.Normal("z", 0.0, 1.0, shape=8)
        pm.Normal("y", mu + tau * z, error, observed=[28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return model


def fitted(model: pm.Model, max_time: float) -> pma.AmortizedPosterior:
    return pma.fit_posterior(model, random_seed=1, max_time=max_time, progressbar=False)


def beside_closed_form(
    build: Callable[[], pm.Model], exact: Callable[[np.ndarray], np.ndarray], max_time: float
) -> None:
    posterior = fitted(build(), max_time)
    y = pma.simulate(build(), DATASETS, random_seed=2).prior_predictive["y"].to_numpy()[0]
    posterior.log_marginal_likelihood({"y": y[:1]}, batched=True, random_seed=0)  # compiles
    started = time.perf_counter()
    found = posterior.log_marginal_likelihood({"y": y}, batched=True, random_seed=1)
    seconds = (time.perf_counter() - started) / DATASETS
    off = np.abs(found["log_marginal_likelihood"].to_numpy() - exact(y))
    without = int(np.isnan(off).sum())
    print(
        f"{build.__name__:22s} {DATASETS} data sets: largest difference {np.nanmax(off):.4f} (wanted: {WANTED[0]}), "
        f"{np.nanmax(off / found['mcse'].to_numpy()):.1f} reported errors; without answer {without}; "
        f"{seconds:.3f} s each",
        flush=True,
    )


def beside_smc(build: Callable[[], pm.Model], max_time: float, repeats: int) -> None:
    posterior = fitted(build(), max_time)
    posterior.log_marginal_likelihood(random_seed=0)
    started = time.perf_counter()
    found = posterior.log_marginal_likelihood(random_seed=1)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    with build():
        tree = pm.sample_smc(2000, chains=repeats, cores=1, random_seed=1, progressbar=False)
    theirs = time.perf_counter() - started
    stages = tree.sample_stats["log_marginal_likelihood"].to_numpy()
    runs = np.array([float(np.ravel(chain)[-1]) if np.ndim(chain) else float(chain) for chain in _last(stages)])
    smc, error = runs.mean(), runs.std(ddof=1) / np.sqrt(len(runs))
    value, mcse = float(found["log_marginal_likelihood"]), float(found["mcse"])
    print(
        f"{build.__name__:22s} {value:9.3f} ± {mcse:.3f}, {ours:5.2f} s; SMC {smc:9.3f} ± {error:.3f}, "
        f"{theirs:5.1f} s; "
        f"difference {abs(value - smc) / np.hypot(mcse, error):.1f} errors (wanted: {WANTED[1]:.0f})",
        flush=True,
    )


def _last(stages: np.ndarray) -> list[np.ndarray]:
    """The estimate of each chain after its last stage; SMC reports one for each stage."""
    return [np.asarray([v for v in np.ravel(chain) if v is not None and np.isfinite(v)]) for chain in stages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-time", type=float, default=20.0, help="seconds of training")
    parser.add_argument("--repeats", type=int, default=4, help="chains of SMC, each an estimate of its own")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    beside_closed_form(normal_mean, normal_mean_evidence, arguments.max_time)
    beside_closed_form(conjugate_regression, conjugate_regression_evidence, arguments.max_time)
    for build in (logistic_regression, counts, eight_schools):
        beside_smc(build, arguments.max_time, arguments.repeats)


if __name__ == "__main__":
    main()
