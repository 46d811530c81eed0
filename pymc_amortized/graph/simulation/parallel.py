"""Simulating in several processes.

PyTensor's compiled functions hold the interpreter's lock, so threads do not help. Workers receive the simulator once,
compile it (from PyTensor's cache on disk) and then take chunks.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import joblib
import numpy as np
from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor, ShutdownExecutorError

from pymc_amortized.graph.data.simulations import Simulations, concatenate
from pymc_amortized.graph.simulation.sending import pack, unpack
from pymc_amortized.logs import logger

Task = tuple[int, np.random.SeedSequence]
"""How many simulations to make, and by which seed."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Of what runs in another process, which has one core: more threads would wait for each other, at full load."""


class Maker:
    """What simulates in chunks, each by a seed of its own, and may compute further numbers of what it made."""

    _extra: Callable[[Simulations], np.ndarray] | None = None

    def with_extra(self, extra: Callable[[Simulations], np.ndarray] | None) -> Self:
        """Return a copy whose simulations come with what a function tells of them, (n, width), or without."""
        maker = copy.copy(self)
        maker._extra = extra
        return maker

    @property
    def has_extra(self) -> bool:
        """Whether simulations come with further numbers."""
        return self._extra is not None

    def chunk(self, n: int, seed: np.random.SeedSequence) -> Simulations:
        """Attempt `n` simulations of one size."""
        return self.chunks([(n, seed)])

    def chunks(self, tasks: list[Task]) -> Simulations:
        """Attempt the simulations of several tasks, and compute further numbers of all together."""
        made = concatenate([self._attempted(*task) for task in tasks])
        return made if self._extra is None else replace(made, extra=self._extra(made))

    def _attempted(self, n: int, seed: np.random.SeedSequence) -> Simulations:
        """Attempt `n` simulations of one size in one call."""
        raise NotImplementedError


_pickled: WeakKeyDictionary[Any, tuple[str, bytes]] = WeakKeyDictionary()
_received: dict[str, Any] = {}


def run_tasks(worker: Any, method: str, tasks: Iterable[tuple[Any, ...]], cores: int) -> list[Any]:
    """Call a method on every tuple of arguments, in order, in `cores` processes that receive the object once."""
    key, payload = _sent(worker)
    jobs = (joblib.delayed(_work)(key, payload, method, *task) for task in tasks)
    return joblib.Parallel(n_jobs=cores, backend="loky", max_nbytes=None)(jobs)


def in_chunks(maker: Maker, tasks: list[Task], *, cores: int, workers: Workers | None) -> list[Simulations]:
    """Make the simulations of all tasks, in order, in several processes.

    Where further numbers are computed, one process makes 256 simulations or more at once, so that the cost of a call
    vanishes: so many take a fifth of what they take by fours.
    """
    before = np.cumsum([0, *(n for n, _ in tasks[:-1])])
    number = before // 256 if maker.has_extra else np.arange(len(tasks))
    several = [[task for task, k in zip(tasks, number, strict=True) if k == one] for one in np.unique(number)]
    if workers is not None:
        return workers.run(several)
    if cores > 1:
        return run_tasks(maker, "chunks", [(some,) for some in several], cores)
    return [maker.chunks(some) for some in several]


class Workers:
    """Other processes that make chunks while this one does something else.

    What they make is what this process would make, and does make until one of them has compiled the simulator, or if
    one dies.

    Parameters
    ----------
    simulator : Maker
    processes : int
    """

    def __init__(self, simulator: Maker, processes: int) -> None:
        self._simulator = simulator
        self._pool = ProcessPoolExecutor(max_workers=processes, env=dict.fromkeys(THREADS, "1"))
        self._closed = False
        self._ready: Future[Any] | None = self._pool.submit(
            _work, *_sent(simulator), "chunks", [(1, np.random.SeedSequence(0))]
        )

    def run(self, tasks: list[list[Task]]) -> list[Simulations]:
        """Make what belongs together in one process, in order."""
        if self._ready is not None and self._ready.done():
            try:
                return self._by_workers(tasks)
            except (BrokenProcessPool, ShutdownExecutorError) as error:
                if self._closed:
                    raise
                logger.info("A process that simulated is gone (%s): this one goes on alone.", error)
                self._ready = None
        return [self._simulator.chunks(some) for some in tasks]

    def _by_workers(self, tasks: list[list[Task]]) -> list[Simulations]:
        futures = [self._pool.submit(_work, *_sent(self._simulator), "chunks", some) for some in tasks]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End them; what they are working at is lost."""
        self._closed = True
        # `shutdown(kill_workers=True)` fails with a KeyError in the pool's own thread where something waits to be sent
        for process in list(self._pool._processes.values()):
            process.terminate()
        self._pool.shutdown(wait=False)


def _sent(worker: Any) -> tuple[str, bytes]:
    """An object as other processes get it."""
    if worker not in _pickled:
        _pickled[worker] = (uuid.uuid4().hex, pack(worker))
    return _pickled[worker]


def _work(key: str, payload: bytes, method: str, *task: Any) -> Any:
    if key not in _received:
        _received.clear()  # one at a time is enough, and compiled functions are large
        _received[key] = unpack(payload)
    return getattr(_received[key], method)(*task)
