"""Simulating where a simulation may never end: one by one, in a process that can be ended."""

import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pymc_amortized.graph.data.simulations import SimulationError, Simulations, concatenate
from pymc_amortized.graph.simulation.parallel import THREADS
from pymc_amortized.graph.simulation.sending import pack, unpack
from pymc_amortized.graph.simulation.simulator import Simulator

SERVE = "from pymc_amortized.graph.simulation.guarded import serve; serve()"
MOST_IN_A_ROW = 10
"""Simulations without an end, after which none is expected."""


class GuardedSimulator(Simulator):
    """A simulator whose simulations are ended after some seconds, and then count as dropped.

    Each is made alone, by a process of its own: no thread or signal ends compiled code, ending its process does. That
    takes each simulation about a millisecond more.

    Parameters
    ----------
    *args, **kwargs
        As those of :class:`Simulator`.
    timeout : float
        Seconds.
    """

    def __init__(self, *args: Any, timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout = timeout
        self._process: _Process | None = None
        self._in_a_row = 0  # that did not end

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": None}

    def check_ends(self) -> None:
        """Leave the first simulations to the other process, too."""

    def _attempted(self, n: int, seed: np.random.SeedSequence) -> Simulations:
        return concatenate([self._one(child) for child in seed.spawn(n)])

    def _one(self, seed: np.random.SeedSequence) -> Simulations:
        if self._process is None:
            self._process = _Process(pack(self))
        made = self._process.ask(seed, self.timeout)
        self._in_a_row = 0 if made is not None else self._in_a_row + 1
        if made is not None:
            return made
        if self._in_a_row == MOST_IN_A_ROW:
            raise SimulationError(
                f"{MOST_IN_A_ROW} simulations in a row took more than simulation_timeout={self.timeout:g} s, or ended "
                "their process: allow more, or narrow the priors"
            )
        self._process.end()
        self._process = None
        lengths = self.spec.largest
        context = self.context(0, seed, lengths)
        reason = f"TimeoutError: no end after {self.timeout:g} s, or its process died"
        return self.attempts.padded(self.attempts.nothing(reason, lengths, context), lengths)

    def compile(self) -> None:
        """Compile, without a simulation that may hang: none is asked for."""
        lengths = self.spec.largest
        self.attempts.compile(lengths, self.context(0, np.random.SeedSequence(0), lengths))

    def alone(self, seed: np.random.SeedSequence) -> Simulations:
        """Make one simulation in this process, however long it takes."""
        return super()._attempted(1, seed)


class _Process:
    """A process that holds a simulator, and makes a simulation for each seed that it is given."""

    def __init__(self, payload: bytes) -> None:
        self._ours, theirs = Pipe()
        environment = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", SERVE, str(theirs.fileno())]
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._ours.send_bytes(payload)
        try:
            self._ours.recv()  # it has compiled
        except EOFError:
            raise SimulationError(
                "the process that simulates for simulation_timeout= ended before it had begun: what it wrote says why"
            ) from None

    def ask(self, seed: np.random.SeedSequence, seconds: float) -> Simulations | None:
        """Return what it makes, or None if there is nothing in time or it has died."""
        try:
            self._ours.send(seed)
            made = self._ours.recv() if self._ours.poll(seconds) else None
        except (EOFError, OSError):
            return None
        if isinstance(made, Exception):
            raise made
        return made

    def end(self) -> None:
        """End it, whatever it does."""
        self._ours.close()
        self._process.kill()
        self._process.wait()

    def __del__(self) -> None:
        self.end()


def serve() -> None:
    """Make simulations for the process that started this one, until that is gone."""
    theirs = Connection(int(sys.argv[1]))
    try:
        simulator = unpack(theirs.recv_bytes())
        simulator.compile()
        theirs.send(None)
        while True:
            theirs.send(_made(simulator, theirs.recv()))
    except (EOFError, OSError):
        return


def _made(simulator: GuardedSimulator, seed: np.random.SeedSequence) -> Simulations | Exception:
    try:
        # the other process may be gone by then: the system ends this one, whatever it does
        signal.setitimer(signal.ITIMER_REAL, 2 * simulator.timeout + 10)
        return simulator.alone(seed)
    except Exception as error:  # for the other process to raise: no simulation is wrong, but the model is
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
