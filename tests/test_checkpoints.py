"""Checkpoints of one process that is not killed: what they know, what they refuse, and disks that are full."""

import logging
import shutil
from typing import Any

import numpy as np
import pymc as pm
import pytest
import torch

import pymc_amortized as pma
from pymc_amortized.approximators.storage import checkpoint as module
from pymc_amortized.training import loop

pytest.importorskip("zarr")
INTERPRETED: dict[str, Any] = {"compile_kwargs": {"mode": "FAST_COMPILE"}, "progressbar": False, "random_seed": 1}
BRIEF = pma.Training(num_steps=10, batch_size=32)


def line(scale: float = 2.0) -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, scale)
        pm.Normal("y", mu, 1, observed=np.zeros(4))
    return model


def fit(folder, model: pm.Model | None = None, **kwargs: Any) -> pma.AmortizedPosterior:
    given: dict[str, Any] = {"training": BRIEF, "sketch": False} | INTERPRETED | kwargs
    return pma.fit_posterior(model or line(), checkpoint=folder, **given)


def weights(posterior: pma.AmortizedPosterior) -> list[torch.Tensor]:
    return list(posterior.network.state_dict().values())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, fit(folder)


def test_the_same_call_reads_what_is_done(done, monkeypatch):
    folder, posterior = done
    monkeypatch.setattr(loop, "train", None)
    again = fit(folder, random_seed=None)
    assert all(torch.equal(one, other) for one, other in zip(weights(posterior), weights(again), strict=True))


@pytest.mark.parametrize(
    ("message", "kwargs"),
    [
        ("log density of 'mu'", {"model": line(3.0)}),
        ("training, num_steps: 10 there, 20 now", {"training": pma.Training(num_steps=20, batch_size=32)}),
        ("training, max_time: None there, 9.0 now", {"max_time": 9}),
        ("random_seed", {"random_seed": 2}),
        ("sketch: False there, True now", {"sketch": True}),
        ("num_simulations: None there, 100 now", {"num_simulations": np.int64(100)}),
        ("density", {"density": pma.Spline(layers=2)}),
        ("missing", {"missing": {"y": 0.2}}),
    ],
)
def test_another_call_is_refused_by_name(done, message, kwargs):
    folder, _ = done
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=f"is of another call.*{message}"):
        fit(folder, **kwargs)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_rates_of_gaps_are_refused(tmp_path):
    fit(tmp_path / "run", missing={"y": 0.2})
    with pytest.raises(ValueError, match="missing values of 'y'"):
        fit(tmp_path / "run", missing={"y": 0.5})


def test_places_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="holds something else"):
            fit(folder)


def test_a_store_that_was_replaced_is_noticed_and_one_that_moved_is_the_same(tmp_path, monkeypatch):
    sims = tmp_path / "sims.zarr"
    pma.simulate(line(), 200, store=sims, **INTERPRETED)
    fit(tmp_path / "run", simulations=sims)
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "run", simulations="sims.zarr")
    shutil.rmtree(sims)
    pma.simulate(line(), 200, store=sims, **INTERPRETED | {"random_seed": 2})
    with pytest.raises(ValueError, match="simulations, content of the store"):
        fit(tmp_path / "run", simulations=sims)


def test_a_full_disk_is_said_and_takes_nothing(done, tmp_path, monkeypatch, caplog):
    write = module.write_whole

    def full(path, content):
        if path.name != module.CALL:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(module, "write_whole", full)
    monkeypatch.setattr(loop, "KEEP_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING, logger="pymc_amortized"):
        posterior = fit(tmp_path / "run")
    said = [record.message for record in caplog.records if "could not be written" in record.message]
    assert len(said) == 2 and "decisions.json" in said[0] and "fitted.pma" in said[1]
    assert all(torch.equal(one, other) for one, other in zip(weights(posterior), weights(done[1]), strict=True))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [module.CALL]
