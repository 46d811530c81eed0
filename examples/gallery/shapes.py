"""Distributions with a shape: a mixture, two moons."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from entries import data, entry
from pymc.distributions.transforms import ordered


@entry("mixture", "PyMC `gaussian_mixture_model`", "real: MASS galaxies")
def galaxies() -> pm.Model:
    """Speeds of 82 galaxies: three groups, told apart by the order of their means."""
    speed = data("MASS", "galaxies").dat.to_numpy() / 1000
    with pm.Model(coords={"group": range(3)}) as model:
        share = pm.Dirichlet("share", np.full(3, 2.0), dims="group")
        mean = pm.Normal("mean", [10, 20, 30], 5, transform=ordered, initval=[10, 20, 30], dims="group")
        spread = pm.LogNormal("spread", 0.5, 0.5, dims="group")
        pm.NormalMixture("speed", share, mean, spread, observed=speed)
    return model


def log_moons(value, a, b):
    """Log density of a point of the two moons: half a ring, moved by the parameters."""
    x = value[..., 0] + pt.abs(a + b) / np.sqrt(2) - 0.25
    y = value[..., 1] - (b - a) / np.sqrt(2)
    radius = pt.sqrt(x**2 + y**2)
    log_p = pm.logp(pm.Normal.dist(0.1, 0.01), radius) - pt.log(np.pi * radius)
    return pt.switch(x > 0, log_p, -np.inf)


def draw_moons(a, b, rng=None, size=None):
    """Draw such points."""
    angle = rng.uniform(-np.pi / 2, np.pi / 2, size=size)
    radius = rng.normal(0.1, 0.01, size=size)
    x = radius * np.cos(angle) + 0.25 - np.abs(a + b) / np.sqrt(2)
    return np.stack([x, radius * np.sin(angle) + (b - a) / np.sqrt(2)], axis=-1)


def exact_moons() -> dict[str, np.ndarray]:
    """Draw from the posterior of the point (0, 0): where half a ring has to be moved to, and either sign of a + b."""
    rng = np.random.default_rng(1)
    x, y = draw_moons(0.0, 0.0, rng, (100_000,)).T
    total = np.sqrt(2) * x * rng.choice([-1, 1], size=len(x))
    difference = -np.sqrt(2) * y
    return {"a": (total - difference) / 2, "b": (total + difference) / 2}


@entry("two moons", "BayesFlow `Two_Moons_Starter`", helpers=(log_moons, draw_moons), exact=exact_moons)
def moons() -> pm.Model:
    """One point in the plane; its posterior is two moons, which NUTS cannot go between."""
    with pm.Model() as model:
        a = pm.Uniform("a", -1, 1, initval=0.25)
        b = pm.Uniform("b", -1, 1, initval=0.25)
        pm.CustomDist(
            "point", a, b, logp=log_moons, random=draw_moons, signature="(),()->(2)", observed=np.array([0.0, 0.0])
        )
    return model
