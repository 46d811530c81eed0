"""A zarr store that is filled in chunks along one dim.

Its groups are those of a DataTree, which ``xarray.open_datatree(path, engine="zarr")`` opens. Any process may write a
chunk, in any order. It counts once its note is there, which is written after everything else: what a process that died
has left half-written is made again.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pymc_amortized.logs import logger
from pymc_amortized.ranks import wait_until, writes_files
from pymc_amortized.stores.differences import differences, say_differences
from pymc_amortized.stores.seals import naming, seal_chunk, seal_layout

KEY, NOTES = "pymc_amortized", "written"
"""Of the manifest among the attributes of a store, and of the group that holds the notes."""
FORMAT = 2
NOTE_BYTES = 4096
"""Of a note, at most."""
LAYOUT, SEAL = "layout", "digest"
"""Of all arrays' form, in the manifest once they are there; and of a chunk, in its note."""
NEEDED = ("zarr", "dask")


@dataclass(frozen=True)
class Manifest:
    """What a store holds, and what that depends on.

    Attributes
    ----------
    kind : str
        "simulations" or "posteriors".
    dim : str
        Along which it is filled.
    number : int
        Its length.
    chunk : int
        Length of a chunk.
    entropy : tuple of int
        Seed of everything random.
    about : mapping of str to object
        What else the content depends on, by the words that a message names it with; JSON.
    """

    kind: str
    dim: str
    number: int
    chunk: int
    entropy: tuple[int, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chunks(self) -> list[slice]:
        """Which places belong to each chunk."""
        return [slice(k, min(k + self.chunk, self.number)) for k in range(0, self.number, self.chunk)]

    def seed(self, k: int) -> np.random.SeedSequence:
        """Seed of a chunk, whoever makes it and when; of no stage of a training with the same seed."""
        return np.random.SeedSequence(list(self.entropy), spawn_key=(*self.kind.encode(), k))


class Store:
    """A zarr store that is filled in chunks.

    Parameters
    ----------
    path : path-like
        A folder, or an address that zarr understands.
    manifest : Manifest
    """

    def __init__(self, path: str | PathLike[str], manifest: Manifest) -> None:
        self.path, self.manifest = str(path), manifest

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Store:
        """Open a store that is there.

        Raises
        ------
        FileNotFoundError, ValueError
            When there is none, or it is not one of ours, or damaged.
        """
        refuse_without_libraries()
        given = _root_attributes(path).get(KEY)
        if given is None:
            raise ValueError(f"{str(path)!r} is a zarr store, but not one that pymc_amortized wrote")
        if not isinstance(given, dict) or given.get("format") != FORMAT:
            found = given.get("format") if isinstance(given, dict) else None
            raise ValueError(
                f"{str(path)!r} has format {found!r}; this version of pymc_amortized reads format {FORMAT}"
            )
        store = cls(path, _read_manifest(given, path))
        store.check_layout()
        return store

    @classmethod
    def at(cls, path: str | PathLike[str], manifest: Manifest, *, any_seed: bool = False) -> Store:
        """Make a store, or open one that was begun with the same manifest.

        Parameters
        ----------
        path : path-like
        manifest : Manifest
        any_seed : bool
            Whether the seed of a store that is there is taken instead of the manifest's.

        Raises
        ------
        ValueError
            When there is a store of something else; what differs is named.
        """
        refuse_without_libraries()
        import zarr

        if not writes_files():
            wait_until(lambda: _exists(path))
        if not _exists(path):
            described = asdict(manifest) | {"format": FORMAT, "versions": _versions(), LAYOUT: None}
            try:
                zarr.create_group(str(path), attributes={KEY: described}, zarr_format=3)
                return cls(path, manifest)
            except zarr.errors.ContainsGroupError:
                pass  # another call was faster
        store = cls.open(path)
        known = replace(manifest, entropy=store.manifest.entropy) if any_seed else manifest
        if differ := differences(_words(store.manifest), _words(known)):
            raise ValueError(
                f"store: {str(path)!r} was begun with something else ({say_differences(differ)}). Take another path"
            )
        begun = {"versions": _described(store.path).get("versions")}
        if store.missing() and (others := differences(begun, {"versions": _versions()})):
            logger.warning(
                "%s was begun with other %s: chunks that are missing may be made in another way.",
                *(store.path, say_differences(others)),
            )
        return store

    def lay_out(self, tree: xr.DataTree, labels: Mapping[str, Any]) -> None:
        """Make all arrays, by one chunk as an example; what is along the dim is still empty.

        Parameters
        ----------
        tree : DataTree
            Any chunk. What is not along the dim is written as it is.
        labels : mapping of name to array_like
            Coordinates along the dim, of all chunks.
        """
        import zarr

        for name, node in tree.children.items():
            self._lay_out_group(name, node.to_dataset(), labels)
        root = zarr.open_group(self.path, mode="r+", use_consolidated=False)
        root.create_array(
            f"{NOTES}/note",
            shape=(len(self.manifest.chunks), NOTE_BYTES),
            chunks=(1, NOTE_BYTES),
            dtype="uint8",
            compressors=_compressors(),
            dimension_names=("chunk", "byte"),
            overwrite=True,
        )
        described: Any = root.attrs[KEY]
        root.update_attributes({KEY: described | {LAYOUT: seal_layout(root, asdict(self.manifest))}})
        self.consolidate()

    def _lay_out_group(self, name: str, example: xr.Dataset, labels: Mapping[str, Any]) -> None:
        import dask.array

        dim, number, chunk = self.manifest.dim, self.manifest.number, min(self.manifest.chunk, self.manifest.number)
        along = [v for v in example.variables if dim in example[v].dims]
        whole = example.drop_vars(along)
        encoding: dict[Any, dict[str, Any]] = {}
        for v in along:
            if v in example.coords:
                continue
            sizes = dict(example[v].sizes) | {dim: number}
            chunks = tuple(chunk if d == dim else max(n, 1) for d, n in sizes.items())
            empty = dask.array.zeros(tuple(sizes.values()), chunks=chunks, dtype=_widened(example[v].dtype))
            whole[v] = (tuple(sizes), empty, example[v].attrs)
            encoding[v] = {"chunks": chunks}
        if along:
            whole = whole.assign_coords({k: (dim, values) for k, values in labels.items()})
        encoding = {v: encoding.get(v, {}) | {"compressors": _compressors()} for v in whole.variables}
        whole.to_zarr(
            self.path, group=name, mode="w", compute=False, consolidated=False, zarr_format=3, encoding=encoding
        )

    @property
    def is_laid_out(self) -> bool:
        """Whether all arrays are there."""
        return _described(self.path)[LAYOUT] is not None

    def check_layout(self) -> None:
        """Refuse arrays of another form than they were made with."""
        import zarr

        if (seal := _described(self.path)[LAYOUT]) is None:
            return
        with naming(self.path):
            found = seal_layout(zarr.open_group(self.path, mode="r"), asdict(self.manifest))
        if found != seal:
            raise ValueError(f"{self.path!r} is damaged: its arrays, or its manifest, are not those that were written")

    def write(self, k: int, tree: xr.DataTree, note: Mapping[str, Any]) -> None:
        """Write a chunk, and then its note: short, JSON.

        Raises
        ------
        ValueError
            When the chunk holds what the store has no place for.
        """
        import zarr

        with naming(self.path):
            root: Any = zarr.open_group(self.path, mode="r+")
        at = self.manifest.chunks[k]
        for name, node in tree.children.items():
            variables, dim = node.to_dataset(), self.manifest.dim
            kept = [v for v in variables.data_vars if dim in variables[v].dims]
            along = [v for v, array in root[name].arrays() if dim in (array.metadata.dimension_names or ())]
            if lacking := sorted({*along} - {*map(str, variables.variables)}):
                raise ValueError(f"store: chunk {k} lacks {name}[{lacking[0]!r}], and the first one had it")
            for v in kept:
                if f"{name}/{v}" not in root:
                    raise ValueError(f"store: chunk {k} holds {name}[{v!r}], and the first one did not")
                root[f"{name}/{v}"][_place(variables[v].dims, dim, at)] = variables[v].to_numpy()
        note = {**note, SEAL: seal_chunk({n: node.to_dataset() for n, node in tree.children.items()}, dim)}
        text = json.dumps(note).encode()
        if len(text) > NOTE_BYTES:
            text = json.dumps({**note, "dropped": {"many reasons": sum(note["dropped"].values())}}).encode()
        root[f"{NOTES}/note"][k] = np.frombuffer(text.ljust(NOTE_BYTES), dtype=np.uint8)

    def read(self, at: slice) -> dict[str, xr.Dataset]:
        """Read what is along the dim, by group, after comparing each chunk with what was written.

        Raises
        ------
        ValueError
            When a chunk is damaged.
        """
        dim, chunks = self.manifest.dim, self.manifest.chunks
        start, stop, _ = at.indices(self.manifest.number)
        numbers = range(start // self.manifest.chunk, -(-stop // self.manifest.chunk))
        notes = self.notes(numbers)
        first, last = chunks[numbers[0]].start, chunks[numbers[-1]].stop
        with naming(self.path):
            nodes = {name: node.to_dataset() for name, node in self.tree(by_dask=False).children.items()}
            groups = {n: node.isel({dim: slice(first, last)}).load() for n, node in nodes.items() if dim in node.dims}
        for k in numbers:
            here = slice(chunks[k].start - first, chunks[k].stop - first)
            seal = seal_chunk({n: group.isel({dim: here}) for n, group in groups.items()}, dim)
            if k not in notes or seal != notes[k][SEAL]:
                raise ValueError(f"{self.path!r} is damaged: chunk {k} is not the one that was written")
        return {n: group.isel({dim: slice(start - first, stop - first)}) for n, group in groups.items()}

    def notes(self, numbers: range | None = None) -> dict[int, dict[str, Any]]:
        """Return the notes of the chunks that are there, of all or of some."""
        import zarr

        if not self.is_laid_out:
            return {}
        with naming(self.path):
            array: Any = zarr.open_group(self.path, mode="r")[f"{NOTES}/note"]
            wanted = range(len(self.manifest.chunks)) if numbers is None else numbers
            rows = array[wanted.start : wanted.stop]
        try:
            notes = {k: json.loads(row.tobytes()) for k, row in zip(wanted, rows, strict=True) if row.any()}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path!r} is damaged: a note cannot be read ({error})") from None
        if lacking := [k for k, note in notes.items() if not isinstance(note, dict) or SEAL not in note]:
            raise ValueError(f"{self.path!r} is damaged: a note cannot be read (of chunks {lacking[:5]})")
        return notes

    def missing(self) -> list[int]:
        """Return the numbers of the chunks that are not there yet."""
        there = self.notes()
        return [k for k in range(len(self.manifest.chunks)) if k not in there]

    def totals(self) -> tuple[int, dict[str, int]]:
        """Return how many simulations were made for it, and why some were dropped."""
        notes, dropped = self.notes().values(), Counter[str]()
        for note in notes:
            dropped.update(note["dropped"])
        return sum(note["attempted"] for note in notes), dict(dropped)

    def add_attributes(self, group: str, attributes: Mapping[str, Any]) -> None:
        """Add to what is said of a group, once all chunks are there."""
        import zarr

        with naming(self.path):
            zarr.open_group(self.path, mode="r+")[group].update_attributes(dict(attributes))
        self.consolidate()

    def consolidate(self) -> None:
        """Write what is known of all arrays to one place, so that readers need not look for it."""
        import zarr

        with (
            naming(self.path),
            warnings.catch_warnings(),
        ):  # it is no part of zarr's specification, and all readers do without
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self.path)

    def tree(self, *, by_dask: bool = True) -> xr.DataTree:
        """Open it: nothing is read before it is asked for."""
        self.check_layout()
        with naming(self.path):
            opened = xr.open_datatree(self.path, engine="zarr", chunks={} if by_dask else None)
        return xr.DataTree.from_dict({name: node for name, node in opened.children.items() if name != NOTES})


def refuse_without_libraries() -> None:
    """Say what has to be installed."""
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        raise ImportError(f"store: {lacking} are needed: pip install 'pymc-amortized[cluster]'")


def _widened(dtype: np.dtype) -> np.dtype:
    """A type that also holds longer words, as other chunks may."""
    return np.dtype("U16") if dtype.kind == "U" else dtype


def _compressors() -> tuple[Any, ...]:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return ZstdCodec(level=1), Crc32cCodec()


def _place(dims: Sequence[Any], dim: str, at: slice) -> tuple[slice, ...]:
    return tuple(at if d == dim else slice(None) for d in dims)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("pymc-amortized", "pymc", "zarr")}


def _exists(path: str | PathLike[str]) -> bool:
    if "://" in str(path):
        return bool(_root_attributes(path))
    if Path(path).is_file():
        raise ValueError(f"store: {str(path)!r} is a file; a store is a folder")
    if (Path(path) / "zarr.json").is_file():
        return True
    if Path(path).is_dir() and any(Path(path).iterdir()):
        raise ValueError(f"store: the folder {str(path)!r} holds something else; take a new one")
    return False


def _root_attributes(path: str | PathLike[str]) -> dict[str, Any]:
    import zarr

    if "://" not in str(path) and not Path(path).exists():
        raise FileNotFoundError(f"there is no store {str(path)!r}")
    try:
        return dict(zarr.open_group(str(path), mode="r").attrs)
    except FileNotFoundError:
        raise ValueError(f"{str(path)!r} is no zarr store") from None
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(f"{str(path)!r} is damaged, or no zarr store: {error}") from None


def _described(path: str) -> dict[str, Any]:
    """What a store says of itself, in its present state."""
    given = _root_attributes(path).get(KEY)
    if not isinstance(given, dict) or not isinstance(given.get(LAYOUT, 0), str | None):
        raise ValueError(f"{path!r} is damaged: its manifest has no usable {[LAYOUT]}")
    return given


def _read_manifest(given: Mapping[str, Any], path: str | PathLike[str]) -> Manifest:
    wanted = {"kind": str, "dim": str, "number": int, "chunk": int, "entropy": list, "about": dict}
    wrong = [name for name, kind in wanted.items() if type(given.get(name)) is not kind]
    if not wrong:
        wrong = [name for name in ("number", "chunk") if given[name] < 1]
        wrong += ["entropy"] * any(type(e) is not int or e < 0 for e in given["entropy"])
    if wrong:
        raise ValueError(f"{str(path)!r} is damaged: its manifest has no usable {wrong}")
    return Manifest(**{name: given[name] for name in wanted} | {"entropy": tuple(given["entropy"])})


def _words(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says, by the words that users know."""
    own = {"it holds": manifest.kind, "number": manifest.number, "chunk": manifest.chunk}
    return own | {"random_seed": list(manifest.entropy)} | dict(manifest.about)
