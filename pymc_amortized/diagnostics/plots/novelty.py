"""Pictures of how unlike simulations data are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from pymc_amortized.diagnostics.plots.panels import BLUE, DARK, RED, make_figure
from pymc_amortized.diagnostics.verdict import LEVEL
from pymc_amortized.graph.data.datasets import DATASET_DIM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_novelty(check: xr.Dataset) -> Figure:
    """Draw scores of data beside those of simulations.

    For one data set, a histogram of the scores of simulations with its own as a line. For several, their p-values in
    order beside the uniform distribution they have if the model is right, and the discrepancy of all of them together
    beside that of simulated collections.

    Parameters
    ----------
    check : xarray.Dataset
        From :func:`check_misspecification`.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> found = pma.check_misspecification(posterior, {"y": np.zeros(4)}, num_simulations=400, random_seed=1)
    >>> figure = pma.plot_novelty(found)
    """
    if not isinstance(check, xr.Dataset) or "reference_score" not in check:
        raise TypeError("check must be what check_misspecification returns")
    together = "mmd" in check
    figure, (first, *second) = make_figure(1, 1 + together, figsize=(5 * (1 + together), 3.5))
    if second:
        _draw_pvalues(first, np.sort(check["pvalue"].values))
        title = f"all {check.sizes[DATASET_DIM]} data sets together"
        _draw_null(second[0], check["mmd_null"].values, check["mmd"].item(), check["mmd_pvalue"].item())
        second[0].set(title=title, xlabel="squared discrepancy from simulations (MMD)")
    else:
        one = check.isel({DATASET_DIM: 0}) if DATASET_DIM in check.dims else check
        _draw_null(first, one["reference_score"].values, one["score"].item(), one["pvalue"].item())
        first.set(title="one data set", xlabel="score (squared distance from simulations)")
    return figure


def _draw_null(ax: Axes, null: np.ndarray, value: float, pvalue: float) -> None:
    """Histogram of what simulations give, and a line where the data are."""
    far = value > null.max() + np.ptp(null)
    bins = np.histogram_bin_edges(null, 40).tolist()
    ax.hist(null, bins, color=BLUE, alpha=0.5, label="simulated")
    ax.axvline(np.quantile(null, 1 - LEVEL), color=BLUE, linestyle=":", label=f"{LEVEL:.0%} are beyond")
    ax.axvline(value, color=RED, label=f"observed, p = {pvalue:.2g}")
    if far and null.min() > 0:
        ax.set_xscale("log")
    ax.set_yticks([])
    ax.legend(frameon=False)


def _draw_pvalues(ax: Axes, pvalues: np.ndarray) -> None:
    """P-values in order, beside the uniform distribution."""
    n = len(pvalues)
    expected = (np.arange(n) + 0.5) / n
    ax.plot([0, 1], [0, 1], color=BLUE, label="if the model is right")
    novel = pvalues < LEVEL
    ax.plot(expected[~novel], pvalues[~novel], "o", color=DARK, markersize=4)
    ax.plot(expected[novel], pvalues[novel], "o", color=RED, markersize=4, label=f"{novel.sum()} of {n} below {LEVEL}")
    ax.axhline(LEVEL, color=BLUE, linestyle=":")
    ax.set(title="each data set", xlabel="data sets, ordered", ylabel="p-value", xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False)
