"""Posteriors of several modes: none is missed without a word."""

import itertools
import logging
import time
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytest
from closed_forms import conjugate_data, conjugate_moments
from numpy.testing import assert_allclose
from scipy import special, stats

import pymc_amortized as pma
from pymc_amortized.correction.budget import Budget
from pymc_amortized.correction.convergence import weighted_r_hat
from pymc_amortized.correction.draws import Request
from pymc_amortized.correction.proposals import Proposals
from pymc_amortized.correction.search import _differing, _repeated
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.axes import Axis
from pymc_amortized.numerics.sampling.mixture import StudentMixture
from pymc_amortized.numerics.sampling.modes import find_modes
from pymc_amortized.numerics.sampling.tempering import temper
from pymc_amortized.numerics.thresholds import THRESHOLDS

LIGHT, HEAVY = (-1.0, 0.05, 0.3), (1.0, 0.1, 0.7)
"""Place, width and mass of two modes in each dimension, in units of the prior."""


def two_modes(z, light=LIGHT, heavy=HEAVY):
    parts = [stats.norm.logpdf(z, at, width).sum(-1) + np.log(mass) for at, width, mass in (light, heavy)]
    return np.logaddexp(*parts) - 3.0


def one_mode(z):
    return stats.norm.logpdf(z, *HEAVY[:2]).sum(-1)


# Finding


def searched(log_density, dim, n=3, **options):
    """Search targets of which the heavier mode is known."""

    def batch(theta, index):
        k, m, _ = theta.shape
        return log_density(theta), np.empty((k, m, 0)), np.empty((k, m, 0, 0))

    covariance = np.broadcast_to(HEAVY[1] ** 2 * np.eye(dim), (n, dim, dim))
    options = {"thorough": np.ones(n, dtype=bool)} | options
    return find_modes(batch, np.full((n, dim), HEAVY[0]), covariance, dim, **options)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_mode_far_from_what_is_known_is_found_with_its_mass(dim):
    for modes in searched(two_modes, dim):
        first, second = modes
        assert_allclose(first.mean, HEAVY[0], atol=0.1)
        assert_allclose(second.mean, LIGHT[0], atol=0.05)
        assert_allclose(np.sqrt(np.diag(second.covariance)), LIGHT[1], rtol=0.5)
        assert_allclose(second.log_evidence - first.log_evidence, np.log(0.3 / 0.7), atol=0.7)


def test_one_mode_is_one_mode():
    assert [len(modes) for modes in searched(one_mode, 2)] == [1, 1, 1]


def test_where_no_scout_tells_of_a_second_mode_the_first_is_taken_as_it_is():
    assert searched(one_mode, 1, thorough=np.zeros(3, dtype=bool)) == [[], [], []]
    assert [len(modes) for modes in searched(two_modes, 2, thorough=np.zeros(3, dtype=bool))] == [2, 2, 2]


def test_a_mode_without_mass_is_none():
    assert [len(modes) for modes in searched(lambda z: two_modes(z, light=(-1.0, 0.05, 1e-9)), 2)] == [1, 1, 1]


def test_where_nothing_is_possible_nothing_is_found():
    assert searched(lambda z: np.full(z.shape[:-1], -np.inf), 2) == [[], [], []]
    assert searched(lambda z: np.full(z.shape[:-1], np.nan), 2) == [[], [], []]


@pytest.mark.parametrize("dim", [1, 2])
def test_targets_of_which_one_point_has_all_weight_are_no_error(dim):
    """Steeper than floats can follow, as at prior draws of a series that explodes."""
    assert all(len(modes) <= 8 for modes in searched(lambda z: -1e60 * np.square(z - 0.3).sum(-1), dim))


# Fitting


@pytest.mark.parametrize("shares", [(1.0,), (0.3, 0.7), (0.2, 0.3, 0.5)])
def test_a_mixture_has_a_component_for_each_cluster(shares):
    rng = np.random.default_rng(0)
    at = 10 * np.arange(len(shares))
    theta = rng.normal(size=(2000, 2)) + rng.choice(at, 2000, p=shares)[:, None]
    fitted = StudentMixture.fit(theta, np.full(2000, 1 / 2000), rng)
    nearest = [int(np.argmin(np.abs(place.mean[0] - at))) for place in fitted.places]
    assert_allclose(np.bincount(nearest, fitted.shares, minlength=len(at)), shares, atol=0.05)
    assert len(shares) > 1 or len(fitted.shares) == 1


def test_the_density_of_a_mixture_is_that_of_its_draws():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(1000, 1)) * np.where(rng.random((1000, 1)) < 0.5, 1, 0.1) - 5
    fitted = StudentMixture.fit(theta, np.full(1000, 1e-3), rng)
    grid = np.linspace(-60, 60, 200_001)
    density = np.exp(fitted.log_density(grid[:, None]))
    assert_allclose(density.sum() * (grid[1] - grid[0]), 1, atol=1e-3)
    draws = fitted.draw(50_000, rng)[:, 0]
    assert_allclose(np.mean(draws < -5), density[grid < -5].sum() * (grid[1] - grid[0]), atol=0.01)


# Tempering


@pytest.mark.parametrize("dim", [1, 2])
def test_tempered_particles_have_the_masses_of_modes_and_the_evidence(dim):
    found = temper(two_modes, dim, populations=4, particles=1000, rng=np.random.default_rng(0))
    light = (found.z[..., 0] < 0).mean(axis=1)
    assert_allclose(light.mean(), 0.3, atol=0.05)
    assert_allclose(special.logsumexp(found.log_evidence) - np.log(4), -3.0, atol=0.2)
    assert_allclose(found.z[found.z[..., 0] < 0].std(0), LIGHT[1], rtol=0.15)
    assert_allclose(found.z[found.z[..., 0] > 0].std(0), HEAVY[1], rtol=0.15)


def test_tempering_ends_at_its_deadline_and_where_nothing_is_possible():
    options = {"populations": 2, "particles": 100, "rng": np.random.default_rng(0)}
    assert temper(two_modes, 2, deadline=time.monotonic() - 1, **options) is None
    assert temper(lambda z: np.full(len(z), -np.inf), 2, **options) is None


def test_particles_of_a_density_with_an_edge_stay_within():
    def half(z):
        return np.where(z[:, 0] > 0, stats.norm.logpdf(z).sum(-1), -np.inf)

    found = temper(half, 2, populations=4, particles=500, rng=np.random.default_rng(0))
    assert (found.z[..., 0] > 0).all()
    assert_allclose(found.log_evidence, np.log(0.5), atol=0.15)


# Agreement


def weighted(rng, missing=False):
    """Proposals of four chains for two modes of equal mass, one of which a chain may have missed."""
    theta = rng.choice([-5.0, 5.0], size=(4, 500, 1)) + rng.normal(size=(4, 500, 1))
    if missing:
        theta[0] = np.abs(theta[0])
    weights = rng.gamma(2, size=(4, 500))
    return theta, -0.5 * (np.abs(theta[..., 0]) - 5) ** 2, weights / weights.sum(axis=1, keepdims=True)


def test_a_chain_that_missed_a_mode_shows():
    assert weighted_r_hat(*weighted(np.random.default_rng(0), missing=True)) > 1.1


def test_chains_that_agree_are_not_doubted():
    alarms = [weighted_r_hat(*weighted(np.random.default_rng(seed))) > 1.01 for seed in range(300)]
    assert sum(alarms) <= 4  # by chance one in 1,000, of each of two quantities


def test_what_has_no_weight_changes_no_r_hat():
    theta, log_p, weights = weighted(np.random.default_rng(0), missing=True)
    theta, log_p, weights = theta.copy(), log_p.copy(), weights.copy()
    weights[:, 0] = 0
    expected = weighted_r_hat(theta, log_p, weights)
    theta[:, 0], log_p[:, 0] = 1e200, -1e300
    assert_allclose(weighted_r_hat(theta, log_p, weights), expected)


def test_weights_of_many_short_chains_are_normalized_together():
    assert Request(1000, 4).sets == 4 and Request(100, 4).sets == 4
    assert Request(1, 4000).sets == 16 and Request(4, 1000).sets == 10
    assert Request(10, 7).sets == 1 and Request(1000, 7).sets == 7


@pytest.mark.filterwarnings("ignore:Found chain dimension to be longer")
@pytest.mark.parametrize(("draws", "chains"), [(1, 4000), (4, 1000), (2000, 2)])
def test_draws_are_corrected_however_they_are_dealt(plain_posterior, draws, chains):
    exact = conjugate_moments(conjugate_data())["mu"]
    dts = plain_posterior.sample(conjugate_data(), batched=True, draws=draws, chains=chains, random_seed=1)
    assert dict(dts.posterior.sizes) == {"dataset": 5, "chain": chains, "draw": draws}
    mu = dts.posterior["mu"]
    assert_allclose((mu.mean(("chain", "draw")) - exact[0]) / exact[1], 0, atol=0.08)
    assert_allclose(mu.std(("chain", "draw")) / exact[1], 1, atol=0.05)
    assert (dts.sample_stats["num_proposals"] >= 250).all()


def test_particles_that_never_enter_the_neck_of_a_funnel_drift():
    def funnel(z):
        v, x = 3 * z[:, 0], 3 * z[:, 1:]
        wide = stats.norm.logpdf(v, 0, 3) + stats.norm.logpdf(x, 0, np.exp(v / 2)[:, None]).sum(axis=1)
        return wide + stats.t.logpdf(0, 3, loc=x, scale=0.5).sum(axis=1)

    options = {"populations": 4, "particles": 500, "rng": np.random.default_rng(0)}
    assert temper(funnel, 7, **options).drift > THRESHOLDS.drift
    assert temper(lambda z: -5 * np.square(z - 0.5).sum(axis=1), 7, **options).drift < THRESHOLDS.drift


def test_particles_that_had_no_time_to_show_a_drift_are_none(monkeypatch):
    clock = itertools.count()
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("pymc_amortized.numerics.sampling.tempering.time", fake)

    def run(deadline):
        options = {"populations": 4, "particles": 100, "rng": np.random.default_rng(0), "deadline": deadline}
        return temper(lambda z: -5 * np.square(z).sum(axis=1), 2, **options)

    assert run(np.inf) is not None
    last = next(clock) - 1
    clock = itertools.count()
    assert run(last - 1) is None and next(clock) == last + 1  # all moves were made but for what they tell


# The way of a posterior with two modes


@pytest.fixture(scope="module")
def clustered() -> pma.AmortizedPosterior:
    """Return the posterior of a location of which some rows lie elsewhere: two clusters of rows make two modes."""
    with pm.Model() as model:
        theta = pm.Normal("theta", 0, 10)
        near, far = pm.Normal.dist(theta, 1), pm.Normal.dist(theta, 20)
        pm.Mixture("y", [0.6, 0.4], [near, far], observed=np.zeros(12))
    training = pma.Training(num_steps=60)
    return pma.fit_posterior(model, random_seed=1, training=training, cores=1, progressbar=False)


def two_clusters():
    """Rows in two clusters; the log evidence, and the mass of the first mode, on a grid."""
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(size=6), 6 + rng.normal(size=6)])
    grid = np.linspace(-40, 40, 80_001)
    near, far = (stats.norm.logpdf(y[:, None], grid, sd) for sd in (1, 20))
    log_p = np.logaddexp(np.log(0.6) + near, np.log(0.4) + far).sum(0) + stats.norm.logpdf(grid, 0, 10)
    p = np.exp(log_p - special.logsumexp(log_p))
    return y, special.logsumexp(log_p) + np.log(grid[1] - grid[0]), p[grid < 3].sum()


@pytest.mark.parametrize("correction", ["auto", "psis"])
def test_both_modes_come_with_their_mass(clustered, correction):
    y, _, mass = two_clusters()
    dt = clustered.sample({"y": y}, correction=correction, random_seed=1, progressbar=False)
    assert dt.sample_stats["stage"] == "psis"
    assert_allclose((dt.posterior["theta"] < 3).mean(), mass, atol=0.03)


def test_evidence_counts_both_modes(clustered):
    y, log_evidence, _ = two_clusters()
    found = clustered.log_marginal_likelihood({"y": y}, random_seed=1)
    assert_allclose(found.log_marginal_likelihood, log_evidence, atol=4 * float(found.mcse) + 0.01)


def test_nuts_in_one_mode_is_marked_with_the_mass_of_the_other(clustered, caplog):
    y, _, _ = two_clusters()
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        dt = clustered.sample({"y": y}, correction="nuts", random_seed=1, progressbar=False)
    assert dt.sample_stats["stage"] == "failed"
    assert "of the mass lie more than" in caplog.text or "did not converge" in caplog.text
    assert dt.sample_stats["energy"].dims == ("chain", "draw") and dt.sample_stats["tree_depth"].min() >= 0


def test_tempered_particles_settle_what_no_search_finds(clustered, monkeypatch):
    from pymc_amortized.correction.search import ModeSearch

    monkeypatch.setattr(ModeSearch, "__call__", lambda self, indices, sets: [None] * len(sets))
    y, _, mass = two_clusters()
    dts = clustered.sample({"y": np.stack([y] * 5)}, batched=True, random_seed=1, progressbar=False)
    settled = dts.sample_stats["stage"].isin(["psis", "smc"]).to_numpy()
    assert settled.any()
    assert_allclose((dts.posterior["theta"] < 3).mean(("chain", "draw"))[settled], mass, atol=0.07)


# Time


def test_a_budget_counts_what_runs_and_not_what_is_compiled():
    budget = Budget(10.0)
    with budget.running():
        time.sleep(0.02)
        with budget.paused():
            time.sleep(0.05)
    assert 9.95 < budget.left < 9.985
    assert Budget().left == np.inf


def test_what_time_does_not_reach_is_marked(clustered, monkeypatch, caplog):
    from pymc_amortized.correction.search import ModeSearch

    monkeypatch.setattr(ModeSearch, "__call__", lambda self, indices, sets: [None] * len(sets))
    y, _, _ = two_clusters()
    far = np.stack([y + 100] * 3)  # where the network has nothing
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        dts = clustered.sample({"y": far}, batched=True, random_seed=1, progressbar=False, max_time=1e-6)
    assert (dts.sample_stats["stage"] == "not reached").all()
    assert "max_time=1e-06 was reached" in caplog.text


def test_a_mixture_of_fewer_points_than_components():
    draws = np.repeat(np.eye(2), 200, axis=0)
    for theta in (np.zeros((400, 2)), draws):
        mixture = StudentMixture.fit(theta, np.full(400, 1 / 400), np.random.default_rng(0), 12)
        assert np.isfinite(mixture.draw(10, np.random.default_rng(1))).all()


def test_a_row_far_from_the_others_has_a_mode_that_no_scout_meets():
    """A tenth as wide as the prior in five dimensions: only the row itself tells where."""
    with pm.Model() as model:
        theta = pm.Normal("theta", 0, 10, shape=5)
        parts = [pm.MvNormal.dist(theta, scale * np.eye(5)) for scale in (1, 400)]
        pm.Mixture("y", [0.4, 0.6], parts, observed=np.zeros((6, 5)))
    training = pma.Training(num_steps=1)
    posterior = pma.fit_posterior(model, training=training, random_seed=1, progressbar=False)
    rng = np.random.default_rng(1)
    y = np.stack([rng.normal([0, -10, -10, 20, 20], 20, size=(6, 5)) for _ in range(6)])
    draws = posterior.sample({"y": y}, batched=True, draws=500, random_seed=2).posterior["theta"].to_numpy()
    for rows, found in zip(y, draws.reshape(6, -1, 5), strict=True):
        assert_allclose([near_row(found, row) for row in rows], shares_of_rows(rows), atol=0.08)


def near_row(theta, row):
    """Share of draws that lie within what one row alone says."""
    return (np.square(theta - row).sum(axis=1) < 25).mean()


def shares_of_rows(rows):
    """Exact: the sum over all ways in which rows are near or far, given which the location is normal."""
    ways = np.array(np.meshgrid(*[[1.0, 400.0]] * len(rows))).reshape(len(rows), -1).T
    precision = 0.01 + (1 / ways).sum(axis=1)
    mean = (1 / ways) @ rows / precision[:, None]
    squares = ((1 / ways) @ rows**2).sum(axis=1) - precision * np.square(mean).sum(axis=1)
    log_p = np.where(ways == 1, np.log(0.4), np.log(0.6)).sum(axis=1)
    log_p -= 0.5 * (squares + 5 * (np.log(ways).sum(axis=1) + np.log(precision)))
    weights = special.softmax(log_p)
    away = np.square(mean[:, None] - rows).sum(axis=2)
    return (weights[:, None] * stats.ncx2.cdf(25 * precision[:, None], 5, away * precision[:, None])).sum(axis=0)


def test_rows_that_differ_are_those_that_are_there():
    rows = Axis("obs", 6, "exchangeable", (("y", 0),), "", independent=True)
    y = np.array([[0.0, 0.1, 50.0, 3.0, 99.0], [0.0, 0.1, 0.2, 7.0, 9.0]])  # the first is 4 rows long, and padded
    gaps = {"y": np.array([[False, False, True, False, False], [False] * 5])}
    datasets = DataSets({"y": y}, np.arange(2), True, {"obs": np.array([4, 5])}, gaps)
    assert sorted(_differing(datasets, 0, rows, 8)) == [0, 1, 3]
    assert sorted(_differing(datasets, 1, rows, 2)) == [2, 4]
    same = DataSets({"y": np.ones((1, 6))}, np.arange(1), True)
    assert len(_differing(same, 0, rows, 8)) == 1
    alone = _repeated(datasets, np.array([1, 3]), rows)
    assert alone.values["y"].tolist() == [[0.1] * 5, [7.0] * 5] and not alone.missing["y"].any()


def test_a_mixture_of_rounds_weighs_each_draw_by_all_that_could_have_made_it():
    rng = np.random.default_rng(0)
    proposals, parts = Proposals(2), []

    def log_p(theta):
        return stats.multivariate_normal.logpdf(theta, [1.0, 0.0], 0.3)

    def add(theta):
        parts.append(theta.reshape(2, -1, 2))
        proposals.add(theta, stats.norm.logpdf(theta).sum(axis=1), log_p(theta))

    add(rng.normal(size=(400, 2)))
    components = [proposals.fitted(rng)]
    proposals.planned = components[0]
    add(proposals.adapted(300, rng))
    add(rng.normal(size=(200, 2)))
    components.append(proposals.fitted(rng))
    proposals.planned = components[1]
    add(proposals.adapted(100, rng))
    for chain, theta in enumerate(np.concatenate(parts, axis=1)):
        densities = [300 * np.exp(stats.norm.logpdf(theta).sum(axis=1))]
        densities += [n * np.exp(c[chain].log_density(theta)) for n, c in zip((300, 100), components, strict=True)]
        assert_allclose(proposals.log_weights[chain], log_p(theta) - np.log(sum(densities) / 700), atol=1e-8)


@pytest.mark.parametrize(("sd", "dim", "share"), [(0.97, 13, 1.0), (0.5, 13, 0.0), (0.8, 36, 1.0)])
def test_rounds_come_from_the_network_where_it_is_better_than_any_t(sd, dim, share):
    """In 13 dimensions a t is worth a third of its draws; of a network that is little too wide, more."""
    rng = np.random.default_rng(0)
    proposals, theta = Proposals(4), rng.normal(size=(8000, dim))
    proposals.add(theta, stats.norm.logpdf(theta).sum(axis=1), stats.norm.logpdf(theta, scale=sd).sum(axis=1))
    assert proposals.plan(rng) == share
    assert (proposals.planned is None) == (share == 1)


def test_a_funnel_is_left_to_the_network_and_given_up_where_that_is_hopeless():
    """No t has the neck, and weights do not tell."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(4000, 2))
    log_q = stats.norm.logpdf(theta).sum(axis=1)
    for scale, hopeless in ((0.8, False), (0.02, True)):
        proposals = Proposals(4, funnel=True)
        proposals.add(theta, log_q, stats.norm.logpdf(theta, scale=scale).sum(axis=1))
        assert proposals.plan(rng) == 1 and proposals.planned is None
        assert proposals.hopeless(64_000) == hopeless
