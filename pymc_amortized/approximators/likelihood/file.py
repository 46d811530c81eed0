"""Likelihoods in files: weights and a description, never code.

The format is that of posteriors (:mod:`pymc_amortized.approximators.load`). The model is the user's to bring, and is
compared with the one in the file by the same description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymc as pm
from torch import Tensor

from pymc_amortized.approximators import load as files
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.storage.models import describe_model, read_spec, refuse_other_model
from pymc_amortized.approximators.storage.networks import damage, read_network, state_tensors, write
from pymc_amortized.graph.rows.observed_rows import distribution_of, find_rows
from pymc_amortized.networks.rows.ratio_network import RatioNetwork
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.training import History, TrainingState

if TYPE_CHECKING:
    from pymc_amortized.graph.model.spec import ModelSpec

WHAT = "likelihood"
NETWORKS: dict[str, type[RowNetwork] | type[RatioNetwork]] = {"density": RowNetwork, "ratio": RatioNetwork}
"""By kind; older files hold densities."""
LARGEST = {"hidden": 4096, "depth": 64, "components": 1024}
"""Options beyond these are an attempt on the memory."""


def save(likelihood: AmortizedLikelihood, path: str | PathLike[str]) -> None:
    """Write a likelihood to a file; see :meth:`AmortizedLikelihood.save`."""
    write(path, *contents(likelihood))


def contents(likelihood: AmortizedLikelihood) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a likelihood."""
    spec, rows = likelihood.spec, likelihood.rows
    description = {
        "format": files.FORMAT,
        "what": WHAT,
        "kind": likelihood.kind,
        "versions": files.versions(),
        "model": describe_model(spec),
        "arguments": {"observed": [v.name for v in spec.observed], "context": [c.name for c in spec.context]},
        "variable": rows.variable.name,
        "structure": _structure(likelihood),
        "parameters": [p.name for p in rows.parameters],
        "distribution": distribution_of(spec, rows),
        "layout": likelihood.network.layout.description(),
        "size": asdict(likelihood.network.size),
        "history": likelihood.history.description(),
        "state": likelihood.state.values,
        "provenance": {
            **asdict(likelihood.provenance),
            "training": likelihood.provenance.training.description(),
        },
        "error": likelihood.error,
    }
    tensors = {f"network.{k}": v for k, v in likelihood.network.state_dict().items()}
    tensors |= {f"state.{k}": v for k, v in likelihood.state.tensors.items()}
    return description, tensors


def _structure(likelihood: AmortizedLikelihood) -> list[str]:
    rows = likelihood.rows
    kinds = ["exchangeable"] * rows.batch_ndim + ["sequence"] * rows.series
    return kinds + ["features"] * len(rows.event_shape)


def read(file: Any, path: Path, description: Mapping[str, Any], model: pm.Model) -> AmortizedLikelihood:
    """Read what :func:`save` wrote; called by :func:`pymc_amortized.load`."""
    with damage(path):
        arguments = {name: list(map(str, description["arguments"][name])) for name in ("observed", "context")}
        arguments |= {"parameters": [rv.name for rv in model.free_RVs if rv.name not in arguments["observed"]]}
        saved = dict(description["model"])
        name = str(description["variable"])
        structure = {name: [str(kind) for kind in description["structure"]]}
    spec: ModelSpec = read_spec(model, arguments | {"missing": []}, [])
    refuse_other_model(saved, describe_model(spec))
    rows = find_rows(spec, name, structure)
    given = distribution_of(spec, rows)
    if description.get("distribution", given) != given:
        raise ValueError(
            f"the model is not the one in the file: the distribution of {name!r} differs "
            f"({description['distribution']} in the file, {given} in the model)"
        )
    with damage(path):
        layout = Layout.from_description(description["layout"])
        numbers = [number for p in rows.parameters for number in p.numbers]
        if [p.name for p in layout.parameters] != numbers or len(layout.columns) != rows.columns:
            raise ValueError(
                f"its network is for {[p.name for p in layout.parameters]}, the model's rows for {numbers}"
            )
        made, size = NETWORKS[description.get("kind", "density")], _size(description["size"])
        network = read_network(file, lambda _: made(layout, size))
        return AmortizedLikelihood(
            spec=spec,
            rows=rows,
            network=network,
            history=History.from_description(description["history"]),
            provenance=files.read_provenance(description["provenance"]),
            state=TrainingState(state_tensors(file, network), description["state"]),
            error=description["error"],
        )


def _size(described: Mapping[str, Any]) -> RowSize:
    size = RowSize(**{name: int(value) for name, value in described.items()})
    for name, largest in LARGEST.items():
        if not 0 <= getattr(size, name) <= largest:
            raise ValueError(f"the file describes a network with {name} = {getattr(size, name)}")
    return size
