"""Checks of what trainings have in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.networks.choices import SummaryChoice
from pymc_amortized.training import Training


def read_sketch_option(sketch: bool | None, summary: SummaryChoice) -> bool | None:
    """Check whether sketches are wanted."""
    if sketch is not None and not isinstance(sketch, bool | np.bool_):
        raise TypeError(f"sketch must be True, False or None, got {sketch!r}")
    if sketch and isinstance(summary, torch.nn.Module):
        raise ValueError("sketch=True: a summary network of your own is given the data alone")
    return None if sketch is None else bool(sketch)


def read_training(training: Training | None, max_time: float | None) -> Training:
    """Check the options of a training."""
    if training is not None and not isinstance(training, Training):
        raise TypeError(f"training must be a pymc_amortized.Training, got {type(training).__name__}")
    options = training or Training()
    return options if max_time is None else replace(options, max_time=max_time)


def read_entropy(random_seed: RandomState) -> tuple[int, ...]:
    """Entropy of everything random, which repeats a training."""
    entropy = seed_sequence(random_seed).entropy
    return (entropy,) if isinstance(entropy, int) else tuple(int(e) for e in entropy or ())
