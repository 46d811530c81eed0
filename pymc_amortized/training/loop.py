"""The training loop.

AdamW on minibatch losses, the gradient of all weights clipped to one norm, the learning rate warmed
up and annealed. The weights judged on held-out simulations, kept and returned are a moving average
over the latest steps (Polyak & Juditsky 1992), at its best.
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from pymc_amortized.logs import logger
from pymc_amortized.ranks import noting, number_of_ranks, rank
from pymc_amortized.training.device import choose_device, isolated_random_numbers
from pymc_amortized.training.options import Training
from pymc_amortized.training.progress import Callback, ProgressBar, Status, Throttled
from pymc_amortized.training.run import Run, Task
from pymc_amortized.training.schedule import LastLayers
from pymc_amortized.training.settling import Stopped, Stopping
from pymc_amortized.training.source import Batches
from pymc_amortized.training.state import TrainingState
from pymc_amortized.training.trained import Trained
from pymc_amortized.training.weights import FlatWeights

KEEP_SECONDS = 30.0
"""From when on states are kept again."""
Keep = Callable[[list[TrainingState]], None]
"""Takes the states of trainings, to go on from there another time."""


def train(
    network: nn.Module,
    source: Batches,
    held_out: tuple[Tensor, Mapping[str, Tensor]],
    options: Training,
    *,
    seed: int = 0,
    resume: TrainingState | None = None,
    progress: bool | Callback = False,
    device: str | torch.device | None = None,
    last_layers: LastLayers | None = None,
    stopping: Stopping | None = None,
) -> Trained:
    """Train a network.

    Parameters
    ----------
    network : nn.Module
        With a method ``loss(z, encoded)`` that returns the mean loss of a batch. It is trained in
        place, moved to the device and left there, in evaluation mode, with the best weights. Where its loss is not in
        nats, its attribute ``negligible`` says how much of it, per parameter, is not worth more training.
    source : Batches
        Gives the training batches, on the device.
    held_out : tuple
        (z (n, dim), encoded: named tensors (n, ...)), never trained on.
    options : Training
    seed : int
        For what is random in the network itself, such as dropout. torch's global generators are
        left untouched.
    resume : TrainingState, optional
        Of an earlier training of this network. If that was interrupted, it goes on where it
        stopped; if it was finished, a new schedule begins at a lower learning rate.
    progress : bool or callable
        True shows a progress bar. A callable is given a ``Status`` at most ten times a second.
    device : str, torch.device or None
        See ``choose_device``.
    last_layers : LastLayers, optional
        From when on only these are trained.
    stopping : Stopping, optional
        When to stop before all steps of the options are made.

    Returns
    -------
    Trained

    Notes
    -----
    ``KeyboardInterrupt`` is not raised: it ends training, and the best weights so far are kept.
    """
    task = Task(network, source, held_out, options, resume, last_layers=last_layers, stopping=stopping)
    return train_together([task], seed=seed, progress=progress, device=device)[0]


def train_together(
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    progress: bool | Callback = False,
    device: str | torch.device | None = None,
    keep: Keep | None = None,
) -> list[Trained]:
    """Train several networks in one loop, a step of each in turn.

    Each has its own optimizer, schedule and best weights, and stops when it has a reason to; the others go on. Their
    sources may be views of one (:class:`pymc_amortized.training.shared.Shared`).

    Parameters
    ----------
    tasks : sequence of Task
    seed, progress, device
        As in :func:`train`.
    keep : callable, optional
        Is given the states of all every half minute, and when the process is told to end (SIGTERM), which it then does.
        Of several ranks each calls it, at the same step.

    Returns
    -------
    list of Trained
    """
    place = choose_device(device)
    with ExitStack() as stack:
        for task in tasks:
            stack.callback(task.source.close)
        stack.enter_context(isolated_random_numbers(seed + rank(), place))
        if number_of_ranks() > 1:
            stack.enter_context(noting(signal.SIGINT))
        if keep is not None:
            stack.enter_context(noting(signal.SIGTERM))
        stack.enter_context(torch.enable_grad())
        bar = stack.enter_context(ProgressBar()) if progress is True and rank() == 0 else None
        shown = Throttled(progress if callable(progress) else bar)
        runs = []
        for task in tasks:
            weights = FlatWeights(task.network.to(place))
            stack.enter_context(weights.flattened())
            runs.append(Run(task, weights))
        ended: dict[int, Stopped] = {}
        try:
            _until_stopped(runs, ended, shown, keep)
        except KeyboardInterrupt:
            logger.info("Interrupted: the best weights so far are kept, and checked. This takes some seconds.")
            ended = {i: ended.get(i, "interrupt") for i in range(len(runs))}
        trained = [run.ended(ended[i]) for i, run in enumerate(runs)]
        if shown.callback is not None:
            shown(_status(runs))
        return trained


def _until_stopped(runs: list[Run], ended: dict[int, Stopped], shown: Throttled, keep: Keep | None) -> None:
    """Step until each run has a reason to stop; `ended` is filled with these."""
    for run in runs:
        run.begin()
    kept = _elapsed(runs)
    while True:
        told = any(run.told_to_end() for run in runs)
        if keep is not None and (told or _elapsed(runs) > kept + KEEP_SECONDS):
            keep([run.state(finished=False) for run in runs])
            kept = _elapsed(runs)
        if told:
            logger.info("Told to end (SIGTERM): where training stands is written; call again, and it goes on.")
            raise SystemExit(128 + signal.SIGTERM)
        if len(ended) == len(runs):
            return
        for i, run in enumerate(runs):
            if i not in ended and (reason := run.step()):
                ended[i] = reason
        if shown.due(time.perf_counter()):
            shown(_status(runs))


def _elapsed(runs: list[Run]) -> float:
    """Seconds since the beginning; the same on all ranks."""
    return max(run.elapsed() for run in runs)


def _status(runs: list[Run]) -> Status:
    """Return what is shown of the progress: of the slowest run, with all losses together."""
    each = [run.status() for run in runs]
    slowest = min(each, key=lambda status: status.fraction)
    losses = {name: sum(getattr(status, name) for status in each) for name in ("loss", "held_out_loss")}
    return replace(slowest, **losses)
