"""Hierarchies of models without a density: data are cut into groups, of which a shared network learns."""

from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import pytest

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.grouping import find_plates
from pymc_amortized.graph.structure.independence import refuse_dependent

pytestmark = [  # pm.Simulator calls PyTensor in a way that PyTensor has deprecated
    pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding"),
    pytest.mark.filterwarnings("ignore:Calling a RandomVariable without"),
]
INTERPRETED: dict[str, Any] = {"compile_kwargs": {"mode": "FAST_COMPILE"}}
SITES: dict[str, Any] = {"site": (2, 8), "visit": (8, 60), "site_index": "groups"}
SD = 0.5


def draw(rng: np.random.Generator, mean: np.ndarray, size: Any = None) -> np.ndarray:
    return rng.normal(mean, SD, size=size)


def sites() -> pm.Model:
    with pm.Model(coords={"site": range(4)}) as model:
        site = pm.Data("site_index", np.arange(12) % 4, dims="visit")
        mu, tau = pm.Normal("mu", 0, 1), pm.HalfNormal("tau", 1)
        level = pm.Normal("level", mu, tau, dims="site")
        pm.Simulator("y", draw, level[site], observed=np.zeros(12), dims="visit")
    return model


def classes() -> pm.Model:
    """Pupils in classes in schools; covariates of each, two values for each school."""
    with pm.Model(coords={"school": range(3), "class": range(6), "effect": ["a", "b"]}) as model:
        school = pm.Data("school_of", np.arange(6) % 3, dims="class")
        cls = pm.Data("class_of", np.arange(24) % 6 + 1, dims="pupil")
        wealth, size = pm.Data("wealth", np.zeros(3), dims="school"), pm.Data("size", np.zeros(6), dims="class")
        x, year = pm.Data("x", np.zeros(24), dims="pupil"), pm.Data("year", 0.0)
        mu = pm.Normal("mu", 0, 1)
        pair = pm.Normal("pair", mu + wealth[:, None], 1, dims=("school", "effect"))
        own = pm.LogNormal("own", pair[school, 0] + size, 0.5, dims="class")
        mean = own[cls - 1] + x + pair[school[cls - 1], 1] + year
        pm.Simulator("y", draw, mean, observed=np.zeros(24), dims="pupil")
    return model


CLASSES: dict[str, Any] = {
    "school": (2, 5),
    "class": (4, 9),
    "pupil": (10, 40),
    "school_of": "groups",
    "class_of": "groups",
    **dict.fromkeys(("wealth", "size", "x", "year"), pm.Normal.dist()),
}


def of(model: pm.Model, context: dict[str, Any], missing: Any = None) -> tuple[Any, Simulator]:
    spec, sources, gaps = read_model(model, None, None, context, missing)
    return spec, Simulator(spec, context=ContextSampler(spec, sources, gaps), **INTERPRETED)


# Cutting


def test_data_sets_are_cut_into_groups_and_put_together_again():
    spec, simulator = of(classes(), CLASSES, {"y": 0.2})
    (plate,) = find_plates(spec)
    assert plate.dim == "school" and [p.dim for p in plate.all_plates] == ["school", "class"]
    assert [v.name for v in plate.of_group.data] == ["y", "class_of", "wealth", "size", "x", "year"]
    made = simulator(20, 1)
    whole, groups = of_simulations(made), plate.cut(of_simulations(made))
    k = 0
    for i in range(20):
        one = {name: values[i] for name, values in whole.values.items()}
        classes_, pupils = (int(whole.lengths[dim][i]) for dim in ("class", "pupil"))
        school_of, class_of = one["school_of"][:classes_], one["class_of"][:pupils] - 1
        for school in range(whole.lengths["school"][i]):
            own = np.flatnonzero(school_of == school)
            rows = np.flatnonzero(np.isin(class_of, own))
            cut = {name: values[k] for name, values in groups.datasets.values.items()}
            assert groups.owner[k] == i and cut["wealth"] == one["wealth"][school] and cut["year"] == one["year"]
            lengths = {dim: n[k] for dim, n in groups.datasets.lengths.items()}
            assert lengths == {"class": len(own), "pupil": len(rows)}
            for name, where in {"size": own, "x": rows, "y": rows}.items():
                np.testing.assert_array_equal(cut[name][: len(where)], one[name][where])
            np.testing.assert_array_equal(own[cut["class_of"][: len(rows)] - 1], class_of[rows])
            np.testing.assert_array_equal(groups.datasets.missing["y"][k][: len(rows)], whole.missing["y"][i][rows])
            k += 1
    assert k == len(groups.owner)
    for name, dims in {"pair": ("school", None), "own": ("class",)}.items():
        values = made.variables[name].astype(float)
        joined = groups.joined(groups.cut(values, dims), dims)
        there = np.arange(joined.shape[1]) < whole.lengths[dims[0]][:, None]
        np.testing.assert_array_equal(joined[there], values[:, : joined.shape[1]][there])
        assert np.isnan(joined[~there]).all()


# What is refused


def crossed() -> tuple[pm.Model, dict[str, Any]]:
    with pm.Model(coords={"subject": range(3), "item": range(4)}) as model:
        subject, item = pm.Data("s", np.arange(12) % 3, dims="row"), pm.Data("i", np.arange(12) % 4, dims="row")
        a, b = pm.Normal("a", pm.Normal("mu"), dims="subject"), pm.Normal("b", dims="item")
        pm.Simulator("y", draw, a[subject] + b[item], observed=np.zeros(12), dims="row")
    return model, {"subject": (2, 5), "item": (2, 5), "row": (5, 20), "s": "groups", "i": "groups"}


def walking() -> tuple[pm.Model, dict[str, Any]]:
    with pm.Model(coords={"day": range(6)}) as model:
        level = pm.GaussianRandomWalk("level", pm.Normal("mu"), 1, init_dist=pm.Normal.dist(), dims="day")
        pm.Simulator("y", draw, level, observed=np.zeros(6), dims="day")
    return model, {"day": (3, 9)}


def pooled() -> tuple[pm.Model, dict[str, Any]]:
    with pm.Model(coords={"site": range(4)}) as model:
        level = pm.Normal("level", pm.Normal("mu"), dims="site")
        pm.Simulator("y", draw, level.mean(), observed=np.zeros(3))
    return model, {"site": (2, 8)}


def of_fixed_rows() -> tuple[pm.Model, dict[str, Any]]:
    return sites(), {name: source for name, source in SITES.items() if name != "visit"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (crossed, r"rows along 'row' do not fall into independent groups, which \['i', 's'\] put into groups twice"),
        (walking, "the values of 'level' do not fall into independent groups, along 'day'"),
        (pooled, r"the data \['y'\] do not fall into independent groups, by 'site'"),
        (of_fixed_rows, "'site_index' puts rows into groups along 'site'.*give the dim of the rows a range"),
    ],
)
def test_groups_that_depend_on_each_other_are_refused(make, message):
    model, context = make()
    with pytest.raises(ValueError, match=message):
        pma.fit_posterior(model, context=context)


def leaking(rng: np.random.Generator, mean: np.ndarray, size: Any = None) -> np.ndarray:
    """Each row reads all others."""
    return rng.normal(mean + np.mean(mean), SD, size=size)


def counting(rng: np.random.Generator, mean: np.ndarray, size: Any = None) -> np.ndarray:
    """Rows are independent, but how many random numbers one uses up depends on its mean."""
    return rng.poisson(np.exp(np.clip(mean, -3, 4)), size=size).astype(float)


@pytest.mark.parametrize(("function", "fine"), [(draw, True), (counting, True), (leaking, False)])
def test_a_simulator_that_reads_other_groups_is_found(function, fine):
    with pm.Model(coords={"site": range(4)}) as model:
        site = pm.Data("site_index", np.arange(12) % 4, dims="visit")
        level = pm.Normal("level", pm.Normal("mu"), 1, dims="site")
        pm.Simulator("y", function, level[site], observed=np.zeros(12), dims="visit")
    spec, simulator = of(model, SITES)
    made, seed = simulator(60, 1), np.random.SeedSequence(2)
    if fine:
        refuse_dependent(spec, made, seed, INTERPRETED["compile_kwargs"])
    else:
        with pytest.raises(ValueError, match=r"those of some groups change 'y' of others, by [\d.]+ standard errors"):
            refuse_dependent(spec, made, seed, INTERPRETED["compile_kwargs"])


def prior_of_all(level: Any) -> Any:
    return pm.Normal("b", level.mean(), 0.5, dims="site")


def parameter_of_all(level: Any) -> Any:
    return pm.Normal("b", level.mean(), 0.5)


def potential_of_all(level: Any) -> Any:
    pm.Potential("b", -((level.mean() - 1) ** 2))
    return 0.0


def next_group(level: Any) -> Any:
    """The first group is read by none but itself."""
    return pm.math.concatenate([level[1:], level[-1:]])


def sharing(rng: np.random.Generator, mean: np.ndarray, size: Any = None) -> np.ndarray:
    """All rows share a number that is no variable of the model."""
    return rng.normal(mean + rng.normal(), SD, size=size)


@pytest.mark.parametrize(
    ("further", "function", "message"),
    [
        (prior_of_all, draw, "those of some groups change the prior of 'b' elsewhere"),
        (parameter_of_all, draw, "those of some groups change the prior of 'b' elsewhere"),
        (potential_of_all, draw, "those of some groups change the prior of 'b' elsewhere"),
        (next_group, draw, "those of some groups change 'y' of others"),
        (lambda _: 0.0, sharing, r"those of groups vary together, by [\d.]+ standard errors"),
    ],
)
def test_groups_that_have_more_in_common_are_found(further, function, message):
    with pm.Model(coords={"site": range(4)}) as model:
        site = pm.Data("site_index", np.arange(12) % 4, dims="visit")
        level = pm.Normal("level", pm.Normal("mu"), 1, dims="site")
        pm.Simulator("y", function, (level + further(level))[site], observed=np.zeros(12), dims="visit")
    spec, simulator = of(model, SITES)
    with pytest.raises(ValueError, match=message):
        refuse_dependent(spec, simulator(60, 1), np.random.SeedSequence(2), INTERPRETED["compile_kwargs"])


def test_all_that_groups_have_in_common_is_wanted():
    with pytest.raises(ValueError, match=r"\['level'\], are drawn given all .* but \['mu'\] are left out"):
        pma.fit_posterior(sites(), parameters=["tau", "level"], context=SITES)


# Posteriors


@pytest.fixture(scope="module")
def posterior():
    options = pma.Training(num_steps=600, batch_size=256)
    return pma.fit_posterior(sites(), context=SITES, training=options, random_seed=1, progressbar=False)


def one_of(rng: np.random.Generator, number: int, rows: int) -> tuple[dict[str, Any], np.ndarray, tuple[float, float]]:
    """A data set, the values of its groups, and the parameters."""
    mu, tau = rng.normal(), abs(rng.normal())
    level, site = rng.normal(mu, tau, number), np.arange(rows) % number
    return {"y": rng.normal(level[site], SD), "site_index": site}, level, (mu, tau)


def test_values_of_groups_are_those_of_the_closed_form(posterior):
    """Given the parameters each level is normal: drawn values are compared with that, draw by draw."""
    rng, found = np.random.default_rng(3), []
    for rows in (12, 20, 37, 50):
        data, *_ = one_of(rng, 5, rows)
        draws = posterior.sample(data, random_seed=1, progressbar=False).posterior
        mu, tau, level = (draws[name].to_numpy() for name in ("mu", "tau", "level"))
        counts, sums = np.bincount(data["site_index"]), np.bincount(data["site_index"], data["y"])
        precision = 1 / tau[..., None] ** 2 + counts / SD**2
        z = (level - (mu[..., None] / tau[..., None] ** 2 + sums / SD**2) / precision) * np.sqrt(precision)
        found.append((z.mean((0, 1)), z.std((0, 1))))
    mean, sd = np.array(found).transpose(1, 0, 2)
    assert np.abs(mean).mean() < 0.15 and abs(sd.mean() - 1) < 0.1


def test_groups_without_rows_follow_the_parameters(posterior):
    rng = np.random.default_rng(4)
    data, *_ = one_of(rng, 3, 30)
    draws = posterior.sample(data | {"site": 5}, random_seed=1, progressbar=False).posterior
    z = ((draws["level"] - draws["mu"]) / draws["tau"]).to_numpy()[..., 3:]
    assert draws["level"].sizes["site"] == 5
    assert abs(z.mean()) < 0.15 and abs(z.std() - 1) < 0.3


def test_draws_of_parameters_and_groups_are_calibrated(posterior):
    check = pma.check_calibration(posterior, num_datasets=150, random_seed=5, progressbar=False)
    assert float(check["calibration"]["level"].sel(metric="p_adjusted")) > 1e-3
    print(check)


def test_groups_are_saved_and_come_later(posterior, tmp_path):
    posterior.save(tmp_path / "p.pma")
    again = pma.load(tmp_path / "p.pma", model=sites())
    data, *_ = one_of(np.random.default_rng(6), 6, 40)
    first, second = (p.sample(data, random_seed=1, progressbar=False) for p in (posterior, again))
    np.testing.assert_array_equal(first.posterior["level"], second.posterior["level"])
    named = {"y": [9.0, 9.1], "site_index": [0, 0], "site": [2]}
    with pytest.raises(ValueError, match=r"'site': \['2'\] are in the result, and would be drawn anew"):
        again.sample_groups(first, named)
    new = again.sample_groups(first, {"y": [9.0, 9.1], "site_index": [0, 0]}, random_seed=2)
    assert new.posterior["level"].sizes["site"] == 1
    assert float(new.posterior["level"].mean()) > float(first.posterior["level"].mean()) + 2
    dts = posterior.sample([data, one_of(np.random.default_rng(7), 2, 9)[0]], batched=True, random_seed=1)
    assert np.isnan(dts.posterior["level"][1, ..., 2:]).all() and np.isfinite(dts.posterior["level"][1, ..., :2]).all()
    predicted = posterior.sample_posterior_predictive(first, random_seed=1).posterior_predictive["y"]
    assert predicted.shape == (4, 1000, 40)


def with_density() -> pm.Model:
    with pm.Model(coords={"site": range(4)}) as model:
        site = pm.Data("site_index", np.arange(12) % 4, dims="visit")
        level = pm.Normal("level", pm.Normal("mu", 0, 1), pm.HalfNormal("tau", 1), dims="site")
        pm.Normal("y", level[site], SD, observed=np.zeros(12), dims="visit")
    return model


@pytest.mark.parametrize("sites", [sites, with_density])
def test_groups_of_simulations_that_are_given(sites, tmp_path):
    kwargs: dict[str, Any] = {"training": pma.Training(num_steps=20, batch_size=32), "random_seed": 1}
    made = pma.simulate(sites(), 200, context=SITES, store=tmp_path / "a.zarr", random_seed=1, progressbar=False)
    for given in (made.load(), tmp_path / "a.zarr"):
        posterior = pma.fit_posterior(sites(), context=SITES, simulations=given, progressbar=False, **kwargs)
        data, *_ = one_of(np.random.default_rng(6), 6, 40)
        assert posterior.sample(data, draws=50, progressbar=False).posterior["level"].shape == (4, 50, 6)


def test_plates_within_plates(tmp_path):
    options = pma.Training(num_steps=60, batch_size=64)
    kwargs: dict[str, Any] = {"training": options, "num_simulations": 400, "random_seed": 1, "progressbar": False}
    posterior = pma.fit_posterior(classes(), context=CLASSES, **kwargs)
    assert [factor.names for factor in posterior.structure.factors] == [("pair", "own")]
    (schools,) = posterior.groups
    assert schools.plate.dim == "school" and [one.plate.dim for one in schools.below] == ["class"]
    posterior.save(tmp_path / "p.pma")
    again = pma.load(tmp_path / "p.pma", model=classes())
    data = {
        "y": np.arange(12.0),
        "class_of": np.arange(12) % 4 + 1,
        "school_of": [0, 1, 1, 0],
        "wealth": [0.0, 1.0],
        "size": np.zeros(4),
        "x": np.zeros(12),
        "year": 0.0,
    }
    draws = again.sample(data, draws=50, chains=2, random_seed=1, progressbar=False).posterior
    assert draws["pair"].shape == (2, 50, 2, 2) and draws["own"].shape == (2, 50, 4)
    assert (draws["own"] > 0).all() and np.isfinite(draws["pair"]).all()
    # what a class brings is read by its own school alone
    theta, one = np.zeros((40, 1)), posterior.read(data).one(posterior.spec, 0)
    other = replace(posterior.read(data))
    other.values["y"][0, np.array(data["class_of"]) == 1] += 5.0
    one, two = (
        posterior.compiled.with_locals(theta, each, np.random.default_rng(1))
        for each in (one, other.one(posterior.spec, 0))
    )
    changed = np.abs(two - one).max(0)[1:]  # pair of school 0, of school 1, own of four classes
    assert (changed[[0, 1]] > 0).any() and (changed[[2, 3]] == 0).all()
    assert changed[4] > 0 and (changed[[5, 6]] == 0).all()
