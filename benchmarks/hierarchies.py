"""Hierarchies beside NUTS: one training for each model, then simulated data sets, each also sampled by nutpie.

    python benchmarks/hierarchies.py [model ...] [--datasets 3] [--batch 30] [--max-time 60] [--length 1000]

Prints, for each model, seconds of the fit, of one data set here, of each of a batch, and of one by NUTS once its model
is compiled, from how many data sets on the fit pays, stages of the batch, and the largest errors of means (in posterior
sds) and of sds, of parameters and of values of groups. Data sets at which chains of NUTS themselves do not agree (R-hat
above 1.01, or divergences in more than one draw of a hundred) are counted as unsure, not compared.
"""

import argparse
import logging
import time
from collections.abc import Callable
from typing import Any

import arviz as az
import numpy as np
import nutpie
import pymc as pm
import pytensor.tensor as pt
import xarray as xr

import pymc_amortized as pma

Built = tuple[pm.Model, dict[str, Any]]


def radon() -> Built:
    """Houses in any number of counties, as Gelman and Hill's."""
    rng = np.random.default_rng(1)
    with pm.Model(coords={"county": range(85)}) as model:
        basement = pm.Data("basement", rng.integers(0, 2, 919), dims="house")
        county = pm.Data("county_index", rng.integers(0, 85, 919), dims="house")
        mu, tau = pm.Normal("mu", 0, 2), pm.HalfNormal("tau", 1)
        slope, sigma = pm.Normal("slope", 0, 1), pm.HalfNormal("sigma", 1)
        effect = pm.Normal("effect", mu, tau, dims="county")
        pm.Normal("y", effect[county] + slope * basement, sigma, observed=np.zeros(919), dims="house")
    sources = {"county_index": "groups", "basement": pm.Bernoulli.dist(0.3)}
    return model, {"county": (5, 200), "house": (20, 2000), **sources}


def schools() -> Built:
    """Four to fifty schools."""
    with pm.Model(coords={"school": range(8)}) as model:
        error = pm.Data("error", np.linspace(9.0, 18.0, 8), dims="school")
        mu, tau = pm.Normal("mu", 0, 10), pm.HalfNormal("tau", 10)
        effect = pm.Normal("effect", mu, tau, dims="school")
        pm.Normal("y", effect, error, observed=np.zeros(8), dims="school")
    return model, {"school": (4, 50), "error": pm.Uniform.dist(8.0, 20.0)}


def hospitals() -> Built:
    """Successes in twelve groups, centered."""
    trials = np.random.default_rng(0).integers(5, 30, 12)
    with pm.Model(coords={"hospital": range(12)}) as model:
        mu, log_sigma = pm.Normal("mu", -1.5, 1), pm.Normal("log_sigma", -0.5, 1)
        logit = pm.Normal("logit", mu, pt.exp(log_sigma), dims="hospital")
        pm.Binomial("y", trials, logit_p=logit, observed=np.zeros(12, dtype=int), dims="hospital")
    return model, {}


def counts(*, by_simulator: bool = False) -> Built:
    """Counts in any number of groups, centered."""

    def draw(rng: np.random.Generator, log_rate: np.ndarray, size: Any = None) -> np.ndarray:
        return rng.poisson(np.exp(log_rate), size=size).astype(float)

    with pm.Model(coords={"site": range(30)}) as model:
        site = pm.Data("site_index", np.arange(120) % 30, dims="visit")
        mu, tau = pm.Normal("mu", 1, 1), pm.HalfNormal("tau", 0.7)
        rate = pm.Normal("rate", mu, tau, dims="site")
        if by_simulator:
            pm.Simulator("y", draw, rate[site], observed=np.ones(120), dims="visit")
        else:
            pm.Poisson("y", pt.exp(rate[site]), observed=np.ones(120, dtype=int), dims="visit")
    return model, {"site": (5, 100), "visit": (20, 400), "site_index": "groups"}


def simulated() -> Built:
    """The same without a density."""
    return counts(by_simulator=True)


def three_levels() -> Built:
    """Pupils in classes in schools."""
    rng = np.random.default_rng(2)
    school, cls = np.arange(24) % 8, rng.integers(0, 24, 300)
    with pm.Model(coords={"school": range(8), "class": range(24)}) as model:
        mu, sigma = pm.Normal("mu", 0, 2), pm.HalfNormal("sigma", 1)
        between, within = pm.HalfNormal("between", 1), pm.HalfNormal("within", 1)
        a = pm.Normal("a", mu, between, dims="school")
        c = pm.Normal("c", a[school], within, dims="class")
        pm.Normal("y", c[cls], sigma, observed=np.zeros(300))
    return model, {}


def crossed() -> Built:
    """60 subjects, 40 items."""
    subject, item = (v.ravel() for v in np.meshgrid(range(60), range(40), indexing="ij"))
    with pm.Model(coords={"subject": range(60), "item": range(40)}) as model:
        mu, sigma = pm.Normal("mu", 0, 2), pm.HalfNormal("sigma", 1)
        spread = pm.HalfNormal("spread", 1, shape=2)
        a, b = pm.Normal("a", 0, spread[0], dims="subject"), pm.Normal("b", 0, spread[1], dims="item")
        pm.Normal("y", mu + a[subject] + b[item], sigma, observed=np.zeros(2400))
    return model, {}


def slopes() -> Built:
    """Correlated intercepts and slopes of 30 groups."""
    rng = np.random.default_rng(4)
    group, x = rng.integers(0, 30, 300), rng.normal(size=300)
    with pm.Model(coords={"group": range(30), "effect": ["intercept", "slope"]}) as model:
        mu, sigma = pm.Normal("mu", 0, 1, dims="effect"), pm.HalfNormal("sigma", 1)
        chol, *_ = pm.LKJCholeskyCov("chol", n=2, eta=2, sd_dist=pm.Exponential.dist(1), compute_corr=True)
        b = pm.MvNormal("b", mu, chol=chol, dims=("group", "effect"))
        pm.Normal("y", b[group, 0] + b[group, 1] * x, sigma, observed=np.zeros(300))
    return model, {}


def items() -> Built:
    """Item response: 100 persons, 20 items, right or wrong."""
    with pm.Model(coords={"person": range(100), "item": range(20)}) as model:
        mu, spread = pm.Normal("mu", 0, 1), pm.HalfNormal("spread", 1.5)
        ability = pm.Normal("ability", 0, 1, dims="person")
        difficulty = pm.Normal("difficulty", mu, spread, dims="item")
        logit = ability[:, None] - difficulty[None]
        pm.Bernoulli("y", logit_p=logit, observed=np.zeros((100, 20), dtype=int), dims=("person", "item"))
    return model, {}


def walk(length: int = 100) -> Built:
    """A latent random walk."""
    with pm.Model() as model:
        step, sigma = pm.HalfNormal("step", 1), pm.HalfNormal("sigma", 1)
        level = pm.GaussianRandomWalk("level", mu=0, sigma=step, init_dist=pm.Normal.dist(0, 2), shape=length)
        pm.Normal("y", level, sigma, observed=np.zeros(length))
    return model, {}


def volatility(length: int = 100) -> Built:
    """Stochastic volatility."""
    with pm.Model() as model:
        step = pm.Exponential("step", 10)
        log_variance = pm.GaussianRandomWalk("level", mu=0, sigma=step, init_dist=pm.Normal.dist(0, 2), shape=length)
        pm.Normal("y", 0, pt.exp(log_variance / 2), observed=np.full(length, 0.1))
    return model, {}


MODELS: dict[str, Callable[..., Built]] = {
    f.__name__: f
    for f in (radon, schools, hospitals, counts, simulated, three_levels, crossed, slopes, items, walk, volatility)
}
WITH_DENSITY = {"simulated": counts}
"""Models that NUTS is given instead."""


def main() -> None:
    """Compare each model that is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--datasets", type=int, default=3)
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--max-time", type=float)
    parser.add_argument("--length", type=int, help="of walk and volatility")
    options = parser.parse_args()
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    print(
        "model          fit s   one s  each of a batch s  NUTS s  pays from  stages                  "
        "mean (sd)  sd ratio      NUTS unsure"
    )
    for name in options.models:
        shape = (options.length,) if options.length and name in ("walk", "volatility") else ()
        compare(name, options.datasets, options.batch, options.max_time, shape)


def compare(name: str, number: int, many: int, max_time: float | None, shape: tuple[int, ...]) -> None:
    """Print a line for one model."""
    model, context = MODELS[name](*shape)
    start = time.perf_counter()
    posterior = pma.fit_posterior(model, context=context, max_time=max_time, random_seed=1, progressbar=False)
    fit = time.perf_counter() - start
    simulated = pma.simulate(model, many, context=context, random_seed=7)
    sets = [one_of(simulated, i) for i in range(many)]
    known = posterior
    if name in WITH_DENSITY:
        brief = {"training": pma.Training(num_steps=1), "sketch": False, "progressbar": False}
        known = pma.fit_posterior(WITH_DENSITY[name]()[0], context=context, **brief)
    posterior.sample(sets[0], draws=50, random_seed=0, progressbar=False)  # compiles
    start = time.perf_counter()
    batch = posterior.sample(sets, batched=True, random_seed=0, max_time=None, progressbar=False)
    each, stages = (time.perf_counter() - start) / many, batch.sample_stats["stage"].to_numpy().tolist()
    here, there, means, sds, unsure = [], [], [], [], 0
    for i, data in enumerate(sets[:number]):
        start = time.perf_counter()
        draws = posterior.sample(data, random_seed=i, progressbar=False)
        here.append(time.perf_counter() - start)
        compiled = nutpie.compile_pymc_model(known.to_model(data))
        start = time.perf_counter()
        options = {"draws": 2000, "tune": 1000, "chains": 4, "target_accept": 0.95}
        reference = nutpie.sample(compiled, **options, seed=i, progress_bar=False)
        there.append(time.perf_counter() - start)
        names = [p.name for p in posterior.spec.drawn]
        r_hat = max(float(v.max()) for v in az.rhat(reference.posterior.to_dataset()[names]).data_vars.values())
        if r_hat > 1.01 or float(reference.sample_stats["diverging"].mean()) > 0.01:
            unsure += 1
            continue
        errors = [errors_of(draws.posterior[v], reference.posterior[v]) for v in names]
        means.append(max(e[0] for e in errors))
        sds += [e[1] for e in errors] + [e[2] for e in errors]
    gain = np.mean(there) - each
    pays = f"{fit / gain:.0f}" if gain > 0 else "never"
    worst = f"{max(means):.2f}       {min(sds):.2f} to {max(sds):.2f}" if means else "-          -           "
    told = ", ".join(f"{stages.count(s)} {s}" for s in dict.fromkeys(stages))
    print(
        f"{name:13} {fit:6.0f} {np.mean(here):7.2f} {each:18.2f} {np.mean(there):7.1f} {pays:>10}  {told:22}  {worst}  "
        f"{unsure}",
        flush=True,
    )


def one_of(simulated: xr.DataTree, index: int) -> dict[str, Any]:
    """Take one simulated data set, at its own lengths."""
    groups = [simulated["prior_predictive"].to_dataset()]
    if "prior_context" in simulated.children:
        groups.append(simulated["prior_context"].to_dataset())
    both = xr.merge([group.isel(chain=0, draw=index, drop=True) for group in groups], combine_attrs="drop")
    lengths = {str(name).removesuffix("_length"): int(both[name]) for name in both if str(name).endswith("_length")}
    cut = both.drop_vars([f"{dim}_length" for dim in lengths]).isel(
        {d: slice(n) for d, n in lengths.items() if d in both.dims}
    )
    data = {str(name): values.to_numpy() for name, values in cut.items()}
    data = {name: v.astype(int) if "index" in name else v for name, v in data.items()}
    return data | {dim: n for dim, n in lengths.items() if dim not in cut.dims}


def errors_of(draws: xr.DataArray, reference: xr.DataArray) -> tuple[float, float, float]:
    """Largest error of a mean, in sds, and smallest and largest ratio of sds."""
    dims = ("chain", "draw")
    scale = reference.std(dims).to_numpy()
    apart = np.abs(draws.mean(dims).to_numpy() - reference.mean(dims).to_numpy()) / scale
    ratio = draws.std(dims).to_numpy() / scale
    return float(apart.max()), float(ratio.min()), float(ratio.max())


if __name__ == "__main__":
    main()
