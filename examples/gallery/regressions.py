"""Regressions: a line, outliers, votes, quantiles, proportions, a dose-response curve."""

import numpy as np
import pymc as pm
from entries import data, entry, standardize
from statsmodels.datasets import anes96


@entry("regression", "BayesFlow `Linear_Regression_Starter`, bambi `getting_started`", "real: carData Prestige")
def linear() -> pm.Model:
    """Prestige of 102 occupations, by education and income."""
    jobs = data("carData", "Prestige")
    with pm.Model() as model:
        level = pm.Normal("level", 47, 10)
        education = pm.Normal("education", 0, 10)
        income = pm.Normal("income", 0, 10)
        noise = pm.HalfNormal("noise", 10)
        mean = level + education * standardize(jobs.education) + income * standardize(np.log(jobs.income))
        pm.Normal("prestige", mean, noise, observed=jobs.prestige)
    return model


@entry("robust regression", "PyMC `GLM-robust`, bambi `t_regression`", "real: robustbase starsCYG")
def robust() -> pm.Model:
    """Light and temperature of 47 stars; four giants are far from the line of the others."""
    stars = data("robustbase", "starsCYG")
    heat = stars["log.Te"].to_numpy() - 4.4
    with pm.Model() as model:
        level = pm.Normal("level", 5, 1)
        slope = pm.Normal("slope", 0, 3)
        noise = pm.HalfNormal("noise", 0.5)
        tails = pm.Gamma("tails", 2, 0.1)
        pm.StudentT("light", tails, level + slope * heat, sigma=noise, observed=stars["log.light"])
    return model


@entry("logistic regression", "bambi `logistic_regression`", "real: statsmodels anes96")
def logistic() -> pm.Model:
    """Votes of 944 people in 1996, by their place between left and right, age, income and education."""
    people = anes96.load_pandas().data
    names = ["selfLR", "age", "income", "educ"]
    with pm.Model(coords={"covariate": names}) as model:
        level = pm.Normal("level", 0, 1.5)
        effect = pm.Normal("effect", 0, 1, dims="covariate")
        chance = level + standardize(people[names]).to_numpy() @ effect
        pm.Bernoulli("vote", logit_p=chance, observed=people.vote)
    return model


@entry("quantile regression", "bambi `quantile_regression`", "real: quantreg engel")
def quantile() -> pm.Model:
    """Spending on food of 235 households, by income: the line that nine tenths of them are below."""
    homes = data("quantreg", "engel") / 1000
    with pm.Model() as model:
        level = pm.Normal("level", 0, 0.5)
        slope = pm.Normal("slope", 0.5, 0.5)
        width = pm.HalfNormal("width", 0.2)
        line = level + slope * homes.income.to_numpy()
        pm.AsymmetricLaplace("food", mu=line, b=1 / width, q=0.9, observed=homes.foodexp)
    return model


@entry("proportions", "bambi `beta_regression`", "real: betareg GasolineYield")
def proportions() -> pm.Model:
    """Share of crude oil that becomes gasoline, in 32 runs."""
    runs = data("betareg", "GasolineYield")
    with pm.Model() as model:
        level = pm.Normal("level", -1, 1)
        heat = pm.Normal("heat", 0, 1)
        pressure = pm.Normal("pressure", 0, 1)
        precision = pm.HalfNormal("precision", 100)
        mean = pm.math.invlogit(level + heat * standardize(runs.temp) + pressure * standardize(runs.pressure))
        pm.Beta("share", mu=mean, nu=precision, observed=runs["yield"])
    return model


@entry("dose and response", "bambi `nonlinear_expressions` (another curve)", "real: drc ryegrass")
def dose_response() -> pm.Model:
    """Length of roots of ryegrass under a poison, in 24 pots: a curve with four parameters."""
    pots = data("drc", "ryegrass")
    with pm.Model() as model:
        low = pm.HalfNormal("low", 2)
        high = pm.Normal("high", 8, 2)
        half = pm.LogNormal("half", 1, 0.5)
        steep = pm.LogNormal("steep", 1, 0.5)
        noise = pm.HalfNormal("noise", 1)
        curve = low + (high - low) / (1 + (pots.conc.to_numpy() / half) ** steep)
        pm.Normal("root", curve, noise, observed=pots.rootl)
    return model
