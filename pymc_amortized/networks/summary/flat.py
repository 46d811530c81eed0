"""Summary of values each of which has a meaning of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pymc_amortized.networks.summary.branch import Branch, Options, Values
from pymc_amortized.networks.summary.join import Join

__all__ = ["Flat", "FlatBranch"]


@dataclass(frozen=True, kw_only=True)
class Flat(Options):
    """Options of the summary network for data of fixed size, in which every value has a meaning of its own.

    Parameters
    ----------
    width, depth : int
        Width of the hidden layers, and number of residual blocks.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.

    Examples
    --------
    Passed on as ``pma.fit_posterior(model, summary=pma.Flat(width=64))``.

    >>> pma.Flat(width=64)
    Flat(width=64, depth=2, features=None)
    """

    made_for = "values"

    def make_branch(self, join: Join, dim: int) -> Branch:
        """Build the branch of these arrays, for so many parameters."""
        return FlatBranch(join, dim)


class FlatBranch(Branch):
    """All values, at fixed places; 0 where absent, and then also which are present."""

    def __init__(self, join: Join, dim: int) -> None:
        super().__init__(join, join.present, 0, Values(join.sizes, dim))

    def raw_statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        """The values, their energies, and what is present."""
        rows = self.join(encoded)
        values = self.with_values(rows.values[:, :0], rows)
        return values if rows.present is None else torch.cat([values, rows.present], -1)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Nothing: the residual network of the summary sees all values."""
        return self.join(encoded).values[:, :0]
