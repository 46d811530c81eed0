"""The density of a row as a torch module: what is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.row_density.column_density import ColumnDensity, RowSize, chosen
from pymc_amortized.row_density.namespaces import namespace
from pymc_amortized.row_density.row_layout import Layout

__all__ = ["TORCH", "RowNetwork", "RowWeights"]


def _logsumexp(x: Tensor) -> Tensor:
    # torch's own is three times as slow over a first axis
    largest = x.detach().amax(0)
    return (x - largest).exp().sum(0).log() + largest


TORCH = namespace(
    torch,
    maximum=torch.clamp_min,
    minimum=torch.clamp_max,
    sigmoid=torch.sigmoid,
    log_ndtr=torch.special.log_ndtr,
    silu=nn.functional.silu,
    softplus=nn.functional.softplus,
    logsumexp=_logsumexp,
    split=lambda x, sizes: x.split(list(sizes)),
    stack=lambda parts: torch.stack(list(parts)),
    concatenate=lambda parts: torch.cat(list(parts)),
)


class RowWeights(nn.Module):
    """Weights of networks for a row: hidden layers start at random, all else at 0.

    Parameters
    ----------
    layout : Layout
    size : RowSize
    shapes : sequence of mapping
        Of each network's weights, by name.
    """

    def __init__(self, layout: Layout, size: RowSize, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
        super().__init__()
        self.layout, self.size = layout, size
        self.weights = nn.ModuleList()
        for shapes_of_one in shapes:
            weights = nn.ParameterDict()
            for name, shape in shapes_of_one.items():
                value = torch.zeros(shape)
                if name in ("enter", "given") or (name.startswith("middle") and len(shape) == 2):
                    nn.init.normal_(value, std=shape[1] ** -0.5)
                weights[name] = nn.Parameter(value)
            nn.init.normal_(weights["enter_bias"], std=0.5)
            self.weights.append(weights)

    def weights_of(self, i: int) -> dict[str, Any]:
        """Weights of one network, by name."""
        return dict(self.weights[i].items())  # type: ignore[operator]

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """The weights of each network in float64, for NumPy and PyTensor."""
        return [
            {name: value.detach().cpu().double().numpy() for name, value in self.weights_of(i).items()}
            for i in range(len(self.weights))
        ]


class RowNetwork(RowWeights):
    """A network for each column of a row.

    Parameters
    ----------
    layout : Layout
    size : RowSize
    """

    def __init__(self, layout: Layout, size: RowSize) -> None:
        columns = [ColumnDensity(layout, i, size) for i in range(len(layout.columns))]
        super().__init__(layout, size, [column.shapes() for column in columns])
        self.columns, k = columns, size.components
        for i, column in enumerate(columns):
            if not column.column.choices:  # components together are the standard normal
                locations = torch.linspace(-0.5, 0.5, k)
                head = torch.zeros(column.numbers)
                head[2 + k : 2 + 2 * k] = locations
                head[2 + 2 * k :] = 0.5 * torch.log(1 - locations.var(correction=0))
                with torch.no_grad():
                    self.weights_of(i)["leave_bias"].copy_(head.repeat(column.heads))

    def loss(self, z: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """Mean negative log density of prepared rows; a scalar.

        Parameters
        ----------
        z : Tensor
            (batch, 1), the logarithm of the derivative of what was done to a row, so that losses are those of the data.
        encoded : mapping
            From :func:`pymc_amortized.row_density.prepared.prepare`: "parameters" (batch, inputs), and for the column
            at position i "given i", "values i", each (batch, ...). Where several rows share their parameters
            (:func:`~pymc_amortized.row_density.prepared.prepare_together`): "given i" and "values i" (batch, each,
            ...), and "fine" (batch, each), which is 0 for those that do not count; `z` is then summed over rows.
        """
        log_density, fine = self.log_density(encoded), encoded.get("fine")
        if fine is None:
            return -(log_density + z[:, 0]).mean()
        return -((log_density * fine).sum() + z.sum()) / fine.sum().clamp_min(1.0)

    def log_density(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Log density (batch,), or (batch, each), of prepared rows."""
        f = encoded["parameters"].mT
        total: Tensor | float = 0.0
        for i, column in enumerate(self.columns):
            total = total + self._column(i, column, self.weights_of(i), f, encoded)
        assert isinstance(total, Tensor)
        return total

    def _column(
        self, i: int, column: ColumnDensity, weights: dict[str, Any], f: Tensor, encoded: Mapping[str, Tensor]
    ) -> Tensor:
        values = encoded[f"values {i}"].movedim(-1, 0)
        given = encoded[f"given {i}"].movedim(-1, 0) if column.given else None
        shape = values.shape[1:]
        if len(shape) == 1:
            heads = column.evaluate(TORCH, weights, f, given)
        elif given is None:  # once for all rows that share their parameters
            heads = [head[..., None] for head in column.evaluate(TORCH, weights, f, None)]
        else:
            of_rows = f[..., None].expand(-1, *shape).flatten(1)
            heads = [h.unflatten(1, shape) for h in column.evaluate(TORCH, weights, of_rows, given.flatten(1))]
        switch = self.layout.switch(i)
        head = chosen(heads, None if switch is None else encoded[f"values {switch}"].movedim(-1, 0))
        return column.log_density(TORCH, head, values)

    def start_at(self, position: int, linear: np.ndarray, bias: np.ndarray) -> None:
        """Set the linear part of a column's network, which is 0 before.

        Parameters
        ----------
        linear : ndarray (heads, started, linear inputs)
            For the first numbers of each head.
        bias : ndarray (heads, started)
        """
        weights = self.weights_of(position)
        heads, started = bias.shape
        with torch.no_grad():
            weights["linear"].unflatten(0, (heads, -1))[:, :started] = torch.as_tensor(linear, dtype=torch.float32)
            weights["leave_bias"].unflatten(0, (heads, -1))[:, :started] = torch.as_tensor(bias, dtype=torch.float32)
