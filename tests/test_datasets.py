"""What a user may hand over as data, and what is said about the rest."""

import logging
import re
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from small_models import held_data

import pymc_amortized as pma
from pymc_amortized.approximators.posterior.sample import _without_large
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.graph.model.snapshot import take_snapshot

Y = held_data()["y"]


@pytest.fixture
def spec(mixed_posterior):
    return mixed_posterior.spec


def read(spec, **changes: Any) -> dict[str, np.ndarray]:
    """Read one data set."""
    return read_datasets(spec, {**held_data(), **changes}).one(spec, 0)


def stacked(n: int = 3) -> dict[str, np.ndarray]:
    """Several data sets as arrays."""
    return {name: np.stack([np.asarray(value)] * n) for name, value in held_data().items()}


def labelled() -> xr.Dataset:
    """Several data sets with labels."""
    dims = {"y": ["obs", "item"], "count": ["a"], "flag": ["b"], "level": [], "offset": ["item"]}
    arrays = {name: (["dataset", *dims[name]], value) for name, value in stacked().items()}
    arrays["level"] = (["dataset"], [0, 1, 2])
    coords = {"dataset": ["r", "s", "t"], "item": list("abc"), "obs": range(5)}
    return xr.Dataset(arrays, coords=coords)


def test_a_data_set_is_read_in_the_models_dtypes_and_shapes(spec):
    values = read(spec)
    assert {name: (v.dtype, v.shape) for name, v in values.items() if name not in spec.unchanging_values} == {
        "y": ("float64", (5, 3)),
        "count": ("int64", (4,)),
        "flag": ("int64", (2,)),
        "level": ("int64", ()),
        "offset": ("float64", (3,)),
    }
    assert values["level"] == 1


SAME = [
    ("y", np.zeros((5, 3), int), np.zeros((5, 3))),
    ("y", np.ones((5, 3), bool), np.ones((5, 3))),
    ("y", np.ones((5, 3), np.float32), np.ones((5, 3))),
    ("y", np.asfortranarray(Y), Y),
    ("y", Y[::-1][::-1], Y),
    ("y", Y.tolist(), Y),
    ("y", Y.astype(object), Y),
    ("y", pd.DataFrame(Y, columns=list("abc")), Y),
    ("y", np.ma.masked_array(Y), Y),
    ("y", xr.DataArray(Y, dims=("obs", "item")), Y),
    ("y", xr.DataArray(Y.T, dims=("item", "obs")), Y),
    ("count", [1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4]),
    ("count", (1, 2, 3, 4), [1, 2, 3, 4]),
    ("count", pd.Series([1, 2, 3, 4]), [1, 2, 3, 4]),
    ("count", pd.Series([1, 2, 3, 4], dtype="Int64"), [1, 2, 3, 4]),
    ("count", np.array([1, 2, 3, 4], np.uint8), [1, 2, 3, 4]),
    ("count", xr.DataArray([1, 2, 3, 4], dims="anything"), [1, 2, 3, 4]),
    ("flag", [True, False], [1, 0]),
    ("flag", [1.0, 0.0], [1, 0]),
    ("level", 2, 2),
    ("level", 2.0, 2),
    ("level", np.int64(2), 2),
    ("level", np.array(2), 2),
]


@pytest.mark.parametrize(("name", "value", "expected"), SAME)
def test_values_are_taken_in_many_forms(spec, name, value, expected):
    np.testing.assert_array_equal(read(spec, **{name: value})[name], expected)


def test_the_users_array_is_left_as_it_is(spec, mixed_posterior):
    y = Y.copy()
    y.flags.writeable = False
    mixed_posterior.sample({**held_data(), "y": y}, draws=5, random_seed=1)
    np.testing.assert_array_equal(y, Y)


BAD = [
    ("y", Y.T, ValueError, r"'y' has shape \(3, 5\); the model's is \(5, 3\) \(dims \('obs', 'item'\)\)"),
    ("y", Y[:4], ValueError, r"'y' has shape \(4, 3\)"),
    ("y", np.stack([Y, Y]), ValueError, "batched=True"),
    ("y", [], ValueError, r"'y' has shape \(0,\)"),
    ("y", np.empty((0, 3)), ValueError, r"'y' has shape \(0, 3\)"),
    ("y", None, ValueError, r"'y'"),
    ("y", 0.0, ValueError, r"'y' has shape \(\)"),
    ("y", [[1.0, 2.0], [3.0]], ValueError, "'y' cannot be read as an array.*pass batched=True"),
    ("y", "abc", TypeError, "'y' has dtype <U3; the model expects float64"),
    ("y", Y.astype(str), TypeError, "'y' has dtype"),
    ("y", Y.astype(complex), TypeError, "'y' has dtype complex128"),
    ("y", np.zeros((5, 3), "M8[s]"), TypeError, "'y' has dtype datetime64"),
    ("y", np.full((5, 3), {}), TypeError, "'y' holds objects that are not numbers"),
    ("y", np.where(Y == Y[1, 2], np.nan, Y), ValueError, r"'y' has NaN \(1 of 15, the first at \(1, 2\)\)"),
    ("y", np.where(Y == Y[1, 2], np.inf, Y), ValueError, "'y' has infinite values"),
    ("y", np.ma.masked_array(Y, np.eye(5, 3)), ValueError, r"'y' has NaN \(3 of 15"),
    ("count", [1.5, 2, 3, 4], ValueError, r"'count' must hold whole numbers; got 1.5 at \(0,\)"),
    ("count", [1, np.nan, 3, 4], ValueError, "'count' has NaN"),
    ("count", [1e30, 2, 3, 4], ValueError, "'count' has values that do not fit into int64"),
    ("count", np.full(4, 2**64 - 1, np.uint64), ValueError, "'count' has values that do not fit into int64"),
    ("count", pd.Series([1, 2, 3, None], dtype="Int64"), ValueError, "'count' has NaN"),
    ("count", pd.Series(list("abcd"), dtype="category"), TypeError, "'count'"),
    ("flag", [0, 2], ValueError, r"'flag' must hold 0 or 1; got 2 at \(1,\)"),
    ("flag", [0, -1], ValueError, "'flag' must hold 0 or 1"),
    ("flag", [0, 0.5], ValueError, "'flag' must hold 0 or 1"),
    ("level", -1, ValueError, "'level' must hold 0, 1, 2"),
    ("level", 0.5, ValueError, "'level' must hold 0, 1, 2"),
    ("level", [1], ValueError, r"'level' has shape \(1,\)"),
    ("offset", [0.0, np.nan, 0.0], ValueError, "'offset' has NaN"),
    ("offset", [0.0, 0.0], ValueError, r"'offset' has shape \(2,\)"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_values_that_do_not_fit_are_refused_by_name(spec, name, value, error, message):
    with pytest.raises(error, match=message):
        read(spec, **{name: value})


OUTSIDE = [("count", [-1, 2, 3, 4]), ("level", 3), ("level", 2**40)]


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_values_outside_the_support_are_refused_by_name(mixed_posterior, name, value):
    with pytest.raises(ValueError, match=f"{name!r} must hold whole numbers from 0"):
        mixed_posterior.sample({**held_data(), name: value}, draws=10, random_seed=1)


@pytest.mark.parametrize("correction", ["auto", None])
def test_values_outside_the_support_are_refused_corrected_or_not(mixed_posterior, correction):
    with pytest.raises(ValueError, match="'count'"):
        mixed_posterior.sample({**held_data(), "count": [-1, 2, 3, 4]}, draws=10, correction=correction, random_seed=1)


def test_extreme_values_are_said_to_lie_outside_and_give_finite_draws(mixed_posterior, caplog):
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        dt = mixed_posterior.sample(
            {**held_data(), "y": np.full((5, 3), 1e10)}, draws=10, correction=None, random_seed=1
        )
    assert re.search(r"simulated \(\S+ to \S+ for y\[\d, \d\], which is 1e\+10\), by \S+ times that range", caplog.text)
    assert np.isfinite(dt.posterior["mu"]).all()


def test_among_many_data_sets_it_is_said_which_lies_farthest_outside(mixed_posterior, caplog):
    one = held_data()
    many = {name: np.stack([value] * 4) for name, value in one.items()}
    many["y"] = np.array([1.0, 1e8, 1e10, 1.0])[:, None, None] * many["y"]
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        mixed_posterior.sample(many, batched=True, draws=10, correction=None, random_seed=1)
    assert "times that range in 2 of 4 data sets, most in 2: the network extrapolates" in caplog.text


NAMES = [
    ({"z": 1}, KeyError, "no data named 'z'"),
    ({1: 1}, KeyError, "no data named 1"),
    ({"mu": 1}, KeyError, "no data named 'mu'"),
    ({"x": np.zeros(5)}, KeyError, r"'x' was fixed when the posterior was trained.*context=\{'x': ...\}"),
    ({"y_data": Y}, KeyError, "'y' is given twice, once as 'y_data'"),
]


@pytest.mark.parametrize(("extra", "error", "message"), NAMES)
def test_unknown_fixed_and_repeated_names_are_refused(spec, extra, error, message):
    with pytest.raises(error, match=message):
        read_datasets(spec, {**held_data(), **extra})


@pytest.mark.parametrize("missing", ["y", "count", "level", "offset"])
def test_missing_names_are_named(spec, missing):
    given = {name: value for name, value in held_data().items() if name != missing}
    with pytest.raises(KeyError, match=f"values are missing for .*{missing!r}.*given"):
        read_datasets(spec, given)


def test_the_containers_name_stands_for_its_variable(spec):
    given = held_data()
    given["y_data"] = given.pop("y")
    np.testing.assert_array_equal(read_datasets(spec, given).one(spec, 0)["y"], Y)


@pytest.mark.parametrize("observed", [[1, 2], Y, 3, "y"])
def test_what_is_no_mapping_is_refused(spec, observed):
    with pytest.raises(TypeError, match="no single data set: pass batched=True|observed must map names"):
        read_datasets(spec, observed)


def test_no_data_means_those_the_model_held(spec):
    np.testing.assert_array_equal(read_datasets(spec, None).one(spec, 0)["count"], [1, 2, 0, 4])
    with pytest.raises(ValueError, match="observed is needed with batched=True"):
        read_datasets(spec, None, batched=True)


# xarray


def arranged(**kwargs: Any) -> xr.DataArray:
    """Return Y with its dims transposed and its labels in another order."""
    array = xr.DataArray(Y, dims=("obs", "item"), coords={"obs": range(5), "item": list("abc")})
    return array.isel(obs=[4, 3, 2, 1, 0], item=[2, 0, 1]).transpose("item", "obs").assign_coords(**kwargs)


def test_dims_and_labels_are_brought_into_the_models_order(spec):
    np.testing.assert_array_equal(read(spec, y=arranged())["y"], Y)


ODD = [
    (arranged(item=list("xyz")), "labels of dim 'item' are not the model's"),
    (arranged(item=list("aab")), "labels of dim 'item' are not the model's"),
    (arranged().isel(item=[0, 1]), "'item'"),
    (arranged().rename(item="thing"), r"'y' has dims \('thing', 'obs'\)"),
    (arranged().expand_dims("chain"), r"'y' has dims \('chain', 'item', 'obs'\)"),
    (arranged(obs=[str(i) for i in (4, 3, 2, 1, 0)]), "'y'.*labels of dim 'obs'"),
]


@pytest.mark.parametrize(("array", "message"), ODD)
def test_other_dims_and_labels_are_refused(spec, array, message):
    with pytest.raises(ValueError, match=message):
        read(spec, y=array)


def test_labels_equal_in_value_are_the_same_labels(spec):
    np.testing.assert_array_equal(read(spec, y=arranged(obs=[4.0, 3.0, 2.0, 1.0, 0.0]))["y"], Y)


def test_pandas_labels_in_another_order_are_not_ignored(spec):
    frame = pd.DataFrame(Y, columns=list("abc"))[["c", "b", "a"]]
    try:
        values = read(spec, y=frame)["y"]
    except ValueError as error:
        assert "'item'" in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(values, Y)


def test_a_trees_group_goes_back_in(mixed_posterior):
    dt = mixed_posterior.sample(held_data(), draws=5, random_seed=1)
    with pytest.raises(TypeError, match="observed is a DataTree"):
        mixed_posterior.sample(dt)
    offset = {"offset": held_data()["offset"]}
    again = mixed_posterior.sample({**dt.observed_data.data_vars, **offset}, draws=5, random_seed=1)
    np.testing.assert_array_equal(dt.posterior["mu"], again.posterior["mu"])


def test_what_the_message_about_a_tree_proposes_works(line_posterior):
    dt = line_posterior.sample(draws=5, random_seed=1)
    again = line_posterior.sample(dt.observed_data, draws=5, random_seed=1)
    np.testing.assert_array_equal(dt.posterior["slope"], again.posterior["slope"])


# many data sets


def test_batched_arrays(spec):
    datasets = read_datasets(spec, stacked(), batched=True)
    assert len(datasets) == 3
    np.testing.assert_array_equal(datasets.labels, [0, 1, 2])


def test_a_shared_context_is_given_once(spec):
    datasets = read_datasets(spec, {**stacked(), "offset": np.arange(3.0)}, batched=True)
    np.testing.assert_array_equal(datasets.values["offset"], np.broadcast_to(np.arange(3.0), (3, 3)))


BATCHES = [
    ({"count": np.ones((2, 4), int)}, "different numbers of data sets.*'count': 2"),
    ({"y": Y}, r"'y' has shape \(5, 3\).*after a leading axis of data sets"),
    ({name: value[:0] for name, value in stacked().items()}, "holds no data set"),
    ({"flag": np.array([[0, 1], [0, 1], [0, 3]])}, r"'flag' must hold 0 or 1; got 3 at \(2, 1\)"),
]


@pytest.mark.parametrize(("changes", "message"), BATCHES)
def test_batches_that_do_not_fit_are_refused(spec, changes, message):
    with pytest.raises(ValueError, match=message):
        read_datasets(spec, {**stacked(), **changes}, batched=True)


@pytest.mark.parametrize("change", ["as it is", "transposed", "other labels", "shared context"])
def test_a_dataset_with_a_dataset_dim(spec, change):
    data = labelled()
    if change == "transposed":
        data = data.transpose("obs", "item", ..., "dataset")
    if change == "other labels":
        data = data.isel(item=[2, 1, 0])
    if change == "shared context":
        data = data.assign(offset=data["offset"].isel(dataset=0, drop=True))
    datasets = read_datasets(spec, data, batched=True)
    assert list(datasets.labels) == ["r", "s", "t"]
    np.testing.assert_array_equal(datasets.values["y"], stacked()["y"])
    np.testing.assert_array_equal(datasets.values["level"], [0, 1, 2])


def test_labels_of_data_sets_reach_the_result(mixed_posterior):
    dts = mixed_posterior.sample(labelled(), batched=True, draws=5, chains=2, random_seed=1)
    assert list(dts.posterior["dataset"].values) == ["r", "s", "t"]
    assert dts.posterior["mu"].dims == ("dataset", "chain", "draw")
    assert dts.observed_data["y"].dims == ("dataset", "obs", "item")


def test_variables_whose_data_set_labels_differ_are_aligned_or_refused(spec):
    data = labelled()
    swapped = data["level"].isel(dataset=[1, 0, 2])
    given = {**data.data_vars, "level": swapped}
    try:
        datasets = read_datasets(spec, given, batched=True)
    except ValueError as error:
        assert "dataset" in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(datasets.values["level"], [0, 1, 2])


def test_a_dataset_without_batched_is_refused_and_one_of_it_taken(spec):
    with pytest.raises(ValueError, match="batched=True"):
        read_datasets(spec, labelled())
    assert len(read_datasets(spec, labelled().isel(dataset=0))) == 1


def test_data_sets_may_be_along_a_dim_of_any_name(spec):
    firms = labelled().rename(dataset="firm").assign_coords(firm=["a", "b", "c"])
    read = read_datasets(spec, firms, batched=True)
    assert read.labels.tolist() == ["a", "b", "c"] and read.equals(read_datasets(spec, labelled(), batched=True))


# arguments of sample

ARGUMENTS = [
    ({"draws": 0}, ValueError, "draws"),
    ({"draws": 1.5}, TypeError, "draws"),
    ({"draws": True}, TypeError, "draws"),
    ({"chains": 0}, ValueError, "chains"),
    ({"chains": "4"}, TypeError, "chains"),
    ({"random_seed": -1}, ValueError, "random_seed.*-1"),
    ({"random_seed": [1, -2]}, ValueError, "random_seed"),
    ({"random_seed": 1.5}, TypeError, "random_seed"),
    ({"random_seed": "a"}, (TypeError, ValueError), "random_seed"),
    ({"random_seed": True}, TypeError, "random_seed"),
    ({"random_seed": np.array([1.5])}, (TypeError, ValueError), "random_seed"),
    ({"var_names": "mu"}, TypeError, "var_names"),
    ({"var_names": []}, KeyError, "var_names"),
    ({"var_names": ["mu", "nope"]}, KeyError, r"var_names: \['nope'\]"),
    ({"var_names": ["y"]}, KeyError, r"var_names: \['y'\]"),
    ({"var_names": 5}, TypeError, "var_names"),
    ({"correction": "x"}, ValueError, "correction must be 'auto', 'psis', 'nuts' or None, got 'x'"),
    ({"correction": []}, (TypeError, ValueError), "correction"),
    ({"idata_kwargs": {"x": 1}}, ValueError, "idata_kwargs"),
    ({"idata_kwargs": 5}, TypeError, "idata_kwargs"),
    ({"batched": "yes"}, TypeError, "batched"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments_of_sample_are_checked(mixed_posterior, arguments, error, message):
    observed = stacked() if arguments.get("batched") is True else held_data()
    with pytest.raises(error, match=message):
        mixed_posterior.sample(observed, **{"draws": 5, **arguments})


@pytest.mark.parametrize(
    "seed", [0, np.int64(3), [1, 2], np.array([1, 2]), 2**200, np.random.default_rng(1), np.random.RandomState(1), None]
)
def test_seeds_of_many_kinds(mixed_posterior, seed):
    assert mixed_posterior.sample(held_data(), draws=5, random_seed=seed).posterior.sizes["draw"] == 5


def test_a_single_draw_of_a_single_variable(mixed_posterior):
    dt = mixed_posterior.sample(held_data(), draws=1, chains=1, var_names=["twice"], random_seed=1)
    assert list(dt.posterior.data_vars) == ["twice"]
    assert dt.posterior["twice"].shape == (1, 1)


@pytest.mark.parametrize("name", ["log_likelihood", "log_prior"])
def test_groups_are_added_whatever_variables_are_returned(mixed_posterior, name):
    dt = mixed_posterior.sample(
        held_data(), draws=3, chains=2, var_names=["twice"], idata_kwargs={name: True}, random_seed=1
    )
    assert list(dt.posterior.data_vars) == ["twice"]
    variable = "y" if name == "log_likelihood" else "mu"
    assert np.isfinite(dt[name][variable]).all()
    many = {k: np.stack([np.asarray(v)] * 2) for k, v in held_data().items()}
    dts = mixed_posterior.sample(many, batched=True, draws=3, chains=2, var_names=["twice"], idata_kwargs={name: True})
    assert list(dts.posterior.data_vars) == ["twice"]
    assert dts[name][variable].dims == ("dataset", *dt[name][variable].dims)
    with pytest.raises(KeyError, match="every free variable"):
        mixed_posterior.compute_log_likelihood(dts)


def test_a_batch_leaves_out_the_weights_of_proposals(mixed_posterior):
    many = {k: np.stack([np.asarray(v)] * 2) for k, v in held_data().items()}
    few = {"draws": 3, "chains": 2, "random_seed": 1}
    one = mixed_posterior.sample(held_data(), **few)
    assert one.sample_stats["proposal_log_weight"].size == one.sample_stats["num_proposals"]
    small = mixed_posterior.sample(many, batched=True, **few, dtype="float32")
    assert "proposal_log_weight" not in small.sample_stats
    assert small.posterior["mu"].dtype == "float32"
    kept = mixed_posterior.sample(many, batched=True, **few, idata_kwargs={"proposal_log_weight": True})
    assert kept.sample_stats["proposal_log_weight"].sizes["dataset"] == 2
    assert set(kept.posterior.data_vars) == set(one.posterior.data_vars)
    assert_allclose(small.posterior["mu"], kept.posterior["mu"], rtol=1e-6)


def test_a_batch_leaves_out_large_deterministics(caplog):
    with pm.Model(coords={"obs": range(5)}) as model:
        x = pm.Data("x", np.zeros(5), dims="obs")
        mu = pm.Normal("mu")
        mean = pm.Deterministic("mean", mu * x, dims="obs")
        pm.Deterministic("squared", mean**2)
        pm.Deterministic("twice", 2 * mu)
        pm.Normal("y", mean, 1, observed=np.zeros(5), dims="obs")
    spec = take_snapshot(model, context=["x"], sizes=[Range("obs", 2, 9)])
    names, data = ["mu", "mean", "squared", "twice"], {"x": np.zeros(8), "y": np.zeros(8)}
    one = {"mu": np.zeros(1), "mean": np.zeros((1, 8)), "squared": np.zeros((1, 8)), "twice": np.zeros(1)}
    assert _without_large(spec, names, one, data, 1000) == names
    with caplog.at_level(logging.INFO, "pymc_amortized"):
        assert _without_large(spec, names, one, data, 2 * 10**7) == ["mu", "twice"]
    assert "Left out of the result: mean, squared, which would take 2.6 GB; var_names=" in caplog.text


POINTS = [
    ({}, KeyError, "value variables are"),
    ({"mu": 1.0}, KeyError, "value variables are"),
    ({"mu": 1.0, "sigma": 1.0}, KeyError, "sigma_log__"),
    ({"mu": 1.0, "sigma_log__": np.zeros(2)}, ValueError, "leading shape"),
    ({"mu": "a", "sigma_log__": 0.0}, (TypeError, ValueError), "mu"),
    (3, TypeError, "point"),
]


@pytest.mark.parametrize(("point", "error", "message"), POINTS)
def test_points_of_logp_are_checked(mixed_posterior, point, error, message):
    with pytest.raises(error, match=message):
        mixed_posterior.logp(point, held_data())


@pytest.mark.parametrize("lead", [(), (2,), (3, 2), (0,)])
def test_logp_keeps_the_leading_shape(mixed_posterior, lead):
    point = {"mu": np.zeros(lead), "sigma_log__": np.zeros(lead)}
    assert np.shape(mixed_posterior.logp(point, held_data())) == lead


def test_the_posterior_is_immutable(mixed_posterior):
    assert isinstance(mixed_posterior, pma.AmortizedPosterior)
    with pytest.raises(AttributeError):
        mixed_posterior.spec = None
