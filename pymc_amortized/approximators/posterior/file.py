"""Posteriors in files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.approximators.storage.brought import Brought
from pymc_amortized.approximators.storage.models import SavedModel, check_rates, check_structure, plain_rates
from pymc_amortized.approximators.storage.networks import SavedNetwork, check_layout, read_state
from pymc_amortized.approximators.storage.save import contents
from pymc_amortized.graph.density.each import WIDEST
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.structure.grouping import find_plates
from pymc_amortized.inputs.group_network import GroupInputs, GroupNetwork, structure_of_group
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import Sketch, densities
from pymc_amortized.logs import logger
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.novelty.reference import check_reference
from pymc_amortized.novelty.scores import Reference
from pymc_amortized.numerics.location_scale import LocationScale
from pymc_amortized.numerics.quadratic import Quadratic
from pymc_amortized.training import History, TrainingState


@dataclass(frozen=True)
class SavedSketch:
    """What a file holds of a sketch."""

    network: SavedNetwork
    band: int | None
    quadratic: Quadratic
    number_drawn: int


@dataclass(frozen=True)
class SavedGroups:
    """What a file holds of what draws the values of a plate's groups."""

    dim: str
    scale: LocationScale
    network: SavedNetwork
    below: tuple["SavedGroups", ...]

    @classmethod
    def of(cls, groups: GroupNetwork) -> "SavedGroups":
        """Take from the network of a plate what a file holds."""
        below = tuple(map(cls.of, groups.below))
        return cls(groups.plate.dim, groups.scale, SavedNetwork.of(groups.network), below)


@dataclass(frozen=True)
class SavedPosterior:
    """What a file holds of a posterior."""

    model: SavedModel
    gaps: Mapping[str, Rule | None]
    rates: Mapping[str, float]
    structure: Structure
    network: SavedNetwork
    sketch: SavedSketch | None
    reference: Reference | None
    history: History
    state: TrainingState
    provenance: Provenance
    groups: tuple[SavedGroups, ...]


@contents.register
def posterior_contents(posterior: TrainedPosterior) -> SavedPosterior:
    """Take from a posterior what a file holds."""
    if posterior.local_to is not None:
        raise ValueError(
            "a refined posterior is that of one data set and is not saved: save its draws "
            "(posterior.sample().to_netcdf(path)), or the amortized posterior it came from"
        )
    if posterior.learned is not None:
        logger.warning(
            "The learned likelihood that corrects this posterior's draws is not in its file: save both by "
            "AmortizedJoint.save."
        )
    sketch = posterior.sketch
    return SavedPosterior(
        model=SavedModel.of(posterior.spec, posterior.context, posterior.provenance.entropy),
        gaps=posterior.gaps,
        rates=plain_rates(posterior.missing),
        structure=posterior.structure,
        network=SavedNetwork.of(posterior.network),
        sketch=None
        if sketch is None
        else SavedSketch(SavedNetwork.of(sketch.start), sketch.density.band, sketch.quadratic, sketch.number_drawn),
        reference=posterior.reference,
        history=posterior.history,
        state=posterior.state,
        provenance=posterior.provenance,
        groups=tuple(map(SavedGroups.of, posterior.groups)),
    )


def read_posterior[P: TrainedPosterior](saved: SavedPosterior, brought: Brought, kind: type[P]) -> P:
    """Make a posterior of what a file holds, and of the user's model."""
    spec = saved.model.read(brought.one_model(), brought)
    for what in ("summary", "density"):
        brought.check_network(what, saved.network.is_own(what))
    with brought.checking():
        inputs = Inputs(spec, check_structure(spec, saved.structure))
        sketch = _read_sketch(saved, inputs, brought.compile_kwargs)
        layout = replace(inputs, sketch=sketch).layout
        network = _read_network(saved.network, layout, brought)
        if network.places != (expected_places := None if sketch is None else sketch.learned):
            raise ValueError(f"the network is one of the parameters at {network.places}, not {expected_places}")
        if saved.reference is not None:
            check_reference(saved.reference, network if sketch is None else sketch.start, spec)
        return kind(
            spec=spec,
            network=network,
            structure=saved.structure,
            history=saved.history,
            provenance=saved.provenance,
            state=read_state(saved.state, network),
            context=None,
            missing=check_rates(spec, saved.rates),
            gaps=_check_gaps(spec, saved.gaps),
            reference=saved.reference,
            sketch=sketch,
            compile_kwargs=brought.compile_kwargs,
            groups=_read_groups(saved.groups, spec, inputs.structure, spec.dim),
        )


def _read_groups(
    saved: tuple[SavedGroups, ...], spec: ModelSpec, structure: Structure, width: int
) -> tuple[GroupNetwork, ...]:
    """Read what draws the values of groups; they are given so many numbers beside their data."""
    plates = find_plates(spec) if spec.density_obstacle is not None else ()
    if [one.dim for one in saved] != [plate.dim for plate in plates]:
        raise ValueError(f"the groups along {[one.dim for one in saved]} are not those of the model")
    found = []
    for one, plate in zip(saved, plates, strict=True):
        inputs = GroupInputs(plate.of_group, structure_of_group(plate, structure), width=width)
        network = _read_network(one.network, inputs.layout)
        if network.dim != plate.of_group.dim:
            raise ValueError(f"the network of the groups along {plate.dim!r} is of {network.dim} values")
        one.scale.check(width, network.dim)
        below = _read_groups(one.below, plate.of_group, inputs.structure, width + network.dim)
        found.append(GroupNetwork(plate, inputs, one.scale, network, below))
    return tuple(found)


def _check_gaps(spec: ModelSpec, gaps: Mapping[str, Rule | None]) -> Mapping[str, Rule | None]:
    wanted = {v.name for v in spec.observed if v.missing}
    if set(gaps) != wanted:
        raise KeyError(f"the gaps of {sorted(wanted)}")
    return gaps


def _read_sketch(saved: SavedPosterior, inputs: Inputs, compile_kwargs: CompileKwargs | None) -> Sketch | None:
    """Read what posteriors are sketched from."""
    sketch = saved.sketch
    if sketch is None:
        return None
    if sketch.band is not None and not 0 <= sketch.band <= WIDEST:
        raise ValueError(f"the band of missing values is {sketch.band!r}")
    start = _read_network(sketch.network, inputs.layout)
    quadratic, number = sketch.quadratic, sketch.number_drawn
    quadratic.check(start.dim)
    if not 0 <= number <= len(quadratic.places):
        raise ValueError(f"{number!r} of {len(quadratic.places)} parameters are drawn exactly")
    gaps = _check_gaps(inputs.spec, saved.gaps)
    return Sketch(inputs, start, densities(inputs.spec, gaps, compile_kwargs, sketch.band), quadratic, number)


def _read_network(saved: SavedNetwork, layout: DataLayout, brought: Brought | None = None) -> PosteriorNetwork:
    def make(own: Callable[[Any], Any]) -> PosteriorNetwork:
        given = {} if brought is None else {"summary": own(brought.summary), "density": own(brought.density)}
        network = PosteriorNetwork.from_description(saved.description, **given)
        check_layout(network.encoder.layout, layout)
        return network

    return saved.build(make)
