r"""What of a conditional density is Gaussian: location, width and correlation, level by level.

In a hierarchy :math:`\theta_j \mid \mu, \tau` is normal or nearly so, with a location and a scale that depend on
:math:`\mu, \tau` in ways no fixed covariance has (a funnel where :math:`\tau` is small). So after a Gaussian whose mean
and precision depend on the data alone, every level is standardized once more given the levels below it.
"""

import torch
from torch import Tensor, nn

__all__ = ["COMPUTED", "GaussianHead", "Level", "affine"]

COMPUTED = torch.device("cpu")
"""Where buffers are computed: on "meta", where files are compared with networks, torch would import its compiler."""


def affine(layer: nn.Module, h: Tensor) -> Tensor:
    """A linear layer on columns: (in, n) -> (out, n)."""
    assert isinstance(layer, nn.Linear)
    return torch.addmm(layer.bias[:, None], layer.weight, h)


class GaussianHead(nn.Module):
    """Mean and precision factor, (batch, dim, dim) or (batch, dim), of contexts."""

    below: Tensor
    eye: Tensor

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.dim, self.full = dim, 1 < dim <= 32  # of which a factor is 528 numbers per data set
        self.mean = nn.Linear(features, dim)
        # All dim x dim entries although half are masked: that is faster than scattering a triangle.
        self.factor = nn.Linear(features, dim * dim if self.full else dim)
        self.shift = nn.Linear(features, dim)
        nn.init.zeros_(self.shift.bias)
        nn.init.zeros_(self.shift.weight)
        with COMPUTED:
            self.register_buffer("below", torch.ones(dim, dim).tril(-1))
            self.register_buffer("eye", torch.eye(dim))
        nn.init.zeros_(self.mean.bias)
        nn.init.zeros_(self.factor.bias)
        nn.init.zeros_(self.factor.weight)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, factor, and the log determinant of the factor (batch,)."""
        raw = self.factor(context)
        if self.full:
            raw = raw.unflatten(-1, (self.dim, self.dim))
        # No context may overflow: e^12 is 160,000.
        log_diagonal = 12.0 * torch.tanh((raw.diagonal(dim1=-2, dim2=-1) if self.full else raw) / 12.0)
        factor = log_diagonal.exp()
        if self.full:
            # Columns in units of the diagonal: the entries below it then do not depend on scales.
            factor = (raw * self.below + self.eye) * factor[..., None, :]
        return self.mean(context), factor, self.shift(context), log_diagonal.sum(-1)

    def start_at(self, residual_covariance: Tensor, order: Tensor, spread: bool = False) -> None:
        """Set the mean to the first features, the precision to that of residuals (dim, dim) taken in `order`.

        With ``spread``, residuals are in units that depend on the data: exponentials of the next features.
        """
        with torch.no_grad():
            self.mean.weight.copy_(torch.eye(*self.mean.weight.shape))
            self.mean.bias.zero_()
            covariance = residual_covariance.double().to(self.eye.device)[order][:, order]
            if self.full:
                # u = A r is white if A is the inverse of the covariance's lower Cholesky factor.
                factor = torch.linalg.inv(torch.linalg.cholesky(covariance)).tril()
            else:
                factor = torch.diag(covariance.diagonal().rsqrt())
            log_diagonal = factor.diagonal().log().clamp(-8.0, 8.0)
            start = 12.0 * torch.atanh(log_diagonal / 12.0)
            if self.full:
                start = (factor / factor.diagonal()).tril(-1) + torch.diag(start)
            self.factor.bias.copy_(start.flatten())
            self.factor.weight.zero_()
            if spread:
                step = self.dim + 1 if self.full else 1
                self.factor.weight[::step, self.dim : 2 * self.dim] = -self.eye[order]


class Level(nn.Module):
    """Standardizes parameters ``start`` to ``stop`` by a location and a scale that depend on those before them.

    Parameters
    ----------
    start, stop : int
        Where the level stands among the parameters in their order.
    features : int
        Width of the context.
    hidden : int
        Width of the two hidden layers.
    """

    def __init__(self, start: int, stop: int, features: int, hidden: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop
        self.context = nn.Linear(features, hidden)
        self.enter = nn.Linear(start, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.leave = nn.Linear(hidden, 2 * (stop - start))
        for parameter in self.leave.parameters():  # start at the identity
            nn.init.zeros_(parameter)

    def project(self, context: Tensor) -> Tensor:
        """What contexts (batch, features) add to the first hidden values (hidden, batch)."""
        return affine(self.context, context.mT)

    def forward(self, u: Tensor, projected: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Standardize u (dim, draws, batch), or undo it; with the log determinant (draws, batch) of standardizing."""
        below, own, above = u.tensor_split([self.start, self.stop])
        h = projected[:, None] + self.enter(below.movedim(0, -1)).movedim(-1, 0)
        h, shape = torch.relu(h).flatten(1), h.shape[1:]
        shift, raw = affine(self.leave, affine(self.middle, h).relu_()).view(2, len(own), *shape)
        log_scale = 6.0 * torch.tanh(raw / 6.0)  # scales change by six e-folds at most
        own = own * torch.exp(-log_scale) + shift if inverse else (own - shift) * torch.exp(log_scale)
        return torch.cat([below, own, above]), log_scale.sum(0)
