"""What the network sees of a model's data."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.inputs.data_inputs import DataInputs
from pymc_amortized.inputs.sketch import Sketch
from pymc_amortized.networks import ArrayLayout, DataLayout
from pymc_amortized.networks.posterior_network import PosteriorNetwork

SKETCH, FRAME = "posterior sketch", "posterior frame"
"""Names of the arrays that :class:`Sketch` gives; no variable has them."""


@dataclass(frozen=True, eq=False)
class Inputs(DataInputs):
    """From data sets to the arrays that networks are given, with what the model's density tells of each posterior.

    Attributes
    ----------
    spec : ModelSpec
    structure : Structure
    sketch : Sketch, optional
        What the model's density tells of each posterior.
    """

    sketch: Sketch | None = None

    @property
    def layout(self) -> DataLayout:
        """Describes the arrays to the networks."""
        layout = super().layout
        if self.sketch is None:
            return layout
        statistics, frame, _ = self.sketch.widths
        told = (
            ArrayLayout(SKETCH, (statistics,), "real", statistic=True),
            ArrayLayout(FRAME, (frame,), "real", frame=True),
        )
        return replace(layout, arrays=layout.arrays + told)

    def __call__(self, datasets: DataSets) -> dict[str, Any]:
        """Return what varies between data sets, and arrays of the model that belong to rows.

        Returns
        -------
        dict
            ``data``: name -> (n, *shape), NaN where a value is missing. ``sizes``: name of an axis -> (n,).
        """
        datasets = self.sketched(datasets)
        given = super().__call__(datasets)
        if self.sketch is not None and datasets.extra is not None:
            data = given["data"]
            data[SKETCH], data[FRAME], _ = np.split(datasets.extra, np.cumsum(self.sketch.widths[:2]), axis=1)
        return given

    def summarized_by(self, network: PosteriorNetwork) -> tuple[DataInputs, PosteriorNetwork]:
        """What novelty is judged by: a network whose summary tells where the posterior lies, not what is left of it."""
        return (self, network) if self.sketch is None else (self.sketch.inputs, self.sketch.start)

    def sketched(self, datasets: DataSets) -> DataSets:
        """Return data sets with their sketch, where there is one: so that it is computed once."""
        if self.sketch is None or datasets.extra is not None:
            return datasets
        return replace(datasets, extra=self.sketch(datasets))
