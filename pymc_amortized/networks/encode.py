"""From arrays, as they are simulated or observed, the tensors that networks take."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.networks.encoding.encoder import DataEncoder, Sizes
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.networks.frame import whiten
from pymc_amortized.numerics.sampling.symmetry import Symmetries

__all__ = ["as_tensor", "encode", "encode_in_blocks", "prepare"]


def as_tensor(values: np.ndarray | Tensor) -> Tensor:
    """Wrap an array; one that torch cannot wrap (read-only, or with negative strides) is copied."""
    if isinstance(values, Tensor):
        return values
    values = np.ascontiguousarray(values).reshape(np.shape(values))
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def encode(
    encoder: DataEncoder, data: Mapping[str, np.ndarray | Tensor], sizes: Sizes | None = None
) -> dict[str, Tensor]:
    """Encode raw data (batch, *shape), on the CPU."""
    return encoder({layout.name: as_tensor(data[layout.name]) for layout in encoder.layout.arrays}, sizes)


@torch.no_grad()
def encode_in_blocks(
    encoder: DataEncoder,
    data: Mapping[str, np.ndarray],
    sizes: Sizes | None,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Encode raw data (n, *shape), in blocks that stay in the cache."""
    arrays = {layout.name: data[layout.name] for layout in encoder.layout.arrays}
    n = len(next(iter(arrays.values())))
    each = sum(v.size for v in arrays.values()) // max(n, 1)
    block = max(2**17 // max(each, 1), 1)  # of so many values, float64: 1 MiB
    parts = []
    for rows in (slice(start, start + block) for start in range(0, max(n, 1), block)):
        some = {name: np.asarray(lengths)[rows] for name, lengths in (sizes or {}).items()}
        parts.append(encoder({name: as_tensor(values[rows]) for name, values in arrays.items()}, some))
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}


@torch.no_grad()
def prepare(
    standardizer: ParameterStandardizer,
    encoder: DataEncoder,
    theta: np.ndarray,
    data: Mapping[str, np.ndarray],
    sizes: Sizes | None,
    symmetries: Symmetries | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Standardize parameters theta (n, dim) and encode data (n, *shape): float32, on the CPU.

    Where data sets have frames, z is whitened by them; in their place stands the log determinant of that, (n,). Of
    parameters that symmetries map to others, the nearest to the frame stand for all.
    """
    encoded = encode_in_blocks(encoder, data, sizes)
    frames = [array.name for array in encoder.layout.arrays if array.frame]

    def away(images: np.ndarray) -> np.ndarray:
        z, _ = standardizer.exact(as_tensor(images))
        return whiten(z, encoded[frames[0]])[0].square().sum(-1).numpy()

    if symmetries is not None:
        theta = symmetries.representatives(theta, away if frames else None)
    z, _ = standardizer.exact(as_tensor(theta))
    for name in frames:
        z, encoded[name] = whiten(z, encoded[name])
    return z.float(), {name: values.float() for name, values in encoded.items()}
