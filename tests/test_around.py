"""Calibration around one data set (posterior SBC)."""

import numpy as np
import pytest
from closed_forms import conjugate_data
from test_escalation import planted

import pymc_amortized as pma


def one():
    return {name: np.asarray(values)[0] for name, values in conjugate_data().items()}


def checked(posterior, **kwargs):
    options = {"num_datasets": 200, "draws": 400, "random_seed": 1, "progressbar": False}
    return pma.check_calibration(posterior, one(), **options | kwargs)


def test_corrected_draws_are_calibrated_around_a_data_set(plain_posterior):
    check = checked(plain_posterior, correction="psis", random_seed=2)  # what is calibrated fails one seed in twenty
    assert check["calibration"].attrs["calibrated"] == 1
    assert check["recovery"]["mu"].sizes["dataset"] == 200
    assert check["sample_stats"]["effective_draws"].median() > 150  # both data sets say as much: half of the draws


def test_replicated_parameters_are_those_of_the_posterior(plain_posterior):
    true = checked(plain_posterior, correction="psis")["recovery"]["mu"].sel(estimate="true")
    drawn = plain_posterior.sample(one(), random_seed=1).posterior["mu"]
    assert abs(true.mean() - drawn.mean()) < 0.3 * drawn.std()
    assert 0.8 < float(true.std() / drawn.std()) < 1.25


@pytest.mark.parametrize("wrong", [(0.5, 0.0), (2.0, 0.0), (1.0, 0.7)])
def test_a_wrong_network_is_seen(plain_posterior, wrong):
    check = checked(planted(plain_posterior, *wrong))
    assert check["calibration"].attrs["calibrated"] == 0
    assert "mu" in check["calibration"].attrs["off"]


def test_what_does_not_fit_together_is_refused(plain_posterior):
    with pytest.raises(ValueError, match="observed and lengths exclude"):
        checked(plain_posterior, lengths={"obs": 5})
