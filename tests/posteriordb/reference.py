"""What posteriordb knows of a posterior, and how far draws are from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import arviz as az
import numpy as np
import xarray as xr

HERE = Path(__file__).parent
MEAN, SD = 0.1, 0.1
"""How far a mean may be off, in posterior sds, and by which share an sd may be off: beside four Monte Carlo errors."""
SETTLED = ("psis", "smc", "nuts")
"""Stages of draws that are said to be right."""
ABOUT_DATA = {"novelty", "extrapolation"}
"""Kinds of doubts that say nothing of draws, and excuse none."""


@dataclass(frozen=True)
class Comparison:
    """Draws beside a reference, parameter by parameter.

    Attributes
    ----------
    names : list of str
    mean, mean_error : ndarray
        Differences of means and their Monte Carlo errors, in sds of the reference.
    sd, sd_error : ndarray
        Ratios of sds less 1, and their Monte Carlo errors.
    stage : str
    doubts : tuple of str
        Kinds of what was logged as a warning.
    """

    names: list[str]
    mean: np.ndarray
    mean_error: np.ndarray
    sd: np.ndarray
    sd_error: np.ndarray
    stage: str
    doubts: tuple[str, ...]

    @property
    def off(self) -> list[str]:
        """Parameters whose mean or sd is off, with their numbers."""
        beyond = (np.abs(self.mean) > MEAN + 4 * self.mean_error) | (np.abs(self.sd) > SD + 4 * self.sd_error)
        return [self._say(i) for i in np.flatnonzero(beyond)]

    @property
    def worst(self) -> list[str]:
        """Parameters whose mean and sd are furthest off, with their numbers."""
        return [self._say(i) for i in sorted({int(np.abs(off).argmax()) for off in (self.mean, self.sd)})]

    def _say(self, i: int) -> str:
        return (
            f"{self.names[i]}: mean off by {self.mean[i]:+.2f} sd (error {self.mean_error[i]:.3f}), "
            f"sd by {self.sd[i]:+.1%} (error {self.sd_error[i]:.1%})"
        )

    @property
    def verdict(self) -> str:
        """Return "right", "marked" or "WRONG"."""
        if self.stage not in SETTLED:
            return "marked"
        if self.off:
            return "marked" if set(self.doubts) - ABOUT_DATA else "WRONG"
        return "right"


def read_data(name: str) -> dict[str, np.ndarray]:
    """Return a data set of posteriordb."""
    with np.load(HERE / "data.npz") as packed:
        return {key.partition("/")[2]: packed[key] for key in packed.files if key.partition("/")[0] == name}


def read_reference(name: str) -> dict[str, list[float]]:
    """Return [mean, sd, error of the mean, error of the sd] of each parameter."""
    return json.loads((HERE / "reference.json").read_text())[name]


def compare(dt: xr.DataTree, name: str) -> Comparison:
    """Hold draws against the reference of that name."""
    reference = read_reference(name)
    mean, sd, mean_error, sd_error = np.array(list(reference.values())).T
    stage, ess = str(dt.sample_stats["stage"].to_numpy()), np.inf
    if stage == "psis":  # draws were resampled: their proposals say how much they are worth
        ess = float(dt.sample_stats["importance_ess"])
    found = np.array([_summary(_draws(dt, parameter), ess) for parameter in reference]).T
    return Comparison(
        list(reference),
        (found[0] - mean) / sd,
        np.hypot(found[2], mean_error) / sd,
        found[1] / sd - 1,
        np.hypot(found[3], sd_error) / sd,
        stage,
        tuple(doubt["kind"] for doubt in json.loads(dt.posterior.attrs["doubts"])),
    )


def _draws(dt: xr.DataTree, parameter: str) -> np.ndarray:
    """Return draws (chains, draws) of a parameter, named as in Stan: ``beta[1]`` is the first element."""
    name, _, index = parameter.removeprefix("log ").rstrip("]").partition("[")
    draws = dt.posterior[name].to_numpy()
    if parameter.startswith("log "):
        draws = np.log(draws)
    return draws[..., int(index) - 1] if index else draws


def _summary(draws: np.ndarray, ess: float) -> tuple[float, float, float, float]:
    """Return mean, sd and their Monte Carlo errors, of not more than so many effective draws."""
    errors = [float(az.mcse(draws, method=method)) for method in ("mean", "sd")]
    mean, sd = float(draws.mean()), float(draws.std())
    kurtosis = float(np.mean((draws - mean) ** 4)) / sd**4
    least = sd / np.sqrt(ess), sd * np.sqrt(max(kurtosis - 1, 0.0) / (4 * ess))
    return mean, sd, max(errors[0], least[0]), max(errors[1], least[1])
