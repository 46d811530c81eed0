"""The few functions of array libraries in which the density of a row is written."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import special

Array = Any
"""Of whichever library."""

Arrays = Any
"""A namespace of functions, by the names and with the arguments of :data:`NUMPY`: what libraries call differently.

Operators, ``.sum(0)``, ``@`` and indexing are the same everywhere. `stack` makes a new first axis and broadcasts,
`concatenate` and `split` (with the sizes of the parts) are along the first axis, and so is `logsumexp`; `concatenate`
broadcasts the second axis. The second argument of `maximum` and `minimum` may be a number. `log_ndtr` is the logarithm
of the standard normal distribution function, `silu` is ``x * sigmoid(x)``.
"""


def namespace(library: Any, **others: Any) -> Arrays:
    """Make a namespace of the functions that all libraries call alike, and of `others`."""
    same = ("exp", "log", "log1p", "expm1", "tanh", "abs", "where")
    return SimpleNamespace(**{name: getattr(library, name) for name in same}, **others)


NUMPY = namespace(
    np,
    maximum=np.maximum,
    minimum=np.minimum,
    sigmoid=special.expit,
    log_ndtr=special.log_ndtr,
    silu=lambda x: x * special.expit(x),
    softplus=lambda x: np.logaddexp(0.0, x),
    logsumexp=lambda x: special.logsumexp(x, axis=0),
    split=lambda x, sizes: np.split(x, np.cumsum(sizes)[:-1]),
    stack=lambda parts: np.stack(np.broadcast_arrays(*parts)),
    concatenate=lambda parts: np.concatenate(
        [np.broadcast_to(p, (p.shape[0], max(q.shape[1] for q in parts))) for p in parts]
    ),
)


def equal(xp: Arrays, y: Array, level: float) -> Array:
    """Tell which values are a level, but for rounding."""
    return xp.abs(y - level) < 1e-6 * max(1.0, abs(level))
