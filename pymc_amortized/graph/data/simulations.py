"""Draws from the joint distribution of parameters and data, as named arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


class SimulationError(ValueError):
    """Hardly any simulation of the model can be used."""


@dataclass(frozen=True)
class Simulations:
    """Draws from the joint distribution of parameters and data.

    Attributes
    ----------
    unconstrained : ndarray (n, dim)
        Parameters on the scale of the model's value variables, flattened in the model's order; NaN behind those that
        a data set has, where their number differs.
    variables : dict of name to ndarray (n, *shape)
        Free variables on their own scale, and deterministics.
    data : dict of name to ndarray (n, *shape)
        Observed and context variables, complete; at the largest lengths where those differ, NaN or 0 beyond a data
        set's own.
    lengths : dict of name to ndarray (n,)
        Lengths of the dimensions that differ between data sets.
    missing : dict of name to bool ndarray (n, *shape)
        Where values of observed variables count as missing.
    extra : ndarray (n, width) or None
        Further numbers of each data set, where a function computes some.
    attempted : int
        Simulations made, including those that were dropped.
    dropped : dict of str to int
        Why simulations were dropped, and how many.
    """

    unconstrained: np.ndarray
    variables: dict[str, np.ndarray]
    data: dict[str, np.ndarray]
    attempted: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, np.ndarray] = field(default_factory=dict)
    extra: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.unconstrained)

    def take(self, index: Any) -> Simulations:
        """Return some of the simulations; counts are those of all."""
        return replace(
            self,
            unconstrained=self.unconstrained[index],
            variables=take_each(self.variables, index),
            data=take_each(self.data, index),
            lengths=take_each(self.lengths, index),
            missing=take_each(self.missing, index),
            extra=None if self.extra is None else self.extra[index],
        )


def take_each(arrays: Mapping[str, np.ndarray], index: Any) -> dict[str, np.ndarray]:
    """Return some of the entries of every array."""
    return {name: values[index] for name, values in arrays.items()}


def concatenate(parts: list[Simulations]) -> Simulations:
    """Join simulations of the same model."""
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)

    def joined(field: str) -> dict[str, np.ndarray]:
        dicts = [getattr(part, field) for part in parts]
        return {name: np.concatenate([d[name] for d in dicts]) for name in dicts[0]}

    widest = max(p.unconstrained.shape[1] for p in parts)

    def wide(theta: np.ndarray) -> np.ndarray:
        return np.pad(theta, ((0, 0), (0, widest - theta.shape[1])), constant_values=np.nan)

    extras = [part.extra for part in parts if part.extra is not None]
    return Simulations(
        np.concatenate([wide(p.unconstrained) for p in parts]),
        joined("variables"),
        joined("data"),
        sum(p.attempted for p in parts),
        dict(dropped),
        joined("lengths"),
        joined("missing"),
        np.concatenate(extras) if len(extras) == len(parts) else None,
    )


def raised(error: str) -> str:
    """Why a simulation was dropped in which something raised."""
    return f"raised {error}"


def excluded(name: str) -> str:
    """Why one was dropped that the model's density excludes, by a variable."""
    return f"{name}: log density or transform not finite"


def rounded(name: str) -> str:
    """Why one was dropped that is the model's, but cannot be written down as numbers of a computer."""
    return f"draw of {name!r} overflows, or is rounded to a bound"


def truncating(dropped: Mapping[str, int]) -> dict[str, int]:
    """Return those reasons by which the prior is truncated: a density that excludes draws, or no end in time."""
    kept = ("raised ", "draw of ")
    return {why: n for why, n in dropped.items() if "TimeoutError" in why or not why.startswith(kept)}


def rounded_share(dropped: Mapping[str, int], attempted: int) -> float:
    """Share of the draws of a model that cannot be written down."""
    number = sum(count for why, count in dropped.items() if why.startswith("draw of "))
    return number / max(attempted - sum(dropped.values()) + number, 1)


def too_few(simulations: Simulations) -> str:
    """Say how few simulations can be used, and why."""
    raised = all(reason.startswith("raised") for reason in simulations.dropped)
    reasons = ", ".join(
        f"{reason} ({count} of {simulations.attempted})"
        for reason, count in sorted(simulations.dropped.items(), key=lambda item: -item[1])
    )
    return f"only {len(simulations)} of {simulations.attempted} simulations of the model can be used: {reasons}. " + (
        "Is there an error in the function that draws?" if raised else "Narrow the priors to where it is defined"
    )


def describe_dropped(dropped: Mapping[str, int], attempted: int) -> str:
    """Say in one line which simulations were dropped and why."""
    return "; ".join(f"{reason}: {count / attempted:.2%}" for reason, count in dropped.items())
