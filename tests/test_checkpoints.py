"""Checkpoints of one process that is not killed: what they know, what they refuse, and disks that are full."""

import itertools
import json
import logging
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import pytest
import torch
from safetensors import safe_open

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.storage import checkpoint as module
from pymc_amortized.training import loop

pytest.importorskip("zarr")
QUIET: dict[str, Any] = {"progressbar": False, "random_seed": 1}
BRIEF = pma.Training(num_steps=10, batch_size=32)
LONGER = pma.Training(num_steps=20, batch_size=32)


def line(scale: float = 2.0) -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, scale)
        pm.Normal("y", mu, 1, observed=np.zeros(4))
    return model


NARROW, WIDE = line(0.2), line()
"""Compiled once for all tests."""
GIVEN: dict[str, dict[str, Any]] = {
    "fit_posterior": {"model": WIDE, "sketch": False},
    "fit_likelihood": {"model": WIDE, "num_simulations": 500},
    "fit_joint": {"model": WIDE, "sketch": False},
    "fit_comparison": {"model": {"narrow": NARROW, "wide": WIDE}, "sketch": False, "num_simulations": 2000},
}


def fit(folder, door: str = "fit_posterior", **kwargs: Any) -> Any:
    given = {"training": BRIEF} | QUIET | GIVEN[door] | kwargs
    return getattr(pma, door)(given.pop("model"), checkpoint=folder, **given)


def weights(thing: Any) -> list[torch.Tensor]:
    """Weights of all networks in it."""
    parts = [thing.posterior, thing.likelihood] if isinstance(thing, pma.AmortizedJoint) else [thing]
    parts += [posterior for _, posterior in sorted(getattr(thing, "posteriors", {}).items())]
    return [weight for part in parts for weight in part.network.state_dict().values()]


def assert_same(one: Any, other: Any) -> None:
    assert all(torch.equal(w, v) for w, v in zip(weights(one), weights(other), strict=True))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return, of each fit that nothing disturbed, the folder and what it gave."""
    folder = tmp_path_factory.mktemp("done")
    return {door: (folder / door, fit(folder / door, door)) for door in GIVEN}


class Killed(BaseException):
    """What nobody catches."""


def end(monkeypatch, after: int, by: type[BaseException]) -> None:
    """Have states be kept at each step, and something be raised once so many were."""
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
def test_the_same_call_goes_on_bit_for_bit(done, tmp_path, monkeypatch, door, after):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        end(patched, after, Killed)
        fit(tmp_path / "run", door)
    assert_same(fit(tmp_path / "run", door), done[door][1])


@pytest.mark.parametrize("door", GIVEN)
def test_an_interrupted_fit_is_not_done(done, tmp_path, monkeypatch, door):
    with monkeypatch.context() as patched:
        end(patched, 4, KeyboardInterrupt)
        assert weights(fit(tmp_path / "run", door))
    assert not (tmp_path / "run" / module.DONE).exists()
    assert_same(fit(tmp_path / "run", door), done[door][1])


def test_a_network_that_has_ended_stays_so_while_another_goes_on(tmp_path, monkeypatch):
    """A likelihood's loss of so few simulations rises at once."""
    options = {"num_simulations": 60, "training": pma.Training(num_steps=60, batch_size=16, patience=2, evaluations=30)}

    def ends(joint: pma.AmortizedJoint) -> list[float]:
        return [float(part.history.step[-1]) for part in (joint.posterior, joint.likelihood)]

    alone = fit(tmp_path / "alone", "fit_joint", **options)
    first, last = sorted(ends(alone))
    assert first < last
    with monkeypatch.context() as patched, pytest.raises(Killed):
        end(patched, int(first + last) // 2, Killed)
        fit(tmp_path / "run", "fit_joint", **options)
    again = fit(tmp_path / "run", "fit_joint", **options)
    assert ends(again) == ends(alone)
    assert_same(again, alone)


@pytest.mark.parametrize("door", GIVEN)
def test_the_same_call_reads_what_is_done(done, monkeypatch, door):
    folder, fitted = done[door]
    monkeypatch.setattr(Setup, "train_together", None)
    assert_same(fit(folder, door, random_seed=None), fitted)


@pytest.mark.parametrize(
    ("door", "message", "kwargs"),
    [
        ("fit_posterior", "log density of 'mu'", {"model": line(3.0)}),
        ("fit_posterior", "training, num_steps: 10 there, 20 now", {"training": LONGER}),
        ("fit_posterior", "training, max_time: nothing there, 9.0 now", {"max_time": 9}),
        ("fit_posterior", "random_seed", {"random_seed": 2}),
        ("fit_posterior", "sketch: False there, True now", {"sketch": True}),
        ("fit_posterior", "num_simulations: nothing there, 100 now", {"num_simulations": np.int64(100)}),
        ("fit_posterior", "density", {"density": pma.Spline(layers=2)}),
        ("fit_posterior", "missing", {"missing": {"y": 0.2}}),
        ("fit_likelihood", "log density of 'mu'", {"model": line(3.0)}),
        ("fit_likelihood", "region: nothing there", {"region": {"mu": (-9, 9)}}),
        ("fit_likelihood", "kind: 'density' there, 'ratio' now", {"kind": "ratio"}),
        ("fit_joint", "network, components", {"network": pma.RowSize(components=3)}),
        ("fit_joint", "training, num_steps: 10 there, 20 now", {"training": LONGER}),
        ("fit_comparison", r"models\['wide'\], log density of 'mu'", {"model": {"narrow": NARROW, "wide": line(3)}}),
        ("fit_comparison", "posteriors", {"posteriors": False}),
        ("fit_comparison", "prior, narrow", {"prior": {"narrow": 1, "wide": 3}}),
    ],
)
def test_another_call_is_refused_by_name(done, door, message, kwargs):
    folder, _ = done[door]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"is of another call.*{message}"):
        fit(folder, door, **kwargs)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_folder_of_another_fit_is_refused(done):
    with pytest.raises(ValueError, match="function: 'fit_posterior' there, 'fit_joint' now"):
        fit(done["fit_posterior"][0], "fit_joint")


def test_posteriors_that_were_given_to_a_comparison_are_known_again(done, tmp_path, monkeypatch):
    wide = done["fit_comparison"][1].posteriors["wide"]
    models = {"narrow": NARROW, "wide": wide}
    first = fit(tmp_path / "run", "fit_comparison", model=models)
    monkeypatch.setattr(Setup, "train_together", None)
    again = fit(tmp_path / "run", "fit_comparison", model=models)
    assert again.posteriors["wide"] is wide
    assert_same(first, again)
    with pytest.raises(ValueError, match=r"weights of models\['wide'\]"):
        fit(tmp_path / "run", "fit_comparison", model=models | {"wide": done["fit_posterior"][1]})


def test_other_rates_of_gaps_are_refused(tmp_path):
    fit(tmp_path / "run", missing={"y": 0.2})
    with pytest.raises(ValueError, match="the rate of 'y' in missing differs"):
        fit(tmp_path / "run", missing={"y": 0.5})


def test_places_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="holds something else"):
            fit(folder)


def test_a_store_that_was_replaced_is_noticed_and_one_that_moved_is_the_same(tmp_path, monkeypatch):
    sims = tmp_path / "sims.zarr"
    pma.simulate(line(), 200, store=sims, **QUIET)
    fit(tmp_path / "run", simulations=sims)
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "run", simulations="sims.zarr")
    shutil.rmtree(sims)
    pma.simulate(line(), 200, store=sims, **QUIET | {"random_seed": 2})
    with pytest.raises(ValueError, match="simulations, content of the store"):
        fit(tmp_path / "run", simulations=sims)


def test_each_rank_takes_up_its_own_state(done, tmp_path, monkeypatch):
    """Two ranks, one after the other in this process; tests/test_ranks.py has real ones."""
    network = done["fit_posterior"][1].network
    first = done["fit_posterior"][1].state
    own = {"now.losses": torch.tensor([1.0, torch.nan]), "random.cpu": torch.arange(5, dtype=torch.uint8)}
    second = replace(first, tensors={**first.tensors, **own}, values={**first.values, "source": {"drawn": 7}})
    kept = module.Checkpoint(tmp_path, (1,))
    monkeypatch.setattr(module, "gathered", lambda states: [states, [second]])
    kept.keep([first])
    monkeypatch.setattr(module, "by_first", lambda make: make())
    for rank, state in enumerate([first, second]):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        (found,) = kept.resume([network])
        assert found.values == json.loads(json.dumps(state.values))
        assert found.tensors.keys() == state.tensors.keys()
        assert all(t.numpy().tobytes() == state.tensors[name].numpy().tobytes() for name, t in found.tensors.items())
    with safe_open(tmp_path / module.TRAINING, framework="pt") as file:
        assert {name.removeprefix("others.0.tensors.") for name in file.keys() if "others" in name} == {*own}


@pytest.mark.parametrize(("door", "number"), [("fit_posterior", 2), ("fit_comparison", 6)])
def test_a_full_disk_is_said_and_takes_nothing(done, tmp_path, monkeypatch, caplog, door, number):
    write = module.write_whole

    def full(path, content):
        if path.name != module.CALL:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(module, "write_whole", full)
    monkeypatch.setattr(loop, "KEEP_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING, logger="pymc_amortized"):
        fitted = fit(tmp_path / "run", door)
    said = [record.message for record in caplog.records if "could not be written" in record.message]
    assert len(said) == number and "decisions.json" in said[0] and "fitted.pma" in said[-1]
    assert_same(fitted, done[door][1])
    assert {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()} == {module.CALL}
