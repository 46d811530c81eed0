"""Comparisons in files, with the posteriors of their models. The models are the user's to bring, by name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pymc as pm
from torch import nn

from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.comparison.model_evidence import Kept
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.posterior.file import SavedPosterior, read_posterior
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.brought import Brought
from pymc_amortized.approximators.storage.models import SavedModel, check_rates, check_structure, plain_rates
from pymc_amortized.approximators.storage.networks import SavedNetwork, check_layout
from pymc_amortized.approximators.storage.save import contents
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.common import common_data
from pymc_amortized.graph.model.indices import index_limits
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.classifier import ClassifierNetwork
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.novelty.reference import check_reference, number_of_extents
from pymc_amortized.novelty.scores import Reference
from pymc_amortized.numerics.odds import Calibration, prior_weights
from pymc_amortized.training import History


@dataclass(frozen=True)
class SavedRival:
    """What a file holds of one of the models of a comparison."""

    name: str
    kept: Kept
    reference: Reference
    model: SavedPosterior | SavedModel


@dataclass(frozen=True)
class SavedComparison:
    """What a file holds of a comparison."""

    models: tuple[SavedRival, ...]
    rates: Mapping[str, float]
    prior: Mapping[str, float]
    calibration: Calibration
    error: float
    structure: Structure
    network: SavedNetwork
    history: History
    provenance: Provenance


@contents.register
def comparison_contents(comparison: AmortizedComparison) -> SavedComparison:
    """Take from a comparison what a file holds, with all posteriors."""
    return SavedComparison(
        models=tuple(_contents_of(comparison, name) for name in comparison.names),
        rates=plain_rates(comparison.missing),
        prior=comparison.prior,
        calibration=comparison.calibration,
        error=comparison.error,
        structure=comparison.structure,
        network=SavedNetwork.of(comparison.network),
        history=comparison.history,
        provenance=comparison.provenance,
    )


def _contents_of(comparison: AmortizedComparison, name: str) -> SavedRival:
    spec, given = comparison.specs[name], comparison.context
    if name in comparison.posteriors:
        model = contents(comparison.posteriors[name])
    else:
        sources = None if given is None else {c.name: given[c.name] for c in spec.context}
        model = SavedModel.of(spec, sources, comparison.provenance.entropy)
    return SavedRival(name, comparison.kept[name], comparison.references[name], model)


def read_comparison(saved: SavedComparison, brought: Brought) -> AmortizedComparison:
    """Make a comparison of what a file holds, and of the user's models."""
    brought.check_network("density", own=False)
    models = _models(brought.model, [rival.name for rival in saved.models])
    brought.check_network("summary", saved.network.is_own("summary"))
    specs: dict[str, ModelSpec] = {}
    posteriors: dict[str, AmortizedPosterior] = {}
    for rival in saved.models:
        own = replace(brought, model=models[rival.name], summary=None)
        try:
            if isinstance(own.model, AmortizedPosterior):  # of a call that trained with it
                posteriors[rival.name], specs[rival.name] = own.model, own.model.spec
            elif isinstance(rival.model, SavedPosterior):
                posteriors[rival.name] = read_posterior(rival.model, own, AmortizedPosterior)
                specs[rival.name] = posteriors[rival.name].spec
            else:
                specs[rival.name] = rival.model.read(models[rival.name], own)
        except ValueError as error:
            raise ValueError(f"model[{rival.name!r}]: {error}") from None
    common = common_data(specs, [index_limits(spec) for spec in specs.values()])
    with brought.checking():
        structure = check_structure(common.spec, saved.structure)
        network = _read_network(saved.network, Inputs(common.spec, structure).layout, len(specs), brought.summary)
        for rival in saved.models:
            check_reference(rival.reference, network, common.spec)
            _check_kept(rival.kept)
        _check_calibration(saved.calibration, number_of_extents(common.spec))
        return AmortizedComparison(
            specs=specs,
            common=common,
            network=network,
            structure=structure,
            prior=dict(zip(specs, prior_weights(saved.prior, list(specs)).tolist(), strict=True)),
            calibration=saved.calibration,
            references={rival.name: rival.reference for rival in saved.models},
            posteriors=posteriors,
            kept={rival.name: rival.kept for rival in saved.models},
            error=saved.error,
            history=saved.history,
            provenance=saved.provenance,
            missing=check_rates(common.spec, saved.rates),
            compile_kwargs=brought.compile_kwargs,
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


def _check_kept(kept: Kept) -> None:
    shares = 0 < kept.share <= 1 and 0 < kept.written <= 1
    if not shares or kept.attempted < 1 or not 0 <= kept.log_orderings < math.inf:
        raise ValueError(f"a share of {kept.share} of {kept.attempted} simulations was kept")


def _check_calibration(calibration: Calibration, extents: int) -> None:
    temperature, center, share = calibration.temperature, calibration.center, calibration.share
    if temperature.shape != (1 + extents,) or center.shape != (extents,) or not 0 < share < 1:
        raise ValueError(f"a calibration of shapes {temperature.shape} and {center.shape}, with a share of {share}")


def _read_network(
    saved: SavedNetwork, expected: DataLayout, classes: int, summary: nn.Module | None
) -> ClassifierNetwork:
    if saved.description["classes"] != classes:
        raise ValueError(f"it tells {saved.description['classes']} models apart, but describes {classes}")

    def make(own: Callable[[Any], Any]) -> ClassifierNetwork:
        network = ClassifierNetwork.from_description(saved.description, summary=own(summary))
        check_layout(network.encoder.layout, expected)
        return network

    return saved.build(make)
