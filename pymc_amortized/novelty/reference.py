"""How unlike a model's simulations its data sets are: what training leaves for it, and where that is kept."""

from typing import Any

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.inputs.data_inputs import DataInputs
from pymc_amortized.novelty.features import NoveltyFeatures, Summarizing
from pymc_amortized.novelty.scores import Reference, Score
from pymc_amortized.numerics.kinds import KINDS

LEARNED, RANKED = 4096, 8192
"""Simulations that a score is learned from, and others that data are a rank among: p-values down to 1e-4."""
FEWEST, VALUES = 1024, 2**20
"""Of either, where all would have more values than this: of 1,000 rows some 1.3 microseconds each."""


def enough(inputs: DataInputs, most: int) -> int:
    """Return how many simulations are worth their time, by their size: counted, so that p-values can be repeated."""
    return int(np.clip(VALUES // max(inputs.layout.values, 1), FEWEST, most))


def features_of(inputs: DataInputs, network: Summarizing, datasets: DataSets) -> np.ndarray:
    """Features (n, width) of data sets."""
    return NoveltyFeatures(network).of(inputs, datasets)


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
        Of contexts drawn from their sources; the first ones of each are taken. The network may have seen the first
        set, not the second.
    """
    features = NoveltyFeatures(network)
    seen = of_simulations(learned.take(slice(enough(inputs, LEARNED))))
    fresh = of_simulations(ranked.take(slice(enough(inputs, RANKED))))
    score = Score.fit(features.of(inputs, seen), extents(inputs.spec, seen), features.blocks)
    at = extents(inputs.spec, fresh)
    return Reference(score, score(features.of(inputs, fresh), at), at)


def check_reference(reference: Reference, network: Summarizing, spec: ModelSpec) -> None:
    """Refuse a reference whose arrays do not fit together, or not a network and a model.

    Raises
    ------
    ValueError
        When an array has another shape.
    """
    width, extents = sum(NoveltyFeatures(network).blocks), number_of_extents(spec)
    score, whitening = reference.score, reference.score.whitening
    count, kept = len(reference.scores), whitening.rotation.shape[-1]
    terms = 1 + 3 * extents + extents * (extents - 1) // 2
    wanted: dict[Any, dict[str, tuple[int, ...]]] = {
        reference: {"scores": (count,), "extents": (count, extents)},
        score: {"center": (width,), "scale": (width,), "extent_center": (extents,), "extent_scale": (extents,)}
        | {"trend": (terms, width), "log_variance": (terms, width)},
        whitening: {"mean": (width,), "rotation": (width, kept), "bend": (kept,), "unit": (kept,)},
    }
    for owner, shapes in wanted.items():
        for name, shape in shapes.items():
            if getattr(owner, name).shape != shape:
                given = getattr(owner, name).shape
                raise ValueError(f"array {name!r} of the reference has shape {given}, expected {shape}")
