"""What is chosen before training: whether posteriors are sketched by the model's density, and the networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.fitting.simulating import PILOT
from pymc_amortized.correction.proposals import MOST_PARAMETERS
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import (
    SLOWEST,
    SLOWEST_WITH_LOCALS,
    Sketch,
    make_sketch,
    seconds_for_each,
    share_out_of_reach,
)
from pymc_amortized.logs import logger
from pymc_amortized.networks.posterior_network import DensityChoice, PosteriorNetwork, SummaryChoice
from pymc_amortized.training.options import DEFAULT_SECONDS, SHORT_SECONDS

MOST_ELSEWHERE = 0.02
"""Share of simulations with parameters in a mode that the sketch does not know, of 256: networks that begin at its mode
learn the other one badly."""
MOST_ELSEWHERE_WITH_LOCALS = 0.2
"""The same where networks learn much worse without: of few groups, posteriors of scales have long tails."""


@dataclass(frozen=True)
class Cost:
    """What something takes."""

    seconds: float


@dataclass(frozen=True)
class Sketched:
    """A sketch that was chosen.

    Attributes
    ----------
    sketch : Sketch
    seconds : float
        For each data set.
    known : ndarray (n, width)
        What it says of the first simulations of the pilot, as far as that is known already.
    """

    sketch: Sketch
    seconds: float
    known: np.ndarray

    @classmethod
    def by(cls, sketch: Sketch, pilot: Simulations) -> Self:
        """Find out what a sketch takes."""
        return cls(sketch, *seconds_for_each(sketch.of_simulations, pilot))

    def of_all(self, pilot: Simulations, cores: int) -> Simulations:
        """The pilot with what the sketch says of it."""
        rest = self.sketch.of_simulations(pilot.take(slice(len(self.known), None)), cores)
        return replace(pilot, extra=np.concatenate([self.known[: len(pilot)], rest]))


def seconds_of_training(inputs: Inputs) -> float:
    """Seconds that training takes, unless the user or what is learned says otherwise."""
    spec = inputs.spec
    # by NUTS, or by mixtures of few parameters, whatever the network
    corrected = spec.density_obstacle is None and (spec.dim > MOST_PARAMETERS or bool(spec.locals))
    return DEFAULT_SECONDS if inputs.sketch is None and not corrected else SHORT_SECONDS


def choose_sketch(
    inputs: Inputs,
    gaps: Mapping[str, Rule | None],
    pilot: Simulations,
    setup: Setup,
    *,
    wanted: bool | None,
    most: Callable[[float], float],
    learns_all: bool,
) -> Sketched | None:
    """Make a sketch, unless there is none or it takes too long.

    Parameters
    ----------
    inputs : Inputs
        What networks are given without it.
    gaps : mapping of name to rule
    pilot : Simulations
        That would be sketched.
    setup : Setup
    wanted : bool or None
        True refuses models of which there is no sketch, and takes it however long it takes.
    most : callable
        Seconds for each data set -> how many may be sketched before training.
    learns_all : bool
        Whether the network learns what could be drawn exactly, too.

    """
    with setup.random_numbers():
        made = make_sketch(inputs.spec, inputs.structure, gaps, pilot.take(slice(PILOT)), setup.compile_kwargs)
    if isinstance(made, str):
        if wanted:
            raise ValueError(f"sketch=True: the posterior cannot be sketched by the density: {made}")
        logger.info("Posteriors are not sketched by the density: %s.", made)
        return None
    measured, numbers = seconds_for_each(made.of_simulations, pilot)
    seconds = setup.decide("sketch", Cost, lambda: Cost(measured)).seconds
    elsewhere = share_out_of_reach(made, pilot, numbers, inputs.structure.symmetries)
    if wanted is None and elsewhere > (MOST_ELSEWHERE_WITH_LOCALS if inputs.spec.locals else MOST_ELSEWHERE):
        logger.info(
            "Posteriors are not sketched by the density: %.0f%% of simulated parameters lie in another mode than the "
            "one it finds.",
            100 * elsewhere,
        )
        return None
    slowest = SLOWEST_WITH_LOCALS if inputs.spec.locals else SLOWEST
    if wanted is None and (seconds > slowest or len(pilot) > most(seconds)):
        logger.info(
            "Posteriors are not sketched by the density, which would take %.2g ms for each of %d data sets before "
            "training (sketch=True does it all the same).",
            1e3 * seconds,
            len(pilot),
        )
        return None
    sketch = replace(made, number_drawn=0) if learns_all else made
    logger.info(
        "Posteriors are sketched by the density, in %.2g ms for each data set%s.",
        1e3 * seconds,
        _exactly(inputs.spec, sketch),
    )
    return Sketched(sketch, seconds, numbers if sketch is made else np.empty((0, sum(sketch.widths))))


def build_network(
    inputs: Inputs,
    some: Simulations,
    summary: SummaryChoice,
    density: DensityChoice,
    levels: tuple[int, ...] | None = None,
) -> PosteriorNetwork:
    """Choose the networks, and start them at what some simulations say.

    Initialization takes random numbers from torch's global generator.

    Parameters
    ----------
    inputs : Inputs
        What they are given of data.
    some : Simulations
    summary, density
        The user's choices, or the options of networks trained before.
    levels : tuple of int, optional
        Level of each parameter in the model's hierarchy.
    """
    return PosteriorNetwork.build(
        inputs.layout,
        some.unconstrained,
        **inputs(of_simulations(some)),
        summary=summary,
        density=density,
        levels=levels,
        standardizer=None if inputs.sketch is None else inputs.sketch.start.standardizer,
        places=None if inputs.sketch is None else inputs.sketch.learned,
        symmetries=inputs.structure.symmetries,
    )


def _exactly(spec: ModelSpec, sketch: Sketch) -> str:
    """Say which parameters are drawn exactly."""
    if not sketch.number_drawn:
        return ""
    names = np.array([p.name for p in spec.parameters for _ in range(p.size)])[sketch.drawn.places]
    learned = spec.dim - sketch.number_drawn
    return (
        f"; {sketch.number_drawn} of {spec.dim} parameters ({', '.join(dict.fromkeys(names))}) are drawn exactly, and "
        f"the network learns the other {learned}"
    )
