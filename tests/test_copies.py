"""Copies, other processes and threads: everything that is trained goes there, and gives the same results."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pymc as pm
import pytest
from conftest import interpreted
from small_models import BRIEF, line

import pymc_amortized as pma

Y = np.array([0.3, -0.2, 0.5, 0.1])
FAST: dict[str, Any] = {"compile_kwargs": {"mode": "FAST_COMPILE"}, "cores": 1}
QUIET: dict[str, Any] = {"training": BRIEF, "random_seed": 1, "progressbar": False}
WAYS = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: cloudpickle.loads(cloudpickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


def draws(posterior: pma.AmortizedPosterior, seed: int = 3, correction: Any = "psis") -> np.ndarray:
    options: dict[str, Any] = {"draws": 40, "chains": 2, "correction": correction, "progressbar": False}
    return posterior.sample({"y": Y}, random_seed=seed, **options).posterior.to_dataset().to_array().values


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_posterior_gives_the_same_draws(line_posterior, way):
    copied = WAYS[way](line_posterior)
    assert copied is not line_posterior and repr(copied) == repr(line_posterior)
    np.testing.assert_array_equal(draws(copied), draws(line_posterior))


def test_a_copy_keeps_what_files_do_not_hold():
    sources = {"x": lambda rng: rng.normal(size=4)}
    gaps = {"y": lambda rng, shape: rng.random(shape) < 0.2}
    posterior = interpreted(line(), num_steps=20, num_simulations=300, context=sources, missing=gaps)
    copied = pickle.loads(pickle.dumps(posterior))
    assert copied.sketch is None and copied.compile_kwargs == posterior.compile_kwargs
    one, two = (p.simulator(30, np.random.SeedSequence(1)).data for p in (posterior, copied))
    np.testing.assert_array_equal(one["x"], two["x"])
    copied.continue_training(10, progressbar=False)


def test_other_processes_give_the_same_draws(line_posterior):
    expected = draws(line_posterior)
    for found in joblib.Parallel(1, backend="loky")([joblib.delayed(draws)(line_posterior)]):
        np.testing.assert_array_equal(found, expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(draws, (line_posterior,)), expected)


def test_a_likelihood_is_copied():
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu"), 1, observed=np.zeros(4))
    likelihood = pma.fit_likelihood(model, num_simulations=500, **FAST, **QUIET)
    copied = pickle.loads(pickle.dumps(likelihood))
    np.testing.assert_array_equal(copied.logp(Y, {"mu": 0.5}), likelihood.logp(Y, {"mu": 0.5}))
    assert copied.to_model().free_RVs[0].name == "mu"


def test_a_joint_is_copied_as_one():
    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.CustomDist("y", mu, random=lambda mu, rng=None, size=None: rng.normal(mu, 1, size), observed=np.zeros(4))
    joint = pma.fit_joint(model, num_simulations=500, **FAST, **QUIET)
    copied = pickle.loads(pickle.dumps(joint))
    np.testing.assert_array_equal(draws(copied.posterior), draws(joint.posterior))
    assert copied.posterior.learned is not None


@pytest.mark.slow
def test_a_comparison_is_copied_as_one():
    models = {}
    for name, scale in (("narrow", 1.0), ("wide", 4.0)):
        with pm.Model() as models[name]:
            pm.Normal("y", pm.Normal("mu", 0, scale), 1, observed=np.zeros(4))
    comparison = pma.fit_comparison(models, num_simulations=2000, **FAST, **QUIET)
    copied = pickle.loads(pickle.dumps(comparison))
    found, expected = (c.probabilities({"y": Y})["probability"].values for c in (copied, comparison))
    np.testing.assert_array_equal(found, expected)
    assert all(copied.posteriors[name].spec is copied.specs[name] for name in copied.posteriors)


@pytest.mark.parametrize("compiled", [True, False])
def test_threads_give_what_turns_give(line_posterior, compiled):
    posterior = line_posterior if compiled else interpreted(line(), num_steps=20, num_simulations=300)
    seeds, correction = range(6), "psis" if compiled else None  # weighing takes long where the density is interpreted
    expected = [draws(posterior, seed, correction) for seed in seeds]
    cold = pickle.loads(pickle.dumps(posterior))
    with ThreadPoolExecutor(3) as pool:
        for found, own in zip(pool.map(lambda seed: draws(cold, seed, correction), seeds), expected, strict=True):
            np.testing.assert_array_equal(found, own)
