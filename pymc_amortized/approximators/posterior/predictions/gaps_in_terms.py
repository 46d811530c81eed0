"""What missing values do to pointwise log likelihoods: every term that reads one of them is not a number, and is named.

A missing value has consequences beyond its own variable: another one's mean may be computed from it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.logs import logger

Terms = dict[str, np.ndarray]
TRIED = 8
"""Draws at which terms are evaluated twice, to see which of them read a whole number that is missing."""


class GapsInTerms:
    """Evaluates the terms of data sets with gaps, and counts what the gaps take away.

    Parameters
    ----------
    spec : ModelSpec
    datasets : DataSets
    """

    def __init__(self, spec: ModelSpec, datasets: DataSets) -> None:
        self.spec, self.datasets = spec, datasets
        self._counts: dict[str, list[tuple[int, int, int]]] = {}

    def terms(
        self, function: Callable[[Mapping[str, np.ndarray], Any], Terms], index: int, given: Mapping[str, np.ndarray]
    ) -> Terms:
        """Evaluate the terms of one data set at draws (n, *shape); NaN where they read a missing value."""
        gaps = {name: mask for name, mask in self._gaps(index) if mask.any()}
        data = self.datasets.one(self.spec, index)
        terms = function(given, _filled(data, gaps, 0))
        if not gaps:
            return terms
        if any(data[name].dtype.kind != "f" for name in gaps):
            few = {name: values[:TRIED] for name, values in given.items()}
            other = function(few, _filled(data, gaps, 1))
            for name, values in terms.items():
                changed = (other[name] != values[:TRIED]).any(axis=0)
                terms[name] = np.where(changed, np.nan, values)
        for name, values in terms.items():
            own = _terms_of(gaps[name], values) if name in gaps else np.zeros(values.shape[1:], bool)
            terms[name] = np.where(own, np.nan, values)
            lost = np.isnan(terms[name]).all(axis=0)
            self._counts.setdefault(name, []).append((int(own.sum()), int((lost & ~own).sum()), lost.size))
        return terms

    def tell(self) -> None:
        """Log which variables have terms that are not numbers, because of gaps."""
        several = self.datasets.batched
        for name, counts in self._counts.items():
            own, others, empty = (sum(k) for k in zip(*((o, r, o + r == n) for o, r, n in counts), strict=True))
            if empty:
                logger.warning(
                    "The log likelihood of %r is NaN for %d of %d data sets: it does not fall apart into terms that "
                    "their gaps leave alone.",
                    name,
                    empty,
                    len(self.datasets),
                )
            elif others:
                logger.warning(
                    "The log likelihood of %r is NaN at %d values%s that the model computes from missing ones; "
                    "az.loo(posterior.one_dataset(dt)) leaves them out.",
                    name,
                    others,
                    f" of {sum(r > 0 for _, r, _ in counts)} data sets" if several else "",
                )
            elif own and not several:
                logger.info(
                    "The log likelihood of %r is NaN at its %d missing values; az.loo(posterior.one_dataset(dt)) "
                    "leaves them out.",
                    name,
                    own,
                )

    def _gaps(self, index: int) -> Iterator[tuple[str, np.ndarray]]:
        for variable in (v for v in self.spec.observed if v.name in self.datasets.missing):
            lengths = {dim: int(n[index]) for dim, n in self.datasets.lengths.items()}
            place = tuple(map(slice, variable.shape_at(lengths)))
            yield variable.name, self.datasets.missing[variable.name][index][place]


def _filled(data: Mapping[str, Any], gaps: Mapping[str, np.ndarray], whole: int) -> dict[str, Any]:
    """One data set with NaN where values are missing; with a whole number where their dtype has no NaN."""
    filled = {n: np.where(mask, np.nan if data[n].dtype.kind == "f" else whole, data[n]) for n, mask in gaps.items()}
    return {**data, **{name: values.astype(data[name].dtype) for name, values in filled.items()}}


def _terms_of(mask: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Which terms (n, ...) are of rows with missing values: a multivariate row has one."""
    return mask.any(axis=tuple(range(terms.ndim - 1, mask.ndim)))
