"""What classifiers are taught: the models' evidence where sketches tell it, labels elsewhere."""

import logging

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.special import softmax

import pymc_amortized as pma
from pymc_amortized.approximators.comparison.targets import CLEAR, contradiction, targets
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations

LENGTHS = (5, 20)
X = np.linspace(-1, 1, LENGTHS[1])
COMPARED = {"posteriors": False, "random_seed": 1, "progressbar": False}


def with_slope(slope=True):
    with pm.Model(coords={"obs": range(len(X))}) as model:
        mean = pm.Normal("intercept", 0, 1)
        if slope:
            mean = mean + pm.Normal("slope", 0, 1) * pm.Data("x", X, dims="obs")
        pm.Normal("y", mean, 1, observed=np.zeros(len(X)), dims="obs")
    return model


@pytest.fixture(scope="module")
def sized():
    """Return a comparison with sizes, gaps, and a covariate that one of the models does not have."""
    models = {"flat": with_slope(False), "slope": with_slope()}
    context = {"obs": LENGTHS, "x": pm.Normal.dist(0, 1)}
    options = pma.Training(num_steps=250, batch_size=128, evaluations=10)
    return pma.fit_comparison(models, context=context, missing={"y": 0.2}, training=options, **COMPARED)


def log_bayes_factor(one):
    there = ~one["missing y"]
    y, x = one["y"][there], one["x"][there]
    flat = np.eye(len(y)) + 1
    pair = (stats.multivariate_normal(np.zeros(len(y)), c).logpdf(y) for c in (flat, flat + np.outer(x, x)))
    return float(np.subtract(*pair)) if len(y) else 0.0


def test_bayes_factors_come_close_after_few_steps(sized):
    """The rarest of 1,000 data sets included, with labels alone by half a unit off."""
    datasets = of_simulations(sized.pool(1000, np.random.SeedSequence(5)))
    exact = np.array([log_bayes_factor(datasets.one(sized.common.spec, i)) for i in range(len(datasets))])
    log_p = sized.log_probabilities(datasets)
    off = (log_p[:, 0] - log_p[:, 1] - exact)[np.abs(exact) < 5]
    assert np.sqrt(np.square(off).mean()) < 0.04
    assert np.abs(off).max() < 0.25


def made(log_evidence, labels):
    return Simulations(np.asarray(labels, float)[:, None], {}, {}, extra=log_evidence)


def test_labels_stand_where_one_evidence_is_not_known():
    known = np.array([[-3.0, -1.0, -2.0], [np.nan, 0.0, 1.0], [-np.inf, 0.0, 1.0]])
    found = targets(made(known, [0, 2, 1]), 3)
    assert_allclose(found[0], softmax([-3.0, -1.0, -2.0]))
    assert_array_equal(found[1:], [[0, 0, 1], [0, 1, 0]])
    assert_array_equal(targets(made(None, [0, 2, 1]), 3), np.eye(3)[[0, 2, 1]])


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [(lambda e: e, False), (lambda e: e + [0.4, 0], True), (lambda e: 2 * e, True)],
)
def test_evidence_that_simulations_contradict_is_caught(wrong, caught):
    """A density that is not that of the simulator: off by a factor, or as if rows were twice as many."""
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=4096)
    y = rng.normal(0.8 * labels, 1)
    evidence = stats.norm.logpdf(y[:, None], [0.0, 0.8])
    evidence[::10] = np.nan
    assert (contradiction(made(wrong(evidence), labels)) > CLEAR) is caught


def normal(spread, **kwargs):
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 0, spread), 1, observed=np.zeros(3), **kwargs)
    return model


def excluded():
    """A model whose density excludes a third of what it simulates."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        pm.Normal("y", mu, pm.math.switch(mu > -0.4, 1.0, -1.0), observed=np.zeros(3))
    return model


def simulated():
    with pm.Model() as model:
        pm.Simulator("y", lambda rng, b, size: rng.normal(b, 1, size=size), pm.Normal("b", 0, 1), observed=np.zeros(3))
    return model


def zeros():
    """A model that gives 0 a probability."""
    with pm.Model() as model:
        w = pm.Beta("w", 2, 2)
        parts = [pm.DiracDelta.dist(0.0), pm.Normal.dist(0, 1)]
        pm.Mixture("y", pm.math.stack([w, 1 - w]), parts, observed=np.zeros(3))
    return model


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (excluded, "of the simulations of model 'other' are dropped"),
        (simulated, "model 'other'"),
        (zeros, "a probability stands beside a density"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_models_without_sketched_evidence_say_why(other, reason, caplog):
    models = {"normal": normal(1.0), "other": other()}
    options = COMPARED | {"training": pma.Training(num_steps=2), "compile_kwargs": {"mode": "FAST_COMPILE"}}
    with caplog.at_level(logging.INFO):
        comparison = pma.fit_comparison(models, num_simulations=2000, **options)
    assert "The classifier is taught by labels" in caplog.text
    assert reason in caplog.text
    assert comparison.provenance.training.batch_size == 1024
    with pytest.raises(ValueError, match=f"sketch=True: the evidence of the models cannot be sketched: .*{reason}"):
        pma.fit_comparison(models, num_simulations=2000, sketch=True, **options)


def test_sketches_are_wanted_or_not(sized, caplog):
    models = {"a": normal(1.0), "b": normal(2.0)}
    options = COMPARED | {"training": pma.Training(num_steps=2), "compile_kwargs": {"mode": "FAST_COMPILE"}}
    with caplog.at_level(logging.INFO):
        comparison = pma.fit_comparison(models, num_simulations=2000, sketch=False, **options)
    assert "is taught" not in caplog.text
    assert (comparison.provenance.training.batch_size, sized.provenance.training.batch_size) == (1024, 128)
    with pytest.raises(TypeError, match="sketch must be True, False or None, got 'no'"):
        pma.fit_comparison(models, sketch="no")
