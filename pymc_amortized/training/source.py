"""Where training batches come from: simulations made afresh, or a fixed set of them.

Once parts of a network stay as they are, simulations are reduced to what these make of them, and kept.

A batch is what the network's ``loss`` takes: standardized parameters ``z`` (batch, dim) and the
encoded data, named tensors (batch, ...). It is prepared in large portions, never in the training
step.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.ranks import number_of_ranks, rank

Batch = tuple[Tensor, dict[str, Tensor]]
Simulate = Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]
Reduce = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Encoded data -> what is still needed of them."""

REFILL_BATCHES = 64
"""Large enough for the simulator's overhead per call to vanish, small enough for any memory."""
MEMORY_BYTES = 2**29
"""Of simulations that are kept to be used again: a million of them, once they are reduced to features."""


class Closeable(Protocol):
    """What can be let go of."""

    def close(self) -> None:
        """Let go of it."""
        ...


class Batches(Protocol):
    """A source of training batches, prepared and on the device."""

    @property
    def fixed(self) -> bool:
        """Whether it is a finite set that is seen repeatedly, so that training can overfit."""
        ...

    @property
    def simulations(self) -> int:
        """Distinct simulations given out or held so far."""
        ...

    @property
    def seconds(self) -> float:
        """Spent on simulating and preparing, or on waiting for that."""
        ...

    def next(self) -> Batch:
        """Return the next batch."""
        ...

    def reduce(self, reduce: Reduce) -> None:
        """From now on give out what simulations are reduced to."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on from here, as JSON-able values."""
        ...

    def restore(self, state: Mapping[str, Any], *, exactly: bool = False) -> None:
        """Go on from where ``state`` was taken; exactly: with the same batches as if nothing had happened."""
        ...

    def close(self) -> None:
        """Let go of what works in the background."""
        ...


class FreshSimulations:
    """Batches that are simulated as training goes, each simulation seen once, or a few times where they are slow.

    Then those of a while are kept, and batches are drawn from all of them: the same few time and again would be learned
    by heart.

    Parameters
    ----------
    simulate : callable
        n -> (z (n, dim), encoded: named tensors (n, ...)). It may return fewer than n.
    batch_size : int
        Simulations in a batch.
    device : torch.device
        Where batches are wanted.
    refill : int, optional
        Simulations asked for at a time. By default it starts at one batch and doubles, up to `most`
        batches or 64 MiB of tensors: a slow simulator does not keep a short training waiting.
        The sizes depend on the arrays alone, never on time, so that the same seed gives the same
        simulations.
    workers : callable, optional
        Makes what ``simulate`` may use (:attr:`workers`) and leaves the interpreter's lock alone, other processes say.
        From then on the next simulations are made in a thread while these are used.
    alone : int
        Simulations after which these are started: for a few it would not be worth it.
    passes : int
        How often a simulation is used, on average.
    most : int
        Batches that are asked for at a time.
    """

    fixed = False

    def __init__(
        self,
        simulate: Simulate,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        refill: int | None = None,
        workers: Callable[[], Closeable] | None = None,
        alone: int = 0,
        passes: int = 1,
        most: int = REFILL_BATCHES,
    ) -> None:
        self.simulate, self.passes, self._most = simulate, passes, most
        self.batch_size, self.device = batch_size, torch.device(device)
        self.simulations, self.seconds = 0, 0.0
        self._growing = refill is None
        self._refill = batch_size if refill is None else max(refill, batch_size)
        self._held: Batch | None = None
        self._latest = (0, 0)  # simulations before the latest refill, and those asked for then
        self._used = self._size = 0
        self.workers: Any = None
        self._start, self._alone = workers, alone
        self._thread: ThreadPoolExecutor | None = None
        self._coming: Future[Batch] | None = None
        self._reduce: Reduce | None = None
        self._memory = Memory(MEMORY_BYTES) if passes > 1 else None

    def next(self) -> Batch:
        """Return the next batch, simulating when the last refill is used up."""
        if self._memory is not None:
            return self._remembered(self._memory)
        # A tail shorter than a batch is left: one batch size keeps compiled networks compiled.
        if self._held is None or self._used + min(self.batch_size, self._size) > self._size:
            self._hold(self._simulated())
        assert self._held is not None
        z, encoded = self._held
        # every k-th: neighbours may have been simulated alike
        batch_size = min(self.batch_size, self._size)
        stride, first = self._size // batch_size, self._used // self.batch_size
        rows = slice(first, first + stride * (batch_size - 1) + 1, stride)
        self._used += self.batch_size
        return z[rows], {name: value[rows] for name, value in encoded.items()}

    def reduce(self, reduce: Reduce) -> None:
        """From now on give out what further simulations are reduced to."""
        self._reduce, self._held = reduce, None
        self._used = self._size = 0
        if self._memory is not None:
            # training waits for these to be reduced, and yet shall not begin with a handful
            latest = self._memory.latest(128 * self.batch_size)
            self._memory = Memory(MEMORY_BYTES)
            if latest is not None:
                self._memory.add(_reduced(latest, reduce), seed=self.simulations)
        if self._thread is not None and self._coming is not None:
            coming = self._coming  # the only thread has made it by the time it comes to the next task
            self._coming = self._thread.submit(lambda: _reduced(coming.result(), reduce))

    def _remembered(self, memory: "Memory") -> Batch:
        """Return a batch of what is kept, simulating whenever the latest ones have been used often enough."""
        if self._used >= self.passes * self._size:
            self._hold(self._simulated())
        self._used += self.batch_size
        return memory.next(self.batch_size)

    def _hold(self, batch: Batch) -> None:
        """Take what was simulated as what batches come from, or are remembered from."""
        if self._memory is None:
            self._held = batch
        else:
            self._memory.add(batch, seed=self.simulations)
        self._used, self._size = 0, len(batch[0])

    def _simulated(self) -> Batch:
        start = time.perf_counter()
        self._latest = (self.simulations, self._refill)
        self._start_workers()
        batch = self._made(self._refill, self._reduce) if self._coming is None else self._coming.result()
        z, encoded = batch
        self.simulations += len(z)
        self.seconds += time.perf_counter() - start
        if self._growing:
            size = sum(value.numel() * value.element_size() for value in (z, *encoded.values()))
            affordable = int(2**26 / max(size / len(z) * self.batch_size, 1))
            batches = min(2 * (self._refill // self.batch_size), self._most, affordable)
            self._refill = max(batches, 1) * self.batch_size
        if self._thread is not None:
            self._coming = self._thread.submit(self._made, self._refill, self._reduce)
        return batch

    def _start_workers(self) -> None:
        """Start them once enough simulations were made without."""
        if self._start is not None and self.workers is None and self.simulations >= self._alone:
            self.workers = self._start()
            # PyTensor's functions are not to be called by two threads at once: this one waits for that one to end
            self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    @torch.no_grad()
    def _made(self, n: int, reduce: Reduce | None) -> Batch:
        z, encoded = self.simulate(n)
        if len(z) == 0:
            raise RuntimeError(f"The simulator returned none of the {n} simulations asked for.")
        return _reduced(moved((z, encoded), self.device), reduce)

    def close(self) -> None:
        """End the workers, and wait for the thread."""
        if self.workers is not None and self._thread is not None:
            self.workers.close()
            self._thread.shutdown()
            self.workers = self._start = self._thread = self._coming = None

    def state(self) -> dict[str, Any]:
        """Return the counts, the sizes of the next refill and of the latest one, and how much of that was used."""
        return {
            "simulations": self.simulations,
            "seconds": self.seconds,
            "refill": self._refill,
            "latest": self._latest,
            "used": self._used,
        }

    def restore(self, state: Mapping[str, Any], *, exactly: bool = False) -> None:
        """Continue the counts of an earlier source; exactly: simulate again what it held."""
        self.simulations, self.seconds = int(state["simulations"]), float(state["seconds"])
        if self._growing:
            self._refill = int(state["refill"])
        if not exactly or not self.simulations or self._reduce is not None:
            return
        wanted = self.simulations
        if self._memory is None:
            self.simulations, self._refill = (int(number) for number in state["latest"])
        else:  # all that it remembers
            self.simulations, self._refill = 0, self.batch_size if self._growing else self._refill
        while self.simulations < wanted:
            self._hold(self._simulated())
        self._used, self.seconds = int(state["used"]), float(state["seconds"])
        if self._memory is not None:
            self._memory.skip(self._used, self.batch_size)


class FixedSimulations:
    """Batches from a fixed set of simulations, in a new order every epoch, of which each rank takes its share.

    Parameters
    ----------
    z : Tensor
        Standardized parameters, (n, dim).
    encoded : mapping
        Named tensors (n, ...).
    batch_size : int
        Simulations in a batch; all of them if there are fewer.
    seed : int
        The order of an epoch is a pure function of the seed and the epoch's number.
    device : torch.device
        Where the set is kept.
    seconds : float
        What it took to simulate the set, for the report.
    """

    fixed = True

    def __init__(
        self,
        z: Tensor,
        encoded: Mapping[str, Tensor],
        batch_size: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        seconds: float = 0.0,
    ) -> None:
        if len(z) == 0:
            raise ValueError("FixedSimulations needs at least one simulation, got none.")
        self.z, self.encoded = moved((z, encoded), torch.device(device))
        self.batch_size, self.seed = min(batch_size, len(z) // number_of_ranks()), seed
        self.simulations, self.seconds = len(z), seconds
        self._drawn, self._epoch = 0, -1
        self._order = torch.empty(0, dtype=torch.long)

    def next(self) -> Batch:
        """Return the next batch; less than a batch at an epoch's end waits for the next epoch."""
        epoch, position = divmod(self._drawn, len(self.z) // number_of_ranks() // self.batch_size)
        if epoch != self._epoch:
            order = _permutation((self.seed, epoch), self.z)
            self._epoch, self._order = epoch, order[rank() :: number_of_ranks()]
        rows = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        self._drawn += 1
        return self.z[rows], {name: value[rows] for name, value in self.encoded.items()}

    def reduce(self, reduce: Reduce) -> None:
        """From now on give out what the simulations are reduced to."""
        _, self.encoded = _reduced((self.z, self.encoded), reduce)

    def close(self) -> None:
        """Nothing works in the background."""

    def state(self) -> dict[str, Any]:
        """Return the number of batches drawn, from which all else follows."""
        return {"drawn": self._drawn}

    def restore(self, state: Mapping[str, Any], *, exactly: bool = False) -> None:
        """Go on after that number of batches."""
        self._drawn = int(state["drawn"])


class Memory:
    """Simulations that are kept, up to a size; then the oldest make room.

    Parameters
    ----------
    limit : int
        Bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._size, self._end, self._drawn = limit, 0, 0, 0
        self._names: list[str] = []
        self._tensors: list[Tensor] = []  # z, and one for each name; rows beyond the size are still free
        self._order = torch.empty(0, dtype=torch.long)

    def add(self, batch: Batch, *, seed: int) -> None:
        """Keep these too, and begin a new random order of all, which only depends on the seed."""
        z, encoded = batch
        self._names, values = list(encoded), [z, *encoded.values()]
        self._make_room(values)
        capacity = len(self._tensors[0])
        places = (self._end + torch.arange(len(z), device=z.device)) % capacity
        for kept, new in zip(self._tensors, values, strict=True):
            kept[places] = new
        self._end, self._size = (self._end + len(z)) % capacity, min(self._size + len(z), capacity)
        self._order, self._drawn = _permutation((seed, 0), self._tensors[0][: self._size]), 0

    def latest(self, n: int) -> Batch | None:
        """Return those that were added last, so many if there are; None without any."""
        if self._size == 0:
            return None
        places = (self._end - 1 - torch.arange(min(n, self._size), device=self._tensors[0].device)) % len(
            self._tensors[0]
        )
        z, *encoded = (kept[places] for kept in self._tensors)
        return z, dict(zip(self._names, encoded, strict=True))

    def skip(self, number: int, batch_size: int) -> None:
        """Pass over so many simulations, as if their batches had been given out."""
        for _ in range(number // batch_size):
            self._drawn = (0 if self._drawn + batch_size > self._size else self._drawn) + batch_size

    def _make_room(self, values: list[Tensor]) -> None:
        """Double the capacity where there is not enough, as long as that is allowed."""
        n, capacity = len(values[0]), len(self._tensors[0]) if self._tensors else 0
        each = sum(v[:1].numel() * v.element_size() for v in values)
        largest = max(self._limit // max(each, 1), n)
        if self._size + n <= capacity or capacity >= largest:
            return
        wanted = min(max(2 * capacity, self._size + n), largest)
        old = self._tensors or [v[:0] for v in values]
        self._tensors = [torch.cat([o[: self._size], o.new_empty(wanted - self._size, *o.shape[1:])]) for o in old]
        self._end = self._size % wanted

    def next(self, batch_size: int) -> Batch:
        """Return the next batch in that order, which begins again where it ends."""
        if self._drawn + batch_size > self._size:
            self._drawn = 0
        rows = self._order[self._drawn : self._drawn + batch_size]
        self._drawn += batch_size
        z, *encoded = (kept[rows] for kept in self._tensors)
        return z, dict(zip(self._names, encoded, strict=True))


def _permutation(seed: tuple[int, int], z: Tensor) -> Tensor:
    """An order of the rows of z that only depends on the seed."""
    (state,) = np.random.SeedSequence(seed).generate_state(1)
    return torch.randperm(len(z), generator=torch.Generator().manual_seed(int(state))).to(z.device)


@torch.no_grad()
def _reduced(batch: Batch, reduce: Reduce | None) -> Batch:
    return batch if reduce is None else (batch[0], reduce(batch[1]))


def moved(batch: tuple[Tensor, Mapping[str, Tensor]], device: torch.device) -> Batch:
    """Return the batch on the device."""
    z, encoded = batch
    return z.to(device), {name: value.to(device) for name, value in encoded.items()}
