"""Simulating in several processes.

PyTensor's compiled functions hold the interpreter's lock, so threads do not help. Workers receive the simulator once,
compile it (from PyTensor's cache on disk) and then take chunks.
"""

from __future__ import annotations

import copy
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor, ShutdownExecutorError

from pymc_amortized.graph.data.simulations import Simulations, concatenate
from pymc_amortized.graph.simulation.sending import pack, unpack
from pymc_amortized.logs import logger
from pymc_amortized.numerics.threads import TURN

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


MOST_DEATHS = 3
"""Of processes in a row, without a result in between."""

_pickled: WeakKeyDictionary[Any, tuple[str, bytes]] = WeakKeyDictionary()
_received: dict[str, Any] = {}


def run_tasks(worker: Any, method: str, tasks: Iterable[tuple[Any, ...]], cores: int, client: Any = None) -> list[Any]:
    """Call a method on every tuple of arguments, and return the results in order; see :func:`stream_tasks`."""
    results = dict(stream_tasks(worker, method, tasks, cores=cores, client=client))
    return [results[number] for number in sorted(results)]


def stream_tasks(
    worker: Any, method: str, tasks: Iterable[tuple[Any, ...]], *, cores: int = 1, client: Any = None
) -> Iterator[tuple[int, Any]]:
    """Call a method on every tuple of arguments; yield the number and the result of each as soon as it is there.

    A process that dies is replaced, and what it worked at is given to another.

    Parameters
    ----------
    worker : object
        Sent to each process once.
    method : str
        Its name.
    tasks : iterable of tuple
    cores : int
        Processes on this machine; 1 for this one alone.
    client : distributed.Client, optional
        Whose workers do it instead.

    Raises
    ------
    RuntimeError
        When processes die again and again.
    """
    waiting, deaths = dict(enumerate(tasks)), 0
    if client is None and cores == 1:
        yield from ((number, getattr(worker, method)(*task)) for number, task in waiting.items())
        return
    while waiting:
        submit, width = _submitting(worker, method, cores, client)
        try:
            for number, result in _in_flight(submit, dict(waiting), 2 * width):
                del waiting[number]
                deaths = 0
                yield number, result
        except (BrokenProcessPool, ShutdownExecutorError) as error:
            deaths += 1
            if deaths > MOST_DEATHS:
                raise RuntimeError(
                    f"{deaths} times in a row a process died before it had done anything: is there enough memory?"
                ) from error
            logger.info("A process is gone (%s): what it worked at is given to another.", type(error).__name__)


def _submitting(worker: Any, method: str, cores: int, client: Any) -> tuple[Callable[[tuple[Any, ...]], Any], int]:
    """Return what submits a task, and to how many at once."""
    key, payload = _sent(worker)
    if client is None:
        executor: Any = get_reusable_executor(
            max_workers=cores, timeout=300, initializer=end_with_parent, env=dict.fromkeys(THREADS, "1")
        )
        return (lambda task: executor.submit(_work, key, payload, method, *task)), cores
    executor, held = client.get_executor(), client.scatter(payload, broadcast=True)
    return (lambda task: executor.submit(_work, key, held, method, *task)), max(sum(client.nthreads().values()), 1)


def _in_flight(
    submit: Callable[[tuple[Any, ...]], Any], tasks: dict[int, tuple[Any, ...]], width: int
) -> Iterator[tuple[int, Any]]:
    """Keep so many tasks submitted, and yield results as they come: few are ever held."""
    flying: dict[Any, int] = {}
    try:
        while tasks or flying:
            while tasks and len(flying) < width:
                number = next(iter(tasks))
                flying[submit(tasks.pop(number))] = number
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                yield flying.pop(future), future.result()
    finally:
        for future in flying:
            future.cancel()


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
        self._pool = ProcessPoolExecutor(
            max_workers=processes, initializer=end_with_parent, env=dict.fromkeys(THREADS, "1")
        )
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


def end_with_parent() -> None:
    """End this process once the one that started it is gone, which may have been killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sent(worker: Any) -> tuple[str, bytes]:
    """An object as other processes get it."""
    if worker not in _pickled:
        _pickled[worker] = (uuid.uuid4().hex, pack(worker))
    return _pickled[worker]


def _work(key: str, payload: bytes, method: str, *task: Any) -> Any:
    with TURN:  # a worker of Dask's has several threads
        if key not in _received:
            _received.clear()  # one at a time is enough, and compiled functions are large
            _received[key] = unpack(payload)
        return getattr(_received[key], method)(*task)
