"""Whether groups are independent of each other: the values of half of them are changed, and no others.

Their priors are looked at by the density, their data by simulations.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.given import Derived, LogDensityGiven
from pymc_amortized.graph.model.operations import has_density
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
    """Refuse a model in which values of some groups change data or priors of others, or groups share random numbers.

    With the same random numbers data of other groups stay as they are. A simulator may use up others for other values:
    then the distributions of all single numbers are compared, by signed ranks (Wilcoxon 1945, Biometrics Bulletin 1).

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
    for plate in (plate for top in find_plates(spec) for plate in top.all_plates):
        dim, which = plate.dim, int(np.argmax(everything.lengths[plate.dim]))
        one = everything.take(np.array([which]))
        lengths = {r.dim: int(everything.lengths[r.dim][which]) for r in spec.sizes}
        some = np.random.default_rng(seed).permutation(lengths[dim])[: max(lengths[dim] // 2, 1)]
        changed = {d: np.isin(group[0], some) for d, group in plate.cut(one).group.items()}
        simulate, joint = SimulatorGiven(spec.jointly(), one, compile_kwargs), spec.jointly().at(lengths)
        values = {p.name: cut(made.variables[p.name][which], p.shape) for p in joint.parameters}
        same = {name: np.repeat(value[None], ALIKE, axis=0) for name, value in values.items()}
        other = {name: value.copy() for name, value in same.items()}
        for p in (p for p in spec.locals if dim in p.sized):
            axis = 1 + p.sized.index(dim)
            padded = cut(made.variables[p.name], (len(made), *values[p.name].shape))
            those = np.moveaxis(padded, axis, 1)[:, 0].reshape(len(made), -1)
            away, moved = np.abs(those - those[which]).sum(1), np.moveaxis(other[p.name], axis, 1)
            moved[:, some] = those[away.argmax()].reshape(moved.shape[2:])
        few = [{name: value[:FEW] for name, value in free.items()} for free in (same, other)]
        prior, data = _Priors(joint, compile_kwargs), one.one(spec, 0) | lengths
        priors = [_elsewhere(prior.dims, changed, prior(free, data)) for free in few]
        for name, terms in priors[0].items():
            if not np.allclose(terms, priors[1][name], rtol=1e-9, atol=1e-9, equal_nan=True):
                how = f"along {dim!r}: those of some groups change the prior of {name!r} elsewhere"
                raise ValueError(not_independent(spec, "the free values", how))
        dims = {v.name: v.dims for v in spec.observed}
        alike = [_elsewhere(dims, changed, simulate(free, seed).data) for free in few]
        drawn = simulate(same, seed).data
        if not all(np.array_equal(kept, alike[1][name], equal_nan=True) for name, kept in alike[0].items()):
            after = _elsewhere(dims, changed, simulate(other, seed).data)
            far = {name: _difference(kept, after[name]) for name, kept in _elsewhere(dims, changed, drawn).items()}
            if max(far.values()) > BEYOND_CHANCE:
                name = max(far, key=lambda name: far[name])
                how = (
                    f"along {dim!r}: those of some groups change {name!r} of others, by {far[name]:.1f} standard errors"
                )
                raise ValueError(not_independent(spec, "the free values", how))
        rest, own = {d: ~own for d, own in changed.items()}, {n: d for n, d in dims.items() if changed.keys() & {*d}}
        if (shared := _shared(_elsewhere(dims, changed, drawn), _elsewhere(own, rest, drawn))) > BEYOND_CHANCE:
            how = (
                f"along {dim!r}: given all free values, those of groups vary together, by {shared:.1f} standard errors"
            )
            raise ValueError(not_independent(spec, "the data", how))


class _Priors:
    """Log densities of free variables and potentials, one number for each of their values."""

    def __init__(self, joint: ModelSpec, compile_kwargs: CompileKwargs | None) -> None:
        model = joint.model
        names = [p.name for p in joint.parameters if has_density(model, model[p.name])]
        self._density = LogDensityGiven(joint, names, compile_kwargs)
        self._potentials = Derived(joint, joint.potentials, compile_kwargs)
        self.dims = {name: model.named_vars_to_dims.get(name) or () for name in (*names, *joint.potentials)}

    def __call__(self, free: Mapping[str, np.ndarray], data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._density(free, data)
        return found | self._potentials(free, data, np.random.SeedSequence(0)) if self._potentials.names else found


def _elsewhere(
    dims: Mapping[str, Sequence[str | None]], changed: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Numbers (n, number) of variables that do not belong to groups that were changed."""
    found = {}
    for name, own in dims.items():
        kept = np.ones(arrays[name].shape[1:], dtype=bool)
        for axis, dim in enumerate(own[: kept.ndim]):
            if dim is not None and dim in changed:
                places = np.flatnonzero(changed[dim])
                kept[(slice(None),) * axis + (places[places < kept.shape[axis]],)] = False
        found[name] = arrays[name][:, kept]
    return found


def _shared(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """Correlation of data of some groups with those of others, in standard errors: of how many lie above the median."""

    def means(values: np.ndarray) -> np.ndarray:
        values = np.nan_to_num(values.astype(float))
        above = np.sign(values - np.median(values, axis=0))
        return np.asarray(above.mean(axis=1) if values.shape[1] else np.zeros(len(values)))

    found = 0.0
    for x in map(means, one.values()):
        for y in map(means, other.values()):
            scale = x.std() * y.std()
            if scale > 0:
                found = max(found, float(abs(np.mean((x - x.mean()) * (y - y.mean())) / scale)) * np.sqrt(len(x)))
    return found


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
