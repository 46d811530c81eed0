"""Doubt about a result: said aloud, with a number and an advice."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from pymc_amortized.correction.nuts import Failure
from pymc_amortized.correction.rounds import Draws, good_enough
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.density.log_density import LogDensityByVariable
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.numerics.importance import k_threshold
from pymc_amortized.numerics.uniformity import holm

logger = logging.getLogger("pymc_amortized")

FAR_OUTSIDE = 0.1
"""Data this far beyond the simulated range, in units of its width, are warned about."""
NOVEL = 0.01
"""Chance of any false alarm in a call, however many data sets: it is met often, and must not become noise."""

_said: WeakKeyDictionary[ModelSpec, set[str]] = WeakKeyDictionary()


def say_that_uncorrected(spec: ModelSpec, obstacle: str, number: int, total: int) -> None:
    """Log, once for each model and reason if it holds for all data sets, that draws are the network's own."""
    said = _said.setdefault(spec, set())
    if number < total:
        logger.warning("Draws of %d of %d data sets are the network's own, uncorrected: %s.", number, total, obstacle)
    elif obstacle not in said:
        said.add(obstacle)
        logger.warning("Draws are the network's own, uncorrected: %s.", obstacle)


def warn_of_extrapolation(
    distances: Mapping[str, np.ndarray],
    labels: np.ndarray,
    context: Collection[str],
    ranges: Mapping[str, tuple[float, float]],
) -> None:
    """Log of which variables a data set lies beyond anything that was simulated; distances (n,)."""
    for name, distance in distances.items():
        far = int((distance > FAR_OUTSIDE).sum())
        if far:
            worst = int(np.argmax(distance))
            logger.warning(
                "Some values of %r lie beyond anything the model simulated (%.4g to %.4g), by %.2g times that range%s: "
                "the network extrapolates. Check units, or widen %s.",
                name,
                *ranges[name],
                distance[worst],
                "" if len(labels) == 1 else f" in {far} of {len(labels)} data sets, most in {labels[worst]}",
                f"its source in context[{name!r}]" if name in context else "the priors",
            )


def warn_of_novelty(pvalues: np.ndarray, labels: np.ndarray) -> None:
    """Log which data sets are unlike anything the model simulates; p-values (n,) may be NaN."""
    if np.isnan(pvalues).all():
        return
    novel = int((holm(pvalues) < NOVEL).sum())
    if not novel:
        return
    smallest = int(np.argmin(pvalues))
    which = "The data set is" if len(pvalues) == 1 else f"{novel} of {len(pvalues)} data sets are"
    where = "" if len(pvalues) == 1 else f" at data set {labels[smallest]}, with allowance for their number"
    logger.warning(
        "%s unlike what the model simulates (ood_pvalue %.1g%s): the network extrapolates, and the model may not fit. "
        "pymc_amortized.check_misspecification tells what is unusual.",
        which,
        pvalues[smallest],
        where,
    )


def warn_of_many_gaps(spec: ModelSpec, datasets: DataSets, rates: Mapping[str, Any]) -> None:
    """Log where more values are missing than in any simulation."""
    for variable in (v for v in spec.observed if v.missing):
        name = variable.name
        mask, rate = datasets.missing[name], rates.get(name)
        if callable(rate) or rate is None:
            continue
        existing = (~datasets.outside(variable)).reshape(len(mask), -1).sum(1)
        shares = mask.reshape(len(mask), -1).sum(1) / np.maximum(existing, 1)
        worst = int(np.argmax(shares))
        if shares[worst] > min(2 * rate, 1) + FAR_OUTSIDE:
            logger.warning(
                "Of %r, %.0f%% are missing%s; training knew 0 to %.0f%%: the network extrapolates. "
                "Train with a higher rate in missing[%r].",
                name,
                100 * shares[worst],
                "" if len(shares) == 1 else f" in data set {datasets.labels[worst]}",
                100 * min(2 * rate, 1),
                name,
            )


def warn_of_undefined(results: list[Draws]) -> None:
    """Log at how many proposals the model's density was not a number."""
    undefined = sum(r.undefined for r in results)
    if undefined:
        logger.warning(
            "The model's log density was NaN or infinite at %d of %d proposals, which got no weight: "
            "look for operations in the model that overflow.",
            undefined,
            sum(r.log_weights.size for r in results),
        )


def warn_of_failures(failures: list[Failure], labels: np.ndarray) -> None:
    """Log which data sets needed NUTS and have no converged chains, and what to do."""
    total = len(labels)
    by_reason: dict[str, list[Failure]] = {}
    for failure in failures:
        by_reason.setdefault(failure.reason, []).append(failure)
    for reason, some in by_reason.items():
        which = "The draws are" if total == 1 else f"Draws of {len(some)} of {total} data sets are"
        where = "" if total == 1 else f" (the first: {labels[some[0].index]})"
        details = f" ({some[0].details})" if some[0].details else ""
        logger.warning(
            '%s marked "failed"%s and should not be used: %s%s. %s',
            which,
            where,
            reason,
            details,
            "Look at the model there: pm.sample on posterior.to_model(...), with more tuning or another "
            "parametrization."
            if details
            else "Allow more NUTS, or train longer (posterior.continue_training) for better importance weights.",
        )


def warn_of_poor_weights(results: list[Draws], labels: np.ndarray, *, gaps: bool = False) -> None:
    """Log which data sets have a Pareto k above the threshold, and what to do."""
    _warn_of_few(results, labels)
    poor = [
        (r.weights.pareto_k, str(label), r.log_weights.size)
        for label, r in zip(labels, results, strict=True)
        if r.weights is not None and not r.weights.reliable
    ]
    if not poor:
        return
    k, label, proposals = max(poor)
    which = "The importance weights have" if len(results) == 1 else f"{len(poor)} of {len(results)} data sets have"
    where = "" if len(results) == 1 else f" at data set {label}"
    logger.warning(
        "%s a Pareto k above %.2f (largest: %.2f%s): corrected draws cannot be trusted there. Let "
        "correction='auto' go further, train longer (posterior.continue_training), check that the data are like what "
        "the model simulates, or run pm.sample on %s.",
        which,
        k_threshold(proposals),
        k,
        where,
        "a model of what is present" if gaps else "posterior.to_model(...)",
    )


def _warn_of_few(results: list[Draws], labels: np.ndarray) -> None:
    """Log where weights are reliable, but concentrate on few proposals."""
    few = [
        (r.weights.ess, r.weights.pareto_k, r.weights.heaviest, str(label))
        for label, r in zip(labels, results, strict=True)
        if r.weights is not None and r.weights.reliable and not good_enough(r.weights, r.theta[..., 0].size)
    ]
    if few:
        ess, k, heaviest, label = min(few)
        logger.warning(
            "The weights of %d of %d data sets count on few proposals (effective sample size %.0f, Pareto k %.2f, one "
            "has %.1f%% of all%s): estimates are noisy, and standard deviations may be too small. Train longer "
            "(posterior.continue_training), or let correction='auto' go further.",
            len(few),
            len(results),
            ess,
            k,
            100 * heaviest,
            "" if len(results) == 1 else f" at data set {label}",
        )


def explain_impossible(
    spec: ModelSpec, datasets: DataSets, results: list[Draws], compile_kwargs: CompileKwargs | None
) -> None:
    """Find out why no proposal for a data set is possible under the model.

    Raises
    ------
    ValueError
        When it is because of a value that the model cannot produce.
    """
    for index, result in enumerate(results):
        if not np.all(np.isneginf(result.log_weights)) or any(m[index].any() for m in datasets.missing.values()):
            continue
        theta = result.theta.reshape(-1, spec.dim)
        fixed = {v.name: spec.held[v.name] for v in spec.unchanging}
        given = {**fixed, **datasets.one(spec, index)}
        parts = LogDensityByVariable(spec, compile_kwargs)(theta, given)
        where = f" of data set {datasets.labels[index]}" if datasets.batched else ""
        for variable in spec.observed:
            _refuse_impossible_value(variable.name, parts[variable.name], given[variable.name], where)
        names = [n for n, part in parts.items() if not np.isfinite(part).any()]
        scalars = {c.name: given[c.name].item() for c in spec.context if not c.shape}
        if names and scalars and {*names} <= {p.name for p in spec.parameters}:
            raise ValueError(
                f"the context {scalars}{where}: the prior of {names} has no density there at any proposed parameter; "
                "these values may be outside of what it is defined for"
            )
        logger.warning(
            "No proposed parameter%s has a finite log density (%s): its draws are uncorrected.",
            where,
            ", ".join(names) or "jointly",
        )


def _refuse_impossible_value(name: str, log_density: np.ndarray, value: Any, where: str) -> None:
    part = log_density.reshape(len(log_density), -1)
    never = np.all(~np.isfinite(part), axis=0)
    if not never.any():
        return
    element = int(np.argmax(never))
    shown = value.flat[element] if part.shape[1] == value.size else value
    raise ValueError(
        f"the value {shown} of {name!r}{where} (element {element}) has no density under the model at any proposed "
        "parameter: it is outside the variable's support, or far from anything the prior can produce"
    )
