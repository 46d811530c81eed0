"""Models that are refused, each by name and with what to do; and those that are nearly, but not."""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

import pymc_amortized as pma
from pymc_amortized.graph.data.simulations import SimulationError
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.context import ContextSampler

Y = np.arange(4.0)


def model_of(write: Callable[[], object], **kwargs: object) -> pm.Model:
    """Make a model of what a function writes down."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Data in y contains missing values", category=Warning)
        with pm.Model(**kwargs) as model:
            write()
    return model


def observe(mean: object) -> object:
    return pm.Normal("y", mean, 1.0, observed=Y)


def minibatch(**kwargs: object) -> None:
    pm.Normal("y", pm.Normal("m"), 1.0, observed=pm.Minibatch(Y, batch_size=2), **kwargs)


def minibatch_with_covariates() -> None:
    x, y = pm.Minibatch(Y, Y, batch_size=2)
    pm.Normal("y", pm.Normal("m") * x, 1.0, observed=y)


def lags() -> None:
    d = pm.Data("d", np.arange(10.0))
    pm.Normal("y", pm.Normal("m") * d[:-1], 1.0, observed=d[1:])


def centered_by_the_data() -> None:
    d = pm.Data("d", np.arange(10.0))
    pm.Normal("y", pm.Normal("m") + d.mean(), 1.0, observed=d)


def potential_of_the_data() -> None:
    d, m = pm.Data("d", np.arange(10.0)), pm.Normal("m")
    pm.Normal("y", m, 1.0, observed=d)
    pm.Potential("p", m * d.sum())


def residuals() -> None:
    d, m = pm.Data("d", np.arange(10.0)), pm.Normal("m")
    pm.Normal("y", m, 1.0, observed=d)
    pm.Deterministic("residual", d - m)


def one_container_for_two() -> None:
    d, m = pm.Data("d", np.arange(10.0)), pm.Normal("m")
    pm.Normal("y", m, 1.0, observed=d)
    pm.Normal("z", m, 2.0, observed=d)


MISSING = np.ma.masked_invalid([1.0, np.nan, 2.0, 3.0])
HALF_MISSING = np.array([[1.0, np.nan], [2.0, 3.0]])
COUNTS = np.ma.masked_values([1, -1, 2], -1)
ISLANDS = np.array([[0, 1], [1, 0]])

REFUSED = {
    "flat": (lambda: observe(pm.Flat("f")), "'f' has an improper Flat prior.*proper prior"),
    "half flat": (lambda: observe(pm.HalfFlat("f")), "'f' has an improper HalfFlat prior.*proper prior"),
    "icar": (lambda: observe(pm.ICAR("f", W=ISLANDS)[0]), "'f' is an ICAR.*pm.CAR"),
    "no observed": (lambda: pm.Normal("m"), r"no observed variable: pass observed=\[...\].*\['m'\]"),
    "no free": (lambda: observe(0.0), "no free random variable"),
    "empty": (lambda: None, "no observed variable"),
    "total_size": (
        lambda: pm.Normal("y", pm.Normal("m"), 1.0, observed=Y, total_size=100),
        "'y' has total_size.*remove total_size",
    ),
    "minibatch": (minibatch, "pm.Minibatch.*remove_minibatched_nodes"),
    "minibatch and total_size": (lambda: minibatch(total_size=4), "'y' has total_size"),
    "minibatched covariates": (minibatch_with_covariates, "pm.Minibatch"),
    "poisson": (lambda: observe(pm.Poisson("k", 3.0)), "'k' is discrete.*marginalize"),
    "bernoulli": (lambda: observe(pm.Bernoulli("k", 0.3)), "'k' is discrete.*marginalize"),
    "categorical": (lambda: observe(pm.Categorical("k", [0.3, 0.7])), "'k' is discrete.*marginalize"),
    "missing": (lambda: pm.Normal("y", pm.Normal("m"), observed=MISSING), "'y' has missing values.*train with missing"),
    "missing as NaN": (
        lambda: pm.Normal("y", pm.Normal("m"), observed=MISSING.filled(np.nan)),
        "'y' has missing values.*train with missing",
    ),
    "missing counts": (lambda: pm.Poisson("y", pm.HalfNormal("m"), observed=COUNTS), "'y' has missing values"),
    "missing in vectors": (
        lambda: pm.MvNormal("y", pm.Normal("m", shape=2), np.eye(2), observed=HALF_MISSING),
        "'y' has missing values",
    ),
    "lags": (lags, "'d' holds the observations of 'y' and feeds the rest.*pm.AR"),
    "centered by the data": (centered_by_the_data, "'d' holds the observations of 'y' and feeds the rest"),
    "potential of the data": (potential_of_the_data, "'d' holds the observations of 'y' and feeds the rest"),
    "residuals": (residuals, "'d' holds the observations of 'y' and feeds the rest"),
    "one container for two": (one_container_for_two, "'d' holds the observations of both 'y' and 'z'"),
    "empty observed": (
        lambda: pm.Normal("y", pm.Normal("m"), observed=np.zeros(0)),
        r"'y' has shape \(0,\): an empty variable",
    ),
    "empty free": (lambda: [pm.Normal("e", shape=0), observe(pm.Normal("m"))], r"'e' has shape \(0,\)"),
}


@pytest.mark.filterwarnings("ignore:.*missing values:pymc.exceptions.ImputationWarning")
@pytest.mark.filterwarnings("ignore:total_size not provided:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_unsuited_models_are_refused_by_name(name):
    write, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        take_snapshot(model_of(write))


def test_a_nested_model_is_refused_and_its_parent_taken():
    with pm.Model() as outer, pm.Model("inner") as inner:
        observe(pm.Normal("m"))
    with pytest.raises(ValueError, match="nested.*outermost"):
        take_snapshot(inner)
    assert [v.name for v in take_snapshot(outer).observed] == ["inner::y"]


def shape_by_argument() -> None:
    d = pm.Data("d", np.arange(10.0))
    pm.Normal("y", pm.Normal("m"), 1.0, observed=d, shape=d.shape)


def shape_by_ones() -> None:
    d = pm.Data("d", np.arange(10.0))
    pm.Normal("y", pm.Normal("m") * pt.ones(d.shape[0]), 1.0, observed=d)


def shape_of_a_parameter() -> None:
    d = pm.Data("d", np.arange(10.0))
    pm.Normal("y", pm.Normal("m", shape=d.shape[0]), 1.0, observed=d)


@pytest.mark.parametrize("write", [shape_by_argument, shape_by_ones, shape_of_a_parameter])
def test_a_container_whose_shape_alone_is_used_is_taken(write):
    (observed,) = take_snapshot(model_of(write)).observed
    assert (observed.name, observed.container, observed.shape) == ("y", "d", (10,))


def two_free() -> None:
    pm.Normal("m")
    pm.Normal("q")


def bounds() -> None:
    observe(pm.Uniform("u", 0.0, pm.HalfNormal("a")))


NAMES = {
    "a string": (two_free, {"observed": "q"}, TypeError, "observed must be a sequence of names"),
    "a number": (two_free, {"observed": 5}, TypeError, "observed"),
    "unknown": (two_free, {"observed": ["zz"]}, KeyError, r"observed: \['zz'\] given.*\['m', 'q'\]"),
    "none": (two_free, {"observed": []}, KeyError, "observed: no names given"),
    "all": (two_free, {"observed": ["m", "q"]}, ValueError, "no free random variable"),
    "a parameters string": (
        two_free,
        {"observed": ["q"], "parameters": "m"},
        TypeError,
        "parameters must be a sequence",
    ),
    "a parameters number": (two_free, {"observed": ["q"], "parameters": 3}, TypeError, "parameters"),
    "unknown parameters": (
        two_free,
        {"observed": ["q"], "parameters": ["z"]},
        KeyError,
        r"parameters: \['z'\] given; the free variables are \['m'\]",
    ),
    "no parameters": (two_free, {"observed": ["q"], "parameters": []}, KeyError, "parameters: no names"),
    "borrowed bounds": (bounds, {"parameters": ["u"]}, ValueError, r"range of 'u' depends on \['a'\]"),
    "forgotten": (
        lambda: [two_free(), observe(0.0)],
        {"observed": ["q"]},
        ValueError,
        r"also observes \['y'\]",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_variables_are_checked(name):
    write, arguments, error, message = NAMES[name]
    with pytest.raises(error, match=message):
        take_snapshot(model_of(write), **arguments)


# context


def with_containers() -> None:
    x = pm.Data("x", np.zeros(4), dims="obs")
    h = pm.Data("h", 1.0)
    pm.Normal("y", pm.Normal("m") * x * h, 1.0, observed=pm.Data("y_data", Y), dims="obs")


def fitted_context(context: object) -> None:
    """Go as far as a fit does with its context, which is not far."""
    model = model_of(with_containers, coords={"obs": range(4)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pymc_amortized.approximators.posterior.fit.plan_simulations", _accepted)
        pma.fit_posterior(model, context=context, progressbar=False)


class ContextAcceptedError(Exception):
    """The context was found to be fine."""


def _accepted(*_: object, **__: object) -> None:
    raise ContextAcceptedError


CONTEXTS = {
    "unknown": (
        {"q": "resample"},
        KeyError,
        r"no data container or dimension named 'q'; it has \['h', 'obs', 'x', 'y_data'\]",
    ),
    "a length without a range": ({"obs": 20}, TypeError, "'obs'] is a dimension: give its smallest and largest length"),
    "a range of lengths that is none": ({"obs": (5, 3)}, ValueError, "1 <= smallest <= largest"),
    "covariates of that length": ({"obs": (2, 3)}, ValueError, "'x'] carry the dimension 'obs'"),
    "observed container": ({"y_data": "resample"}, ValueError, "'y_data' holds the observations of 'y'"),
    "observed variable": ({"y": "resample"}, KeyError, "no data container or dimension named 'y'"),
    "free variable": ({"m": "resample"}, KeyError, "no data container or dimension named 'm'"),
    "wrong shape": ({"x": pm.Normal.dist(shape=3)}, ValueError, r"context\['x'\].*\(3,\).*\(4,\)"),
    "vector for scalar": ({"h": pm.Normal.dist(shape=2)}, ValueError, r"context\['h'\].*\(2,\)"),
    "wrong vector": (
        {"x": pm.MvNormal.dist(np.zeros(3), np.eye(3))},
        ValueError,
        r"context\['x'\].*\(3,\).*\(4,\)",
    ),
    "scalar resampled": ({"h": "resample"}, ValueError, r"context\['h'\]: a scalar has no rows"),
    "another word": ({"x": "bootstrap"}, ValueError, r"context\['x'\]: 'bootstrap' is not understood"),
    "a number": ({"x": 3.0}, TypeError, r"context\['x'\] must be a PyMC distribution"),
    "a pair for a number": ({"h": (0.0, 2.0)}, TypeError, r"'h' is no dimension: .* pm.Uniform.dist\(low, high\)"),
    "a range of no dimension": ({"row": (3, 9)}, KeyError, "no dimension named 'row'.*dims='row'"),
    "nothing": ({"x": None}, TypeError, r"context\['x'\] must be a PyMC distribution"),
    "an array": ({"x": np.zeros(4)}, TypeError, r"context\['x'\] must be a PyMC distribution"),
    "callable of wrong shape": ({"x": lambda rng: np.zeros(3)}, ValueError, r"context\['x'\].*\(3,\).*\(4,\)"),
    "callable of NaN": ({"x": lambda rng: np.full(4, np.nan)}, ValueError, r"context\['x'\].*NaN"),
    "callable of strings": ({"x": lambda rng: list("abcd")}, (TypeError, ValueError), r"context\['x'\]"),
    "callable without argument": ({"x": lambda: np.zeros(4)}, TypeError, r"context\['x'\]"),
    "a distribution's class": ({"x": pm.Normal}, TypeError, r"context\['x'\]"),
    "names alone": (("x",), TypeError, "context"),
    "one name": ("x", TypeError, "context"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_wrong_context_is_refused_by_name(name):
    context, error, message = CONTEXTS[name]
    with pytest.raises(error, match=message):
        fitted_context(context)


RIGHT = [
    {"x": "resample"},
    {"x": pm.Normal.dist()},
    {"x": pm.MvNormal.dist(np.zeros(4), np.eye(4))},
    {"x": lambda rng: rng.normal(size=4), "h": pm.HalfNormal.dist()},
]


@pytest.mark.parametrize("context", RIGHT)
def test_right_context_is_taken(context):
    with pytest.raises(ContextAcceptedError):
        fitted_context(context)


def test_context_is_drawn_by_the_seed():
    spec = take_snapshot(model_of(with_containers, coords={"obs": range(4)}), context=["x"])
    sampler = ContextSampler(spec, {"x": lambda rng: rng.normal(size=4)})
    a, b, c = (sampler(3, np.random.SeedSequence(seed), {})["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


# simulations that fail


def negative_scale() -> None:
    sd = pm.Normal("sd", -5.0, 1.0)
    pm.Normal("y", 0.0, sd, observed=Y)


def test_too_few_usable_simulations_name_the_variable():
    with pytest.raises(SimulationError, match=r"only \d+ of \d+ simulations.*y: log density.*Narrow the priors"):
        pma.simulate(model_of(negative_scale), 300, random_seed=1)


def raising(probability: float) -> Callable[[], None]:
    """Write a model whose simulator divides by zero so often."""

    def random(mean: float, rng: np.random.Generator, size: object) -> np.ndarray:
        if rng.random() < probability:
            1 / 0  # noqa: B018
        return rng.normal(mean, 1.0, size=size)

    def logp(value: object, mean: object) -> object:
        return pm.logp(pm.Normal.dist(mean, 1.0), value)

    return lambda: pm.CustomDist("y", pm.Normal("m"), random=random, logp=logp, observed=Y)


# numba says that it cannot compile a Python function
@pytest.mark.filterwarnings("ignore:.*numba.*:UserWarning", "ignore:.*object mode.*")
class TestRaisingSimulators:
    def test_one_that_raises_now_and_then_survives_and_is_counted(self):
        prior = pma.simulate(model_of(raising(0.05)), 200, random_seed=1)["prior"]
        assert prior["m"].shape == (1, 200)
        assert np.isfinite(prior["m"]).all()
        (dropped,) = [count for reason, count in prior.attrs.items() if "ZeroDivisionError" in reason]
        assert 0 < prior.attrs["simulations_attempted"] - 200 - dropped + 1 <= dropped  # hardly any is left over

    def test_one_that_always_raises_is_an_error_that_says_so(self):
        with pytest.raises(SimulationError, match=r"only 0 of \d+ simulations.*ZeroDivisionError"):
            pma.simulate(model_of(raising(2.0)), 50, random_seed=1)


def test_a_generator_without_update_is_refused():
    def dist(mean: object, size: object) -> object:
        rng = pytensor.shared(np.random.default_rng(1))

        def step() -> object:
            return pt.random.normal(0.0, 1.0, rng=rng, return_next_rng=True)[1]

        return mean + pytensor.scan(step, n_steps=4, return_updates=False)

    with pytest.raises(ValueError, match="[Gg]enerator|RNG|[Uu]pdate"):
        pma.simulate(model_of(lambda: pm.CustomDist("y", pm.Normal("m"), dist=dist, observed=Y)), 50, random_seed=1)


# arguments of the functions that simulate and train

ARGUMENTS = [
    ({"num_simulations": 5}, ValueError, "num_simulations"),
    ({"num_simulations": 1.5}, TypeError, "num_simulations"),
    ({"cores": 0}, ValueError, "cores"),
    ({"cores": "2"}, TypeError, "cores"),
    ({"training": {"num_steps": 5}}, TypeError, "training must be a pymc_amortized.Training"),
    ({"max_time": -1.0}, ValueError, "max_time"),
    ({"max_time": "a"}, TypeError, "max_time"),
    ({"device": "abacus"}, ValueError, "device"),
    ({"random_seed": -1}, ValueError, "random_seed"),
    ({"simulations": {"prior": 1}}, TypeError, "simulations must be a DataTree"),
    ({"summary": "conv"}, ValueError, "summary is 'conv'"),
    ({"summary": 3}, TypeError, "summary"),
    ({"density": "maf"}, ValueError, "density is 'maf'"),
    ({"density": 3}, TypeError, "density"),
    ({"model": 3}, TypeError, "model"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments_of_fit_posterior_are_checked_before_anything_is_simulated(arguments, error, message, monkeypatch):
    monkeypatch.setattr("pymc_amortized.approximators.posterior.fit.plan_simulations", _accepted)
    model = model_of(lambda: observe(pm.Normal("m")))
    with pytest.raises(error, match=message):
        pma.fit_posterior(**{"model": model, "progressbar": False, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"draws": 0}, ValueError, "draws"),
        ({"draws": 1.5}, TypeError, "draws"),
        ({"cores": 0}, ValueError, "cores"),
        ({"random_seed": -1}, ValueError, "random_seed"),
    ],
)
def test_arguments_of_simulate_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        pma.simulate(model_of(lambda: observe(pm.Normal("m"))), **arguments)


@pytest.mark.parametrize("function", [pma.simulate, pma.fit_posterior, pma.sample_amortized])
def test_no_model_is_an_error(function):
    with pytest.raises(TypeError, match=r"[Nn]o model on context stack"):
        function()


def test_a_function_that_always_raises_is_refused_soon():
    with pm.Model() as model:
        rate = pm.HalfNormal("rate", 1)
        pm.CustomDist("y", rate, random=lambda rate: rate, observed=np.zeros(10))
    with pytest.raises(ValueError, match="TypeError.*unexpected keyword argument 'rng'.*error in the function"):
        pma.fit_likelihood(model)


def with_labels(labels):
    with pm.Model(coords={"obs": labels}) as model:
        pm.Normal("y", pm.Normal("mu"), 1, observed=np.zeros(4), dims="obs")
    return model


@pytest.mark.parametrize(
    "labels",
    [
        [("a", i) for i in range(4)],
        pd.MultiIndex.from_product([["a", "b"], [0, 1]]),
        np.arange(8).reshape(4, 2),
        ["a", "b", "c", ("d", 1)],
    ],
)
def test_labels_of_several_values_are_refused_before_training(labels):
    with pytest.raises(ValueError, match=r"coords\['obs'\]: labels must be single values"):
        pma.fit_posterior(with_labels(labels))


@pytest.mark.parametrize("name", ["draw", "chain", "dataset"])
def test_names_that_results_have_themselves_are_refused(name):
    with pm.Model() as model:
        pm.Normal("y", pm.Normal(name), 1, observed=np.zeros(4))
    with pytest.raises(ValueError, match=f"variable or dim named .*{name}.*: rename it"):
        pma.simulate(model, 2)


def shortened():
    with pm.Model() as model:
        x = pm.Data("x", np.linspace(-1, 1, 8), dims="obs")
        pm.Normal("y", pm.Normal("slope") * x, 1, observed=np.zeros(8), dims="obs")
        pm.set_data({"x": np.zeros(3)})
    return model


def test_values_that_do_not_fit_their_model_are_refused_before_training(monkeypatch):
    monkeypatch.setattr("pymc_amortized.approximators.posterior.fit.PosteriorFit.run", None)
    message = (
        r"the model holds values of 'y' of shape \(8,\), but what it computes has shape \(3,\) \(dims \('obs',\)\)"
    )
    with pytest.raises(ValueError, match=message):
        pma.fit_posterior(shortened())
    with pytest.raises(ValueError, match=message):
        pma.sample_amortized(model=shortened())
    with pytest.raises(ValueError, match="dimension 'obs' has length 8 in 'y' and 3 in 'x'"):
        pma.sample_amortized(model=shortened(), context={"obs": (2, 9), "x": "resample"})


def test_data_are_read_before_training(monkeypatch):
    monkeypatch.setattr("pymc_amortized.approximators.posterior.fit.PosteriorFit.run", None)
    with pm.Model() as model:
        index = pm.Data("index", [0, 1, 2, 3], dims="obs")
        pm.Normal("y", pm.Normal("a", shape=4)[index], 1, observed=np.zeros(4), dims="obs")
    sources = {"index": lambda rng: rng.integers(4, size=4)}
    pm.set_data({"index": [0, 1, 2, 4]}, model=model)
    with pytest.raises(ValueError, match="'index' is an index of 4 elements"):
        pma.sample_amortized(model=model, context=sources)
