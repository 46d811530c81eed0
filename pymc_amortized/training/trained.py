"""What training returns, and how it is judged and reported."""

import logging
import math
from dataclasses import dataclass, field

from torch import nn

from pymc_amortized.logs import logger
from pymc_amortized.training.history import History
from pymc_amortized.training.settling import Efficiency, Stopped, enough_to_judge
from pymc_amortized.training.state import TrainingState


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and how it came about.

    Attributes
    ----------
    network : nn.Module
        Holds the best weights, in evaluation mode.
    history : History
    state : TrainingState
        To be passed to ``train(resume=...)``.
    stopped : str
        What ended training: "steps", "time", "target" (good enough), "gain" (twice the steps would bring little),
        "patience", "interrupt" or "diverged".
    settled : bool
        Whether more steps would bring little, or are not needed ("target", "gain"): or training came to its end, its
        second half lowered the
        held-out loss by at most 0.05 nats per parameter beyond two standard errors, and it does not
        overfit. Where the last layers went on alone, they brought more than the second half of what
        came before. A loss that is not in nats says itself how much is little.
    gain : float
        By how much the second half of training lowered the held-out loss. NaN if that is not known.
    gain_error : float
        Standard error of ``gain`` over the held-out simulations.
    overfit : float
        Nats by which the last held-out loss lies above the best; 0 if within two standard errors,
        or if simulations were fresh.
    held_out_loss : float
        Of the weights that the network holds.
    simulations : int
        Simulations used for training.
    seconds_simulating, seconds_training : float
        Over all trainings that were continued.
    measured : tuple of Efficiency
        After each doubling of the steps, where that decided when to stop.
    """

    network: nn.Module = field(repr=False)
    history: History = field(repr=False)
    state: TrainingState = field(repr=False)
    stopped: Stopped
    settled: bool
    gain: float
    gain_error: float
    overfit: float
    held_out_loss: float
    simulations: int
    seconds_simulating: float
    seconds_training: float
    measured: tuple[Efficiency, ...] = ()

    @property
    def as_it_began(self) -> bool:
        """Whether no step was needed: what was measured before the first one is true of the result."""
        return self.stopped == "target" and not self.history.step.any()


_ENDINGS: dict[str, str] = {
    "steps": "",
    "time": " (max_time reached)",
    "target": ", until it was good enough",
    "gain": ", until twice the steps would bring little",
    "patience": " (stopped early)",
    "interrupt": " (interrupted; the best weights so far are kept)",
    "diverged": " (given up: most losses were not finite)",
}


def summary_line(trained: Trained) -> str:
    """Return one line: what was done, how long it took, whether the loss settled."""
    history = trained.history
    steps = int(history.step[-1]) if len(history.step) else 0
    if trained.as_it_began:
        return f"No training was needed: as it begins, the network is good enough (loss {trained.held_out_loss:.3f})."
    line = (
        f"Trained {steps:,} steps on {trained.simulations:,} simulations"
        f"{_ENDINGS[trained.stopped]}: {trained.seconds_simulating:.1f} s simulating, "
        f"{trained.seconds_training:.1f} s training. "
        f"Held-out loss {trained.held_out_loss:.3f}; {_verdict(trained)}"
    )
    if history.skipped_steps:
        line += f" {history.skipped_steps:,} steps were skipped, their loss not being finite"
        line += f" ({history.restarts} restarts)." if history.restarts else "."
    return line


def _verdict(trained: Trained) -> str:
    if trained.stopped in ("target", "gain"):
        return f"the second half of training lowered it by {trained.gain:.3f} (+- {trained.gain_error:.3f})."
    if trained.settled:
        return "it settled."
    if trained.overfit > 0:
        return (
            f"training overfits: the loss rose by {trained.overfit:.2f} after its best, whose "
            "weights are kept. More simulations would help."
        )
    steps = trained.history.step
    if not enough_to_judge(int(steps[-1]) if len(steps) else 0, len(steps)):
        return "it was too short to tell whether it settled."
    if math.isfinite(trained.gain):
        return (
            f"it did not settle: the second half of training lowered it by {trained.gain:.3f} "
            f"(+- {trained.gain_error:.3f}), and twice the steps may bring as much again."
        )
    return "whether it settled is not known."


def report(trained: Trained, remark: str = "", *, doubtful: bool | None = None) -> None:
    """Log ``summary_line`` and a remark, as a warning where there is doubt.

    Parameters
    ----------
    remark : str
        What else is known of the result.
    doubtful : bool, optional
        Whether to warn; by default, where training did not settle or went back to its best weights.
    """
    if doubtful is None:
        doubtful = not trained.settled or trained.history.restarts > 0
    line = f"{summary_line(trained)} {remark}".rstrip()
    logger.log(logging.WARNING if doubtful else logging.INFO, line)
