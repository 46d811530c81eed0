r"""What draws are proposed from: the network's density, times the exact one of what it does not learn.

Parameters :math:`\beta` in which the model's log density is quadratic, given the others :math:`\phi`, have a normal
distribution that a few values of the density tell (:mod:`pymc_amortized.numerics.quadratic`). The network learns the
others alone:

.. math:: q(\phi, \beta \mid y) = q(\phi \mid y) \, N(\beta; m(\phi, y), V(\phi, y)).
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.correction.conditional import ConditionalNormal
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.frame import Context
from pymc_amortized.networks.images import averaged, scattered
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.numerics.sampling.student_t import log_student_t
from pymc_amortized.training import torch_threads

__all__ = ["Approximation"]


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
        Some also come from a normal distribution with the location and the scale of the prior.

    Attributes
    ----------
    each : int
        One of so many draws comes from the Student t: at most that share is lost where it is of no use.
    scouts : int
        One of so many draws comes from the distribution as wide as the prior. Weights cannot tell of a mode in which
        nothing was proposed; among few parameters, 200 of 4,000 draws find one that fills a hundredth of the prior.
    """

    each, scouts = 4, 20

    def __init__(
        self, network: PosteriorNetwork, inputs: Inputs, datasets: DataSets, *, defended: bool = False
    ) -> None:
        datasets, sketch = inputs.sketched(datasets), inputs.sketch
        self._network, self._given = network, inputs(datasets)
        if isinstance(network, PosteriorNetwork):  # what several calls need is computed once
            with torch.inference_mode(), torch_threads(1):
                self._given = {"data": network.context(**self._given)}
        self._wide: list[_Wide] = []
        self._rest = None
        if sketch is None or not (defended or sketch.number_drawn):
            return
        with torch.inference_mode(), torch_threads(1):
            context = network.context(**self._given)
            if defended:
                self._wide = [
                    _Wide(network, context, 5, 1 / self.each),
                    _Wide(network, replace(context, frame=None), None, 1 / self.scouts),
                ]
            self._rest = ConditionalNormal(network, context, sketch, datasets) if sketch.number_drawn else None

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
        if not self._wide:
            return sample(draws, generator=generator, **self._given)
        start = int(torch.randint(self.scouts, (), generator=generator, device=generator.device))
        turn = (torch.arange(draws) + start) % self.scouts  # of each chain, whose draws are neighbors, the same shares
        own, scout = (turn % self.each != 0) & (turn != 1), turn == 1
        drawn, log_own = sample(int(own.sum()), generator=generator, **self._given)
        theta, log_q = (drawn.new_empty(draws, *shape) for shape in (drawn.shape[1:], log_own.shape[1:]))
        theta[own], log_q[own] = drawn, log_own
        for rows, wide in zip((~own & ~scout, scout), self._wide, strict=True):
            theta[rows] = wide.sample(int(rows.sum()), generator)
        log_q[~own] = self._network.log_prob(self._all(theta[~own]), **self._given)
        return theta, self._mixed(log_q, self._all(theta))

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
            if self._wide:
                log_q = self._mixed(log_q, theta)
        return log_q.numpy() if self._rest is None else log_q.numpy() + self._rest.log_prob(theta)

    def _mixed(self, log_q: Tensor, theta: np.ndarray | Tensor) -> Tensor:
        """Log density of the mixture, from that of the network."""
        log_q = log_q.nan_to_num(-torch.inf, posinf=torch.inf)  # a network that cannot say has nothing there
        terms = [log_q + math.log(1 - sum(wide.share for wide in self._wide))]
        terms += [wide.log_prob(theta) + math.log(wide.share) for wide in self._wide]
        return torch.stack(terms).logsumexp(0)


class _Wide:
    """Student t distributions, or normal ones, with the location and the scale of frames, or of the prior.

    Parameters
    ----------
    network : PosteriorNetwork
    context : Context
        Without a frame, locations and scales are those of the prior.
    freedom : int or None
        Degrees of freedom, few for heavier tails than most posteriors have; None for the normal distribution.
    share : float
        Of the draws that come from it.
    """

    def __init__(self, network: PosteriorNetwork, context: Context, freedom: int | None, share: float) -> None:
        self._network, self._context, self._freedom = network, context, freedom
        self.share = share

    def sample(self, draws: int, generator: torch.Generator) -> Tensor:
        """Draw what the network learns (draws, data sets, dim)."""
        shape = (draws, len(self._context.features))
        z = _normal((*shape, self._network.dim), generator)
        if self._freedom is not None:
            chi2 = _normal((*shape, self._freedom), generator).square().sum(-1, keepdim=True)
            z = z * (self._freedom / chi2).sqrt()
        own = self._network.unstandardized(z, self._context)[0]
        return scattered(self._network.symmetries, own, generator)

    def log_prob(self, theta: np.ndarray | Tensor) -> Tensor:
        """Log density (draws, data sets) of what the network learns among theta (draws, data sets, parameters)."""
        freedom = math.inf if self._freedom is None else self._freedom

        def log_prob(own: Tensor) -> Tensor:
            z, log_det = self._network.standardized(own, self._context)
            return torch.from_numpy(log_student_t(z.square().sum(-1).numpy(), z.shape[-1], freedom)) + log_det

        return averaged(self._network.symmetries, log_prob, self._network.own(theta))


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal noise, float64 on the CPU."""
    return torch.empty(shape, dtype=torch.float64, device=generator.device).normal_(generator=generator).cpu()
