"""The region of parameters that a likelihood was trained in, and how far given parameters reach into it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import graph_inputs

from pymc_amortized.graph.model.tensors import evaluate
from pymc_amortized.graph.rows.emulator import PYTENSOR
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.row_density.namespaces import NUMPY, Arrays
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.row_density.transforms import TRANSFORMS


@dataclass(frozen=True)
class TrainedRegion:
    """The region that the parameters of a likelihood were drawn from in training.

    Attributes
    ----------
    rows : ObservedRows
    layout : Layout
        Of the network.
    """

    rows: ObservedRows
    layout: Layout

    @property
    def ends(self) -> dict[str, tuple[float, float]]:
        """The smallest and the largest value of each number that a row depends on."""
        region = {}
        for p in self.layout.parameters:
            back = TRANSFORMS[p.transform].back
            low, high = (float(back(NUMPY, end * p.scale + p.center)) for end in (p.low, p.high))
            region[p.name] = (low, high)
        return region

    def __str__(self) -> str:
        said = ", ".join(f"{name}: {low:.3g} to {high:.3g}" for name, (low, high) in self.ends.items())
        parameters = [p for p in self.layout.parameters if p.levels]
        few = [f"{p.name} only at {', '.join(f'{v:g}' for v in p.levels)}" for p in parameters]
        together = ["not at all combinations of these"] if self.layout.combinations else []
        return "; ".join([said, *few, *together])

    def extent(self, arguments: Sequence[Any]) -> Any:
        """Return how far parameters, PyTensor variables, reach into the region: 1 is its edge."""
        found = self._extents(PYTENSOR, [pt.as_tensor(argument) for argument in arguments])
        return pt.max(pt.stack([pt.max(e) for e in found]))

    def reach(self, arguments: Sequence[Any]) -> float:
        """Return the extent of those parameters that are numbers; others are left out.

        Parameters
        ----------
        arguments : sequence of TensorVariable
        """
        values, known = [], []
        for p, argument in zip(self.rows.parameters, arguments, strict=True):
            fixed = all(isinstance(v, Constant) for v in graph_inputs([argument]))
            values.append(evaluate(argument) if fixed else np.ones(p.core_shape))
            known += [fixed] * int(np.prod(p.core_shape, dtype=int))
        known += [all(known)] * len(self.layout.combinations)
        reach = [np.max(e) for e, k in zip(self._extents(NUMPY, values), known, strict=True) if k]
        return float(np.max(reach)) if reach else 0.0

    def _extents(self, xp: Arrays, arguments: Sequence[Any]) -> list[Any]:
        """Return the extent of each number that rows depend on, and of each combination."""
        elements = []
        for p, argument in zip(self.rows.parameters, arguments, strict=True):
            lead = argument.ndim - len(p.core_shape)
            size = int(np.prod(p.core_shape, dtype=int))
            flat = argument.reshape([*[argument.shape[i] for i in range(lead)], size])
            elements += [flat[..., j].astype("float64") for j in range(size)]
        return self.layout.extent(xp, elements)
