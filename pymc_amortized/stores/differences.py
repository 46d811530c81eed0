"""What differs between two descriptions, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def differences(one: Mapping[str, Any], other: Mapping[str, Any], place: str = "") -> list[tuple[str, Any, Any]]:
    """Return the names of what differs, with both values."""
    found = []
    for name in dict.fromkeys([*one, *other]):
        there, now = one.get(name), other.get(name)
        if isinstance(there, Mapping) and isinstance(now, Mapping):
            found += differences(there, now, f"{place}{name}, ")
        elif not _same(there, now):
            found.append((f"{place}{name}", there, now))
    return found


def say_differences(found: Sequence[tuple[str, Any, Any]]) -> str:
    """Say the first three of them in words; of measured numbers, which tell a user nothing, that they differ."""
    pairs = {name: (_say(there), _say(now)) for name, there, now in found[:3]}
    return "; ".join(
        f"{name} differs" if there == now else f"{name}: {there} there, {now} now"
        for name, (there, now) in pairs.items()
    )


def _say(value: Any) -> str:
    if isinstance(value, list | tuple) and any(isinstance(number, float) for number in value):
        return "values"
    return "nothing" if value is None else f"{value!r:.80}"


def _same(one: Any, other: Any) -> bool:
    """Whether values are the same, numbers up to what another machine explains."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-6, atol=1e-6, equal_nan=True))
    return one == other
