"""Summary of rows in groups, where groups have parameters of their own.

Rows are summarized within their group, groups across all. What is kept for every group, in the order of groups, is
what the parameters of that group are read from; what is pooled over groups does not depend on their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pymc_amortized.networks.summary.branch import Branch, Options, Values
from pymc_amortized.networks.summary.join import Join, Rows
from pymc_amortized.networks.summary.layers import GUARD, Residual, log_count, masked_mean, moments, row_depth
from pymc_amortized.networks.summary.moments import pair_statistics

__all__ = ["Grouped", "GroupedBranch"]


@dataclass(frozen=True, kw_only=True)
class Grouped(Options):
    """Options of the summary network for rows in groups that have parameters of their own.

    Parameters
    ----------
    width, depth : int
        Of the network after pooling: width of its hidden layers, number of its residual blocks.
    row_width : int
        Width of the networks that see single rows and single groups.
    row_depth : int, optional
        Number of their residual blocks; by default 1 for up to 64 rows or groups and none for more.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.

    Examples
    --------
    Passed on as ``pma.fit_posterior(model, summary=pma.Grouped(row_width=64))``.

    >>> pma.Grouped(row_width=64)
    Grouped(width=128, depth=2, features=None, row_width=64, row_depth=None)
    """

    made_for = "groups"

    row_width: int = 32
    row_depth: int | None = None

    def make_branch(self, join: Join, dim: int) -> Branch:
        """Build the branch of these arrays, for so many parameters."""
        return GroupedBranch(join, self, dim)


class GroupedBranch(Branch):
    """Moments and learned features of groups: in their order, and pooled over them.

    Statistics begin with ``pooled_statistics`` that do not depend on the order of groups, learned
    features with ``pooled_features``.

    Parameters
    ----------
    join : Join
        Rows along one axis with an index of groups; or groups along the first axis, with rows along
        the second if there is one.
    options : Grouped
        Sizes.
    dim : int
        Number of parameters.

    Attributes
    ----------
    index : str or None
        The encoded array that holds the number of each row's group, from 1; 0 is none.
    groups : int
        Number of groups.
    """

    def __init__(self, join: Join, options: Grouped, dim: int) -> None:
        channels, width = join.channels, options.row_width
        self.index = index = join.axes[0].index
        self.groups = groups = join.axes[0].length if index is None else join.axes[0].groups
        self.inner = index is not None or len(join.axes) == 2
        self.pairs = 1 < channels <= 8
        self.uneven = join.varies or index is not None
        pairs = channels * (channels - 1) // 2 + channels * channels
        self.pooled_statistics = 2 * channels + 2 + 2 * join.present + self.inner * 2 * channels
        self.pooled_statistics += self.pairs * (1 + self.inner) * pairs + (self.inner and self.pairs) * 2 * channels
        # In order of use: as many kinds of numbers per group as there is room for.
        alike = join.axes[0].alike
        self.kept, room = 0, 0 if alike else 1_024 // max(groups, 1)
        for size in self._sizes(channels):
            if self.kept + size > room:
                break
            self.kept += size
        self.learned = 0 if alike else max(min(512 // max(groups, 1), 8), 0)
        self.pooled_features = 2 * width
        pooled = self.pooled_features + self.learned * groups
        values = Values.if_few(join, 64, dim) if index is None else None
        super().__init__(join, self.pooled_statistics + self.kept * groups, pooled, values)
        self.row = Residual(
            join.everything + channels, width, row_depth(options.row_depth, math.prod(join.lengths)), width
        )
        self.group = Residual(
            2 * width + 2 * channels + 1 + join.whole.width, width, row_depth(options.row_depth, groups), width
        )
        self.each = nn.Linear(width, self.learned) if self.learned else None

    def _sizes(self, channels: int) -> list[int]:
        """Numbers per group of each kind, as :meth:`_ordered` gives them."""
        sizes = [channels]
        if self.inner and self.pairs:
            sizes.append(channels)
        if self.uneven:
            sizes += [channels] * len(GUARD.shrinkage)
        if self.inner:
            sizes.append(channels)
        if self.uneven:
            sizes.append(1)
        return sizes

    def raw_statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        """Fixed statistics (batch, statistics) of encoded arrays."""
        rows, table = self.join(encoded), self._table(encoded)
        return self.with_values(self._measure(rows, _Groups(rows, table)), rows)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Learned features (batch, pooled) of encoded arrays."""
        rows, table = self.join(encoded), self._table(encoded)
        return self._learn(rows, table, _Groups(rows, table))

    def _table(self, encoded: dict[str, Tensor]) -> _Table:
        number = None if self.index is None else encoded[self.index][..., 0].long()
        return _Table(number, self.groups, self.inner)

    def _measure(self, rows: Rows, found: _Groups) -> Tensor:
        across = moments(found.mean, found.some)
        t = [across.mean, 2 * torch.log(across.scale), log_count(found.exist.sum(1)), log_count(rows.counts)]
        if rows.present is not None:
            present = rows.present.flatten(1, -2).sum(1)
            t += [log_count(present), present / rows.counts.clamp_min(1.0)]
        if self.inner:
            t += [2 * torch.log(found.pooled_scale), masked_mean_log(found)]
        adjusted = None
        if self.pairs:
            t += _pairs(across.normal, across.count, across.scale, self.uneven)
        if self.pairs and self.inner:
            count = found.count.sum(1)
            flat = found.centered / found.pooled_scale.reshape(-1, *[1] * (rows.values.ndim - 2), rows.values.shape[-1])
            inside = _pairs(flat.flatten(1, -2), count, found.pooled_scale, self.uneven)
            adjusted = _adjusted(found.mean, inside[1])
            over = moments(adjusted, found.some)
            t += [*inside, over.mean, 2 * torch.log(over.scale)]
        return torch.cat([*t, self._ordered(found, adjusted)], -1)

    def _ordered(self, found: _Groups, adjusted: Tensor | None) -> Tensor:
        """What is kept for each group: (batch, groups * kept)."""
        parts = [found.mean * found.some]
        if adjusted is not None:
            parts.append(adjusted * found.some)
        if self.uneven:
            parts += [found.mean * found.count / (found.count + k) for k in GUARD.shrinkage]
        if self.inner:
            parts.append(2 * torch.log(found.scale) * found.some)
        if self.uneven:
            parts.append(log_count(found.rows))
        return self._in_order(torch.cat(parts, -1)[..., : self.kept], found.exist)

    def _in_order(self, x: Tensor, exist: Tensor) -> Tensor:
        """Flatten (batch, groups, kept), as long as there are groups at most."""
        x = x * exist
        return nn.functional.pad(x, (0, 0, 0, self.groups - x.shape[1])).flatten(1)

    def _learn(self, rows: Rows, table: _Table, found: _Groups) -> Tensor:
        normal = found.centered / found.pooled_scale.reshape(-1, *[1] * (rows.values.ndim - 2), rows.values.shape[-1])
        each = rows.everything(normal.clamp(-GUARD.limit, GUARD.limit))
        if rows.mask is None:
            h = self.row.hidden(each)
        else:  # of what exists alone: most of a batch is padding, where sizes differ
            there = rows.mask > 0
            h = each.new_zeros(*there.shape, self.row.leave.in_features)
            h[there] = self.row.hidden(each[there])
        h = self.row.leave(table.total(h) / found.rows.clamp_min(1.0))
        exist = found.exist[..., 0]
        everything = torch.cat([masked_mean(h, exist), rows.whole], -1)[:, None].expand(-1, h.shape[1], -1)
        own = [
            h,
            found.mean,
            (2 * torch.log(found.scale)).clamp(-GUARD.limit, GUARD.limit),
            log_count(found.rows),
            everything,
        ]
        g = self.group.hidden(torch.cat(own, -1))
        mean = masked_mean(g, exist)
        spread = masked_mean((g - mean[:, None]).square(), exist)
        # The last layer keeps what is in order and what is pooled to one scale.
        pooled = torch.cat([self.group.leave(mean), torch.sqrt(spread + 1e-4)], -1)
        return pooled if self.each is None else torch.cat([pooled, self._in_order(self.each(g), found.exist)], -1)


class _Table:
    """Sums rows within groups, and gives groups' values back to rows."""

    def __init__(self, number: Tensor | None, groups: int, inner: bool) -> None:
        self.number, self.groups, self.inner = number, groups, inner

    def total(self, x: Tensor) -> Tensor:
        """Sum rows (batch, *axes, width) within groups: (batch, groups, width)."""
        if self.number is None:
            return x.sum(2) if self.inner else x
        batch, _, width = x.shape
        # Slot 0 of each data set takes rows of no group.
        slot = self.number + (self.groups + 1) * torch.arange(batch, device=x.device)[:, None]
        total = x.new_zeros(batch * (self.groups + 1), width).index_add(0, slot.flatten(), x.flatten(0, 1))
        return total.unflatten(0, (batch, -1))[:, 1:]

    def back(self, x: Tensor) -> Tensor:
        """Repeat groups (batch, groups, width) for their rows (batch, *axes, width)."""
        if self.number is None:
            return x[:, :, None] if self.inner else x
        x = nn.functional.pad(x, (0, 0, 1, 0))
        return x.gather(1, self.number[..., None].expand(-1, -1, x.shape[-1]))


class _Groups:
    """Moments of rows within groups: (batch, groups, channels)."""

    def __init__(self, rows: Rows, table: _Table) -> None:
        values = rows.values
        one = values.new_ones(()).expand(*values.shape[:-1], 1)
        mask = one if rows.mask is None else rows.mask[..., None]
        weights = mask if rows.weights is None else rows.weights
        if table.number is not None:  # rows of no group count in none
            grouped = (table.number > 0)[..., None].to(values.dtype)
            mask, weights = mask * grouped, weights * grouped
        self.rows = table.total(mask)
        self.count = table.total(weights).expand(-1, -1, values.shape[-1])
        self.exist = (self.rows > 0).to(values.dtype)
        self.some = (self.count > 0).to(values.dtype)
        self.mean = table.total(values * weights) / self.count.clamp_min(1.0)
        if table.inner:
            centered = (values - table.back(self.mean)) * weights
            # What is constant within groups must not leave the rounding of its mean, a float32, behind.
            self.centered = torch.where(centered.abs() > 2e-6 * (1 + values.abs()), centered, 0.0)
            variance = table.total(self.centered.square())
            self.pooled_scale = torch.sqrt(variance.sum(1) / self.count.sum(1).clamp_min(1.0) + GUARD.floor)
            # One pseudo-row of the pooled variance: groups of one or two rows have none of their own.
            few = self.pooled_scale.square()[:, None]
            self.scale = torch.sqrt((variance + few) / (self.count + 1.0) + GUARD.floor)
        else:  # groups are the rows
            across = moments(self.mean, self.some)
            self.centered, self.pooled_scale = (self.mean - across.mean[:, None]) * self.some, across.scale
            self.scale = torch.ones_like(self.mean)


def masked_mean_log(found: _Groups) -> Tensor:
    """Mean over groups of the log variance within: (batch, channels)."""
    return (2 * torch.log(found.scale) * found.some).sum(1) / found.some.sum(1).clamp_min(1.0)


def _pairs(normal: Tensor, count: Tensor, scale: Tensor, uneven: bool) -> list[Tensor]:
    """Correlations, slopes and log residual variances of rows (batch, n, channels)."""
    n = count.amin(-1, keepdim=True)
    correlation = normal.mT @ normal / n.clamp_min(1.0)[..., None]
    # Pairs of which one may be absent need not give a positive definite matrix: shrink it.
    correlation = correlation.clamp(-1.0, 1.0)
    return list(
        pair_statistics(correlation, scale, GUARD.ridge + GUARD.few / (n + GUARD.few) if uneven else GUARD.ridge)
    )


def _adjusted(mean: Tensor, slopes: Tensor) -> Tensor:
    """Groups' means less what their other channels' means explain: (batch, groups, channels)."""
    channels = mean.shape[-1]
    apart = ~torch.eye(channels, dtype=torch.bool, device=mean.device)
    matrix = mean.new_zeros(len(mean), channels, channels)
    matrix[:, apart] = slopes
    return mean - mean @ matrix.mT
