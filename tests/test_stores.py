"""Simulations and results in stores: the same numbers, whoever makes them, and what is refused."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import pytest
import torch
import xarray as xr

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.approximators.fitting.seeds import Stage, stage_seed
from pymc_amortized.approximators.posterior import sample as sample_module
from pymc_amortized.approximators.simulations import given
from pymc_amortized.approximators.simulations.given import StoredSimulations, read_given, read_simulations
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.guarded import MOST_IN_A_ROW
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.stores import store as store_module
from pymc_amortized.stores.batches import BlockBatches
from pymc_amortized.stores.scratch import Scratch
from pymc_amortized.stores.store import Manifest, Store

pytest.importorskip("zarr")
pytestmark = [  # pm.Simulator calls PyTensor in a way that PyTensor has deprecated
    pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding"),
    pytest.mark.filterwarnings("ignore:Calling a RandomVariable without"),
]
INTERPRETED: dict[str, Any] = {"compile_kwargs": {"mode": "FAST_COMPILE"}}
QUIET: dict[str, Any] = {"progressbar": False}


def line() -> pm.Model:
    with pm.Model(coords={"obs": range(6)}) as model:
        mu, sigma = pm.Normal("mu", 0, 2), pm.HalfNormal("sigma", 1)
        pm.Deterministic("twice", 2 * mu)
        pm.Normal("y", mu, sigma, observed=np.zeros(6), dims="obs")
    return model


def of_any_size() -> pm.Model:
    with pm.Model(coords={"obs": range(6)}) as model:
        x = pm.Data("x", np.arange(6.0), dims="obs")
        rate = pm.Normal("rate", 0, 0.5)
        pm.Poisson("n", pm.math.exp(rate + 0.1 * x), observed=np.ones(6, dtype=int), dims="obs")
        pm.Normal("y", rate, 1, observed=np.zeros(6), dims="obs")
    return model


def ordered() -> pm.Model:
    with pm.Model() as model:
        cut = pm.Normal("cut", 0, 1, shape=2, transform=pm.distributions.transforms.ordered, initval=[-1, 1])
        pm.Normal("y", cut, 1, observed=np.zeros(2))
    return model


ANY_SIZE: dict[str, Any] = {"context": {"obs": (3, 9), "x": "resample"}, "missing": {"y": 0.2}}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "line": (line, {}),
    "sizes, gaps, counts and covariates": (of_any_size, ANY_SIZE),
    "draws that are dropped": (ordered, {}),
}


def assert_same(one: xr.DataTree, other: xr.DataTree) -> None:
    assert set(one.children) == set(other.children)
    for name, group in one.children.items():
        xr.testing.assert_equal(group.to_dataset(), other[name].to_dataset().load())


@pytest.mark.parametrize("name", CASES)
def test_simulations_are_the_same_whoever_makes_them(name, tmp_path, monkeypatch):
    build, kwargs = CASES[name]
    model, kwargs = build(), kwargs | INTERPRETED | QUIET | {"chunk": 20, "random_seed": 1}
    alone = pma.simulate(model, 70, **kwargs)
    stored = pma.simulate(model, 70, store=tmp_path / "a", **kwargs)
    assert_same(alone, stored)
    assert stored.prior.attrs["simulations_attempted"] == alone.prior.attrs["simulations_attempted"]
    # chunks in another order
    missing = Store.missing
    monkeypatch.setattr(Store, "missing", lambda self: missing(self)[::-1])
    assert_same(alone, pma.simulate(model, 70, store=tmp_path / "b", **kwargs))


def test_simulations_are_the_same_in_other_processes(tmp_path):
    kwargs = INTERPRETED | QUIET | {"chunk": 20, "random_seed": 1}
    assert_same(pma.simulate(line(), 70, **kwargs), pma.simulate(line(), 70, store=tmp_path / "a", cores=2, **kwargs))


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_is_what_was_simulated(name, tmp_path):
    build, kwargs = CASES[name]
    model = build()
    tree = pma.simulate(model, 70, store=tmp_path / "a", chunk=20, random_seed=1, **kwargs, **INTERPRETED, **QUIET)
    spec, sources, gaps = read_model(model, None, None, kwargs.get("context", {}), kwargs.get("missing"))
    read = read_given(str(tmp_path / "a"), spec, sources, INTERPRETED["compile_kwargs"], gaps)
    expected = read_simulations(spec, tree, INTERPRETED["compile_kwargs"])
    np.testing.assert_array_equal(read.unconstrained, expected.unconstrained)
    for field in ("data", "lengths", "missing"):
        ours, theirs = getattr(read, field), getattr(expected, field)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[k], theirs[k], equal_nan=ours[k].dtype.kind == "f") for k in ours)


def test_a_subset_of_parameters_is_trained_on_a_store(tmp_path):
    pma.simulate(line(), 200, store=tmp_path / "a", random_seed=1, **INTERPRETED, **QUIET)
    options = pma.Training(num_steps=10, batch_size=32)
    posterior = pma.fit_posterior(
        line(), parameters=["mu"], simulations=tmp_path / "a", training=options, random_seed=1, **INTERPRETED, **QUIET
    )
    assert [p.name for p in posterior.spec.parameters] == ["mu"]


@pytest.mark.parametrize("sketch", [False, True])
def test_training_on_disk_is_as_good_as_in_memory(tmp_path, monkeypatch, sketch):
    pma.simulate(line(), 3000, store=tmp_path / "a", random_seed=1, **INTERPRETED, **QUIET)
    options: dict[str, Any] = {"training": pma.Training(num_steps=150, batch_size=64), "sketch": sketch}
    options |= QUIET | {"simulations": tmp_path / "a", "random_seed": 1}
    in_memory = pma.fit_posterior(line(), **options)
    monkeypatch.setattr(given, "IN_MEMORY", 0)
    monkeypatch.setattr(given, "BLOCK_VALUES", 2000)
    on_disk = pma.fit_posterior(line(), **options)
    assert on_disk.provenance.simulations == 2400  # the first fifth tells statistics, and judges
    assert on_disk.provenance.held_out_loss == pytest.approx(in_memory.provenance.held_out_loss, abs=0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "what was prepared is removed"


def test_data_sets_of_different_lengths_are_trained_on_from_disk(tmp_path, monkeypatch):
    pma.simulate(of_any_size(), 1000, store=tmp_path / "a", random_seed=1, **ANY_SIZE, **INTERPRETED, **QUIET)
    options = {"training": pma.Training(num_steps=50, batch_size=32), "sketch": False, "random_seed": 1} | QUIET
    losses = []
    for values in (2**27, 0):
        monkeypatch.setattr(given, "IN_MEMORY", values)
        monkeypatch.setattr(given, "BLOCK_VALUES", 200)  # the longest of a block may be shorter than others
        posterior = pma.fit_posterior(of_any_size(), simulations=tmp_path / "a", **ANY_SIZE, **options)
        losses.append(posterior.provenance.held_out_loss)
    assert losses[0] == pytest.approx(losses[1], abs=0.4)


def test_blocks_are_filled_up_as_if_prepared_together():
    blocks = [(torch.ones(6, 1), {"y": torch.ones(6, n, 2), "mask:obs": torch.ones(6, n)}) for n in (2, 4, 3)]
    source = BlockBatches(blocks, 6, seed=1)
    taken = [source.next()[1] for _ in range(3)]
    source.close()
    assert {batch["y"].shape for batch in taken} == {(6, 4, 2)}
    masks, values = (torch.cat([batch[name] for batch in taken]) for name in ("mask:obs", "y"))
    assert sorted(masks.sum(1).tolist()) == [2.0] * 6 + [3.0] * 6 + [4.0] * 6
    assert torch.equal(values[..., 0], masks)


def test_what_killed_processes_prepared_is_removed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from pymc_amortized.stores.scratch import Scratch;"
        "held = Scratch(Path(sys.argv[1])); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "store"], check=False)
    (abandoned,) = tmp_path.iterdir()
    assert abandoned.name.startswith("store.prepared-")
    one, other = Scratch(tmp_path / "store"), Scratch(tmp_path / "store")
    assert sorted(tmp_path.iterdir()) == sorted([one.path, other.path]), "those in use stay"
    one.remove(), other.remove()
    assert not list(tmp_path.iterdir())


def test_no_chunk_holds_what_a_training_with_the_same_seed_simulates():
    chunks = {Manifest("simulations", "draw", 40, 10, (1,)).seed(k).generate_state(4).tobytes() for k in range(8)}
    stages = {
        stage_seed((1,), stage, *path).generate_state(4).tobytes() for stage in Stage for path in ((), (0,), (1,))
    }
    assert not chunks & stages and len(chunks) == 8
    drawn = pma.simulate(line(), 60, chunk=20, random_seed=1, **INTERPRETED).prior["mu"]
    spec, sources, gaps = read_model(line(), None, None, {}, None)
    simulator = Simulator(spec, context=ContextSampler(spec, sources, gaps), **INTERPRETED)
    for stage in (Stage.PILOT, Stage.HELD_OUT):
        assert not np.isin(drawn, simulator(60, stage_seed((1,), stage)).variables["mu"]).any()


def test_blocks_are_taken_once_an_epoch_and_go_on(tmp_path):
    def batches() -> BlockBatches:
        blocks = [(torch.arange(k, k + 20.0)[:, None], {"y": torch.arange(k, k + 20.0)}) for k in range(0, 200, 20)]
        return BlockBatches(blocks, 10, seed=1, beside=tmp_path / "store")

    source = batches()
    taken = [source.next() for _ in range(47)]
    for epoch in (taken[:20], taken[20:40]):
        assert torch.cat([z[:, 0] for z, _ in epoch]).sort().values.tolist() == list(range(200))
    assert all(torch.equal(z[:, 0], encoded["y"]) for z, encoded in taken)
    assert not torch.equal(taken[0][0], taken[20][0]), "each epoch has an order of its own"
    again = batches()
    again.restore({"drawn": 31}, exactly=True)
    assert all(torch.equal(again.next()[0], z) for z, _ in taken[31:])
    source.close(), again.close()
    assert not list(tmp_path.iterdir())


# Results


@pytest.fixture(scope="module")
def posterior() -> pma.AmortizedPosterior:
    options = pma.Training(num_steps=30, batch_size=64)
    return pma.fit_posterior(line(), training=options, random_seed=1, **QUIET)


@pytest.fixture(scope="module")
def of_sizes() -> pma.AmortizedPosterior:
    options = pma.Training(num_steps=30, batch_size=64)
    return pma.fit_posterior(of_any_size(), training=options, random_seed=1, **ANY_SIZE, **QUIET)


FEW: dict[str, Any] = {"draws": 20, "chains": 2, "correction": "psis", "batched": True} | QUIET


def some(number: int = 8) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(number, 6))


def test_a_chunk_is_what_sample_gives(posterior, tmp_path):
    stored = posterior.sample({"y": some()}, store=tmp_path / "a", random_seed=3, **FEW)
    seed = np.random.default_rng(np.random.SeedSequence([3], spawn_key=(*b"posteriors", 0)))
    alone = posterior.sample({"y": some()}, random_seed=seed, **FEW)
    for name, values in alone.posterior.data_vars.items():
        np.testing.assert_array_equal(stored.posterior[name], values)
    for name in ("pareto_k", "lp", "log_q", "stage", "ood_pvalue"):
        np.testing.assert_array_equal(stored.sample_stats[name], alone.sample_stats[name])
    np.testing.assert_array_equal(stored.observed_data["y"], some())


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(sample_module, "LARGEST_CHUNK", 3)


@pytest.mark.usefixtures("small_chunks")
def test_results_are_the_same_from_whatever_holds_the_data(posterior, tmp_path):
    dates = pd.date_range("2026-01-01", periods=8)
    dataset = xr.Dataset({"y": (("dataset", "obs"), some())}, coords={"dataset": dates})
    dataset.chunk(dataset=5).to_zarr(tmp_path / "data", zarr_format=2)
    first = posterior.sample({"y": some()}, store=tmp_path / "a", random_seed=3, **FEW)
    for k, chunks in enumerate(({}, None)):
        lazy = xr.open_zarr(tmp_path / "data", chunks=chunks)
        stored = posterior.sample(lazy, store=tmp_path / f"b{k}", random_seed=3, **FEW)
        np.testing.assert_array_equal(stored.posterior["mu"], first.posterior["mu"])
        assert stored.posterior.indexes["dataset"].equals(dates)
    frames = {f"shop {i}": pd.DataFrame({"y": y}) for i, y in enumerate(some())}
    stored = posterior.sample(frames, store=tmp_path / "c", random_seed=3, **FEW)
    np.testing.assert_array_equal(stored.posterior["mu"], first.posterior["mu"])
    assert stored.posterior["dataset"].to_numpy().tolist() == list(frames)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("chunks", [{}, None])
def test_the_dim_of_data_sets_may_have_any_name(posterior, tmp_path, chunks):
    shops = [f"shop {i}" for i in range(8)]
    xr.Dataset({"y": (("shop", "obs"), some())}, coords={"shop": shops}).to_zarr(tmp_path / "data", zarr_format=2)
    lazy = xr.open_zarr(tmp_path / "data", chunks=chunks)
    stored = posterior.sample(lazy, store=tmp_path / "a", random_seed=3, **FEW)
    assert stored.posterior["dataset"].to_numpy().tolist() == shops
    in_memory = posterior.sample({"y": lazy["y"].load().transpose("obs", "shop")}, random_seed=3, **FEW)
    assert in_memory.posterior["dataset"].to_numpy().tolist() == shops
    np.testing.assert_array_equal(in_memory.observed_data["y"], some())


@pytest.mark.usefixtures("small_chunks")
def test_a_value_that_cannot_be_read_is_named_before_anything_is_written(posterior, tmp_path):
    y = some()
    y[6, 2] = np.nan
    data = xr.Dataset({"y": (("dataset", "obs"), y)})
    with pytest.raises(ValueError, match=r"data set 6: 'y' has NaN \(1 of 6, the first at \(0, 2\)\)"):
        posterior.sample(data, store=tmp_path / "a", **FEW)
    with pytest.raises(ValueError, match="data set f: 'y' has NaN"):
        posterior.sample(data.assign_coords(dataset=list("fgabcdfe")), store=tmp_path / "a", **FEW)
    assert not list(tmp_path.iterdir())
    posterior.sample(data.fillna(0.0), store=tmp_path / "a", **FEW)


@pytest.mark.usefixtures("small_chunks")
def test_doubts_of_chunks_are_said_once_of_all(posterior, tmp_path, caplog):
    y = some()
    y[1], y[4:6] = 1e3, 3e3
    with caplog.at_level("WARNING", logger="pymc_amortized"):
        stored = posterior.sample({"y": y}, store=tmp_path / "a", random_seed=3, **FEW)
    told = {doubt["kind"]: doubt for doubt in json.loads(stored.sample_stats.attrs["doubts"])}
    finding = told["extrapolation"]["finding"]
    assert finding.startswith("3 of 8 data sets (1, 4, 5); in the worst chunk: Some values of 'y'")
    assert "which is 3000" in told["extrapolation"]["finding"]
    assert set(told["novelty"]["datasets"]) == {1, 4, 5}
    for kind, doubt in told.items():
        (line,) = [record for record in caplog.messages if record.endswith(f"[{kind}]")]
        assert line.startswith(doubt["finding"])


@pytest.mark.usefixtures("small_chunks")
def test_data_sets_of_different_lengths(of_sizes, tmp_path):
    rng = np.random.default_rng(1)
    sets = [{"x": rng.normal(size=n), "n": rng.poisson(1, n), "y": rng.normal(size=n)} for n in (3, 4, 3, 9, 5, 9, 4)]
    sets[3]["y"][2] = np.nan
    stored = of_sizes.sample(sets, store=tmp_path / "a", random_seed=3, **FEW)
    assert stored.observed_data["n"].shape == (7, 9)
    for i, one in enumerate(sets):
        length = len(one["n"])
        for name in ("n", "y"):
            values = stored.observed_data[name][i].to_numpy()
            np.testing.assert_array_equal(values[:length], one[name])
            assert np.isnan(values[length:]).all()
        assert stored.constant_data["obs_length"][i] == length
    # a data set is taken out of the store as out of a result
    tree = of_sizes.one_dataset(stored.load(), 5)
    assert of_sizes.sample_posterior_predictive(tree, random_seed=1).posterior_predictive["n"].shape == (2, 20, 9)
    with pytest.raises(ValueError, match=r"cut by one_dataset: where \['y'\] are missing is not in it"):
        of_sizes.sample_posterior_predictive(of_sizes.one_dataset(stored, 3))


@pytest.mark.usefixtures("small_chunks")
def test_statistics_of_nuts_are_kept_where_one_chunk_has_them(posterior, tmp_path):
    y = some(4)
    y[3] = [40.0, -60.0, 80.0, 0.0, 30.0, -90.0]  # far from all that was simulated
    kwargs = FEW | {"correction": "auto", "max_time": None, "draws": 200}
    stored = posterior.sample({"y": y}, store=tmp_path / "a", random_seed=3, **kwargs)
    stages = stored.sample_stats["stage"].to_numpy()
    energy = np.isfinite(stored.sample_stats["energy"].to_numpy()).all(axis=(1, 2))
    assert not energy[:3].any() and energy[3] == (stored.sample_stats["rung"].to_numpy()[3] == "nuts")
    assert (stages[:3] == "psis").all()


@pytest.mark.usefixtures("small_chunks")
def test_results_are_thinned_reduced_and_narrowed(posterior, tmp_path):
    full = posterior.sample({"y": some()}, store=tmp_path / "a", random_seed=3, **FEW)
    thin = posterior.sample({"y": some()}, store=tmp_path / "b", random_seed=3, thin=5, **FEW)
    xr.testing.assert_equal(thin.posterior["mu"].load(), full.posterior["mu"][..., ::5].load())
    narrow = posterior.sample({"y": some()}, store=tmp_path / "c", random_seed=3, dtype="float32", **FEW)
    assert narrow.posterior["mu"].dtype == np.float32
    np.testing.assert_allclose(narrow.posterior["mu"], full.posterior["mu"], rtol=1e-6)
    assert {v.dtype for v in narrow.sample_stats.data_vars.values() if "draw" in v.dims} == {np.dtype("f4")}
    reduced = posterior.sample({"y": some()}, store=tmp_path / "d", random_seed=3, reduce="mean sd quantiles", **FEW)
    draws = full.posterior["mu"].to_numpy().reshape(8, -1)
    for label, expected in {
        "mean": draws.mean(1),
        "sd": draws.std(1, ddof=1),
        "5%": np.quantile(draws, 0.05, axis=1),
        "50%": np.median(draws, axis=1),
        "95%": np.quantile(draws, 0.95, axis=1),
    }.items():
        np.testing.assert_allclose(reduced["summary"]["mu"].sel(statistic=label), expected)
    assert "log_q" not in reduced.sample_stats and "pareto_k" in reduced.sample_stats


def test_numbers_of_numpy_are_taken(posterior, tmp_path):
    kwargs = FEW | {"draws": np.int64(20), "max_nuts": np.int64(2), "max_time": np.float64(9), "correction": "auto"}
    kwargs |= {"idata_kwargs": {"log_likelihood": np.True_}, "var_names": np.array(["mu"]), "store": tmp_path / "a"}
    stored = posterior.sample({"y": some()}, random_seed=3, **kwargs)
    assert list(stored.posterior.data_vars) == ["mu"] and stored["log_likelihood"]["y"].shape == (8, 2, 20, 6)


@pytest.mark.usefixtures("small_chunks")
def test_all_chunks_hold_the_same_variables(tmp_path, monkeypatch):
    """Large deterministics are left out by the number of draws and by lengths, which differ between chunks."""
    with pm.Model(coords={"obs": range(6)}) as model:
        rate = pm.Normal("rate", 0, 0.5)
        curve = pm.Deterministic("curve", rate + pm.Data("x", np.arange(6.0), dims="obs"), dims="obs")
        pm.Normal("y", curve, 1, observed=np.zeros(6), dims="obs")
    sizes = {"context": {"obs": (3, 9), "x": "resample"}}
    options = pma.Training(num_steps=5, batch_size=32)
    posterior = pma.fit_posterior(model, training=options, sketch=False, random_seed=1, **sizes, **INTERPRETED, **QUIET)
    monkeypatch.setattr(sample_module, "MOST_BYTES", 8 * 40 * 9 * 2)  # of 40 draws of two such data sets
    for name, lengths in {"a": (9, 9, 9, 9), "b": (3, 3, 3, 9, 9, 9)}.items():
        sets = [{"x": np.arange(n * 1.0), "y": np.zeros(n)} for n in lengths]
        stored = posterior.sample(sets, store=tmp_path / name, random_seed=3, **FEW)
        assert list(stored.posterior.data_vars) == ["rate"]


# What is refused


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def other() -> pm.Model:
    with pm.Model(coords={"obs": range(6)}) as model:
        mu, sigma = pm.Normal("mu", 0, 3), pm.HalfNormal("sigma", 1)
        pm.Deterministic("twice", 2 * mu)
        pm.Normal("y", mu, sigma, observed=np.zeros(6), dims="obs")
    return model


def test_another_call_is_refused_by_name_and_changes_nothing(tmp_path):
    kwargs = INTERPRETED | QUIET | {"chunk": 20, "store": tmp_path / "a"}
    pma.simulate(line(), 40, random_seed=1, **kwargs)
    before = files(tmp_path)
    changed: dict[str, tuple[pm.Model, int, dict[str, Any]]] = {
        "log density of 'mu'": (other(), 40, {}),
        "number: 40 there, 50 now": (line(), 50, {}),
        "chunk: 20 there, 10 now": (line(), 40, {"chunk": 10}),
        "random_seed": (line(), 40, {"random_seed": 2}),
    }
    for message, (model, number, more) in changed.items():
        with pytest.raises(ValueError, match=message):
            pma.simulate(model, number, **kwargs | more)
    with pytest.raises(ValueError, match=r"of another model, .*\(log density of 'mu' differs"):
        pma.fit_posterior(other(), simulations=tmp_path / "a", **INTERPRETED)
    assert files(tmp_path) == before
    pma.simulate(line(), np.int64(40), **kwargs)  # without a seed it goes on


def test_another_question_is_refused_by_name(posterior, tmp_path):
    posterior.sample({"y": some()}, store=tmp_path / "a", random_seed=3, **FEW)
    for message, kwargs in {
        "draws: 20 there, 30 now": {"draws": 30},
        "thin: 1 there, 2 now": {"thin": np.int64(2)},
        "reduce": {"reduce": "mean"},
        "random_seed": {"random_seed": 4},
        "var_names": {"var_names": ["mu"]},
    }.items():
        with pytest.raises(ValueError, match=message):
            posterior.sample({"y": some()}, store=tmp_path / "a", **FEW | kwargs)
    with pytest.raises(ValueError, match="observed"):
        posterior.sample({"y": some() + 1}, store=tmp_path / "a", **FEW)
    with pytest.raises(ValueError, match="holds posteriors"):
        pma.fit_posterior(line(), simulations=tmp_path / "a", **INTERPRETED)


def test_data_that_cannot_be_read_begin_no_store(posterior, tmp_path):
    wrong = xr.Dataset({"z": (("dataset", "obs"), some())})
    with pytest.raises(KeyError, match="no data named 'z'"):
        posterior.sample(wrong, store=tmp_path / "a", **FEW)
    assert not list(tmp_path.iterdir())
    posterior.sample(wrong.rename(z="y"), store=tmp_path / "a", **FEW)


def test_places_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("")
    xr.Dataset({"y": ("x", [1.0])}).to_zarr(tmp_path / "foreign", zarr_format=3, consolidated=False)
    for name, message in {"file": "is a file", "folder": "something else", "foreign": "not one that pymc"}.items():
        with pytest.raises(ValueError, match=message):
            pma.simulate(line(), 40, store=tmp_path / name, **INTERPRETED)
    with pytest.raises(FileNotFoundError, match="there is no store"):
        pma.fit_posterior(line(), simulations=tmp_path / "nothing", **INTERPRETED)


def test_a_store_that_is_not_complete_is_refused(tmp_path, monkeypatch, caplog):
    write = Store.write

    def fails(self: Store, k: int, *args: Any) -> None:
        if k == 2:
            raise OSError("no space left on device")
        write(self, k, *args)

    monkeypatch.setattr(Store, "write", fails)
    with pytest.raises(OSError, match="no space"):
        pma.simulate(line(), 80, store=tmp_path / "a", chunk=20, random_seed=1, **INTERPRETED, **QUIET)
    with pytest.raises(ValueError, match="lacks 2 of 4 chunks"):
        pma.fit_posterior(line(), simulations=tmp_path / "a", **INTERPRETED)
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "_versions", lambda: {"pymc": "5.0"})
    with caplog.at_level("WARNING", logger="pymc_amortized"):
        pma.simulate(line(), 80, store=tmp_path / "a", chunk=20, **INTERPRETED, **QUIET)
    assert "was begun with other versions, pymc-amortized: " in caplog.messages[0]
    monkeypatch.undo()
    spec, sources, _ = read_model(line(), None, None, {}, None)
    assert len(read_given(tmp_path / "a", spec, sources, None)) == 80


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"thin": 2}, ValueError, "thin= needs store="),
        ({"reduce": "mean"}, ValueError, "reduce= needs store="),
        ({"cores": 2}, ValueError, "cores= needs store="),
        ({"store": "a", "batched": False}, ValueError, "batched=True"),
        ({"store": "a", "reduce": "median"}, ValueError, "reduce must name some of mean, sd, quantiles"),
        ({"store": "a", "reduce": "mean", "thin": 2}, ValueError, "thin and reduce exclude each other"),
        ({"store": "a", "reduce": "mean", "idata_kwargs": {"log_likelihood": True}}, ValueError, "keeps no draws"),
        ({"store": "a", "thin": 0}, ValueError, "thin must be an integer of at least 1"),
        ({"store": "a", "cores": 1.5}, TypeError, "cores must be an integer"),
        ({"store": "a", "draws": 0}, ValueError, "draws must be an integer"),
        ({"store": "a", "var_names": ["x"]}, KeyError, "var_names"),
        ({"store": "a", "dtype": "int8"}, ValueError, "dtype must be"),
        ({"store": "a", "correction": "x"}, ValueError, "correction must be"),
    ],
)
def test_arguments_are_checked_at_the_door(posterior, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        posterior.sample({"y": some()}, **FEW | arguments)
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"simulation_timeout": 0}, ValueError, "simulation_timeout must be a number of seconds > 0"),
        ({"simulation_timeout": "1"}, TypeError, "simulation_timeout"),
        ({"chunk": 0}, ValueError, "chunk must be an integer of at least 1"),
        ({"draws": 0}, ValueError, "draws"),
    ],
)
def test_arguments_of_simulate_are_checked(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        pma.simulate(line(), **{"draws": 10, "store": tmp_path / "a"} | arguments)
    assert not list(tmp_path.iterdir())


# Simulators that hang


def hangs(above: float) -> pm.Model:
    def draw(rng: np.random.Generator, mu: np.ndarray, size: Any = None) -> np.ndarray:
        print("a word of the user's")
        while mu > above:
            pass
        return rng.normal(mu, 1.0, size=size)

    with pm.Model() as model:
        pm.Simulator("y", draw, pm.Normal("mu", 0, 1), observed=0.0)
    return model


def test_simulations_that_hang_are_dropped(tmp_path):
    kwargs = {"store": tmp_path / "a", "random_seed": 1, "simulation_timeout": 0.5} | INTERPRETED | QUIET
    made = pma.simulate(hangs(1.0), 16, **kwargs)
    dropped = {name: n for name, n in made.prior.attrs.items() if name.startswith("dropped")}
    assert made.prior["mu"].shape == (1, 16) and float(made.prior["mu"].max()) <= 1.0
    assert len(dropped) == 1 and "no end after 0.5 s" in next(iter(dropped)) and sum(dropped.values()) >= 1


def test_a_store_of_a_simulator_with_random_numbers_of_its_own_is_known_again(tmp_path):
    def draw(rng: np.random.Generator, mu: np.ndarray, size: Any = None) -> np.ndarray:
        return np.random.normal(mu, 1.0, size=size)  # noqa: NPY002

    with pm.Model() as model:
        pm.Simulator("y", draw, pm.Normal("mu", 0, 1), observed=0.0)
    pma.simulate(model, 40, store=tmp_path / "a", random_seed=1, **INTERPRETED, **QUIET)
    spec, sources, gaps = read_model(model, None, None, {}, None)
    assert len(read_given(tmp_path / "a", spec, sources, None, gaps)) == 40


@pytest.mark.slow
def test_a_simulation_that_hangs_ends_with_its_parent(tmp_path):
    code = """if True:
    import os, sys, pymc as pm, pymc_amortized as pma
    noted = sys.argv[1]
    def draw(rng, mu, size=None):
        with open(noted, "w") as file:
            file.write(f"{os.getpid()}\\n")
        while True:
            pass
    with pm.Model() as model:
        pm.Simulator("y", draw, pm.Normal("mu", 0, 1), observed=0.0)
    pma.simulate(model, 5, simulation_timeout=1, random_seed=1, compile_kwargs={"mode": "FAST_COMPILE"})
    """
    noted = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, noted])
    while parent.poll() is None and not (noted.exists() and noted.read_text().endswith("\n")):
        time.sleep(0.05)
    parent.kill(), parent.wait()
    status = Path(f"/proc/{int(noted.read_text())}/stat")
    deadline = time.monotonic() + 30
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not status.exists() or status.read_text().split()[2] == "Z"


@pytest.mark.slow
def test_a_model_that_always_hangs_is_refused():
    with pytest.raises(ValueError, match=rf"{MOST_IN_A_ROW} simulations in a row took more than"):
        pma.simulate(hangs(-9.0), 20, random_seed=1, simulation_timeout=0.1, **INTERPRETED)


def test_stored_simulations_are_nearly_equal_blocks(tmp_path, monkeypatch):
    pma.simulate(line(), 100, store=tmp_path / "a", chunk=30, random_seed=1, **INTERPRETED, **QUIET)
    monkeypatch.setattr(given, "BLOCK_VALUES", 100)
    spec, _, _ = read_model(line(), None, None, {}, None)
    stored = StoredSimulations(Store.open(tmp_path / "a"), spec, INTERPRETED["compile_kwargs"])
    blocks = list(stored.training(None))
    assert len(stored.pilot) == 20 and sum(map(len, blocks)) == 80
    everything = stored.read(slice(None)).unconstrained
    np.testing.assert_array_equal(
        np.concatenate([stored.pilot.unconstrained, *(b.unconstrained for b in blocks)]), everything
    )
