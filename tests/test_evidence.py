"""Log marginal likelihoods, against closed forms."""

import logging
from dataclasses import replace

import numpy as np
import pymc as pm
import pytest
from closed_forms import (
    DESIGN,
    ERROR_SD,
    GROUPS,
    MU,
    NOISE,
    ROWS,
    SCALE,
    SHAPE,
    SPREAD,
    TAU,
    TRIALS,
    WEIGHTS_SD,
    conjugate_data,
    covariates_data,
    proportion_data,
    regression_data,
)
from numpy.testing import assert_allclose
from scipy import special, stats
from test_escalation import HOPELESS, WRONG, planted

from pymc_amortized.correction.evidence import Evidence, check_truncation, kept_share
from pymc_amortized.correction.proposals import Proposals
from pymc_amortized.graph.data.simulations import excluded, raised, rounded, rounded_share
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.numerics.sampling.mixture import StudentMixture

TOLERANCE = 0.05


def conjugate_evidence(data):
    covariance = NOISE**2 * np.eye(ROWS) + TAU**2
    return stats.multivariate_normal(np.full(ROWS, MU), covariance).logpdf(data["y"])


def regression_evidence(data):
    shape = SCALE / SHAPE * (np.eye(20) + SPREAD**2 * DESIGN @ DESIGN.T)
    return stats.multivariate_t(np.zeros(20), shape, 2 * SHAPE).logpdf(data["y"])


def proportion_evidence(data):
    y = data["y"]
    successes = y.sum(1)
    choose = special.gammaln(TRIALS + 1) - special.gammaln(y + 1) - special.gammaln(TRIALS - y + 1)
    return choose.sum(1) + special.betaln(2 + successes, 3 + TRIALS * GROUPS - successes) - special.betaln(2, 3)


def covariates_evidence(data):
    return np.array(
        [
            stats.multivariate_normal(np.zeros(len(y)), ERROR_SD**2 * np.eye(len(y)) + WEIGHTS_SD**2 * x @ x.T).logpdf(
                y
            )
            for x, y in zip(data["x"], data["y"], strict=True)
        ]
    )


CASES = {
    "conjugate": (conjugate_data, conjugate_evidence),
    "regression": (regression_data, regression_evidence),
    "proportion": (proportion_data, proportion_evidence),
    "covariates": (covariates_data, covariates_evidence),
}


@pytest.mark.parametrize("name", CASES)
def test_evidence_is_that_of_the_closed_form(name, request):
    posterior = request.getfixturevalue(f"{name}_posterior")
    data, exact = CASES[name]
    found = posterior.log_marginal_likelihood(data(), batched=True, random_seed=1)
    off = found["log_marginal_likelihood"].to_numpy() - exact(data())
    assert np.all(np.abs(off) < TOLERANCE), off
    assert np.all(np.abs(off) < 4 * found["mcse"] + 1e-6), off / found["mcse"]
    assert set(found.data_vars) == {"log_marginal_likelihood", "mcse", "pareto_k", "importance_ess"}
    assert found["mcse"].dims == ("dataset",)


@pytest.mark.parametrize("name", WRONG)
def test_a_network_that_is_wrong_leaves_the_evidence_right(plain_posterior, name):
    wrong = planted(plain_posterior, *WRONG[name])
    found = wrong.log_marginal_likelihood(conjugate_data(), batched=True, random_seed=1)
    assert_allclose(found["log_marginal_likelihood"], conjugate_evidence(conjugate_data()), atol=TOLERANCE)


def test_errors_are_what_estimates_scatter_by(plain_posterior):
    wrong = planted(plain_posterior, 0.5, 3.0)
    data = {"y": np.repeat(conjugate_data()["y"][:1], 60, axis=0)}
    found = wrong.log_marginal_likelihood(data, batched=True, proposals=1000, random_seed=1)
    z = (found["log_marginal_likelihood"] - conjugate_evidence(data)) / found["mcse"]
    assert stats.kstest(z, "norm").pvalue > 0.001
    assert abs(float(z.mean())) < 4 / np.sqrt(60)


@pytest.mark.usefixtures("blind")
def test_poor_weights_give_no_evidence(plain_posterior, caplog):
    wrong = planted(plain_posterior, *HOPELESS)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        found = wrong.log_marginal_likelihood(conjugate_data(), batched=True, random_seed=1)
    assert np.isnan(found["log_marginal_likelihood"]).all()
    assert np.isnan(found["mcse"]).all()
    assert "5 of 5 data sets have no log marginal likelihood" in caplog.text
    assert "sample_smc" in caplog.text


def test_undefined_densities_give_no_evidence(plain_posterior, monkeypatch, caplog):
    from pymc_amortized.graph.density.log_density import LogDensity

    right = LogDensity.__call__

    def holed(self, theta, data):
        log_p = right(self, theta, data)
        log_p[::100] = np.nan
        return log_p

    monkeypatch.setattr(LogDensity, "__call__", holed)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        found = plain_posterior.log_marginal_likelihood(random_seed=1)
    assert np.isnan(found["log_marginal_likelihood"])
    assert found["log_marginal_likelihood"].dims == ()
    assert "NaN or infinite" in caplog.text


def test_one_undefined_density_costs_what_it_may_have_weighed(plain_posterior, monkeypatch):
    from pymc_amortized.graph.density.log_density import LogDensity

    right, exact = LogDensity.__call__, plain_posterior.log_marginal_likelihood(random_seed=1)

    def holed(self, theta, data):
        log_p = right(self, theta, data)
        log_p[7 : 7 + (len(log_p) > 500)] = np.nan
        return log_p

    monkeypatch.setattr(LogDensity, "__call__", holed)
    found = plain_posterior.log_marginal_likelihood(random_seed=1)
    off = abs(float(found["log_marginal_likelihood"] - exact["log_marginal_likelihood"]))
    assert 0 < off < 4 * float(found["mcse"]) < 0.04
    assert found["mcse"] > exact["mcse"]


def test_zero_densities_count(plain_posterior, monkeypatch):
    """Half of the prior cut away: what is left integrates to less."""
    from pymc_amortized.graph.density.log_density import LogDensity

    right = LogDensity.__call__
    monkeypatch.setattr(
        LogDensity, "__call__", lambda self, t, data: np.where(t[:, 0] > 1.0, right(self, t, data), -np.inf)
    )
    y = {"y": 1.0 + np.linspace(-4.0, 4.0, ROWS)}  # its posterior mean is 1
    found = plain_posterior.log_marginal_likelihood(y, random_seed=1)
    expected = conjugate_evidence({"y": y["y"][None]}) - np.log(2)
    assert_allclose(found["log_marginal_likelihood"], expected, atol=TOLERANCE)


def test_densities_that_are_not_normalized_are_refused(plain_posterior, schools_marginal):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        pm.Potential("p", -(mu**2))
        pm.Normal("y", mu, 1, observed=np.zeros(3))
    from pymc_amortized.graph.model.snapshot import take_snapshot

    with_potential = replace(plain_posterior, spec=take_snapshot(model))
    with pytest.raises(ValueError, match="potentials \\['p'\\].*not normalized"):
        with_potential.log_marginal_likelihood()
    with pytest.raises(ValueError, match="needs the model's density"):
        schools_marginal.log_marginal_likelihood()


@pytest.mark.parametrize(("proposals", "error"), [(10, ValueError), (1e4, TypeError)])
def test_proposals_are_enough(plain_posterior, proposals, error):
    with pytest.raises(error, match="proposals"):
        plain_posterior.log_marginal_likelihood(proposals=proposals)


def test_truncated_priors_are_said_with_the_number():
    assert not check_truncation({"raised ZeroDivisionError": 500, "x: outside": 1}, 1000)
    (doubt,) = check_truncation({"mu: the density is zero": 500}, 1000)
    assert doubt.number == 0.5 and "larger by 0.69" in str(doubt)


def test_proposals_may_differ_in_scale_by_any_factor():
    """A network far outside of its simulations may give one parameter a range of 1e12 and another one of 1e-3."""
    scales = np.array([1e12, 1e-3])
    rng = np.random.default_rng(1)
    fitted = StudentMixture.fit(rng.normal(size=(4000, 2)) * scales, np.full(4000, 1 / 4000), rng)
    draws = fitted.draw(20_000, np.random.default_rng(2))
    assert_allclose(np.median(np.abs(draws), 0) / scales, stats.t.ppf(0.75, 5), rtol=0.08)
    expected = stats.multivariate_t(np.zeros(2), np.eye(2), 5).logpdf(draws / scales) - np.log(scales).sum()
    assert_allclose(fitted.log_density(draws), expected, atol=0.5)


def test_simulations_that_raised_say_nothing_of_the_density():
    assert kept_share({"raised ValueError": 50, "y: not finite": 25}, 100) == 0.5
    assert kept_share({"y: not finite": 25}, 100) == 0.75
    assert kept_share({}, 0) == 1


def test_draws_that_cannot_be_written_down_are_no_truncation():
    dropped = {rounded("y"): 30, excluded("mu"): 14, raised("ValueError"): 0}
    assert kept_share(dropped, 100) == pytest.approx(56 / 70)
    assert rounded_share(dropped, 100) == pytest.approx(30 / 86)
    assert not check_truncation({rounded("y"): 500}, 1000)


@pytest.mark.parametrize(
    ("write", "why", "share"),
    [
        # shape .05: a seventh of draws is nearer to 1 than the last number before it
        (lambda: pm.Normal("y", pm.Beta("a", 2, 0.05), 1, observed=np.zeros(3)), rounded("a"), 0.16),
        (lambda: pm.Beta("y", 1 + pm.HalfNormal("a"), 0.05, observed=np.full(3, 0.5)), rounded("y"), 0.41),
        (lambda: pm.Normal("y", pm.math.exp(pm.Normal("a", 0, 700)), 1, observed=np.zeros(3)), rounded("y"), 0.155),
        # no value is possible at these parameters: the density has none of their mass
        (lambda: pm.Normal("y", pm.math.sqrt(pm.Normal("a")), 1, observed=np.zeros(3)), excluded("y"), 0.5),
    ],
)
def test_why_draws_are_dropped(write, why, share):
    with pm.Model() as model:
        write()
    made = Simulator(take_snapshot(model), compile_kwargs={"mode": "FAST_COMPILE"})(1000, 1)
    assert list(made.dropped) == [why]
    assert made.dropped[why] / made.attempted == pytest.approx(share, abs=0.05)
    kept = 1.0 if why.startswith("draw of") else 1 - share
    assert kept_share(made.dropped, made.attempted) == pytest.approx(kept, abs=0.05)


def test_no_density_at_any_proposal_is_said():
    proposals = Proposals(1)
    proposals.add(np.zeros((200, 1)), np.zeros(200), np.full(200, -np.inf))
    found = Evidence.of(proposals)
    assert np.isnan(found.log_marginal_likelihood) and "impossible" in found.doubt
