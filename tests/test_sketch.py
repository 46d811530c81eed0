"""Densities of many data sets in one loop, and the sketches of posteriors that networks are given by them."""

import logging
import re
from dataclasses import replace

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import torch
from conftest import briefly
from numpy.testing import assert_allclose, assert_array_equal
from small_models import brief_fit, line

import pymc_amortized as pma
from pymc_amortized.approximators.fitting import simulation_plan
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.approximators.posterior import training as posterior_training
from pymc_amortized.approximators.posterior.choosing import Sketched
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.density.each import EachLogDensity, find_band
from pymc_amortized.graph.density.missing import LogDensityWithGaps
from pymc_amortized.graph.density.rules import find_rules
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.inputs.inputs import FRAME, SKETCH, Inputs
from pymc_amortized.inputs.sketch import MOST_PARAMETERS, MOST_SAMPLED, Sketch, halved, sketch_obstacle

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding"),
    pytest.mark.filterwarnings("ignore:Calling a RandomVariable without an explicit rng"),
]
INTERPRETED = {"mode": "FAST_COMPILE"}
N = 12
LENGTHS = (5, 14)


# Densities of many data sets


def regression():
    """Rows of any number, with a covariate and an array that is the same for all."""
    x = pm.Data("x", np.linspace(-1, 1, 8), dims="obs")
    offset = pm.Data("offset", np.array([0.3, -0.2]))
    b = pm.Normal("b", 0, pm.Data("spread", 1.5), shape=2)
    pm.Normal("y", b[0] + b[1] * x + offset[0], pm.HalfNormal("s", 1), observed=np.zeros(8), dims="obs")
    pm.Poisson("count", pt.exp(b + offset), observed=np.zeros(2, int))
    return {"context": {"obs": LENGTHS, "x": pm.Normal.dist(0, 1)}, "missing": {"y": 0.3, "count": 0.3}}


def vectors():
    """Rows of which some values are missing."""
    b = pm.Normal("b", 0, 1)
    pm.MvNormal("y", b * np.ones(3), 0.4 + 0.6 * np.eye(3), observed=np.zeros((8, 3)), dims=("obs", "item"))
    return {"context": {"obs": LENGTHS}, "missing": {"y": 0.3}}


def series():
    """A series of any length whose gaps are integrated over."""
    rho, s = pm.Normal("rho", [0.5, -0.2], 0.2), pm.HalfNormal("s", 1)
    pm.AR("y", rho, s, init_dist=pm.Normal.dist(0, 1, shape=2), observed=np.zeros(8), dims="obs")
    return {"context": {"obs": LENGTHS}, "missing": {"y": 0.4}}


def several_series():
    """Values of one of which those of the other depend, at the same place."""
    b = pm.Normal("b", 0, 1)
    y = pm.Normal("y", b, 1, observed=np.zeros(8), dims="obs")
    pm.Normal("z", b * y, 1, observed=np.zeros(8), dims="obs")
    return {"context": {"obs": LENGTHS}, "missing": {"y": 0.3}}


def direction():
    """A parameter on a circle."""
    pm.VonMises("y", pm.VonMises("angle", 0, 1), 2.0, observed=np.zeros(3))
    return {"context": {}, "missing": {}}


def read(write):
    with pm.Model(coords={"obs": range(8), "item": range(3)}) as model:
        given = write()
    spec, sources, gaps = read_model(model, None, None, given["context"], given["missing"])
    made = Simulator(spec, context=ContextSampler(spec, sources, gaps), compile_kwargs=INTERPRETED)(N, 1)
    return spec, made, find_rules(spec, made, np.random.SeedSequence(1))


@pytest.mark.parametrize(
    ("write", "band"), [(regression, None), (vectors, None), (series, 2), (several_series, 0), (direction, None)]
)
def test_densities_of_many_data_sets_are_those_of_each(write, band):
    spec, made, rules = read(write)
    datasets = of_simulations(made)
    each, one = EachLogDensity(spec, rules, compile_kwargs=INTERPRETED), LogDensityWithGaps(spec, rules, INTERPRETED)
    if each.integrated:
        each.band = find_band(each, datasets, made.unconstrained)
    assert each.band == band
    theta = made.unconstrained[np.random.default_rng(2).integers(N, size=(N, 5))]
    index = np.arange(N)[::-1]  # in any order
    expected = np.stack([one(t, datasets.one(spec, i)) for t, i in zip(theta, index, strict=True)])
    assert_allclose(each.of(datasets)(theta, index), expected, rtol=1e-8, atol=1e-8)
    if write is direction:
        assert (each.of(datasets)(theta + 2 * np.pi, index) == -np.inf).all()


def test_what_interacts_over_long_distances_has_no_band():
    def mean_of_all():
        y = pm.Normal("y", pm.Normal("b", 0, 1), 1, observed=np.zeros(20))
        pm.Normal("z", y.mean(), 0.3, observed=0.0)
        return {"context": {}, "missing": {"y": 0.3}}

    spec, made, rules = read(mean_of_all)
    assert (
        find_band(EachLogDensity(spec, rules, compile_kwargs=INTERPRETED), of_simulations(made), made.unconstrained)
        is None
    )


def test_what_raises_is_nan_and_leaves_the_others_alone():
    def covariance():
        rho = pm.Normal("rho", 0, 1)
        pm.MvNormal("y", np.zeros(2), pt.stack([pt.stack([1.0, rho]), pt.stack([rho, 1.0])]), observed=np.zeros(2))
        return {"context": {}, "missing": {}}

    spec, made, rules = read(covariance)
    found = EachLogDensity(spec, rules, compile_kwargs=INTERPRETED).of(of_simulations(made))(
        np.array([[[0.1], [3.0], [0.2]]]), np.array([4])
    )
    assert not np.isfinite(found[0, 1]) and np.isfinite(found[0, [0, 2]]).all()


# Sketches


def conjugate():
    with pm.Model(coords={"obs": range(8)}) as model:
        pm.Normal("y", pm.Normal("mu", 0, 1), 2.0, observed=np.zeros(8), dims="obs")
    return model


@pytest.fixture(scope="module")
def conjugate_sketched():
    return briefly(conjugate(), num_steps=100, context={"obs": (2, 200)}, missing={"y": 0.2})


def test_moments_are_those_of_the_posterior(conjugate_sketched):
    """In units of the standardized parameter; what is missing tells nothing."""
    rng = np.random.default_rng(3)
    ys = [rng.normal(0.5, 2, size=n) for n in (2, 5, 50, 200)]
    ys[2][::4] = np.nan
    datasets = read_datasets(conjugate_sketched.spec, [{"y": y} for y in ys], batched=True)
    found = conjugate_sketched.sketch(datasets)
    standardizer = conjugate_sketched.sketch.start.standardizer
    variance = np.array([1 / (1 + np.isfinite(y).sum() / 4) for y in ys])
    mean = np.array([v * np.nansum(y) / 4 for v, y in zip(variance, ys, strict=True)])
    scale = float(standardizer.scale[0])
    assert_allclose(found[:, 0] * scale + float(standardizer.center[0]), mean, atol=0.1 * np.sqrt(variance).max())
    assert_allclose(found[:, 1] + np.log(scale), np.log(variance) / 2, atol=0.1)


def test_a_data_set_has_the_same_sketch_alone_and_among_longer_ones(conjugate_sketched):
    rng = np.random.default_rng(4)
    sets = [{"y": rng.normal(size=n)} for n in (3, 200, 40)]
    together = conjugate_sketched.sketch(read_datasets(conjugate_sketched.spec, sets, batched=True))
    for i, one in enumerate(sets):
        alone = conjugate_sketched.sketch(read_datasets(conjugate_sketched.spec, one))
        assert_allclose(alone[0], together[i], rtol=1e-4, atol=1e-4)


def test_what_was_timed_is_not_sketched_again(conjugate_sketched, monkeypatch):
    monkeypatch.setattr("pymc_amortized.inputs.sketch.TIMED", 20)
    pilot = conjugate_sketched.simulator(30, np.random.SeedSequence(1))
    sketched = Sketched.by(conjugate_sketched.sketch, pilot)
    assert len(sketched.known) == 20 and sketched.seconds > 0
    seen, every = [], sketched.sketch.of_simulations
    monkeypatch.setattr(Sketch, "of_simulations", lambda self, some, cores: seen.append(len(some)) or every(some))
    assert_allclose(sketched.of_all(pilot, 1).extra, every(pilot), rtol=1e-6, atol=1e-8)
    assert sketched.of_all(pilot.take(slice(8)), 1).extra.shape == (8, sum(sketched.sketch.widths))
    assert seen == [10, 0]


def test_fewer_are_sketched_where_one_takes_long():
    assert [halved(1024, seconds) for seconds in (0.0, 0.002, 0.004, 0.01, 10.0)] == [1024, 1024, 512, 256, 256]
    assert halved(100, 10.0) == 100


def test_a_sketch_is_computed_once_and_travels_with_its_data_sets(conjugate_sketched):
    datasets = read_datasets(conjugate_sketched.spec, [{"y": np.zeros(5)}, {"y": np.ones(9)}], batched=True)
    sketched = conjugate_sketched.inputs.sketched(datasets)
    assert conjugate_sketched.inputs.sketched(sketched) is sketched
    assert_array_equal(sketched.take(np.array([1])).extra, sketched.extra[1:])
    data = conjugate_sketched.inputs(sketched)["data"]
    assert_array_equal(np.concatenate([data[SKETCH], data[FRAME]], axis=1), sketched.extra)


def test_simulations_come_with_the_sketch_that_they_have_afterwards(conjugate_sketched):
    simulator = conjugate_sketched.simulator
    made = simulator.with_extra(conjugate_sketched.sketch.of_simulations)(300, 5)
    plain = simulator(300, 5)
    assert plain.extra is None
    assert_array_equal(made.unconstrained, plain.unconstrained)
    assert_allclose(made.extra, conjugate_sketched.sketch.of_simulations(plain), rtol=1e-4, atol=1e-4)


def test_several_processes_make_the_same_sketches(conjugate_sketched):
    made = conjugate_sketched.simulator(1500, 6)
    alone = conjugate_sketched.sketch.of_simulations(made)
    assert_allclose(conjugate_sketched.sketch.of_simulations(made, cores=2), alone, rtol=1e-5, atol=1e-5)


def test_sketches_are_saved(conjugate_sketched, tmp_path):
    conjugate_sketched.save(tmp_path / "file")
    again = pma.load(tmp_path / "file", model=conjugate())
    data = {"y": np.array([0.3, np.nan, -0.4])}
    datasets = read_datasets(again.spec, data)
    assert_array_equal(again.sketch(datasets), conjugate_sketched.sketch(datasets))
    point = {"mu": np.linspace(-1, 1, 5)}
    assert_allclose(again.logp(point, data), conjugate_sketched.logp(point, data))


def test_a_sketch_helps_where_statistics_do_not_tell():
    """The location of a Cauchy distribution, of which no moment of the data tells."""
    with pm.Model(coords={"obs": range(30)}) as model:
        pm.Cauchy("y", pm.Normal("mu", 0, 3), 1.0, observed=np.zeros(30), dims="obs")
    with_sketch, without = (briefly(model, num_steps=200, sketch=sketch) for sketch in (None, False))
    assert without.sketch is None
    assert with_sketch.provenance.held_out_loss < without.provenance.held_out_loss - 0.1
    tree = with_sketch.sample({"y": np.r_[np.full(15, 1.0), np.full(15, 2.0)]}, random_seed=1)
    assert float(tree.sample_stats.importance_ess) / tree.sample_stats.proposal_log_weight.size > 0.8


def test_a_fixed_set_is_sketched_in_the_time_that_simulations_may_take(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="pymc_amortized")
    for name, value in {"PILOT": 400, "HELD_OUT": 100}.items():
        monkeypatch.setattr(posterior_training, name, value)
    monkeypatch.setattr(simulation_plan, "LIMITS", simulation_plan.Limits(seconds=1e-3))
    assert briefly(line(), num_steps=5, num_simulations=2000).sketch is None
    assert "for each of 2000 data sets before training (sketch=True does it all the same)" in caplog.text
    # the set is large because simulations take long
    monkeypatch.setattr(simulation_plan, "LIMITS", simulation_plan.Limits(seconds=1e-3, slow_batch=0.0))
    fewer = briefly(line(), num_steps=5)
    assert fewer.sketch is not None and fewer.provenance.num_simulations == 500
    assert "the set has 500 data sets now" in caplog.text


def test_a_fixed_set_is_no_larger_than_can_be_held(monkeypatch):
    for name, value in {"PILOT": 400, "HELD_OUT": 100}.items():
        monkeypatch.setattr(posterior_training, name, value)
    limits = simulation_plan.Limits(slow_batch=0.0, fewest=200, values=12 * 700)
    monkeypatch.setattr(simulation_plan, "LIMITS", limits)
    x = np.linspace(-1, 1, 6)
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("slope", 0, 1) * x, 1.0, observed=np.zeros(6))  # networks are given x beside y
    assert briefly(model, num_steps=10, sketch=False).provenance.num_simulations == 700
    plan = simulation_plan.SimulationPlan(number=1000, chosen=True, seconds=1e-6)
    assert [plan.holding(values).number for values in (1, 12, 10**6)] == [1000, 700, 200]
    assert replace(plan, chosen=False).holding(12).number == 1000


def test_narrow_posteriors_far_from_the_middle_keep_their_digits():
    """A millionth of the prior's width: whitened in double precision."""
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 0, 1000), 1e-3, observed=np.zeros(10))
    posterior = brief_fit(model)
    y = 1200.0 + 1e-3 * np.random.default_rng(1).normal(size=10)
    tree = posterior.sample({"y": y}, random_seed=1, correction=None)
    assert len(np.unique(tree.posterior.mu)) > 3990
    draws = tree.posterior.mu.values.ravel()
    assert_allclose(posterior.logp({"mu": draws}, {"y": y}), tree.sample_stats.log_q.values.ravel(), atol=1e-2)
    grid = y.mean() + 1e-3 * np.linspace(-3, 3, 4001)
    assert_allclose(np.trapezoid(np.exp(posterior.logp({"mu": grid}, {"y": y})), grid), 1.0, atol=0.02)


def test_an_index_that_is_not_there_is_no_error():
    with pm.Model() as model:
        a = pm.Normal("a", 0, 1)
        table = pt.as_tensor(np.linspace(-3, 3, 10))
        pm.Normal("y", table[pt.cast(pt.floor(a) + 5, "int64")], 1, observed=np.zeros(5))
    posterior = brief_fit(model)
    assert np.isfinite(posterior.sample({"y": np.full(5, 6.0)}, random_seed=1, max_nuts=0).posterior.a).all()


def test_training_goes_on_with_the_same_sketch(conjugate_sketched):
    further = conjugate_sketched.continue_training(20, progressbar=False)
    assert further.sketch is conjugate_sketched.sketch


def test_refined_posteriors_keep_theirs(conjugate_sketched):
    refined = conjugate_sketched.refine({"y": np.ones(4)}, rounds=1, num_simulations=500, max_time=3, random_seed=1)
    assert refined.sketch is conjugate_sketched.sketch
    tree = refined.sample({"y": np.ones(4)}, random_seed=1)
    assert_allclose(tree.posterior.mu.mean(), 0.5, atol=0.1)


def test_unusual_values_are_named_by_their_variable_alone(conjugate_sketched, caplog):
    caplog.set_level(logging.WARNING, logger="pymc_amortized")
    conjugate_sketched.sample({"y": np.full(20, 1e4)}, correction=None, random_seed=1)
    assert "'y'" in caplog.text and SKETCH not in caplog.text


def with_gaps(model, **missing):
    spec, sources, gaps = read_model(model, None, None, {}, missing)
    made = Simulator(spec, context=ContextSampler(spec, sources, gaps), compile_kwargs=INTERPRETED)(20, 1)
    return spec, find_rules(spec, made, np.random.SeedSequence(1))


def many_parameters():
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("b", 0, 1, shape=MOST_PARAMETERS + 1), 1, observed=np.zeros(MOST_PARAMETERS + 1))
    return with_gaps(model)


def test_many_parameters_that_cannot_be_integrated_are_not_sketched(caplog):
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=MOST_SAMPLED + 1)
        pm.Poisson("y", pm.math.exp(b), observed=np.zeros(MOST_SAMPLED + 1, int))
    with caplog.at_level(logging.INFO):
        posterior = briefly(model, num_steps=2, num_simulations=500, cores=1)
    assert posterior.sketch is None
    assert "13 parameters that cannot be integrated out are more than 12" in caplog.text


def counts_of_counts():
    with pm.Model() as model:
        y = pm.Poisson("y", pm.HalfNormal("rate", 1), observed=np.zeros(5, int))
        pm.Normal("z", y, 1, observed=np.zeros(5))
    return with_gaps(model, y=0.2)


def marginal():
    spec, *_ = read_model(line(), None, ["slope"], {}, {})
    return spec, {}


def simulator_only():
    with pm.Model() as model:
        pm.Simulator("y", lambda rng, b, size: rng.normal(b, 1, size=size), pm.Normal("b", 0, 1), observed=np.zeros(3))
    spec, *_ = read_model(model, None, None, {}, {})
    return spec, {}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (many_parameters, "25 parameters are more than 24"),
        (counts_of_counts, r"missing values of \['y'\] cannot be integrated out"),
        (marginal, "the marginal posterior without sigma has no closed density"),
        (simulator_only, "'y'"),
    ],
)
def test_models_without_a_sketch_say_why(make, reason):
    obstacle = sketch_obstacle(*make())
    assert obstacle is not None
    assert re.search(reason, obstacle)


def test_networks_of_the_users_own_are_given_the_data_alone():
    class Mean(torch.nn.Module):
        def forward(self, encoded):
            assert set(encoded) == {"y", "x", "constant 0"}
            return encoded["y"].mean((1, 2))[:, None]

    quick = {"num_simulations": 500, "cores": 1, "compile_kwargs": INTERPRETED}
    posterior = brief_fit(line(), context={"x": pm.Normal.dist(0, 1)}, summary=Mean(), **quick)
    assert posterior.sketch is None


def test_a_sketch_is_wanted_or_not():
    with pytest.raises(TypeError, match="sketch must be True, False or None, got 'yes'"):
        pma.fit_posterior(line(), sketch="yes")
    with pytest.raises(ValueError, match="a summary network of your own is given the data alone"):
        pma.fit_posterior(line(), sketch=True, summary=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="sketch=True: the posterior cannot be sketched.*marginal posterior"):
        brief_fit(line(), parameters=["slope"], sketch=True)


def test_inputs_without_a_sketch_have_no_array_for_it(conjugate_sketched):
    plain = replace(conjugate_sketched.inputs, sketch=None)
    assert isinstance(plain, Inputs)
    assert [array.name for array in plain.layout.arrays] == ["y"]
    assert [array.name for array in conjugate_sketched.inputs.layout.arrays] == ["y", SKETCH, FRAME]
