"""Symmetries of posteriors: found by the density, used by the network, by mixtures and by samplers."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytest
import torch
from scipy import integrate, stats
from small_models import brief_fit

import pymc_amortized as pma
from pymc_amortized.correction.check_results import check_symmetric
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.symmetry import find_symmetries
from pymc_amortized.numerics.sampling.mixture import StudentMixture
from pymc_amortized.numerics.sampling.symmetry import Symmetries


def labels(prior_mean: float = 0.0) -> pm.Model:
    """Two components whose labels mean nothing, unless their priors differ."""
    with pm.Model() as model:
        mu = pm.Normal("mu", [0.0, prior_mean], 2.0)
        w = pm.Beta("w", 2.0, 2.0)
        pm.NormalMixture("y", w=pm.math.stack([w, 1 - w]), mu=mu, sigma=0.5, observed=np.zeros(12))
    return model


def three_labels() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 2, shape=3)
        w = pm.Dirichlet("w", np.ones(3))
        pm.NormalMixture("y", w=w, mu=mu, sigma=0.5, observed=np.zeros(12))
    return model


def separate_variables() -> pm.Model:
    with pm.Model() as model:
        one, other = pm.Normal("one", 0, 2), pm.Normal("other", 0, 2)
        w = pm.Uniform("w", 0, 1)
        pm.NormalMixture("y", w=pm.math.stack([w, 1 - w]), mu=pm.math.stack([one, other]), observed=np.zeros(12))
    return model


def factors() -> pm.Model:
    """Two factors: their signs and their order mean nothing."""
    with pm.Model() as model:
        loading, factor = pm.Normal("loading", 0, 1, shape=(3, 2)), pm.Normal("factor", 0, 1, shape=(4, 2))
        pm.Normal("y", factor @ loading.T, 0.5, observed=np.zeros((4, 3)))
    return model


def moons() -> pm.Model:
    with pm.Model() as model:
        t = pm.Uniform("t", -1, 1, shape=2)
        mu = pm.math.stack([pm.math.abs(t[0] + t[1]), t[1] - t[0]])
        pm.Normal("y", mu, 0.1, observed=np.zeros(2))
    return model


def squares() -> pm.Model:
    with pm.Model() as model:
        t = pm.Normal("t", 0, 1, shape=2)
        pm.Normal("y", t**2, 0.3, observed=np.array([1.0, 0.5]))
    return model


def regression() -> pm.Model:
    with pm.Model() as model:
        slope = pm.Normal("slope", 0, 1, shape=2)
        pm.Normal("y", np.random.default_rng(0).normal(size=(9, 2)) @ slope, 0.5, observed=np.zeros(9))
    return model


@pytest.mark.parametrize(
    ("model", "size", "says"),
    [
        (labels, 2, "mu[0] <-> mu[1], w mirrored within its range"),
        (three_labels, 6, "w[0] <-> w[2]"),
        (separate_variables, 2, "one <-> other, w mirrored within its range"),
        (factors, 8, "loading[:, 0] <-> loading[:, 1], factor[:, 0] <-> factor[:, 1]"),
        (moons, 2, "t[0] <-> t[1], both mirrored"),
        (squares, 4, "t[1] -> -t[1]"),
        (lambda: labels(0.1), 1, ""),
        (regression, 1, ""),
    ],
)
def test_symmetries_are_found_by_the_density(model: Callable[[], pm.Model], size: int, says: str) -> None:
    spec = take_snapshot(model())
    pilot = Simulator(spec)(512, np.random.SeedSequence(1))
    found, said = find_symmetries(spec, pilot, LogDensity(spec))
    assert (1 if found is None else len(found)) == size
    assert any(says in line for line in said) or (not says and said == ())


def test_too_large_a_group_is_cut_to_what_some_generators_give() -> None:
    def swap(a: int, b: int) -> np.ndarray:
        order = np.arange(6)
        order[[a, b]] = b, a
        return np.eye(6)[order]

    found = Symmetries.generated([swap(0, k) for k in range(1, 6)], np.ones(6))
    assert found is not None
    assert len(found) == 24  # of 720: four labels of six
    assert np.array_equal(found.matrices[0], np.eye(6))
    products = {(a @ b).tobytes() for a in found.matrices for b in found.matrices}
    assert len(products) == 24


def test_symmetries_of_some_parameters_are_those_that_do_not_mix_them_with_others() -> None:
    swap = np.eye(3)[[1, 0, 2]]
    found = Symmetries.generated([swap, np.diag([1, 1, -1])], np.ones(3))
    assert found is not None
    assert len(found) == 4
    rest, both = found.of([2]), found.of([0, 1])
    assert rest is not None and both is not None
    assert (len(rest), len(both)) == (2, 2)
    assert found.of([0]) is None


def test_a_symmetric_mixture_has_the_density_of_its_draws() -> None:
    found = Symmetries.generated([np.diag([-1.0])], np.ones(1))
    rng = np.random.default_rng(0)
    draws = rng.choice([-3.0, 3.0], size=(500, 1)) + 0.3 * rng.normal(size=(500, 1))
    mixture = StudentMixture.fit(draws, np.full(500, 1 / 500), rng, symmetries=found)
    assert len(mixture.shares) == 1
    total, _ = integrate.quad(lambda x: np.exp(mixture.log_density(np.array([[x]])))[0], -np.inf, np.inf)
    drawn = mixture.draw(4000, rng)[:, 0]
    below, _ = integrate.quad(lambda x: np.exp(mixture.log_density(np.array([[x]])))[0], -np.inf, -3)
    assert total == pytest.approx(1, abs=1e-6)
    assert (drawn < -3).mean() == pytest.approx(below, abs=4 * np.sqrt(0.25 / 4000))


@cache
def trained() -> pma.AmortizedPosterior:
    return brief_fit(labels())


OBSERVED = np.r_[np.full(4, -1.0), np.full(8, 1.5)] + 0.3 * np.random.default_rng(3).normal(size=12)


def test_both_labellings_have_the_same_mass_by_every_correction() -> None:
    for correction in ("auto", "nuts", None):
        dt = trained().sample({"y": OBSERVED}, correction=correction, draws=1000, random_seed=2, progressbar=False)
        assert dt.sample_stats.stage.item() != "failed"
        first = dt.posterior.mu.values[..., 0] > dt.posterior.mu.values[..., 1]
        assert first.mean() == pytest.approx(0.5, abs=0.06)
        assert first.mean(axis=1).std() < 0.1  # in every chain


def test_the_network_is_normalized_over_all_images() -> None:
    """Importance sampling of the network by itself, in another distribution: the density integrates to 1."""
    posterior = trained()
    approximation = posterior.approximation(posterior.read({"y": OBSERVED}))
    generator = torch.Generator().manual_seed(1)
    theta, log_q = approximation.sample(4000, generator)
    assert np.allclose(log_q, approximation.log_prob(theta), atol=1e-4)
    wide = stats.multivariate_t(theta[:, 0].mean(axis=0), 2 * np.cov(theta[:, 0].T), df=3)
    proposed = wide.rvs(40_000, random_state=2)
    ratio = np.exp(approximation.log_prob(proposed[:, None])[:, 0] - wide.logpdf(proposed))
    assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() / 200)


def test_a_file_keeps_symmetries(tmp_path: object) -> None:
    posterior = trained()
    path = f"{tmp_path}/labels.pma"
    posterior.save(path)
    again = pma.load(path, model=labels())
    assert str(again.structure) == str(posterior.structure)
    assert "mu[0] <-> mu[1]" in str(again.structure)
    one, other = (p.sample({"y": OBSERVED}, random_seed=4, progressbar=False) for p in (posterior, again))
    assert np.allclose(one.posterior.mu, other.posterior.mu)


def test_symmetry_that_a_data_set_does_not_have_moves_no_draws() -> None:
    """A sampler's draws are moved only where their density says so."""
    posterior = trained()
    target = posterior.target(posterior.read({"y": OBSERVED}))
    theta = np.random.default_rng(0).normal(size=(50, 3))
    rng = np.random.default_rng(1)
    assert not np.array_equal(target.scattered(0, theta, rng), theta)
    wrong = Symmetries.generated([np.diag([-1.0, 1.0, 1.0])], np.ones(3))
    object.__setattr__(target, "symmetries", wrong)
    assert np.array_equal(target.scattered(0, theta, rng), theta)
    assert np.array_equal(target.gathered(0, theta), theta)


def test_training_is_of_one_image() -> None:
    """Where the network is trained, labels are in one order."""
    posterior = trained()
    network = posterior.network
    assert network.symmetries is not None
    theta = np.array([[1.0, -1.0, 0.3], [-1.0, 1.0, -0.3]])
    chosen = network.symmetries.representatives(theta)
    assert np.array_equal(chosen[0], chosen[1])


def test_a_symmetry_that_data_rarely_break_is_none() -> None:
    """Whether a row tells the labels apart is context, and so it is in one of twenty simulations."""
    with pm.Model() as model:
        told = pm.Data("told", 0.0)
        mu = pm.Normal("mu", 0, 2, shape=2)
        pm.NormalMixture("y", w=[0.5, 0.5], mu=mu, sigma=0.5, observed=np.zeros(6))
        pm.Normal("label", told * mu[0], 0.5, observed=0.0)
    context = {"told": lambda rng: float(rng.random() < 0.05)}
    posterior = brief_fit(model, context=context)
    assert posterior.structure.symmetries is None


def test_draws_of_the_network_alone_say_where_a_symmetry_does_not_hold() -> None:
    posterior = trained()
    target = posterior.target(posterior.read({"y": OBSERVED}))
    draws = [SimpleNamespace(theta=np.random.default_rng(0).normal(size=(2, 50, 3)))]
    assert check_symmetric(target, draws) == []
    object.__setattr__(target, "symmetries", Symmetries.generated([np.diag([-1.0, 1.0, 1.0])], np.ones(3)))
    (doubt,) = check_symmetric(target, draws)
    assert doubt.kind == "symmetry" and "spread over all images" in doubt.finding


def test_what_training_found_off_stays_with_results() -> None:
    posterior = trained()
    off = posterior.replaced(provenance=replace(posterior.provenance, off=("mu[0]: under-confident",)))
    for result in (off.sample({"y": OBSERVED}, draws=50).posterior, off.log_marginal_likelihood({"y": OBSERVED})):
        assert "a mode may be missed here too" in result.attrs["doubts"]
    assert "may be missed" not in posterior.sample({"y": OBSERVED}, draws=50).posterior.attrs.get("doubts", "")


def test_some_parameters_alone_are_learned_without_symmetries() -> None:
    posterior = brief_fit(labels(), parameters=["mu"])
    assert posterior.structure.symmetries is None
    assert posterior.sample({"y": OBSERVED}, draws=20, progressbar=False).posterior.mu.shape == (4, 20, 2)
