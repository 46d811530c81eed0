"""Data sets of different sizes, with gaps: one network, and the door, the density and the results around it."""

import logging

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import xarray as xr
from closed_forms import rank_test
from conftest import briefly, interpreted
from models import kinds_of
from numpy.testing import assert_allclose, assert_array_equal

import pymc_amortized as pma
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.context import ContextSampler, split_context
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.structure import find_structure
from pymc_amortized.inputs.inputs import Inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

TAU, NOISE = 2.0, 1.5
SIZES = (5, 100)
CORRECTED = (0.1, 0.1)
RAW = (0.25, 0.3)
INTERPRETED = {"mode": "FAST_COMPILE"}


def normal_mean(n: int = 8) -> pm.Model:
    with pm.Model(coords={"obs": np.arange(n)}) as model:
        mu = pm.Normal("mu", 0.0, TAU)
        pm.Deterministic("each", mu + pt.zeros(model.dim_lengths["obs"]), dims="obs")
        pm.Normal("y", mu, NOISE, observed=np.zeros(n), dims="obs")
    return model


def regression(n: int = 10) -> pm.Model:
    """Covariates standardized in the graph, and a prior that depends on their number."""
    with pm.Model(coords={"item": ["a", "b"]}) as model:
        x = pm.Data("x", np.random.default_rng(0).normal(size=(n, 2)), dims=("obs", "item"))
        y_data = pm.Data("y_data", np.zeros(n), dims="obs")
        slope = pm.Normal("slope", 0.0, 3.0 / pt.sqrt(x.shape[0]), dims="item")
        mean = (x - x.mean(0)) / x.std(0) @ slope
        pm.Deterministic("mean", mean, dims="obs")
        pm.Normal("y", mean, 1.0, observed=y_data)
    return model


@pytest.fixture(scope="module")
def mean_posterior() -> pma.AmortizedPosterior:
    return briefly(normal_mean(), num_steps=300, context={"obs": SIZES}, missing={"y": 0.2})


@pytest.fixture(scope="module")
def regression_posterior() -> pma.AmortizedPosterior:
    return interpreted(regression(), context={"obs": (6, 40), "x": pm.Normal.dist(0, 1)})


def exact(y: np.ndarray) -> tuple[float, float]:
    """Posterior mean and sd of the normal mean, given what is present of y."""
    present = y[~np.isnan(y)]
    precision = 1 / TAU**2 + len(present) / NOISE**2
    return present.sum() / NOISE**2 / precision, precision**-0.5


def series(n: int, seed: int, gaps: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y = rng.normal(rng.normal(0, TAU), NOISE, size=n)
    y[: round(gaps * n)] = np.nan
    return y


# Right at every size


@pytest.mark.parametrize(("correction", "tolerance"), [("psis", CORRECTED), (None, RAW)])
def test_moments_are_those_of_the_closed_form_at_every_size_and_with_gaps(mean_posterior, correction, tolerance):
    ys = [series(n, seed, gaps) for seed in range(3) for n in (5, 22, 100) for gaps in (0.0, 0.2)]
    dt = mean_posterior.sample([{"y": y} for y in ys], batched=True, correction=correction, random_seed=2)
    mean, sd = np.array([exact(y) for y in ys]).T
    draws = dt.posterior["mu"]
    error = 4 / np.sqrt(draws.sizes["chain"] * draws.sizes["draw"] / 2)
    off = np.abs(draws.mean(("chain", "draw")).to_numpy() - mean) / sd
    ratio = draws.std(("chain", "draw")).to_numpy() / sd
    assert np.all(off < tolerance[0] + error), off
    assert np.all(np.abs(ratio - 1) < tolerance[1] + error), ratio


@pytest.mark.parametrize("n", [5, 22, 100])
def test_ranks_are_uniform_at_each_size(mean_posterior, n):
    rng = np.random.default_rng(n)
    mu = rng.normal(0, TAU, size=200)
    y = rng.normal(mu[:, None], NOISE, size=(200, n))
    y[rng.uniform(size=y.shape) < 0.2] = np.nan
    dt = mean_posterior.sample({"y": y}, batched=True, draws=500, chains=1, random_seed=3)
    draws = dt.posterior["mu"].to_numpy()[:, 0, ::5]
    assert rank_test((draws[..., 0:99] < mu[:, None]).sum(1), 99) > 0.001
    assert np.corrcoef(draws.mean(1), np.nanmean(y, axis=1))[0, 1] > 0.9


def test_a_prior_and_covariates_that_depend_on_the_number_of_rows_are_right(regression_posterior):
    """Traps for whoever cuts small data sets from large ones."""
    rng = np.random.default_rng(4)
    for n in (6, 15, 40):
        x = rng.normal(size=(n, 2))
        design = (x - x.mean(0)) / x.std(0)
        y = design @ [0.8, -0.5] + rng.normal(size=n)
        precision = design.T @ design + n / 9 * np.eye(2)
        mean, sd = np.linalg.solve(precision, design.T @ y), np.sqrt(np.diag(np.linalg.inv(precision)))
        dt = regression_posterior.sample({"x": x, "y": y}, random_seed=1)
        slope = dt.posterior["slope"]
        assert np.all(np.abs(slope.mean(("chain", "draw")).to_numpy() - mean) < 0.2 * sd)
        assert_allclose(slope.std(("chain", "draw")), sd, rtol=0.15)


@pytest.mark.parametrize("build", [normal_mean, regression])
@pytest.mark.parametrize("n", [6, 13])
def test_log_density_at_any_size_is_that_of_the_model_of_that_size(build, n):
    context = {"obs": (3, 20)} | ({"x": "resample"} if build is regression else {})
    sizes, sources = split_context(build(), context)
    spec = take_snapshot(build(), context=sources, sizes=sizes)
    simulator = Simulator(spec, context=ContextSampler(spec, sources), compile_kwargs=INTERPRETED)
    made = simulator.of_lengths(3, np.random.SeedSequence(1), {"obs": n})
    ours = LogDensity(spec, INTERPRETED)
    for i in range(3):
        data = {name: values[i] for name, values in made.data.items()}
        reference = pm.observe(pm.do(build(n), {k: data[k] for k in sources}), {}) if sources else build(n)
        reference = take_snapshot(reference)
        given = {**reference.held, "y": data["y"]}
        theirs = LogDensity(reference, INTERPRETED)(made.unconstrained[i : i + 1], given)
        assert_allclose(ours(made.unconstrained[i : i + 1], data), theirs, rtol=1e-10)


# Simulating


def test_lengths_cover_their_range_and_streams_are_pure(mean_posterior):
    spec = mean_posterior.spec
    simulator = Simulator(spec, context=ContextSampler(spec, {}, {"y": 0.2}))
    made, again = simulator(3000, 5), simulator(3000, 5)
    lengths = made.lengths["obs"]
    assert (lengths.min(), lengths.max()) == SIZES
    assert len(np.unique(lengths[:256])) > 20  # sizes differ within a batch
    assert_array_equal(lengths, again.lengths["obs"])
    assert_array_equal(made.data["y"], again.data["y"])
    beyond = np.arange(SIZES[1]) >= lengths[:, None]
    assert_array_equal(np.isnan(made.data["y"]), beyond)
    share = (made.missing["y"] & ~beyond).sum() / (~beyond).sum()
    assert abs(share - 0.2) < 0.02
    # sample means have the variance of their size
    z = (np.nanmean(made.data["y"], axis=1) - made.unconstrained[:, 0]) * np.sqrt(lengths) / NOISE
    assert abs(z.std() - 1) < 0.06


def test_lengths_are_uniform_on_a_logarithmic_scale():
    rng = np.random.default_rng(0)
    drawn = np.array([Range("obs", 10, 500).draw(rng) for _ in range(4000)])
    assert (drawn.min(), drawn.max()) == (10, 500)
    assert abs(np.mean(drawn < np.sqrt(10 * 500)) - 0.5) < 0.04


def test_simulations_are_laid_out_with_their_lengths():
    tree = pma.simulate(normal_mean(), 50, context={"obs": (3, 7)}, missing={"y": 0.3}, random_seed=1)
    lengths = tree.prior_context["obs_length"]
    assert lengths.dims == ("chain", "draw")
    beyond = np.arange(7) >= lengths.to_numpy()[..., None]
    assert np.isnan(tree.prior_predictive["y"].to_numpy()[beyond]).all()
    assert np.isnan(tree.prior_predictive["y"].to_numpy()[~beyond]).mean() > 0.1
    assert_array_equal(np.isnan(tree.prior["each"].to_numpy()), beyond)


def test_a_callable_for_covariates_gets_the_length():
    asked = []

    def source(rng: np.random.Generator, obs: int) -> np.ndarray:
        asked.append(obs)
        return rng.uniform(size=(obs, 2))

    pma.simulate(regression(), 60, context={"obs": (4, 9), "x": source}, random_seed=1, compile_kwargs=INTERPRETED)
    assert {min(asked), max(asked)} == {4, 9}
    with pytest.raises(ValueError, match="keyword argument 'obs'"):
        pma.simulate(regression(), 5, context={"obs": (4, 9), "x": lambda rng: np.zeros((4, 2))})
    with pytest.raises(TypeError, match=r"missing 1 required .* take the lengths of \['obs'\]"):
        pma.simulate(regression(), 5, context={"obs": (4, 9), "x": lambda rng, rows: np.zeros((rows, 2))})
    with pytest.raises(KeyError, match="no dimension named 'rows'.*dims='rows'"):
        pma.simulate(regression(), 5, context={"rows": (4, 9)})


# The door


def test_a_file_knows_the_rates_of_missing_values(mean_posterior, tmp_path, caplog):
    mean_posterior.save(tmp_path / "mean.pma")
    loaded = pma.load(tmp_path / "mean.pma", model=normal_mean())
    assert loaded.missing == {"y": 0.2}
    y = series(20, 1)
    y[3:] = np.nan
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        loaded.sample([{"y": y[[0, 1, 2, 2, 1, 3]]}, {"y": y}], batched=True, draws=10, random_seed=1)
    assert "Of 'y', 85% are missing in data set 1; training knew 0 to 40%" in caplog.text
    assert loaded.continue_training(2, progressbar=False).provenance.simulations


def test_data_sets_of_different_lengths_come_in_many_forms(mean_posterior):
    ys = [series(n, n) for n in (6, 30, 11)]
    options = {"batched": True, "draws": 250, "random_seed": 1}
    expected = mean_posterior.sample([{"y": y} for y in ys], **options)
    padded = np.full((3, 30), np.nan)
    for row, y in zip(padded, ys, strict=True):
        row[: len(y)] = y
    labelled = xr.Dataset({"y": (("dataset", "obs"), padded)}, {"dataset": list("abc")})
    for given in ({"y": ys}, labelled, [xr.Dataset({"y": ("obs", y)}) for y in ys]):
        dt = mean_posterior.sample(given, **options)
        assert_array_equal(dt.posterior["mu"], expected.posterior["mu"])
        assert_array_equal(dt.constant_data["obs_length"], [6, 30, 11])
        assert_array_equal(dt.observed_data["y"], padded)
        assert dt.constant_data["y_missing"].dims == ("dataset", "obs") and not dt.constant_data["y_missing"].any()
        assert dt.posterior["each"].sizes["obs"] == 30
        assert_array_equal(np.isnan(dt.posterior["each"][:, 0, 0]), np.isnan(padded))
    assert_array_equal(mean_posterior.sample(labelled, **options).posterior["dataset"], list("abc"))


def test_one_data_set_keeps_its_labels(regression_posterior):
    rng = np.random.default_rng(0)
    coords = {"obs": [f"r{i}" for i in range(9)], "item": ["b", "a"]}
    data = xr.Dataset(
        {"x": (("obs", "item"), rng.normal(size=(9, 2))), "y": ("obs", rng.normal(size=9))}, coords=coords
    )
    dt = regression_posterior.sample(data, draws=100, random_seed=1)
    assert list(dt.posterior["obs"].to_numpy()) == coords["obs"]
    assert_array_equal(dt.constant_data["x"], data["x"].sel(item=["a", "b"]))
    with regression_posterior.to_model(data):
        pm.compute_log_likelihood(dt, progressbar=False)
        predicted = pm.sample_posterior_predictive(dt, progressbar=False, random_seed=1)
    assert dt.log_likelihood["y"].shape == predicted.posterior_predictive["y"].shape == (4, 100, 9)


X, Y = np.zeros((8, 2)), np.zeros(8)
REFUSED = {
    "too long": ({"x": np.zeros((41, 2)), "y": np.zeros(41)}, "length 41; the posterior was trained for 6 to 40"),
    "too short": ({"x": X[:3], "y": Y[:3]}, "length 3; the posterior was trained for 6 to 40"),
    "lengths differ": ({"x": X, "y": Y[:7]}, "'obs' has length 7 in 'y' and 8 in 'x'"),
    "NaN where none was announced": ({"x": X, "y": np.where(Y == 0, np.nan, Y)}, "missing={'y': rate}"),
    "NaN among covariates": ({"x": X * np.nan, "y": Y}, "'x' has NaN"),
    "shape": ({"x": X[:, :1], "y": Y}, r"'x' has shape \(8, 1\); the model's is \(any, 2\)"),
    "labels": (
        {"x": xr.DataArray(X, dims=("obs", "item"), coords={"obs": range(8)}),
         "y": xr.DataArray(Y, dims="obs", coords={"obs": range(8)[::-1]})},
        "other labels of 'obs'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_data_sets_that_do_not_fit_are_refused_by_name(regression_posterior, case):
    data, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        regression_posterior.sample(data, draws=10)


def test_what_cannot_vary_is_refused_by_name():
    with pm.Model(coords={"obs": range(4), "group": range(3)}) as model:
        theta = pm.Normal("theta", 0, 1, dims="group")
        pm.Normal("y", theta[np.array([0, 1, 2, 0])], 1, observed=np.zeros(4), dims="obs")
    with pytest.raises(ValueError, match="indices that is the same for all data sets picks from the dimension 'group'"):
        pma.simulate(model, 5, context={"group": (2, 5)})
    with pytest.raises(ValueError, match="0.2.*between 0 and 1|between 0 and 1"):
        pma.simulate(normal_mean(), 5, missing={"y": 1.2})
    with pytest.raises(KeyError, match="missing.*'z'.*'y'"):
        pma.simulate(normal_mean(), 5, missing={"z": 0.2})
    with pytest.raises(ValueError, match="expected bool of shape"):
        pma.simulate(normal_mean(), 5, missing={"y": lambda rng, shape: np.zeros(shape)})


def test_rows_that_a_matrix_tells_apart_keep_their_places():
    """A known covariance can be permuted with its rows, but the network does not see which row is which."""
    factor = np.random.default_rng(3).normal(size=(12, 3))
    with pm.Model() as model:
        level = pm.Normal("level", 0, 3)
        pm.MvNormal("y", level * np.ones(12), factor @ factor.T + np.diag(np.arange(1.0, 13)), observed=np.zeros(12))
    spec = take_snapshot(model)
    simulations = Simulator(spec, compile_kwargs=INTERPRETED)(20, 1)
    seed = np.random.SeedSequence(1)
    structure = find_structure(spec, simulations, LogDensity(spec, INTERPRETED), seed)
    assert kinds_of(structure, "y") == ("exchangeable",)
    assert [array.axes for array in Inputs(spec, structure).layout.arrays if array.name == "y"] == [(None,)]


def test_structure_is_looked_for_at_the_largest_size(caplog):
    """What begins after some rows is not seen in few."""
    with pm.Model(coords={"obs": range(40)}) as model:
        a = pm.Normal("a", 0, 1, shape=2)
        late = pt.arange(model.dim_lengths["obs"]) >= 25
        pm.Normal("y", a[0] + a[1] * late, 1, observed=np.zeros(40), dims="obs")
    posterior = interpreted(model, context={"obs": (5, 40)}, num_simulations=400, num_steps=2)
    (axis,) = posterior.structure.axes
    assert axis.kind == "sequence" and (axis.smallest, axis.length) == (5, 40)


def test_an_index_of_what_does_not_exist_is_refused():
    with pm.Model(coords={"obs": range(4)}) as model:
        group = pm.Data("group", np.array([0, 1, 2, 0]), dims="obs")
        theta = pm.Normal("theta", 0, 1, shape=3)
        pm.Normal("y", theta[group], 1, observed=np.zeros(4), dims="obs")
    with pytest.raises(ValueError, match="'group' is an index of 3 elements, 0 to 2; got 3"):
        pma.simulate(model, 5, context={"group": lambda rng: np.array([0, 1, 2, 3])})
    options = {
        "training": pma.Training(num_steps=2),
        "progressbar": False,
        "compile_kwargs": INTERPRETED,
        "sketch": False,
    }
    context = {"obs": (3, 6), "group": lambda rng, obs: rng.integers(3, size=obs)}
    posterior = pma.fit_posterior(model, context=context, num_simulations=200, random_seed=1, **options)
    with pytest.raises(ValueError, match="'group' is an index of 3 elements, 0 to 2; got -1"):
        posterior.sample({"group": [0, -1, 2], "y": np.zeros(3)}, draws=10)
    assert posterior.structure.axes[0].index == "group"


def test_gaps_at_a_fixed_size():
    model = normal_mean()
    posterior = interpreted(model, missing={"y": 0.3}, num_simulations=2000)
    for y in (series(8, 3, 0.4), series(8, 4)):
        dt = posterior.sample({"y": y}, random_seed=1)
        mean, sd = exact(y)
        assert abs(float(dt.posterior["mu"].mean()) - mean) < 0.2 * sd
        assert_array_equal(np.isnan(dt.observed_data["y"]), np.isnan(y))


def test_arrays_of_fixed_length_in_the_graph_are_found_out():
    with pm.Model(coords={"obs": range(6)}) as model:
        mu = pm.Normal("mu", 0, 1)
        pm.Normal("y", mu * np.arange(6.0), 1, observed=np.zeros(6), dims="obs")
    with pytest.raises(ValueError, match="where obs is 3.*dims"):
        pma.simulate(model, 20, context={"obs": (3, 10)})


# Files, and pm.sample_amortized


def test_files_keep_sizes_gaps_and_structure(regression_posterior, mean_posterior, tmp_path):
    y = series(17, 1, 0.3)
    mean_posterior.save(tmp_path / "mean.pma")
    loaded = pma.load(tmp_path / "mean.pma", model=normal_mean(11))
    assert str(loaded.structure) == str(mean_posterior.structure)
    first, second = (p.sample({"y": y}, random_seed=1).posterior["mu"] for p in (mean_posterior, loaded))
    assert_array_equal(first, second)
    regression_posterior.save(tmp_path / "regression.pma")
    with pytest.raises(ValueError, match="not the one in the file"):
        pma.load(tmp_path / "regression.pma", model=normal_mean())


def test_sample_amortized_is_reused_at_another_length(caplog):
    model = regression()
    options = {
        "context": {"obs": (5, 20), "x": "resample"},
        "fit_kwargs": {"training": pma.Training(num_steps=30, evaluations=2), "num_simulations": 500, "sketch": False},
        "compile_kwargs": INTERPRETED,
        "correction": None,
        "random_seed": 1,
        "progressbar": False,
        "draws": 50,
    }
    with caplog.at_level(logging.INFO, "pymc_amortized"), model:
        pm.sample_amortized(**options)
        trained = sum("Trained" in r.getMessage() for r in caplog.records)
        pm.set_data({"x": np.ones((7, 2)) * np.arange(7)[:, None], "y_data": np.zeros(7)})
        dt = pm.sample_amortized(**options)
    assert trained == sum("Trained" in r.getMessage() for r in caplog.records) == 1
    assert dt.observed_data["y"].shape == (7,)
