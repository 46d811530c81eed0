r"""The posterior network: q(theta | data) over unconstrained parameters, or some of them.

Data are encoded and summarized, parameters standardized, and

.. math::

    \log q(\theta \mid x) = \log q(z(\theta) \mid s(e(x))) + \log \lvert dz / d\theta \rvert.

Before training the built-in networks are set to the linear regression of the parameters on the
summary's statistics, and the density to the residuals' normal distribution, with scales that are
log-linear in the statistics, both learned from the
simulations that the statistics come from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.choices import (
    DENSITIES,
    SUMMARIES,
    DensityChoice,
    SummaryChoice,
    choose_density,
    choose_summary,
    describe,
    rank_levels,
    read_density,
    read_levels,
    read_places,
    read_summary,
)
from pymc_amortized.networks.density.protocols import DensityOptions, has_loss
from pymc_amortized.networks.encode import as_tensor, encode, prepare
from pymc_amortized.networks.encoding.encoder import DataEncoder, Sizes
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.networks.frame import Context, unwhiten, whiten
from pymc_amortized.networks.images import averaged, describe_symmetries, read_symmetries, scattered
from pymc_amortized.networks.regression import begin_at_regression
from pymc_amortized.networks.summary.branch import Options
from pymc_amortized.networks.summary.summary_network import SummaryNetwork
from pymc_amortized.numerics.sampling.symmetry import Symmetries
from pymc_amortized.training.settling import NEGLIGIBLE

__all__ = ["PosteriorNetwork"]

Data = Mapping[str, np.ndarray | Tensor] | Context
"""Raw, or what a network makes of them."""


class PosteriorNetwork(nn.Module):
    """Standardizer, encoder, summary network and density.

    Use :meth:`build` or :meth:`from_description`.

    Attributes
    ----------
    places : list of int or None
        The parameters that it is a density of, where these are not all; others are not looked at.
    symmetries : Symmetries or None
        Maps of these that leave every posterior as it is: the density is learned of one image, draws are of all.
    is_regression : bool
        Whether it was built to begin at the regression of the parameters on the statistics.
    """

    def __init__(
        self,
        standardizer: ParameterStandardizer,
        encoder: DataEncoder,
        summary: nn.Module,
        density: nn.Module,
        *,
        features: int,
        summary_options: Options | None,
        density_options: DensityOptions | None,
        levels: tuple[int, ...],
        places: Sequence[int] | None = None,
        symmetries: Symmetries | None = None,
    ) -> None:
        super().__init__()
        self.symmetries = symmetries
        self.places = None if places is None else [int(place) for place in places]
        self.standardizer, self.encoder, self.summary, self.density = standardizer, encoder, summary, density
        self.features, self.levels = features, levels
        self.summary_options, self.density_options = summary_options, density_options
        self.is_regression = False
        self.frame = next((array.name for array in encoder.layout.arrays if array.frame), None)

    @classmethod
    def build(
        cls,
        layout: DataLayout,
        theta: np.ndarray,
        data: Mapping[str, np.ndarray],
        *,
        sizes: Sizes | None = None,
        summary: SummaryChoice = "auto",
        density: DensityChoice = "spline",
        levels: tuple[int, ...] | None = None,
        standardizer: ParameterStandardizer | None = None,
        places: Sequence[int] | None = None,
        symmetries: Symmetries | None = None,
    ) -> PosteriorNetwork:
        """Choose and start the networks.

        Initialization takes random numbers from torch's global generator; fork it to keep its
        state.

        Parameters
        ----------
        layout : DataLayout
            The data arrays and their axes.
        theta : ndarray
            (n, dim), simulated unconstrained parameters.
        data : mapping of str to ndarray
            The data simulated with them, (n, *shape) each. Some thousands are enough.
        sizes : mapping of str to ndarray, optional
            For each sized axis, how many entries each data set has, (n,); by default all.
        summary : str, options or torch.nn.Module
            "auto" chooses by the axes of the data. Else "flat", "set", "set_transformer",
            "sequence", "transformer", "grid", "grouped", or options of one of these: it is used for
            the data it is made for, and the rest is chosen by the axes. A module maps the encoded
            arrays (a dict of tensors, (batch, *shape, channels), with masks "mask:<axis>" of sized
            axes) to (batch, features).
        density : "spline", Spline, torch.nn.Module or callable
            A module with the methods of :class:`ConditionalDensity`, and perhaps those of :class:`WithLoss` and
            :class:`WithStart`; or a function of the numbers of parameters and features that makes one.
        levels : tuple of int, optional
            Level of each parameter in the model's hierarchy, for the built-in density; by default all are of one.
        standardizer : ParameterStandardizer, optional
            The one that frames are in units of; by default it is learned.
        places : sequence of int, optional
            The parameters to be learned; by default all.
        symmetries : Symmetries, optional
            Of all parameters.
        """
        standardizer = ParameterStandardizer.fit(theta) if standardizer is None else copy.deepcopy(standardizer)
        if places is not None:
            standardizer, theta = standardizer.of(places), theta[:, places]
            levels = None if levels is None else rank_levels([levels[place] for place in places])
        levels = (0,) * standardizer.dim if levels is None else levels
        encoder = DataEncoder.fit(layout, data, sizes)
        symmetries = None if symmetries is None else symmetries.of(places)
        z, encoded = prepare(standardizer, encoder, theta, data, sizes, symmetries)
        module, features, summary_options = choose_summary(summary, encoder, standardizer.dim, encoded)
        density_module, density_options = choose_density(density, z, features, levels)
        network = cls(
            standardizer,
            encoder,
            module,
            density_module,
            features=features,
            summary_options=summary_options,
            density_options=density_options,
            levels=levels,
            places=places,
            symmetries=symmetries,
        )
        if summary_options is not None and isinstance(module, SummaryNetwork):
            module.fit(encoded, z)
            network.is_regression = begin_at_regression(module, density_module, encoded, z)
        return network.float()

    @property
    def dim(self) -> int:
        """Number of unconstrained parameters that it is a density of."""
        return self.standardizer.dim

    @property
    def device(self) -> torch.device:
        """Where the summary network and the density live; the statistics stay on the CPU."""
        return next((p.device for m in (self.density, self.summary) for p in m.parameters()), torch.device("cpu"))

    @property
    def negligible(self) -> float:
        """How much of the loss, per parameter, is not worth more training: nats, unless the density says otherwise."""
        return getattr(self.density, "negligible", NEGLIGIBLE)

    def prepare(
        self,
        theta: np.ndarray,
        data: Mapping[str, np.ndarray],
        device: torch.device | str | None = None,
        *,
        sizes: Sizes | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """From arrays, what :meth:`loss` takes: z (n, dim) and encoded data, float32.

        Where data sets have frames, z is whitened by them; in their place stands the log determinant of that, (n,).
        """
        theta, device = theta if self.places is None else theta[:, self.places], device or self.device
        z, encoded = prepare(self.standardizer, self.encoder, theta, data, sizes, self.symmetries)
        return z.to(device), {name: values.to(device) for name, values in encoded.items()}

    def measured(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add to prepared data what no training changes: the statistics of a built-in summary."""
        return self.summary.measured(encoded) if isinstance(self.summary, SummaryNetwork) else encoded

    def reduced(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reduce prepared data to what a built-in summary's last layers see; for as long as the others stay."""
        if not isinstance(self.summary, SummaryNetwork):
            return encoded
        return self.summary.reduced(encoded) | ({} if self.frame is None else {self.frame: encoded[self.frame]})

    def loss(self, z: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """Mean loss of z (batch, dim), given prepared data; a scalar.

        It is the negative log density of standardized parameters, unless the density has a loss of its own.
        """
        features, density = self.summary(encoded), self.density
        if has_loss(density):
            return density.loss(z, features).mean()
        log_prob = density.log_prob(z, features)  # type: ignore[operator]
        return -(log_prob if self.frame is None else log_prob + encoded[self.frame]).mean()

    def encode(self, data: Mapping[str, np.ndarray | Tensor], sizes: Sizes | None = None) -> dict[str, Tensor]:
        """Raw data (batch, *shape) -> what :meth:`summarize` takes, on the CPU."""
        return encode(self.encoder, data, sizes)

    def summarize(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Encoded data -> features (batch, features) on the network's device."""
        device = self.device
        return self.summary({k: v.float().to(device) for k, v in encoded.items()})

    def context(self, data: Data, *, sizes: Sizes | None = None) -> Context:
        """Raw data (batch, *shape) -> what the density is conditioned on."""
        if isinstance(data, Context):
            return data
        encoded = self.encode(data, sizes)
        return Context(self.summarize(encoded), None if self.frame is None else encoded[self.frame])

    @torch.inference_mode()
    def normal(
        self, data: Mapping[str, np.ndarray | Tensor], sizes: Sizes | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean (batch, dim) and covariance (batch, dim, dim) of z by regression on the statistics.

        Only of a network with built-in parts, before any training: this is where it begins.
        """
        assert isinstance(self.summary, SummaryNetwork)
        context = self.summary.linear(self.summary.statistics(self.encode(data, sizes)))
        return self.density.normal(context)  # type: ignore[operator]

    def log_prob(self, theta: np.ndarray | Tensor, data: Data, *, sizes: Sizes | None = None) -> Tensor:
        """Log density (..., batch) of all parameters theta (..., batch, parameters), float64 on the CPU."""
        return self.log_prob_given(theta, self.context(data, sizes=sizes))

    def log_prob_given(self, theta: np.ndarray | Tensor, context: Context) -> Tensor:
        """Log density (..., batch) of all parameters theta (..., batch, parameters), given :meth:`context`."""
        return self.log_prob_of(self.own(theta), context)

    def log_prob_of(self, own: Tensor, context: Context) -> Tensor:
        """Log density (..., batch) of what is learned, (..., batch, dim)."""

        def log_prob(own: Tensor) -> Tensor:
            z, log_det = self.standardized(own, context)
            given = z.float().to(context.features.device), context.features
            return self.density.log_prob(*given).cpu().double() + log_det  # type: ignore[operator]

        return averaged(self.symmetries, log_prob, own)

    def own(self, theta: np.ndarray | Tensor) -> Tensor:
        """Of all parameters (..., parameters), those that are learned (..., dim)."""
        return as_tensor(theta) if self.places is None else as_tensor(theta)[..., self.places]

    def standardized(self, own: np.ndarray | Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What the density is one of, (..., batch, dim), from what is learned; with the log determinant."""
        z, log_det = self.standardizer.exact(as_tensor(own))
        if context.frame is None:
            return z, log_det
        z, of_frame = whiten(z, context.frame)
        return z, log_det + of_frame

    def unstandardized(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Undo :meth:`standardized`, of z (draws, batch, dim): what it is a density of, and the same determinant."""
        frame_log_det: Any = 0.0
        if context.frame is not None:
            z, frame_log_det = unwhiten(z.cpu().double(), context.frame)
        theta, log_det = self.standardizer.inverse(z)
        return theta, frame_log_det + log_det

    def sample(
        self,
        draws: int,
        data: Data,
        generator: torch.Generator | None = None,
        *,
        sizes: Sizes | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw from q(theta | data).

        Parameters
        ----------
        draws : int
            Number of draws per data set.
        data : mapping of str to ndarray or Tensor, or Context
            Raw data, (batch, *shape) each, or their :meth:`context`.
        generator : torch.Generator, optional
            On the network's device: the source of all randomness.
        sizes : mapping of str to ndarray, optional
            For each sized axis, how many entries each data set has, (batch,); by default all.

        Returns
        -------
        theta : Tensor
            (draws, batch, dim), float64 on the CPU: of the parameters that it is a density of.
        log_q : Tensor
            (draws, batch), float64 on the CPU: the log density of each draw.
        """
        return self.sample_given(draws, self.context(data, sizes=sizes), generator)

    def sample_given(
        self, draws: int, context: Context, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw from q(theta | data), given :meth:`context`; returns what :meth:`sample` does."""
        z, log_prob = self.density.sample(draws, context.features, generator)  # type: ignore[operator]
        theta, log_det = self.unstandardized(z, context)
        theta = scattered(self.symmetries, theta, generator)
        known = self.symmetries is None
        return theta, log_prob.cpu().double() + log_det if known else self.log_prob_of(theta, context)

    def sample_within(
        self, draws: int, data: Data, generator: torch.Generator | None = None, *, sizes: Sizes | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw as :meth:`sample` does, drawing anew what lies beyond the simulated range of the parameters.

        A normal tail on a logarithmic scale now and then reaches values that no prior draw comes near, and that
        spoil means; nothing else repairs draws that no density corrects. Densities are not renormalized.
        """
        context = self.context(data, sizes=sizes)
        theta, log_q = self.sample_given(draws, context, generator)
        for _ in range(5):  # of a share of perhaps a thousandth, each time
            outside = ~self.standardizer.within(theta)
            if (most := int(outside.sum(0).max())) == 0:
                break
            fresh, fresh_log_q = self.sample_given(most, context, generator)
            for column in outside.any(0).nonzero()[:, 0].tolist():
                rows = outside[:, column].nonzero()[:, 0]
                theta[rows, column] = fresh[: len(rows), column]
                log_q[rows, column] = fresh_log_q[: len(rows), column]
        return theta, log_q

    def description(self) -> dict[str, Any]:
        """All that is not a weight or buffer, as JSON; a user's own modules are named "user"."""
        return {
            "dim": self.dim,
            "features": self.features,
            "encoder": self.encoder.description(),
            "summary": describe(self.summary_options, SUMMARIES),
            "density": describe(self.density_options, DENSITIES),
            "levels": self.levels,
            "places": self.places,
            "symmetries": describe_symmetries(self.symmetries),
        }

    @classmethod
    def from_description(
        cls,
        description: Mapping[str, Any],
        *,
        summary: nn.Module | None = None,
        density: nn.Module | Callable[[int, int], nn.Module] | None = None,
    ) -> PosteriorNetwork:
        """Build the network whose weights then come by ``load_state_dict``.

        Parameters
        ----------
        description : mapping
            From :meth:`description`.
        summary, density : torch.nn.Module, optional
            The user's own networks, where the description says so.
        """
        dim, features = int(description["dim"]), int(description["features"])
        levels = read_levels(description["levels"], dim)
        encoder = DataEncoder.from_description(description["encoder"])
        module, summary_options = read_summary(description["summary"], encoder, dim, summary)
        density_module, density_options = read_density(description["density"], dim, features, levels, density)
        return cls(
            ParameterStandardizer(dim),
            encoder,
            module,
            density_module,
            features=features,
            summary_options=summary_options,
            density_options=density_options,
            levels=levels,
            places=read_places(description["places"], dim),
            symmetries=read_symmetries(description["symmetries"], dim),
        ).float()
