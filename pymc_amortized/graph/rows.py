"""Whether the rows of the data can be told apart.

Rows are exchangeable when permuting them, together with the covariates that belong to them, leaves the model's joint
log density unchanged. That is tested on simulated data, where (unlike for placeholder zeros) a permutation changes
the arrays. Then a summary network may treat the data as a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_amortized.graph.density import LogDensity
from pymc_amortized.graph.simulator import Simulations
from pymc_amortized.graph.spec import ModelSpec

TRIALS = 16
TOLERANCE = 1e-8
"""Relative difference of log densities that rounding explains (sums of some thousand float64 terms)."""


@dataclass(frozen=True)
class Rows:
    """What was found about the leading axis of the data.

    Attributes
    ----------
    names : tuple of str
        Variables whose leading axis holds exchangeable rows; empty where there are none.
    length : int
        Number of rows.
    reason : str
        Why this was concluded.
    """

    names: tuple[str, ...]
    length: int
    reason: str

    def __bool__(self) -> bool:
        return bool(self.names)

    def __str__(self) -> str:
        if not self:
            return f"no exchangeable rows: {self.reason}"
        return f"{self.length} exchangeable rows of {', '.join(self.names)}: {self.reason}"


def find_rows(spec: ModelSpec, simulations: Simulations, log_density: LogDensity, seed: np.random.SeedSequence) -> Rows:
    """Look for an exchangeable leading axis shared by all observed variables.

    Parameters
    ----------
    spec : ModelSpec
    simulations : Simulations
        At least a handful; the first 16 are used.
    log_density : LogDensity
    seed : numpy.random.SeedSequence
        For the permutations.
    """
    lengths = {v.shape[:1] for v in spec.observed}
    if len(lengths) != 1 or () in lengths or (1,) in lengths:
        return Rows((), 0, "the observed variables share no axis with more than one row")
    if spec.density_obstacle is not None:
        return Rows((), 0, f"it cannot be tested, {spec.density_obstacle}")
    (length,) = lengths.pop()
    rowwise = tuple(v.name for v in (*spec.data, *spec.fixed) if v.shape[:1] == (length,))
    rng = np.random.default_rng(seed)
    moved = False
    for i in range(min(TRIALS, len(simulations))):
        data = {**spec.held, **{name: values[i] for name, values in simulations.data.items()}}
        order = rng.permutation(length)
        permuted = {**data, **{name: data[name][order] for name in rowwise}}
        moved |= any(not np.array_equal(data[v.name], permuted[v.name]) for v in spec.observed)
        theta = simulations.unconstrained[i : i + 1]
        before, after = (float(log_density(theta, d)[0]) for d in (data, permuted))
        if not abs(after - before) <= TOLERANCE * (1 + abs(before)):
            return Rows((), 0, f"permuting rows changes the log density by {after - before:.3g}")
    if not moved:
        return Rows((), 0, "all simulated rows are equal, so that nothing can be tested")
    return Rows(rowwise, length, "permuting them leaves the model's log density unchanged")
