"""Experiments with people: a psychometric curve, choices and their times."""

import sys
from pathlib import Path

import numpy as np
import pymc as pm
from entries import entry

sys.path.append(str(Path(__file__).resolve().parents[1]))
from drift_diffusion_model import log_density, simulate


@entry("psychometric curve", "a usual model of psychophysics")
def psychometric() -> pm.Model:
    """How often the brighter of two lights is found, at nine contrasts of 40 trials each, with guesses and lapses."""
    contrast = np.linspace(-2, 2, 9)
    found = np.array([20, 19, 22, 25, 30, 34, 38, 39, 38])
    with pm.Model(coords={"contrast": contrast}) as model:
        threshold = pm.Normal("threshold", 0, 1)
        slope = pm.LogNormal("slope", 0.5, 0.5)
        lapse = pm.Beta("lapse", 2, 30)
        chance = 0.5 + (0.5 - lapse) * pm.math.sigmoid(slope * (contrast - threshold))
        pm.Binomial("found", 40, chance, observed=found, dims="contrast")
    return model


def trials() -> np.ndarray:
    """Times and choices of 200 trials."""
    return simulate(0.8, 1.4, 0.5, 0.3, rng=np.random.default_rng(6), size=(200,))


def exact_drift_diffusion() -> pm.Model:
    """Have the same priors, and the density that the simulator has not."""
    with pm.Model() as model:
        drift = pm.Normal("drift", 0, 1.5)
        boundary = pm.Uniform("boundary", 0.5, 2.5)
        bias = pm.Uniform("bias", 0.3, 0.7)
        rest = pm.Uniform("rest", 0.1, 0.5, initval=0.15)
        pm.CustomDist(
            "rt", drift, boundary, bias, rest, logp=log_density, signature="(),(),(),()->(2)", observed=trials()
        )
    return model


@entry(
    "drift diffusion",
    "HSSM's drift-diffusion model",
    simulator=True,
    reference=exact_drift_diffusion,
)
def drift_diffusion() -> pm.Model:
    """200 choices and their times, by a simulator alone: the likelihood is learned, too."""
    with pm.Model() as model:
        drift = pm.Normal("drift", 0, 1.5)
        boundary = pm.Uniform("boundary", 0.5, 2.5)
        bias = pm.Uniform("bias", 0.3, 0.7)
        rest = pm.Uniform("rest", 0.1, 0.5)
        pm.CustomDist(
            "rt", drift, boundary, bias, rest, random=simulate, signature="(),(),(),()->(2)", observed=trials()
        )
    return model
