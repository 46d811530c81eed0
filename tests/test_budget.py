"""Runs of NUTS within a budget."""

from types import SimpleNamespace

import numpy as np
import pytest

from pymc_amortized.correction import nuts as escalation
from pymc_amortized.correction.convergence import Convergence
from pymc_amortized.correction.nuts import Budget, escalate
from pymc_amortized.correction.rounds import Draws
from pymc_amortized.graph.nuts.pymc_sampler import OutOfTimeError


def unsettled(chains: int = 4, draws: int = 10) -> Draws:
    theta, unknown = np.zeros((chains, draws, 1)), np.zeros((chains, draws))
    return Draws(theta, unknown, unknown, unknown, None, 0, "failed")


@pytest.mark.parametrize(("divergences", "r_hat", "stage"), [(1, 1.0, "nuts"), (1, 1.5, "failed")])
def test_a_good_first_attempt_outlives_the_deadline_of_a_second(monkeypatch, divergences, r_hat, stage):
    attempts = []

    def sample(self, index, start, settings, seed):
        attempts.append(settings)
        if len(attempts) > 1:
            raise OutOfTimeError
        shape = (settings.chains, settings.draws)
        return np.random.default_rng(1).normal(size=(*shape, 1)), divergences

    monkeypatch.setattr(escalation._Runs, "_sample", sample)
    found = Convergence(r_hat, 2000.0, 2000.0, divergences, 4, 500)
    monkeypatch.setattr(Convergence, "of", classmethod(lambda cls, *args: found))
    conditions = SimpleNamespace(
        spec=SimpleNamespace(circular=np.zeros(1, dtype=bool)),
        obstacles=[None],
        log_p=lambda theta, index: np.zeros(len(theta)),
        log_q=lambda theta, indices: np.zeros((len(theta), 1)),
    )
    results, failures = escalate(
        conditions,
        [unsettled()],
        [0],
        None,
        budget=Budget(max_time=60.0),
        seed=np.random.SeedSequence(1),
        progressbar=False,
    )
    assert len(attempts) == 2
    assert results[0].stage == stage and bool(failures) == (stage == "failed")
