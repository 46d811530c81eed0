"""What a conditional density q(z | context) of standardized parameters has to offer, and may offer.

The density of a network is a ``torch.nn.Module``, a built-in one or the user's own, with the two methods of
:class:`ConditionalDensity`. It is asked for more where it has more: for a loss of its own (:class:`WithLoss`), and to
begin at a regression (:class:`WithStart`). A built-in density is made by its options (:class:`DensityOptions`), which
files describe it by.
"""

from typing import Protocol, Self, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["ConditionalDensity", "DensityOptions", "WithLoss", "WithStart", "has_loss"]


@runtime_checkable
class ConditionalDensity(Protocol):
    """What a density has to offer, a user's own as well (as a ``torch.nn.Module``)."""

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Log densities (..., batch) of z (..., batch, dim), given context (batch, features)."""
        ...

    def sample(self, draws: int, context: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw (draws, batch, dim), with log densities (draws, batch), given (batch, features)."""
        ...


class WithLoss(Protocol):
    """A density that is not trained by its own negative log density, which others are: a flow by flow matching, say.

    An attribute ``negligible`` may say how much of the loss, per parameter, is not worth more training; by default it
    is 0.05, as of nats.
    """

    def loss(self, z: Tensor, context: Tensor) -> Tensor:
        """Losses (batch,) of z (batch, dim), given context (batch, features)."""
        ...


def has_loss(density: nn.Module) -> TypeGuard[WithLoss]:
    """Whether a density has the method; a module or a function that it keeps under that name is none."""
    return callable(getattr(type(density), "loss", None))


@runtime_checkable
class WithStart(Protocol):
    """A density that can begin at a normal distribution."""

    def start_at(self, covariance: Tensor, spread: bool) -> None:
        """Begin at the regression of z on what is known of the data.

        Parameters
        ----------
        covariance : Tensor
            (dim, dim), of the residuals. The means are the first ``dim`` features of the context.
        spread : bool
            Whether residuals are in units that depend on the data: exponentials of the next ``dim`` features.
        """
        ...


class DensityOptions:
    """Options of a built-in density: a frozen dataclass of plain values, by which files describe it."""

    def resolve(self, dim: int) -> Self:
        """Return the options for so many parameters, with nothing left to choose."""
        return self

    def make_density(self, dim: int, features: int, levels: tuple[int, ...]) -> nn.Module:
        """Build the density.

        Parameters
        ----------
        dim : int
            Number of parameters.
        features : int
            Width of the context.
        levels : tuple of int
            Level of each parameter in the model's hierarchy; all 0 where there is none.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no density")
