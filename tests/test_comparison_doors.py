"""What comparisons refuse, what they warn of, and how their tables are printed."""

import logging
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytest
import xarray as xr

import pymc_amortized as pma
from pymc_amortized.approximators.comparison.agreement import warn_of_resolution
from pymc_amortized.approximators.comparison.fit import _check_models, _read
from pymc_amortized.approximators.comparison.model_evidence import Evidences, data_of, fits
from pymc_amortized.approximators.comparison.point_masses import warn_of_atoms
from pymc_amortized.approximators.comparison.table import ComparisonTable
from pymc_amortized.correction.evidence import Evidence
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.graph.model.common import common_data, common_structure
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.pool import Pool
from pymc_amortized.numerics.odds import Calibration, prior_weights

ROWS = 6
COMPILED = {
    "training": pma.Training(num_steps=60, batch_size=256, evaluations=5, threads=1),
    "num_simulations": 6000,
    "cores": 1,
    "random_seed": 1,
    "progressbar": False,
}
QUICK = COMPILED | {"compile_kwargs": {"mode": "FAST_COMPILE"}, "sketch": False}
"""Where compiling would take longer than simulating."""


def positive(kind):
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", 1)
        (pm.HalfNormal if kind == "half" else pm.Normal)("y", sigma=scale, observed=np.ones(ROWS))
    return model


@pytest.fixture(scope="module")
def pair():
    """Return a comparison in which one model makes no negative values."""
    return pma.fit_comparison({"half": positive("half"), "both": positive("both")}, **COMPILED)


@pytest.mark.parametrize("weight", [True, "2", None, np.bool_(True)])
def test_prior_weights_are_numbers(weight):
    with pytest.raises(TypeError, match="prior: weights must be numbers"):
        prior_weights({"a": weight, "b": 1}, ["a", "b"])
    assert list(prior_weights({"a": np.int64(1), "b": np.float32(3)}, ["a", "b"])) == [0.25, 0.75]


def test_a_model_of_one_size_is_refused_before_anything_is_trained(caplog):
    def model(constant):
        dose = np.linspace(0, 1, 20)
        with pm.Model(coords={"obs": range(20)}) as made:
            x = dose if constant else pm.Data("dose", dose, dims="obs")
            pm.Normal("y", pm.Normal("slope") * x, 1, observed=np.zeros(20), dims="obs")
        return made

    sources = {"obs": (10, 40), "dose": "resample"}
    with caplog.at_level(logging.INFO, "pymc_amortized"), pytest.raises(ValueError, match=r"models\['b'\].*obs is 10"):
        pma.fit_comparison({"a": model(False), "b": model(True)}, context=sources, **COMPILED)
    assert "Trained" not in caplog.text


def test_the_same_model_twice_is_said(caplog):
    model = positive("both")
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        _check_models({"a": model, "b": positive("both"), "c": model})
    assert "'a' and 'c' are the same object" in caplog.text and "'b'" not in caplog.text


def test_an_impossible_model_has_probability_0_and_the_others_theirs(pair, caplog):
    y = {"y": np.array([-1.0, 0.5, 0.3, -0.2, 1.0, 2.0])}
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        table = pair.compare(y, random_seed=1)
    assert "Model 'half' has density 0" in caplog.text
    assert table.log_ml["half"] == -np.inf and table.p_evidence["half"] == 0 and table.p_se["half"] == 0
    assert table.p_evidence["both"] == 1 and table.p_se["both"] == 0
    assert table.index[-1] == "half" and np.isfinite(table.dse.drop("half")).all()
    found = pair.log_marginal_likelihood({"y": np.stack([y["y"], np.ones(ROWS)])}, batched=True, random_seed=1)
    assert list(np.isneginf(found["log_marginal_likelihood"].sel(model="half"))) == [True, False]


def test_several_data_sets_are_no_table(pair):
    for several in (np.ones((3, ROWS)), [{"y": np.ones(ROWS)}] * 2):
        with pytest.raises((TypeError, ValueError), match="compare takes one data set") as refusal:
            pair.compare({"y": several} if isinstance(several, np.ndarray) else several)
        assert "batched=True" not in str(refusal.value)


def test_a_posterior_that_was_trained_further_is_put_back(pair):
    further = pair.posteriors["half"].continue_training(20, progressbar=False)
    other = pair.with_posterior("half", further)
    assert other.posteriors["half"] is further and pair.posteriors["half"] is not further
    y = {"y": np.full(ROWS, 0.5)}
    evidence = [c.log_marginal_likelihood(y, random_seed=1).sel(model="half") for c in (pair, other)]
    off = float(evidence[0].log_marginal_likelihood - evidence[1].log_marginal_likelihood)
    assert 0 < abs(off) < 4 * np.hypot(*(float(e.mcse) for e in evidence))
    with pytest.raises(KeyError, match="'hal' has no posterior"):
        pair.with_posterior("hal", further)
    with pytest.raises(ValueError, match="not of the model 'both'"):
        pair.with_posterior("both", further)


def test_a_posterior_without_density_is_no_evidence(pair, caplog, monkeypatch):
    said = {id(pair.specs["both"]): "a simulator"}
    monkeypatch.setattr(
        "pymc_amortized.approximators.comparison.trained_comparison.evidence_obstacle", lambda spec: said.get(id(spec))
    )
    without = replace(pair)
    assert set(without.weighed) == {"half"} and set(without.posteriors) == {"half", "both"}
    assert "without evidence of both" in repr(without)
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        table = without.compare({"y": np.array([0.3, 1.1, 0.2, 0.8, 0.5, 1.4])}, random_seed=1)
    assert np.isnan(table.log_ml["both"]) and np.isfinite(table.log_ml["half"])
    assert "Model 'both'" not in caplog.text and not table.warning["both"]


def test_the_table_is_printed_with_digits_that_say_something(pair):
    table = pair.compare({"y": np.ones(ROWS)}, random_seed=1)
    assert isinstance(table, ComparisonTable) and isinstance(table[["se"]], ComparisonTable)
    table.loc["both", "p_evidence"] = 1.234567e-30
    table.loc["half", "p_evidence"] = 0.0
    lines = [line.split() for line in repr(table[["p_evidence", "log_ml"]]).splitlines()]
    assert ["both", "<0.001", f"{table.log_ml['both']:.2f}"] in lines
    assert ["half", "0.000", f"{table.log_ml['half']:.2f}"] in lines
    assert "model" not in repr(table) and "e-" not in repr(table)
    assert "&lt;0.001" in table._repr_html_()
    assert table.p_evidence["both"] == 1.234567e-30  # values stay


def test_training_of_a_comparison_is_plotted(pair):
    figure = pma.plot_history(pair)
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), pair.history.held_out_loss)
    plt.close("all")


def test_what_calibration_hides_is_said(caplog):
    fine, coarse = (Calibration(np.zeros(1), np.empty(0), share) for share in (1 / 32_768, 1 / 100))
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        warn_of_resolution(fine)
        assert not caplog.text
        warn_of_resolution(coarse)
    assert "up to 4.6" in caplog.text


def joined(one, two):
    def grouped(index):
        shapes = {"y": (6,), index: (6,)}
        return Structure((Axis("rows", 6, "grouped", (("y", 0), (index, 0)), "", index=index, groups=3),), shapes)

    return common_structure({"a": grouped(one), "b": grouped(two)}, {"a": {}, "b": {}})


def test_groups_by_different_indices_are_refused_by_name():
    (axis,) = joined("county", "county").axes
    assert axis.index == "county"
    with pytest.raises(ValueError, match="different indices, \\['county', 'school'\\].*structure=\\{'y': 'exch"):
        joined("county", "school")


def by_group(name):
    with pm.Model(coords={"obs": range(12)}) as model:
        effect = pm.Normal("effect", 0, 2, shape=3)
        index = pm.Data(name, np.arange(12) % 3 if name == "county" else np.arange(12) // 4, dims="obs")
        pm.Normal("y", effect[index], 1, observed=np.zeros(12), dims="obs")
    return model


def test_different_indices_are_compared_as_columns():
    models = {name: by_group(name) for name in ("county", "school")}
    with pytest.raises(ValueError, match="different indices"):
        pma.fit_comparison(models, posteriors=False, **QUICK)
    given = {"posteriors": False, "structure": {"y": "exchangeable"}}
    comparison = pma.fit_comparison(models, **given, **QUICK)
    rng = np.random.default_rng(1)
    y = np.array([-3.0, 0.0, 3.0])[np.arange(12) % 3] + rng.normal(size=12)
    assert float(comparison.probabilities({"y": y})["probability"].sel(model="county")) > 0.8


def measured(lower, rows=ROWS):
    with pm.Model(coords={"obs": range(rows)}) as model:
        dist = pm.Normal.dist(pm.Normal("mu", 0, 1), 1)
        if lower is None:
            pm.Normal("y", model["mu"], 1, observed=np.ones(rows), dims="obs")
        else:
            pm.Censored("y", dist, lower=lower, upper=None, observed=np.ones(rows), dims="obs")
    return model


@pytest.mark.parametrize("context", [{}, {"obs": (3, 10)}])
@pytest.mark.parametrize(("one", "two", "said"), [(None, 0.0, 1), (0.0, 0.0, 0), (-0.5, 0.0, 2), (None, None, 0)])
def test_a_probability_beside_a_density_is_said(one, two, said, context, caplog):
    models = {"one": measured(one, 10), "two": measured(two, 10)}
    specs, sources, gaps = _read(models, None, context, {})
    common = common_data(specs)
    pool = Pool(common, specs, sources, gaps, {"mode": "FAST_COMPILE"})
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        warn_of_atoms(common.spec, pool.of_sizes(300, np.random.SeedSequence(1)))
    assert len(caplog.records) == said
    if said == 1:
        assert "Model 'two' gives 'y' the value 0 in" in caplog.text and "model 'one' never" in caplog.text


def spiked(kind="censored", n=6):
    slab = pm.Normal.dist(0, 2)
    with pm.Model() as model:
        if kind == "censored":
            theta = pm.Censored("theta", slab, lower=0.0, upper=None)
        else:
            theta = pm.Mixture("theta", [0.5, 0.5], [pm.DiracDelta.dist(0.0), slab])
        pm.Normal("y", theta, 1, observed=np.zeros(n))
    return model


def test_a_prior_with_an_atom_is_refused():
    with pytest.raises(ValueError, match="free variable 'theta' takes a single value in"):
        pma.fit_posterior(spiked("spike"), num_simulations=500, cores=1, random_seed=1)


def test_given_parameters_may_repeat_but_have_no_atom():
    from pymc_amortized.graph.simulation.atoms import PriorAtomError, refuse_prior_atoms
    from pymc_amortized.graph.simulation.simulator import Simulator

    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu"), 1, observed=0.0)
    spec = take_snapshot(model)
    made = Simulator(spec)(400, 1)
    repeated = replace(made, unconstrained=np.repeat(made.unconstrained[:20], 20, axis=0))
    refuse_prior_atoms(spec, repeated, by_user=True)
    with pytest.raises(PriorAtomError, match="5.0% of its prior draws"):
        refuse_prior_atoms(spec, repeated)
    half = np.where(np.arange(400)[:, None] % 2, made.unconstrained, 0.0)
    with pytest.raises(PriorAtomError, match="50.0% of its prior draws"):
        refuse_prior_atoms(spec, replace(made, unconstrained=half), by_user=True)


def test_a_model_whose_prior_has_an_atom_is_compared_without_evidence(caplog):
    with pm.Model() as normal:
        pm.Normal("y", pm.Normal("theta", 0, 2), 1, observed=np.zeros(6))
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        comparison = pma.fit_comparison({"spiked": spiked(), "normal": normal}, **COMPILED)
    assert "Model 'spiked' has no posterior, and so no evidence: free variable 'theta'" in caplog.text
    table = comparison.compare({"y": np.array([-1.2, 0.4, 0.9, -0.3, 1.1, -0.9])}, random_seed=1)
    assert np.isnan(table.log_ml["spiked"]) and np.isfinite(table.log_ml["normal"])
    assert table.p_classifier["spiked"] > 0.5  # about 0.75


def test_prior_weights_that_the_classifier_cannot_follow_are_said(pair, caplog):
    y = {"y": np.array([0.3, 1.1, 0.2, 0.8, 0.5, 1.4])}
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        assert pair.probabilities(y)["resolved"].all()
    assert "prior weights" not in caplog.text
    impossible = {"y": np.array([-3.0, 0.5, -2.0, -0.2, 1.0, 2.0])}
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        found = pair.probabilities(impossible, prior={"half": 1e6, "both": 1})
    assert not found["resolved"].any() and "cannot tell probabilities better than" in caplog.text
    table = pair.compare(impossible, prior={"half": 1e6, "both": 1}, random_seed=1)
    assert table.warning.all() and table.p_evidence["both"] == 1


def labelled(names, dims=True, of="X"):
    values = np.arange(8.0).reshape(4, 2)
    with pm.Model(coords={"obs": range(4), "feature": names}) as model:
        x = pm.Data("X", values, dims=("obs", "feature"))
        mean = pm.Normal("slope") * x[:, 0]
        pm.Normal("y", mean, 1, observed=np.zeros(4), dims="obs" if dims else None)
    return model


@pytest.mark.parametrize("context", [{"X": pm.Normal.dist(0, 1, shape=(4, 2))}, {}])
def test_columns_in_another_order_are_refused(context):
    models = {"a": labelled(["age", "sex"]), "b": labelled(["sex", "age"])}
    with pytest.raises(ValueError, match="'a' and 'b' label dim 'feature' of 'X' differently"):
        pma.fit_comparison(models, context=context, **QUICK)


def test_labels_are_those_of_whichever_model_has_them():
    def model(dims, labels=tuple("ABCD")):
        with pm.Model(coords={"obs": labels} if dims else None) as made:
            pm.Normal("y", pm.Normal("mu"), 1, observed=np.zeros(4), dims="obs" if dims else None)
        return made

    for models in ({"plain": model(False), "named": model(True)}, {"named": model(True), "plain": model(False)}):
        specs, _, _ = _read(models, None, {}, {})
        spec = common_data(specs).spec
        y = xr.DataArray(np.arange(4.0), dims="obs", coords={"obs": list("DCBA")})
        assert list(read_datasets(spec, {"y": y}).values["y"][0]) == [3, 2, 1, 0]
    models = {"plain": model(False), "named": model(True), "other": model(True, tuple("DCBA"))}
    with pytest.raises(ValueError, match="'named' and 'other' label dim 'obs'"):
        common_data(_read(models, None, {}, {})[0])


def test_a_covariate_baked_into_one_model_is_said(caplog):
    x = np.linspace(0, 1, 12)

    def model(square):
        with pm.Model() as made:
            mean = pm.Normal("slope") * (x**2 if square else pm.Data("x", x))
            pm.Normal("y", mean, 1, observed=np.zeros(12))
        return made

    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        _read({"line": model(False), "square": model(True)}, None, {"x": pm.Normal.dist(0, 1, shape=12)}, {})
    assert "Model 'square' does not hold 'x', but holds" in caplog.text and "hold pm.Data('x', ...)" in caplog.text


def test_a_density_that_proposals_missed_is_not_known():
    impossible = Evidence(-np.inf, 0.0, 0.0, 1.0, "a density of 0", True)
    found = Evidences({"a": [impossible] * 2, "b": [Evidence(-3.0, 0.1, 0.0, 1.0)] * 2})
    found = found.confirmed(np.array([[True, True], [False, True]]))
    np.testing.assert_array_equal(found.log_evidence, [[np.nan, -3.0], [-np.inf, -3.0]])
    assert "proposals missed where" in found.found["a"][0].doubt and found.found["a"][1] == impossible
    np.testing.assert_array_equal(found.doubted, [[True, False], [False, False]])
    assert list(found.complete) == [False, True]


def test_numbers_that_a_models_type_cannot_hold_are_impossible_there():
    with pm.Model() as model:
        p = pm.Beta("p", 1, 1)
        pm.CustomDist(
            "y",
            p,
            logp=lambda value, p: pm.logp(pm.Bernoulli.dist(p), value),
            random=lambda p, rng=None, size=None: rng.random(size) < p,
            dtype="bool",
            observed=np.array([True, False, True]),
        )
    spec = take_snapshot(model)
    given = DataSets({"y": np.array([[0, 1, 1], [0, 1, 2]])}, np.arange(2), True)
    assert list(fits(data_of(spec, given), given)) == [True, False]


def test_atoms_at_a_limit_are_said(caplog):
    limit = np.full(8, 0.5)

    def model(censored, parameter=False):
        with pm.Model() as made:
            held = pm.Data("limit", limit) if not parameter else None
            upper = pm.Normal("upper") if parameter and censored else held
            normal = pm.Normal.dist(pm.Normal("mu"), 1)
            if censored:
                pm.Censored("y", normal, lower=None, upper=upper, observed=np.zeros(8))
            else:
                pm.Normal("y", pm.Normal("other"), 1, observed=np.zeros(8))
        return made

    for parameter, what in ((False, "the value of 'limit'"), (True, "one value several times")):
        context = {} if parameter else {"limit": pm.Normal.dist(0, 1, shape=8)}
        specs, sources, gaps = _read({"c": model(True, parameter), "n": model(False, parameter)}, None, context, {})
        common = common_data(specs)
        pilot = Pool(common, specs, sources, gaps).of_sizes(500, np.random.SeedSequence(1))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pymc_amortized"):
            warn_of_atoms(common.spec, pilot)
        assert caplog.text.count("Believe the classifier") == 1 and f"Model 'c' gives 'y' {what}" in caplog.text
