"""Levels of hierarchical models."""

import pymc as pm
import pytest
from models import MODELS

from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.structure.levels import MOST, hierarchy_levels


def by_name(model: pm.Model) -> dict[str, int]:
    """The level of each free variable, whose values all stand on one."""
    spec = take_snapshot(model)
    levels = iter(hierarchy_levels(spec))
    found = {p.name: {next(levels) for _ in range(p.size)} for p in spec.parameters}
    assert next(levels, None) is None
    assert all(len(one) == 1 for one in found.values())
    return {name: one.pop() for name, one in found.items()}


@pytest.mark.parametrize("name", MODELS)
def test_levels_are_counted_from_zero_without_gaps(name: str) -> None:
    found = by_name(MODELS[name].build())
    assert set(found.values()) == set(range(len(set(found.values()))))


def test_what_a_prior_depends_on_comes_first() -> None:
    with pm.Model() as model:
        mu = pm.Normal("mu")
        theta = pm.Normal("theta", mu, 1, shape=4)
        tau = pm.HalfNormal("tau")
        rate = pm.Exponential("rate", tau, shape=4)
        pm.Normal("y", theta, rate, observed=[0.0] * 4)
    assert by_name(model) == {"tau": 0, "mu": 1, "rate": 2, "theta": 3}


def test_dependence_through_deterministics_and_bounds_counts() -> None:
    with pm.Model() as model:
        mu = pm.Normal("mu")
        shifted = pm.Deterministic("shifted", mu + 1)
        x = pm.Normal("x", shifted)
        pm.Uniform("u", 0, pm.math.exp(x))
        pm.Normal("y", x, observed=0.0)
    assert by_name(model) == {"mu": 0, "x": 1, "u": 2}


def test_a_chain_is_no_hierarchy() -> None:
    with pm.Model() as model:
        x = pm.Normal("x0")
        for i in range(1, 7):
            x = pm.Normal(f"x{i}", x)
        pm.Normal("y", x, observed=0.0)
    assert list(by_name(model).values()) == [min(i, MOST - 1) for i in range(7)]
