"""Symmetries of a posterior: labels that can be permuted, signs that can be flipped. Found by the density.

Candidates are what models are known to have: slices of some variables along axes of one length are swapped (labels of
components), variables of one shape are swapped, entries, slices or whole variables are mirrored, and both at once. A
candidate that simulations disprove by the marginal distribution of its parameters is left out. Of each other one the
log density is compared before and after, at draws from the prior and their data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, product

import numpy as np

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.spec import ModelSpec, Parameter
from pymc_amortized.graph.structure.proofs import TOLERANCE, is_elementwise
from pymc_amortized.numerics.sampling.symmetry import Symmetries

MOST_PARAMETERS, MOST_CANDIDATES = 64, 4096
"""Unconstrained values of a model that is looked at, and maps that are tried."""
FEWEST, TRIED = 8, 256
"""Draws from the prior at which the log density has to stay the same; as many as there are up to the second number."""


@dataclass(frozen=True, eq=False)
class Move:
    """A linear map (dim, dim) of unconstrained parameters that is its own inverse, in words: each part once."""

    says: tuple[str, ...]
    matrix: np.ndarray

    def __matmul__(self, other: Move) -> Move:
        return Move(self.says + other.says, self.matrix @ other.matrix)

    @property
    def moved(self) -> int:
        """How many parameters it changes."""
        return int((self.matrix != np.eye(len(self.matrix))).any(axis=1).sum())


def find_symmetries(
    spec: ModelSpec, simulations: Simulations, log_density: LogDensity
) -> tuple[Symmetries | None, tuple[str, ...]]:
    """Find linear maps of the parameters that leave the density as it is, whatever the data are.

    Parameters
    ----------
    spec : ModelSpec
        With all free variables among its parameters.
    simulations : Simulations
    log_density : LogDensity

    Returns
    -------
    Symmetries or None
    tuple of str
        What is swapped and mirrored by each of the maps that generate the group.
    """
    if not 0 < spec.dim <= MOST_PARAMETERS:
        return None, ()
    candidates = _Candidates(spec)
    likely = [m for m in islice(candidates, MOST_CANDIDATES) if _is_possible(m, simulations.unconstrained)]
    held = {v.name: spec.held[v.name] for v in spec.inputs}

    def change(index: int, moves: Sequence[Move]) -> np.ndarray | None:
        theta = simulations.unconstrained[index]
        data = held | {name: values[index] for name, values in simulations.data.items()}
        with np.errstate(all="ignore"):
            log_p = log_density(np.stack([theta, *(m.matrix @ theta for m in moves)]), data)
        return np.abs(log_p[1:] - log_p[0]) / (1 + abs(log_p[0])) if np.isfinite(log_p[0]) else None

    proved = sorted(_proved(likely, change, len(simulations)), key=lambda move: move.moved)
    generators: list[Move] = []
    group: Symmetries | None = None
    for move in proved:  # those that move least say most
        larger = Symmetries.generated([m.matrix for m in (*generators, move)], candidates.toward)
        if larger is not None and (group is None or len(larger) > len(group)):
            generators, group = [*generators, move], larger
    return group, tuple(", ".join(move.says) for move in generators)


def _is_possible(move: Move, theta: np.ndarray) -> bool:
    """Whether moved parameters are distributed as they are themselves, as far as simulations (n, dim) tell.

    Of a map that is its own inverse, a value and its image are exchangeable: each is the larger one half of the time.
    """
    images = theta @ move.matrix.T
    larger = np.where(images == theta, 0.5, images > theta).mean(axis=0)
    return move.moved > 0 and bool((np.abs(larger - 0.5) <= 2.5 / np.sqrt(len(theta))).all())  # five standard errors


def _proved(
    moves: Sequence[Move], change: Callable[[int, Sequence[Move]], np.ndarray | None], simulations: int
) -> Sequence[Move]:
    """Those that leave the density as it is, where it is finite."""
    tried = 0
    for index in range(min(simulations, TRIED)):
        difference = change(index, moves) if moves else None
        if difference is not None:
            moves = [m for m, d in zip(moves, difference, strict=True) if d <= TOLERANCE]
            tried += 1
    return moves if tried >= FEWEST else []


class _Candidates:
    """Maps that models may have as symmetries, the likely ones first."""

    def __init__(self, spec: ModelSpec) -> None:
        starts = np.cumsum([0, *(p.size for p in spec.parameters)])
        self._places = {
            p.name: np.arange(start, start + p.size).reshape(p.unconstrained_shape)
            for p, start in zip(spec.parameters, starts[:-1], strict=True)
        }
        self._parameters, self._dim = spec.parameters, spec.dim
        self._mirrored = [p for p in spec.parameters if is_elementwise(p)]
        # locations tell components apart better than scales and weights do
        ordered = sorted(spec.parameters, key=lambda p: p.transform is not None)
        self.toward = np.zeros(self._dim)
        for rank, p in enumerate(ordered):
            self.toward[self._places[p.name].ravel()] = 10.0 ** (-3 * rank) * np.arange(1, p.size + 1)

    def __iter__(self) -> Iterator[Move]:
        swaps = list(islice(chain(self._slices_swapped(), self._variables_swapped()), MOST_CANDIDATES // 4))
        yield from swaps
        yield from self._mirrors()
        for swap in swaps:
            moved = (swap.matrix != np.eye(self._dim)).any(axis=1)
            negative = np.where(moved[:, None], -swap.matrix, swap.matrix)
            yield Move((*swap.says, "both mirrored"), negative)
            others = [p for p in self._mirrored if not moved[self._places[p.name]].any()]
            for some in _subsets(others, 2):
                yield _product([swap, *(self._mirror(self._places[p.name], p, p.name) for p in some)])

    def _slices_swapped(self) -> Iterator[Move]:
        """Swaps of two slices along axes of one length, in some of the variables that have such an axis."""
        carriers: dict[int, list[tuple[Parameter, int]]] = {}
        for p in self._parameters:
            for axis, length in enumerate(p.shape):
                if length > 1 and (p.transform == "simplex" or self._has_axis(p, axis)):
                    carriers.setdefault(length, []).append((p, axis))
        for length, found in carriers.items():
            pairs = list(combinations(range(length), 2))
            if length > 8:
                pairs = [(a, a + 1) for a in range(length - 1)]
            for some in reversed(list(_subsets(found, len(found)) if len(found) <= 5 else [tuple(found)])):
                for a, b in pairs:
                    yield _product([self._slice_swapped(p, axis, a, b) for p, axis in some])

    def _has_axis(self, p: Parameter, axis: int) -> bool:
        """Whether unconstrained values have an axis of the variable, and transforms do not mix its entries."""
        if is_elementwise(p):
            return True
        batch = len(p.shape) == len(p.unconstrained_shape) and axis < len(p.shape) - 1
        return batch and p.shape[axis] == p.unconstrained_shape[axis]

    def _slice_swapped(self, p: Parameter, axis: int, a: int, b: int) -> Move:
        places, matrix = self._places[p.name], np.eye(self._dim, dtype=np.int8)
        before = ":, " * axis
        says = (f"{p.name}[{before}{a}] <-> {p.name}[{before}{b}]",)
        if p.transform == "simplex" and axis == len(p.shape) - 1:
            # values are logarithms that add up to 0, the last of them left out
            full = np.vstack([np.eye(p.shape[-1] - 1, dtype=np.int8), -np.ones(p.shape[-1] - 1, dtype=np.int8)])
            full[[a, b]] = full[[b, a]]
            for row in places.reshape(-1, places.shape[-1]):
                matrix[np.ix_(row, row)] = full[:-1]
            return Move(says, matrix)
        return Move(says, _swapped(matrix, np.take(places, a, axis), np.take(places, b, axis)))

    def _variables_swapped(self) -> Iterator[Move]:
        """Swaps of variables that have the same shape and transform: pairs of these, and several at once."""
        alike: dict[object, list[Parameter]] = {}
        for p in self._parameters:
            alike.setdefault((p.shape, p.unconstrained_shape, p.transform), []).append(p)
        choices = [[(), *_matchings(group[:6])] for group in alike.values() if len(group) > 1]
        for chosen in product(*choices):
            pairs = list(chain.from_iterable(chosen))
            if pairs:
                yield _product([self._variable_swapped(*pair) for pair in pairs])

    def _variable_swapped(self, one: Parameter, other: Parameter) -> Move:
        matrix = np.eye(self._dim, dtype=np.int8)
        places = self._places[one.name], self._places[other.name]
        return Move((f"{one.name} <-> {other.name}",), _swapped(matrix, *places))

    def _mirrors(self) -> Iterator[Move]:
        """Whole variables, entries, pairs of entries and slices along axes of one length, with their signs flipped."""
        for some in _subsets(self._mirrored, 6):
            yield _product([self._mirror(self._places[p.name], p, p.name) for p in some])
        small = [p for p in self._mirrored if 1 < p.size <= 12]
        entries = [
            self._mirror(self._places[p.name][i], p, f"{p.name}[{', '.join(map(str, i))}]")
            for p in small
            for i in np.ndindex(p.unconstrained_shape)
        ]
        yield from (_product(some) for some in _subsets(entries, 2))
        axes = [(p, axis, length) for p in self._mirrored for axis, length in enumerate(p.shape) if length > 1]
        for length in dict.fromkeys(length for _, _, length in axes):
            carriers = [(p, axis) for p, axis, own in axes if own == length]
            for some_axes, k in product(_subsets(carriers[:5], 5), range(length)):
                slices = [(p, np.take(self._places[p.name], k, axis), ":, " * axis + str(k)) for p, axis in some_axes]
                yield _product([self._mirror(places, p, f"{p.name}[{at}]") for p, places, at in slices])

    def _mirror(self, places: np.ndarray, p: Parameter, name: str) -> Move:
        matrix = np.eye(self._dim, dtype=np.int8)
        matrix[places, places] = -1
        return Move((f"{name} -> -{name}" if p.transform is None else f"{name} mirrored within its range",), matrix)


def _swapped(matrix: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    order = np.arange(len(matrix))
    order[one], order[other] = other, one
    return matrix[order]


def _product(moves: Sequence[Move]) -> Move:
    result = moves[0]
    for move in moves[1:]:
        result = result @ move
    return result


def _subsets[T](items: Sequence[T], most: int) -> Iterator[tuple[T, ...]]:
    """All subsets but the empty one, of at most so many items, small ones first."""
    return chain.from_iterable(combinations(items, n) for n in range(1, min(most, len(items)) + 1))


def _matchings[T](items: Sequence[T]) -> Iterator[tuple[tuple[T, T], ...]]:
    """All sets of disjoint pairs of items but the empty one."""
    if len(items) < 2:
        return
    first, rest = items[0], items[1:]
    yield from _matchings(rest)
    for i, partner in enumerate(rest):
        pair = (first, partner)
        yield (pair,)
        yield from ((pair, *others) for others in _matchings([*rest[:i], *rest[i + 1 :]]))
