"""Comparison of models: against closed forms, with planted errors, and at its doors."""

import logging
from dataclasses import replace

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.approximators.comparison.fit import _read, _sources
from pymc_amortized.diagnostics.model_comparison import estimate_calibration_errors, judge_probabilities
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.graph.model.common import common_data, common_structure
from pymc_amortized.graph.simulation.pool import Pool
from pymc_amortized.numerics.odds import Calibration, log_odds, posterior_weights, prior_weights

ROWS = 12
SPREADS = {"narrow": 0.3, "wide": 1.2}
BRIEF = pma.Training(num_steps=60, batch_size=256, evaluations=5, threads=1)
QUICK = {"training": BRIEF, "random_seed": 1, "progressbar": False}
INTERPRETED = QUICK | {"num_simulations": 6000, "cores": 1, "compile_kwargs": {"mode": "FAST_COMPILE"}, "sketch": False}
"""Where compiling would take longer than simulating."""
LONGEST = 20
X = np.linspace(-1, 1, LONGEST)


def normal(spread, *, name="y", rows=ROWS, dims=None, coords=None):
    with pm.Model(coords=coords) as model:
        mu = pm.Normal("mu", 0, spread)
        pm.Normal(name, mu, 1, observed=np.zeros(rows), dims=dims)
    return model


def two_priors():
    return {name: normal(spread) for name, spread in SPREADS.items()}


def log_evidence(y):
    """Of both models, (n, 2)."""
    covariances = (np.eye(ROWS) + spread**2 for spread in SPREADS.values())
    return np.stack([stats.multivariate_normal(np.zeros(ROWS), c).logpdf(y) for c in covariances], -1)


def with_slope(slope=True, fixed=False):
    with pm.Model(coords={"obs": range(LONGEST)}) as model:
        mean = pm.Normal("intercept", 0, 1)
        if slope:
            x = X if fixed else pm.Data("x", X, dims="obs")
            mean = mean + pm.Normal("slope", 0, 1) * x
        pm.Normal("y", mean, 1, observed=np.zeros(LONGEST), dims="obs")
    return model


@pytest.fixture(scope="module")
def pair():
    return pma.fit_comparison(two_priors(), **QUICK)


@pytest.fixture(scope="module")
def simulated(pair):
    made = pair.pool(2000, np.random.SeedSequence(5))
    return made.data["y"], made.unconstrained[:, 0].astype(int)


@pytest.fixture(scope="module")
def sized():
    """Return a comparison with sizes, gaps, and a covariate that one of the models does not have."""
    models = {"flat": with_slope(False), "slope": with_slope()}
    context = {"obs": (5, LONGEST), "x": pm.Normal.dist(0, 1)}
    return pma.fit_comparison(models, context=context, missing={"y": 0.2}, posteriors=False, **INTERPRETED)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# the answers


def test_bayes_factors_are_those_of_the_closed_form(pair, simulated):
    y, _ = simulated
    exact = log_evidence(y) @ [1, -1]
    found = pair.bayes_factors({"y": y}, batched=True)["log_bayes_factor"]
    off = found.sel(model="narrow", against="wide").to_numpy() - exact
    near = np.abs(exact) < 5
    assert near.mean() > 0.8
    assert np.sqrt(np.square(off[near]).mean()) < 0.1
    assert_allclose(found.sel(model="wide", against="narrow"), -found.sel(model="narrow", against="wide"))
    assert_allclose(found.sel(model="wide", against="wide"), 0.0)


def test_evidence_is_that_of_the_closed_form(pair, simulated):
    y = simulated[0][:20]
    found = pair.log_marginal_likelihood({"y": y}, batched=True, random_seed=1)
    off = found["log_marginal_likelihood"].to_numpy() - log_evidence(y)
    assert np.all(np.abs(off) < 4 * found["mcse"].to_numpy() + 1e-6)
    assert np.isfinite(pair.error) and pair.error < 0.25


def test_probabilities_take_prior_weights(pair, simulated):
    y = {"y": simulated[0][:50]}
    equal, other = (pair.probabilities(y, batched=True, prior=p) for p in (None, {"narrow": 3, "wide": 1}))
    odds = [p["probability"].sel(model="narrow") / p["probability"].sel(model="wide") for p in (equal, other)]
    assert_allclose(odds[1] / odds[0], 3)
    assert_allclose(other["probability"].sum("model"), 1)
    assert other.attrs["prior_narrow"] == 0.75
    never = pair.probabilities(y, batched=True, prior={"narrow": 0, "wide": 1})
    assert_allclose(never["probability"].sel(model="wide"), 1)


def test_one_data_set_is_as_in_a_batch(pair, simulated):
    y = simulated[0]
    many = pair.probabilities({"y": y[:3]}, batched=True)
    one = pair.probabilities({"y": y[1]})
    assert one["probability"].dims == ("model",) and one["ood_pvalue"].dims == ()
    assert many["probability"].dims == ("dataset", "model")
    assert_allclose(one["probability"], many["probability"].isel(dataset=1), rtol=1e-4)
    labelled = xr.Dataset({"y": (("dataset", "obs"), y[:3])}, {"dataset": list("abc")})
    assert list(pair.probabilities(labelled, batched=True)["dataset"].values) == list("abc")


def test_arviz_draws_the_table(pair, simulated):
    table = pair.compare({"y": simulated[0][3]}, random_seed=1)
    for relative, value in ((True, table.log_bf), (False, table.log_ml)):
        drawn = az.plot_compare(table, relative_scale=relative, backend="none").viz["plot"].item()
        points = next(part for part in drawn if part["function"] == "scatter")
        assert_allclose(points["x"], value)
        labels = next(part for part in drawn if part["function"] == "yticks")
        assert list(labels["labels"]) == list(table.index)


def test_the_table_holds_both_answers(pair, simulated):
    y = simulated[0][3]
    table = pair.compare({"y": y}, prior={"narrow": 1, "wide": 3}, random_seed=1)
    p = posterior_weights(log_evidence(y), np.array([0.25, 0.75]))
    assert_allclose(table.loc[["narrow", "wide"], "p_evidence"], p, atol=0.005)
    assert_allclose(table.p_evidence, table.p_classifier, atol=0.06)
    assert list(table["rank"]) == [0, 1] and table.p_evidence.is_monotonic_decreasing
    assert table.index.name == "model" and not table.warning.any()
    assert table.log_bf.iloc[0] == 0 and table.dse.iloc[0] == 0
    assert "elpd" in table and "elpd" not in str(table) and "elpd" not in table._repr_html_()
    slope = p[0] * p[1] * np.hypot(*table.se)  # of a logistic function
    assert_allclose(table.p_se, slope, rtol=0.1)


def test_a_wrong_classifier_is_contradicted_by_the_evidence(pair, simulated, caplog):
    y, _ = simulated
    decided = y[np.argmax(log_evidence(y) @ [-1, 1])]
    inverted = replace(pair.calibration, temperature=np.array([2.5]))  # nearly undecided always
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        table = replace(pair, calibration=inverted).compare({"y": decided}, random_seed=1)
    assert "Classifier and evidence disagree" in caplog.text
    assert table.warning.all()


@pytest.mark.usefixtures("blind")
def test_where_weights_are_poor_the_classifier_is_left(pair, simulated, caplog):
    from test_escalation import HOPELESS, planted

    alone = planted(pair.posteriors["wide"], *HOPELESS).replaced(sketch=None)  # which would make up for the network
    poor = replace(pair, posteriors=pair.posteriors | {"wide": alone})
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        table = poor.compare({"y": simulated[0][0]}, random_seed=1)
    assert "Model 'wide' has no log marginal likelihood" in caplog.text
    assert np.isnan(table.p_evidence).all() and np.isfinite(table.p_classifier).all()
    assert table.warning["wide"] and not table.warning["narrow"]


# what none of the models makes


def test_data_from_none_of_the_models_are_flagged(pair, simulated, caplog):
    rng = np.random.default_rng(1)
    strange = {"shifted": np.full(ROWS, 20.0) + rng.normal(size=ROWS), "outlier": np.append(np.zeros(ROWS - 1), 30.0)}
    for y in strange.values():
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pymc_amortized"):
            found = pair.probabilities({"y": y})
        assert float(found["ood_pvalue"]) < 0.005
        assert "unlike what any of the models ['narrow', 'wide'] simulates" in caplog.text


def test_simulated_data_are_rarely_flagged(pair, simulated):
    y, label = simulated
    found = pair.probabilities({"y": y}, batched=True)
    own = found["ood_pvalue_model"].to_numpy()[np.arange(len(y)), label]
    assert abs((own < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(y)) + 0.01
    assert (found["ood_pvalue"] < 0.05).mean() <= 0.06
    assert_allclose(found["ood_pvalue"], found["ood_pvalue_model"].max("model"))


def test_what_simulations_cannot_show_is_not_claimed(pair):
    found = pair.bayes_factors({"y": np.full(ROWS, 4.0)})  # some 40 nats
    assert not found["resolved"].sel(model="narrow", against="wide")
    assert float(found["log_bayes_factor"].sel(model="wide", against="narrow")) > 8
    assert float(np.abs(found["log_bayes_factor"]).max()) < pair.calibration.largest + 1


# sizes, covariates, gaps


def test_a_model_need_not_have_the_covariate(sized):
    assert [c.name for c in sized.common.spec.context] == ["x"]
    rng = np.random.default_rng(3)
    x = rng.normal(size=LONGEST)
    y = 2.0 * x + rng.normal(size=LONGEST)
    y[3] = np.nan
    assert float(sized.probabilities({"x": x, "y": y})["probability"].sel(model="slope")) > 0.95
    some = [{"x": x[:n], "y": y[:n]} for n in (5, 12, LONGEST)]
    many = sized.probabilities(some, batched=True)["probability"]
    for i, each in enumerate(some):
        assert_allclose(many.isel(dataset=i), sized.probabilities(each)["probability"], rtol=1e-3, atol=1e-5)
    order = rng.permutation(LONGEST)
    assert_allclose(
        sized.probabilities({"x": x[order], "y": y[order]})["probability"], many.isel(dataset=2), rtol=1e-3, atol=1e-5
    )


def test_sizes_and_covariates_tell_nothing_of_the_model(sized):
    made = sized.pool(4000, np.random.SeedSequence(3))
    label = made.unconstrained[:, 0]
    first, second = (made.lengths["obs"][label == k] for k in (0, 1))
    assert_allclose(np.bincount(first, minlength=30), np.bincount(second, minlength=30), atol=20)
    share = made.missing["y"].sum(1) / made.lengths["obs"]
    assert stats.ks_2samp(share[label == 0], share[label == 1]).pvalue > 0.001
    runs = np.flatnonzero(np.diff(label))
    assert len(runs) > 1500  # batches take every so-manieth


def test_what_a_model_drops_is_made_up_for_at_that_size():
    """Otherwise small data sets would speak for the model that drops large ones."""
    with pm.Model(coords={"obs": range(10)}) as picky:
        mu = pm.Normal("mu", 0, 1)
        n = picky.dim_lengths["obs"]
        pm.Normal("y", mu, pm.math.switch(mu > 0.1 * n - 1, 1.0, -1.0), observed=np.zeros(10), dims="obs")
    models = {"plain": normal(1.0, rows=10, dims="obs", coords={"obs": range(10)}), "picky": picky}
    specs, sources, gaps = _read(models, None, {"obs": (5, 10)}, {})
    made = Pool(common_data(specs), specs, sources, gaps, {"mode": "FAST_COMPILE"})(2000, np.random.SeedSequence(1))
    label = made.unconstrained[:, 0]
    assert all(why.startswith("picky: ") for why in made.dropped) and made.dropped
    counts = [np.bincount(made.lengths["obs"][label == k], minlength=11)[5:] for k in (0, 1)]
    assert_allclose(*counts, atol=20)


def selective(by):
    """Leave the half of the prior that is above what depends on the size, or on a covariate."""
    with pm.Model(coords={"obs": range(10)}) as model:
        x = pm.Data("x", np.zeros(10), dims="obs")
        mu = pm.Normal("mu", 0, 1)
        bound = {"size": 0.2 * model.dim_lengths["obs"] - 1, "x": 3 * x.mean(), "none": -np.inf}[by]
        pm.Normal("y", mu, pm.math.switch(mu > bound, 1.0, -1.0), observed=np.zeros(10), dims="obs")
    return model


def test_what_a_model_drops_is_made_up_for_at_those_covariates():
    """Otherwise covariates would speak for the model that keeps more at them."""
    models = {"plain": selective("none"), "selective": selective("x")}
    specs, sources, gaps = _read(models, None, {"x": pm.Normal.dist(0, 1)}, {})
    made = Pool(common_data(specs), specs, sources, gaps, {"mode": "FAST_COMPILE"})(2000, np.random.SeedSequence(1))
    assert any(why.startswith("selective: ") for why in made.dropped)
    x, label = made.data["x"].mean(1), made.unconstrained[:, 0]
    assert stats.ks_2samp(x[label == 0], x[label == 1]).pvalue > 0.001
    mu = made.data["y"].mean(1)[label == 1]
    assert np.corrcoef(mu, x[label == 1])[0, 1] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("by", ["size", "x"])
def test_a_truncated_prior_is_counted_at_the_size_and_covariates_of_the_data(by):
    context = {"x": pm.Normal.dist(0, 1)} | ({"obs": (3, 10)} if by == "size" else {})
    models = {"plain": selective("none"), "selective": selective(by)}
    comparison = pma.fit_comparison(models, context=context, **QUICK)
    rng = np.random.default_rng(1)
    rows = (3, 10) if by == "size" else (10, 10)
    for n, level in zip(rows, (-0.3, 0.3), strict=True):
        y, x = 0.8 + rng.normal(size=n), level + rng.normal(size=n) * 0.1
        bound = 0.2 * n - 1 if by == "size" else 3 * x.mean()
        above = stats.norm.logsf(bound, y.sum() / (n + 1), (n + 1) ** -0.5) - stats.norm.logsf(bound)
        found = comparison.log_marginal_likelihood({"x": x, "y": y}, random_seed=1)
        off = float(found["log_marginal_likelihood"].diff("model").item()) - above
        assert abs(off) < 4 * float(np.hypot(*found["mcse"].to_numpy()))


def test_covariates_of_one_model_reach_the_network():
    models = {"flat": with_slope(False), "slope": with_slope(fixed=True)}
    comparison = pma.fit_comparison(models, posteriors=False, **INTERPRETED)
    seen = [array.name for array in comparison.network.encoder.layout.arrays]
    assert seen == ["y", *comparison.common.names["slope"].values()]
    (axis,) = comparison.structure.axes
    assert axis.kind == "exchangeable" and len(axis.carriers) == 2
    assert float(comparison.probabilities({"y": 2 * X})["probability"].sel(model="slope")) > 0.9
    assert float(comparison.probabilities({"y": 0 * X})["probability"].sel(model="slope")) < 0.5


def test_models_without_density_have_the_classifier_alone(caplog):
    def skewed(mu, rng=None, size=None):
        return mu + rng.exponential(size=size) - 1

    with pm.Model() as simulator:
        pm.CustomDist("y", pm.Normal("mu", 0, 0.3), random=skewed, observed=np.zeros(ROWS))
    models = {"normal": normal(0.3), "skewed": simulator}
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        options = INTERPRETED | {"structure": {"y": "exchangeable"}, "posteriors": False}
        comparison = pma.fit_comparison(models, **options)
    assert caplog.text.count("No evidence beside the classifier's word") == 1
    assert "model 'skewed': the log marginal likelihood needs the model's density" in caplog.text
    y = np.random.default_rng(0).exponential(size=ROWS) - 1
    table = comparison.compare({"y": y})
    assert table.p_classifier["skewed"] > 0.5
    assert np.isnan(table.log_ml).all() and np.isnan(table.p_evidence).all() and not table.warning.any()


def test_an_ordered_prior_is_normalized(caplog):
    ordered = pm.distributions.transforms.ordered
    models = {}
    for name, transform in (("free", {}), ("ordered", {"transform": ordered, "initval": [-1, 1]})):
        with pm.Model() as models[name]:
            mu = pm.Normal("mu", 0, 1, shape=2, **transform)
            pm.Normal("y", mu, 0.5, observed=np.zeros(2))
    comparison = pma.fit_comparison(models, **QUICK)
    assert comparison.kept["ordered"].log_share == pytest.approx(-np.log(2))  # sorted, not rejected
    y = {"y": np.array([-1.5, 1.5])}
    found = comparison.log_marginal_likelihood(y, random_seed=1)["log_marginal_likelihood"]
    assert float(found.sel(model="ordered") - found.sel(model="free")) == pytest.approx(np.log(2), abs=0.05)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        comparison.posteriors["ordered"].log_marginal_likelihood(y, random_seed=1)
    assert "larger by 0.69" in caplog.text
    factor = comparison.bayes_factors(y)["log_bayes_factor"].sel(model="ordered", against="free")
    assert float(factor) == pytest.approx(np.log(2), abs=0.5)


# trained posteriors


def test_a_trained_posterior_stands_for_its_model(pair):
    models = {"narrow": pair.posteriors["narrow"], "wide": two_priors()["wide"]}
    comparison = pma.fit_comparison(models, posteriors=False, **QUICK)
    assert comparison.posteriors == {"narrow": pair.posteriors["narrow"]}
    assert np.isfinite(comparison.compare(random_seed=1).log_ml["narrow"])


def test_context_is_that_of_the_posteriors(line_posterior):
    spec = line_posterior.spec
    assert _sources({"a": line_posterior}, None, None) == ({}, {})
    other = replace(line_posterior, context={"x": "resample"}, missing={"y": 0.1})
    assert _sources({"a": other}, None, None) == ({"x": "resample"}, {"y": 0.1})
    assert spec is other.spec


# checks


def test_a_calibrated_comparison_passes(pair):
    check = pma.check_comparison(pair, num_datasets=4000, prior={"narrow": 1, "wide": 4}, random_seed=1)
    scores = check["scores"]
    assert float(scores["expected_calibration_error"]) < 0.02
    assert scores.attrs["calibrated"] == 1
    assert_allclose((check["predictions"]["true_model"] == 1).mean(), 0.8, atol=0.03)
    assert_allclose(check["confusion"]["share"].sum("chosen"), 1)
    assert check["reliability"]["share"].dims == ("model", "bin")


@pytest.mark.parametrize("temperature", [-0.7, 0.9])
def test_an_over_or_underconfident_classifier_is_caught(pair, temperature, caplog):
    wrong = replace(pair, calibration=replace(pair.calibration, temperature=np.array([temperature])))
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        check = pma.check_comparison(wrong, num_datasets=2000, random_seed=1)
    assert check["scores"].attrs["calibrated"] == 0
    assert ("over-confident" if temperature < 0 else "under-confident") in caplog.text


def test_a_misplaced_prior_weight_is_caught(pair, simulated):
    y, label = simulated
    twice = posterior_weights(log_evidence(y), np.array([0.7, 0.3]))  # data sets came half and half
    scores = judge_probabilities(["narrow", "wide"], label, twice, np.random.default_rng(1))["scores"]
    assert scores.attrs["calibrated"] == 0 and float(scores["expected_calibration_error"]) > 0.05
    right = posterior_weights(log_evidence(y), np.array([0.5, 0.5]))
    right_scores = judge_probabilities(["narrow", "wide"], label, right, np.random.default_rng(1))["scores"]
    assert right_scores.attrs["calibrated"] == 1
    assert float(right_scores["log_score"]) > float(scores["log_score"])


def test_the_calibration_error_is_not_biased():
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(300):
        p = rng.dirichlet([0.7, 0.7, 0.7], size=400)
        label = (rng.random((400, 1)) > p.cumsum(1)[:, :-1]).sum(1)
        errors.append(estimate_calibration_errors(label, p).mean())
    z = np.mean(errors) / (np.std(errors) / np.sqrt(len(errors)))
    assert abs(z) < 4


def test_checks_by_size(sized):
    check = pma.check_comparison(sized, num_datasets=2000, random_seed=1)
    assert check["by_size"].sizes["size"] >= 3
    assert str(check["by_size"]["size"].values[0]).startswith("obs 5 to ")
    one = pma.check_comparison(sized, num_datasets=500, lengths={"obs": 7}, random_seed=1)
    assert "by_size" not in one.children
    with pytest.raises(ValueError, match="5 to 20"):
        pma.check_comparison(sized, lengths={"obs": 30})
    with pytest.raises(KeyError, match="obs"):
        pma.check_comparison(sized, lengths={"row": 7})


def test_plots_show_the_numbers(pair):
    check = pma.check_comparison(pair, num_datasets=1000, random_seed=1)
    figure = pma.plot_confusion(check)
    texts = [t.get_text() for t in figure.axes[0].texts]
    share = check["confusion"]["share"].to_numpy()
    assert texts[0] == f"{share[0, 0]:.0%}" and len(texts) == 8
    figure = pma.plot_reliability(check)
    assert [ax.get_title() for ax in figure.axes] == ["narrow", "wide"]
    x, y = figure.axes[0].lines[-1].get_data()
    assert_allclose(x, check["reliability"]["probability"].sel(model="narrow"))
    assert_allclose(y, check["reliability"]["share"].sel(model="narrow"))
    with pytest.raises(TypeError, match="check_comparison"):
        pma.plot_confusion(xr.DataTree())
    (plot,) = pma.plot_confusion(check, backend="none").viz["plot"].to_numpy()
    assert [part["string"] for part in plot if part["function"] == "text"] == texts
    assert len(pma.plot_reliability(check, backend="none").viz["plot"]) == 2


def test_probabilities_are_plotted_in_one_order(pair, simulated):
    found = pair.probabilities({"y": simulated[0][:40]}, batched=True)
    found["ood_pvalue"][3] = 0.001
    figure = pma.plot_probabilities(found)
    p = found["probability"].to_numpy()
    first = (p.argmax(1) == 0).sum()
    assert [ax.get_title() for ax in figure.axes] == ["narrow", "wide"]
    assert figure.axes[0].texts[0].get_text() == f"most probable for {first} of 40"
    points = [np.concatenate([c.get_offsets() for c in ax.collections]) for ax in figure.axes]
    narrow, wide = (values[np.argsort(values[:, 0]), 1] for values in points)
    assert_allclose(narrow + wide, 1)
    assert (np.diff(narrow[:first]) <= 0).all() and (narrow[:first] >= 0.5).all() and (narrow[first:] <= 0.5).all()
    assert len(figure.axes[0].collections[1].get_offsets()) == (found["ood_pvalue"] < 0.01).sum()
    assert "in doubt" in figure.get_suptitle()
    assert len(pma.plot_probabilities(found, backend="none").viz["plot"]) == 2
    with pytest.raises(ValueError, match="batched=True"):
        pma.plot_probabilities(found.isel(dataset=0))
    with pytest.raises(TypeError, match=r"comparison\.probabilities"):
        pma.plot_probabilities(found["probability"])
    plt.close("all")


# files


def test_a_comparison_comes_back_from_its_file(pair, simulated, tmp_path):
    path = tmp_path / "comparison.pma"
    pair.save(path)
    loaded = pma.load(path, model=two_priors())
    y = {"y": simulated[0][:20]}
    for name in ("probability", "ood_pvalue"):
        assert_allclose(
            loaded.probabilities(y, batched=True)[name], pair.probabilities(y, batched=True)[name], rtol=1e-5
        )
    one = {"y": simulated[0][0]}
    again = [c.compare(one, random_seed=1) for c in (loaded, pair)]
    assert_allclose(*(table.log_ml for table in again), rtol=1e-6)
    assert str(loaded) == str(pair) and loaded.error == pair.error
    check = pma.check_comparison(loaded, num_datasets=500, random_seed=1)  # no context, no sources
    assert check["scores"].attrs["calibrated"] == 1


def test_files_name_what_differs(pair, tmp_path):
    path = tmp_path / "comparison.pma"
    pair.save(path)
    with pytest.raises(TypeError, match="by name"):
        pma.load(path, model=two_priors()["wide"])
    with pytest.raises(KeyError, match="holds a comparison of \\['narrow', 'wide'\\]"):
        pma.load(path, model={"narrow": normal(0.3)})
    with pytest.raises(ValueError, match="model\\['wide'\\].*log density of 'mu' differs"):
        pma.load(path, model={"narrow": normal(0.3), "wide": normal(1.3)})
    damaged = tmp_path / "damaged.pma"
    damaged.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged"):
        pma.load(damaged, model=two_priors())


def test_files_without_posteriors_know_their_models(sized, tmp_path):
    path = tmp_path / "comparison.pma"
    sized.save(path)
    models = {"flat": with_slope(False), "slope": with_slope()}
    loaded = pma.load(path, model=models)
    rng = np.random.default_rng(1)
    data = {"x": rng.normal(size=9), "y": rng.normal(size=9)}
    assert_allclose(loaded.probabilities(data)["probability"], sized.probabilities(data)["probability"], rtol=1e-5)
    with pytest.raises(ValueError, match="sources of context"):
        pma.check_comparison(loaded)
    sources = {"context": {"obs": (5, LONGEST), "x": pm.Normal.dist(0, 1)}, "missing": {"y": 0.2}}
    assert "scores" in pma.check_comparison(loaded, num_datasets=200, random_seed=1, **sources).children
    with pytest.raises(ValueError, match="model\\['slope'\\].*not the one in the file"):
        pma.load(path, model={"flat": models["flat"], "slope": models["flat"]})


# the door


def poisson(rows=ROWS):
    with pm.Model() as model:
        pm.Poisson("y", pm.Gamma("rate", 2, 1), observed=np.zeros(rows, dtype=int))
    return model


def with_potential():
    model = normal(1.0)
    with model:
        pm.Potential("wish", -(model["mu"] ** 2))
    return model


LABELLED = {"obs": [f"a{i}" for i in range(ROWS)]}
OTHERWISE = {"obs": [f"b{i}" for i in range(ROWS)]}

REFUSED = {
    "names": ({"b": lambda: normal(1.0, name="z")}, {}, ValueError, "different variables: 'a'.*'b' \\['z'\\]"),
    "shape": ({"b": lambda: normal(1.0, rows=5)}, {}, ValueError, "'y' has shape \\(12,\\) in model 'a'"),
    "measure": ({"b": poisson}, {}, ValueError, "values continuous in model 'a', discrete in 'b'"),
    "potential": ({"b": with_potential}, {}, ValueError, "models\\['b'\\] has potentials \\['wish'\\]"),
    "dims": (
        {
            "a": lambda: normal(1.0, dims="obs", coords=LABELLED),
            "b": lambda: normal(1.0, dims="row", coords={"row": range(ROWS)}),
        },
        {},
        ValueError,
        "'y' has dims \\('obs',\\) in model 'a', \\('row',\\) in 'b'",
    ),
    "coords": (
        {
            "a": lambda: normal(1.0, dims="obs", coords=LABELLED),
            "b": lambda: normal(1.0, dims="obs", coords=OTHERWISE),
        },
        {},
        ValueError,
        "label dim 'obs' of 'y' differently",
    ),
    "size": (
        {"a": lambda: with_slope(), "b": lambda: normal(1.0, rows=LONGEST)},
        {"context": {"obs": (5, 20), "x": "resample"}},
        KeyError,
        "models\\['b'\\].*no dimension named 'obs'",
    ),
    "copy": (
        {"a": lambda: with_slope(), "b": lambda: with_slope(fixed=True)},
        {"context": {"x": pm.Normal.dist(0, 1)}},
        ValueError,
        "context 'x' differs between data sets, but model 'b' holds its values fixed",
    ),
    "context": ({"b": lambda: normal(1.0)}, {"context": {"z": "resample"}}, KeyError, "no model has.*'z'"),
    "prior": ({"b": lambda: normal(1.0)}, {"prior": {"a": 1}}, KeyError, "prior: weights of \\['a'\\]"),
    "weights": ({"b": lambda: normal(1.0)}, {"prior": {"a": -1, "b": 1}}, ValueError, "none below 0"),
    "entry": (
        {"b": lambda: 3},
        {},
        TypeError,
        "models\\['b'\\] must be a pymc.Model, .* or an AmortizedPosterior, got int",
    ),
    "posteriors": ({"b": lambda: normal(1.0)}, {"posteriors": "no"}, TypeError, "posteriors must be True or False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_refused_by_name(name):
    models, kwargs, error, match = REFUSED[name]
    built = {"a": lambda: normal(1.0)} | models
    with pytest.raises(error, match=match):
        pma.fit_comparison({k: build() for k, build in built.items()}, **QUICK, **kwargs)


def test_one_model_is_no_comparison():
    with pytest.raises(ValueError, match="at least two"):
        pma.fit_comparison({"a": normal(1.0)})
    with pytest.raises(TypeError, match="must map names"):
        pma.fit_comparison([normal(1.0), normal(2.0)])


@pytest.mark.parametrize(
    ("prior", "error"),
    [({"narrow": 1}, KeyError), ({"narrow": 0, "wide": 0}, ValueError), ({"narrow": "x", "wide": 1}, TypeError)],
)
def test_prior_weights_are_read_at_every_door(pair, prior, error):
    for ask in (pair.probabilities, pair.compare):
        with pytest.raises(error, match="prior"):
            ask(prior=prior)


def test_data_that_models_do_not_share_have_to_be_given():
    with pm.Model() as other:
        pm.Normal("y", pm.Normal("mu", 0, 1), 1, observed=np.ones(ROWS))
    specs, _, _ = _read({"a": normal(1.0), "b": other}, None, {}, {})
    assert not common_data(specs).spec.holds_data
    same, _, _ = _read(two_priors(), None, {}, {})
    assert common_data(same).spec.holds_data


# the parts


def axis(kind, *carriers, **kwargs):
    return Axis("rows", 6, kind, tuple((name, 0) for name in carriers), "", **kwargs)


def joined(*axes):
    structures = {str(i): Structure((each,), {"y": (6,), "x": (6,), "g": (6,)}) for i, each in enumerate(axes)}
    names = {"0": {}, "1": {"x": "1: x"}}
    return common_structure(structures, names).axes


@pytest.mark.parametrize(
    ("one", "two", "kind"),
    [
        ("exchangeable", "exchangeable", "exchangeable"),
        ("exchangeable", "grouped", "grouped"),
        ("sequence", "grouped", "sequence"),
        ("sequence", "exchangeable", "sequence"),
        ("exchangeable", "features", "features"),
    ],
)
def test_the_coarsest_structure_holds(one, two, kind):
    for first, second in ((one, two), (two, one)):
        (found,) = joined(axis(first, "y"), axis(second, "y", "x"))
        assert found.kind == kind and found.carriers == (("y", 0), ("1: x", 0))


def test_groups_of_rows_are_kept():
    (found,) = joined(axis("exchangeable", "y"), axis("grouped", "y", "g", index="g", groups=3))
    assert (found.kind, found.index, found.groups) == ("grouped", "g", 3)
    (found,) = joined(axis("grouped", "y"), axis("grouped", "y", "g", index="g", groups=3))
    assert (found.kind, found.index, found.groups) == ("grouped", None, 0)
    (found,) = joined(axis("exchangeable", "y", independent=True), axis("exchangeable", "y", independent=False))
    assert found.independent is False


def test_calibration_repairs_overconfidence_by_size():
    rng = np.random.default_rng(1)
    extents = rng.uniform(1, 4, size=(20_000, 1))
    exact = rng.normal(size=(20_000, 2)) * extents
    p = posterior_weights(exact, np.array([0.5, 0.5]))
    label = (rng.random(20_000) > p[:, 0]).astype(int)
    found = Calibration.fit(exact * np.exp(0.4 * extents), label, extents, rng)
    assert_allclose(found.temperature[1], 0.4, atol=0.05)
    error = np.exp(found(exact * np.exp(0.4 * extents), extents)) - p
    assert np.abs(error).max() < 0.03
    right = Calibration.fit(exact, label, extents, rng)
    assert np.all(right.temperature == 0) and right.share == 1 / 20_000


def test_confident_mistakes_widen_the_share():
    rng = np.random.default_rng(1)
    label = rng.integers(2, size=10_000)
    logits = np.where(np.arange(2) == label[:, None], 30.0, 0.0)
    logits[:50] = logits[:50, ::-1]
    found = Calibration.fit(logits, label, np.empty((10_000, 0)), rng)
    p = np.exp(found(logits, np.empty((10_000, 0))))
    assert 0.002 < 1 - p.max(1).mean() < 0.02
    assert np.isfinite(log_odds(np.log(p))).all()


def test_prior_weights_need_not_add_up():
    assert_allclose(prior_weights({"a": 2, "b": 6}, ["a", "b"]), [0.25, 0.75])
    assert_allclose(prior_weights(None, ["a", "b", "c"]), 1 / 3)


def test_a_truncated_prior_is_said_and_counted(caplog):
    """Half of the prior gives a negative scale: the evidence is that under the half that is left."""
    with pm.Model() as truncated:
        mu = pm.Normal("mu", 0, 1)
        pm.Normal("y", mu, pm.math.switch(mu > 0, 1.0, -1.0), observed=np.zeros(ROWS))
    with pm.Model() as half:
        pm.Normal("y", pm.HalfNormal("mu", 1), 1, observed=np.zeros(ROWS))
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        comparison = pma.fit_comparison({"half": half, "truncated": truncated}, **QUICK)
    assert "simulations of model 'truncated'" in caplog.text and "truncated to the rest" in caplog.text
    assert comparison.kept["truncated"].share == pytest.approx(0.5, abs=0.03)
    y = {"y": 1.5 + np.linspace(-1, 1, ROWS)}
    found = comparison.log_marginal_likelihood(y, random_seed=1)
    difference = float(found["log_marginal_likelihood"].diff("model").item())
    assert abs(difference) < 4 * float(np.hypot(*found["mcse"].to_numpy()))
    factor = comparison.bayes_factors(y)["log_bayes_factor"].sel(model="half", against="truncated")
    assert abs(float(factor)) < 0.2


def grouped(effects):
    y = 0.5 + np.random.default_rng(4).normal(size=(6, 1)) + np.random.default_rng(5).normal(size=(6, 5))
    with pm.Model(coords={"group": range(6), "row": range(5)}) as model:
        mean = pm.Normal("mu", 0, 1)
        if effects:
            mean = mean + pm.HalfNormal("tau", 1) * pm.Normal("effect", 0, 1, dims="group")[:, None]
        pm.Normal("y", mean, pm.HalfNormal("noise", 2), observed=y, dims=("group", "row"))
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_group_effects_or_none_as_by_smc():
    models = {"pooled": grouped(False), "groups": grouped(True)}
    comparison = pma.fit_comparison(models, training=pma.Training(num_steps=400), random_seed=1, progressbar=False)
    table = comparison.compare(random_seed=1)
    smc = {}
    for name, model in models.items():
        with model:
            tree = pm.sample_smc(2000, chains=4, cores=1, random_seed=1, progressbar=False)
        stages = tree.sample_stats["log_marginal_likelihood"].to_numpy()
        runs = [[v for v in np.ravel(chain) if v is not None and np.isfinite(v)][-1] for chain in stages]
        smc[name] = np.mean(runs), np.std(runs, ddof=1) / 2
    by_smc, error = smc["groups"][0] - smc["pooled"][0], np.hypot(smc["groups"][1], smc["pooled"][1])
    ours = table.log_ml["groups"] - table.log_ml["pooled"]
    assert abs(ours - by_smc) < 4 * np.hypot(error, np.hypot(*table.se)) + 0.02
    factor = comparison.bayes_factors()["log_bayes_factor"].sel(model="groups", against="pooled")
    assert abs(min(float(factor), 5) - min(by_smc, 5)) < 1.0
