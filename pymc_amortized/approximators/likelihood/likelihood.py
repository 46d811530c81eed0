"""The learned likelihood of a PyMC model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import xarray as xr

from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.likelihood.observations import check_values, read_rows, read_values, values_of
from pymc_amortized.approximators.likelihood.parameters import (
    check_draws,
    check_over_rows,
    parameter_names,
    read_parameters,
    spread,
)
from pymc_amortized.approximators.likelihood.remembered import Forgotten
from pymc_amortized.approximators.likelihood.trained_region import TrainedRegion
from pymc_amortized.approximators.storage.save import save
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import closed_model
from pymc_amortized.graph.model.tensors import evaluate
from pymc_amortized.graph.rows.emulator import Emulator
from pymc_amortized.graph.rows.exchange import exchange_distribution, refuse_followers
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.graph.simulation.sending import Sendable
from pymc_amortized.logs import logger
from pymc_amortized.networks.rows.ratio_network import RatioNetwork
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.results.cards import Card
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.row_density.ratio import RowRatio, refuse_draws
from pymc_amortized.training import History, TrainingState

LikelihoodKind = Literal["density", "ratio"]


@dataclass(frozen=True, eq=False, repr=False)
class AmortizedLikelihood(Card, Sendable):
    """The learned distribution of an observed variable, given the parameters that its rows are drawn with.

    Made by :func:`fit_likelihood` or :func:`load`; immutable. Called inside a model it is a distribution.

    Attributes
    ----------
    spec : ModelSpec
        Snapshot of the model.
    rows : ObservedRows
        What a row is, and what its distribution depends on.
    network : RowNetwork or RatioNetwork
        The trained network.
    history : History
        Losses during training.
    provenance : Provenance
        How it was trained.
    error : float or None
        Mean absolute error of the log density of a row, where the model has an exact one.
    forgotten : Forgotten or None
        Of a series: what rows depend on beyond what the density sees of earlier ones, in nats and as a p-value.

    Examples
    --------
    With the likelihood of :func:`fit_likelihood`'s example, in a model of groups:

    >>> with pm.Model() as groups:
    ...     mu = pm.Normal("mu", 0.0, 1.0, shape=3)
    ...     rows = likelihood("y", mu=mu[[0, 0, 1, 2]], observed=[0.1, 0.3, 1.2, -0.4])
    >>> [variable.name for variable in groups.observed_RVs]
    ['y']
    """

    NEXT: ClassVar[str] = "with likelihood.to_model(data):\n    pm.sample()\nlikelihood.save(path)"

    spec: ModelSpec
    rows: ObservedRows
    network: RowNetwork | RatioNetwork
    history: History
    provenance: Provenance
    state: TrainingState
    error: float | None = None
    forgotten: Forgotten | None = None

    def __call__(
        self,
        name: str,
        /,
        *,
        observed: Any = None,
        dims: Any = None,
        shape: Any = None,
        length: int | None = None,
        **parameters: Any,
    ) -> Any:
        """Add a variable with the learned distribution to the model of the context.

        Parameters
        ----------
        name : str
            Of the new variable.
        observed : array_like or pm.Data, optional
        dims, shape : optional
            As in PyMC.
        length : int, optional
            Of each series, where one draw is a series that is not observed.
        **parameters
            What the rows depend on, by the names in :attr:`parameters`, each a number or array that broadcasts over
            the rows. One that is called ``shape`` or ``length`` is the parameter of this name.

        Returns
        -------
        TensorVariable
            Beside it stands a Deterministic ``"<name>_extent"``: how far the parameters reach into the region of
            training. 1 is its edge, beyond which the density is continued by a penalty.

        Raises
        ------
        TypeError, ValueError
            Parameters are missing, unknown or of the wrong shape, or data outside the support.
        """
        if "shape" in self.parameters and shape is not None:
            parameters["shape"], shape = shape, None
        if "length" in self.parameters and length is not None:
            parameters["length"], length = length, None
        arguments = read_parameters(parameters, self.spec, self.rows)
        if observed is not None:
            values = values_of(observed)
            check_values(values, self.rows, self.network.layout, f"observed values of {name!r}")
            length = values.shape[self.rows.batch_ndim] if self.rows.series else None
            check_over_rows(arguments, values.shape, self.rows)
        elif self.rows.series and length is None:
            raise TypeError("length: the length of a series that is not observed must be given")
        self._warn_outside(arguments)
        options = {key: value for key, value in (("dims", dims), ("shape", shape)) if value is not None}
        variable = self.emulator.named(name, *arguments, length=length, observed=observed, **options)
        pm.Deterministic(extent_of(name), self._region.extent(arguments))
        return variable

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what the rows depend on."""
        return parameter_names(self.rows)

    @property
    def region(self) -> dict[str, tuple[float, float]]:
        """The range of each number that a row depends on, in which the likelihood was trained."""
        return self._region.ends

    def to_model(self, observed: Mapping[str, Any] | Any = None, *, model: pm.Model | None = None) -> pm.Model:
        """Return the model in which the observed variable has the learned distribution.

        Parameters
        ----------
        observed : mapping of name to array_like, or array_like, optional
            Values of the observed variable; by default those that the model held. Where its parameters are the same for
            all rows, there may be more or fewer rows than the model had.
        model : pymc.Model, optional
            Another model with an observed variable of this name and distribution, say with other priors or a
            hierarchy; the one it was trained on by default.

        Returns
        -------
        pymc.Model
            A copy, for ``pm.sample(model=...)``, with a Deterministic ``"<name>_extent"`` as in :meth:`__call__`.
        """
        name = self.rows.variable.name
        spec, rows = self.spec, self.rows
        if model is not None:
            spec = take_snapshot(model)
            rows = read_rows(spec, self.spec, rows)
        refuse_followers(spec, name)
        values = read_values(observed, spec, rows, self.network.layout)
        base = closed_model(spec)
        others = [v for v in spec.observed if v.name != name]
        if others:
            base = pm.observe(base, {v.name: spec.held[v.name] for v in others})
        made = exchange_distribution(base, rows, self.emulator, values)
        arguments = list(made[name].owner.inputs[2:])[: len(rows.parameters)]
        with made:
            pm.Deterministic(extent_of(name), self._region.extent(arguments))
        return made

    def logp(self, values: Any, parameters: Mapping[str, Any]) -> np.ndarray:
        """Log density of rows; for ``kind="ratio"`` up to a function of the rows.

        Parameters
        ----------
        values : array_like (..., event)
            The numbers of a row on the last axes, after that of a series if it is one.
        parameters : mapping of name to array_like
            By the names in :attr:`parameters`; they broadcast against the rows.

        Returns
        -------
        ndarray (...)
        """
        values = np.asarray(values)
        check_values(values, self.rows, self.network.layout, "values")
        arguments = read_parameters(parameters, self.spec, self.rows)
        self._warn_outside(arguments)
        over = spread(values, [evaluate(a) for a in arguments], self.rows)
        value = pt.constant(over.astype(self.rows.variable.dtype))
        return evaluate(self.emulator.logp(value, *arguments))

    def sample(
        self,
        parameters: Mapping[str, Any],
        *,
        shape: int | tuple[int, ...] | None = None,
        length: int | None = None,
        random_seed: RandomState = None,
    ) -> np.ndarray:
        """Draw rows from the emulator: a fast stand-in for the simulator.

        Parameters
        ----------
        parameters : mapping of name to array_like
            By the names in :attr:`parameters`; they broadcast against each other.
        shape : int or tuple of int, optional
            Of the rows; by default that of the parameters together.
        length : int, optional
            Of each series, where one draw is a series.
        random_seed : int, sequence of int, numpy.random.Generator, optional

        Returns
        -------
        ndarray (shape, event)

        Raises
        ------
        NotImplementedError
            For ``kind="ratio"``, which has no sampler.
        """
        if self.kind == "ratio":
            refuse_draws()
        given = read_parameters(parameters, self.spec, self.rows)
        self._warn_outside(given)
        arguments = [evaluate(a) for a in given]
        shape = (shape,) if isinstance(shape, int) else shape
        check_draws(arguments, None if shape is None else tuple(shape), self.rows)
        if self.rows.series:
            if length is None:
                length = self.rows.variable.shape_at({})[self.rows.batch_ndim]
            arguments.append(np.zeros(length))
        rng = np.random.default_rng(seed_sequence(random_seed))
        return self.emulator.random(*arguments, rng=rng, size=shape)

    def check_region(self, dt: xr.DataTree, name: str | None = None) -> float:
        """Count draws of a posterior at which parameters lie outside the trained region, and warn of them.

        Parameters
        ----------
        dt : xarray.DataTree
            From ``pm.sample`` of a model with this likelihood.
        name : str, optional
            Of the variable; the name in the model it was trained on by default.

        Returns
        -------
        float
            Share of draws at which some row is outside.
        """
        name = extent_of(name or self.rows.variable.name)
        if "posterior" not in dt or name not in dt["posterior"]:
            raise KeyError(f"the posterior holds no {name!r}: it is not one of a model with this likelihood")
        outside = ~(np.asarray(dt["posterior"][name]) <= 1)  # NaN: not in the support of a parameter at all
        share = float(outside.mean())
        if share:
            logger.warning(
                "At %d of %d draws (%.1f%%) parameters lie outside the region the likelihood was trained in (%s). "
                "There it is continued by a penalty: train with a wider region=.",
                int(outside.sum()),
                outside.size,
                100 * share,
                self._region,
            )
        return share

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights and a description, never code, to a file that :func:`load` reads."""
        save(self, path)

    @property
    def kind(self) -> LikelihoodKind:
        """Whether it is a density, or its ratio to that of all rows."""
        return "ratio" if isinstance(self.network, RatioNetwork) else "density"

    @cached_property
    def density(self) -> RowDensity | RowRatio:
        """The trained density or ratio, in arrays."""
        return density_of(self.network)

    @cached_property
    def emulator(self) -> Emulator:
        """The distribution in PyTensor."""
        return emulator_of(self.network, self.rows)

    def __repr__(self) -> str:
        event = f"[{', '.join(map(str, self.rows.event_shape))}]" if self.rows.event_shape else ""
        region = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in self.region.items())
        error = "" if self.error is None else f", mean absolute error {self.error:.4f} per row"
        kind = f"a series, {self.network.layout.lags} lags" if self.rows.series else "independent rows"
        return (
            f"AmortizedLikelihood({self.rows.variable.name}{event} | {', '.join(self.parameters)})\n"
            f"  {self.kind}, {kind}; region: {region}\n"
            f"  trained on {self.provenance.simulations:,} rows, held-out loss {self.provenance.held_out_loss:.4f}, "
            f"{'settled' if self.provenance.settled else 'not settled'}{error}"
        )

    @cached_property
    def _region(self) -> TrainedRegion:
        return TrainedRegion(self.rows, self.network.layout)

    def _warn_outside(self, arguments: list[Any]) -> None:
        """Log that parameters lie where nothing was learned, as far as they are numbers."""
        furthest = self._region.reach(arguments)
        if not furthest <= 1:
            logger.warning(
                "Parameters lie outside the region the likelihood was trained in (%s), %.2f times as far from its "
                "middle as its edge. There draws are those of the edge, and densities end by a penalty: train with a "
                "wider region=.",
                self._region,
                furthest,
            )


def extent_of(name: str) -> str:
    """Name of the Deterministic beside a variable with a learned likelihood."""
    return f"{name}_extent"


def density_of(network: RowNetwork | RatioNetwork) -> RowDensity | RowRatio:
    """Return what a network has learned, in arrays."""
    made = RowRatio if isinstance(network, RatioNetwork) else RowDensity
    return made(network.layout, network.size, tuple(network.arrays()))


def emulator_of(network: RowNetwork | RatioNetwork, rows: ObservedRows) -> Emulator:
    """Return what a network has learned of some rows, as a distribution in PyTensor."""
    cores = tuple(p.core_shape for p in rows.parameters)
    return Emulator(density_of(network), rows.event_shape, rows.series, cores, rows.variable.dtype)
