"""Simulating in several processes.

PyTensor's compiled functions hold the interpreter's lock, so threads do not help. Workers receive the simulator once,
compile it (from PyTensor's cache on disk) and then take chunks.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import cloudpickle
import joblib
import numpy as np

if TYPE_CHECKING:
    from pymc_amortized.graph.simulator import Simulations


class Chunked(Protocol):
    """What simulates in chunks."""

    def chunk(self, n: int, seed: np.random.SeedSequence) -> Simulations:
        """Attempt `n` simulations."""
        ...


_pickled: WeakKeyDictionary[Any, tuple[str, bytes]] = WeakKeyDictionary()
_received: dict[str, Any] = {}


def run_tasks(simulator: Chunked, tasks: list[tuple[int, np.random.SeedSequence]], cores: int) -> list[Simulations]:
    """Run `simulator.chunk` on every (size, seed), in order, in `cores` processes."""
    if simulator not in _pickled:
        _pickled[simulator] = (uuid.uuid4().hex, cloudpickle.dumps(simulator))
    key, payload = _pickled[simulator]
    jobs = (joblib.delayed(_work)(key, payload, *task) for task in tasks)
    return joblib.Parallel(n_jobs=cores, backend="loky", max_nbytes=None)(jobs)


def _work(key: str, payload: bytes, n: int, seed: np.random.SeedSequence) -> Simulations:
    if key not in _received:
        _received.clear()  # one simulator at a time is enough, and compiled functions are large
        _received[key] = cloudpickle.loads(payload)
    return _received[key].chunk(n, seed)
