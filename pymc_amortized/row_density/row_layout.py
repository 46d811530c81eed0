"""What a row consists of: the columns that are learned, and the parameters that they are learned for.

Everything here is plain numbers, so that files can hold it. Statistics come from simulations
(:mod:`pymc_amortized.row_density.fitting`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pymc_amortized.row_density.columns import AnyColumn
from pymc_amortized.row_density.namespaces import Array, Arrays
from pymc_amortized.row_density.row_parameters import Combination, Parameter


@dataclass(frozen=True)
class Layout:
    """The columns of a row in the order in which they are learned, each given those before it.

    Attributes
    ----------
    parameters : tuple of Parameter
    columns : tuple of AnyColumn
        In the data's own order.
    order : tuple of int
        In which columns are learned: categories first, then counts, then real ones.
    lags : int
        How many rows before this one it depends on; 0 where rows are independent.
    combinations : tuple of Combination
        Of parameters that go together in training.
    scales : tuple of float
        Of a series: how many rows back the averages reach of all rows before this one, which it is told of beside the
        lags. They are what is left of a hidden state.
    """

    parameters: tuple[Parameter, ...]
    columns: tuple[AnyColumn, ...]
    order: tuple[int, ...]
    lags: int = 0
    combinations: tuple[Combination, ...] = ()
    scales: tuple[float, ...] = ()

    @property
    def inputs(self) -> int:
        """Numbers that the network sees of the parameters."""
        return sum(p.inputs for p in self.parameters)

    @property
    def lag_size(self) -> int:
        """Numbers that it sees of the rows before: the columns of each, or of an average, and whether there is one."""
        return (self.lags + len(self.scales)) * (1 + sum(c.given_size for c in self.columns))

    def column(self, position: int) -> AnyColumn:
        """The column that is learned at a position."""
        return self.columns[self.order[position]]

    def switch(self, position: int) -> int | None:
        """Position of the column that chooses among heads of the column at `position`, if there is one."""
        return next((i for i in range(position) if self.column(i).choices), None)

    def given(self, position: int) -> list[int]:
        """Positions of the earlier columns that enter as numbers."""
        return [i for i in range(position) if i != self.switch(position)]

    def given_size(self, position: int) -> int:
        """Numbers that the column at `position` sees beside the parameters."""
        return self.lag_size + sum(self.column(i).given_size for i in self.given(position))

    def heads(self, position: int) -> int:
        """How many heads that column has."""
        switch = self.switch(position)
        return 1 if switch is None else self.column(switch).choices

    def encode_parameters(self, xp: Arrays, values: Sequence[Array]) -> tuple[Array, Array]:
        """Inputs (inputs, rows) and penalty (rows,) of parameters, each (rows,) or (1,)."""
        x = self._standardized(xp, values)
        inputs = [number for p, own in zip(self.parameters, x, strict=True) for number in p.encode(xp, own)]
        return xp.stack(inputs), self._penalty(xp, x)

    def penalty(self, xp: Arrays, values: Sequence[Array]) -> Array:
        """What is taken off the log density of a row beyond the region; broadcasts over the parameters' shapes."""
        return self._penalty(xp, self._standardized(xp, values))

    def extent(self, xp: Arrays, values: Sequence[Array]) -> list[Array]:
        """How far each parameter is from the middle of its region, then each combination: 1 at the edge.

        Of each parameter's shape, or that of all parameters together. A value between the few of training is at 2.
        """
        x = self._standardized(xp, values)
        single = [p.extent(xp, value) for p, value in zip(self.parameters, values, strict=True)]
        return single + [c.reach(xp, c.of(x)) for c in self.combinations]

    def _standardized(self, xp: Arrays, values: Sequence[Array]) -> list[Array]:
        return [p.standardized(xp, value) for p, value in zip(self.parameters, values, strict=True)]

    def _penalty(self, xp: Arrays, x: Sequence[Array]) -> Array:
        total: Array = 0.0
        for parameter, own in zip(self.parameters, x, strict=True):
            total = total + parameter.penalty(xp, own)
        for combination in self.combinations:
            total = total + combination.penalty(xp, combination.of(x))
        return total
