"""Checkpoints: a folder in which a fit keeps what it has, so that the same call goes on after its process was killed.

What the clock decided is kept as it was decided; everything before the training is a function of that and of the seed,
and is done again. Of a training its state is kept: of several networks and ranks in one file, so that all are of one
step. Files are written by the rules of saved objects: no code, and whole or not at all. Rank 0 writes.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pymc_amortized.approximators.fitting.fingerprint import digest
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.storage.codec import Part, describe, read_record
from pymc_amortized.approximators.storage.networks import read_state
from pymc_amortized.approximators.storage.seals import check_seal, read_sealed_json, sealed_json, sealed_metadata
from pymc_amortized.logs import logger
from pymc_amortized.ranks import agree, by_first, gathered, number_of_ranks, rank
from pymc_amortized.stores.differences import differences, say_differences
from pymc_amortized.stores.store import Store
from pymc_amortized.training import TrainingState

KEY = "pymc_amortized_training"
CALL, DECISIONS, TRAINING, DONE = "fit.json", "decisions.json", "training.safetensors", "fitted.pma"


class Savable(Protocol):
    """What a fit gives."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file."""
        ...


@dataclass(frozen=True)
class Kept:
    """Where trainings stand that are done together."""

    states: tuple[TrainingState, ...]
    """Of each network, on rank 0."""
    others: tuple[TrainingState, ...]
    """The same on rank 1, then 2, ...: the tensors that differ from those on rank 0."""


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
        self.interrupted = self._warned = False

    @classmethod
    def at(
        cls,
        folder: str | PathLike[str],
        about: Callable[[], Mapping[str, Any]],
        entropy: tuple[int, ...],
        *,
        any_seed: bool,
    ) -> Checkpoint:
        """Begin a folder, or open one that the same call has begun.

        Parameters
        ----------
        folder : path-like
        about : callable
            Returns what the fit depends on, by the words that a message names it with; JSON.
        entropy : tuple of int
        any_seed : bool
            Whether the seed of a folder that is there is taken instead.

        Raises
        ------
        ValueError
            When the folder holds something else, which is named, or is damaged.
        """
        place = Path(folder)
        return cls(place, by_first(lambda: _begun(place, about(), entropy, any_seed)))

    @property
    def simulations(self) -> Path:
        """Where a fixed set of simulations is stored."""
        return self.folder / "simulations.zarr"

    @property
    def done(self) -> Path:
        """Where what was trained is saved in the end."""
        return self.folder / DONE

    def decide[T](self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """Return what was decided by the clock, a frozen dataclass, as it was decided first."""
        path = self.folder / DECISIONS
        known = by_first(lambda: _read_json(path) if path.is_file() else {})
        if name in known:
            try:
                return read_record([kind], known[name], Part(None))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"checkpoint: {str(path)!r} is damaged: {error}") from None
        made = make()
        described = describe(made)[0]
        self._try_to_write(DECISIONS, sealed_json(known | {name: described}))
        return made

    def resume(self, networks: Sequence[nn.Module]) -> list[TrainingState] | None:
        """Return where the training of some networks stood, if it had begun."""
        path = self.folder / TRAINING
        if not by_first(path.is_file):
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                values = json.loads(metadata[KEY])
                check_seal(metadata, KEY, Part(file))
                kept: Kept = read_record([Kept], values, Part(file))
                states = [read_state(one, network) for one, network in zip(kept.states, networks, strict=True)]
                if rank() > 0:
                    own = kept.others[(rank() - 1) * len(networks) : rank() * len(networks)]
                    states = [_completed(one, first) for one, first in zip(own, states, strict=True)]
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"checkpoint: {str(path)!r} is damaged ({error}). Delete it, and training begins anew"
            ) from None
        steps = max(state.values["standing"]["step"] for state in states)
        logger.info("Training goes on from step %d, as %s says.", steps, path)
        return states

    def keep(self, states: Sequence[TrainingState]) -> None:
        """Write where trainings stand; a full disk is said, and ends nothing."""
        if ranks := gathered(list(states)):
            first, *others = ranks
            differing = [_differing(one, same) for each in others for one, same in zip(each, first, strict=True)]
            described, tensors = describe(Kept(tuple(first), tuple(differing)))
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            metadata = sealed_metadata(KEY, json.dumps(described, allow_nan=False), plain)
            self._try_to_write(TRAINING, lambda path: save_file(plain, path, metadata=metadata))
        agree(None)  # no rank ends before it is written

    def finish(self, save: Callable[[Path], object]) -> None:
        """Write what was trained, unless that was interrupted; a full disk is said, and takes nothing."""
        self._warned = False
        if not self.interrupted:
            self._try_to_write(DONE, save)

    def _try_to_write(self, name: str, content: bytes | Callable[[Path], object]) -> None:
        if rank() > 0:
            return
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


def kept_fit[T: Savable](
    folder: str | PathLike[str] | None,
    about: Callable[[], Mapping[str, Any]],
    setup: Setup,
    fit: Callable[[Setup], T],
    again: Callable[[Path], T],
    *,
    any_seed: bool,
) -> T:
    """Fit, or go on with a fit that was begun, or read what it gave.

    Parameters
    ----------
    folder : path-like, optional
        None where nothing is kept.
    about : callable
        Returns what the fit depends on: see :func:`about_fit`.
    setup : Setup
    fit : callable
        Does it.
    again : callable
        Reads what it gave from a file.
    any_seed : bool
        Whether the user gave no seed.
    """
    if folder is None:
        return fit(setup)
    kept = Checkpoint.at(folder, about, setup.entropy, any_seed=any_seed)
    if by_first(kept.done.is_file):
        logger.info("The fit was done already: %s.", kept.done)
        try:
            return again(kept.done)
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(f"checkpoint: {str(kept.folder)!r}: {error.args[0]}") from None
    fitted = fit(replace(setup, checkpoint=kept, entropy=kept.entropy))
    kept.finish(fitted.save)
    return fitted


def about_fit(function: str, models: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """What a fit depends on, by the words that a message names it with.

    Parameters
    ----------
    function : str
        Its name.
    models : mapping of str to object
        Descriptions of models, and of what else it is given.
    **options
        What it is told; None stands for nothing.
    """
    said = {name: _said(value) for name, value in options.items() if value is not None}
    return {"function": function, "processes": number_of_ranks(), **models, **said}


def content_of(simulations: Any) -> Any:
    """What simulations of the user's are known again by."""
    if isinstance(simulations, str | PathLike):  # another store may have taken its place
        return {"content of the store": digest(sorted(map(str, Store.open(simulations).notes().items())))}
    return None if simulations is None else digest(simulations)


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


def _begun(place: Path, about: Mapping[str, Any], entropy: tuple[int, ...], any_seed: bool) -> tuple[int, ...]:
    """Begin a folder, or compare what has begun it; returns the seed of that."""
    versions = {name: version(name) for name in ("pymc-amortized", "pymc", "torch")}
    now = json.loads(json.dumps({"versions": versions} | dict(about)))
    if not (place / CALL).is_file():
        if place.exists() and (place.is_file() or any(place.iterdir())):
            raise ValueError(f"checkpoint: {str(place)!r} holds something else; take a new folder")
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / CALL, sealed_json({"entropy": entropy, "about": now}))
        return entropy
    kept = _read_json(place / CALL)
    numbers, there = kept.get("entropy"), kept.get("about")
    if not isinstance(there, dict) or not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
        raise ValueError(f"checkpoint: {str(place / CALL)!r} is damaged")
    pair = ({"random_seed": numbers}, {"random_seed": numbers if any_seed else list(entropy)})
    if differ := differences(there | pair[0], now | pair[1]):
        raise ValueError(
            f"checkpoint: {str(place)!r} is of another call ({say_differences(differ)}). Take another folder"
        )
    return tuple(numbers)


def _differing(state: TrainingState, first: TrainingState) -> TrainingState:
    """Leave out the tensors that are the same on rank 0."""
    tensors = {name: t for name, t in state.tensors.items() if not _same(t, first.tensors.get(name))}
    return TrainingState(tensors, state.values)


def _same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _completed(state: TrainingState, first: TrainingState) -> TrainingState:
    """Take from rank 0 what is the same there."""
    own = {name: tensor for name, tensor in state.tensors.items() if name in first.tensors}
    return TrainingState(dict(first.tensors) | own, state.values)
