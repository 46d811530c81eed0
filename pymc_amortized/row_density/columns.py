"""The kinds of columns that a row can have, and all that is done with each.

A column is one number of a row. Its class says how it is recognized in simulations, what a network sees of it, what the
network's head says of it, how it is drawn and which values are refused. A new kind is one class more in
:data:`AnyColumn`. Fields are plain numbers, for files.

Columns and parameters are arrays (rows,), a head is (numbers, rows); `k` is the number of components of a mixture.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, get_args

import numpy as np
from numpy.random import Generator

from pymc_amortized.logs import logger
from pymc_amortized.row_density import mixtures
from pymc_amortized.row_density.namespaces import NUMPY, Array, Arrays, equal
from pymc_amortized.row_density.transforms import TRANSFORMS, TransformName

MOST_LEVELS = 12
"""A number of so many distinct values in all simulations, if they are whole or repeat, is a category."""
ATOM = 0.002
"""Share of a single value, above which it is no coincidence."""


@dataclass(frozen=True)
class Column(ABC):
    """One number of a row: a choice, by a softmax, or a quantity, by a mixture on some standardized scale."""

    kind: ClassVar[str]
    """Its name in :data:`COLUMNS`, and in ``kinds=``."""

    @staticmethod
    @abstractmethod
    def recognized(y: np.ndarray) -> bool:
        """Tell whether simulated values look like this kind, given that they look like none before it."""

    @classmethod
    @abstractmethod
    def fit(cls, y: np.ndarray) -> Self:
        """Learn the column from simulated values."""

    def candidates(self, y: np.ndarray, parameters: Sequence[np.ndarray]) -> Sequence[Self]:
        """Return what the column may be after all; the likeliest is taken."""
        return [self]

    def alone(self, y: np.ndarray) -> Self:
        """Return the column with nothing that depends on parameters."""
        return self

    @property
    def choices(self) -> int:
        """Among how many values it chooses: later columns have a head for each; 0 for a quantity."""
        return 0

    @property
    @abstractmethod
    def allowed(self) -> str:
        """Which values are possible, for messages."""

    @abstractmethod
    def supported(self, xp: Arrays, y: Array) -> tuple[Array, Array]:
        """Tell which values are possible, and replace others by one that is."""

    def check(self, y: np.ndarray, where: str, fine: np.ndarray | bool = True) -> None:
        """Refuse values that are not possible: ValueError, whose message begins with `where`."""
        wrong = ~(self.supported(NUMPY, y)[0] & np.isfinite(y) & fine)
        if wrong.any():
            raise ValueError(f"{where}: {self.allowed}, got {y[wrong][0]:g}")

    @abstractmethod
    def as_given(self, xp: Arrays, y: Array, parameters: Sequence[Array]) -> list[Array]:
        """Make of values what later columns and rows see: arrays (rows,)."""

    @property
    def given_size(self) -> int:
        """How many these are."""
        return max(self.choices - 1, 1)

    @abstractmethod
    def encode(self, xp: Arrays, y: Array, parameters: Sequence[Array]) -> tuple[Sequence[Array], Array]:
        """Make of values what :meth:`log_density` takes, arrays (rows,), and the logarithm of the derivative."""

    def head_size(self, k: int) -> int:
        """Count the numbers of a head."""
        return self.choices or 2 + 3 * k

    def normalized(self, xp: Arrays, head: Array, k: int) -> Array:
        """Do with a head what is the same for all rows that share it."""
        return head if self.choices else mixtures.normalized(xp, head, k)

    @abstractmethod
    def log_density(self, xp: Arrays, head: Array, k: int, values: Sequence[Array]) -> Array:
        """Log density or mass (rows,) of encoded values, by a normalized head."""

    @abstractmethod
    def draw(self, rng: Generator, head: np.ndarray, k: int, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Draw values by a normalized head."""

    def regressed(self, values: np.ndarray) -> np.ndarray | None:
        """Return of encoded values the number by whose regression a head starts; None for a choice."""
        return None if self.choices else values[0]


@dataclass(frozen=True)
class CategoricalColumn(Column):
    """One of a few levels, by a softmax."""

    kind = "categorical"
    levels: tuple[float, ...] = ()

    @staticmethod
    def recognized(y: np.ndarray) -> bool:
        """Look for few values; -0.5 and 0.5 are a choice, too."""
        return len(np.unique(y)) <= MOST_LEVELS and (_whole(y) or len(y) > 100 * MOST_LEVELS)

    @classmethod
    def fit(cls, y: np.ndarray) -> Self:
        """Learn the levels."""
        return cls(tuple(np.unique(y).tolist()))

    @property
    def choices(self) -> int:
        """Count the levels."""
        return len(self.levels)

    @property
    def allowed(self) -> str:
        """Name the levels."""
        return f"the categories are {list(self.levels)}"

    def supported(self, xp: Arrays, y: Array) -> tuple[Array, Array]:
        """Tell which are levels; others may stay, as each is compared with the levels."""
        return sum(self._one_hot(xp, y, self.levels)) > 0, y

    def as_given(self, xp: Arrays, y: Array, parameters: Sequence[Array]) -> list[Array]:
        """Return 1 where a row has a level, for all but the first, or for the only one."""
        return self._one_hot(xp, y, self.levels[1:] or self.levels)

    def encode(self, xp: Arrays, y: Array, parameters: Sequence[Array]) -> tuple[Array, Array]:
        """Return 1 where a row has a level: (levels, rows)."""
        return xp.stack(self._one_hot(xp, y, self.levels)), 0.0

    @staticmethod
    def _one_hot(xp: Arrays, y: Array, levels: Sequence[float]) -> list[Array]:
        return [xp.where(equal(xp, y, level), 1.0, 0.0) for level in levels]

    def log_density(self, xp: Arrays, head: Array, k: int, values: Array) -> Array:
        """Log probability of the levels."""
        return (values * head).sum(0) - xp.logsumexp(head)

    def draw(self, rng: Generator, head: np.ndarray, k: int, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Draw levels."""
        return np.asarray(self.levels)[mixtures.choice(rng, head)]


@dataclass(frozen=True)
class CountColumn(Column):
    """A whole number, with the mass of a mixture in its interval (Salimans et al. 2017, arXiv 1701.05517).

    A count y is the interval from y - 1/2 to y + 1/2 on the scale of log(y - lower + 1), which `center` and `scale`
    standardize. The smallest one has no lower edge, and the largest one, `top` if there is one, no upper edge: masses
    add up to 1.
    """

    kind = "count"
    lower: float = 0.0
    top: float | None = None
    center: float = 0.0
    scale: float = 1.0

    @staticmethod
    def recognized(y: np.ndarray) -> bool:
        """Look for whole numbers."""
        return _whole(y)

    @classmethod
    def fit(cls, y: np.ndarray) -> Self:
        """Learn the ends and the scale."""
        lower = min(float(y.min()), 0.0)
        t = np.log(y - lower + 1)
        top = float(y.max()) if (y == y.max()).mean() > ATOM else None
        return cls(lower, top, float(t.mean()), float(t.std()) or 1.0)

    @property
    def allowed(self) -> str:
        """Name the ends."""
        return f"counts from {self.lower:g} {'on' if self.top is None else f'to {self.top:g}'} are allowed"

    def supported(self, xp: Arrays, y: Array) -> tuple[Array, Array]:
        """Tell which are between the ends."""
        fine = (y > self.lower - 0.5) & (y < (math.inf if self.top is None else self.top + 0.5))
        return fine, xp.where(fine, y, self.lower)

    def check(self, y: np.ndarray, where: str, fine: np.ndarray | bool = True) -> None:
        """Refuse numbers that are not whole, too."""
        super().check(y, where, fine & (y == np.round(y)))

    def as_given(self, xp: Arrays, y: Array, parameters: Sequence[Array]) -> list[Array]:
        """Return them on the scale."""
        return [_clipped(xp, (xp.log(y - self.lower + 1.0) - self.center) / self.scale)]

    def encode(self, xp: Arrays, y: Array, parameters: Sequence[Array]) -> tuple[Sequence[Array], Array]:
        """Return the interval's lower edge and width, and whether it has no lower, and no upper edge."""
        above = y - self.lower + 0.5
        low, width = xp.log(above), xp.log1p(1.0 / above)
        first, last = y <= self.lower, y >= (math.inf if self.top is None else self.top)
        return ((low - self.center) / self.scale, width / self.scale, first, last), 0.0

    def log_density(self, xp: Arrays, head: Array, k: int, values: Sequence[Array]) -> Array:
        """Log mass of the intervals."""
        low, width, first, last = values
        return mixtures.log_mass(xp, head, k, low, width, first > 0, last > 0)

    def draw(self, rng: Generator, head: np.ndarray, k: int, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Draw counts: those in whose interval a draw of the mixture lies."""
        t = mixtures.draw(rng, head, k) * self.scale + self.center
        return np.clip(np.round(np.exp(np.minimum(t, 43.0)) - 1.0 + self.lower), self.lower, self.top)

    def regressed(self, values: np.ndarray) -> np.ndarray:
        """Return the middle of the intervals."""
        return values[0] + 0.5 * values[1]


@dataclass(frozen=True)
class RealColumn(Column):
    """A number with a density: a mixture on a scale without bounds, which `center` and `scale` standardize.

    Attributes
    ----------
    transform : {"identity", "log", "logit", "above"}
        To that scale.
    bound : int or None
        For "above": which parameter is the lower bound.
    softness : float
        For "above": the unit of the distance from the bound. Below it the logarithm turns into a straight line, so that
        a row below the bound has a small density rather than none.
    """

    kind = "real"
    transform: TransformName = "identity"
    bound: int | None = None
    softness: float = 1.0
    center: float = 0.0
    scale: float = 1.0

    @staticmethod
    def recognized(y: np.ndarray) -> bool:
        """Take every number, but refuse those of which one value has a probability while others have a density."""
        if atom := _atom(y):
            raise ValueError(
                f"{atom} (censored or inflated data?): they have no density. Let a row be two numbers, one that says "
                "whether the other is known and is a category, and the other drawn from any density where it is not "
                "known; or say kinds= if these are numbers all the same"
            )
        return True

    @classmethod
    def fit(cls, y: np.ndarray) -> Self:
        """Warn of a value that has a probability; :meth:`candidates` learn the rest."""
        if atom := _atom(y[:100_000]):
            logger.warning(
                "%s, and kinds= says that these are real numbers: the learned density has a spike there, which spoils "
                "posteriors and LOO unless it is rounding. Draw a filler from a density instead.",
                atom,
            )
        return cls()

    def candidates(self, y: np.ndarray, parameters: Sequence[np.ndarray]) -> Sequence[Self]:
        """Return it with every transform that the values allow."""
        found = [self]
        names: tuple[TransformName, ...] = ("log", "logit")
        found += [replace(self, transform=t) for t in names if TRANSFORMS[t].supported(NUMPY, y)[0].all()]
        for j, parameter in enumerate(parameters):
            distance = y - parameter
            if distance.min() > 0 and parameter.std() > 0:
                softness = float(np.quantile(distance, 1e-4)) / 10
                found.append(replace(self, transform="above", bound=j, softness=softness))
        return [column._standardized(y, parameters) for column in found]

    def alone(self, y: np.ndarray) -> Self:
        """Return it with a lower bound of 0, or none, instead of a parameter."""
        if self.bound is None:
            return self
        plain = replace(self, transform="log" if y.min() > 0 else "identity", bound=None, softness=1.0)
        return plain._standardized(y, ())

    def _standardized(self, y: np.ndarray, parameters: Sequence[np.ndarray]) -> Self:
        plain = replace(self, center=0.0, scale=1.0)
        low, median, high = np.quantile(plain.encode(NUMPY, y, parameters)[0][0], [0.16, 0.5, 0.84])
        return replace(self, center=float(median), scale=float((high - low) / 2) or 1.0)

    @property
    def allowed(self) -> str:
        """Name the bounds."""
        return f"{TRANSFORMS[self.transform].allowed} are allowed"

    def supported(self, xp: Arrays, y: Array) -> tuple[Array, Array]:
        """Tell which the transform takes."""
        return TRANSFORMS[self.transform].supported(xp, y)

    def as_given(self, xp: Arrays, y: Array, parameters: Sequence[Array]) -> list[Array]:
        """Return them on the scale."""
        return [_clipped(xp, self.encode(xp, y, parameters)[0][0])]

    def encode(self, xp: Arrays, y: Array, parameters: Sequence[Array]) -> tuple[Sequence[Array], Array]:
        """Return them on the scale."""
        transform, unit = TRANSFORMS[self.transform], math.log(self.softness)
        y = y if self.bound is None else (y - parameters[self.bound]) / self.softness
        t = transform.forward(xp, y)
        slope = transform.log_slope(xp, y, t) - unit - math.log(self.scale)
        return ((t + unit - self.center) / self.scale,), slope

    def decode(self, z: np.ndarray, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Undo :meth:`encode`."""
        y = TRANSFORMS[self.transform].back(NUMPY, z * self.scale + self.center - math.log(self.softness))
        return y if self.bound is None else parameters[self.bound] + self.softness * y

    def log_density(self, xp: Arrays, head: Array, k: int, values: Sequence[Array]) -> Array:
        """Log density on the scale."""
        return mixtures.log_density(xp, head, k, values[0])

    def draw(self, rng: Generator, head: np.ndarray, k: int, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """Draw from the mixture, and transform back."""
        return self.decode(mixtures.draw(rng, head, k), parameters)


AnyColumn = CategoricalColumn | CountColumn | RealColumn
"""In the order in which the columns of a row are learned, and in which simulated values are recognized."""
COLUMNS: dict[str, type[AnyColumn]] = {column.kind: column for column in get_args(AnyColumn)}


def fit_column(y: np.ndarray, kind: str | None) -> AnyColumn:
    """Learn a column of a kind, or of the first kind that recognizes the simulated values y."""
    some = y[:100_000]
    return (COLUMNS[kind] if kind else next(c for c in COLUMNS.values() if c.recognized(some))).fit(y)


def _clipped(xp: Arrays, z: Array) -> Array:
    """Standardized values; beyond 30, where nearly no simulation comes, all are alike."""
    return xp.minimum(xp.maximum(z, -30.0), 30.0)


def _whole(y: np.ndarray) -> bool:
    return bool((y == np.round(y)).all())


def _atom(y: np.ndarray) -> str | None:
    """Say which value has a probability, in a number that has a density as well, as a censored one has."""
    values, counts = np.unique(y, return_counts=True)
    share = counts.max() / len(y)
    if share > ATOM and counts.max() > 20 * np.median(counts):  # values that are rounded all repeat
        value = values[counts.argmax()]
        return f"{value:.4g} makes up {share:.1%} of the simulated values, among others that do not repeat"
    return None
