"""Filling a store: whatever chunks are missing, by this process, by others, or by the workers of a cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import xarray as xr

from pymc_amortized.graph.simulation.parallel import stream_tasks
from pymc_amortized.logs import logger
from pymc_amortized.ranks import wait_until, writes_files
from pymc_amortized.stores.store import Manifest, Store
from pymc_amortized.training.progress import CountBar


class ChunkMaker(Protocol):
    """What makes the content of chunks; other processes receive it once."""

    def make(self, manifest: Manifest, k: int) -> tuple[xr.DataTree, dict[str, Any]]:
        """Return the content of chunk `k`, and its note: short, JSON."""
        ...


class _Filling:
    """Makes and writes chunks, in whatever process."""

    def __init__(self, store: Store, maker: ChunkMaker) -> None:
        self.store, self.maker = store, maker

    def fill(self, k: int) -> None:
        tree, note = self.maker.make(self.store.manifest, k)
        self.store.write(k, tree, note)


def loaded(dataset: xr.Dataset) -> xr.Dataset:
    """Read a part of a Dataset, in this thread alone: it may be a worker of Dask's itself."""
    if not dataset.chunks:
        return dataset.load()
    import dask

    with dask.config.set(scheduler="synchronous"):
        return dataset.load()


def fill(
    store: Store,
    maker: ChunkMaker,
    labels: Mapping[str, Any],
    title: str,
    *,
    cores: int = 1,
    client: Any = None,
    progressbar: bool = True,
) -> None:
    """Make the chunks of a store that are missing.

    Parameters
    ----------
    store : Store
    maker : ChunkMaker
    labels : mapping of name to array_like
        Coordinates along the store's dim.
    title : str
        Shown beside the progress.
    cores : int
        Processes on this machine.
    client : distributed.Client, optional
        Whose workers make the chunks instead, and write them: they have to see the store's path.
    progressbar : bool
    """
    if "://" not in store.path:
        store = Store(Path(store.path).absolute(), store.manifest)  # workers may live in another folder
    if not writes_files():
        wait_until(lambda: not store.missing())
        return
    chunks, manifest = store.manifest.chunks, store.manifest
    with CountBar(title, manifest.number, shown=progressbar, ticking=True, rate=True) as bar:
        if not store.is_laid_out:
            tree, note = maker.make(manifest, 0)
            if not store.is_laid_out:  # by another call, meanwhile
                store.lay_out(tree, labels)
            store.write(0, tree, note)
            bar.advance(chunks[0].stop)
        elif there := len(chunks) - len(store.missing()):
            logger.info("%s: %d of %d chunks are there already.", store.path, there, len(chunks))
            bar.skip(sum(chunks[k].stop - chunks[k].start for k in set(range(len(chunks))) - {*store.missing()}))
        missing = store.missing()
        tasks = [(k,) for k in missing]
        for number, _ in stream_tasks(_Filling(store, maker), "fill", tasks, cores=cores, client=client):
            bar.advance(chunks[missing[number]].stop - chunks[missing[number]].start)
    if lacking := store.missing():
        raise ValueError(
            f"store: {store.path!r} lacks chunks {lacking[:5]} again: another call began it, too. Call again"
        )
