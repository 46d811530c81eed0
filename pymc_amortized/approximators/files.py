"""Posteriors in files: weights and a description, never code.

A file is in the safetensors format. Its metadata describe the networks (by names from a fixed registry) and the model
they were trained for: names, shapes, dims, transforms, digests of arrays, and each variable's log density at a few
points. The model itself is the user's to bring; whatever differs is named.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pymc as pm
import torch
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pymc_amortized.approximators.comparison import AmortizedComparison
from pymc_amortized.approximators.inputs import Inputs
from pymc_amortized.approximators.joint import AmortizedJoint
from pymc_amortized.approximators.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.novelty import number_of_extents, reference_of, reference_tensors
from pymc_amortized.approximators.posterior import AmortizedPosterior
from pymc_amortized.approximators.provenance import Provenance
from pymc_amortized.approximators.seeds import Stage, stage_seed
from pymc_amortized.approximators.sketch import Sketch
from pymc_amortized.graph.context import ContextSampler
from pymc_amortized.graph.density import LogDensityByVariable
from pymc_amortized.graph.each import WIDEST, EachLogDensity
from pymc_amortized.graph.missing import Rule
from pymc_amortized.graph.simulator import Simulator
from pymc_amortized.graph.sizes import Range, cut
from pymc_amortized.graph.spec import DataVariable, ModelSpec
from pymc_amortized.graph.structure import Axis, Structure
from pymc_amortized.graph.suitability import has_density
from pymc_amortized.graph.tensors import CompileKwargs
from pymc_amortized.networks.layout import DataLayout
from pymc_amortized.networks.network import PosteriorNetwork
from pymc_amortized.networks.novelty import NoveltyFeatures
from pymc_amortized.novelty import Reference
from pymc_amortized.quadratic import Quadratic
from pymc_amortized.training import History, Training, TrainingState

logger = logging.getLogger("pymc_amortized")

FORMAT = 9
KEY = "pymc_amortized"
REFERENCE = "novelty."
SKETCH = "sketch."
POINTS = 4
"""Prior draws at which the log density of the model in hand must equal that of the model trained on."""
SAME = 1e-6
"""Relative difference of log densities that another version or machine explains."""
LARGEST_STATE = 100_000
"""Elements that a tensor of the training's state may have beside a small network (held-out losses, generators)."""
LARGEST_OPTION = 1_000_000
"""No built-in network has an option beyond this; a larger number is an attempt on the memory."""


def save(posterior: AmortizedPosterior, path: str | PathLike[str]) -> None:
    """Write a posterior to a file; see :meth:`AmortizedPosterior.save`."""
    if posterior.learned is not None:
        logger.warning(
            "The learned likelihood that corrects this posterior's draws is not in its file: save both by "
            "AmortizedJoint.save."
        )
    write(path, *contents(posterior))


def write(path: str | PathLike[str], description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a description and tensors."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to save {path.name!r} in")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={KEY: json.dumps(description, allow_nan=False)})


def contents(posterior: AmortizedPosterior) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a posterior."""
    spec = posterior.spec
    model, points = model_contents(spec, posterior.context, posterior.provenance.entropy)
    tensors = {f"network.{k}": v for k, v in posterior.network.state_dict().items()}
    tensors |= {f"state.{k}": v for k, v in posterior.state.tensors.items()}
    tensors |= {f"points.{k}": v for k, v in points.items()}
    tensors |= {f"{REFERENCE}{k}": v for k, v in reference_tensors(posterior.reference).items()}
    sketch = posterior.sketch
    if sketch is not None:
        tensors |= {f"{SKETCH}{k}": v for k, v in sketch.start.state_dict().items()}
    description = {
        "format": FORMAT,
        "versions": versions(),
        **model,
        "gaps": dict(posterior.gaps),
        "structure": asdict(posterior.structure),
        "network": posterior.network.description(),
        "sketch": None
        if sketch is None
        else {
            "network": sketch.start.description(),
            "band": sketch.density.band,
            "quadratic": sketch.quadratic.description(),
            "number_drawn": sketch.number_drawn,
        },
        "history": posterior.history.description(),
        "state": posterior.state.values,
        "provenance": {
            **asdict(posterior.provenance),
            "training": posterior.provenance.training.description(),
        },
    }
    return description, tensors


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
    return description, {name: torch.as_tensor(values) for name, values in points.items()}


def load(
    path: str | PathLike[str],
    *,
    model: pm.Model | Mapping[str, pm.Model] | None = None,
    summary: nn.Module | None = None,
    density: nn.Module | Callable[[int, int], nn.Module] | None = None,
    compile_kwargs: CompileKwargs | None = None,
) -> AmortizedPosterior | AmortizedLikelihood | AmortizedJoint | AmortizedComparison:
    """Read a posterior, a likelihood, both, or a comparison that its method ``save`` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    model : pymc.Model, or mapping of name to pymc.Model, optional
        The model it was trained for, or those of a comparison by name; the context's model by default. They are
        compared with those in the file.
    summary, density : torch.nn.Module, optional
        Networks of your own, where the posterior was trained with such.
    compile_kwargs : mapping, optional
        Passed to ``pymc.compile``.

    Returns
    -------
    AmortizedPosterior, AmortizedLikelihood, AmortizedJoint or AmortizedComparison

    Raises
    ------
    FileNotFoundError
    ValueError
        When the file is damaged or not one of ours, or the model is another one; the difference is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            return _read(file, path, model, summary, density, compile_kwargs)
    except SafetensorError as error:
        raise ValueError(f"{path.name!r} is damaged, or not a file of pymc_amortized: {error}") from None


def _read(
    file: Any,
    path: Path,
    model: Any,
    summary: nn.Module | None,
    density: Any,
    compile_kwargs: CompileKwargs | None,
) -> AmortizedPosterior | AmortizedLikelihood | AmortizedJoint | AmortizedComparison:
    description = _metadata(file, path)
    if description.get("what") == "comparison":
        from pymc_amortized.approximators.comparison_files import read as read_comparison

        refuse_other_modules(None, path, density=density)
        return read_comparison(file, path, description, model, summary, compile_kwargs)
    model = _model(model)
    if description.get("what") == "likelihood":
        from pymc_amortized.approximators.likelihood_files import read

        refuse_other_modules(None, path, summary=summary, density=density)
        return read(file, path, description, model)
    if description.get("what") == "joint":
        from pymc_amortized.approximators import joint_files

        options: Any = {"summary": summary, "density": density, "compile_kwargs": compile_kwargs}
        return joint_files.read(file, path, description, model, **options)
    return read_posterior(file, path, description, model, summary, density, compile_kwargs)


def read_posterior(
    file: Any,
    path: Path,
    description: Mapping[str, Any],
    model: pm.Model,
    summary: nn.Module | None,
    density: Any,
    compile_kwargs: CompileKwargs | None,
) -> AmortizedPosterior:
    """Read a posterior from an open file, by its description."""
    spec, expected = _spec(path, description, model)
    with damage(path):
        structure = read_structure(spec, description["structure"])
    refuse_other_modules(description.get("network"), path, summary=summary, density=density)
    with damage(path):
        gaps = _gaps(spec, description["gaps"])
        inputs = Inputs(spec, structure)
        sketch = _sketch(file, description["sketch"], inputs, gaps, compile_kwargs)
        layout = replace(inputs, sketch=sketch).layout
        network = _network(file, description["network"], layout, summary, density)
        if network.places != (expected_places := None if sketch is None else sketch.learned):
            raise ValueError(f"the network is one of the parameters at {network.places}, not {expected_places}")
        posterior = AmortizedPosterior(
            spec=spec,
            network=network,
            structure=structure,
            history=History.from_description(description["history"]),
            provenance=read_provenance(description["provenance"]),
            state=TrainingState(state_tensors(file, network), description["state"]),
            context=None,
            missing=None,
            gaps=gaps,
            reference=_reference(file, spec, network if sketch is None else sketch.start),
            sketch=sketch,
            compile_kwargs=compile_kwargs,
        )
        points = _stored_points(file, spec, "points.")
    _refuse_other_density(expected, _densities(spec.jointly(), points, compile_kwargs))
    return posterior


def read_described(
    file: Any, path: Path, description: Mapping[str, Any], model: pm.Model, compile_kwargs: CompileKwargs | None
) -> ModelSpec:
    """Read the user's model, and compare it with what :func:`model_contents` gave."""
    spec, expected = _spec(path, description, model)
    with damage(path):
        points = _stored_points(file, spec, "")
    _refuse_other_density(expected, _densities(spec.jointly(), points, compile_kwargs))
    return spec


def _spec(path: Path, description: Mapping[str, Any], model: pm.Model) -> tuple[ModelSpec, dict[str, Any]]:
    """Read the user's model like that of the file; also returns the densities it must have."""
    with damage(path):
        arguments = {name: list(map(str, description["arguments"][name])) for name in _ARGUMENTS}
        sizes = [Range(str(dim), int(low), int(high)) for dim, (low, high) in description["sizes"].items()]
        described, expected = dict(description["model"]), dict(description["density"])
    spec = read_spec(model, arguments, sizes)
    refuse_other_model(described, describe_model(spec))
    return spec, expected


_ARGUMENTS = ("observed", "parameters", "context", "missing")


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Say of a description that cannot be followed that the file is damaged."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path.name!r} is damaged: its description lacks or garbles {error}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name!r} is damaged: {error}") from error


def _model(model: pm.Model | None) -> pm.Model:
    try:
        return pm.modelcontext(model)
    except TypeError:
        raise TypeError(
            "model: a file holds no model; pass the one the posterior was trained for, or load it inside `with model:`"
        ) from None


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


def refuse_other_modules(described: Any, path: Path, **given: Any) -> None:
    """A network of the user's own has to be given again, and only that."""
    for what, module in given.items():
        entry = described.get(what) if isinstance(described, Mapping) else None
        own = isinstance(entry, Mapping) and entry.get("kind") == "user"
        if own and module is None:
            raise ValueError(f"{path.name!r} was trained with a {what} network of your own: pass it as {what}=")
        if module is not None and not own:
            raise ValueError(f"{what} was given, but {path.name!r} has a built-in {what} network")


def _gaps(spec: ModelSpec, described: Mapping[str, Any]) -> dict[str, Rule | None]:
    wanted = {v.name for v in spec.observed if v.missing}
    if set(described) != wanted or not set(described.values()) <= {*get_args(Rule), None}:
        raise KeyError(f"the gaps of {sorted(wanted)}")
    return dict(described)


def _sketch(
    file: Any, described: Any, inputs: Inputs, gaps: Mapping[str, Rule | None], compile_kwargs: CompileKwargs | None
) -> Sketch | None:
    """Read what posteriors are sketched from."""
    if described is None:
        return None
    band = described["band"]
    if band is not None and not (isinstance(band, int) and 0 <= band <= WIDEST):
        raise ValueError(f"the band of missing values is {band!r}")
    start = _network(file, described["network"], inputs.layout, None, None, SKETCH)
    quadratic, number = Quadratic.from_description(described["quadratic"], start.dim), described["number_drawn"]
    if not (isinstance(number, int) and 0 <= number <= len(quadratic.places)):
        raise ValueError(f"{number!r} of {len(quadratic.places)} parameters are drawn exactly")
    return Sketch(inputs, start, EachLogDensity(inputs.spec, gaps, band, compile_kwargs), quadratic, number)


def _reference(file: Any, spec: ModelSpec, network: PosteriorNetwork) -> Reference | None:
    """Read what novelty is judged by; older files have none."""
    keys = [key for key in file.keys() if key.startswith(REFERENCE)]
    if any(math.prod(file.get_slice(key).get_shape()) > LARGEST_OPTION for key in keys):
        raise ValueError("an array of the reference is larger than any that is written")
    width = sum(NoveltyFeatures(network).blocks)
    return reference_of({k.removeprefix(REFERENCE): file.get_tensor(k) for k in keys}, width, number_of_extents(spec))


def read_provenance(described: Mapping[str, Any]) -> Provenance:
    """Read how something was trained."""
    values = dict(described)
    values["training"] = Training.from_description(values["training"])
    values["entropy"] = tuple(int(e) for e in values["entropy"])
    return Provenance(**values)


def _metadata(file: Any, path: Path) -> dict[str, Any]:
    metadata = file.metadata() or {}
    if KEY not in metadata:
        raise ValueError(f"{path.name!r} is a safetensors file, but not one that pymc_amortized wrote")
    try:
        description = json.loads(metadata[KEY])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name!r} is damaged: its description cannot be read ({error})") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        given = description.get("format") if isinstance(description, dict) else None
        raise ValueError(
            f"{path.name!r} has format {given!r}; this version of pymc_amortized "
            f"({version('pymc-amortized')}) reads format {FORMAT}"
        )
    return description


def read_spec(model: pm.Model, arguments: Mapping[str, Any], sizes: Sequence[Range]) -> ModelSpec:
    """Read the user's model the way the saved one was read."""
    free = {rv.name for rv in model.free_RVs}
    to_observe = [name for name in arguments["observed"] if name in free]
    try:
        return ModelSpec.from_model(
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


def _network(
    file: Any,
    description: Mapping[str, Any],
    expected: DataLayout,
    summary: nn.Module | None,
    density: Any,
    prefix: str = "network.",
) -> PosteriorNetwork:
    """Build the described network and fill it, after comparing sizes and dtypes tensor by tensor."""
    refuse_large_options(description, len(file.keys()))
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        empty = PosteriorNetwork.from_description(description, summary=on_meta(summary), density=on_meta(density))
    refuse_other_layout(empty.encoder.layout, expected)
    wanted = empty.state_dict()
    stored = {k.removeprefix(prefix): k for k in file.keys() if k.startswith(prefix)}
    refuse_other_names(stored, wanted)
    for name, tensor in wanted.items():
        if is_lazy(tensor):  # takes its shape from the file
            continue
        refuse_other_tensor(file, stored[name], list(tensor.shape), tensor.dtype)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, to be overwritten
        network = PosteriorNetwork.from_description(description, summary=summary, density=density)
    fill(network, {name: file.get_tensor(key) for name, key in stored.items()})
    return network.eval()


def refuse_other_names(stored: Iterable[str], wanted: Iterable[str]) -> None:
    """Compare the names of weights in a file with those of a network."""
    differing = sorted(set(stored) ^ set(wanted))[:5]
    if differing:
        raise ValueError(f"the weights in the file are not those of the network it describes: {differing}")


def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network its weights, which must be numbers."""
    for name, weight in weights.items():
        if weight.is_floating_point() and torch.isnan(weight).any():
            raise ValueError(f"weight {name!r} in the file is not a number")
    network.load_state_dict(dict(weights))


def refuse_other_layout(described: DataLayout, expected: DataLayout) -> None:
    """Compare layouts: the network must read the data of this model, in its order."""
    for ours, theirs in zip_longest(expected.arrays, described.arrays):
        if ours is not None and theirs is not None and ours.kind == "categorical":
            ours = replace(ours, categories=theirs.categories)  # learned from simulations
        if ours != theirs:
            raise ValueError(f"the network in the file reads {theirs}, the model provides {ours}")
    if expected.axes != described.axes:
        raise ValueError(f"the network in the file reads {described.axes}, the model provides {expected.axes}")


def refuse_other_tensor(file: Any, key: str, shape: list[int], dtype: torch.dtype) -> None:
    """Compare a tensor in the file with what is needed, before memory is taken."""
    piece = file.get_slice(key)
    given = (list(piece.get_shape()), str(piece.get_dtype()))
    if given[0] != shape or given[1] not in _DTYPES.get(dtype, ()):
        raise ValueError(
            f"weight {key.removeprefix('network.')!r} has shape {given[0]} and dtype {given[1]}; "
            f"{shape} and {str(dtype).removeprefix('torch.')} are needed"
        )


_DTYPES = {
    torch.float32: ("F32",),
    torch.float64: ("F64",),
    torch.int64: ("I64",),
    torch.bool: ("BOOL",),
    torch.uint8: ("U8",),
    torch.int32: ("I32",),
    torch.float16: ("F16",),
    torch.bfloat16: ("BF16",),
}


def on_meta(module: Any) -> Any:
    """Copy a module without memory for its weights."""
    if not isinstance(module, nn.Module) or any(is_lazy(p) for p in module.parameters()):
        return module
    return copy.deepcopy(module).to("meta")


def refuse_large_options(description: Any, tensors: int) -> None:
    """Refuse sizes that no file of this size can hold the weights of."""
    if isinstance(description, Mapping):
        for name, value in description.items():
            if (name == "layers" or name.endswith("depth")) and isinstance(value, int) and value > tensors:
                raise ValueError(f"the file describes a network of {value} {name}, but holds {tensors} tensors")
            refuse_large_options(value, tensors)
    elif isinstance(description, list):
        for value in description:
            refuse_large_options(value, tensors)
    elif isinstance(description, int) and abs(description) > LARGEST_OPTION:
        raise ValueError(f"the file describes a network with an option of {description}")


def state_tensors(file: Any, network: nn.Module) -> dict[str, Tensor]:
    """Read where training stood; no tensor of it is larger than the network it belongs to."""
    largest = max(sum(t.numel() for t in network.state_dict().values()), LARGEST_STATE)
    tensors = {}
    for key in file.keys():
        if not key.startswith("state."):
            continue
        size = math.prod(file.get_slice(key).get_shape())
        if size > largest:
            raise ValueError(f"tensor {key!r} in the file has {size} elements, more than the whole network")
        tensors[key.removeprefix("state.")] = file.get_tensor(key)
    missing = [name for name in ("now.weights", "now.average", "best.weights") if name not in tensors]
    if missing:
        raise KeyError(f"the state of training ({missing})")
    return tensors


def _stored_points(file: Any, spec: ModelSpec, prefix: str) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"theta": (spec.jointly().dim,)}
    shapes |= {f"data.{v.name}": v.shape_at(spec.largest) for v in spec.data}
    shapes |= {f"length.{r.dim}": () for r in spec.sizes}
    points = {}
    for name, shape in shapes.items():
        if list(file.get_slice(f"{prefix}{name}").get_shape()) != [POINTS, *shape]:
            raise KeyError(f"the points of {name!r}")
        points[name] = file.get_tensor(f"{prefix}{name}").numpy()
    return points


def versions() -> dict[str, str]:
    """Versions of what a file depends on."""
    return {
        "pymc_amortized": version("pymc-amortized"),
        "pymc": pm.__version__,
        "torch": torch.__version__,
    }
