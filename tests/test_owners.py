"""Objects of other libraries that hold a PyMC model, and names that they give to variables."""

import logging
from types import SimpleNamespace

import numpy as np
import pymc as pm
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
