"""Models in files: a description by which the user's own is known again, and what differs is named."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import torch
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors
from torch import Tensor

from pymc_amortized.approximators.fitting.seeds import Stage, stage_seed
from pymc_amortized.approximators.storage.networks import Part, damage
from pymc_amortized.graph.density.log_density import LogDensityByVariable
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.graph.model.sizes import Range, cut
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.suitability import has_density
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler, check_gaps, read_missing
from pymc_amortized.graph.simulation.simulator import Simulator

POINTS = 4
"""Prior draws at which the log density of the model in hand must equal that of the model trained on."""
SAME = 1e-6
"""Relative difference of log densities that another version or machine explains."""
POINTS_OF = "points."
_ARGUMENTS = ("observed", "parameters", "context", "missing")


def model_contents(
    spec: ModelSpec, sources: Mapping[str, Any] | None, entropy: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a description by which a model is known again, and its points."""
    points = _points(spec, sources, entropy)
    description = {
        "model": describe_model(spec),
        "arguments": {
            "observed": [v.name for v in spec.observed],
            "parameters": [p.name for p in spec.parameters],
            "context": [c.name for c in spec.context],
            "missing": [v.name for v in spec.observed if v.missing],
        },
        "sizes": {r.dim: [r.smallest, r.largest] for r in spec.sizes},
        "density": _densities(spec.jointly(), points),
    }
    return description, {f"{POINTS_OF}{name}": torch.as_tensor(values) for name, values in points.items()}


def read_described(
    file: Any, path: Path, description: Mapping[str, Any], model: pm.Model, compile_kwargs: CompileKwargs | None
) -> ModelSpec:
    """Read the user's model, and compare it with what :func:`model_contents` gave."""
    with damage(path):
        arguments = {name: list(map(str, description["arguments"][name])) for name in _ARGUMENTS}
        sizes = [Range(str(dim), int(low), int(high)) for dim, (low, high) in description["sizes"].items()]
        described, expected = dict(description["model"]), dict(description["density"])
    spec = read_spec(model, arguments, sizes)
    refuse_other_model(described, describe_model(spec))
    with damage(path):
        points = _stored_points(Part(file, POINTS_OF), spec)
    _refuse_other_density(expected, _densities(spec.jointly(), points, compile_kwargs))
    return spec


def rates(missing: Mapping[str, Any] | None) -> dict[str, float]:
    """Rates of missing values, but for those drawn by a callable, which is code."""
    return {name: float(rate) for name, rate in (missing or {}).items() if not callable(rate)}


def read_rates(spec: ModelSpec, described: Mapping[str, Any]) -> dict[str, Any]:
    """Read rates of missing values."""
    known = read_missing(described, [v.name for v in spec.observed if v.missing])
    for name, rate in known.items():
        check_gaps(name, rate)
    return known


def read_structure(spec: ModelSpec, described: Mapping[str, Any]) -> Structure:
    """Read what is known of the axes of the data."""
    axes = tuple(
        Axis(**{**axis, "carriers": tuple((str(name), int(i)) for name, i in axis["carriers"])})
        for axis in described["axes"]
    )
    shapes = {name: tuple(shape) for name, shape in described["shapes"].items()}
    ranks = {v.name: len(v.shape) for v in spec.inputs} | {p.name: len(p.shape) for p in spec.jointly().parameters}
    for name, i in (pair for axis in axes for pair in axis.carriers):
        if i >= ranks[name]:
            raise KeyError(f"axis {i} of {name!r}")
    return Structure(axes, shapes)


def read_spec(model: pm.Model, arguments: Mapping[str, Any], sizes: Sequence[Range]) -> ModelSpec:
    """Read the user's model the way the saved one was read."""
    free = {rv.name for rv in model.free_RVs}
    to_observe = [name for name in arguments["observed"] if name in free]
    try:
        return take_snapshot(
            model,
            observed=arguments["observed"] if to_observe else None,
            parameters=None if free - set(to_observe) == set(arguments["parameters"]) else arguments["parameters"],
            context=arguments["context"],
            sizes=sizes,
            missing=arguments["missing"],
        )
    except KeyError as error:
        raise ValueError(f"the model is not the one in the file: {error.args[0]}") from None


def describe_model(spec: ModelSpec) -> dict[str, Any]:
    """Everything about a model that a network depends on, by variable, as JSON."""
    described: dict[str, Any] = {}
    for p in spec.parameters:
        described[f"free variable {p.name!r}"] = asdict(p)
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
    return json.loads(json.dumps(described))


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


def refuse_other_model(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
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


def _points(spec: ModelSpec, sources: Mapping[str, Any] | None, entropy: Sequence[int]) -> dict[str, np.ndarray]:
    """Prior draws with their data, at which densities are compared."""
    spec = spec.jointly()
    if spec.context and sources is None:
        sources = {c.name: _constant_source(c, spec) for c in spec.context}
    simulator = Simulator(spec, context=ContextSampler(spec, sources or {}))
    draws = simulator(POINTS, stage_seed(entropy, Stage.TIMING))
    points = {"theta": draws.unconstrained, **{f"data.{k}": v for k, v in draws.data.items()}}
    return points | {f"length.{dim}": n for dim, n in draws.lengths.items()}


def _constant_source(variable: DataVariable, spec: ModelSpec) -> Any:
    held = spec.held[variable.name]
    return "resample" if variable.sized else lambda rng: held


def _densities(
    spec: ModelSpec, points: Mapping[str, np.ndarray], compile_kwargs: CompileKwargs | None = None
) -> dict[str, list[float]]:
    theta = points["theta"]
    fixed = {v.name: spec.held[v.name] for v in spec.unchanging}
    values: dict[str, list[float]] = {}
    log_density = LogDensityByVariable(spec, compile_kwargs)
    for i in range(len(theta)):
        lengths = {r.dim: int(points[f"length.{r.dim}"][i]) for r in spec.sizes}
        data: dict[str, Any] = {**fixed, **lengths}
        data |= {v.name: cut(points[f"data.{v.name}"][i], v.shape_at(lengths)) for v in spec.data}
        parts = log_density(theta[i : i + 1], data)
        for name, part in parts.items():
            values.setdefault(name, []).append(float(np.nan_to_num(part.sum())))
    return values


def _refuse_other_density(saved: Mapping[str, Any], given: Mapping[str, list[float]]) -> None:
    for name, expected in saved.items():
        actual = given.get(name, [math.nan] * len(expected))
        if not np.allclose(actual, expected, rtol=SAME, atol=SAME):
            raise ValueError(
                f"the model is not the one in the file: the log density of {name!r} differs "
                f"({expected[0]:.6g} in the file, {actual[0]:.6g} in the model, at the same point)"
            )


def _stored_points(file: Any, spec: ModelSpec) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"theta": (spec.jointly().dim,)}
    shapes |= {f"data.{v.name}": v.shape_at(spec.largest) for v in spec.data}
    shapes |= {f"length.{r.dim}": () for r in spec.sizes}
    points = {}
    for name, shape in shapes.items():
        if list(file.get_slice(name).get_shape()) != [POINTS, *shape]:
            raise KeyError(f"the points of {name!r}")
        points[name] = file.get_tensor(name).numpy()
    return points
