"""Models in files: a description by which the user's own is known again, and what differs is named."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import pymc as pm
import torch
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors
from torch import Tensor

from pymc_amortized.approximators.fitting.seeds import Stage, stage_seed
from pymc_amortized.approximators.storage.brought import Brought
from pymc_amortized.approximators.storage.codec import Part, describe
from pymc_amortized.graph.density.log_density import LogDensityByVariable
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.operations import has_density
from pymc_amortized.graph.model.sizes import Range, cut
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import INTERPRETED
from pymc_amortized.graph.simulation.context import ContextSampler, check_gaps, read_missing
from pymc_amortized.graph.simulation.guarded import GuardedSimulator
from pymc_amortized.graph.simulation.simulator import Simulator

DRAWS_OF_CONTEXT = 64
"""Draws of covariates and gaps by which their sources are known again."""
POINTS = 4
"""Prior draws at which the log density of the model in hand must equal that of the model trained on."""


@dataclass(frozen=True)
class Arguments:
    """Names of variables by their part in a model; parameters are all that are left, where none are named."""

    observed: tuple[str, ...]
    parameters: tuple[str, ...] | None = None
    context: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    locals: tuple[str, ...] = ()


@dataclass(frozen=True)
class SavedModel:
    """What a file holds of a model, by which the user's own is known again.

    Attributes
    ----------
    variables : mapping
        From :func:`describe_variables`.
    arguments : Arguments
    sizes : tuple of Range
    density : mapping of str to tuple of float
        Log density of each variable at the points.
    points : mapping of str to Tensor
        Prior draws with their data.
    """

    variables: Mapping[str, Any]
    arguments: Arguments
    sizes: tuple[Range, ...] = ()
    density: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    points: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: ModelSpec, sources: Mapping[str, Any] | None, entropy: Sequence[int]) -> SavedModel:
        """Describe a model, and draw its points.

        Parameters
        ----------
        spec : ModelSpec
        sources : mapping of name to source, or None
            Of its context; the values it holds by default.
        entropy : sequence of int
            Seed of the training.
        """
        points = _points(spec, sources, entropy)
        return cls(
            variables=describe_variables(spec),
            arguments=Arguments(
                observed=tuple(v.name for v in spec.observed),
                parameters=tuple(p.name for p in spec.drawn),
                locals=tuple(p.name for p in spec.locals),
                context=tuple(c.name for c in spec.context),
                missing=tuple(v.name for v in spec.observed if v.missing),
            ),
            sizes=spec.sizes,
            density={name: tuple(values) for name, values in _densities(spec.jointly(), points).items()},
            points={name: torch.as_tensor(values) for name, values in points.items()},
        )

    def read(self, model: pm.Model, brought: Brought, *, with_density: bool = True) -> ModelSpec:
        """Read the user's model the way the saved one was read, and compare the two.

        Parameters
        ----------
        model : pymc.Model
        brought : Brought
        with_density : bool
            Whether densities are compared, too; a likelihood is one of rows, whatever the prior.

        Raises
        ------
        ValueError
            When they differ, or the points are not those of such a model.
        """
        spec = _read_spec(self, model)
        _refuse_other_variables(self.variables, describe_variables(spec))
        if with_density:
            with brought.checking():
                points = _stored_points(cast(Part, self.points), spec)
            _refuse_other_density(self.density, _densities(spec.jointly(), points))
        return spec


def plain_rates(missing: Mapping[str, Any] | None) -> dict[str, float]:
    """Rates of missing values, but for those drawn by a callable, which is code."""
    return {name: float(rate) for name, rate in (missing or {}).items() if not callable(rate)}


def check_rates(spec: ModelSpec, rates: Mapping[str, float]) -> dict[str, Any]:
    """Refuse rates of missing values that a model cannot have."""
    known = read_missing(rates, [v.name for v in spec.observed if v.missing])
    for name, rate in known.items():
        check_gaps(name, rate)
    return known


def check_structure(spec: ModelSpec, structure: Structure) -> Structure:
    """Refuse axes of arrays that a model does not have."""
    ranks = {v.name: len(v.shape) for v in spec.inputs} | {p.name: len(p.shape) for p in (*spec.drawn, *spec.nuisance)}
    for name, i in (pair for axis in structure.axes for pair in axis.carriers):
        if not 0 <= i < ranks[name]:
            raise KeyError(f"axis {i} of {name!r}")
    return structure


def _read_spec(saved: SavedModel, model: pm.Model) -> ModelSpec:
    arguments = saved.arguments
    free = {rv.name for rv in model.free_RVs}
    to_observe = free & set(arguments.observed)
    wanted = arguments.parameters
    try:
        return take_snapshot(
            model,
            observed=arguments.observed if to_observe else None,
            parameters=None if wanted is None or free - to_observe == set(wanted) else wanted,
            context=arguments.context,
            sizes=saved.sizes,
            missing=arguments.missing,
            order=saved.density if free <= {*saved.density} else (),  # HSSM's own order is that of a set
        ).with_locals(arguments.locals)
    except KeyError as error:
        raise ValueError(f"the model is not the one in the file: {error.args[0]}") from None


def describe_variables(spec: ModelSpec) -> dict[str, Any]:
    """Everything about a model that a network depends on, by variable, as JSON."""
    described: dict[str, Any] = {}
    for p in spec.parameters:
        described[f"free variable {p.name!r}"] = asdict(p)
    for p in spec.locals:
        described[f"free variable {p.name!r}"] = {**asdict(p), "local": True}
    for p in spec.nuisance:
        described[f"free variable {p.name!r}"] = {**asdict(p), "marginalized": True}
    for v in spec.data:
        kind = {k: value for k, value in asdict(v).items() if k != "container"}
        described[f"{v.role} variable {v.name!r}"] = kind
    for v in spec.fixed:
        described[f"data container {v.name!r}"] = {
            **asdict(v),
            "digest": _digest(spec.held[v.name]),
        }
    for name in spec.deterministics:
        described[f"deterministic {name!r}"] = {}
    for name in spec.potentials:
        described[f"potential {name!r}"] = {}
    described["constant arrays"] = _constants(spec)
    return describe(described)[0]


def describe_model(
    spec: ModelSpec,
    sources: Mapping[str, Any] | None,
    gaps: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Everything by which a model and its simulations are known again, by what a message would name, as JSON."""
    points = _points(spec, sources, (0,), timeout)
    described = describe_variables(spec) | {"simulation_timeout": timeout}
    described |= {f"log density of {name!r}": values for name, values in _densities(spec.jointly(), points).items()}
    # densities alone do not tell what draws data: of y - x b, if y is drawn around x b, they do not see x
    described |= {f"simulations of {v.name!r}": _totals(points[f"data.{v.name}"]) for v in spec.data}
    context, seed, lengths = ContextSampler(spec, sources or {}, gaps), stage_seed((0,), Stage.PILOT), spec.largest
    for name, values in context(DRAWS_OF_CONTEXT, seed, lengths).items():
        described[f"the source of {name!r} in context"] = _totals(values)
    for name, masks in context.gaps(DRAWS_OF_CONTEXT, seed, lengths).items():
        described[f"the rate of {name!r} in missing"] = _totals(masks)
    return described


def _totals(values: np.ndarray) -> list[float]:
    """Sums that tell arrays apart: of their values, and of these weighed by where they are."""
    flat = np.nan_to_num(np.asarray(values, dtype=float).reshape(len(values), -1))
    weights = np.sin(1.0 + np.arange(flat.shape[1]))
    return [*flat.sum(axis=1).tolist(), *(flat @ weights).tolist()]


def _constants(spec: ModelSpec) -> list[str]:
    model = spec.model
    arrays = {v for v in ancestors([*model.basic_RVs, *model.potentials]) if isinstance(v, Constant)}
    arrays = {v for v in arrays if np.size(v.data) > 1}
    for rv in model.basic_RVs:
        if not has_density(model, rv):  # no density will tell its scalars apart
            others = [v for v in model.basic_RVs if v is not rv]
            arrays |= {v for v in ancestors(rv.owner.inputs, blockers=others) if isinstance(v, Constant)}
    values = [np.asarray(v.data) for v in arrays] + [spec.held[v.name] for v in spec.constants]
    return sorted({_digest(value) for value in values if value.dtype.kind in "buifc"})


def _digest(array: np.ndarray) -> str:
    content = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
    return f"{array.dtype} {list(array.shape)} {content}"


def _refuse_other_variables(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Name the first difference between two descriptions of a model."""
    for name in sorted({*saved, *given}):
        if name not in given:
            raise ValueError(f"the model is not the one in the file: it has no {name}")
        if name not in saved:
            raise ValueError(f"the model is not the one in the file: {name} is not in the file")
        if saved[name] != given[name]:
            raise ValueError(
                f"the model is not the one in the file: {name} differs ({_difference(saved[name], given[name])})"
            )


def _difference(saved: Any, given: Any) -> str:
    if isinstance(saved, dict) and isinstance(given, dict):
        keys = [k for k in {**saved, **given} if saved.get(k) != given.get(k)]
        return ", ".join(f"{k}: {saved.get(k)} in the file, {given.get(k)} in the model" for k in keys)
    return f"{saved} in the file, {given} in the model"


def _points(
    spec: ModelSpec, sources: Mapping[str, Any] | None, entropy: Sequence[int], timeout: float | None = None
) -> dict[str, np.ndarray]:
    """Prior draws with their data, at which densities are compared."""
    spec = spec.jointly()
    if spec.context and sources is None:
        sources = {c.name: _constant_source(c, spec) for c in spec.context}
    kind: Any = Simulator if timeout is None else partial(GuardedSimulator, timeout=timeout)
    simulator = kind(spec, context=ContextSampler(spec, sources or {}), compile_kwargs=INTERPRETED)
    before = np.random.get_state()  # noqa: NPY002 - of a user's function that draws by these, which is warned of
    np.random.seed(0)  # noqa: NPY002
    try:
        draws = simulator(POINTS, stage_seed(entropy, Stage.TIMING))
    finally:
        np.random.set_state(before)  # noqa: NPY002
    points = {"theta": draws.unconstrained, **{f"data.{k}": v for k, v in draws.data.items()}}
    return points | {f"length.{dim}": n for dim, n in draws.lengths.items()}


def _constant_source(variable: DataVariable, spec: ModelSpec) -> Any:
    held = spec.held[variable.name]
    return "resample" if variable.sized else lambda rng: held


def _densities(spec: ModelSpec, points: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    theta = points["theta"]
    fixed = spec.unchanging_values
    values: dict[str, list[float]] = {}
    log_density = LogDensityByVariable(spec, INTERPRETED)
    for i in range(len(theta)):
        lengths = {r.dim: int(points[f"length.{r.dim}"][i]) for r in spec.sizes}
        data: dict[str, Any] = {**fixed, **lengths}
        data |= {v.name: cut(points[f"data.{v.name}"][i], v.shape_at(lengths)) for v in spec.data}
        own = spec.at(lengths).dim
        parts = log_density(theta[i : i + 1, :own], data)
        for name, part in parts.items():
            values.setdefault(name, []).append(float(np.nan_to_num(part.sum())))
    return values


def _refuse_other_density(saved: Mapping[str, Sequence[float]], given: Mapping[str, list[float]]) -> None:
    for name, expected in saved.items():
        actual = given.get(name, [math.nan] * len(expected))
        if not np.allclose(actual, expected, rtol=1e-6, atol=1e-6):  # what another version or machine explains
            raise ValueError(
                f"the model is not the one in the file: the log density of {name!r} differs "
                f"({expected[0]:.6g} in the file, {actual[0]:.6g} in the model, at the same point)"
            )


def _stored_points(stored: Part, spec: ModelSpec) -> dict[str, np.ndarray]:
    stored_width = stored.form("theta")[0][-1]  # that of the largest data set among them
    shapes: dict[str, tuple[int, ...]] = {"theta": (min(stored_width, spec.jointly().at(spec.largest).dim),)}
    shapes |= {f"data.{v.name}": v.shape_at(spec.largest) for v in spec.data}
    shapes |= {f"length.{r.dim}": () for r in spec.sizes}
    points = {}
    for name, shape in shapes.items():
        if stored.form(name)[0] != [POINTS, *shape]:
            raise KeyError(f"the points of {name!r}")
        points[name] = stored[name].numpy()
    return points
