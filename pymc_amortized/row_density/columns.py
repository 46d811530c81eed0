"""What a row consists of: the columns that are learned, and the parameters that they are learned for.

Everything here is plain numbers, so that it can be saved as JSON. Statistics come from simulations
(:mod:`pymc_amortized.row_density.fitting`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["real", "count", "categorical"]
Transform = Literal["identity", "log", "logit", "above"]


@dataclass(frozen=True)
class Parameter:
    """One number that a row's distribution depends on, and the region it was trained in.

    Attributes
    ----------
    name : str
        "drift", or "weights[1]" for an element of a vector.
    transform : {"identity", "log", "logit"}
        To the scale on which the region is an interval: log for positive ones, logit for those in (0, 1).
    center, scale : float
        Standardize on that scale.
    low, high : float
        Ends of the region, in standardized units.
    linear : tuple of float or None
        Center and scale of the parameter itself, which is a second input of the network, where that differs
        and does not span orders of magnitude.
    levels : tuple of float
        The only values it was trained at, where these are few: numbers of trials, or a covariate of two values.
    """

    name: str
    transform: Literal["identity", "log", "logit"]
    center: float
    scale: float
    low: float
    high: float
    linear: tuple[float, float] | None = None
    levels: tuple[float, ...] = ()

    @property
    def inputs(self) -> int:
        """Numbers that the network sees of it."""
        return 1 + (self.linear is not None)


@dataclass(frozen=True)
class Combination:
    """What is left of a parameter that others predict: where these go together, each alone says little of the region.

    Attributes
    ----------
    weights : tuple of float
        Of the standardized parameters.
    low, high : float
        Ends of the region, in units of its standard deviation.
    """

    weights: tuple[float, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Column:
    """One number of a row.

    Attributes
    ----------
    kind : {"real", "count", "categorical"}
        A density, a mass over integers from `lower` on, or a mass over `levels`.
    levels : tuple of float
        Values of a categorical column.
    transform : {"identity", "log", "logit", "above"}
        Of a real column, to an unbounded scale. "above" is the logarithm of the distance to a parameter.
    lower, upper : float
        Bounds of that.
    bound : int or None
        For "above": which parameter is the lower bound.
    softness : float
        For "above": the distance below which the logarithm turns into a straight line, so that a row below the bound
        has a small density rather than none.
    center, scale : float
        Standardize the transformed column.
    top : float or None
        The largest count, where there is one.
    """

    kind: Kind
    levels: tuple[float, ...] = ()
    transform: Transform = "identity"
    lower: float = 0.0
    upper: float = 1.0
    bound: int | None = None
    softness: float = 0.0
    center: float = 0.0
    scale: float = 1.0
    top: float | None = None

    @property
    def given_size(self) -> int:
        """Numbers that later columns see of it."""
        return max(len(self.levels) - 1, 1) if self.kind == "categorical" else 1


@dataclass(frozen=True)
class Layout:
    """The columns of a row in the order in which they are learned, each given those before it.

    Attributes
    ----------
    parameters : tuple of Parameter
    columns : tuple of Column
        In the data's own order.
    order : tuple of int
        In which columns are learned: categories first, then counts, then real ones.
    lags : int
        How many rows before this one it depends on; 0 where rows are independent.
    combinations : tuple of Combination
        Of parameters that go together in training.
    """

    parameters: tuple[Parameter, ...]
    columns: tuple[Column, ...]
    order: tuple[int, ...]
    lags: int = 0
    combinations: tuple[Combination, ...] = ()

    @property
    def inputs(self) -> int:
        """Numbers that the network sees of the parameters."""
        return sum(p.inputs for p in self.parameters)

    @property
    def lag_size(self) -> int:
        """Numbers that it sees of the rows before: the columns of each, and whether there is such a row."""
        return self.lags * (1 + sum(c.given_size for c in self.columns))

    def switch(self, position: int) -> int | None:
        """Position of the categorical column that chooses among heads of the column at `position`, if there is one."""
        earlier = [i for i in range(position) if self.columns[self.order[i]].kind == "categorical"]
        return earlier[0] if earlier else None

    def given(self, position: int) -> list[int]:
        """Positions of the earlier columns that enter as numbers."""
        return [i for i in range(position) if i != self.switch(position)]

    def given_size(self, position: int) -> int:
        """Numbers that the column at `position` sees beside the parameters."""
        return self.lag_size + sum(self.columns[self.order[i]].given_size for i in self.given(position))

    def heads(self, position: int) -> int:
        """How many heads that column has."""
        switch = self.switch(position)
        return 1 if switch is None else len(self.columns[self.order[switch]].levels)

    def description(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Layout:
        """Rebuild what :meth:`description` returned."""
        parameters = tuple(
            Parameter(**{**p, "linear": tuple(p["linear"]) if p["linear"] else None, "levels": tuple(p["levels"])})
            for p in described["parameters"]
        )
        columns = tuple(Column(**{**c, "levels": tuple(c["levels"])}) for c in described["columns"])
        combinations = tuple(Combination(**{**c, "weights": tuple(c["weights"])}) for c in described["combinations"])
        return cls(parameters, columns, tuple(described["order"]), int(described["lags"]), combinations)
