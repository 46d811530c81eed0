"""``pm.sample_amortized``: when it trains, when it does not, and what it says."""

import dataclasses
import functools
import gc
import logging
import weakref

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.model.transform.optimization import freeze_model
from small_models import BRIEF, line

import pymc_amortized as pma
from pymc_amortized import sampling
from pymc_amortized.approximators.fitting.fingerprint import changes, fingerprint

FIT = {"training": BRIEF}


@pytest.fixture
def fits(monkeypatch, line_posterior):
    """Count trainings, which are not what is tested here."""
    made = []

    def fit(model, **kwargs):
        made.append(kwargs)
        # a snapshot of the model in hand, with the network of another
        spec = pma.graph.model.snapshot.take_snapshot(model, context=kwargs["context"] or {})
        values = {field.name: getattr(line_posterior, field.name) for field in dataclasses.fields(line_posterior)}
        return pma.AmortizedPosterior(**{**values, "spec": spec})

    monkeypatch.setattr(sampling, "fit_posterior", fit)
    monkeypatch.setattr(sampling.inspect, "signature", _signature_of_the_real_one)
    return made


_REAL = sampling.fit_posterior
_signature = sampling.inspect.signature


def _signature_of_the_real_one(_):
    return _signature(_REAL)


def sample(model, **kwargs):
    defaults = {"draws": 20, "chains": 2, "progressbar": False, "random_seed": 1, "fit_kwargs": FIT}
    return pm.sample_amortized(model=model, **{**defaults, **kwargs})


def test_one_function_by_two_names():
    assert pm.sample_amortized is pma.sample_amortized


@pytest.fixture(scope="module")
def trained():
    """Return a model, and what the first call gave."""
    model = line()
    with model:
        first = pm.sample_amortized(draws=50, chains=2, progressbar=False, random_seed=1, fit_kwargs=FIT)
    return model, first


def test_new_observed_values_are_answered_without_training(trained, monkeypatch):
    model, first = trained
    monkeypatch.setattr(sampling, "fit_posterior", None)
    monkeypatch.setattr(sampling.inspect, "signature", _signature_of_the_real_one)
    again = sample(model, draws=50)
    np.testing.assert_array_equal(first.posterior["slope"], again.posterior["slope"])
    with model:
        pm.set_data({"y_data": np.linspace(1, 0, 4)})
    try:
        other = sample(model, draws=50)
    finally:
        with model:
            pm.set_data({"y_data": np.linspace(0, 1, 4)})
    np.testing.assert_array_equal(other.observed_data["y"], np.linspace(1, 0, 4))
    assert not np.array_equal(first.posterior["slope"], other.posterior["slope"])


def test_the_result_equals_that_of_the_posterior_itself(trained):
    model, first = trained
    assert set(first.children) == {"posterior", "sample_stats", "observed_data", "constant_data"}
    assert list(first.posterior.data_vars) == ["slope", "sigma", "prediction"]
    assert first.posterior["prediction"].dims == ("chain", "draw", "obs")


def test_arguments_reach_the_posterior(trained):
    model, _ = trained
    dt = sample(model, draws=7, chains=3, var_names=["sigma"], correction=None, idata_kwargs={"log_prior": True})
    assert dict(dt.posterior.sizes) == {"chain": 3, "draw": 7}
    assert list(dt.posterior.data_vars) == ["sigma"]
    assert dt.posterior.attrs["correction"] == "none"
    assert "log_prior" in dt.children


def change_covariates(model):
    with model:
        pm.set_data({"x": np.linspace(0, 2, 4)})


def add_variable(model):
    with model:
        pm.Normal("another")


def add_deterministic(model):
    with model:
        pm.Deterministic("double", 2 * model["slope"])


def add_potential(model):
    with model:
        pm.Potential("pull", -(model["slope"] ** 2))


CHANGES = [
    (change_covariates, "data 'x'"),
    (add_variable, "variable 'another'"),
    (add_deterministic, "variable 'double'"),
    (add_potential, "variable 'pull'"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_other_changes_train_again_and_are_named(fits, caplog, change, said):
    model = line()
    sample(model)
    sample(model)
    assert len(fits) == 1
    before = sampling._kept[model].fingerprint
    change(model)
    after = fingerprint(model, {}, FIT)
    assert changes(before, after) == [said]
    with caplog.at_level(logging.INFO, "pymc_amortized"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pma.AmortizedPosterior, "sample", lambda self, *args, **kwargs: None)
        sample(model)
    assert len(fits) == 2
    assert f"Training again, because of changes in: {said}." in caplog.text


def test_resized_observations_train_again(fits, caplog):
    with pm.Model(coords={"obs": range(4)}) as model:
        y_data = pm.Data("y_data", np.zeros(4), dims="obs")
        pm.Normal("y", pm.Normal("slope"), pm.HalfNormal("sigma"), observed=y_data, dims="obs")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, "pymc_amortized"):
        patch.setattr(pma.AmortizedPosterior, "sample", lambda self, *args, **kwargs: None)
        sample(model)
        with model:
            pm.set_data({"y_data": np.zeros(6)}, coords={"obs": range(6)})
        sample(model)
    assert len(fits) == 2
    assert "dimension 'obs'" in caplog.text
    assert "shape of 'y'" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fit_kwargs": {**FIT, "num_simulations": 500}}, "argument 'num_simulations'"),
        ({"fit_kwargs": {"training": pma.Training(num_steps=7)}}, "argument 'training'"),
        ({"context": {"x": "resample"}}, "context 'x'"),
    ],
)
def test_other_arguments_of_the_fit_train_again(fits, caplog, changes, said):
    model = line()
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, "pymc_amortized"):
        patch.setattr(pma.AmortizedPosterior, "sample", lambda self, *args, **kwargs: None)
        sample(model)
        sample(model, **changes)
        sample(model, **changes)
    assert len(fits) == 2
    assert said in caplog.text


def test_arguments_that_do_not_concern_training_do_not_train_again(fits):
    model = line()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pma.AmortizedPosterior, "sample", lambda self, *args, **kwargs: None)
        sample(model)
        sample(model, random_seed=2, draws=5, chains=1, var_names=["sigma"], correction=None)
    assert len(fits) == 1


def test_new_values_of_declared_context_are_answered_without_training(fits):
    model = line()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pma.AmortizedPosterior, "sample", lambda self, data, **kwargs: seen.append(data))
        for value in (np.zeros(4), np.ones(4)):
            with model:
                pm.set_data({"x": value})
            sample(model, context={"x": "resample"})
    assert len(fits) == 1
    np.testing.assert_array_equal(seen[1]["x"], np.ones(4))


def test_a_context_written_anew_at_every_call_is_the_same_context(fits):
    model = line()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pma.AmortizedPosterior, "sample", lambda self, *args, **kwargs: None)
        for _ in range(2):
            sample(model, context={"x": pm.Normal.dist(0.0, 1.0)})
    assert len(fits) == 1


def test_derived_observations_are_observations(fits):
    with pm.Model() as model:
        y_data = pm.Data("y_data", np.arange(1.0, 5.0))
        pm.Normal("y", pm.Normal("slope"), pm.HalfNormal("sigma"), observed=pm.math.log(y_data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pma.AmortizedPosterior, "sample", lambda self, *args, **kwargs: None)
        sample(model)
        with model:
            pm.set_data({"y_data": np.arange(2.0, 6.0)})
        sample(model)
    assert len(fits) == 1


def test_the_cache_does_not_keep_models_alive(fits):
    model = line()
    sample(model)
    assert model in sampling._kept
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_frozen_models_are_models():
    model = freeze_model(line())
    first = sample(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "fit_posterior", None)
        patch.setattr(sampling.inspect, "signature", _signature_of_the_real_one)
        again = sample(model)
    np.testing.assert_array_equal(first.posterior["slope"], again.posterior["slope"])


class Scaled:
    """A simulator with a state."""

    def __init__(self) -> None:
        self.scale = 1.0

    def __call__(self, rng, mu, size):
        return rng.normal(mu, self.scale, size)


@pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding")
@pytest.mark.filterwarnings("ignore:Calling a RandomVariable without")
@pytest.mark.parametrize("kind", ["dict", "list", "object", "global", "partial", "wrapped"])
def test_what_functions_of_the_user_read_is_seen(kind):
    held = {"dict": {"s": 1.0}, "list": [1.0], "object": Scaled()}.get(kind)

    def scale() -> float:
        return OF_SIMULATOR["s"] if held is None else next(iter(held.values() if kind == "dict" else held))

    def draw(rng, mu, size):
        return rng.normal(mu, scale(), size)

    with pm.Model() as model:
        mu = pm.Normal("mu")
        if kind == "wrapped":
            scaled = pytensor.wrap_py(itypes=[pt.dscalar], otypes=[pt.dscalar])(lambda mu: mu * scale())
            pm.Normal("y", pm.Deterministic("scaled", scaled(mu)), observed=0.0)
        elif kind == "list":
            pm.CustomDist("y", mu, logp=lambda value, mu: -((value - mu) ** 2) / scale(), random=draw, observed=0.0)
        else:
            function = functools.partial(draw, size=1) if kind == "partial" else draw
            pm.Simulator("y", held if kind == "object" else function, mu, observed=np.zeros(3))
    before = fingerprint(model, {}, {})
    assert not changes(before, fingerprint(model, {}, {}))
    if kind == "dict":
        held["s"] = 2.0
    elif kind == "list":
        held[0] = 2.0
    elif kind == "object":
        held.scale = 2.0
    else:
        OF_SIMULATOR["s"] += 1
    assert changes(before, fingerprint(model, {}, {})), kind


OF_SIMULATOR = {"s": 1.0}


ARGUMENTS = [
    ({"draws": 0}, ValueError, "draws"),
    ({"draws": "a"}, TypeError, "draws"),
    ({"chains": 0}, ValueError, "chains"),
    ({"chains": 1.5}, TypeError, "chains"),
    ({"random_seed": -1}, ValueError, "random_seed"),
    ({"random_seed": "a"}, (TypeError, ValueError), "random_seed"),
    ({"var_names": ["nope"]}, KeyError, "var_names"),
    ({"var_names": "slope"}, TypeError, "var_names"),
    ({"correction": "x"}, ValueError, "correction"),
    ({"idata_kwargs": {"x": True}}, ValueError, "idata_kwargs"),
    ({"fit_kwargs": {"num_step": 5}}, TypeError, r"fit_kwargs: \['num_step'\] given; allowed are"),
    ({"fit_kwargs": {"model": 5}}, TypeError, r"fit_kwargs: \['model'\]"),
    ({"fit_kwargs": {"random_seed": 5}}, TypeError, r"fit_kwargs: \['random_seed'\]"),
    ({"fit_kwargs": {"observed": ["y"]}}, TypeError, r"fit_kwargs: \['observed'\]"),
    ({"fit_kwargs": 5}, TypeError, "fit_kwargs"),
    ({"context": {"q": "resample"}}, KeyError, "context"),
    ({"context": "x"}, TypeError, "context"),
    ({"model": 5}, TypeError, "model"),
    ({"tune": 1000}, TypeError, "tune= is an argument of pm.sample: nothing is tuned"),
    ({"dtype": "int8"}, ValueError, "'float64' or 'float32', got 'int8'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments_are_checked(trained, arguments, error, message):
    model, _ = trained
    with pytest.raises(error, match=message):
        sample(arguments.get("model", model), **{k: v for k, v in arguments.items() if k != "model"})


@pytest.mark.parametrize(
    "arguments",
    [
        {"draws": 0},
        {"chains": 0},
        {"correction": "x"},
        {"idata_kwargs": {"x": True}},
        {"var_names": ["nope"]},
    ],
)
def test_arguments_are_checked_before_training(fits, arguments):
    with pytest.raises((KeyError, TypeError, ValueError)):
        sample(line(), **arguments)
    assert not fits, "a minute of training ends in an error about an argument"


def test_unknown_arguments_are_python_errors():
    with pytest.raises(TypeError, match="unexpected keyword"):
        pm.sample_amortized(draw=5)
