"""Misspecification and novelty: uniform p-values where the model is right, small ones where errors are planted."""

import logging
import warnings

import numpy as np
import pymc as pm
import pytest
import torch
import xarray as xr
from conftest import briefly
from numpy.testing import assert_allclose

import pymc_amortized as pma
from pymc_amortized.diagnostics.misspecification import _Compared, _together
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.networks.encoding.layout import ArrayLayout, AxisLayout, DataLayout
from pymc_amortized.networks.summary.join import EncodedArray
from pymc_amortized.novelty.scores import Discrepancy, Reference, Score, Whitening, pvalue
from pymc_amortized.novelty.shape import ShapeStatistics
from pymc_amortized.numerics.uniformity import holm

LOGGER = "pymc_amortized"
ROWS = (10, 60)
CONTEXT = {"x": pm.Normal.dist(0, 1), "obs": ROWS}


def regression() -> pm.Model:
    """A regression of any length on covariates that differ."""
    with pm.Model() as model:
        x = pm.Data("x", np.linspace(-1, 1, 20), dims="obs")
        a, b, s = pm.Normal("a", 0, 1), pm.Normal("b", 0, 1), pm.HalfNormal("s", 1)
        pm.Normal("y", a + b * x, s, observed=np.zeros(20), dims="obs")
    return model


@pytest.fixture(scope="module")
def posterior() -> pma.AmortizedPosterior:
    """Return its posterior, also of data with gaps, trained briefly."""
    return briefly(regression(), num_steps=200, context=CONTEXT, missing={"y": 0.1})


def data_sets(number: int, rows: int, seed: int, planted: str = "", gaps: float = 0.0) -> list[dict[str, np.ndarray]]:
    """Data of the model, or with an error planted; simulated by hand."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, number, 1))
    x, noise = rng.normal(size=(2, number, rows))
    s = np.abs(rng.normal(size=(number, 1)))
    if planted == "outliers":
        noise = np.where(rng.uniform(size=noise.shape) < 0.05, noise + 6, noise)
    elif planted == "noise":
        noise = rng.standard_t(3, size=noise.shape)
    mean = a + b * x
    if planted == "link":
        mean = np.exp(mean)
    elif planted == "shift":
        mean = mean + 6
    y = mean + s * noise
    y = np.where(rng.uniform(size=y.shape) < gaps, np.nan, y)
    return [{"x": x[i], "y": y[i]} for i in range(number)]


def assert_rate(pvalues, level=0.05, *, reference=np.inf):
    """Share below a level, within four errors, those of a reference that all share included."""
    error = np.sqrt(level * (1 - level) * (1 / len(pvalues) + 1 / reference))
    assert abs(np.mean(pvalues <= level) - level) < 4 * error


# P-values


def test_pvalue_is_a_rank_and_goes_on_beyond_it():
    reference = np.sort(np.random.default_rng(0).exponential(size=999))
    assert pvalue(reference[500], reference) == pytest.approx(500 / 1000)
    assert pvalue(-1.0, reference) == 1.0
    # an exponential tail is known: P(X > 12) = 6e-6
    assert 1e-7 < pvalue(12.0, reference) < 1e-3
    steps = np.array([pvalue(t, reference) for t in np.linspace(0, 40, 400)])
    assert np.all(np.diff(steps) <= 0) and np.all(steps > 0)


def test_pvalues_of_a_hundred_simulations_are_exact():
    rng = np.random.default_rng(10)
    found = np.array([pvalue(rng.exponential(), np.sort(rng.exponential(size=100))) for _ in range(4000)])
    assert_rate(found, 5 / 101 + 1e-9)
    assert_rate(found, 1 / 101 + 1e-9)


def test_pvalue_of_few_simulations_is_a_rank_alone():
    assert pvalue(1e9, np.arange(19.0)) == pytest.approx(1 / 20)


def test_tail_does_not_end_where_a_bounded_distribution_does():
    reference = np.sort(np.random.default_rng(1).uniform(size=2000))
    assert 0 < pvalue(1.01, reference) <= 1 / 2001


def test_holm_is_that_of_the_textbook():
    assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


def _features(n: int, rng: np.random.Generator, at: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features whose location, scale and tails depend on how large a data set is."""
    c = rng.uniform(size=(n, 1)) if at is None else np.broadcast_to(at, (n, 1))
    z = rng.normal(size=(n, 6))
    z[:, 5] = np.exp(z[:, 5])
    return np.concatenate([3 * c**2, -c, c, c, c, c], axis=1) + np.exp(-2 * c) * z, c


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_pvalues_are_uniform_at_every_size(at):
    rng = np.random.default_rng(2)
    (features, extents), (others, theirs) = _features(4000, rng), _features(8000, rng)
    score = Score.fit(features, extents, (4, 2))
    reference = Reference(score, score(others, theirs), theirs)
    found = reference.pvalues(*_features(2000, rng, np.array(at)))
    for level in (0.05, 0.3):
        assert_rate(found, level, reference=1000)  # as many neighbours


def test_pooled_sizes_would_be_wrong_at_the_extremes():
    rng = np.random.default_rng(3)
    (features, _), (others, _) = _features(4000, rng), _features(8000, rng)
    none = np.empty((4000, 0))
    score = Score.fit(features, none, (4, 2))
    reference = Reference(score, score(others, np.empty((8000, 0))), np.empty((8000, 0)))
    small, _ = _features(2000, rng, np.array(0.0))
    assert np.mean(reference.pvalues(small, np.empty((2000, 0))) <= 0.05) > 0.1


def test_score_ignores_constants_and_survives_collinear_and_enormous_features():
    rng = np.random.default_rng(4)
    z = rng.normal(size=(1000, 3))
    features = np.concatenate([z, z[:, :1] * 2, np.ones((1000, 1)), 1e30 * z[:, 1:2] ** 9], axis=1)
    none = np.empty((1000, 0))
    score = Score.fit(features, none, (4, 2))
    assert np.isfinite(score(features, none)).all()
    found = score.components(features, none)
    assert found.shape[1] == 4  # three of the first block, one of the second
    assert_allclose(np.var(found, axis=0), 1.0, atol=1e-6)
    assert_allclose(np.corrcoef(found[:, :3].T), np.eye(3), atol=0.05)


def test_whitening_gives_tails_of_a_normal_distribution():
    rng = np.random.default_rng(12)
    units = np.stack([rng.normal(size=20_000), rng.standard_t(2, size=20_000)], axis=1)
    found = Whitening.fit(units, (1, 1))
    near, far = np.quantile(np.abs(found(units)), (0.6827, 0.995), axis=0)
    assert_allclose(far / near, 2.807, rtol=0.05)
    assert found.bend[1] > 1


# The collection


def test_discrepancy_is_the_double_sum_of_its_definition():
    rng = np.random.default_rng(5)
    reference, some = rng.normal(size=(30, 2)), rng.normal(size=(5, 2))
    found = Discrepancy.fit(reference, rng)

    def kernel(a, b):
        return np.exp(-np.square(a - b).sum() / found.bandwidth)

    own = np.mean([kernel(some[i], some[j]) for i in range(5) for j in range(5) if i != j])
    within = np.mean([kernel(reference[i], reference[j]) for i in range(30) for j in range(30) if i != j])
    across = np.mean([kernel(a, b) for a in some for b in reference])
    assert found(some) == pytest.approx(own + within - 2 * across)


def _collection_pvalue(rng: np.random.Generator, shift: float = 0.0) -> float:
    compared = _Compared(
        rng.normal(size=(20, 5)) + shift, rng.normal(size=(20, 15, 5)), rng.normal(size=(20, 59, 5)), np.empty(0), []
    )
    return _together(compared, rng)["mmd_pvalue"].item()


def test_five_percent_of_right_collections_are_rejected():
    rng = np.random.default_rng(6)
    assert_rate(np.array([_collection_pvalue(rng) for _ in range(200)]))


def test_a_collection_that_is_a_little_off_is_rejected():
    rng = np.random.default_rng(7)
    assert np.mean([_collection_pvalue(rng, 0.5) < 0.05 for _ in range(20)]) > 0.9


# Shapes of residuals


def _shape(y, x=None, mask=None, present=None) -> dict[str, float]:
    """Statistics of one data set (rows,) by name."""
    rows = len(y)
    sized, missing = mask is not None, present is not None
    layout = DataLayout(
        tuple(
            ArrayLayout(name, (rows,), "real", ("obs",), missing and name == "y", given=name == "x")
            for name in ("x", "y")[x is None :]
        ),
        (AxisLayout("obs", rows, "set", sized=sized),),
    )
    arrays = [EncodedArray(a.name, a.shape, 1, a.axes, a.missing, 0, a.given) for a in layout.arrays]
    encoded = {"y": torch.tensor(y, dtype=torch.float32)[None, :, None]}
    if present is not None:
        seen = torch.tensor(present, dtype=torch.float32)[None, :, None]
        encoded["y"] = torch.cat([encoded["y"] * seen, seen], -1)
    if x is not None:
        encoded["x"] = torch.tensor(x, dtype=torch.float32)[None, :, None]
    if mask is not None:
        encoded["mask:obs"] = torch.tensor(mask, dtype=torch.float32)[None]
    shape = ShapeStatistics(arrays, layout)
    return dict(zip(shape.names, shape(encoded)[0].tolist(), strict=True))


def test_shape_is_that_of_the_residuals():
    rng = np.random.default_rng(8)
    x, e = rng.normal(size=(2, 40))
    e -= np.polyval(np.polyfit(x, e, 1), x)
    e /= e.std()
    found = _shape(1 + 2 * x + 0.5 * e, x)
    assert found["y: skewness"] == pytest.approx(np.arcsinh(np.mean(e**3)), abs=1e-2)
    assert found["y: kurtosis"] == pytest.approx(np.log(np.mean(e**4)), abs=1e-2)
    assert found["y: largest"] == pytest.approx(np.log(np.abs(e).max()), abs=1e-2)
    assert found["y: curvature"] == pytest.approx(np.arcsinh(np.mean(e * ((x - x.mean()) / x.std()) ** 2)), abs=2e-2)
    assert "y: neighbours" not in found  # of rows in no order


def test_shape_ignores_what_is_beyond_the_end_and_what_is_missing():
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(2, 20))
    long_x, long_y = np.append(x, np.zeros(10)), np.append(y, np.zeros(10))
    mask = np.arange(30) < 20
    assert_allclose(list(_shape(long_y, long_x, mask).values()), list(_shape(y, x).values()), atol=1e-5)
    gaps = _shape(long_y, long_x, present=mask)
    assert gaps == pytest.approx(_shape(y, x), abs=1e-5)


def test_shape_of_constant_and_of_few_values():
    assert np.isfinite(list(_shape(np.ones(20)).values())).all()
    assert _shape(np.arange(5.0)) == {}


# Posteriors


@pytest.mark.parametrize(("rows", "gaps"), [(10, 0.0), (25, 0.1), (60, 0.0)])
def test_five_percent_of_right_data_sets_look_novel_at_any_size(posterior, rows, gaps):
    some = read_datasets(posterior.spec, data_sets(1000, rows, 1, gaps=gaps), batched=True)
    assert_rate(posterior.ood_pvalues(some), reference=500)  # 1,000 neighbours, at the edge all to one side


def test_covariates_that_were_never_simulated_are_novel(posterior):
    strange = [{**d, "x": d["x"] * 10} for d in data_sets(20, 30, 3)]
    dt = posterior.sample(strange, batched=True, draws=10, random_seed=1)
    assert np.median(dt.sample_stats["ood_pvalue"]) < 0.001


def test_sample_says_which_data_sets_are_novel(posterior, caplog):
    some = data_sets(20, 30, 5)
    caplog.set_level(logging.WARNING, LOGGER)
    posterior.sample(some, batched=True, draws=10, random_seed=1)
    assert not caplog.records
    some[7]["y"] = some[7]["y"] + 50 * (np.arange(30) == 3)
    posterior.sample(some, batched=True, draws=10, random_seed=1)
    (said,) = [r.getMessage() for r in caplog.records]  # once, though it is out of range, too
    assert "unlike what the model simulates (ood_pvalue" in said and "1 of 20 data sets" in said


@pytest.mark.parametrize("planted", ["outliers", "noise", "link", "shift"])
def test_planted_errors_are_found_in_twenty_data_sets(posterior, planted, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    check = pma.check_misspecification(
        posterior, data_sets(20, 50, 5, planted), batched=True, num_simulations=200, random_seed=1
    )
    assert check.mmd_pvalue < 0.02
    assert np.mean(check.pvalue <= 0.05) > 0.15
    assert "data sets" in caplog.text


def test_right_data_of_all_sizes_pass(posterior, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    some = [one for rows in (10, 30, 60) for one in data_sets(20, rows, rows, gaps=0.1)]
    check = pma.check_misspecification(posterior, some, batched=True, num_simulations=200, random_seed=1)
    assert check.mmd_pvalue > 0.05
    assert_rate(check.pvalue.values, 0.3, reference=60 * 100)
    assert not caplog.records


@pytest.mark.slow
def test_five_percent_of_collections_are_rejected_by_the_whole_check(posterior):
    checks = [
        pma.check_misspecification(
            posterior,
            [one for n in (10, 40) for one in data_sets(5, n, 1000 * n + seed, gaps=0.1)],
            batched=True,
            num_simulations=200,
            random_seed=seed,
        )
        for seed in range(150)
    ]
    assert_rate(np.array([c.mmd_pvalue.item() for c in checks]))
    assert_rate(np.concatenate([c.pvalue.values for c in checks]))


def test_one_data_set_has_no_dim_and_no_collection(posterior):
    check = pma.check_misspecification(posterior, data_sets(1, 30, 6)[0], num_simulations=200, random_seed=1)
    assert check.pvalue.shape == () and "mmd" not in check
    assert check.reference_score.shape == (100,)
    again = pma.check_misspecification(posterior, data_sets(1, 30, 6)[0], num_simulations=200, random_seed=1)
    xr.testing.assert_identical(check, again)


def test_a_warning_names_what_is_unusual(posterior, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    one = data_sets(1, 50, 6)[0]
    one["y"] = one["y"] + 40 * (np.arange(50) == 9)
    pma.check_misspecification(posterior, one, num_simulations=200, random_seed=1)
    assert "y: kurtosis" in caplog.text


def test_files_keep_the_reference_and_need_no_sources(posterior, tmp_path):
    posterior.save(tmp_path / "posterior.pma")
    loaded = pma.load(tmp_path / "posterior.pma", model=regression())
    some = data_sets(20, 30, 7)
    kwargs = {"batched": True, "draws": 10, "random_seed": 1}
    ours, theirs = (p.sample(some, **kwargs).sample_stats["ood_pvalue"] for p in (posterior, loaded))
    xr.testing.assert_identical(ours, theirs)
    check = pma.check_misspecification(loaded, some[0], num_simulations=100, random_seed=1)
    assert 0 < check.pvalue <= 1


def test_models_without_density_can_be_checked():
    def simulate(rng, mu, size=None):
        return rng.normal(mu, 1.0, size=size)

    with pm.Model() as model, warnings.catch_warnings():
        mu = pm.Normal("mu", 0, 1)
        warnings.simplefilter("ignore", DeprecationWarning)  # pm.Simulator's own
        pm.Simulator("y", simulate, mu, observed=np.zeros(20))
    posterior = pma.fit_posterior(
        model,
        num_simulations=600,
        training=pma.Training(num_steps=50, batch_size=64),
        random_seed=1,
        progressbar=False,
        compile_kwargs={"mode": "FAST_COMPILE"},
    )
    rng = np.random.default_rng(2)
    good, bad = rng.normal(size=20), rng.normal(size=20) + 30 * (np.arange(20) == 3)
    for y, wanted in ((good, (0.02, 1)), (bad, (0, 0.02))):
        check = pma.check_misspecification(posterior, {"y": y}, num_simulations=200, random_seed=1)
        ood = posterior.sample({"y": y}, draws=10, random_seed=1).sample_stats["ood_pvalue"]
        assert wanted[0] < check.pvalue <= wanted[1]
        assert wanted[0] < ood <= wanted[1] + 0.02


def test_pictures(posterior):
    import matplotlib.pyplot as plt

    some = data_sets(6, 30, 8)
    many = pma.check_misspecification(posterior, some, batched=True, num_simulations=100, random_seed=1)
    assert len(pma.plot_novelty(many).axes) == 2
    one = pma.check_misspecification(posterior, some[0], num_simulations=100, random_seed=1)
    (axis,) = pma.plot_novelty(one).axes
    assert axis.lines[-1].get_xdata()[0] == one["score"].item()
    assert axis.get_legend().texts[1].get_text().startswith("observed")
    assert len(pma.plot_novelty(many, backend="none").viz["plot"]) == 2
    with pytest.raises(TypeError, match="check_misspecification"):
        pma.plot_novelty(some)
    plt.close("all")


def test_arguments_are_checked(posterior):
    with pytest.raises(ValueError, match="num_simulations"):
        pma.check_misspecification(posterior, data_sets(1, 30, 6)[0], num_simulations=10)
    with pytest.raises(KeyError, match="no data named 'z'"):
        pma.check_misspecification(posterior, {"z": 1})
