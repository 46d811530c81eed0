"""Small models for tests of everything around the mathematics: data, files, refusals, state."""

from collections.abc import Callable, Sequence

import numpy as np
import pymc as pm

import pymc_amortized as pma

BRIEF = pma.Training(num_steps=60, batch_size=64, evaluations=5)
"""Long enough to have a posterior, not to have a good one."""


def mixed_kinds(items: Sequence[str] = ("a", "b", "c")) -> pm.Model:
    """Real, count, binary and categorical data, dims with labels, a container of each role."""
    rng = np.random.default_rng(0)
    with pm.Model(coords={"obs": range(5), "item": list(items)}) as model:
        x = pm.Data("x", np.linspace(-1, 1, 5), dims="obs")
        offset = pm.Data("offset", np.zeros(3), dims="item")
        y_data = pm.Data("y_data", rng.normal(size=(5, 3)), dims=("obs", "item"))
        mu = pm.Normal("mu", 0, 1)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Deterministic("twice", 2 * mu)
        pm.Normal("y", mu * x[:, None] + offset, sigma + 0.1, observed=y_data, dims=("obs", "item"))
        pm.Poisson("count", pm.math.exp(mu), observed=np.array([1, 2, 0, 4]))
        pm.Bernoulli("flag", pm.math.sigmoid(mu), observed=np.array([1, 0]))
        pm.Categorical("level", p=np.array([0.2, 0.3, 0.5]), observed=2)
    return model


def held_data() -> dict[str, object]:
    """One data set of `mixed_kinds`."""
    y = np.arange(15.0).reshape(5, 3) / 15 - 0.5
    return {"y": y, "count": [1, 2, 0, 3], "flag": [0, 1], "level": 1, "offset": [0.1, 0.0, -0.1]}


WEIGHTS = np.array([1.0, 2.0, 0.5, 1.5])


def line(
    *,
    prior: Callable[..., object] = pm.Normal,
    scale: float = 1.0,
    slope: str = "slope",
    x: np.ndarray | None = None,
    weights: np.ndarray = WEIGHTS,
    rows: int = 4,
    spread: Callable[[], object] = lambda: pm.HalfNormal("sigma", 1.0),
) -> pm.Model:
    """A line through four points: containers, a raw constant, a transform."""
    with pm.Model(coords={"obs": range(rows)}) as model:
        covariate = pm.Data("x", np.linspace(-1, 1, rows) if x is None else x, dims="obs")
        y_data = pm.Data("y_data", np.linspace(0, 1, rows), dims="obs")
        b = prior(slope, 0.0, scale)
        sigma = spread()
        pm.Deterministic("prediction", b * covariate, dims="obs")
        pm.Normal("y", b * covariate, sigma * weights[:rows], observed=y_data, dims="obs")
    return model


def brief_fit(model: pm.Model, **kwargs: object) -> pma.AmortizedPosterior:
    """Train for a second."""
    options = {"training": BRIEF, "random_seed": 1, "progressbar": False, **kwargs}
    return pma.fit_posterior(model, **options)
