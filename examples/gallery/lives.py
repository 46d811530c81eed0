"""Times until something, and extremes: censored survival, the highest tide of a year."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from entries import data, entry, standardize


@entry("survival", "bambi `survival_model`", "real: survival veteran")
def survival() -> pm.Model:
    """Days that 137 men with lung cancer lived; nine were still alive when the study ended."""
    men = data("survival", "veteran")
    end = np.where(men.status == 1, np.inf, men.time)
    with pm.Model() as model:
        level = pm.Normal("level", 4.5, 1)
        health = pm.Normal("health", 0, 1)
        treated = pm.Normal("treated", 0, 1)
        shape = pm.LogNormal("shape", 0, 0.5)
        scale = pm.math.exp(level + health * standardize(men.karno).to_numpy() + treated * (men.trt == 2).to_numpy())
        pm.Censored("days", pm.Weibull.dist(shape, scale), lower=None, upper=end, observed=men.time.astype(float))
    return model


def log_gev(value, location, scale, shape):
    """Log density of the generalized extreme value distribution."""
    inside = 1 + shape * (value - location) / scale
    safe = pt.maximum(inside, 1e-12)
    log_p = -pt.log(scale) - (1 + 1 / shape) * pt.log(safe) - safe ** (-1 / shape)
    return pt.switch(inside > 0, log_p, -np.inf)


def draw_gev(location, scale, shape, rng=None, size=None):
    """Draw from it, by its inverse distribution function."""
    return location + scale * (rng.exponential(size=size) ** -shape - 1) / shape


@entry(
    "extremes",
    "PyMC `GEV`",
    "real: texmex portpirie",
    helpers=(log_gev, draw_gev),
)
def tides() -> pm.Model:
    """Highest tide of each of 65 years in Port Pirie, Australia."""
    tide = data("texmex", "portpirie").SeaLevel
    with pm.Model() as model:
        location = pm.Normal("location", 3.8, 0.3)
        scale = pm.HalfNormal("scale", 0.3)
        shape = pm.TruncatedNormal("shape", 0, 0.2, lower=-0.6, upper=0.6, initval=0.1)
        pm.CustomDist("tide", location, scale, shape, logp=log_gev, random=draw_gev, observed=tide)
    return model
