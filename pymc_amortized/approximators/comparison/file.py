"""Comparisons in files: weights and a description, never code.

The format is that of posteriors (:mod:`pymc_amortized.approximators.load`), and the posteriors of the models are in
the same file. The models are the user's to bring, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
from torch import nn

from pymc_amortized.approximators import load as files
from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.comparison.model_evidence import Kept
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.models import (
    model_contents,
    rates,
    read_described,
    read_rates,
    read_structure,
)
from pymc_amortized.approximators.storage.networks import (
    Part,
    damage,
    read_network,
    read_reference,
    refuse_large_options,
    refuse_other_layout,
    refuse_other_modules,
    write,
)
from pymc_amortized.graph.model.common import common_data
from pymc_amortized.graph.model.indices import index_limits
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.novelty.reference import number_of_extents, reference_tensors
from pymc_amortized.novelty.scores import Reference
from pymc_amortized.numerics.odds import Calibration, prior_weights
from pymc_amortized.training import History

WHAT = "comparison"


def save(comparison: AmortizedComparison, path: str | PathLike[str]) -> None:
    """Write a comparison to a file; see :meth:`AmortizedComparison.save`."""
    tensors = {f"network.{k}": v for k, v in comparison.network.state_dict().items()}
    described: list[dict[str, Any]] = []
    for k, (name, spec) in enumerate(comparison.specs.items()):
        posterior = comparison.posteriors.get(name)
        entry: dict[str, Any] = {"name": name, "kept": asdict(comparison.kept[name])}
        tensors |= {f"{k}.novelty.{n}": v for n, v in reference_tensors(comparison.references[name]).items()}
        if posterior is not None:
            entry["posterior"], own = files.contents(posterior)
            tensors |= {f"{k}.posterior.{n}": v for n, v in own.items()}
        else:
            given = comparison.context
            sources = None if given is None else {c.name: given[c.name] for c in spec.context}
            entry["model"], own = model_contents(spec, sources, comparison.provenance.entropy)
            tensors |= {f"{k}.{n}": v for n, v in own.items()}
        described.append(entry)
    calibration = comparison.calibration
    description = {
        "format": files.FORMAT,
        "what": WHAT,
        "versions": files.versions(),
        "models": described,
        "rates": rates(comparison.missing),
        "prior": dict(comparison.prior),
        "calibration": {
            "temperature": calibration.temperature.tolist(),
            "center": calibration.center.tolist(),
            "share": calibration.share,
        },
        "error": None if math.isnan(comparison.error) else comparison.error,
        "structure": asdict(comparison.structure),
        "network": comparison.network.description(),
        "history": comparison.history.description(),
        "provenance": {
            **asdict(comparison.provenance),
            "training": comparison.provenance.training.description(),
        },
    }
    write(path, description, tensors)


def read(
    file: Any,
    path: Path,
    description: Mapping[str, Any],
    models: Any,
    summary: nn.Module | None,
    compile_kwargs: CompileKwargs | None,
) -> AmortizedComparison:
    """Read what :func:`save` wrote; called by :func:`pymc_amortized.load`."""
    with damage(path):
        described = {str(entry["name"]): entry for entry in description["models"]}
    models = _models(models, list(described))
    refuse_other_modules(description.get("network"), path, summary=summary)
    specs: dict[str, ModelSpec] = {}
    posteriors: dict[str, AmortizedPosterior] = {}
    for k, (name, entry) in enumerate(described.items()):
        try:
            if "posterior" in entry:
                part = Part(file, f"{k}.posterior.")
                posteriors[name] = files.read_posterior(
                    part, path, entry["posterior"], models[name], None, None, compile_kwargs
                )
                specs[name] = posteriors[name].spec
            else:
                specs[name] = read_described(Part(file, f"{k}."), path, entry["model"], models[name], compile_kwargs)
        except ValueError as error:
            raise ValueError(f"model[{name!r}]: {error}") from None
    common = common_data(specs, [index_limits(spec) for spec in specs.values()])
    with damage(path):
        structure = read_structure(common.spec, description["structure"])
        network = _network(file, description["network"], Inputs(common.spec, structure).layout, len(specs), summary)
        off = description["error"]
        return AmortizedComparison(
            specs=specs,
            common=common,
            network=network,
            structure=structure,
            prior=dict(zip(specs, prior_weights(description["prior"], list(specs)).tolist(), strict=True)),
            calibration=_calibration(description["calibration"], number_of_extents(common.spec)),
            references={name: _reference(file, k, network, common.spec) for k, name in enumerate(specs)},
            posteriors=posteriors,
            kept={name: _kept(entry["kept"]) for name, entry in described.items()},
            error=math.nan if off is None else float(off),
            history=History.from_description(description["history"]),
            provenance=files.read_provenance(description["provenance"]),
            missing=read_rates(common.spec, description["rates"]),
            compile_kwargs=compile_kwargs,
        )


def _models(given: Any, names: list[str]) -> dict[str, pm.Model]:
    if not isinstance(given, Mapping):
        raise TypeError(
            f"model: the file holds a comparison of {names}: pass these models by name, as in "
            f"model={{{names[0]!r}: ..., ...}}; got {type(given).__name__}"
        )
    if set(given) != set(names):
        raise KeyError(f"model: {sorted(map(str, given))} given; the file holds a comparison of {names}")
    return dict(given)


def _kept(described: Mapping[str, Any]) -> Kept:
    kept = Kept(float(described["share"]), int(described["attempted"]), float(described["log_orderings"]))
    if not 0 < kept.share <= 1 or kept.attempted < 1 or not 0 <= kept.log_orderings < math.inf:
        raise ValueError(f"a share of {kept.share} of {kept.attempted} simulations was kept")
    return kept


def _calibration(described: Mapping[str, Any], extents: int) -> Calibration:
    temperature = np.array(described["temperature"], dtype=float)
    center, share = np.array(described["center"], dtype=float), float(described["share"])
    if temperature.shape != (1 + extents,) or center.shape != (extents,) or not 0 < share < 1:
        raise ValueError(f"a calibration of shapes {temperature.shape} and {center.shape}, with a share of {share}")
    return Calibration(temperature, center, share)


def _reference(file: Any, k: int, network: ClassifierNetwork, spec: ModelSpec) -> Reference:
    reference = read_reference(file, f"{k}.novelty.", network, spec)
    if reference is None:
        raise KeyError(f"the reference of model {k}")
    return reference


def _network(
    file: Any, description: Mapping[str, Any], expected: Any, classes: int, summary: nn.Module | None
) -> ClassifierNetwork:
    """Build the described network and fill it, after comparing sizes and dtypes tensor by tensor."""
    refuse_large_options(description, len(file.keys()))
    if description["classes"] != classes:
        raise ValueError(f"it tells {description['classes']} models apart, but describes {classes}")

    def make(own: Callable[[Any], Any]) -> ClassifierNetwork:
        network = ClassifierNetwork.from_description(description, summary=own(summary))
        refuse_other_layout(network.encoder.layout, expected)
        return network

    return read_network(file, make)
