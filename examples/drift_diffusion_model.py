"""A drift-diffusion model: an exact and fast simulator, and its density, which the learned one is compared with.

Evidence starts at `bias` * `boundary`, moves with `drift` and unit noise, and is absorbed at 0 (choice -1) or at
`boundary` (choice 1); a response takes the time of that plus `ndt`. The simulator walks from interval to interval: from
the middle of a symmetric one, which side is left and when are independent, and the time is that of a walk without
drift, kept with probability exp(-drift^2 time / 2) (Tuerlinckx et al. 2001). The density is that of Navarro & Fuss
(2009).
"""

import numba
import numpy as np
import pytensor.tensor as pt

GRID = 200_000
LARGE = np.arange(1, 40)  # terms of the series; both have converged to 1e-12 by then
SMALL = np.arange(-12, 13)


def _exit_times() -> np.ndarray:
    """Quantiles of the time at which a walk leaves [-1, 1], at (i + 1/2) / GRID."""
    t = np.geomspace(5e-3, 30, 40_000)[:, None]
    k = np.arange(0, 60)
    late = (4 / np.pi) * ((-1.0) ** k / (2 * k + 1) * np.exp(-((2 * k + 1) ** 2) * np.pi**2 * t / 8)).sum(1)
    u = (np.arange(GRID) + 0.5) / GRID
    cdf = np.maximum.accumulate(np.clip(1 - late, 0, 1))
    kept = np.flatnonzero(np.diff(cdf, prepend=-1) > 0)
    return np.interp(u, cdf[kept], t[kept, 0])


EXIT_TIMES = _exit_times()


@numba.njit(cache=False)
def _walk(drift, boundary, bias, ndt, table, rng):
    out = np.empty((len(drift), 2))
    for i in range(len(drift)):
        v, a = drift[i], boundary[i]
        x, time = bias[i] * a, ndt[i]
        while True:
            r = min(x, a - x)
            reach = r
            if abs(v) * r > 1.0:
                reach = 1.0 / abs(v)  # short steps are kept more often
            while True:
                place = rng.random() * len(table) - 0.5
                if place >= len(table) - 1:  # the tail is exponential
                    t = table[-1] + rng.standard_exponential() * 8 / np.pi**2
                elif place <= 0:
                    t = table[0]
                else:
                    j = int(place)
                    t = table[j] + (place - j) * (table[j + 1] - table[j])
                t *= reach * reach
                if rng.random() < np.exp(-0.5 * v * v * t):
                    break
            time += t
            x += reach if rng.random() < 1 / (1 + np.exp(-2 * v * reach)) else -reach
            if x < 1e-9 * a or x > (1 - 1e-9) * a:
                break
        out[i, 0] = time
        out[i, 1] = 1.0 if x > 0.5 * a else -1.0
    return out


def simulate(drift, boundary, bias, ndt, rng=None, size=None):
    """Response times and choices, (*size, 2)."""
    shape = tuple(size) if size is not None else np.broadcast_shapes(*map(np.shape, (drift, boundary, bias, ndt)))
    flat = [np.ascontiguousarray(np.broadcast_to(p, shape), dtype=float).ravel() for p in (drift, boundary, bias, ndt)]
    return _walk(*flat, EXIT_TIMES, rng).reshape(*shape, 2)


def log_density(value, drift, boundary, bias, ndt):
    """Navarro & Fuss's density of rows (rows, 2), in PyTensor."""
    rt, choice = value[..., 0], value[..., 1]
    t = pt.maximum(rt - ndt, 1e-9)
    v = pt.where(choice > 0, -drift, drift)
    w = pt.where(choice > 0, 1 - bias, bias)
    u = t / boundary**2
    short = pt.minimum(u, 0.4)[..., None]
    place = (w + 0 * u)[..., None] + 2 * SMALL
    small = (place * pt.exp(-(place**2) / (2 * short))).sum(-1) / pt.sqrt(2 * np.pi * short[..., 0] ** 3)
    long = pt.maximum(u, 0.2)[..., None]
    large = np.pi * (LARGE * pt.exp(-0.5 * LARGE**2 * np.pi**2 * long) * pt.sin(LARGE * np.pi * w[..., None])).sum(-1)
    density = pt.log(pt.maximum(pt.where(u < 0.3, small, large), 1e-300))
    log_p = density - v * boundary * w - 0.5 * v**2 * t - 2 * pt.log(boundary)
    return pt.where(rt > ndt, log_p, -np.inf)
