"""When a training of unknown length stops."""

import logging
import math
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pymc as pm
import pytest
import torch
from planted import over_confident, right, standing_in, swapped, two_means, under_confident
from small_models import line
from test_training import HELD_OUT, Interrupting, fresh, gaussian, simulator, weights_of

import pymc_amortized as pma
from pymc_amortized.approximators.posterior.check import Measure
from pymc_amortized.approximators.simulations.given import read_simulations
from pymc_amortized.logs import logger
from pymc_amortized.training import Efficiency, FreshSimulations, Stopping, Training, train
from pymc_amortized.training.schedule import DECAY, scheduled
from pymc_amortized.training.settling import Evaluation

OPEN = Training(batch_size=32, learning_rate=0.02, evaluations=100)


def measuring(*values):
    """A measure that returns these medians one after the other, the last one from then on."""
    seen = iter(values)
    latest = [0.0]

    def measure():
        latest[0] = next(seen, latest[0])
        return Efficiency(latest[0], latest[0] / 2)

    return measure


def trained(stopping, options=OPEN, **kwargs):
    return train(gaussian(), fresh(batch_size=32), HELD_OUT, options, device="cpu", stopping=stopping, **kwargs)


def steps(found):
    return int(found.history.step[-1])


def test_what_is_good_enough_from_the_beginning_is_not_trained():
    found = trained(Stopping(measuring(0.9), Efficiency.wanted(0.8)))
    assert (steps(found), found.stopped, found.settled) == (0, "target", True)
    torch.testing.assert_close(weights_of(found.network), weights_of(gaussian()))


def test_training_ends_shortly_after_the_target_is_reached():
    found = trained(Stopping(measuring(0.1, 0.2, 0.3, 0.6), Efficiency.wanted(0.5)))
    assert (steps(found), found.stopped) == (math.ceil(100 / (1 - DECAY)), "target")
    assert [e.typical for e in found.measured] == [0.1, 0.2, 0.3, 0.6]
    assert found.history.restarts == 0  # checks and evaluations fall together, with no step in between
    rates = found.history.learning_rate
    assert rates[-1] < 0.1 * rates.max() == 0.1 * OPEN.learning_rate


def test_the_hardest_data_sets_count_too():
    values = iter([0.0, 0.1, 0.2, 0.3])
    measure = lambda: Efficiency(0.9, next(values))  # noqa: E731
    assert steps(trained(Stopping(measure, Efficiency(0.5, 0.25)))) == 125


def test_parameters_in_modes_that_are_missed_are_no_success():
    values = iter([0.1, 0.1, 0.0])
    measure = lambda: Efficiency(0.9, 0.9, next(values))  # noqa: E731
    assert steps(trained(Stopping(measure, Efficiency(0.5, 0.25)))) == math.ceil(50 / (1 - DECAY))
    assert "10% of true parameters lie where it proposes next to nothing" in str(Efficiency(0.9, 0.9, 0.1))


def test_a_doubling_that_brings_little_ends_training():
    found = trained(Stopping(measuring(0.1), Efficiency.wanted(0.5)))  # a line is learned by 200 steps
    assert (steps(found) in (500, 1000, 2000), found.stopped, found.settled) == (True, "gain", True)
    assert trained(Stopping()).stopped == "gain"  # without a density


def test_what_still_grows_is_trained_on():
    growing = Stopping(measuring(*np.linspace(0.1, 0.45, 8)), Efficiency.wanted(0.5))
    options = Training(batch_size=8, learning_rate=0.02)
    assert steps(trained(growing, options)) > 500


@pytest.mark.parametrize("steps_, grown, fallen, reason", [
    (200, 0.0, 0.0, None),
    (400, 0.0, 0.0, "gain"),
    (400, 0.1, 0.0, None),
    (400, 0.0, 0.1, None),
    (400, -0.1, -0.1, "gain"),
])  # fmt: skip
def test_both_loss_and_efficiency_have_to_stand_still(steps_, grown, fallen, reason):
    sizes = np.ones(4)
    evaluations = [Evaluation(0.2, np.full(4, 1.0), sizes), Evaluation(0.4, np.full(4, 1.0 - fallen), sizes)]
    measured = [Efficiency(0.3, 0.1), Efficiency(0.3 + grown, 0.1)]
    stopping = Stopping(measuring(0.3), Efficiency.wanted(0.5))
    assert stopping.reason(measured, evaluations, steps_) == reason


@pytest.mark.parametrize("last, reason", [
    (Efficiency(0.9, 0.0), "gain"),
    (Efficiency(0.9, 0.1), None),
    (Efficiency(0.4, 0.0), None),
    (Efficiency(0.9, 0.0, missed=0.1), None),
])  # fmt: skip
def test_what_only_the_hardest_data_sets_lack_ends_where_these_do_not_gain(last, reason):
    evaluations = [Evaluation(0.2, np.full(4, 1.0), np.ones(4)), Evaluation(0.4, np.full(4, 0.5), np.ones(4))]
    measured = [Efficiency(last.typical, 0.0), last]
    assert Stopping(measuring(0.3), Efficiency.wanted(0.5)).reason(measured, evaluations, 400) == reason


def test_few_steps_are_no_reason_and_no_target_is_no_reason():
    measured = [Efficiency(0.9, 0.9)]
    evaluations = [Evaluation(0.0, np.ones(2), np.ones(2))]
    assert Stopping(measuring(0.9)).reason(measured, evaluations, 0) is None
    assert Stopping(measuring(0.9), Efficiency(0.8, 0.4)).reason(measured, evaluations, 0) == "target"


def test_rows_add_up():
    assert Stopping.of_rows(100).little == pytest.approx(Stopping().little / 100)


def test_the_rate_stays_up_until_the_end_is_decided():
    rates = [scheduled(f, 1000, 0.0, DECAY) for f in np.linspace(0, 1, 101)]
    assert set(rates[: round(100 * (1 - DECAY))]) == {1.0} and rates[-1] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert [scheduled(f, 1000, 0.05) for f in (0.05, 0.525, 1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_an_interrupted_training_of_unknown_length_goes_on():
    stopping = lambda: Stopping(measuring(0.1, 0.2, 0.3, 0.6), Efficiency.wanted(0.5))  # noqa: E731
    first = train(gaussian(), Interrupting(fresh(batch_size=32), 40), HELD_OUT, OPEN, device="cpu", stopping=stopping())
    assert first.stopped == "interrupt" and steps(first) == 40
    further = Stopping(measuring(0.3, 0.6), Efficiency.wanted(0.5))
    second = trained(further, resume=first.state)
    assert (steps(second), second.stopped) == (125, "target")
    assert len(second.measured) == 4


def test_workers_start_when_enough_was_made_without():
    started = []

    class Workers:
        def close(self) -> None:
            started.append("closed")

    def start():
        started.append("started")
        return Workers()

    source = FreshSimulations(simulator(), 8, workers=start, alone=40)
    for _ in range(3):
        source.next()  # 8, then 16 simulations
    assert started == [] and source.workers is None
    for _ in range(5):
        source.next()
    assert started == ["started"] and source.workers is not None
    source.close()
    assert started == ["started", "closed"]


# At the door


@pytest.mark.parametrize("value, error", [
    (0.0, ValueError), (1.0, ValueError), (-0.5, ValueError), (1.5, ValueError), (math.nan, ValueError),
    ("0.5", TypeError), (True, TypeError), ([0.5], TypeError),
])  # fmt: skip
def test_a_target_lies_between_0_and_1(value, error):
    with pytest.raises(error, match=r"target_efficiency must be a number in \(0, 1\)"):
        pma.fit_posterior(line(), target_efficiency=value)


def test_a_target_and_a_number_of_steps_exclude_each_other(line_posterior):
    with pytest.raises(ValueError, match="target_efficiency and num_steps=10 exclude each other"):
        pma.fit_posterior(line(), target_efficiency=0.5, training=Training(num_steps=10))
    with pytest.raises(ValueError, match="target_efficiency and num_steps=10 exclude each other"):
        line_posterior.continue_training(10, target_efficiency=0.5)
    with pytest.raises(ValueError, match="num_steps and training exclude each other"):
        line_posterior.continue_training(10, training=Training())


def test_a_target_needs_a_density():
    with pytest.raises(ValueError, match="target_efficiency=0.5 needs the model's density: .*Leave it out"):
        pma.fit_posterior(line(), parameters=["slope"], target_efficiency=0.5)


# A whole training


@pytest.fixture(scope="module")
def good_enough():
    """A posterior that was trained until it was good enough, and what was logged."""
    with caught() as lines:
        posterior = pma.fit_posterior(normal_mean(), random_seed=1, progressbar=False)
    return posterior, lines


@contextmanager
def caught():
    """Collect what the library logs."""
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def normal_mean():
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 0, 1), 1, observed=np.zeros(5))
    return model


def test_an_easy_model_is_hardly_trained(good_enough):
    posterior, lines = good_enough
    (said,) = [r for r in lines if "Trained" in r.getMessage() or "No training was needed" in r.getMessage()]
    assert posterior.history.step[-1] <= 63 and posterior.provenance.settled
    assert said.levelname == "INFO" and "good enough" in said.getMessage()
    assert "the importance efficiency is" in said.getMessage()
    draws = posterior.sample({"y": np.full(5, 0.6)}, random_seed=1, progressbar=False).posterior["mu"].values
    assert draws.mean() == pytest.approx(0.5, abs=0.03) and draws.std() == pytest.approx(1 / 6**0.5, rel=0.05)


def test_its_options_repeat_it(good_enough):
    posterior, _ = good_enough
    options, seed = posterior.provenance.training, posterior.provenance.entropy
    assert options.num_steps is None and options.max_time is None
    again = pma.fit_posterior(normal_mean(), training=options, random_seed=seed, progressbar=False)
    assert again.provenance.held_out_loss == posterior.provenance.held_out_loss


def test_training_goes_on_to_a_higher_target_also_after_loading(good_enough, tmp_path):
    posterior, _ = good_enough
    posterior.save(tmp_path / "posterior")
    loaded = pma.load(tmp_path / "posterior", model=normal_mean())
    there, here = (p.continue_training(target_efficiency=0.6, progressbar=False) for p in (loaded, posterior))
    assert there.history.step[-1] == here.history.step[-1] and there.provenance.settled
    assert there.provenance.held_out_loss == here.provenance.held_out_loss
    further = posterior.continue_training(training=Training(num_steps=20), progressbar=False)
    assert further.history.step[-1] == posterior.history.step[-1] + 20


def test_training_that_stopped_short_of_its_target_warns():
    with pm.Model() as model:
        pm.Poisson("y", pm.math.exp(pm.Normal("mu", 0, 1)), observed=[1, 2, 0])
    options = {"sketch": False, "max_time": 2.0, "random_seed": 1, "progressbar": False}
    with caught() as lines:
        pma.fit_posterior(model, target_efficiency=0.9999, **options)
    (said,) = [r for r in lines if "Trained" in r.getMessage() or "No training was needed" in r.getMessage()]
    assert said.levelname == "WARNING"
    assert "stopped short of its target, 100% (median; 50% in the hardest tenth)" in said.getMessage()
    assert "continue_training" in said.getMessage()


def test_only_what_is_not_reached_is_said():
    target, missed = Efficiency.wanted(0.5), "at most 2.5% of true parameters where next to nothing is proposed"
    assert Efficiency(0.8, 0.5, 0.03).short_of(target) == missed
    assert Efficiency(0.4, 0.3).short_of(target) == "50% (median; 25% in the hardest tenth)"
    assert Efficiency(0.4, 0.3, 0.03).short_of(target) == f"50% (median; 25% in the hardest tenth), and {missed}"


def measure_of(plant, moved=0.0):
    """A measure of what was planted, for data sets whose parameters are said to lie elsewhere."""
    posterior = standing_in(plant)
    known = read_simulations(posterior.spec, pma.simulate(two_means(), 64, random_seed=1), None)
    known = replace(known, unconstrained=known.unconstrained + moved)
    return Measure(posterior.network, posterior.inputs, posterior.compiled, known, np.random.SeedSequence(1))


@pytest.mark.parametrize("off", [0.0, 20.0])
def test_what_the_weights_tell_themselves_is_not_missed(off):
    """True parameters that outweigh all proposals count where the weights look good, as in a mode that is missed."""
    found = measure_of(lambda moments, means: right((moments[0] + off, moments[1]), means))()
    assert (found.hardest > 0.5, found.missed) == (off == 0, 0)


@pytest.mark.parametrize(
    ("plant", "moved", "doubt"),
    [
        (right, 0.0, False),
        (right, 0.5, True),  # the density is not that of the simulations
        (under_confident, 0.0, False),  # weights make up for it
        (over_confident, 0.0, True),  # not of tails in which nothing is proposed
        (swapped, 0.0, True),  # most weights cannot be trusted
    ],
)
def test_corrected_draws_are_made_at_the_end_where_there_is_doubt(plant, moved, doubt):
    measure = measure_of(plant, moved)
    assert measure.in_doubt(np.random.SeedSequence(2))  # nothing is known yet
    measure()
    assert measure.in_doubt(np.random.SeedSequence(2)) == doubt


def test_proposals_without_fault_rarely_leave_a_doubt():
    measure = measure_of(right)
    measure()
    assert sum(measure.in_doubt(np.random.SeedSequence(seed)) for seed in range(40)) <= 8


def test_what_needs_no_training_is_measured_once(monkeypatch):
    calls = []
    measured = Measure._weigh
    monkeypatch.setattr(Measure, "_weigh", lambda self: calls.append(1) or measured(self))
    posterior = pma.fit_posterior(normal_mean(), random_seed=1, target_efficiency=0.2, progressbar=False)
    assert posterior.history.step[-1] == 0 and len(calls) == 1
