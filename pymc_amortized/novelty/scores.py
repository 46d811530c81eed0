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

from pymc_amortized.numerics.blocks import blocks as in_blocks

FEWEST_IN_TAIL = 40
"""Scores of simulations that make a tail."""


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
    # components keep 99 % of the variance: directions without variance are noise scaled up
    kept[np.searchsorted(np.cumsum(variance) / max(variance.sum(), 1e-300), 0.99) + 1 :] = False
    rotation = np.zeros((units.shape[1], int(kept.sum())))
    rotation[block] = directions[:, kept] / np.sqrt(variance[kept])
    return rotation


def _bend(turned: np.ndarray) -> np.ndarray:
    """How strongly each component (n, components) has to be bent."""
    near, far = np.quantile(np.abs(turned), (0.6827, 0.995), axis=0)
    near, wanted = _positive(near), 2.807  # of a standard normal variable: 99.5 % lie within that, 68.27 % within 1
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
            logs = np.log(residual**2 + 1e-8) + 1.2704  # the mean of log z^2 is -1.2704 for a standard normal z
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
        for rows in in_blocks(len(different), 100):
            near = self._near(different[rows], theirs)
            for i in np.flatnonzero((which >= rows.start) & (which < rows.stop)):
                found[i] = pvalue(scores[i], near[which[i] - rows.start])
        return found

    def _near(self, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """Sorted scores (n, m) of the simulations whose extents (R, k) are nearest to those given (n, k).

        Among a thousand, a p-value of 5 % has 0.7 % of error.
        """
        nearest = min(1_000, len(theirs))
        distance = np.square(ours[:, None] - theirs).sum(-1)
        index = np.argpartition(distance, nearest - 1, axis=1)[:, :nearest]
        logs = _adjusted(np.log(self.scores + 1e-12)[index], theirs[index] - ours[:, None])
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
    """Identity up to 6, logarithmic beyond: heavy tails of one feature must not drown the others."""
    inside = np.clip(z, -6.0, 6.0)
    return inside + np.sign(z) * np.log1p(np.abs(z - inside))


def _positive(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 1e-9, scale, 1.0)


def _design(c: np.ndarray) -> np.ndarray:
    """Terms up to the third order, and products of two, of (n, k); far beyond what was simulated as at its edge."""
    c = np.clip(c, -3.0, 3.0)
    first, second = np.triu_indices(c.shape[1], 1)
    return np.concatenate([np.ones((len(c), 1)), c, c**2, c**3, c[:, first] * c[:, second]], axis=1)


def pvalue(score: float, reference: np.ndarray) -> float:
    """Probability of a score at least as large, by sorted scores (R,) of simulations.

    That of the tail may be meant where fewer than ten stand behind it, except at levels that are tested at: ranks are
    exact.
    """
    beyond = len(reference) - int(np.searchsorted(reference, score, side="left"))
    ranked = (1 + beyond) / (len(reference) + 1)
    if beyond >= 10 or ranked > 0.01 or len(reference) < 2 * FEWEST_IN_TAIL:
        return ranked
    return min(ranked, _tail_probability(score, reference))


def _tail_probability(score: float, reference: np.ndarray) -> float:
    """By a generalized Pareto tail, from probability-weighted moments (Hosking & Wallis 1987)."""
    number = max(round(0.1 * len(reference)), FEWEST_IN_TAIL)
    threshold = reference[-number - 1]
    excess = reference[-number:] - threshold
    first = excess.mean()
    second = np.mean(excess * (number - np.arange(number) - 0.5) / number)
    if first <= 0:
        return 1 / (len(reference) + 1)
    shape = float(np.clip(2 - first / max(first - 2 * second, 1e-9 * first), 0.0, 0.5))  # up to that the moments exist
    scale = first * (1 - shape)  # the mean of the tail is that of the excesses
    t = max(score - threshold, 0.0) / scale
    survival = np.exp(-t) if shape < 1e-6 else (1 + shape * t) ** (-1 / shape)
    # a simulation stands for a thousand at most; smaller p-values are claimed by nobody
    return float(max(number / (len(reference) + 1) * survival, 1 / (1_000 * len(reference))))


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
        """Take simulations (m, components); of many 2,000, whose noise is small beside that of any collection."""
        if len(reference) > 2_000:
            reference = reference[rng.permutation(len(reference))[:2_000]]
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
