"""The learning rate over the course of training."""

import math

# However little time there is, Adam's moments want a few steps before the rate is at its peak.
SHORTEST_WARMUP = 20


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
    rising = min((step + 1) / SHORTEST_WARMUP, 1.0)
    if fraction < warmup:
        return min(rising, fraction / warmup)
    falling = 0.5 * (1.0 + math.cos(math.pi * (fraction - warmup) / (1.0 - warmup)))
    return min(rising, falling)
