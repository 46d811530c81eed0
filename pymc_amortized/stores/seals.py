"""Digests by which a store knows that what it reads is what was written: of its arrays' form, and of each chunk."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the store in whatever a damaged one leads to."""
    try:
        yield
    except Exception as error:
        said = str(error) or type(error).__name__
        if path in said:
            raise
        raise ValueError(f"{path!r} is damaged: {said}") from error


def seal_layout(root: Any, manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest, of the form of all arrays of a zarr group, and of those that are written at once: labels.

    Parameters
    ----------
    root : zarr.Group
    manifest : mapping of str to object
    """
    import zarr

    arrays = {name: node for name, node in root.members(max_depth=None) if isinstance(node, zarr.Array)}
    forms = {name: array.metadata.to_dict() for name, array in arrays.items()}
    whole = {name: _digest(array[...]) for name, array in arrays.items() if _is_whole(name, array, manifest["dim"])}
    text = json.dumps([manifest, forms, whole], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_whole(name: str, array: Any, dim: str) -> bool:
    """Whether an array is written at once: labels of a dim, or what is not along the dim of chunks."""
    dims = array.metadata.dimension_names or ()
    return dims == (name.rpartition("/")[2],) or not {dim, "chunk"}.intersection(dims)


def _digest(values: Any) -> str:
    """Digest of an array; of words or objects by what they are written as."""
    array = np.asarray(values)
    content = repr(array.tolist()).encode() if array.dtype.kind in "OTU" else np.ascontiguousarray(array).tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def seal_chunk(groups: Mapping[str, xr.Dataset], dim: str) -> str:
    """Digest of what is along a dim, as it is read again."""
    content = hashlib.blake2b(digest_size=16)
    for group in sorted(groups):
        variables = groups[group].data_vars
        for name in sorted((v for v in variables if dim in variables[v].dims), key=str):
            content.update(f"{group}/{name} {variables[name].shape}".encode())
            content.update(np.ascontiguousarray(_as_read(variables[name].to_numpy())).data)
    return content.hexdigest()


def _as_read(values: np.ndarray) -> np.ndarray:
    """Values of one type, and one NaN, whatever they went through."""
    if values.dtype.kind == "f":
        return np.where(np.isnan(values), np.nan, values).astype(float)
    return values.astype("U16").view("u4") if values.dtype.kind == "U" else values.astype("i8")
