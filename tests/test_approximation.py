"""Parameters that no network learns: drawn from their exact distribution, given the others."""

import numpy as np
import pymc as pm
import pytest
import torch
import zuko
from closed_forms import Tolerance, assert_moments, conjugate_data, conjugate_moments
from conftest import briefly
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.approximators.posterior.choosing import _exactly
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.numerics.sampling.importance import smooth

GROUPS = 3
SIZES = (6, 14)


def hierarchy() -> pm.Model:
    """Groups whose means are normal given their spread and the noise: mu, effect | tau, noise."""
    with pm.Model(coords={"obs": range(9)}) as model:
        group = pm.Data("group", np.arange(9) % GROUPS, dims="obs")
        mu, tau = pm.Normal("mu", 1, 2), pm.HalfNormal("tau", 1)
        effect = pm.Normal("effect", mu, tau, shape=GROUPS)
        pm.Normal("y", effect[group], pm.HalfNormal("noise", 1), observed=np.zeros(9), dims="obs")
    return model


def sources():
    return {
        "context": {"obs": SIZES, "group": lambda rng, obs: rng.integers(GROUPS, size=obs)},
        "missing": {"y": 0.2},
    }


@pytest.fixture(scope="module")
def posterior() -> pma.AmortizedPosterior:
    return briefly(hierarchy(), num_steps=150, **sources())


@pytest.fixture(scope="module")
def datasets(posterior):
    return of_simulations(posterior.simulator(20, 5))


def given_spreads(posterior, datasets, i, log_tau, log_noise):
    """Closed form: mean and covariance of mu and the effects, given the spread and the noise."""
    one = datasets.one(posterior.spec, i)
    there = ~one["missing y"]
    design = np.eye(GROUPS)[one["group"][there]]
    tau, noise = np.exp([log_tau, log_noise])
    precision = np.zeros((1 + GROUPS, 1 + GROUPS))
    precision[0, 0] = 1 / 4 + GROUPS / tau**2
    precision[0, 1:] = precision[1:, 0] = -1 / tau**2
    precision[1:, 1:] = np.eye(GROUPS) / tau**2 + design.T @ design / noise**2
    slope = np.concatenate([[1 / 4], design.T @ one["y"][there] / noise**2])
    covariance = np.linalg.inv(precision)
    return covariance @ slope, covariance


def places(posterior):
    """Where mu and the effects stand among the unconstrained parameters, then the spread and the noise."""
    names = [p.name for p in posterior.spec.parameters for _ in range(p.size)]
    first = [names.index("mu"), *(k for k, name in enumerate(names) if name == "effect")]
    return first, [names.index("tau"), names.index("noise")]


def drawn(posterior, datasets, draws=50):
    return posterior.approximation(datasets).sample(draws, torch.Generator().manual_seed(1))


def test_the_network_learns_spreads_alone(posterior):
    normal, others = places(posterior)
    assert posterior.network.places == sorted(others)
    assert_array_equal(np.sort(posterior.sketch.drawn.places), np.sort(normal))
    assert posterior.network.dim == 2


def test_log_densities_are_those_of_the_conditional_normal_distribution(posterior, datasets):
    theta, log_q = drawn(posterior, datasets)
    normal, others = places(posterior)
    network = posterior.network.log_prob(theta, **posterior.inputs(datasets)).detach().numpy()
    for i in range(len(datasets)):
        for s in range(3):
            mean, covariance = given_spreads(posterior, datasets, i, *theta[s, i, others])
            expected = stats.multivariate_normal(mean, covariance).logpdf(theta[s, i, normal])
            assert_allclose(log_q[s, i] - network[s, i], expected, atol=1e-4)
    assert_allclose(posterior.approximation(datasets).log_prob(theta), log_q, atol=1e-3)


def test_draws_are_those_of_the_conditional_normal_distribution(posterior, datasets):
    draws = 500
    theta, _ = drawn(posterior, datasets, draws)
    normal, others = places(posterior)
    z = np.empty((draws, len(datasets), len(normal)))
    for s, i in np.ndindex(z.shape[:2]):
        mean, covariance = given_spreads(posterior, datasets, i, *theta[s, i, others])
        z[s, i] = np.linalg.solve(np.linalg.cholesky(covariance), theta[s, i, normal] - mean)
    z = z.reshape(-1, len(normal))
    assert_allclose(z.mean(0), 0, atol=4 / np.sqrt(len(z)))
    assert_allclose(np.cov(z.T), np.eye(len(normal)), atol=6 / np.sqrt(len(z)))


def test_weights_know_nothing_of_what_is_drawn_exactly(posterior, datasets):
    """Whatever mu and the effects are, the weight is that of the spread and the noise."""
    theta, _ = drawn(posterior, datasets, 1)
    other, _ = drawn(posterior, datasets, 2)
    normal, _ = places(posterior)
    moved = theta.copy()
    moved[..., normal] = other[1:][..., normal]
    approximation = posterior.approximation(datasets)
    log_p = [posterior.compiled.log_joint(points[0], datasets) for points in (theta, moved)]
    weights = [p - approximation.log_prob(points)[0] for p, points in zip(log_p, (theta, moved), strict=True)]
    assert_allclose(*weights, atol=1e-3)
    assert np.abs(log_p[0] - log_p[1]).max() > 1


def test_funnels_are_no_trouble(posterior):
    """Three groups of two rows say next to nothing of the spread: centered, neither weights nor NUTS settle that."""
    data = {"y": [0.1, -0.2, 0.05, 0.15, -0.1, 0.0], "group": [0, 0, 1, 1, 2, 2]}
    stats_ = posterior.sample(data, random_seed=1).sample_stats
    assert str(stats_.stage.values) == "psis"
    assert stats_.proposal_log_weight.sizes["proposal"] == 1000  # the first ones were enough


def test_calibration_counts_all_parameters(posterior):
    tree = pma.check_calibration(posterior, num_datasets=100, random_seed=1, progressbar=False)
    assert {"mu", "effect", "tau", "noise"} <= set(tree["prior_sbc"].data_vars)


def test_logp_is_that_of_all_parameters(posterior, datasets):
    theta, log_q = drawn(posterior, datasets.take(slice(1)), 4)
    one = datasets.take(slice(1))
    values = one.one(posterior.spec, 0)
    data = {"y": np.where(values["missing y"], np.nan, values["y"]), "group": values["group"]}
    point, at = {}, 0
    for p in posterior.spec.parameters:
        point[p.value_name] = theta[:, 0, at : at + p.size].reshape(4, *p.unconstrained_shape)
        at += p.size
    assert_allclose(posterior.logp(point, data), log_q[:, 0], atol=1e-3)


def test_saved_and_loaded_it_draws_the_same(posterior, datasets, tmp_path):
    posterior.save(tmp_path / "posterior.pma")
    loaded = pma.load(tmp_path / "posterior.pma", model=hierarchy())
    assert loaded.network.places == posterior.network.places
    assert_allclose(drawn(loaded, datasets)[0], drawn(posterior, datasets)[0])


def test_refined_it_still_draws_them_exactly(posterior, datasets):
    one = datasets.take(slice(1))
    values = one.one(posterior.spec, 0)
    data = {"y": np.where(values["missing y"], np.nan, values["y"]), "group": values["group"]}
    refined = posterior.refine(data, rounds=1, num_simulations=2000, max_time=5, random_seed=1, progressbar=False)
    tree = refined.sample(random_seed=1)
    assert refined.network.places == posterior.network.places
    assert str(tree.sample_stats.stage.values) == "psis"


def test_where_all_is_normal_the_network_learns_one_parameter():
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("b", 0, 1, shape=3), 0.5, observed=np.zeros(3))
    posterior = briefly(model, num_steps=30)
    assert posterior.network.places == [2]
    stats_ = posterior.sample({"y": [0.3, -1.0, 2.0]}, random_seed=1)
    assert_allclose(stats_.posterior.b.mean(("chain", "draw")), 0.8 * np.array([0.3, -1.0, 2.0]), atol=0.05)
    assert_allclose(stats_.posterior.b.std(("chain", "draw")), np.sqrt(0.2), rtol=0.06)


def free_form(dim, features):
    """A density of the user's own."""
    return pma.ZukoDensity(zuko.flows.MAF(dim, features, transforms=1))


def test_a_density_of_the_users_own_is_one_of_all_parameters():
    posterior = briefly(hierarchy(), num_steps=5, density=free_form, num_simulations=500, **sources())
    assert posterior.sketch.number_drawn == 0
    assert posterior.network.places is None


def test_what_would_take_too_many_evaluations_is_learned(monkeypatch):
    monkeypatch.setattr("pymc_amortized.inputs.sketch.MOST_EVALUATIONS", 5)
    posterior = briefly(hierarchy(), num_steps=5, num_simulations=500, **sources())
    assert len(posterior.sketch.quadratic.places) == 4
    assert posterior.network.places is None


def test_many_coefficients_are_told_by_gradients():
    with pm.Model() as model:
        b, x = pm.Normal("b", 0, 1, shape=16), np.random.default_rng(0).normal(size=(30, 16))
        pm.Normal("y", x @ b, pm.HalfNormal("noise", 1), observed=np.zeros(30))
    posterior = briefly(model, num_steps=5, num_simulations=500)
    assert posterior.sketch.quadratic.by_gradients
    assert len(posterior.sketch.quadratic.steps) == 1 + 16 + 1
    datasets = of_simulations(posterior.simulator(3, 1))
    theta, log_q = drawn(posterior, datasets, 2)
    network = posterior.network.log_prob(theta, **posterior.inputs(datasets)).detach().numpy()
    for s, i in np.ndindex(2, 3):
        y, noise = datasets.one(posterior.spec, i)["y"], np.exp(theta[s, i, 16])
        covariance = np.linalg.inv(np.eye(16) + x.T @ x / noise**2)
        expected = stats.multivariate_normal(covariance @ x.T @ y / noise**2, covariance).logpdf(theta[s, i, :16])
        assert_allclose(log_q[s, i] - network[s, i], expected, atol=1e-3)


def test_the_log_says_what_is_drawn_exactly(posterior):
    said = _exactly(posterior.spec, posterior.sketch)
    assert "4 of 6 parameters (mu, effect) are drawn exactly, and the network learns the other 2" in said


def test_a_part_of_what_is_weighted_comes_from_around_the_sketch(posterior, datasets):
    """Whatever the network says: weights cannot be larger than by the share that is not its own."""
    theta, log_q = drawn(posterior, datasets, 4000)
    defended = posterior.target(datasets).source(np.arange(len(datasets)), weighted=True, defended=True)
    mixed = defended.log_prob(theta, np.arange(len(datasets)))
    assert (mixed >= log_q + np.log(0.7) - 1e-6).all()
    every, log_mixed = defended.propose(np.arange(len(datasets)), 4000, torch.Generator().manual_seed(1))
    assert_allclose(defended.log_prob(every, np.arange(len(datasets))), log_mixed, atol=1e-3)
    log_q = posterior.approximation(datasets).log_prob(every)
    # mean of the ratio of two densities under that below the line, and the share of draws where the other one is larger
    ratio = np.exp(log_q - log_mixed)
    assert_allclose(ratio.mean(0), 1, atol=5 * ratio.std(0).max() / np.sqrt(4000))
    assert (log_mixed > log_q).mean() > 0.15
    # nowhere in the prior is less proposed than by the scouts
    network = posterior.network
    z, log_det = network.standardizer.exact(torch.as_tensor(every[..., network.places]))
    prior = stats.norm.logpdf(z.numpy()).sum(-1) + log_det.numpy()
    exact = log_q - network.log_prob(every, **posterior.inputs(datasets)).detach().numpy()
    assert (log_mixed >= prior + exact + np.log(0.05) - 1e-3).all()
    assert (np.abs(z.numpy()).max(axis=(0, 1)) > 2.5).all()


def test_one_data_set_is_drawn_as_among_others(posterior, datasets):
    alone = read_datasets(posterior.spec, None)
    assert len(alone) == 1
    theta, log_q = drawn(posterior, datasets)
    some = posterior.approximation(datasets.take(slice(3, 5))).log_prob(theta[:, 3:5])
    assert_allclose(some, log_q[:, 3:5], atol=1e-3)


def test_what_the_sketch_found_makes_up_for_a_network_that_is_far_off(conjugate_posterior, monkeypatch):
    """Draws all over elsewhere: the quarter that is not the network's carries the weights."""
    network = conjugate_posterior.network
    right = {name: getattr(PosteriorNetwork, name) for name in ("sample_given", "log_prob_given")}
    far = 40 * float(network.standardizer.scale)

    def sample(self, draws, context, generator=None):
        theta, log_q = right["sample_given"](self, draws, context, generator)
        return theta + far, log_q

    monkeypatch.setattr(PosteriorNetwork, "sample_given", sample)
    monkeypatch.setattr(
        PosteriorNetwork,
        "log_prob_given",
        lambda self, theta, context: right["log_prob_given"](self, torch.as_tensor(theta) - far, context),
    )
    dt = conjugate_posterior.sample(conjugate_data(), batched=True, correction="psis", random_seed=1)
    assert np.all(dt.sample_stats.stage == "psis")
    assert np.all(dt.sample_stats.importance_ess > 0.15 * 4000)
    assert_moments(dt.posterior, conjugate_moments(conjugate_data()), Tolerance(0.1, 0.1))


@pytest.mark.slow
def test_a_branch_that_hardly_any_simulation_takes_is_seen_where_data_take_it():
    """Of the sign of b the data say nothing if z is 1: near either mode the density is quadratic, and weights agree."""
    with pm.Model() as model:
        b, s, z = pm.Normal("b", 0, 1), pm.HalfNormal("s", 0.5), pm.Bernoulli("z", 1e-5, observed=0)
        pm.Normal("y", pm.math.switch(z, pm.math.abs(b), b), s, observed=np.zeros(8))
    posterior = briefly(model, num_steps=150)
    assert posterior.network.places == [1]
    y = 1 + 0.3 * np.random.default_rng(0).normal(size=8)
    assert str(posterior.sample({"y": y, "z": 0}, random_seed=1).sample_stats.stage.values) == "psis"
    tree = posterior.sample({"y": y, "z": 1}, random_seed=1, max_nuts=0)
    share = float((tree.posterior.b < 0).mean())
    assert str(tree.sample_stats.stage.values) == "failed" or 0.4 < share < 0.6


def test_a_mode_that_few_proposals_hit_is_not_smoothed_away():
    """Three of a thousand weights hold a third of the mass, the others are all but equal: the tail looks harmless."""
    rng = np.random.default_rng(0)
    log_weights = 0.02 * rng.normal(size=(4, 250))
    log_weights[0, [7, 90, 200]] = np.log(np.exp(log_weights).sum() * 0.3 / 0.7 / 3)
    weights = smooth(log_weights, defended=True)
    assert not weights.harmless and not weights.reliable
    assert_allclose(weights.lost, 0.3, atol=0.03)
    tail = smooth(0.4 * rng.exponential(size=(4, 1000)))
    assert tail.reliable and abs(tail.lost) < 0.02
