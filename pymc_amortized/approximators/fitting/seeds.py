"""One seed in, one child per stage out."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from pymc_amortized.training.device import integer_seed

RandomState = int | Sequence[int] | np.ndarray | np.random.Generator | np.random.RandomState | None


class Stage(IntEnum):
    """Stages of training, each with random numbers of its own."""

    TIMING = 0
    PILOT = 1
    HELD_OUT = 2
    TRAINING = 3
    STRUCTURE = 4
    NETWORK = 5
    LOOP = 6
    NOVELTY = 7


def seed_sequence(random_seed: Any) -> np.random.SeedSequence:
    """Turn what PyMC accepts as ``random_seed`` into a seed sequence.

    Raises
    ------
    ValueError, TypeError
        When it is negative or no seed.
    """
    if isinstance(random_seed, np.random.Generator):
        return np.random.SeedSequence(int(random_seed.integers(2**63)))
    if isinstance(random_seed, np.random.RandomState):
        return np.random.SeedSequence(int(random_seed.randint(2**31)))
    if isinstance(random_seed, np.integer | np.ndarray):
        random_seed = random_seed.tolist()
    if isinstance(random_seed, bool):
        raise TypeError(f"random_seed must be an integer, got {random_seed!r}")
    try:
        return np.random.SeedSequence(random_seed)
    except (TypeError, ValueError) as error:
        allowed = "None, a non-negative integer, a sequence of these, or a numpy Generator"
        raise type(error)(f"random_seed must be {allowed}; got {random_seed!r}") from None


def entropy_of(random_seed: Any) -> tuple[int, ...]:
    """Return the numbers that stand for a seed, and can be passed as ``random_seed`` themselves."""
    entropy = seed_sequence(random_seed).entropy
    return (entropy,) if isinstance(entropy, int) else tuple(int(e) for e in entropy or ())


def stage_seed(entropy: Sequence[int], stage: Stage, *path: int) -> np.random.SeedSequence:
    """Seed of a stage, and of a step within it; always the same for the same entropy."""
    return np.random.SeedSequence(list(entropy), spawn_key=(int(stage), *path))


def stage_integer(entropy: Sequence[int], stage: Stage) -> int:
    """Seed of a stage as an integer, for torch."""
    return integer_seed(stage_seed(entropy, stage))
