"""How training went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES = {
    "step": np.int64,
    "seconds": np.float64,
    "loss": np.float64,
    "held_out_loss": np.float64,
    "learning_rate": np.float64,
}


def _nothing() -> np.ndarray:
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class History:
    """One entry per evaluation of the held-out loss, the first before any step.

    Attributes
    ----------
    step : ndarray
        Steps made, (evaluations,).
    seconds : ndarray
        Since the beginning of training, simulating included, (evaluations,).
    loss : ndarray
        Mean training loss since the evaluation before, (evaluations,); NaN where there was none.
    held_out_loss : ndarray
        Loss of the averaged weights on the held-out simulations, (evaluations,); inf where it was
        not finite.
    learning_rate : ndarray
        At that step, (evaluations,).
    skipped_steps : int
        Steps whose loss or gradient was not finite. They did not count.
    restarts : int
        How often training went back to the best weights, at half the learning rate, because most
        steps were such.
    """

    step: np.ndarray = field(default_factory=_nothing)
    seconds: np.ndarray = field(default_factory=_nothing)
    loss: np.ndarray = field(default_factory=_nothing)
    held_out_loss: np.ndarray = field(default_factory=_nothing)
    learning_rate: np.ndarray = field(default_factory=_nothing)
    skipped_steps: int = 0
    restarts: int = 0

    def __post_init__(self) -> None:
        lengths = set()
        for name, dtype in SERIES.items():
            series = np.array(getattr(self, name), dtype=dtype)
            series.flags.writeable = False
            object.__setattr__(self, name, series)
            lengths.add(series.shape)
        if len(lengths) > 1:
            shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in SERIES)
            raise ValueError(f"The series of a History must have one length, got {shapes}.")

    @classmethod
    def of(cls, series: Mapping[str, Sequence[float]], *, skipped_steps: int, restarts: int) -> "History":
        """Build a history from named series."""
        arrays: dict[str, Any] = {name: np.asarray(series[name]) for name in SERIES}
        return cls(**arrays, skipped_steps=skipped_steps, restarts=restarts)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Plot training and held-out loss against the step.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw. A new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        for name, label in (("loss", "training"), ("held_out_loss", "held out")):
            series = getattr(self, name)
            shown = np.isfinite(series)
            ax.plot(self.step[shown], series[shown], label=label)
        if (limits := self.limits()) is not None:
            ax.set_ylim(limits)
        ax.set_xlabel("step")
        ax.set_ylabel("loss per simulation")
        ax.legend()
        return ax

    def limits(self) -> tuple[float, float] | None:
        """Range of losses that is worth showing; None where nothing varies."""
        settled = self.held_out_loss[np.isfinite(self.held_out_loss)]
        settled = settled[len(settled) // 20 :]  # the first losses are far above all others
        margin = 0.1 * np.ptp(settled) if len(settled) > 1 else 0.0
        return (settled.min() - margin, settled.max() + margin) if margin > 0 else None
