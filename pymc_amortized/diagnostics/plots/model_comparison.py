"""Plots of what :func:`check_comparison` returns."""

from __future__ import annotations

from typing import Any

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
    make_grid,
    make_sheet,
)
from pymc_amortized.diagnostics.verdict import LEVEL
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.numerics.thresholds import THRESHOLDS


def plot_confusion(check: xr.DataTree, *, figsize: Figsize = None, backend: str | None = None) -> Any:
    """Plot which model data sets of each model are taken for.

    Parameters
    ----------
    check : xarray.DataTree
        From :func:`check_comparison`.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
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
    sheet = make_sheet(figsize=figsize or (side, side - 0.3), backend=backend)
    (plot,) = sheet.plots
    for (i, j), value in np.ndenumerate(share):
        strength = float(np.nan_to_num(value))
        plot.fill_between_y([j - 0.5, j + 0.5], [i - 0.5] * 2, [i + 0.5] * 2, color=BLUE, alpha=strength)
        color = "white" if value > 0.65 else DARK
        plot.text(j, i - 0.08, f"{value:.0%}", color=color, size=SMALL + 2)
        plot.text(j, i + 0.22, f"mean {mean[i, j]:.2f}", color=color, size=SMALL - 1)
    plot.xticks(list(range(len(names))), names)
    plot.yticks(list(range(len(names))), names)
    if plot.in_matplotlib:
        plot.target.spines[:].set_visible(False)
        plot.target.tick_params(length=0)
    plot.xlim((-0.5, len(names) - 0.5))
    plot.ylim((len(names) - 0.5, -0.5))
    accuracy = float(_group(check, "scores")["accuracy"])
    plot.title(f"Most probable model is the true one: {accuracy:.0%}", size=SMALL + 1)
    return sheet.finished(xlabel="most probable model", ylabel="true model")


def plot_reliability(check: xr.DataTree, *, figsize: Figsize = None, backend: str | None = None) -> Any:
    """Plot how often data sets come from a model, against the probability it was given.

    Parameters
    ----------
    check : xarray.DataTree
        From :func:`check_comparison`.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
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
    sheet, drawn = make_grid(panels, figsize=figsize, shared=True, backend=backend)
    for k, (_, plot) in enumerate(drawn):
        one = found.isel(model=k)
        mean, share = one["probability"].to_numpy(), one["share"].to_numpy()
        lower, upper = one["lower"].to_numpy(), one["upper"].to_numpy()
        outside = (share < lower) | (share > upper)
        plot.diagonal()
        plot.ciliney(mean, lower, upper, color=GREY, width=5)
        plot.line(mean, share, color=RED if off else BLUE, width=0.8)
        plot.points(mean[~outside], share[~outside], BLUE, size=14)
        plot.points(mean[outside], share[outside], RED, size=14)
        plot.shares(margin=0.03)
        plot.note(f"error {float(scores['calibration_error'][k]):.3f}", alarming=off)
    error, p = float(scores["expected_calibration_error"]), float(scores["p_value"])
    title = f"expected calibration error {error:.3f}, p = {p:.2g}"
    return sheet.finished(title=title, xlabel="probability of the model", ylabel="share that comes from it")


def plot_probabilities(probabilities: xr.Dataset, *, figsize: Figsize = None, backend: str | None = None) -> Any:
    """Plot the probability of each model over data sets.

    Parameters
    ----------
    probabilities : xarray.Dataset
        From ``comparison.probabilities(..., batched=True)``.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        One panel for each model, all with the data sets in one order: by the most probable model, and by how probable
        that is. A line at 1 that falls off at once: data sets tell the models apart. Red: data that no model makes, or
        of which the classifier cannot tell.

    Examples
    --------
    With the comparison of :func:`fit_comparison`'s example:

    >>> found = comparison.probabilities({"y": np.random.default_rng(1).normal(size=(50, 4))}, batched=True)
    >>> figure = pma.plot_probabilities(found)
    """
    if not isinstance(probabilities, xr.Dataset) or "probability" not in probabilities:
        raise TypeError("probabilities must be what comparison.probabilities returns")
    if DATASET_DIM not in probabilities.dims:
        raise ValueError("probabilities holds one data set: ask for those of several, with batched=True")
    p = probabilities["probability"].transpose(DATASET_DIM, "model").to_numpy()
    resolved = probabilities["resolved"].transpose(DATASET_DIM, "model").to_numpy().all(axis=1)
    doubtful = (probabilities["ood_pvalue"].to_numpy() < THRESHOLDS.novel) | ~resolved
    best = p.argmax(axis=1)
    order = np.lexsort((-p.max(axis=1), best))
    place, red = np.arange(len(p)), doubtful[order]
    panels = [Panel(str(name), "probability", (k,)) for k, name in enumerate(probabilities["model"].values)]
    sheet, drawn = make_grid(panels, figsize=figsize, shared=True, backend=backend)
    for k, (_, plot) in enumerate(drawn):
        plot.points(place[~red], p[order, k][~red], BLUE, size=10)
        plot.points(place[red], p[order, k][red], RED, size=14)
        plot.shares("y")
        plot.ylim((-0.03, 1.3))  # room for the note
        plot.note(f"most probable for {(best == k).sum()} of {len(p)}")
    title = f"{red.sum()} of {len(p)} data sets in doubt" if red.any() else ""
    return sheet.finished(title=title, xlabel="data set, in order", ylabel="probability of the model")


def _group(check: xr.DataTree, name: str) -> xr.Dataset:
    if not isinstance(check, xr.DataTree) or name not in check.children:
        raise TypeError("check must be what check_comparison returns")
    return check[name].to_dataset()
