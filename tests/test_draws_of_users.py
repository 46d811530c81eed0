"""What a user's own function draws: of the variable's shape, by the generator that it is given, in every process."""

import logging
import random

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.graph.data.simulations import SimulationError
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.parallel import run_tasks
from pymc_amortized.graph.simulation.simulator import Simulator

INTERPRETED = {"mode": "FAST_COMPILE"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding"),
    pytest.mark.filterwarnings("ignore:Calling a RandomVariable without"),
]

SHORT = {
    "a scalar": lambda rng, mu: rng.normal(),
    "a Python number": lambda rng, mu: float(rng.normal()),
    "one number": lambda rng, mu: rng.normal(size=1),
    "one row": lambda rng, mu: rng.normal(size=3),
    "a row with an axis": lambda rng, mu: rng.normal(size=(1, 3)),
    "a column": lambda rng, mu: rng.normal(size=(4, 1)),
    "an axis more": lambda rng, mu: rng.normal(size=(1, 4, 3)),
    "a number more": lambda rng, mu: rng.normal(size=(5, 3)),
    "sometimes": lambda rng, mu: rng.normal(size=(4, 3) if mu < 1 else 3),
}


def drawn(model, n=50):
    """Simulate without compiling."""
    return Simulator(take_snapshot(model), compile_kwargs=INTERPRETED)(n, 1)


def simulator_of(draw):
    with pm.Model() as model:
        pm.Simulator("y", lambda rng, mu, size: draw(rng, mu), pm.Normal("mu"), observed=np.zeros((4, 3)))
    return model


def custom_of(draw):
    with pm.Model() as model:
        pm.CustomDist(
            "y", pm.Normal("mu"), random=lambda mu, rng=None, size=None: draw(rng, mu), observed=np.zeros((4, 3))
        )
    return model


def free_of(draw):
    with pm.Model() as model:
        y = pm.CustomDist(
            "y",
            pm.Normal("mu"),
            random=lambda mu, rng=None, size=None: draw(rng, mu),
            logp=lambda value, mu: pm.logp(pm.Normal.dist(mu), value),
            shape=(4, 3),
        )
        pm.Normal("z", y.sum(), 1.0, observed=0.0)
    return model


def inner_of(draw):
    with pm.Model() as model:
        y = pm.CustomDist.dist(pm.Normal("mu"), random=lambda mu, rng=None, size=None: draw(rng, mu), shape=(4, 3))
        pm.Censored("y", y, lower=-1, upper=None, observed=np.zeros((4, 3)))
    return model


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("build", [simulator_of, custom_of, free_of])
def test_draws_of_another_shape_are_refused(build, kind):
    with pytest.raises(
        SimulationError, match=r"'y': the function that draws returned shape \(.*, the variable has \(4, 3\)"
    ):
        drawn(build(SHORT[kind]))


@pytest.mark.parametrize("build", [simulator_of, custom_of, free_of])
def test_draws_of_the_right_shape_are_taken(build, caplog):
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        made = drawn(build(lambda rng, mu: rng.normal(mu, size=(4, 3))))
    y = (made.variables | made.data)["y"]
    assert y.shape == (50, 4, 3) and len(np.unique(y)) == y.size and not caplog.text


@pytest.mark.parametrize("door", ["simulate", "fit_posterior"])
def test_shapes_are_compared_at_every_door(door):
    with pytest.raises(SimulationError, match="'y': the function that draws returned shape"):
        getattr(pma, door)(simulator_of(SHORT["one row"]), random_seed=1)


@pytest.mark.parametrize("build", [simulator_of, free_of])
def test_shapes_are_compared_in_other_processes(build):
    simulator = Simulator(take_snapshot(build(SHORT["sometimes"])), compile_kwargs=INTERPRETED)
    with pytest.raises(SimulationError, match=r"returned shape \(3,\), the variable has \(4, 3\)"):
        run_tasks(simulator, "chunk", [(50, np.random.SeedSequence(k)) for k in range(2)], cores=2)


def test_shapes_that_vary_are_compared_at_each_length():
    def draw(rng, mu, size):
        return rng.normal(mu[:1], size=min(size[0], 6))

    with pm.Model() as model:
        x = pm.Data("x", np.zeros(5), dims="obs")
        pm.Simulator("y", draw, pm.Normal("mu") + x, observed=np.zeros(5), dims="obs")
    with pytest.raises(SimulationError, match=r"returned shape \(6,\), the variable has \(9,\)"):
        pma.simulate(model, 20, context={"obs": (2, 9), "x": pm.Normal.dist()}, random_seed=1)


def test_rows_are_compared_with_their_number_of_columns():
    def draw(rng, mean, size):
        return rng.normal(mean, size=(*(size or ()), 3))

    def short(rng, mean, size):
        return rng.normal(size=(1, 3))

    for function in (draw, short):
        with pm.Model() as model:
            mean = pm.Normal("mean", shape=3)
            pm.Simulator("y", function, mean, signature="(k)->(k)", observed=np.zeros((4, 3)))
        if function is draw:
            assert drawn(model).data["y"].shape == (50, 4, 3)
        else:
            with pytest.raises(SimulationError, match=r"returned shape \(1, 3\), the variable has \(4, 3\)"):
                drawn(model)


UNREPEATABLE = {
    "np.random": (lambda rng, mu: np.random.normal(mu, size=(4, 3)), "NumPy's global random numbers"),  # noqa: NPY002
    "scipy": (lambda rng, mu: stats.norm.rvs(mu, size=(4, 3)), "NumPy's global random numbers"),
    "always the same": (
        lambda rng, mu: (np.random.seed(1), np.random.normal(mu, size=(4, 3)))[1],  # noqa: NPY002
        "NumPy's global random numbers",
    ),
    "a generator": (lambda rng, mu: np.random.default_rng().normal(mu, size=(4, 3)), "random numbers of its own"),
    "random": (lambda rng, mu: np.full((4, 3), random.gauss(mu, 1)), "random numbers of its own"),
}


@pytest.mark.parametrize("kind", UNREPEATABLE)
@pytest.mark.parametrize("build", [simulator_of, free_of])
def test_random_numbers_of_elsewhere_are_said(build, kind, caplog):
    draw, source = UNREPEATABLE[kind]
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        drawn(build(draw))
    (record,) = [r for r in caplog.records if "random_seed" in r.message]
    assert f"that draws 'y' uses {source}" in record.message


# Other processes


def scaled_logp(value, mu, sigma):
    return pm.logp(pm.Normal.dist(mu, sigma), value)


def distance(epsilon, observed, simulated):
    return -pt.abs(observed - simulated) / epsilon


def of_random_and_logp():
    pm.CustomDist(
        "y", pm.Normal("mu"), 2.0, random=lambda m, s, rng=None, size=None: rng.normal(m, s, size), logp=scaled_logp,
        observed=np.zeros(3),
    )  # fmt: skip


def of_a_graph_and_logp():
    pm.CustomDist(
        "y", pm.Normal("mu"), 2.0, dist=lambda m, s, size: pm.Normal.dist(m, s, size=size), logp=scaled_logp,
        observed=np.zeros(3),
    )  # fmt: skip


def of_a_graph():
    pm.CustomDist(
        "y", pm.Normal("mu"), 2.0, dist=lambda m, s, size: m + s * pm.Normal.dist(size=size), observed=np.zeros(3)
    )


def of_a_free_one():
    mu = pm.CustomDist(
        "mu", 0.0, 1.0, random=lambda m, s, rng=None, size=None: rng.normal(m, s, size), logp=scaled_logp
    )
    pm.Normal("y", mu, 2.0, observed=np.zeros(3))


def of_one_in_another():
    inner = pm.CustomDist.dist(
        pm.Normal("mu"), 2.0, random=lambda m, s, rng=None, size=None: rng.normal(m, s, size), logp=scaled_logp,
        logcdf=lambda value, m, s: pm.logcdf(pm.Normal.dist(m, s), value), shape=3,
    )  # fmt: skip
    pm.Censored("y", inner, lower=-1e9, upper=1e9, observed=np.zeros(3))


@pytest.mark.parametrize(
    "write", [of_random_and_logp, of_a_graph_and_logp, of_a_graph, of_a_free_one, of_one_in_another]
)
def test_densities_of_custom_distributions_are_known_in_other_processes(write):
    with pm.Model() as model:
        write()
    spec = take_snapshot(model)
    density = LogDensity(spec, INTERPRETED)
    theta, y = np.array([[0.3], [-0.5]]), np.array([0.1, 0.5, -2.0])
    expected = [stats.norm(0, 1).logpdf(m) + stats.norm(m, 2).logpdf(y).sum() for m in theta[:, 0]]
    data = {"y": y, **spec.unchanging_values}
    assert_allclose(density(theta, data), expected)
    for values in run_tasks(density, "__call__", [(theta, data)] * 2, cores=2):
        assert_allclose(values, expected)
    simulator = Simulator(spec, compile_kwargs=INTERPRETED)
    tasks = [(20, np.random.SeedSequence(k)) for k in range(2)]
    for made, (n, seed) in zip(run_tasks(simulator, "chunk", tasks, cores=2), tasks, strict=True):
        assert_allclose(made.data["y"], simulator.chunk(n, seed).data["y"])


@pytest.mark.parametrize("distance", ["gaussian", distance, lambda e, o, s: float(np.abs(o - s).sum())])
def test_simulators_are_sent_with_their_distances(distance):
    with pm.Model() as model:
        pm.Simulator(
            "y", lambda rng, m, size: rng.normal(m, size=size), pm.Normal("mu"), distance=distance, sum_stat="sort",
            observed=np.zeros(3),
        )  # fmt: skip
    simulator = Simulator(take_snapshot(model), compile_kwargs=INTERPRETED)
    tasks = [(20, np.random.SeedSequence(k)) for k in range(2)]
    assert [len(made) for made in run_tasks(simulator, "chunk", tasks, cores=2)] == [20, 20]
