"""Atoms of priors that other variables place, found by the continuity of the density; and what is none of them."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from conftest import interpreted

from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.graph.simulation.atoms import PriorAtomError
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.continuity import refuse_jumps
from pymc_amortized.graph.simulation.simulator import Simulator

pytestmark = pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")
DIRAC, NORMAL = pm.DiracDelta.dist, pm.Normal.dist


def check(write, context=None):
    with pm.Model() as model:
        write()
        if not model.observed_RVs:
            pm.Normal("y", pt.sum(model["b"]), 1, observed=np.zeros(3))
    spec, sources, _ = read_model(model, None, None, context or {}, {})
    options = {"mode": "FAST_COMPILE"}
    refuse_jumps(spec, Simulator(spec, context=ContextSampler(spec, sources), compile_kwargs=options)(300, 1))


def spike(place, slab=1.0, share=0.5, **kwargs):
    return pm.Mixture("b", [share, 1 - share], [DIRAC(place, **kwargs), NORMAL(place, slab, **kwargs)], **kwargs)


def custom(b, scale):
    """A normal distribution that nothing is known of."""

    def draw(b, rng=None, size=None):
        return rng.normal(b, scale, size=size)

    return pm.CustomDist("b", b, logp=lambda value, b: -0.5 * ((value - b) / scale) ** 2, random=draw)


ATOMS = {
    "another variable": lambda: spike(pm.Normal("a")),
    "what is computed of it": lambda: spike(2 * pm.Normal("a") + 1),
    "rarely": lambda: spike(pm.Normal("a"), share=0.03),
    "tiny scales": lambda: spike(pm.Normal("a", 0, 1e-6), 1e-6),
    "large scales": lambda: spike(pm.Normal("a", 0, 1e6), 1e6),
    "far from zero": lambda: spike(pm.Normal("a", 1e6, 1)),
    "some of several": lambda: spike(pm.Normal("a", shape=4), share=0.1, shape=4),
    "a limit": lambda: pm.Censored("b", NORMAL(0, 1), lower=pm.Normal("a"), upper=None),
    "the larger of two": lambda: pm.CustomDist(
        "b", pm.Normal("a"), dist=lambda a, size: pm.math.maximum(NORMAL(0, 1, size=size), a)
    ),
    "nothing else": lambda: pm.DiracDelta("b", pm.Normal("a")),
    "a neighbour": lambda: pm.RandomWalk(
        "b", innovation_dist=pm.Mixture.dist([0.5, 0.5], [DIRAC(0.0), NORMAL()]), init_dist=NORMAL(), steps=3
    ),
    "under a transform": lambda: pm.Mixture(
        "b",
        [0.5, 0.5],
        [DIRAC(pm.HalfNormal("a")), pm.HalfNormal.dist(1)],
        transform=pm.distributions.transforms.log,
        default_transform=None,
    ),
}


@pytest.mark.parametrize("where", ATOMS)
def test_an_atom_is_refused_by_name_wherever_it_lies(where):
    with pytest.raises(PriorAtomError, match="free variable 'b' takes a value that other variables set"):
        check(ATOMS[where])


def test_an_atom_at_a_covariate_is_refused():
    with pytest.raises(PriorAtomError, match="'b'"):
        check(lambda: spike(pm.Data("x", np.zeros(3)).mean()), {"x": NORMAL(0, 1)})


def test_data_with_atoms_that_parameters_place_are_refused():
    with pytest.raises(PriorAtomError, match="observed variable 'y' takes .* given it, they have an atom"):
        check(lambda: pm.Censored("y", NORMAL(0, 1), lower=pm.Normal("a"), upper=None, observed=np.zeros(5)))


def censored_data():
    """Limits that are known place an atom which tells of no parameter."""
    pm.Censored("y", NORMAL(pm.Normal("b"), 1), lower=-0.5, upper=1.0, observed=np.zeros(5))


def explosive_series():
    """Errors of a moving average, found again from the series: rounding grows to more than floats hold."""
    n, growth = 120, 1e3

    def logp(value, a):
        errors = pt.linalg.solve_triangular(pt.eye(n) + growth * a * np.eye(n, k=-1), value, lower=True)
        return pt.sum(-0.5 * errors**2)

    def draw(a, rng=None, size=None):
        errors = rng.normal(size=n)
        return errors + growth * a * np.r_[0, errors[:-1]]

    pm.CustomDist("y", pm.Normal("b"), logp=logp, random=draw, signature=f"()->({n})", observed=np.zeros(n))


NO_ATOMS = {
    "an explosive series": explosive_series,
    "no atom in data": censored_data,
    "narrow at a wide place": lambda: custom(pm.Normal("a", 0, 1e6), 1e-6),
    "far from zero": lambda: custom(1e8, 1e-3),
    "wide": lambda: custom(0.0, 1e6),
    "narrow component": lambda: pm.Mixture("b", [0.5, 0.5], [NORMAL(0, 1), NORMAL(0, 1e-9)]),
    "truncated": lambda: pm.Truncated("b", pm.Gumbel.dist(pm.Normal("a"), 1), lower=0, upper=3),
    "heavy tails": lambda: pm.Truncated("b", pm.Cauchy.dist(0, 1), lower=0),
    "a square": lambda: pm.CustomDist("b", dist=lambda size: pm.Uniform.dist(0, 1, size=size) ** 2),
    "a series": lambda: pm.AR("b", [0.5], sigma=1e-3, init_dist=NORMAL(0, 100), shape=6),
    "a matrix": lambda: pm.LKJCholeskyCov("b", n=3, eta=1, sd_dist=pm.HalfNormal.dist(1), compute_corr=False),
    "a sum of zero": lambda: pm.ZeroSumNormal("b", shape=4),
}


@pytest.mark.parametrize("kind", NO_ATOMS)
def test_what_is_continuous_passes(kind):
    check(NO_ATOMS[kind])


def test_an_atom_is_refused_before_training():
    with pm.Model() as model:
        a = pm.Normal("a", 0, 1)
        pm.Normal("y", spike(a), 1, observed=np.zeros(5))
    with pytest.raises(PriorAtomError, match="'b'"):
        interpreted(model, num_simulations=400)
