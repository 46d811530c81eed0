"""Where a training stands, and its form for saving: named tensors and plain values, no pickle."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from pymc_amortized.training.settling import Decided, Stopped


@dataclass(frozen=True, eq=False)
class TrainingState:
    """All that training needs to go on: named tensors (for safetensors) and JSON-able values."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass
class Standing:
    """The counters of a training, JSON-able.

    A cycle is one schedule from warm-up to zero. A finished training that is continued begins
    another.
    """

    step: int = 0
    cycle: int = 0
    cycle_step: int = 0
    # Before the present call of ``train``: all seconds, those of this cycle, those not simulating.
    seconds: float = 0.0
    cycle_seconds: float = 0.0
    training_seconds: float = 0.0
    next_evaluation: float = 0.0  # as a fraction of the cycle
    fruitless: int = 0  # evaluations since the best one
    skipped: int = 0  # steps that were not finite
    skipped_share: float = 0.0  # of the steps between the last two evaluations
    restarts: int = 0
    last_layers: bool = False  # whether only the last layers are still trained
    finished: bool = False
    limit: int = 0  # steps of this cycle, once the end of a training of unknown length is decided
    decided: Decided | None = None  # why
    stopped: Stopped | None = None  # why this cycle ended
    next_check: int = 0  # steps of this cycle after which it is looked at whether to end
    measured: list[list[float]] = field(default_factory=list)  # efficiencies then: typical, hardest, missed
    rows: list[list[float]] = field(default_factory=list)  # of the history

    def next_cycle(self) -> "Standing":
        """Return the counters at the beginning of a new schedule."""
        return replace(
            self,
            cycle=self.cycle + 1,
            cycle_step=0,
            cycle_seconds=0.0,
            next_evaluation=0.0,
            fruitless=0,
            last_layers=False,
            finished=False,
            limit=0,
            decided=None,
            stopped=None,
            next_check=0,
            measured=[],
        )

    def values(self) -> dict[str, Any]:
        """Return the counters as JSON-able values; what is not finite becomes a string."""
        rows = [[v if math.isfinite(v) else str(v) for v in row] for row in self.rows]
        return {**asdict(self), "rows": rows}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Standing":
        """Rebuild what ``values`` returned."""
        return cls(**{**values, "rows": [[float(v) for v in row] for row in values["rows"]]})


def group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix.``, without it."""
    start = prefix + "."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors under ``prefix.name``, on the CPU."""
    return {f"{prefix}.{name}": t.detach().to("cpu", copy=True) for name, t in tensors.items()}


def check_layout(saved: list[Any], own: list[Any]) -> None:
    """Raise ValueError, naming the first difference, unless both are the weights of one network."""
    for there, here in zip(saved, own, strict=False):
        if list(there) != list(here):
            raise ValueError(
                f"resume is the state of another network: it holds {there[0]} {tuple(there[1])} "
                f"where this network has {here[0]} {tuple(here[1])}."
            )
    if len(saved) != len(own):
        raise ValueError(
            f"resume is the state of another network: it holds {len(saved)} parameters, this network has {len(own)}."
        )
