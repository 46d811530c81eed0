"""Parameters that are integrated out because log densities are quadratic in them, beside closed forms."""

from dataclasses import replace

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats

from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.approximators.fitting.simulating import structure_of
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.density.rules import find_rules
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.inputs.sketch import MOST_SAMPLED, make_sketch
from pymc_amortized.numerics.integrals import cholesky_factors
from pymc_amortized.numerics.quadratic import Quadratic, find_quadratic
from pymc_amortized.numerics.sampling.amis import ENOUGH, adapt, quasi_normal

N, ROWS = 6, 9
X = np.random.default_rng(0).normal(size=(N, ROWS))
Y = np.random.default_rng(1).normal(size=(N, ROWS))


def line(z, index):
    """Log joint density of an intercept, a slope, the log of the noise and something else of power four."""
    a, b, log_s, c = np.moveaxis(z, -1, 0)
    away = Y[index][:, None] - a[..., None] - b[..., None] * X[index][:, None]
    likelihood = -0.5 * np.square(away).sum(-1) * np.exp(-2 * log_s) - ROWS * log_s
    return likelihood - 0.5 * (a**2 + b**2 + log_s**2) - 0.1 * c**4


def normal_parts(log_s, i):
    """Precision and slope of intercept and slope, given the noise."""
    design = np.column_stack([np.ones(ROWS), X[i]])
    return design.T @ design * np.exp(-2 * log_s) + np.eye(2), design.T @ Y[i] * np.exp(-2 * log_s)


POINTS = np.random.default_rng(2).normal(size=(N, 4))


def test_coefficients_are_found():
    found = find_quadratic(line, POINTS)
    assert_array_equal(found.places, [0, 1])
    assert_array_equal(found.sampled, [2, 3])
    assert_array_equal(found.pairs, [[0, 1]])


@pytest.mark.parametrize(
    ("write", "places", "pairs"),
    [
        (lambda z: -0.5 * (z[..., 0] * z[..., 1] - 1) ** 2 - z[..., 2] ** 2, [0, 2], []),  # one of two factors
        (lambda z: z[..., 0] * z[..., 1] * z[..., 2] - (z**2).sum(-1), [0, 1], [[0, 1]]),  # two of three
        (lambda z: -np.abs(z).sum(-1), [], []),
        (lambda z: -np.square(z).sum(-1) - np.log1p(0.01 * z[..., 1] ** 2), [0, 2], []),
        (lambda z: np.where(z[..., 0] < 0, -np.inf, -np.square(z).sum(-1)), [1, 2], []),
    ],
)
def test_only_what_is_jointly_quadratic_is_integrated(write, places, pairs):
    found = find_quadratic(lambda z, index: write(z), np.abs(POINTS[:, :3]))
    assert_array_equal(found.places, places)
    assert_array_equal(found.pairs, np.reshape(pairs, (-1, 2)))


def test_what_is_not_quadratic_shows_in_the_first_few_targets():
    seen = []

    def quartic(z, index):
        seen.append(len(index))
        return -np.square(z).sum(-1) - 0.1 * z[..., 0] ** 4

    found = find_quadratic(quartic, np.random.default_rng(2).normal(size=(200, 2)))
    assert_array_equal(found.places, [1])
    assert seen[:3] == [16, 16, 184]


def test_a_single_target_late_in_the_row_counts():
    late = lambda z, index: -np.square(z).sum(-1) - 0.1 * (index[:, None] == 150) * z[..., 0] ** 4  # noqa: E731
    assert_array_equal(find_quadratic(late, np.random.default_rng(2).normal(size=(200, 2))).places, [1])


def test_integrals_and_conditional_moments_are_those_of_normal_distributions():
    quadratic = find_quadratic(line, POINTS)
    center, scale = np.random.default_rng(3).normal(size=(N, 2)), np.full((N, 2), 0.3)
    index = np.array([4, 1])
    points = np.random.default_rng(4).normal(size=(2, 3, 2))
    log_p, mean, covariance = quadratic.integrated(line, center, scale)(points, index)
    for k, m in np.ndindex(2, 3):
        log_s, c = points[k, m]
        precision, slope = normal_parts(log_s, index[k])
        expected = np.linalg.solve(precision, slope)
        assert_allclose(mean[k, m], expected, rtol=1e-7)
        assert_allclose(covariance[k, m], np.linalg.inv(precision), rtol=1e-6, atol=1e-9)
        at_mean = line(np.array([[[*expected, log_s, c]]]), index[k : k + 1])[0, 0]
        assert_allclose(log_p[k, m], at_mean + 0.5 * np.linalg.slogdet(2 * np.pi * np.linalg.inv(precision))[1])


def test_what_is_not_quadratic_after_all_has_no_integral():
    """Found at other targets, an interaction too few or a direction without curvature: never a number that is wrong."""
    first = Quadratic(np.array([0, 1]), np.array([[0, 1]]), 2)
    zero, one = np.zeros((1, 3)), np.ones((1, 3))

    def integral(quadratic, write):
        log_p, mean, covariance = quadratic.integrated(
            lambda z, index: write(z), zero[:, : quadratic.dim], one[:, : quadratic.dim]
        )(np.empty((1, 1, 0)), np.zeros(1, int))
        assert np.isfinite(mean).all() and np.isfinite(covariance).all()
        return log_p[0, 0]

    assert_allclose(integral(first, lambda z: -0.5 * (z**2).sum(-1)), np.log(2 * np.pi))
    assert np.isnan(integral(first, lambda z: -0.5 * (z**2).sum(-1) - 0.1 * z[..., 0] ** 4))
    assert np.isnan(integral(first, lambda z: 0.5 * (z**2).sum(-1)))
    assert np.isnan(integral(first, lambda z: np.where(z[..., 0] > 0, np.nan, -0.5 * (z**2).sum(-1))))
    assert integral(first, lambda z: np.full(z.shape[:-1], -np.inf)) == -np.inf
    without = Quadratic(np.array([0, 1, 2]), np.empty((0, 2), int), 3)
    assert np.isnan(integral(without, lambda z: -0.5 * (z**2).sum(-1) - 0.3 * z[..., 0] * (z[..., 1] + z[..., 2])))


def test_a_target_that_is_not_quadratic_somewhere_is_not_found():
    """Where the noise is large no misfit shows: points there alone would tell of another posterior."""
    quadratic = Quadratic(np.array([0]), np.empty((0, 2), int), 2)

    def log_density(z, index):
        misfit = np.where(index[:, None] == 0, 0.5 * np.exp(z[..., 0]), z[..., 0])
        return -0.5 * (misfit - 1) ** 2 * np.exp(-2 * z[..., 1]) - z[..., 1] - 0.5 * (z**2).sum(-1)

    of_noise = quadratic.integrated(log_density, np.zeros((2, 1)), np.ones((2, 1)))
    found = adapt(of_noise, np.zeros((2, 2)), np.tile(np.eye(2), (2, 1, 1)), quasi_normal(6, 32, 1))
    assert found.ess[0] == 0 and found.ess[1] >= ENOUGH
    assert all(np.isfinite(values).all() for values in vars(found).values())


def test_moments_join_what_is_sampled_and_what_is_integrated():
    quadratic = Quadratic(np.array([0, 1]), np.array([[0, 1]]), 3)

    def without_power(z, index):
        return line(np.concatenate([z, 0 * z[..., :1]], axis=-1), index)

    of_noise = quadratic.integrated(without_power, np.zeros((N, 2)), np.ones((N, 2)))
    found = adapt(of_noise, np.zeros((N, 3)), np.tile(np.eye(3), (N, 1, 1)), quasi_normal(6, 32, 1))
    assert (found.ess >= ENOUGH).all()
    grid = np.linspace(-3, 3, 4001)
    for i in range(N):
        parts = [normal_parts(log_s, i) for log_s in grid]
        means = np.array([np.linalg.solve(*part) for part in parts])
        within = np.array([np.linalg.inv(precision) for precision, _ in parts])
        log_p, *_ = of_noise(grid[None, :, None], np.array([i]))
        density = np.exp(log_p[0] - log_p.max())
        weight = density / density.sum()
        every = np.column_stack([grid, means])
        mean = weight @ every
        covariance = (weight[:, None] * (every - mean)).T @ (every - mean)
        covariance[1:, 1:] += np.einsum("m,mij->ij", weight, within)
        sd = np.sqrt(np.diagonal(covariance))
        assert_allclose(found.mean[i], mean, atol=0.1 * sd.max())
        assert_allclose(found.covariance[i] / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.15)
        evidence = np.log(integrate.trapezoid(density, grid)) + log_p.max()
        assert_allclose(found.log_evidence[i], evidence, atol=0.03)


def sketch_of(write):
    with pm.Model(coords={"obs": range(8)}) as model:
        given = write()
    spec, sources, gaps = read_model(model, None, None, given["context"], given["missing"])
    made = Simulator(spec, context=ContextSampler(spec, sources, gaps))(1000, 1)
    seed = np.random.SeedSequence(1)
    structure = structure_of(spec, sources, made, seed, {}, None)
    return make_sketch(spec, structure, find_rules(spec, made, seed), made, None), made


def known_noise():
    b = pm.Normal("b", [0.5, -1.0], [1.0, 2.0])
    x = pm.Data("x", np.linspace(-1, 1, 8), dims="obs")
    pm.Normal("y", b[0] + b[1] * x, 0.7, observed=np.zeros(8), dims="obs")
    return {"context": {"obs": (5, 14), "x": pm.Normal.dist(0, 1)}, "missing": {"y": 0.3}}


def test_conjugate_posteriors_are_exact():
    sketch, made = sketch_of(known_noise)
    assert_array_equal(sketch.quadratic.places, [0, 1])
    datasets = of_simulations(made.take(slice(40)))
    found, evidence = sketch.log_evidence(datasets), []
    for i in range(40):
        one = datasets.one(sketch.inputs.spec, i)
        there = ~one["missing y"]
        design = np.column_stack([np.ones(there.sum()), one["x"][there]])
        prior = np.array([1.0, 2.0]) ** 2
        covariance = design * prior @ design.T + 0.49 * np.eye(there.sum())
        mean = design @ [0.5, -1.0]
        evidence.append(stats.multivariate_normal(mean, covariance).logpdf(one["y"][there]) if there.any() else 0.0)
    assert_allclose(found, evidence, atol=1e-6)


GROUPS = 14


def groups():
    """More groups than parameters could be sampled."""
    mu, log_tau = pm.Normal("mu", 0, 1), pm.Normal("log_tau", -1, 0.5)
    theta = pm.Normal("theta", mu, pm.math.exp(log_tau), shape=GROUPS)
    pm.Normal("y", theta[:, None], 1.0, observed=np.zeros((GROUPS, 3)))
    return {"context": {}, "missing": {}}


def test_group_means_are_integrated_however_many():
    assert GROUPS > MOST_SAMPLED
    sketch, made = sketch_of(groups)
    assert len(sketch.quadratic.sampled) == 1
    assert len(sketch.quadratic.pairs) == GROUPS  # each with the mean of all
    y = made.data["y"][:3]
    found = sketch.log_evidence(read_datasets(sketch.inputs.spec, {"y": y}, batched=True))
    block = np.kron(np.eye(GROUPS), np.ones((3, 3)))
    grid = np.linspace(-4, 2, 601)
    for one, estimate in zip(y, found, strict=True):
        log_p = [
            stats.multivariate_normal(np.zeros(3 * GROUPS), np.eye(3 * GROUPS) + 1 + np.exp(2 * t) * block).logpdf(
                one.ravel()
            )
            + stats.norm(-1, 0.5).logpdf(t)
            for t in grid
        ]
        expected = np.log(integrate.trapezoid(np.exp(np.array(log_p) - max(log_p)), grid)) + max(log_p)
        assert_allclose(estimate, expected, atol=0.05)


@pytest.mark.parametrize(
    ("places", "pairs", "message"),
    [
        ([0, 3], [], "integrated parameters at .0, 3. of 3"),
        ([0, 0], [], "integrated parameters at"),
        ([0], [[0, 1]], "pairs .* of 1 integrated"),
        ([0], [0, 0], "pairs .* of 1 integrated"),
    ],
)
def test_places_that_cannot_be_are_refused(places, pairs, message):
    Quadratic(np.array([0, 2]), np.array([[0, 1]]), 3).check(3)
    pairs = np.array(pairs, dtype=int) if pairs else np.empty((0, 2), dtype=int)
    with pytest.raises(ValueError, match=message):
        Quadratic(np.array(places), pairs, 3).check(3)


def test_where_the_density_fails_the_conditional_distribution_is_the_given_one():
    """Half of the points: what is proposed there has a density all the same, and weights see to the rest."""
    quadratic = Quadratic(np.array([0]), np.empty((0, 2), int), 2)

    def log_density(z, index):
        return np.where(z[..., 1] > 0, -0.5 * (2 * z[..., 0] - z[..., 1]) ** 2, np.nan)

    center, scale = np.full((1, 1), 3.0), np.full((1, 1), 0.2)
    points = np.array([[[-1.0], [1.0]]])
    log_p, mean, root = quadratic.conditional(log_density, center, scale)(points, np.zeros(1, int))
    assert_allclose(log_p[0], [-np.inf, 0.5 * np.log(2 * np.pi) - np.log(2)])
    assert_allclose(mean[0, :, 0], [3.0, 0.5])
    assert_allclose(root[0, :, 0, 0], [0.2, 0.5])


class Sparse:
    """Quadratic functions of some parameters, with interactions as a pattern says; with gradients."""

    def __init__(self, pairs, number, seed=0):
        rng = np.random.default_rng(seed)
        self.precision = np.eye(number) * (number + rng.uniform(1, 2, size=number))
        for i, j in pairs:
            self.precision[i, j] = self.precision[j, i] = rng.uniform(0.2, 1) * rng.choice([-1, 1])
        self.slope = rng.normal(size=number)

    def __call__(self, z, index):
        beta, rest = z[..., :-1], z[..., -1]
        return np.exp(-rest) * (beta @ self.slope - 0.5 * ((beta @ self.precision) * beta).sum(-1)) - rest**2

    def gradients(self, z, index):
        gradient = np.exp(-z[..., -1:]) * (self.slope - z[..., :-1] @ self.precision)
        return self(z, index), np.concatenate([gradient, np.full_like(z[..., :1], np.nan)], axis=-1)


PATTERNS = {
    "star": [(0, j) for j in range(1, 7)],
    "chain": [(j, j + 1) for j in range(6)],
    "cycle": [(j, (j + 1) % 7) for j in range(7)],
    "two stars": [(i, j) for i in (0, 1) for j in range(2, 7)],
    "every": [(i, j) for i in range(7) for j in range(i + 1, 7)],
    "none": [],
}
TURNS = {"star": 2, "chain": 3, "cycle": 4, "two stars": 3, "every": 7, "none": 1}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_tell_the_same_as_values(pattern):
    sparse = Sparse(PATTERNS[pattern], 7)
    rng = np.random.default_rng(1)
    quadratic = find_quadratic(sparse, rng.normal(size=(20, 8)))
    assert_array_equal(quadratic.places, np.arange(7))
    assert {frozenset(pair) for pair in quadratic.pairs.tolist()} == {frozenset(pair) for pair in PATTERNS[pattern]}
    other = replace(quadratic, by_gradients=True)
    assert len(other.turns) <= TURNS[pattern]
    center, scale = rng.normal(size=(2, 7)), rng.uniform(0.3, 1.5, size=(2, 7))
    points, index = rng.normal(size=(2, 5, 1)), np.array([1, 0])
    for known, found in zip(
        *(way.integrated(sparse, center, scale)(points, index) for way in (quadratic, other)), strict=True
    ):
        assert_allclose(found, known, rtol=1e-7, atol=1e-9)


def test_gradients_are_taken_where_they_take_less():
    places = np.arange(7)
    few = Quadratic(places[:2], np.array([[0, 1]]), 8)
    assert few.with_gradients() is few
    star = Quadratic(places, np.array(PATTERNS["star"]), 8).with_gradients()
    assert star.by_gradients and star.first(6).by_gradients


def test_without_a_gradient_there_is_no_integral():
    sparse = Sparse(PATTERNS["star"], 7)
    star = Quadratic(np.arange(7), np.array(PATTERNS["star"]), 8, by_gradients=True)
    right = sparse.gradients
    sparse.gradients = lambda z, index: (right(z, index)[0], np.full_like(z, np.nan))
    log_p, mean, root = star.conditional(sparse, np.zeros((1, 7)), np.ones((1, 7)))(
        np.zeros((1, 1, 1)), np.zeros(1, int)
    )
    assert np.isnan(log_p).all()
    assert_allclose(mean, 0)
    assert_allclose(root[0, 0], np.eye(7))


@pytest.mark.parametrize("by_gradients", [False, True])
def test_noise_that_no_number_can_tell_from_zero_is_impossible(by_gradients):
    """Rounding of huge values would give integrals of any size, and lead a search astray."""
    sparse = Sparse(PATTERNS["star"], 7)
    quadratic = Quadratic(np.arange(7), np.array(PATTERNS["star"]), 8, by_gradients)
    center, scale = np.random.default_rng(2).normal(size=(1, 7)), np.ones((1, 7))
    points = np.array([0.0, -10.0, -40.0, -300.0, -600.0])[None, :, None]
    log_p, mean, root = quadratic.conditional(sparse, center, scale)(points, np.zeros(1, int))
    assert np.isfinite(log_p[0, :2]).all()
    assert (log_p[0, 2:] == -np.inf).all()
    assert_allclose(mean[0, 2:], np.tile(center, (3, 1)))
    assert np.isfinite(root).all()


def test_what_has_a_factor_does_not_depend_on_its_neighbours():
    precision = np.array([np.diag([1.0, 1e-13]), np.diag([1.0, -1.0]), np.diag([-1.0, -1.0]), np.eye(2)])
    usable = np.ones(4, dtype=bool)
    root, found = cholesky_factors(precision, usable)
    alone = [cholesky_factors(p[None], usable[:1])[1][0] for p in precision]
    assert found.tolist() == alone == [True, False, False, True]
    assert_allclose(root[0] @ root[0].T, precision[0])
