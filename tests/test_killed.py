"""Whatever is killed, and whenever: the same call goes on, and the result is that of a run that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed
import numpy as np
import pytest
import torch
import xarray as xr

import pymc_amortized as pma

pytest.importorskip("zarr")
SLOW = pytest.mark.slow
NOTES = "written/note/c"
"""A folder of a store that changes with each chunk."""


def kill(task: str, folder: Path, begun: Path, seconds: float, number: int = signal.SIGKILL) -> int | None:
    """Start a task, and kill it some seconds after a file is there or is written anew; None if it was done by then."""
    before = begun.stat().st_mtime_ns if begun.exists() else 0
    process = subprocess.Popen([sys.executable, killed.__file__, task, str(folder)], start_new_session=True)
    while process.poll() is None and not (begun.exists() and begun.stat().st_mtime_ns > before):
        time.sleep(0.01)
    time.sleep(seconds)
    if process.poll() is not None:
        return None
    os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
    return process.wait()


def moments(number: int) -> list[float]:
    return np.random.default_rng(7).uniform(0, 1.5, size=number).tolist()


def assert_same_stores(one: Path, other: Path) -> None:
    trees = [xr.open_datatree(path, engine="zarr", chunks=None) for path in (one, other)]
    for name, group in trees[0].children.items():
        if name != "written":
            xr.testing.assert_equal(group.to_dataset(), trees[1][name].to_dataset())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return a folder with everything as it is when nothing is killed."""
    folder = tmp_path_factory.mktemp("alone")
    killed.simulate(folder)
    killed.train(folder).save(folder / "posterior.pma")
    killed.infer(folder)
    return folder


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=SLOW)])
def test_simulating_goes_on(alone, tmp_path, times):
    for seconds in moments(times):
        kill("simulate", tmp_path, tmp_path / "sims.zarr" / NOTES, seconds / 5)
    killed.simulate(tmp_path)
    assert_same_stores(tmp_path / "sims.zarr", alone / "sims.zarr")


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=SLOW)])
def test_training_goes_on_bit_for_bit(alone, tmp_path, times):
    for seconds in moments(times):
        kill("train", tmp_path, tmp_path / "run" / "training.safetensors", seconds)
    posterior, other = killed.train(tmp_path), pma.load(alone / "posterior.pma", model=killed.model())
    weights = posterior.network.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in other.network.state_dict().items())
    assert posterior.provenance.simulations == other.provenance.simulations


def test_training_ends_when_told_to_and_goes_on(alone, tmp_path):
    begun = tmp_path / "run" / "training.safetensors"
    assert kill("train", tmp_path, begun, 0.2, signal.SIGTERM) in (None, 128 + signal.SIGTERM)
    weights = killed.train(tmp_path).network.state_dict()
    other = pma.load(alone / "posterior.pma", model=killed.model()).network.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in other.items())


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=SLOW)])
def test_inference_goes_on(alone, tmp_path, times):
    (tmp_path / "posterior.pma").write_bytes((alone / "posterior.pma").read_bytes())
    for seconds in moments(times):
        kill("infer", tmp_path, tmp_path / "posterior.zarr" / NOTES, seconds / 3)
    killed.infer(tmp_path)
    assert_same_stores(tmp_path / "posterior.zarr", alone / "posterior.zarr")


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced(alone, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            pids = list(client.run(os.getpid).values())
            first = subprocess.Popen(["sh", "-c", f"sleep 2; kill -9 {pids[0]}; sleep 3; kill -9 {pids[1]}"])
            kwargs = {"progressbar": False, "compile_kwargs": killed.INTERPRETED, "client": client}
            pma.simulate(killed.model(), 400, store=tmp_path / "sims.zarr", chunk=10, random_seed=1, **kwargs)
            first.wait()
    assert_same_stores(tmp_path / "sims.zarr", alone / "sims.zarr")
