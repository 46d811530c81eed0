"""What a learned likelihood's arguments are called, and which models it refuses."""

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.rows.finding import distribution_of, find_rows
from pymc_amortized.row_density.columns import fit_column

STEPS = pma.Training(num_steps=60, batch_size=1024, learning_rate=3e-3, weight_decay=0, evaluations=2, threads=1)


def fitted(model: pm.Model) -> AmortizedLikelihood:
    return pma.fit_likelihood(model, training=STEPS, progressbar=False, random_seed=1, num_simulations=2000)


def parameters_of(model: pm.Model) -> list[tuple[str, tuple[str, ...]]]:
    return [(p.name, p.leaves) for p in find_rows(take_snapshot(model), "y", {}).parameters]


def test_a_variable_named_like_an_argument_computed_from_it_keeps_the_name() -> None:
    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.Poisson("y", pm.math.exp(mu), observed=np.arange(20) % 4)
    assert parameters_of(model) == [("y_0", ("mu",))]
    likelihood = fitted(model)
    assert likelihood.parameters == ("mu",)
    assert_allclose(likelihood.logp([3], {"mu": 0.5}), stats.poisson(np.exp(0.5)).logpmf([3]), atol=0.3)


def test_elements_of_one_vector_are_not_one_leaf() -> None:
    with pm.Model() as model:
        b, x = pm.Normal("b", shape=2), pm.Data("x", np.arange(5.0))
        pm.Normal("y", b[0] + b[1] * x, 1, observed=np.zeros(5))
    assert parameters_of(model) == [("mu", ("",))]


def test_the_same_element_twice_is_one_leaf() -> None:
    with pm.Model() as model:
        b = pm.Normal("b", shape=2)
        pm.Normal("y", b[[0, 1, 1]] + b[[0, 1, 1]] ** 2, 1, observed=np.zeros(3))
    assert parameters_of(model) == [("mu", ("b",))]


def test_axes_of_one_row_are_not_leaves() -> None:
    with pm.Model() as model:
        a, b = pm.Normal("a"), pm.Normal("b", shape=2)
        pm.MvNormal("y", a + b, np.eye(2), observed=np.zeros((3, 2)))
    assert {leaves for _, leaves in parameters_of(model)} == {("",)}


def normal(sigma: float, family: str = "normal") -> pm.Model:
    with pm.Model() as model:
        a = pm.Normal("a")
        if family == "normal":
            pm.Normal("y", a, sigma, observed=np.zeros(3))
        else:
            pm.Laplace("y", a, sigma, observed=np.zeros(3))
    return model


def test_another_constant_or_family_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    likelihood = fitted(normal(1.0))
    likelihood.to_model(np.full(5, 2.0), model=normal(1.0))
    for other in (normal(3.0), normal(1.0, "laplace")):
        with pytest.raises(ValueError, match="model: the distribution of 'y'"):
            likelihood.to_model(np.full(3, 2.0), model=other)
    with pytest.raises(ValueError, match="region: the distribution"):
        pma.fit_likelihood(normal(1.0), region=normal(3.0), training=STEPS, progressbar=False)
    likelihood.save(tmp_path / "likelihood")
    loaded = pma.load(tmp_path / "likelihood", model=normal(1.0))
    assert isinstance(loaded, AmortizedLikelihood) and loaded.parameters == ("a",)
    with pytest.raises(ValueError, match="the distribution of 'y' differs"):
        pma.load(tmp_path / "likelihood", model=normal(3.0))
    assert likelihood.sample({"a": 0.0}, random_seed=1).shape == ()


def test_constants_are_read_wherever_they_stand() -> None:
    with pm.Model() as model:
        sd = pm.Data("sd", 2.0)
        pm.Normal("y", pm.Normal("a"), sd * np.ones(4), observed=np.zeros(4))
    spec = take_snapshot(model)
    assert distribution_of(spec, find_rows(spec, "y", {}))[0] == "NormalRV"


def test_a_number_with_atoms_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=10_000)
    with pytest.raises(ValueError, match="have no density"):
        fit_column(np.maximum(y, 0), None)
    assert fit_column(np.round(y, 2), None).kind == "real"
    assert fit_column(np.sign(y) / 2, None).levels == (-0.5, 0.5)
    assert fit_column(np.maximum(y, 0), "real").kind == "real"
    assert "0 makes up" in caplog.text and "spike" in caplog.text
    with pm.Model() as model:
        pm.Censored("y", pm.Normal.dist(pm.Normal("a"), 1), lower=0, upper=None, observed=np.ones(20))
    with pytest.raises(ValueError, match="have no density"):
        pma.fit_likelihood(model, training=STEPS, progressbar=False, random_seed=1)
