"""How unlike a model's simulations its data sets are: what training leaves for it, and where that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.inputs.data_inputs import DataInputs
from pymc_amortized.novelty.features import NoveltyFeatures, Summarizing
from pymc_amortized.novelty.scores import Reference, Score, Whitening
from pymc_amortized.numerics.kinds import KINDS

SCORE = tuple(field.name for field in fields(Score) if field.name != "whitening")
WHITENING = tuple(field.name for field in fields(Whitening))


def features_of(inputs: DataInputs, network: Summarizing, datasets: DataSets) -> np.ndarray:
    """Features (n, width) of data sets."""
    return NoveltyFeatures(network)(**inputs(datasets))


def extents(spec: ModelSpec, datasets: DataSets) -> np.ndarray:
    """What a data set is given: log lengths, shares of missing values, and scalar context; (n, k)."""
    columns = [np.log(datasets.lengths[r.dim]) for r in spec.sizes]
    for v in (v for v in spec.observed if v.missing):
        axes = tuple(range(1, datasets.missing[v.name].ndim))
        existing = (~datasets.outside(v)).sum(axes)
        columns.append(datasets.missing[v.name].sum(axes) / np.maximum(existing, 1))
    columns += [np.arcsinh(datasets.values[name].astype(float)) for name in _scalars(spec)]
    return np.stack(columns, axis=1) if columns else np.empty((len(datasets), 0))


def number_of_extents(spec: ModelSpec) -> int:
    """Return k of :func:`extents`."""
    return len(spec.sizes) + sum(v.missing for v in spec.observed) + len(_scalars(spec))


def _scalars(spec: ModelSpec) -> list[str]:
    return [c.name for c in spec.context if not c.shape and KINDS[c.kind].ordered]


def learn_reference(inputs: DataInputs, network: Summarizing, learned: Simulations, ranked: Simulations) -> Reference:
    """Learn the score from some simulations, and score others.

    Parameters
    ----------
    learned, ranked : Simulations
        Of contexts drawn from their sources. The network may have seen the first, not the second.
    """
    features = NoveltyFeatures(network)
    seen, fresh = of_simulations(learned), of_simulations(ranked)
    score = Score.fit(features(**inputs(seen)), extents(inputs.spec, seen), features.blocks)
    at = extents(inputs.spec, fresh)
    return Reference(score, score(features(**inputs(fresh)), at), at)


def reference_tensors(reference: Reference | None) -> dict[str, Tensor]:
    """Arrays of a reference by name, for a file."""
    if reference is None:
        return {}
    arrays = {"scores": reference.scores, "extents": reference.extents}
    arrays |= {f"score.{name}": getattr(reference.score, name) for name in SCORE}
    arrays |= {f"whitening.{name}": getattr(reference.score.whitening, name) for name in WHITENING}
    return {name: torch.as_tensor(np.ascontiguousarray(values, dtype=np.float64)) for name, values in arrays.items()}


def reference_of(tensors: Mapping[str, Tensor], width: int, extents: int) -> Reference | None:
    """Build a reference from the arrays of a file; None where it holds none.

    Parameters
    ----------
    width : int
        Of the features.
    extents : int
        Number of sizes and contexts that scores are conditional on.

    Raises
    ------
    ValueError
        When shapes do not fit together.
    """
    if not tensors:
        return None
    arrays = {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}
    count, kept = arrays["scores"].shape[0], arrays["whitening.rotation"].shape[1]
    design = 1 + 3 * extents + extents * (extents - 1) // 2
    wanted = {
        "scores": (count,),
        "extents": (count, extents),
        "score.center": (width,),
        "score.scale": (width,),
        "score.extent_center": (extents,),
        "score.extent_scale": (extents,),
        "score.trend": (design, width),
        "score.log_variance": (design, width),
        "whitening.mean": (width,),
        "whitening.rotation": (width, kept),
        "whitening.bend": (kept,),
        "whitening.unit": (kept,),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(f"array {name!r} of the reference has shape {arrays[name].shape}, expected {shape}")
    whitening = Whitening(**{name: arrays[f"whitening.{name}"] for name in WHITENING})
    score = Score(**{name: arrays[f"score.{name}"] for name in SCORE}, whitening=whitening)
    return Reference(score, arrays["scores"], arrays["extents"])
