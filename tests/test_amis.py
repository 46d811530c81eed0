"""Moments of many densities at once, beside closed forms."""

import numpy as np
import pytest
import scipy.stats as st
from numpy.testing import assert_allclose

from pymc_amortized.inputs.sketch import ALIKE
from pymc_amortized.numerics.integrals import banded_log_integral
from pymc_amortized.numerics.sampling.amis import ENOUGH, FEWEST, adapt, quasi_normal
from pymc_amortized.numerics.sampling.importance import by_parameter, smooth

DIM = 3
N = 40


def targets():
    """Normal densities of all sizes and correlations, not normalized."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(N, DIM))
    factor = np.tril(rng.normal(size=(N, DIM, DIM))) * rng.uniform(0.02, 0.3, size=(N, 1, 1)) + 0.05 * np.eye(DIM)
    return mean, factor @ factor.swapaxes(1, 2), rng.normal(size=N) * 50


MEAN, COVARIANCE, LEVEL = targets()


def plain(write):
    """A density none of whose parameters are integrated out."""

    def evaluated(theta, index):
        log_p = write(theta, index)
        return log_p, np.empty((*log_p.shape, 0)), np.empty((*log_p.shape, 0, 0))

    return evaluated


@plain
def log_density(theta, index):
    away = theta - MEAN[index][:, None]
    precision = np.linalg.inv(COVARIANCE[index])
    return LEVEL[index][:, None] - 0.5 * np.einsum("nmi,nij,nmj->nm", away, precision, away)


def log_evidence():
    return LEVEL + 0.5 * np.linalg.slogdet(2 * np.pi * COVARIANCE)[1]


@pytest.mark.parametrize(("away", "wide"), [(0.0, 1.0), (0.0, 2.0), (1.0, 1.0), (2.0, 2.0)])
def test_moments_are_those_of_normal_densities(away, wide):
    """From normals up to twice as wide, whose means are up to two sds beside them."""
    sd = np.sqrt(np.diagonal(COVARIANCE, axis1=1, axis2=2))
    direction = np.random.default_rng(1).normal(size=(N, DIM))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    start = MEAN + away * (np.linalg.cholesky(COVARIANCE) @ direction[:, :, None])[:, :, 0]
    found = adapt(log_density, start, wide**2 * COVARIANCE, quasi_normal(6, 32, DIM))
    assert (found.ess >= ENOUGH).mean() > 0.9
    assert np.quantile(np.abs(found.mean - MEAN) / sd, 0.95) < 0.2
    ratio = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2)) / sd
    assert 0.85 < np.quantile(ratio, 0.05) < np.quantile(ratio, 0.95) < 1.15
    assert np.quantile(np.abs(found.log_evidence - log_evidence()), 0.9) < 0.15


def test_what_every_target_gets_does_not_depend_on_the_others():
    points = quasi_normal(6, 32, DIM)
    together = adapt(log_density, MEAN + 0.1, 2 * COVARIANCE, points)
    alone = adapt(lambda theta, index: log_density(theta, index + 7), MEAN[7:8] + 0.1, 2 * COVARIANCE[7:8], points)
    for name, values in vars(alone).items():
        assert_allclose(values[0], getattr(together, name)[7], rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_target_far_away_is_flattened_until_some_points_carry_weight():
    found = adapt(log_density, MEAN + 3.0, COVARIANCE, quasi_normal(1, 32, DIM))
    assert (found.inverse_temperature < 1).mean() > 0.9
    assert_allclose(found.ess[found.inverse_temperature < 1], FEWEST, rtol=0.2)


@pytest.mark.parametrize("nothing", [np.nan, -np.inf])
def test_an_impossible_data_set_keeps_what_it_began_with(nothing):
    impossible = plain(lambda theta, index: np.full(theta.shape[:2], nothing))
    found = adapt(impossible, MEAN, COVARIANCE, quasi_normal(3, 32, DIM))
    assert all(np.isfinite(values).all() for values in vars(found).values())
    assert_allclose(found.mean, MEAN, atol=1e-6)
    assert (found.ess < ENOUGH).all()


def test_points_that_are_all_impossible_settle_nothing():
    """A truncated density, beside which the start lies: later stages reach it."""
    found = adapt(
        plain(lambda theta, index: np.where(theta[..., 0] > 1, -0.5 * ((theta[..., 0] - 1) / 0.3) ** 2, -np.inf)),
        np.zeros((1, 1)),
        np.full((1, 1, 1), 0.3**2),
        quasi_normal(6, 32, 1),
    )
    assert found.mean[0, 0] > 1.1
    nowhere = adapt(
        plain(lambda theta, index: np.full(theta.shape[:2], -np.inf)), MEAN, COVARIANCE, quasi_normal(2, 32, DIM)
    )
    assert (nowhere.ess == 0).all()


def test_a_density_at_one_point_alone_gives_numbers():
    points = quasi_normal(2, 32, DIM)

    @plain
    def spike(theta, index):
        return np.where(np.arange(theta.shape[1]) == 3, 0.0, -1e90)[None].repeat(len(index), axis=0)

    assert all(np.isfinite(values).all() for values in vars(adapt(spike, MEAN, COVARIANCE, points)).values())


def test_a_boundary_is_found():
    """An exponential density on the half line, of which the normal at the start lies half outside."""
    found = adapt(
        plain(lambda theta, index: np.where(theta[..., 0] > 0, -theta[..., 0], -np.inf)),
        np.zeros((1, 1)),
        np.ones((1, 1, 1)),
        quasi_normal(6, 32, 1),
    )
    assert_allclose(found.mean[0, 0], 1.0, atol=0.15)
    assert found.third[0, 0] > 0.8
    assert abs(found.log_evidence[0]) < 0.15


@pytest.mark.parametrize("dim", [1, 2, 5, 12])
def test_points_of_every_stage_are_standardized(dim):
    points = quasi_normal(6, 32, dim)
    assert_allclose(points.mean(axis=1), 0.0, atol=1e-12)
    assert_allclose(points.swapaxes(1, 2) @ points / 32, np.broadcast_to(np.eye(dim), (6, dim, dim)), atol=1e-9)
    assert st.kstest(points[:, :, 0].ravel(), "norm").pvalue > 0.5


# Integrals over values that interact with their neighbours


@pytest.mark.parametrize("band", [0, 1, 3])
def test_banded_integrals_are_those_of_dense_matrices(band):
    rng, size, counts = np.random.default_rng(band), 7, np.array([7, 4, 0])
    slope, curvature, expected = np.zeros((size, 3)), np.zeros((size, band + 1, 3)), []
    curvature[:, 0] = 1.0
    for i, count in enumerate(counts):
        root = np.tril(np.triu(rng.normal(size=(count, count)), -band)) + 2 * np.eye(count)
        precision = root @ root.T  # of the same band
        g = rng.normal(size=count)
        slope[:count, i] = g
        for j in range(min(band + 1, count)):
            curvature[j:count, j, i] = np.diagonal(precision, -j)
        log_det = np.linalg.slogdet(precision)[1]
        expected.append(0.5 * (g @ np.linalg.solve(precision, g) - log_det + count * np.log(2 * np.pi)))
    assert_allclose(banded_log_integral(slope, curvature, counts), expected)


def test_what_has_no_maximum_has_no_integral():
    assert np.isnan(banded_log_integral(np.ones((1, 1)), np.full((1, 1, 1), -1.0), np.array([1])))[0]


def test_careful_integrals_see_tails_and_other_modes():
    """An exponential tail, of which normal points see little, and a mode far from the start."""

    @plain
    def skewed(theta, index):
        return (
            theta[..., 0] - np.exp(2 * theta[..., 0]) / 2
        )  # log of a half-normal scale, whose integral is sqrt(pi / 2)

    @plain
    def two(theta, index):
        return np.logaddexp(*(st.norm.logpdf(theta[..., 0], m, 0.2) for m in (-1.0, 1.0)))

    start = np.full((1, 1), 1.0), np.full((1, 1, 1), 0.04)
    points = quasi_normal(12, 32, 1)
    tail = adapt(skewed, np.zeros((1, 1)), np.ones((1, 1, 1)), points, careful=True)
    assert_allclose(tail.log_evidence, 0.5 * np.log(np.pi / 2), atol=0.02)
    assert adapt(two, *start, points).log_evidence[0] < 0.1  # one of two
    both = adapt(two, *start, points, careful=True)
    assert both.log_evidence[0] > 0.4
    assert both.latest[0] < ALIKE  # roughly seen, and so not believed


def test_pareto_k_and_errors_of_each_parameter() -> None:
    """Of one parameter the proposal is too narrow, of the other it is the target."""
    rng = np.random.default_rng(0)
    theta = np.stack([rng.normal(0, 0.4, (4, 1000)), rng.normal(0, 1, (4, 1000))], axis=-1)
    log_weights = st.norm.logpdf(theta[..., 0]) - st.norm.logpdf(theta[..., 0], scale=0.4)
    k, mcse = by_parameter(theta, smooth(log_weights))
    assert k[0] > k[1]
    assert mcse[0] > 1.5 * mcse[1]


def test_errors_of_equal_weights_are_those_of_a_mean() -> None:
    theta = np.random.default_rng(1).normal(size=(4, 1000, 3))
    k, mcse = by_parameter(theta, smooth(np.zeros((4, 1000))))
    assert np.allclose(mcse, 1 / np.sqrt(4000), rtol=1e-6)
    assert (k == -np.inf).all()
