"""Eight schools: amortized inference beside NUTS.

Data: Rubin (1981), "Estimation in parallel randomized experiments", Journal of Educational Statistics 6(4), table 1;
the model is that of Gelman et al., Bayesian Data Analysis, section 5.5, in its non-centered form.

Run: python examples/eight_schools.py [output folder]
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

import pymc_amortized  # noqa: F401  (adds pm.sample_amortized)

SCHOOLS = [
    "Choate",
    "Deerfield",
    "Phillips Andover",
    "Phillips Exeter",
    "Hotchkiss",
    "Lawrenceville",
    "St. Paul's",
    "Mt. Hermon",
]
EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STANDARD_ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
NAMES = ["mu", "tau", "theta"]
SHORT = {"max_time": 40}  # seconds of training, so that this is a demonstration; by default two or three minutes


def eight_schools() -> pm.Model:
    with pm.Model(coords={"school": SCHOOLS}) as model:
        effect = pm.Data("effect", EFFECT, dims="school")
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        z = pm.Normal("z", 0, 1, dims="school")
        theta = pm.Deterministic("theta", mu + tau * z, dims="school")
        pm.Normal("y", theta, STANDARD_ERROR, observed=effect, dims="school")
    return model


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - start


def difference(amortized: xr.DataTree, nuts: xr.DataTree) -> pd.DataFrame:
    """Means and standard deviations side by side."""
    ours, theirs = (az.summary(dt, var_names=NAMES, kind="stats", round_to="none") for dt in (amortized, nuts))
    return pd.DataFrame(
        {
            "mean": ours["mean"],
            "mean (NUTS)": theirs["mean"],
            "sd": ours["sd"],
            "sd (NUTS)": theirs["sd"],
            "shift / sd": (ours["mean"] - theirs["mean"]) / theirs["sd"],
            "sd ratio": ours["sd"] / theirs["sd"],
        }
    )


def compare(amortized: xr.DataTree, nuts: xr.DataTree) -> None:
    """Print the table of differences, and what the weights say of the correction."""
    table = difference(amortized, nuts)
    stats = amortized.sample_stats
    print("\n" + table.to_string(float_format="{:.2f}".format))
    print(f"\nMeans differ from those of NUTS by at most {table['shift / sd'].abs().max():.2f} posterior sds,")
    print(f"sds by factors of {table['sd ratio'].min():.2f} to {table['sd ratio'].max():.2f}.")
    print(f"Pareto k {float(stats.pareto_k):.2f}, importance ESS {float(stats.importance_ess):.0f}.")


def plot(amortized: xr.DataTree, nuts: xr.DataTree, path: Path) -> None:
    collection = az.plot_forest(
        {"NUTS": nuts, "amortized": amortized},
        var_names=NAMES,
        combined=True,
        figure_kwargs={"figsize": (9, 6), "width_ratios": [1, 2]},
    )
    collection.add_legend("model")
    collection.savefig(path, bbox_inches="tight", dpi=150)


def main(output: Path) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pymc_amortized").setLevel(logging.INFO)
    with eight_schools():
        amortized, training = timed(pm.sample_amortized, random_seed=1, fit_kwargs=SHORT)
        nuts, sampling = timed(pm.sample, chains=4, random_seed=1, progressbar=False, target_accept=0.95)
        # another data set: nothing is trained again
        pm.set_data({"effect": EFFECT[::-1].copy()})
        _, again = timed(pm.sample_amortized, random_seed=2, fit_kwargs=SHORT)
    compare(amortized, nuts)
    print(
        f"Training and sampling took {training:.0f} s, NUTS {sampling:.0f} s; the next data set {1e3 * again:.0f} ms."
    )
    plot(amortized, nuts, output / "eight_schools.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
