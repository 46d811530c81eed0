"""A picture of how unlike simulations data are."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from pymc_amortized.graph.datasets import DATASET_DIM

LEVEL = 0.05
"""P-value that the pictures mark."""


def plot_novelty(check: xr.Dataset, *, axes: Any = None) -> Any:
    """Draw scores of data beside those of simulations.

    For one data set, a histogram of the scores of simulations with its own as a line. For several, their p-values in
    order beside the uniform distribution they have if the model is right, and the discrepancy of all of them together
    beside that of simulated collections.

    Parameters
    ----------
    check : xarray.Dataset
        From :func:`check_misspecification`.
    axes : matplotlib.axes.Axes or sequence of two, optional
        Where to draw; one for one data set, two for several.

    Returns
    -------
    ndarray of matplotlib.axes.Axes
    """
    import matplotlib.pyplot as plt

    if not isinstance(check, xr.Dataset) or "reference_score" not in check:
        raise TypeError("check must be what check_misspecification returns")
    together = "mmd" in check
    if axes is None:
        _, axes = plt.subplots(1, 1 + together, figsize=(5 * (1 + together), 3.5), layout="constrained")
    axes = np.atleast_1d(axes)
    if len(axes) != 1 + together:
        raise ValueError(f"axes: {1 + together} are needed, got {len(axes)}")
    if together:
        _draw_pvalues(axes[0], np.sort(check["pvalue"].values))
        title = f"all {check.sizes[DATASET_DIM]} data sets together"
        _draw_null(axes[1], check["mmd_null"].values, check["mmd"].item(), check["mmd_pvalue"].item())
        axes[1].set(title=title, xlabel="squared discrepancy from simulations (MMD)")
    else:
        one = check.isel({DATASET_DIM: 0}) if DATASET_DIM in check.dims else check
        _draw_null(axes[0], one["reference_score"].values, one["score"].item(), one["pvalue"].item())
        axes[0].set(title="one data set", xlabel="score (squared distance from simulations)")
    return axes


def _draw_null(ax: Any, null: np.ndarray, value: float, pvalue: float) -> None:
    """Histogram of what simulations give, and a line where the data are."""
    far = value > null.max() + np.ptp(null)
    bins = np.histogram_bin_edges(null, 40)
    ax.hist(null, bins, color="C0", alpha=0.5, label="simulated")
    ax.axvline(np.quantile(null, 1 - LEVEL), color="C0", linestyle=":", label=f"{LEVEL:.0%} are beyond")
    ax.axvline(value, color="C3", label=f"observed, p = {pvalue:.2g}")
    if far and null.min() > 0:
        ax.set_xscale("log")
    ax.set_yticks([])
    ax.legend(frameon=False)


def _draw_pvalues(ax: Any, pvalues: np.ndarray) -> None:
    """P-values in order, beside the uniform distribution."""
    n = len(pvalues)
    expected = (np.arange(n) + 0.5) / n
    ax.plot([0, 1], [0, 1], color="C0", label="if the model is right")
    novel = pvalues < LEVEL
    ax.plot(expected[~novel], pvalues[~novel], "o", color="0.4", markersize=4)
    ax.plot(expected[novel], pvalues[novel], "o", color="C3", markersize=4, label=f"{novel.sum()} of {n} below {LEVEL}")
    ax.axhline(LEVEL, color="C0", linestyle=":")
    ax.set(title="each data set", xlabel="data sets, ordered", ylabel="p-value", xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False)
