"""Scales on which a number of a row, or the region of a parameter, has no bounds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pymc_amortized.row_density.namespaces import Array, Arrays

TransformName = Literal["identity", "log", "logit", "above"]


@dataclass(frozen=True)
class Transform:
    """A scale, by functions of a namespace `xp` and of arrays (rows,).

    Attributes
    ----------
    allowed : str
        The numbers y that it takes, for messages.
    supported : callable of (xp, y)
        Tells which numbers it takes, and replaces others by one that it takes.
    forward : callable of (xp, y)
        Returns the number t on the scale.
    log_slope : callable of (xp, y, t)
        The logarithm of the derivative.
    back : callable of (xp, t)
        Undoes `forward`.
    continued : callable of (xp, y, low, high)
        `forward` of any number: in a straight line beyond the region from `low` to `high`, which are on the scale.
    """

    allowed: str
    supported: Callable[[Arrays, Array], tuple[Array, Array]]
    forward: Callable[[Arrays, Array], Array]
    log_slope: Callable[[Arrays, Array, Array], Array]
    back: Callable[[Arrays, Array], Array]
    continued: Callable[[Arrays, Array, float, float], Array] = lambda xp, y, low, high: y


def _finite(xp: Arrays, y: Array) -> tuple[Array, Array]:
    return xp.abs(y) < math.inf, y


def _positive(xp: Arrays, y: Array) -> tuple[Array, Array]:
    return y > 0, xp.where(y > 0, y, 1.0)


def _share(xp: Arrays, y: Array) -> tuple[Array, Array]:
    fine = (y > 0) & (y < 1)
    return fine, xp.where(fine, y, 0.5)


def _log_continued(xp: Arrays, y: Array, low: float, high: float) -> Array:
    low = max(math.exp(low), 1e-300)  # rounding may put an end of a region at 0
    return xp.log(xp.maximum(y, low)) + xp.minimum(y - low, 0.0) / low


def _logit(xp: Arrays, y: Array) -> Array:
    return xp.log(y) - xp.log1p(-y)


def _logit_continued(xp: Arrays, y: Array, low: float, high: float) -> Array:
    low, high = (1 / (1 + math.exp(-end)) for end in (low, high))
    below, above = xp.minimum(y - low, 0.0), xp.maximum(y - high, 0.0)
    slopes = [1 / max(end * (1 - end), 1e-300) for end in (low, high)]
    return _logit(xp, xp.minimum(xp.maximum(y, low), high)) + below * slopes[0] + above * slopes[1]


def _soft_log(xp: Arrays, y: Array) -> Array:
    """``log(softplus(y))``, which is log(y) far above 0 and y far below, where softplus is exp to the last digit."""
    return xp.where(y < -20.0, y, xp.log(xp.softplus(xp.maximum(y, -20.0))))


def _soft_log_slope(xp: Arrays, y: Array, t: Array) -> Array:
    """Logarithm of ``sigmoid(y) / softplus(y)``."""
    return -xp.softplus(-xp.maximum(y, -20.0)) - xp.where(y < -20.0, -20.0, t)


def _soft_log_back(xp: Arrays, t: Array) -> Array:
    """``log(exp(s) - 1)`` of s = exp(t): s where that is large, log(s) where it is small."""
    s = xp.exp(xp.minimum(t, 300.0))
    return xp.where(s > 30.0, s, xp.log(xp.expm1(xp.maximum(xp.minimum(s, 30.0), 1e-300))))


TRANSFORMS: dict[TransformName, Transform] = {
    "identity": Transform("finite values", _finite, lambda xp, y: y, lambda xp, y, t: 0.0 * y, lambda xp, t: t),
    "log": Transform(
        "values above 0",
        _positive,
        lambda xp, y: xp.log(y),
        lambda xp, y, t: -t,
        lambda xp, t: xp.exp(t),
        _log_continued,
    ),
    "logit": Transform(
        "values in 0 to 1",
        _share,
        _logit,
        lambda xp, y, t: -xp.log(y) - xp.log1p(-y),
        lambda xp, t: xp.sigmoid(t),
        _logit_continued,
    ),
    "above": Transform("finite values", _finite, _soft_log, _soft_log_slope, _soft_log_back),
}
""""above" is for the distance from a bound, in soft units."""
