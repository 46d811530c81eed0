"""Runs of NUTS within a budget."""

from types import SimpleNamespace

import numpy as np
import pytest

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
        spec=SimpleNamespace(circular=np.zeros(1, dtype=bool)),
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
