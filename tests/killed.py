"""What is killed in tests/test_killed.py: simulating, training and inference, each in a process of its own."""

import sys
from pathlib import Path

import numpy as np
import pymc as pm

import pymc_amortized as pma
from pymc_amortized.training import loop

INTERPRETED = {"mode": "FAST_COMPILE"}


def model() -> pm.Model:
    """Return a model without a network to speak of."""
    with pm.Model(coords={"obs": range(6)}) as line:
        mu, sigma = pm.Normal("mu", 0, 2), pm.HalfNormal("sigma", 1)
        pm.Normal("y", mu, sigma, observed=np.zeros(6), dims="obs")
    return line


def simulate(folder: Path, cores: int = 1) -> None:
    """Simulate 40 chunks."""
    kwargs = {"cores": cores, "progressbar": False, "compile_kwargs": INTERPRETED}
    pma.simulate(model(), 400, store=folder / "sims.zarr", chunk=10, random_seed=1, **kwargs)


def train(folder: Path) -> pma.AmortizedPosterior:
    """Train for a fixed number of steps."""
    loop.KEEP_SECONDS = 0.05
    options = pma.Training(num_steps=200, batch_size=32)
    kwargs = {"sketch": False, "progressbar": False, "compile_kwargs": INTERPRETED}
    return pma.fit_posterior(model(), training=options, random_seed=1, checkpoint=folder / "run", **kwargs)


def infer(folder: Path) -> None:
    """Sample the posteriors of 600 data sets."""
    from pymc_amortized.approximators.posterior import sample

    sample.LARGEST_CHUNK = 20
    posterior = pma.load(folder / "posterior.pma", model=model())
    y = np.random.default_rng(1).normal(size=(600, 6))
    kwargs = {"draws": 50, "chains": 2, "correction": "psis", "random_seed": 1, "progressbar": False}
    posterior.sample({"y": y}, batched=True, store=folder / "posterior.zarr", **kwargs)


if __name__ == "__main__":
    {"simulate": simulate, "train": train, "infer": infer}[sys.argv[1]](Path(sys.argv[2]))
