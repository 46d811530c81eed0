"""Checkpoints of one process that is not killed: what they know, what they refuse, and disks that are full."""

import itertools
import logging
import shutil
from typing import Any

import numpy as np
import pymc as pm
import pytest
import torch

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.setup import Setup
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
    monkeypatch.setattr(Setup, "train_together", None)
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


# The other fits, and trainings that are interrupted in the middle


DOORS: dict[str, Any] = {
    "fit_posterior": {"model": line, "sketch": False},
    "fit_likelihood": {"model": line, "num_simulations": 500},
    "fit_joint": {"model": line, "sketch": False},
    "fit_comparison": {"model": lambda: {"narrow": line(0.2), "wide": line()}, "sketch": False},
}


def fitted(door: str, folder, **kwargs: Any) -> Any:
    given: dict[str, Any] = {"training": BRIEF} | INTERPRETED | DOORS[door] | kwargs
    model = given.pop("model")
    return getattr(pma, door)(model() if callable(model) else model, checkpoint=folder, **given)


def all_weights(thing: Any) -> list[torch.Tensor]:
    """Weights of all networks in it, and of what it holds."""
    parts = [thing.posterior, thing.likelihood] if isinstance(thing, pma.AmortizedJoint) else [thing]
    parts += getattr(thing, "posteriors", {}).values()
    return [weight for part in parts for weight in weights(part)]


def assert_same(one: Any, other: Any) -> None:
    assert all(torch.equal(w, v) for w, v in zip(all_weights(one), all_weights(other), strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What each fit gives, and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {door: (folder / door, fitted(door, folder / door)) for door in DOORS}


class Killed(BaseException):
    """What nobody catches."""


def end(monkeypatch, after: int, by: type[BaseException]) -> None:
    """Have all states be kept, and something be raised once so many are."""
    keep, count = module.Checkpoint.keep, itertools.count(1)

    def ending(self, states):
        keep(self, states)
        if next(count) == after:
            raise by

    monkeypatch.setattr(loop, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(module.Checkpoint, "keep", ending)


@pytest.mark.parametrize(
    ("door", "after"),
    [
        ("fit_posterior", 4),
        ("fit_likelihood", 4),
        ("fit_joint", 4),
        ("fit_comparison", 4),
        ("fit_comparison", 15),
        ("fit_comparison", 25),
    ],
)
def test_the_same_call_goes_on_bit_for_bit(undisturbed, tmp_path, monkeypatch, door, after):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        end(patched, after, Killed)
        fitted(door, tmp_path / "run")
    assert_same(fitted(door, tmp_path / "run"), undisturbed[door][1])


@pytest.mark.parametrize("door", DOORS)
def test_an_interrupted_fit_is_not_done(undisturbed, tmp_path, monkeypatch, door):
    with monkeypatch.context() as patched:
        end(patched, 4, KeyboardInterrupt)
        assert all_weights(fitted(door, tmp_path / "run"))
    assert not (tmp_path / "run" / module.DONE).exists()
    assert_same(fitted(door, tmp_path / "run"), undisturbed[door][1])


@pytest.mark.parametrize("door", DOORS)
def test_what_is_done_is_read(undisturbed, monkeypatch, door):
    folder, done = undisturbed[door]
    monkeypatch.setattr(Setup, "train_together", None)
    assert_same(fitted(door, folder, random_seed=None), done)


@pytest.mark.parametrize(
    ("door", "message", "kwargs"),
    [
        ("fit_likelihood", "log density of 'mu'", {"model": line(3.0)}),
        ("fit_likelihood", "region, ", {"region": {"mu": (-9, 9)}}),
        ("fit_likelihood", "kind: 'density' there, 'ratio' now", {"kind": "ratio"}),
        ("fit_joint", "network, components", {"network": pma.RowSize(components=3)}),
        ("fit_joint", "training, num_steps: 10 there, 20 now", {"training": pma.Training(num_steps=20, batch_size=32)}),
        ("fit_comparison", r"models\['wide'\], log density of 'mu'", {"model": {"narrow": line(0.2), "wide": line(3)}}),
        ("fit_comparison", "posteriors", {"posteriors": False}),
        ("fit_comparison", "prior, wide", {"prior": {"narrow": 1, "wide": 3}}),
    ],
)
def test_another_call_of_other_fits_is_refused_by_name(undisturbed, door, message, kwargs):
    with pytest.raises(ValueError, match=f"is of another call.*{message}"):
        fitted(door, undisturbed[door][0], **kwargs)


def test_the_folder_of_another_fit_is_refused(undisturbed):
    with pytest.raises(ValueError, match="function: 'fit_posterior' there, 'fit_joint' now"):
        fitted("fit_joint", undisturbed["fit_posterior"][0])


def test_a_comparison_goes_on_with_posteriors_that_were_given(undisturbed, tmp_path, monkeypatch):
    narrow, wide = undisturbed["fit_comparison"][1].posteriors.values()
    models = {"narrow": line(0.2), "wide": wide}
    first = fitted("fit_comparison", tmp_path / "run", model=models)
    monkeypatch.setattr(Setup, "train_together", None)
    again = fitted("fit_comparison", tmp_path / "run", model=models)
    assert again.posteriors["wide"] is wide
    assert_same(first, again)
    with pytest.raises(ValueError, match=r"weights of models\['wide'\]"):
        other = undisturbed["fit_posterior"][1]
        fitted("fit_comparison", tmp_path / "run", model=models | {"wide": other})


def test_a_full_disk_takes_nothing_from_a_comparison(undisturbed, tmp_path, monkeypatch):
    write = module.write_whole

    def full(path, content):
        if path.name != module.CALL:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(module, "write_whole", full)
    assert_same(fitted("fit_comparison", tmp_path / "run"), undisturbed["fit_comparison"][1])
