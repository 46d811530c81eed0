"""Other processes that simulate while this one trains make what it would have made itself."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing import current_process

import numpy as np
import pymc as pm
import pytest
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor, ShutdownExecutorError

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.approximators.fitting.plan import (
    SimulationCost,
    StepCost,
    cheapest_step,
    others,
    plan_classifier,
    plan_posterior,
    worth_workers,
)
from pymc_amortized.approximators.fitting.simulation_plan import SimulationPlan
from pymc_amortized.graph.model.common import common_data
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.parallel import Workers
from pymc_amortized.graph.simulation.pool import Pool
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.training import FreshSimulations, Training
from pymc_amortized.training import source as source_module
from pymc_amortized.training.options import FEWEST_STEPS, MOST_PASSES, WHOLE

INTERPRETED = {"mode": "FAST_COMPILE"}
"""Several processes compile nothing then; one test below does without it."""
MORE_CORES = "pymc_amortized.approximators.fitting.plan.available_cores"


def simulator() -> Simulator:
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 0, 1), 1, observed=np.zeros(5))
    return Simulator(take_snapshot(model), compile_kwargs=INTERPRETED)


@pytest.fixture(scope="module")
def workers():
    made = Workers(simulator(), 1)
    while not made._ready.done():
        time.sleep(0.1)
    yield made
    made.close()


def test_workers_need_no_torch():
    def loaded():
        import sys

        import pymc_amortized.graph.simulation.simulator  # noqa: F401

        return "torch" in sys.modules

    pool = ProcessPoolExecutor(max_workers=1)
    assert not pool.submit(loaded).result()
    pool.shutdown()


def test_users_find_their_names_in_other_processes(monkeypatch):
    monkeypatch.setattr(current_process(), "name", "LokyProcess-1")
    monkeypatch.setattr(pm, "sample_amortized", None)
    spec = spec_from_file_location("there", pma.__file__)
    there = module_from_spec(spec)
    spec.loader.exec_module(there)
    assert "Training" not in vars(there)
    assert there.__all__ == pma.__all__ and there.Training is pma.Training
    with pytest.raises(TypeError, match="draws must be"):
        pm.sample_amortized(draws="some", model=pm.Model())
    with pytest.raises(AttributeError, match="module 'there' has no attribute 'graph'"):
        there.graph  # noqa: B018


def test_workers_make_what_this_process_would(workers):
    here = simulator()(1000, 7)
    there = workers._simulator(1000, 7, workers=workers)
    np.testing.assert_array_equal(here.unconstrained, there.unconstrained)
    np.testing.assert_array_equal(here.data["y"], there.data["y"])


def test_what_is_sketched_is_sketched_by_hundreds():
    """Groups of one size are small in the first refills, and a sketch has a cost for each call."""
    asked = []

    def sketch(simulations):
        asked.append(len(simulations))
        return simulations.unconstrained + simulations.lengths["obs"][:, None]

    with pm.Model(coords={"obs": range(3)}) as model:
        pm.Normal("y", pm.Normal("mu", 0, 1), 1, observed=np.zeros(3), dims="obs")
    spec, sources, gaps = read_model(model, None, None, {"obs": (3, 30)}, {})
    plain = Simulator(spec, context=ContextSampler(spec, sources, gaps), compile_kwargs=INTERPRETED)
    sketching = plain.with_extra(sketch)
    made = sketching(1024, 7)
    assert len(set(made.lengths["obs"])) > 15
    assert min(asked) >= 200 and sum(asked) == 1024
    np.testing.assert_array_equal(made.extra, made.unconstrained + made.lengths["obs"][:, None])
    np.testing.assert_array_equal(made.data["y"], plain(1024, 7).data["y"])
    np.testing.assert_array_equal(made.data["y"], sketching(1024, 7, cores=2).data["y"])


def test_work_goes_on_here_until_they_are_ready():
    made = Workers(simulator(), 1)
    try:
        assert not made._ready.done()  # it imports PyMC first
        np.testing.assert_array_equal(made._simulator(50, 7, workers=made).data["y"], simulator()(50, 7).data["y"])
    finally:
        made.close()


def test_a_dead_process_is_replaced_by_this_one(workers, caplog):
    made = Workers(simulator(), 1)
    while not made._ready.done():
        time.sleep(0.1)
    with pytest.raises(BrokenProcessPool):
        made._pool.submit(os._exit, 1).result()
    with caplog.at_level("INFO", "pymc_amortized"):
        np.testing.assert_array_equal(made._simulator(50, 7, workers=made).data["y"], simulator()(50, 7).data["y"])
    assert "this one goes on alone" in caplog.text
    made.close()


class Closed:
    closed = False

    def close(self):
        self.closed = True


def test_simulations_made_ahead_are_the_same():
    def source(workers):
        made = 0

        def simulate(n):
            nonlocal made
            made += n
            generator = torch.Generator().manual_seed(made)
            return torch.randn(n, 1, generator=generator), {"x": torch.randn(n, 2, generator=generator)}

        return FreshSimulations(simulate, 8, workers=lambda: workers)

    workers = Closed()
    here, ahead = source(None), source(workers)
    for _ in range(100):
        (z, encoded), (other_z, other) = here.next(), ahead.next()
        torch.testing.assert_close(z, other_z, rtol=0, atol=0)
        torch.testing.assert_close(encoded["x"], other["x"], rtol=0, atol=0)
    assert here.simulations == ahead.simulations
    ahead.close()
    assert workers.closed
    assert len(ahead.next()[0]) == 8  # and it goes on without them


def test_an_error_ahead_is_raised_where_its_simulations_are_wanted():
    calls = []

    def simulate(n):
        calls.append(n)
        if len(calls) > 1:
            raise RuntimeError("no more")
        return torch.zeros(n, 1), {}

    source = FreshSimulations(simulate, 4, workers=Closed)
    source.next()
    with pytest.raises(RuntimeError, match="no more"):
        source.next()
    source.close()


@pytest.mark.parametrize(
    ("cores", "step", "simulating", "threads", "options", "worth"),
    [
        (2, 0.05, 0.02, 1, {}, True),
        (2, 0.05, 0.02, 2, {}, False),  # torch needs them all
        (1, 0.05, 0.02, 1, {}, False),
        (2, 0.05, 0.002, 1, {}, False),  # nothing to gain
        (2, 0.05, 0.02, 1, {"max_time": 20.0}, False),
        (2, 0.05, 0.02, 1, {"num_steps": 200}, False),
        (2, 0.05, 0.02, 1, {"num_steps": 2000}, True),
        (2, 0.005, 0.002, 1, {}, False),  # 5,000 steps take 35 s
    ],
)
def test_workers_are_started_where_they_pay(monkeypatch, cores, step, simulating, threads, options, worth):
    monkeypatch.setattr(MORE_CORES, lambda: cores)
    assert worth_workers(step, simulating, threads, Training(**options)) is worth


def test_few_simulations_are_no_reason_to_start_processes():
    plan = SimulationPlan(None, cores=4, seconds=0.01, free=True)
    assert [plan.cores_for(n) for n in (100, 1_999, 2_001)] == [1, 1, 4]
    assert replace(plan, free=False).cores_for(100) == 4  # the user has chosen
    assert replace(plan, seconds=0.0).cores_for(100) == 4  # nobody knows


def test_one_core_is_left_for_training():
    assert [others(cores) for cores in (1, 2, 8)] == [1, 1, 7]


def test_a_posterior_is_the_same_with_workers(monkeypatch):
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 0, 1), 1, observed=np.zeros(5))
    closed = []
    close = FreshSimulations.close
    monkeypatch.setattr(source_module.FreshSimulations, "close", lambda s: (closed.append(s.workers), close(s)))
    losses = []
    for worth in (False, True):
        monkeypatch.setattr("pymc_amortized.approximators.fitting.plan.worth_workers", lambda *_, worth=worth: worth)
        posterior = pma.fit_posterior(
            model, training=pma.Training(num_steps=50, threads=1), sketch=False, random_seed=3, progressbar=False
        )
        losses.append(posterior.provenance.held_out_loss)
    assert losses[0] == losses[1]
    assert closed[0] is None and isinstance(closed[1], Workers)


def test_torch_leaves_a_core_to_others_where_that_is_faster(monkeypatch):
    monkeypatch.setattr(MORE_CORES, lambda: 2)
    seconds = {2: 0.040, 1: 0.050}

    def timed(threads):
        return seconds[threads or 2], threads or 2

    assert cheapest_step(timed, SimulationCost(0.020), 1, Training()).ahead  # 50 ms instead of 60
    assert cheapest_step(timed, SimulationCost(0.004), 1, Training()) == StepCost(0.044, 2, False, 0.040)
    assert cheapest_step(timed, SimulationCost(0.0), 1, Training()) == StepCost(0.040, 2, False, 0.040)
    assert cheapest_step(timed, SimulationCost(0.020), 1, Training(threads=2)).threads == 2


class Slow:
    """Takes a while for each chunk."""

    def chunks(self, tasks):
        time.sleep(0.05 * len(tasks))
        return tasks


def test_closing_ends_what_waits():
    made = Workers(Slow(), 1)
    while not made._ready.done():
        time.sleep(0.1)
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(made.run, [[(i, np.random.SeedSequence(i))] for i in range(400)])
        time.sleep(0.5)
        made.close()
        assert isinstance(run.exception(timeout=30), BrokenProcessPool | ShutdownExecutorError)


def test_chunks_come_in_order(workers):
    tasks = [[(i, np.random.SeedSequence(i))] for i in range(1, 12)]
    assert [len(made) for made in workers.run(tasks)] == list(range(1, 12))


class Staged(torch.nn.Module):
    """A network whose first layers may be done with."""

    def __init__(self, reduces=True):
        super().__init__()
        self.weight, self.reduces = torch.nn.Parameter(torch.ones(())), reduces

    def loss(self, z, encoded):
        return (self.weight * z).square().mean()

    def reduced(self, encoded):
        return {"less": encoded["x"]} if self.reduces else encoded


BATCH = (torch.ones(8, 1), {"x": torch.ones(8, 1)})


def planned(
    monkeypatch, first, later, simulating, options=None, *, reduces=True, ahead=False, plan=plan_posterior, cores=1
):
    def fastest(network, z, encoded, threads=None):
        return later if "less" in encoded else first, threads or 1

    monkeypatch.setattr("pymc_amortized.approximators.fitting.plan.fastest_step", fastest)
    monkeypatch.setattr("pymc_amortized.approximators.fitting.plan.worth_workers", lambda *_: ahead)
    return plan(Staged(reduces), lambda: BATCH, simulating, cores, options or Training())


def test_no_core_is_left_to_a_process_that_would_mostly_wait(monkeypatch):
    monkeypatch.setattr("pymc_amortized.approximators.fitting.plan.others", lambda cores: 1)
    short, long = (planned(monkeypatch, 0.1, 0.02, s, ahead=True, cores=2) for s in (0.3, 2.0))
    assert (short.workers, long.workers) == (1, 2)
    assert long.options.num_steps == pytest.approx(180 / (2.0 / 2 / 8), rel=0.02)


@pytest.mark.parametrize("ahead", [False, True])
def test_slow_simulations_are_used_more_than_once(monkeypatch, ahead):
    first, later = 0.10, 0.02
    step = WHOLE * first + (1 - WHOLE) * later  # 40 ms
    passes = [planned(monkeypatch, first, later, s, ahead=ahead).options.passes for s in (0.001, 0.09, 10.0)]
    assert passes == [1, 5, 8]
    plan = planned(monkeypatch, first, later, 0.09, ahead=ahead)
    seconds = step if ahead else step + 0.09 / 5
    assert (plan.workers > 0) is ahead and plan.options.num_steps == pytest.approx(180 / seconds, rel=0.02)
    time = WHOLE * first if ahead else WHOLE * (first + 0.09 / 5)
    assert (plan.last_layers.after, plan.last_layers.time) == (WHOLE, pytest.approx(time / seconds, rel=0.02))
    # neither part of the training can lend its time to the other
    slow = planned(monkeypatch, first, 0.001, 0.32, ahead=True)
    assert slow.options.num_steps == pytest.approx(180 / (WHOLE * first + (1 - WHOLE) * 0.04), rel=0.02)


def test_what_is_repeated_by_its_number_of_steps_does_not_hang_on_the_clock(monkeypatch):
    plan = planned(monkeypatch, 0.10, 0.02, 0.1, Training(num_steps=9))
    assert plan.last_layers is None and (plan.options.passes, plan.options.whole) == (1, 1.0)
    before = planned(monkeypatch, 0.10, 0.02, 0.1).options
    again = planned(monkeypatch, 0.30, 0.29, 0.9, before)
    assert again.last_layers.after == WHOLE and again.options == before


def test_last_layers_go_on_alone_only_where_that_is_faster(monkeypatch):
    for options, later, whole in (
        (Training(), 0.09, 1.0),
        (Training(whole=0.5), 0.09, 0.5),
        (Training(whole=1), 0.01, 1.0),
        (Training(whole=0.5, num_steps=9), 0.01, 0.5),
    ):
        plan = planned(monkeypatch, 0.10, later, 0.001, options)
        assert plan.options.whole == whole and (plan.last_layers is None) is (whole == 1)


def test_classifiers_use_simulations_once_where_they_have_labels(monkeypatch):
    """Labels ask for that; evidence is used as often as making it takes longer than steps."""
    labels = planned(monkeypatch, 0.10, 0.02, 0.9, Training(passes=1), ahead=True, plan=plan_classifier)
    assert labels.last_layers is None and labels.options.passes == 1 and labels.workers == 1
    assert labels.options.num_steps == FEWEST_STEPS
    evidence = planned(monkeypatch, 0.10, 0.02, 0.9, ahead=True, plan=plan_classifier)
    assert evidence.options.passes == MOST_PASSES and evidence.options.num_steps > FEWEST_STEPS


def test_all_of_a_network_of_ones_own_is_trained_to_the_end(monkeypatch):
    plan = planned(monkeypatch, 0.10, 0.02, 0.001, reduces=False)
    assert plan.last_layers is None and plan.options.whole == 1
    assert plan.options.num_steps == pytest.approx(180 / 0.101, rel=0.02)
    fixed = planned(monkeypatch, 0.10, 0.02, 0.0)
    assert fixed.options.passes == 1 and fixed.options.num_steps == pytest.approx(180 / 0.04, rel=0.02)


def test_a_pool_of_models_simulates_in_other_processes():
    def model(spread):
        with pm.Model(coords={"obs": range(4)}) as made:
            pm.Normal("y", pm.Normal("mu", 0, spread), 1, observed=np.zeros(4), dims="obs")
        return made

    specs = {name: take_snapshot(model(s)) for name, s in (("narrow", 1), ("wide", 5))}
    pool = Pool(common_data(specs), specs, {}, {}, INTERPRETED)
    others_ = Workers(pool, 1)
    try:
        while not others_._ready.done():
            time.sleep(0.1)
        here, there = (pool(1000, np.random.SeedSequence(7), workers=w) for w in (None, others_))
    finally:
        others_.close()
    np.testing.assert_array_equal(here.unconstrained, there.unconstrained)
    np.testing.assert_array_equal(here.data["y"], there.data["y"])
