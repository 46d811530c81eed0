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


def break_even(first: np.ndarray, each: np.ndarray) -> str:
    """Seconds of both sides as a table, and from how many data sets on amortized inference takes less in all."""
    rows = {
        "the first data set, training included": first,
        "each further one": each,
        "100 data sets": first + 99 * each,
    }
    times = pd.DataFrame(rows, index=["amortized", "NUTS"]).T
    number = 1 + max(np.ceil((first[0] - first[1]) / (each[1] - each[0])), 0)
    text = times.to_string(float_format="{:.1f} s".format)
    on = "the first data set" if number <= 1 else f"{number:.0f} data sets"
    return f"{text}\nAmortized inference takes less time from {on} on."


def main(output: Path) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pymc_amortized").setLevel(logging.INFO)
    nuts_kwargs = {"chains": 4, "random_seed": 1, "progressbar": False, "target_accept": 0.95}
    with eight_schools():
        amortized, first = timed(pm.sample_amortized, random_seed=1)
        nuts, first_nuts = timed(pm.sample, **nuts_kwargs)
        # another data set: nothing is trained again
        pm.set_data({"effect": EFFECT[::-1].copy()})
        _, again = timed(pm.sample_amortized, random_seed=2)
        _, again_nuts = timed(pm.sample, **nuts_kwargs)
    compare(amortized, nuts)
    print("\n" + break_even(np.array([first, first_nuts]), np.array([again, again_nuts])))
    plot(amortized, nuts, output / "eight_schools.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
