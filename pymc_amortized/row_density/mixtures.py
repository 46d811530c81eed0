r"""Mixtures of normal densities in units that parameters move: what a network says of a number, and of a count.

A head of the network, numbers on the first axis, is a location :math:`m` and a log scale :math:`s` of the units, and
log weights, locations and log scales of :math:`k` components:

.. math:: u = (z - m) e^{-s}, \qquad q(z) = e^{-s} \sum_k w_k\, N(u;\, \mu_k, e^{\lambda_k}).

All is infinitely often differentiable, so that gradients are what NUTS expects of them.
"""

import math

import numpy as np

from pymc_amortized.row_density.namespaces import NUMPY, Array, Arrays

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def normalized(xp: Arrays, head: Array, k: int) -> Array:
    """A head (2 + 3 k, rows) with normalized log weights and bounded log scales."""
    location, log_scale, logits, locations, widths = xp.split(head, [1, 1, k, k, k])
    largest = 12.0  # of log scales, reached smoothly: e^12 is 160,000
    log_scale, widths = (largest * xp.tanh(x / largest) for x in (log_scale, widths))
    return xp.concatenate([location, log_scale, logits - xp.logsumexp(logits)[None], locations, widths])


def log_density(xp: Arrays, head: Array, k: int, z: Array) -> Array:
    """Log density (rows,) at z (rows,), by a normalized head."""
    location, log_scale, log_weights, locations, widths = _parts(xp, head, k)
    u = (z - location) * xp.exp(-log_scale)
    e = (u[None] - locations) * xp.exp(-widths)
    return xp.logsumexp(log_weights - 0.5 * e * e - widths) - HALF_LOG_2PI - log_scale


def log_mass(xp: Arrays, head: Array, k: int, low: Array, width: Array, first: Array, last: Array) -> Array:
    """Log mass (rows,) of the interval from `low` on; `first` and `last` say where it has no lower or upper end."""
    location, log_scale, log_weights, locations, widths = _parts(xp, head, k)
    unit = xp.exp(-log_scale)
    scale = xp.exp(-widths)
    a = (((low - location) * unit)[None] - locations) * scale
    b = a + (width * unit)[None] * scale
    log_masses = xp.where(first[None], xp.log_ndtr(b), log_interval(xp, a, b - a))
    log_masses = xp.where(last[None], xp.log_ndtr(-a), log_masses)
    return xp.logsumexp(log_weights + log_masses)


def log_interval(xp: Arrays, a: Array, width: Array) -> Array:
    r"""``log(Phi(a + width) - Phi(a))``, to about ten digits however narrow or far out the interval is.

    With the middle :math:`c` and half the width :math:`h`, narrow intervals use

    .. math:: \int_{c-h}^{c+h} \phi = 2 h \phi(c) \sum_j h^{2j} He_{2j}(c) / (2j + 1)!,

    wide ones the difference of two logarithms of the distribution function, on the side where that is small.
    """
    h = 0.5 * width
    c = -xp.abs(a + h)
    # up to 0.25, in units of a component and of one over the distance from its middle, the first term left out of the
    # series is below 1e-10
    narrow = h * xp.maximum(-c, 1.0) < 0.25
    n, m = xp.where(narrow, c, 0.0), xp.where(narrow, h, 0.1)
    c2, h2 = n * n, m * m
    series = (
        h2 * (c2 - 1.0) / 6.0
        + h2 * h2 * ((c2 - 6.0) * c2 + 3.0) / 120.0
        + h2 * h2 * h2 * (((c2 - 15.0) * c2 + 45.0) * c2 - 15.0) / 5040.0
    )
    near = -0.5 * c2 - HALF_LOG_2PI + xp.log(2.0 * m) + xp.log1p(series)
    c, h = xp.where(narrow, 0.0, c), xp.where(narrow, 1.0, h)
    upper, lower = xp.log_ndtr(c + h), xp.log_ndtr(c - h)
    far = upper + xp.log1p(-xp.exp(lower - upper))
    return xp.where(narrow, near, far)


def draw(rng: np.random.Generator, head: np.ndarray, k: int) -> np.ndarray:
    """Draw z (rows,) by a normalized head."""
    location, log_scale, log_weights, locations, widths = _parts(NUMPY, head, k)
    component = choice(rng, log_weights)[None]
    mean = np.take_along_axis(locations, component, 0)[0]
    spread = np.exp(np.take_along_axis(widths, component, 0)[0])
    return location + np.exp(log_scale) * (mean + spread * rng.standard_normal(len(mean)))


def choice(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    """Draw an index (rows,) by unnormalized log probabilities (levels, rows)."""
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=0)


def _parts(xp: Arrays, head: Array, k: int) -> tuple[Array, ...]:
    """Location and log scale (rows,) of the units, and log weights, locations and log scales of components."""
    units, log_weights, locations, widths = xp.split(head, [2, k, k, k])
    return units[0], units[1], log_weights, locations, widths
