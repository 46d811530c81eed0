"""The density of what is present: rules for leaving out or integrating what is missing, and the integrals."""

from dataclasses import replace

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import scipy.stats as st
from conftest import interpreted
from numpy.testing import assert_allclose

from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.graph.data.datasets import gaps_of
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.density.missing import LogDensityWithGaps
from pymc_amortized.graph.density.rules import find_rules
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator

INTERPRETED = {"mode": "FAST_COMPILE"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def rare_cause():
    """A binary value that is nearly always 0, on which another variable depends."""
    p = pm.Beta("p", 1, 30)
    d = pm.Bernoulli("d", p, observed=np.zeros(40, int))
    pm.Normal("y", 3 * d, 1, observed=np.zeros(40))
    return {"d": None}


def mean_of_a_vector():
    """A sum over the values, which no permutation of them changes."""
    b = pm.Normal("b", 0, 1)
    y = pm.MvNormal("y", b * np.ones(10), np.eye(10), observed=np.zeros(10))
    pm.Normal("z", y.mean(), 0.3, observed=np.zeros(3))
    return {"y": "quadratic"}


def product():
    """Quadratic in each of two variables, and in both not."""
    b = pm.Normal("b", 0, 1)
    x = [pm.Normal(f"x{i}", 1, 1, observed=np.zeros(6)) for i in (1, 2)]
    pm.Normal("y", b * x[0] * x[1], 1, observed=np.zeros(6))
    return {"x1": None, "x2": None}


def half_line():
    """Linear and quadratic terms, but no values below zero."""
    y = pm.Exponential("y", pm.Exponential("l", 1), observed=np.ones(1))
    pm.Normal("z", y, 0.5, observed=np.ones(1))
    return {"y": None}


def one_heavy_tail():
    y = pm.StudentT("y", nu=3, mu=0, sigma=pm.Exponential("l", 1), observed=np.ones(1))
    pm.Normal("z", y, 0.5, observed=np.ones(1))
    return {"y": None}


def scalar():
    y = pm.Normal("y", pm.Normal("b", 0, 1), 1, observed=1.0)
    pm.Normal("z", y, 1, observed=0.0)
    return {"y": "quadratic"}


def last_value():
    y = pm.Normal("y", pm.Normal("b", 0, 1), 1, observed=np.zeros(40))
    pm.Normal("z", y[-1], 1, observed=0.0)
    return {"y": "quadratic"}


def volatility():
    pm.GARCH11("y", omega=pm.HalfNormal("v", 1), alpha_1=0.2, beta_1=0.3, initial_vol=1.0, observed=np.zeros(9))
    return {"y": None}


def by_themselves():
    b = pm.Normal("b", 0, 1)
    pm.Normal("y", b, 1, observed=np.zeros(40))
    pm.Poisson("c", pt.exp(b), observed=np.zeros(5, int))
    pm.Gamma("g", 2, pt.exp(b), observed=np.ones(5))
    pm.Dirichlet("d", np.ones(3) * pt.exp(b), observed=np.ones((4, 3)) / 3)
    pm.AR("a", [0.5], pt.exp(b), init_dist=pm.Normal.dist(0, 1), observed=np.zeros(9))
    pm.MvNormal("n", b * np.ones(3), np.eye(3), observed=np.zeros((4, 3)))
    return {"y": "element", "c": "element", "g": "element", "d": "row", "a": "quadratic", "n": "normal"}


def known_covariate(distribution):
    """A covariate with gaps that is known to a part in a thousand: beside its term, that of what reads it is tiny."""
    line = pm.Normal("a", 0, 1000) + pm.Normal("b", 0, 1000) * np.linspace(-1, 1, 12)
    y = pm.Normal("y", line, pm.HalfNormal("s", 1), observed=np.zeros(12))
    distribution("r", pm.Normal("c", 0, 1) + pm.Normal("d", 0, 1) * y / 1000)


def of_a_switch():
    known_covariate(lambda name, at: pm.Bernoulli(name, logit_p=at, observed=np.zeros(12, int)))
    return {"y": None}


def of_a_count():
    known_covariate(lambda name, at: pm.Poisson(name, pm.math.exp(at), observed=np.zeros(12, int)))
    return {"y": None}


def of_outliers():
    known_covariate(lambda name, at: pm.StudentT(name, nu=4, mu=at, sigma=1, observed=np.zeros(12)))
    return {"y": None}


def of_normal_noise():
    known_covariate(lambda name, at: pm.Normal(name, at, 1, observed=np.zeros(12)))
    return {"y": "quadratic"}


CASES = [
    rare_cause, mean_of_a_vector, product, half_line, one_heavy_tail, scalar, last_value, volatility, by_themselves,
    of_a_switch, of_a_count, of_outliers, of_normal_noise,
]  # fmt: skip


@pytest.mark.parametrize("write", CASES)
def test_rules_are_found_whatever_the_seed(write):
    with pm.Model() as model:
        expected = write()
    spec, sources, gaps = read_model(model, None, None, {}, dict.fromkeys(expected, 0.2))
    simulator = Simulator(spec, context=ContextSampler(spec, sources, gaps), compile_kwargs=INTERPRETED)
    simulations = simulator(20, 1)
    for seed in range(3):
        assert find_rules(spec, simulations, np.random.SeedSequence(seed)) == expected


# The integrals, against closed forms

N = 12


def autoregression():
    pm.AR("y", pm.Normal("rho", [0.5, -0.2], 0.2), 0.7, init_dist=pm.Normal.dist(0, 1, shape=2), observed=np.zeros(N))


def autoregression_covariance(rho):
    step = np.eye(N) - np.diag(np.r_[0, np.full(N - 2, rho[0])], -1) - np.diag(np.full(N - 2, rho[1]), -2)
    back = np.linalg.inv(step)
    return back @ np.diag([1, 1] + [0.49] * (N - 2)) @ back.T


def field():
    length = pm.Gamma("length", 5, 1)
    cov = pm.gp.cov.ExpQuad(1, ls=length)(np.arange(N)[:, None].astype(float)) + 0.1 * np.eye(N)
    pm.MvNormal("y", np.zeros(N), cov, observed=np.zeros(N))


def field_covariance(length):
    distance = np.subtract.outer(np.arange(N), np.arange(N))
    return np.exp(-0.5 * distance**2 / length**2) + 0.1 * np.eye(N)


PRIORS = {
    "rho": lambda rho: st.norm.logpdf(rho, [0.5, -0.2], 0.2).sum(),
    "length": lambda length: st.gamma.logpdf(length, 5) + np.log(length),
}


@pytest.mark.parametrize(
    ("write", "rule", "covariance"),
    [(autoregression, "quadratic", autoregression_covariance), (field, "normal", field_covariance)],
)
def test_what_is_missing_of_dependent_values_is_integrated_out(write, rule, covariance):
    with pm.Model() as model:
        write()
    spec, _, gaps = read_model(model, None, None, {}, {"y": 0.3})
    made = Simulator(spec, context=ContextSampler(spec, {}, gaps), compile_kwargs=INTERPRETED)(6, 2)
    log_density = LogDensityWithGaps(spec, {"y": rule}, INTERPRETED)
    (parameter,) = (p.name for p in spec.parameters)
    for i, missing in enumerate([[], [0], [3, 4, 9], range(1, 12), range(12)]):
        y = made.data["y"][i].copy()
        y[list(missing)] = np.nan
        data = read_datasets(spec, {"y": y}).one(spec, 0)
        keep = ~np.isnan(y)
        for j, value in enumerate(made.variables[parameter]):
            full = covariance(value)[np.ix_(keep, keep)]
            expected = st.multivariate_normal.logpdf(y[keep], np.zeros(keep.sum()), full) if keep.any() else 0.0
            expected += PRIORS[parameter](value)
            assert_allclose(log_density(made.unconstrained[j : j + 1], data)[0], expected, rtol=1e-6)


def test_gaps_in_what_others_depend_on_are_integrated_out():
    with pm.Model() as model:
        c = pm.Normal("c", 0, 1)
        y = pm.Normal("y", 0.5, 1, observed=np.zeros(4))
        pm.Normal("z", c * y, 0.5, observed=np.zeros(4))
    spec, _, _ = read_model(model, None, None, {}, {"y": 0.3, "z": 0.3})
    given = {"y": [np.nan, 0.3, np.nan, 1.0], "z": [0.7, np.nan, np.nan, -0.4]}
    data = read_datasets(spec, given).one(spec, 0)
    log_density = LogDensityWithGaps(spec, {"y": "quadratic", "z": "element"}, INTERPRETED)
    for c in (-1.0, 0.0, 2.0):
        expected = st.norm.logpdf(c) + st.norm.logpdf(0.7, 0.5 * c, np.hypot(0.5, c)) + st.norm.logpdf(0.3, 0.5, 1)
        expected += st.norm.logpdf(1.0, 0.5, 1) + st.norm.logpdf(-0.4, c, 0.5)
        assert_allclose(log_density(np.array([[c]]), data)[0], expected, rtol=1e-6)


def test_a_singular_precision_of_what_is_missing_is_no_error():
    """A network's draws may lie so far out that nothing is left of a density."""
    with pm.Model() as model:
        sigma = pm.LogNormal("sigma", 0, 1)
        pm.AR("y", [0.5], sigma=sigma, init_dist=pm.Normal.dist(0, sigma), observed=np.zeros(6))
    spec, _, _ = read_model(model, None, None, {}, {"y": 0.3})
    data = read_datasets(spec, {"y": [0.1, np.nan, 0.2, np.nan, 0.4, 0.0]}).one(spec, 0)
    log_density = LogDensityWithGaps(spec, {"y": "quadratic"}, INTERPRETED)
    usual, far = log_density(np.array([[0.0], [600.0]]), data)
    assert_allclose(usual, log_density(np.array([[0.0]]), data)[0])
    assert far == -np.inf


def test_rows_missing_in_part_are_an_obstacle():
    with pm.Model() as model:
        pm.Multinomial("y", n=5, p=pm.Dirichlet("p", np.ones(3)), observed=np.tile([1, 2, 2], (4, 1)))
    spec, _, _ = read_model(model, None, None, {}, {"y": 0.3})
    log_density = LogDensityWithGaps(spec, {"y": "row"}, INTERPRETED)
    mask = np.zeros((4, 3), dtype=bool)
    data = {"y": np.tile([1, 2, 2], (4, 1)), gaps_of("y"): mask}
    assert log_density.obstacle(data) is None
    mask[1] = True
    assert log_density.obstacle(data) is None
    mask[2, 0] = True
    assert "'y' are missing in part" in log_density.obstacle(data)
    assert "does not factorize" in LogDensityWithGaps(spec, {"y": None}, INTERPRETED).obstacle(data)


# Rules are tried where they are used


def on(write, data, rules, theta):
    """Try rules at draws of one data set."""
    with pm.Model() as model:
        write()
    spec, _, _ = read_model(model, None, None, {}, dict.fromkeys(rules, 0.3))
    one = read_datasets(spec, data).one(spec, 0)
    return LogDensityWithGaps(spec, rules, INTERPRETED).disproved(np.array(theta), one)


def bent():
    """Normal, but where a parameter is large."""
    y = pm.Normal("y", pm.Normal("b", 0, 1), 1, observed=np.zeros(3))
    pm.Normal("z", y + pt.switch(y.mean() + 0 * y > 3, y**2, 0), 1, observed=np.zeros(3))


def test_what_is_quadratic_in_part_of_the_space_is_disproved_in_the_other():
    data = {"y": [0.0, np.nan, 0.5], "z": np.zeros(3)}
    assert on(bent, data, {"y": "quadratic"}, [[0.1], [0.2]]) is None
    data["y"] = [9.0, np.nan, 9.5]
    assert on(bent, data, {"y": "quadratic"}, [[9.0]])[0] == "y"


def test_what_interacts_in_part_of_the_space_is_not_left_out():
    def logp(value, b):
        return pm.logp(pm.Normal.dist(b, 1), value) - pt.switch(b > 3, value.sum() ** 2, 0)

    def write():
        pm.CustomDist("y", pm.Normal("b", 0, 1), logp=logp, observed=np.zeros(3))

    data = {"y": [0.0, np.nan, 0.5]}
    assert on(write, data, {"y": "element"}, [[0.1]]) is None
    assert on(write, data, {"y": "element"}, [[4.0]]) == ("y", "other values depend on the missing ones of 'y'")


@pytest.fixture(scope="module")
def misruled():
    """A posterior whose rule for gaps holds nowhere."""
    with pm.Model() as model:
        y = pm.Normal("y", pm.Normal("b", 0, 1), 1, observed=np.zeros(6))
        pm.Bernoulli("r", logit_p=3 * y, observed=np.zeros(6, int))
    posterior = interpreted(model, num_steps=60, num_simulations=500, missing={"y": 0.3})
    assert posterior.gaps == {"y": None}
    return replace(posterior, gaps={"y": "quadratic"})


COMPLETE = [0.3, 0.0, -1.0, 0.1, 0.2, 1.0]
HALF_OF_IT = {"y": [np.where([0, 1, 0, 1, 0, 0], np.nan, COMPLETE), COMPLETE], "r": [[0, 1, 0, 1, 1, 0]] * 2}


def test_what_fails_at_a_data_set_goes_down_the_ladder_with_its_reason(misruled, caplog):
    with caplog.at_level("WARNING"):
        tree = misruled.sample(HALF_OF_IT, batched=True, draws=100, correction="psis", random_seed=1)
    assert tree.sample_stats.stage.values[0] == "raw"
    assert np.isnan(tree.sample_stats.lp[0]).all() and np.isfinite(tree.sample_stats.lp[1]).all()
    assert "not quadratic in the missing values of 'y' at these data" in caplog.text
    tree = misruled.sample(HALF_OF_IT, batched=True, draws=100, max_nuts=0, random_seed=1)
    assert tree.sample_stats.stage.values[0] == "not reached"


def test_no_evidence_rests_on_a_rule_that_fails(misruled):
    found = misruled.log_marginal_likelihood(HALF_OF_IT, batched=True, proposals=1000, random_seed=1)
    assert np.isnan(found.log_marginal_likelihood.values[0])
    assert "not quadratic" in found.attrs["doubts"]
