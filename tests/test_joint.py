"""Posterior and likelihood trained together: closed forms, the learned density in the place of an exact one, files."""

import logging
from dataclasses import replace

import numpy as np
import pymc as pm
import pytest
from closed_forms import MU, NOISE, ROWS, TAU
from numpy.testing import assert_allclose
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.approximators.joint.joint import learned_posterior

STEPS = pma.Training(num_steps=250, batch_size=128, evaluations=5, threads=1)
SHORT = {"training": STEPS, "progressbar": False, "random_seed": 1}
INTERPRETED = SHORT | {"num_simulations": 3000, "cores": 1, "compile_kwargs": {"mode": "FAST_COMPILE"}}
"""Compiling a simulator that calls a Python function takes longer than a few thousand simulations."""
pytestmark = [
    # PyMC's own, of every distribution with a function for its draws
    pytest.mark.filterwarnings("ignore:Numba will use object mode"),
    pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding"),
    pytest.mark.filterwarnings("ignore:Calling a RandomVariable without an explicit rng"),
    # of the interpreter, for small matrices
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
]


def draw_normal(mu, sigma, rng=None, size=None):
    return rng.normal(mu, sigma, size=size)


def mean_model(noise=NOISE, exact=False, fixed_rows=None):
    """A normal mean with known noise, as a simulator only or with its density."""
    y = np.random.default_rng(1).normal(2.0, NOISE, size=ROWS)
    with pm.Model(coords={"obs": np.arange(ROWS)}) as model:
        mu = pm.Normal("mu", MU, TAU)
        if exact:
            pm.Normal("y", mu, noise, observed=y, dims="obs")
        else:
            pm.CustomDist("y", mu, noise, random=draw_normal, observed=y, dims="obs")
    return model


def moments(y):
    """Exact posterior mean and sd given the values that are present."""
    y = y[~np.isnan(y)]
    precision = 1 / TAU**2 + len(y) / NOISE**2
    return (MU / TAU**2 + y.sum() / NOISE**2) / precision, precision**-0.5


def log_evidence(y):
    y = y[~np.isnan(y)]
    covariance = NOISE**2 * np.eye(len(y)) + TAU**2
    return stats.multivariate_normal(np.full(len(y), MU), covariance).logpdf(y)


def some_data(count=4, rows=ROWS, seed=2):
    rng = np.random.default_rng(seed)
    mu = rng.normal(MU, TAU, size=(count, 1))
    return rng.normal(mu, NOISE, size=(count, rows))


def interpreted(model, **kwargs):
    """Simulate and train in Python; densities are evaluated too often for that afterwards."""
    joint = pma.fit_joint(model, **(INTERPRETED | kwargs))
    return replace(joint, posterior=replace(joint.posterior, compile_kwargs=None))


@pytest.fixture(scope="module")
def joint():
    return interpreted(mean_model())


@pytest.fixture(scope="module")
def with_density():
    return interpreted(mean_model(exact=True))


@pytest.fixture(scope="module")
def of_any_size():
    return interpreted(mean_model(), context={"obs": (4, ROWS)}, missing={"y": 0.2})


class TestAgainstClosedForms:
    def test_both_learn_what_there_is_to_learn(self, joint):
        sd = (1 / TAU**2 + ROWS / NOISE**2) ** -0.5
        entropy = stats.norm.entropy(scale=sd / TAU)  # of standardized parameters
        assert joint.posterior.provenance.held_out_loss == pytest.approx(entropy, abs=0.1)
        assert joint.likelihood.provenance.held_out_loss == pytest.approx(stats.norm.entropy(scale=NOISE), abs=0.03)

    def test_draws_of_a_simulator_are_corrected_by_the_learned_likelihood(self, joint):
        data = some_data()
        dts = joint.posterior.sample({"y": data}, batched=True, random_seed=1)
        assert dts["posterior"].attrs["density"] == dts["sample_stats"].attrs["density"] == "learned"
        assert set(dts["sample_stats"]["stage"].values.tolist()) == {"psis"}
        for y, mu in zip(data, dts["posterior"]["mu"], strict=True):
            exact_mean, exact_sd = moments(y)
            assert float(mu.mean()) == pytest.approx(exact_mean, abs=0.25 * exact_sd)
            assert float(mu.std()) == pytest.approx(exact_sd, rel=0.15)

    def test_evidence_of_a_simulator(self, joint):
        data = some_data()
        found = joint.log_marginal_likelihood({"y": data}, batched=True, proposals=4000, random_seed=1)
        assert found.attrs["density"] == "learned"
        exact = np.array([log_evidence(y) for y in data])
        assert_allclose(found["log_marginal_likelihood"], exact, atol=0.05 * ROWS)
        assert (found["mcse"] < 0.05).all()

    def test_a_model_with_a_density_is_corrected_by_that(self, with_density):
        (y,) = some_data(1)
        dt = with_density.posterior.sample({"y": y}, random_seed=1)
        assert "density" not in dt["posterior"].attrs
        for density, tolerance in (("auto", 0.02), ("exact", 0.02), ("learned", 0.05 * ROWS)):
            found = with_density.log_marginal_likelihood({"y": y}, density=density, random_seed=1)
            assert float(found["log_marginal_likelihood"]) == pytest.approx(log_evidence(y), abs=tolerance)
            assert found.attrs["density"] == ("learned" if density == "learned" else "exact")
        assert with_density.likelihood.error < 0.05

    def test_any_size_with_gaps(self, of_any_size):
        (y,) = some_data(1, rows=7)
        y[[1, 4]] = np.nan
        dt = of_any_size.posterior.sample({"y": y}, random_seed=1)
        mean, sd = moments(y)
        assert float(dt["posterior"]["mu"].mean()) == pytest.approx(mean, abs=0.25 * sd)
        assert float(dt["posterior"]["mu"].std()) == pytest.approx(sd, rel=0.15)
        found = of_any_size.log_marginal_likelihood({"y": y}, random_seed=1)
        assert float(found["log_marginal_likelihood"]) == pytest.approx(log_evidence(y), abs=0.05 * 7)


class TestWhatFollows:
    def test_predictions_and_log_likelihoods(self, joint):
        (y,) = some_data(1)
        dt = joint.posterior.sample({"y": y}, draws=100, random_seed=1)
        predicted = joint.posterior.sample_posterior_predictive(dt, random_seed=1)["posterior_predictive"]["y"]
        mean, sd = moments(y)
        assert float(predicted.mean()) == pytest.approx(mean, abs=0.3)
        assert float(predicted.std()) == pytest.approx(np.hypot(NOISE, sd), rel=0.05)
        log_likelihood = joint.posterior.compute_log_likelihood(dt)["log_likelihood"]["y"]
        exact = stats.norm(dt["posterior"]["mu"].values[..., None], NOISE).logpdf(y)
        assert np.abs(log_likelihood.values - exact).mean() < 0.05

    @pytest.mark.slow
    def test_nuts_on_the_learned_likelihood(self, joint):
        (y,) = some_data(1)
        dt = joint.posterior.sample({"y": y}, draws=200, correction="nuts", progressbar=False, random_seed=1)
        assert dt["sample_stats"]["stage"] == "nuts"
        mean, sd = moments(y)
        assert float(dt["posterior"]["mu"].mean()) == pytest.approx(mean, abs=0.3 * sd)

    def test_training_goes_on(self, joint):
        further = joint.posterior.continue_training(20, progressbar=False)
        assert further.learned is joint.posterior.learned
        assert further.history.step[-1] == STEPS.num_steps + 20

    def test_what_is_seen_of_a_likelihood_of_another_model(self, joint, caplog):
        other = interpreted(mean_model(noise=NOISE / 2), num_simulations=1000)
        wrong = learned_posterior(joint.posterior, other.likelihood)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="pymc_amortized"):
            pma.check_calibration(wrong, num_datasets=100, draws=100, correction="psis", random_seed=1)
        assert "mu" in caplog.text


class TestFiles:
    def test_a_saved_joint_is_the_same(self, joint, tmp_path):
        joint.save(tmp_path / "joint.pma")
        loaded = pma.load(tmp_path / "joint.pma", model=mean_model(), compile_kwargs=INTERPRETED["compile_kwargs"])
        assert isinstance(loaded, pma.AmortizedJoint)
        (y,) = some_data(1)
        assert loaded.posterior.learned is not None
        point = {"mu": np.array([0.5])}
        assert_allclose(*(j.posterior.logp(point, {"y": y}) for j in (joint, loaded)))
        assert_allclose(loaded.likelihood.logp(y, {"mu": 1.0}), joint.likelihood.logp(y, {"mu": 1.0}))
        with pytest.raises(ValueError, match="not the one in the file"):
            pma.load(tmp_path / "joint.pma", model=mean_model(noise=1.0))

    def test_a_posterior_saved_alone_says_what_it_lacks(self, joint, tmp_path, caplog):
        with caplog.at_level(logging.WARNING, logger="pymc_amortized"):
            joint.posterior.save(tmp_path / "posterior.pma")
        assert "AmortizedJoint.save" in caplog.text
        assert pma.load(tmp_path / "posterior.pma", model=mean_model()).learned is None


class TestErrors:
    def test_of_arguments(self, joint):
        with pytest.raises(KeyError, match="variable"):
            pma.fit_joint(mean_model(), variable="z", **SHORT)
        with pytest.raises(ValueError, match="density must be"):
            joint.log_marginal_likelihood(density="best")
        with pytest.raises(ValueError, match="no log density"):
            joint.log_marginal_likelihood(density="exact")
        with pm.Model() as two:
            mu = pm.Normal("mu")
            pm.Normal("y", mu, observed=np.zeros(5))
            pm.Normal("z", mu, observed=np.zeros(5))
        with pytest.raises(ValueError, match="say whose likelihood"):
            pma.fit_joint(two, **SHORT)

    def test_of_what_is_computed_from_the_data(self):
        with pm.Model() as model:
            mu = pm.Normal("mu")
            y = pm.CustomDist("y", mu, 1.0, random=draw_normal, shape=5)
            pm.Normal("z", y.sum(), 1.0)
        with pytest.raises(ValueError, match="'z' is computed from 'y'"):
            pma.fit_joint(model, observed=["y", "z"], **SHORT)
