"""Checkpoints: a folder in which a fit keeps what it has, so that the same call goes on after its process was killed.

What the clock decided is kept as it was decided; everything before the training is a function of that and of the seed,
and is done again. Of a training its state is kept. Files are written by the rules of saved objects: no code, and whole
or not at all.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pymc_amortized.approximators.fitting.fingerprint import digest
from pymc_amortized.approximators.storage.codec import Part, describe, read_record
from pymc_amortized.approximators.storage.models import describe_model
from pymc_amortized.approximators.storage.networks import read_state
from pymc_amortized.approximators.storage.seals import check_seal, read_sealed_json, sealed_json, sealed_metadata
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.logs import logger
from pymc_amortized.stores.differences import differences, say_differences
from pymc_amortized.stores.store import Store
from pymc_amortized.training import TrainingState

KEY = "pymc_amortized_training"
CALL, DECISIONS, DONE = "fit.json", "decisions.json", "posterior.pma"


class Checkpoint:
    """A folder in which a fit keeps what it has.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    entropy : tuple of int
        Seed of the fit that began it.
    """

    def __init__(self, folder: str | PathLike[str], entropy: tuple[int, ...]) -> None:
        self.folder, self.entropy = Path(folder), entropy
        self._warned = False

    @classmethod
    def at(
        cls, folder: str | PathLike[str], about: Mapping[str, Any], entropy: tuple[int, ...], *, any_seed: bool
    ) -> Checkpoint:
        """Begin a folder, or open one that the same call has begun.

        Parameters
        ----------
        folder : path-like
        about : mapping of str to object
            What the fit depends on, by the words that a message names it with; JSON.
        entropy : tuple of int
        any_seed : bool
            Whether the seed of a folder that is there is taken instead.

        Raises
        ------
        ValueError
            When the folder holds something else, which is named, or is damaged.
        """
        place = Path(folder)
        versions = {name: version(name) for name in ("pymc-amortized", "pymc", "torch")}
        now = json.loads(json.dumps({"versions": versions} | dict(about)))
        if not (place / CALL).is_file():
            if place.exists() and (place.is_file() or any(place.iterdir())):
                raise ValueError(f"checkpoint: {str(place)!r} holds something else; take a new folder")
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / CALL, sealed_json({"entropy": entropy, "about": now}))
            return cls(place, entropy)
        kept = _read_json(place / CALL)
        numbers, there = kept.get("entropy"), kept.get("about")
        if not isinstance(there, dict) or not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
            raise ValueError(f"checkpoint: {str(place / CALL)!r} is damaged")
        pair = ({"random_seed": numbers}, {"random_seed": numbers if any_seed else list(entropy)})
        if differ := differences(there | pair[0], now | pair[1]):
            raise ValueError(
                f"checkpoint: {str(place)!r} is of another call ({say_differences(differ)}). Take another folder"
            )
        return cls(place, tuple(numbers))

    @property
    def simulations(self) -> Path:
        """Where a fixed set of simulations is stored."""
        return self.folder / "simulations.zarr"

    @property
    def done(self) -> Path:
        """Where the posterior is saved once it is trained."""
        return self.folder / DONE

    def decide[T](self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """Return what was decided by the clock, a frozen dataclass, as it was decided first."""
        known = _read_json(self.folder / DECISIONS) if (self.folder / DECISIONS).is_file() else {}
        if name in known:
            try:
                return read_record([kind], known[name], Part(None))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"checkpoint: {str(self.folder / DECISIONS)!r} is damaged: {error}") from None
        made = make()
        described = describe(made)[0]
        self._try_to_write(DECISIONS, sealed_json(known | {name: described}))
        return made

    def resume(self, name: str, network: nn.Module) -> TrainingState | None:
        """Return where a training stood, if it had begun."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                values = json.loads(metadata[KEY])
                check_seal(metadata, KEY, Part(file))
                state = read_state(read_record([TrainingState], values, Part(file)), network)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"checkpoint: {str(path)!r} is damaged ({error}). Delete it, and training begins anew"
            ) from None
        logger.info("Training goes on from step %d, as %s says.", state.values["standing"]["step"], path)
        return state

    def keep(self, name: str, state: TrainingState) -> None:
        """Write where a training stands; a full disk is said, and ends nothing."""
        described, tensors = describe(state)
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        metadata = sealed_metadata(KEY, json.dumps(described, allow_nan=False), plain)
        self._try_to_write(f"{name}.safetensors", lambda path: save_file(plain, path, metadata=metadata))

    def finish(self, save: Callable[[Path], object]) -> None:
        """Write the posterior that was trained; a full disk is said, and takes nothing from the caller."""
        self._warned = False
        self._try_to_write(DONE, save)

    def _try_to_write(self, name: str, content: bytes | Callable[[Path], object]) -> None:
        try:
            write_whole(self.folder / name, content)
        except (OSError, SafetensorError) as error:
            if not self._warned:
                logger.warning(
                    "The checkpoint %s could not be written (%s): training goes on, and what is not written would be "
                    "lost with this process.",
                    self.folder / name,
                    error,
                )
            self._warned = True


def about_fit(
    spec: ModelSpec,
    sources: Mapping[str, Any],
    gaps: Mapping[str, Any],
    simulations: Any,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What a fit depends on, by the words that a message names it with."""
    said = {name: _said(value) for name, value in options.items() if value is not None}
    given: Any = None if simulations is None else digest(simulations)
    if isinstance(simulations, str | PathLike):  # another store may have taken its place
        given = {"content of the store": digest(sorted(map(str, Store.open(simulations).notes().items())))}
    return describe_model(spec, sources, gaps) | said | {"simulations": given}


def _said(value: Any) -> Any:
    """A value of an option as JSON; networks of the user's by their class, and functions by their name."""
    if is_dataclass(value) and not isinstance(value, type):
        return describe(value)[0]
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return value


def write_whole(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file so that another process sees all of it, or what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_sealed_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"checkpoint: {str(path)!r} is damaged: {error}") from None
