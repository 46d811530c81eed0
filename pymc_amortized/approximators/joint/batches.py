"""Rows of simulated data sets beside what a posterior is trained on, and what each network sees of such a batch."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.finding import find_rows
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.row_density.prepared import Rows, inside, prepare, usable
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.training import Batch

PREFIX = "rows: "
"""Of the names of what belongs to rows in an encoded batch; no model's variable begins like that by chance."""
OUTSIDE = 1e-3
"""Share of data sets beyond each end of a parameter's region. Of rows there may be far more in one data set than one in
a thousand: an end for rows would be beyond every third data set of 200."""
SLOPE, FINE = f"{PREFIX}log slope", f"{PREFIX}fine"


def rows_at_largest(spec: ModelSpec, like: ObservedRows) -> ObservedRows:
    """Find the rows of a snapshot whose data sets differ in size, of the kind of rows known already."""
    name = like.variable.name
    return find_rows(spec.at(spec.largest), name, {name: like.axis_kinds})


def row_tensors(layout: Layout, rows: Rows, datasets: int) -> dict[str, Tensor]:
    """What the row network takes of rows of data sets, each (data sets, rows of each, ...).

    Parameters
    ----------
    layout : Layout
    rows : Rows
        Those of a data set together.
    datasets : int
    """
    log_slope, encoded = prepare(layout, rows)
    fine = inside(layout, list(rows.parameters)) & usable(log_slope, encoded)
    arrays = {f"{PREFIX}{name}": values for name, values in encoded.items()} | {SLOPE: log_slope}
    for values in arrays.values():
        values[~fine] = 0.0
    arrays[FINE] = fine[:, None]
    return {
        name: torch.from_numpy(np.ascontiguousarray(values)).unflatten(0, (datasets, -1))
        for name, values in arrays.items()
    }


def of_datasets(batch: Batch, number: int = 0) -> Batch:
    """What the posterior's network sees of a batch."""
    z, encoded = batch
    return z, {name: value for name, value in encoded.items() if not name.startswith(PREFIX)}


def of_rows(batch: Batch, number: int = 0, each: int | None = None) -> Batch:
    """What the row network sees of a batch: the rows inside the region.

    Parameters
    ----------
    batch : tuple
    number : int
        Of the batch; where only some rows are wanted, others are taken of every batch.
    each : int, optional
        Rows of each data set; all by default.
    """
    encoded = {name: value for name, value in batch[1].items() if name.startswith(PREFIX)}
    total = encoded[FINE].shape[1]
    if each is not None and each < total:
        chosen = (number * each + torch.arange(each, device=encoded[FINE].device)) % total
        encoded = {name: value[:, chosen] for name, value in encoded.items()}
    flat: Mapping[str, Tensor] = {name: value.flatten(0, 1) for name, value in encoded.items()}
    fine = flat[FINE][:, 0]
    if not bool(fine.all()):
        flat = {name: value[fine] for name, value in flat.items()}
    return flat[SLOPE], {name.removeprefix(PREFIX): value for name, value in flat.items() if name not in (SLOPE, FINE)}


def covering_datasets(layout: Layout, rows: Rows, datasets: int) -> Layout:
    """Widen the region of the parameters until nearly all data sets lie in it with all of their rows.

    Parameters
    ----------
    layout : Layout
    rows : Rows
        Of the data sets, those of one together.
    datasets : int
    """
    parameters = []
    for p, values in zip(layout.parameters, rows.parameters, strict=True):
        t = p.simulated(values)
        each = np.where(np.isfinite(t), t, 0.0).reshape(datasets, -1)
        low, high = np.quantile(each.min(1), OUTSIDE), np.quantile(each.max(1), 1 - OUTSIDE)
        parameters.append(replace(p, low=min(p.low, float(low)), high=max(p.high, float(high))))
    x = np.stack([p.simulated(v) for p, v in zip(layout.parameters, rows.parameters, strict=True)])
    combinations = []
    for c in layout.combinations:
        each = np.nan_to_num(np.asarray(c.weights) @ x).reshape(datasets, -1)
        low, high = np.quantile(each.min(1), OUTSIDE), np.quantile(each.max(1), 1 - OUTSIDE)
        combinations.append(replace(c, low=min(c.low, float(low)), high=max(c.high, float(high))))
    return replace(layout, parameters=tuple(parameters), combinations=tuple(combinations))
