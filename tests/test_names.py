"""Names of users are theirs: whatever a variable or dim is called, every function works, or ``fit_*`` refuses it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytest
import xarray as xr
from conftest import interpreted
from small_models import BRIEF, line

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.models import read_model

QUIET: dict[str, Any] = {"progressbar": False, "random_seed": 1}
REFUSED = {"chain", "draw", "dataset", "log_joint", "tarp", "y_dim_0"}
FURTHER = {"sample", "quantile", "model", "against", "probability", "column", "name", "self", "theta", "shape"}
"""Names that stand in no result of a posterior, but in code or beside results."""


def named(
    parameters: Sequence[str] = (), dims: Sequence[str] = (), fixed: Sequence[str] = (), observed: Sequence[str] = ()
) -> pm.Model:
    """A normal mean, and variables, labelled dims, constants and data of these names that say nothing of it."""
    with pm.Model(coords={dim: ["a"] for dim in dims}) as model:
        mu = pm.Normal("mu")
        for name in parameters:
            pm.Normal(name)
        for i in range(0, len(dims), 6):
            pm.Normal(f"on dims from {i}", dims=tuple(dims[i : i + 6]))
        for name in fixed:
            pm.Data(name, [0.1, 0.2])
        for name in observed:
            pm.Normal(name, 0, 1, observed=0.1)
        # without a density, which takes long to interpret
        pm.CustomDist("y", mu, random=lambda mu, rng=None, size=None: rng.normal(mu, 1, size), observed=np.zeros(3))
    return model


def fitted(model: pm.Model) -> pma.AmortizedPosterior:
    return interpreted(model, num_steps=20, num_simulations=300)


def results_of(model: pm.Model, posterior: pma.AmortizedPosterior, folder: Path) -> list[xr.Dataset]:
    """Call every public function that reads or lays out a posterior's variables; return what it lays out."""
    brief: dict[str, Any] = {"draws": 60, "chains": 2, "correction": None}
    one, other = (posterior.sample(**brief, random_seed=seed) for seed in (1, 2))
    data = one["observed_data"].to_dataset()
    many = xr.concat([data, data], dim="dataset")
    batch = posterior.sample(many, batched=True, **brief, **QUIET)
    posterior.one_dataset(batch, 0)
    posterior.logp(model.initial_point(), data)
    posterior.sample_posterior_predictive(one, extend_inferencedata=True)
    with_density = [v.name for v in posterior.spec.observed if v.name != "y"]
    if with_density:
        posterior.compute_log_likelihood(batch, var_names=with_density)
    check = pma.check_calibration(posterior, num_datasets=12, draws=40, **QUIET)
    local = pma.check_local_calibration(posterior, num_simulations=200, num_datasets=50, draws=20, **QUIET)
    compared = pma.compare_draws(one, other, random_seed=1)
    novel = pma.check_misspecification(posterior, many, batched=True, num_simulations=100, random_seed=1)
    simulated = pma.simulate(model, 20, random_seed=1, compile_kwargs=posterior.compile_kwargs)
    some = [p.name for p in posterior.spec.parameters][-3:]
    for plot in (pma.plot_calibration, pma.plot_coverage, pma.plot_recovery, pma.plot_contraction):
        plot(check, var_names=some)
    pma.plot_comparison(one, other, var_names=some)
    pma.plot_novelty(novel)
    few = pma.check_calibration(posterior, num_datasets=12, draws=40, var_names=some, **QUIET)
    pma.report(posterior, folder / "report.html", check=few)
    plt.close("all")
    posterior.save(folder / "posterior.pma")
    pma.load(folder / "posterior.pma", model=model)
    trees = [tree[name].to_dataset() for tree in (one, batch, check, local, compared, simulated) for name in tree]
    return [*trees, novel]


@pytest.fixture(scope="module")
def names(line_posterior: pma.AmortizedPosterior, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every name that the results of an ordinary model have, but for the few that a user's model may not use."""
    results = results_of(line(), line_posterior, tmp_path_factory.mktemp("ordinary"))
    results.append(line_posterior.log_marginal_likelihood(random_seed=1))
    found = {str(name) for ds in results for name in (*ds.variables, *ds.dims)}
    assert found >= REFUSED - {"y_dim_0"} | {"level", "score", "estimate", "metric", "statistic", "parameter", "stage"}
    return sorted((found | FURTHER) - REFUSED - {"mu", "y"})


@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in range(1, 5))])
def test_names_of_users_are_theirs(names, turn, tmp_path):
    roles = ("parameters", "dims", "fixed", "observed")
    given = {role: names[(turn + i) % 5 :: 5] for i, role in enumerate(roles)}
    model = named(**given)
    results = results_of(model, fitted(model), tmp_path)
    found = {str(name) for ds in results for name in (*ds.variables, *ds.dims)}
    assert found >= {name for some in given.values() for name in some}


def test_dims_of_checks_give_way():
    posterior = fitted(named(parameters=["level", "score"], dims=["estimate", "metric"]))
    check = pma.check_calibration(posterior, num_datasets=12, draws=40, **QUIET)
    assert check["coverage"]["level"].dims == ("level_",)
    assert check["contraction"]["score"].dims == ("score_", "dataset")
    assert check["recovery"]["score"].sel(estimate_="true").shape == (12,)
    assert check["recovery"]["on dims from 0"].dims == ("estimate_", "dataset", "estimate", "metric")
    assert list(check["calibration"]["metric"].to_numpy()) == ["a"]


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("fit", [pma.fit_posterior, pma.fit_likelihood, pma.fit_joint])
def test_the_few_names_of_results_are_refused_at_the_door(fit, name):
    with pytest.raises(ValueError, match=rf"variable or dim named \['{name}'\]"):
        fit(named(parameters=[name]))


def test_names_that_results_make_of_others_are_refused():
    with pm.Model(coords={"obs": range(3)}) as model:
        pm.Data("obs_length", 3.0)
        pm.Data("y_missing", 3.0)
        pm.Normal("y", pm.Normal("y_extent"), 1, observed=np.zeros(3), dims="obs")
    read_model(model, None, None, {}, None)
    with pytest.raises(ValueError, match="'obs_length'"):
        read_model(model, None, None, {"obs": (2, 5)}, None)
    with pytest.raises(ValueError, match="'y_missing'"):
        read_model(model, None, None, {}, {"y": 0.2})
    with pytest.raises(ValueError, match="a variable named 'y_extent'"):
        pma.fit_likelihood(model)


def test_a_likelihoods_parameters_may_be_called_like_its_arguments():
    with pm.Model() as model:
        name, shape, length = (pm.Normal(name) for name in ("name", "shape", "length"))
        pm.Normal("y", name, pm.math.exp(shape + length), observed=np.zeros(4))
    fast = {"compile_kwargs": {"mode": "FAST_COMPILE"}, **QUIET}
    likelihood = pma.fit_likelihood(model, num_simulations=500, training=BRIEF, **fast)
    assert set(likelihood.parameters) == {"name", "shape", "length"}
    values = dict.fromkeys(likelihood.parameters, 0.1)
    with pm.Model():
        variable = likelihood("z", **values, observed=np.zeros(4))
    assert variable.type.shape == (4,)
    assert likelihood.sample(values, shape=3, random_seed=1).shape == (3,)


def test_quantities_are_not_called_like_dims():
    model = named(dims=["item"])
    with pytest.raises(ValueError, match=r"the names \['dataset', 'item'\] are taken"):
        pma.check_calibration(fitted(model), quantities=dict.fromkeys(("item", "dataset"), len))
