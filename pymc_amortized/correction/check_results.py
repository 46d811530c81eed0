"""What speaks against draws: checks of data, of proposals and their weights, and of chains, each returning doubts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pymc_amortized.correction.doubt import Doubt, Kind, labels_of, say_how_many, say_where
from pymc_amortized.correction.draws import Draws
from pymc_amortized.correction.target import PosteriorTarget
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.density.log_density import LogDensityByVariable
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import INTERPRETED
from pymc_amortized.networks.encoding.outside import Outside
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.numerics.uniformity import holm

FAILURE_ADVICE = {
    "failed": "Look at the model there: pm.sample on posterior.to_model(...), with more tuning or another "
    "parametrization.",
    "not reached": "Allow more (max_time=, max_nuts=), or train longer (posterior = posterior.continue_training()).",
}


def check_range(outside: Mapping[str, Outside], labels: np.ndarray, context: Collection[str]) -> list[Doubt]:
    """Find variables of which a data set lies beyond anything that was simulated."""
    found = []
    for name, one in outside.items():
        far = one.distance > THRESHOLDS.far_outside
        if not far.any():
            continue
        worst = int(np.argmax(one.distance))
        low, high, value = one.low[worst], one.high[worst], one.value[worst]
        at = ", ".join(map(str, one.element[worst]))
        element = f"{name}[{at}]" if at else name
        where = "" if len(labels) == 1 else f" in {far.sum()} of {len(labels)} data sets, most in {labels[worst]}"
        source = f"its source in context[{name!r}]" if name in context else "the priors"
        found.append(
            Doubt(
                "extrapolation",
                f"Some values of {name!r} lie beyond anything the model simulated ({low:.4g} to {high:.4g} for "
                f"{element}, which is {value:.4g}), by {one.distance[worst]:.2g} times that "
                f"{'range' if high > low else 'value'}{where}: the network extrapolates",
                f"Check units, or widen {source}.",
                float(one.distance[worst]),
                labels_of(labels, far),
            )
        )
    return found


def check_gaps(spec: ModelSpec, datasets: DataSets, rates: Mapping[str, Any]) -> list[Doubt]:
    """Find variables of which more values are missing than in any simulation."""
    found = []
    for variable in (v for v in spec.observed if v.missing):
        name = variable.name
        mask, rate = datasets.missing[name], rates.get(name)
        if callable(rate) or rate is None:
            continue
        existing = (~datasets.outside(variable)).reshape(len(mask), -1).sum(1)
        shares = mask.reshape(len(mask), -1).sum(1) / np.maximum(existing, 1)
        worst, most = int(np.argmax(shares)), min(2 * rate, 1)
        if shares[worst] > most + THRESHOLDS.far_outside:
            where = "" if len(shares) == 1 else f" in data set {datasets.labels[worst]}"
            found.append(
                Doubt(
                    "gaps",
                    f"Of {name!r}, {100 * shares[worst]:.0f}% are missing{where}; training knew 0 to {100 * most:.0f}%"
                    ": the network extrapolates",
                    f"Train with a higher rate in missing[{name!r}].",
                    float(shares[worst]),
                    labels_of(datasets.labels, shares > most + THRESHOLDS.far_outside),
                )
            )
    return found


def check_unlike(
    found: Sequence[Doubt], pvalues: np.ndarray, labels: np.ndarray, models: Sequence[str] = ()
) -> list[Doubt]:
    """Find data sets that are unlike anything the model simulates, and say it once.

    Parameters
    ----------
    found : sequence of Doubt
        What is known of the data already: values out of range, too many gaps. Where a novel data set is among these,
        the first of them says both.
    pvalues, labels, models
        As in :func:`check_novelty`.
    """
    said: set[int | str] = set()
    joined = []
    pvalue_of = dict(zip(labels_of(labels, np.arange(len(labels))), pvalues, strict=True))
    unlike = {label for doubt in check_novelty(pvalues, labels, models) for label in doubt.datasets}
    for doubt in found:
        fresh = unlike & {*doubt.datasets} - said
        if fresh:
            like = f"any of the models {list(models)} simulates" if models else "the model simulates"
            smallest = min(pvalue_of[label] for label in fresh)
            unlike_what = f"such data are unlike what {like} (ood_pvalue {smallest:.1g})"
            doubt = replace(doubt, finding=f"{doubt.finding}, and {unlike_what}")
        joined.append(doubt)
        said |= fresh
    return joined + check_novelty(pvalues, labels, models, said)


def check_novelty(
    pvalues: np.ndarray, labels: np.ndarray, models: Sequence[str] = (), said: Collection[int | str] = ()
) -> list[Doubt]:
    """Find data sets that are unlike anything the model simulates.

    Parameters
    ----------
    pvalues : ndarray (n,)
        All NaN where there is no reference.
    labels : ndarray (n,)
    models : sequence of str
        Where several are compared, their names: the p-values are then the largest of them.
    said : collection of labels
        Data sets of which it is said already.
    """
    if np.isnan(pvalues).all():
        return []
    novel = holm(pvalues) < THRESHOLDS.novel
    novel &= [label not in said for label in labels_of(labels, np.arange(len(labels)))]
    if not novel.any():
        return []
    smallest, total = int(np.argmin(np.where(novel, pvalues, np.inf))), len(pvalues)
    where = say_where(labels, smallest)
    if models:
        like = f"any of the models {list(models)} simulates"
        meaning = (
            "none of them may be right, and the probabilities say only which one the network puts nearest",
            "Look for errors in the data, widen the priors, or add a model.",
        )
    else:
        like, where = "the model simulates", where and f"{where}, with allowance for their number"
        meaning = (
            "the network extrapolates, and the model may not fit",
            "pymc_amortized.check_misspecification tells what is unusual.",
        )
    subject = say_how_many(int(novel.sum()), total, "The data set is", "{} are")
    finding = f"{subject} unlike what {like} (ood_pvalue {pvalues[smallest]:.1g}{where}): {meaning[0]}"
    return [Doubt("novelty", finding, meaning[1], float(pvalues[smallest]), labels_of(labels, novel))]


def check_corrected(obstacles: Sequence[str | None], labels: np.ndarray) -> list[Doubt]:
    """Find data sets whose draws stay the network's own, because of an obstacle to their density."""
    without = np.flatnonzero([bool(obstacle) for obstacle in obstacles])
    if len(without) == 0:
        return []
    every = len(without) == len(labels)
    subject = "Draws" if every else f"Draws of {len(without)} of {len(labels)} data sets"
    finding = f"{subject} are the network's own, uncorrected: {obstacles[without[0]]}"
    return [Doubt("uncorrected", finding, datasets=labels_of(labels, without), once=every)]


def check_calibrated(off: Sequence[str]) -> list[Doubt]:
    """Bring to every result what corrected draws of simulated data sets were off in."""
    if not off:
        return []
    finding = f"Corrected draws of simulated data sets were off ({'; '.join(off)}): a mode may be missed here too"
    advice = "Compare with pm.sample_smc on posterior.to_model(...); check_calibration(posterior, observed) tells."
    return [Doubt("calibration", finding, advice, once=True)]


def check_symmetric(target: PosteriorTarget, results: Sequence[Draws]) -> list[Doubt]:
    """Find data sets whose own density does not have the symmetries that simulations have."""
    if target.symmetries is None:
        return []
    known = [i for i, obstacle in enumerate(target.obstacles) if obstacle is None]
    without = np.array([i for i in known if target.symmetries_at(i, results[i].theta) is None], dtype=int)
    if len(without) == 0:
        return []
    labels = target.datasets.labels
    subject = say_how_many(len(without), len(results), "The posterior of the data set is", "The posteriors of {} are")
    finding = f"{subject} not symmetric as those of simulations are: the network's own draws are spread over all images"
    return [Doubt("symmetry", finding, "Correct them: correction='auto'.", datasets=labels_of(labels, without))]


def check_defined(results: Sequence[Draws], labels: np.ndarray) -> list[Doubt]:
    """Count the proposals at which the model's density was not a number."""
    undefined = np.array([r.undefined for r in results])
    total = undefined.sum()
    if not total:
        return []
    finding = (
        f"The model's log density was NaN or infinite at {total} of {sum(r.log_weights.size for r in results)} "
        "proposals, which got no weight"
    )
    advice = "Look for operations in the model that overflow."
    return [Doubt("undefined", finding, advice, float(total), labels_of(labels, undefined > 0))]


def check_failures(results: Sequence[Draws], labels: np.ndarray) -> list[Doubt]:
    """Find data sets whose draws are not settled by any rung, or not reached by the last; and divergences of NUTS."""
    by_reason: dict[tuple[str, str], list[int]] = {}
    for i, result in enumerate(results):
        if result.failure:
            by_reason.setdefault((result.stage, result.failure.reason), []).append(i)
    found = []
    for (stage, reason), some in by_reason.items():
        first = results[some[0]].failure
        assert first is not None
        subject = say_how_many(len(some), len(labels), "The draws are", "Draws of {} are")
        where = "" if len(labels) == 1 else f" (the first: {labels[some[0]]})"
        details = f" ({first.details})" if first.details else ""
        finding = f'{subject} marked "{stage}"{where} and should not be used: {reason}{details}'
        kind: Kind = "failed" if stage == "failed" else "not reached"
        found.append(Doubt(kind, finding, FAILURE_ADVICE[kind], len(some), labels_of(labels, np.array(some))))
    return found + _check_divergences(results, labels)


def _check_divergences(results: Sequence[Draws], labels: np.ndarray) -> list[Doubt]:
    """Find data sets whose chains of NUTS diverged, but for those that failed."""
    numbers = [r.convergence.divergences if r.convergence and not r.failure else 0 for r in results]
    some = np.flatnonzero(numbers)
    if len(some) == 0:
        return []
    subject = say_how_many(len(some), len(labels), "Chains of NUTS", "Chains of {}")
    finding = f"{subject} diverged {sum(numbers)} times: a part of the posterior may be missing"
    advice = "Look for narrow places (az.plot_pair with divergences), or use another parametrization."
    return [Doubt("divergences", finding, advice, max(numbers), labels_of(labels, some))]


def check_weights(results: Sequence[Draws], labels: np.ndarray, *, gaps: bool = False) -> list[Doubt]:
    """Find data sets whose weights cannot be trusted, or count on few proposals."""
    weighted = [(i, r.weights) for i, r in enumerate(results) if r.weights is not None]
    few = [(i, w) for i, w in weighted if w.reliable and not w.settle(results[i].log_q.size)]
    poor = [(i, w) for i, w in weighted if not w.reliable]
    found = []
    if few:
        worst, weights = min(few, key=lambda pair: (pair[1].ess, pair[1].pareto_k, pair[1].influence, pair[0]))
        subject = say_how_many(len(few), len(results), "The weights", "The weights of {}")
        finding = (
            f"{subject} count on few proposals ({weights.shortcoming(results[worst].log_q.size)}"
            f'{say_where(labels, worst)}), and their draws are marked "failed": estimates are noisy, and standard '
            "deviations may be too small"
        )
        advice = "Train longer (posterior = posterior.continue_training()), or let correction='auto' go further."
        concerned = labels_of(labels, np.array([i for i, _ in few]))
        found.append(Doubt("few weights", finding, advice, weights.ess, concerned))
    if poor:
        worst, weights = max(poor, key=lambda pair: (pair[1].pareto_k, -pair[0]))
        subject = say_how_many(len(poor), len(results), "The importance weights", "The importance weights of {}")
        finding = f"{subject} cannot be trusted: {weights.fault}{say_where(labels, worst)}"
        model = "a model of what is present" if gaps else "posterior.to_model(...)"
        advice = (
            "Let correction='auto' go further, train longer (posterior = posterior.continue_training()), check that "
            f"the data are like what the model simulates, or run pm.sample on {model}."
        )
        concerned = labels_of(labels, np.array([i for i, _ in poor]))
        found.append(Doubt("weights", finding, advice, weights.pareto_k, concerned))
    return found


def check_possible(target: PosteriorTarget, results: Sequence[Draws]) -> list[Doubt]:
    """Find out why no proposal for a data set is possible under the model.

    Raises
    ------
    ValueError
        When it is because of a value that the model cannot produce.
    """
    found: list[Doubt] = []
    spec, datasets = target.spec, target.datasets
    for index, result in enumerate(results):
        if not np.all(np.isneginf(result.log_weights)) or any(m[index].any() for m in datasets.missing.values()):
            continue
        theta = result.theta.reshape(-1, spec.dim)
        given = target.given(index)
        full = np.nan_to_num(target.with_locals(theta, index, np.random.default_rng(index)))
        parts = LogDensityByVariable(spec, INTERPRETED)(full, given)
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
        what = f"No proposed parameter{where} has a finite log density ({', '.join(names) or 'jointly'})"
        found.append(Doubt("impossible", f"{what}: its draws are uncorrected", datasets=(str(datasets.labels[index]),)))
    return found


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
