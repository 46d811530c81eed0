"""Joint trainings in files: those of a posterior and of a likelihood in one, each part under a prefix of its own."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import pymc as pm
from torch import Tensor, nn

from pymc_amortized.approximators import load as files
from pymc_amortized.approximators.joint.joint import AmortizedJoint, learned_posterior
from pymc_amortized.approximators.likelihood import file as likelihood_files
from pymc_amortized.approximators.storage.networks import Part, damage, write
from pymc_amortized.graph.model.tensors import CompileKwargs

WHAT = "joint"
PARTS = ("posterior", "likelihood")


def save(joint: AmortizedJoint, path: str | PathLike[str]) -> None:
    """Write both to a file; see :meth:`AmortizedJoint.save`."""
    contents = (files.contents(joint.posterior), likelihood_files.contents(joint.likelihood))
    description: dict[str, Any] = {"format": files.FORMAT, "what": WHAT, "versions": files.versions()}
    description["corrected by the learned likelihood"] = joint.posterior.learned is not None
    tensors: dict[str, Tensor] = {}
    for part, (described, held) in zip(PARTS, contents, strict=True):
        description[part] = described
        tensors |= {f"{part}/{name}": tensor for name, tensor in held.items()}
    write(path, description, tensors)


def read(
    file: Any,
    path: Path,
    description: Mapping[str, Any],
    model: pm.Model,
    *,
    summary: nn.Module | None,
    density: Any,
    compile_kwargs: CompileKwargs | None,
) -> AmortizedJoint:
    """Read what :func:`save` wrote; called by :func:`pymc_amortized.load`."""
    with damage(path):
        described = [dict(description[part]) for part in PARTS]
        learned = bool(description["corrected by the learned likelihood"])
    posterior = files.read_posterior(
        Part(file, f"{PARTS[0]}/"), path, described[0], model, summary, density, compile_kwargs
    )
    likelihood = likelihood_files.read(Part(file, f"{PARTS[1]}/"), path, described[1], model)
    return AmortizedJoint(learned_posterior(posterior, likelihood) if learned else posterior, likelihood)
