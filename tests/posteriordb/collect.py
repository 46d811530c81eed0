"""Collect data and summaries of reference draws from a clone of posteriordb, for the models that have proper priors.

    python tests/posteriordb/collect.py CLONE

`CLONE` is a git directory of https://github.com/stan-dev/posteriordb. Writes ``data.npz`` and ``reference.json`` beside
this file. Of the draws, only means, standard deviations and their Monte Carlo errors are kept.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

import arviz as az
import numpy as np

HERE = Path(__file__).parent
NAMES = {
    "arK-arK": "arK",
    "arma-arma11": "arma",
    "bball_drive_event_0-hmm_drive_0": "bball_drive_event_0",
    "bball_drive_event_1-hmm_drive_1": "bball_drive_event_1",
    "diamonds-diamonds": "diamonds",
    "eight_schools-eight_schools_noncentered": "eight_schools",
    "gp_pois_regr-gp_pois_regr": "gp_pois_regr",
    "gp_pois_regr-gp_regr": "gp_pois_regr",
    "hmm_example-hmm_example": "hmm_example",
    "hudson_lynx_hare-lotka_volterra": "hudson_lynx_hare",
    "low_dim_gauss_mix-low_dim_gauss_mix": "low_dim_gauss_mix",
    "mcycle_gp-accel_gp": "mcycle_gp",
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs": "one_comp_mm_elim_abs",
    "sblrc-blr": "sblrc",
    "sblri-blr": "sblri",
}
"""Data set of each reference posterior."""
WITHOUT_VARIANCE = {"one_comp_mm_elim_abs-one_comp_mm_elim_abs": ("K_m", "V_m")}
"""Parameters of which the logarithm is compared: both may grow together at the same fit, under Cauchy priors, so that
the density of either falls like its third power."""


class Clone:
    """A git directory of posteriordb."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, path: str) -> bytes:
        """Return a file; empty where the clone lacks it."""
        command = ["git", "-C", self._path, "show", f"HEAD:posterior_database/{path}"]
        return subprocess.run(command, capture_output=True).stdout

    def read_zipped(self, path: str) -> object:
        """Return the JSON in a zip file; None where the clone lacks it."""
        packed = self.read(path)
        if not packed:
            return None
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            return json.loads(archive.read(archive.namelist()[0]))


def summarize(chains: list[dict[str, list[float]]], logarithms: Collection[str]) -> dict[str, list[float]]:
    """Return mean, sd, and Monte Carlo errors of both, for each parameter of ten chains of 1,000 draws."""
    found = {}
    for name in chains[0]:
        draws = np.array([chain[name] for chain in chains])
        if name in logarithms:
            name, draws = f"log {name}", np.log(draws)
        errors = [float(az.mcse(draws, method=method)) for method in ("mean", "sd")]
        found[name] = [float(draws.mean()), float(draws.std()), *errors]
    return found


def from_moments(clone: Clone, name: str) -> dict[str, list[float]]:
    """Return the same from the means of values and of squares, where the file of the draws is not in the clone."""
    folder = "reference_posteriors/summary_statistics"
    first, second = (
        json.loads(clone.read(f"{folder}/{kind}/{kind}/{name}.json")) for kind in ("mean_value", "mean_squared_value")
    )
    mean, square = np.array(first["mean_value"]), np.array(second["mean_squared_value"])
    sd = np.sqrt(square - mean**2)
    errors = np.array(first["mcse_mean"]), np.array(second["mcse_mean"]) / (2 * sd)
    return dict(zip(first["names"], np.column_stack([mean, sd, *errors]).tolist(), strict=True))


def main() -> None:
    """Write both files."""
    clone = Clone(sys.argv[1])
    reference, data = {}, {}
    for name, dataset in NAMES.items():
        chains = clone.read_zipped(f"reference_posteriors/draws/draws/{name}.json.zip")
        found = summarize(chains, WITHOUT_VARIANCE.get(name, ())) if chains else from_moments(clone, name)
        reference[name] = {key: [float(f"{value:.7g}") for value in row] for key, row in found.items()}
        values = clone.read_zipped(f"data/data/{dataset}.json.zip")
        data.update({f"{dataset}/{key}": np.array(value) for key, value in values.items()})
    (HERE / "reference.json").write_text(json.dumps(reference, indent=1) + "\n")
    np.savez_compressed(HERE / "data.npz", **data)


if __name__ == "__main__":
    main()
