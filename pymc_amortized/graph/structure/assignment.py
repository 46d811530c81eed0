"""Which arrays go along when an axis is permuted, where dims do not say it.

Arrays with an axis of the same length are candidates. Those whose own permutation leaves the density as it is are of no
consequence: if the density does not see them moved alone, it does not see them moved with others either. Of the others,
the smallest set is looked for whose permutation, jointly with the axis itself, leaves the density as it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, islice

from pymc_amortized.graph.structure.carriers import Array, Pair, Target, shown
from pymc_amortized.graph.structure.proofs import Change, Proofs

ATTEMPTS = 64
"""Sets of candidates that are tried at most: all sets of up to six."""

Block = tuple[Pair, ...]
"""Axes that go together."""


def assign(
    target: Target, proofs: Proofs, *, free: bool = True, strict: bool = True
) -> tuple[tuple[Pair, ...], Change, tuple[Pair, ...]]:
    """Find what carries an axis.

    Parameters
    ----------
    target : Target
    proofs : Proofs
    free : bool
        Whether free variables are candidates.
    strict : bool
        Whether to refuse an axis for which several sets are found.

    Returns
    -------
    carriers : tuple of Pair
        With `change.holds`, what has to be permuted jointly; otherwise what certainly carries the axis.
    change : Change
        What permuting the carriers did.
    related : tuple of Pair
        What may have the axis where no set was found.

    Raises
    ------
    ValueError
        Several sets are found, which do not contain one another.
    """
    moved = target.base[0]
    change = proofs.permuting(target.base, moved)
    if change.holds or change.tried == 0:
        return target.base, change, ()
    optional = [b for b in target.optional if free or all(proofs.arrays[n].role != "free" for n, _ in b)]
    options = [block for block in optional if proofs.matters(block, moved)]
    passing = _passing(target, options, proofs)
    if len(passing) > 1 and strict:
        _refuse_ambiguous(target, proofs.arrays, [pairs for pairs, _ in passing])
    if passing:
        return (*passing[0], ())
    return target.base, change, _single(proofs.arrays, options)


def _passing(target: Target, options: Sequence[Block], proofs: Proofs) -> list[tuple[tuple[Pair, ...], Change]]:
    """Smallest sets of options that can be permuted jointly with the target."""
    found: list[tuple[tuple[Block, ...], Change]] = []
    for attempt in _attempts(options):
        if any(set(smaller) <= set(attempt) for smaller, _ in found):
            continue
        change = _joint(target, attempt, proofs)
        if not change.holds:
            continue
        blocks = attempt
        if 2 ** len(options) > ATTEMPTS:  # smaller sets have not all been tried
            blocks, change = _reduced(target, attempt, change, proofs)
        found = [one for one in found if not set(blocks) <= set(one[0])] + [(blocks, change)]
    return [(_pairs(target, blocks), change) for blocks, change in found]


def _attempts(options: Sequence[Block]) -> list[tuple[Block, ...]]:
    """Sets to try: by size where all can be tried; otherwise almost all options first."""
    n = len(options)
    sizes = range(1, n + 1) if 2**n <= ATTEMPTS else (n, n - 1, 1, 2, 3)
    return list(islice((s for size in sizes for s in combinations(options, size)), ATTEMPTS))


def _reduced(
    target: Target, blocks: tuple[Block, ...], change: Change, proofs: Proofs
) -> tuple[tuple[Block, ...], Change]:
    """Leave out what need not be permuted."""
    for block in blocks:
        fewer = tuple(b for b in blocks if b != block)
        attempt = _joint(target, fewer, proofs)
        if attempt.holds:
            blocks, change = fewer, attempt
    return blocks, change


def _joint(target: Target, blocks: Sequence[Block], proofs: Proofs) -> Change:
    return proofs.permuting(_pairs(target, blocks), target.base[0])


def _pairs(target: Target, blocks: Sequence[Block]) -> tuple[Pair, ...]:
    return target.base + tuple(pair for block in blocks for pair in block)


def _single(arrays: Mapping[str, Array], options: Sequence[Block]) -> tuple[Pair, ...]:
    """Data that have one axis of the length, and that the density sees."""
    pairs = [p for block in options for p in block if arrays[p[0]].role not in ("observed", "free")]
    count = Counter(name for name, _ in pairs)
    return tuple(p for p in pairs if count[p[0]] == 1)


def _refuse_ambiguous(target: Target, arrays: Mapping[str, Array], assignments: Sequence[tuple[Pair, ...]]) -> None:
    """Say what could be meant, and how to say it."""
    name, axis = target.base[0]
    known = set(target.base)
    ways = {" and ".join(shown(arrays, p) for p in pairs if p not in known) for pairs in assignments}
    raise ValueError(
        f"axis {axis} of {name!r} (length {target.length}) can be permuted jointly with "
        f"{' or with '.join(sorted(ways))}: lengths alone do not say what belongs to it. Name the axis with "
        f"dims=... in {name!r} and in what belongs to it, or say what it is with structure={{{name!r}: ...}}"
    )
