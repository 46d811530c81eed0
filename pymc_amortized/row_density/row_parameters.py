r"""The parameters of a row's distribution, and the region of them in which a density is trained.

Parameters are moved to the scale on which their region is an interval, standardized, and led smoothly to a standstill
beyond it: with :math:`x` beyond an end :math:`h` by :math:`d`,

.. math:: x \mapsto h + w \tanh(d / w), \qquad \text{penalty } \tfrac{\kappa}{2} d^2.

Both are differentiable at the end itself. NUTS is pushed back into the region by a force that grows with the distance.
Logarithms, too, go on as straight lines beyond the region, so that distances are finite at 0 and below. Where
parameters go together in training, what is left of one given the others has a region as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymc_amortized.row_density.namespaces import NUMPY, Array, Arrays, equal
from pymc_amortized.row_density.transforms import TRANSFORMS, TransformName


class Interval:
    """Where a standardized number lies in training."""

    low: float
    high: float

    def penalty(self, xp: Arrays, x: Array) -> Array:
        """What is taken off a row's log density: one standard deviation beyond an end costs 12 nats, 0.2 half a nat."""
        above, below = self.beyond(xp, x)
        return 0.5 * 25.0 * (above * above + below * below)

    def beyond(self, xp: Arrays, x: Array) -> tuple[Array, Array]:
        """How far x is above the interval, and below."""
        return xp.maximum(x - self.high, 0.0), xp.maximum(self.low - x, 0.0)

    def reach(self, xp: Arrays, x: Array) -> Array:
        """How far x is from the middle: 1 at the ends."""
        return xp.abs(x - (self.high + self.low) / 2) / max((self.high - self.low) / 2, 1e-9)


@dataclass(frozen=True)
class Parameter(Interval):
    """One number that a row's distribution depends on, and the region it was trained in.

    Attributes
    ----------
    name : str
        "drift", or "weights[1]" for an element of a vector.
    transform : {"identity", "log", "logit"}
        To the scale on which the region is an interval: log for positive ones, logit for those in (0, 1).
    center, scale : float
        Standardize on that scale.
    low, high : float
        Ends of the region, in standardized units.
    linear : tuple of float or None
        Center and scale of the parameter itself, which is a second input of the network, where that differs
        and does not span orders of magnitude.
    levels : tuple of float
        The only values it was trained at, where these are few: numbers of trials, or a covariate of two values.
    """

    name: str
    transform: TransformName
    center: float
    scale: float
    low: float
    high: float
    linear: tuple[float, float] | None = None
    levels: tuple[float, ...] = ()

    @property
    def inputs(self) -> int:
        """Numbers that the network sees of it."""
        return 1 + (self.linear is not None)

    def simulated(self, values: np.ndarray) -> np.ndarray:
        """Standardize simulated values; NaN where the transform takes none."""
        with np.errstate(all="ignore"):
            return (TRANSFORMS[self.transform].forward(NUMPY, values) - self.center) / self.scale

    def standardized(self, xp: Arrays, value: Array) -> Array:
        """Standardize any values: straight on beyond the region."""
        low, high = (end * self.scale + self.center for end in (self.low, self.high))
        return (TRANSFORMS[self.transform].continued(xp, value, low, high) - self.center) / self.scale

    def encode(self, xp: Arrays, x: Array) -> list[Array]:
        """Make of standardized values what the network sees: at most a quarter of a standard deviation beyond."""
        above, below = self.beyond(xp, x)
        inside = xp.minimum(xp.maximum(x, self.low), self.high)
        inside = inside + 0.25 * (xp.tanh(above / 0.25) - xp.tanh(below / 0.25))
        if self.linear is None:
            return [inside]
        center, scale = self.linear
        back = TRANSFORMS[self.transform].back(xp, inside * self.scale + self.center)
        return [inside, (back - center) / scale]

    def extent(self, xp: Arrays, value: Array) -> Array:
        """How far values are from the middle of the region: 1 at its edge, 2 more between the few of training."""
        reach = self.reach(xp, self.standardized(xp, value))
        if not self.levels:
            return reach
        seen = sum(xp.where(equal(xp, value, level), 1.0, 0.0) for level in self.levels)
        return reach + xp.where(seen > 0, 0.0, 2.0)


@dataclass(frozen=True)
class Combination(Interval):
    """What is left of a parameter that others predict: where these go together, each alone says little of the region.

    Attributes
    ----------
    weights : tuple of float
        Of the standardized parameters.
    low, high : float
        Ends of the region, in units of its standard deviation.
    """

    weights: tuple[float, ...]
    low: float
    high: float

    def of(self, standardized: Sequence[Array]) -> Array:
        """Value at standardized parameters, which broadcast."""
        total: Array = 0.0
        for weight, x in zip(self.weights, standardized, strict=True):
            total = total + weight * x
        return total
