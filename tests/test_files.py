"""Saving and loading: the same posterior, or a refusal that names the difference. Never code."""

import ast
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import BRIEF, brief_fit, held_data, line, mixed_kinds
from torch import nn

import pymc_amortized as pma
from pymc_amortized.approximators.storage import models as stored_models

KEY = "pymc_amortized"
Y = np.array([0.3, -0.2, 0.5, 0.1])


@pytest.fixture(scope="module")
def saved(line_posterior, tmp_path_factory) -> Path:
    """Return the file of the posterior of a line."""
    path = tmp_path_factory.mktemp("files") / "line.pma"
    line_posterior.save(path)
    return path


def draws(posterior: pma.AmortizedPosterior, observed: Any = None, **kwargs: Any) -> np.ndarray:
    dt = posterior.sample(observed or {"y": Y}, draws=40, chains=2, random_seed=3, **kwargs)
    return dt.posterior.to_dataset().to_array().values


def altered(path: Path, tmp_path: Path, change: Any = None, tensors: Any = None) -> Path:
    """Write the file again with its description or its tensors changed."""
    content = load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    description = json.loads(header["__metadata__"][KEY])
    if change is not None:
        description = change(description) or description
    if tensors is not None:
        tensors(content)
    other = tmp_path / "altered.pma"
    save_file(content, other, metadata={KEY: json.dumps(description)})
    return other


# the way there and back


@pytest.mark.parametrize("correction", ["auto", None])
def test_a_loaded_posterior_gives_the_same_draws(line_posterior, saved, correction):
    loaded = pma.load(saved, model=line())
    expected = draws(line_posterior, correction=correction)
    np.testing.assert_array_equal(draws(loaded, correction=correction), expected)
    point = {"slope": np.zeros(3), "sigma_log__": np.ones(3)}
    np.testing.assert_array_equal(loaded.logp(point), line_posterior.logp(point))
    assert loaded.provenance == line_posterior.provenance
    assert repr(loaded) == repr(line_posterior)
    np.testing.assert_array_equal(loaded.history.held_out_loss, line_posterior.history.held_out_loss)


def test_the_contexts_model_is_taken(saved):
    with line():
        assert isinstance(pma.load(str(saved)), pma.AmortizedPosterior)


def test_a_file_of_another_kind_is_refused(saved):
    assert isinstance(pma.load(saved, kind=pma.AmortizedPosterior, model=line()), pma.AmortizedPosterior)
    with pytest.raises(ValueError, match="holds an AmortizedPosterior, and AmortizedComparison was asked for"):
        pma.load(saved, kind=pma.AmortizedComparison, model=line())


def test_no_model_is_an_error(saved):
    with pytest.raises(TypeError, match="model: a file holds no model"):
        pma.load(saved)


def test_observed_values_may_differ_between_the_models(line_posterior, saved):
    model = line()
    with model:
        pm.set_data({"y_data": Y})
    np.testing.assert_array_equal(draws(pma.load(saved, model=model)), draws(line_posterior))


def test_a_loaded_posterior_is_saved_again(line_posterior, saved, tmp_path):
    loaded = pma.load(saved, model=line())
    loaded.save(tmp_path / "again.pma")
    again = pma.load(tmp_path / "again.pma", model=line())
    np.testing.assert_array_equal(draws(again), draws(line_posterior))


def test_context_models_are_loaded(mixed_posterior, tmp_path):
    path = tmp_path / "mixed.pma"
    mixed_posterior.save(path)
    loaded = pma.load(path, model=mixed_kinds())
    np.testing.assert_array_equal(draws(loaded, held_data()), draws(mixed_posterior, held_data()))
    with pytest.raises(ValueError, match=r"context: sources of \['offset'\]"):
        loaded.continue_training(20, progressbar=False)
    further = loaded.continue_training(20, context={"offset": pm.Normal.dist(0, 1)}, progressbar=False)
    straight = mixed_posterior.continue_training(20, progressbar=False)
    np.testing.assert_array_equal(draws(further, held_data()), draws(straight, held_data()))


def test_a_loaded_context_posterior_is_saved_again(mixed_posterior, tmp_path):
    mixed_posterior.save(tmp_path / "a.pma")
    loaded = pma.load(tmp_path / "a.pma", model=mixed_kinds())
    loaded.save(tmp_path / "b.pma")
    pma.load(tmp_path / "b.pma", model=mixed_kinds())


def test_continuing_after_loading_equals_continuing_without(line_posterior, saved):
    there = pma.load(saved, model=line()).continue_training(40, progressbar=False)
    here = line_posterior.continue_training(40, progressbar=False)
    np.testing.assert_array_equal(draws(there), draws(here))
    assert there.history.step[-1] == here.history.step[-1] == 100
    assert there.provenance.simulations == here.provenance.simulations


def test_a_fixed_set_continues_after_loading(tmp_path):
    posterior = brief_fit(line(), num_simulations=400)
    posterior.save(tmp_path / "fixed.pma")
    loaded = pma.load(tmp_path / "fixed.pma", model=line())
    there, here = (p.continue_training(20, progressbar=False) for p in (loaded, posterior))
    np.testing.assert_array_equal(draws(there), draws(here))


def test_what_is_saved_replaces_a_file_and_a_missing_directory_is_named(line_posterior, tmp_path):
    path = tmp_path / "p.pma"
    path.write_bytes(b"old")
    line_posterior.save(path)
    pma.load(path, model=line())
    with pytest.raises(OSError, match="nowhere"):
        line_posterior.save(tmp_path / "nowhere" / "p.pma")


def test_a_room_that_is_imported_alone_can_save():
    code = (
        "import sys, types\n"
        "front = sys.modules['pymc_amortized'] = types.ModuleType('pymc_amortized')\n"
        "front.__path__ = [sys.argv[1]]\n"
        "from pymc_amortized.approximators.joint.joint import AmortizedJoint\n"
        "from pymc_amortized.approximators.storage.save import contents\n"
        "assert contents.dispatch(AmortizedJoint) is not contents.dispatch(object)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(pma.__file__).parent)], check=True)


# another model


def steeper() -> pm.Model:
    model = line()
    with model:
        pm.Normal("extra")
    return model


def with_potential() -> pm.Model:
    model = line()
    with model:
        pm.Potential("pull", -(model["slope"] ** 2))
    return model


def other_labels() -> pm.Model:
    model = line()
    with model:
        pm.set_data({"x": np.linspace(-1, 1, 4)}, coords={"obs": list("abcd")})
    return model


def interval(lower: float) -> Any:
    return lambda: pm.Uniform("sigma", lower, 3.0)


OTHERS = {
    "prior's scale": (lambda: line(scale=2.0), "log density of 'slope' differs"),
    "prior's family": (lambda: line(prior=pm.Laplace, scale=1.0), "log density of 'slope' differs"),
    "likelihood's constants": (lambda: line(weights=np.array([1.0, 2.0, 0.5, 1.6])), "constant arrays differs"),
    "data container": (lambda: line(x=np.linspace(-1, 1.1, 4)), "data container 'x' differs"),
    "transform": (lambda: line(spread=interval(0.0)), "free variable 'sigma' differs.*transform: log.*interval"),
    "name": (lambda: line(slope="b"), "'slope'"),
    "shape": (lambda: line(rows=3), r"\[4\].*\[3\]"),
    "another variable": (steeper, "free variable 'extra' is not in the file"),
    "a potential": (with_potential, "potential 'pull' is not in the file"),
    "kinds of data": (mixed_kinds, "'slope'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_model_is_refused_and_the_difference_named(saved, name):
    build, message = OTHERS[name]
    with pytest.raises(ValueError, match=f"the model is not the one in the file.*({message})"):
        pma.load(saved, model=build())


def test_a_context_that_is_missing_is_named(mixed_posterior, tmp_path):
    mixed_posterior.save(tmp_path / "p.pma")
    with pytest.raises(ValueError, match="the model is not the one in the file.*'offset'"):
        pma.load(tmp_path / "p.pma", model=line())


# networks of the user's own


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, encoded: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.linear(encoded["y"].reshape(len(encoded["y"]), -1)[:, :4])


def test_a_users_own_network_is_needed_again(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        posterior = brief_fit(line(), summary=Mean())
        path = tmp_path / "own.pma"
        posterior.save(path)
        with pytest.raises(ValueError, match="with a summary network of your own: pass it as summary="):
            pma.load(path, model=line())
        loaded = pma.load(path, model=line(), summary=Mean())
        np.testing.assert_array_equal(draws(loaded), draws(posterior))
        with pytest.raises(ValueError, match=r"weight|weights"):
            pma.load(path, model=line(), summary=nn.Linear(2, 3))


def test_a_network_that_is_not_needed_is_refused(saved):
    with pytest.raises(ValueError, match="summary was given, but .* has a built-in"):
        pma.load(saved, model=line(), summary=Mean())


# files that are no posteriors


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.pma"):
        pma.load(tmp_path / "nothing.pma", model=line())
    with pytest.raises((FileNotFoundError, IsADirectoryError)):
        pma.load(tmp_path, model=line())


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, -1, -1000])
def test_a_truncated_file_is_refused(saved, tmp_path, size):
    path = tmp_path / "short.pma"
    path.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"'short.pma' is damaged"):
        pma.load(path, model=line())


def test_flipped_bytes_are_refused_or_harmless(saved, tmp_path):
    """No byte of the header, changed, may lead to anything but a ValueError that names the file or the difference."""
    content = bytearray(saved.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    rng = np.random.default_rng(0)
    path, model = tmp_path / "flipped.pma", line()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_models, "_refuse_other_density", lambda saved, given: None)
        patch.setattr(stored_models, "_densities", lambda *args: {})
        for position in rng.integers(0, 8 + length, size=60):
            damaged = bytearray(content)
            damaged[position] ^= int(rng.integers(1, 128))
            path.write_bytes(damaged)
            try:
                pma.load(path, model=model)
            except ValueError:
                pass


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not one that pymc_amortized wrote"):
        pma.load(path, model=line())
    save_file({"a": torch.zeros(2)}, path, metadata={KEY: "no json"})
    with pytest.raises(ValueError, match="description cannot be read"):
        pma.load(path, model=line())


class Planted:
    """What runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("write", [pickle.dumps, "torch"])
def test_a_pickled_file_is_refused_and_not_run(tmp_path, write):
    marker, path = tmp_path / "marker", tmp_path / "evil.pma"
    if write == "torch":
        torch.save({"weights": Planted(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Planted(marker)))
    with pytest.raises(ValueError, match=r"'evil.pma' is damaged, or not a file of pymc_amortized"):
        pma.load(path, model=line())
    assert not marker.exists()


def test_nothing_in_the_package_unpickles():
    """Simulators travel to workers of our own by cloudpickle; nothing else does, and no file."""
    allowed = {"sending.py": {"cloudpickle"}}
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    for path in Path(pma.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        found = imported & (forbidden - allowed.get(path.name, set()) - {"joblib"})
        assert not found, f"{path.name} imports {found}"
        called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert not called & {"torch.load", "torch.save", "np.load", "eval", "exec", "__import__"}, path.name


def test_a_file_holds_no_values_but_numbers_and_json(saved):
    content = saved.read_bytes()
    assert b"pickle" not in content
    assert all(isinstance(tensor, torch.Tensor) for tensor in load_file(saved).values())


# descriptions that lie


def at(description: Any, path: tuple[str | int, ...]) -> Any:
    """Return what holds the last of a path, which begins at the format or inside the contents."""
    target = description if path[0] == "format" else description["contents"]
    for key in path[:-1]:
        target = target[key]
    return target


def setting(*path: str | int, value: Any) -> Any:
    return lambda description: at(description, path).__setitem__(path[-1], value)


def network(*path: str | int, value: Any) -> Any:
    return setting("network", "description", *path, value=value)


def removing(*path: str) -> Any:
    return lambda description: at(description, path).__delitem__(path[-1])


LIES = {
    "format": (setting("format", value=99), r"has format 99; this version.*reads format 5"),
    "no format": (removing("format"), "has format None"),
    "a list": (lambda d: [d], "format"),
    "no network": (removing("network"), "damaged"),
    "no model": (removing("model"), "damaged"),
    "no state": (removing("state"), "damaged"),
    "no provenance": (removing("provenance"), "damaged"),
    "no density": (removing("model", "density"), "damaged"),
    "no arguments": (removing("model", "arguments"), "damaged"),
    "no contents": (lambda d: {"format": d["format"]}, "damaged"),
    "contents of another kind": (setting("class", value="SavedComparison"), "damaged"),
    "contents of no kind": (setting("class", value="Provenance"), "damaged.*'Provenance'; known: SavedPosterior"),
    "unknown provenance": (setting("provenance", "surprise", value=1), "damaged"),
    "unknown kind": (network("summary", "kind", value="os.system"), "os.system"),
    "unknown option": (network("density", "options", "surprise", value=1), "damaged"),
    "network is a number": (setting("network", value=3), "damaged"),
    "network is null": (network(value=None), "damaged"),
    "encoder is null": (network("encoder", value=None), "damaged"),
    "dim is text": (network("dim", value="many"), "damaged|dim"),
    "negative dim": (network("dim", value=-3), "levels are"),
    "another dim": (network("dim", value=3), "levels are"),
    "history": (setting("history", value=[]), "damaged"),
    "restarts of text": (setting("history", "restarts", value="x"), "damaged.*history.restarts"),
    "training": (setting("provenance", "training", "num_steps", value="x"), "damaged|num_steps"),
    "structure": (setting("structure", value=None), "damaged"),
    "rows of another variable": (setting("structure", "axes", 0, "carriers", value=[["nobody", 0]]), "damaged.*nobody"),
    "arguments' type": (setting("model", "arguments", "context", value=3), "damaged"),
    "wide": (network("density", "options", "hidden", value=900_000), "weight"),
    "very wide": (
        network("density", "options", "hidden", value=10**12),
        "option of 1000000000000",
    ),
    "deep": (network("density", "options", "layers", value=10**5), "100000 layers"),
    "wide and float": (
        network("density", "options", "hidden", value=1e9),
        "hidden|damaged|option",
    ),
    "features": (network("features", value=10**6), "weight"),
    "levels": (network("levels", value=[0] * 99), "levels"),
    "categories": (
        network("encoder", "arrays", 0, "categories", value=10**6),
        "categories|weight|damaged|option",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_description_that_lies_is_refused_before_memory_is_taken(saved, tmp_path, name):
    change, message = LIES[name]
    path = altered(saved, tmp_path, change)
    tracemalloc.start()
    before = _resident()
    try:
        with pytest.raises(ValueError, match=message):
            pma.load(path, model=line())
        assert tracemalloc.get_traced_memory()[1] < 200e6
        assert _resident() - before < 500e6
    finally:
        tracemalloc.stop()


def _resident() -> float:
    """Bytes that the process holds."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.0


def one_of(content: dict[str, torch.Tensor], group: str) -> str:
    return max((k for k in content if k.startswith(group)), key=lambda k: content[k].numel())


def reshaped(group: str) -> Any:
    def change(content: dict[str, torch.Tensor]) -> None:
        name = one_of(content, group)
        content[name] = torch.zeros(*content[name].shape, 2, dtype=content[name].dtype)

    return change


def retyped(group: str) -> Any:
    def change(content: dict[str, torch.Tensor]) -> None:
        name = one_of(content, group)
        content[name] = torch.zeros(content[name].shape, dtype=torch.int64)

    return change


def poisoned(group: str) -> Any:
    def change(content: dict[str, torch.Tensor]) -> None:
        name = one_of(content, group)
        content[name] = torch.full_like(content[name], torch.nan)

    return change


def dropped(group: str) -> Any:
    return lambda content: content.pop(one_of(content, group))


TENSORS = {
    "shape of a weight": (reshaped("network."), "weight .* has shape"),
    "dtype of a weight": (retyped("network."), "weight .*dtype|int64"),
    "weights that are no numbers": (poisoned("network."), "weight|finite|NaN"),
    "a weight is missing": (dropped("network."), "not those of the network it describes"),
    "a weight too many": (lambda c: c.update({"network.weights.more": torch.zeros(2)}), "not those of the network"),
    "a huge state": (
        lambda c: c.update({"state.tensors.now.weights": torch.zeros(3_000_000)}),
        "more than the whole network",
    ),
    "a huge point": (lambda c: c.update({"model.points.theta": torch.zeros(500_000, 2).double()}), "points"),
    "points of another shape": (
        lambda c: c.update({"model.points.theta": torch.zeros(4, 7).double()}),
        "points|damaged",
    ),
    "a huge array": (lambda c: c.update({"history.loss": torch.zeros(1_000_001)}), "larger than any"),
    "an array is missing": (lambda c: c.pop("history.loss"), "damaged"),
    "shape of the reference": (reshaped("reference.score.trend"), "array 'trend' of the reference has shape"),
    "no points": (lambda c: c.pop("model.points.theta"), "points|damaged"),
    "no data of points": (lambda c: c.pop("model.points.data.y"), "points|damaged"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_refused(saved, tmp_path, name):
    change, message = TENSORS[name]
    with pytest.raises(ValueError, match=message):
        pma.load(altered(saved, tmp_path, tensors=change), model=line())


STATES = {
    "a state tensor is missing": dropped("state."),
    "shape of the state": reshaped("state.tensors.best"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_does_not_fit_is_refused_at_loading(saved, tmp_path, name):
    with pytest.raises(ValueError, match="state"):
        pma.load(altered(saved, tmp_path, tensors=STATES[name]), model=line())


def test_interrupted_training_goes_on_from_a_file(tmp_path, monkeypatch):
    """Ctrl-C, save, load, and on: as if nothing had happened but the refill of simulations."""
    from pymc_amortized.training import FreshSimulations

    given, calls = FreshSimulations.next, []

    def next_(self: Any) -> Any:
        calls.append(1)
        if len(calls) == 31:
            raise KeyboardInterrupt
        return given(self)

    monkeypatch.setattr(FreshSimulations, "next", next_)
    posterior = brief_fit(line(), training=BRIEF)
    assert posterior.history.step[-1] == 30
    posterior.save(tmp_path / "half.pma")
    loaded = pma.load(tmp_path / "half.pma", model=line())
    there = loaded.continue_training(progressbar=False)
    here = posterior.continue_training(progressbar=False)
    assert there.history.step[-1] == 60
    np.testing.assert_array_equal(draws(there), draws(here))
