"""Objects of other libraries that hold a PyMC model, and names that they give to variables."""

import logging
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_amortized as pma
from pymc_amortized.graph.model.owners import model_of


def line() -> pm.Model:
    with pm.Model() as model:
        slope = pm.Normal("days|subject", 0, 1)
        scale = pm.HalfNormal("float32", 1)
        pm.Normal("y", slope * np.arange(4.0), scale, observed=np.zeros(4))
    return model


class Bambi:
    """As bambi's: built when it is needed."""

    def __init__(self, model, **attributes):
        self._model = model
        self.built = False
        self.backend = None
        vars(self).update(attributes)

    def build(self):
        self.built = True
        self.backend = SimpleNamespace(model=self._model)


@pytest.mark.parametrize(
    "hold",
    [Bambi, lambda m: SimpleNamespace(pymc_model=m), lambda m: SimpleNamespace(model=m)],
    ids=["bambi", "HSSM", "marketing"],
)
def test_objects_stand_for_the_model_they_hold(hold, caplog):
    model = line()
    with caplog.at_level(logging.INFO, "pymc_amortized"):
        assert model_of(hold(model)) is model
    assert "The PyMC model of this" in caplog.text


def test_what_holds_no_model_is_refused():
    for wrong in (3, SimpleNamespace(model=None), SimpleNamespace(backend=None)):
        with pytest.raises(TypeError, match=r"model must be a pymc.Model, or a model of HSSM, bambi, pymc-marketing"):
            pma.fit_posterior(wrong)


def test_an_intercept_that_predict_would_misread_is_refused():
    component = SimpleNamespace(intercept_term="Intercept", common_terms={"x": 1})
    alone = SimpleNamespace(intercept_term="Intercept", common_terms={})
    model = line()
    with pytest.raises(ValueError, match="build it with center_predictors=False"):
        pma.fit_posterior(Bambi(model, center_predictors=True, components={"mu": component}))
    assert model_of(Bambi(model, center_predictors=False, components={"mu": component})) is model
    assert model_of(Bambi(model, center_predictors=True, components={"mu": alone})) is model


def test_names_may_look_like_dtypes():
    posterior = pma.fit_posterior(Bambi(line()), training=pma.Training(num_steps=1), random_seed=1, progressbar=False)
    dt = posterior.sample({"y": np.arange(4.0) + [0.1, -0.1, 0.1, -0.1]}, draws=500, random_seed=1)
    assert set(dt.posterior.data_vars) == {"days|subject", "float32"}
    assert abs(float(dt.posterior["days|subject"].mean()) - 1) < 0.1
    assert pma.simulate(line(), 5, random_seed=1).prior["float32"].shape == (1, 5)


def test_what_is_not_built_says_so():
    with pytest.raises(TypeError, match="call its build_model first"):
        pma.fit_posterior(SimpleNamespace(build_model=print))


def trials(*names: str) -> pm.Model:
    """As HSSM's: two numbers a trial, named after both columns; the order of parameters is that of a set."""
    with pm.Model(coords={"trial": range(5), "extra": [0, 1]}) as model:
        free = {name: pm.Normal(name, 0, 1) for name in names}
        mean = pt.stack([free["a"], 2 * free["b"]])
        pm.Normal("rt,response", mean, 1, observed=np.zeros((5, 2)), dims=("trial", "extra"))
    return model


def test_frames_and_files_of_joined_responses(tmp_path):
    quick = {"training": pma.Training(num_steps=1), "random_seed": 1, "progressbar": False}
    posterior = pma.fit_posterior(trials("a", "b"), **quick)
    posterior.save(tmp_path / "trials.pma")
    frame = pd.DataFrame({"rt": np.arange(5.0), "other": 1, "response": [1.0, -1, 1, 1, -1]})
    joined = frame[["rt", "response"]]
    expected = posterior.sample({"rt,response": joined.to_numpy()}, draws=200, random_seed=1)
    for data in (frame, {"rt,response": joined}):
        assert posterior.sample(data, draws=200, random_seed=1).posterior.equals(expected.posterior)
    again = pma.load(tmp_path / "trials.pma", model=trials("b", "a"))
    assert again.sample(frame, draws=200, random_seed=1).posterior.equals(expected.posterior)


def test_a_container_that_scales_observations_may_feed_the_rest():
    y = np.array([80.0, 120, 100, 90, 110])
    with pm.Model() as model:
        sales, scale = pm.Data("sales", y), pm.Data("scale", y.max())
        mean = pm.Normal("mean", 0, 1)
        pm.Deterministic("total", mean * scale)
        pm.Normal("y", mean, 0.1, observed=sales / scale, shape=5)
    posterior = pma.fit_posterior(model, training=pma.Training(num_steps=1), random_seed=1, progressbar=False)
    dt = posterior.sample({"y": y / y.max()}, draws=500, random_seed=1)
    assert abs(float(dt.posterior["total"].mean()) - 100) < 2


def test_a_density_that_evaluates_its_data_is_none():
    def logp(value, mu):
        return -((value - mu) ** 2) + value.eval().sum()

    with pm.Model() as model:
        pm.CustomDist(
            "y", pm.Normal("mu"), logp=logp, random=lambda mu, rng, size: rng.normal(mu, size=size), observed=[0]
        )
    with pytest.raises(ValueError, match="evaluates its data while it is derived"):
        pma.fit_posterior(model, target_efficiency=0.5)
