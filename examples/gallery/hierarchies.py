"""Groups that share what they know: counties, subjects, litters."""

import numpy as np
import pymc as pm
from entries import data, entry
from scipy import stats


@entry("hierarchy of 85 counties", "PyMC `multilevel_modeling`, bambi `radon_example`", "real: HLMdiag radon")
def counties() -> pm.Model:
    """Radon in 919 houses of 85 counties of Minnesota, by floor and by the uranium in the ground."""
    houses = data("HLMdiag", "radon")
    uranium = houses.groupby("county").uranium.first().to_numpy()
    county = houses.county.to_numpy(int) - 1
    with pm.Model(coords={"county": range(85)}) as model:
        level = pm.Normal("level", 1, 1)
        soil = pm.Normal("soil", 0, 1)
        floor = pm.Normal("floor", 0, 1)
        spread = pm.HalfNormal("spread", 0.5)
        noise = pm.HalfNormal("noise", 1)
        offset = pm.Normal("offset", 0, 1, dims="county")
        mean = (level + soil * uranium + spread * offset)[county] + floor * houses.basement.to_numpy()
        pm.Normal("log_radon", mean, noise, observed=houses["log.radon"])
    return model


@entry(
    "hierarchy of slopes, by bambi",
    "bambi `sleepstudy`",
    "real: lme4 sleepstudy",
    needs="bambi",
    reference=lambda: sleep_bambi().backend.model,
)
def sleep_bambi():
    """Describe the same people by a formula; bambi chooses the priors."""
    import bambi as bmb

    days = data("lme4", "sleepstudy")
    model = bmb.Model("Reaction ~ Days + (Days | Subject)", days, categorical="Subject", center_predictors=False)
    model.build()
    return model


def exact_litters() -> dict[str, np.ndarray]:
    """Draw from the posterior: chances are integrated out, and what is left is a grid of two numbers for each group."""
    litter = data("aod", "rats")
    rng, draws = np.random.default_rng(1), 20_000
    mean, size = np.empty((draws, 2)), np.empty((draws, 2))
    chance = np.empty((draws, len(litter)))
    means, sizes = np.linspace(0.001, 0.999, 500)[:, None], np.exp(np.linspace(-3, 8, 800))
    for group, name in enumerate(("CTRL", "TREAT")):
        rows = np.flatnonzero(litter.group == name)
        log_p = stats.beta.logpdf(means, 4, 1) + stats.norm.logpdf(np.log(sizes), 2, 1)
        for n, y in zip(litter.n[rows], litter.y[rows], strict=True):
            log_p = log_p + stats.betabinom.logpmf(y, n, means * sizes, (1 - means) * sizes)
        weight = np.exp(log_p - log_p.max()).ravel()
        at = np.divmod(rng.choice(weight.size, draws, p=weight / weight.sum()), len(sizes))
        mean[:, group], size[:, group] = means[at[0], 0], sizes[at[1]]
        a, b = (mean * size)[:, [group]], ((1 - mean) * size)[:, [group]]
        alive, total = litter.y[rows].to_numpy(), litter.n[rows].to_numpy()
        chance[:, rows] = rng.beta(a + alive, b + total - alive)
    return {"mean": mean, "size": size, "chance": chance}


@entry(
    "hierarchy of proportions",
    "PyMC `GLM-hierarchical-binomial-model`",
    "real: aod rats",
    exact=exact_litters,
)
def litters() -> pm.Model:
    """Survivors in 32 litters of rats: each litter has its own chance."""
    litter = data("aod", "rats")
    treated = (litter.group == "TREAT").astype(int).to_numpy()
    with pm.Model(coords={"litter": range(32), "group": ["control", "treated"]}) as model:
        mean = pm.Beta("mean", 4, 1, dims="group")
        size = pm.LogNormal("size", 2, 1, dims="group")
        chance = pm.Beta("chance", (mean * size)[treated], ((1 - mean) * size)[treated], dims="litter")
        pm.Binomial("alive", litter.n, chance, observed=litter.y)
    return model
