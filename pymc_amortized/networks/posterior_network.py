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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.networks.choices import (
    DENSITIES,
    SUMMARIES,
    DensityChoice,
    SummaryChoice,
    density_options,
    describe,
    dry_run,
    dry_run_density,
    from_registry,
    make_density,
    make_summary,
    summary_options,
)
from pymc_amortized.networks.density.coupling import CouplingSpline, Spline
from pymc_amortized.networks.encoding.encoder import DataEncoder, Sizes
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.networks.regression import regression_start
from pymc_amortized.networks.summary import Options, SummaryNetwork

__all__ = ["PosteriorNetwork"]

REGRESSION_UP_TO = 1_500  # statistics; the normal equations of so many take half a second

ENCODED_AT_ONCE = 2**17  # values, float64: 1 MiB, so that the steps of encoding meet them in the cache

REDRAWS = 5  # of a share of perhaps a thousandth, each time


@dataclass(frozen=True)
class Context:
    """What a density is conditioned on.

    Attributes
    ----------
    features : Tensor
        (batch, features), on the network's device.
    frame : Tensor or None
        (batch, dim + dim * dim), float64 on the CPU: mean and whitening matrix of standardized parameters.
    """

    features: Tensor
    frame: Tensor | None


class PosteriorNetwork(nn.Module):
    """Standardizer, encoder, summary network and density.

    Use :meth:`build` or :meth:`from_description`.

    Attributes
    ----------
    places : list of int or None
        The parameters that it is a density of, where these are not all; others are not looked at.
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
        density_options: Spline | None,
        places: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.places = None if places is None else [int(place) for place in places]
        self.standardizer, self.encoder, self.summary, self.density = (
            standardizer,
            encoder,
            summary,
            density,
        )
        self.features = features
        self.summary_options, self.density_options = summary_options, density_options
        self.is_regression = False
        self.frame = next(iter(_frames(encoder)), None)

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
            A module with the methods of :class:`ConditionalDensity`, or a function of the numbers
            of parameters and features that makes one.
        levels : tuple of int, optional
            Level of each parameter in the model's hierarchy, for the built-in density; by default all are of one.
        standardizer : ParameterStandardizer, optional
            The one that frames are in units of; by default it is learned.
        places : sequence of int, optional
            The parameters to be learned; by default all.
        """
        standardizer = ParameterStandardizer.fit(theta) if standardizer is None else copy.deepcopy(standardizer)
        if places is not None:
            standardizer, theta = standardizer.of(places), theta[:, places]
            levels = None if levels is None else _ranks([levels[place] for place in places])
        encoder = DataEncoder.fit(layout, data, sizes)
        options = summary_options(summary, encoder.layout, standardizer.dim)
        z, encoded = _prepare(standardizer, encoder, theta, data, sizes, None)
        if options is not None:
            module: nn.Module = make_summary(options, encoder, standardizer.dim)
            features = options.features or 0
        else:
            assert isinstance(summary, nn.Module)
            summary = copy.deepcopy(summary)  # the user's stays as it is
            module, features = summary, dry_run(summary, encoded)
        spline = density_options(density, standardizer.dim)
        network = cls(
            standardizer,
            encoder,
            module,
            make_density(spline if spline is not None else density, standardizer.dim, features, levels),
            features=features,
            summary_options=options,
            density_options=spline,
            places=places,
        )
        if spline is None:
            dry_run_density(network.density.float(), z.float(), features)
        if options is not None:
            network._start(z, encoded)
        return network.float()

    def _start(self, z: Tensor, encoded: dict[str, Tensor]) -> None:
        """Learn the statistics' scales, and begin at the regression of z on the statistics."""
        summary, density = self.summary, self.density
        assert isinstance(summary, SummaryNetwork)
        summary.fit(encoded, z)
        with torch.no_grad():
            t = summary.statistics(encoded)
        if t.shape[1] > REGRESSION_UP_TO or len(z) < 50 or summary.features < z.shape[1]:
            return
        self.is_regression = True
        start = regression_start(t.double(), z.double().clamp(-8.0, 8.0))
        summary.start_at(start.weight.float(), start.bias.float())
        if isinstance(density, CouplingSpline):
            spread = summary.features >= 2 * self.dim
            if spread:
                summary.start_at(start.log_scale_weight.float(), start.log_scale_bias.float(), self.dim)
            density.start_at(start.covariance, spread)

    @property
    def dim(self) -> int:
        """Number of unconstrained parameters that it is a density of."""
        return self.standardizer.dim

    @property
    def device(self) -> torch.device:
        """Where the summary network and the density live; the statistics stay on the CPU."""
        return next(
            (p.device for m in (self.density, self.summary) for p in m.parameters()),
            torch.device("cpu"),
        )

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
        theta = theta if self.places is None else theta[:, self.places]
        return _prepare(self.standardizer, self.encoder, theta, data, sizes, device or self.device)

    def measured(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add to prepared data what no training changes: the statistics of a built-in summary."""
        return self.summary.measured(encoded) if isinstance(self.summary, SummaryNetwork) else encoded

    def reduced(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reduce prepared data to what a built-in summary's last layers see; for as long as the others stay."""
        if not isinstance(self.summary, SummaryNetwork):
            return encoded
        return self.summary.reduced(encoded) | ({} if self.frame is None else {self.frame: encoded[self.frame]})

    def loss(self, z: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """Mean negative log density of z (batch, dim), given prepared data; a scalar."""
        log_prob = self.density.log_prob(z, self.summary(encoded))  # type: ignore[operator]
        return -(log_prob if self.frame is None else log_prob + encoded[self.frame]).mean()

    def encode(self, data: Mapping[str, np.ndarray | Tensor], sizes: Sizes | None = None) -> dict[str, Tensor]:
        """Raw data (batch, *shape) -> what :meth:`summarize` takes, on the CPU."""
        return self.encoder(tensors_of(self.encoder, data), sizes)

    def summarize(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Encoded data -> features (batch, features) on the network's device."""
        device = self.device
        return self.summary({k: v.float().to(device) for k, v in encoded.items()})

    def context(self, data: Mapping[str, np.ndarray | Tensor], *, sizes: Sizes | None = None) -> Context:
        """Raw data (batch, *shape) -> what the density is conditioned on."""
        encoded = self.encode(data, sizes)
        return Context(self.summarize(encoded), None if self.frame is None else encoded[self.frame])

    @torch.inference_mode()
    def normal(
        self, data: Mapping[str, np.ndarray | Tensor], sizes: Sizes | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean (batch, dim) and covariance (batch, dim, dim) of z by regression on the statistics.

        Only of a network with built-in parts, before any training: this is where it begins.
        """
        summary, density = self.summary, self.density
        assert isinstance(summary, SummaryNetwork) and isinstance(density, CouplingSpline)
        return density.normal(summary.linear(summary.statistics(self.encode(data, sizes))))

    def log_prob(
        self,
        theta: np.ndarray | Tensor,
        data: Mapping[str, np.ndarray | Tensor],
        *,
        sizes: Sizes | None = None,
    ) -> Tensor:
        """Log density (..., batch) of all parameters theta (..., batch, parameters), float64 on the CPU."""
        return self.log_prob_given(theta, self.context(data, sizes=sizes))

    def log_prob_given(self, theta: np.ndarray | Tensor, context: Context) -> Tensor:
        """The same, given :meth:`context`."""
        z, log_det = self.standardized(theta, context)
        z = z.float().to(context.features.device)
        return self.density.log_prob(z, context.features).cpu().double() + log_det  # type: ignore[operator]

    def standardized(self, theta: np.ndarray | Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What the density is one of, (..., batch, dim), where theta are all parameters; with the log determinant."""
        theta = _tensor(theta)
        z, log_det = self.standardizer.exact(theta if self.places is None else theta[..., self.places])
        if context.frame is None:
            return z, log_det
        z, frame_log_det = _whitened(z, context.frame)
        return z, log_det + frame_log_det

    def unstandardized(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Undo :meth:`standardized`, of z (draws, batch, dim): what it is a density of, and the same determinant."""
        frame_log_det: Any = 0.0
        if context.frame is not None:
            z, frame_log_det = _colored(z.cpu().double(), context.frame)
        theta, log_det = self.standardizer.inverse(z)
        return theta, frame_log_det + log_det

    def sample(
        self,
        draws: int,
        data: Mapping[str, np.ndarray | Tensor],
        generator: torch.Generator | None = None,
        *,
        sizes: Sizes | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw from q(theta | data).

        Parameters
        ----------
        draws : int
            Number of draws per data set.
        data : mapping of str to ndarray or Tensor
            Raw data, (batch, *shape) each.
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
        """The same, given :meth:`context`."""
        z, log_prob = self.density.sample(draws, context.features, generator)  # type: ignore[operator]
        theta, log_det = self.unstandardized(z, context)
        return theta, log_prob.cpu().double() + log_det

    def sample_within(
        self,
        draws: int,
        data: Mapping[str, np.ndarray | Tensor],
        generator: torch.Generator | None = None,
        *,
        sizes: Sizes | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw as :meth:`sample` does, drawing anew what lies beyond the simulated range of the parameters.

        A normal tail on a logarithmic scale now and then reaches values that no prior draw comes near, and that
        spoil means; nothing else repairs draws that no density corrects. Densities are not renormalized.
        """
        context = self.context(data, sizes=sizes)
        theta, log_q = self.sample_given(draws, context, generator)
        for _ in range(REDRAWS):
            outside = ~self.standardizer.within(theta)
            most = int(outside.sum(0).max())
            if most == 0:
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
            "levels": self.density.level_of if isinstance(self.density, CouplingSpline) else None,
            "places": self.places,
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
        levels = _levels(description["levels"], dim)
        encoder = DataEncoder.from_description(description["encoder"])
        options = from_registry(description["summary"], SUMMARIES, "summary", summary)
        spline = from_registry(description["density"], DENSITIES, "density", density)
        module = make_summary(options, encoder, dim) if isinstance(options, Options) else copy.deepcopy(summary)
        assert module is not None
        return cls(
            ParameterStandardizer(dim),
            encoder,
            module,
            make_density(spline if isinstance(spline, Spline) else density, dim, features, levels),
            features=features,
            summary_options=options if isinstance(options, Options) else None,
            density_options=spline if isinstance(spline, Spline) else None,
            places=_places(description["places"], dim),
        ).float()


def _ranks(levels: Sequence[int]) -> tuple[int, ...]:
    """Levels counted anew, where some are no longer there."""
    there = sorted(set(levels))
    return tuple(there.index(level) for level in levels)


def _places(given: Any, dim: int) -> list[int] | None:
    """Read the places of a description, which may be anything."""
    if given is None:
        return None
    if len(given) != dim or not all(isinstance(place, int) and place >= 0 for place in given) or len(set(given)) < dim:
        raise ValueError(f"places are {given!r}; expected {dim} different ones")
    return list(given)


def _levels(given: Any, dim: int) -> tuple[int, ...] | None:
    """Read the levels of a description, which may be anything."""
    if given is None:
        return None
    if len(given) != dim or not all(isinstance(level, int) and 0 <= level < max(dim, 1) for level in given):
        raise ValueError(f"levels are {given!r}; expected {dim} numbers from 0 to {dim - 1}")
    return tuple(given)


def _tensor(values: np.ndarray | Tensor) -> Tensor:
    """Wrap an array; one that torch cannot wrap (read-only, or with negative strides) is copied."""
    if isinstance(values, Tensor):
        return values
    values = np.ascontiguousarray(values).reshape(np.shape(values))
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def tensors_of(encoder: DataEncoder, data: Mapping[str, np.ndarray | Tensor]) -> dict[str, Tensor]:
    """Wrap the arrays that an encoder reads."""
    return {layout.name: _tensor(data[layout.name]) for layout in encoder.layout.arrays}


def _prepare(
    standardizer: ParameterStandardizer,
    encoder: DataEncoder,
    theta: np.ndarray,
    data: Mapping[str, np.ndarray],
    sizes: Sizes | None,
    device: torch.device | str | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        z, _ = standardizer.exact(_tensor(theta))
        encoded = encoded_in_blocks(encoder, data, sizes, None)
        for name in _frames(encoder):
            z, encoded[name] = _whitened(z, encoded[name])
        return z.float().to(device), {name: values.float().to(device) for name, values in encoded.items()}


def _frames(encoder: DataEncoder) -> list[str]:
    """Name of the frame, if there is one."""
    return [array.name for array in encoder.layout.arrays if array.frame]


@torch.no_grad()
def encoded_in_blocks(
    encoder: DataEncoder, data: Mapping[str, np.ndarray], sizes: Sizes | None, device: torch.device | str | None
) -> dict[str, Tensor]:
    """Encode raw data (n, *shape), in blocks that stay in the cache."""
    tensors = tensors_of(encoder, data)
    n = len(next(iter(tensors.values())))
    block = max(ENCODED_AT_ONCE // max(sum(v.numel() for v in tensors.values()) // max(n, 1), 1), 1)
    parts = []
    for rows in (slice(start, start + block) for start in range(0, max(n, 1), block)):
        some = {name: np.asarray(lengths)[rows] for name, lengths in (sizes or {}).items()}
        parts.append(encoder({name: values[rows] for name, values in tensors.items()}, some))
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}


def _whitened(z: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Standardize z (..., batch, dim) by frames (batch, dim + dim * dim); with log |du / dz| (batch,)."""
    dim = z.shape[-1]
    whitening = frame[:, dim:].unflatten(-1, (dim, dim))
    u = torch.einsum("bij,...bj->...bi", whitening, z - frame[:, :dim])
    return u, whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _colored(u: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Undo :func:`_whitened`, of u (draws, batch, dim)."""
    dim = u.shape[-1]
    whitening = frame[:, dim:].unflatten(-1, (dim, dim))
    z = torch.linalg.solve_triangular(whitening, u.permute(1, 2, 0), upper=False).permute(2, 0, 1)
    return z + frame[:, :dim], whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
