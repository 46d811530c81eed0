"""Rows, and what is made of them before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymc_amortized.row_density.namespaces import NUMPY, Array, Arrays
from pymc_amortized.row_density.row_layout import Layout


@dataclass(frozen=True, eq=False)
class Rows:
    """Simulated rows with their parameters.

    Attributes
    ----------
    parameters : ndarray (parameters, n)
    values : ndarray (columns, n)
    past : ndarray (lags, columns, n) or None
        Rows before each one, the latest first; NaN where there is none. After these come averages of rows.
    known : ndarray (lags, n) or None
        Whether there is such a row, 1 or 0; of an average, the share of its weights that rows before have.
    """

    parameters: np.ndarray
    values: np.ndarray
    past: np.ndarray | None = None
    known: np.ndarray | None = None

    def __len__(self) -> int:
        return self.values.shape[-1]

    def take(self, index: np.ndarray | slice) -> Rows:
        """Return some of the rows."""
        past, known = (None if part is None else part[..., index] for part in (self.past, self.known))
        return Rows(self.parameters[:, index], self.values[:, index], past, known)


def given_numbers(
    xp: Arrays,
    layout: Layout,
    position: int,
    values: Sequence[Array],
    past: Sequence[Sequence[Array]],
    parameters: Sequence[Array],
) -> Array | None:
    """What the column at a position sees of earlier rows and columns: (given, rows), or None.

    Parameters
    ----------
    values : sequence of (rows,)
        The columns of the row, in the data's order.
    past : sequence of sequences
        For each lag whether there is such a row, then its columns; anything where there is none. Averages are like it.
    parameters : sequence of (rows,)
    """
    numbers: list[Array] = []
    for exists, *columns in past:
        numbers.append(exists)
        for column, y in zip(layout.columns, columns, strict=True):
            numbers += [xp.where(exists > 0, x, 0.0) for x in column.as_given(xp, y, parameters)]
    for earlier in layout.given(position):
        numbers += layout.column(earlier).as_given(xp, values[layout.order[earlier]], parameters)
    return xp.stack(numbers) if numbers else None


def prepare(layout: Layout, rows: Rows, each: int = 1) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What training takes of rows, float32.

    Parameters
    ----------
    layout : Layout
    rows : Rows
    each : int
        So many rows in a row share their parameters, which are prepared once for them.

    Returns
    -------
    log_slope : ndarray (n, 1)
        The logarithm of the derivative of the transforms.
    encoded : dict of name to ndarray (n, ...)
        "parameters" (n / each, inputs), and for the column at position i "given i" and "values i".
    """
    with np.errstate(all="ignore"):  # rows outside a transform's range come out as NaN, and are dropped
        columns, parameters = list(rows.values), list(rows.parameters)
        f, _ = layout.encode_parameters(NUMPY, [p[::each] for p in parameters])
        past = past_of(rows)
        encoded, log_slope = {"parameters": f}, np.zeros(len(rows))
        for position, index in enumerate(layout.order):
            given = given_numbers(NUMPY, layout, position, columns, past, parameters)
            if given is not None:
                encoded[f"given {position}"] = given
            values, slope = layout.columns[index].encode(NUMPY, columns[index], parameters)
            encoded[f"values {position}"] = np.stack(values)
            log_slope = log_slope + slope
    return log_slope[:, None].astype("float32"), {
        name: np.ascontiguousarray(value.T, dtype="float32") for name, value in encoded.items()
    }


def prepare_together(layout: Layout, rows: Rows, each: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What training takes of rows of which so many in a row share their parameters: these are put together.

    Returns
    -------
    log_slope : ndarray (n, 1)
        Summed over rows.
    encoded : dict of name to ndarray
        "parameters" (n, inputs); "given i" and "values i" (n, each, ...), 0 where a row is not usable, and "fine" (n,
        each), which is 0 there.
    """
    log_slope, encoded = prepare(layout, rows, each)
    f = encoded.pop("parameters")
    fine = usable(log_slope, encoded) & np.repeat(np.isfinite(f).all(1), each)

    def of_rows(values: np.ndarray) -> np.ndarray:
        return np.where(fine[:, None], values, 0.0).astype("float32").reshape(-1, each, values.shape[1])

    found = {name: of_rows(values) for name, values in encoded.items()}
    return of_rows(log_slope).sum(1), found | {"parameters": f, "fine": fine.astype("float32").reshape(-1, each)}


def usable(log_slope: np.ndarray, encoded: dict[str, np.ndarray]) -> np.ndarray:
    """Which prepared rows (n,) are finite."""
    fine = np.isfinite(log_slope).all(1)
    for value in encoded.values():
        fine &= np.isfinite(value).all(1)
    return fine


def inside(layout: Layout, parameters: Sequence[np.ndarray]) -> np.ndarray:
    """Which rows' parameters lie in the region; broadcast over rows."""
    with np.errstate(all="ignore"):
        return np.asarray(layout.penalty(NUMPY, parameters)) == 0


def past_of(rows: Rows) -> list[list[np.ndarray]]:
    """For each lag whether there is such a row, then its columns, 1 where there is none."""
    if rows.past is None or rows.known is None:
        return []
    return [[known, *np.where(known > 0, row, 1.0)] for known, row in zip(rows.known, rows.past, strict=True)]
