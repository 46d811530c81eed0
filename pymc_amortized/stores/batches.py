"""Training batches of simulations that are larger than memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pymc_amortized.ranks import number_of_ranks, rank
from pymc_amortized.stores.scratch import Scratch
from pymc_amortized.training import Batch
from pymc_amortized.training.source import Reduce, moved

WINDOW = 4
"""Blocks that are shuffled together: batches mix simulations of all of them."""
KEY = "encoded."
"""Before the names of what networks are given, in the file of a block."""


class BlockBatches:
    """Batches of blocks on disk, in a new order every epoch.

    Blocks are prepared once, as they come, and written to files. An epoch takes them in random order, some at a time,
    whose simulations are shuffled. While batches of these are used, a thread reads the next ones.

    Parameters
    ----------
    blocks : iterable of Batch
        As a network takes them, of nearly the same size.
    batch_size : int
    seed : int
        The order of an epoch is a pure function of the seed and the epoch's number.
    device : torch.device
        Where batches are wanted.
    beside : path-like, optional
        Files are written to a temporary folder beside this path.
    seconds : float
        What it took to simulate the set, for the report.
    """

    fixed = True

    def __init__(
        self,
        blocks: Iterable[Batch],
        batch_size: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        beside: str | Path | None = None,
        seconds: float = 0.0,
    ) -> None:
        self._beside = None if beside is None else Path(beside).absolute()
        self._folder = Scratch(self._beside)
        self._files, sizes = [], []
        self._shapes: dict[str, tuple[int, ...]] = {}  # the largest of all blocks
        for number, (z, encoded) in enumerate(blocks):
            self._files.append(self._folder.path / f"{number}.safetensors")
            sizes.append(len(z))
            held = {"z": z} | {KEY + name: value for name, value in encoded.items()}
            for name, value in held.items():
                known = self._shapes.setdefault(name, tuple(value.shape[1:]))
                self._shapes[name] = tuple(map(max, known, value.shape[1:]))
            save_file({name: value.cpu().contiguous() for name, value in held.items()}, self._files[-1])
        self._size = min(sizes)  # of every block: the few that others have more of wait for ever
        self.batch_size, self._seed, self._device = min(batch_size, self._size), seed, torch.device(device)
        self.simulations, self.seconds = sum(sizes), seconds
        self._windows = [len(some) for some in batched(self._files, WINDOW)]
        self._starts = np.cumsum([0, *(n * self._size // self.batch_size for n in self._windows)])
        self._drawn = 0
        self._held: tuple[tuple[int, int], Batch] | None = None
        self._coming: tuple[tuple[int, int], Future[Batch]] | None = None
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def next(self) -> Batch:
        """Return the next batch."""
        # ranks take batches in turn
        epoch, within = divmod(self._drawn * number_of_ranks() + rank(), int(self._starts[-1]))
        window = int(np.searchsorted(self._starts, within, side="right")) - 1
        z, encoded = self._window((epoch, window))
        start = (within - int(self._starts[window])) * self.batch_size
        rows = slice(start, start + self.batch_size)
        self._drawn += 1
        return z[rows], {name: value[rows] for name, value in encoded.items()}

    def _window(self, wanted: tuple[int, int]) -> Batch:
        """Return the simulations of a window, and begin to read those of the next one."""
        if self._held is None or self._held[0] != wanted:
            coming, self._coming = self._coming, None
            read = coming[1].result() if coming is not None and coming[0] == wanted else self._read(wanted)
            self._held = wanted, read
            epoch, window = wanted
            following = (epoch, window + 1) if window + 1 < len(self._windows) else (epoch + 1, 0)
            self._coming = following, self._thread.submit(self._read, following)
        return self._held[1]

    def _read(self, at: tuple[int, int]) -> Batch:
        epoch, window = at
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._files))
        first = sum(self._windows[:window])
        files = [load_file(self._files[k]) for k in order[first : first + self._windows[window]]]
        rows = torch.from_numpy(np.random.default_rng((self._seed, *at)).permutation(len(files) * self._size))
        mixed = {
            name: torch.cat([_grown(file[name][: self._size], s) for file in files])[rows]
            for name, s in self._shapes.items()
        }
        z = mixed.pop("z")
        return moved((z, {name.removeprefix(KEY): value for name, value in mixed.items()}), self._device)

    def reduce(self, reduce: Reduce) -> None:
        """From now on give out what the simulations are reduced to: written anew, and small."""
        again = BlockBatches(
            self._reduced(reduce),
            self.batch_size,
            seed=self._seed,
            device=self._device,
            beside=self._beside,
            seconds=self.seconds,
        )
        self.close()
        again._drawn = self._drawn
        self.__dict__ = again.__dict__

    @torch.no_grad()
    def _reduced(self, reduce: Reduce) -> Iterator[Batch]:
        for file in self._files:
            held = load_file(file, device=str(self._device))
            yield held.pop("z"), reduce({name.removeprefix(KEY): value for name, value in held.items()})

    def close(self) -> None:
        """End the thread, and remove the files."""
        self._thread.shutdown(cancel_futures=True)
        self._folder.remove()

    def state(self) -> dict[str, Any]:
        """Return the number of batches drawn, from which all else follows."""
        return {"drawn": self._drawn}

    def restore(self, state: Mapping[str, Any], *, exactly: bool = False) -> None:
        """Go on after that number of batches."""
        self._drawn = int(state["drawn"])


def _grown(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Fill up to a shape with zeros, as encoded data are beyond the end of a data set."""
    sizes = zip(reversed(values.shape[1:]), reversed(shape), strict=True)
    return torch.nn.functional.pad(values, [width for n, wanted in sizes for width in (0, wanted - n)])
