"""Posteriors of several modes: how many are settled, how many are wrong without a word, how long they take.

For each model, data sets from its prior. The reference is a long run of tempered particles on PyMC's own density (16
populations of 4,000 particles). Wrong is a settled posterior of which the mass of a mode is off by more than 0.1, or
whose log evidence is off by more than 4 errors and 0.05; modes are the components of a mixture that is fitted to the
reference. A reference whose populations disagree about the evidence by more than 0.1 counts as unsure, and is left out.

Run: python benchmarks/modes.py [models ...] [--datasets 200] [--steps 1000]
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import torch

import pymc_amortized as pma
from pymc_amortized.graph.density.log_density import Unconstrain
from pymc_amortized.numerics.sampling.mixture import StudentMixture
from pymc_amortized.numerics.sampling.tempering import temper

HEADER = f"{'':22s}  data sets  settled  wrong  evidence wrong  unsure   seconds each   rungs"


def clusters(dim: int) -> pm.Model:
    """Return a location of which some rows lie elsewhere."""
    with pm.Model() as model:
        theta = pm.Normal("theta", 0, 10, shape=dim)
        near, far = pm.MvNormal.dist(theta, np.eye(dim)), pm.MvNormal.dist(theta, 400 * np.eye(dim))
        pm.Mixture("y", [0.4, 0.6], [near, far], observed=np.zeros((6, dim)))
    return model


def mixture(number: int) -> pm.Model:
    """Return an unordered mixture of normals."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 3, shape=number)
        s = pm.HalfNormal("s", 1, shape=number)
        w = pm.Dirichlet("w", 2 * np.ones(number))
        pm.NormalMixture("y", w=w, mu=mu, sigma=s, observed=np.zeros(40))
    return model


def factor() -> pm.Model:
    """Return one factor, whose loadings may all change their sign."""
    with pm.Model() as model:
        loading = pm.Normal("loading", 0, 1, shape=4)
        noise = pm.HalfNormal("noise", 1)
        covariance = loading[:, None] * loading[None] + noise**2 * pt.eye(4)
        pm.MvNormal("y", np.zeros(4), covariance, observed=np.zeros((20, 4)))
    return model


def two_moons() -> pm.Model:
    """Return crescents: each observation has two, and their density is known."""

    def logp(value: pt.TensorVariable, theta: pt.TensorVariable) -> pt.TensorVariable:
        x = value[0] + pt.abs(theta[0] + theta[1]) / np.sqrt(2) - 0.25
        y = value[1] - (theta[1] - theta[0]) / np.sqrt(2)
        r, angle = pt.sqrt(x**2 + y**2), pt.arctan2(y, x)
        inside = pt.abs(angle) < np.pi / 2
        density = -0.5 * ((r - 0.1) / 0.01) ** 2 - np.log(0.01 * np.sqrt(2 * np.pi)) - np.log(np.pi) - pt.log(r)
        return pt.where(inside, density, -np.inf)

    def random(theta: np.ndarray, rng: np.random.Generator, size: object = None) -> np.ndarray:
        angle, r = rng.uniform(-np.pi / 2, np.pi / 2), rng.normal(0.1, 0.01)
        at = np.array([r * np.cos(angle) + 0.25, r * np.sin(angle)])
        return at + np.array([-np.abs(theta[0] + theta[1]), theta[1] - theta[0]]) / np.sqrt(2)

    with pm.Model() as model:
        theta = pm.Uniform("theta", -1, 1, shape=2)
        pm.CustomDist("y", theta, logp=logp, random=random, signature="(n)->(n)", observed=np.zeros(2))
    return model


def slcp() -> pm.Model:
    """Return a simple likelihood with a complex posterior: two parameters are squared."""
    with pm.Model() as model:
        theta = pm.Uniform("theta", -3, 3, shape=5)
        s, t, rho = theta[2] ** 2, theta[3] ** 2, pt.tanh(theta[4])
        covariance = pt.stacklists([[s**2 + 1e-6, rho * s * t], [rho * s * t, t**2 + 1e-6]])
        pm.MvNormal("y", theta[:2], covariance, observed=np.zeros((4, 2)))
    return model


def sinusoid() -> pm.Model:
    """Return a wave of unknown frequency."""
    t = np.linspace(0, 1, 25)
    with pm.Model() as model:
        frequency = pm.Uniform("frequency", 1, 10)
        a, b = pm.Normal("a", 0, 1), pm.Normal("b", 0, 1)
        phase = 2 * np.pi * frequency * t
        pm.Normal("y", a * pt.cos(phase) + b * pt.sin(phase), 1.0, observed=np.zeros(25))
    return model


def hierarchy() -> pm.Model:
    """Return groups whose means are squared: each may have either sign."""
    with pm.Model() as model:
        tau = pm.HalfNormal("tau", 1)
        mean = pm.Normal("mean", 0, tau, shape=3)
        pm.Normal("y", mean**2, 0.3, observed=np.zeros((5, 3)))
    return model


MODELS: dict[str, Callable[[], pm.Model]] = {
    "two moons": two_moons,
    "SLCP": slcp,
    "mixture of 2": lambda: mixture(2),
    "mixture of 3": lambda: mixture(3),
    "factor": factor,
    "bimodal hierarchy": hierarchy,
    "sinusoid": sinusoid,
} | {f"clusters in {dim}": (lambda dim=dim: clusters(dim)) for dim in range(1, 6)}


@dataclass(frozen=True)
class Reference:
    """Draws (n, dim) of one posterior, unconstrained, and its log evidence with its error."""

    theta: np.ndarray
    log_evidence: float
    error: float


class References:
    """Long runs of tempered particles for one posterior after the other."""

    def __init__(self, posterior: pma.AmortizedPosterior) -> None:
        self._posterior = posterior

    def __call__(self, y: np.ndarray, seed: int) -> Reference:
        """Run for one data set."""
        posterior = self._posterior
        given, standardizer = posterior.read({"y": y}).one(posterior.spec, 0), posterior.network.standardizer
        if posterior.sketch is not None:
            standardizer = posterior.sketch.start.standardizer

        def log_density(z: np.ndarray) -> np.ndarray:
            theta, log_det = standardizer.inverse(torch.from_numpy(z))
            return posterior.compiled.log_density(theta.numpy(), given) - log_det.numpy()

        rng = np.random.default_rng(seed)
        found = temper(log_density, posterior.spec.dim, populations=16, particles=4000, rng=rng)
        theta = standardizer.inverse(torch.from_numpy(found.z.reshape(-1, posterior.spec.dim)))[0].numpy()
        each = np.exp(found.log_evidence - found.log_evidence.max())
        log_evidence = found.log_evidence.max() + np.log(each.mean())
        return Reference(theta, float(log_evidence), float(each.std() / each.mean() / 4))


def masses_off(draws: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference of the masses of modes, which are components of a mixture fitted to the reference."""
    rng = np.random.default_rng(0)
    fitted = StudentMixture.fit(reference, np.full(len(reference), 1 / len(reference)), rng)

    def shares(theta: np.ndarray) -> np.ndarray:
        each = [StudentMixture([place], np.ones(1)).log_density(theta) for place in fitted.places]
        return np.bincount(np.argmax(each, axis=0), minlength=len(fitted.places)) / len(theta)

    return float(np.abs(shares(draws) - shares(reference)).max())


def run(name: str, datasets: int, steps: int) -> None:
    """Train, sample, and compare with references."""
    model = MODELS[name]()
    posterior = pma.fit_posterior(model, training=pma.Training(num_steps=steps), random_seed=1, progressbar=False)
    y = pma.simulate(model, datasets, random_seed=2).prior_predictive["y"].to_numpy()[0]
    begin = time.perf_counter()
    names = [p.name for p in posterior.spec.parameters]
    dts = posterior.sample({"y": y}, batched=True, var_names=names, random_seed=3, max_time=None, progressbar=False)
    seconds = (time.perf_counter() - begin) / datasets
    evidence = posterior.log_marginal_likelihood({"y": y}, batched=True, random_seed=4)
    stages, rungs = (dts.sample_stats[stat].to_numpy() for stat in ("stage", "rung"))
    settled = np.isin(stages, ["psis", "smc", "nuts"])
    references, unconstrain = References(posterior), Unconstrain(posterior.spec)
    wrong, evidence_wrong, unsure = 0, 0, 0
    for i in range(datasets):
        reference = references(y[i], i)
        if not reference.error < 0.1:
            unsure += 1
            continue
        one = {n: dts.posterior[n].to_numpy()[i] for n in names}
        flat = {n: values.reshape(-1, *values.shape[2:]) for n, values in one.items()}
        theta = unconstrain(flat)
        wrong += bool(settled[i] and masses_off(theta, reference.theta) > 0.1)
        off = abs(float(evidence.log_marginal_likelihood[i]) - reference.log_evidence)  # NaN: marked
        evidence_wrong += bool(off > 4 * np.hypot(float(evidence.mcse[i]), reference.error) + 0.05)
    kinds = ", ".join(f"{rung} {number}" for rung, number in zip(*np.unique(rungs, return_counts=True), strict=True))
    print(
        f"{name:22s}  {datasets:9d}  {settled.mean():6.0%}  {wrong:6d}  {evidence_wrong:14d}  {unsure:6d}   "
        f"{seconds:12.3f}   {kinds}",
        flush=True,
    )


def main() -> None:
    """Run the models that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], default=[])
    parser.add_argument("--datasets", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(HEADER)
    for name in options.models or MODELS:
        run(name, options.datasets, options.steps)


if __name__ == "__main__":
    main()
