"""Doubt about a result is a value: what was found, by which number, in which data sets, and what to do about it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from pymc_amortized.logs import logger

MOST_TEXT = 3000
"""Characters that are kept of doubt about a chunk."""
_logged: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()

Kind = Literal[
    "extrapolation",  # values beyond anything that was simulated
    "gaps",  # more values missing than in training
    "novelty",  # unlike what is simulated
    "impossible",  # no proposal has a finite density
    "undefined",  # the density is NaN at some proposals
    "calibration",  # corrected draws of simulated data sets are off
    "symmetry",  # the density does not have the symmetries that the network has
    "uncorrected",  # draws of the network alone
    "weights",  # a Pareto k that is too large
    "few weights",  # reliable weights that count on few proposals
    "failed",  # no rung of the ladder settled the draws
    "not reached",  # the time that was allowed was over before
    "divergences",  # of chains of NUTS that are used all the same
    "evidence",  # no marginal likelihood
    "truncation",  # the density is not normalized over the prior
    "disagreement",  # of classifier and evidence
    "resolution",  # probabilities that a classifier cannot tell
]


@dataclass(frozen=True)
class Doubt:
    """Something that speaks against a result.

    Attributes
    ----------
    kind : str
    finding : str
        What was found: a sentence without its full stop.
    advice : str
        What to do about it, in whole sentences.
    number : float
        What speaks most against the result, such as the largest Pareto k; NaN where nothing is measured.
    datasets : tuple of int or str
        Labels of the data sets that it is about.
    once : bool
        Whether it is logged for the first result of a model alone.
    """

    kind: Kind
    finding: str
    advice: str = ""
    number: float = math.nan
    datasets: tuple[int | str, ...] = ()
    once: bool = False

    def __str__(self) -> str:
        return f"{self.finding}. {self.advice}".rstrip()


def tell(doubts: Sequence[Doubt], model: object, told: Sequence[Doubt] = ()) -> dict[str, str]:
    """Log every doubt, and return the attribute of a result that keeps them.

    Parameters
    ----------
    doubts : sequence of Doubt
    model : object
        What the result is of; by it, those are told apart that are logged once.
    told : sequence of Doubt
        What was logged before the work began, to be kept with the others.

    Returns
    -------
    dict
        Under ``"doubts"`` a JSON list of objects with the fields of :class:`Doubt`; text, as NetCDF files take it.
    """
    logged = _logged.setdefault(model, set())
    for doubt in doubts:
        message = str(doubt)
        if not (doubt.once and message in logged):
            logger.warning("%s [%s]", message, doubt.kind)  # a section of docs/troubleshooting.md
        if doubt.once:
            logged.add(message)
    return {"doubts": json.dumps([_as_json(doubt) for doubt in (*told, *doubts)])}


def _as_json(doubt: Doubt) -> dict[str, object]:
    fields = {name: value for name, value in asdict(doubt).items() if name != "once"}
    return fields | {"number": doubt.number if math.isfinite(doubt.number) else None}


def short_doubts(doubts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a note keeps of the doubts of a chunk: what is not said of all chunks anyway, in few words."""
    some = [doubt for doubt in doubts if doubt["kind"] not in ("novelty", "failed", "not reached")]
    kept: list[dict[str, Any]] = []
    for labels, words in ((20, 300), (5, 200), (0, 100)):
        kept = [
            {
                "kind": doubt["kind"],
                "finding": doubt["finding"][:words],
                "advice": doubt["advice"][:words],
                "number": doubt["number"],
                "concerned": len(doubt["datasets"]),
                "datasets": doubt["datasets"][:labels],
            }
            for doubt in some[:4]
        ]
        if len(json.dumps(kept)) < MOST_TEXT:
            break
    return kept


def join_doubts(kept: Sequence[Mapping[str, Any]], number: int) -> list[Doubt]:
    """Doubts of all chunks: one of each kind, in the words of the chunk that it speaks most against."""
    doubts = []
    for kind in dict.fromkeys(doubt["kind"] for doubt in kept):
        some = [doubt for doubt in kept if doubt["kind"] == kind]
        worst = max(some, key=lambda doubt: -math.inf if doubt["number"] is None else doubt["number"])
        concerned = sum(doubt["concerned"] for doubt in some)
        labels = tuple(label for doubt in some for label in doubt["datasets"])
        shown = ", ".join(map(str, labels[:10])) + ", ..." * (concerned > 10)
        many = f"{concerned:,} of {number:,} data sets ({shown}); in the worst chunk: " if concerned else ""
        value = math.nan if worst["number"] is None else worst["number"]
        doubts.append(Doubt(kind, many + worst["finding"], worst["advice"], value, labels))
    return doubts


def say_how_many(number: int, total: int, one: str, several: str) -> str:
    """Say of how many data sets something holds: `one` where there is a single one, else `several` with "n of m"."""
    return one if total == 1 else several.format(f"{number} of {total} data sets")


def say_where(labels: np.ndarray, index: int) -> str:
    """Say which of several data sets is meant; nothing where there is a single one."""
    return "" if len(labels) == 1 else f" at data set {labels[index]}"


def labels_of(labels: np.ndarray, concerned: np.ndarray) -> tuple[int | str, ...]:
    """Labels of the data sets that are concerned: a bool array (n,), or indices. Dates become text."""
    return tuple(label if isinstance(label, int) else str(label) for label in labels[concerned].tolist())
