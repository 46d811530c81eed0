"""Data sets of different sizes, with and without gaps, beside NUTS.

One network for each model, trained at default settings on all sizes and on data with gaps, answers for data sets of the
smallest, a middle and the largest size, and for one of the middle size of which a fifth is missing. NUTS samples the
same posterior, with what is missing as parameters of its own. The worst parameter is shown.

With --many 60, so many data sets of each size instead, with parameters near the middle of the prior: the network's own
draws beside the same, weighted by the exact density: quantiles over data sets of the worst parameter's difference.

With --alone 200, another network for each size alone, trained as long: the median importance efficiency of both for so
many data sets from the prior.

Run: python benchmarks/sizes.py [models ...] [--max-time 60] [--steps 3000] [--many 60] [--alone 200]
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import arviz as az
import numpy as np
import pymc as pm
import pytensor.tensor as pt
from scipy.special import softmax

import pymc_amortized as pma

GROUPS = 6
NARROW = 0.98  # small steps: centered hierarchies have funnels
HARMLESS = 5.0  # times the mean: weights that may have any Pareto k
HEADER = """\
Wanted: corrected means within 0.1 sd (+ 4 Monte Carlo errors), sds 0.9 to 1.1; raw 0.25 and 0.7 to 1.3.

                                              corrected                 raw
                     size      gaps   mean   sd ratio     MC error  mean   sd ratio         k  efficiency"""


@dataclass(frozen=True)
class Case:
    """A model whose data differ in size.

    Attributes
    ----------
    observe : callable
        Writes the likelihood inside a model, of arrays of covariates and what makes an observed variable of a
        distribution: ``observe(covariates, make)``.
    sizes : tuple of int
    covariates : callable
        (rng, n) -> covariates by name.
    sources : mapping
        Where covariates come from in training.
    """

    observe: Callable[[Mapping[str, Any], Callable[..., Any]], None]
    sizes: tuple[int, int]
    covariates: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    sources: Mapping[str, Any]
    gaps: tuple[str, ...] = ("y",)


def regression(given, make):
    a, b = pm.Normal("a", 0, 1), pm.Normal("b", 0, 1, shape=2)
    make("y", pm.Normal, a + given["x"] @ b, pm.HalfNormal("s", 1))


def logistic(given, make):
    a, b = pm.Normal("a", 0, 1), pm.Normal("b", 0, 1, shape=2)
    make("y", pm.Bernoulli, logit_p=a + given["x"] @ b)


def autoregression(given, make):
    rho, s = pm.Normal("rho", [0.5, -0.2], 0.2), pm.HalfNormal("s", 1)
    make("y", pm.AR, rho, s, init_dist=pm.Normal.dist(0, 1, shape=2))


def local_level(given, make):
    level, noise = pm.HalfNormal("level", 0.5), pm.HalfNormal("noise", 1)
    t = pt.arange(given["n"]).astype("float64")
    walk = 1.0 + level**2 * pt.minimum(t[:, None], t)
    make("y", pm.MvNormal, pt.zeros(given["n"]), walk + (noise**2 + 1e-6) * pt.eye(given["n"]))


def field(given, make):
    length, scale = pm.Gamma("length", 4, 4), pm.HalfNormal("scale", 1)
    cov = scale**2 * pm.gp.cov.Matern52(1, ls=length)(given["x"]) + 0.1 * pt.eye(given["n"])
    make("y", pm.MvNormal, pt.zeros(given["n"]), cov)


def hierarchy(given, make):
    mu, tau, s = pm.Normal("mu", 0, 1), pm.HalfNormal("tau", 1), pm.HalfNormal("s", 1)
    theta = pm.Normal("theta", mu, tau, shape=GROUPS)
    make("y", pm.Normal, theta[given["group"]], s)


def correlated(given, make):
    a, b = pm.Normal("a", 0, 1, shape=2), pm.Normal("b", 0, 1)
    y = make("y", pm.Normal, a[0], 1.0)
    make("z", pm.Normal, a[1] + b * y, pm.HalfNormal("s", 1))


def normal_x(rng, n):
    return {"x": rng.normal(size=(n, 2))}


CASES = {
    "regression": Case(regression, (10, 500), normal_x, {"x": pm.Normal.dist(0, 1)}),
    "logistic": Case(logistic, (20, 500), normal_x, {"x": pm.Normal.dist(0, 1)}),
    "autoregression": Case(autoregression, (20, 200), lambda rng, n: {}, {}),
    "local_level": Case(local_level, (15, 60), lambda rng, n: {}, {}),
    "field": Case(
        field,
        (15, 60),
        lambda rng, n: {"x": np.sort(rng.uniform(0, 5, size=(n, 1)), axis=0)},
        {"x": lambda rng, obs: np.sort(rng.uniform(0, 5, size=(obs, 1)), axis=0)},
    ),
    "hierarchy": Case(
        hierarchy,
        (18, 200),
        lambda rng, n: {"group": rng.integers(GROUPS, size=n)},
        {"group": lambda rng, obs: rng.integers(GROUPS, size=obs)},
    ),
    "correlated": Case(correlated, (10, 200), lambda rng, n: {}, {}, ("y", "z")),
}


def amortizable(case: Case) -> pm.Model:
    """The model with placeholders, whose dimension "obs" varies."""
    n = case.sizes[0]
    with pm.Model(coords={"obs": np.arange(n)}) as model:
        given: dict[str, Any] = {"n": model.dim_lengths["obs"]}
        for name, value in case.covariates(np.random.default_rng(0), n).items():
            given[name] = pm.Data(name, value, dims=("obs", *[None] * (value.ndim - 1)))

        def make(name, dist, *args, **kwargs):
            discrete = dist is pm.Bernoulli
            return dist(name, *args, **kwargs, dims="obs", observed=np.zeros(n, int) if discrete else np.zeros(n))

        case.observe(given, make)
    return model


def conditioned(case: Case, data: Mapping[str, np.ndarray]) -> pm.Model:
    """The same for NUTS: what is missing is a parameter, or a row less where rows are independent."""
    n = len(data[case.gaps[0]])
    with pm.Model() as model:
        given = {k: v for k, v in data.items() if k not in case.gaps} | {"n": n}

        def make(name, dist, *args, **kwargs):
            y, mask = data[name], np.isnan(data[name].astype(float))
            made = dist.dist(*args, **kwargs, **({"shape": n} if dist in (pm.Normal, pm.AR) else {}))
            if dist is pm.Bernoulli:
                pm.Potential(
                    f"{name}_logp", pt.switch(mask, 0.0, pm.logp(made, pt.constant(np.nan_to_num(y)).astype(int)))
                )
                return None
            full = pt.as_tensor(np.nan_to_num(y))
            if mask.any():
                full = full[np.flatnonzero(mask)].set(pm.Flat(f"{name}_gap", shape=int(mask.sum())))
            pm.Potential(f"{name}_logp", pm.logp(made, full))
            return full

        case.observe(given, make)
    return model


def settings(case: Case) -> list[tuple[int, bool]]:
    """Sizes, and whether there are gaps."""
    low, high = case.sizes
    middle = round((low * high) ** 0.5)
    return [(low, False), (middle, False), (high, False), (middle, True)]


def data_sets(case: Case, model: pm.Model, n: int, gaps: bool, simulated: int, count: int) -> dict[str, np.ndarray]:
    """Simulated data sets (count, ...) of one size: at parameters near the middle of the prior."""
    tree = pma.simulate(model, simulated, context={"obs": (n, n), **case.sources}, random_seed=n + gaps)
    chosen = most_typical(tree, simulated)[:count]
    data = {k: tree.prior_predictive[k].values[0, chosen].astype(float) for k in case.gaps}
    if gaps:
        rng = np.random.default_rng(n)
        for values in data.values():
            for one in values:
                one[rng.choice(n, size=round(0.2 * n), replace=False)] = np.nan
    return data | {k: tree.prior_context[k].values[0, chosen] for k in case.sources}


def most_typical(tree, simulated: int) -> np.ndarray:
    """Simulations by how near their parameters are to the prior medians, in interquartile ranges."""
    draws = np.concatenate([tree.prior[v].values[0].reshape(simulated, -1) for v in tree.prior.data_vars], axis=1)
    low, middle, high = np.quantile(draws, [0.25, 0.5, 0.75], axis=0)
    return np.argsort((((draws - middle) / (high - low)) ** 2).sum(1), kind="stable")


def moments(dt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = sorted(v for v in dt.posterior.data_vars if not v.endswith("_gap"))
    flat = [np.moveaxis(dt.posterior[v].values.reshape(*dt.posterior[v].shape[:2], -1), -1, 0) for v in names]
    draws = np.concatenate(flat)
    sd = draws.std(axis=(1, 2))
    ess = np.array([float(az.ess(d)) for d in draws])
    return draws.mean(axis=(1, 2)), sd, sd / np.sqrt(ess)


def compared(found, reference) -> tuple[float, float, float, float]:
    shift = np.abs(found[0] - reference[0]) / reference[1]
    ratio = found[1] / reference[1]
    return shift.max(), ratio.min(), ratio.max(), (np.hypot(found[2], reference[2]) / reference[1]).max()


def fitted(
    name: str,
    case: Case,
    model: pm.Model,
    max_time: float | None,
    steps: int | None,
    sizes: tuple[int, int] | None = None,
    rate: float = 0.2,
) -> pma.AmortizedPosterior:
    start = time.perf_counter()
    posterior = pma.fit_posterior(
        model,
        context={"obs": sizes or case.sizes, **case.sources},
        missing=dict.fromkeys(case.gaps, rate) if rate else {},
        max_time=max_time,
        training=pma.Training(num_steps=steps),
        random_seed=1,
        progressbar=False,
    )
    print(
        f"{name}: fitted in {time.perf_counter() - start:.0f} s, {posterior.provenance.simulations:,} simulations, "
        f"held-out loss {posterior.provenance.held_out_loss:.3f}; {posterior.gaps}",
        flush=True,
    )
    return posterior


def beside_nuts(case: Case, model: pm.Model, posterior: pma.AmortizedPosterior) -> None:
    for n, gaps in settings(case):
        data = {name: values[0] for name, values in data_sets(case, model, n, gaps, 50, 1).items()}
        corrected = posterior.sample(data, draws=4000, random_seed=1)
        raw = posterior.sample(data, draws=4000, correction=None, random_seed=1)
        nuts = pm.sample(
            4000,
            chains=4,
            target_accept=NARROW,
            model=conditioned(case, data),
            random_seed=1,
            progressbar=False,
            quiet=True,
        )
        reference = moments(nuts)
        c, r = compared(moments(corrected), reference), compared(moments(raw), reference)
        stats = corrected.sample_stats
        efficiency = float(stats.importance_ess) / stats.proposal_log_weight.size
        print(
            f"{'':20s} {n:4d} {'20 %' if gaps else '':>8s}   {c[0]:.3f}  {c[1]:.2f} - {c[2]:.2f}  {c[3]:.3f}     "
            f"{r[0]:.3f}  {r[1]:.2f} - {r[2]:.2f}  {float(stats.pareto_k):8.2f}  {efficiency:6.0%}",
            flush=True,
        )


def beside_weighted(case: Case, model: pm.Model, posterior: pma.AmortizedPosterior, count: int) -> None:
    """The network's draws beside the same, weighted by the exact density."""
    for n, gaps in settings(case):
        data = data_sets(case, model, n, gaps, 5 * count, count)
        raw = posterior.sample(data, batched=True, correction=None, draws=1000, random_seed=1)
        draws = np.concatenate([v.values.reshape(count, 4000, -1) for v in raw.posterior.data_vars.values()], axis=2)
        weight = softmax((raw.sample_stats["lp"] - raw.sample_stats["log_q"]).values.reshape(count, 4000), axis=1)
        settled = (raw.sample_stats["pareto_k"].values < 0.7) | (4000 * weight.max(axis=1) < HARMLESS)
        draws, weight = draws[settled], weight[settled]
        mean = np.einsum("ns,nsk->nk", weight, draws)
        sd = np.sqrt(np.einsum("ns,nsk->nk", weight, (draws - mean[:, None]) ** 2))
        shift, ratio = np.abs(draws.mean(1) - mean) / sd, draws.std(1) / sd
        beyond = (shift > 0.25).any(1) | (ratio < 0.7).any(1) | (ratio > 1.3).any(1)
        q = np.quantile(shift.max(1), [0.5, 0.9, 1.0])
        low, high = np.quantile(ratio.min(1), 0.1), np.quantile(ratio.max(1), 0.9)
        efficiency = np.median(raw.sample_stats["importance_ess"].values) / 4000
        print(
            f"{'':20s} {n:4d} {'20 %' if gaps else '':>8s}   {settled.sum()} of {count} with reliable weights; means "
            f"off by {q[0]:.2f} (median), {q[1]:.2f} (nine tenths), {q[2]:.2f} sd; sds {low:.2f} to {high:.2f} for "
            f"eight tenths; {beyond.sum()} beyond 0.25 sd or 30 %; efficiency {efficiency:.0%}",
            flush=True,
        )


def beside_alone(name: str, case: Case, model: pm.Model, count: int, max_time: float | None, steps: int | None) -> None:
    """Networks for all sizes and for one, without gaps."""
    every = fitted(name, case, model, max_time, steps, rate=0.0)
    for n in dict.fromkeys(n for n, _ in settings(case)):
        alone = fitted(f"{name}, {n} alone", case, model, max_time, steps, (n, n), rate=0.0)
        tree = pma.simulate(model, count, context={"obs": (n, n), **case.sources}, random_seed=n)
        data = {k: tree.prior_predictive[k].values[0] for k in case.gaps}
        data |= {k: tree.prior_context[k].values[0] for k in case.sources}
        efficiency = [
            np.median(raw.sample_stats["importance_ess"]) / raw.sample_stats["num_proposals"][0].item()
            for raw in (p.sample(data, batched=True, correction=None, random_seed=1) for p in (every, alone))
        ]
        print(f"{'':20s} {n:4d}   all sizes {efficiency[0]:.1%}, alone {efficiency[1]:.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", choices=[[], *CASES])
    parser.add_argument("--max-time", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--many", type=int)
    parser.add_argument("--alone", type=int)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    for name in ("pymc", "pymc.sampling"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not arguments.many and not arguments.alone:
        print(HEADER)
    for name in arguments.models or CASES:
        case, model = CASES[name], amortizable(CASES[name])
        if arguments.alone:
            beside_alone(name, case, model, arguments.alone, arguments.max_time, arguments.steps)
            continue
        posterior = fitted(name, case, model, arguments.max_time, arguments.steps)
        if arguments.many:
            beside_weighted(case, model, posterior, arguments.many)
        else:
            beside_nuts(case, model, posterior)
