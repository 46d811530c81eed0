"""Plots of training, of importance weights, and of draws beside other draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats

from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.diagnostics.coordinates import take_entry
from pymc_amortized.diagnostics.draw_comparison import compare_moments
from pymc_amortized.diagnostics.plots.panels import (
    BLUE,
    GREY,
    RED,
    SMALL,
    Figsize,
    Plot,
    choose_panels,
    make_grid,
    make_sheet,
)
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.numerics.sampling.importance import k_threshold
from pymc_amortized.training import History

Trained = AmortizedPosterior | AmortizedLikelihood | AmortizedComparison


def plot_history(posterior: Trained | History, *, figsize: Figsize = None, backend: str | None = None) -> Any:
    """Plot the losses of training.

    Parameters
    ----------
    posterior : AmortizedPosterior, AmortizedLikelihood, AmortizedComparison or History
        What was trained, or ``posterior.history``.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        Held-out and training loss against the step. ``posterior.history.plot(ax)`` draws into axes of your own.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> figure = pma.plot_history(posterior)
    """
    history = posterior.history if isinstance(posterior, Trained) else posterior
    if not isinstance(history, History):
        raise TypeError(
            "posterior must be an AmortizedPosterior, AmortizedLikelihood or AmortizedComparison, or its history; got "
            f"{type(posterior).__name__}"
        )
    sheet = make_sheet(figsize=figsize or (6.0, 3.4), backend=backend)
    (plot,), colors = sheet.plots, {"training": BLUE, "held out": RED}
    if plot.in_matplotlib:
        history.plot(plot.target)
        return sheet.figure
    for label, series in (("training", history.loss), ("held out", history.held_out_loss)):
        shown = np.isfinite(series)
        plot.line(history.step[shown], series[shown], color=colors[label])
    if (limits := history.limits()) is not None:
        plot.ylim(limits)
    plot.key(colors)
    return sheet.finished(xlabel="step", ylabel="loss per simulation")


def plot_weights(dt: xr.DataTree, *, figsize: Figsize = None, backend: str | None = None) -> Any:
    """Plot importance weights of the network's proposals: how much a correction costs, and whether it holds.

    Parameters
    ----------
    dt : xarray.DataTree
        From ``posterior.sample``.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        Of one data set, the weights from the largest to the smallest: flat where the network is right, steep where
        few proposals count. Of many data sets, Pareto k of each (cut off at 1.5), and their efficiency: effective
        draws per proposal.

    Raises
    ------
    TypeError, KeyError
        When `dt` holds no weights.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> draws = posterior.sample({"y": np.zeros(4)}, draws=200, random_seed=1)
    >>> figure = pma.plot_weights(draws)
    """
    if not isinstance(dt, xr.DataTree) or "sample_stats" not in dt.children:
        raise TypeError("dt must be a DataTree with a sample_stats group, as from posterior.sample")
    stats = dt["sample_stats"].to_dataset()
    weights = "num_proposals" if DATASET_DIM in stats.dims else "proposal_log_weight"
    missing = [name for name in (weights, "pareto_k", "importance_ess") if name not in stats]
    if missing:
        raise KeyError(
            f"sample_stats lacks {missing}: there are no importance weights without a density of the model, and "
            "those of a batch are kept with idata_kwargs={'proposal_log_weight': True}"
        )
    many = DATASET_DIM in stats.dims
    sheet = make_sheet(columns=1 + many, figsize=figsize or ((9.0, 3.4) if many else (6.0, 3.4)), backend=backend)
    if many:
        _many_sets_of_weights(sheet.plots[0], sheet.plots[1], stats)
    else:
        _one_set_of_weights(sheet.plots[0], stats)
    return sheet.finished()


def _one_set_of_weights(plot: Plot, stats: xr.Dataset) -> None:
    log_weights = stats["proposal_log_weight"].to_numpy().ravel()
    log_weights = log_weights[~np.isnan(log_weights)]
    n, k, ess = len(log_weights), float(stats["pareto_k"]), float(stats["importance_ess"])
    finite = log_weights[np.isfinite(log_weights)]
    poor = not k <= k_threshold(max(len(finite), 1))
    across, says_across = plot.logarithmic("x")
    up, says_up = plot.logarithmic("y")
    plot.rule("hline", up(1))
    if len(finite):
        weights = np.sort(np.exp(finite - finite.max()))[::-1]
        weights = np.maximum(weights * n / weights.sum(), 1e-3)  # less of the mean is none
        plot.line(across(np.arange(1, len(weights) + 1)), up(weights), color=RED if poor else BLUE, width=1.5)
    plot.xlabel(f"proposals, from the heaviest to the lightest{says_across}")
    plot.ylabel(f"weight / mean weight{says_up}")
    text = f"Pareto k {k:.2f} (trusted up to {k_threshold(max(n, 1)):.2f})\n{ess:,.0f} effective of {n:,} proposals"
    plot.note(text, alarming=poor, top=False)


def _many_sets_of_weights(left: Plot, right: Plot, stats: xr.Dataset) -> None:
    number = stats["num_proposals"].to_numpy()
    k = stats["pareto_k"].to_numpy()
    efficiency = stats["importance_ess"].to_numpy() / np.maximum(number, 1)
    limits = np.array([k_threshold(int(n)) for n in number])
    poor = ~(k <= limits)
    largest = 1.5  # nothing is worse than infinite variance and mean
    shown = np.minimum(k, largest)
    place = np.arange(len(k))
    left.points(place[~poor], shown[~poor], BLUE)
    left.points(place[poor], shown[poor], RED, size=12)
    left.rule("hline", limits.max())
    left.xlabel("data set")
    left.ylabel("Pareto k")
    left.note(f"{poor.sum()} of {len(k)} above {limits.max():.2f}", alarming=bool(poor.any()))
    lowest = float(np.min(shown, initial=0.0, where=np.isfinite(shown)))
    left.ylim((max(lowest, -1.0) - 0.1, largest + 0.4))
    counts, edges = np.histogram(efficiency[np.isfinite(efficiency)], np.linspace(0, 1, 31))
    right.hist(counts, edges[:-1], edges[1:], color=BLUE)
    right.ylim((0, 1.05 * counts.max()))
    right.xlabel("effective draws per proposal")
    right.ylabel("data sets")
    right.xlim((0, 1))
    right.rule("vline", float(np.nanmedian(efficiency)))
    right.title(f"median {np.nanmedian(efficiency):.0%}", size=SMALL + 1)


def plot_comparison(
    amortized: xr.DataTree,
    nuts: xr.DataTree,
    *,
    var_names: Sequence[str] | None = None,
    labels: tuple[str, str] = ("amortized", "NUTS"),
    figsize: Figsize = None,
    backend: str | None = None,
) -> Any:
    """Plot marginal posteriors of two sets of draws over each other.

    Parameters
    ----------
    amortized, nuts : xarray.DataTree
        As in :func:`compare_draws`; the second is the reference.
    var_names : sequence of str, optional
        Variables to show; by default, all that both have.
    labels : (str, str)
        What to call them.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        One panel for each scalar variable, with the shift of the mean in sds of the reference and the ratio of sds; red
        where one of them is visible (0.1 sd, 10 %) and clear (four Monte Carlo errors).

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> a, b = (posterior.sample({"y": np.zeros(4)}, draws=200, random_seed=seed) for seed in (1, 2))
    >>> figure = pma.plot_comparison(a, b, labels=("first", "second"))
    """
    moments = compare_moments(amortized, nuts, var_names)
    panels = choose_panels(take_entry(moments, "shift"), None)
    sheet, drawn = make_grid(panels, figsize=figsize, backend=backend)
    sides = [tree["posterior"].to_dataset().transpose("chain", "draw", ...) for tree in (amortized, nuts)]
    for panel, plot in drawn:
        reference = panel.of(sides[1]).astype(float).ravel()
        values = panel.of(sides[0]).astype(float).ravel()
        highest = max(_density(plot, reference, GREY, filled=True), _density(plot, values, BLUE, filled=False))
        shift, shift_error, ratio, ratio_error = panel.of(moments)
        # differences that a reader sees, and that are more than Monte Carlo error
        wrong = abs(shift) > max(0.1, 4 * shift_error) or abs(ratio - 1) > max(0.1, 4 * ratio_error)
        ends = np.quantile(np.concatenate([reference, values]), [0.001, 0.999])
        if ends[1] > ends[0]:
            plot.xlim(ends)
        plot.remove_axis(axis="y")
        plot.ylim((0, 1.5 * highest or 1.0))
        if plot.in_matplotlib:
            plot.target.locator_params(axis="x", nbins=4)
        plot.note(f"shift {shift:+.2f} sd\nsd × {ratio:.2f}", alarming=bool(wrong))
    return sheet.finished(colors={labels[1]: GREY, labels[0]: BLUE})


def _density(plot: Plot, values: np.ndarray, color: str, *, filled: bool) -> float:
    """Draw a density, and return its highest value; a line for what does not vary."""
    if np.ptp(values) == 0:
        plot.vline(values[0], color=color, width=1.5)
        return 0.0
    x, y, _ = array_stats.kde(values)
    if filled:
        plot.fill_between_y(x, np.zeros_like(y), y, color=color, alpha=0.8)
    else:
        plot.line(x, y, color=color, width=1.5)
    return float(y.max())
