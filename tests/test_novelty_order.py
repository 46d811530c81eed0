"""Novelty does not know what the model does not: order of rows, of groups, and columns that are never read."""

import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytest
from conftest import interpreted
from numpy.testing import assert_array_equal

from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.graph.structure.unread import unread_entries
from pymc_amortized.novelty.order import AnyOrder
from pymc_amortized.novelty.reference import RANKED, enough, learn_reference

Values = dict[str, np.ndarray]
X = {"X": pm.Normal.dist(0, 1)}


def regression() -> pm.Model:
    """A regression on the first of three columns."""
    with pm.Model() as model:
        x = pm.Data("X", np.zeros((16, 3)), dims=("obs", "column"))
        a, b, s = pm.Normal("a"), pm.Normal("b"), pm.HalfNormal("s", 1)
        pm.Normal("y", a + b * x[:, 0], s, observed=np.zeros(16), dims="obs")
    return model


def hierarchy() -> pm.Model:
    """Rows in groups."""
    with pm.Model() as model:
        mu, s = pm.Normal("mu", 0, pm.HalfNormal("t", 1), shape=4), pm.HalfNormal("s", 1)
        pm.Normal("y", mu[:, None], s, observed=np.zeros((4, 8)))
    return model


def by_response(values: Values) -> Values:
    order = np.argsort(values["y"], axis=1)
    return {"y": np.sort(values["y"], 1), "X": np.take_along_axis(values["X"], order[..., None], 1)}


def within_unread_columns(values: Values) -> Values:
    x = values["X"]
    return values | {"X": np.concatenate([x[..., :1], np.sort(x[..., 1:], 1)], -1)}


def unread_columns(values: Values) -> Values:
    x = values["X"]
    return values | {"X": np.concatenate([x[..., :1], np.sort(x[..., 1:], 2)], -1)}


def within_groups(values: Values) -> Values:
    return {"y": np.sort(values["y"], 2)}


def groups_by_mean(values: Values) -> Values:
    order = np.argsort(values["y"].mean(2), 1)
    return {"y": np.take_along_axis(values["y"], order[..., None], 1)}


@pytest.mark.parametrize(
    ("build", "context", "orders"),
    [
        (regression, X, [by_response, within_unread_columns, unread_columns]),
        (hierarchy, {}, [within_groups, groups_by_mean]),
    ],
)
def test_pvalues_are_nominal_in_any_order_that_means_nothing(build, context, orders):
    posterior = interpreted(build(), num_steps=30, num_simulations=3000, context=context)
    made = of_simulations(posterior.simulator(600, np.random.SeedSequence(5)))
    usual = posterior.ood_pvalues(made)
    for order in orders:
        found = posterior.ood_pvalues(replace(made, values=order(made.values)))
        # of 600, 5 % are 30 +- 5.3: a rate that is half or double would show
        assert 0.025 < np.mean(found <= 0.05) < 0.09
        np.testing.assert_allclose(found, usual)


# Orders alone


def canonical(build: Callable[[], pm.Model], axes: list[Axis], values: Values, context=None) -> Values:
    """Bring data sets into an order of their own, by what is said of the axes."""
    spec, _, _ = read_model(build(), None, None, context or {}, None)
    shapes = {name: array.shape[1:] for name, array in values.items()}
    return AnyOrder(spec, Structure(tuple(axes), shapes))(DataSets(values, np.arange(len(values["y"])), True)).values


def table() -> pm.Model:
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu"), 1, observed=np.zeros((6, 4)))
    return model


def table_axes(independent: bool) -> list[Axis]:
    return [
        Axis(f"y[{i}]", length, "exchangeable", (("y", i),), "", independent=independent)
        for i, length in enumerate((6, 4))
    ]


def test_entries_that_are_independent_along_all_axes_move_in_all_directions():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(50, 6, 4))
    shuffled = rng.permuted(y.reshape(50, -1), axis=1).reshape(y.shape)
    assert_array_equal(*(canonical(table, table_axes(True), {"y": v})["y"] for v in (y, shuffled)))


def test_rows_and_columns_that_hang_together_stay_together():
    values = np.random.default_rng(1).normal(size=(50, 6, 4))
    rows, columns = np.random.default_rng(2).permutation(6), np.random.default_rng(3).permutation(4)
    moved = values[:, rows][:, :, columns]
    one, other = (canonical(table, table_axes(False), {"y": v})["y"] for v in (values, moved))
    assert_array_equal(one, other)
    for own, given in zip(one, values, strict=True):  # the same rows, with the same columns
        assert {frozenset(row) for row in own.tolist()} == {frozenset(row) for row in given.tolist()}
        assert {frozenset(row) for row in own.T.tolist()} == {frozenset(row) for row in given.T.tolist()}


def test_binary_tables_are_the_same_in_any_order():
    rng = np.random.default_rng(4)
    y = (rng.uniform(size=(200, 6, 4)) < rng.uniform(size=(200, 6, 1))).astype(float)
    moved = y[:, rng.permutation(6)][:, :, rng.permutation(4)]
    one, other = (canonical(table, table_axes(False), {"y": v})["y"] for v in (y, moved))
    assert np.mean([np.array_equal(a, b) for a, b in zip(one, other, strict=True)]) > 0.8  # refined hashes tell most


def test_the_order_is_a_random_one():
    y = np.sort(np.random.default_rng(5).normal(size=(2000, 24)), 1).reshape(-1, 6, 4)
    found = canonical(table, table_axes(True), {"y": y})["y"].reshape(-1, 24)
    assert np.abs(found.mean(0)).max() < 4 / np.sqrt(2000)
    assert abs(np.mean(found[:, 1:] * found[:, :-1])) < 4 / np.sqrt(2000 * 23)


def test_rows_keep_to_the_covariates_that_the_model_holds():
    x = np.repeat([0.0, 1.0, 2.0], [3, 2, 1])

    def build() -> pm.Model:
        with pm.Model() as model:
            held = pm.Data("x", x, dims="obs")
            pm.Normal("y", pm.Normal("b") * held, 1, observed=np.zeros(6), dims="obs")
        return model

    axis = Axis("obs", 6, "exchangeable", (("y", 0), ("x", 0)), "", independent=True)
    y = np.random.default_rng(6).normal(size=(20, 6))
    moved = y[:, [2, 0, 1, 4, 3, 5]]
    one, other = (canonical(build, [axis], {"y": v})["y"] for v in (y, moved))
    assert_array_equal(one, other)
    for places in (slice(0, 3), slice(3, 5), slice(5, 6)):
        assert_array_equal(np.sort(one[:, places], 1), np.sort(y[:, places], 1))


def test_series_and_what_is_beyond_the_end_stay():
    axis = Axis("y[0]", 6, "sequence", (("y", 0),), "")
    y = np.random.default_rng(7).normal(size=(5, 6, 4))
    assert_array_equal(canonical(table, [axis], {"y": y})["y"], y)

    def sized() -> pm.Model:
        with pm.Model(coords={"obs": range(8)}) as model:
            pm.Normal("y", pm.Normal("mu"), 1, observed=np.zeros(8), dims="obs")
        return model

    spec, _, _ = read_model(sized(), None, None, {"obs": (2, 8)}, None)
    order = AnyOrder(spec, Structure((Axis("obs", 8, "exchangeable", (("y", 0),), ""),), {"y": (8,)}))
    lengths = np.array([3, 5])
    y = np.where(np.arange(8) < lengths[:, None], y[:2].reshape(2, -1)[:, :8], 0.0)
    found = order(DataSets({"y": y}, np.arange(2), True, {"obs": lengths})).values["y"]
    assert_array_equal(found == 0, y == 0)
    short = order(DataSets({"y": y[:1, :3][:, [2, 0, 1]]}, np.arange(1), True, {"obs": lengths[:1]})).values["y"]
    assert_array_equal(found[0, :3], short[0])  # however far it is padded


def test_gaps_go_with_their_values():
    spec, _, _ = read_model(table(), None, None, {}, {"y": 0.2})
    rng = np.random.default_rng(8)
    y, gaps = rng.normal(size=(20, 6, 4)), rng.uniform(size=(20, 6, 4)) < 0.2
    found = AnyOrder(spec, Structure(tuple(table_axes(True)), {"y": (6, 4)}))(
        DataSets({"y": y}, np.arange(20), True, missing={"y": gaps})
    )
    pairs = [
        np.sort(np.where(m, np.inf, v).reshape(20, -1)) for v, m in ((y, gaps), (found.values["y"], found.missing["y"]))
    ]
    assert_array_equal(*pairs)


def test_what_the_graph_never_reads_is_found():
    with pm.Model() as model:
        x = pm.Data("X", np.zeros((5, 4)))
        pm.Data("Z", np.zeros(3))
        all_of_it = pm.Data("W", np.zeros((5, 2)))
        index = pm.Data("which", 1).astype("int64")
        mean = x[:, [2, 0]].sum(1) + x[:, 0] + all_of_it[:, index] + pm.Normal("a")
        pm.Normal("y", mean, 1, observed=np.zeros(5))
    normal = pm.Normal.dist(0, 1)
    spec, _, _ = read_model(model, None, None, {"X": normal, "Z": normal, "W": normal}, None)
    found = unread_entries(spec)
    assert set(found) == {"X", "Z"} and found["Z"].all()
    assert_array_equal(found["X"], np.broadcast_to([False, True, False, True], (5, 4)))


# One voice


def test_what_is_out_of_range_and_novel_is_said_once(line_posterior, caplog):
    caplog.set_level(logging.WARNING, "pymc_amortized")
    far = [{"y": 1e4 * np.arange(4.0)}]
    dt = line_posterior.sample(far, batched=True, draws=10, correction=None, random_seed=1)
    assert dt.sample_stats["ood_pvalue"] < 0.01
    about = [r.getMessage() for r in caplog.records if "extrapolates" in r.getMessage() or "unlike" in r.getMessage()]
    assert len(about) == 1 and "unlike what the model simulates (ood_pvalue" in about[0]


# As many as are worth their time


def test_fewer_simulations_are_ranked_where_these_are_large():
    size = lambda values: SimpleNamespace(layout=SimpleNamespace(values=values))  # noqa: E731
    assert [enough(size(values), RANKED) for values in (0, 10, 128, 500, 10**6)] == [8192, 8192, 8192, 2097, 1024]


def test_a_reference_takes_no_more_than_that(line_posterior, monkeypatch):
    monkeypatch.setattr("pymc_amortized.novelty.reference.FEWEST", 50)
    monkeypatch.setattr("pymc_amortized.novelty.reference.VALUES", 0)
    made = [line_posterior.simulator(number, np.random.SeedSequence(number)) for number in (60, 70)]
    reference = learn_reference(*line_posterior.inputs.summarized_by(line_posterior.network), *made)
    assert len(reference.scores) == 50
