r"""From a row and its parameters to what the network takes, in NumPy or PyTensor.

Parameters are moved to the scale on which their region is an interval, standardized, and led smoothly to a standstill
beyond it: with :math:`x` beyond an end :math:`h` by :math:`d`,

.. math:: x \mapsto h + w \tanh(d / w), \qquad \text{penalty } \tfrac{\kappa}{2} d^2.

Both are differentiable at the end itself. NUTS is pushed back into the region by a force that grows with the distance.
Logarithms, too, go on as straight lines beyond the region, so that distances are finite at 0 and below. Where
parameters go together in training, what is left of one given the others has a region as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pymc_amortized.row_density.columns import Column, Combination, Layout, Parameter
from pymc_amortized.row_density.namespaces import Array, Arrays

BEYOND = 0.25
"""How far, in standard deviations of a parameter in training, the network is extrapolated."""
STIFFNESS = 25.0
"""Penalty per row: a draw one standard deviation beyond the region costs 12 nats a row, one at 0.2 half a nat."""
SMALLEST = 1e-300
"""An end of a region is no nearer to 0 or 1: rounding may put it there."""
WIDEST = 30.0
"""Standardized data of earlier rows or columns end there; nearly no simulation comes so far."""


def encode_parameters(xp: Arrays, layout: Layout, values: Sequence[Array]) -> tuple[Array, Array]:
    """Inputs (inputs, rows) and penalty (rows,) of parameters, each (rows,) or (1,)."""
    inputs = []
    for parameter, value in zip(layout.parameters, values, strict=True):
        x, above, below = _standardized(xp, parameter, value)
        inside = xp.minimum(xp.maximum(x, parameter.low), parameter.high)
        inside = inside + BEYOND * (xp.tanh(above / BEYOND) - xp.tanh(below / BEYOND))
        inputs.append(inside)
        if parameter.linear is not None:
            center, scale = parameter.linear
            back = inside * parameter.scale + parameter.center
            inputs.append((_back(xp, parameter, back) - center) / scale)
    return xp.stack(inputs), penalty(xp, layout, values)


def penalty(xp: Arrays, layout: Layout, values: Sequence[Array]) -> Array:
    """What is taken off the log density of a row beyond the region; broadcasts over the parameters' shapes."""
    total: Array = 0.0
    standardized = []
    for parameter, value in zip(layout.parameters, values, strict=True):
        x, above, below = _standardized(xp, parameter, value)
        standardized.append(x)
        total = total + 0.5 * STIFFNESS * (above * above + below * below)
    for c in layout.combinations:
        x = combined(c, standardized)
        above, below = xp.maximum(x - c.high, 0.0), xp.maximum(c.low - x, 0.0)
        total = total + 0.5 * STIFFNESS * (above * above + below * below)
    return total


def extent(xp: Arrays, layout: Layout, values: Sequence[Array]) -> list[Array]:
    """How far each parameter is from the middle of its region, then each combination: 1 at the edge.

    Of each parameter's shape, or that of all parameters together. A value between the few of training is at 2.
    """
    found, standardized = [], []
    for parameter, value in zip(layout.parameters, values, strict=True):
        x = _standardized(xp, parameter, value)[0]
        standardized.append(x)
        reach = _reach(xp, x, parameter.low, parameter.high)
        if parameter.levels:
            seen = sum(xp.where(_equal(xp, value, level), 1.0, 0.0) for level in parameter.levels)
            reach = reach + xp.where(seen > 0, 0.0, 2.0)
        found.append(reach)
    return found + [_reach(xp, combined(c, standardized), c.low, c.high) for c in layout.combinations]


def _reach(xp: Arrays, x: Array, low: float, high: float) -> Array:
    return xp.abs(x - (high + low) / 2) / max((high - low) / 2, 1e-9)


def combined(combination: Combination, standardized: Sequence[Array]) -> Array:
    """Value of a combination at standardized parameters, which broadcast."""
    total: Array = 0.0
    for weight, x in zip(combination.weights, standardized, strict=True):
        total = total + weight * x
    return total


def _standardized(xp: Arrays, parameter: Parameter, value: Array) -> tuple[Array, Array, Array]:
    """A parameter on the scale of its region, and how far it is above and below that."""
    x = (_moved(xp, parameter, value) - parameter.center) / parameter.scale
    return x, xp.maximum(x - parameter.high, 0.0), xp.maximum(parameter.low - x, 0.0)


def _moved(xp: Arrays, parameter: Parameter, value: Array) -> Array:
    """A parameter on the scale on which its region is an interval; straight on beyond the region."""
    if parameter.transform == "identity":
        return value
    low, high = (end * parameter.scale + parameter.center for end in (parameter.low, parameter.high))
    if parameter.transform == "log":
        low = max(math.exp(low), SMALLEST)
        return xp.log(xp.maximum(value, low)) + xp.minimum(value - low, 0.0) / low
    low, high = (1 / (1 + math.exp(-end)) for end in (low, high))
    inside = xp.minimum(xp.maximum(value, low), high)
    below, above = xp.minimum(value - low, 0.0), xp.maximum(value - high, 0.0)
    slopes = [1 / max(end * (1 - end), SMALLEST) for end in (low, high)]
    return xp.log(inside) - xp.log1p(-inside) + below * slopes[0] + above * slopes[1]


def _back(xp: Arrays, parameter: Parameter, t: Array) -> Array:
    return xp.exp(t) if parameter.transform == "log" else xp.sigmoid(t)


def unbounded(xp: Arrays, column: Column, y: Array, bound: Array | None) -> tuple[Array, Array]:
    """Standardized transform (rows,) of a real column, and the logarithm of its derivative."""
    if column.transform == "log":
        t = xp.log(y - column.lower)
        slope = -t
    elif column.transform == "logit":
        width = column.upper - column.lower
        share = (y - column.lower) / width
        t = xp.log(share) - xp.log1p(-share)
        slope = -xp.log(share) - xp.log1p(-share) - math.log(width)
    elif column.transform == "above":
        t, slope = _soft_log(xp, (y - bound) / column.softness)
        t, slope = t + math.log(column.softness), slope - math.log(column.softness)
    else:
        t, slope = y, 0.0 * y
    return (t - column.center) / column.scale, slope - math.log(column.scale)


def _soft_log(xp: Arrays, d: Array) -> tuple[Array, Array]:
    """``log(softplus(d))``, which is log(d) far above 0 and d far below, and the logarithm of its derivative."""
    far = d < -20.0  # where softplus is exp to the last digit
    safe = xp.maximum(d, -20.0)
    t = xp.where(far, d, xp.log(xp.softplus(safe)))
    # the derivative is sigmoid(d) / softplus(d)
    return t, -xp.softplus(-safe) - xp.where(far, -20.0, t)


def bounded(xp: Arrays, column: Column, z: Array, bound: Array | None) -> Array:
    """Undo :func:`unbounded`."""
    t = z * column.scale + column.center
    if column.transform == "log":
        return column.lower + xp.exp(t)
    if column.transform == "logit":
        return column.lower + (column.upper - column.lower) * xp.sigmoid(t)
    if column.transform == "above":
        s = xp.exp(xp.minimum(t - math.log(column.softness), 300.0))
        # softplus undone: log(exp(s) - 1), which is s for large s and log(s) for small ones
        d = xp.where(s > 30.0, s, xp.log(xp.expm1(xp.maximum(xp.minimum(s, 30.0), 1e-300))))
        return bound + column.softness * d
    return t


def supported(xp: Arrays, column: Column, y: Array) -> tuple[Array, Array]:
    """Which values (rows,) a column can have, and the values with others replaced by possible ones."""
    if column.kind == "categorical":
        fine = sum(xp.where(_equal(xp, y, level), 1.0, 0.0) for level in column.levels) > 0
        return fine, y
    if column.kind == "count":
        fine = y > column.lower - 0.5
        if column.top is not None:
            fine = fine & (y < column.top + 0.5)
        return fine, xp.where(fine, y, column.lower)
    if column.transform == "log":
        fine = y > column.lower
        return fine, xp.where(fine, y, column.lower + 1.0)
    if column.transform == "logit":
        fine = (y > column.lower) & (y < column.upper)
        return fine, xp.where(fine, y, 0.5 * (column.lower + column.upper))
    return xp.abs(y) < math.inf, y


def edges(xp: Arrays, column: Column, y: Array) -> tuple[Array, Array]:
    """Standardized lower edge (rows,) of the interval that a count stands for, and the interval's width.

    A count k is the interval from k - 1/2 to k + 1/2 on the scale of log(k - lower + 1); the smallest one has no lower
    edge, but its width says where its upper one is, and the largest one, if there is one, no upper edge.
    """
    k = y - column.lower
    low = xp.log(k + 0.5)
    width = xp.log1p(1.0 / (k + 0.5))
    return (low - column.center) / column.scale, width / column.scale


def ends(column: Column, y: Array) -> tuple[Array, Array]:
    """Which counts (rows,) are the smallest, and the largest if there is one: their intervals have one edge."""
    return y <= column.lower, y >= (math.inf if column.top is None else column.top)


def count_of(xp: Arrays, column: Column, z: Array) -> Array:
    """The count whose interval holds z; not yet rounded."""
    return xp.exp(xp.minimum(z * column.scale + column.center, 43.0)) - 1.0 + column.lower


def as_given(xp: Arrays, column: Column, y: Array, bound: Array | None) -> list[Array]:
    """What later columns and rows see of a column: rows of numbers."""
    if column.kind == "categorical":
        return [xp.where(_equal(xp, y, level), 1.0, 0.0) for level in column.levels[1:] or (column.levels[0],)]
    if column.kind == "count":
        t = xp.log(y - column.lower + 1.0)
        z = (t - column.center) / column.scale
    else:
        z = unbounded(xp, column, y, bound)[0]
    return [xp.minimum(xp.maximum(z, -WIDEST), WIDEST)]


def _equal(xp: Arrays, y: Array, level: float) -> Array:
    return xp.abs(y - level) < 1e-6 * max(1.0, abs(level))


def one_hot(xp: Arrays, column: Column, y: Array) -> Array:
    """(levels, rows): 1 where a categorical column has the level."""
    return xp.stack([xp.where(_equal(xp, y, level), 1.0, 0.0) for level in column.levels])
