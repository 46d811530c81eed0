"""What is checked of learned likelihoods: what they know of a series' past, and posteriors by them."""

import logging
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.approximators.likelihood.calibrated import rank_parameters, warn_if_not_calibrated
from pymc_amortized.approximators.likelihood.remembered import Forgotten, judge_past
from pymc_amortized.graph.rows.emulator import Emulator
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.numerics.uniformity import uniformity
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.columns import RealColumn
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.prepared import Rows, past_of
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.row_density.row_parameters import Parameter

LOGGER, LENGTH, SERIES = "pymc_amortized", 25, 80


class Known:
    """A row's density: normal, with a mean that is a multiple of the row before."""

    layout = Layout((Parameter("rho", "identity", 0.0, 0.5, -3.0, 3.0),), (RealColumn(),), (0,), 1)

    def __init__(self, coefficient=lambda rho: rho, sd: float = 1.0) -> None:
        self.coefficient, self.sd = coefficient, sd

    def _mean(self, parameters, past):
        exists, before = past[0]
        return self.coefficient(parameters[0]) * np.where(exists > 0, before, 0.0)

    def sample(self, rng, parameters, past):
        mean = self._mean(parameters, past)
        return (mean + self.sd * rng.normal(size=mean.shape))[None]

    def log_density(self, xp, values, parameters, past, shared):
        return stats.norm.logpdf(values[0], self._mean([parameters[0][shared]], past), self.sd)


def rows_of(kind: str, rng: np.random.Generator, series: int = SERIES) -> Rows:
    """Rows of simulated series of noise, of one that remembers its last row, or its last shock."""
    rho, e = rng.uniform(-0.9, 0.9, (series, 1)), rng.normal(size=(series, LENGTH))
    y = e.copy()
    for t in range(1, LENGTH):
        if kind == "autoregression":
            y[:, t] += rho[:, 0] * y[:, t - 1]
        elif kind == "moving average":
            y[:, t] += rho[:, 0] * e[:, t - 1]
    before = np.concatenate([np.full((series, 1), np.nan), y[:, :-1]], 1).reshape(1, 1, -1)
    parameters = np.repeat(rho.T, LENGTH, axis=1)
    return Rows(parameters, y.reshape(1, -1), before, (~np.isnan(before[:, 0])).astype(float))


@pytest.mark.parametrize(("kind", "density"), [("autoregression", Known()), ("noise", Known(lambda rho: 0 * rho))])
def test_no_more_than_five_percent_of_right_densities_are_said_to_forget(kind, density):
    rng = np.random.default_rng(1)
    found = [judge_past(density, rows_of(kind, rng), SERIES, LENGTH, rng) for _ in range(100)]
    # tests of 36 products together (Bonferroni) keep the level, and are not idle
    assert np.mean([f.pvalue <= 0.05 for f in found]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean([f.pvalue < 1 for f in found]) > 0.2
    assert np.mean([f.gain for f in found]) < 0
    assert not any(f.matters for f in found)


def test_what_a_moving_average_remembers_is_more_than_its_last_row():
    rng = np.random.default_rng(2)
    best = Known(lambda rho: rho / (1 + rho**2))  # of a linear prediction by the last row alone
    found = judge_past(best, rows_of("moving average", rng, 400), 400, LENGTH, rng)
    assert found.pvalue < 1e-6 and found.gain > 0.2


def test_a_density_that_is_only_a_little_off_does_not_forget():
    rng = np.random.default_rng(3)
    found = judge_past(Known(lambda rho: 0.95 * rho), rows_of("autoregression", rng, 400), 400, LENGTH, rng)
    assert not found.matters


# Posteriors


def ranks_by(density: Known, seed: int):
    """Ranks of the parameter of 150 series in their posteriors."""
    rng, number = np.random.default_rng(seed), 150
    rows = rows_of("autoregression", rng, number)
    read_from = SimpleNamespace(rows=LENGTH, parameters=[SimpleNamespace(batch_ndim=0)], of_simulations=lambda *_: rows)
    return rank_parameters(density, read_from, range(number), rng)


def test_ranks_under_the_right_likelihood_are_uniform(caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    smallest = []
    for seed in range(20):
        ranks = ranks_by(Known(), seed)
        assert list(ranks) == ["rho", "log likelihood"]
        smallest.append(min(uniformity(values).p_value for values in ranks.values()))
    assert np.mean(np.array(smallest) < 0.1) < 0.1 + 0.1 + 3 * np.sqrt(0.1 * 0.9 / 20)
    warn_if_not_calibrated(ranks_by(Known(), 99), "y")
    warn_if_not_calibrated(None, "y")
    assert not caplog.records


@pytest.mark.parametrize(
    ("density", "words"),
    [(Known(sd=0.6), "over-confident"), (Known(sd=1.7), "under-confident"), (Known(lambda rho: rho + 0.15), "biased")],
)
def test_likelihoods_that_are_off_are_named(density, words, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    warn_if_not_calibrated(ranks_by(density, 4), "y")
    assert "posteriors under the learned likelihood of 'y' are not calibrated" in caplog.text and words in caplog.text


# Averages of all earlier rows


SCALES = (2.0, 20.0)


def random_series_density() -> RowDensity:
    parameters = (Parameter("a", "identity", 0.0, 1.0, -3.0, 3.0),)
    layout = Layout(parameters, (RealColumn(), RealColumn(scale=2.0)), (0, 1), 2, scales=SCALES)
    network = RowNetwork(layout, RowSize(hidden=8, components=3))
    rng = np.random.default_rng(5)
    weights = [
        {name: value + 0.2 * rng.normal(size=value.shape) for name, value in part.items()} for part in network.arrays()
    ]
    return RowDensity(layout, network.size, tuple(weights))


def simulated_series():
    """Simulations of three series with two numbers a row, and how they are read."""
    rng = np.random.default_rng(6)
    y, a = rng.normal(size=(3, 7, 2)), rng.normal(size=3)
    variable = SimpleNamespace(name="y", shape_at=lambda _: (7, 2))
    parameter = SimpleNamespace(batch_ndim=0)
    rows = ObservedRows(variable, 0, True, (2,), (parameter,), None)

    class Made:
        data, variables = {"y": y}, {"row parameter 0": a}

        def __len__(self):
            return 3

    return y, a, rows.of_simulations(Made(), 2, None, SCALES)


def test_averages_are_weighted_sums_of_all_earlier_rows():
    y, _, rows = simulated_series()
    known, past = rows.known.reshape(4, 3, 7), rows.past.reshape(4, 2, 3, 7)
    assert_allclose(known[:2, 0], [[0, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])
    for i, scale in enumerate(SCALES, start=2):
        for t in range(1, 7):
            weights = np.exp(-np.arange(t)[::-1] / scale)
            assert_allclose(past[i, :, :, t].T, np.average(y[:, :t], 1, weights))
            assert_allclose(known[i, :, t], weights.sum() * (1 - np.exp(-1 / scale)))
    assert np.isnan(past[:, :, :, 0]).all()


def test_the_graph_and_draws_know_the_same_averages():
    density = random_series_density()
    y, a, rows = simulated_series()
    expected = density.log_density(NUMPY, list(rows.values), list(rows.parameters), past_of(rows)).reshape(3, 7).sum(1)
    emulator = Emulator(density, (2,), True, ((),), "float64")
    graph = emulator.logp(pt.constant(y), pt.constant(a), pt.zeros(7))
    assert_allclose(graph.eval(mode="FAST_COMPILE"), expected, rtol=1e-8)
    seen = []

    class Spying(RowDensity):
        def sample(self, rng, parameters, past=()):
            seen.append(past)
            return super().sample(rng, parameters, past)

    spying = Spying(density.layout, density.size, density.weights)
    drawn = Emulator(spying, (2,), True, ((),), "float64").random(a, np.zeros(7), rng=np.random.default_rng(7))
    weights = np.exp(-np.arange(6)[::-1] / SCALES[1])
    assert_allclose(np.stack(seen[6][3][1:]).T, np.average(drawn[:, :6], 1, weights))


# Together


def moving_average(theta, sigma, time, rng=None, size=None):
    shape = np.broadcast_shapes(np.shape(theta), np.shape(sigma)) if size is None else tuple(size)
    e = rng.normal(size=(*shape, time.shape[-1] + 1)) * np.broadcast_to(sigma, shape)[..., None]
    return e[..., 1:] + np.broadcast_to(theta, shape)[..., None] * e[..., :-1]


def series_model() -> pm.Model:
    with pm.Model() as model:
        theta, sigma = pm.Uniform("theta", 0.6, 0.95), pm.LogNormal("sigma", 0, 0.3)
        options = {"random": moving_average, "signature": "(),(),(t)->(t)"}
        pm.CustomDist("y", theta, sigma, np.zeros(40), observed=np.zeros(40), **options)
    return model


def test_a_likelihood_of_too_few_lags_says_so_and_averages_are_given_where_none_are_named(caplog, tmp_path):
    caplog.set_level(logging.WARNING, LOGGER)
    options = {"random_seed": 1, "progressbar": False, "cores": 1, "compile_kwargs": {"mode": "FAST_COMPILE"}}
    brief = {"training": pma.Training(num_steps=20), "num_simulations": 1000, "structure": {"y": "sequence"}} | options
    likelihood = pma.fit_likelihood(series_model(), lags=1, **brief)
    assert "Rows of 'y' depend on more of the past than the learned density sees (1 lags)" in caplog.text
    assert "lags=4, or leave lags= out" in caplog.text and "fit_joint" in caplog.text
    assert likelihood.forgotten.matters and likelihood.network.layout.scales == ()
    likelihood.save(tmp_path / "likelihood.pma")
    loaded = pma.load(tmp_path / "likelihood.pma", model=series_model())
    assert isinstance(loaded.forgotten, Forgotten) and loaded.forgotten == likelihood.forgotten
    seeing = pma.fit_likelihood(series_model(), **brief)
    assert len(seeing.network.layout.scales) == 4
    assert seeing.forgotten.gain < 0.5 * likelihood.forgotten.gain
