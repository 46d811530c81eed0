"""Checks of posteriors: what is planted is found, what is right passes at the nominal rate."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import arviz as az
import numpy as np
import planted
import pymc as pm
import pytest
import xarray as xr
from planted import standing_in
from scipy import stats
from small_models import brief_fit, held_data

import pymc_amortized as pma
from pymc_amortized.approximators.posterior.check import warn_if_corrected_off, warn_if_off
from pymc_amortized.diagnostics.coordinates import lay_out
from pymc_amortized.diagnostics.local import run_local_c2st
from pymc_amortized.diagnostics.simulated import simulate_known
from pymc_amortized.diagnostics.statistics import rank_distance, rank_truth, standardize
from pymc_amortized.diagnostics.two_sample import guess_labels, take_normal_scores
from pymc_amortized.diagnostics.verdict import METRICS, judge_quantities, select_wrong
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.numerics.sampling.importance import resample, smooth
from pymc_amortized.numerics.uniformity import band, band_p_value, describe, holm, pit, uniformity
from pymc_amortized.results.writing import prior_tree


def quick(posterior, **kwargs):
    options = {"num_datasets": 300, "draws": 200, "random_seed": 1, "progressbar": False}
    return pma.check_calibration(posterior, **(options | kwargs))


def metric(check, name, which):
    return check["calibration"][name].sel(metric=which).to_numpy()


# Statistics


def test_ranks_of_exchangeable_values_are_uniform():
    rng = np.random.default_rng(1)
    draws, truth = rng.normal(size=(7, 20_000)), rng.normal(size=20_000)
    assert stats.kstest(pit(draws, truth, rng), "uniform").pvalue > 0.001


def test_ties_are_broken_at_random():
    rng = np.random.default_rng(1)
    draws, truth = rng.poisson(0.7, size=(30, 20_000)), rng.poisson(0.7, size=20_000)
    assert stats.kstest(pit(draws, truth, rng), "uniform").pvalue > 0.001


def test_repeated_draws_count_as_many_as_they_are_worth():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=20_000)
    draws = np.repeat(rng.normal(size=(5, 20_000)), 40, axis=0)
    assert stats.kstest(pit(draws, truth, rng, 5.0), "uniform").pvalue > 0.001
    assert stats.kstest(pit(draws, truth, rng), "uniform").pvalue < 1e-10


def test_ranks_of_nothing_are_nothing():
    rng = np.random.default_rng(1)
    draws = np.array([[0.0, np.nan, 0.0], [1.0, 1.0, 1.0]])
    values = pit(draws, np.array([0.5, 0.5, np.nan]), rng)
    np.testing.assert_array_equal(np.isnan(values), [False, True, True])
    result = uniformity(values)
    assert result.p_value == 1.0 and np.isnan(result.bias)


@pytest.mark.parametrize("n", [15, 100, 700])
def test_the_band_holds_as_often_as_it_says(n):
    points, lower, upper = band(n, 0.9)
    sample = np.sort(np.random.default_rng(n).random((4000, n)), axis=1)
    ecdf = np.stack([(sample <= p).mean(axis=1) for p in points], axis=1)
    inside = ((ecdf >= lower - 1e-9) & (ecdf <= upper + 1e-9)).all(axis=1).mean()
    error = np.sqrt(0.1 * 0.9 / 4000)
    assert 0.9 - 4 * error < inside < 0.9 + 4 * error + (0.05 if n == 15 else 0)  # few values: a band in steps


def test_the_p_value_of_the_band_is_uniform_and_agrees_with_it():
    rng = np.random.default_rng(2)
    samples = rng.random((800, 200))
    p = np.array([band_p_value(s) for s in samples])
    for level in (0.01, 0.05, 0.3):
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / len(p)) + 0.003
    points, lower, upper = band(200, 0.95)
    ecdf = np.stack([(samples <= q).mean(axis=1) for q in points], axis=1)
    outside = ((ecdf < lower - 1e-9) | (ecdf > upper + 1e-9)).any(axis=1)
    assert (outside == (p < 1 - 0.95)).mean() > 0.995  # the band's own probability is a little above 95 %


def test_all_tests_of_one_quantity_hold_their_level():
    rng = np.random.default_rng(3)
    p = np.array([uniformity(rng.random(300)).p_value for _ in range(500)])
    assert (p < 0.05).mean() < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 500)


def test_what_is_said_of_a_shifted_and_of_a_narrow_posterior():
    rng = np.random.default_rng(4)
    truth = rng.normal(size=1000)
    high = uniformity(stats.norm.cdf(truth, 0.5, 1))
    assert high.bias == pytest.approx(0.5, abs=4 / np.sqrt(1000)) and "biased high by 0." in describe(high)
    narrow = uniformity(stats.norm.cdf(truth, 0, 0.7))
    assert narrow.sd_ratio == pytest.approx(0.7, abs=4 * 0.7 / np.sqrt(2000))
    assert describe(narrow) == f"over-confident: its sd is about {narrow.sd_ratio:.2f} of what it should be"
    both = describe(uniformity(stats.norm.cdf(truth, -0.5, 1.6)))
    assert "biased low" in both and "under-confident" in both
    bimodal = uniformity(np.where(rng.random(1000) < 0.5, 0.3, 0.7) + 0.05 * rng.normal(size=1000))
    assert bimodal.p_uniform < 1e-6


def test_holm_agrees_with_the_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])


def test_a_whole_check_raises_false_alarms_at_its_nominal_rate():
    """On exact draws, through every statistic of a check but the sampling."""
    rng, alarms, repetitions = np.random.default_rng(5), 0, 200
    for _ in range(repetitions):
        center = rng.normal(size=(100, 3))
        truth = {"a": center + rng.normal(size=(100, 3))}
        draws = {"a": center + rng.normal(size=(60, 100, 3))}
        all_of_them = np.full(100, 60.0)
        pits = {"a": rank_truth(draws["a"], truth["a"], rng, all_of_them)}
        pits["tarp"] = rank_distance(*standardize(draws, truth), rng, all_of_them)
        findings = judge_quantities(pits, {"a": np.array(["a0", "a1", "a2"]), "tarp": np.array("tarp")})
        alarms += bool(select_wrong(findings))
    assert alarms / repetitions < 0.05 + 3 * np.sqrt(0.05 * 0.95 / repetitions)


# Planted errors


def test_a_right_posterior_passes(caplog):
    caplog.set_level(logging.INFO, logger="pymc_amortized")
    check = quick(standing_in())
    assert check["calibration"].attrs["calibrated"] == 1 and check["calibration"].attrs["off"] == ""
    assert "none of 4 quantities is off" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    np.testing.assert_allclose(metric(check, "mu", "sd_ratio"), 1, atol=4 / np.sqrt(600))
    coverage = check["coverage"].to_dataset()
    inside = (coverage["tarp"] >= coverage["band_lower"]) & (coverage["tarp"] <= coverage["band_upper"])
    assert inside.all()


@pytest.mark.parametrize("correction", [None, "psis"])
def test_right_posteriors_pass_at_the_nominal_rate(correction):
    posterior, repetitions = standing_in(), 25
    options = {"num_datasets": 60, "draws": 100, "correction": correction}
    checks = [quick(posterior, random_seed=seed, **options) for seed in range(repetitions)]
    alarms = sum(check["calibration"].attrs["calibrated"] == 0 for check in checks)
    assert stats.binom.sf(alarms - 1, repetitions, 0.05) > 0.001


@pytest.mark.parametrize(("plant", "ratio"), [(planted.over_confident, 0.7), (planted.under_confident, 1.4)])
def test_wrong_confidence_is_caught_in_each_parameter(plant, ratio, caplog):
    check = quick(standing_in(plant))
    assert (metric(check, "mu", "p_adjusted") < 1e-3).all() and metric(check, "tarp", "p_adjusted") < 0.05
    np.testing.assert_allclose(metric(check, "mu", "sd_ratio"), ratio, rtol=4 / np.sqrt(600))
    covered = check["coverage"]["mu"].sel(level=0.5)
    assert (covered < 0.42 if ratio < 1 else covered > 0.58).all()
    word = "over-confident" if ratio < 1 else "under-confident"
    assert f"mu[a]: {word}" in caplog.text and f"mu[b]: {word}" in caplog.text


def test_bias_is_caught_in_the_parameter_that_has_it(caplog):
    check = quick(standing_in(planted.biased_in_b))
    p = check["calibration"]["mu"].sel(metric="p_adjusted")
    assert p.sel(group="b") < 1e-4 and p.sel(group="a") > 0.05
    assert check["calibration"]["mu"].sel(metric="bias", group="b") == pytest.approx(0.4, abs=4 / np.sqrt(300))
    assert "mu[b]: biased high by 0." in caplog.text and "mu[a]" not in caplog.text
    z = check["contraction"]["mu"].sel(score="z_score", group="b")
    assert float(z.mean()) == pytest.approx(0.4, abs=4 / np.sqrt(300))


def test_an_untrained_network_is_caught():
    check = quick(standing_in(planted.untrained))
    assert (metric(check, "mu", "p_adjusted") < 1e-6).all() and metric(check, "log_joint", "p_adjusted") < 1e-6


def test_swapped_parameters_are_caught():
    check = quick(standing_in(planted.swapped))
    assert (metric(check, "mu", "p_adjusted") < 1e-6).all() and metric(check, "log_joint", "p_adjusted") < 1e-6
    true, mean = (check["recovery"]["mu"].sel(estimate=e) for e in ("true", "mean"))
    assert abs(float(xr.corr(true, mean, "dataset").max())) < 4 / np.sqrt(300)
    assert float(xr.corr(true, mean.roll(group=1, roll_coords=False), "dataset").min()) > 0.9


def test_a_posterior_that_ignores_the_data_is_caught_by_the_joint_density_alone(caplog):
    check = quick(standing_in(planted.ignoring))
    assert (metric(check, "mu", "p_adjusted") > 0.05).all() and metric(check, "tarp", "p_adjusted") > 0.05
    assert metric(check, "log_joint", "p_adjusted") < 1e-10
    assert "ignores the data" in caplog.text
    assert abs(float(check["contraction"]["mu"].sel(score="contraction").median())) < 0.2


def test_a_wrong_correlation_is_caught_by_the_joint_density():
    check = quick(standing_in(correlation=0.8))
    assert (metric(check, "mu", "p_adjusted") > 0.05).all()
    assert metric(check, "log_joint", "p_adjusted") < 0.01


def test_the_correction_repairs_what_it_can():
    check = quick(standing_in(planted.under_confident), correction="psis")
    assert check["calibration"].attrs["calibrated"] == 1
    assert check["sample_stats"]["effective_draws"].max() <= 200
    assert check["sample_stats"]["pareto_k"].max() < 0.7


def test_corrected_draws_are_judged_by_how_many_they_are_worth():
    check = quick(standing_in(planted.under_confident), correction="psis", num_datasets=150, draws=1000)
    assert 500 < check["sample_stats"]["effective_draws"].median() < 900
    assert metric(check, "log_joint", "p_adjusted") > 1e-3 and (metric(check, "mu", "p_adjusted") > 1e-3).all()


@pytest.mark.usefixtures("blind")
def test_a_correction_that_failed_is_caught(caplog):
    check = quick(standing_in(correlation=0.97), correction="psis")
    assert check["calibration"].attrs["calibrated"] == 0
    assert "these are the corrected draws" in caplog.text


def test_a_trained_network_spoiled_afterwards_is_caught():
    class Narrow:
        def __init__(self, network):
            self._network = network

        def __getattr__(self, name):
            return getattr(self._network, name)

        def sample_within(self, draws, **kwargs):
            theta, log_q = self._network.sample_within(draws, **kwargs)
            middle = theta.mean(0)
            return middle + 0.6 * (theta - middle), log_q

    trained = planted.base()
    ratio = metric(quick(trained), "mu", "sd_ratio")
    check = quick(replace(trained, network=Narrow(trained.network)))
    assert (metric(check, "mu", "p_adjusted") < 1e-6).all()
    np.testing.assert_allclose(metric(check, "mu", "sd_ratio"), 0.6 * ratio, rtol=0.15)


# What a check returns and takes


def test_results_have_the_models_dims_and_arviz_reads_them():
    check = quick(standing_in(), num_datasets=30)
    assert set(check.children) == {"prior_sbc", "calibration", "coverage", "recovery", "contraction", "sample_stats"}
    assert check["prior_sbc"]["mu"].dims == ("chain", "draw", "group")
    assert check["calibration"]["mu"].dims == ("metric", "group")
    assert tuple(check["calibration"]["metric"].to_numpy()) == METRICS
    assert check["recovery"]["mu"].dims == ("estimate", "dataset", "group")
    assert list(check["recovery"]["group"].to_numpy()) == ["a", "b"]
    assert check["prior_sbc"].attrs["num_datasets"] == 30 and check["prior_sbc"].attrs["correction"] == "none"
    figure = az.plot_ecdf_pit(check, var_names=["mu"])
    assert figure is not None


def test_recovery_is_that_of_the_closed_form():
    check = quick(standing_in(), num_datasets=50, draws=2000)
    sd = check["recovery"]["mu"].sel(estimate="sd")
    np.testing.assert_allclose(sd, planted.PRECISION**-0.5, rtol=4.5 / np.sqrt(4000))
    contraction = check["contraction"]["mu"].sel(score="contraction").mean("dataset")
    true = check["recovery"]["mu"].sel(estimate="true")
    np.testing.assert_allclose(contraction, 1 - 1 / planted.PRECISION / true.var("dataset", ddof=1), atol=0.01)


def test_the_same_seed_gives_the_same_check():
    first, second = (quick(standing_in(), num_datasets=80, draws=40) for _ in range(2))
    xr.testing.assert_equal(first["prior_sbc"].to_dataset(), second["prior_sbc"].to_dataset())


def test_test_quantities_of_the_user():
    def difference(draws, data):
        return draws["mu"].sel(group="a") - draws["mu"].sel(group="b")

    def residual(draws, data):
        return (data["y"].mean("obs") - draws["mu"]).sum("group") + 0 * draws["total"]

    quantities = {"difference": difference, "residual": residual}
    check = quick(standing_in(correlation=0.5), quantities=quantities)
    assert metric(check, "difference", "p_adjusted") < 1e-6
    assert metric(check, "difference", "sd_ratio") == pytest.approx(np.sqrt(0.5), abs=0.08)
    fine = quick(standing_in(), quantities=quantities)
    assert fine["calibration"].attrs["calibrated"] == 1
    assert {"difference", "residual"} <= set(fine["prior_sbc"].data_vars)
    assert "total" not in fine["prior_sbc"]


def test_deterministics_can_be_checked():
    check = quick(standing_in(correlation=0.8), var_names=["total"])
    assert set(check["recovery"].data_vars) == {"total"}
    assert metric(check, "total", "sd_ratio") == pytest.approx(np.sqrt(1.8), abs=0.25)


def test_simulations_of_the_user():
    tree = prior_tree(planted.base().spec, planted.base().simulator(70, np.random.SeedSequence(3)))
    check = quick(standing_in(), simulations=tree)
    np.testing.assert_array_equal(check["recovery"]["mu"].sel(estimate="true"), tree["prior"]["mu"][0])
    assert quick(standing_in(), simulations=tree, num_datasets=40)["recovery"].sizes["dataset"] == 40
    with pytest.raises(ValueError, match="lengths and simulations exclude"):
        quick(standing_in(), simulations=tree, lengths={})


def size_varies():
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        pm.Deterministic("shifted", pm.Data("x", np.zeros(8), dims="obs") + mu, dims="obs")
        pm.Normal("y", mu, 1, observed=np.zeros(8), dims="obs")
    return model


SOURCES = {"obs": (3, 20), "x": pm.Normal.dist(0, 1)}


@pytest.fixture(scope="module")
def sized():
    return brief_fit(size_varies(), context=SOURCES, missing={"y": 0.2})


def test_one_size_or_all(sized):
    everywhere = quick(sized, num_datasets=60, draws=40)
    contraction = everywhere["contraction"]["mu"].sel(score="contraction")
    small, large = (quick(sized, num_datasets=60, draws=40, lengths={"obs": n}) for n in (3, 20))
    sds = [float(c["recovery"]["mu"].sel(estimate="sd").mean()) for c in (small, large)]
    assert sds[0] > 1.5 * sds[1] and contraction.std() > 0
    corrected = quick(sized, num_datasets=30, draws=40, lengths={"obs": 20}, correction="psis")
    assert np.isfinite(corrected["prior_sbc"]["log_joint"]).all()


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ({"obs": 30}, ValueError, "trained for 3 to 20"),
        ({"rows": 5}, KeyError, r"dims whose length differs are \['obs'\]"),
        ({"obs": 2.5}, TypeError, "integer"),
        (5, TypeError, "must map dims"),
    ],
)
def test_wrong_lengths_are_refused(sized, lengths, error, message):
    with pytest.raises(error, match=message):
        quick(sized, lengths=lengths)


def test_of_what_differs_between_data_sets_one_entry_is_taken(sized):
    check = quick(sized, num_datasets=12, draws=20, var_names=["shifted"])
    assert check["recovery"]["shifted"].sizes == {"estimate": 4, "dataset": 12}
    assert np.isfinite(check["prior_sbc"]["shifted"]).all()
    check = quick(sized, num_datasets=12, draws=20, quantities={"first": lambda d, y: d["shifted"].isel(obs=0)})
    assert np.isfinite(check["prior_sbc"]["first"]).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_datasets": 3}, ValueError, "num_datasets"),
        ({"draws": 2}, ValueError, "draws"),
        ({"correction": "more"}, ValueError, "correction"),
        ({"var_names": ["nu"]}, KeyError, "nu"),
        ({"quantities": {"mu": len}}, ValueError, r"the names \['mu'\] are taken"),
        ({"quantities": {"log_joint": len}}, ValueError, "taken"),
        ({"quantities": {"f": 3}}, TypeError, r"quantities\['f'\] must be callable"),
        ({"quantities": {"f": lambda draws, data: draws["mu"]}}, ValueError, "one number for each draw"),
        ({"quantities": {"f": lambda draws, data: 1.0}}, ValueError, "returned a float"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        quick(standing_in(), **({"num_datasets": 20, "draws": 20} | kwargs))


def test_potentials_are_refused():
    with planted.two_means() as model:
        pm.Potential("close", -((model["mu"][0] - model["mu"][1]) ** 2))
    posterior = SimpleNamespace(spec=take_snapshot(model))
    with pytest.raises(ValueError, match="are no part of its simulations"):
        simulate_known(posterior, 10, np.random.SeedSequence(1))


def test_without_a_density_there_is_no_joint_density(caplog):
    posterior = standing_in()
    spec = replace(posterior.spec)
    spec.__dict__["density_obstacle"] = "nobody knows it"
    check = quick(replace(posterior, spec=spec), num_datasets=60, draws=40)
    assert set(check["calibration"].data_vars) == {"mu", "tarp"}
    assert np.isnan(check["sample_stats"]["pareto_k"]).all()
    assert "are the network's own, uncorrected" not in caplog.text


def test_a_posterior_from_a_file_needs_its_sources(sized, tmp_path):
    sized.save(tmp_path / "p.pma")
    loaded = pma.load(tmp_path / "p.pma", model=size_varies())
    with pytest.raises(ValueError, match="context: sources of"):
        quick(loaded)
    with pytest.raises(ValueError, match="missing: what draws gaps in"):  # of callables a file knows nothing
        quick(replace(loaded, missing={}), context=SOURCES)
    check = quick(loaded, context=SOURCES, num_datasets=30, draws=20)
    assert check["recovery"].sizes["dataset"] == 30


def test_dims_of_models_keep_their_names_beside_those_of_results():
    template = xr.Dataset({"mu": ("metric", [0.0, 0.0])}, coords={"metric": ["x", "y"]})
    laid = lay_out(template, ["metric"], {"mu": np.zeros((3, 2))})
    assert laid["mu"].dims == ("metric_", "metric") and list(laid["metric"].to_numpy()) == ["x", "y"]


@pytest.mark.slow
def test_mixed_data_with_context_are_simulated_anew(mixed_posterior):
    check = quick(mixed_posterior, num_datasets=30, draws=40)
    assert set(check["recovery"].data_vars) == {"mu", "sigma"}
    assert np.isfinite(check["prior_sbc"]["log_joint"]).all()


# The short check at the end of training


def short_check(plant, seed):
    posterior = standing_in(plant)
    simulations = posterior.simulator(200, np.random.SeedSequence(seed))
    warn_if_off(posterior.network, posterior.inputs, simulations, np.random.SeedSequence(seed + 10_000))


def test_training_warns_of_a_parameter_that_is_off(caplog):
    short_check(planted.biased_in_b, 1)
    assert "mu[1]: biased high by 0." in caplog.text and "mu[0]" not in caplog.text
    assert "The correction by the model's density repairs this" in caplog.text
    caplog.clear()
    short_check(planted.over_confident, 1)
    assert "mu[0]: over-confident: its sd is about 0." in caplog.text


def test_training_rarely_warns_of_a_network_without_fault(caplog):
    for seed in range(150):
        short_check(planted.right, seed)
    assert len(caplog.records) <= 2  # 0.1 % each: three are beyond a chance of 1 in 1,000


def check_corrected(seed, *, keep=lambda theta: theta, shift=0.0):
    posterior = standing_in(planted.right)
    made = posterior.simulator(64, np.random.SeedSequence(seed))
    draws = posterior.corrected(of_simulations(made), np.random.SeedSequence(seed))
    draws = [replace(d, theta=keep(d.theta)) for d in draws]
    known = replace(made, unconstrained=made.unconstrained + shift)
    log_joint = posterior.compiled.log_joint(known.unconstrained, of_simulations(made))
    warn_if_corrected_off(posterior.spec, draws, log_joint, known, np.random.SeedSequence(seed + 1))


def test_training_warns_of_corrected_draws_that_are_off(caplog):
    check_corrected(1)
    assert not caplog.records
    check_corrected(1, keep=lambda theta: theta.mean(axis=(0, 1)) + 0.5 * (theta - theta.mean(axis=(0, 1))))
    assert "corrected draws are not calibrated" in caplog.text and "over-confident" in caplog.text
    caplog.clear()
    check_corrected(1, shift=3.0)
    assert "biased low" in caplog.text


def test_training_rarely_warns_of_small_faults(caplog):
    for seed in range(60):
        short_check(lambda moments, means: (moments[0] + 0.05 * moments[1], 0.97 * moments[1]), seed)
    assert len(caplog.records) <= 2


def test_training_ends_with_the_check(caplog):
    model = planted.two_means()
    caplog.set_level(logging.WARNING, logger="pymc_amortized")
    options = pma.Training(num_steps=1, batch_size=16, learning_rate=0.3, evaluations=1)
    pma.fit_posterior(model, training=options, summary="flat", density=_wrong_density, random_seed=1, progressbar=False)
    assert "the network is not calibrated" in caplog.text


def _wrong_density(dim, features):
    import torch

    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.05))

        def log_prob(self, z, context):
            return torch.distributions.Normal(0.0, self.scale.abs() + 0.01).log_prob(z).sum(-1)

        def sample(self, draws, context, generator=None):
            z = self.scale.abs() * torch.randn(draws, len(context), dim, generator=generator)
            return z, self.log_prob(z, context)

    return Narrow()


# Near one data set

HIGH, LOW = ({"y": np.full((2, planted.ROWS), value)} for value in (2.5, -2.5))


def local(plant, observed, **kwargs):
    options = {"num_simulations": 3000, "num_datasets": 200, "random_seed": 2, "progressbar": False}
    return pma.check_local_calibration(standing_in(plant), observed, **(options | kwargs))


def test_what_is_wrong_at_one_data_set_is_found_there():
    high, low = local(planted.wrong_where_high, HIGH), local(planted.wrong_where_high, LOW)
    assert (metric(high, "mu", "sd_ratio") < 0.9).all() and (metric(low, "mu", "sd_ratio") > 1.2).all()
    for check in (high, low):
        assert (metric(check, "mu", "p_adjusted") < 0.01).all() and check["c2st"]["p_value"] < 0.05
        assert check["c2st"]["statistic"] > check["c2st"]["null"]


def test_those_nearest_are_like_the_data_set():
    check = local(planted.right, HIGH)
    true = check["recovery"]["mu"].sel(estimate="true")
    np.testing.assert_allclose(true.mean("dataset"), 2.38, atol=0.5)
    assert float(true.std()) < 0.9


def test_a_right_posterior_passes_at_a_data_set(caplog):
    checks = [local(planted.right, HIGH, random_seed=seed, draws=100) for seed in range(8)]
    alarms = sum(check["calibration"].attrs["calibrated"] == 0 for check in checks)
    assert stats.binom.sf(alarms - 1, 8, 0.05) > 0.001
    assert min(float(check["c2st"]["p_value"]) for check in checks) > 0.001


def test_the_local_classifier_holds_its_level_and_finds_differences():
    rng = np.random.default_rng(6)
    p = np.array([run_local_c2st(*rng.normal(size=(3, 150, 2)), rng)["p_value"] for _ in range(150)])
    assert stats.kstest(p, "uniform").pvalue > 0.001
    true, drawn, points = rng.normal(size=(3, 300, 2))
    true[:, 1] = 0.8 * true[:, 0] + 0.6 * true[:, 1]
    assert run_local_c2st(true, drawn, points, rng)["p_value"] < 0.01


def test_local_checks_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="must be smaller than num_simulations"):
        local(planted.right, HIGH, num_datasets=3000)
    with pytest.raises(KeyError, match="values are missing for"):
        local(planted.right, {})


@pytest.mark.slow
def test_local_checks_of_data_of_all_kinds(mixed_posterior):
    options = {"num_simulations": 300, "num_datasets": 50, "draws": 20, "progressbar": False}
    check = pma.check_local_calibration(mixed_posterior, held_data(), random_seed=1, **options)
    assert check["recovery"].sizes["dataset"] == 50


# Draws beside other draws


def tree(values, name="x"):
    dims = ("chain", "draw", *[f"{name}_{i}" for i in range(values.ndim - 2)])
    return xr.DataTree.from_dict({"posterior": xr.Dataset({name: (dims, values)})})


def autoregressive(rho, shape, rng):
    values = rng.normal(size=shape)
    for i in range(1, shape[1]):
        values[:, i] = rho * values[:, i - 1] + np.sqrt(1 - rho**2) * values[:, i]
    return values


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_classifier_does_not_cry_wolf_at_chains(rho):
    rng = np.random.default_rng(7)
    pairs = [[tree(autoregressive(r, (4, 800, 2), rng)) for r in (rho, 0.0)] for _ in range(25)]
    p = np.array([float(pma.compare_draws(*pair, random_seed=1)["c2st"]["p_value"]) for pair in pairs])
    assert stats.binom.sf((p < 0.05).sum() - 1, len(p), 0.05) > 0.001
    assert 0.25 < p.mean() < 0.75


def test_the_classifier_is_nearly_as_good_as_can_be():
    rng = np.random.default_rng(8)

    def found(a, b):
        half = len(a) // 2
        scores = take_normal_scores(np.concatenate([a[:half], b[:half], a[half:], b[half:]]))
        labels = np.repeat([0.0, 1.0], half)
        return guess_labels(scores[: 2 * half], labels, scores[2 * half :], labels, rng).mean()

    error = 0.5 / np.sqrt(3000)
    shifted = found(rng.normal(size=(3000, 1)) + 1, rng.normal(size=(3000, 1)))
    assert shifted == pytest.approx(stats.norm.cdf(0.5), abs=4 * error)
    correlated = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 3000)
    assert found(correlated, rng.normal(size=(3000, 2))) > 0.68
    modes = rng.choice([-2, 2], size=(3000, 1)) + 0.5 * rng.normal(size=(3000, 1))
    assert found(modes, 2.06 * rng.normal(size=(3000, 1))) > 0.72  # 0.757 at best
    wild = found(rng.standard_cauchy((3000, 2)), rng.standard_cauchy((3000, 2)))
    assert wild == pytest.approx(0.5, abs=4 * error)


def test_shifts_and_ratios_of_draws():
    rng = np.random.default_rng(9)
    a, b = tree(0.5 + 1.5 * rng.normal(size=(4, 1000, 2))), tree(rng.normal(size=(4, 1000, 2)))
    result = pma.compare_draws(a, b, random_seed=1)
    shift, error, ratio, ratio_error = result["moments"]["x"].to_numpy()
    np.testing.assert_allclose(shift, 0.5, atol=4 * error.max())
    np.testing.assert_allclose(ratio, 1.5, atol=4 * ratio_error.max())
    np.testing.assert_allclose(error, np.sqrt((1.5**2 + 1) / 4000), rtol=0.2)
    np.testing.assert_allclose(ratio_error, 1.5 * np.sqrt(2 / 8000), rtol=0.2)
    assert float(result["c2st"]["c2st"]) > 0.6 and float(result["c2st"]["p_value"]) < 1e-6


def test_resampled_draws_repeat_without_being_told_from_others():
    observed = {"y": np.zeros((2, planted.ROWS))}
    posterior = standing_in(correlation=0.4)
    corrected, raw = (posterior.sample(observed, random_seed=1, correction=c) for c in ("psis", None))
    exact = standing_in().sample(observed, random_seed=2, correction=None)
    result = pma.compare_draws(corrected, exact, random_seed=1)
    shift, error, ratio, ratio_error = result["moments"]["mu"].to_numpy()
    assert (abs(shift) < 4 * error).all() and (abs(ratio - 1) < 4 * ratio_error).all()
    assert result["c2st"]["p_value"] > 0.001
    assert pma.compare_draws(raw, exact, random_seed=1)["c2st"]["p_value"] < 1e-4


def test_draws_whose_weights_differ_much_are_not_told_from_others():
    rng = np.random.default_rng(11)
    p = []
    for _ in range(12):
        wide = 2.5 * rng.standard_t(5, size=(4, 500, 2))
        log_q = stats.t.logpdf(wide / 2.5, 5).sum(-1)
        index = resample(smooth(stats.norm.logpdf(wide).sum(-1) - log_q).weights, 500, rng)
        corrected = tree(np.take_along_axis(wide, index[..., None], axis=1))
        p.append(float(pma.compare_draws(corrected, tree(rng.normal(size=(4, 500, 2))))["c2st"]["p_value"]))
    assert np.median(p) > 0.05 and min(p) > 1e-4


@pytest.mark.slow
def test_amortized_and_nuts_draws_are_compared(regression_posterior, regression_nuts):
    result = pma.compare_draws(regression_posterior.sample(random_seed=1), regression_nuts, random_seed=1)
    assert set(result["moments"].data_vars) == set(regression_nuts["posterior"].data_vars)


def test_what_cannot_be_compared_is_refused(caplog):
    rng = np.random.default_rng(10)
    a = tree(rng.normal(size=(2, 100, 2)))
    with pytest.raises(TypeError, match="a must be a DataTree"):
        pma.compare_draws(a["posterior"].to_dataset(), a)
    with pytest.raises(KeyError, match="no variable in common"):
        pma.compare_draws(a, tree(rng.normal(size=(2, 100)), "z"))
    with pytest.raises(ValueError, match=r"shape \(2,\) in a and \(3,\) in b"):
        pma.compare_draws(a, tree(rng.normal(size=(2, 100, 3))))
    many = standing_in().sample({"y": np.zeros((3, 2, 5))}, batched=True, draws=20)
    with pytest.raises(ValueError, match="a holds many data sets"):
        pma.compare_draws(many, many)
    with pytest.raises(KeyError, match="nu"):
        pma.compare_draws(a, a, var_names=["nu"])
    few = tree(rng.normal(size=(1, 20, 2)))
    assert np.isnan(pma.compare_draws(few, few)["c2st"]["c2st"]) and "too few" in caplog.text
