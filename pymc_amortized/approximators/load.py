"""Posteriors in files: weights and a description, never code.

A file is in the safetensors format. Its metadata describe the networks (by names from a fixed registry) and the model
they were trained for: names, shapes, dims, transforms, digests of arrays, and each variable's log density at a few
points. The model itself is the user's to bring; whatever differs is named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import pymc as pm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.joint.joint import AmortizedJoint
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.models import (
    model_contents,
    rates,
    read_described,
    read_rates,
    read_structure,
)
from pymc_amortized.approximators.storage.networks import (
    KEY,
    damage,
    read_network,
    read_reference,
    refuse_large_options,
    refuse_other_layout,
    refuse_other_modules,
    state_tensors,
    write,
)
from pymc_amortized.graph.density.each import WIDEST, EachLogDensity
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import Sketch
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.novelty.reference import reference_tensors
from pymc_amortized.numerics.quadratic import Quadratic
from pymc_amortized.training import History, Training, TrainingState

logger = logging.getLogger("pymc_amortized")

FORMAT = 10
REFERENCE = "novelty."
SKETCH = "sketch."


def save(posterior: AmortizedPosterior, path: str | PathLike[str]) -> None:
    """Write a posterior to a file; see :meth:`AmortizedPosterior.save`."""
    if posterior.learned is not None:
        logger.warning(
            "The learned likelihood that corrects this posterior's draws is not in its file: save both by "
            "AmortizedJoint.save."
        )
    write(path, *contents(posterior))


def contents(posterior: AmortizedPosterior) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a posterior."""
    spec = posterior.spec
    model, points = model_contents(spec, posterior.context, posterior.provenance.entropy)
    tensors = {f"network.{k}": v for k, v in posterior.network.state_dict().items()}
    tensors |= {f"state.{k}": v for k, v in posterior.state.tensors.items()}
    tensors |= points
    tensors |= {f"{REFERENCE}{k}": v for k, v in reference_tensors(posterior.reference).items()}
    sketch = posterior.sketch
    if sketch is not None:
        tensors |= {f"{SKETCH}{k}": v for k, v in sketch.start.state_dict().items()}
    description = {
        "format": FORMAT,
        "versions": versions(),
        **model,
        "gaps": dict(posterior.gaps),
        "rates": rates(posterior.missing),
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

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> posterior.save("posterior.zip")
    >>> again = pma.load("posterior.zip", model)
    >>> again.sample({"y": np.zeros(4)}, draws=100, random_seed=1).posterior["mu"].sizes["draw"]
    100
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
        from pymc_amortized.approximators.comparison.file import read as read_comparison

        refuse_other_modules(None, path, density=density)
        return read_comparison(file, path, description, model, summary, compile_kwargs)
    model = _model(model)
    if description.get("what") == "likelihood":
        from pymc_amortized.approximators.likelihood.file import read

        refuse_other_modules(None, path, summary=summary, density=density)
        return read(file, path, description, model)
    if description.get("what") == "joint":
        from pymc_amortized.approximators.joint import file as joint_files

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
    spec = read_described(file, path, description, model, compile_kwargs)
    with damage(path):
        structure = read_structure(spec, description["structure"])
    refuse_other_modules(description.get("network"), path, summary=summary, density=density)
    with damage(path):
        gaps = _gaps(spec, description["gaps"])
        inputs = Inputs(spec, structure)
        sketch = _sketch(file, description["sketch"], inputs, gaps, compile_kwargs)
        layout = replace(inputs, sketch=sketch).layout
        refuse_large_options(description["network"], len(file.keys()))
        network = read_network(file, lambda own: _described(description["network"], layout, own(summary), own(density)))
        if network.places != (expected_places := None if sketch is None else sketch.learned):
            raise ValueError(f"the network is one of the parameters at {network.places}, not {expected_places}")
        return AmortizedPosterior(
            spec=spec,
            network=network,
            structure=structure,
            history=History.from_description(description["history"]),
            provenance=read_provenance(description["provenance"]),
            state=TrainingState(state_tensors(file, network), description["state"]),
            context=None,
            missing=read_rates(spec, description["rates"]),
            gaps=gaps,
            reference=read_reference(file, REFERENCE, network if sketch is None else sketch.start, spec),
            sketch=sketch,
            compile_kwargs=compile_kwargs,
        )


def _model(model: pm.Model | None) -> pm.Model:
    try:
        return pm.modelcontext(model)
    except TypeError:
        raise TypeError(
            "model: a file holds no model; pass the one the posterior was trained for, or load it inside `with model:`"
        ) from None


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
    refuse_large_options(described["network"], len(file.keys()))
    start = read_network(file, lambda _: _described(described["network"], inputs.layout), SKETCH)
    quadratic, number = Quadratic.from_description(described["quadratic"], start.dim), described["number_drawn"]
    if not (isinstance(number, int) and 0 <= number <= len(quadratic.places)):
        raise ValueError(f"{number!r} of {len(quadratic.places)} parameters are drawn exactly")
    return Sketch(inputs, start, EachLogDensity(inputs.spec, gaps, band, compile_kwargs), quadratic, number)


def _described(
    description: Mapping[str, Any], expected: DataLayout, summary: nn.Module | None = None, density: Any = None
) -> PosteriorNetwork:
    network = PosteriorNetwork.from_description(description, summary=summary, density=density)
    refuse_other_layout(network.encoder.layout, expected)
    return network


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


def versions() -> dict[str, str]:
    """Versions of what a file depends on."""
    return {
        "pymc_amortized": version("pymc-amortized"),
        "pymc": pm.__version__,
        "torch": torch.__version__,
    }
