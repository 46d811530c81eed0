"""Counts and choices: overdispersed, with many zeros, rates, ordered answers, one of several."""

import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt
from entries import data, entry, standardize
from pymc.distributions.transforms import ordered
from statsmodels.datasets import modechoice


@entry("counts", "PyMC: GLM negative binomial; bambi: negative binomial", "real: MASS quine")
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


@entry("counts with many zeros", "bambi: zero inflated models", "real: pscl bioChemists")
def zero_inflated() -> pm.Model:
    """Articles of 915 doctoral students in biochemistry."""
    students = data("pscl", "bioChemists")
    with pm.Model() as model:
        level = pm.Normal("level", 0.5, 1)
        woman = pm.Normal("woman", 0, 0.5)
        children = pm.Normal("children", 0, 0.5)
        mentor = pm.Normal("mentor", 0, 0.5)
        writes = pm.Beta("writes", 2, 1)
        shape = pm.Gamma("shape", 2, 1)
        rate = (
            level + woman * (students.fem == "Women") + children * students.kid5 + mentor * standardize(students.ment)
        )
        pm.ZeroInflatedNegativeBinomial(
            "articles", psi=writes, mu=pm.math.exp(rate), alpha=shape, observed=students.art
        )
    return model


@entry("rates", "bambi: Poisson regression with an offset", "real: MASS Insurance")
def rates() -> pm.Model:
    """Claims of policyholders in 64 groups, by age, size of car and district."""
    groups = data("MASS", "Insurance")
    age = groups.Age.map({"<25": 0, "25-29": 1, "30-35": 2, ">35": 3}).to_numpy(float)
    car = groups.Group.map({"<1l": 0, "1-1.5l": 1, "1.5-2l": 2, ">2l": 3}).to_numpy(float)
    with pm.Model() as model:
        level = pm.Normal("level", -1.5, 1)
        older = pm.Normal("older", 0, 0.5)
        larger = pm.Normal("larger", 0, 0.5)
        town = pm.Normal("town", 0, 0.5)
        rate = level + older * age + larger * car + town * (groups.District == 4).to_numpy(float)
        pm.Poisson("claims", groups.Holders.to_numpy() * pm.math.exp(rate), observed=groups.Claims)
    return model


@entry("ordered answers", "bambi: ordinal regression; PyMC: regression with ordered categories", "real: ordinal wine")
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


@entry("one of several", "PyMC: discrete choice and random utility", "real: statsmodels modechoice")
def choices() -> pm.Model:
    """Plane, train, bus or car: trips of 210 people, by the time at the station and the cost."""
    trips = modechoice.load_pandas().data
    chosen = trips.choice.to_numpy().reshape(-1, 4).argmax(axis=1)
    wait = trips.ttme.to_numpy().reshape(-1, 4) / 30
    cost = trips.gc.to_numpy().reshape(-1, 4) / 100
    with pm.Model(coords={"mode": ["plane", "train", "bus"]}) as model:
        taste = pm.Normal("taste", 0, 2, dims="mode")
        waiting = pm.Normal("waiting", -1, 2)
        paying = pm.Normal("paying", -1, 2)
        utility = pt.concatenate([taste, [0.0]]) + waiting * wait + paying * cost
        pm.Categorical("mode_chosen", logit_p=utility, observed=chosen)
    return model
