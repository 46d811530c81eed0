"""Flows of the zuko library as conditional densities."""

import torch
import zuko
from torch import Tensor, nn

from pymc_amortized.numerics.threads import TURN

__all__ = ["ZukoDensity"]


class ZukoDensity(nn.Module):
    """A flow of zuko, for more variety than the built-in spline has.

    Parameters
    ----------
    flow : zuko.flows.Flow
        With as many features as there are unconstrained parameters and as large a context as the summary has features:
        ``density=lambda dim, features: pma.ZukoDensity(zuko.flows.MAF(dim, features))``.

    Examples
    --------
    >>> import torch, zuko
    >>> density = pma.ZukoDensity(zuko.flows.MAF(2, 5))
    >>> draws, log_density = density.sample(10, torch.zeros(3, 5))
    >>> draws.shape
    torch.Size([10, 3, 2])
    """

    def __init__(self, flow: zuko.lazy.LazyDistribution) -> None:
        super().__init__()
        self.flow = flow

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Log density of z (..., batch, dim) given context (batch, features): (..., batch)."""
        return self.flow(context).log_prob(z)

    def sample(self, draws: int, context: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw z (draws, batch, dim) given context (batch, features), with log densities (draws, batch)."""
        devices = [context.device] if context.device.type == "cuda" else []
        with TURN, torch.random.fork_rng(devices=devices):
            # zuko draws from torch's global generator: seed that from the given one, and put it back
            seed = torch.randint(2**62, (1,), generator=generator, device=context.device)
            torch.manual_seed(int(seed))
            return self.flow(context).rsample_and_log_prob((draws,))
