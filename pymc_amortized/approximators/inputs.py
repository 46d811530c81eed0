"""What the network sees of a model's data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pymc_amortized.graph.spec import ModelSpec
from pymc_amortized.graph.structure import Rows
from pymc_amortized.networks import ArrayLayout, AxisLayout, DataLayout

ROWS = "rows"


def data_layout(spec: ModelSpec, rows: Rows) -> DataLayout:
    """Describe to the networks the arrays that :func:`network_data` makes."""
    shown = [*spec.data, *(v for v in spec.fixed if v.name in rows.names)]
    arrays = [
        ArrayLayout(
            v.name,
            v.shape,
            v.kind,
            axes=tuple(ROWS if i == 0 and v.name in rows.names else None for i in range(len(v.shape))),
        )
        for v in shown
    ]
    return DataLayout(tuple(arrays), (AxisLayout(ROWS, rows.length, "set"),) if rows else ())


def network_data(spec: ModelSpec, rows: Rows, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what varies between data sets, and fixed covariates that belong to exchangeable rows.

    Parameters
    ----------
    values : mapping of name to ndarray (n, *shape)
        Observed and context variables.
    """
    n = len(next(iter(values.values())))
    companions = [v for v in spec.fixed if v.name in rows.names]
    return {**values, **{v.name: np.broadcast_to(spec.held[v.name], (n, *v.shape)) for v in companions}}
