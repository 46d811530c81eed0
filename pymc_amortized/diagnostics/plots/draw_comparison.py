"""Plots of training, of importance weights, and of draws beside other draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    DARK,
    GREY,
    RED,
    SMALL,
    Figsize,
    choose_panels,
    make_figure,
    make_grid,
    write_note,
)
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.numerics.sampling.importance import k_threshold
from pymc_amortized.training import History

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Trained = AmortizedPosterior | AmortizedLikelihood | AmortizedComparison


def plot_history(posterior: Trained | History, *, figsize: Figsize = None) -> Figure:
    """Plot the losses of training.

    Parameters
    ----------
    posterior : AmortizedPosterior, AmortizedLikelihood, AmortizedComparison or History
        What was trained, or ``posterior.history``.
    figsize : (float, float), optional
        In inches.

    Returns
    -------
    matplotlib.figure.Figure
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
    figure, (ax,) = make_figure(1, 1, figsize=figsize or (6.0, 3.4))
    history.plot(ax)
    return figure


def plot_weights(dt: xr.DataTree, *, figsize: Figsize = None) -> Figure:
    """Plot importance weights of the network's proposals: how much a correction costs, and whether it holds.

    Parameters
    ----------
    dt : xarray.DataTree
        From ``posterior.sample``.
    figsize : (float, float), optional
        In inches.

    Returns
    -------
    matplotlib.figure.Figure
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
    if DATASET_DIM not in stats.dims:
        figure, (ax,) = make_figure(1, 1, figsize=figsize or (6.0, 3.4))
        _one_set_of_weights(ax, stats)
        return figure
    figure, (left, right) = make_figure(1, 2, figsize=figsize or (9.0, 3.4))
    _many_sets_of_weights(left, right, stats)
    return figure


def _one_set_of_weights(ax: Axes, stats: xr.Dataset) -> None:
    log_weights = stats["proposal_log_weight"].to_numpy().ravel()
    log_weights = log_weights[~np.isnan(log_weights)]
    n, k, ess = len(log_weights), float(stats["pareto_k"]), float(stats["importance_ess"])
    finite = log_weights[np.isfinite(log_weights)]
    poor = not k <= k_threshold(max(len(finite), 1))
    ax.axhline(1, color=DARK, lw=0.8, ls=":")
    if len(finite):
        weights = np.sort(np.exp(finite - finite.max()))[::-1]
        weights = np.maximum(weights * n / weights.sum(), 1e-3)  # less of the mean is none
        ax.plot(np.arange(1, len(weights) + 1), weights, color=RED if poor else BLUE, lw=1.5)
    ax.set(
        xscale="log", yscale="log", xlabel="proposals, from the heaviest to the lightest", ylabel="weight / mean weight"
    )
    text = f"Pareto k {k:.2f} (trusted up to {k_threshold(max(n, 1)):.2f})\n{ess:,.0f} effective of {n:,} proposals"
    write_note(ax, text, alarming=poor, top=False)


def _many_sets_of_weights(left: Axes, right: Axes, stats: xr.Dataset) -> None:
    number = stats["num_proposals"].to_numpy()
    k = stats["pareto_k"].to_numpy()
    efficiency = stats["importance_ess"].to_numpy() / np.maximum(number, 1)
    limits = np.array([k_threshold(int(n)) for n in number])
    poor = ~(k <= limits)
    largest = 1.5  # nothing is worse than infinite variance and mean
    shown = np.minimum(k, largest)
    place = np.arange(len(k))
    left.scatter(place[~poor], shown[~poor], s=8, color=BLUE, lw=0)
    left.scatter(place[poor], shown[poor], s=12, color=RED, lw=0)
    left.axhline(limits.max(), color=DARK, lw=0.8, ls=":")
    left.set(xlabel="data set", ylabel="Pareto k")
    write_note(left, f"{poor.sum()} of {len(k)} above {limits.max():.2f}", alarming=bool(poor.any()))
    lowest = float(np.min(shown, initial=0.0, where=np.isfinite(shown)))
    left.set_ylim(max(lowest, -1.0) - 0.1, largest + 0.4)
    right.hist(efficiency[np.isfinite(efficiency)], bins=np.linspace(0, 1, 31).tolist(), color=BLUE, edgecolor="white")
    right.set(xlabel="effective draws per proposal", ylabel="data sets", xlim=(0, 1))
    right.axvline(float(np.nanmedian(efficiency)), color=DARK, lw=0.8, ls=":")
    right.set_title(f"median {np.nanmedian(efficiency):.0%}", fontsize=SMALL + 1)


def plot_comparison(
    amortized: xr.DataTree,
    nuts: xr.DataTree,
    *,
    var_names: Sequence[str] | None = None,
    labels: tuple[str, str] = ("amortized", "NUTS"),
    figsize: Figsize = None,
) -> Figure:
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

    Returns
    -------
    matplotlib.figure.Figure
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
    figure, drawn = make_grid(panels, figsize=figsize)
    sides = [tree["posterior"].to_dataset().transpose("chain", "draw", ...) for tree in (amortized, nuts)]
    handles: list[Artist] = []
    for panel, ax in drawn:
        reference = panel.of(sides[1]).astype(float).ravel()
        values = panel.of(sides[0]).astype(float).ravel()
        handles = [_density(ax, reference, GREY, filled=True), _density(ax, values, BLUE, filled=False)]
        shift, shift_error, ratio, ratio_error = panel.of(moments)
        # differences that a reader sees, and that are more than Monte Carlo error
        wrong = abs(shift) > max(0.1, 4 * shift_error) or abs(ratio - 1) > max(0.1, 4 * ratio_error)
        ends = np.quantile(np.concatenate([reference, values]), [0.001, 0.999])
        if ends[1] > ends[0]:
            ax.set_xlim(*ends)
        ax.locator_params(axis="x", nbins=4)
        ax.set(yticks=[], ylim=(0, 1.45 * ax.get_ylim()[1]))
        ax.spines["left"].set_visible(False)
        write_note(ax, f"shift {shift:+.2f} sd\nsd × {ratio:.2f}", alarming=bool(wrong))
    figure.legend(handles, labels[::-1], loc="outside lower center", ncols=2, frameon=False, fontsize=SMALL)
    return figure


def _density(ax: Axes, values: np.ndarray, color: str, *, filled: bool) -> Artist:
    if np.ptp(values) == 0:  # no density
        return ax.axvline(values[0], color=color, lw=1.5)
    x, y, _ = array_stats.kde(values)
    if filled:
        return ax.fill_between(x, y, color=color, alpha=0.8, lw=0)
    return ax.plot(x, y, color=color, lw=1.5)[0]
