r"""Summary networks: encoded data -> a vector of features that the density is conditioned on.

Every branch sees the arrays that share an axis, and gives fixed *statistics* and learned features. Together they are
summarized by

.. math::

    s(x) = W t(x) + f(t(x), p(x)), \qquad f \text{ starts at } 0.

The linear path :math:`W` starts at the regression of the parameters on the statistics :math:`t`,
standardized by simulations; the residual network :math:`f` learns the rest, and :math:`p` is what the
branches learn from single rows. Statistics have no weights, and are computed once for each simulation; once the
branches stay as they are, so are learned features. The statistics are those that carry the posterior of the commonest
models exactly or nearly so: values and residual sums of squares, moments, regressions, autocorrelations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pymc_amortized.networks.encoding.encoder import DataEncoder
from pymc_amortized.networks.encoding.layout import mask_name
from pymc_amortized.networks.summary.branch import Branch, Options
from pymc_amortized.networks.summary.join import EncodedArray, Whole, trimmed
from pymc_amortized.networks.summary.layers import Residual, Standardize

__all__ = ["STATISTICS", "SummaryNetwork", "encoded_arrays"]

STATISTICS = "summary:statistics"
"""Name under which encoded data may hold their statistics."""
LEARNED = "summary:learned"
"""Name under which encoded data may hold what the branches have learned to see in them."""
CHUNK = 1_000
"""Data sets whose statistics are computed at once."""


def encoded_arrays(encoder: DataEncoder) -> list[EncodedArray]:
    """What summaries have to know of each array that the encoder gives them."""
    layout = encoder.layout
    return [
        EncodedArray(
            array.name,
            array.shape,
            encoder.channels(array.name) - array.missing,
            array.axes,
            array.missing,
            layout.groups_of(array.name),
            array.given,
            array.statistic,
        )
        for array in layout.arrays
        if not array.frame
    ]


class SummaryNetwork(nn.Module):
    """Branches, and the linear path and residual network that join them.

    Parameters
    ----------
    encoder : DataEncoder
        Which arrays there are, statistics among them, and their axes.
    branches : sequence of Branch
    whole : Whole
        What belongs to none of them.
    options : Options
        Sizes.
    """

    def __init__(self, encoder: DataEncoder, branches: Sequence[Branch], whole: Whole, options: Options) -> None:
        super().__init__()
        self.arrays, self.layout = encoded_arrays(encoder), encoder.layout
        self.features = features = options.features or 0
        self.branches, self.whole = nn.ModuleList(branches), whole
        self.known = Whole([a for a in self.arrays if a.statistic], ())
        statistics = sum(branch.statistics for branch in branches) + self.whole.width + self.known.width
        pooled = sum(branch.pooled for branch in branches)
        self.long = min(branch.long for branch in branches)
        self.standardize = Standardize(statistics)
        self.linear = nn.Linear(statistics, features)
        self.residual = Residual(statistics + pooled, options.width, options.depth, features)
        nn.init.zeros_(self.residual.leave.weight)
        nn.init.zeros_(self.residual.leave.bias)

    def _branches(self) -> list[Branch]:
        return [branch for branch in self.branches if isinstance(branch, Branch)]

    def _raw_statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        parts = []
        for start in range(0, max(len(next(iter(encoded.values()))), 1), CHUNK):
            piece = trimmed({k: v[start : start + CHUNK] for k, v in encoded.items()}, self.arrays, self.layout)
            found = [branch.raw_statistics(piece) for branch in self._branches()]
            parts.append(torch.cat([*found, self.whole(piece), self.known(piece)], -1))
        return torch.cat(parts)

    @torch.no_grad()
    def measured(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the statistics to encoded data, so that they need not be computed again."""
        return encoded | {STATISTICS: self._raw_statistics(encoded)}

    @torch.no_grad()
    def reduced(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the statistics and the learned features in the place of encoded data: all that is seen of these.

        It holds as long as the branches stay as they are.
        """
        known = encoded if STATISTICS in encoded else self.measured(encoded)
        n = len(known[STATISTICS])
        pieces = ({k: v[start : start + CHUNK] for k, v in encoded.items()} for start in range(0, n, CHUNK))
        return {STATISTICS: known[STATISTICS], LEARNED: torch.cat([self._learned(piece) for piece in pieces])}

    def told(self, reduced: dict[str, Tensor], encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put other values of what is known of arrays (statistics of the layout) into reduced data of as many sets."""
        own = reduced[STATISTICS][:, : reduced[STATISTICS].shape[1] - self.known.width]
        return reduced | {STATISTICS: torch.cat([own, self.known(encoded)], -1)}

    @torch.no_grad()
    def statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        """Standardized statistics (batch, statistics)."""
        return self.standardize(self._raw_statistics(encoded))

    @torch.no_grad()
    def fit(self, encoded: dict[str, Tensor], z: Tensor) -> None:
        """Learn the scales of the statistics from simulated data and parameters z (n, dim)."""
        for branch in self._branches():
            branch.fit(encoded, z)
        self.rescale(encoded)

    @torch.no_grad()
    def rescale(self, encoded: dict[str, Tensor]) -> None:
        """Learn the scales of the statistics from other data."""
        self.standardize.fit(self._raw_statistics(encoded))

    @torch.no_grad()
    def start_at(self, weight: Tensor, bias: Tensor, first: int = 0) -> None:
        """Let features from the first be linear predictions: weight (predictions, statistics), bias (predictions,)."""
        self.linear.weight[first : first + len(weight)] = weight
        self.linear.bias[first : first + len(bias)] = bias

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Encoded arrays -> (batch, features)."""
        return self.with_statistics(encoded)[0]

    def with_statistics(self, encoded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Encoded arrays -> features (batch, features) and standardized statistics (batch, statistics)."""
        raw = encoded[STATISTICS] if STATISTICS in encoded else self._raw_statistics(encoded)
        learned = encoded[LEARNED] if LEARNED in encoded else self._learned(encoded)
        t = self.standardize(raw)
        return self.linear(t) + self.residual(torch.cat([t, learned], -1)), t

    def _learned(self, encoded: dict[str, Tensor]) -> Tensor:
        """What the branches learn: (batch, pooled)."""
        pieces, back = self._by_length(encoded)
        trims = [trimmed(piece, self.arrays, self.layout) for piece in pieces]
        learned = torch.cat([torch.cat([branch(piece) for branch in self.branches], -1) for piece in trims])
        return learned if back is None else learned[back]

    def _by_length(self, encoded: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """Cut a batch into pieces of similar lengths, which need less padding; and the order that undoes it."""
        masks = [encoded[mask_name(axis)] for axis in self.layout.sized]
        mask = max(masks, key=lambda m: m.shape[1], default=None)
        # lengths 10 to 500, uniform on a logarithmic scale, are then padded by half on average
        number = 4
        if mask is None or mask.shape[1] < self.long or len(mask) < 2 * number:
            return [encoded], None
        order = torch.argsort(mask.sum(1))
        size = -(-len(mask) // number)
        pieces = [
            {name: values[rows] for name, values in encoded.items()}
            for rows in (order[start : start + size] for start in range(0, len(mask), size))
        ]
        return pieces, torch.argsort(order)
