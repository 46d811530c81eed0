"""What is said of a training, whatever is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pymc_amortized.approximators.fitting.seeds import RandomState, Stage, entropy_of, stage_integer, stage_seed
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.logs import show_progress, working_seconds
from pymc_amortized.ranks import agree
from pymc_amortized.training import (
    Batch,
    Batches,
    LastLayers,
    Stopping,
    Task,
    Trained,
    Training,
    TrainingState,
    choose_device,
    torch_threads,
    train_together,
)
from pymc_amortized.training.device import check_precision, isolated_random_numbers

FOR_TRAINING, LEAST = 0.8, 0.1
"""Share that training takes of the seconds left of a call, the rest is for checks; and at least, of all of them."""


class Checkpoint(Protocol):
    """What a setup takes for one."""

    interrupted: bool
    """Whether a training was, so that the fit is not done."""

    @property
    def folder(self) -> Path:
        """Where all is kept."""
        ...

    @property
    def simulations(self) -> Path:
        """Where a fixed set of simulations is stored."""
        ...

    def decide[T](self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """Return what was decided first."""
        ...

    def resume(self, networks: Sequence[nn.Module]) -> Sequence[TrainingState] | None:
        """Return where the training of some networks stood."""
        ...

    def keep(self, states: Sequence[TrainingState]) -> None:
        """Keep where it stands."""
        ...


@dataclass(frozen=True)
class Setup:
    """How a training is done.

    Attributes
    ----------
    options : Training
    entropy : tuple of int
        Seed of everything random, which repeats a training.
    device : torch.device
        Where networks are trained.
    progressbar : bool
    compile_kwargs : mapping or None
        Passed to :func:`pymc.compile`.
    until : float
        When the whole call should be over, by :func:`working_seconds`.
    checkpoint : Checkpoint or None
        Where the fit keeps what it has.
    """

    options: Training
    entropy: tuple[int, ...]
    device: torch.device
    progressbar: bool = True
    compile_kwargs: CompileKwargs | None = None
    until: float = math.inf
    checkpoint: Checkpoint | None = None

    def decide[T](self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """Make a decision that hangs on the clock, a frozen dataclass; with a checkpoint, as it was made first."""
        return make() if self.checkpoint is None else self.checkpoint.decide(name, kind, make)

    def __post_init__(self) -> None:
        check_precision(self.options.precision, self.device)

    @property
    def left(self) -> float:
        """Seconds that are left of the whole call."""
        return agree(self.until - working_seconds())

    @property
    def bounded(self) -> Training:
        """Options of which ``max_time`` is what training may take of the seconds that are left of the whole call."""
        options = self.options
        if options.max_time is None or math.isinf(self.until):
            return options
        return replace(options, max_time=max(FOR_TRAINING * self.left, LEAST * options.max_time))

    def seed(self, stage: Stage, *path: int) -> np.random.SeedSequence:
        """Seed of a stage, and of a step within it; always the same for the same entropy."""
        return stage_seed(self.entropy, stage, *path)

    def integer(self, stage: Stage) -> int:
        """Seed of a stage as an integer, for torch."""
        return stage_integer(self.entropy, stage)

    def random_numbers(self) -> AbstractContextManager[None]:
        """Seed torch's global generator for the making of networks, and put it back at the end."""
        return isolated_random_numbers(self.integer(Stage.NETWORK), torch.device("cpu"))

    def with_options(self, **changes: Any) -> Setup:
        """Return the same with other options of the training."""
        return replace(self, options=replace(self.options, **changes))

    def threads(self) -> AbstractContextManager[None]:
        """Let torch compute with the threads that were planned."""
        return torch_threads(self.options.threads or torch.get_num_threads())

    def train(
        self,
        network: nn.Module,
        source: Batches,
        held_out: Batch,
        *,
        resume: TrainingState | None = None,
        last_layers: LastLayers | None = None,
        stopping: Stopping | None = None,
    ) -> Trained:
        """Train one network by a source of batches, judged by a prepared batch; see :func:`train`."""
        task = Task(network, source, held_out, self.options, resume, last_layers=last_layers, stopping=stopping)
        return self.train_together([task])[0]

    def train_together(self, tasks: Sequence[Task]) -> list[Trained]:
        """Train several networks in one loop, and keep where they stand; see :func:`train_together`."""
        kept = self.checkpoint
        if kept is not None and (states := kept.resume([task.network for task in tasks])):
            tasks = [replace(task, resume=state) for task, state in zip(tasks, states, strict=True)]
        with self.threads():
            trained = train_together(
                tasks,
                seed=self.integer(Stage.LOOP),
                progress=self.progressbar,
                device=self.device,
                keep=None if kept is None else kept.keep,
            )
        if kept is not None and any(each.stopped == "interrupt" for each in trained):
            kept.interrupted = True
        return trained


def read_setup(
    training: Training | None,
    max_time: float | None,
    random_seed: RandomState,
    device: str | torch.device | None,
    progressbar: bool,
    compile_kwargs: CompileKwargs | None,
    default: Training | None = None,
) -> Setup:
    """Check the arguments that all trainings take; `default` stands for a training that is not given."""
    if training is not None and not isinstance(training, Training):
        raise TypeError(f"training must be a pymc_amortized.Training, got {type(training).__name__}")
    options = training or default or Training()
    options = options if max_time is None else replace(options, max_time=max_time)
    place = choose_device(device)
    show_progress(progressbar)
    return Setup(options, agree(entropy_of(random_seed)), place, progressbar, compile_kwargs, end_of_call(max_time))


def end_of_call(max_time: float | None) -> float:
    """When a call should be over that begins now, by :func:`working_seconds`."""
    return math.inf if max_time is None else working_seconds() + max_time
