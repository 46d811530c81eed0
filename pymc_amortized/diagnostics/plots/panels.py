"""Small multiples: one panel for each scalar quantity, not too many, all in one look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from arviz_base import rcParams

from pymc_amortized.approximators.fitting.arguments import read_names
from pymc_amortized.diagnostics.coordinates import label_elements
from pymc_amortized.logs import logger

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREY, DARK = "#2a6f9e", "#c0392b", "#c9ced3", "#4a4f55"
SMALL = 8.5

Figsize = tuple[float, float] | None


@dataclass(frozen=True)
class Panel:
    """One scalar quantity."""

    label: str
    name: str
    index: tuple[int, ...]

    def of(self, dataset: xr.Dataset) -> np.ndarray:
        """Return its values, of a dataset in which its dims come last."""
        values = dataset[self.name].to_numpy()
        lead = values.ndim - len(self.index)
        return values[(slice(None),) * lead + self.index]


def choose_panels(
    template: xr.Dataset,
    var_names: Sequence[str] | None,
    urgency: xr.Dataset | None = None,
) -> list[Panel]:
    """Choose what to show: no more than ArviZ would, and then the most urgent.

    Parameters
    ----------
    template : xarray.Dataset
        The quantities, without dims of their own values.
    var_names : sequence of str, optional
    urgency : xarray.Dataset, optional
        For each quantity a number: the smallest are shown where there are too many.
    """
    names = read_names(var_names, [str(name) for name in template.data_vars])
    panels = [
        Panel(str(label), name, place)
        for name in names
        for place, label in np.ndenumerate(label_elements(template[name]))
    ]
    most = rcParams["plot.max_subplots"] or len(panels)
    if len(panels) <= most:
        return panels
    which = "the first"
    chosen = set(range(most))
    if urgency is not None:
        which = "those furthest off"
        chosen = set(np.argsort([float(p.of(urgency)) for p in panels], kind="stable")[:most].tolist())
    logger.warning(
        "%d of %d panels are shown, %s: choose with var_names, or raise az.rcParams['plot.max_subplots'].",
        most,
        len(panels),
        which,
    )
    return [panel for i, panel in enumerate(panels) if i in chosen]


def make_grid(
    panels: Sequence[Panel], *, figsize: Figsize = None, shared: bool = False
) -> tuple[Figure, Iterator[tuple[Panel, Axes]]]:
    """Make a figure with one titled panel each."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = make_figure(
        rows, columns, figsize=figsize or (2.7 * max(columns, 2), 2.3 * rows + 0.5), shared=shared
    )
    for unused in axes[len(panels) :]:
        unused.remove()
    for lowest in axes[max(len(panels) - columns, 0) : len(panels)]:  # where a shared axis would show its numbers below
        lowest.tick_params(labelbottom=True)
    for panel, ax in zip(panels, axes, strict=False):
        ax.set_title(_short(panel.label), fontsize=SMALL + 1)
    return figure, zip(panels, axes, strict=False)


def make_figure(
    rows: int, columns: int, *, figsize: tuple[float, float], shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure of the common look.

    Raises
    ------
    ImportError
        Without matplotlib, which is an optional dependency.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pymc-amortized[plots]'") from error
    figure, axes = plt.subplots(
        rows, columns, figsize=figsize, layout="constrained", squeeze=False, sharex=shared, sharey=shared
    )
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL)
    return figure, list(axes.flat)


def write_note(ax: Axes, text: str, *, alarming: bool = False, top: bool = True) -> None:
    """Write a few words into the upper or lower left corner of a panel."""
    ax.text(
        0.03,
        0.97 if top else 0.03,
        text,
        transform=ax.transAxes,
        ha="left",
        va="top" if top else "bottom",
        fontsize=SMALL - 0.5,
        color=RED if alarming else DARK,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
    )


def _short(label: str) -> str:
    return label if len(label) <= 34 else f"{label[:33]}…"
