"""Times until something, and extremes: censored survival, hazards by period, the highest tide of a year."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from entries import data, entry, standardize


@entry("survival", "PyMC: parametric survival with censoring; bambi: survival models", "real: survival veteran")
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


@entry("hazards", "PyMC: Bayesian survival analysis", "real: HSAUR mastectomy")
def hazards() -> pm.Model:
    """Deaths after mastectomy of 44 women, in periods of 50 months, by whether the cancer had spread."""
    women = data("HSAUR", "mastectomy")
    start = np.arange(0, 250, 50)
    months = women.time.to_numpy(float)[:, None]
    exposure = np.clip(months - start, 0, 50)
    died = women.event.to_numpy()[:, None] & (months > start) & (months <= start + 50)
    spread_out = (women.metastized == "yes").to_numpy(float)[:, None]
    with pm.Model(coords={"period": start}) as model:
        base = pm.Normal("base", -5, 1.5, dims="period")
        effect = pm.Normal("effect", 0, 1)
        hazard = pm.math.exp(base + effect * spread_out)
        pm.Poisson("died", hazard * exposure + 1e-9, observed=died.astype(int))
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
    "PyMC: generalized extreme value distribution",
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
