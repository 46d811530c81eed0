"""Values that come up again and again among draws that should be continuous: they have a probability, not a density."""

import numpy as np

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec

REPEATED = 10
"""Times that a value comes up before it counts as an atom; continuous values do not come up twice."""
WAY_OUT = (
    "and sampling by gradients misses it too. Marginalize which part it comes from, make one model of each part "
    "(fit_comparison), or leave it out by parameters=[...], without correction"
)


class PriorAtomError(ValueError):
    """A free variable takes single values with positive probability."""


def find_atoms(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find values (n,) that come up again and again, and how often."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts >= REPEATED], counts[counts >= REPEATED]


def refuse_prior_atoms(spec: ModelSpec, simulations: Simulations, by_user: bool = False) -> None:
    """Refuse free variables whose prior is not continuous: spike and slab, censored, hurdle, rounded.

    No proposal of a continuous density hits an atom, and none of NUTS: weights would be those of the rest alone.

    Parameters
    ----------
    spec : ModelSpec
    simulations : Simulations
        Some hundred at least.
    by_user : bool
        Whether all parameters may have been simulated several times: then an atom comes much more often than others.

    Raises
    ------
    PriorAtomError
    """
    column, total = 0, len(simulations)
    for p in spec.parameters:
        for draws in simulations.unconstrained[:, column : column + p.size].T:
            _, counts = np.unique(draws, return_counts=True)
            # priors that pile up at a bound (a Beta of 0.05) repeat the last numbers before it in 0.3 % of their draws,
            # by rounding; where all values may be repeated, an atom comes five times as often as others
            if counts.max() >= max(REPEATED, 0.005 * total, 5 * np.median(counts) if by_user else 0):
                raise PriorAtomError(
                    f"free variable {p.name!r} takes a single value in {counts.max() / total:.1%} of its prior draws: "
                    f"a density cannot represent such an atom (a spike and slab, censored or rounded prior), {WAY_OUT}"
                )
        column += p.size
