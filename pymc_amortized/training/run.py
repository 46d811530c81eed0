"""One training: what a step, an evaluation and an ending do.

Nothing in a step waits for the device: losses are added up there and read at evaluations. Several ranks alone wait, for
each other.
"""

import copy
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.logs import logger
from pymc_amortized.ranks import agree, average_over_ranks, broadcast, number_of_ranks, was_noted
from pymc_amortized.training.device import precision, random_state, set_random_state
from pymc_amortized.training.history import SERIES, History
from pymc_amortized.training.judge import Judge
from pymc_amortized.training.options import Training
from pymc_amortized.training.progress import Status
from pymc_amortized.training.schedule import DECAY, LastLayers, scheduled
from pymc_amortized.training.settling import (
    FIRST_CHECK,
    Efficiency,
    Stopped,
    Stopping,
    enough_to_judge,
    is_settled,
    last_gain,
    rise,
    stalled,
)
from pymc_amortized.training.source import Batches, moved
from pymc_amortized.training.state import Standing, TrainingState, check_layout, group, prefixed
from pymc_amortized.training.trained import Trained
from pymc_amortized.training.weights import AdamW, FlatWeights, scalar_loss

RESTART_RATE = 0.3
"""A finished training that is continued starts a new schedule at this share of the last peak."""


@dataclass(frozen=True, eq=False)
class Task:
    """A network to train, with what :func:`train` takes for it."""

    network: nn.Module
    source: Batches
    held_out: tuple[Tensor, Mapping[str, Tensor]]
    options: Training
    resume: TrainingState | None = None
    last_layers: LastLayers | None = None
    stopping: Stopping | None = None


class Run:
    """One training.

    Parameters
    ----------
    task : Task
    weights : FlatWeights
        Of its network, on the device.
    """

    def __init__(self, task: Task, weights: FlatWeights) -> None:
        self.network, self.source, self.options = task.network, task.source, task.options
        self.last_layers, self.stopping = task.last_layers, task.stopping
        self.earlier: tuple[Tensor, float] | None = None  # the best weights, and their loss, before the others stay
        self.weights, self.device = weights, weights.vector.device
        self.judge = Judge(task.network, weights, moved(task.held_out, self.device), task.options.batch_size)
        self.at = Standing()
        self.average = weights.copy()
        self.optimizer = AdamW(weights.vector, task.options.weight_decay)
        self.clock = time.perf_counter()
        self.seconds = 0.0  # the same by the clocks of all ranks, if there are several
        self.told = False  # whether one of them was told to end
        self.simulated_before = task.source.seconds  # a fixed set, say: no part of this call
        # Losses since the last evaluation, on the device; NaN where a step was skipped.
        self.losses: list[Tensor] = []
        if task.resume is not None:
            self.restore(task.resume)

    def begin(self) -> None:
        """Judge the weights before the first step."""
        self.network.train()
        if self.at.next_evaluation == 0:
            self.evaluate()

    def step(self) -> Stopped | None:
        """Make one step, unless there is a reason to stop, which is returned, and stays."""
        self.at.stopped = self.at.stopped or self.stepped()
        return self.at.stopped

    def stepped(self) -> Stopped | None:
        """Make one step, or find a reason to stop."""
        if self.stopping is not None and self.at.cycle_step >= self.at.next_check and self.lasts():
            self.check(self.stopping)
        fraction = self.fraction()
        if fraction >= 1:
            return self.ending()
        if self.goes_on_with_last_layers(fraction):
            self.evaluate()
            if reason := self.reason_to_stop():
                return reason
            self.go_on_with_last_layers()
        if fraction >= self.at.next_evaluation:
            self.evaluate()
            if reason := self.reason_to_stop():
                return reason
        self.advance(fraction)
        return None

    def ending(self) -> Stopped:
        """Return why a training has come to its end."""
        if self.at.cycle_step < self.steps:
            return "time"
        return self.at.decided or "steps"

    @property
    def steps(self) -> int:
        """Steps of this cycle, as far as is known."""
        return self.at.limit if self.at.decided else self.options.steps

    def lasts(self) -> bool:
        """Whether the end of a training of unknown length has not begun yet."""
        return not self.at.decided and self.fraction() < 1 - DECAY

    def check(self, stopping: Stopping) -> None:
        """Look whether training is good enough, or brings little; its last steps begin then, at a falling rate."""
        if not self.at.rows or self.at.rows[-1][0] < self.at.step or not self.judge.evaluations:
            self.evaluate()
        if stopping.measure is not None:
            efficiency = self.measured_by(stopping.measure)
            self.at.measured.append([efficiency.typical, efficiency.hardest, efficiency.missed])
        made = self.at.cycle_step
        self.at.next_check = max(2 * made, FIRST_CHECK)
        logger.debug(
            "After %d steps: held-out loss %.3f, %s", made, self.judge.evaluations[-1].loss, self.measured[-1:]
        )
        reason = stopping.reason(self.measured, self.judge.evaluations, made)
        if reason is not None:
            self.at.decided = reason
            self.at.limit = min(math.ceil(made / (1 - DECAY)), self.options.steps)

    @property
    def measured(self) -> tuple[Efficiency, ...]:
        """What was measured in this cycle."""
        return tuple(Efficiency(*values) for values in self.at.measured)

    def measured_by(self, measure: Callable[[], Efficiency]) -> Efficiency:
        """Measure the averaged weights."""
        self.network.eval()
        try:
            with self.weights.replaced(self.average):
                return agree(measure())
        finally:
            self.network.train()

    def goes_on_with_last_layers(self, fraction: float) -> bool:
        """Whether it is time for that."""
        if self.last_layers is None or self.at.last_layers or self.at.decided:
            return False
        return fraction >= self.last_layers.after

    def advance(self, fraction: float) -> None:
        """Make one step."""
        batch = self.source.next()
        with precision(self.options.precision, self.device):
            loss = scalar_loss(self.network, batch)
        gradient, loss = self.averaged(self.weights.gradient(loss), loss.detach().to(self.average.dtype))
        norm = torch.linalg.vector_norm(gradient)
        # A gradient that is not finite counts as zero: no need to ask the device before going on.
        finite = torch.isfinite(norm + loss)
        scale = torch.where(finite, (self.options.clip_norm / norm).clamp(max=1.0), 0.0)
        with self.weights.held():
            self.optimizer.step(gradient.nan_to_num_(0.0, 0.0, 0.0).mul_(scale), self.rate(fraction))
        self.at.step += 1
        self.at.cycle_step += 1
        # An average over the latest share of all steps: the more steps, the longer it looks back.
        share = 1.0 / (1.0 + self.options.averaging * self.at.cycle_step)
        self.average.lerp_(self.weights.vector.detach(), share if self.options.averaging else 1.0)
        self.losses.append(torch.where(finite, loss, math.nan))

    def averaged(self, gradient: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Average over all ranks, which tell each other the time, and of signals, in the same message."""
        if number_of_ranks() == 1:
            return gradient, loss
        signals = was_noted(signal.SIGINT), was_noted(signal.SIGTERM)
        told = gradient.new_tensor([time.perf_counter() - self.clock, *signals])
        vector = average_over_ranks(torch.cat([gradient, loss.view(1), told]))
        self.seconds, interrupted, ending = vector[-3:].tolist()
        self.told = ending > 0
        if interrupted:
            raise KeyboardInterrupt
        return vector[:-4], vector[-4]

    def fraction(self) -> float:
        """Return the share of the training that is done, by steps or time."""
        by_steps = self.at.cycle_step / self.steps if self.steps else 1.0  # nothing to learn
        if self.options.max_time is None:
            return by_steps
        time = (self.at.cycle_seconds + self.elapsed()) / self.options.max_time
        return max(by_steps, time if self.last_layers is None else self.last_layers.fraction(time))

    def go_on_with_last_layers(self) -> None:
        """From the averaged weights, train only the last layers on; the best so far remain to be beaten at the end."""
        loss = self.judge.evaluations[-1].loss
        if not math.isfinite(loss):
            self.judge.use_best()
            self.average.copy_(self.judge.best)
            loss = self.judge.best_loss
        self.earlier = self.judge.best.clone(), self.judge.best_loss
        self.weights.set(self.average)
        self.judge.keep(self.average, loss)
        self.optimizer.forget()  # the moments of what stays would move it
        self.at.fruitless, self.at.last_layers = 0, True
        self.reduce()

    def reduce(self) -> None:
        """Reduce simulations to what the last layers see of them, by the weights that the others have now."""
        reduced = copy.deepcopy(self.network).eval().reduced
        self.source.reduce(reduced)  # type: ignore[arg-type]
        self.judge.reduce(reduced)  # type: ignore[arg-type]

    def elapsed(self) -> float:
        """Return the seconds since this call of ``train``."""
        return time.perf_counter() - self.clock if number_of_ranks() == 1 else self.seconds

    def told_to_end(self) -> bool:
        """Whether the process was told to end, or that of another rank."""
        return was_noted(signal.SIGTERM) if number_of_ranks() == 1 else self.told

    def rate(self, fraction: float) -> float:
        """Return the learning rate."""
        # Taken halfway through the coming step, so that it is never quite zero.
        halfway = fraction + 0.5 / max(self.steps, 1)
        peak = self.options.learning_rate * RESTART_RATE**self.at.cycle * 0.5**self.at.restarts
        if self.stopping is not None:
            return peak * scheduled(halfway, self.at.cycle_step, 0.0, DECAY)
        return peak * scheduled(halfway, self.at.cycle_step, self.options.warmup)

    def evaluate(self) -> None:
        """Judge the averaged weights and add a row to the history."""
        fraction = self.fraction()
        # what is computed alike may differ by rounding, and a user's network may count what it has seen in buffers
        broadcast(self.weights.vector, self.average, *self.weights.buffers.values())
        better = self.judge.evaluate(fraction, self.average)
        self.at.fruitless = 0 if better else self.at.fruitless + 1
        grid = self.options.evaluations
        self.at.next_evaluation = (math.floor(fraction * grid + 1e-9) + 1) / grid
        losses = self.recent_losses().cpu().numpy()
        made = losses[~np.isnan(losses)]
        self.losses.clear()
        self.at.skipped += len(losses) - len(made)
        # two evaluations may follow each other: no step in between is none that was skipped
        self.at.skipped_share = 1 - len(made) / len(losses) if len(losses) else 0.0
        loss = float(made.mean(dtype=np.float64)) if len(made) else math.nan
        held_out, rate = self.judge.evaluations[-1].loss, self.rate(fraction)
        self.at.rows.append([self.at.step, self.at.seconds + self.elapsed(), loss, held_out, rate])

    def reason_to_stop(self) -> Stopped | None:
        """Return why to stop after an evaluation, if there is a reason."""
        if self.at.skipped_share > 0.5:
            if self.at.restarts >= 5:  # going back and halving the rate helps once or twice, or not at all
                return "diverged"
            self.go_back()
        if self.source.fixed and self.at.fruitless >= self.options.patience:
            return "patience"
        return None

    def go_back(self) -> None:
        """Take the best weights, forget the optimizer's moments and halve the learning rate."""
        self.judge.use_best()
        self.average.copy_(self.judge.best)
        self.optimizer.forget()
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
        evaluations, negligible = self.judge.evaluations, self.judge.negligible
        gain, error = last_gain(evaluations)
        judged = stopped in ("target", "gain") or enough_to_judge(self.at.cycle_step, len(evaluations))
        if self.at.last_layers and self.last_layers is not None:
            judged = judged and not stalled(evaluations, self.last_layers.after, negligible * self.judge.parameters)
        overfit = rise(evaluations, negligible) if self.source.fixed else 0.0
        made, seconds = agree((self.source.simulations, self.source.seconds))
        return Trained(
            network=self.network,
            history=self.history(),
            state=state,
            stopped=stopped,
            settled=judged and is_settled(stopped, gain, error, overfit, negligible * self.judge.parameters),
            gain=gain,
            gain_error=error,
            overfit=overfit,
            held_out_loss=self.judge.best_loss,
            simulations=made if self.source.fixed else made * number_of_ranks(),
            seconds_simulating=seconds,
            seconds_training=self.at.training_seconds + self.elapsed() - seconds + self.simulated_before,
            measured=self.measured,
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
            **prefixed("optimizer", self.optimizer.moments),
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
        self.source.restore(state.values["source"], exactly=not self.at.finished)
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
            self.optimizer.restore(moments)
        set_random_state(self.device, group(state.tensors, "random"))
        if self.at.last_layers and self.last_layers is not None:
            self.reduce()
