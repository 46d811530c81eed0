"""Data that do not fit are met at the door: indices, labels, and gaps of several series."""

import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt
import pytest
import xarray as xr
from conftest import interpreted
from scipy import stats
from small_models import line

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.graph.data.datasets import gaps_of
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.density.missing import LogDensityWithGaps
from pymc_amortized.graph.density.rules import find_rules
from pymc_amortized.graph.model.indices import index_limits, refuse_indices
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.results.unpacking import one_dataset

INDEX = np.arange(12) % 4
PICKED = {
    "plain": (lambda a, i, j: a[0][i], {"i": (0, 3)}),
    "from one": (lambda a, i, j: a[0][i - 1], {"i": (1, 4)}),
    "added": (lambda a, i, j: a[0][2 + i], {"i": (-2, 1)}),
    "both axes": (lambda a, i, j: a[i, j], {"i": (0, 4), "j": (0, 3)}),
    "second axis": (lambda a, i, j: a[:, i].sum(0), {"i": (0, 3)}),
    "beside a number": (lambda a, i, j: a[1, i], {"i": (0, 3)}),
    "a cast": (lambda a, i, j: a[0][pt.cast(j + 0.0, "int64")], {"j": (0, 3)}),
    "twice": (lambda a, i, j: a[0][i] + a[:, 0][i - 1], {"i": (1, 3)}),
}


@pytest.mark.parametrize("case", PICKED)
def test_indices_that_pick_nothing_are_refused(case):
    pick, expected = PICKED[case]
    with pm.Model() as model:
        i, j = (pm.Data(name, INDEX) for name in "ij")
        a = pm.Normal("a", shape=(5, 4))
        pm.Normal("y", pick(a, i, j), 1, observed=np.zeros(12))
    spec, _, _ = read_model(model, None, None, dict.fromkeys("ij", "resample"), None)
    limits = index_limits(spec)
    assert limits == expected
    for name, (low, high) in limits.items():
        others = {k: np.array([v[0]]) for k, v in limits.items()}
        refuse_indices(others | {name: np.array([low, high])}, limits, "observed")
        for wrong in (low - 1, high + 1):
            with pytest.raises(ValueError, match=f"{name!r} is an index .* {low} to {high}; got {wrong}"):
                refuse_indices(others | {name: np.array([low, wrong])}, limits, "observed")


@pytest.fixture(scope="module")
def sized():
    with pm.Model(coords={"obs": range(8)}) as model:
        x = pm.Data("x", np.zeros(8), dims="obs")
        pm.Normal("y", pm.Normal("b") * x, 1, observed=np.zeros(8), dims="obs")
    return read_model(model, None, None, {"obs": (2, 20), "x": pm.Normal.dist()}, None)[0]


FRAME = pd.DataFrame({"x": np.arange(8.0), "y": np.arange(8.0)[::-1]})
NAMED = FRAME.set_axis(list("abcdefgh"))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (FRAME.x, FRAME.y[::-1]),
        (FRAME.x, FRAME.y.sort_values()),
        (FRAME.x[:6], FRAME.y[2:]),
        (NAMED.x, NAMED.y[::-1]),
    ],
)
def test_rows_with_other_labels_are_refused(sized, x, y):
    with pytest.raises(ValueError, match="other labels of 'obs'"):
        read_datasets(sized, {"x": x, "y": y})


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (FRAME.x, FRAME.y),
        (FRAME.x[2:], FRAME.y[2:]),
        (FRAME.x.sort_values(ascending=False), FRAME.y.sort_values()),
        (FRAME.x[2:], FRAME.y[2:].to_numpy()),
        (FRAME.x, NAMED.y),
        (FRAME.x[:5].reset_index(drop=True), FRAME.y[3:].reset_index(drop=True)),
    ],
)
def test_rows_with_the_same_labels_or_none_are_paired(sized, x, y):
    values = read_datasets(sized, {"x": x, "y": y}).values
    np.testing.assert_array_equal(values["y"][0, : len(y)], np.asarray(y))
    np.testing.assert_array_equal(values["x"][0, : len(x)], np.asarray(x))


def test_rows_are_resampled_along_one_dim_alone():
    with pm.Model(coords={"plot": range(5), "year": range(3)}) as model:
        x = pm.Data("x", np.zeros((5, 3)), dims=("plot", "year"))
        pm.Normal("y", pm.Normal("b") * x, 1, observed=np.zeros((5, 3)), dims=("plot", "year"))
    spec, sources, _ = read_model(model, None, None, {"plot": (2, 9), "year": (2, 9), "x": "resample"}, None)
    with pytest.raises(ValueError, match=r"'resample' draws rows along one dim .*\['plot', 'year'\]"):
        ContextSampler(spec, sources)


def gappy(model):
    spec, sources, gaps = read_model(model, None, None, {}, {"y": 0.2})
    made = Simulator(spec, context=ContextSampler(spec, sources, gaps))(60, 1)
    return spec, made, find_rules(spec, made, np.random.SeedSequence(1))


def test_several_series_lack_single_values():
    with pm.Model() as model:
        rho, s = pm.Normal("rho", 0.3, 0.2), pm.HalfNormal("s", 1)
        start = pm.Normal.dist(0, 1)
        pm.AR("y", rho, sigma=s, init_dist=start, constant=False, ar_order=1, shape=(3, 8), observed=np.zeros((3, 8)))
    spec, made, rules = gappy(model)
    mask = made.missing["y"]
    partly = mask.any(2) & ~mask.all(2)
    assert partly.mean() > 0.3 and rules == {"y": "quadratic"}
    y = np.random.default_rng(2).normal(size=(3, 8))
    gaps = np.zeros((3, 8), bool)
    gaps[0, 3], gaps[1], gaps[2, :2] = True, True, True
    theta = np.array([[0.4, -0.2]])
    data = {"y": np.where(gaps, 0.0, y), gaps_of("y"): gaps}
    found = LogDensityWithGaps(spec, rules)(theta, data)[0]
    prior = LogDensityWithGaps(spec, rules)(theta, {"y": y * 0, gaps_of("y"): np.ones((3, 8), bool)})[0]
    assert found - prior == pytest.approx(_autoregression(y, gaps, 0.4, np.exp(-0.2)), abs=1e-6)


def _autoregression(y, gaps, rho, s):
    """Log density of what is present of series that start at a standard normal value."""
    steps = y.shape[1]
    noise = np.diag([1.0, *[s**2] * (steps - 1)])
    path = np.array([[rho ** (t - u) if u <= t else 0.0 for u in range(steps)] for t in range(steps)])
    covariance = path @ noise @ path.T
    total = 0.0
    for values, missing in zip(y, gaps, strict=True):
        if not missing.all():
            kept = np.flatnonzero(~missing)
            total += stats.multivariate_normal.logpdf(values[kept], cov=covariance[np.ix_(kept, kept)])
    return total


def test_shares_are_missing_as_a_whole():
    with pm.Model() as model:
        pm.Dirichlet("y", pm.HalfNormal("a") * np.ones(3) + 0.5, observed=np.full((6, 3), 1 / 3))
    _, made, rules = gappy(model)
    mask = made.missing["y"]
    assert rules == {"y": "row"} and (mask.any(2) == mask.all(2)).all()


def test_a_term_that_is_no_scalar_is_that_of_all_values():
    neighbours = (np.abs(np.subtract.outer(np.arange(6), np.arange(6))) == 1).astype(float)
    with pm.Model() as model:
        pm.CAR("y", mu=np.zeros(6), W=neighbours, alpha=0.6, tau=pm.HalfNormal("tau", 1), observed=np.zeros(6))
    spec, made, rules = gappy(model)
    assert rules == {"y": "quadratic"}
    fixed = {v.name: spec.held[v.name] for v in spec.unchanging}
    complete = fixed | {"y": made.data["y"][0], gaps_of("y"): np.zeros(6, bool)}
    theta = made.unconstrained[:1]
    assert LogDensityWithGaps(spec, rules)(theta, complete) == pytest.approx(LogDensity(spec)(theta, complete))


def test_what_fills_shorter_data_sets_is_no_index():
    with pm.Model(coords={"obs": range(8)}) as model:
        code = pm.Data("code", np.arange(8) % 4 + 1, dims="obs")
        pm.Normal("y", pm.Normal("a", shape=4)[code - 1], 1, observed=np.zeros(8), dims="obs")
    spec, _, _ = read_model(model, None, None, {"obs": (2, 20), "code": "resample"}, None)
    two = [{"code": np.ones(n, int), "y": np.zeros(n)} for n in (3, 8)]
    datasets = read_datasets(spec, two, batched=True)
    assert datasets.values["code"].min() == 0
    refuse_indices(datasets.existing(spec), index_limits(spec), "observed")
    two[0]["code"][1] = 0
    with pytest.raises(ValueError, match="'code' is an index of 4 elements, 1 to 4; got 0"):
        refuse_indices(read_datasets(spec, two, batched=True).existing(spec), index_limits(spec), "observed")


def test_gaps_are_left_out_where_pymc_replaced_the_constants():
    with pm.Model(coords={"obs": range(5)}) as model:
        pm.Normal("y", pm.Normal("mu"), 1, observed=np.zeros(5), dims="obs")
    spec, _, _ = read_model(model, None, None, {}, {"y": 0.2})
    y = xr.DataArray([1.0, np.nan, 2.0, 3.0, np.nan], dims="obs")
    log_likelihood = xr.DataArray(np.zeros((1, 2, 5)), dims=("chain", "draw", "obs"))
    draws = xr.DataArray(np.zeros((1, 2)), dims=("chain", "draw"))
    groups = {"posterior": {"mu": draws}, "observed_data": {"y": y}, "log_likelihood": {"y": log_likelihood}}
    tree = xr.DataTree.from_dict({f"/{name}": xr.Dataset(variables) for name, variables in groups.items()})
    found = one_dataset(spec, tree)
    assert found.log_likelihood["y"].sizes["y_present"] == 3 and list(found.observed_data["y"]) == [1, 2, 3]


def test_hyperparameters_for_which_the_prior_has_no_density_are_named():
    with pm.Model() as model:
        spread = pm.Data("spread", 1.0)
        pm.Normal("y", pm.Normal("b", 0, spread), 1, observed=np.zeros(6))
    posterior = interpreted(model, context={"spread": pm.HalfNormal.dist(1)}, num_steps=10, num_simulations=300)
    with pytest.raises(ValueError, match=r"the context \{'spread': -1\.0\}: the prior of \['b'\] has no density"):
        posterior.sample({"y": np.ones(6), "spread": -1.0}, draws=50)
    with pytest.raises(ValueError, match=r"'spread': -2\.0\} of data set 1: the prior"):
        posterior.sample({"y": np.ones((2, 6)), "spread": [1.0, -2.0]}, batched=True, draws=50)


@pytest.mark.parametrize("given", [{"z": "exchangeable"}, {"y": "rows"}, {"y": ["sequence", "sequence"]}])
def test_a_wrong_structure_is_refused_before_anything_is_compiled(given, monkeypatch):
    monkeypatch.setattr("pymc_amortized.approximators.posterior.fit.training_simulator", lambda *args: pytest.fail())
    with pytest.raises((KeyError, ValueError), match="structure"):
        pma.fit_posterior(line(), structure=given)
