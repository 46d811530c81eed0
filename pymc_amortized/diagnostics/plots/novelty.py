"""Pictures of how unlike simulations data are."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from pymc_amortized.diagnostics.plots.panels import BLUE, DARK, RED, Plot, make_sheet
from pymc_amortized.diagnostics.verdict import LEVEL
from pymc_amortized.graph.data.datasets import DATASET_DIM


def plot_novelty(check: xr.Dataset, *, backend: str | None = None) -> Any:
    """Draw scores of data beside those of simulations.

    For one data set, a histogram of the scores of simulations with its own as a line. For several, their p-values in
    order beside the uniform distribution they have if the model is right, and the discrepancy of all of them together
    beside that of simulated collections.

    Parameters
    ----------
    check : xarray.Dataset
        From :func:`check_misspecification`.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> found = pma.check_misspecification(posterior, {"y": np.zeros(4)}, num_simulations=400, random_seed=1)
    >>> figure = pma.plot_novelty(found)
    """
    if not isinstance(check, xr.Dataset) or "reference_score" not in check:
        raise TypeError("check must be what check_misspecification returns")
    together = "mmd" in check
    sheet = make_sheet(columns=1 + together, figsize=(5.0 * (1 + together), 3.5), backend=backend)
    first, *second = sheet.plots
    if second:
        _draw_pvalues(first, np.sort(check["pvalue"].values))
        what = f"squared discrepancy of all {check.sizes[DATASET_DIM]} data sets from simulations (MMD)"
        _draw_null(second[0], check["mmd_null"].values, check["mmd"].item(), check["mmd_pvalue"].item(), what)
    else:
        one = check.isel({DATASET_DIM: 0}) if DATASET_DIM in check.dims else check
        what = "score of the data set (squared distance from simulations)"
        _draw_null(first, one["reference_score"].values, one["score"].item(), one["pvalue"].item(), what)
    return sheet.finished()


def _draw_null(plot: Plot, null: np.ndarray, value: float, pvalue: float, what: str) -> None:
    """Histogram of what simulations give, and a line where the data are."""
    far = value > null.max() + np.ptp(null) and null.min() > 0
    across, says = plot.logarithmic("x") if far else (np.asarray, "")
    counts, edges = np.histogram(null, 40)
    edges = across(edges)
    plot.hist(counts, edges[:-1], edges[1:], color=BLUE, alpha=0.5)
    plot.rule("vline", float(across(np.quantile(null, 1 - LEVEL))), BLUE)
    plot.vline(across(value), color=RED, width=1.5)
    plot.ylim((0, 1.05 * counts.max()))
    plot.xlabel(what + says)
    plot.remove_ticks(axis="y")
    plot.key({f"simulated ({LEVEL:.0%} beyond the dotted line)": BLUE, f"observed, p = {pvalue:.2g}": RED})


def _draw_pvalues(plot: Plot, pvalues: np.ndarray) -> None:
    """P-values in order, beside the uniform distribution."""
    n = len(pvalues)
    expected = (np.arange(n) + 0.5) / n
    plot.line([0, 1], [0, 1], color=BLUE)
    novel = pvalues < LEVEL
    plot.points(expected[~novel], pvalues[~novel], DARK, size=16)
    plot.points(expected[novel], pvalues[novel], RED, size=16)
    plot.rule("hline", LEVEL, BLUE)
    plot.xlabel("data sets, ordered")
    plot.ylabel("p-value")
    plot.shares()
    plot.key({"if the model is right": BLUE, f"{novel.sum()} of {n} below {LEVEL}": RED})
