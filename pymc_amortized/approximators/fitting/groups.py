"""Training what draws values of groups, by the groups of simulated data sets."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from pymc_amortized.approximators.fitting.plan import plan_posterior
from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.fitting.simulating import fixed_source, prepare_batch
from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import Unconstrain
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.structure.grouping import Plate, find_plates
from pymc_amortized.graph.structure.independence import ALIKE, refuse_dependent
from pymc_amortized.inputs.group_network import GroupInputs, GroupNetwork, dims_of, structure_of_group
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.logs import logger
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.numerics.location_scale import LocationScale
from pymc_amortized.training import Stopping, summary_line

MOST_GROUPS = 40_000
"""That a network is trained on."""
Check = Callable[[PosteriorNetwork, Inputs, Simulations, np.random.SeedSequence], None]
"""Looks at a network that was trained, by simulations that were held out."""


def train_groups(
    spec: ModelSpec, structure: Structure, made: Simulations, setup: Setup, check: Check
) -> tuple[GroupNetwork, ...]:
    """Train the networks of all plates of a model, by the groups of some simulations; a function looks at each.

    Raises
    ------
    ValueError
        Groups are not independent of each other, given the parameters.
    """
    refuse_dependent(spec, made.take(slice(ALIKE)), setup.seed(Stage.STRUCTURE, 3), setup.compile_kwargs)
    everything = replace(spec, parameters=spec.drawn, locals=())
    theta = Unconstrain(everything, setup.compile_kwargs)(made.variables | made.data)
    shapes = [p.unconstrained_at(spec.largest) for p in spec.locals]
    _, *columns = np.split(theta, np.cumsum([spec.dim, *map(math.prod, shapes)])[:-1], axis=1)
    values = {p.name: own.reshape(-1, *s) for p, own, s in zip(spec.locals, columns, shapes, strict=True)}
    whole = of_simulations(made), made.unconstrained, values
    return tuple(_train(plate, structure, *whole, setup, check) for plate in find_plates(spec))


def _train(
    plate: Plate,
    structure: Structure,
    datasets: DataSets,
    given: np.ndarray,
    values: Mapping[str, np.ndarray],
    setup: Setup,
    check: Check,
) -> GroupNetwork:
    groups = plate.cut(datasets)
    values = {p.name: groups.cut(values[p.name], dims_of(plate.spec, p.name)) for p in plate.of_group.drawn}
    theta = np.concatenate([values[p.name].reshape(len(groups.owner), -1) for p in plate.of_group.parameters], axis=1)
    inputs = GroupInputs(plate.of_group, structure_of_group(plate, structure), width=given.shape[1])
    own, beside = groups.datasets, given[groups.owner]
    scale = LocationScale.fit(beside, theta)
    mean, sd = scale(beside)
    made = Simulations((theta - mean) / sd, {}, own.values, len(theta), {}, own.lengths, own.missing, beside)
    is_held = groups.owner < len(datasets) // 10
    held, learned = (made.take(_some(part, setup)) for part in (is_held, ~is_held))
    logger.info(
        "Values along %r are learned from %s groups of %s simulations, given the parameters.",
        plate.dim,
        f"{len(learned):,}",
        f"{len(datasets):,}",
    )
    with setup.random_numbers():
        network = PosteriorNetwork.build(inputs.layout, learned.unconstrained, **inputs(of_simulations(learned)))
    network.to(setup.device)
    batch = prepare_batch(network, inputs, learned.unconstrained, learned, setup.device)
    few = learned.take(slice(setup.options.batch_size))
    options = setup.bounded  # the seconds that are left are shared with further plates, and the parameters
    shares = len(plate.all_plates) + 1
    options = options if options.max_time is None else replace(options, max_time=options.max_time / shares)
    steps = plan_posterior(
        network, lambda: prepare_batch(network, inputs, few.unconstrained, few, setup.device), 0.0, 1, options
    )
    stopping = Stopping() if setup.options.open_ended else None
    planned = replace(setup, options=steps.options, checkpoint=None)
    trained = planned.train(
        network,
        fixed_source(planned, batch, 0.0),
        prepare_batch(network, inputs, held.unconstrained, held, setup.device),
        last_layers=steps.last_layers,
        stopping=stopping,
    )
    level = logging.INFO if trained.settled else logging.WARNING
    logger.log(level, "Values along %r: %s", plate.dim, summary_line(trained))
    check(network, inputs, held, setup.seed(Stage.LOOP, 5))
    further, plates = np.concatenate([beside, theta], axis=1), find_plates(plate.of_group)
    below = tuple(_train(p, inputs.structure, own, further, values, setup, check) for p in plates)
    settled = trained.settled and all(one.settled for one in below)
    return GroupNetwork(plate, inputs, scale, network, below, settled)


def _some(part: np.ndarray, setup: Setup) -> np.ndarray:
    """Places of groups that are marked, in any order, as many as are worth it."""
    return np.random.default_rng(setup.seed(Stage.HELD_OUT)).permutation(np.flatnonzero(part))[:MOST_GROUPS]
