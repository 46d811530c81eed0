"""Counts and ordered answers."""

import numpy as np
import pandas as pd
import pymc as pm
from entries import data, entry
from pymc.distributions.transforms import ordered


@entry("counts", "PyMC `GLM-negative-binomial-regression`, bambi `negative_binomial`", "real: MASS quine")
def overdispersed() -> pm.Model:
    """Days that 146 children in Australia were absent from school."""
    children = data("MASS", "quine")
    x = pd.get_dummies(children[["Eth", "Sex", "Age", "Lrn"]], drop_first=True, dtype=float)
    with pm.Model(coords={"effect": list(x.columns)}) as model:
        level = pm.Normal("level", 2.5, 1)
        effects = pm.Normal("effects", 0, 0.7, dims="effect")
        shape = pm.Gamma("shape", 2, 1)
        pm.NegativeBinomial("days", mu=pm.math.exp(level + x.to_numpy() @ effects), alpha=shape, observed=children.Days)
    return model


@entry("ordered answers", "PyMC `GLM-ordinal-regression`, bambi `ordinal_regression`", "real: ordinal wine")
def ordinal() -> pm.Model:
    """How bitter 72 glasses of wine are, on a scale of five, by temperature and contact with the skins."""
    glasses = data("ordinal", "wine")
    warm = (glasses.temp == "warm").to_numpy(float)
    contact = (glasses.contact == "yes").to_numpy(float)
    with pm.Model() as model:
        cuts = pm.Normal("cuts", np.linspace(-3, 3, 4), 1.5, transform=ordered, initval=np.linspace(-3, 3, 4))
        heat = pm.Normal("heat", 0, 2)
        skin = pm.Normal("skin", 0, 2)
        pm.OrderedLogistic(
            "rating", heat * warm + skin * contact, cuts, compute_p=False, observed=glasses.rating.astype(int) - 1
        )
    return model
