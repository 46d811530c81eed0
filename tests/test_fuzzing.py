"""Files and stores that are damaged: the right result, or an error that names them; never other numbers."""

import json
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from killed import model as killed_model
from small_models import brief_fit

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.approximators.simulations.given import read_given

pytest.importorskip("zarr")
INTERPRETED = {"mode": "FAST_COMPILE"}
QUIET: dict[str, Any] = {"progressbar": False}
BRIEF = pma.Training(num_steps=40, batch_size=32, evaluations=2)
Y = np.random.default_rng(1).normal(size=(6, 6))
FEW, MANY = 15, 500
MEMORY = 1_000_000
"""KiB that a damaged file may take."""
TAMPERED = "without its digest, "
"""What nobody can tell from the truth, but must take no memory, and be no crash."""
HUGE = (2**31, 2**40, 2**62, 10**30, -1, 0)


# damage


def files_of(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())


def texts_of(place: Path) -> list[Path]:
    return [path for path in files_of(place) if path.suffix == ".json"]


def flip(place: Path, rng: np.random.Generator) -> str:
    path = rng.choice(files_of(place))
    content = bytearray(path.read_bytes())
    position = int(rng.integers(len(content)))
    content[position] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    return f"byte {position} of {path}"


def flip_header(place: Path, rng: np.random.Generator) -> str:
    """Flip a byte of the text of a file."""
    path = rng.choice(texts_of(place) or files_of(place))
    content = bytearray(path.read_bytes())
    end = len(content) if path.suffix == ".json" else 8 + struct.unpack("<Q", content[:8])[0]
    position = int(rng.integers(end))
    content[position] ^= int(rng.integers(1, 128))
    path.write_bytes(content)
    return f"byte {position} of {path}"


def truncate(place: Path, rng: np.random.Generator) -> str:
    path = rng.choice(files_of(place))
    size = int(rng.integers(path.stat().st_size))
    os.truncate(path, size)
    return f"{path} cut to {size}"


def swap(place: Path, rng: np.random.Generator) -> str:
    """Exchange two files, or two halves of one."""
    files = files_of(place)
    if len(files) == 1:
        content = files[0].read_bytes()
        cut = int(rng.integers(1, len(content)))
        files[0].write_bytes(content[cut:] + content[:cut])
        return f"{place} begins at {cut}"
    some = files if rng.random() < 0.5 else [f for f in files if f.name == rng.choice(files).name]
    one, other = rng.choice(some, 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return f"{one} and {other}"


def remove(place: Path, rng: np.random.Generator) -> str:
    path = rng.choice(files_of(place))
    path.unlink()
    return f"without {path}"


def numbers_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each number of JSON by what holds it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        if type(inside) in (int, float):
            yield value, key
        yield from numbers_in(inside)


def with_other_number(text: str, rng: np.random.Generator) -> str:
    content = json.loads(text)
    places = list(numbers_in(content))
    if places:
        holder, key = places[rng.integers(len(places))]
        holder[key] = HUGE[rng.integers(len(HUGE))]
    return json.dumps(content)


def inflate(place: Path, rng: np.random.Generator) -> str:
    """Put a huge number, or none, in the place of one."""
    tensors = [path for path in files_of(place) if path.suffix in (".pma", ".safetensors")]
    path = rng.choice(texts_of(place) + tensors)
    if path.suffix == ".json":
        path.write_text(with_other_number(path.read_text(), rng))
        return f"a number of {path}"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    key = next(key for key in header["__metadata__"] if key.startswith("pymc_amortized"))
    what = f"a number of {path}"
    if rng.random() < 0.5:
        header["__metadata__"][key] = with_other_number(header["__metadata__"][key], rng)
        if rng.random() < 0.5:
            del header["__metadata__"]["digest"]
            what = TAMPERED + what
    else:
        name = rng.choice([name for name in header if name != "__metadata__"])
        header[name] = json.loads(with_other_number(json.dumps(header[name]), rng))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return what


DAMAGES: tuple[Callable[[Path, np.random.Generator], str], ...] = (flip, flip_header, truncate, swap, remove, inflate)


UNNOTICED = (swap, remove)
"""Of chunks that xarray reads, and not this package: it cannot tell a file that is another chunk's."""


def damage(source: Path, tmp_path: Path, seed: int, *, but: tuple[Any, ...] = ()) -> tuple[Path, str]:
    """Copy a file or a folder, and damage it."""
    place = tmp_path / source.name
    shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)
    rng = np.random.default_rng(seed)
    ways = [way for way in DAMAGES if way not in but]
    return place, ways[seed % len(ways)](place, rng)


def assert_right_or_named(place: Path, what: str, read: Callable[[], Any], truth: Any) -> None:
    """Read something damaged: what is there equals the truth, or the error names it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = read()
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        told = str(error)
        assert place.name in told or "the model is not the one in the file" in told, f"{what}: {error!r}"
    else:
        assert what.startswith(TAMPERED) or assert_equal(found, truth, what)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < MEMORY, f"{what}: {taken} KiB"


def assert_equal(found: Any, truth: Any, what: str) -> bool:
    assert set(found) == set(truth), what
    for name, values in truth.items():
        np.testing.assert_array_equal(found[name], values, err_msg=f"{what}: {name}")
    return True


def seeds(first: int) -> Any:
    few = range(first, first + FEW)
    more = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(first + FEW, first + MANY)]
    return pytest.mark.parametrize("seed", [*few, *more])


# what is damaged


def fit(folder: Path, **kwargs: Any) -> pma.AmortizedPosterior:
    options = {"training": BRIEF, "sketch": False, "num_simulations": 200, "compile_kwargs": INTERPRETED, **kwargs}
    return brief_fit(killed_model(), checkpoint=folder, **options)


def simulate(path: Path) -> xr.DataTree:
    return pma.simulate(killed_model(), 60, store=path, chunk=10, random_seed=1, compile_kwargs=INTERPRETED, **QUIET)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return a folder with everything, undamaged."""
    folder = tmp_path_factory.mktemp("whole")
    fit(folder / "run").save(folder / "saved.pma")
    shutil.copytree(folder / "run", folder / "begun")
    (folder / "begun" / "fitted.pma").unlink()
    simulate(folder / "sims.zarr")
    posterior = pma.load(folder / "saved.pma", model=killed_model())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pymc_amortized.approximators.posterior.sample.LARGEST_CHUNK", 2)
        infer(posterior, folder / "results.zarr")
    return folder


@pytest.fixture(scope="module")
def posterior(places):
    return pma.load(places / "saved.pma", model=killed_model())


def infer(posterior: pma.AmortizedPosterior, path: Path) -> xr.DataTree:
    kwargs = {"draws": 20, "chains": 2, "correction": "psis", "random_seed": 1, **QUIET}
    return posterior.sample({"y": Y}, batched=True, store=path, **kwargs)


def weights(posterior: pma.AmortizedPosterior) -> dict[str, np.ndarray]:
    held = {name: weight.numpy() for name, weight in posterior.network.state_dict().items()}
    return held | {"loss": posterior.history.held_out_loss, "entropy": posterior.provenance.entropy}


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Return everything that a store holds, as xarray reads it: what that raises is its own."""
    try:
        tree = xr.open_datatree(path, engine="zarr", chunks=None).load()
    except Exception as error:
        raise ValueError(f"{path.name}: {error}") from error
    groups = {name: node.to_dataset() for name, node in tree.children.items() if name != "written"}
    return {f"{name}/{v}": group[v].to_numpy() for name, group in groups.items() for v in group.variables}


@seeds(0)
def test_a_damaged_posterior(places, tmp_path, seed):
    place, what = damage(places / "saved.pma", tmp_path, seed)
    truth = weights(pma.load(places / "saved.pma", model=killed_model()))
    assert_right_or_named(place, what, lambda: weights(pma.load(place, model=killed_model())), truth)


@seeds(1000)
@pytest.mark.parametrize("folder", ["run", "begun"])
def test_a_damaged_checkpoint(places, tmp_path, folder, seed):
    """What is gone is made again, with the same numbers."""
    place, what = damage(places / folder, tmp_path, seed)
    truth = weights(pma.load(places / "saved.pma", model=killed_model()))
    assert_right_or_named(place, what, lambda: weights(fit(place)), truth)


@seeds(2000)
def test_a_damaged_store_of_simulations(places, tmp_path, seed):
    place, what = damage(places / "sims.zarr", tmp_path, seed)
    spec, sources, _ = read_model(killed_model(), None, None, {}, None)

    def read(path: Path) -> dict[str, Any]:
        made = read_given(path, spec, sources, INTERPRETED)
        return {"theta": made.unconstrained, "y": made.data["y"], **made.variables}

    assert_right_or_named(place, what, lambda: read(place), read(places / "sims.zarr"))


@seeds(3000)
def test_a_damaged_store_that_is_gone_on_with(places, tmp_path, seed):
    place, what = damage(places / "sims.zarr", tmp_path, seed, but=UNNOTICED)
    truth = arrays(places / "sims.zarr")

    def read() -> dict[str, np.ndarray]:
        simulate(place)
        return arrays(place)

    assert_right_or_named(place, what, read, truth)


@seeds(4000)
def test_a_damaged_store_of_results(places, posterior, tmp_path, monkeypatch, seed):
    monkeypatch.setattr("pymc_amortized.approximators.posterior.sample.LARGEST_CHUNK", 2)
    place, what = damage(places / "results.zarr", tmp_path, seed, but=UNNOTICED)
    truth = arrays(places / "results.zarr")

    def read() -> dict[str, np.ndarray]:
        infer(posterior, place)
        return arrays(place)

    assert_right_or_named(place, what, read, truth)
