"""The training loop.

AdamW on minibatch losses, the gradient of all weights clipped to one norm, the learning rate warmed
up and annealed. The weights judged on held-out simulations, kept and returned are a moving average
over the latest steps (Polyak & Juditsky 1992), at its best.

Nothing in a step waits for the device: losses are added up there and read at evaluations.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.training.device import (
    choose_device,
    isolated_random_numbers,
    random_state,
    set_random_state,
)
from pymc_amortized.training.history import SERIES, History
from pymc_amortized.training.judge import Judge
from pymc_amortized.training.options import Training
from pymc_amortized.training.progress import Callback, ProgressBar, Status, Throttled
from pymc_amortized.training.schedule import scheduled
from pymc_amortized.training.settling import Stopped, enough_to_judge, is_settled, last_gain, rise, stalled
from pymc_amortized.training.source import Batches, Reduce, moved
from pymc_amortized.training.state import (
    Standing,
    TrainingState,
    check_layout,
    group,
    prefixed,
)
from pymc_amortized.training.trained import Trained
from pymc_amortized.training.weights import FlatWeights, scalar_loss

# A finished training that is continued starts a new schedule at this share of the last peak.
RESTART_RATE = 0.3
# Most steps since the last evaluation were not finite: go back.
TOO_MANY_SKIPPED = 0.5
# Going back to the best weights and halving the rate helps once or twice, or not at all.
MOST_RESTARTS = 5


class Trainable(Protocol):
    """A module with a loss; what ``train`` can train."""

    def loss(self, z: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        ...


@dataclass(frozen=True)
class Condensing:
    """Training only the last layers of a network, from some point on.

    The others then stay as they are, and what they make of each simulation is computed once: steps become faster by as
    much as the others cost.

    Attributes
    ----------
    freeze : callable
        Returns a function of its own weights, those of now: encoded data -> what the last layers see of them. The
        network's loss takes either.
    after : float
        Share of the steps, in (0, 1), made before.
    time : float
        Share of the time that these are expected to take, their simulations included.
    """

    freeze: Callable[[], Reduce]
    after: float
    time: float

    def fraction(self, time: float) -> float:
        """Return the share of the steps that are expected by a share of the time."""
        if time < self.time:
            return self.after * time / self.time
        return self.after + (1 - self.after) * (time - self.time) / (1 - self.time)


@dataclass(frozen=True, eq=False)
class Task:
    """A network to train, with what :func:`train` takes for it.

    `term` is added to the loss in training.
    """

    network: nn.Module
    source: Batches
    held_out: tuple[Tensor, Mapping[str, Tensor]]
    options: Training
    resume: TrainingState | None = None
    term: Callable[[], Tensor] | None = None
    condensing: Condensing | None = None


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
    condensing: Condensing | None = None,
) -> Trained:
    """Train a network.

    Parameters
    ----------
    network : nn.Module
        With a method ``loss(z, encoded)`` that returns the mean loss of a batch. It is trained in
        place, moved to the device and left there, in evaluation mode, with the best weights.
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
    condensing : Condensing, optional
        From when on only the last layers are trained.

    Returns
    -------
    Trained

    Notes
    -----
    ``KeyboardInterrupt`` is not raised: it ends training, and the best weights so far are kept.
    """
    task = Task(network, source, held_out, options, resume, condensing=condensing)
    return train_together([task], seed=seed, progress=progress, device=device)[0]


def train_together(
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    progress: bool | Callback = False,
    device: str | torch.device | None = None,
) -> list[Trained]:
    """Train several networks in one loop, a step of each in turn.

    Each has its own optimizer, schedule and best weights, and stops when it has a reason to; the others go on. Their
    sources may be views of one (:class:`pymc_amortized.training.shared.Shared`).

    Parameters
    ----------
    tasks : sequence of Task
    seed, progress, device
        As in :func:`train`.

    Returns
    -------
    list of Trained
    """
    place = choose_device(device)
    with ExitStack() as stack:
        for task in tasks:
            stack.callback(task.source.close)
        stack.enter_context(isolated_random_numbers(seed, place))
        stack.enter_context(torch.enable_grad())
        bar = stack.enter_context(ProgressBar()) if progress is True else None
        shown = Throttled(progress if callable(progress) else bar)
        runs = []
        for task in tasks:
            weights = FlatWeights(task.network.to(place))
            stack.enter_context(weights.flattened())
            judge = Judge(task.network, weights, moved(task.held_out, place), task.options.batch_size)
            runs.append(_Run(task, weights, judge))
            if task.resume is not None:
                runs[-1].restore(task.resume)
        ended: dict[int, Stopped] = {}
        try:
            _until_stopped(runs, ended, shown)
        except KeyboardInterrupt:
            ended = {i: ended.get(i, "interrupt") for i in range(len(runs))}
        trained = [run.ended(ended[i]) for i, run in enumerate(runs)]
        if shown.callback is not None:
            shown(_status(runs))
        return trained


def _until_stopped(runs: "list[_Run]", ended: dict[int, Stopped], shown: Throttled) -> None:
    """Step until each run has a reason to stop; `ended` is filled with these."""
    for run in runs:
        run.begin()
    while len(ended) < len(runs):
        for i, run in enumerate(runs):
            if i not in ended and (reason := run.step()):
                ended[i] = reason
        if shown.due(time.perf_counter()):
            shown(_status(runs))


def _status(runs: "list[_Run]") -> Status:
    """Return what is shown of the progress: of the slowest run, with all losses together."""
    each = [run.status() for run in runs]
    slowest = min(each, key=lambda status: status.fraction)
    losses = {name: sum(getattr(status, name) for status in each) for name in ("loss", "held_out_loss")}
    return replace(slowest, **losses)


class _Run:
    """One training: what a step, an evaluation and an ending do."""

    def __init__(self, task: Task, weights: FlatWeights, judge: Judge) -> None:
        self.network, self.source, self.options, self.term = task.network, task.source, task.options, task.term
        self.condensing = task.condensing
        self.earlier: tuple[Tensor, float] | None = None  # the best weights, and their loss, before the others stay
        self.weights, self.judge = weights, judge
        self.at, self.device = Standing(), weights.vector.device
        self.optimizer, self.average = _adamw(weights.vector, task.options), weights.copy()
        self.clock = time.perf_counter()
        self.simulated_before = task.source.seconds  # a fixed set, say: no part of this call
        # Losses since the last evaluation, on the device; NaN where a step was skipped.
        self.losses: list[Tensor] = []

    def begin(self) -> None:
        """Judge the weights before the first step."""
        self.network.train()
        if self.at.next_evaluation == 0:
            self.evaluate()

    def step(self) -> Stopped | None:
        """Make one step, unless there is a reason to stop, which is returned."""
        fraction = self.fraction()
        if fraction >= 1:
            return "steps" if self.at.cycle_step >= self.options.steps else "time"
        if self.condensing is not None and not self.at.condensed and fraction >= self.condensing.after:
            self.evaluate()
            if reason := self.reason_to_stop():
                return reason
            self.freeze(self.condensing)
        if fraction >= self.at.next_evaluation:
            self.evaluate()
            if reason := self.reason_to_stop():
                return reason
        self.advance(fraction)
        return None

    def advance(self, fraction: float) -> None:
        """Make one step."""
        loss = scalar_loss(self.network, self.source.next())
        gradient = self.weights.gradient(loss if self.term is None else loss + self.term().to(loss))
        norm = torch.linalg.vector_norm(gradient)
        # A gradient that is not finite counts as zero: no need to ask the device before going on.
        finite = torch.isfinite(norm + loss.detach())
        scale = torch.where(finite, (self.options.clip_norm / norm).clamp(max=1.0), 0.0)
        self.weights.vector.grad = gradient.nan_to_num_(0.0, 0.0, 0.0).mul_(scale)
        self.optimizer.param_groups[0]["lr"] = self.rate(fraction)
        with self.weights.held():
            self.optimizer.step()
        self.at.step += 1
        self.at.cycle_step += 1
        # An average over the latest share of all steps: the more steps, the longer it looks back.
        share = 1.0 / (1.0 + self.options.averaging * self.at.cycle_step)
        self.average.lerp_(self.weights.vector.detach(), share if self.options.averaging else 1.0)
        self.losses.append(torch.where(finite, loss.detach(), math.nan))

    def fraction(self) -> float:
        """Return the share of the training that is done, by steps or time."""
        by_steps = self.at.cycle_step / self.options.steps
        if self.options.max_time is None:
            return by_steps
        time = (self.at.cycle_seconds + self.elapsed()) / self.options.max_time
        return max(by_steps, time if self.condensing is None else self.condensing.fraction(time))

    def freeze(self, condensing: Condensing) -> None:
        """From the averaged weights, train only the last layers on; the best so far remain to be beaten at the end."""
        loss = self.judge.evaluations[-1].loss
        if not math.isfinite(loss):
            self.judge.use_best()
            self.average.copy_(self.judge.best)
            loss = self.judge.best_loss
        self.earlier = self.judge.best.clone(), self.judge.best_loss
        self.weights.set(self.average)
        self.judge.keep(self.average, loss)
        self.optimizer = _adamw(self.weights.vector, self.options)  # the moments of what stays would move it
        self.at.fruitless, self.at.condensed = 0, True
        self.condense(condensing)

    def condense(self, condensing: Condensing) -> None:
        """Reduce simulations to what the last layers see."""
        reduce = condensing.freeze()
        self.source.condense(reduce)
        self.judge.condense(reduce)

    def elapsed(self) -> float:
        """Return the seconds since this call of ``train``."""
        return time.perf_counter() - self.clock

    def rate(self, fraction: float) -> float:
        """Return the learning rate."""
        # Taken halfway through the coming step, so that it is never quite zero.
        halfway = fraction + 0.5 / self.options.steps
        peak = self.options.learning_rate * RESTART_RATE**self.at.cycle * 0.5**self.at.restarts
        return peak * scheduled(halfway, self.at.cycle_step, self.options.warmup)

    def evaluate(self) -> None:
        """Judge the averaged weights and add a row to the history."""
        fraction = self.fraction()
        better = self.judge.evaluate(fraction, self.average)
        self.at.fruitless = 0 if better else self.at.fruitless + 1
        grid = self.options.evaluations
        self.at.next_evaluation = (math.floor(fraction * grid + 1e-9) + 1) / grid
        losses = self.recent_losses().cpu().numpy()
        made = losses[~np.isnan(losses)]
        self.losses.clear()
        self.at.skipped += len(losses) - len(made)
        self.at.skipped_share = 1 - len(made) / max(len(losses), 1)
        loss = float(made.mean(dtype=np.float64)) if len(made) else math.nan
        held_out, rate = self.judge.evaluations[-1].loss, self.rate(fraction)
        self.at.rows.append([self.at.step, self.at.seconds + self.elapsed(), loss, held_out, rate])

    def reason_to_stop(self) -> Stopped | None:
        """Return why to stop after an evaluation, if there is a reason."""
        if self.at.skipped_share > TOO_MANY_SKIPPED:
            if self.at.restarts >= MOST_RESTARTS:
                return "diverged"
            self.go_back()
        if self.source.fixed and self.at.fruitless >= self.options.patience:
            return "patience"
        return None

    def go_back(self) -> None:
        """Take the best weights, forget the optimizer's moments and halve the learning rate."""
        self.judge.use_best()
        self.average.copy_(self.judge.best)
        self.optimizer = _adamw(self.weights.vector, self.options)
        self.at.restarts += 1

    def ended(self, stopped: Stopped) -> Trained:
        """Judge the last weights, give the network the best ones and return everything."""
        # Before the last judgement, which an uninterrupted training would not have made here.
        state = self.state(finished=False) if stopped == "interrupt" else None
        try:
            if not self.at.rows or self.at.rows[-1][0] < self.at.step:
                self.evaluate()
        except KeyboardInterrupt:  # of somebody impatient: the last weights stay unjudged
            stopped = "interrupt"
        if not math.isfinite(self.judge.best_loss):
            self.judge.keep(self.average, math.inf)
        if self.earlier is not None and self.earlier[1] < self.judge.best_loss:
            self.judge.keep(*self.earlier)
        if state is None:
            state = self.state(finished=stopped != "interrupt")
        self.judge.use_best()
        self.network.eval()
        gain, error = last_gain(self.judge.evaluations)
        judged = enough_to_judge(self.at.cycle_step, len(self.judge.evaluations))
        if self.at.condensed and self.condensing is not None:
            judged = judged and not stalled(self.judge.evaluations, self.condensing.after, self.judge.parameters)
        overfit = rise(self.judge.evaluations) if self.source.fixed else 0.0
        simulating = self.source.seconds - self.simulated_before
        return Trained(
            network=self.network,
            history=self.history(),
            state=state,
            stopped=stopped,
            settled=judged and is_settled(stopped, gain, error, overfit, self.judge.parameters),
            gain=gain,
            gain_error=error,
            overfit=overfit,
            held_out_loss=self.judge.best_loss,
            simulations=self.source.simulations,
            seconds_simulating=self.source.seconds,
            seconds_training=self.at.training_seconds + self.elapsed() - simulating,
        )

    def recent_losses(self) -> Tensor:
        """Return the losses since the last evaluation."""
        return torch.stack(self.losses) if self.losses else torch.empty(0)

    def history(self) -> History:
        """Return the history so far."""
        columns = np.array(self.at.rows, dtype=np.float64).reshape(-1, 5).T
        return History.of(
            dict(zip(SERIES, columns, strict=True)),
            skipped_steps=self.at.skipped,
            restarts=self.at.restarts,
        )

    def status(self) -> Status:
        """Return what is shown of the progress."""
        evaluations = self.judge.evaluations
        held_out = evaluations[-1].loss if evaluations else math.nan
        fraction = min(self.fraction(), 1.0)
        before = self.at.rows[-1][2] if self.at.rows else math.nan
        loss = float(self.losses[-1]) if self.losses else before
        return Status(self.at.step, fraction, loss, held_out, self.elapsed())

    def state(self, finished: bool) -> TrainingState:
        """Return all that is needed to go on."""
        now = {
            "weights": self.weights.vector,
            "average": self.average,
            "losses": self.recent_losses(),
        }
        tensors = {
            **prefixed("now", now),
            **prefixed("buffers", self.weights.buffers),
            **prefixed("optimizer", self.optimizer.state_dict()["state"].get(0, {})),
            **prefixed("random", random_state(self.device)),
            **self.judge.tensors(),
        }
        best_loss = self.judge.best_loss
        simulating = self.source.seconds - self.simulated_before
        standing = replace(
            self.at,
            finished=finished,
            seconds=self.at.seconds + self.elapsed(),
            cycle_seconds=self.at.cycle_seconds + self.elapsed(),
            training_seconds=self.at.training_seconds + self.elapsed() - simulating,
        )
        values = {
            "standing": standing.values(),
            "source": self.source.state(),
            "layout": self.weights.layout,
            "best_loss": best_loss if math.isfinite(best_loss) else None,
        }
        return TrainingState(tensors, values)

    def restore(self, state: TrainingState) -> None:
        """Go on from a state: where it stopped, or with a new cycle if it had finished."""
        check_layout(state.values["layout"], self.weights.layout)
        self.at = Standing.from_values(state.values["standing"])
        self.source.restore(state.values["source"])
        self.simulated_before = self.source.seconds
        self.judge.restore(state.tensors, state.values["best_loss"])
        if self.at.finished:
            self.judge.use_best()
            self.judge.evaluations.clear()
            self.average.copy_(self.judge.best)
            self.at = self.at.next_cycle()
            return
        now, moments = group(state.tensors, "now"), group(state.tensors, "optimizer")
        self.weights.set(now["weights"], group(state.tensors, "buffers"))
        self.average.copy_(now["average"])
        self.losses = list(now["losses"].to(self.device))
        if moments:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": {0: moments}, "param_groups": groups})
        set_random_state(self.device, group(state.tensors, "random"))
        if self.at.condensed and self.condensing is not None:
            self.condense(self.condensing)


def _adamw(vector: nn.Parameter, options: Training) -> torch.optim.AdamW:
    fused = vector.device.type in ("cpu", "cuda", "mps") and vector.is_floating_point()
    return torch.optim.AdamW([vector], lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused)
