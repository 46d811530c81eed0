"""Posteriors of several modes: how many are settled, how many are wrong without a word, how long they take.

For each model, data sets from its prior. References are exact where sums or grids of one or two dimensions make them
so. For the others, labels and signs are exchanged in the particles of a long tempered run on PyMC's own density (8
populations of 1,000). Wrong is a settled posterior of which the mass of a mode is off by more than 0.1, or whose log
evidence is off by more than 4 errors and 0.05; modes are the components of a mixture that is fitted to the reference. A
reference whose populations disagree about the evidence by more than 0.1 counts as unsure, and is left out.

Run: python benchmarks/modes.py [models ...] [--datasets 200] [--steps ...]
"""

from __future__ import annotations

import argparse
import itertools
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import torch
from scipy.special import logsumexp
from scipy.stats import halfnorm, norm

import pymc_amortized as pma
from pymc_amortized.graph.density.log_density import Constrain, Unconstrain
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


DRAWS = 4_000
"""Of a reference."""


@dataclass(frozen=True)
class Reference:
    """Draws of one posterior, each parameter's with the draws first, and its log evidence with its error."""

    draws: dict[str, np.ndarray]
    log_evidence: float
    error: float = 0.0


def exact_clusters(y: np.ndarray, rng: np.random.Generator) -> Reference:
    """Sum over all allocations of rows: given one, the location is normal."""
    rows, dim = y.shape
    far = np.array(list(itertools.product([False, True], repeat=rows)))
    variance = np.where(far, 400.0, 1.0)
    precision = 1 / 100 + (1 / variance).sum(axis=1)
    mean = (1 / variance) @ y / precision[:, None]
    log_det = np.log(variance).sum(axis=1) + np.log(100 * precision) + rows * np.log(2 * np.pi)
    squares = (1 / variance) @ (y**2) - precision[:, None] * mean**2
    log_p = np.log(np.where(far, 0.6, 0.4)).sum(axis=1) - 0.5 * (squares.sum(axis=1) + dim * log_det)
    which = rng.choice(len(far), DRAWS, p=np.exp(log_p - logsumexp(log_p)))
    theta = mean[which] + rng.normal(size=(DRAWS, dim)) / np.sqrt(precision[which])[:, None]
    return Reference({"theta": theta}, float(logsumexp(log_p)))


def exact_sinusoid(y: np.ndarray, rng: np.random.Generator) -> Reference:
    """Integrate over a grid of frequencies: given one, amplitudes are normal."""
    grid = 1 + 9 * (np.arange(8000) + 0.5) / 8000
    phase = 2 * np.pi * grid[:, None] * np.linspace(0, 1, 25)
    design = np.stack([np.cos(phase), np.sin(phase)], axis=-1)
    covariance = np.linalg.inv(np.eye(2) + design.swapaxes(1, 2) @ design)
    mean = (covariance @ (design.swapaxes(1, 2) @ y)[..., None])[..., 0]
    log_p = 0.5 * np.linalg.slogdet(covariance)[1] + 0.5 * (design.swapaxes(1, 2) @ y * mean).sum(axis=1)
    log_evidence = logsumexp(log_p) - np.log(len(grid)) - 0.5 * y @ y - 12.5 * np.log(2 * np.pi)
    which = rng.choice(len(grid), DRAWS, p=np.exp(log_p - logsumexp(log_p)))
    normal = np.linalg.cholesky(covariance[which]) @ rng.normal(size=(DRAWS, 2, 1))
    a, b = (mean[which] + normal[..., 0]).T
    frequency = grid[which] + rng.uniform(-0.5, 0.5, DRAWS) * 9 / 8000
    return Reference({"frequency": frequency, "a": a, "b": b}, float(log_evidence))


def exact_hierarchy(y: np.ndarray, rng: np.random.Generator) -> Reference:
    """Integrate over grids: given the scale, groups are independent."""
    tau, mean = (np.arange(500) + 0.5) / 100, np.linspace(-5, 5, 5001)
    prior = np.diff(norm.cdf(np.linspace(-5.001, 5.001, 5002) / tau[:, None]), axis=1)
    log_likelihood = norm.logpdf(y[:, :, None], mean**2, 0.3).sum(axis=0)
    top = log_likelihood.max(axis=1)
    likelihood = np.exp(log_likelihood - top[:, None])
    each = prior @ likelihood.T
    p = halfnorm.pdf(tau) / 100 * each.prod(axis=1)
    which = rng.choice(len(tau), DRAWS, p=p / p.sum())
    draws = np.empty((DRAWS, 3))
    for k, number in zip(*np.unique(which, return_counts=True), strict=True):
        for j in range(3):
            weights = prior[k] * likelihood[j]
            draws[which == k, j] = rng.choice(mean, number, p=weights / weights.sum())
    return Reference({"tau": tau[which], "mean": draws}, float(np.log(p.sum()) + top.sum()))


def exact_moons(y: np.ndarray, rng: np.random.Generator) -> Reference:
    """Integrate over a grid of the square."""
    grid = (np.arange(2500) + 0.5) / 1250 - 1
    first, second = grid[:, None], grid
    x = y[0] + np.abs(first + second) / np.sqrt(2) - 0.25
    away = y[1] - (second - first) / np.sqrt(2)
    r = np.hypot(x, away)
    density = np.where(x > 0, np.exp(-0.5 * ((r - 0.1) / 0.01) ** 2) / (0.01 * np.sqrt(2 * np.pi) * np.pi * r), 0.0)
    flat = density.ravel()
    which = rng.choice(flat.size, DRAWS, p=flat / flat.sum())
    theta = np.stack([grid[which // 2500], grid[which % 2500]], axis=1) + rng.uniform(-1, 1, (DRAWS, 2)) / 2500
    return Reference({"theta": theta}, float(np.log(flat.mean())))


EXACT: dict[str, Callable[[np.ndarray, np.random.Generator], Reference]]
EXACT = {"two moons": exact_moons, "bimodal hierarchy": exact_hierarchy, "sinusoid": exact_sinusoid}
EXACT |= {f"clusters in {dim}": exact_clusters for dim in range(1, 6)}


Images = Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]


def relabelled(draws: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Exchange the components of mixtures at random."""
    order = rng.permuted(np.tile(np.arange(draws["w"].shape[1]), (len(draws["w"]), 1)), axis=1)
    return {name: np.take_along_axis(values, order, axis=1) for name, values in draws.items()}


def mirrored(name: str, *groups: list[int]) -> Images:
    """Return a function that changes signs at random: those of a group of elements together."""

    def mirror(draws: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        values = draws[name].copy()
        for group in groups:
            values[:, group] *= rng.choice([-1, 1], (len(values), 1))
        return draws | {name: values}

    return mirror


IMAGES = {
    "SLCP": mirrored("theta", [2], [3]),
    "mixture of 2": relabelled,
    "mixture of 3": relabelled,
    "factor": mirrored("loading", [0, 1, 2, 3]),
}


class Tempered:
    """Long runs of tempered particles for one posterior after the other; their labels and signs are exchanged."""

    def __init__(self, posterior: pma.AmortizedPosterior, images: Images) -> None:
        self._posterior, self._images = posterior, images
        self._forward = Constrain(posterior.spec)

    def __call__(self, y: np.ndarray, rng: np.random.Generator) -> Reference:
        """Run for one data set."""
        posterior = self._posterior
        given, standardizer = posterior.read({"y": y}).one(posterior.spec, 0), posterior.network.standardizer
        if posterior.sketch is not None:
            standardizer = posterior.sketch.start.standardizer

        def log_density(z: np.ndarray) -> np.ndarray:
            theta, log_det = standardizer.inverse(torch.from_numpy(z))
            return posterior.compiled.log_density(theta.numpy(), given) - log_det.numpy()

        found = temper(log_density, posterior.spec.dim, populations=8, particles=1000, rng=rng)
        if found is None:
            return Reference({}, np.nan, np.nan)
        theta = standardizer.inverse(torch.from_numpy(found.z.reshape(-1, posterior.spec.dim)))[0].numpy()
        each = np.exp(found.log_evidence - found.log_evidence.max())
        log_evidence = found.log_evidence.max() + np.log(each.mean())
        draws = self._images(self._forward(theta, given), rng)
        return Reference(draws, float(log_evidence), float(each.std() / each.mean() / np.sqrt(8)))


def masses_off(draws: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference of the masses of modes, which are components of a mixture fitted to the reference."""
    rng = np.random.default_rng(0)
    fitted = StudentMixture.fit(reference, np.full(len(reference), 1 / len(reference)), rng)

    def shares(theta: np.ndarray) -> np.ndarray:
        each = [StudentMixture([place], np.ones(1)).log_density(theta) for place in fitted.places]
        return np.bincount(np.argmax(each, axis=0), minlength=len(fitted.places)) / len(theta)

    return float(np.abs(shares(draws) - shares(reference)).max())


def run(name: str, datasets: int, steps: int | None) -> None:
    """Train, sample, and compare with references."""
    model = MODELS[name]()
    training = pma.Training() if steps is None else pma.Training(num_steps=steps)
    posterior = pma.fit_posterior(model, training=training, random_seed=1, progressbar=False)
    y = pma.simulate(model, datasets, random_seed=2).prior_predictive["y"].to_numpy()[0]
    begin = time.perf_counter()
    names = [p.name for p in posterior.spec.parameters]
    dts = posterior.sample({"y": y}, batched=True, var_names=names, random_seed=3, max_time=None, progressbar=False)
    seconds = (time.perf_counter() - begin) / datasets
    evidence = posterior.log_marginal_likelihood({"y": y}, batched=True, random_seed=4)
    stages, rungs = (dts.sample_stats[stat].to_numpy() for stat in ("stage", "rung"))
    settled = np.isin(stages, ["psis", "smc", "nuts"])
    refer = EXACT[name] if name in EXACT else Tempered(posterior, IMAGES[name])
    unconstrain = Unconstrain(posterior.spec)
    wrong, evidence_wrong, unsure = [], [], []
    for i in range(datasets):
        reference = refer(y[i], np.random.default_rng(i))
        if not reference.error < 0.1:
            unsure.append(i)
            continue
        one = {n: dts.posterior[n].to_numpy()[i] for n in names}
        flat = {n: values.reshape(-1, *values.shape[2:]) for n, values in one.items()}
        if settled[i] and masses_off(unconstrain(flat), unconstrain(reference.draws)) > 0.1:
            wrong.append(i)
        off = abs(float(evidence.log_marginal_likelihood[i]) - reference.log_evidence)  # NaN: marked
        if off > 4 * np.hypot(float(evidence.mcse[i]), reference.error) + 0.05:
            evidence_wrong.append(i)
    kinds = ", ".join(f"{rung} {number}" for rung, number in zip(*np.unique(rungs, return_counts=True), strict=True))
    counts = f"{settled.mean():6.0%}  {len(wrong):6d}  {len(evidence_wrong):14d}  {len(unsure):6d}"
    print(f"{name:22s}  {datasets:9d}  {counts}   {seconds:12.3f}   {kinds}", flush=True)
    if wrong or evidence_wrong:
        print(f"{'':22s}  wrong: {wrong}, evidence wrong: {evidence_wrong}", flush=True)


def main() -> None:
    """Run the models that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], default=[])
    parser.add_argument("--datasets", type=int, default=200)
    parser.add_argument("--steps", type=int, help="of training; as many as it takes by default")
    options = parser.parse_args()
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(HEADER)
    for name in options.models or MODELS:
        run(name, options.datasets, options.steps)


if __name__ == "__main__":
    main()
