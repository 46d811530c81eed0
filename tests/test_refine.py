"""Refining a posterior at one data set: the region, its simulations, and what comes of them."""

import logging

import numpy as np
import pymc as pm
import pytest
import torch
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.approximators.posterior.region import Region, ensemble
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.density.log_density import LogPrior
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.alike import SimulatorGiven

INTERPRETED = {"mode": "FAST_COMPILE"}
SMALL = {"summary": pma.Flat(width=32, depth=1), "density": pma.Spline(layers=2, hidden=32)}
ROWS, SPREAD, NOISE = 40, 100.0, 1.5

pytestmark = [
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def narrow(*, density: bool = True) -> pm.Model:
    """Build a model of which the posterior is a thousand times as narrow as the prior."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, SPREAD)
        noise = pm.LogNormal("noise", 0.0, NOISE)
        if density:
            pm.Normal("y", mu, noise, observed=np.zeros(ROWS))
        else:
            pm.CustomDist("y", mu, noise, random=_draw, observed=np.zeros(ROWS))
    return model


def _draw(mu, noise, rng=None, size=None):
    return rng.normal(mu, noise, size=size)


def exact_moments(y: np.ndarray) -> dict[str, tuple[float, float]]:
    """Posterior means and sds of the narrow model: exact in mu, on a grid of log noise."""
    log_noise = np.linspace(-2, 1, 400)
    noise = np.exp(log_noise)
    precision = 1 / SPREAD**2 + len(y) / noise**2
    mean = y.sum() / noise**2 / precision
    covariance = noise[:, None, None] ** 2 * np.eye(len(y)) + SPREAD**2
    log_weights = stats.norm(0, NOISE).logpdf(log_noise)
    log_weights += [stats.multivariate_normal(np.zeros(len(y)), c).logpdf(y) for c in covariance]
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()

    def moments(values: np.ndarray, variance: np.ndarray | float) -> tuple[float, float]:
        centre = weights @ values
        return centre, np.sqrt(weights @ (variance + (values - centre) ** 2))

    return {"mu": moments(mean, 1 / precision), "noise": moments(noise, 0.0)}


def rough(model: pm.Model, **kwargs: object) -> pma.AmortizedPosterior:
    """Train too briefly for a narrow posterior."""
    training = pma.Training(num_steps=100, batch_size=128, evaluations=5, threads=1)
    options = {"training": training, "num_simulations": 2000, "cores": 1, "sketch": False, **SMALL}
    return pma.fit_posterior(model, random_seed=1, progressbar=False, **options | kwargs)


def refined(posterior: pma.AmortizedPosterior, data: object, **kwargs: object) -> pma.AmortizedPosterior:
    options = {"num_simulations": 2000, "max_time": 4.0, "rounds": 2, "random_seed": 1, "progressbar": False}
    return posterior.refine(data, **options | kwargs)


# The region


@pytest.mark.parametrize("dim", [1, 5])
def test_the_ensemble_fills_a_ball(dim):
    def target(theta):
        return np.where(np.square(theta).sum(axis=1) <= 36.0, 0.0, -np.inf)

    rng = np.random.default_rng(1)
    start = 0.5 * rng.normal(size=(1024, dim))  # far more narrow than the ball
    draws = ensemble(target, start, burn_in=30 + 4 * dim, keep=1, thin=5, rng=rng)
    radius = np.sqrt(np.square(draws).sum(axis=1)) / 6.0
    assert stats.kstest(radius**dim, "uniform").pvalue > 0.001
    assert stats.kstest(np.sign(draws[:, 0]) * radius**dim, "uniform", args=(-1, 2)).pvalue > 0.001


def test_the_ensemble_weighs_by_the_density():
    scale = np.array([1.0, 50.0])

    def target(theta):
        inside = theta[:, 0] > 0
        return np.where(inside, -0.5 * np.square(theta / scale).sum(axis=1), -np.inf)

    rng = np.random.default_rng(2)
    start = np.abs(rng.normal(size=(1024, 2)))
    draws = ensemble(target, start, burn_in=100, keep=1, thin=5, rng=rng)
    assert stats.kstest(draws[:, 0], "halfnorm").pvalue > 0.001
    assert stats.kstest(draws[:, 1] / 50.0, "norm").pvalue > 0.001


class Standard:
    """A posterior that is standard normal."""

    def sample(self, draws, generator):
        theta = torch.randn(draws, 1, 2, generator=generator, dtype=torch.float64).numpy()
        return theta, self.log_prob(theta)

    def log_prob(self, theta):
        return -0.5 * np.square(theta).sum(-1) - np.log(2 * np.pi)


def test_the_region_is_that_of_highest_density():
    generator = torch.Generator().manual_seed(1)
    region = Region.around(Standard(), None, generator)
    radius = np.sqrt(-2 * (region.threshold + np.log(2 * np.pi)))
    assert abs(stats.chi2.sf(radius**2, 2) - 1e-4) < 4 * np.sqrt(1e-4 / 20_000)
    far = np.array([[7.0, 0.0]])
    assert not region.holds(far).any()
    assert Region.around(Standard(), far, generator).holds(far).all()


def test_the_truncated_prior_is_the_prior_inside():
    generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(1)
    region = Region.around(Standard(), None, generator)
    prior = stats.multivariate_normal([2.0, 0.0], np.diag([4.0, 0.25]))
    draws = region.sample(1024, prior.logpdf, rng, generator)
    expected = prior.rvs(20_000, random_state=1)
    expected = expected[region.holds(expected)]
    for column in range(2):
        assert stats.ks_2samp(draws[:, column], expected[:, column]).pvalue > 0.001


# Its simulations


def sized_model() -> pm.Model:
    with pm.Model() as model:
        x = pm.Data("x", np.linspace(-1, 1, 20), dims="obs")
        slope = pm.Normal("slope", 0, 1)
        noise = pm.HalfNormal("noise", 1)
        pm.Normal("y", slope * x, noise, observed=np.zeros(20), dims="obs")
    return model


GAPPY = {"x": np.linspace(-1, 1, 8), "y": np.where(np.arange(8) == 3, np.nan, 1.0)}


def test_simulations_are_of_the_data_sets_kind_and_of_the_parameters_given():
    spec = take_snapshot(sized_model(), context=["x"], sizes=[Range("obs", 5, 20)], missing=["y"])
    datasets = read_datasets(spec, GAPPY)
    simulator = SimulatorGiven(spec, datasets, INTERPRETED)
    slope, noise = np.linspace(-2, 2, 400), np.linspace(0.1, 1.0, 400)
    made = simulator({"slope": slope, "noise": noise}, np.random.SeedSequence(1))
    assert np.all(made.lengths["obs"] == 8)
    assert np.all(made.missing["y"][:, :8] == (np.arange(8) == 3))
    np.testing.assert_allclose(made.unconstrained, np.stack([slope, np.log(noise)], axis=1))
    standardized = (made.data["y"][:, :8] - slope[:, None] * GAPPY["x"]) / noise[:, None]
    assert stats.kstest(standardized.ravel(), "norm").pvalue > 0.001
    np.testing.assert_array_equal(made.data["x"][:, :8], np.broadcast_to(GAPPY["x"], (400, 8)))


@pytest.mark.parametrize("density", [True, False])
def test_the_density_of_the_prior_needs_none_of_the_data(density):
    spec = take_snapshot(narrow(density=density))
    prior = LogPrior(spec, INTERPRETED)
    assert prior.obstacle is None
    theta = np.array([[0.0, 0.5], [50.0, -1.0]])
    expected = stats.norm(0, [SPREAD, NOISE]).logpdf(theta).sum(axis=1)
    np.testing.assert_allclose(prior(theta, {"y": np.zeros(ROWS)}), expected)


# Refining


Y = np.random.default_rng(3).normal(130.0, 0.5, size=ROWS)


@pytest.fixture(scope="module")
def rough_posterior() -> pma.AmortizedPosterior:
    return rough(narrow())


@pytest.fixture(scope="module")
def sharp(rough_posterior) -> pma.AmortizedPosterior:
    return refined(rough_posterior, {"y": Y})


def assert_close(posterior: pma.AmortizedPosterior, correction: str | None, mean: float, sd: float) -> None:
    """Compare draws with the exact moments: means in posterior sds, sds in shares."""
    draws = posterior.sample(correction=correction, random_seed=2).posterior
    for name, (exact_mean, exact_sd) in exact_moments(Y).items():
        assert abs(draws[name].mean() - exact_mean) < mean * exact_sd
        assert abs(draws[name].std() / exact_sd - 1) < sd


def test_a_hard_data_set_becomes_an_easy_one(rough_posterior, sharp):
    before, after = (
        p.sample({"y": Y}, correction=None, random_seed=2).sample_stats.importance_ess / 4000
        for p in (rough_posterior, sharp)
    )
    assert before < 0.5
    assert after > before + 0.2
    assert_close(sharp, None, 0.3, 0.25)
    assert_close(sharp, "auto", 0.1, 0.1)


def test_a_refined_posterior_is_no_longer_amortized(sharp, tmp_path):
    assert "not amortized" in repr(sharp)
    for data, batched in ((Y + 1, False), (np.stack([Y, Y]), True)):
        with pytest.raises(ValueError, match="no longer amortized"):
            sharp.sample({"y": data}, batched=batched)
    with pytest.raises(ValueError, match="no longer amortized"):
        sharp.logp({"mu": 0.0, "noise_log__": 0.0}, {"y": Y + 1})
    with pytest.raises(ValueError, match="one data set"):
        sharp.save(tmp_path / "sharp.pma")
    with pytest.raises(ValueError, match="refine"):
        sharp.continue_training(10)
    np.testing.assert_array_equal(sharp.sample(draws=5).observed_data["y"], Y)


def test_the_amortized_posterior_stays_as_it_was(rough_posterior, sharp):
    assert rough_posterior.local_to is None
    assert rough_posterior.network is not sharp.network
    rough_posterior.sample({"y": Y + 1}, draws=10, correction=None)


def test_a_model_without_density_is_refined_too():
    assert_close(refined(rough(narrow(density=False)), {"y": Y}), None, 0.5, 0.35)


def test_sizes_covariates_and_gaps_are_kept(caplog):
    posterior = rough(sized_model(), context={"obs": (5, 20), "x": "resample"}, missing={"y": 0.2})
    local = refined(posterior, GAPPY, rounds=1, max_time=1.0, num_simulations=200)
    dt = local.sample(GAPPY, draws=20)
    assert dt.posterior.sizes["draw"] == 20
    with pytest.raises(ValueError, match="no longer amortized"):
        local.sample({"x": GAPPY["x"], "y": np.ones(8)})
    with pytest.raises(ValueError, match="no longer amortized"):
        local.sample({name: value[:6] for name, value in GAPPY.items()})


def test_a_marginal_posterior_is_refined_by_rejection_or_not_at_all(caplog):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0)
        shift = pm.Normal("shift", 0.0, 1.0)
        pm.Normal("y", mu + shift, 1.0, observed=np.zeros(3))
    posterior = rough(model, parameters=["mu"])
    local = refined(posterior, {"y": np.ones(3)}, rounds=1, max_time=1.0, num_simulations=500)
    assert local.network is not posterior.network
    raw = local.sample(random_seed=1).posterior["mu"]
    assert abs(raw.mean() - 3 / 7) < 0.3  # mu | y: the mean of three values has variance 1/3 + 1 beside mu's
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        work = posterior.refine({"y": np.full(3, 60.0)}, rounds=1, max_time=1.0, progressbar=False)
    assert "Refining stops" in caplog.text
    assert work.network is posterior.network


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rounds": 0}, ValueError, "rounds"),
        ({"max_time": -1.0}, ValueError, "max_time"),
        ({"num_simulations": 3}, ValueError, "num_simulations"),
        ({"observed": {"z": 1}}, KeyError, "no data named"),
    ],
)
def test_arguments_are_checked(rough_posterior, arguments, error, message):
    with pytest.raises(error, match=message):
        rough_posterior.refine(**{"observed": {"y": Y}, **arguments})
