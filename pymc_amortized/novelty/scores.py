r"""How unlike simulations a data set is: scores, p-values, and a test of a whole collection.

Features :math:`f` of a data set (its learned summary, and the shape of its residuals) are brought to location 0 and
scale 1 given the data set's size and context :math:`c`, both learned from simulations; each block of features is
turned to its principal components, the tails of these are bent to those of a normal distribution, and they are scaled
to variance 1. The score is their sum of squares: a Mahalanobis
distance (Schmitt et al. 2021, arXiv 2112.08866, use the learned summary alone, which is blind to outliers and to
another family of noise).

Its p-value is a rank among simulations other than those the score was learned from, near in size and context:
:math:`(1 + \#\{s_r \ge s\}) / (R + 1)`. Beyond all but a few of these a generalized Pareto tail goes on where ranks end
(Knijnenburg et al. 2009, "Fewer permutations, more accurate P-values"), never lighter than an exponential one.

Several data sets are compared with simulations by the maximum mean discrepancy (Gretton et al. 2012) of what the scores
are sums of. Its null distribution comes from collections that the model simulates, of the same number, sizes and
contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LIMIT = 6.0
"""Standardized features beyond it count logarithmically: heavy tails of one must not drown the others."""
KEPT = 0.99
"""Share of a block's variance that its components keep: directions without variance are noise scaled up."""
RANKED = 10
"""A p-value that fewer simulations than this stand behind may be that of the tail,"""
EXACT = 0.01
"""unless it is larger than this: levels that are tested at are those of ranks, which are exact."""
TAIL = (0.1, 40)
"""Share of the reference that the tail is learned from, and the fewest scores that make one."""
HEAVIEST = 0.5
"""Shape up to which the moments that the tail is learned by exist."""
FURTHEST = 1_000
"""Simulations for each that was made, which the tail may stand for; smaller p-values are claimed by nobody."""
NEIGHBOURS = 1_000
"""Simulations nearest in size and context that a data set is ranked among: a p-value of 5 % has 0.7 % of error."""
TINY = 1e-12
"""Beside a score, of which the logarithm is taken."""
AT_ONCE = 100
"""Sizes and contexts whose neighbours are found at once."""
MMD_REFERENCE = 2_000
"""Simulations that stand for the model in the discrepancy: their noise is small beside that of any collection."""
BULK, FAR = (0.6827, 1.0), (0.995, 2.807)
"""Shares of a standard normal variable, and the absolute values they lie within."""
LOG_NORMAL_SQUARE = -1.2704
"""Mean of log z^2 for a standard normal z."""


@dataclass(frozen=True, eq=False)
class Whitening:
    r"""Principal components of blocks of standardized features, with tails like those of a normal distribution.

    A component :math:`c` becomes :math:`u \operatorname{asinh}(b c) / b`, where b (0: none is needed) brings the 99.5 %
    quantile of its absolute value down to 2.8 times that of 68 %. Without it a few wild simulations set the level that
    every other deviation is measured by.

    Attributes
    ----------
    mean : ndarray (features,)
    rotation : ndarray (features, components)
    bend, unit : ndarray (components,)
        The b and u above.
    """

    mean: np.ndarray
    rotation: np.ndarray
    bend: np.ndarray
    unit: np.ndarray

    @classmethod
    def fit(cls, units: np.ndarray, blocks: Sequence[int]) -> Whitening:
        """Learn from standardized features (n, width) of simulations, in blocks of given widths."""
        mean, starts = units.mean(0, dtype=np.float64), np.cumsum([0, *blocks])
        rotation = np.concatenate(
            [_principal(units, mean, slice(*ends)) for ends in pairwise(starts) if ends[0] < ends[1]], axis=1
        )
        turned = (units - mean) @ rotation
        bend = _bend(turned)
        return cls(mean, rotation, bend, 1 / _positive(_bent(turned, bend).std(0)))

    def __call__(self, units: np.ndarray) -> np.ndarray:
        """Components (..., components) of standardized features (..., width)."""
        return _bent((units - self.mean) @ self.rotation, self.bend) * self.unit


def _principal(units: np.ndarray, mean: np.ndarray, block: slice) -> np.ndarray:
    """Rotation (width, components) to the principal components of a block, scaled to variance 1."""
    centered = units[:, block] - mean[block]
    variance, directions = np.linalg.eigh(centered.T @ centered / max(len(units) - 1, 1))
    variance, directions = variance[::-1], directions[:, ::-1]
    kept = variance > 1e-9
    kept[np.searchsorted(np.cumsum(variance) / max(variance.sum(), 1e-300), KEPT) + 1 :] = False
    rotation = np.zeros((units.shape[1], int(kept.sum())))
    rotation[block] = directions[:, kept] / np.sqrt(variance[kept])
    return rotation


def _bend(turned: np.ndarray) -> np.ndarray:
    """How strongly each component (n, components) has to be bent."""
    near, far = np.quantile(np.abs(turned), (BULK[0], FAR[0]), axis=0)
    near, wanted = _positive(near), FAR[1] / BULK[1]
    strengths = np.concatenate([[0.0], np.logspace(-3, 3, 200)])[:, None] / near
    ratios = _bent(far, strengths) / _bent(near, strengths)  # falls
    first = np.where((ratios <= wanted).any(0), np.argmax(ratios <= wanted, axis=0), len(strengths) - 1)
    return np.take_along_axis(strengths, first[None], axis=0)[0]


def _bent(turned: np.ndarray, bend: np.ndarray) -> np.ndarray:
    some = np.where(bend > 0, bend, 1.0)
    return np.where(bend > 0, np.arcsinh(some * turned) / some, turned)


@dataclass(frozen=True, eq=False)
class Score:
    """What turns features into components, learned from simulations; arrays alone.

    Attributes
    ----------
    center, scale : ndarray (features,)
        Of single features, robust.
    extent_center, extent_scale : ndarray (k,)
        Of sizes and context.
    trend, log_variance : ndarray (terms, features)
        Location and log variance of standardized features, by polynomials of sizes and context.
    whitening : Whitening
        Of what is left.
    """

    center: np.ndarray
    scale: np.ndarray
    extent_center: np.ndarray
    extent_scale: np.ndarray
    trend: np.ndarray
    log_variance: np.ndarray
    whitening: Whitening

    @classmethod
    def fit(cls, features: np.ndarray, extents: np.ndarray, blocks: Sequence[int]) -> Score:
        """Learn from features (n, width) and extents (n, k) of simulations.

        Parameters
        ----------
        blocks : sequence of int
            Widths of the blocks of features.
        """
        center, scale = robust(features)
        extent_center, extent_scale = extents.mean(0), _positive(extents.std(0))
        design = _design((extents - extent_center) / extent_scale)
        z = squashed((features - center) / scale)
        trend = np.linalg.lstsq(design, z, rcond=None)[0]
        residual = z - design @ trend
        log_variance = np.zeros_like(trend)
        if extents.shape[1]:
            logs = np.log(residual**2 + 1e-8) - LOG_NORMAL_SQUARE
            log_variance = np.linalg.lstsq(design, logs, rcond=None)[0]
        units = residual / np.exp(design @ log_variance / 2)
        whitening = Whitening.fit(units, blocks)
        return cls(center, scale, extent_center, extent_scale, trend, log_variance, whitening)

    def components(self, features: np.ndarray, extents: np.ndarray) -> np.ndarray:
        """Components (n, components), uncorrelated and of variance 1 within each block over simulations."""
        design = _design((extents - self.extent_center) / self.extent_scale)
        z = squashed((features - self.center) / self.scale)
        return self.whitening((z - design @ self.trend) / np.exp(design @ self.log_variance / 2))

    def __call__(self, features: np.ndarray, extents: np.ndarray) -> np.ndarray:
        """Scores (n,) of features (n, width) at extents (n, k)."""
        return np.square(self.components(features, extents)).sum(1)


@dataclass(frozen=True, eq=False)
class Reference:
    """Scores of simulations, and what scored them.

    Attributes
    ----------
    score : Score
    scores : ndarray (n,)
        Of simulations that the score was not learned from.
    extents : ndarray (n, k)
        Their sizes and context.
    """

    score: Score
    scores: np.ndarray
    extents: np.ndarray

    def pvalues(self, features: np.ndarray, extents: np.ndarray) -> np.ndarray:
        """P-values (n,) of data sets with features (n, width) at extents (n, k)."""
        scores = self.score(features, extents)
        if not self.extents.shape[1]:
            reference = np.sort(self.scores)
            return np.array([pvalue(s, reference) for s in scores])
        ours, theirs = ((e - self.score.extent_center) / self.score.extent_scale for e in (extents, self.extents))
        different, which = np.unique(ours, axis=0, return_inverse=True)
        found = np.empty(len(ours))
        for start in range(0, len(different), AT_ONCE):
            near = self._near(different[start : start + AT_ONCE], theirs)
            for i in np.flatnonzero((which >= start) & (which < start + AT_ONCE)):
                found[i] = pvalue(scores[i], near[which[i] - start])
        return found

    def _near(self, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """Sorted scores (n, m) of the simulations whose extents (R, k) are nearest to those given (n, k)."""
        nearest = min(NEIGHBOURS, len(theirs))
        distance = np.square(ours[:, None] - theirs).sum(-1)
        index = np.argpartition(distance, nearest - 1, axis=1)[:, :nearest]
        logs = _adjusted(np.log(self.scores + TINY)[index], theirs[index] - ours[:, None])
        return np.sort(np.exp(logs), axis=1)


def _adjusted(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Take out of neighbours' values (n, m) what is linear in how far off they are (n, m, k).

    At the edge of what was simulated all neighbours are to one side.
    """
    design = np.concatenate([np.ones_like(offsets[..., :1]), offsets], axis=-1)
    gram = design.swapaxes(1, 2) @ design
    gram += 1e-6 * len(offsets[0]) * np.eye(gram.shape[-1])  # where extents do not differ there is no slope
    slopes = np.linalg.solve(gram, design.swapaxes(1, 2) @ values[..., None])[:, 1:]
    return values - (offsets @ slopes)[..., 0]


def robust(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians and scales (half the distance of the quantiles one sigma out) of features (n, width)."""
    low, middle, high = np.quantile(features, (0.1587, 0.5, 0.8413), axis=0)
    scale = (high - low) / 2
    scale = np.where(scale > 1e-9 * (1 + np.abs(middle)), scale, features.std(0))
    return middle, np.where(scale > 1e-9 * (1 + np.abs(middle)), scale, np.inf)  # a constant says nothing


def squashed(z: np.ndarray) -> np.ndarray:
    """Identity up to a limit, logarithmic beyond."""
    inside = np.clip(z, -LIMIT, LIMIT)
    return inside + np.sign(z) * np.log1p(np.abs(z - inside))


def _positive(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 1e-9, scale, 1.0)


def _design(c: np.ndarray) -> np.ndarray:
    """Terms up to the third order, and products of two, of (n, k); far beyond what was simulated as at its edge."""
    c = np.clip(c, -3.0, 3.0)
    first, second = np.triu_indices(c.shape[1], 1)
    return np.concatenate([np.ones((len(c), 1)), c, c**2, c**3, c[:, first] * c[:, second]], axis=1)


def pvalue(score: float, reference: np.ndarray) -> float:
    """Probability of a score at least as large, by sorted scores (R,) of simulations."""
    beyond = len(reference) - int(np.searchsorted(reference, score, side="left"))
    ranked = (1 + beyond) / (len(reference) + 1)
    if beyond >= RANKED or ranked > EXACT or len(reference) < 2 * TAIL[1]:
        return ranked
    return min(ranked, _tail_probability(score, reference))


def _tail_probability(score: float, reference: np.ndarray) -> float:
    """By a generalized Pareto tail, from probability-weighted moments (Hosking & Wallis 1987)."""
    number = max(round(TAIL[0] * len(reference)), TAIL[1])
    threshold = reference[-number - 1]
    excess = reference[-number:] - threshold
    first = excess.mean()
    second = np.mean(excess * (number - np.arange(number) - 0.5) / number)
    if first <= 0:
        return 1 / (len(reference) + 1)
    shape = float(np.clip(2 - first / max(first - 2 * second, 1e-9 * first), 0.0, HEAVIEST))
    scale = first * (1 - shape)  # the mean of the tail is that of the excesses
    t = max(score - threshold, 0.0) / scale
    survival = np.exp(-t) if shape < 1e-6 else (1 + shape * t) ** (-1 / shape)
    return float(max(number / (len(reference) + 1) * survival, 1 / (FURTHEST * len(reference))))


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """Squared maximum mean discrepancy between a collection and simulations, up to what simulations alone decide.

    Attributes
    ----------
    reference : ndarray (m, components)
    bandwidth : float
        Of the kernel exp(-|a - b|^2 / bandwidth): the median squared distance within the reference.
    """

    reference: np.ndarray
    bandwidth: float
    within: float

    @classmethod
    def fit(cls, reference: np.ndarray, rng: np.random.Generator) -> Discrepancy:
        """Take simulations (m, components), of which some are drawn where there are many."""
        if len(reference) > MMD_REFERENCE:
            reference = reference[rng.permutation(len(reference))[:MMD_REFERENCE]]
        distances = squared_distances(reference, reference)
        apart = distances[np.triu_indices(len(reference), 1)]
        bandwidth = float(np.median(apart)) or 1.0
        return cls(reference, bandwidth, float(np.exp(-apart / bandwidth).mean()))

    def __call__(self, collection: np.ndarray) -> float:
        """Unbiased squared discrepancy of a collection (n, components), n > 1."""
        own = squared_distances(collection, collection)[np.triu_indices(len(collection), 1)]
        across = squared_distances(collection, self.reference)
        return float(np.exp(-own / self.bandwidth).mean() - 2 * np.exp(-across / self.bandwidth).mean() + self.within)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (len(a), len(b))."""
    return np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T, 0.0)
