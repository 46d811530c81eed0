"""Plots of what :func:`check_comparison` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from pymc_amortized.diagnostics.plots.panels import (
    BLUE,
    DARK,
    GREY,
    RED,
    SMALL,
    Figsize,
    Panel,
    make_figure,
    make_grid,
    write_note,
)
from pymc_amortized.diagnostics.verdict import LEVEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_confusion(check: xr.DataTree, *, figsize: Figsize = None) -> Figure:
    """Plot which model data sets of each model are taken for.

    Parameters
    ----------
    check : xarray.DataTree
        From :func:`check_comparison`.
    figsize : (float, float), optional
        In inches.

    Returns
    -------
    matplotlib.figure.Figure
        A row for each true model, a column for the most probable one: the share of data sets, and below it the mean
        probability. What is off the diagonal need not be an error: models may be hard to tell apart.

    Examples
    --------
    With the comparison of :func:`fit_comparison`'s example:

    >>> check = pma.check_comparison(comparison, num_datasets=500, random_seed=1)
    >>> figure = pma.plot_confusion(check)
    """
    found = _group(check, "confusion")
    names = [str(name) for name in found["chosen"].values]
    share, mean = found["share"].to_numpy(), found["probability"].to_numpy()
    side = 1.2 * len(names) + 1.6
    figure, (ax,) = make_figure(1, 1, figsize=figsize or (side, side - 0.3))
    ax.imshow(np.nan_to_num(share), cmap="Blues", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(share):
        color = "white" if value > 0.55 else DARK
        ax.text(j, i - 0.08, f"{value:.0%}", ha="center", va="center", color=color, fontsize=SMALL + 2)
        ax.text(j, i + 0.22, f"mean {mean[i, j]:.2f}", ha="center", va="center", color=color, fontsize=SMALL - 1)
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("most probable model", fontsize=SMALL + 1)
    ax.set_ylabel("true model", fontsize=SMALL + 1)
    accuracy = float(_group(check, "scores")["accuracy"])
    ax.set_title(f"Most probable model is the true one: {accuracy:.0%}", fontsize=SMALL + 1)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure


def plot_reliability(check: xr.DataTree, *, figsize: Figsize = None) -> Figure:
    """Plot how often data sets come from a model, against the probability it was given.

    Parameters
    ----------
    check : xarray.DataTree
        From :func:`check_comparison`.
    figsize : (float, float), optional
        In inches.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each model. Points are bins of equal numbers of data sets, and lie within the grey bars, each with
        95 % probability, if probabilities are right. Flatter than the diagonal: over-confident; steeper:
        under-confident.

    Examples
    --------
    With the comparison of :func:`fit_comparison`'s example:

    >>> check = pma.check_comparison(comparison, num_datasets=500, random_seed=1)
    >>> figure = pma.plot_reliability(check)
    """
    found, scores = _group(check, "reliability"), _group(check, "scores")
    off = float(scores["p_value"]) < LEVEL
    panels = [Panel(str(name), "share", (k,)) for k, name in enumerate(found["model"].values)]
    figure, drawn = make_grid(panels, figsize=figsize, shared=True)
    for k, (panel, ax) in enumerate(drawn):
        one = found.isel(model=k)
        mean, share = one["probability"].to_numpy(), one["share"].to_numpy()
        lower, upper = one["lower"].to_numpy(), one["upper"].to_numpy()
        outside = (share < lower) | (share > upper)
        ax.plot([0, 1], [0, 1], color=DARK, lw=0.8, ls=":")
        ax.vlines(mean, lower, upper, color=GREY, lw=5)
        ax.plot(mean, share, color=RED if off else BLUE, lw=0.8)
        ax.scatter(mean, share, c=[RED if out else BLUE for out in outside], s=14, zorder=3)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        write_note(ax, f"error {float(scores['calibration_error'][k]):.3f}", alarming=off)
        _ = panel
    figure.supxlabel("probability of the model", fontsize=SMALL + 1)
    figure.supylabel("share that comes from it", fontsize=SMALL + 1)
    error, p = float(scores["expected_calibration_error"]), float(scores["p_value"])
    title = f"expected calibration error {error:.3f}, p = {p:.2g}"
    figure.suptitle(title, fontsize=SMALL + 2)
    return figure


def _group(check: xr.DataTree, name: str) -> xr.Dataset:
    if not isinstance(check, xr.DataTree) or name not in check.children:
        raise TypeError("check must be what check_comparison returns")
    return check[name].to_dataset()
