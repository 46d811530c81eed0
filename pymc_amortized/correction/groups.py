"""Values of groups, drawn given each draw of the parameters, with what speaks against them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_amortized.correction.draws import Failure
from pymc_amortized.graph.density.log_density import Data
from pymc_amortized.graph.density.marginal import MarginalDensity
from pymc_amortized.numerics.thresholds import THRESHOLDS

MOST_NOISE = 0.5
"""Variance of the log of the integrals, which weights of the parameters bear, but of which it is itself a rough one."""
SEVERAL_MODES = "values of groups have several modes"
TRIED = 4
"""Draws of the parameters at which second modes are searched."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Values of all groups of one data set.

    Attributes
    ----------
    values : ndarray (chains, draws, number)
        Unconstrained.
    pareto_k : float
        The worst, of the weights by which values were chosen; -inf where all are exact.
    failure : Failure or None
        Why they should not be used.
    """

    values: np.ndarray
    pareto_k: float
    failure: Failure | None


def search_modes(density: MarginalDensity, data: Data, theta: np.ndarray) -> Failure | None:
    """Say where values of groups have several modes, at some of the parameters (..., dim)."""
    flat = theta.reshape(-1, theta.shape[-1])
    several = density.several_modes(flat[np.linspace(0, len(flat) - 1, TRIED).astype(int)], data)
    return None if several is None else Failure(SEVERAL_MODES, several)


def draw_groups(density: MarginalDensity, data: Data, theta: np.ndarray, seed: np.random.SeedSequence) -> Groups:
    """Draw values of all groups of a data set given parameters (chains, draws, dim)."""
    several = search_modes(density, data, theta)
    found = density.drawn(theta.reshape(-1, theta.shape[-1]), data, np.random.default_rng(seed))
    values, k = found.drawn.reshape(*theta.shape[:2], -1), float(found.pareto_k.max())
    if several is not None:
        return Groups(values, k, several)
    noise = float(np.nanmean(found.noise))
    if k > THRESHOLDS.pareto_k:
        told = f"the worst Pareto k of a group is {k:.2f} (wanted: at most {THRESHOLDS.pareto_k})"
    elif noise > MOST_NOISE:
        told = f"the variance of the log of their integrals is {noise:.2g} (wanted: at most {MOST_NOISE})"
    else:
        return Groups(values, k, None)
    return Groups(values, k, Failure("the weights of groups are poor", told))
