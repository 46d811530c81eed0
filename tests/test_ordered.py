"""Ordered vectors that are drawn by themselves: distribution and counts are those of rejecting whole draws."""

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose

from pymc_amortized.graph.data.simulations import SimulationError, excluded
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.simulator import Simulator

ORDERED = pm.distributions.transforms.ordered
INTERPRETED = {"mode": "FAST_COMPILE"}
N = 1500


def ordinal(mean, spread=1.0, **kwargs):
    with pm.Model() as model:
        kwargs = {"transform": ORDERED, "initval": np.linspace(-1, 1, np.shape(mean)[-1]), **kwargs}
        cut = pm.Normal("cut", mean, spread, **kwargs)
        slope = pm.Normal("slope", 0, 1)
        pm.OrderedLogistic("y", eta=slope * np.linspace(-1, 1, 4), cutpoints=cut, observed=[0, 1, 1, 2])
    return model


def made(model, n=N):
    return Simulator(take_snapshot(model), compile_kwargs=INTERPRETED)(n, 1)


def rejected(mean, spread, n=400_000):
    draws = np.random.default_rng(5).normal(mean, spread, size=(n, len(mean)))
    keep = (np.diff(draws, axis=1) > 0).all(axis=1)
    return draws[keep], keep.mean()


@pytest.mark.parametrize(("mean", "spread"), [([-0.6, 0.0, 0.6], 2.0), ([1.0, 0.5, 0.0], [0.5, 1.0, 1.5])])
def test_draws_are_those_that_rejection_leaves(mean, spread):
    found = made(ordinal(mean, spread))
    expected, share = rejected(mean, spread)
    cut = found.variables["cut"]
    assert (np.diff(cut, axis=1) > 0).all()
    noise = expected.std(axis=0) / np.sqrt(N)
    assert (np.abs(cut.mean(axis=0) - expected.mean(axis=0)) < 4 * noise).all()
    assert_allclose(np.cov(cut.T), np.cov(expected.T), atol=0.15 * expected.var(axis=0).max())
    (reason, number), *others = found.dropped.items()
    assert reason == excluded("cut")
    assert not others
    assert (found.attempted - number) / found.attempted == pytest.approx(share, rel=0.1)
    assert len(found) == N == found.attempted - number


def test_only_the_vector_is_drawn_again():
    simulator = Simulator(take_snapshot(ordinal([-0.1, 0.0, 0.1, 0.2])), compile_kwargs=INTERPRETED)
    (chunk,) = [simulator.chunk(50, np.random.SeedSequence(3))]
    assert len(chunk) == 50
    assert chunk.attempted > 500


def test_the_same_seed_gives_the_same_draws():
    one, other = (made(ordinal([-0.5, 0.5]), 40) for _ in range(2))
    assert_allclose(one.variables["cut"], other.variables["cut"])
    assert_allclose(one.data["y"], other.data["y"])


def test_what_depends_on_others_is_left_to_rejection():
    with pm.Model() as model:
        center = pm.Normal("center", 0, 1)
        pm.Normal("cut", pm.math.stack([center, 0.0]), 1.0, transform=ORDERED, initval=[-1.0, 1.0])
        pm.Normal("y", center, 1.0, observed=0.3)
    found = made(model)
    # the order says something of the center too
    assert found.variables["center"].mean() == pytest.approx(-1 / np.sqrt(3) * np.sqrt(2 / np.pi), abs=0.1)


DESCENDING = pm.distributions.transforms.Ordered(ascending=False)
POSITIVE = pm.distributions.transforms.Ordered(positive=True)


@pytest.mark.parametrize(("kind", "low"), [(DESCENDING, -1), (POSITIVE, 1)])
def test_other_orders(kind, low):
    cut = made_cut(kind, low)
    steps = low * np.diff(cut, axis=1)
    assert (steps > 0).all()
    assert low < 0 or (cut > 0).all()


def made_cut(kind, low):
    with pm.Model() as model:
        cut = pm.Normal("cut", [0.2, 0.4], 1.0, transform=kind, initval=[0.5, 0.5 + 0.2 * low])
        pm.Normal("y", cut.sum(), 1.0, observed=0.3)
    return made(model, 200).variables["cut"]


def test_hardly_any_order_is_refused():
    with pytest.raises(SimulationError, match="'cut' are in the order"):
        made(ordinal([20.0, 0.0, -20.0]), 10)


def test_shares_of_several_ordered_vectors_multiply():
    """As if they had been drawn together: 1 of 2 and 1 of 6 orders leave 1 of 12 (vectors that are not sorted)."""
    with pm.Model() as model:
        two = pm.Normal(
            "two", [0, 1e-6], 1, shape=2, transform=pm.distributions.transforms.ordered, initval=np.arange(2)
        )
        pm.Normal(
            "three", [0, 1e-6, 2e-6], 1, shape=3, transform=pm.distributions.transforms.ordered, initval=[0, 1, 2]
        )
        pm.Normal("y", two.sum(), 1, observed=0.0)
    made = Simulator(take_snapshot(model))(4000, 1)
    assert len(made) == 4000
    assert made.attempted == 4000 + sum(made.dropped.values())
    assert len(made) / made.attempted == pytest.approx(1 / 12, rel=0.1)
