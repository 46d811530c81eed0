"""Posterior predictive draws and pointwise log likelihoods of many data sets, against PyMC's own."""

import logging

import arviz as az
import numpy as np
import pymc as pm
import pytest
import xarray as xr
from models import MODELS
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.results.unpacking import read_result
from pymc_amortized.results.writing import posterior_tree

INTERPRETED = {"mode": "FAST_COMPILE"}
CHAINS, DRAWS, SETS = 2, 3, 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding"),
    pytest.mark.filterwarnings("ignore:Calling a RandomVariable without"),
]


def result_of(
    model: pm.Model, data: list[dict[str, np.ndarray]] | None = None, *, draws: int = DRAWS, **kwargs: object
) -> tuple[pma.AmortizedPosterior, xr.DataTree]:
    """Simulated data sets, or those given, and draws of the prior as if they were of their posteriors: no network."""
    spec = take_snapshot(model, **kwargs)
    gaps = {v.name: "element" for v in spec.observed if v.missing}
    unused = dict.fromkeys(["network", "structure", "history", "provenance", "state", "context", "missing"])
    posterior = pma.AmortizedPosterior(spec=spec, gaps=gaps, compile_kwargs=INTERPRETED, **unused)
    context = ContextSampler(spec, {c.name: "resample" for c in spec.context})
    simulator = Simulator(spec, context=context, compile_kwargs=INTERPRETED)
    datasets = read_datasets(spec, data, batched=True) if data else of_simulations(simulator(SETS, 1))
    made = simulator(SETS * CHAINS * draws, 2).variables
    variables = {name: values.reshape(SETS, CHAINS, draws, *values.shape[1:]) for name, values in made.items()}
    return posterior, posterior_tree(spec, datasets, variables=variables, sample_stats={}, attrs={})


# Against PyMC, one data set at a time

KINDS = [
    "linear_regression",
    "centered_hierarchy",
    "varying_slopes",
    "dependent_bounds",
    "shared_axis",
    "different_lengths",
    "autoregression",
    "zero_inflated_poisson",
    "censored_normal",
    "multinomial",
    "multivariate_normal",
    "labelled_dims",
]


@pytest.mark.parametrize("name", KINDS)
def test_log_likelihood_and_prior_are_those_of_pymc(name):
    posterior, dts = result_of(MODELS[name].build())
    dts = posterior.compute_log_likelihood(dts)
    posterior.compiled.predictions.log_density(dts, "prior", var_names=None, extend_inferencedata=True)
    one = dts.isel(dataset=1)
    model = posterior.to_model({name: one.observed_data[name].values for name in one.observed_data.data_vars})
    quiet = {"model": model, "progressbar": False, "extend_inferencedata": False, "compile_kwargs": INTERPRETED}
    for kind, function in (("likelihood", pm.compute_log_likelihood), ("prior", pm.stats.compute_log_prior)):
        ours, theirs = one[f"log_{kind}"], function(one, **quiet)
        assert set(ours.data_vars) == set(theirs.data_vars)
        for variable in theirs.data_vars:
            assert ours[variable].dims == theirs[variable].dims
            assert_allclose(ours[variable], theirs[variable], rtol=1e-9, atol=1e-9)


PREDICTED = ["linear_regression", "centered_hierarchy", "shared_axis", "autoregression", "mixture"]


@pytest.mark.parametrize("name", PREDICTED)
def test_predictions_are_distributed_as_those_of_pymc(name):
    posterior, dts = result_of(mixture() if name == "mixture" else MODELS[name].build(), draws=100)
    ours = posterior.sample_posterior_predictive(dts, random_seed=1)
    one = dts.isel(dataset=1)
    model = posterior.to_model({name: one.observed_data[name].values for name in one.observed_data.data_vars})
    theirs = pm.sample_posterior_predictive(one, model, progressbar=False, random_seed=1, compile_kwargs=INTERPRETED)
    assert set(ours.children) == set(theirs.children)
    for variable, values in theirs.posterior_predictive.data_vars.items():
        here = ours.posterior_predictive[variable].isel(dataset=1)
        assert here.dims == values.dims
        assert here.dtype == values.dtype
        first = {d: 0 for d in values.dims[2:]}
        for summary in (lambda v: v.isel(first), lambda v: v.std(set(v.dims) - {"chain", "draw"})):  # noqa: B023
            assert stats.ks_2samp(summary(here).values.ravel(), summary(values).values.ravel()).pvalue > 0.001


def mixture() -> pm.Model:
    """Build a mixture without initial values, which PyMC's own functions refuse."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 2.0, shape=2)
        pm.NormalMixture("y", w=[0.3, 0.7], mu=mu, sigma=0.5, observed=np.linspace(-1, 1, 10))
    return model


def test_predictions_follow_from_the_draws_they_are_made_of():
    posterior, dts = result_of(MODELS["linear_regression"].build(), draws=200)
    predicted = posterior.sample_posterior_predictive(dts, random_seed=1).posterior_predictive["y"]
    standardized = ((predicted - dts.posterior["mean"]) / dts.posterior["sigma"]).values
    assert stats.kstest(standardized.ravel(), "norm").pvalue > 0.001
    again = posterior.sample_posterior_predictive(dts, random_seed=1).posterior_predictive["y"]
    assert_array_equal(again, predicted)
    other = posterior.sample_posterior_predictive(dts, random_seed=2).posterior_predictive["y"]
    assert not np.any(other == predicted)


def test_deterministics_of_observed_variables_are_predictions():
    with pm.Model() as model:
        mu = pm.Normal("mu")
        y = pm.Normal("y", mu, observed=np.zeros(4))
        pm.Deterministic("largest", y.max())
        pm.Deterministic("double", 2 * mu)
    posterior, dts = result_of(model)
    predicted = posterior.sample_posterior_predictive(dts, random_seed=1).posterior_predictive
    assert list(predicted.data_vars) == ["y", "largest"]
    assert_array_equal(predicted["largest"], predicted["y"].max("y_dim_0"))
    some = posterior.sample_posterior_predictive(dts, var_names=["double"]).posterior_predictive
    assert_allclose(some["double"], 2 * dts.posterior["mu"])


# Sizes, gaps, covariates


@pytest.fixture(scope="module")
def sized() -> tuple[pma.AmortizedPosterior, list[dict[str, np.ndarray]], xr.DataTree]:
    """Return a posterior for data sets of any size with gaps, some of these, and draws for them."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=20)
    with pm.Model() as model:
        covariate = pm.Data("x", x, dims="obs")
        slope = pm.Normal("slope", 0, 1)
        noise = pm.Uniform("noise", 0.5, 1.5)
        pm.Normal("y", slope * covariate, noise, observed=x, dims="obs")
        pm.Poisson("count", pm.math.exp(slope), observed=np.ones(20, dtype=int), dims="obs")
    sets = []
    for n in (8, 20, 12):
        values = {"x": rng.normal(size=n), "y": rng.normal(size=n), "count": rng.poisson(1.0, n).astype(float)}
        sets.append(values)
    sets[1]["y"][[2, 5]] = np.nan
    sets[2]["y"][3] = np.nan
    sets[2]["count"][[0, 1, 7]] = np.nan
    kwargs = {"context": ["x"], "sizes": [Range("obs", 5, 30)], "missing": ["y", "count"]}
    posterior, dts = result_of(model, sets, draws=100, **kwargs)
    dts = posterior.compute_log_likelihood(dts)
    return posterior, sets, posterior.sample_posterior_predictive(dts, random_seed=2, extend_inferencedata=True)


def test_terms_exist_where_values_do(sized):
    _, sets, dts = sized
    for i, values in enumerate(sets):
        n = len(values["x"])
        for name in ("y", "count"):
            terms = dts.log_likelihood[name].isel(dataset=i)
            assert np.isnan(terms.isel(obs=slice(n, None))).all()
            assert_array_equal(np.isnan(terms.isel(obs=slice(n))).all(("chain", "draw")), np.isnan(values[name]))
            predicted = dts.posterior_predictive[name].isel(dataset=i)
            assert_array_equal(np.isfinite(predicted).all(("chain", "draw")), np.arange(20) < n)


def test_terms_are_right_whatever_the_size_and_gaps(sized):
    posterior, sets, dts = sized
    for i, values in enumerate(sets):
        draws = dts.posterior.isel(dataset=i)
        mean = draws["slope"].values[..., None] * values["x"]
        expected = stats.norm(mean, draws["noise"].values[..., None]).logpdf(values["y"])
        terms = dts.log_likelihood["y"].isel(dataset=i, obs=slice(len(values["x"])))
        assert_allclose(terms, expected)
        shown = np.nan_to_num(values["count"])
        expected = stats.poisson(np.exp(draws["slope"].values[..., None])).logpmf(shown)
        terms = dts.log_likelihood["count"].isel(dataset=i, obs=slice(len(values["x"])))
        there = ~np.isnan(values["count"])
        assert_allclose(terms.values[..., there], expected[..., there])


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
@pytest.mark.parametrize("dataset", [0, 1, 2])
def test_arviz_works_on_one_data_set(sized, dataset):
    posterior, sets, dts = sized
    one = posterior.one_dataset(dts, dataset)
    for name in ("y", "count"):
        present = int((~np.isnan(sets[dataset][name])).sum())
        elpd = az.loo(one, var_name=name)
        assert elpd.n_data_points == present
        assert np.isfinite(elpd.elpd)
        assert one.observed_data[name].dtype == one.posterior_predictive[name].dtype
        assert one.posterior_predictive[name].shape == (2, 100, present)
        values = sets[dataset][name]
        assert_array_equal(one.observed_data[name], values[~np.isnan(values)])
        plot = az.plot_ppc_dist if name == "y" else az.plot_ppc_rootogram
        plot(one, var_names=[name], backend="none")
    assert one.posterior_predictive["count"].dtype.kind == "i"


def test_lengths_are_read_back(sized):
    posterior, sets, dts = sized
    datasets = read_result(posterior.spec, dts)
    assert_array_equal(datasets.lengths["obs"], [8, 20, 12])
    for i, values in enumerate(sets):
        for name, value in values.items():
            shown = datasets.one(posterior.spec, i)[name]
            assert_array_equal(shown[~np.isnan(value)], value[~np.isnan(value)])
    single = read_result(posterior.spec, dts.isel(dataset=1))
    assert not single.batched
    assert_array_equal(single.missing["y"][0], np.isnan(sets[1]["y"]))


def test_one_data_set_has_the_same_terms_as_among_many(sized, caplog):
    posterior, sets, dts = sized
    with caplog.at_level(logging.INFO, "pymc_amortized"):
        one = posterior.compute_log_likelihood(dts.isel(dataset=2), extend_inferencedata=False)
    missing = np.isnan(sets[2]["y"]).sum()
    assert (f"NaN at its {missing} missing values" in caplog.text) == (missing > 0)
    assert_array_equal(one["y"], dts.log_likelihood["y"].isel(dataset=2, obs=slice(12)))


def test_series_with_gaps_have_no_terms(caplog):
    posterior, dts = result_of(MODELS["autoregression"].build(), missing=["y"])
    dts.constant_data["y_missing"][1, 4] = True
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        terms = posterior.compute_log_likelihood(dts, extend_inferencedata=False)["y"]
    assert_array_equal(np.isnan(terms).all(("chain", "draw")), [False, True, False])
    assert "1 of 3" in caplog.text


def reading_gaps(kind: str) -> pm.Model:
    """A variable whose mean needs another one, without dims; and one that needs neither."""
    with pm.Model() as model:
        slope = pm.Normal("slope")
        if kind == "real":
            read = pm.Normal("x", pm.Normal("nu"), 1.0, observed=np.zeros(12))
        elif kind == "count":
            read = pm.Poisson("x", pm.HalfNormal("rate"), observed=np.zeros(12, int))
        else:
            read = pm.Categorical("x", p=pm.Dirichlet("p", np.ones(3)), observed=np.zeros(12, int))
        mean = pm.Normal("effect", shape=3)[read] if kind == "index" else slope * read
        pm.Normal("y", mean, 1.0, observed=np.zeros(12))
        pm.Normal("z", slope, 1.0, observed=np.zeros(12))
    return model


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
@pytest.mark.parametrize("kind", ["real", "count", "index"])
def test_a_gap_is_followed_into_what_reads_it(kind, caplog):
    given = np.where(np.arange(12) % 3 == 0, np.nan, np.arange(12) % 3)
    y, z = np.arange(12) / 12, np.arange(12) / 9
    sets = [{"x": given, "y": y, "z": z}, {"x": np.ones(12), "y": y, "z": z}, {"x": given, "y": y, "z": z}]
    posterior, dts = result_of(reading_gaps(kind), sets, draws=60, missing=["x"])
    alone = dts.isel(dataset=0)
    with caplog.at_level(logging.INFO, "pymc_amortized"):
        terms = posterior.compute_log_likelihood(alone, extend_inferencedata=False)
        posterior.compute_log_likelihood(dts)
    assert "of 'y' is NaN at 4 values that the model computes from missing ones" in caplog.text
    assert "of 'y' is NaN at 8 values of 2 data sets that" in caplog.text and "of 'z'" not in caplog.text
    for name in ("x", "y"):
        assert_array_equal(np.isnan(terms[name]).all(("chain", "draw")), np.isnan(given))
    assert np.isfinite(terms["z"]).all()
    one = posterior.one_dataset(posterior.sample_posterior_predictive(dts, extend_inferencedata=True), 2)
    assert_array_equal(one.observed_data["y"], y[~np.isnan(given)])
    for name in ("x", "y", "z"):
        elpd = az.loo(one, var_name=name)
        assert np.isfinite(elpd.elpd) and elpd.n_data_points == one.observed_data[name].size == (
            12 if name == "z" else 8
        )
        assert one.posterior_predictive[name].shape[2:] == one.observed_data[name].shape


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
@pytest.mark.parametrize("shape", [(12,), (4, 3)])
@pytest.mark.parametrize("batched", [False, True])
def test_values_without_dims_are_kept_beside_gaps(shape, batched):
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu"), 1.0, observed=np.zeros(shape))
    y = np.where(np.arange(12) % 3 == 0, np.nan, np.arange(12.0)).reshape(shape)
    posterior, dts = result_of(model, [{"y": y}] * SETS, draws=60, missing=["y"])
    dt = dts if batched else dts.isel(dataset=1)
    one = posterior.one_dataset(posterior.compute_log_likelihood(dt), 1 if batched else None)
    assert_array_equal(one.observed_data["y"], y[~np.isnan(y)])
    assert one.log_likelihood["y"].dims == ("chain", "draw", "y_present")
    assert np.isfinite(az.loo(one).elpd)


def test_a_distance_is_no_likelihood():
    def measure(rng, mu, size=None):
        return rng.normal(mu, 1.0, size=size)

    with pm.Model() as model:
        pm.Simulator("y", measure, pm.Normal("mu"), observed=np.zeros(4))
    posterior, dts = result_of(model)
    with pytest.raises(
        ValueError, match=r"\['y'\] \(pm.Simulator\) is minus a distance .* not a log likelihood: az.loo"
    ):
        posterior.compute_log_likelihood(dts)
    with pytest.raises(ValueError, match="not a log likelihood"):
        pm.sample_amortized(model=model, idata_kwargs={"log_likelihood": True})


# Trees


def test_trees_are_extended_as_pymc_does():
    posterior, dts = result_of(MODELS["conjugate_normal"].build())
    new = posterior.sample_posterior_predictive(dts)
    assert set(new.children) == {"posterior_predictive", "observed_data"}
    assert set(dts.children) == {"posterior", "sample_stats", "observed_data"}
    assert posterior.sample_posterior_predictive(dts, extend_inferencedata=True) is dts
    with pytest.warns(UserWarning, match="overwritten"):
        posterior.sample_posterior_predictive(dts, extend_inferencedata=True)
    assert isinstance(posterior.compute_log_likelihood(dts, extend_inferencedata=False), xr.Dataset)
    assert posterior.compute_log_likelihood(dts)["log_likelihood"]["y"].dims[:3] == ("dataset", "chain", "draw")


def test_draws_of_nuts_are_read(sized):
    posterior, _, dts = sized
    one = dts.isel(dataset=0)
    constant = one.constant_data.to_dataset().drop_vars(["obs_length", "y_missing", "count_missing"])
    foreign = xr.DataTree.from_dict(
        {
            "/posterior": one.posterior.to_dataset(),
            "/observed_data": one.observed_data.to_dataset().isel(obs=slice(8)),
            "/constant_data": constant.isel(obs=slice(8)),
        }
    )
    terms = posterior.compute_log_likelihood(foreign, extend_inferencedata=False)["y"]
    assert_allclose(terms, one.log_likelihood["y"].isel(obs=slice(8)))


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_one_of_many_data_sets_without_gaps_is_ready_for_arviz():
    posterior, dts = result_of(MODELS["conjugate_normal"].build(), draws=100)
    dts = posterior.sample_posterior_predictive(posterior.compute_log_likelihood(dts), extend_inferencedata=True)
    one = dts.isel(dataset=1)
    assert np.isfinite(az.loo(one).elpd)
    az.plot_ppc_dist(one, backend="none")
    az.plot_ppc_pit(one, backend="none")
    xr.testing.assert_identical(one.posterior.to_dataset(), posterior.one_dataset(dts, 1).posterior.to_dataset())


def test_what_is_not_there_is_named():
    posterior, dts = result_of(MODELS["conjugate_normal"].build())
    with pytest.raises(KeyError, match="no group 'posterior'"):
        posterior.sample_posterior_predictive(xr.DataTree())
    with pytest.raises(TypeError, match="DataTree"):
        posterior.compute_log_likelihood({"posterior": 1})
    with pytest.raises(KeyError, match="var_names"):
        posterior.sample_posterior_predictive(dts, var_names=["z"])
    with pytest.raises(KeyError, match="no data set 7"):
        posterior.one_dataset(dts, 7)
    with pytest.raises(ValueError, match="single data set"):
        posterior.one_dataset(dts.isel(dataset=0), 1)
    posterior, dts = result_of(MODELS["custom_random"].build())
    with pytest.raises(ValueError, match="simulated only"):
        posterior.compute_log_likelihood(dts)
    assert posterior.sample_posterior_predictive(dts).posterior_predictive["y"].shape[:3] == (SETS, CHAINS, DRAWS)


def test_marginal_posteriors_have_no_predictions():
    posterior, dts = result_of(MODELS["eight_schools"].build(), parameters=["mu", "tau"])
    with pytest.raises(ValueError, match="leaves out"):
        posterior.sample_posterior_predictive(dts)
