"""What all tests share."""

import os
from pathlib import Path
from typing import Any

import pymc as pm
import pytest
import xarray as xr
from closed_forms import CLOSED_FORMS
from models import MODELS
from small_models import brief_fit, line, mixed_kinds

import pymc_amortized as pma

# Before anything imports matplotlib, and inherited by processes that tests start: no windows.
os.environ["MPLBACKEND"] = "Agg"

# Files that share trained posteriors, and what is compiled for them, go to one process of pytest-xdist.
TOGETHER = {
    "closed forms": ["approximation", "correction", "escalation", "evidence", "posterior"],
    "small models": ["copies", "datasets", "diagnostics", "files", "names", "sampling", "state"],
}


def pytest_configure(config: pytest.Config) -> None:
    """Give each process of pytest-xdist one core: what is trained in it then starts no further processes."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, and those of files that belong together."""
    from xdist.scheduler import LoadScopeScheduling

    groups = {f"test_{file}": group for group, files in TOGETHER.items() for file in files}

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).stem
            return groups.get(file, file)

    return Scheduling(config, log)


# Posteriors that several files of tests sample from: trained briefly, and once


def briefly(model: pm.Model, *, num_steps: int = 200, **kwargs: Any) -> pma.AmortizedPosterior:
    """Train for a few seconds: twice the steps and the batch take twice as long, for two percent of efficiency."""
    options = pma.Training(num_steps=num_steps, batch_size=128, evaluations=10)
    return pma.fit_posterior(model, training=options, random_seed=1, progressbar=False, **kwargs)


def interpreted(model: pm.Model, *, num_simulations: int = 2500, **kwargs: Any) -> pma.AmortizedPosterior:
    """Train on a few thousand simulations of PyTensor's interpreter: what compiling would take longer than."""
    options = {"cores": 1, "compile_kwargs": {"mode": "FAST_COMPILE"}, "sketch": False}
    return briefly(model, num_simulations=num_simulations, **options, **kwargs)


@pytest.fixture(scope="session")
def conjugate_posterior() -> pma.AmortizedPosterior:
    """Return the posterior of a normal mean, known in closed form."""
    return briefly(CLOSED_FORMS["conjugate_normal"].build())


@pytest.fixture(scope="session")
def plain_posterior() -> pma.AmortizedPosterior:
    """Return the same without a sketch: nothing makes up for errors that are planted in its network."""
    return briefly(CLOSED_FORMS["conjugate_normal"].build(), sketch=False)


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
    return briefly(CLOSED_FORMS["covariates"].build(), num_steps=250, context={"x": pm.Normal.dist(0.0, 1.0)})


@pytest.fixture(scope="session")
def schools_posterior() -> pma.AmortizedPosterior:
    """Return the posterior of eight schools, not centered."""
    return briefly(MODELS["eight_schools"].build(), num_steps=250)


@pytest.fixture(scope="session")
def schools_marginal() -> pma.AmortizedPosterior:
    """Return the posterior of the hyperparameters of eight schools alone."""
    return briefly(MODELS["eight_schools"].build(), num_steps=250, parameters=["mu", "tau"])


@pytest.fixture(scope="session")
def schools_nuts() -> xr.DataTree:
    """Return NUTS's draws for eight schools."""
    return nuts(MODELS["eight_schools"].build(), target_accept=0.95)


@pytest.fixture(scope="session")
def logistic_posterior() -> pma.AmortizedPosterior:
    """Return the posterior of a logistic regression."""
    return briefly(MODELS["logistic_regression"].build())


@pytest.fixture(scope="session")
def logistic_nuts() -> xr.DataTree:
    """Return NUTS's draws for the logistic regression."""
    return nuts(MODELS["logistic_regression"].build())


@pytest.fixture(scope="session")
def regression_nuts() -> xr.DataTree:
    """Return a few draws of NUTS for the conjugate regression, for their layout."""
    return nuts(CLOSED_FORMS["regression"].build(), tune=100, draws=50, chains=2)


def nuts(model: pm.Model, **kwargs: Any) -> xr.DataTree:
    """Run PyMC's own NUTS, which compiles fastest, quietly and with a fixed seed."""
    quiet = {"progressbar": False, "compute_convergence_checks": False}
    with model:
        return pm.sample(random_seed=1, nuts_sampler="pymc", cores=1, **quiet, **kwargs)


# Posteriors that are only ever sampled from, of models with many kinds of data and of a small one


@pytest.fixture(scope="session")
def mixed_posterior() -> pma.AmortizedPosterior:
    """Return a rough posterior of data of all kinds, with a context."""
    return brief_fit(mixed_kinds(), context={"offset": pm.Normal.dist(0, 1)})


@pytest.fixture(scope="session")
def line_posterior() -> pma.AmortizedPosterior:
    """Return a rough posterior of a line."""
    return brief_fit(line())


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing look for modes but the network: what it misses stays missed, and NUTS comes next."""
    from pymc_amortized.correction import evidence
    from pymc_amortized.correction.rungs.tempered import Tempered
    from pymc_amortized.correction.search import ModeSearch

    monkeypatch.setattr(ModeSearch, "__call__", lambda self, indices, sets: [None] * len(sets))
    monkeypatch.setattr(Tempered, "takes", lambda self, draws: False)
    monkeypatch.setattr(evidence, "populate", lambda *args: None)
