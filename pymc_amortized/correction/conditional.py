"""Parameters that no network learns: their exact normal distribution, given what it draws of the others."""

from collections.abc import Iterator

import numpy as np
import torch

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.inputs.sketch import MOST_AT_ONCE, Sketch
from pymc_amortized.inputs.standardized import Standardized
from pymc_amortized.networks.frame import Context
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.numerics.curvature import chebyshev_points, chebyshev_weights
from pymc_amortized.numerics.integrals import log_normal

RADIUS = 4.0
POINTS = chebyshev_points(32, RADIUS)
"""Of Chebyshev interpolation, and how far they reach, in standard deviations."""
CHUNK = 4096
"""Draws between which is interpolated at once: their weights then stay within the cache."""

Moments = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Means (data sets, draws, q), roots of covariances, and their log determinants."""
Block = tuple[tuple[slice, slice], np.ndarray, np.ndarray, np.ndarray]
"""Which draws and data sets, and their moments, draws first."""


class ConditionalNormal:
    """Parameters that are normal, given the others, for some data sets.

    Means and roots of covariances are smooth functions of the others. Where there is one other, they are interpolated
    between Chebyshev points of its frame, and computed for each draw beyond these alone.
    """

    def __init__(self, network: PosteriorNetwork, context: Context, sketch: Sketch, datasets: DataSets) -> None:
        quadratic, standardizer = sketch.drawn, sketch.start.standardizer
        assert datasets.extra is not None
        whereabouts = datasets.extra[:, sum(sketch.widths[:2]) :]
        center, scale = np.split(whereabouts[:, :-1], 2, axis=1)
        self.dim, self._quadratic = len(quadratic.places), quadratic
        self._holds, self._elsewhere = whereabouts[:, -1] > 0, (center, scale)
        self._of_sampled, self._of_drawn = (standardizer.of(some) for some in (quadratic.sampled, quadratic.places))
        densities = Standardized(sketch.density.of(datasets), standardizer)
        curvature = sketch.curvature if self.dim == len(sketch.quadratic.places) else None
        self._quadratically = quadratic.conditional(densities, center, scale, curvature)
        self._frame = network, context
        self._between = self._at_points(len(datasets)) if quadratic.dim - self.dim == 1 else None

    def _at_points(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What is interpolated (data sets, points, numbers), and for which data sets (data sets,) it is there."""
        network, context = self._frame
        z = torch.from_numpy(np.tile(POINTS[:, None, None], (1, number, 1)))
        given = network.unstandardized(z, context)[0].numpy()
        parts, there = [], np.ones(number, dtype=bool)
        for sets in blocks(number, max(MOST_AT_ONCE // (len(self._quadratic.steps) * len(POINTS)), 1)):
            index = np.arange(sets.start, sets.stop)
            log_p, mean, root = self._conditional(given[:, sets].swapaxes(0, 1), index)
            there[sets] = np.isfinite(log_p).all(axis=1) & self._holds[sets]
            diagonal = np.einsum("...ii->...i", root)
            np.log(
                diagonal, out=diagonal
            )  # between points its logarithm is smooth, and stays that of something positive
            parts.append(np.concatenate([mean, root.reshape(*root.shape[:2], -1)], axis=-1))
        return np.concatenate(parts), there

    def _conditional(self, given: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log integrals, means and roots at the others (data sets, draws, dim - q).

        Where the density is not quadratic after all, the normal distribution is a wide one, for weights to judge.
        """
        log_p, mean, root = self._quadratically(self._of_sampled.exact(torch.from_numpy(given))[0].numpy(), index)
        (wrong,) = np.nonzero(~self._holds[index])
        center, scale = self._elsewhere
        mean[wrong], root[wrong] = center[index[wrong], None], scale[index[wrong], None, None] * np.eye(self.dim)
        units = self._of_drawn.scale.numpy()
        return log_p, self._of_drawn.inverse(torch.from_numpy(mean))[0].numpy(), units[:, None] * root

    def add(self, given: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From the others (draws, data sets, dim - q) and normal noise (draws, data sets, q), all and log densities."""
        theta = np.empty((*given.shape[:2], self._quadratic.dim))
        theta[..., self._quadratic.sampled] = given
        log_density = np.empty(given.shape[:2])
        for some, mean, root, log_det in self._moments(theta):
            theta[some][..., self._quadratic.places] = mean + np.einsum("...ij,...j->...i", root, noise[some])
            log_density[some] = log_normal(noise[some], root, log_det)
        return theta, log_density

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        """Log densities (draws, data sets) of them in theta (draws, data sets, dim), given the others."""
        log_density = np.empty(theta.shape[:2])
        for some, mean, root, log_det in self._moments(theta):
            away = theta[some][..., self._quadratic.places] - mean
            log_density[some] = log_normal(np.linalg.solve(root, away[..., None])[..., 0], root, log_det)
        return log_density

    def _moments(self, theta: np.ndarray) -> Iterator[Block]:
        """Means (draws, data sets, q) given the others, roots of covariances, and their log determinants.

        For some draws and data sets at a time.
        """
        draws, number = theta.shape[:2]
        network, context = self._frame
        z = network.standardized(network.own(theta), context)[0].numpy()
        given = theta[..., self._quadratic.sampled]
        most = max(MOST_AT_ONCE // len(self._quadratic.steps), 1)
        if self._between is not None:
            yield from self._interpolated(z, given, most)
            return
        for sets in blocks(number, max(most // max(draws, 1), 1)):
            for some in blocks(draws, most):
                found = self._exact(given[some, sets].swapaxes(0, 1), np.arange(sets.start, sets.stop))
                yield (some, sets), *_draws_first(found)

    def _interpolated(self, z: np.ndarray, given: np.ndarray, most: int) -> Iterator[Block]:
        """Moments at z (draws, data sets, 1), between points where these reach; elsewhere by `most` others at once."""
        assert self._between is not None
        draws, number, _ = z.shape
        values, there = self._between
        of, at = np.nonzero(~((np.abs(z[..., 0]) <= RADIUS) & there).T)
        rest = [self._exact(given[at[k], of[k]][:, None], of[k]) for k in blocks(len(of), most)]
        exact = [np.concatenate(parts)[:, 0] for parts in zip(*rest, strict=True)]
        for sets in blocks(number, max(CHUNK // max(draws, 1), 1)):
            for some in blocks(draws, CHUNK):
                found = self._between_points(z[some, sets, 0].T, values[sets])
                (own,) = np.nonzero((of >= sets.start) & (of < sets.stop) & (at >= some.start) & (at < some.stop))
                if len(own):
                    for part, right in zip(found, exact, strict=True):
                        part[of[own] - sets.start, at[own] - some.start] = right[own]
                yield (some, sets), *_draws_first(found)

    def _between_points(self, z: np.ndarray, values: np.ndarray) -> Moments:
        """Moments at z (data sets, draws)."""
        found = chebyshev_weights(z, POINTS) @ values
        mean, root = found[..., : self.dim], found[..., self.dim :].reshape(*z.shape, self.dim, self.dim)
        diagonal = np.einsum("...ii->...i", root)
        log_det = diagonal.sum(axis=-1)
        np.exp(diagonal, out=diagonal)
        return mean, root, log_det

    def _exact(self, given: np.ndarray, index: np.ndarray) -> Moments:
        """Moments at the others (data sets, draws, dim - q) of the data sets at index."""
        _, mean, root = self._conditional(given, index)
        return mean, root, np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)


def _draws_first(found: Moments) -> Moments:
    mean, root, log_det = found
    return mean.swapaxes(0, 1), root.swapaxes(0, 1), log_det.T
