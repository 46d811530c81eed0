"""One or many data sets, as the model counts their variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pymc_amortized.graph.data.simulations import Simulations, take_each
from pymc_amortized.graph.model.sizes import cut
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec

DATASET_DIM, PARAMETER_DIM = "dataset", "parameter"
"""Dims of results: data sets of a batch, and unconstrained parameters in `sample_stats`."""
LOG_JOINT, DISTANCE = "log_joint", "tarp"
"""Quantities that checks of calibration add to the parameters."""


@dataclass(frozen=True, eq=False)
class DataSets:
    """One or many data sets.

    Attributes
    ----------
    values : dict of name to ndarray (n, *shape)
        Observed and context variables of `n` data sets, up to the longest of them, NaN or 0 beyond each one's length.
    lengths : dict of name to ndarray (n,)
        Lengths of the dimensions that differ between data sets.
    missing : dict of name to bool ndarray (n, *shape)
        Where values are missing, for observed variables that may have gaps.
    coords : dict of name to array_like
        Labels of dimensions that differ between data sets, of one data set that brings its own.
    labels : ndarray (n,)
        Coordinate of the ``dataset`` dimension.
    batched : bool
        Whether results carry the ``dataset`` dimension.
    extra : ndarray (n, width) or None
        Further numbers of each data set, where they were computed already.
    """

    values: dict[str, np.ndarray]
    labels: np.ndarray
    batched: bool
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, np.ndarray] = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)
    extra: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Any) -> DataSets:
        """Return several of the data sets."""
        return DataSets(
            take_each(self.values, index),
            self.labels[index],
            self.batched,
            take_each(self.lengths, index),
            take_each(self.missing, index),
            extra=None if self.extra is None else self.extra[index],
        )

    def equals(self, other: DataSets) -> bool:
        """Whether they are the same data: values where there are any, sizes and gaps."""
        pairs = [(self.values, other.values), (self.lengths, other.lengths), (self.missing, other.missing)]
        return all(
            one.keys() == two.keys()
            and all(np.array_equal(one[k], two[k], equal_nan=one[k].dtype.kind == "f") for k in one)
            for one, two in pairs
        )

    def many(self) -> DataSets:
        """Return the data sets with a ``dataset`` dimension in results."""
        return replace(self, batched=True)

    def shown(self, variable: DataVariable) -> np.ndarray:
        """Values (n, *shape) with NaN where there is none: what is missing, or beyond a data set's length."""
        values = self.values[variable.name]
        absent = self.outside(variable)
        if variable.name in self.missing:
            absent |= self.missing[variable.name]
        return np.where(absent, np.nan, values) if absent.any() else values

    def outside(self, variable: DataVariable) -> np.ndarray:
        """Mark values (n, *shape) beyond the lengths of their data set."""
        return outside_of(variable, self.values[variable.name], self.lengths)

    def existing(self, spec: ModelSpec) -> dict[str, np.ndarray]:
        """Values of all data sets within their own lengths, flat."""
        return {v.name: self.values[v.name][~self.outside(v)] for v in spec.data}

    def one(self, spec: ModelSpec, index: int) -> dict[str, Any]:
        """Return what densities take of one data set.

        These are its values, cut to its lengths, the lengths, gaps, and what the model holds fixed. What is to be
        predicted has no observed values.
        """
        lengths = {dim: int(n[index]) for dim, n in self.lengths.items()}
        values: dict[str, Any] = spec.unchanging_values | lengths
        for v in (v for v in spec.data if v.name in self.values):
            values[v.name] = cut(self.values[v.name][index], v.shape_at(lengths))
            if v.missing:
                values[gaps_of(v.name)] = cut(self.missing[v.name][index], v.shape_at(lengths))
        return values


def of_simulations(simulations: Simulations) -> DataSets:
    """Regard simulations as data sets."""
    return DataSets(
        dict(simulations.data),
        np.arange(len(simulations)),
        True,
        dict(simulations.lengths),
        dict(simulations.missing),
        extra=simulations.extra,
    )


def gaps_of(name: str) -> str:
    """Name under which densities take the gaps of a variable."""
    return f"missing {name}"


def outside_of(variable: DataVariable, array: np.ndarray, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mark elements (n, *shape) beyond the lengths (n,) of their data set."""
    outside = np.zeros(array.shape, dtype=bool)
    for axis, dim in enumerate(variable.dims, start=1):
        if dim in variable.sized and dim is not None:
            index = np.arange(array.shape[axis]).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
            outside |= index >= lengths[dim].reshape([-1] + [1] * (array.ndim - 1))
    return outside
