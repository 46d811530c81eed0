"""Data as people have them: data frames by themselves, in lists, by label, in groups, of other libraries."""

import logging

import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.graph.data.reading import read_datasets

DAYS = pd.date_range("2026-01-01", periods=6, name="day")


class Table:
    """Columns of another library."""

    def __init__(self, frame):
        self._frame = frame
        self.columns = list(frame)

    def __dataframe__(self):
        raise NotImplementedError

    def __getitem__(self, name):
        return self._frame[name]


@pytest.fixture(scope="module")
def spec():
    with pm.Model(coords={"day": range(6)}) as model:
        x, size = pm.Data("x", np.zeros(6), dims="day"), pm.Data("size", 1.0)
        pm.Normal("y", pm.Normal("b") * x + size, 1, observed=np.zeros(6), dims="day")
    return read_model(model, None, None, {"day": (2, 10), "x": "resample", "size": pm.Normal.dist()}, None)[0]


@pytest.fixture
def shops():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"shop": list("aaabbbbbcc"), "x": rng.normal(size=10), "y": rng.normal(size=10), "note": "-"})
    return frame.assign(size=frame["shop"].map({"a": 1.0, "b": 2.0, "c": 3.0}))


def values(datasets, i):
    n = datasets.lengths["day"][i]
    return datasets.values["x"][i, :n], datasets.values["y"][i, :n], datasets.values["size"][i]


@pytest.mark.parametrize("form", ["groups", "mapping", "list", "other library"])
def test_frames_of_many_data_sets(spec, shops, form, caplog):
    parts = {name: part for name, part in shops.groupby("shop")}
    data = {
        "groups": shops.groupby("shop"),
        "mapping": parts,
        "list": list(parts.values()),
        "other library": {name: Table(part) for name, part in parts.items()},
    }[form]
    with caplog.at_level(logging.INFO, "pymc_amortized"):
        datasets = read_datasets(spec, data, batched=True)
    assert list(datasets.labels) == ([0, 1, 2] if form == "list" else ["a", "b", "c"])
    for i, part in enumerate(parts.values()):
        x, y, size = values(datasets, i)
        np.testing.assert_array_equal(x, part["x"])
        np.testing.assert_array_equal(y, part["y"])
        assert size == part["size"].iloc[0]
    (said,) = [record.getMessage() for record in caplog.records]
    ignored = "'note'" if form == "groups" else "'shop', 'note'"  # what groups are called by is no column of theirs
    assert said == f"Columns that the model has no data for are ignored: {ignored}."


def test_groups_by_a_list_of_one_column_have_its_labels(spec, shops):
    assert list(read_datasets(spec, shops.groupby(["shop"]), batched=True).labels) == ["a", "b", "c"]


def test_groups_of_two_columns_are_refused(spec, shops):
    with pytest.raises(ValueError, match=r"labels of several parts, such as \('a', '-'\); group by one column"):
        read_datasets(spec, shops.groupby(["shop", "note"]), batched=True)


def test_several_frames_need_batched(spec, shops):
    with pytest.raises(TypeError, match="no single data set: pass batched=True"):
        read_datasets(spec, shops.groupby("shop"))


def test_a_wrong_frame_is_named_by_its_label(spec, shops):
    with pytest.raises(KeyError, match="data set b: .*values are missing for \\['y'\\]"):
        read_datasets(spec, {"a": shops[:3], "b": shops[3:8].drop(columns="y")}, batched=True)


def test_a_number_of_the_model_cannot_differ_between_rows(spec, shops):
    with pytest.raises(ValueError, match="'size' has shape"):
        read_datasets(spec, shops)


def test_dates_of_rows_stay_dates(spec, shops):
    frame = shops[:6].assign(size=1.0).set_index(DAYS)
    datasets = read_datasets(spec, frame)
    np.testing.assert_array_equal(datasets.coords["day"], DAYS.to_numpy())


def test_mappings_by_variable_may_hold_frames():
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("b"), 1, observed=np.zeros(3))
    spec = read_model(model, None, None, {}, None)[0]
    rows = pd.DataFrame(np.arange(6.0).reshape(2, 3), ["one", "two"])
    datasets = read_datasets(spec, {"y": rows}, batched=True)
    np.testing.assert_array_equal(datasets.values["y"], rows)
    assert list(datasets.labels) == ["one", "two"]


def test_missing_numbers_of_pandas(shops):
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("b"), 1, observed=np.zeros(3))
    spec = read_model(model, None, None, {}, {"y": 0.3})[0]
    frame = pd.DataFrame({"y": pd.array([1, None, 3], dtype="Int64")})
    datasets = read_datasets(spec, frame)
    assert datasets.missing["y"].tolist() == [[False, True, False]]
    assert datasets.values["y"][0, [0, 2]].tolist() == [1.0, 3.0]


@pytest.fixture(scope="module")
def posterior():
    with pm.Model(coords={"side": ["left", "right"]}) as model:
        mu = pm.Normal("mu", 0, 1, dims="side")
        pm.Deterministic("sum", mu.sum())
        pm.Normal("y", mu, 1, observed=np.zeros((3, 2)))
    return pma.fit_posterior(model, training=pma.Training(num_steps=2), random_seed=1, progressbar=False)


ROWS = dict(zip("abcde", np.random.default_rng(2).normal(size=(5, 3, 2)), strict=True))


def test_a_table_is_the_summary_of_each_data_set(posterior):
    data = {name: {"y": rows} for name, rows in ROWS.items()}
    table = posterior.table(data, draws=100, chains=2, random_seed=3)
    assert list(table.index) == list("abcde")
    assert list(table.columns)[:5] == [f"mu[left] {what}" for what in ("mean", "sd", "5%", "50%", "95%")]
    assert {"mu[right] sd", "stage", "pareto_k", "ood_pvalue"} <= set(table.columns)
    expected = np.array([rows.sum(axis=0) / 4 for rows in ROWS.values()])
    np.testing.assert_allclose(table[["mu[left] mean", "mu[right] mean"]], expected, atol=0.2)
    np.testing.assert_allclose(table["mu[left] sd"], 0.5, rtol=0.25)


def test_a_table_of_a_result_that_is_there(posterior):
    dts = posterior.sample({"y": np.stack(list(ROWS.values()))}, batched=True, draws=50, random_seed=3)
    table = posterior.table(dts, var_names=["sum"], quantiles=[0.25])
    assert list(table.columns)[:3] == ["sum mean", "sum sd", "sum 25%"]
    np.testing.assert_allclose(table["sum mean"], dts.posterior["sum"].mean(("chain", "draw")))
    assert len(posterior.table(posterior.sample({"y": ROWS["a"]}, draws=50, random_seed=3))) == 1


def test_results_go_into_files(posterior, tmp_path):
    dts = posterior.sample({"y": np.stack(list(ROWS.values()))}, batched=True, draws=50, random_seed=3)
    dts.to_netcdf(tmp_path / "results.nc")
    with xr.open_datatree(tmp_path / "results.nc") as back:
        assert back.equals(dts)
        assert back.posterior.attrs.keys() == dts.posterior.attrs.keys()


def test_tables_are_made_in_blocks(posterior, monkeypatch):
    monkeypatch.setattr("pymc_amortized.approximators.posterior.workflow.MOST_DRAWN", 800)
    y = np.stack(list(ROWS.values()))
    table = posterior.table({"y": y}, draws=100, chains=2, random_seed=3)
    np.testing.assert_allclose(table["mu[left] mean"], y.sum(axis=1)[:, 0] / 4, atol=0.2)
    assert list(table.index) == list(range(5))


def test_quantiles_of_a_table_are_shares(posterior):
    with pytest.raises(ValueError, match="quantiles must lie between 0 and 1"):
        posterior.table({"y": np.stack(list(ROWS.values()))}, quantiles=[5])
