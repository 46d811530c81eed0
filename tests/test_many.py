"""What is done for many data sets at once is what would be done for each alone, and what others do for one."""

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from numpy.testing import assert_allclose, assert_array_equal

from pymc_amortized.correction.convergence import weighted_r_hat
from pymc_amortized.correction.proposals import Proposals, add_each
from pymc_amortized.inputs.standardized import Standardized
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.numerics.curvature import Curvature, chebyshev_points, chebyshev_weights
from pymc_amortized.numerics.quadratic import Quadratic
from pymc_amortized.numerics.sampling.importance import by_parameter, smooth, smooth_each, tempered
from pymc_amortized.numerics.sampling.whitening import Whitening, moments


def log_ratios(proposals: int = 300) -> np.ndarray:
    """Raw log weights (data sets, 2, proposals) of every kind."""
    rng = np.random.default_rng(0)
    shape = (2, proposals)
    some_impossible = rng.normal(size=shape)
    some_impossible[rng.random(shape) < 0.7] = -np.inf
    one = np.full(shape, -np.inf)
    one[0, 3] = 0.0
    half, few = rng.normal(size=shape), np.full(shape, -np.inf)
    half[1] = -np.inf
    few[:, :12] = rng.normal(size=(2, 12))
    kinds = [
        0.3 * rng.normal(size=shape),
        -0.9 * np.log(rng.random(shape)),
        400 * rng.normal(size=shape),
        np.full(shape, -7.0),
        np.full(shape, -np.inf),
        np.full(shape, np.nan),
        np.where(np.arange(proposals) % 2, rng.normal(size=shape), -1e17),
        np.minimum(rng.normal(size=shape), 0.0),  # a tail of equal weights
        np.round(rng.normal(size=shape)),
    ]
    return np.stack([*kinds, some_impossible, one, half, few])


@pytest.mark.parametrize("defended", [False, True])
@pytest.mark.parametrize("proposals", [12, 13, 110, 300, 1200])
def test_weights_of_many_are_those_of_each(proposals, defended):
    ratios = log_ratios(proposals)
    for found, alone in zip(smooth_each(ratios, defended=defended), ratios, strict=True):
        expected = smooth(alone, defended=defended)
        assert_array_equal(found.weights, expected.weights)
        assert vars(found) | {"weights": None} == vars(expected) | {"weights": None}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("proposals", [13, 110, 300, 1200])
@pytest.mark.parametrize("kind", [0, 1, 2, 9])
def test_weights_are_smoothed_as_by_arviz(kind, proposals):
    ratios = log_ratios(proposals)[kind]
    possible = np.isfinite(ratios)
    found = smooth(ratios)
    if possible.sum() < 25:
        assert found.pareto_k == np.inf
        return
    near = np.maximum(ratios[possible] - ratios[possible].max(), -1e4)
    smoothed, k = array_stats.psislw(-near)
    if not (np.isfinite(k) and np.isfinite(smoothed).all()):  # of five, or too heavy for any shape
        assert found.pareto_k == np.inf
        return
    assert_allclose(found.pareto_k, k, rtol=1e-9)
    expected = np.zeros(ratios.shape)
    expected[possible] = np.exp(smoothed - smoothed.max())
    assert_allclose(found.weights, expected / expected.sum(axis=1, keepdims=True), rtol=1e-9, atol=1e-100)


def test_a_tail_of_equal_weights_is_not_trusted_and_not_refused():
    weights = smooth(np.minimum(np.random.default_rng(0).normal(size=(4, 500)), 0.0))
    assert np.isfinite(weights.weights).all() and weights.pareto_k == np.inf


def test_agreement_of_many_is_that_of_each():
    rng = np.random.default_rng(1)
    theta, log_p, weights = (
        rng.normal(size=(6, 4, 200, 3)),
        rng.normal(size=(6, 4, 200)),
        rng.gamma(2, size=(6, 4, 200)),
    )
    theta[::2, 0] += 1.0
    theta[3, ..., 1] = 2.0
    log_p[1, :, ::3] = -np.inf
    weights /= weights.sum(axis=-1, keepdims=True)
    found = weighted_r_hat(theta, log_p, weights)
    assert found.shape == (6,) and (found[::2] > 1.05).all() and (found[1::2] < 1.05).all()
    assert_allclose(found, [weighted_r_hat(*each) for each in zip(theta, log_p, weights, strict=True)], rtol=1e-12)
    assert_array_equal(weighted_r_hat(theta[:, :1], log_p[:, :1], weights[:, :1]), 1.0)


def test_proposals_of_many_are_weighed_as_each():
    """Also where some have more of them than others, and come from mixtures."""
    rng, seeds = np.random.default_rng(2), [np.random.default_rng(9), np.random.default_rng(9)]
    together, alone = ([Proposals(2, defended=i == 1) for i in range(4)] for _ in range(2))
    for some in (slice(0, 4), slice(2, 4), slice(0, 3)):
        theta, log_q = rng.normal(size=(len(together[some]), 400, 2)), rng.normal(size=(len(together[some]), 400))
        log_p = -0.5 * np.square(theta - 0.5).sum(axis=-1)
        log_p[-1, ::7], log_p[0, 5] = -np.inf, np.nan
        if some.start == 2:
            for sets, seed in zip((together, alone), seeds, strict=True):
                theta = np.stack([proposals.adapted(200, seed) for proposals in sets[some]])
            log_p = -0.5 * np.square(theta - 0.5).sum(axis=-1)
        add_each(together[some], theta, log_q, log_p)
        for proposals, *values in zip(alone[some], theta, log_q, log_p, strict=True):
            proposals.add(*values)
    for found, expected in zip(together, alone, strict=True):
        assert found.undefined == expected.undefined
        assert_array_equal(found.log_weights, expected.log_weights)
        assert_allclose(found.weights.weights, expected.weights.weights, rtol=1e-12)
        assert_allclose(found.weights.r_hat, expected.weights.r_hat, rtol=1e-12)


def test_tempered_weights_and_moments_of_many_are_those_of_each():
    ratios = log_ratios().reshape(13, -1)
    weights = tempered(ratios, 2)
    assert_array_equal(weights, [tempered(each, 2) for each in ratios])
    theta = np.random.default_rng(3).normal(size=(13, 600, 2))
    theta[2] = 1.0
    mean, covariance = moments(theta, weights)
    for k, own in enumerate(weights):
        alone = Whitening.of(theta[k], own)
        assert_allclose(mean[k], alone.mean, rtol=1e-12)
        assert_allclose(covariance[k], alone.factor @ alone.factor.T, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_errors_of_means_are_weighted_sums(shift):
    rng = np.random.default_rng(4)
    theta = rng.normal(size=(4, 250, 3))
    weights = smooth(shift * theta[..., 0])
    _, mcse = by_parameter(theta, weights)
    w = weights.weights[..., None]
    away = theta - (w * theta).sum(axis=1, keepdims=True)
    error = np.sqrt(np.square(w * away).sum(axis=(0, 1))) / 4
    assert_allclose(mcse, error / np.sqrt((w * np.square(away)).sum(axis=1).mean(axis=0)), rtol=1e-9)


def test_interpolation_is_exact_for_polynomials_at_and_between_its_points():
    points = chebyshev_points(32, 4.0)
    z = np.concatenate([points, np.random.default_rng(5).uniform(-4, 4, 50)]).reshape(2, -1)
    assert_allclose(chebyshev_weights(z, points) @ (points**7 - points), z**7 - z, atol=1e-8)
    assert_array_equal(chebyshev_weights(points, points), np.eye(len(points)))
    assert_array_equal(chebyshev_weights(np.array([9.0]), points)[0], np.eye(len(points))[0])


DESIGN = np.random.default_rng(8).normal(size=(12, 4))
DATA = np.random.default_rng(9).normal(size=(5, 12)) * np.array([1.0, 3.0, 0.1, 10.0, 1.0])[:, None]


def linear(weighted: bool = False, scale: float = 1.0):
    """Log densities of linear models: four coefficients, then the log standard deviation of errors."""

    def log_density(theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        y, spread = DATA[index][:, None], np.exp(scale * theta[..., -1:])
        weights = np.square(y) if weighted else 1.0
        residuals = (y - theta[..., :-1] @ DESIGN.T) / spread
        prior = -0.5 * np.square(theta).sum(axis=-1)
        return prior - 0.5 * (weights * np.square(residuals)).sum(axis=-1) - 12 * np.log(spread[..., 0])

    return log_density


COEFFICIENTS = Quadratic(np.arange(4), np.column_stack(np.triu_indices(4, 1)), 5)


def test_curvature_is_known_where_it_is_that_of_all_data_sets():
    calls = []

    def counted(theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        calls.append(theta.shape[0] * theta.shape[1])
        return linear()(theta, index)

    curvature = Curvature.find(COEFFICIENTS, linear())
    assert curvature is not None
    z = np.random.default_rng(10).uniform(-6, 6, size=(5, 20, 1))
    z[0, 0] = 11.0  # beyond what is known
    known = curvature(z[..., 0])
    assert np.isnan(known[0, 0]).all()
    expected = DESIGN.T @ DESIGN * np.exp(-2 * z[1, 3, 0]) + np.eye(4)
    assert_allclose(known[1, 3], expected, rtol=1e-7)
    given = np.zeros((5, 4)), np.full((5, 4), 0.5)
    found = COEFFICIENTS.integrated(counted, *given, curvature)(z, np.arange(5))
    quick = sum(calls)
    calls.clear()
    exact = COEFFICIENTS.integrated(counted, *given)(z, np.arange(5))
    assert quick < 0.5 * sum(calls)
    for one, other in zip(found, exact, strict=True):
        assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [1.01, 3.0, -1.0])
def test_curvature_that_is_another_for_some_data_changes_nothing(wrong):
    assert Curvature.find(COEFFICIENTS, linear(weighted=True)) is None
    of_others = Curvature.find(COEFFICIENTS, linear())
    assert of_others is not None
    z, given = np.random.default_rng(11).normal(size=(5, 20, 1)), (np.zeros((5, 4)), np.ones((5, 4)))
    for log_density in (linear(), linear(weighted=True)):
        exact = COEFFICIENTS.integrated(log_density, *given)(z, np.arange(5))
        found = COEFFICIENTS.integrated(log_density, *given, lambda z: wrong * of_others(z))(z, np.arange(5))
        assert np.isfinite(exact[0]).all()
        for one, other in zip(found, exact, strict=True):
            assert_allclose(one, other, rtol=1e-6, atol=1e-2)


def test_curvature_is_not_looked_for_where_it_saves_little_or_is_no_smooth_function():
    assert Curvature.find(Quadratic(np.arange(1), np.empty((0, 2), dtype=int), 2), linear()) is None
    assert Curvature.find(Quadratic(np.arange(3), np.array([[0, 1], [0, 2], [1, 2]]), 5), linear()) is None
    assert Curvature.find(COEFFICIENTS, lambda theta, index: np.full(theta.shape[:2], -np.inf)) is None

    def with_a_step(theta: np.ndarray, index: np.ndarray) -> np.ndarray:
        return linear()(theta, index) - (theta[..., -1] > 0.3) * np.square(theta[..., 0])

    assert Curvature.find(COEFFICIENTS, with_a_step) is None


def test_moved_parameters_are_evaluated_as_all_would_be():
    """Where only what is integrated out moves, the others are standardized once."""
    rng = np.random.default_rng(6)
    sample = np.column_stack([rng.normal(size=4000), np.log(np.abs(rng.normal(size=4000))), rng.standard_cauchy(4000)])
    standardizer = ParameterStandardizer.fit(sample)
    assert standardizer.bent.any() and standardizer.heavy.any()
    log_density = Standardized(lambda theta, index: -np.square(theta).sum(-1) * np.exp(index)[:, None], standardizer)
    z, to, index = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 4, 1)), np.array([1, 0])
    every = np.repeat(z[:, :, None], 4, axis=2)
    every[..., 0] = to[:, None, :, 0]
    expected = log_density(every.reshape(2, -1, 3), index).reshape(2, 5, 4)
    assert_allclose(log_density.moved(z, np.array([0]), to, index), expected, rtol=1e-12)
    quadratic = Quadratic(np.array([0]), np.empty((0, 2), dtype=int), 3)
    given = np.zeros((2, 1)), np.ones((2, 1))
    found = quadratic.integrated(log_density, *given)(z[..., 1:], index)
    plain = quadratic.integrated(lambda *a: log_density(*a), *given)(z[..., 1:], index)
    for one, other in zip(found, plain, strict=True):
        assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("kind", ["straight", "bent", "heavy"])
def test_a_standardizer_undoes_itself_whatever_its_tails(kind):
    rng = np.random.default_rng(7)
    sample = {
        "straight": rng.normal(size=(3000, 2)),
        "bent": np.log(np.abs(rng.normal(size=(3000, 2)))),
        "heavy": rng.standard_cauchy((3000, 2)),
    }[kind]
    standardizer, theta = ParameterStandardizer.fit(sample), torch.from_numpy(sample[:50])
    z, log_det = standardizer.exact(theta)
    back, again = standardizer.inverse(z)
    torch.testing.assert_close(back, theta, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(again, log_det, rtol=1e-7, atol=1e-7)
    step = 1e-6 * torch.ones_like(theta)
    slope = (standardizer.exact(theta + step)[0] - z) / step
    torch.testing.assert_close(slope.abs().log().sum(-1), log_det, rtol=1e-3, atol=1e-3)
