"""The learning rate over the course of training, and when its last layers go on alone."""

import math
from dataclasses import dataclass


def scheduled(fraction: float, step: int, warmup: float) -> float:
    """Return the share of the peak learning rate: a linear rise, half a cosine down to zero.

    Parameters
    ----------
    fraction : float
        Share of the training that is done, by steps or by time, in [0, 1].
    step : int
        Steps made since the schedule began.
    warmup : float
        Share of the training over which the rate rises.

    Returns
    -------
    float
        In [0, 1].
    """
    fraction = min(max(fraction, 0.0), 1.0)
    rising = min((step + 1) / 20, 1.0)  # however little time there is, Adam's moments want a few steps first
    if fraction < warmup:
        return min(rising, fraction / warmup)
    falling = 0.5 * (1.0 + math.cos(math.pi * (fraction - warmup) / (1.0 - warmup)))
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
