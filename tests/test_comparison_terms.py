"""Terms that log Bayes factors are linear in: against closed forms of linear models."""

import numpy as np
import pymc as pm
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

import pymc_amortized as pma
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.networks.encoding.layout import ArrayLayout, AxisLayout, DataLayout
from pymc_amortized.networks.linear_models import LinearModels
from pymc_amortized.networks.summary.join import EncodedArray, Join, Whole
from pymc_amortized.networks.summary.layers import GUARD
from pymc_amortized.networks.terms import _coordinates

ROWS = 9


def rows(channels=2, missing=False):
    axes = (AxisLayout("row", ROWS, "set", True),)
    y = EncodedArray("y", (ROWS,), 1, ("row",), missing)
    x = EncodedArray("x", (ROWS, channels - 1), 1, ("row", None), given=True)
    return LinearModels(Join((y, x), axes, None, Whole((), ())))


def encoded(n, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    mask = (np.arange(ROWS) < n).astype(float)
    x = rng.normal(size=(ROWS, channels - 1)) * mask[:, None]
    y = (1.5 * x.sum(1) + rng.normal(size=ROWS) + 0.5) * mask
    arrays = {"y": y[:, None], "x": x[:, :, None], "mask:row": mask}
    return y[:n], x[:n], {name: torch.as_tensor(v)[None] for name, v in arrays.items()}


@pytest.mark.parametrize("n", [3, ROWS])
@pytest.mark.parametrize("channels", [2, 3])
def test_parts_add_up_to_the_evidence_of_linear_models(n, channels):
    models = rows(channels)
    y, x, data = encoded(n, channels)
    found = models(data).numpy()[0]
    assert len(found) == models.width
    each = models.each
    assert each == 2 + (channels - 1) * (channels > 2)  # the intercept, all, and all but one
    for i, k in enumerate(GUARD.shrinkage):
        start = 4 + 3 * each * i
        explained, volume, _ = found[start : start + 3 * each].reshape(3, each)

        def log_evidence(*columns, k=k):
            design = np.stack([np.ones(n), *columns], 1)
            return stats.multivariate_normal(np.zeros(n), np.eye(n) + design @ design.T / k).logpdf(y)

        none = stats.multivariate_normal(np.zeros(n), np.eye(n)).logpdf(y)
        assert_allclose(explained[0] - volume[0], log_evidence() - none, atol=1e-6)
        assert_allclose(explained[1] - volume[1], log_evidence(*x.T) - log_evidence(), atol=1e-6)
        if channels == 3:
            assert_allclose(explained[2] - volume[2], log_evidence(x[:, 1]) - log_evidence(), atol=1e-6)


def test_unknown_noise_is_told_by_what_is_left():
    models = rows()
    y, x, data = encoded(ROWS)
    (found,) = models(data).numpy()
    left = found[4 + 2 * models.each : 4 + 3 * models.each]
    design = np.stack([np.ones(ROWS), *x.T], 1)
    k = GUARD.shrinkage[0]
    ridge = [
        y @ y - y @ d @ np.linalg.solve(d.T @ d + k * np.eye(d.shape[1]), d.T @ y) for d in (design[:, :1], design)
    ]
    assert_allclose(left[1], ROWS / 2 * np.log(ridge[1] / ridge[0]), atol=0.02)  # regularized


def test_rows_with_gaps_count_for_nothing():
    y, x, _ = encoded(ROWS)
    gap = np.arange(ROWS) == 4
    present = np.where(gap, 0.0, 1.0)
    with_gap = {
        "y": torch.as_tensor(np.stack([y * present, present], -1))[None],
        "x": torch.as_tensor(x[..., None])[None],
        "mask:row": torch.ones(1, ROWS, dtype=torch.float64),
    }
    some = {"y": np.append(y[~gap], 0.0)[:, None], "x": np.append(x[~gap], [[0.0]], 0)[:, :, None]}
    shorter = {name: torch.as_tensor(v)[None] for name, v in some.items()}
    shorter["mask:row"] = torch.as_tensor((np.arange(ROWS) < ROWS - 1).astype(float))[None]
    assert_allclose(rows(missing=True)(with_gap), rows()(shorter), atol=1e-9)


def test_coordinates_make_the_hessian_the_identity():
    rng = np.random.default_rng(1)
    x = torch.as_tensor(rng.normal(size=(20_000, 1)) + 0.1 * rng.normal(size=(20_000, 4)))  # nearly collinear
    p = torch.softmax(torch.stack([3 * x[:, 0], torch.zeros(len(x))], 1), 1)
    center, factor = _coordinates(x, p)
    doubt = 1 - p.square().sum(1)
    turned = torch.linalg.solve_triangular(factor, (x - center).mT, upper=False).mT
    hessian = (turned * doubt[:, None]).mT @ turned / doubt.sum()
    assert_allclose(hessian, torch.eye(4), atol=0.12)  # the ridge
    decided = torch.tensor([[1.0, 0.0]]).double().expand(len(x), 2)
    center, factor = _coordinates(x, decided)
    assert_allclose(factor @ factor.mT, np.cov(x.numpy().T, bias=True) + 1e-3 * np.eye(4), atol=1e-8)


def line(slope):
    with pm.Model(coords={"obs": range(30)}) as model:
        mean = pm.Normal("intercept", 0, 1)
        if slope:
            mean = mean + pm.Normal("slope", 0, 0.7) * pm.Data("x", np.zeros(30), dims="obs")
        pm.Normal("y", mean, 1, observed=np.zeros(30), dims="obs")
    return model


def test_nested_regressions_are_told_apart_at_every_size():
    options = {"training": pma.Training(num_steps=100, evaluations=5, threads=1), "random_seed": 1, "cores": 1}
    options |= {"num_simulations": 20_000}
    comparison = pma.fit_comparison(
        {"without": line(False), "with": line(True)},
        context={"obs": (10, 60), "x": pm.Normal.dist(0, 1)},
        posteriors=False,
        progressbar=False,
        **options,
    )
    for n in (10, 60):
        made = comparison.pool(1000, np.random.SeedSequence(2), lengths={"obs": n})
        data = of_simulations(made)
        y, x = data.values["y"][:, :n], data.values["x"][:, :n]
        flat = np.eye(n) + 1
        exact = np.array(
            [
                stats.multivariate_normal(np.zeros(n), flat).logpdf(a)
                - stats.multivariate_normal(np.zeros(n), flat + 0.49 * np.outer(b, b)).logpdf(a)
                for a, b in zip(y, x, strict=True)
            ]
        )
        log_p = comparison.log_probabilities(data)
        off = (log_p[:, 0] - log_p[:, 1] - exact)[np.abs(exact) < 5]
        assert np.sqrt(np.square(off).mean()) < 0.25
        assert np.quantile(np.abs(off), 0.99) < 0.8


def test_terms_that_are_known_need_not_be_computed_again():
    rng = np.random.default_rng(0)
    arrays = (ArrayLayout("y", (ROWS,), "real", ("row",)), ArrayLayout("x", (ROWS,), "real", ("row",), given=True))
    layout = DataLayout(arrays, (AxisLayout("row", ROWS, "set", True),))
    label = rng.integers(2, size=400)
    x = rng.normal(size=(400, ROWS))
    data = {"x": x, "y": label[:, None] * x + rng.normal(size=x.shape)}
    sizes = {"row": rng.integers(3, ROWS + 1, size=400)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = rng.normal(size=(400, 1))
        network = ClassifierNetwork.build(layout, label, data, theta=theta, among=label >= 0, sizes=sizes)
    z, encoded = network.prepare(np.eye(2)[label], data, sizes=sizes)
    measured = network.measured(encoded)
    with torch.no_grad():
        losses = [float(network.loss(z, known)) for known in (encoded, measured)]
    assert_allclose(losses, losses[0], rtol=1e-5)
