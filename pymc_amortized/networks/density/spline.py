r"""The monotonic rational-quadratic spline of Durkan et al. (2019), arXiv 1906.04032.

On each bin :math:`[x_k, x_{k+1}]` with width :math:`w`, height :math:`h`, mean slope :math:`s = h
/ w` and slopes :math:`d_k, d_{k+1}` at its ends, with :math:`t = (x - x_k) / w`,

.. math::

    y = y_k + h \frac{s t^2 + d_k t (1 - t)}{s + (d_k + d_{k+1} - 2 s) t (1 - t)}.

Outside of ``[-bound, bound]`` it is the identity; the slope is 1 at both ends, so that it is
smooth there.
"""

import torch
from torch import Tensor

__all__ = ["rational_quadratic", "spline_size"]

BOUND = 5.0
"""In standard deviations of the base: a draw falls outside once in two million."""


def spline_size(bins: int) -> int:
    """Number of raw parameters of one spline: widths, heights and the slopes between bins."""
    return 3 * bins - 1


def _knots(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes of the bins of raw (bins, ...) on [-BOUND, BOUND], and where they start; both alike."""
    bins, smallest = len(raw), 1e-3  # relative, as in the paper
    sizes = raw.softmax(0) * (2 * BOUND * (1 - smallest * bins)) + 2 * BOUND * smallest
    return sizes, sizes.cumsum(0) - sizes - BOUND


def rational_quadratic(x: Tensor, raw: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Transform by a spline.

    The parameters of a spline stand on the first axis: a softmax over a last axis of eight numbers
    cannot be vectorized and takes 18 times as long.

    Parameters
    ----------
    x : Tensor
        (...), the values.
    raw : Tensor
        (3 * bins - 1, ...), unnormalized widths, heights and slopes; zeros give the identity. The
        trailing axes are those of ``x``, or 1 where values share their spline.
    inverse : bool
        Whether to undo the transformation.

    Returns
    -------
    y : Tensor
        (...), the transformed values.
    log_slope : Tensor
        (...), log |dy / dx|.
    """
    bins = (len(raw) + 1) // 3
    widths, left = _knots(raw[:bins])
    heights, lower = _knots(raw[bins : 2 * bins])
    inner = raw[2 * bins :].clamp(-7.0, 7.0).exp()  # the paper's smallest slope is 1e-3
    ends = torch.ones_like(inner[:1])
    slopes = torch.cat([ends, inner, ends])

    clamped = x.clamp(-BOUND, BOUND)
    # A sum of comparisons finds the bin faster than searchsorted does for so few bins.
    index = (clamped >= (lower if inverse else left)[1:]).sum(0, keepdim=True)

    def at(values: Tensor, place: Tensor = index) -> Tensor:
        return values.expand(-1, *x.shape).gather(0, place)[0]

    x0, y0, width, height = at(left), at(lower), at(widths), at(heights)
    d0, d1 = at(slopes), at(slopes, index + 1)
    s = height / width
    bend = d0 + d1 - 2 * s
    if inverse:
        shift = clamped - y0
        bent = shift * bend
        a = height * (s - d0) + bent
        b = height * d0 - bent
        product = 2 * s * shift
        t = product / (b + (b * b + 2 * a * product).clamp_min(0.0).sqrt())
    else:
        t = (clamped - x0) / width
    t = t.clamp(0.0, 1.0)
    rest = 1 - t
    between = t * rest
    denominator = s + bend * between
    if inverse:
        y = x0 + t * width
    else:
        y = y0 + height * (s * t * t + d0 * between) / denominator
    top = d1 * t * t + 2 * s * between + d0 * rest * rest
    log_slope = torch.log(s * s * top / (denominator * denominator))
    inside = x == clamped
    return torch.where(inside, y, x), torch.where(inside, -log_slope if inverse else log_slope, 0.0)
