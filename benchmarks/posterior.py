"""Amortized posteriors beside closed forms and NUTS: how right, how fast.

Trains on four models at default settings and compares means and standard deviations of every scalar parameter, of
corrected and of raw draws. The posterior of the linear regression then answers 1,000 data sets in one call, and
one data set again and again; zuko's coupling spline of the same size draws as much beside it. All times and
ratios come from one run.

Run: python benchmarks/posterior.py [models ...] [--datasets 1] [--steps 500]
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import arviz as az
import numpy as np
import pymc as pm
import torch
import xarray as xr
import zuko

import pymc_amortized as pma

MANY = 1000
LONG = 4000  # draws in each of 4 chains where means are compared, so that Monte Carlo errors are small
HEADER = f"""\
The worst parameter against the closed form (conjugate normal) or NUTS, for each data set. Wanted: corrected means
within 0.1 sd (+ 4 Monte Carlo errors), sds 0.9 to 1.1; raw 0.2 and 0.75 to 1.25; training below 120 s.

{"":26s}  {"corrected":^29s}  {"raw":^20s}
{"":20s} train  mean   sd ratio     MC error  mean   sd ratio       k   ESS   of proposals"""


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations of every scalar parameter, with the means' Monte Carlo errors in sds."""

    mean: np.ndarray
    sd: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """How far a posterior is from the reference: the worst parameter."""

    shift: float
    ratios: tuple[float, float]
    error: float

    @classmethod
    def of(cls, found: Moments, reference: Moments) -> Comparison:
        shift = np.abs(found.mean - reference.mean) / reference.sd
        ratio = found.sd / reference.sd
        error = np.hypot(found.error, reference.error)
        return cls(shift.max(), (ratio.min(), ratio.max()), error.max())


@dataclass(frozen=True)
class Nuts:
    """Wall time of one ``pm.sample`` and the part of it that is sampling."""

    seconds: float
    sampling: float


def conjugate_normal() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 2.0)
        pm.Normal("y", mu, 1.0, observed=np.random.default_rng(1).normal(0.5, 1.0, size=20))
    return model


def linear_regression() -> pm.Model:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 5))
    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0.0, 1.0)
        slope = pm.Normal("slope", 0.0, 1.0, shape=5)
        noise = pm.HalfNormal("noise", 1.0)
        y = 0.3 + x @ [1.0, -0.5, 0.0, 0.2, -1.2] + 0.8 * rng.normal(size=100)
        pm.Normal("y", intercept + pm.Data("x", x) @ slope, noise, observed=y)
    return model


def logistic_regression() -> pm.Model:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 3))
    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0.0, 1.0)
        slope = pm.Normal("slope", 0.0, 1.0, shape=3)
        y = rng.random(100) < 1 / (1 + np.exp(-(0.3 + x @ [1.0, -0.5, 0.0])))
        pm.Bernoulli("y", logit_p=intercept + pm.Data("x", x) @ slope, observed=y.astype(int))
    return model


def eight_schools() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        z = pm.Normal("z", 0.0, 1.0, shape=8)
        theta = pm.Deterministic("theta", mu + tau * z)
        error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
        pm.Normal("y", theta, error, observed=[28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return model


def moments(tree: xr.DataTree) -> Moments:
    summary = az.summary(tree, round_to="none").sort_index()  # samplers order variables differently
    mean, sd, error = (summary[column].to_numpy(float) for column in ("mean", "sd", "mcse_mean"))
    return Moments(mean, sd, error / sd)


def closed_form(y: np.ndarray) -> Moments:
    """Posterior of the mean of normal data with unit variance under a Normal(0, 2) prior."""
    precision = len(y) + 1 / 4
    return Moments(np.array([y.sum() / precision]), np.array([precision**-0.5]), np.zeros(1))


def timed[T](
    function: Callable[..., T], *args: object, clock: Callable[[], float] = time.perf_counter, **kwargs: object
) -> tuple[T, float]:
    start = clock()
    result = function(*args, **kwargs)
    return result, clock() - start


def nuts(posterior: pma.AmortizedPosterior, y: np.ndarray, **kwargs: object) -> tuple[Moments, Nuts]:
    with posterior.to_model({"y": y}):
        tree, seconds = timed(pm.sample, chains=4, random_seed=1, progressbar=False, quiet=True, **kwargs)
    sampling = tree.posterior.attrs.get("sampling_time", np.nan)
    return moments(tree), Nuts(seconds, float(sampling))


def datasets(model: pm.Model, name: str, count: int) -> list[np.ndarray]:
    """The model's own data set, and simulated ones."""
    held = np.asarray(model.rvs_to_values[model["y"]].data)
    if name == "eight_schools" or count == 1:  # no sampler finds schools easy that its prior simulates
        return [held]
    simulated = pma.simulate(model, count - 1, random_seed=2).prior_predictive["y"].values[0]
    return [held, *simulated]


def compare(name: str, count: int, steps: int | None) -> tuple[pma.AmortizedPosterior, Nuts | None]:
    """Train on one model and print a line for each data set."""
    model = MODELS[name]()
    options = None if steps is None else pma.Training(num_steps=steps)
    posterior, training = timed(pma.fit_posterior, model, training=options, random_seed=1, progressbar=False)
    times = None
    for i, y in enumerate(datasets(model, name, count)):
        if name == "conjugate_normal":
            reference = closed_form(y)
        else:
            kwargs = {"target_accept": 0.95} if name == "eight_schools" else {}
            # the time quoted is that of the default number of draws
            reference, _ = nuts(posterior, y, draws=LONG, **kwargs)
            if times is None:
                _, times = nuts(posterior, y, **kwargs)
        corrected = posterior.sample({"y": y}, draws=LONG, random_seed=1)
        raw = posterior.sample({"y": y}, draws=LONG, random_seed=2, correction=None)
        fine, rough = (Comparison.of(moments(tree), reference) for tree in (corrected, raw))
        stats = corrected.sample_stats
        efficiency = float(stats.importance_ess) / stats.proposal_log_weight.size
        print(
            f"{name if i == 0 else '':20s} {f'{training:3.0f} s' if i == 0 else '':5s}  "
            f"{fine.shift:5.3f}  {fine.ratios[0]:4.2f} - {fine.ratios[1]:4.2f}  {fine.error:5.3f}     "
            f"{rough.shift:5.3f}  {rough.ratios[0]:4.2f} - {rough.ratios[1]:4.2f}  "
            f"{float(stats.pareto_k):5.2f}  {efficiency:4.0%}  {stats.proposal_log_weight.size:9,d}",
            flush=True,
        )
    return posterior, times


def many(posterior: pma.AmortizedPosterior, model: pm.Model, times: Nuts) -> None:
    """Print what 1,000 data sets cost, and one."""
    ys = pma.simulate(model, MANY, random_seed=3).prior_predictive["y"].values[0]
    result, together = best(lambda: posterior.sample({"y": ys}, batched=True, draws=250, random_seed=1), 3)
    _, single = best(lambda: posterior.sample({"y": ys[0]}, random_seed=1), 20)
    # seconds of the processor are about the same on a machine that does other work besides
    _, busy = best(lambda: posterior.sample({"y": ys}, batched=True, draws=250, random_seed=1), 3, time.process_time)
    _, busy_single = best(lambda: posterior.sample({"y": ys[0]}, random_seed=1), 20, time.process_time)
    k, ess = result.sample_stats.pareto_k.values, result.sample_stats.importance_ess.values
    print(f"\nlinear regression, corrected draws{'':27s} wanted")
    print(f"  {MANY:,} data sets x 1,000 draws    {together:8.2f} s, of the processor {busy:.2f} s  < 1 s")
    both = f"{1e3 * single:8.0f} ms, of the processor {1e3 * busy_single:.0f} ms"
    print(f"  one data set x 4,000 draws       {both}  < 15 ms")
    print(f"  pm.sample, one data set x 4,000 draws {times.seconds:8.2f} s, of which sampling {times.sampling:.2f} s")
    warm, cold = times.sampling, times.seconds
    print(f"  pm.sample over one data set here: {cold / single:.0f}x, its sampling alone {warm / single:.0f}x")
    each = together / MANY
    print(f"  pm.sample over one of {MANY:,} here: {cold / each:,.0f}x, its sampling alone {warm / each:,.0f}x")
    print(f"  Pareto k: median {np.median(k):.2f}, 99 % {np.quantile(k, 0.99):.2f}, largest {k.max():.2f}")
    print(f"  effective sample size of 1,000 draws: median {np.median(ess):.0f}, 1 % {np.quantile(ess, 0.01):.0f}")


def best[T](function: Callable[[], T], repeats: int, clock: Callable[[], float] = time.perf_counter) -> tuple[T, float]:
    result, _ = timed(function)  # compiles
    return result, min(timed(function, clock=clock)[1] for _ in range(repeats))


def beside_zuko(posterior: pma.AmortizedPosterior) -> None:
    """Print what the draws alone cost, by the trained density and by zuko's coupling spline of the same size."""
    density = posterior.network.density
    library = zuko.flows.NSF(
        density.dim,
        density.features,
        transforms=density.layers,
        hidden_features=(density.options.hidden,) * 2,
        bins=density.options.bins,
        passes=2,
        randperm=True,
    )
    context = torch.randn(MANY, density.features)

    def rounds() -> None:
        for _ in range(10):  # a tenth at a time, for memory
            library(context).rsample_and_log_prob((MANY // 10,))

    with torch.inference_mode():
        print(f"\ndraws and their densities alone, {density.dim} parameters, {density.layers} layers")
        print(f"{'':34s} {'here':>10s} {'zuko':>10s}    ratio")
        for what, mine, theirs, repeats in (
            (f"  {MANY:,} data sets x 1,000 draws", lambda: density.sample(MANY, context), rounds, 1),
            (
                "  one data set x 4,000 draws",
                lambda: density.sample(4000, context[:1]),
                lambda: library(context[:1]).rsample_and_log_prob((4000,)),
                10,
            ),
        ):
            own, peer = best(mine, repeats)[1], best(theirs, repeats)[1]
            print(f"{what:34s} {own:8.3f} s {peer:8.3f} s  {peer / own:6.1f}x", flush=True)


MODELS: dict[str, Callable[[], pm.Model]] = {
    f.__name__: f for f in (conjugate_normal, linear_regression, logistic_regression, eight_schools)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all of them by default")
    parser.add_argument("--datasets", type=int, default=1, help="the model's own data set and simulated ones")
    parser.add_argument("--steps", type=int, help="of training, so that a run can be repeated; by the clock by default")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    names = arguments.models or list(MODELS)
    print(HEADER)
    kept = {name: compare(name, arguments.datasets, arguments.steps) for name in names}
    if "linear_regression" in kept:
        posterior, times = kept["linear_regression"]
        many(posterior, linear_regression(), times)
        beside_zuko(posterior)


if __name__ == "__main__":
    main()
