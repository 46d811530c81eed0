r"""Summary networks: encoded data -> a vector of features that the density is conditioned on.

Both built-in networks first compute fixed *statistics* of a data set, standardized by simulations,
and then

.. math::

    s(x) = W t(x) + f(t(x), p(x)), \qquad f \text{ starts at } 0.

The linear path :math:`W` starts at the regression of the parameters on the statistics :math:`t`,
the residual network :math:`f` learns the rest, and :math:`p` is what a set network learns from
single rows. The statistics are those that carry the posterior of the commonest models exactly or
nearly so:

- *flat*: the values themselves, and the mean squares within and outside of the subspace of the
  data that moves with the parameters (what remains of a linear model is its residual sum of
  squares);
- *set*: over rows, means, log variances, correlations, and the regression of each channel on all
  others with its log residual variance. Together with the number of rows they are sufficient for
  normal and linear models.

A set network is invariant to the order of rows. It is told their number, without which X and (X,
X) look alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pymc_amortized.networks.statistics import squash

__all__ = [
    "EncodedArray",
    "Flat",
    "FlatSummary",
    "Set",
    "SetSummary",
    "Summary",
    "ridge_regression",
]

LIMIT = 10.0  # standardized statistics beyond it count logarithmically
PAIRS_UP_TO = 24  # channels of a row: 24 give 852 pairwise statistics
FEW_ROWS = 64  # a deeper row network costs more with more rows than it tells beside the statistics
RIDGE = 1e-4  # relative: one-hot channels are collinear, and float32 has seven digits


@dataclass(frozen=True)
class EncodedArray:
    """What a summary network has to know of one encoded array (batch, *shape, channels)."""

    name: str
    shape: tuple[int, ...]
    channels: int
    rows: bool

    @property
    def width(self) -> int:
        """Numbers per data set, or per row."""
        return math.prod(self.shape[1:] if self.rows else self.shape) * self.channels


def _check_sizes(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < (0 if "depth" in name else 1):
            raise ValueError(f"{name} is {size}; it must be at least {0 if 'depth' in name else 1}")


@dataclass(frozen=True)
class Flat:
    """Options of the summary network for data of fixed size without exchangeable rows.

    Parameters
    ----------
    width : int
        Width of the hidden layers.
    depth : int
        Number of residual blocks.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    width: int = 128
    depth: int = 2
    features: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(width=self.width, depth=self.depth, features=self.features)


@dataclass(frozen=True)
class Set:
    """Options of the summary network for data with exchangeable rows.

    Parameters
    ----------
    width : int
        Width of the hidden layers after pooling.
    depth : int
        Number of residual blocks after pooling.
    row_width : int
        Width of the network that sees single rows.
    row_depth : int, optional
        Number of its residual blocks; by default 1 for up to 64 rows and none for more, where they
        cost more than they tell.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    width: int = 128
    depth: int = 2
    row_width: int = 32
    row_depth: int | None = None
    features: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(
            width=self.width,
            depth=self.depth,
            row_width=self.row_width,
            row_depth=self.row_depth,
            features=self.features,
        )

    def resolve(self, rows: int) -> Set:
        """The same options with the depth of the row network chosen by the number of rows."""
        if self.row_depth is not None:
            return self
        return replace(self, row_depth=1 if rows <= FEW_ROWS else 0)


class Residual(nn.Module):
    """A residual network: in -> width, ``depth`` blocks, width -> out."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.leave = nn.Linear(width, outputs)

    def hidden(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to the last hidden values (..., width)."""
        h = nn.functional.silu(self.enter(x))
        for block in self.blocks:
            h = h + block(h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return self.leave(self.hidden(x))


class _Standardize(nn.Module):
    """Statistics (batch, width) to location 0 and scale 1 over simulations."""

    center: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, t: Tensor) -> None:
        scale, center = torch.std_mean(t, 0, correction=0)
        self.center.copy_(center)
        self.scale.copy_(torch.where(scale > 1e-6, scale, 1.0))

    def forward(self, t: Tensor) -> Tensor:
        return squash((t - self.center) / self.scale, LIMIT)


class Summary(nn.Module):
    """What both have in common: standardized statistics, a linear path and a residual network."""

    def __init__(self, statistics: int, pooled: int, width: int, depth: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.standardize = _Standardize(statistics)
        self.linear = nn.Linear(statistics, features)
        self.residual = Residual(statistics + pooled, width, depth, features)
        nn.init.zeros_(self.residual.leave.weight)
        nn.init.zeros_(self.residual.leave.bias)

    def raw_statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        """Compute the statistics (batch, statistics)."""
        raise NotImplementedError

    def statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        """Standardized statistics (batch, statistics)."""
        return self.standardize(self.raw_statistics(encoded))

    def fit(self, encoded: dict[str, Tensor], z: Tensor) -> None:
        """Learn the scales of the statistics from simulated data and parameters z (n, dim)."""
        with torch.no_grad():
            self.standardize.fit(self.raw_statistics(encoded))

    def start_at(self, weight: Tensor, bias: Tensor) -> None:
        """Let the first features be a linear prediction: weight (dim, statistics), bias (dim,)."""
        with torch.no_grad():
            self.linear.weight[: len(weight)] = weight
            self.linear.bias[: len(bias)] = bias


class FlatSummary(Summary):
    """Summary of data of fixed size.

    Parameters
    ----------
    arrays : sequence of EncodedArray
        The encoded arrays.
    options : Flat
        Sizes.
    features : int
        Width of the summary.
    dim : int
        Number of parameters: the dimension of the subspace whose complement is noise.
    """

    basis: Tensor
    weights: Tensor

    def __init__(self, arrays: Sequence[EncodedArray], options: Flat, features: int, dim: int) -> None:
        self.arrays = tuple(arrays)
        self.sizes = [math.prod(array.shape) * array.channels for array in arrays]
        total = sum(self.sizes)
        self.energies = total >= 4 * (dim + 1)  # otherwise little is left outside of the subspace
        super().__init__(total + 2 * len(self.sizes) * self.energies, 0, options.width, options.depth, features)
        if self.energies:
            self.register_buffer("basis", torch.zeros(total, dim))
            self.register_buffer("weights", torch.ones(total))

    def raw_statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        """Values, and per array the log mean squares within and outside of the subspace."""
        x = torch.cat([encoded[array.name].flatten(1) for array in self.arrays], -1)
        if not self.energies:
            return x
        weighted = x * self.weights
        within = (weighted @ self.basis) @ self.basis.mT
        parts = [within, weighted - within]
        energies = [
            torch.log(piece.square().mean(-1, keepdim=True) + 1e-8)
            for part in parts
            for piece in part.split(self.sizes, -1)
        ]
        return torch.cat([x, *energies], -1)

    def fit(self, encoded: dict[str, Tensor], z: Tensor) -> None:
        """Learn the subspace that moves with the parameters, and the scales."""
        if self.energies:
            with torch.no_grad():
                x = torch.cat([encoded[array.name].flatten(1) for array in self.arrays], -1)
                design = torch.cat([z.clamp(-5.0, 5.0), torch.ones_like(z[:, :1])], -1)
                slopes = torch.linalg.lstsq(design, x).solution
                noise = (x - design @ slopes).std(0, correction=0)
                weights = torch.where(noise > 1e-6, 1 / noise, 0.0)
                self.weights.copy_(weights / weights.mean().clamp_min(1e-6))
                self.basis.copy_(torch.linalg.qr((slopes[:-1] * self.weights).mT).Q)
        super().fit(encoded, z)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Encoded arrays -> (batch, features)."""
        t = self.statistics(encoded)
        return self.linear(t) + self.residual(t)


class SetSummary(Summary):
    """Summary of data whose rows are exchangeable; arrays that share rows are joined row by row.

    Parameters
    ----------
    arrays : sequence of EncodedArray
        The encoded arrays; those without rows describe the whole data set and are visible to every
        row.
    options : Set
        Sizes.
    features : int
        Width of the summary.
    """

    def __init__(self, arrays: Sequence[EncodedArray], options: Set, features: int) -> None:
        self.row_arrays = tuple(array for array in arrays if array.rows)
        self.whole_arrays = tuple(array for array in arrays if not array.rows)
        if not self.row_arrays:
            raise ValueError("a set network needs an array with rows=True")
        channels = sum(array.width for array in self.row_arrays)
        whole = sum(array.width for array in self.whole_arrays)
        self.pairs = channels <= PAIRS_UP_TO
        statistics = 2 * channels + 1 + whole
        if self.pairs and channels > 1:
            statistics += channels * (channels - 1) // 2 + channels * channels
        super().__init__(statistics, options.row_width, options.width, options.depth, features)
        depth = options.resolve(self.row_arrays[0].shape[0]).row_depth or 0
        self.row = Residual(2 * channels + whole, options.row_width, depth, options.row_width)

    def _rows(self, encoded: dict[str, Tensor]) -> Tensor:
        """Joined rows (batch, rows, channels)."""
        return torch.cat([encoded[array.name].flatten(2) for array in self.row_arrays], -1)

    def _whole(self, encoded: dict[str, Tensor]) -> list[Tensor]:
        return [encoded[array.name].flatten(1) for array in self.whole_arrays]

    def raw_statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        """Moments over rows, their log number, and the arrays without rows."""
        return self._moments(encoded)[0]

    def _moments(self, encoded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Statistics, and rows standardized within their data set (batch, rows, channels)."""
        rows = self._rows(encoded)
        count = rows.shape[1]
        mean = rows.mean(1, keepdim=True)
        centered = rows - mean
        variance = centered.square().mean(1)
        # The floor is the rounding of float32 beside values of order one.
        scale = torch.sqrt(variance + 1e-10)
        normal = centered / scale[:, None]
        t = [mean[:, 0], 2 * torch.log(scale), *self._whole(encoded)]
        t.append(torch.full_like(mean[:, 0, :1], math.log(count)))
        if self.pairs and rows.shape[-1] > 1:
            t += _pair_statistics(normal.mT @ normal / count, scale)
        return torch.cat(t, -1), normal

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Encoded arrays -> (batch, features)."""
        raw, normal = self._moments(encoded)
        t = self.standardize(raw)
        rows = self._rows(encoded)
        whole = [w[:, None].expand(-1, rows.shape[1], -1) for w in self._whole(encoded)]
        each = torch.cat([rows, normal.clamp(-LIMIT, LIMIT), *whole], -1)
        # A mean commutes with the last layer, which then sees data sets instead of rows.
        pooled = self.row.leave(self.row.hidden(each).mean(1))
        return self.linear(t) + self.residual(torch.cat([t, pooled], -1))


def _pair_statistics(correlation: Tensor, scale: Tensor) -> list[Tensor]:
    """Correlations, and each channel's regression on all others with its log residual variance.

    ``correlation`` is (batch, channels, channels), ``scale`` (batch, channels). With P the inverse
    of the correlation matrix, the coefficient of channel j in the regression of channel i is -P_ij
    / P_ii (in units of their scales) and the residual variance 1 / P_ii.
    """
    channels = scale.shape[-1]
    eye = torch.eye(channels, dtype=scale.dtype, device=scale.device)
    factor, _ = torch.linalg.cholesky_ex(correlation + RIDGE * eye)
    precision = torch.cholesky_inverse(factor)
    diagonal = precision.diagonal(dim1=-2, dim2=-1).clamp_min(1e-6)
    coefficients = -precision / diagonal[..., None] * (scale[..., None] / scale[:, None])
    upper = torch.triu_indices(channels, channels, 1, device=scale.device)
    apart = ~torch.eye(channels, dtype=torch.bool, device=scale.device)
    return [
        correlation[:, upper[0], upper[1]],
        squash(coefficients[:, apart], LIMIT),
        2 * torch.log(scale) - torch.log(diagonal),
    ]


def ridge_regression(t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression of z (n, dim) on t (n, statistics), the penalty chosen on a held-out fifth.

    Returns weight (dim, statistics), bias (dim,), and the covariance (dim, dim) of what is left
    out.
    """
    held = max(len(t) // 5, 1)
    center_t, center_z = t[held:].mean(0), z[held:].mean(0)
    x, y = t[held:] - center_t, z[held:] - center_z
    values, vectors = torch.linalg.eigh(x.mT @ x)
    target = vectors.mT @ (x.mT @ y)
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        slopes = vectors @ (target / (values.clamp_min(0.0) + penalty * len(x))[:, None])
        residual = z[:held] - center_z - (t[:held] - center_t) @ slopes
        error = float(residual.square().mean(0).log().sum())
        if best is None or error < best[0]:
            best = error, slopes, residual
    assert best is not None
    _, slopes, residual = best
    covariance = residual.mT @ residual / len(residual)
    covariance = covariance + torch.diag(0.01 * covariance.diagonal() + 1e-10)
    return slopes.mT, center_z - center_t @ slopes, covariance
