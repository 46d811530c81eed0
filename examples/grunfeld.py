"""One regression, eleven firms: train once, get every firm's posterior in one call, compare with NUTS.

Data: Grunfeld's panel of 11 US firms over 20 years (1935-1954), gross investment, market value and stock of plant and
equipment, as shipped with statsmodels (``statsmodels.datasets.grunfeld``; source: Grunfeld (1958), "The Determinants of
Corporate Investment", University of Chicago; the 11-firm version is due to Kleiber & Zeileis 2010).

The covariates differ between firms, so they are context: in training they come from a generator of
series that wander like theirs.

Run: python examples/grunfeld.py [output folder]
"""

import logging
import sys
import time
from pathlib import Path

import arviz as az
import numpy as np
import pandas as pd
import pymc as pm
import xarray as xr
from statsmodels.datasets import grunfeld

import pymc_amortized as pma

YEARS = range(1935, 1955)
COVARIATES = ["value", "capital"]
NAMES = ["intercept", "slope", "noise"]


def panel() -> xr.Dataset:
    """All firms, each variable standardized within its firm: (dataset, year, covariate)."""
    table = grunfeld.load_pandas().data.set_index(["firm", "year"])[["invest", *COVARIATES]]
    standardized = table.groupby("firm").transform(lambda series: (series - series.mean()) / series.std())
    firms = standardized.index.unique("firm")
    cube = standardized.to_numpy().reshape(len(firms), len(YEARS), 3)
    coords = {"dataset": firms.to_numpy(str), "year": list(YEARS), "covariate": COVARIATES}
    return xr.Dataset(
        {
            "invest": (("dataset", "year"), cube[..., 0]),
            "x": (("dataset", "year", "covariate"), cube[..., 1:]),
        },
        coords=coords,
    )


def wandering(count: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs of correlated series that wander and trend, standardized: (count, year, covariate)."""
    n = len(YEARS)
    steps = rng.normal(size=(count, n, 2))
    correlation = rng.uniform(-0.3, 0.95, size=(count, 1))
    steps[..., 1] = correlation * steps[..., 0] + np.sqrt(1 - correlation**2) * steps[..., 1]
    share = rng.uniform(size=(count, 1, 2))  # between noise and a random walk
    series = share * np.cumsum(steps, axis=1) / np.sqrt(n / 2) + (1 - share) * steps
    series += rng.normal(size=(count, 1, 2)) * np.linspace(-1, 1, n)[:, None]
    return (series - series.mean(axis=1, keepdims=True)) / series.std(axis=1, ddof=1, keepdims=True)


def regression(firm: xr.Dataset) -> pm.Model:
    with pm.Model(coords={"year": list(YEARS), "covariate": COVARIATES}) as model:
        x = pm.Data("x", firm.x.values, dims=("year", "covariate"))
        y = pm.Data("y", firm.invest.values, dims="year")
        intercept = pm.Normal("intercept", 0, 0.5)
        slope = pm.Normal("slope", 0, 1, dims="covariate")
        noise = pm.HalfNormal("noise", 1)
        pm.Normal("invest", intercept + x @ slope, noise, observed=y, dims="year")
    return model


def run_nuts(model: pm.Model, firms: xr.Dataset) -> xr.DataTree:
    """NUTS firm by firm, the results along a leading ``dataset`` dim."""
    results = []
    with model:
        for name in firms.dataset.values:
            firm = firms.sel(dataset=name)
            pm.set_data({"x": firm.x.values, "y": firm.invest.values})
            dt = pm.sample(chains=4, random_seed=1, progressbar=False, quiet=True)
            results.append(dt.posterior.to_dataset())
    return xr.DataTree.from_dict({"posterior": xr.concat(results, dim=firms.dataset)})


def moments(dt: xr.DataTree) -> tuple[xr.DataArray, xr.DataArray]:
    """Means and standard deviations, (dataset, parameter)."""
    posterior = dt.posterior.to_dataset()[NAMES]
    samples = posterior.to_stacked_array("parameter", sample_dims=["dataset", "chain", "draw"])
    return samples.mean(["chain", "draw"]), samples.std(["chain", "draw"])


def table(amortized: xr.DataTree, nuts: xr.DataTree) -> pd.DataFrame:
    mean, sd = moments(amortized)
    reference_mean, reference_sd = moments(nuts)
    shift = abs(mean - reference_mean) / reference_sd
    ratio = sd / reference_sd
    worst = ratio.isel(parameter=abs(np.log(ratio)).argmax("parameter"))
    columns = {}
    for covariate in COVARIATES:
        for name, dt in (("", amortized), (" (NUTS)", nuts)):
            columns[f"{covariate}{name}"] = dt.posterior.slope.sel(covariate=covariate).mean(["chain", "draw"])
    columns["largest shift / sd"] = shift.max("parameter")
    columns["worst sd ratio"] = worst
    columns["Pareto k"] = amortized.sample_stats.pareto_k
    columns["ESS"] = amortized.sample_stats.importance_ess
    index = pd.Index(amortized.posterior["dataset"].values)
    return pd.DataFrame({name: values.values for name, values in columns.items()}, index=index)


def plot(amortized: xr.DataTree, nuts: xr.DataTree, path: Path) -> None:
    collection = az.plot_forest(
        {"NUTS": nuts, "amortized": amortized},
        var_names=["slope"],
        combined=True,
        labels=["covariate", "dataset"],
        figure_kwargs={"figsize": (10, 9), "width_ratios": [1, 1.6]},
    )
    collection.add_legend("model")
    collection.savefig(path, bbox_inches="tight", dpi=150)


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - start


def main(output: Path) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pymc_amortized").setLevel(logging.INFO)
    firms = panel()
    model = regression(firms.isel(dataset=0))

    # drawn from a large pool: a callable runs once for each simulation, so it should be quick
    pool = wandering(50_000, np.random.default_rng(1))
    context = {"x": lambda rng: pool[rng.integers(len(pool))]}
    posterior, training = timed(pma.fit_posterior, model, context=context, random_seed=1)
    amortized, answering = timed(posterior.sample, firms, batched=True, random_seed=1)
    nuts, sampling = timed(run_nuts, model, firms)

    print("\nPosterior means of the slopes, and the largest differences over all parameters:")
    print(table(amortized, nuts).to_string(float_format="{:.2f}".format, formatters={"ESS": "{:.0f}".format}))
    number, total = firms.sizes["dataset"], training + answering
    print(f"\nTraining took {training:.0f} s, then all {number} firms {answering:.2f} s; NUTS {sampling:.0f} s.")
    print(f"Amortized inference takes less time from {np.ceil(total * number / sampling):.0f} firms on.")
    plot(amortized, nuts, output / "grunfeld.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
