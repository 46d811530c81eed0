"""Plots of hierarchies: which values the model's density takes apart, and what groups learn from each other."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import read_names
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.diagnostics.plots.panels import BLUE, DARK, GREY, SMALL, Figsize, Plot, make_sheet
from pymc_amortized.results.unpacking import SAMPLE_DIMS, is_batched

WITHIN = (0.05, 0.95)
"""Quantiles between which 90 % of the mass lies."""
LEARNT = 0.9
"""Share of the variance among groups, beyond which what a group's own data say is not known well enough to be shown."""
ARROW = {"arrowstyle": "-|>", "color": DARK, "linewidth": 0.8}
FEW, MOST = 40, 400
"""Groups that are named, and that can be told apart."""


def plot_shrinkage(
    posterior: AmortizedPosterior,
    dt: xr.DataTree,
    *,
    var_names: Sequence[str] | None = None,
    random_seed: RandomState = 0,
    figsize: Figsize = None,
    backend: str | None = None,
) -> Any:
    """Plot values of groups beside what a group could be of which nothing is known: how far each is pulled to the rest.

    Parameters
    ----------
    posterior : AmortizedPosterior
        From :func:`fit_posterior` or :func:`load`.
    dt : xarray.DataTree
        From ``posterior.sample``, of one data set, with every free variable.
    var_names : sequence of str, optional
        Variables with a value for each group, free or deterministic; by default the free ones that are integrated out,
        or else all free ones of several values.
    random_seed : int, optional
        Of the draws of groups of which nothing is known.
    figsize : (float, float), optional
        In inches.
    backend : {"matplotlib", "bokeh", "plotly"}, optional
        Of ArviZ's plots; by default ``az.rcParams["plot.backend"]``.

    Returns
    -------
    matplotlib.figure.Figure or arviz_plots.PlotCollection
        A plot for each variable, or for each of its effects. Groups are in the order of their posterior means. Blue
        are these and central 90 % intervals, grey the interval of a group without data: its prior, given the parameters
        of each draw. Dark points are what a group's own data say, by a normal approximation: the posterior divided by
        that prior. They are left out where the data of a group say little. The share is the posterior variance by the
        variance without data (median over groups): 100 % is complete pooling (Gelman and Pardoe 2006, Technometrics
        48(2)).

    Raises
    ------
    ValueError, KeyError
        When the result is of several data sets, or a variable has no groups.

    Examples
    --------
    With the hierarchy of :func:`fit_posterior`'s second example:

    >>> draws = groups.sample({"y": [4, 1, 0], "site_index": [0, 0, 2]}, draws=50, random_seed=1)
    >>> figure = pma.plot_shrinkage(groups, draws)
    """
    if is_batched(dt):
        raise ValueError("dt is a result of several data sets; take one: posterior.one_dataset(dt, label)")
    names, groups = _read_variables(posterior, var_names)
    anew = posterior.compiled.predictions.redrawn(dt, names, groups, seed_sequence(random_seed))
    draws = dt["posterior"].to_dataset()
    panels = [panel for name in names for panel in _panels(draws[name], anew[name])]
    labels = [label for label, *_ in panels]
    sheet = make_sheet(len(panels), figsize=figsize or (7.0, 0.6 + 2.6 * len(panels)), backend=backend, labels=labels)
    for (_, own, without, labels), plot in zip(panels, sheet.plots, strict=True):
        _one_variable(plot, own, without, labels)
    sheet.plots[-1].xlabel("groups, by posterior mean")
    return sheet.finished(colors={"posterior, 90 %": BLUE, "without data, 90 %": GREY, "its own data alone": DARK})


def _read_variables(posterior: AmortizedPosterior, var_names: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Variables to show, and the free variables that are values of groups."""
    spec = posterior.spec
    free = [p for p in spec.drawn if np.prod(p.shape) > 1 or any(p.sized)]
    groups = [p.name for p in spec.locals] or [p.name for p in free]
    possible = [p.name for p in free] + [d for d in spec.deterministics if spec.model[d].type.ndim > 0]
    names = groups if var_names is None else read_names(var_names, possible)
    if not names:
        raise ValueError("the model has no variable with a value for each group: name a deterministic by var_names")
    return names, groups


def _panels(draws: xr.DataArray, anew: xr.DataArray) -> list[tuple[str, np.ndarray, np.ndarray, list[str]]]:
    """Label, draws (n, groups), the same without data, and names of groups, for each effect of a variable."""
    own = [str(dim) for dim in draws.dims if dim not in SAMPLE_DIMS]
    if not own:
        raise ValueError(f"var_names: {draws.name!r} has no value for each group")
    along, others = own[0], own[1:]  # PyMC's dims of groups come first
    names = [str(label) for label in draws[along].to_numpy()] if along in draws.coords else []
    found = []
    for place in np.ndindex(*(draws.sizes[dim] for dim in others)):
        at = dict(zip(others, place, strict=True))
        one, other = (values.isel(at).transpose(*SAMPLE_DIMS, along).to_numpy() for values in (draws, anew))
        labels = [str(draws[dim].to_numpy()[k]) if dim in draws.coords else str(k) for dim, k in at.items()]
        label = f"{draws.name}[{', '.join(labels)}]" if labels else str(draws.name)
        size = one.shape[-1]
        found.append((label, one.reshape(-1, size), other.reshape(-1, size), names))
    return found


def _one_variable(plot: Plot, draws: np.ndarray, anew: np.ndarray, names: list[str]) -> None:
    order = np.argsort(draws.mean(axis=0))
    order = order[np.linspace(0, len(order) - 1, min(len(order), MOST)).astype(int)]
    draws, anew, place = draws[:, order], anew[:, order], np.arange(len(order))
    (low, high), (lowest, highest) = (np.quantile(values, WITHIN, axis=0) for values in (draws, anew))
    plot.fill_between_y(place, lowest, highest, color=GREY, alpha=0.6)
    for x, a, b in zip(place, low, high, strict=True):
        plot.line([x, x], [a, b], color=BLUE, width=1.0)
    plot.points(place, draws.mean(axis=0), BLUE, size=10)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = draws.var(axis=0) / anew.var(axis=0)
        own = (draws.mean(axis=0) - pooled * anew.mean(axis=0)) / (1 - pooled)
    told = pooled < LEARNT
    plot.points(place[told], own[told], DARK, size=6)
    if names and len(order) <= FEW:
        plot.xticks(place.tolist(), [names[i] for i in order])
        if plot.in_matplotlib:
            plot.target.tick_params(axis="x", rotation=90)
    plot.note(f"pooling {min(float(np.median(pooled)), 1.0):.0%} (median)")


def plot_factors(posterior: AmortizedPosterior, *, figsize: Figsize = None) -> Any:
    """Draw how the posterior factorizes: parameters, values of groups given these, data.

    Parameters
    ----------
    posterior : AmortizedPosterior
        From :func:`fit_posterior` or :func:`load`.
    figsize : (float, float), optional
        In inches.

    Returns
    -------
    matplotlib.figure.Figure
        Above the parameters, which the network learns; below them a box for each kind of blocks that are independent of
        each other (``posterior.structure.factors``), which the density integrates out or a network draws; then data.

    Raises
    ------
    ValueError
        When no variable is integrated out.

    Examples
    --------
    With the hierarchy of :func:`fit_posterior`'s second example:

    >>> figure = pma.plot_factors(groups)
    """
    factors = posterior.structure.factors
    if not factors:
        raise ValueError("this posterior draws all variables together: it has no values of groups to show")
    sheet = make_sheet(figsize=figsize or (max(3.2 * len(factors), 5.0), 4.2), backend="matplotlib")
    axes, wide = sheet.plots[0].target, 3.0 * len(factors)
    axes.set_axis_off()
    axes.set(xlim=(0, wide), ylim=(0, 4))
    spec = posterior.spec
    how = "integrated out, drawn" if spec.density_obstacle is None else "drawn by one network,"
    names = ", ".join(p.name for p in spec.parameters)
    _box(axes, wide / 2, 3.5, f"parameters: the network learns them\n{fill(names, 22 * len(factors))}", BLUE)
    data = ", ".join(v.name for v in spec.data)
    _box(axes, wide / 2, 0.45, f"data\n{fill(data, 22 * len(factors))}", DARK)
    for i, factor in enumerate(factors):
        x = 3.0 * i + 1.5
        most = "up to " if any(any(p.sized) for p in spec.locals if p.name in factor.names) else ""
        times = f"{most}{factor.number} × " if factor.number > 1 else ""
        for back in range(min(factor.number, 3) - 1, -1, -1):  # a stack of cards: a plate
            text = f"{' and '.join(factor.names)}\n{times}{factor.values}\n{how} given\nthe parameters"
            _box(axes, x + 0.06 * back, 2.0 + 0.06 * back, "" if back else text, GREY, like=text)
        axes.annotate("", (x, 2.5), (wide / 2, 3.05), arrowprops=ARROW)
        axes.annotate("", (wide / 2, 0.8), (x, 1.55), arrowprops=ARROW)
    return sheet.figure


def _box(axes: Any, x: float, y: float, text: str, color: str, like: str = "") -> None:
    """Write text into a box; with no text of its own, one as large as that of another."""
    style = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": color, "linewidth": 1.4}
    ink = DARK if text else "none"
    axes.text(x, y, text or like, ha="center", va="center", fontsize=SMALL, color=ink, bbox=style)
