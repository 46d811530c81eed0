"""Plots of what :func:`check_calibration` returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from pymc_amortized.diagnostics.coordinates import BAND_PROB, own_dim, take_entry
from pymc_amortized.diagnostics.plots.panels import (
    BLUE,
    GREY,
    RED,
    Figsize,
    Panel,
    Sheet,
    choose_panels,
    make_grid,
)
from pymc_amortized.diagnostics.verdict import LEVEL
from pymc_amortized.graph.data.datasets import DISTANCE, LOG_JOINT
from pymc_amortized.numerics.uniformity import band, p_text


def plot_calibration(
    check: xr.DataTree, *, var_names: Sequence[str] | None = None, figsize: Figsize = None, backend: str | None = None
) -> Any:
    """Plot the difference between the empirical distribution of PIT values and the uniform one.

    Parameters
    ----------
    check : xarray.DataTree
        From :func:`check_calibration`.
    var_names : sequence of str, optional
        Quantities to show; all by default.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        One panel for each scalar quantity: the line of a calibrated one stays within the grey band with 95 %
        probability.

    Notes
    -----
    Above zero on the left and below on the right: over-confident. Below on the left and above on the right:
    under-confident. Above zero throughout: biased high; below: biased low. ``az.plot_ecdf_pit(check)`` plots the same
    with another test.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> check = pma.check_calibration(posterior, num_datasets=50, draws=100, random_seed=1, progressbar=False)
    >>> figure = pma.plot_calibration(check)
    """
    pits, metrics = take_group(check, "prior_sbc"), take_group(check, "calibration")
    panels, ends = choose_panels_of(check, "prior_sbc", 2, var_names), [0.0]
    sheet, drawn = make_grid(panels, figsize=figsize, shared=True, backend=backend)
    for panel, plot in drawn:
        values = np.sort(panel.of(pits.squeeze("chain", drop=True).transpose("draw", ...)))
        values = values[np.isfinite(values)]
        n = len(values)
        wrong = _is_off(metrics, panel)
        plot.rule("hline", 0)
        if n > 1:
            points, lower, upper = band(n, BAND_PROB)
            plot.fill_between_y(points, lower - points, upper - points, color=GREY, alpha=0.5)
            x = np.concatenate([[0], np.repeat(values, 2), [1]])
            y = np.concatenate([[0, 0], np.repeat(np.arange(1, n + 1) / n, 2)])
            plot.line(x, y - x, color=RED if wrong else BLUE, width=1.3)
            ends += [*(lower - points), *(upper - points), *(y - x)]
        plot.note(_finding(metrics, panel), alarming=wrong)
    low, high = min(ends), max(ends)
    for _, plot in drawn:
        plot.shares("x")
        plot.ylim((low - 0.05 * (high - low), high + 0.4 * (high - low) + 1e-9))  # room for the note
    return _labelled(sheet, check, "Calibration", "PIT of the true value", "ECDF difference")


def plot_coverage(
    check: xr.DataTree, *, var_names: Sequence[str] | None = None, figsize: Figsize = None, backend: str | None = None
) -> Any:
    """Plot how often central intervals hold the true value, against how often they should.

    Parameters
    ----------
    check : xarray.DataTree
        From :func:`check_calibration`.
    var_names : sequence of str, optional
        Quantities to show; all by default. ``tarp`` is the joint posterior's, by random points.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        Below the diagonal: over-confident; above: under-confident.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> check = pma.check_calibration(posterior, num_datasets=50, draws=100, random_seed=1, progressbar=False)
    >>> figure = pma.plot_coverage(check)
    """
    found, metrics = take_group(check, "coverage"), take_group(check, "calibration")
    panels = choose_panels_of(check, "coverage", 1, var_names)
    sheet, drawn = make_grid(panels, figsize=figsize, shared=True, backend=backend)
    level = found[own_dim(found)].to_numpy()
    points, lower, upper = band(int(found.attrs["num_datasets"]), BAND_PROB)
    for panel, plot in drawn:
        wrong = _is_off(metrics, panel)
        plot.fill_between_y(points, lower, upper, color=GREY, alpha=0.5)
        plot.diagonal()
        shares = panel.of(found.transpose(own_dim(found), ...))
        plot.line(level, shares, color=RED if wrong else BLUE, width=1.3)
        plot.shares()
        at = int(np.argmin(np.abs(level - 0.9)))
        plot.note(f"90 %: {shares[at]:.0%}", alarming=wrong)
    return _labelled(sheet, check, "Coverage", "nominal coverage", "share of true values")


def plot_recovery(
    check: xr.DataTree, *, var_names: Sequence[str] | None = None, figsize: Figsize = None, backend: str | None = None
) -> Any:
    """Plot posterior means against true values.

    Parameters
    ----------
    check : xarray.DataTree
        From :func:`check_calibration`.
    var_names : sequence of str, optional
        Parameters to show; all by default.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        Bars are one posterior sd to either side; ``r`` is the correlation. Where it is low, the data say little, or the
        network does not hear them.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> check = pma.check_calibration(posterior, num_datasets=50, draws=100, random_seed=1, progressbar=False)
    >>> figure = pma.plot_recovery(check)
    """
    found = take_group(check, "recovery")
    sheet, drawn = make_grid(choose_panels_of(check, "recovery", 2, var_names), figsize=figsize, backend=backend)
    for panel, plot in drawn:
        true, mean, _, sd = panel.of(found)
        some = slice(300)  # points with error bars that can still be told apart
        plot.ciliney(true[some], (mean - sd)[some], (mean + sd)[some], color=GREY, width=0.7)
        plot.points(true[some], mean[some], BLUE, size=4.8)
        low, high = _most(true)
        margin = 0.08 * (high - low) or 1.0
        ends = (low - margin, high + margin)
        plot.diagonal(*ends)
        plot.xlim(ends)
        plot.ylim(ends)
        plot.note(f"r = {correlate(true, mean):.2f}")
    return _labelled(sheet, check, "Recovery", "true value", "posterior mean ± sd")


def plot_contraction(
    check: xr.DataTree, *, var_names: Sequence[str] | None = None, figsize: Figsize = None, backend: str | None = None
) -> Any:
    """Plot z-scores against posterior contraction.

    Parameters
    ----------
    check : xarray.DataTree
        From :func:`check_calibration`.
    var_names : sequence of str, optional
        Parameters to show; all by default.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        Points at the right: the data say much; below 0 posteriors are wider than the prior. Points above and below the
        dotted lines at ±2 should be few (5 %); many at the right mean over-confidence, most of them on one side a bias.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> check = pma.check_calibration(posterior, num_datasets=50, draws=100, random_seed=1, progressbar=False)
    >>> figure = pma.plot_contraction(check)
    """
    found = take_group(check, "contraction")
    sheet, drawn = make_grid(choose_panels_of(check, "contraction", 2, var_names), figsize=figsize, backend=backend)
    lowest, steep = -0.5, 3.5  # shown in any case: few z-scores of a calibrated posterior lie beyond
    for panel, plot in drawn:
        contraction, z = panel.of(found)
        known = np.isfinite(contraction) & np.isfinite(z)
        contraction, z = contraction[known], z[known]
        beside = contraction < lowest
        shown = np.maximum(contraction, lowest)
        plot.points(shown[~beside], z[~beside], BLUE, size=5, alpha=0.5)
        plot.points(shown[beside], z[beside], RED, size=9)
        for height in (-2, 2):
            plot.rule("hline", height)
        reach = max(steep, 1.05 * _most(np.abs(z))[1]) if len(z) else steep
        plot.xlim((min(-0.05, shown.min(initial=0) - 0.05), 1.05))
        plot.ylim((-reach, reach))
        beyond = float(np.mean(np.abs(z) > 2)) if len(z) else np.nan
        words = f"median {np.median(contraction):.2f}\n|z| > 2: {beyond:.0%}" if len(z) else "unknown"
        wider = f"{beside.sum()} below {lowest}\n" if beside.any() else ""
        plot.note(wider + words, alarming=bool(len(z)) and np.median(contraction) < 0, top=False)
    return _labelled(sheet, check, "Contraction", "posterior contraction", "posterior z-score")


def _labelled(sheet: Sheet, check: xr.DataTree, what: str, xlabel: str, ylabel: str) -> Any:
    """Say which draws were judged: raw and corrected ones look alike."""
    attrs = check["prior_sbc"].attrs if "prior_sbc" in check.children else {}
    title = ""
    if "correction" in attrs:
        how = (
            "the network's own draws"
            if attrs["correction"] == "none"
            else f'draws by correction="{attrs["correction"]}"'
        )
        title = f"{what}: {how}, {attrs['num_datasets']} simulated data sets"
    return sheet.finished(title=title, xlabel=xlabel, ylabel=ylabel)


def correlate(true: np.ndarray, mean: np.ndarray) -> float:
    """Correlation of true values and posterior means; NaN where one of them does not vary."""
    known = np.isfinite(true) & np.isfinite(mean)
    if known.sum() < 2 or np.ptp(true[known]) == 0 or np.ptp(mean[known]) == 0:
        return float("nan")
    return float(np.corrcoef(true[known], mean[known])[0, 1])


def take_group(check: xr.DataTree, name: str) -> xr.Dataset:
    """Take a group of a check.

    Raises
    ------
    TypeError
        When it is no check.
    """
    if not isinstance(check, xr.DataTree) or name not in check.children:
        raise TypeError(f"check must be what check_calibration returns, a DataTree with the group {name!r}")
    return check[name].to_dataset()


def choose_panels_of(check: xr.DataTree, name: str, own: int, var_names: Sequence[str] | None) -> list[Panel]:
    """Choose the panels for a group whose variables have so many leading dims of ours."""
    group = take_group(check, name)
    lead = next(iter(group.data_vars.values())).dims[:own]
    urgency = take_entry(take_group(check, "calibration"), "p_value")
    return choose_panels(group.isel(dict.fromkeys(lead, 0), drop=True), var_names, urgency)


def _most(values: np.ndarray) -> tuple[float, float]:
    """Range of values, extreme ones left out."""
    low, high = np.nanquantile(values, [0.25, 0.75])
    reach = 5.0 * (high - low)  # one extreme draw must not decide the scale
    return max(float(np.nanmin(values)), low - reach), min(float(np.nanmax(values)), high + reach)


def _is_off(metrics: xr.Dataset, panel: Panel) -> bool:
    return bool(panel.of(take_entry(metrics, "p_adjusted")) < LEVEL)


def _finding(metrics: xr.Dataset, panel: Panel) -> str:
    def metric(name: str) -> float:
        return float(panel.of(take_entry(metrics, name)))

    text = p_text(metric("p_adjusted"))
    if not _is_off(metrics, panel) or panel.name in (LOG_JOINT, DISTANCE):
        return text
    return f"{text}\nbias {metric('bias'):+.2f} sd\nsd × {metric('sd_ratio'):.2f}"
