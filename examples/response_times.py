"""Real choices and response times through a simulator: 14 patients, 3,988 trials of easy and of hard decisions.

Patients with Parkinson's disease chose between two rewarded symbols (Cavanagh et al. 2011, Nature Neuroscience
14:1462); in trials of high conflict both promised much the same. HSSM ships the table, for which
``pip install --no-deps hssm`` is enough. The likelihood of a trial is learned from the simulator alone. The hierarchy
gives every patient a drift, a boundary and a non-decision time, and asks what conflict does to the drift. Beside it
stands, with ``--exact``, NUTS on the exact density.

    python examples/response_times.py [--seconds 240] [--exact]
"""

import argparse
import logging
import time
from importlib.metadata import PackageNotFoundError, distribution

import arviz as az
import numpy as np
import pandas as pd
import pymc as pm
from drift_diffusion_model import log_density, simulate

import pymc_amortized as pma

NAMES = ["effect", "mean_drift", "spread_drift", "mean_boundary", "spread_boundary", "bias", "mean_ndt", "spread_ndt"]


def trials() -> pd.DataFrame:
    """Return the table that HSSM ships, without importing HSSM."""
    try:
        path = distribution("hssm").locate_file("hssm/datasets/cavanagh_theta_nn.csv")
    except PackageNotFoundError:
        raise SystemExit("The data come with HSSM: pip install --no-deps hssm") from None
    return pd.read_csv(str(path))


def simulator() -> pm.Model:
    """One trial; the priors say for which parameters the likelihood is learned."""
    with pm.Model() as model:
        drift, boundary = pm.Normal("drift", 0, 1.5), pm.Uniform("boundary", 0.8, 4)
        bias, ndt = pm.Uniform("bias", 0.3, 0.7), pm.Uniform("ndt", 0.1, 0.9)
        placeholder = np.ones((100, 2))
        pm.CustomDist(
            "rt", drift, boundary, bias, ndt, random=simulate, signature="(),(),(),()->(2)", observed=placeholder
        )
    return model


def hierarchy(data: pd.DataFrame, likelihood: pma.AmortizedLikelihood | None) -> pm.Model:
    """The patients, with the learned likelihood or the exact one."""
    patient, conflict = data["participant_id"].to_numpy(), (data["conf"] == "HC").to_numpy().astype(float)
    fastest = data.groupby("participant_id")["rt"].min().to_numpy()
    with pm.Model(coords={"patient": np.unique(patient), "response": ["rt", "choice"]}) as model:
        drift = level("drift", pm.Normal.dist(0, 1), pm.HalfNormal.dist(0.7))
        log_boundary = level("boundary", pm.Normal.dist(0.7, 0.3), pm.HalfNormal.dist(0.3))
        late = level("ndt", pm.Normal.dist(0.5, 0.5), pm.HalfNormal.dist(0.5))
        effect, bias = pm.Normal("effect", 0, 1), pm.Uniform("bias", 0.3, 0.7)
        ndt = pm.Deterministic("ndt", fastest * pm.math.sigmoid(late), dims="patient")
        given = {
            "drift": drift[patient] + effect * conflict,
            "boundary": pm.math.exp(log_boundary)[patient],
            "bias": bias,
            "ndt": ndt[patient],
        }
        observed = data[["rt", "response"]].to_numpy()
        if likelihood is None:
            pm.CustomDist("rt", *given.values(), logp=log_density, signature="(),(),(),()->(2)", observed=observed)
        else:
            likelihood("rt", observed=observed, **given)
    return model


def level(name, mean, spread):
    """Return what differs between patients: centered, for each has hundreds of trials."""
    model = pm.modelcontext(None)
    center, scale = model.register_rv(mean, f"mean_{name}"), model.register_rv(spread, f"spread_{name}")
    return pm.Normal(f"{name}_of", center, scale, dims="patient")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--exact", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("pymc_amortized").setLevel(logging.INFO)

    data = trials()
    likelihood = pma.fit_likelihood(simulator(), max_time=arguments.seconds, random_seed=1)
    print(likelihood)
    found = {}
    for name, learned in [("learned", likelihood), ("exact", None)][: 1 + arguments.exact]:
        start = time.perf_counter()
        with hierarchy(data, learned):
            found[name] = pm.sample(500, tune=500, chains=2, random_seed=2, progressbar=False)
        print(f"\nNUTS on the {name} likelihood took {time.perf_counter() - start:.0f} s, compiling included")
        print(az.summary(found[name], var_names=NAMES))
    likelihood.check_region(found["learned"], "rt")
    if arguments.exact:
        mine, theirs = (found[k]["posterior"].to_dataset()[[*NAMES, "ndt"]] for k in ("learned", "exact"))
        shift = (mine.mean(("chain", "draw")) - theirs.mean(("chain", "draw"))) / theirs.std(("chain", "draw"))
        ratio = mine.std(("chain", "draw")) / theirs.std(("chain", "draw"))
        print("\nlearned against exact: shift of the mean in sds, ratio of sds")
        for key in mine:
            print(f"  {key:16s} {np.abs(shift[key]).max():5.2f}  {ratio[key].min():.2f} to {ratio[key].max():.2f}")


if __name__ == "__main__":
    main()
