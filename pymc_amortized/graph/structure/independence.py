"""Whether groups are independent of each other, tried by simulations: the values of one are changed, and no others."""

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.stats import rankdata

from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.sizes import cut
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.alike import SimulatorGiven
from pymc_amortized.graph.structure.grouping import find_plates, not_independent

FEW, ALIKE = 4, 128
"""Data sets that are simulated with the same random numbers, and others whose distributions are compared."""
BEYOND_CHANCE = 6.0
"""Standard errors by which ranks differ."""


def refuse_dependent(
    spec: ModelSpec, made: Simulations, seed: np.random.SeedSequence, compile_kwargs: CompileKwargs | None = None
) -> None:
    """Refuse a model in which values of one group change data of others.

    With the same random numbers such data stay as they are. A simulator may use up others for other values: then the
    distributions of all single numbers are compared, by ranks.

    Parameters
    ----------
    spec : ModelSpec
    made : Simulations
        Some dozens; the one with the most groups is changed, to the values of others.
    seed : numpy.random.SeedSequence
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.

    Raises
    ------
    ValueError
    """
    everything = of_simulations(made)
    for dim in sorted({d for p in spec.locals for d in p.sized if d}):
        which = int(np.argmax(everything.lengths[dim]))
        one = everything.take(np.array([which]))
        lengths = {r.dim: int(everything.lengths[r.dim][which]) for r in spec.sizes}
        simulate, joint = SimulatorGiven(spec.jointly(), one, compile_kwargs), spec.jointly().at(lengths)
        values = {p.name: cut(made.variables[p.name][which], p.shape) for p in joint.parameters}
        for number in (FEW, ALIKE):
            same = {name: np.repeat(value[None], number, axis=0) for name, value in values.items()}
            other = dict(same)
            for p in (p for p in spec.locals if dim in p.sized):
                first = (slice(None),) * (1 + p.sized.index(dim)) + (0,)
                other[p.name] = same[p.name].copy()
                other[p.name][first] = cut(made.variables[p.name], (len(made), *values[p.name].shape))[
                    np.arange(number) % len(made)
                ][first]
            before, after = simulate(same, seed), simulate(other, seed)
            pairs = list(_elsewhere(spec, dim, one, before.data, after.data))
            if all(np.array_equal(a, b, equal_nan=True) for _, a, b in pairs):
                break
            far = {name: _difference(a, b) for name, a, b in pairs}
            if number == ALIKE and max(far.values()) > BEYOND_CHANCE:
                name = max(far, key=lambda name: far[name])
                how = f"along {dim!r}: those of one group change {name!r} of others, by {far[name]:.1f} standard errors"
                raise ValueError(not_independent(spec, "the free values", how))


def _elsewhere(
    spec: ModelSpec, dim: str, one: DataSets, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Observed values (n, number), before and after, that do not belong to the first group along a dim."""
    plate = next(p for top in find_plates(spec) for p in top.all_plates if p.dim == dim)
    groups = plate.cut(one)
    for v in spec.observed:
        kept = np.ones(before[v.name].shape[1:], dtype=bool)
        for axis, group in ((i, groups.group[d]) for i, d in enumerate(v.dims) if d and d in groups.group):
            own = np.flatnonzero(group[0] == 0)
            kept[(slice(None),) * axis + (own[own < kept.shape[axis]],)] = False
        yield v.name, before[v.name][:, kept], after[v.name][:, kept]


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of mean ranks, in standard errors, of any column: of values, and of how far out they are."""
    if not one.size or not other.size:
        return 0.0
    both = np.nan_to_num(np.concatenate([one, other]).astype(float))
    n, m = len(one), len(other)
    error = np.sqrt(n * m * (n + m + 1) / 12)
    values = (both, np.abs(both - np.median(both, axis=0)))
    return max(float(np.abs(rankdata(v, axis=0)[:n].sum(0) - n * (n + m + 1) / 2).max()) / error for v in values)
