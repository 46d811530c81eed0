r"""The shape of what a linear model leaves: fixed statistics that parameters hardly move.

A summary that is learned for the parameters is blind to what is not about them: outliers and another family of noise
leave it where it was. Of the residuals r of each observed channel, from a linear regression within the data set on what
is given beside it, and in units of their own scale, these are

- skewness, log kurtosis and the log of the largest |r|: the family of the noise, and outliers;
- where rows have an order, the mean product of neighbours: dependence between rows;
- with f the standardized fit, the means of :math:`r f^2` and :math:`r f^3` (a wrong link: Ramsey 1969, "Tests for
  specification errors"), of :math:`r^2 f` and :math:`r^2 f^2` (a wrong variance: Breusch & Pagan 1979, White 1980).

Series are regressed on their last value too. In groups residuals are from the group's mean, and the groups' means and
log variances have a shape of their own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.summary.branches import structural_joins
from pymc_amortized.networks.summary.join import EncodedArray, Join, Rows, trimmed

__all__ = ["ShapeStatistics"]

FLOOR = 1e-10  # of a variance, beside encoded values of order one
ALONE = ("skewness", "kurtosis", "largest", "neighbours")
UNORDERED = ALONE[:3]
FITTED = ("curvature", "cubic curvature", "variance trend", "variance curvature")


class ShapeStatistics:
    """Shapes of the residuals of observed arrays.

    Parameters
    ----------
    arrays : sequence of EncodedArray
    layout : DataLayout
    """

    def __init__(self, arrays: Sequence[EncodedArray], layout: DataLayout) -> None:
        self.arrays, self.layout = tuple(arrays), layout
        joins = structural_joins(arrays, layout)
        self._shapes = [_Shape(join, i) for join in joins for i, a in enumerate(join.arrays) if _has_shape(a)]

    @property
    def names(self) -> list[str]:
        """What each statistic is."""
        return [name for shape in self._shapes for name in shape.names]

    def __call__(self, encoded: dict[str, Tensor]) -> Tensor:
        """Encoded arrays -> (batch, statistics), float64 on the CPU."""
        piece = trimmed({name: values.cpu() for name, values in encoded.items()}, self.arrays, self.layout)
        joined: dict[Join, Rows] = {}
        parts = []
        for shape in self._shapes:
            if shape.join not in joined:
                joined[shape.join] = shape.join(piece)
            parts.append(shape(joined[shape.join]))
        batch = len(next(iter(encoded.values())))
        return torch.cat(parts, 1) if parts else torch.zeros(batch, 0, dtype=torch.float64)


def _has_shape(array: EncodedArray) -> bool:
    """Whether an observed array can hold at least eight values: of fewer there is no shape to speak of."""
    return not array.given and array.groups == 0 and array.width() // array.channels >= 8


def _suffixes(channels: int) -> list[str]:
    return [""] if channels == 1 else [f" (channel {i})" for i in range(channels)]


class _Shape:
    """Statistics of one observed array of a join."""

    def __init__(self, join: Join, index: int) -> None:
        self.join, array = join, join.arrays[index]
        starts = [sum(join.sizes[:i]) for i in range(len(join.sizes) + 1)]
        self.alone = not join.axes  # values with a meaning of their own each: all together are the rows
        self.channels = list(range(starts[index], starts[index + 1]))
        given = [i for i, a in enumerate(join.arrays) if a.given or a.groups]
        covariates = [c for i in given for c in range(starts[i], starts[i + 1])]
        self.covariates = [] if self.alone or len(covariates) > 24 else covariates  # of a regression in one data set
        kinds = [axis.kind for axis in join.axes]
        self.lagged = kinds == ["sequence"]
        self.grouped = len(kinds) == 2 and kinds[0] == "groups"
        fitted = bool(self.covariates) or self.lagged
        self.ordered = all(kind == "sequence" for kind in kinds)
        own = [*(ALONE if self.ordered else UNORDERED), *(FITTED if fitted else ())]
        own += [f"{name} of {what}" for what in ("group means", "group variances") * self.grouped for name in UNORDERED]
        # up to four channels are told apart; of more, means and the largest absolute values
        self.fitted, self.pooled = fitted, not self.alone and len(self.channels) > 4
        suffixes = [" (mean)", " (largest)"] if self.pooled else _suffixes(1 if self.alone else len(self.channels))
        self.names = [f"{array.name}: {name}{suffix}" for suffix in suffixes for name in own]

    def __call__(self, rows: Rows) -> Tensor:
        values = rows.values.double()
        weights = torch.ones(1) if rows.weights is None else rows.weights
        weights = weights.double().expand_as(values)
        if self.alone:
            return _alone(values[:, self.channels], weights[:, self.channels])
        each = [self._channel(values, weights, c) for c in self.channels]
        if not self.pooled:
            return torch.cat(each, 1)
        stacked = torch.stack(each)
        largest = stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]
        return torch.cat([stacked.mean(0), largest], 1)

    def _channel(self, values: Tensor, weights: Tensor, channel: int) -> Tensor:
        y, w, given = values[..., channel], weights[..., channel], values[..., self.covariates]
        groups = []
        if self.grouped:
            count = w.sum(2)
            mean = (y * w).sum(2) / count.clamp_min(1.0)
            y = (y - mean[..., None]) * w
            spread = torch.log(y.square().sum(2) / count.clamp_min(1.0) + FLOOR)
            some = (count > 0).double()
            groups = [_alone(part * some, some)[:, : len(UNORDERED)] for part in (mean, spread)]
        if self.lagged:
            before = torch.nn.functional.pad(y[:, :-1], (1, 0))
            w = w * torch.nn.functional.pad(w[:, :-1], (1, 0))
            given = torch.cat([given, before[..., None]], -1)
        y, w, given = y.flatten(1), w.flatten(1), given.flatten(1, -2)
        own = _fitted(y, w, given) if self.fitted else _alone(y, w)
        if not self.ordered:  # rows that have no order have no neighbours
            own = torch.cat([own[:, : len(UNORDERED)], own[:, len(ALONE) :]], 1)
        return torch.cat([own, *groups], 1)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def _standardized(values: Tensor, weights: Tensor) -> Tensor:
    """Values (batch, n) with mean 0 and scale 1 where weights are 1; 0 elsewhere."""
    centered = (values - _mean(values, weights)[:, None]) * weights
    return centered / torch.sqrt(_mean(centered.square(), weights) + FLOOR)[:, None]


def _alone(values: Tensor, weights: Tensor) -> Tensor:
    """Shape of values (batch, n) about their mean: (batch, 4)."""
    r = _standardized(values, weights)
    pairs = weights[:, 1:] * weights[:, :-1]
    return torch.stack(
        [
            torch.asinh(_mean(r**3, weights)),
            torch.log(_mean(r**4, weights) + 1e-3),  # constant values have none
            torch.log(r.abs().amax(1) + 1e-3),
            _mean(r[:, 1:] * r[:, :-1], pairs),
        ],
        1,
    )


def _fitted(values: Tensor, weights: Tensor, given: Tensor) -> Tensor:
    """Shape of the residuals of values (batch, n) regressed on what is given (batch, n, k): (batch, 8)."""
    design = torch.cat([torch.ones_like(given[..., :1]), given], -1) * weights[..., None]
    gram = design.mT @ design  # one-hot covariates are collinear: a ridge, relative to their size
    penalty = torch.diag_embed(1e-4 * (gram.diagonal(dim1=-2, dim2=-1) + 1e-6))
    slopes, _ = torch.linalg.solve_ex(gram + penalty, design.mT @ (values * weights)[..., None])
    fit = (design @ slopes)[..., 0]
    residual = _standardized(values * weights - fit, weights)
    f = _standardized(fit, weights)
    products = [residual * f**2, residual * f**3, residual**2 * f, residual**2 * f**2]
    means = torch.stack([torch.asinh(_mean(product, weights)) for product in products], 1)
    return torch.cat([_alone(residual, weights), means], 1)
