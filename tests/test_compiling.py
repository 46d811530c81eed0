"""What is compiled: loops on every backend, once for each model, and what draws are asked."""

import logging
import time

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_models import line

import pymc_amortized as pma
from pymc_amortized.approximators.fitting import plan
from pymc_amortized.approximators.fitting.models import read_anew, read_model
from pymc_amortized.graph.data.simulations import excluded, rounded
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.tensors import INTERPRETED, Loop
from pymc_amortized.graph.rows.finding import find_rows
from pymc_amortized.graph.rows.observed_rows import add_row_parameters
from pymc_amortized.graph.simulation.attempts import Attempts
from pymc_amortized.logs import compiling, show_progress, working, working_seconds

BACKENDS = [None, INTERPRETED]


@pytest.mark.parametrize("kwargs", BACKENDS)
def test_loops_take_slices_and_picks_and_none(kwargs):
    x, row, place = pt.vector("x", shape=(2,)), pt.matrix("row", shape=(2, None)), pt.lscalar("place")
    factor = pt.scalar("factor")
    sequences = [(place, pt.lvector("places")), (x, pt.matrix("xs", shape=(None, 2)))]
    picked = [(row, pt.tensor3("rows", shape=(None, 2, None)), 0)]
    loop = Loop(
        [factor * x @ row, row.sum()], sequences=sequences, picked=picked, inputs=[factor], compile_kwargs=kwargs
    )
    rng = np.random.default_rng(0)
    xs, rows, places = rng.normal(size=(5, 2)), rng.normal(size=(3, 2, 4)), np.array([2, 0, 1, 1, 2])
    products, sums = loop(5, None, [places, xs], [2.0], [rows])
    assert_allclose(products, 2 * np.einsum("ni,nij->nj", xs, rows[places]))
    assert_allclose(sums, rows[places].sum(axis=(1, 2)))
    transposed = np.asfortranarray(rows)
    assert_allclose(loop(5, None, [places, xs], [2.0], [transposed])[0], products)
    assert [len(part) for part in loop(0, None, [places[:0], xs[:0]], [2.0], [rows])] == [0, 0]


@pytest.fixture
def loops(monkeypatch):
    """Count what is compiled."""
    made, original = [], Loop.__init__

    def init(self, *args, **kwargs):
        made.append(kwargs.get("what"))
        original(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "__init__", init)
    return made


def quick(model, **kwargs):
    return pma.simulate(model, 20, random_seed=1, compile_kwargs=INTERPRETED, **kwargs)


def test_simulators_are_kept_by_model(loops):
    model = line()
    first, compiled = quick(model), len(loops)
    assert compiled > 0
    assert_array_equal(quick(model).prior["slope"], first.prior["slope"])
    assert len(loops) == compiled
    quick(model, observed=["y"], missing={"y": 0.1})
    assert len(loops) > compiled


def test_changed_models_are_read_anew(loops):
    with pm.Model() as model:
        x = pm.Data("x", np.ones(3))
        pm.Normal("y", pm.Normal("a", 0, 1) + 100 * x, 1.0, observed=np.zeros(3))
    before = quick(model).prior_predictive["y"].mean()
    model.set_data("x", np.zeros(3))
    assert abs(float(before - quick(model).prior_predictive["y"].mean())) > 90
    spec = read_model(model, None, None, {}, None)[0]
    assert read_model(model, None, None, {}, None)[0] is spec
    with model:
        pm.Normal("b", 0, 1)
    assert [p.name for p in read_model(model, None, None, {}, None)[0].parameters] == ["a", "b"]


def test_a_second_fit_compiles_nothing(loops):
    model = line()
    options = {"num_simulations": 100, "cores": 1, "sketch": False, "compile_kwargs": INTERPRETED}
    options |= {"training": pma.Training(num_steps=2), "progressbar": False, "random_seed": 1}
    pma.fit_posterior(model, **options)
    compiled = len(loops)
    pma.fit_posterior(model, **options)
    assert len(loops) == compiled


def doubtful():
    with pm.Model() as model:
        scale = pm.Normal("scale", 1.0, 1.0)
        edge = pm.Beta("edge", 2, 0.1)
        pm.Potential("belief", pt.switch(edge > 0.9, -np.inf, 0.0))
        pm.Normal("y", edge, pm.math.sqrt(scale), observed=np.zeros(2))
    return take_snapshot(model)


def test_draws_are_dropped_for_what_each_variable_says():
    one, other = (Attempts(doubtful(), compile_kwargs=INTERPRETED) for _ in range(2))
    other._checks = None  # every draw is asked of every variable, as it is made
    found, expected = (a(300, np.random.SeedSequence(2), {}, {}) for a in (one, other))
    assert found.dropped == expected.dropped
    assert {*found.dropped} == {excluded("y"), rounded("edge")}
    assert_array_equal(found.unconstrained, expected.unconstrained)
    assert (found.variables["edge"] > 0.9).any()  # potentials are not simulated


def test_what_takes_long_to_compile_is_told(caplog):
    show_progress(True)
    with caplog.at_level(logging.INFO, "pymc_amortized"):
        with compiling("a trifle", silent=10.0):
            pass
        assert not caplog.records
        with compiling("the simulator", silent=0.01):
            time.sleep(0.1)
    said = [record.message for record in caplog.records]
    assert said[0] == "Compiling the simulator ..."
    assert said[-1] == "Compiling the simulator took 0 s; another time it comes from the cache on disk."


def test_of_tasks_within_tasks_the_innermost_speaks_and_none_without_progress(caplog):
    @working("Something", silent=0.05)
    def task():
        with working("Its part", silent=0.05):
            time.sleep(0.2)

    with caplog.at_level(logging.INFO, "pymc_amortized"):
        show_progress(False)
        task()
        assert not caplog.records
        show_progress(True)
        task()
    said = [record.message for record in caplog.records]
    assert said[0] == "Its part ..." and said[1].startswith("Its part ... 0 s")
    assert said[-2:] == ["Its part took 0 s.", "Something took 0 s."]
    assert not any(message.startswith("Something ...") for message in said)


def test_the_clock_of_work_stands_still_while_compiling():
    before = working_seconds()
    with compiling("a trifle"):
        time.sleep(0.2)
    assert working_seconds() - before < 0.1


@pytest.mark.parametrize(("allowed", "busy", "expected"), [(4, 1.0, 4), (4, 7.0, 2), (4, 20.0, 1), (1, 0.0, 1)])
def test_cores_are_those_of_the_container_that_are_idle(monkeypatch, allowed, busy, expected):
    monkeypatch.setattr(plan.joblib, "cpu_count", lambda: allowed)
    monkeypatch.setattr(plan.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(plan.os, "getloadavg", lambda: (busy, 0.0, 0.0), raising=False)
    assert plan.available_cores() == expected


def test_what_a_likelihood_adds_to_a_model_is_not_in_snapshots_that_are_kept():
    model = line()
    before = read_model(model, None, None, {}, None)[0]
    anew = read_anew(model, None, None, {}, None)[0]
    assert read_model(model, None, None, {}, None)[0] is before
    assert anew is not before and anew.model is not before.model
    add_row_parameters(anew, find_rows(anew, "y", {}))
    assert "row parameter 0" not in before.model.named_vars


@pytest.mark.parametrize("held", [np.array(1.0), np.array([1.0]), np.ones(4)])
def test_what_is_kept_is_made_anew_when_an_array_is_written_into(held):
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 0, 1), held, observed=np.zeros(4))
    before = read_model(model, None, None, {}, None)[0]
    assert read_model(model, None, None, {}, None)[0] is before
    held[...] = 10.0
    assert read_model(model, None, None, {}, None)[0] is not before


@pytest.mark.parametrize("which", ["logp", "random"])
def test_what_is_kept_is_made_anew_when_a_users_function_reads_another_array(which):
    held = {"logp": np.ones(1), "random": np.ones(1)}
    scale, spread = held["logp"], held["random"]

    def logp(value, mu):
        return pm.logp(pm.Normal.dist(mu, scale), value)

    def random(mu, rng=None, size=None):
        return rng.normal(mu, spread, size=size)

    with pm.Model() as model:
        pm.CustomDist("y", pm.Normal("mu", 0, 1), logp=logp, random=random, observed=np.zeros(4))
    before = read_model(model, None, None, {}, None)[0]
    assert read_model(model, None, None, {}, None)[0] is before
    held[which][:] = 10.0
    assert read_model(model, None, None, {}, None)[0] is not before
