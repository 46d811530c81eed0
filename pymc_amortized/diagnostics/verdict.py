"""The verdict of a check: tests of uniformity for every quantity, adjusted for their number, and a warning."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymc_amortized.graph.data.datasets import DISTANCE, LOG_JOINT
from pymc_amortized.logs import logger
from pymc_amortized.numerics.uniformity import Uniformity, describe, holm, p_text, uniformity

LEVEL = 0.05
"""Probability that any quantity of a calibrated posterior is found to be off."""
METRICS = ("p_value", "p_adjusted", "p_uniform", "p_bias", "p_spread", "bias", "sd_ratio", "deviation")


@dataclass(frozen=True)
class Finding:
    """The tests of one scalar quantity."""

    label: str
    name: str
    index: tuple[int, ...]
    result: Uniformity
    p_adjusted: float


def judge_quantities(pits: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> list[Finding]:
    """Test every scalar quantity.

    Parameters
    ----------
    pits : dict of name to ndarray (n, *shape)
    labels : dict of name to ndarray (*shape) of str
        What each is called.
    """
    places: list[tuple[str, tuple[int, ...]]] = [
        (name, index) for name, values in pits.items() for index in np.ndindex(values.shape[1:])
    ]
    results = [uniformity(np.moveaxis(pits[name], 0, -1)[index]) for name, index in places]
    adjusted = holm(r.p_value for r in results)
    return [
        Finding(str(labels[name][index]), name, index, result, float(p))
        for (name, index), result, p in zip(places, results, adjusted, strict=True)
    ]


def select_wrong(findings: list[Finding]) -> list[Finding]:
    """Those that are not calibrated, the clearest first."""
    return sorted((f for f in findings if f.p_adjusted < LEVEL), key=lambda f: f.result.p_value)


def explain(finding: Finding) -> str:
    """Say what is off with one quantity, and what that means."""
    result, p = finding.result, p_text(finding.p_adjusted)
    if finding.name == LOG_JOINT:
        if result.bias < 0 and result.p_bias < result.p_spread:
            return (
                f"{finding.label}: the true parameters are denser under the model than the draws are ({p}); "
                "the posterior is too wide, or ignores the data"
            )
        return f"{finding.label}: {describe(result)} ({p}); the joint distribution of the parameters is off"
    if finding.name == DISTANCE:
        return f"{finding.label}: the joint posterior does not cover the truth as often as it says ({p})"
    return f"{finding.label}: {describe(result)} ({p})"


def log_verdict(findings: list[Finding], what: str, advice: str, further: Sequence[str] = ()) -> None:
    """Log which quantities are off, how, and what to do; or that none is.

    Parameters
    ----------
    what : str
        What was tested.
    further : sequence of str
        What else was found to be off.
    """
    wrong = select_wrong(findings)
    if not wrong and not further:
        logger.info("%s: none of %d quantities is off.", what, len(findings))
        return
    described = 5
    lines = [explain(f) for f in wrong[:described]]
    if len(wrong) > described:
        lines.append(f"and {len(wrong) - described} more")
    lines += further
    logger.warning(
        "%s: %d of %d quantities are off.\n  %s\n%s",
        what,
        len(wrong),
        len(findings),
        "\n  ".join(lines),
        advice,
    )
