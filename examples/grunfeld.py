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


def wandering(rng: np.random.Generator) -> np.ndarray:
    """Two correlated series that wander and trend, standardized, (year, covariate)."""
    n = len(YEARS)
    steps = rng.normal(size=(n, 2))
    correlation = rng.uniform(-0.3, 0.95)
    steps[:, 1] = correlation * steps[:, 0] + np.sqrt(1 - correlation**2) * steps[:, 1]
    share = rng.uniform(0, 1, size=2)  # between noise and a random walk
    series = share * np.cumsum(steps, axis=0) / np.sqrt(n / 2) + (1 - share) * steps
    series += rng.normal(0, 1, size=2) * np.linspace(-1, 1, n)[:, None]
    return (series - series.mean(axis=0)) / series.std(axis=0, ddof=1)


def regression(firm: xr.Dataset) -> pm.Model:
    with pm.Model(coords={"year": list(YEARS), "covariate": COVARIATES}) as model:
        x = pm.Data("x", firm.x.values, dims=("year", "covariate"))
        y = pm.Data("y", firm.invest.values, dims="year")
        intercept = pm.Normal("intercept", 0, 0.5)
        slope = pm.Normal("slope", 0, 1, dims="covariate")
        noise = pm.HalfNormal("noise", 1)
        pm.Normal("invest", intercept + x @ slope, noise, observed=y, dims="year")
    return model


def run_nuts(model: pm.Model, firms: xr.Dataset) -> list[xr.DataTree]:
    results = []
    with model:
        for name in firms.dataset.values:
            firm = firms.sel(dataset=name)
            pm.set_data({"x": firm.x.values, "y": firm.invest.values})
            results.append(pm.sample(random_seed=1, progressbar=False))
    return results


def table(amortized: xr.DataTree, nuts: list[xr.DataTree]) -> pd.DataFrame:
    rows = {}
    for i, name in enumerate(amortized.posterior["dataset"].values):
        ours = az.extract(amortized.posterior.to_dataset().isel(dataset=i), var_names=NAMES)
        theirs = az.extract(nuts[i], var_names=NAMES)
        shift = (ours.mean("sample") - theirs.mean("sample")) / theirs.std("sample")
        ratio = ours.std("sample") / theirs.std("sample")
        rows[name] = {
            "slope[value]": float(theirs["slope"].mean("sample")[0]),
            "slope[capital]": float(theirs["slope"].mean("sample")[1]),
            "largest shift / sd": float(max(abs(shift[n]).max() for n in NAMES)),
            "sd ratio, worst": float(max((ratio[n].values.ravel() for n in NAMES), key=lambda r: abs(r - 1).max()).max()),
            "pareto k": float(amortized.sample_stats.pareto_k[i]),
        }
    return pd.DataFrame(rows).T


def main(output: Path) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pymc_amortized").setLevel(logging.INFO)
    firms = panel()
    model = regression(firms.isel(dataset=0))

    start = time.perf_counter()
    posterior = pma.fit_posterior(model, context={"x": wandering}, random_seed=1)
    training = time.perf_counter() - start
    posterior.sample(firms, batched=True, draws=10)  # compiles
    start = time.perf_counter()
    amortized = posterior.sample(firms, batched=True, random_seed=1)
    answering = time.perf_counter() - start
    start = time.perf_counter()
    nuts = run_nuts(model, firms)
    sampling = time.perf_counter() - start

    print(table(amortized, nuts).round(3).to_string())
    print(f"\ntraining {training:.1f} s, then all {firms.sizes['dataset']} firms in {answering:.2f} s; NUTS {sampling:.1f} s")

    by_firm = {"NUTS": xr.concat([dt.posterior.to_dataset() for dt in nuts], dim=firms.dataset), "amortized": amortized.posterior.to_dataset()}
    plot = az.plot_forest(
        {name: xr.DataTree.from_dict({"posterior": dataset}) for name, dataset in by_firm.items()},
        var_names=["slope"],
        combined=True,
    )
    plot.savefig(output / "grunfeld.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
