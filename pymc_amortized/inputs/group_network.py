"""Values of groups where no density draws them: a network that is shared by all groups of a plate.

Given the parameters, groups are independent of each other. So the posterior of a group's values is one of its own data
and of the parameters alone. A network of it draws all groups of a data set at once, whatever their number. Groups
within these have a network of their own, given the values of the groups that they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.graph.model.spec import ModelSpec, Parameter
from pymc_amortized.graph.structure.grouping import Plate
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks import ArrayLayout, DataLayout
from pymc_amortized.networks.frame import Context
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.networks.summary.summary_network import SummaryNetwork
from pymc_amortized.numerics.location_scale import LocationScale
from pymc_amortized.training import torch_threads
from pymc_amortized.training.device import torch_generator

GIVEN = "given parameters"
"""Name of the array that holds the unconstrained parameters, and the values of groups further up."""
AT_ONCE = 2**14
"""Groups of which values are drawn at once."""


@dataclass(frozen=True, eq=False)
class GroupInputs(Inputs):
    """What the network of a plate is given: a group's own data, and so many numbers that are given beside them."""

    width: int = 0

    @property
    def layout(self) -> DataLayout:
        """Describes the arrays to the network."""
        layout = super().layout
        return replace(layout, arrays=(*layout.arrays, ArrayLayout(GIVEN, (self.width,), "real", statistic=True)))

    def __call__(self, datasets: DataSets) -> dict[str, Any]:
        """Return the data of groups; what is given are their further numbers."""
        known = super().__call__(datasets)
        return known | {"data": known["data"] | {GIVEN: datasets.extra}}


@dataclass(frozen=True, eq=False)
class GroupNetwork:
    """Draws the values of the groups of a plate, given the parameters and each group's own data.

    Attributes
    ----------
    plate : Plate
    inputs : GroupInputs
    scale : LocationScale
        What values are standardized by, given the parameters.
    network : PosteriorNetwork
        Of standardized values.
    below : tuple of GroupNetwork
        Of the plates within this one.
    settled : bool
        Whether its training settled, and that of those below; files tell it of the whole posterior.
    """

    plate: Plate
    inputs: GroupInputs
    scale: LocationScale
    network: PosteriorNetwork
    below: tuple[GroupNetwork, ...] = ()
    settled: bool = True

    def draw(self, datasets: DataSets, given: np.ndarray, generator: torch.Generator) -> dict[str, np.ndarray]:
        """Draw unconstrained values of all groups, name -> (data sets, *shape, draws).

        Parameters
        ----------
        datasets : DataSets
        given : ndarray (draws, data sets, width)
            Unconstrained parameters, then values of groups further up.
        generator : torch.Generator
            On the network's device.
        """
        groups = self.plate.cut(datasets)
        given = given[:, groups.owner]
        theta = self._drawn(groups.datasets, given, generator)
        parts = np.split(theta.transpose(1, 2, 0), np.cumsum([p.size for p in self._own])[:-1], axis=1)
        drawn = {
            p.name: part.reshape(len(part), *p.unconstrained_shape, -1)
            for p, part in zip(self._own, parts, strict=True)
        }
        for one in self.below:
            drawn |= one.draw(groups.datasets, np.concatenate([given, theta], axis=-1), generator)
        return {name: groups.joined(values, dims_of(self.plate.spec, name)) for name, values in drawn.items()}

    @property
    def _own(self) -> tuple[Parameter, ...]:
        return self.plate.of_group.parameters

    def _drawn(self, groups: DataSets, given: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Draw (draws, groups, dim); data are summarized once for all draws."""
        network, (draws, number, width) = self.network, given.shape
        summary = network.summary
        assert isinstance(summary, SummaryNetwork)
        with torch.inference_mode(), torch_threads(1):
            encoded = network.encode(**self.inputs(replace(groups, extra=np.zeros((number, width)))))
            reduced = summary.reduced({name: values.float().to(network.device) for name, values in encoded.items()})
            parts, at_once = [], max(AT_ONCE // max(number, 1), 1)
            for first in range(0, draws, at_once):
                some = torch.from_numpy(given[first : first + at_once])
                told = network.encoder.one(GIVEN, some.reshape(-1, width)).float().to(network.device)
                repeated = {name: values.repeat(len(some), 1) for name, values in reduced.items()}
                context = Context(summary(summary.told(repeated, {GIVEN: told})), None)
                theta = network.sample_within(1, context, generator)[0]
                parts.append(theta.reshape(len(some), number, -1))
        mean, sd = self.scale(given)
        return mean + sd * torch.cat(parts).numpy()


def draw_groups(
    spec: ModelSpec, networks: Sequence[GroupNetwork], theta: np.ndarray, one: DataSets, rng: np.random.Generator
) -> np.ndarray:
    """Draw all locals (n, number) of one data set, given each of theta (n, dim)."""
    generator = torch_generator(np.random.SeedSequence(int(rng.integers(2**63))), networks[0].network.device)
    drawn: dict[str, np.ndarray] = {}
    for network in networks:
        drawn |= network.draw(one, theta[:, None], generator)
    return np.concatenate([drawn[p.name].reshape(-1, len(theta)).T for p in spec.locals], axis=1)


def structure_of_group(plate: Plate, structure: Structure) -> Structure:
    """Axes of the data of one group, by those of the whole: rows that an index put into groups are alike now."""
    names = {v.name for v in plate.of_group.data}

    def of_group(axis: Axis) -> Axis:
        carriers = tuple(pair for pair in axis.carriers if pair[0] in names)
        if axis.index in plate.picks:
            return replace(axis, kind="exchangeable", index=None, groups=0, carriers=carriers)
        return replace(axis, carriers=carriers)

    axes = [of_group(axis) for axis in structure.axes if axis.name != plate.dim]
    return Structure(tuple(axis for axis in axes if axis.carriers), structure.shapes)


def dims_of(spec: ModelSpec, name: str) -> tuple[str | None, ...]:
    """For each axis of a local, the dim whose length differs."""
    return next(p.sized for p in spec.locals if p.name == name)
