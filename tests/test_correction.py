"""Importance weights: smoothing, resampling, and what draws made of them are worth."""

import logging

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr
from closed_forms import CORRECTED, assert_moments, conjugate_data, conjugate_moments, ess_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from pymc_amortized import AmortizedPosterior
from pymc_amortized.correction.draws import Request
from pymc_amortized.correction.ladder import LADDERS
from pymc_amortized.correction.ladder import propose as draw
from pymc_amortized.correction.target import Source
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.numerics.sampling.importance import k_threshold, resample, smooth


@pytest.mark.parametrize(("proposals", "expected"), [(10_000, 0.7), (4000, 0.7), (1000, 1 - 1 / 3), (100, 0.5)])
def test_threshold_is_that_of_the_paper(proposals, expected):
    assert_allclose(k_threshold(proposals), expected)


def test_threshold_is_finite_for_any_number_of_proposals():
    assert all(np.isfinite(k_threshold(n)) for n in range(12))


def log_pareto(k: float, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Log weights with a tail of known shape: a Pareto variable u**-k has k as its shape."""
    return -k * np.log(np.random.default_rng(seed).random(size))


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_smooth_finds_the_shape_of_the_tail(k):
    estimates = [smooth(log_pareto(k, (4, 2500), seed)).pareto_k for seed in range(10)]
    assert_allclose(np.mean(estimates), k, atol=0.1)


def test_smooth_keeps_the_order_of_weights():
    log_ratios = log_pareto(0.6, (1, 1000))
    weights = smooth(log_ratios).weights
    assert_array_equal(np.argsort(weights[0]), np.argsort(log_ratios[0]))
    assert np.corrcoef(np.log(weights[0]), log_ratios[0])[0, 1] > 0.99


def test_smooth_leaves_the_bulk_as_it_is_and_tames_the_tail():
    log_ratios = log_pareto(0.6, (1, 1000))
    log_ratios[0, 0] = log_ratios.max() + 5
    smoothed = smooth(log_ratios)
    raw = np.exp(log_ratios - log_ratios.max())
    bulk = np.argsort(raw[0])[:700]
    ratio = smoothed.weights[0, bulk] / raw[0, bulk]
    assert_allclose(ratio, ratio[0])
    assert smoothed.weights[0, 0] < (raw / raw.sum())[0, 0]


def test_smooth_normalizes_within_each_chain_but_fits_one_tail():
    log_ratios = log_pareto(0.4, (4, 500)) + np.arange(4)[:, None]
    smoothed = smooth(log_ratios)
    assert_allclose(smoothed.weights.sum(axis=1), 1.0)
    assert np.isscalar(smoothed.pareto_k)


def test_smooth_does_not_depend_on_the_normalization_and_does_not_change_its_input():
    log_ratios = log_pareto(0.4, (2, 500))
    before = log_ratios.copy()
    one, other = smooth(log_ratios), smooth(log_ratios + 1234.5)
    assert_array_equal(log_ratios, before)
    assert_allclose(one.weights, other.weights, rtol=1e-6)
    assert_allclose(one.pareto_k, other.pareto_k, atol=1e-6)


def test_smooth_gives_no_weight_to_minus_infinity():
    log_ratios = np.random.default_rng(0).normal(0, 0.5, size=(4, 500))
    log_ratios[:, ::2] = -np.inf
    smoothed = smooth(log_ratios)
    assert_array_equal(smoothed.weights[:, ::2], 0.0)
    assert_allclose(smoothed.weights.sum(axis=1), 1.0)
    assert smoothed.reliable
    assert smoothed.ess < 1000


def test_smooth_of_a_handful_of_finite_weights_is_not_reliable():
    log_ratios = np.full((4, 500), -np.inf)
    log_ratios[:, :3] = 0.0
    smoothed = smooth(log_ratios)
    assert smoothed.pareto_k == np.inf
    assert not smoothed.reliable
    assert_allclose(smoothed.ess, 12.0)
    assert_allclose(smoothed.weights[:, :3], 1 / 3)


def test_smooth_without_any_weight_in_a_chain_is_finite_and_worth_nothing():
    log_ratios = np.random.default_rng(0).normal(size=(2, 200))
    log_ratios[1] = -np.inf
    smoothed = smooth(log_ratios)
    assert np.isfinite(smoothed.weights).all()
    assert_allclose(smoothed.ess, 1 / np.square(smoothed.weights[0]).sum())
    nothing = smooth(np.full((2, 200), -np.inf))
    assert nothing.ess == 0.0
    assert not nothing.reliable


def test_smooth_of_constant_weights_is_reliable_and_loses_nothing():
    smoothed = smooth(np.full((4, 250), -3.0))
    assert smoothed.reliable
    assert_allclose(smoothed.weights, 1 / 250)
    assert_allclose(smoothed.ess, 1000.0)


def test_nearly_constant_weights_are_reliable():
    """A proposal that is all but exact leaves weights near 1, whatever the shape of what little tail there is."""
    ripple = 1e-5 * np.exp(log_pareto(1.5, (4, 1000)))
    smoothed = smooth(np.minimum(ripple, 0.1))
    assert smoothed.ess > 3990
    assert smoothed.reliable


def test_many_weights_of_which_none_counts_for_much_are_reliable():
    """Where a part of the proposals has heavy tails, weights are bounded, whatever the shape that leads there."""
    rng = np.random.default_rng(0)
    log_ratios = rng.normal(0, 0.02, size=(4, 16_000))
    log_ratios[:, :160] = np.log(rng.pareto(0.6, size=(4, 160)).clip(0.1, 25))
    smoothed = smooth(log_ratios, defended=True)
    assert smoothed.pareto_k > 0.7
    assert smoothed.reliable
    assert not smooth(log_ratios).reliable
    assert not smooth(log_ratios[:, ::16], defended=True).reliable  # of few, 25 times the mean is too much
    log_ratios[0, 0] = np.log(0.01 * 64_000)
    assert not smooth(log_ratios, defended=True).reliable


@pytest.mark.parametrize("far", [-1e3, -1e8, -1e17, -1e300])
def test_weights_too_small_for_doubles_change_nothing(far):
    """Far outside the prior log weights span more digits than a double has."""
    rng = np.random.default_rng(0)
    log_ratios = log_pareto(0.4, (4, 500))
    log_ratios[:, ::2] = far * rng.uniform(1, 2, size=(4, 250))
    smoothed = smooth(log_ratios)
    assert_array_equal(smoothed.weights[:, ::2], 0.0)
    assert 0 <= smoothed.lost < 0.1
    assert smoothed.pareto_k < 0.7
    expected = smooth(np.where(log_ratios > -500, log_ratios, -2e3))
    assert_allclose(smoothed.weights, expected.weights, rtol=1e-9)
    assert_allclose(smoothed.lost, expected.lost, atol=1e-9)


@pytest.mark.parametrize("k", [0.2, 0.6])
def test_effective_sample_size_is_that_of_the_weights(k):
    smoothed = smooth(log_pareto(k, (3, 1000)))
    assert_allclose(smoothed.ess, (1 / np.square(smoothed.weights).sum(axis=1)).sum())


def test_resample_repeats_each_proposal_as_often_as_its_weight_says():
    weights = np.array([[0.1, 0.5, 0.0, 0.4], [0.25, 0.25, 0.25, 0.25]])
    index = resample(weights, 20, np.random.default_rng(0))
    counts = np.stack([np.bincount(row, minlength=4) for row in index])
    assert_array_equal(counts, [[2, 10, 0, 8], [5, 5, 5, 5]])


def test_resample_is_unbiased():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(30, 0.3), size=2)
    counts = np.zeros((2, 30))
    repeats, draws = 4000, 7
    for _ in range(repeats):
        index = resample(weights, draws, rng)
        for chain in range(2):
            counts[chain] += np.bincount(index[chain], minlength=30)
    # a count differs from its mean by less than one, so that its variance is at most that of a coin
    assert np.all(np.abs(counts / repeats - draws * weights) < 4 * 0.5 / np.sqrt(repeats))


def test_resample_leaves_repeated_draws_next_to_each_other():
    weights = smooth(log_pareto(0.8, (4, 300))).weights
    index = resample(weights, 500, np.random.default_rng(1))
    assert index.shape == (4, 500)
    assert np.all(np.diff(index, axis=1) >= 0)


def test_resample_never_takes_what_has_no_weight():
    weights = np.zeros((1, 100))
    weights[0, [3, 50]] = 0.5
    for seed in range(20):
        index = resample(weights, 9, np.random.default_rng(seed))
        assert set(index[0]) <= {3, 50}


# Networks that are wrong in a known way


def rescale(monkeypatch: pytest.MonkeyPatch, factor: float, shift: float = 0.0) -> None:
    """Make every network draw too widely or too narrowly around its mean, and say so in its density."""
    right = PosteriorNetwork.sample_given

    def wrong(self, *args, **kwargs):
        theta, log_q = right(self, *args, **kwargs)
        mean = theta.mean(dim=0, keepdim=True)
        moved = mean + factor * (theta - mean) + shift * theta.std(dim=0, keepdim=True, correction=0)
        return moved, log_q - theta.shape[-1] * np.log(factor)

    monkeypatch.setattr(PosteriorNetwork, "sample_given", wrong)


# A network that only draws too widely is left out: its mean is known better than the weights' effective sample size
# says, because the weights are small where a draw is far from the mean.
@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (0.8, 0.3), (0.35, 0.0), (0.5, 1.5), (1.5, 2.0), (4.0, 3.0)])
def test_arviz_sees_no_more_draws_than_the_weights_are_worth(plain_posterior, monkeypatch, factor, shift):
    rescale(monkeypatch, factor, shift)
    dt = plain_posterior.sample(conjugate_data(), batched=True, random_seed=1)
    seen = ess_of(dt.posterior["mu"])
    worth = np.minimum(dt.sample_stats.importance_ess.to_numpy(), 4000)
    assert np.all(seen <= 1.2 * worth), (seen, worth)


@pytest.mark.usefixtures("blind")
def test_poor_weights_show_in_rhat_and_ess(plain_posterior, monkeypatch):
    rescale(monkeypatch, 0.3, 3.0)
    dt = plain_posterior.sample(correction="psis", random_seed=1)
    assert not float(dt.sample_stats.pareto_k) < 0.7
    assert float(az.rhat(dt)["mu"]) > 1.01
    assert float(az.ess(dt)["mu"]) < 400


def test_correction_repairs_a_network_that_is_visibly_off(plain_posterior, monkeypatch, caplog):
    exact = conjugate_moments(conjugate_data())
    rescale(monkeypatch, 1.5, 0.7)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        raw = plain_posterior.sample(conjugate_data(), batched=True, correction=None, random_seed=1)
        corrected = plain_posterior.sample(conjugate_data(), batched=True, random_seed=1)
    assert not caplog.records
    off = (raw.posterior["mu"].mean(("chain", "draw")) - exact["mu"][0]) / exact["mu"][1]
    assert np.all(off > 0.5)
    assert np.all(raw.posterior["mu"].std(("chain", "draw")) > 1.3 * exact["mu"][1])
    assert np.all(corrected.sample_stats.pareto_k < 0.7)
    assert_moments(corrected.posterior, exact, CORRECTED)


@pytest.mark.usefixtures("blind")
def test_a_high_pareto_k_is_logged_with_its_number_and_what_to_do(plain_posterior, monkeypatch, caplog):
    rescale(monkeypatch, 0.3, 2.0)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        dt = plain_posterior.sample(correction="psis", random_seed=1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert f"Pareto k is {float(dt.sample_stats.pareto_k):.2f} (wanted: at most 0.70)" in message
    assert "continue_training" in message
    assert "pm.sample" in message


@pytest.mark.usefixtures("blind")
def test_among_many_data_sets_the_worst_is_named(plain_posterior, monkeypatch, caplog):
    rescale(monkeypatch, 0.3, 2.0)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        dt = plain_posterior.sample(conjugate_data(), batched=True, correction="psis", random_seed=1)
    k = dt.sample_stats.pareto_k
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{int((k > 0.7).sum())} of 5 data sets" in message
    assert f"{float(k.max()):.2f} (wanted: at most 0.70) at data set {np.argmax(k.to_numpy())}" in message


def test_raw_draws_do_not_warn_and_still_report_their_weights(plain_posterior, monkeypatch, caplog):
    rescale(monkeypatch, 0.3, 2.0)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        dt = plain_posterior.sample(correction=None, random_seed=1)
    assert not caplog.records
    assert float(dt.sample_stats.pareto_k) > 0.7
    assert dt.posterior.attrs["correction"] == "none"


def test_a_good_network_does_not_warn(plain_posterior: AmortizedPosterior, caplog):
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        dt = plain_posterior.sample(conjugate_data(), batched=True, random_seed=1)
    assert not caplog.records
    assert np.all(dt.sample_stats.importance_ess > 0.8 * 4000)


def test_weights_of_zero_density_are_not_drawn(plain_posterior, monkeypatch):
    """Every second proposal is impossible: half of the weights are zero, no draw is impossible."""
    from pymc_amortized.graph.density.log_density import LogDensity

    right = LogDensity.__call__

    def halved(self, theta, data):
        return np.where(theta[:, 0] > 1.0, right(self, theta, data), -np.inf)

    monkeypatch.setattr(LogDensity, "__call__", halved)
    y = 1.0 + np.linspace(-4.0, 4.0, 12)  # its posterior mean is 1
    dt = plain_posterior.sample({"y": y}, random_seed=1)
    assert float(dt.posterior["mu"].min()) > 1.0
    share = np.isneginf(dt.sample_stats["proposal_log_weight"]).mean()
    assert_allclose(float(share), 0.5, atol=0.05)
    # half of a normal distribution
    sd = conjugate_moments({"y": y[None]})["mu"][1][0]
    assert_allclose(float(dt.posterior["mu"].mean()), 1.0 + sd * np.sqrt(2 / np.pi), atol=0.1 * sd)


def test_undefined_densities_are_counted_and_get_no_weight(plain_posterior, monkeypatch, caplog):
    from pymc_amortized.graph.density.log_density import LogDensity

    right = LogDensity.__call__

    def holed(self, theta, data):
        log_p = right(self, theta, data)
        log_p[::10] = np.nan
        log_p[5::10] = np.inf
        return log_p

    monkeypatch.setattr(LogDensity, "__call__", holed)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        dt = plain_posterior.sample(random_seed=1)
    weights = dt.sample_stats["proposal_log_weight"]
    assert_allclose(float(np.isneginf(weights).mean()), 0.2, atol=0.01)
    assert not np.isnan(weights).any()
    assert np.isfinite(dt.sample_stats["lp"]).all()
    assert f"NaN or infinite at {int(np.isneginf(weights).sum())} of {weights.size} proposals" in caplog.text


def test_chains_of_several_rounds_do_not_seem_to_drift():
    """Rounds come from different distributions, which weights make one: not those of each round by themselves."""

    def propose(some, n, generator):
        theta = 2 + 0.5 * torch.randn(n, len(some), 1, generator=generator, dtype=torch.float64).numpy()
        return theta, log_q(theta, some)

    def log_q(theta, some):
        return stats.norm.logpdf(theta[..., 0], 2, 0.5)

    cpu, log_p = torch.device("cpu"), lambda theta, i: stats.norm.logpdf(theta[:, 0])
    source = Source(propose, log_q, log_p, cpu, search=lambda some, sets: [None] * len(sets))
    for r in draw(source, 10, LADDERS["auto"], Request(1000, 4), np.random.SeedSequence(1)):
        assert r.stage == "psis" and r.log_weights.shape[1] > 1000
        chains = xr.DataArray(r.theta[..., 0], dims=("chain", "draw"))
        assert float(az.rhat(chains)) < 1.02 and float(az.ess(chains)) > 400
