"""The search for modes of a posterior that nothing proposed.

Importance weights cannot tell of a mode in which there is no proposal. So every data set is searched by some thousand
evaluations of its density (:mod:`pymc_amortized.numerics.sampling.modes`); what is found becomes a part of what is
proposed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pymc_amortized.correction.proposals import Proposals
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.axes import Axis
from pymc_amortized.inputs.sketch import MOST_SAMPLED, Sketch
from pymc_amortized.inputs.standardized import Standardized
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.numerics.quadratic import LogDensities, Quadratic
from pymc_amortized.numerics.sampling.amis import SMALLEST, adapt, quasi_normal
from pymc_amortized.numerics.sampling.importance import tempered
from pymc_amortized.numerics.sampling.mixture import StudentMixture
from pymc_amortized.numerics.sampling.modes import POINTS, STAGES, Mode, find_modes, reach
from pymc_amortized.numerics.sampling.symmetry import Symmetries
from pymc_amortized.numerics.sampling.whitening import Whitening, moments

EVALUATIONS = 4096
"""Of the density, about, that a search may take: as many as the proposals of four chains."""
LEAST_SHARE = 0.5
"""Of the proposals that a mode gets, times the number of modes, however light it seems to be."""
MOST_STARTS = 8
FEW = 3
"""Sampled parameters among which scouts meet what is a tenth as wide as the prior; of more, rows tell where to look."""
MOST_ROWS = 8
"""Rows of each data set that are looked at by themselves, as far as twice the evaluations of a search allow."""
SHARP = 64.0
"""Power of the likelihood of one row in the place of all: what a few wide rows would say is not where it points."""
MOST_WEIGHTED = 512
"""Proposals that tell the shape of what is known, which need not be exact."""


@dataclass(frozen=True, eq=False)
class ModeSearch:
    """A search for modes of the posteriors of some data sets.

    Attributes
    ----------
    datasets : DataSets
    log_p : callable
        The model's log density: (theta (n, dim), index of a data set) -> (n,).
    standardizer : ParameterStandardizer
        Of all parameters: units of the prior.
    sketch : Sketch or None
        By it, what can be integrated out is.
    symmetries : Symmetries or None
        Of the posteriors: images of a mode are no further modes.
    rows : Axis or None
        Of exchangeable rows that are independent given the parameters.
    """

    datasets: DataSets
    log_p: Callable[[np.ndarray, int], np.ndarray]
    standardizer: ParameterStandardizer
    sketch: Sketch | None
    symmetries: Symmetries | None = None
    rows: Axis | None = None

    def __call__(self, indices: np.ndarray, sets: Sequence[Proposals]) -> list[StudentMixture | None]:
        """Search for modes, by scouts and what was proposed.

        Parameters
        ----------
        indices : ndarray of int
            Of the data sets.
        sets : sequence of Proposals
            What was proposed for each.

        Returns
        -------
        list of StudentMixture or None
            For each data set a mixture of its modes; None where none was found.
        """
        quadratic, densities = self._densities(indices)
        dim = len(quadratic.sampled)
        if not 0 < dim <= MOST_SAMPLED:
            return [None] * len(indices)
        order = np.concatenate([quadratic.sampled, quadratic.places])
        best, covariance = _moments(sets, self.standardizer)
        scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)[:, quadratic.places])
        log_density = Standardized(densities, self.standardizer)
        curvature = None if self.sketch is None else self.sketch.curvature
        of_sampled = quadratic.integrated(log_density, best[:, quadratic.places], scale, curvature)
        each = EVALUATIONS / quadratic.evaluations / 2
        scouts = 2 ** min(max(int(np.log2(each)), 4), 2 * dim + 4)
        starts = int(np.clip(each / (4 * POINTS), 1, min(MOST_STARTS, 4 * dim)))
        found = find_modes(
            of_sampled,
            best[:, order],
            covariance[:, order[:, None], order],
            dim,
            thorough=np.array([p.want_more(p.log_p.size) for p in sets]),
            scouts=scouts,
            starts=starts,
            further=self._of_rows(indices, quadratic) if dim > FEW else (),
        )
        back = np.argsort(order)
        return [_mixture(modes, back, self.standardizer, self.symmetries) if modes else None for modes in found]

    def _of_rows(self, indices: np.ndarray, quadratic: Quadratic) -> list[np.ndarray]:
        """Where the posteriors of single rows lie, (k, sampled) for each data set.

        Where rows disagree, as one does that lies far out, each may have a mode of its own, too narrow for scouts. A
        data set in which one row stands in the place of all has its posterior there.
        """
        points = quasi_normal(2 * STAGES, 2 * POINTS, len(quadratic.sampled))
        most = min(MOST_ROWS, int(2 * EVALUATIONS / quadratic.evaluations) // (points.shape[0] * points.shape[1]))
        if self.sketch is None or self.rows is None or most == 0:
            return []
        chosen = [_differing(self.datasets, int(i), self.rows, most) for i in indices]
        owner = np.repeat(np.arange(len(indices)), [len(some) for some in chosen])
        if len(owner) == 0:
            return []
        alone = _repeated(self.datasets.take(indices[owner]), np.concatenate(chosen), self.rows)
        log_density = Standardized(self.sketch.density.of(alone), self.standardizer)
        k, q, dim = len(owner), len(quadratic.places), len(quadratic.sampled)
        of_sampled = quadratic.integrated(log_density, np.zeros((k, q)), np.ones((k, q)))
        wide = np.broadcast_to(np.eye(dim + q), (k, dim + q, dim + q))

        def sharp(at: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            log_p, mean, covariance = of_sampled(at, index)
            of_prior = -0.5 * np.square(at).sum(axis=-1)  # about: these are its units
            return SHARP * log_p - (SHARP - 1) * of_prior, mean, covariance

        found = adapt(sharp, np.zeros((k, dim + q)), wide, points)
        met = found.ess > 0
        return [found.mean[(owner == i) & met, :dim] for i in range(len(indices))]

    def _densities(self, indices: np.ndarray) -> tuple[Quadratic, LogDensities]:
        """What is integrated out, and the densities of data sets at parameters of each one's own."""
        if self.sketch is not None:
            return self.sketch.quadratic, self.sketch.density.of(self.datasets.take(indices))

        def each(theta: np.ndarray, index: np.ndarray) -> np.ndarray:
            return np.stack([self.log_p(t, int(indices[i])) for t, i in zip(theta, index, strict=True)])

        nothing = Quadratic(np.empty(0, dtype=int), np.empty((0, 2), dtype=int), self.standardizer.dim)
        return nothing, each


def _moments(sets: Sequence[Proposals], standardizer: ParameterStandardizer) -> tuple[np.ndarray, np.ndarray]:
    """The highest of all proposals of each set, and their weighted covariance, in units of the prior."""
    log_weights, log_p = (np.stack([getattr(p, name).ravel() for p in sets]) for name in ("log_weights", "log_p"))
    total = log_p.shape[1]
    every = np.arange(0, total, -(-total // MOST_WEIGHTED))
    some = np.column_stack([np.tile(every, (len(sets), 1)), log_p.argmax(axis=1)])
    theta = np.stack([p.theta.reshape(total, -1)[rows] for p, rows in zip(sets, some, strict=True)])
    if sets[0].symmetries is not None:
        theta = np.stack([sets[0].symmetries.gathered(each, each[-1]) for each in theta])
    z = standardizer.exact(torch.from_numpy(theta))[0].numpy()
    return z[:, -1], moments(z, tempered(np.take_along_axis(log_weights, some, 1), z.shape[2]))[1]


def _differing(datasets: DataSets, index: int, rows: Axis, most: int) -> np.ndarray:
    """Numbers of rows that are there and differ most: each next one lies farthest from those before."""
    length = datasets.lengths[rows.name][index] if rows.name in datasets.lengths else rows.length
    parts, present = [], [np.arange(rows.length) < length]
    for name, axis in rows.carriers:
        if name in datasets.values:
            values = np.moveaxis(datasets.values[name][index], axis, 0)
            parts.append(values.reshape(len(values), -1).astype("float64"))
            present.append(np.isfinite(parts[-1]).all(axis=1))
        if name in datasets.missing:
            gaps = np.moveaxis(datasets.missing[name][index], axis, 0)
            present.append(~gaps.reshape(len(gaps), -1).any(axis=1))
    present[0] = present[0][: len(parts[0])]  # data sets are laid out up to the longest of them
    table, some = np.concatenate(parts, axis=1), np.flatnonzero(np.logical_and.reduce(present))
    if len(some) <= 1:
        return some
    table = table[some] / (table[some].std(axis=0) + SMALLEST)
    picked = [int(np.square(table - np.median(table, axis=0)).sum(axis=1).argmin())]  # a usual one first
    nearest = np.full(len(some), np.inf)
    while len(picked) < min(most, len(some)):
        nearest = np.minimum(nearest, np.square(table - table[picked[-1]]).sum(axis=1))
        if not nearest.any():  # the others are the same as these
            break
        picked.append(int(nearest.argmax()))
    return some[picked]


def _repeated(datasets: DataSets, row: np.ndarray, rows: Axis) -> DataSets:
    """Data sets in which one row (n,) of each stands in the place of all."""

    def spread(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        changed = dict(arrays)
        for name, axis in rows.carriers:
            if name in arrays:
                moved = np.moveaxis(arrays[name], axis + 1, 1)
                one = np.broadcast_to(moved[np.arange(len(row)), row][:, None], moved.shape)
                changed[name] = np.ascontiguousarray(np.moveaxis(one, 1, axis + 1))
        return changed

    return replace(datasets, values=spread(datasets.values), missing=spread(datasets.missing), extra=None)


def _mixture(
    modes: Sequence[Mode], back: np.ndarray, standardizer: ParameterStandardizer, symmetries: Symmetries | None
) -> StudentMixture:
    """Student t distributions of unconstrained parameters where modes were found, the light ones not too rare."""
    places: list[Whitening] = []
    evidence = []
    for mode in modes:
        mean, covariance = mode.mean[back], mode.covariance[back[:, None], back]
        factor = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(mean)))
        z = mean + quasi_normal(1, 256, len(mean))[0] @ factor.T
        theta = standardizer.inverse(torch.from_numpy(z))[0].numpy()
        place = Whitening.of(theta, np.full(len(theta), 1 / len(theta)))
        if symmetries is not None and _is_image(place.mean, places, symmetries):
            continue
        places.append(place)
        evidence.append(mode.log_evidence)
    shares = np.exp(np.array(evidence) - evidence[0])
    shares = np.maximum(shares / shares.sum(), LEAST_SHARE / len(shares))
    return StudentMixture(places, shares / shares.sum(), symmetries)


def _is_image(mean: np.ndarray, places: Sequence[Whitening], symmetries: Symmetries) -> bool:
    """Whether an image of a mean lies in one of several places."""
    images = symmetries.images(mean)
    return any((np.square(place.z(images)).sum(axis=1) < reach(len(mean)) ** 2).any() for place in places)
