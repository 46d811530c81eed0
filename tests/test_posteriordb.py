"""Posteriors of posteriordb, fitted by defaults, beside its reference draws."""

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose
from posteriordb.models import IMPROPER, MODELS
from posteriordb.reference import Comparison, compare, read_reference
from scipy import stats

import pymc_amortized as pma

SECONDS = 60.0
"""Of training, at most."""


def test_every_reference_is_used_or_has_a_reason():
    used = {reference for reference, _ in MODELS.values()}
    assert (len(used), len(IMPROPER)) == (15, 31)
    assert not used & set(IMPROPER)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_the_model(name):
    reference, build = MODELS[name]
    model = build()
    variables = {v.name: v.type.shape for v in (*model.free_RVs, *model.deterministics)}
    for parameter, row in read_reference(reference).items():
        own, _, index = parameter.removeprefix("log ").rstrip("]").partition("[")
        assert variables[own] == () if not index else int(index) <= variables[own][0]
        assert len(row) == 4
        assert min(row[1:]) > 0


def test_scales_are_not_squared_as_small_integers():
    """As PyMC does with the scale of a HalfStudentT that is an integer: of 36, it is that of 4."""
    model = MODELS["accel_gp"][1]()
    for name in ("sdgp_1", "sdgp_sigma_1"):
        found = pm.logp(model[name], 30.0).eval()
        assert_allclose(found, np.log(2) + stats.t.logpdf(30.0, 3, 0, 36))


@pytest.mark.parametrize(
    ("mean", "sd", "stage", "doubts", "verdict"),
    [
        (0.05, 0.05, "psis", (), "right"),
        (0.2, 0.0, "psis", (), "WRONG"),
        (0.0, -0.2, "nuts", (), "WRONG"),
        (0.2, 0.0, "nuts", ("novelty",), "WRONG"),
        (0.2, 0.0, "nuts", ("divergences",), "marked"),
        (0.0, 0.0, "failed", ("weights",), "marked"),
    ],
)
def test_verdicts(mean, sd, stage, doubts, verdict):
    rows = (np.array([0.0, off]) for off in (mean, 0.01, sd, 0.01))
    assert Comparison(["a", "b"], *rows, stage, doubts).verdict == verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_posteriors_are_right_or_marked(name):
    reference, build = MODELS[name]
    posterior = pma.fit_posterior(build(), max_time=SECONDS, random_seed=1, progressbar=False)
    found = compare(posterior.sample(random_seed=2, progressbar=False), reference)
    assert found.verdict in ("right", "marked"), found.off
