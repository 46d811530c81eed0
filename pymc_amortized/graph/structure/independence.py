"""Whether groups are independent of each other, tried by simulations: the values of one are changed, and no others."""

from collections.abc import Iterator, Mapping

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.sizes import cut
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.alike import SimulatorGiven
from pymc_amortized.graph.structure.grouping import find_plates, not_independent

FEW, ALIKE = 4, 128
"""Data sets that are compared number by number, and those of which distributions are."""
BEYOND_CHANCE = 6.0
"""Standard errors of a signed-rank statistic."""


def refuse_dependent(
    spec: ModelSpec, made: Simulations, seed: np.random.SeedSequence, compile_kwargs: CompileKwargs | None = None
) -> None:
    """Refuse a model in which values of one group change data of others.

    With the same random numbers such data stay as they are. A simulator may use up others for other values: then the
    distributions of all single numbers are compared, by signed ranks (Wilcoxon 1945, Biometrics Bulletin 1).

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
            other = {name: value.copy() for name, value in same.items()}
            for p in (p for p in spec.locals if dim in p.sized):
                first = (slice(None),) * (1 + p.sized.index(dim)) + (0,)
                those = cut(made.variables[p.name], (len(made), *values[p.name].shape))[first].reshape(len(made), -1)
                away = np.abs(those - those[which]).sum(1)
                other[p.name][first] = those[away.argmax()].reshape(same[p.name][first].shape[1:])
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
    """Largest signed-rank statistic of any column, in standard errors: of values, and of how far out they are.

    Pairs that share random numbers are alike but for what was changed.
    """
    n = min(len(one), len(other))
    both = np.nan_to_num(np.stack([one[:n], other[:n]]).astype(float))
    error, found = np.sqrt(n * (n + 1) * (2 * n + 1) / 6), 0.0
    for values in (both, np.abs(both - np.median(both, axis=(0, 1)))) if both.size else ():
        change = values[1] - values[0]
        ranks = np.abs(change).argsort(axis=0).argsort(axis=0) + 1
        found = max(found, float(np.abs((np.sign(change) * ranks).sum(0)).max()) / error)
    return found
