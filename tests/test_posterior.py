"""Amortized posteriors against closed forms, NUTS and simulation-based calibration."""

import logging
import warnings
from collections.abc import Callable

import arviz as az
import numpy as np
import pymc as pm
import pytensor
import pytest
import xarray as xr
from closed_forms import (
    CLOSED_FORMS,
    CORRECTED,
    MU,
    NOISE,
    RAW,
    ROWS,
    TAU,
    Moments,
    Tolerance,
    assert_moments,
    conjugate_data,
    conjugate_log_likelihood,
    conjugate_moments,
    covariates,
    covariates_moments,
    rank_test,
    regression_log_likelihood,
)
from conftest import briefly, interpreted, nuts
from models import MODELS, kinds_of
from numpy.testing import assert_allclose, assert_array_equal
from test_escalation import planted

import pymc_amortized as pma

LOGGER = "pymc_amortized"

# Interpreted code says so when it cannot use BLAS, and when a draw overflows; compiled code does not.
pytestmark = [
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture
def posterior_of(request: pytest.FixtureRequest) -> Callable[[str], pma.AmortizedPosterior]:
    """Return a trained posterior of a closed form by the name of its model."""
    names = {"conjugate_normal": "conjugate"}
    return lambda name: request.getfixturevalue(f"{names.get(name, name)}_posterior")


# Closed forms


# The others differ in their model alone; covariates that vary are also those of a test of their sources, below.
CLOSED = [
    pytest.param(name, marks=[] if name in ("conjugate_normal", "regression") else [pytest.mark.slow])
    for name in CLOSED_FORMS
]


@pytest.mark.parametrize("name", CLOSED)
def test_corrected_moments_are_those_of_the_closed_form(posterior_of, name):
    case = CLOSED_FORMS[name]
    data = case.data()
    dt = posterior_of(name).sample(data, batched=True, random_seed=2)
    assert np.all(dt.sample_stats.importance_ess > 1000)
    assert_moments(dt.posterior.to_dataset(), case.moments(data), CORRECTED)


# A regression on covariates that vary takes longer to learn; a test of default settings holds it to the same.
@pytest.mark.parametrize("name", [case for case in CLOSED if case.values != ("covariates",)])
def test_raw_moments_are_near_those_of_the_closed_form(posterior_of, name):
    case = CLOSED_FORMS[name]
    data = case.data()
    dt = posterior_of(name).sample(data, batched=True, correction=None, random_seed=2)
    assert_moments(dt.posterior.to_dataset(), case.moments(data), RAW)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_default_settings_reach_the_closed_form(name):
    case = CLOSED_FORMS[name]
    data = case.data()
    options = {
        "proportion": {"observed": ["y"]},
        "covariates": {"context": {"x": pm.Normal.dist(0.0, 1.0)}},
    }
    posterior = pma.fit_posterior(case.build(), random_seed=1, progressbar=False, **options.get(name, {}))
    # where no training is needed, raw draws are those of a regression
    for correction, tolerance in (("psis", CORRECTED), (None, Tolerance(mean=0.3, sd=0.25))):
        dt = posterior.sample(data, batched=True, correction=correction, random_seed=2)
        assert_moments(dt.posterior.to_dataset(), case.moments(data), tolerance)


def test_one_data_set_is_the_batch_of_it(conjugate_posterior):
    data = {"y": conjugate_data()["y"][2]}
    dt = conjugate_posterior.sample(data, random_seed=2)
    assert dt.posterior["mu"].dims == ("chain", "draw")
    assert_moments(dt.posterior.to_dataset(), conjugate_moments({"y": data["y"][None]}), CORRECTED)


# NUTS


def assert_same_posterior(ours: xr.DataTree, reference: xr.DataTree, names: list[str], tolerance) -> None:
    """Compare means and sds, with the Monte Carlo error of both sides."""
    for name in names:
        a, b = ours.posterior[name], reference.posterior[name]
        sd = b.std(("chain", "draw"))
        sizes = [az.ess(v.to_dataset(name="v"), method="mean")["v"] for v in (a, b)]
        error = 4 * np.sqrt(1 / sizes[0] + 1 / sizes[1])
        off = np.abs(a.mean(("chain", "draw")) - b.mean(("chain", "draw"))) / sd
        assert np.all(off <= tolerance.mean + error), f"{name}: means are off by {off.to_numpy()} sds"
        ratio = a.std(("chain", "draw")) / sd
        errors = [az.mcse(v.to_dataset(name="v"), method="sd")["v"] for v in (a, b)]
        error = 4 * np.hypot(*errors) / sd  # tails of effects are heavy where their scale is
        assert np.all(np.abs(ratio - 1) <= tolerance.sd + error), f"{name}: sds are off by {ratio.to_numpy()}"


def with_log_tau(dt: xr.DataTree) -> xr.DataTree:
    posterior = dt.posterior.to_dataset()
    return xr.DataTree.from_dict({"posterior": posterior.assign(log_tau=np.log(posterior["tau"]))})


def test_eight_schools_agree_with_nuts(schools_posterior, schools_nuts):
    dt = schools_posterior.sample(random_seed=2)
    assert_same_posterior(dt, schools_nuts, ["mu", "tau", "offset", "theta"], CORRECTED)
    raw = schools_posterior.sample(correction=None, random_seed=2)
    assert_same_posterior(with_log_tau(raw), with_log_tau(schools_nuts), ["mu", "log_tau", "offset"], RAW)


@pytest.mark.slow
def test_logistic_regression_agrees_with_nuts(logistic_posterior, logistic_nuts):
    for correction, tolerance in (("psis", CORRECTED), (None, RAW)):
        dt = logistic_posterior.sample(correction=correction, random_seed=2)
        assert_same_posterior(dt, logistic_nuts, ["beta"], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reference", "names"),
    [
        ("eight_schools", "schools_nuts", ["mu", "tau", "offset", "theta"]),
        ("logistic_regression", "logistic_nuts", ["beta"]),
    ],
)
def test_default_settings_agree_with_nuts(request, name, reference, names):
    posterior = pma.fit_posterior(MODELS[name].build(), random_seed=1, progressbar=False)
    for correction, tolerance in (("psis", CORRECTED), (None, RAW)):
        dt = posterior.sample(correction=correction, random_seed=2)
        assert_same_posterior(dt, request.getfixturevalue(reference), names, tolerance)


def test_a_subset_of_parameters_has_the_marginal_of_the_joint_posterior(schools_posterior, schools_marginal, caplog):
    with caplog.at_level(logging.WARNING, LOGGER):
        marginal = schools_marginal.sample(random_seed=2)
    joint = schools_posterior.sample(random_seed=2)
    assert set(marginal.posterior.data_vars) == {"mu", "tau"}
    assert marginal.posterior.attrs["correction"] == "none"
    assert "pareto_k" not in marginal.sample_stats
    assert_same_posterior(with_log_tau(marginal), with_log_tau(joint), ["mu", "log_tau"], RAW)
    with pytest.raises(ValueError, match="psis.*marginal posterior without offset"):
        schools_marginal.sample(correction="psis")


# Simulation-based calibration

DATASETS, RANKED = 300, 99
SIGNIFICANT = 0.01
"""Probability that a family of tests rejects somewhere although all is well, shared out by Bonferroni."""
CAUGHT = 1e-6
"""A planted fault has to be more obvious than any accident."""


def calibration_draws(posterior: pma.AmortizedPosterior, data: dict, correction: str | None = "psis") -> xr.Dataset:
    """Draw 99 times from the posterior of each data set, thinned: dims (dataset, sample, ...)."""
    dt = posterior.sample(data, batched=True, draws=10 * RANKED, chains=1, correction=correction, random_seed=3)
    thinned = dt.posterior.to_dataset().isel(draw=slice(None, None, 10))
    return thinned.stack(sample=("chain", "draw"), create_index=False)


def ranks(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank of the truth (data sets,) among draws (data sets, draws)."""
    return (draws < truth[:, None]).sum(axis=1)


@pytest.fixture(scope="module")
def conjugate_truth() -> tuple[np.ndarray, np.ndarray]:
    """Return means drawn from the prior, and data drawn from them."""
    rng = np.random.default_rng(11)
    mu = rng.normal(MU, TAU, size=DATASETS)
    return mu, rng.normal(mu[:, None], NOISE, size=(DATASETS, ROWS))


def conjugate_p_values(draws: xr.Dataset, truth: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Test the ranks of the parameter and of the log likelihood (Modrak et al. 2023)."""
    mu, y = truth
    ours = draws["mu"].transpose("dataset", "sample").to_numpy()
    log_likelihood = conjugate_log_likelihood(ours, y)
    true_log_likelihood = conjugate_log_likelihood(mu[:, None], y)[:, 0]
    return {
        "mu": rank_test(ranks(ours, mu), RANKED),
        "log likelihood": rank_test(ranks(log_likelihood, true_log_likelihood), RANKED),
    }


def test_ranks_are_uniform(conjugate_posterior, conjugate_truth):
    draws = calibration_draws(conjugate_posterior, {"y": conjugate_truth[1]})
    p_values = conjugate_p_values(draws, conjugate_truth)
    assert min(p_values.values()) > SIGNIFICANT / len(p_values), p_values
    means = draws["mu"].mean("sample").to_numpy()
    exact = conjugate_moments({"y": conjugate_truth[1]})["mu"][0]
    assert np.corrcoef(means, exact)[0, 1] > 0.98


def test_ranks_of_a_regression_are_uniform(regression_posterior):
    simulated = pma.simulate(CLOSED_FORMS["regression"].build(), DATASETS, random_seed=4)
    prior, y = simulated.prior.isel(chain=0), simulated.prior_predictive["y"].to_numpy()[0]
    draws = calibration_draws(regression_posterior, {"y": y})
    truth = {
        "variance": (draws["variance"], prior["variance"]),
        "beta[age]": (draws["beta"].sel(feature="age"), prior["beta"].sel(feature="age")),
        "beta[dose]": (draws["beta"].sel(feature="dose"), prior["beta"].sel(feature="dose")),
    }
    p_values = {
        name: rank_test(ranks(ours.transpose("dataset", "sample").to_numpy(), true.to_numpy()), RANKED)
        for name, (ours, true) in truth.items()
    }
    true_draws = prior.to_dataset()[["beta", "variance"]].rename(draw="dataset").expand_dims("sample")
    true_log_likelihood = regression_log_likelihood(true_draws, y)[:, 0]
    p_values["log likelihood"] = rank_test(ranks(regression_log_likelihood(draws, y), true_log_likelihood), RANKED)
    assert min(p_values.values()) > SIGNIFICANT / len(p_values), p_values


@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_over_and_underconfidence_is_caught_and_corrected(plain_posterior, conjugate_truth, factor):
    wrong = planted(plain_posterior, factor, 0.0)
    raw = calibration_draws(wrong, {"y": conjugate_truth[1]}, correction=None)
    assert max(conjugate_p_values(raw, conjugate_truth).values()) < CAUGHT
    corrected = calibration_draws(wrong, {"y": conjugate_truth[1]})
    p_values = conjugate_p_values(corrected, conjugate_truth)
    assert min(p_values.values()) > SIGNIFICANT / len(p_values), p_values


def conjugate_simulations(n: int, *, shuffled: bool = False) -> xr.DataTree:
    """Simulate the conjugate model by hand; shuffled, the data say nothing about the parameter."""
    rng = np.random.default_rng(12)
    mu = rng.normal(MU, TAU, size=n)
    y = rng.normal(mu[:, None], NOISE, size=(n, ROWS))
    y = rng.permutation(y) if shuffled else y
    groups = {
        "prior": xr.Dataset({"mu": (("chain", "draw"), mu[None])}),
        "prior_predictive": xr.Dataset({"y": (("chain", "draw", "obs"), y[None])}),
    }
    return xr.DataTree.from_dict(groups)


@pytest.fixture(scope="module")
def ignorant_posterior() -> pma.AmortizedPosterior:
    """Return a posterior that ignores its data, because in training they had nothing to say."""
    simulations = conjugate_simulations(4000, shuffled=True)
    return briefly(CLOSED_FORMS["conjugate_normal"].build(), num_steps=200, simulations=simulations)


def test_a_posterior_that_ignores_its_data_is_caught(ignorant_posterior, conjugate_truth):
    draws = calibration_draws(ignorant_posterior, {"y": conjugate_truth[1]}, correction=None)
    p_values = conjugate_p_values(draws, conjugate_truth)
    assert p_values["mu"] > SIGNIFICANT  # its parameters are perfectly calibrated ...
    assert p_values["log likelihood"] < CAUGHT  # ... but not what they say about the data,
    recovery = np.corrcoef(draws["mu"].mean("sample").to_numpy(), conjugate_truth[0])[0, 1]
    assert abs(recovery) < 0.3  # and none is recovered


def test_correction_repairs_a_posterior_that_ignores_its_data(ignorant_posterior):
    """The prior is a poor proposal, but wide enough."""
    data = {"y": conjugate_data()["y"][1:4]}
    dt = ignorant_posterior.sample(data, batched=True, random_seed=2)
    assert np.all(dt.sample_stats.pareto_k < 0.7)
    assert_moments(dt.posterior.to_dataset(), conjugate_moments(data), CORRECTED)


# The density


def grid(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 40_001)


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [("conjugate_normal", "mu", 40), pytest.param("proportion", "p_logodds__", 30, marks=pytest.mark.slow)],
)
def test_logp_integrates_to_one(posterior_of, name, value, limits):
    data = {n: values[1] for n, values in CLOSED_FORMS[name].data().items()}
    points = grid(-limits, limits)
    log_density = posterior_of(name).logp({value: points}, data)
    assert log_density.shape == points.shape
    assert_allclose(np.trapezoid(np.exp(log_density), points), 1.0, atol=1e-3)


def unconstrained(dt: xr.DataTree) -> dict[str, np.ndarray]:
    """Value variables of the regression's draws, (chain, draw, *shape)."""
    return {
        "variance_log__": np.log(dt.posterior["variance"].to_numpy()),
        "beta": dt.posterior["beta"].to_numpy(),
    }


def test_logp_is_the_density_that_raw_draws_come_with(regression_posterior):
    dt = regression_posterior.sample(draws=250, correction=None, random_seed=2)
    log_q = regression_posterior.logp(unconstrained(dt))
    assert log_q.shape == (4, 250)
    assert_allclose(log_q, dt.sample_stats["log_q"], atol=2e-3)


def test_weights_are_the_models_density_over_the_networks(regression_posterior):
    dt = regression_posterior.sample(draws=250, correction=None, random_seed=2)
    point = unconstrained(dt)
    stats = dt.sample_stats
    compiled = CLOSED_FORMS["regression"].build().compile_logp(mode="FAST_COMPILE")
    log_p = np.array([[compiled({n: v[c, d] for n, v in point.items()}) for d in range(0, 250, 10)] for c in range(4)])
    assert_allclose(stats["lp"][:, ::10], log_p, rtol=1e-8)
    # raw draws are the first proposals
    assert_allclose(stats["proposal_log_weight"][:, :250], stats["lp"] - stats["log_q"], rtol=1e-10)
    log_q = regression_posterior.logp(point)[:, ::10]
    assert_allclose(stats["proposal_log_weight"][:, :250:10], log_p - log_q, atol=2e-3)


# Potentials, orderings and truncated priors


def test_a_potential_is_brought_in_by_the_weights(caplog):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0)
        pm.Potential("belief", pm.logp(pm.Normal.dist(1.0, 1.0), mu))
        pm.Normal("y", mu, 1.0, observed=np.array([0.5, 1.5, 0.0, 1.0]))
    with caplog.at_level(logging.WARNING, LOGGER):
        posterior = interpreted(model, num_steps=200)
    assert "potentials ['belief'] are not simulated" in caplog.text
    dt = posterior.sample(random_seed=2)
    # precision: prior 1, potential 1, four observations
    assert_moments(dt.posterior.to_dataset(), {"mu": (np.array([4.0 / 6]), np.array([6**-0.5]))}, CORRECTED)
    with pytest.raises(ValueError, match=r"refused: the model's potentials \['belief'\]"):
        posterior.sample(correction=None)


ORDERED = pm.distributions.transforms.ordered


def test_ordered_elements_have_the_posterior_of_the_ordered_vector():
    y = np.array([[0.4, 0.1, -0.3], [0.5, 0.2, 0.0]])
    with pm.Model() as model:
        level = pm.Normal("level", 0.0, 1.0, shape=2, transform=ORDERED, initval=[-1.0, 1.0])
        pm.Normal("y", level[:, None], 1.0, observed=y)
    posterior = interpreted(model)
    assert not posterior.provenance.dropped  # identically distributed elements are sorted
    draws = np.random.default_rng(0).normal(y.sum(axis=1) / 4, 0.5, size=(200_000, 2))
    draws = draws[draws[:, 0] < draws[:, 1]]
    exact: Moments = {"level": (draws.mean(axis=0)[None], draws.std(axis=0)[None])}
    dt = posterior.sample(random_seed=2)
    assert np.all(dt.posterior["level"][..., 0] <= dt.posterior["level"][..., 1])
    assert_moments(dt.posterior.to_dataset(), exact, CORRECTED)
    assert_moments(posterior.sample(correction=None, random_seed=2).posterior.to_dataset(), exact, RAW)


def test_ordered_elements_that_differ_are_rejected_until_ordered(caplog):
    with pm.Model() as model:
        level = pm.Normal("level", [-0.5, 0.5], 1.0, transform=ORDERED, initval=[-1.0, 1.0])
        pm.Normal("y", level, 1.0, observed=np.array([0.3, 0.1]))
    with caplog.at_level(logging.WARNING, LOGGER):
        posterior = interpreted(model)
    (reason,) = posterior.provenance.dropped
    assert reason.startswith("level:")
    assert "truncates the prior: level" in caplog.text
    rate = posterior.provenance.dropped[reason] / posterior.provenance.attempted
    assert_allclose(rate, 0.24, atol=0.03)  # P(N(1, 2) < 0)
    draws = np.random.default_rng(0).normal([-0.1, 0.3], 0.5**0.5, size=(200_000, 2))
    draws = draws[draws[:, 0] < draws[:, 1]]
    exact: Moments = {"level": (draws.mean(axis=0)[None], draws.std(axis=0)[None])}
    dt = posterior.sample(random_seed=2)
    assert_moments(dt.posterior.to_dataset(), exact, CORRECTED)
    assert_moments(posterior.sample(correction=None, random_seed=2).posterior.to_dataset(), exact, RAW)
    assert "level" in dt.posterior.attrs["prior_truncated"]


def test_a_prior_that_leaves_the_models_range_is_truncated_and_says_so(caplog):
    y = np.array([0.3, -0.5, 0.2, -0.1, 0.6])
    with pm.Model() as model:
        sigma = pm.Normal("sigma", 1.0, 0.7)
        pm.Normal("y", 0.0, sigma, observed=y)
    with caplog.at_level(logging.WARNING, LOGGER):
        posterior = briefly(model, num_steps=300)
    dropped, attempted = posterior.provenance.dropped, posterior.provenance.attempted
    (reason,) = dropped
    assert reason.startswith("y:")
    assert_allclose(dropped[reason] / attempted, 0.0766, atol=0.02)  # P(N(1, 0.7) < 0)
    assert "were dropped, which truncates the prior" in caplog.text
    points = np.linspace(1e-4, 6, 20_000)
    log_density = -0.5 * ((points - 1) / 0.7) ** 2 - 0.5 * np.square(y).sum() / points**2 - 5 * np.log(points)
    density = np.exp(log_density - log_density.max())
    mean = np.average(points, weights=density)
    sd = np.sqrt(np.average((points - mean) ** 2, weights=density))
    dt = posterior.sample(random_seed=2)
    assert float(dt.posterior["sigma"].min()) > 0
    assert f"{dropped[reason]} of {attempted} simulations" in dt.posterior.attrs["prior_truncated"]
    assert_moments(dt.posterior.to_dataset(), {"sigma": (np.array([mean]), np.array([sd]))}, CORRECTED)


# Models without a density


def simulator_model() -> pm.Model:
    with pm.Model() as model, warnings.catch_warnings():
        mu = pm.Normal("mu", 0.0, 1.0)
        warnings.simplefilter("ignore", DeprecationWarning)  # pm.Simulator's own
        pm.Simulator("y", lambda rng, mu, size: rng.normal(mu, 1.0, size=size), mu, observed=np.array([0.5, 1.0, 1.5]))
    return model


def random_only_model() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0)
        pm.CustomDist(
            "y",
            mu,
            random=lambda mu, rng=None, size=None: rng.normal(mu, 1.0, size=size),
            observed=np.array([0.5, 1.0, 1.5]),
        )
    return model


@pytest.mark.parametrize("build", [simulator_model, random_only_model])
def test_a_model_without_density_is_sampled_uncorrected_and_says_so_once(build, caplog):
    posterior = interpreted(build())
    with caplog.at_level(logging.WARNING, LOGGER):
        dt = posterior.sample(random_seed=2)
        posterior.sample(random_seed=3)
    said = [record for record in caplog.records if "uncorrected" in record.getMessage()]
    assert len(said) == 1
    assert "'y'" in said[0].getMessage()
    assert dt.posterior.attrs["correction"] == "none"
    assert set(dt.sample_stats.data_vars) == {"log_q", "stage", "rung", "ood_pvalue"}
    assert dt.sample_stats["stage"] == "raw"
    # precision: prior 1, three observations
    assert_moments(dt.posterior.to_dataset(), {"mu": (np.array([0.75]), np.array([0.5]))}, RAW)
    with pytest.raises(ValueError, match="correction='psis' needs the model's density.*'y'"):
        posterior.sample(correction="psis")


# Simulations of the user's own, and context


@pytest.mark.parametrize("source", ["pymc", pytest.param("simulate", marks=pytest.mark.slow)])
def test_simulations_made_elsewhere_train_the_same_posterior(source):
    model = CLOSED_FORMS["conjugate_normal"].build()
    if source == "pymc":
        with model:
            simulations = pm.sample_prior_predictive(20_000, random_seed=5)
    else:
        simulations = pma.simulate(model, 20_000, random_seed=5)
    posterior = briefly(model, num_steps=400, simulations=simulations)
    assert posterior.provenance.user_simulations
    data = conjugate_data()
    for correction, tolerance in (("psis", CORRECTED), (None, RAW)):
        dt = posterior.sample(data, batched=True, correction=correction, random_seed=2)
        assert_moments(dt.posterior.to_dataset(), conjugate_moments(data), tolerance)


def test_the_structure_of_given_simulations_is_found():
    """Permuting effects that add up to zero needs them on their own scale."""
    model = MODELS["zero_sum_effects"].build()
    simulations = pma.simulate(model, 200, random_seed=1)
    posterior = briefly(model, num_steps=400, simulations=simulations)
    (kinds,) = MODELS["zero_sum_effects"].structure.values()
    assert kinds_of(posterior.structure, "y") == kinds


def uniform_design(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-2.0, 2.0, size=(12, 2))


@pytest.mark.parametrize("source", ["resample", uniform_design])
def test_context_can_be_resampled_or_come_from_a_function(source):
    posterior = interpreted(covariates(), context={"x": source})
    rng = np.random.default_rng(9)
    x = rng.permutation(covariates()["x"].get_value()) if source == "resample" else uniform_design(rng)
    y = rng.normal(x @ [2.0, -1.0], 1.0)
    dt = posterior.sample({"x": x, "y": y}, random_seed=2)
    assert float(dt.sample_stats["pareto_k"]) < 0.7
    assert_moments(dt.posterior.to_dataset(), covariates_moments({"x": x[None], "y": y[None]}), CORRECTED)
    assert_array_equal(dt.constant_data["x"], x)


# What follows pm.sample


@pytest.fixture(scope="module")
def other_data() -> dict[str, np.ndarray]:
    """Return data that the regression did not hold when it was read."""
    return {"y": CLOSED_FORMS["regression"].data()["y"][1]}


def test_everything_that_follows_sampling_works_on_the_result(regression_posterior, other_data):
    dt = regression_posterior.sample(other_data, random_seed=2)
    quiet = {"progressbar": False}
    with regression_posterior.to_model(other_data) as model:
        reference = nuts(model)
        with pytensor.config.change_flags(mode="FAST_COMPILE"):  # used once: not worth compiling
            pm.compute_log_likelihood(dt, **quiet)
            pm.stats.compute_log_prior(dt, **quiet)
            pm.sample_posterior_predictive(dt, extend_inferencedata=True, random_seed=1, **quiet)
            pm.compute_log_likelihood(reference, **quiet)
    assert_array_equal(reference.observed_data["y"], other_data["y"])
    exact = CLOSED_FORMS["regression"].moments({"y": other_data["y"][None]})
    assert_moments(reference.posterior.to_dataset(), exact, CORRECTED)
    assert_moments(dt.posterior.to_dataset(), exact, CORRECTED)

    predicted = dt.posterior_predictive["y"].mean(("chain", "draw")).to_numpy()
    expected = dt.constant_data["x"].to_numpy() @ exact["beta"][0][0]
    error = np.sqrt(exact["variance"][0][0] / 4000)
    assert np.all(np.abs(predicted - expected) < 8 * error)
    assert set(dt.log_prior.data_vars) == {"beta", "variance"}

    ours, theirs = az.loo(dt), az.loo(reference)
    assert abs(ours.elpd - theirs.elpd) < 0.2
    comparison = az.compare({"amortized": dt, "nuts": reference})
    assert comparison["elpd_diff"].max() < 0.3
    assert set(az.summary(dt).index) == set(az.summary(reference).index)


def structure(dataset: xr.Dataset, drop: tuple[str, ...] = ()) -> dict:
    """Names, dims, dtypes, sizes and coordinates of a group, without some dims."""
    variables = {name: (tuple(d for d in v.dims if d not in drop), v.dtype) for name, v in dataset.data_vars.items()}
    sizes = {d: n for d, n in dataset.sizes.items() if d not in drop}
    coords = {
        name: (v.dims, v.dtype.kind, v.to_numpy().tolist()) for name, v in dataset.coords.items() if name not in drop
    }
    return {"variables": variables, "sizes": sizes, "coords": coords}


@pytest.mark.parametrize("batched", [False, True])
def test_results_are_laid_out_as_by_pm_sample(regression_posterior, regression_nuts, batched):
    data = CLOSED_FORMS["regression"].data() if batched else None
    dt = regression_posterior.sample(data, batched=batched, draws=50, chains=2, random_seed=2)
    assert set(dt.children) == set(regression_nuts.children)
    drop = ("dataset",) if batched else ()
    for group in ("posterior", "observed_data", "constant_data"):
        ours = structure(dt[group].to_dataset(), drop)
        assert ours == structure(regression_nuts[group].to_dataset()), group
    if batched:
        assert dt.posterior["beta"].dims == ("dataset", "chain", "draw", "feature")
        assert_array_equal(dt.observed_data["y"], data["y"])
    assert {"created_at", "inference_library", "sampling_time"} <= set(dt.posterior.attrs)


def test_statistics_have_the_dims_they_belong_to(regression_posterior):
    one = regression_posterior.sample(draws=50, chains=2, random_seed=2).sample_stats
    many = regression_posterior.sample(CLOSED_FORMS["regression"].data(), batched=True, draws=50, chains=2).sample_stats
    dims = {"lp": ("chain", "draw"), "log_q": ("chain", "draw"), "proposal_log_weight": ("chain", "proposal")}
    dims |= dict.fromkeys(("stage", "rung", "pareto_k", "importance_ess", "num_proposals", "ood_pvalue"), ())
    dims |= dict.fromkeys(("r_hat", "ess_bulk", "ess_tail", "divergences"), ())
    dims |= dict.fromkeys(("pareto_k_of_mean", "mcse_of_mean"), ("parameter",))
    assert {name: v.dims for name, v in one.data_vars.items()} == dims
    del dims["proposal_log_weight"]
    assert {name: v.dims for name, v in many.data_vars.items()} == {n: ("dataset", *d) for n, d in dims.items()}


def test_deterministics_and_chosen_variables(regression_posterior):
    dt = regression_posterior.sample(draws=20, random_seed=2)
    assert_allclose(dt.posterior["sigma"] ** 2, dt.posterior["variance"])
    chosen = regression_posterior.sample(draws=20, random_seed=2, var_names=["sigma"])
    assert list(chosen.posterior.data_vars) == ["sigma"]
    assert_array_equal(chosen.posterior["sigma"], dt.posterior["sigma"])
