"""What all tests share."""

import os
from typing import Any

import pymc as pm
import pytest
from closed_forms import CLOSED_FORMS

import pymc_amortized as pma

# Before anything imports matplotlib, and inherited by processes that tests start: no windows.
os.environ["MPLBACKEND"] = "Agg"


# Posteriors that several files of tests sample from: trained briefly, and once


def briefly(model: pm.Model, *, num_steps: int = 400, **kwargs: Any) -> pma.AmortizedPosterior:
    """Train for a few seconds."""
    options = pma.Training(num_steps=num_steps, evaluations=10)
    return pma.fit_posterior(model, training=options, random_seed=1, progressbar=False, **kwargs)


@pytest.fixture(scope="session")
def conjugate_posterior() -> pma.AmortizedPosterior:
    """Return the posterior of a normal mean, known in closed form."""
    return briefly(CLOSED_FORMS["conjugate_normal"].build())


@pytest.fixture(scope="session")
def regression_posterior() -> pma.AmortizedPosterior:
    """Return the posterior of a conjugate regression with dims, coords, data and a deterministic."""
    return briefly(CLOSED_FORMS["regression"].build())


@pytest.fixture(scope="session")
def proportion_posterior() -> pma.AmortizedPosterior:
    """Return the posterior of a generative model that holds no data."""
    return briefly(CLOSED_FORMS["proportion"].build(), observed=["y"])


@pytest.fixture(scope="session")
def covariates_posterior() -> pma.AmortizedPosterior:
    """Return the posterior of a regression whose covariates differ between data sets."""
    return briefly(CLOSED_FORMS["covariates"].build(), num_steps=800, context={"x": pm.Normal.dist(0.0, 1.0)})
