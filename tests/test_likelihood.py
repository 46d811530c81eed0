"""The learned likelihood: a proper density in three array libraries, a distribution of PyMC, and its errors."""

import logging

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.graph.rows.emulator import PYTENSOR, _shared
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.columns import CategoricalColumn, CountColumn, RealColumn
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.row_density.mixtures import log_interval
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.prepared import Rows, inside, prepare
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.row_density.row_parameters import Parameter

QUIET = {"progressbar": False, "random_seed": 1}
STEPS = pma.Training(num_steps=150, batch_size=2048, learning_rate=3e-3, weight_decay=0, evaluations=4, threads=1)
SHORT = QUIET | {"training": STEPS}
pytestmark = [
    # PyMC's own, of every distribution with a function for its draws
    pytest.mark.filterwarnings("ignore:Numba will use object mode"),
    pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding"),
    pytest.mark.filterwarnings("ignore:Calling a RandomVariable without an explicit rng"),
    # of the interpreter, for small matrices
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
]
INTERPRETED = {"mode": "FAST_COMPILE"}
"""For functions that are called once."""
SAMPLING = {"draws": 300, "tune": 300, "chains": 2, "cores": 1, "progressbar": False, "random_seed": 1}


def normal_model():
    rng = np.random.default_rng(1)
    x = rng.normal(size=60)
    with pm.Model(coords={"trial": range(60)}) as model:
        slope, noise = pm.Normal("slope", 0, 2), pm.LogNormal("noise", 0, 0.5)
        pm.Normal("y", slope * x, noise, observed=2 * x + rng.normal(size=60), dims="trial")
    return model


def race(drift, threshold, rng=None, size=None):
    """Who comes first and when: a choice and a response time, beyond 0.2."""
    shape = tuple(size) if size is not None else np.broadcast_shapes(np.shape(drift), np.shape(threshold))
    times = threshold * np.exp(
        rng.normal(size=(2, *shape)) * 0.4 - np.stack([drift + np.zeros(shape), np.zeros(shape)])
    )
    return np.stack([0.2 + times.min(0), times.argmin(0)], -1)


def race_log_density(rows, drift, threshold):
    t, choice = rows[..., 0] - 0.2, rows[..., 1]
    means = np.log(threshold) - np.stack([drift + 0 * t, 0 * t])
    own = stats.norm.logpdf(np.log(t), np.where(choice == 0, *means), 0.4) - np.log(t)
    return own + stats.norm.logsf(np.log(t), np.where(choice == 0, *means[::-1]), 0.4)


def race_model():
    with pm.Model() as model:
        drift, threshold = pm.Normal("drift", 0, 1), pm.LogNormal("threshold", 0, 0.3)
        data = race(0.5, 1.0, np.random.default_rng(2), (80,))
        pm.CustomDist("rt", drift, threshold, random=race, signature="(),()->(2)", observed=data)
    return model


def counts_model():
    with pm.Model() as model:
        rate = pm.LogNormal("rate", 0.5, 0.8)
        pm.Poisson("y", rate, observed=np.random.default_rng(3).poisson(2, size=50))
    return model


def series_model(steps=40, start=1.0):
    with pm.Model() as model:
        rho, sigma = pm.Uniform("rho", -0.9, 0.9, shape=1), pm.LogNormal("sigma", 0, 0.3)
        pm.AR("y", rho, sigma=sigma, init_dist=pm.Normal.dist(0, start), observed=np.zeros(steps))
    return model


@pytest.fixture(scope="module")
def normal():
    return pma.fit_likelihood(normal_model(), **SHORT)


@pytest.fixture(scope="module")
def mixed():
    return pma.fit_likelihood(race_model(), **SHORT)


@pytest.fixture(scope="module")
def counts():
    return pma.fit_likelihood(counts_model(), **SHORT)


@pytest.fixture(scope="module")
def series():
    return pma.fit_likelihood(series_model(), lags=2, **SHORT)


class TestNumbers:
    @pytest.mark.parametrize("transform", ["identity", "log", "logit", "above"])
    def test_transforms_are_undone_and_their_slopes_right(self, transform):
        above = {"softness": 1e-3, "bound": 0} if transform == "above" else {}
        column = RealColumn(transform, **above, center=0.3, scale=1.7)
        bound = [np.full(7, 0.1)]
        y = np.array([0.1002, 0.101, 0.2, 0.5, 0.75, 0.9, 0.95])
        (z,), slope = column.encode(NUMPY, y, bound)
        assert_allclose(column.decode(z, bound), y, rtol=1e-9)
        step = 1e-7
        moved = [column.encode(NUMPY, y + d, bound)[0][0] for d in (step, -step)]
        assert_allclose(np.log((moved[0] - moved[1]) / (2 * step)), slope, rtol=1e-5, atol=1e-5)

    def test_a_bound_that_is_passed_costs_more_and_more_without_a_cliff(self):
        column = RealColumn("above", bound=0, softness=1e-2)
        y = np.linspace(0.2, -0.2, 4001)
        (z,), slope = column.encode(NUMPY, y, [np.zeros_like(y)])
        assert np.isfinite(z).all() and np.isfinite(slope).all()
        assert (np.diff(z) < 0).all()
        assert np.abs(np.diff(z, 2)).max() < 1e-3  # no kink

    def test_intervals_of_the_normal_distribution(self):
        a = np.linspace(-30, 30, 601)
        for width in (1e-6, 1e-2, 0.4, 3.0):
            mirrored = np.where(a + width / 2 > 0, -(a + width), a)
            exact = stats.norm.logcdf(mirrored + width) + np.log(
                -np.expm1(stats.norm.logcdf(mirrored) - stats.norm.logcdf(mirrored + width))
            )
            # differences of logarithms lose digits where the interval is narrow
            tolerance = 1e-9 + 1e-13 * np.abs(exact).max() / width
            assert_allclose(log_interval(NUMPY, a, np.full_like(a, width)), exact, rtol=tolerance, atol=tolerance)


def random_density(seed=0, lags=0):
    """Random weights for a category, a count and two numbers, of three parameters."""
    parameters = (
        Parameter("drift", "identity", 0.0, 1.0, -2.0, 2.0),
        Parameter("width", "log", 0.0, 0.5, -2.0, 2.0, (1.0, 0.5)),
        Parameter("bound", "logit", 0.0, 1.0, -2.0, 2.0, (0.5, 0.2)),
    )
    columns = (
        RealColumn("above", bound=2, softness=1e-3),
        CategoricalColumn((-1.0, 1.0, 2.0)),
        CountColumn(center=1.0, scale=0.7),
        RealColumn(center=0.5, scale=2.0),
    )
    layout = Layout(parameters, columns, (1, 2, 0, 3), lags)
    torch.manual_seed(seed)
    network = RowNetwork(layout, RowSize(hidden=8, components=3))
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return network, RowDensity(layout, network.size, tuple(network.arrays()))


def random_rows(n=50, seed=0):
    rng = np.random.default_rng(seed)
    parameters = np.stack([rng.normal(size=n), np.exp(0.4 * rng.normal(size=n)), rng.uniform(0.3, 0.7, n)])
    values = [
        parameters[2] + rng.exponential(size=n),
        rng.choice([-1.0, 1.0, 2.0], n),
        rng.poisson(2.0, n),
        rng.normal(size=n),
    ]
    return Rows(parameters, np.stack(values))


class TestThreeLibraries:
    def test_agree(self):
        network, density = random_density()
        rows = random_rows()
        expected = density.log_density(NUMPY, rows.values, rows.parameters)
        values, parameters = ([pt.constant(row) for row in part] for part in (rows.values, rows.parameters))
        graph = density.log_density(PYTENSOR, values, parameters)
        assert_allclose(graph.eval(mode="FAST_COMPILE"), expected, rtol=1e-9)
        fine = inside(density.layout, rows.parameters)  # what is trained has no penalty
        rows, expected = rows.take(fine), expected[fine]
        log_slope, encoded = prepare(density.layout, rows)
        with torch.no_grad():
            trained = (
                network.log_density({k: torch.from_numpy(v) for k, v in encoded.items()}).numpy() + log_slope[:, 0]
            )
        assert_allclose(trained, expected, rtol=1e-4, atol=1e-4)

    def test_parameters_shared_by_rows_are_used_once_and_alike(self):
        _, density = random_density()
        rows = random_rows()
        index = np.random.default_rng(1).integers(5, size=50)
        groups = rows.parameters[:, :5]
        expected = density.log_density(NUMPY, rows.values, groups[:, index])
        assert_allclose(density.log_density(NUMPY, rows.values, list(groups), shared=index), expected)
        single = density.log_density(NUMPY, rows.values, [p[:1] for p in groups])
        assert_allclose(single, density.log_density(NUMPY, rows.values, np.repeat(groups[:, :1], 50, 1)))

    def test_gradients_equal_finite_differences(self):
        _, density = random_density()
        rows = random_rows(6)
        parameters = rows.parameters.copy()
        parameters[0, 0], parameters[1, 1] = 3.0, 0.2  # beyond the region

        p = pt.dmatrix()
        values = [pt.constant(v) for v in rows.values]
        cost = density.log_density(PYTENSOR, values, [p[0], p[1], p[2]]).sum()
        gradient = pytensor.function([p], pytensor.grad(cost, p), mode="FAST_COMPILE")(parameters)
        finite = np.empty_like(gradient)
        for at in np.ndindex(*parameters.shape):
            ends = []
            for step in (2e-4, -2e-4, 1e-4, -1e-4):
                moved = parameters.copy()
                moved[at] += step * 0.1
                ends.append(density.log_density(NUMPY, rows.values, moved).sum())
            wide, narrow = (ends[0] - ends[1]) / 4e-5, (ends[2] - ends[3]) / 2e-5
            finite[at] = (4 * narrow - wide) / 3  # Richardson's extrapolation
        assert_allclose(gradient, finite, rtol=1e-6, atol=1e-6)

    def test_the_edge_of_the_region_is_smooth(self):
        _, density = random_density()
        p = pt.dvector()
        one = [pt.constant(v[:1]) for v in random_rows(1).values]
        cost = density.log_density(PYTENSOR, one, [p[:1], p[1:2], p[2:3]]).sum()
        gradient = pytensor.function([p], pytensor.grad(cost, p), mode="FAST_COMPILE")
        for axis, edge in ((0, 2.0), (0, -2.0), (1, np.exp(1.0)), (2, 1 / (1 + np.exp(-2.0)))):
            point = np.array([0.1, 1.0, 0.4])
            sides = []
            for side in (-1e-7, 1e-7):
                point[axis] = edge + side
                sides.append(gradient(point))
            assert_allclose(*sides, rtol=1e-5, atol=1e-4)
        far = [gradient(np.array([d, 1.0, 0.4]))[0] for d in (3.0, 30.0, 3e6)]
        assert far[0] < -10 and far[1] < 5 * far[0] and np.isfinite(far[2])

    def test_masses_add_up_and_densities_integrate_to_one(self):
        _, density = random_density()
        layout = Layout(density.layout.parameters, density.layout.columns[1:3], (0, 1))
        small = RowDensity(layout, density.size, density.weights[:2])
        levels, numbers = np.meshgrid([-1.0, 1.0, 2.0], np.arange(20_000.0))
        p = [np.array([value]) for value in (0.3, 1.2, 0.4)]
        total = np.exp(small.log_density(NUMPY, [levels.ravel(), numbers.ravel()], p)).sum()
        assert total == pytest.approx(1, abs=1e-6)
        torch.manual_seed(0)
        network = RowNetwork(Layout(layout.parameters, (RealColumn("above", bound=2, softness=1e-2),), (0,)), RowSize())
        real = RowDensity(network.layout, network.size, tuple(network.arrays()))
        y = 0.4 + np.concatenate([-np.geomspace(1e-9, 3, 200_001)[::-1], np.geomspace(1e-9, 1e4, 400_001)])
        assert np.trapezoid(np.exp(real.log_density(NUMPY, [y], p)), y) == pytest.approx(1, abs=1e-5)

    def test_draws_have_the_density(self):
        _, density = random_density()
        rng = np.random.default_rng(5)
        n = 200_000
        p = [np.full(n, value) for value in (0.3, 1.2, 0.4)]
        drawn = density.sample(rng, p)
        own = density.log_density(NUMPY, drawn[:, : n // 2], [v[: n // 2] for v in p])
        # two densities of the same rows: E[exp(q' - q)] is 1 under draws of q
        _, other = random_density()
        tilted = [dict(w) for w in other.weights]
        for w in tilted:
            w["leave_bias"] = w["leave_bias"] + 0.01
        ratio = np.exp(
            RowDensity(density.layout, density.size, tuple(tilted)).log_density(
                NUMPY, drawn[:, : n // 2], [v[: n // 2] for v in p]
            )
            - own
        )
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio)) + 1e-6


class TestAgainstTheTruth:
    def test_normal(self, normal):
        assert normal.parameters == ("mu", "noise")
        assert normal.error < 0.05

    def test_counts_are_a_mass(self, counts):
        rates = np.array([0.4, 2.0, 7.0])
        values = np.arange(3000)
        log_mass = counts.logp(values[:, None] + 0 * rates.astype(int), {"rate": rates})
        assert_allclose(np.exp(log_mass).sum(0), 1, atol=1e-6)
        exact = stats.poisson(rates).logpmf(values[:15, None])
        weight = np.exp(exact)
        assert ((np.abs(log_mass[:15] - exact) * weight).sum(0) < 0.05).all()

    def test_choice_and_time(self, mixed):
        assert [c.kind for c in mixed.network.layout.columns] == ["real", "categorical"]
        rows = race(np.full(4000, 0.7), 1.1, np.random.default_rng(6), (4000,))
        error = mixed.logp(rows, {"drift": 0.7, "threshold": 1.1}) - race_log_density(rows, 0.7, 1.1)
        assert np.abs(error).mean() < 0.08
        drawn = mixed.sample({"drift": 0.7, "threshold": 1.1}, shape=(20_000,), random_seed=1)
        assert abs((drawn[:, 1] == 0).mean() - (rows[:, 1] == 0).mean()) < 0.05
        assert_allclose(np.median(drawn[:, 0]), np.median(rows[:, 0]), rtol=0.05)

    def test_series(self, series):
        rng = np.random.default_rng(7)
        y = rng.normal(size=(3, 30)).cumsum(1) * 0.5
        rho, sigma = np.array([0.5, -0.2, 0.8]), np.array([1.0, 0.8, 1.2])
        exact = stats.norm(rho[:, None] * y[:, :-1], sigma[:, None]).logpdf(y[:, 1:]).sum(1)
        exact += stats.norm.logpdf(y[:, 0])
        assert_allclose(series.logp(y, {"rho": rho[:, None], "sigma": sigma}), exact, atol=1.5)
        drawn = series.sample({"rho": [0.7], "sigma": 1.0}, shape=(400,), length=60, random_seed=1)
        assert drawn.shape == (400, 60)
        lagged = np.corrcoef(drawn[:, 20:-1].ravel(), drawn[:, 21:].ravel())[0, 1]
        assert lagged == pytest.approx(0.7, abs=0.05)


@pytest.fixture(scope="module")
def sampled(normal):
    """Return the model with the learned likelihood, and what PyMC's own NUTS draws of it."""
    model = normal.to_model()
    return model, pm.sample(model=model, nuts_sampler="pymc", **SAMPLING)


class TestInPyMC:
    def test_to_model_has_the_posterior_of_the_exact_model(self, sampled):
        exact = pm.sample(model=normal_model(), nuts_sampler="pymc", **SAMPLING)
        for name in ("slope", "noise"):
            mine, theirs = (dt["posterior"][name].values for dt in (sampled[1], exact))
            assert abs(mine.mean() - theirs.mean()) < 0.35 * theirs.std()
            assert mine.std() == pytest.approx(theirs.std(), rel=0.25)

    def test_both_samplers_and_what_follows(self, normal, sampled):
        model, tree = sampled
        trees = [tree.copy(), pm.sample(model=model, nuts_sampler="nutpie", **SAMPLING)]
        means = [float(dt["posterior"]["slope"].mean()) for dt in trees]
        spread = float(trees[0]["posterior"]["slope"].std())
        assert abs(means[0] - means[1]) < 0.25 * spread
        assert normal.check_region(trees[0]) == 0
        with model:
            pm.compute_log_likelihood(trees[0], progressbar=False)
            predicted = pm.sample_posterior_predictive(trees[0], progressbar=False, random_seed=1)
        assert trees[0]["log_likelihood"]["y"].dims == ("chain", "draw", "trial")
        assert predicted["posterior_predictive"]["y"].shape == (2, 300, 60)

    def test_as_a_building_block(self, mixed):
        rng = np.random.default_rng(8)
        subject = np.repeat(np.arange(4), 25)
        data = race(np.array([0.2, 0.6, -0.3, 1.0])[subject], 1.0, rng, (100,))
        coords = {"subject": range(4), "trial": range(100), "response": ["rt", "choice"]}
        with pm.Model(coords=coords) as hierarchical:
            drift = pm.Normal("drift", 0, 1, dims="subject")
            threshold = pm.LogNormal("threshold", 0, 0.3)
            mixed("rt", drift=drift[subject], threshold=threshold, observed=data, dims=("trial", "response"))
        point = {"drift": np.array([0.2, 0.6, -0.3, 1.0]), "threshold_log__": np.array(0.1)}
        (log_density,) = hierarchical.compile_logp(vars=[hierarchical["rt"]], sum=False, **INTERPRETED)(point)
        expected = mixed.logp(data, {"drift": point["drift"][subject], "threshold": np.exp(0.1)})
        assert_allclose(log_density, expected)
        with hierarchical:
            prior = pm.sample_prior_predictive(draws=20, random_seed=1)
        drawn = prior["prior_predictive"]["rt"]
        assert drawn.dims == ("chain", "draw", "trial", "response")
        assert set(np.unique(drawn.sel(response="choice"))) == {0.0, 1.0}

    def test_other_numbers_of_rows(self, counts):
        model = counts.to_model(np.arange(7))
        assert pm.draw(model["y"], random_seed=1).shape == (7,)
        expected = counts.logp(np.arange(7), {"rate": 1.0}).sum()
        (found,) = model.compile_logp(vars=[model["y"]], sum=False, **INTERPRETED)({"rate_log__": np.array(0.0)})
        assert found.sum() == pytest.approx(expected)

    def test_combinations_of_constants_share_their_parameters(self, mixed):
        rng = np.random.default_rng(1)
        group, slow, load = rng.integers(3, size=60), rng.integers(2, size=60), rng.integers(2, size=60) * 0.5
        data = race(0.5, 1.0, rng, (60,))

        def parameters(drift, effect, threshold):
            return {
                "drift": drift[group] + effect * load - 0.2 * effect * slow,
                "threshold": threshold[slow] * pm.math.exp(0.1 * load),
            }

        with pm.Model() as model:
            drift, effect = pm.Normal("drift", shape=3), pm.Normal("effect")
            threshold = pm.LogNormal("threshold", 0, 0.3, shape=2)
            mixed("rt", **parameters(drift, effect, threshold), observed=data)
        point = {"drift": np.array([0.3, -0.2, 0.9]), "effect": np.array(0.4), "threshold": np.array([0.9, 1.1])}
        values = point | {"threshold_log__": np.log(point["threshold"])}
        del values["threshold"]
        (found,) = model.compile_logp(vars=[model["rt"]], sum=False, **INTERPRETED)(values)
        known = {
            name: value.eval() for name, value in parameters(**{k: pt.constant(v) for k, v in point.items()}).items()
        }
        assert_allclose(found, mixed.logp(data, known))
        wide = list(parameters(drift, effect, threshold).values())
        fewer, index = _shared(wide)
        assert index.data.max() + 1 == np.unique(np.stack([group, slow, load]), axis=1).shape[1]
        for one, other in zip(
            pm.draw(wide, random_seed=1), pm.draw([v[index] for v in fewer], random_seed=1), strict=True
        ):
            assert_allclose(one, other)
        assert _shared([drift[group] + pt.cumsum(effect * load)]) is None
        assert _shared([drift[group] + np.arange(60.0)]) is None

    def test_draws_outside_are_counted_and_warned_about(self, counts, caplog):
        with pm.Model() as model:
            rate = pm.LogNormal("rate", 6, 0.1)
            counts("y", rate=rate, observed=np.full(2, 3))
            dt = pm.sample_prior_predictive(draws=10, random_seed=1)
        dt["posterior"] = dt["prior"]
        assert model["y_extent"] is not None
        with caplog.at_level(logging.WARNING, logger="pymc_amortized"):
            assert counts.check_region(dt, "y") == 1
        assert "outside the region" in caplog.text and "rate" in caplog.text


class TestFiles:
    def test_a_saved_likelihood_is_the_same(self, mixed, tmp_path):
        mixed.save(tmp_path / "rt.pma")
        loaded = pma.load(tmp_path / "rt.pma", model=race_model())
        assert isinstance(loaded, pma.AmortizedLikelihood)
        rows = race(0.3, 1.0, np.random.default_rng(1), (20,))
        parameters = {"drift": 0.3, "threshold": 1.0}
        assert_allclose(loaded.logp(rows, parameters), mixed.logp(rows, parameters))
        assert loaded.region == mixed.region

    def test_another_model_is_refused(self, mixed, tmp_path):
        mixed.save(tmp_path / "rt.pma")
        with pytest.raises(ValueError, match="not the one in the file"):
            pma.load(tmp_path / "rt.pma", model=counts_model())


class TestErrors:
    def test_of_parameters(self, mixed):
        data = race(0.3, 1.0, np.random.default_rng(1), (10,))
        with pm.Model():
            with pytest.raises(TypeError, match=r"unknown: \['drfit'\], missing: \['drift'\]"):
                mixed("rt", drfit=0.1, threshold=1.0, observed=data)
            with pytest.raises(ValueError, match="does not broadcast"):
                mixed("rt", drift=np.zeros(9), threshold=1.0, observed=data)

    def test_of_values(self, mixed, counts):
        data = race(0.3, 1.0, np.random.default_rng(1), (10,))
        with pytest.raises(ValueError, match="the categories are"):
            mixed.to_model(data + np.array([0.0, 5.0]))
        with pytest.raises(ValueError, match="last axes must be"):
            mixed.to_model(data[:, :1])
        with pytest.raises(ValueError, match="NaN"):
            mixed.to_model(data * np.nan)
        with pytest.raises(ValueError, match="counts from 0 on"):
            counts.to_model(np.array([1, -1]))
        with pytest.raises(KeyError, match="likelihood is that of"):
            counts.to_model({"z": [1]})

    def test_of_fitting(self):
        with pytest.raises(KeyError, match="region"):
            pma.fit_likelihood(counts_model(), region={"lambda": (0, 1)}, **QUIET)
        with pytest.raises(ValueError, match="is not below"):
            pma.fit_likelihood(counts_model(), region={"rate": (2, 1)}, **QUIET)
        with pytest.raises(ValueError, match="'rate' is positive, and the range begins at -1"):
            pma.fit_likelihood(counts_model(), region={"rate": (-1, 1)}, **QUIET)
        with pytest.raises(KeyError, match="variable"):
            pma.fit_likelihood(counts_model(), variable="z", **QUIET)
        with pm.Model() as simulator:
            location = pm.Normal("location")
            pm.Simulator("y", lambda rng, m, size: rng.normal(m, 1, size=size), location, observed=np.zeros(100))
        with pytest.raises(ValueError, match="exchangeable"):
            pma.fit_likelihood(simulator, **QUIET)


def test_a_wider_region():
    likelihood = pma.fit_likelihood(counts_model(), region={"rate": (0.5, 40.0)}, **SHORT)
    low, high = likelihood.region["rate"]
    assert 0.5 <= low < 0.7 and 39 < high <= 40
    assert likelihood.to_model()["rate"].owner.op.name == "lognormal"


def test_a_series_of_another_length_is_the_same_distribution(series):
    y = np.random.default_rng(1).normal(size=90)
    point = {"rho_interval__": np.array([0.3]), "sigma_log__": 0.1}
    longer = series.to_model(y, model=series_model(90))
    rho, sigma = -0.9 + 1.8 / (1 + np.exp(-0.3)), np.exp(0.1)
    learned = longer.compile_logp(vars=[longer["y"]], **INTERPRETED)(point)
    assert_allclose(learned, series.logp(y, {"rho": [rho], "sigma": sigma}).sum(), rtol=1e-6)
    with pytest.raises(ValueError, match="the distribution of 'y'"):
        series.to_model(y, model=series_model(90, start=3.0))


def test_parameters_outside_the_region_are_said(normal, caplog):
    inside = {name: np.mean(ends) for name, ends in normal.region.items()}
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        normal.sample(inside, random_seed=1)
        normal.logp(np.zeros(3), inside)
        assert not caplog.records
        far = inside | {normal.parameters[0]: 80.0}
        normal.sample(far, random_seed=1)
        normal.logp(np.zeros(3), far)
        first, *others = normal.parameters
        with pm.Model():
            normal("near", observed=np.zeros(3), **inside | {first: pm.Normal("free")})
            normal("y", observed=np.zeros(3), **far | {others[0]: pm.Normal("other")})
    assert ["outside the region" in r.getMessage() for r in caplog.records] == [True, True, True]
