"""Labels of data are held against the model's: any order of them is the same data, other labels are an error."""

import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr

from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.graph.data.reading import read_datasets

DAYS = pd.date_range("2024-01-01", periods=4)
LABELS = {
    "dates": DAYS,
    "dates with a zone": DAYS.tz_localize("UTC"),
    "periods": pd.period_range("2024-01", periods=4, freq="M"),
    "integers": pd.Index([10, 20, 40, 30]),
    "range": pd.RangeIndex(4),
    "numbers": pd.Index([0.5, 1.5, 2.5, 3.5]),
    "text": pd.Index(list("abcd")),
    "categories": pd.CategoricalIndex(list("abcd"), categories=list("dcba")),
    "truth and text": pd.Index([True, False, "c", "d"], dtype=object),
}
OTHERS = [3, 0, 2, 1]
Y, X = np.arange(8.0).reshape(4, 2), np.arange(4.0) + 10


def spec_of(labels):
    with pm.Model(coords={"row": labels, "side": ["left", "right"]}) as model:
        x = pm.Data("x", np.zeros(4), dims="row")
        pm.Normal("y", pm.Normal("mu") * x[:, None], 1, observed=np.zeros((4, 2)), dims=("row", "side"))
    return read_model(model, None, None, {"x": "resample"}, None)[0]


@pytest.fixture(scope="module", params=LABELS)
def labelled(request):
    return LABELS[request.param], spec_of(LABELS[request.param])


def read(spec, y, x=X, **kwargs):
    values = read_datasets(spec, {"y": y, "x": x}, **kwargs).values
    return values["y"], values["x"]


def test_any_order_of_labels_is_the_models(labelled):
    labels, spec = labelled
    y = pd.DataFrame(Y, labels, ["left", "right"])
    x = pd.Series(X, labels)
    for frame, series in [(y, x), (y.iloc[OTHERS, ::-1], x.iloc[OTHERS]), (y.iloc[::-1], X)]:
        for got, wanted in zip(read(spec, frame, series), (Y, X), strict=True):
            np.testing.assert_array_equal(got[0], wanted)
        several = [{"y": frame, "x": series}, {"y": frame, "x": series}]
        np.testing.assert_array_equal(read_datasets(spec, several, batched=True).values["y"], [Y, Y])
        np.testing.assert_array_equal(read(spec, [frame, frame], [series, series], batched=True)[0], [Y, Y])
    two = xr.DataArray(y.iloc[OTHERS], dims=("row", "side"), coords={"row": labels[OTHERS], "side": ["left", "right"]})
    np.testing.assert_array_equal(read(spec, two)[0][0], Y)
    np.testing.assert_array_equal(read(spec, np.stack([Y, Y]), pd.DataFrame([x, x]), batched=True)[1], [X, X])


def test_other_labels_are_refused(labelled):
    labels, spec = labelled
    other = [pd.date_range("2023-01-01", periods=4), pd.Index(list("wxyz")), pd.Index([7, 8, 9, 10])]
    other += [labels[[0, 0, 1, 2]], pd.MultiIndex.from_product([["a", "b"], [1, 2]])]
    for wrong in other:
        with pytest.raises(ValueError, match="'x': the labels of dim 'row'"):
            read(spec, Y, pd.Series(X, wrong))
        with pytest.raises(ValueError, match="'y': the labels of dim 'row'"):
            read(spec, pd.DataFrame(Y, wrong))
        with pytest.raises(ValueError, match="'x': the labels of dim 'row'"):
            read(spec, [Y, Y], [pd.Series(X, wrong)] * 2, batched=True)
        with pytest.raises(ValueError, match="'x': the labels of dim 'row'"):
            read(spec, np.stack([Y, Y]), pd.DataFrame([X, X], columns=wrong), batched=True)
    with pytest.raises(ValueError, match="the labels of dim 'row' are not the model's.*3 given for 4"):
        read(spec, Y, pd.Series(X[:3], labels[:3]))


def test_numbers_that_pandas_gives_are_no_labels_beside_text_and_dates():
    for kind in ("dates", "text", "categories", "numbers"):
        np.testing.assert_array_equal(read(spec_of(LABELS[kind]), pd.DataFrame(Y), pd.Series(X))[1][0], X)
    with pytest.raises(ValueError, match=r"missing \['10', '20'.*pass .to_numpy\(\) to take values by position"):
        read(spec_of(LABELS["integers"]), Y, pd.Series(X))
    with pytest.raises(ValueError, match="the labels of dim 'row'"):  # numbers that were chosen
        read(spec_of(LABELS["dates"]), Y, pd.Series(X)[::-1])


def test_a_row_of_a_list_is_aligned():
    with pm.Model(coords={"row": DAYS, "side": ["left", "right"]}) as model:
        pm.Normal("y", pm.Normal("mu"), 1, observed=np.zeros((2, 4)), dims=("side", "row"))
    spec = read_model(model, None, None, {}, None)[0]
    row = pd.Series(X, DAYS)
    np.testing.assert_array_equal(read_datasets(spec, {"y": [row[::-1], row]}).values["y"][0], [X, X])
    with pytest.raises(ValueError, match="'y': the labels of dim 'row'"):
        read_datasets(spec, {"y": [row, pd.Series(X, DAYS + pd.Timedelta(1, "D"))]})


def test_labels_that_the_model_holds_twice_are_only_taken_as_they_are():
    spec = spec_of(list("abca"))
    np.testing.assert_array_equal(read(spec, Y, pd.Series(X, list("abca")))[1][0], X)
    with pytest.raises(ValueError, match="those of the model hold 'a' more than once"):
        read(spec, Y, pd.Series(X, list("aabc")))


@pytest.fixture(scope="module")
def unlabelled():
    with pm.Model() as model:
        x = pm.Data("x", np.zeros(4), dims="row")
        z = pm.Data("z", 0.0)
        pm.Normal("y", pm.Normal("mu") * x + z, 1, observed=np.zeros(4), dims="row")
    return read_model(model, None, None, {"x": "resample", "z": pm.Normal.dist()}, None)[0]


def test_variables_agree_on_labels_that_the_model_does_not_know(unlabelled):
    x = pd.Series(X, DAYS)
    read_datasets(unlabelled, {"x": x, "y": x, "z": 0.0})
    with pytest.raises(ValueError, match="has other labels of 'row', or another order of them"):
        read_datasets(unlabelled, {"x": x, "y": x[::-1], "z": 0.0})


def test_labels_of_data_sets_come_from_pandas_too(unlabelled):
    frame, z = pd.DataFrame(np.zeros((2, 4)), ["one", "two"]), pd.Series([1.0, 2.0], ["one", "two"])
    read_in = read_datasets(unlabelled, {"x": frame, "y": frame, "z": z}, batched=True)
    assert read_in.labels.tolist() == ["one", "two"] and read_in.values["z"].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="other labels of 'dataset'"):
        read_datasets(unlabelled, {"x": frame, "y": frame, "z": z[::-1]}, batched=True)
