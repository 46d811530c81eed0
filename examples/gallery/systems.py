"""Systems that run in time: predators and prey, an epidemic, media and sales."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from entries import entry


def species(hares, lynx, rates, years, steps=5):
    """Solve the Lotka-Volterra equations by Runge-Kutta steps: (years, 2)."""

    def change(prey, hunters, birth, eaten, death, gain):
        return birth * prey - eaten * prey * hunters, gain * prey * hunters - death * hunters

    def step(prey, hunters, *rates):
        h = 1 / steps
        a, b = change(prey, hunters, *rates)
        c, d = change(prey + h / 2 * a, hunters + h / 2 * b, *rates)
        e, f = change(prey + h / 2 * c, hunters + h / 2 * d, *rates)
        g, i = change(prey + h * e, hunters + h * f, *rates)
        return prey + h / 6 * (a + 2 * c + 2 * e + g), hunters + h / 6 * (b + 2 * d + 2 * f + i)

    first = [hares, lynx]
    path = pytensor.scan(
        step, outputs_info=first, non_sequences=rates, n_steps=steps * (years - 1), return_updates=False
    )
    series = [pt.concatenate([start[None], later])[::steps] for start, later in zip(first, path, strict=True)]
    return pt.clip(pt.stack(series, axis=-1), 1e-3, 1e4)


@entry(
    "differential equation",
    "PyMC `ODE_Lotka_Volterra_multiple_ways`, BayesFlow `Lotka_Volterra_Point_Estimation`",
    helpers=(species,),
)
def predators() -> pm.Model:
    """Hares and lynx in 15 years: four rates, two first numbers, one noise."""
    prey = [45.1, 45.5, 48.2, 32.9, 24.0, 15.9, 10.4, 8.7, 14.2, 20.7, 24.1, 37.9, 44.7, 79.7, 40.4]
    hunters = [3.0, 5.9, 11.8, 26.0, 77.0, 31.0, 19.1, 12.5, 8.2, 5.8, 6.8, 4.8, 8.8, 15.7, 41.0]
    with pm.Model() as model:
        birth = pm.LogNormal("birth", np.log(0.5), 0.2)
        eaten = pm.LogNormal("eaten", np.log(0.03), 0.2)
        death = pm.LogNormal("death", np.log(0.8), 0.2)
        gain = pm.LogNormal("gain", np.log(0.03), 0.2)
        hares = pm.LogNormal("hares", np.log(30), 0.3)
        lynx = pm.LogNormal("lynx", np.log(5), 0.3)
        noise = pm.HalfNormal("noise", 0.3)
        path = species(hares, lynx, [birth, eaten, death, gain], 15)
        pm.LogNormal("seen", pt.log(path), noise, observed=np.column_stack([prey, hunters]))
    return model


@entry("epidemic", "BayesFlow `SIR_Posterior_Estimation`")
def epidemic() -> pm.Model:
    """New cases in a school of 763, day by day for 20 days, of which some are not reported."""

    def new_cases(contact, recovery, first):
        well, ill, all_new = 763 - first, first, []
        for _ in range(20):
            new = well * (1 - pt.exp(-contact * ill / 763))
            well, ill = well - new, ill + new - recovery * ill
            all_new.append(new)
        return pt.stack(all_new)

    found = [1, 2, 12, 20, 34, 52, 65, 128, 93, 161, 30, 20, 9, 5, 2, 2, 0, 0, 0, 0]
    with pm.Model(coords={"day": range(20)}) as model:
        contact = pm.LogNormal("contact", np.log(1.2), 0.4)
        recovery = pm.Beta("recovery", 4, 5)
        first = pm.Exponential("first", 0.5)
        reported = pm.Beta("reported", 8, 2)
        overdispersion = pm.HalfNormal("overdispersion", 0.3)
        cases = reported * new_cases(contact, recovery, first) + 1e-3
        pm.NegativeBinomial("seen", mu=cases, alpha=1 / (overdispersion + 0.01), observed=found, dims="day")
    return model


@entry("marketing", "pymc-marketing's media mix models")
def media_mix() -> pm.Model:
    """Sales of 104 weeks by two media: what is spent goes on working, and works less the more there is."""
    rng = np.random.default_rng(5)
    weeks, lags = 104, np.arange(8)
    spend = rng.gamma(2, 0.5, size=(weeks, 2)) * (rng.uniform(size=(weeks, 2)) < 0.6)
    earlier = np.stack([np.pad(spend, ((lag, 0), (0, 0)))[:weeks] for lag in lags], axis=-1)
    season = np.sin(2 * np.pi * np.arange(weeks) / 52)
    kept = np.array([0.3, 0.6])[:, None] ** lags
    carried = (earlier * kept / kept.sum(1, keepdims=True)).sum(-1)
    sales = 4 + np.tanh([1.5, 0.8] * carried) @ [1.0, 2.0] + 0.3 * season + rng.normal(0, 0.25, size=weeks)
    with pm.Model(coords={"week": range(weeks), "media": ["tv", "web"]}) as model:
        base = pm.Normal("base", 4, 1)
        effect = pm.HalfNormal("effect", 2, dims="media")
        keep = pm.Beta("keep", 2, 3, dims="media")
        saturation = pm.Gamma("saturation", 4, 4, dims="media")
        yearly = pm.Normal("yearly", 0, 0.5)
        noise = pm.HalfNormal("noise", 0.5)
        weights = keep[:, None] ** lags
        adstock = (earlier * weights / weights.sum(1, keepdims=True)).sum(-1)
        mean = base + pm.math.tanh(saturation * adstock) @ effect + yearly * season
        pm.Normal("sales", mean, noise, observed=sales, dims="week")
    return model
