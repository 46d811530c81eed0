"""A hierarchy over a simulator that has no density in the model: 20 subjects, 100 trials each.

The likelihood is learned once from the simulator, with one drift, boundary, bias and non-decision time; the hierarchy
uses it as a distribution, and NUTS samples it.

    python examples/drift_diffusion.py [--seconds 90] [--subjects 20] [--trials 100]
"""

import argparse
import logging
import time

import arviz as az
import numpy as np
import pymc as pm
from drift_diffusion_model import simulate

import pymc_amortized as pma


def simulator():
    """One person's trials; the priors say for which parameters the likelihood is learned."""
    with pm.Model() as model:
        drift, boundary = pm.Normal("drift", 0, 1.5), pm.Uniform("boundary", 0.5, 2)
        bias, ndt = pm.Uniform("bias", 0.3, 0.7), pm.Uniform("ndt", 0.1, 0.5)
        placeholder = np.ones((100, 2))
        pm.CustomDist(
            "rt", drift, boundary, bias, ndt, random=simulate, signature="(),(),(),()->(2)", observed=placeholder
        )
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--trials", type=int, default=100)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("pymc_amortized").setLevel(logging.INFO)

    likelihood = pma.fit_likelihood(simulator(), max_time=arguments.seconds, random_seed=1)
    print(likelihood)

    rng = np.random.default_rng(2)
    subject = np.repeat(np.arange(arguments.subjects), arguments.trials)
    drifts = rng.normal(1.0, 0.5, arguments.subjects)
    data = simulate(drifts[subject], 1.2, 0.5, 0.25, rng=rng, size=subject.shape)

    coords = {"subject": np.arange(arguments.subjects), "trial": np.arange(len(subject)), "response": ["rt", "choice"]}
    with pm.Model(coords=coords):
        mean, spread = pm.Normal("mean", 0, 1), pm.HalfNormal("spread", 1)
        drift = pm.Normal("drift", mean, spread, dims="subject")
        boundary, bias = pm.Uniform("boundary", 0.5, 2), pm.Uniform("bias", 0.3, 0.7)
        ndt = pm.Uniform("ndt", 0.1, 0.5)
        likelihood(
            "rt", drift=drift[subject], boundary=boundary, bias=bias, ndt=ndt, observed=data, dims=("trial", "response")
        )
        start = time.perf_counter()
        dt = pm.sample(random_seed=3, progressbar=False, initvals={"ndt": 0.9 * data[:, 0].min()})
        print(f"NUTS took {time.perf_counter() - start:.0f} s, compiling included")
        pm.compute_log_likelihood(dt, progressbar=False)
    likelihood.check_region(dt, "rt")
    print(az.summary(dt, var_names=["mean", "spread", "boundary", "bias", "ndt", "rt_extent"]))
    error = (dt["posterior"]["drift"].mean(("chain", "draw")) - drifts) / dt["posterior"]["drift"].std(
        ("chain", "draw")
    )
    print(f"drifts of the subjects: rms error {float(np.sqrt((error**2).mean())):.2f} posterior sd")
    print(az.loo(dt))


if __name__ == "__main__":
    main()
