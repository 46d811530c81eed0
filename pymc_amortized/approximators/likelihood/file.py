"""Likelihoods in files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood, LikelihoodKind
from pymc_amortized.approximators.likelihood.remembered import Forgotten
from pymc_amortized.approximators.storage.brought import Brought
from pymc_amortized.approximators.storage.codec import describe
from pymc_amortized.approximators.storage.models import Arguments, SavedModel, describe_variables
from pymc_amortized.approximators.storage.networks import SavedNetwork, read_state
from pymc_amortized.approximators.storage.save import contents
from pymc_amortized.graph.rows.finding import distribution_of, find_rows
from pymc_amortized.networks.rows.ratio_network import RatioNetwork
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.training import History, TrainingState


@dataclass(frozen=True)
class SavedLikelihood:
    """What a file holds of a likelihood."""

    model: SavedModel
    variable: str
    structure: tuple[str, ...]
    distribution: Any
    kind: LikelihoodKind
    layout: Layout
    size: RowSize
    weights: Mapping[str, Tensor]
    history: History
    state: TrainingState
    provenance: Provenance
    error: float | None
    forgotten: Forgotten | None


@contents.register
def likelihood_contents(likelihood: AmortizedLikelihood) -> SavedLikelihood:
    """Take from a likelihood what a file holds."""
    spec, rows, network = likelihood.spec, likelihood.rows, likelihood.network
    arguments = Arguments(tuple(v.name for v in spec.observed), context=tuple(c.name for c in spec.context))
    return SavedLikelihood(
        model=SavedModel(describe_variables(spec), arguments),
        variable=rows.variable.name,
        structure=rows.axis_kinds,
        distribution=distribution_of(spec, rows),
        kind=likelihood.kind,
        layout=network.layout,
        size=network.size,
        weights=network.state_dict(),
        history=likelihood.history,
        state=likelihood.state,
        provenance=likelihood.provenance,
        error=likelihood.error,
        forgotten=likelihood.forgotten,
    )


def read_likelihood(saved: SavedLikelihood, brought: Brought) -> AmortizedLikelihood:
    """Make a likelihood of what a file holds, and of the user's model."""
    model = brought.one_model()
    for what in ("summary", "density"):
        brought.check_network(what, own=False)
    spec = saved.model.read(model, brought, with_density=False)
    name = saved.variable
    rows = find_rows(spec, name, {name: saved.structure})
    given = describe(distribution_of(spec, rows))[0]
    if saved.distribution != given:
        raise ValueError(
            f"the model is not the one in the file: the distribution of {name!r} differs "
            f"({saved.distribution} in the file, {given} in the model)"
        )
    with brought.checking():
        layout = saved.layout
        numbers = [number for p in rows.parameters for number in p.numbers]
        if [p.name for p in layout.parameters] != numbers or len(layout.columns) != rows.columns:
            raise ValueError(
                f"its network is for {[p.name for p in layout.parameters]}, the model's rows for {numbers}"
            )
        _check_size(saved.size)
        made: type[RowNetwork | RatioNetwork] = RatioNetwork if saved.kind == "ratio" else RowNetwork
        network = SavedNetwork(None, saved.weights).build(lambda _: made(layout, saved.size))
        return AmortizedLikelihood(
            spec=spec,
            rows=rows,
            network=network,
            history=saved.history,
            provenance=saved.provenance,
            state=read_state(saved.state, network),
            error=saved.error,
            forgotten=saved.forgotten,
        )


def _check_size(size: RowSize) -> None:
    """Refuse options that are an attempt on the memory."""
    for name, largest in (("hidden", 4096), ("depth", 64), ("components", 1024)):
        if not 0 <= getattr(size, name) <= largest:
            raise ValueError(f"the file describes a network with {name} = {getattr(size, name)}")
