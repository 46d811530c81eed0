"""Digests in files, by which a changed byte is noticed: a weight that is another number looks like any other."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SEAL = "digest"
"""Of the digest among a file's metadata, or in JSON."""


def sealed_metadata(key: str, description: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the metadata of a safetensors file: a description, and a digest of all that it holds."""
    return {key: description, SEAL: seal(description, tensors)}


def check_seal(metadata: Mapping[str, str], key: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file that does not hold what its digest was taken of; one without a digest passes."""
    if SEAL in metadata and metadata[SEAL] != seal(metadata[key], tensors):
        raise ValueError("it does not hold what was written")


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON with a digest."""
    plain = json.loads(json.dumps(content))
    return json.dumps(plain | {SEAL: _json_seal(plain)}).encode()


def read_sealed_json(text: bytes) -> dict[str, Any]:
    """Read what :func:`sealed_json` made.

    Raises
    ------
    ValueError
        When it is something else, or damaged.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(content, dict) or content.pop(SEAL, None) != _json_seal(content):
        raise ValueError("it does not hold what was written")
    return content


def _json_seal(content: Mapping[str, Any]) -> str:
    return seal(json.dumps(content, sort_keys=True), {})


def seal(description: str, tensors: Mapping[str, Tensor]) -> str:
    """Digest of a text and of tensors, however these lie in memory."""
    digest = hashlib.blake2b(description.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        plain = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))  # of any strides
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
