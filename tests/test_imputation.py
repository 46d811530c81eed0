"""Missing values drawn given what is present, against conditional distributions known in closed form."""

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from test_predictive import INTERPRETED, result_of

import pymc_amortized as pma
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.results.writing import posterior_tree

pytestmark = [
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DRAWS = 2000


def known(model: pm.Model, rules: dict, data: list | dict, values: dict, **kwargs: object):
    """Return a posterior without a network, and draws that are all the same."""
    spec = take_snapshot(model, missing=list(rules), **kwargs)
    unused = dict.fromkeys(["network", "structure", "history", "provenance", "state", "context", "missing"])
    posterior = pma.AmortizedPosterior(spec=spec, gaps=rules, compile_kwargs=INTERPRETED, **unused)
    datasets = read_datasets(spec, data, batched=isinstance(data, list))
    shape = (len(datasets), 2, DRAWS // 2)
    variables = {k: np.broadcast_to(np.asarray(v, float), (*shape, *np.shape(v))).copy() for k, v in values.items()}
    return posterior, posterior_tree(spec, datasets, variables=variables, sample_stats={}, attrs={})


def moments(values: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd over draws."""
    return values.mean(("chain", "draw")).to_numpy(), values.std(("chain", "draw")).to_numpy()


def test_a_series_is_bridged():
    with pm.Model() as model:
        rho, sigma = pm.Uniform("rho", -1, 1), pm.HalfNormal("sigma", 1)
        pm.AR("y", [rho], sigma=sigma, init_dist=pm.Normal.dist(0, 1), observed=np.zeros(6))
    y = np.array([0.2, 0.5, np.nan, 0.9, 0.1, np.nan])
    whole = np.where(np.isnan(y), 1.0, y)
    posterior, dts = known(model, {"y": "quadratic"}, [{"y": y}, {"y": whole}], {"rho": 0.8, "sigma": 0.5})
    dts = posterior.sample_missing(dts, random_seed=1)
    mean, sd = moments(dts.posterior["y_unobserved"].sel(dataset=0))
    assert_allclose(mean, [0.8 * (0.5 + 0.9) / 1.64, 0.8 * 0.1], atol=0.05)
    assert_allclose(sd, [0.5 / np.sqrt(1.64), 0.5], rtol=0.06)
    completed = dts.posterior["y"]
    assert_allclose(moments(completed.sel(dataset=0))[0][[2, 5]], mean)
    assert_allclose(completed.isel(y_dim_0=[0, 1, 3, 4], dataset=0).std(("chain", "draw")), 0, atol=1e-9)
    assert (completed.sel(dataset=1) == whole).all()
    assert np.isnan(dts.posterior["y_unobserved"].sel(dataset=1)).all()


def test_a_multivariate_normal_is_conditioned():
    covariance = np.array([[1.0, 0.8, 0.3], [0.8, 2.0, 0.5], [0.3, 0.5, 1.0]])
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        pm.MvNormal("y", mu * np.ones(3), covariance, observed=np.zeros(3))
    posterior, dt = known(model, {"y": "normal"}, {"y": [1.5, np.nan, np.nan]}, {"mu": 0.5})
    values = posterior.sample_missing(dt, random_seed=1, extend_inferencedata=False)["y_unobserved"]
    assert "y_unobserved" not in dt.posterior
    assert_allclose(moments(values)[0], 0.5 + covariance[1:, 0], atol=0.1)
    expected = covariance[1:, 1:] - np.outer(covariance[1:, 0], covariance[1:, 0])
    assert_allclose(np.cov(values.to_numpy().reshape(-1, 2).T), expected, atol=0.15)


def test_what_reads_a_covariate_or_another_variable_is_drawn_given_that():
    with pm.Model(coords={"obs": range(4)}) as model:
        x = pm.Data("x", np.zeros(4), dims="obs")
        slope = pm.Normal("slope", 0, 1)
        first = pm.Normal("first", slope * x, 0.1, observed=np.zeros(4), dims="obs")
        pm.Poisson("second", pm.math.exp(first), observed=np.ones(4, int), dims="obs")
    rows = {"x": [0.0, 1, 2, 3, 4], "first": [2.0, 1, 3, 1, 0], "second": [7.0, np.nan, 20, 3, np.nan]}
    other = {"x": [1.0, 1, 1], "first": [0.0, 3, 1], "second": [1.0, np.nan, 2]}
    kwargs = {"context": ["x"], "sizes": [Range("obs", 2, 9)]}
    posterior, dts = known(model, {"second": "element"}, [rows, other], {"slope": 5.0}, **kwargs)
    dts = posterior.sample_missing(dts, random_seed=1)
    mean, sd = moments(dts.posterior["second"])
    assert_allclose(mean[0], [7, np.e, 20, 3, 1], rtol=0.1)  # not exp(5), as by the slope
    assert_allclose(sd[0, [1, 4]], [np.sqrt(np.e), 1], rtol=0.06)
    assert_allclose(mean[1, :3], [1, np.exp(3), 2], rtol=0.05)
    assert np.isnan(mean[1, 3:]).all()
    assert set(dts.posterior["second"].dims) == {"dataset", "chain", "draw", "obs"}


def test_two_variables_are_completed_together():
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1)
        x = pm.Normal("x", b, 1, observed=np.zeros(3))
        pm.Normal("y", x, 1, observed=np.zeros(3))
    data = {"x": [np.nan, 1.0, np.nan], "y": [2.0, np.nan, np.nan]}
    posterior, dt = known(model, {"x": "quadratic", "y": "quadratic"}, data, {"b": 0.5})
    posterior.sample_missing(dt, random_seed=1)
    assert_allclose(moments(dt.posterior["x_unobserved"])[0], [1.25, 0.5], atol=0.1)
    assert_allclose(moments(dt.posterior["x_unobserved"])[1], [np.sqrt(0.5), 1], rtol=0.06)
    assert_allclose(moments(dt.posterior["y_unobserved"])[1], [1, np.sqrt(2)], rtol=0.06)
    last = [dt.posterior[name].to_numpy()[..., -1].ravel() for name in ("x_unobserved", "y_unobserved")]
    assert np.corrcoef(*last)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.05)


def test_no_rule_is_said_with_what_to_do():
    with pm.Model() as model:
        s = pm.HalfNormal("s", 1)
        y = pm.StudentT("y", nu=3, mu=0, sigma=s, observed=np.zeros(4))
        pm.Normal("z", y, 1, observed=np.zeros(4))
    data = [{"y": [0.0, np.nan, 1, 1], "z": np.zeros(4)}]
    reasons = {None: "does not factorize", "element": "depend on the missing", "quadratic": "quadratic"}
    for rule, reason in reasons.items():
        posterior, dts = known(model, {"y": rule}, data, {"s": 1.0})
        with pytest.raises(ValueError, match=f"data set 0: what is missing cannot be drawn.*{reason}.*pm.sample"):
            posterior.sample_missing(dts)
    posterior, dts = known(model, {"y": "element"}, [{"y": np.zeros(4), "z": np.zeros(4)}], {"s": 1.0})
    with pytest.raises(ValueError, match="no value of the result's data is missing"):
        posterior.sample_missing(dts)


# Predictions at other covariates


@pytest.fixture(scope="module")
def regression() -> tuple[pma.AmortizedPosterior, xr.DataTree]:
    with pm.Model(coords={"obs": range(20)}) as model:
        x = pm.Data("x", np.linspace(0, 1, 20), dims="obs")
        pm.Normal("y", pm.Normal("slope", 0, 5) * x, 0.01, observed=np.zeros(20), dims="obs")
    rng = np.random.default_rng(1)
    sets = [{"x": rng.normal(size=n), "y": rng.normal(size=n)} for n in (8, 12, 9)]
    return result_of(model, sets, draws=50, context=["x"], sizes=[Range("obs", 5, 30)])


def test_predictions_at_other_covariates(regression):
    posterior, dts = regression
    dts = dts.copy()
    for_all = posterior.sample_posterior_predictive(dts, context={"x": [1.0, -2.0]}, predictions=True, random_seed=1)
    assert sorted(for_all.children) == ["predictions", "predictions_constant_data"]
    slope = dts.posterior["slope"]
    assert_allclose(for_all.predictions["y"], slope * xr.DataArray([1.0, -2.0], dims="obs"), atol=0.06)
    each = [{"x": [float(i + 1)] * (40 + i)} for i in range(3)]
    posterior.sample_posterior_predictive(dts, context=each, predictions=True, extend_inferencedata=True)
    assert_allclose(dts.predictions["y"].isel(obs=0), slope * xr.DataArray([1.0, 2.0, 3.0], dims="dataset"), atol=0.06)
    assert_array_equal(np.isfinite(dts.predictions["y"]).all(("chain", "draw")).sum("obs"), [40, 41, 42])
    assert_array_equal(dts.predictions_constant_data["obs_length"], [40, 41, 42])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"context": {"x": [1.0]}}, ValueError, "predictions=True"),
        ({"context": {"z": [1.0]}, "predictions": True}, KeyError, "no data named 'z'"),
        ({"context": [{"x": [1.0]}] * 2, "predictions": True}, ValueError, "2 data sets for a result of 3"),
        ({"context": {"x": ["a"]}, "predictions": True}, TypeError, "'x'"),
        ({"context": {"x": [1.0], "y": [1.0]}, "predictions": True}, KeyError, "'y'"),
    ],
)
def test_other_covariates_are_checked(regression, kwargs, error, message):
    posterior, dts = regression
    with pytest.raises(error, match=message):
        posterior.sample_posterior_predictive(dts, **kwargs)
