r"""What draws are proposed from: the network's density, times the exact one of what it does not learn.

Parameters :math:`\beta` in which the model's log density is quadratic, given the others :math:`\phi`, have a normal
distribution that a few values of the density tell (:mod:`pymc_amortized.quadratic`). The network learns the others
alone:

.. math:: q(\phi, \beta \mid y) = q(\phi \mid y) \, N(\beta; m(\phi, y), V(\phi, y)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.approximators.inputs import Inputs
from pymc_amortized.approximators.sketch import MOST_AT_ONCE, Sketch
from pymc_amortized.graph.datasets import DataSets
from pymc_amortized.networks.network import Context, PosteriorNetwork
from pymc_amortized.quadratic import log_normal
from pymc_amortized.training import torch_threads

__all__ = ["Approximation"]

EACH = 4
"""One of so many draws comes from the defending distribution: at most that share is lost where it is of no use."""
DEGREES_OF_FREEDOM = 5
"""Of it: heavier tails than most posteriors have."""
RADIUS = 4.0
POINTS = RADIUS * np.cos(np.pi * np.arange(32) / 31)
"""Of Chebyshev interpolation, and how far they reach, in standard deviations."""


class Approximation:
    """The approximate posterior of some data sets.

    Parameters
    ----------
    network : PosteriorNetwork
    inputs : Inputs
        What the network is given.
    datasets : DataSets
    defended : bool
        Whether some of the draws come from Student t distributions around what a sketch found, if there is one: weights
        are then bounded wherever either of both has mass (a defensive mixture: Hesterberg 1995, Technometrics 37(2)).
    """

    def __init__(
        self, network: PosteriorNetwork, inputs: Inputs, datasets: DataSets, *, defended: bool = False
    ) -> None:
        datasets, sketch = inputs.sketched(datasets), inputs.sketch
        self._network, self._given = network, inputs(datasets)
        self._wide, self._rest = None, None
        if sketch is None or not (defended or sketch.number_drawn):
            return
        with torch.inference_mode(), torch_threads(1):
            context = network.context(**self._given)
            self._wide = _Wide(network, context) if defended else None
            self._rest = _Rest(network, context, sketch, datasets) if sketch.number_drawn else None

    def sample(self, draws: int, generator: torch.Generator, *, within: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Draw theta (draws, data sets, dim), with log densities (draws, data sets).

        Parameters
        ----------
        draws : int
        generator : torch.Generator
            On the network's device.
        within : bool
            Whether what the network draws lies in the range of what was simulated.
        """
        # one thread: many small operations, at which threads would only wait for each other
        with torch.inference_mode(), torch_threads(1):
            theta, log_q = self._learned(draws, generator, within)
            if self._rest is None:
                return theta.numpy(), log_q.numpy()
            noise = _normal((*theta.shape[:2], self._rest.dim), generator)
        every, log_rest = self._rest.add(theta.numpy(), noise.numpy())
        return every, log_q.numpy() + log_rest

    def _learned(self, draws: int, generator: torch.Generator, within: bool) -> tuple[Tensor, Tensor]:
        """Draw what the network learns."""
        sample = self._network.sample_within if within else self._network.sample
        if self._wide is None:
            return sample(draws, generator=generator, **self._given)
        start = int(torch.randint(EACH, (), generator=generator, device=generator.device))
        wide = (torch.arange(draws) + start) % EACH == 0  # of each chain, whose draws are neighbors, the same share
        own, log_own = sample(int((~wide).sum()), generator=generator, **self._given)
        far, log_far = self._wide.sample(int(wide.sum()), generator)
        theta, log_q = (own.new_empty(draws, *shape) for shape in (own.shape[1:], log_own.shape[1:]))
        theta[~wide], theta[wide] = own, far
        log_q[~wide], log_q[wide] = log_own, self._network.log_prob(self._all(far), **self._given)
        return theta, self._mixed(log_q, self._wide.log_prob(self._all(theta)))

    def _all(self, learned: Tensor) -> Tensor:
        """Put parameters that are learned where they stand among all; others are not looked at."""
        if self._rest is None:
            return learned
        theta = learned.new_zeros(*learned.shape[:-1], learned.shape[-1] + self._rest.dim)
        theta[..., self._network.places] = learned
        return theta

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        """Log density (draws, data sets) of theta (draws, data sets, dim)."""
        with torch.inference_mode(), torch_threads(1):
            log_q = self._network.log_prob(theta, **self._given)
            if self._wide is not None:
                log_q = self._mixed(log_q, self._wide.log_prob(theta))
        return log_q.numpy() if self._rest is None else log_q.numpy() + self._rest.log_prob(theta)

    @staticmethod
    def _mixed(log_q: Tensor, log_wide: Tensor) -> Tensor:
        log_q = log_q.nan_to_num(-torch.inf, posinf=torch.inf)  # a network that cannot say has nothing there
        return torch.logaddexp(log_q + math.log(1 - 1 / EACH), log_wide - math.log(EACH))


class _Wide:
    """Student t distributions with the location and the scale of frames."""

    def __init__(self, network: PosteriorNetwork, context: Context) -> None:
        self._network, self._context = network, context

    def sample(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw what the network learns (draws, data sets, dim), with log densities (draws, data sets)."""
        shape = (draws, len(self._context.features))
        noise = _normal((*shape, self._network.dim), generator)
        chi2 = _normal((*shape, DEGREES_OF_FREEDOM), generator).square().sum(-1, keepdim=True)
        z = noise * (DEGREES_OF_FREEDOM / chi2).sqrt()
        theta, log_det = self._network.unstandardized(z, self._context)
        return theta, self._of(z) + log_det

    def log_prob(self, theta: np.ndarray | Tensor) -> Tensor:
        """Log density (draws, data sets) of what the network learns among theta (draws, data sets, parameters)."""
        z, log_det = self._network.standardized(theta, self._context)
        return self._of(z) + log_det

    def _of(self, z: Tensor) -> Tensor:
        """Log density of the standard one."""
        dim, freedom = z.shape[-1], DEGREES_OF_FREEDOM
        constant = math.lgamma((freedom + dim) / 2) - math.lgamma(freedom / 2) - dim / 2 * math.log(freedom * math.pi)
        return constant - (freedom + dim) / 2 * torch.log1p(z.square().sum(-1) / freedom)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal noise, float64 on the CPU."""
    return torch.empty(shape, dtype=torch.float64, device=generator.device).normal_(generator=generator).cpu()


class _Rest:
    """Parameters that are normal, given the others, for some data sets.

    Means and roots of covariances are smooth functions of the others. Where there is one other, they are interpolated
    between Chebyshev points of its frame, and computed for each draw beyond these alone.
    """

    def __init__(self, network: PosteriorNetwork, context: Context, sketch: Sketch, datasets: DataSets) -> None:
        quadratic, own = sketch.drawn, sketch.start.standardizer.of(sketch.drawn.places)
        assert datasets.sketch is not None
        whereabouts = datasets.sketch[:, sum(sketch.widths[:2]) :]
        center, scale = np.split(whereabouts[:, :-1], 2, axis=1)
        center, scale = own.inverse(torch.from_numpy(center))[0].numpy(), scale * own.scale.numpy()
        self.dim, self._quadratic = len(quadratic.places), quadratic
        self._holds, self._elsewhere = whereabouts[:, -1] > 0, (center, scale)
        self._quadratically = quadratic.conditional(sketch.density.of(datasets), center, scale)
        self._frame = network, context
        self._between = self._at_points(len(datasets)) if quadratic.dim - self.dim == 1 else None

    def _at_points(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What is interpolated (data sets, points, numbers), and for which data sets (data sets,) it is there."""
        network, context = self._frame
        z = torch.from_numpy(np.tile(POINTS[:, None, None], (1, number, 1)))
        given = network.unstandardized(z, context)[0].numpy()
        parts, there = [], np.ones(number, dtype=bool)
        for sets in _slices(number, max(MOST_AT_ONCE // (len(self._quadratic.steps) * len(POINTS)), 1)):
            index = np.arange(sets.start, sets.stop)
            log_p, mean, root = self._conditional(given[:, sets].swapaxes(0, 1), index)
            there[sets] = np.isfinite(log_p).all(axis=1) & self._holds[sets]
            parts.append(np.concatenate([mean, _packed(root)], axis=-1))
        return np.concatenate(parts), there

    def _conditional(self, given: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log integrals, means and roots at the others (data sets, draws, dim - q).

        Where the density is not quadratic after all, the normal distribution is a wide one, for weights to judge.
        """
        log_p, mean, root = self._quadratically(given, index)
        (wrong,) = np.nonzero(~self._holds[index])
        center, scale = self._elsewhere
        mean[wrong], root[wrong] = center[index[wrong], None], scale[index[wrong], None, None] * np.eye(self.dim)
        return log_p, mean, root

    def add(self, given: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From the others (draws, data sets, dim - q) and normal noise (draws, data sets, q), all and log densities."""
        theta = np.empty((*given.shape[:2], self._quadratic.dim))
        theta[..., self._quadratic.sampled] = given
        log_density = np.empty(given.shape[:2])
        for some, mean, root in self._moments(theta):
            theta[some][..., self._quadratic.places] = mean + (root @ noise[some][..., None])[..., 0]
            log_density[some] = log_normal(noise[some], root)
        return theta, log_density

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        """Log densities (draws, data sets) of them in theta (draws, data sets, dim), given the others."""
        log_density = np.empty(theta.shape[:2])
        for some, mean, root in self._moments(theta):
            away = theta[some][..., self._quadratic.places] - mean
            log_density[some] = log_normal(np.linalg.solve(root, away[..., None])[..., 0], root)
        return log_density

    def _moments(self, theta: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray, np.ndarray]]:
        """Means (draws, data sets, q) given the others, and roots of covariances; for some draws and data sets."""
        draws, number = theta.shape[:2]
        network, context = self._frame
        z = network.standardized(theta, context)[0].numpy()
        given = theta[..., self._quadratic.sampled]
        most = max(MOST_AT_ONCE // len(self._quadratic.steps), 1)
        for sets in _slices(number, max(most // max(draws, 1), 1)):
            for some in _slices(draws, most):
                block = z[some, sets].swapaxes(0, 1), given[some, sets].swapaxes(0, 1)
                mean, root = self._block(*block, np.arange(sets.start, sets.stop))
                yield (some, sets), mean.swapaxes(0, 1), root.swapaxes(0, 1)

    def _block(self, z: np.ndarray, given: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moments at z, or the others, (data sets, draws, dim - q) of the data sets at index."""
        if self._between is None:
            return self._conditional(given, index)[1:]
        values, there = self._between
        inside = (np.abs(z) <= RADIUS).all(axis=-1) & there[index, None]
        found = np.stack([chebyshev_weights(z[k, :, 0]) @ values[i] for k, i in enumerate(index)])
        mean, root = found[..., : self.dim], _unpacked(found[..., self.dim :], self.dim)
        at, which = np.nonzero(~inside)
        if len(at):
            exact = self._conditional(given[at, which][:, None], index[at])
            mean[at, which], root[at, which] = exact[1][:, 0], exact[2][:, 0]
        return mean, root


def chebyshev_weights(z: np.ndarray) -> np.ndarray:
    """Weights (m, n) of the values at :data:`POINTS` at z (m,), which is clipped to where these lie.

    By the barycentric formula (Berrut & Trefethen 2004, SIAM Review 46(3)).
    """
    signs = (-1.0) ** np.arange(len(POINTS))
    signs[[0, -1]] /= 2
    away = np.clip(z, -RADIUS, RADIUS)[:, None] - POINTS
    hit = away == 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = signs / away
        weights /= weights.sum(axis=1, keepdims=True)
    return np.where(hit.any(axis=1, keepdims=True), hit, weights)


def _packed(root: np.ndarray) -> np.ndarray:
    """Upper triangular matrices (..., q, q) as numbers (..., q (q + 1) / 2) that may be anything."""
    first, second = np.triu_indices(root.shape[-1])
    values = root[..., first, second]
    values[..., first == second] = np.log(values[..., first == second])
    return values


def _unpacked(values: np.ndarray, q: int) -> np.ndarray:
    """Undo :func:`_packed`."""
    first, second = np.triu_indices(q)
    root = np.zeros((*values.shape[:-1], q, q))
    root[..., first, second] = np.where(first == second, np.exp(values), values)
    return root


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
