"""Data frames of any library: one data set, a list of them, a mapping by label, or groups of rows."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pandas.api.typing import DataFrameGroupBy

from pymc_amortized.graph.data.labels import names_within, say_nothing

logger = logging.getLogger(__name__)


def is_frame(data: Any) -> bool:
    """Whether data are a table with named columns: of pandas, or of another library (polars, pyarrow)."""
    return isinstance(data, pd.DataFrame) or hasattr(data, "__dataframe__")


def columns_of(frame: Any) -> dict[str, Any]:
    """Columns of a table by name."""
    if isinstance(frame, pd.DataFrame):
        return {str(name): frame[name] for name in frame.columns}
    return {str(name): frame[name].to_numpy() for name in getattr(frame, "column_names", frame.columns)}


def dealt_out(data: Any, known: Collection[str]) -> tuple[Any, np.ndarray | None]:
    """Turn groups of a frame, or data sets by label, into a list of data sets and their labels.

    Parameters
    ----------
    data : DataFrameGroupBy, mapping of label to data set, or anything else
        What is neither of the first two is returned as it is, without labels.
    known : collection of str
        Names of the model's data: a mapping with such keys is by variable.

    Raises
    ------
    ValueError
        A group has several labels.
    """
    if isinstance(data, DataFrameGroupBy):
        plain = say_nothing(data.obj.index)  # rows are then only numbered through
        keys = data.keys if isinstance(data.keys, list) else [data.keys]
        told = [key for key in keys if isinstance(key, str) and key not in known]  # by the label: no column of the data
        groups = {key: part.drop(columns=told, errors="ignore") for key, part in data}
        groups = {key: part.reset_index(drop=True) if plain else part for key, part in groups.items()}
        if len(keys) == 1:
            groups = {key[0] if isinstance(key, tuple) else key: part for key, part in groups.items()}
        data = groups
    by_label = (
        isinstance(data, Mapping)
        and bool(data)
        and not (isinstance(data, xr.Dataset | xr.DataTree) or {*data} & {*known})
    )
    if not (by_label and all(isinstance(each, Mapping) or is_frame(each) for each in data.values())):
        return data, None
    if any(isinstance(label, tuple) for label in data):
        first = next(label for label in data if isinstance(label, tuple))
        raise ValueError(f"observed: data sets have labels of several parts, such as {first}; group by one column")
    return list(data.values()), np.array(list(data))


def wanted_columns(data: Any, known: Mapping[str, int]) -> Any:
    """Leave out columns of frames that no data of the model have the name of, and say once which they are.

    A column that repeats one value is that value, where the model has a single number.

    Parameters
    ----------
    data : object
        One data set, or a list; only frames are touched.
    known : mapping of str to int
        Names of the model's data, and how many axes each has.
    """
    several = isinstance(data, list | tuple)
    frames = [
        _with_joined(columns_of(each), known) if is_frame(each) else each for each in (data if several else [data])
    ]
    extra: dict[str, None] = {}
    for i, each in enumerate(data if several else [data]):
        if is_frame(each):
            extra |= dict.fromkeys(name for name in frames[i] if name not in known)
            frames[i] = {k: _single(v) if known[k] == 0 else v for k, v in frames[i].items() if k in known}
    if extra:
        logger.info("Columns that the model has no data for are ignored: %s.", ", ".join(map(repr, extra)))
    return frames if several else frames[0]


def _with_joined(columns: dict[str, Any], known: Mapping[str, int]) -> dict[str, Any]:
    """Put columns together where the name of some data is theirs, with commas between, as of HSSM's responses."""
    for name in (name for name, axes in known.items() if axes == 2 and name not in columns):
        parts = names_within(name)
        if len(parts) > 1 and columns.keys() >= {*parts}:
            table = pd.DataFrame({part: columns[part] for part in parts})
            columns = {k: v for k, v in columns.items() if k not in parts or k in known} | {name: table}
    return columns


def _single(column: Any) -> Any:
    values = np.asarray(column)
    return values[0] if len(values) and (values == values[0]).all() else column
