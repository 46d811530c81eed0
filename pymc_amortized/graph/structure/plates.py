"""Which free variables fall into groups that are independent of each other, given all others.

A variable of a group is read by the terms of its own group alone. So the joint density factorizes, and the variables of
all groups can be integrated out, group by group (:mod:`pymc_amortized.graph.density.marginal`). What remains are a few
parameters, whose posterior has no neck where groups are alike. Jointly normal variables, given the others, are one
block however they depend on each other.
"""

from collections.abc import Mapping

import numpy as np
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.marginal import MarginalDensity
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.density.terms import Terms, points_of, reads_of
from pymc_amortized.graph.model.axes import Factor
from pymc_amortized.graph.model.spec import ModelSpec, Parameter
from pymc_amortized.graph.model.tensors import INTERPRETED
from pymc_amortized.graph.structure.levels import may_be_funnel
from pymc_amortized.numerics.sampling.independent import FEW, Blocks

MOST_TOGETHER = 24
"""Parameters that networks, sketches and mixtures handle together."""
FEWEST = 3
"""Groups, or values of one variable, that are worth it."""
MOST_NOISE = 1.0
"""Variance of the log of an estimated density that weights can bear: they are worth exp(-1) as many draws."""
FLAT = 1e-6
"""Third differences, relative to the change of a term, that rounding explains."""


def may_have_locals(spec: ModelSpec) -> bool:
    """Whether it is worth looking for locals: posteriors have many parameters, or may have a neck."""
    if spec.locals or spec.density_obstacle is not None or not any(p.size >= FEWEST for p in spec.parameters):
        return False
    return spec.dim > MOST_TOGETHER or may_be_funnel(spec)


def choose_locals(spec: ModelSpec, simulations: Simulations) -> ModelSpec:
    """Return the spec with those variables as locals whose integrals take the necks out of posteriors, or parameters.

    Parameters
    ----------
    spec : ModelSpec
    simulations : Simulations
        A few of the same size.
    """
    large, candidates = spec.dim > MOST_TOGETHER, [p for p in spec.parameters if p.size >= FEWEST]
    tried = spec.with_locals([p.name for p in candidates])
    places = np.cumsum([0, *(p.size for p in candidates)])
    columns = {p.name: np.arange(a, b) for p, a, b in zip(candidates, places, places[1:], strict=False)}
    points, data = points_of(tried, simulations)
    terms = Terms(tried, element_rules(tried), INTERPRETED)
    reads = np.any([reads_of(terms, one[: tried.dim], given) for one, given in zip(points, data, strict=True)], axis=0)
    chosen: list[Parameter] = []
    others: list[Parameter] = []
    normal = False
    for p in sorted(candidates, key=lambda p: -p.size):
        some = np.concatenate([columns[q.name] for q in [*chosen, p]])
        sizes = np.bincount(Blocks.of(reads[:, some]).block_of)
        flat = all(_is_quadratic(terms, one, tried.dim + some, given) for one, given in zip(points, data, strict=True))
        if flat or (len(sizes) >= FEWEST and sizes.max() <= FEW):
            chosen, normal = [*chosen, p], flat
        else:
            others.append(p)
    if (normal and not large) or len(chosen) == len(spec.parameters):
        return spec  # normal ones that are few are drawn exactly as they are
    for p in others:
        with_p = spec.with_locals([q.name for q in (*chosen, p)])
        if p.size > FEW and _is_drawn_given_others(spec, p) and _nearly_normal(with_p, simulations):
            return with_p
    return spec.with_locals([p.name for p in chosen]) if chosen else spec


def _is_drawn_given_others(spec: ModelSpec, parameter: Parameter) -> bool:
    """Whether the prior of a variable depends on other ones."""
    free = set(spec.model.free_RVs)
    return not free.isdisjoint(ancestors(spec.model[parameter.name].owner.inputs))


def _nearly_normal(spec: ModelSpec, simulations: Simulations) -> bool:
    """Whether normal approximations propose locals well, at the parameters of simulations."""
    density = MarginalDensity(spec, element_rules(spec))
    points, data = points_of(spec, simulations)
    found = [density.integrated(np.tile(p[: spec.dim], (8, 1)), d) for p, d in zip(points, data, strict=True)]
    noise = np.array([one.noise.mean() for one in found])
    return bool(np.median(noise) <= MOST_NOISE)


def _is_quadratic(terms: Terms, point: np.ndarray, places: np.ndarray, data: dict[str, np.ndarray]) -> bool:
    """Whether every term is a quadratic function of the values at some places, along random directions."""
    rng, steps = np.random.default_rng(0), np.array([-1.5, -0.5, 0.5, 1.5])
    for _ in range(2):
        moved = np.tile(point, (len(steps), 1))
        moved[:, places] += steps[:, None] * rng.normal(size=len(places))
        values = terms.each(moved, data)
        if not np.isfinite(values).all():
            return False
        third = np.abs(np.array([-1.0, 3.0, -3.0, 1.0]) @ values)
        if (third > FLAT * np.ptp(values, axis=0) + 1e-11 * np.abs(values).max(axis=0)).any():
            return False
    return True


def find_factors(spec: ModelSpec, simulations: Simulations) -> tuple[Factor, ...]:
    """Find how the locals of simulations of one size fall into blocks, a record for each kind of block.

    Simulations are of all free variables.
    """
    lengths = {r.dim: int(simulations.data[r.dim][0]) for r in spec.sizes}
    (point,), (data,) = points_of(spec, simulations.take(slice(1)))
    terms = Terms(spec, element_rules(spec), INTERPRETED)
    return _described(spec, lengths, Blocks.of(reads_of(terms, point[: spec.dim], data)))


def element_rules(spec: ModelSpec) -> dict[str, Rule | None]:
    """Rules for gaps where none is left."""
    return dict.fromkeys([v.name for v in spec.observed if v.missing], "element")


def _described(spec: ModelSpec, lengths: Mapping[str, int], blocks: Blocks) -> tuple[Factor, ...]:
    owner = np.concatenate([np.full(p.at(lengths).size, i) for i, p in enumerate(spec.locals)])
    sizes: dict[tuple[int, ...], list[int]] = {}
    for number in range(blocks.number):
        own = owner[blocks.block_of == number]
        sizes.setdefault(tuple(np.unique(own).tolist()), []).append(len(own))
    given = tuple(p.name for p in spec.parameters)
    return tuple(
        Factor(tuple(spec.locals[i].name for i in which), len(found), min(found), max(found), given)
        for which, found in sizes.items()
    )
