"""From simulated rows: the region of the parameters, what the columns are, and a regression to start at.

The regression is that of a column's standardized transform on the inputs of the linear part, with a scale that is
log-linear in them: a normal location-scale model, fitted by weighted least squares and Fisher scoring. Among the
transforms that the data allow, the one is taken under which that model has the largest likelihood.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from pymc_amortized.row_density.column_density import ColumnDensity, RowSize
from pymc_amortized.row_density.columns import Column, Combination, Kind, Layout, Parameter
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.prepared import Rows, prepare, usable

logger = logging.getLogger("pymc_amortized")

OUTSIDE = 1e-3
"""Share of the prior beyond each end of a parameter's region. Training hardly visits its tails."""
MOST_LEVELS = 12
"""A number column of so many distinct whole values in all simulations is a category."""
ATOM = 0.002
"""Share of a single value among real numbers, above which it is no coincidence."""
ISOLATED = 20
"""How many times as often as others it comes: values that are rounded all repeat."""
FAR = 8.0
"""Standardized residuals are cut here: a few wild simulations must not decide a regression."""
LARGEST_DESIGN = 2e7
"""Numbers in a design matrix: 160 MB."""
COMPARED = 40_000
"""Rows by which transforms are compared."""
RIDGE = 1e-9
"""Relative to the mean square of the inputs: some of them are linear in others."""
LOG_NORMAL = -0.635
"""Mean of log |e| of standard normal e."""
UNPREDICTED = 0.7
"""Share of a parameter's variance that others leave, above which its own range says what there is to say."""
EXACT = 0.05
"""Standard deviations by which a parameter that follows from others may be off."""
FOLLOWS = 1e-5
"""Standard deviations by which a number of a row may be off that others determine: the rounding of float32."""
RANGE = 30.0
"""A positive parameter whose region spans more than this factor enters by its logarithm only."""


def fit_parameter(name: str, values: np.ndarray) -> Parameter:
    """Learn the scale and the region (n,) of a parameter."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [OUTSIDE, 1 - OUTSIDE])
    lowest = values.min()
    transform: Literal["identity", "log", "logit"] = "identity"
    if lowest > 0 and values.max() < 1 and high > 0.5:
        transform = "logit"
    elif lowest > 0:
        transform = "log"
    t = _moved(np.clip(values, low, high), transform)
    center, scale = float(t.mean()), float(t.std())
    if not scale > 1e-9 * max(abs(center), 1e-6):
        scale = max(abs(center), 1.0)  # a constant: any other value is outside
    ends = [(float(end) - center) / scale for end in _moved(np.array([low, high]), transform)]
    linear = None
    if transform == "logit" or (transform == "log" and high < RANGE * low):
        clipped = np.clip(values, low, high)
        linear = (float(clipped.mean()), float(clipped.std()) or 1.0)
    distinct = np.unique(values[:COMPARED])
    few = 1 < len(distinct) <= MOST_LEVELS and len(values) > 100 * MOST_LEVELS and np.isin(values, distinct).all()
    return Parameter(name, transform, center, scale, ends[0], ends[1], linear, tuple(distinct.tolist()) if few else ())


def fit_combinations(parameters: Sequence[Parameter], values: np.ndarray) -> tuple[Combination, ...]:
    """Find parameters (parameters, n) that others predict, and the region of what is left of them."""
    x = _standardized_parameters(parameters, values)
    x = x[:, np.isfinite(x).all(0)]
    found = []
    for j in range(len(x)):
        others = np.delete(np.arange(len(x)), j)
        if not len(others) or x[j].std() < 1e-9 or x.shape[1] < 10 * len(x):
            continue
        slopes = _least_squares(x[others], x[j], None)
        left = x[j] - slopes @ x[others]
        if left.var() > UNPREDICTED * x[j].var():
            continue
        unit = max(float(left.std()), EXACT)
        weights = np.insert(-slopes, j, 1.0) / unit
        low, high = np.quantile(left / unit, [OUTSIDE, 1 - OUTSIDE])
        found.append(Combination(tuple(weights.tolist()), min(float(low), -1.0), max(float(high), 1.0)))
    return tuple(found)


def _standardized_parameters(parameters: Sequence[Parameter], values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.stack(
            [(_moved(v, p.transform) - p.center) / p.scale for p, v in zip(parameters, values, strict=True)]
        )


def _refuse_dependent(values: np.ndarray, kinds: Sequence[Kind | None]) -> None:
    """Refuse rows of which one number follows from the others: they have no density."""
    some = values[:, :COMPARED]
    real = [i for i, y in enumerate(some) if kinds[i] in (None, "real") and (y != np.round(y)).any() and y.std() > 0]
    for i in real if len(real) > 1 else []:
        others = np.stack([(some[j] - some[j].mean()) / some[j].std() for j in real if j != i])
        y = (some[i] - some[i].mean()) / some[i].std()
        if np.abs(y - _least_squares(others, y, None) @ others).max() < FOLLOWS:
            raise ValueError(
                f"number {i} of a row follows from the others (shares that add up to 1?): such rows have no density. "
                "Leave it out of the observed variable"
            )


def _moved(values: np.ndarray, transform: str) -> np.ndarray:
    if transform == "log":
        return np.log(values)
    return np.log(values) - np.log1p(-values) if transform == "logit" else values


def fit_layout(
    names: Sequence[str], rows: Rows, kinds: Sequence[Kind | None], lags: int
) -> tuple[Layout, list[tuple[np.ndarray, np.ndarray]]]:
    """Learn the layout, and the start of each column's linear part.

    Parameters
    ----------
    names : sequence of str
        Of the parameters.
    rows : Rows
        Some hundred thousand.
    kinds : sequence
        Of the columns, where they are known.
    lags : int
    """
    parameters = tuple(fit_parameter(name, v) for name, v in zip(names, rows.parameters, strict=True))
    combinations = fit_combinations(parameters, rows.parameters)
    _refuse_dependent(rows.values, kinds)
    columns = [_column(y, kind) for y, kind in zip(rows.values, kinds, strict=True)]
    ranks = {"categorical": 0, "count": 1, "real": 2}
    order = tuple(sorted(range(len(columns)), key=lambda i: (ranks[columns[i].kind], i)))
    layout = Layout(parameters, tuple(columns), order, lags, combinations)
    starts = []
    for position in range(len(order)):
        layout, start = _fitted(layout, position, rows)
        starts.append(start)
    return layout, starts


def _column(y: np.ndarray, kind: Kind | None) -> Column:
    """What a column is, but for its transform."""
    some = y[:100_000]
    whole = bool((some == np.round(some)).all())
    if kind is None:
        levels = np.unique(some)
        few = len(levels) <= MOST_LEVELS and (whole or len(some) > 100 * MOST_LEVELS)  # -0.5 and 0.5 are a choice too
        if not whole and not few and (atom := _atom(some)):
            raise ValueError(
                f"{atom} (censored or inflated data?): they have no density. Let a row be two numbers, one that says "
                "whether the other is known and is a category, and the other drawn from any density where it is not "
                "known; or say kinds= if these are numbers all the same"
            )
        kind = "categorical" if few else "count" if whole else "real"
    if kind == "categorical":
        return Column("categorical", levels=tuple(np.unique(y).tolist()))
    if kind == "count":
        lower = min(float(y.min()), 0.0)
        t = np.log(y - lower + 1)
        top = float(y.max()) if (y == y.max()).mean() > ATOM else None
        return Column("count", lower=lower, center=float(t.mean()), scale=float(t.std()) or 1.0, top=top)
    if atom := _atom(some):
        logger.warning(
            "%s, and kinds= says that these are real numbers: the learned density has a spike there, which spoils "
            "posteriors and LOO unless it is rounding. Draw a filler from a density instead.",
            atom,
        )
    return Column("real")


def _atom(y: np.ndarray) -> str | None:
    """Say which value has a probability, in a number that has a density as well, as a censored one has."""
    values, counts = np.unique(y, return_counts=True)
    share = counts.max() / len(y)
    if share > ATOM and counts.max() > ISOLATED * np.median(counts):
        value = values[counts.argmax()]
        return f"{value:.4g} makes up {share:.1%} of the simulated values, among others that do not repeat"
    return None


def _fitted(layout: Layout, position: int, rows: Rows) -> tuple[Layout, tuple[np.ndarray, np.ndarray]]:
    """Choose the transform of the column at a position, and fit its regression."""
    column = layout.columns[layout.order[position]]
    tried = []
    for candidate in _candidates(column, rows, layout.order[position]):
        columns = list(layout.columns)
        columns[layout.order[position]] = candidate
        tried.append(replace(layout, columns=tuple(columns)))
    if len(tried) > 1:
        tried.sort(key=lambda t: -_start(t, position, rows.take(slice(COMPARED)))[0])
    return tried[0], _start(tried[0], position, rows)[1]


def _candidates(column: Column, rows: Rows, index: int) -> list[Column]:
    if column.kind != "real":
        return [column]
    y = rows.values[index]
    found = [column]
    if y.min() > 0:
        found.append(replace(column, transform="log"))
        if y.max() < 1:
            found.append(replace(column, transform="logit"))
    for j, parameter in enumerate(rows.parameters):
        distance = y - parameter
        if distance.min() > 0 and parameter.std() > 0:
            softness = float(np.quantile(distance, 1e-4)) / 10
            found.append(replace(column, transform="above", bound=j, softness=softness))
    return [_standardized(c, y, rows) for c in found]


def _standardized(column: Column, y: np.ndarray, rows: Rows) -> Column:
    from pymc_amortized.row_density.encoding import unbounded

    t, _ = unbounded(NUMPY, column, y, None if column.bound is None else rows.parameters[column.bound])
    low, median, high = np.quantile(t, [0.16, 0.5, 0.84])
    return replace(column, center=float(median), scale=float((high - low) / 2) or 1.0)


def _start(layout: Layout, position: int, rows: Rows) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """Mean log likelihood of the regression of a column, and its weights and biases."""
    density = ColumnDensity(layout, position, RowSize())
    most = int(LARGEST_DESIGN / max(density.linear_inputs, 1))
    rows = rows.take(slice(most))
    log_slope, encoded = prepare(layout, rows)
    fine = usable(log_slope, encoded)
    log_slope, encoded = log_slope[fine], {name: value[fine].astype("float64") for name, value in encoded.items()}
    values = encoded[f"values {position}"].T
    if density.column.kind == "categorical":
        bias = np.tile(np.log(np.maximum(values.mean(1), 1e-6)), (density.heads, 1))
        return 0.0, (np.zeros((*bias.shape, density.linear_inputs)), bias)
    given = encoded[f"given {position}"].T if density.given else None
    design = density.with_products(NUMPY, encoded["parameters"].T, given)
    z = values[0] + (0.5 * values[1] if density.column.kind == "count" else 0.0)
    switch = layout.switch(position)
    heads = [np.ones(len(z), bool)] if switch is None else [v > 0 for v in encoded[f"values {switch}"].T]
    weights, biases, total = [], [], float(log_slope.sum())
    for head in heads:
        if head.sum() < 10 * (1 + len(design)):
            head = np.ones(len(z), bool)
        fitted, likelihood = _location_scale(design[:, head], z[head])
        total += likelihood
        weights.append(fitted[:, 1:])
        biases.append(fitted[:, 0])
    return total / max(len(z), 1), (np.stack(weights), np.stack(biases))


def _location_scale(inputs: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients (2, 1 + inputs) of location and log scale, and the log likelihood."""
    x = np.concatenate([np.ones((1, len(z))), inputs])
    z = np.clip(z, np.median(z) - 50, np.median(z) + 50)
    location = _least_squares(x, z, None)
    residual = z - location @ x
    log_scale = _least_squares(x, np.log(np.abs(residual) + 1e-12) - LOG_NORMAL, None)
    for _ in range(6):
        s = log_scale @ x
        location = _least_squares(x, z, np.exp(-2 * np.clip(s, -12, 12)))
        squares = np.square(np.clip((z - location @ x) * np.exp(-s), -FAR, FAR))
        # expected information of a log scale is 2
        log_scale = log_scale + _least_squares(x, np.minimum((squares - 1) / 2, 4.0), None)
    s = log_scale @ x
    units = np.clip((z - location @ x) * np.exp(-s), -FAR, FAR)
    likelihood = float((-0.5 * units**2 - s - 0.5 * np.log(2 * np.pi)).sum())
    return np.stack([location, log_scale]), likelihood


def _least_squares(x: np.ndarray, target: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    weighted = x if weight is None else x * weight
    gram = weighted @ x.T
    ridge = RIDGE * np.trace(gram) / len(gram)
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), weighted @ target)
