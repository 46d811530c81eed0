"""From simulated rows: the region of the parameters, what the columns are, and a regression to start at.

The regression is that of a column's standardized transform on the inputs of the linear part, with a scale that is
log-linear in them: a normal location-scale model, fitted by weighted least squares and Fisher scoring. Among the
transforms that the data allow, the one is taken under which that model has the largest likelihood.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pymc_amortized.row_density.column_density import ColumnDensity, RowSize
from pymc_amortized.row_density.columns import COLUMNS, MOST_LEVELS, RealColumn, fit_column
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.prepared import Rows, prepare, usable
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.row_density.row_parameters import Combination, Parameter
from pymc_amortized.row_density.transforms import TRANSFORMS, TransformName

COMPARED = 40_000
"""Rows by which transforms are compared, and values looked for."""


def fit_parameter(name: str, values: np.ndarray) -> Parameter:
    """Learn the scale and the region (n,) of a parameter."""
    values = values[np.isfinite(values)]
    low, high = _ends(values)
    transform: TransformName = "identity"
    if values.min() > 0:
        transform = "logit" if values.max() < 1 and high > 0.5 else "log"
    moved = TRANSFORMS[transform].forward
    t = moved(NUMPY, np.clip(values, low, high))
    center, scale = float(t.mean()), float(t.std())
    if not scale > 1e-9 * max(abs(center), 1e-6):
        scale = max(abs(center), 1.0)  # a constant: any other value is outside
    ends = [(float(end) - center) / scale for end in moved(NUMPY, np.array([low, high]))]
    linear = None
    if transform == "logit" or (transform == "log" and high < 30 * low):  # else it enters by its logarithm only
        clipped = np.clip(values, low, high)
        linear = (float(clipped.mean()), float(clipped.std()) or 1.0)
    distinct = np.unique(values[:COMPARED])
    few = 1 < len(distinct) <= MOST_LEVELS and len(values) > 100 * MOST_LEVELS and np.isin(values, distinct).all()
    return Parameter(name, transform, center, scale, ends[0], ends[1], linear, tuple(distinct.tolist()) if few else ())


def fit_combinations(parameters: Sequence[Parameter], values: np.ndarray) -> tuple[Combination, ...]:
    """Find parameters (parameters, n) that others predict, and the region of what is left of them."""
    x = np.stack([p.simulated(v) for p, v in zip(parameters, values, strict=True)])
    x = x[:, np.isfinite(x).all(0)]
    found = []
    for j in range(len(x)):
        others = np.delete(np.arange(len(x)), j)
        if not len(others) or x[j].std() < 1e-9 or x.shape[1] < 10 * len(x):
            continue
        slopes = _least_squares(x[others], x[j], None)
        left = x[j] - slopes @ x[others]
        if left.var() > 0.7 * x[j].var():  # its own range says what there is to say
            continue
        unit = max(float(left.std()), 0.05)  # what follows from others may be off by so many standard deviations
        weights = np.insert(-slopes, j, 1.0) / unit
        low, high = _ends(left / unit)
        found.append(Combination(tuple(weights.tolist()), min(float(low), -1.0), max(float(high), 1.0)))
    return tuple(found)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Ends of a region: training hardly visits the tails beyond."""
    low, high = np.quantile(values, [0.001, 0.999])
    return low, high


def _refuse_dependent(values: np.ndarray, kinds: Sequence[str | None]) -> None:
    """Refuse rows of which one number follows from the others: they have no density."""
    some = values[:, :COMPARED]
    real = [i for i, y in enumerate(some) if kinds[i] in (None, RealColumn.kind) and (y != np.round(y)).any()]
    real = [i for i in real if some[i].std() > 0]
    for i in real if len(real) > 1 else []:
        others = np.stack([(some[j] - some[j].mean()) / some[j].std() for j in real if j != i])
        y = (some[i] - some[i].mean()) / some[i].std()
        if np.abs(y - _least_squares(others, y, None) @ others).max() < 1e-5:  # the rounding of float32
            raise ValueError(
                f"number {i} of a row follows from the others (shares that add up to 1?): such rows have no density. "
                "Leave it out of the observed variable"
            )


def fit_layout(
    names: Sequence[str], rows: Rows, kinds: Sequence[str | None], lags: int, scales: Sequence[float] = ()
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
    scales : sequence of float
        Of averages of earlier rows, beside the lags.
    """
    parameters = tuple(fit_parameter(name, v) for name, v in zip(names, rows.parameters, strict=True))
    combinations = fit_combinations(parameters, rows.parameters)
    _refuse_dependent(rows.values, kinds)
    columns = [fit_column(y, kind) for y, kind in zip(rows.values, kinds, strict=True)]
    ranks = list(COLUMNS)
    order = tuple(sorted(range(len(columns)), key=lambda i: (ranks.index(columns[i].kind), i)))
    layout = Layout(parameters, tuple(columns), order, lags, combinations, tuple(scales))
    starts = []
    for position in range(len(order)):
        layout, start = _fitted(layout, position, rows)
        starts.append(start)
    return layout, starts


def _fitted(layout: Layout, position: int, rows: Rows) -> tuple[Layout, tuple[np.ndarray, np.ndarray]]:
    """Choose the transform of the column at a position, and fit its regression."""
    index = layout.order[position]
    tried = []
    for candidate in layout.columns[index].candidates(rows.values[index], list(rows.parameters)):
        columns = (*layout.columns[:index], candidate, *layout.columns[index + 1 :])
        tried.append(replace(layout, columns=columns))
    if len(tried) > 1:
        tried.sort(key=lambda t: -_start(t, position, rows.take(slice(COMPARED)))[0])
    return tried[0], _start(tried[0], position, rows)[1]


def _start(layout: Layout, position: int, rows: Rows) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """Mean log likelihood of the regression of a column, and its weights and biases."""
    density = ColumnDensity(layout, position, RowSize())
    most = int(2e7 / max(density.linear_inputs, 1))  # a design matrix takes 160 MB at most
    rows = rows.take(slice(most))
    log_slope, encoded = prepare(layout, rows)
    fine = usable(log_slope, encoded)
    log_slope, encoded = log_slope[fine], {name: value[fine].astype("float64") for name, value in encoded.items()}
    values = encoded[f"values {position}"].T
    z = density.column.regressed(values)
    if z is None:  # a choice starts at frequencies
        bias = np.tile(np.log(np.maximum(values.mean(1), 1e-6)), (density.heads, 1))
        return 0.0, (np.zeros((*bias.shape, density.linear_inputs)), bias)
    given = encoded[f"given {position}"].T if density.given else None
    design = density.with_products(NUMPY, encoded["parameters"].T, given)
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
    # -0.635 is the mean of log |e| of standard normal e
    log_scale = _least_squares(x, np.log(np.abs(residual) + 1e-12) + 0.635, None)
    far = 8.0  # a few wild simulations must not decide a regression
    for _ in range(6):
        s = log_scale @ x
        location = _least_squares(x, z, np.exp(-2 * np.clip(s, -12, 12)))
        squares = np.square(np.clip((z - location @ x) * np.exp(-s), -far, far))
        # expected information of a log scale is 2
        log_scale = log_scale + _least_squares(x, np.minimum((squares - 1) / 2, 4.0), None)
    s = log_scale @ x
    units = np.clip((z - location @ x) * np.exp(-s), -far, far)
    likelihood = float((-0.5 * units**2 - s - 0.5 * np.log(2 * np.pi)).sum())
    return np.stack([location, log_scale]), likelihood


def _least_squares(x: np.ndarray, target: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    weighted = x if weight is None else x * weight
    gram = weighted @ x.T
    ridge = 1e-9 * np.trace(gram) / len(gram)  # some inputs are linear in others
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), weighted @ target)
