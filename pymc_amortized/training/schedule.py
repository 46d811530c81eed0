"""The learning rate over the course of training, and when its last layers go on alone.

Where the number of steps is known, the rate rises and falls along half a cosine. Where training may stop at any time,
it stays at its peak until the end is decided, and falls over a last share of the steps (warmup, stable, decay: Hu et
al. 2024, arXiv 2404.06395).
"""

import math
from dataclasses import dataclass

DECAY = 0.2
"""Share of the steps over which the rate falls at the end of a training of unknown length: a tenth to a fifth is as
good as more (Haegele et al. 2024, arXiv 2405.18392)."""


def scheduled(fraction: float, step: int, warmup: float, decay: float = 1.0) -> float:
    """Return the share of the peak learning rate: a linear rise, a constant, half a cosine down to zero.

    Parameters
    ----------
    fraction : float
        Share of the training that is done, by steps or by time, in [0, 1].
    step : int
        Steps made since the schedule began.
    warmup : float
        Share of the training over which the rate rises.
    decay : float
        Share over which it falls at the end; 1 for all that follows the rise.

    Returns
    -------
    float
        In [0, 1].
    """
    fraction = min(max(fraction, 0.0), 1.0)
    rising = min((step + 1) / 20, 1.0)  # however little time there is, Adam's moments want a few steps first
    if fraction < warmup:
        return min(rising, fraction / warmup)
    start = max(warmup, 1.0 - decay)
    falling = 0.5 * (1.0 + math.cos(math.pi * max(fraction - start, 0.0) / (1.0 - start)))
    return min(rising, falling)


@dataclass(frozen=True)
class LastLayers:
    """From when on only the last layers of a network are trained.

    The others then stay as they are, and what they make of each simulation is computed once: steps become faster by as
    much as the others cost. The network has to have a method ``reduced``: encoded data -> what the last layers see of
    them. Its loss takes either.

    Attributes
    ----------
    after : float
        Share of the steps, in (0, 1), in which all of the network is trained.
    time : float
        Share of the time that these are expected to take, their simulations included.
    """

    after: float
    time: float

    def fraction(self, time: float) -> float:
        """Return the share of the steps that are expected by a share of the time."""
        if time < self.time:
            return self.after * time / self.time
        return self.after + (1 - self.after) * (time - self.time) / (1 - self.time)
