"""Ratios of likelihoods by classification: closed forms, in PyMC, and what they cannot do."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.graph.rows.emulator import PYTENSOR
from pymc_amortized.networks.rows.ratio_network import RatioNetwork
from pymc_amortized.networks.rows.row_network import TORCH
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.columns import CategoricalColumn, CountColumn, RealColumn
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.prepared import Rows
from pymc_amortized.row_density.ratio import RowRatio, log_ratio, prepare_pairs
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.row_density.row_parameters import Parameter

STEPS = pma.Training(num_steps=600, batch_size=512, learning_rate=3e-3, weight_decay=0, evaluations=4, threads=1)
QUIET = {"progressbar": False, "random_seed": 1}
SMALL = QUIET | {"training": STEPS, "kind": "ratio", "network": RowSize(hidden=32, depth=1)}
TAU, NOISE = 1.5, 1.0
pytestmark = [
    # PyMC's own, of every distribution with a function for its draws
    pytest.mark.filterwarnings("ignore:Numba will use object mode"),
    pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding"),
    pytest.mark.filterwarnings("ignore:Calling a RandomVariable without an explicit rng"),
]


def normal_model():
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, TAU)
        pm.Normal("y", mu, NOISE, observed=np.random.default_rng(1).normal(0.7, NOISE, size=30))
    return model


def exact_ratio(y, mu):
    return stats.norm(mu, NOISE).logpdf(y) - stats.norm(0, np.hypot(TAU, NOISE)).logpdf(y)


@pytest.fixture(scope="module")
def ratio():
    return pma.fit_likelihood(normal_model(), **SMALL)


def random_ratio():
    """Random weights for a category, a count and a number, of two parameters."""
    parameters = (
        Parameter("drift", "identity", 0.0, 1.0, -2.0, 2.0),
        Parameter("width", "log", 0.0, 0.5, -2.0, 2.0, (1.0, 0.5)),
    )
    columns = (
        RealColumn(center=0.5, scale=2.0),
        CategoricalColumn((-1.0, 1.0, 2.0)),
        CountColumn(center=1.0, scale=0.7),
    )
    layout = Layout(parameters, columns, (1, 2, 0))
    torch.manual_seed(0)
    network = RatioNetwork(layout, RowSize(hidden=8, depth=1))
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return network, RowRatio(layout, network.size, tuple(network.arrays()))


def random_rows(n=40):
    rng = np.random.default_rng(0)
    parameters = np.stack([rng.uniform(-1, 1, n), np.exp(0.2 * rng.normal(size=n))])
    return Rows(parameters, np.stack([rng.normal(size=n), rng.choice([-1.0, 1.0, 2.0], n), rng.poisson(2.0, n)]))


class TestThreeLibraries:
    def test_agree_also_where_rows_share_parameters(self):
        network, ratio = random_ratio()
        rows = random_rows()
        expected = ratio.log_density(NUMPY, rows.values, rows.parameters)
        with torch.no_grad():
            _, encoded = prepare_pairs(ratio.layout, rows)
            f, g = (torch.from_numpy(encoded[name]).mT for name in ("parameters", "features"))
            trained = log_ratio(TORCH, network.size, network.weights_of(0), f, g)
        assert_allclose(trained.numpy(), expected, rtol=1e-4, atol=1e-4)
        values, parameters = ([pt.constant(row) for row in part] for part in (rows.values, rows.parameters))
        assert_allclose(ratio.log_density(PYTENSOR, values, parameters).eval(mode="FAST_COMPILE"), expected, rtol=1e-9)
        index = np.arange(40) % 3
        few = [p[:3] for p in rows.parameters]
        shared = ratio.log_density(NUMPY, rows.values, few, shared=index)
        assert_allclose(shared, ratio.log_density(NUMPY, rows.values, [p[index] for p in few]))

    def test_gradients_and_the_way_back_into_the_region(self):
        _, ratio = random_ratio()
        rows = random_rows(1)
        p = pt.dvector()
        values = [pt.constant(v) for v in rows.values]
        cost = ratio.log_density(PYTENSOR, values, [p[:1], p[1:]]).sum()
        gradient = pytensor.function([p], pytensor.grad(cost, p), mode="FAST_COMPILE")
        at = np.array([0.3, 1.1])
        ends = [ratio.log_density(NUMPY, rows.values, [at[:1] + d, at[1:]])[0] for d in (1e-5, -1e-5)]
        assert gradient(at)[0] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
        assert_allclose(*(gradient(np.array([2.0 + d, 1.1])) for d in (-1e-7, 1e-7)), rtol=1e-5, atol=1e-4)
        assert gradient(np.array([4.0, 1.1]))[0] < -10


class TestLoss:
    def test_it_is_least_at_the_exact_ratio(self):
        """The loss of a known log ratio, and of others: scaled, shifted, and shifted by a function of the data."""
        rng = np.random.default_rng(1)
        mu = rng.normal(0, TAU, size=20_000)
        y = rng.normal(mu, NOISE)
        network, _ = random_ratio()

        def loss(change):
            def known(xp, size, weights, f, g, shared):
                return torch.as_tensor(change(exact_ratio(g[0].numpy(), f[0, shared].numpy()), g[0].numpy()))

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("pymc_amortized.networks.rows.ratio_network.log_ratio", known)
                encoded = {"parameters": torch.as_tensor(mu)[:, None], "features": torch.as_tensor(y)[:, None]}
                return float(network.loss(torch.zeros(len(mu), 1), encoded))

        best = loss(lambda r, y: r)
        changes = (lambda r, y: 0.8 * r, lambda r, y: 1.2 * r, lambda r, y: r + 0.3, lambda r, y: r + 0.3 * np.sin(y))
        for change in changes:
            assert loss(change) > best + 1e-3


class TestAgainstTheTruth:
    def test_the_ratio_is_the_exact_one(self, ratio):
        rng = np.random.default_rng(3)
        mu = rng.normal(0, TAU, size=2000)
        y = rng.normal(mu, NOISE)
        error = ratio.logp(y, {"mu": mu}) - exact_ratio(y, mu)
        assert np.abs(error).mean() < 0.06
        assert ratio.kind == "ratio" and "ratio" in repr(ratio)

    def test_the_posterior_by_it(self, ratio):
        grid = np.linspace(-1, 2.5, 400)
        log_p = ratio.to_model().compile_logp(mode="FAST_COMPILE")
        weights = np.array([log_p({"mu": np.array(mu)}) for mu in grid])
        weights = np.exp(weights - weights.max()) / np.exp(weights - weights.max()).sum()
        mean = (weights * grid).sum()
        y = np.random.default_rng(1).normal(0.7, NOISE, size=30)
        precision = 1 / TAU**2 + 30 / NOISE**2
        assert mean == pytest.approx(y.sum() / precision, abs=0.4 * precision**-0.5)
        assert (weights * (grid - mean) ** 2).sum() ** 0.5 == pytest.approx(precision**-0.5, rel=0.25)

    def test_rows_on_a_ring(self):
        """Two numbers whose radius alone says something: known up to a function of the row."""

        def ring(radius, rng=None, size=None):
            angle = rng.uniform(0, 2 * np.pi, size=size)
            r = rng.normal(radius, 0.4, size=size)
            return np.stack([r * np.cos(angle), r * np.sin(angle)], -1)

        with pm.Model() as model:
            radius = pm.Uniform("radius", 2, 4)
            pm.CustomDist("y", radius, random=ring, signature="()->(2)", observed=np.ones((10, 2)))
        steps = pma.Training(
            num_steps=300, batch_size=256, learning_rate=5e-3, weight_decay=0, evaluations=2, threads=1
        )
        learned = pma.fit_likelihood(model, **(SMALL | {"training": steps}))
        r, angle = np.meshgrid(np.linspace(2.2, 3.8, 9), np.linspace(0, 6, 8))
        rows = np.stack([r * np.cos(angle), r * np.sin(angle)], -1)
        found = learned.logp(rows, {"radius": 3.2}) - learned.logp(rows, {"radius": 2.8})
        exact = stats.norm(3.2, 0.4).logpdf(r) - stats.norm(2.8, 0.4).logpdf(r)
        assert np.abs(found - exact).mean() < 0.25 * np.abs(exact).mean()


class TestFilesAndErrors:
    def test_a_saved_ratio_is_the_same(self, ratio, tmp_path):
        ratio.save(tmp_path / "y.pma")
        loaded = pma.load(tmp_path / "y.pma", model=normal_model())
        y = np.linspace(-2, 2, 9)
        assert_allclose(loaded.logp(y, {"mu": 0.3}), ratio.logp(y, {"mu": 0.3}))
        assert loaded.kind == "ratio"

    def test_it_draws_nothing(self, ratio):
        with pytest.raises(NotImplementedError, match="cannot draw any"):
            ratio.sample({"mu": 0.0}, shape=(5,))
        with pm.Model():
            mu = pm.Normal("mu")
            y = ratio("y", mu=mu, observed=np.zeros(5))
            with pytest.raises(Exception, match="cannot draw any"):
                pm.draw(y)

    def test_of_arguments(self):
        with pytest.raises(ValueError, match="kind must be"):
            pma.fit_likelihood(normal_model(), kind="odds", **QUIET)
        with pm.Model() as series:
            rho = pm.Uniform("rho", -0.9, 0.9, shape=1)
            pm.AR("y", rho, init_dist=pm.Normal.dist(0, 1), observed=np.zeros(30))
        with pytest.raises(ValueError, match="not supported for a series"):
            pma.fit_likelihood(series, kind="ratio", **QUIET)
