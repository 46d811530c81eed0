"""From the network's draws to corrected ones, data set by data set: importance weights, deeper proposals, NUTS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pymc_amortized.correction.doubt import (
    explain_impossible,
    say_that_uncorrected,
    warn_of_failures,
    warn_of_poor_weights,
    warn_of_undefined,
)
from pymc_amortized.correction.drawing import Conditions, draw_given
from pymc_amortized.correction.nuts import Budget, escalate
from pymc_amortized.correction.rounds import Draws, Mode
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.nuts.samplers import Samplers

MODES: dict[str | None, Mode] = {None: "raw", "psis": "network", "auto": "adapted", "nuts": "start"}


def draw_corrected(
    conditions: Conditions,
    correction: Literal["auto", "psis", "nuts"] | None,
    samplers: Samplers,
    *,
    draws: int,
    chains: int,
    budget: Budget,
    seed: np.random.SeedSequence,
    progressbar: bool,
) -> list[Draws]:
    """Draw from the posterior of every data set.

    Parameters
    ----------
    conditions : Conditions
    correction : {"auto", "psis", "nuts", None}
    samplers : Samplers
    draws, chains : int
    budget : Budget
    seed : numpy.random.SeedSequence
    progressbar : bool
    """
    results = draw_given(
        conditions, draws=draws, chains=chains, mode=MODES[correction], seed=seed, raw=correction is None
    )
    datasets = conditions.datasets
    explain_impossible(conditions.spec, datasets, results, conditions.compile_kwargs)
    if correction is None:
        return results
    warn_of_undefined(results)
    if correction == "psis":
        _say_where_uncorrected(conditions.spec, conditions.obstacles)
        gaps = any(mask.any() for mask in datasets.missing.values())
        warn_of_poor_weights(results, datasets.labels, gaps=gaps)
        return results
    obstacles = [o and samplers.obstacle(conditions.given(i)) for i, o in enumerate(conditions.obstacles)]
    _say_where_uncorrected(conditions.spec, obstacles)
    every = correction == "nuts"
    rest = [i for i, r in enumerate(results) if (every or r.stage != "psis") and obstacles[i] is None]
    nuts_seed = seed.spawn(1)[0]
    results, failures = escalate(
        conditions, results, rest, samplers, budget=budget, seed=nuts_seed, progressbar=progressbar
    )
    warn_of_failures(failures, datasets.labels)
    return results


def _say_where_uncorrected(spec: ModelSpec, obstacles: Sequence[str | None]) -> None:
    without = [obstacle for obstacle in obstacles if obstacle]
    if without:
        say_that_uncorrected(spec, without[0], len(without), len(obstacles))
