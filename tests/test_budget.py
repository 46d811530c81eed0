"""Time: what runs of NUTS, and trainings, may take of it."""

from types import SimpleNamespace

import numpy as np
import pytest

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.setup import read_setup
from pymc_amortized.correction.budget import Budget
from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.draws import Draws, Failure, Request
from pymc_amortized.correction.rungs import nuts as escalation
from pymc_amortized.correction.rungs.nuts import Nuts
from pymc_amortized.graph.nuts.pymc_sampler import Chains, OutOfTimeError


def unsettled(chains: int = 4, draws: int = 10) -> Draws:
    theta, unknown = np.zeros((chains, draws, 1)), np.zeros((chains, draws))
    return Draws(theta, unknown, unknown, unknown, None, 0, "weights", Failure("the weights are poor"))


@pytest.mark.parametrize(("divergences", "r_hat", "stage"), [(1, 1.0, "nuts"), (1, 1.5, "not reached")])
def test_a_good_first_attempt_outlives_the_deadline_of_a_second(monkeypatch, divergences, r_hat, stage):
    attempts = []

    def sample(self, index, start, settings, seed):
        attempts.append(settings)
        if len(attempts) > 1:
            raise OutOfTimeError
        shape = (settings.chains, settings.draws)
        return Chains(np.random.default_rng(1).normal(size=(*shape, 1)), divergences)

    monkeypatch.setattr(escalation._Runs, "_sample", sample)
    found = Convergence(r_hat, 2000.0, 2000.0, divergences, 4, 500, np.full(1, 0.02))
    monkeypatch.setattr(Convergence, "of", classmethod(lambda cls, *args: found))
    target = SimpleNamespace(
        spec=SimpleNamespace(circular=np.zeros(1, dtype=bool), locals=(), dim=1),
        obstacles=[None],
        symmetries=None,
        gathered=lambda index, theta: theta,
        scattered=lambda index, theta, rng: theta,
        log_p=lambda theta, index: np.zeros(len(theta)),
        log_q=lambda theta, indices: np.zeros((len(theta), 1)),
    )
    request = Request(10, 4, budget=Budget(60.0))
    (result,) = Nuts().settle([unsettled()], [0], target, request, np.random.SeedSequence(1))
    assert len(attempts) == 2
    assert result.stage == stage and bool(result.failure) == (stage != "nuts")


def test_training_gets_what_is_left_of_the_whole_call(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("pymc_amortized.approximators.fitting.setup.working_seconds", lambda: clock[0])

    def read(training=None, max_time=None):
        return read_setup(training, max_time, 1, "cpu", True, None)

    setup = read(max_time=50.0)
    assert setup.bounded.max_time == pytest.approx(40.0)
    clock[0] += 30.0
    assert setup.bounded.max_time == pytest.approx(16.0) and setup.options.max_time == 50.0
    clock[0] += 30.0  # too late: a little training is better than none
    assert setup.bounded.max_time == pytest.approx(5.0)
    alone = read(pma.Training(max_time=50.0))
    clock[0] += 30.0
    assert alone.bounded.max_time == 50.0 and read().bounded.max_time is None
