"""Small multiples: one panel for each scalar quantity, not too many, all in one look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import xarray as xr
from arviz_base import rcParams

from pymc_amortized.approximators.fitting.arguments import read_names
from pymc_amortized.diagnostics.coordinates import label_elements
from pymc_amortized.logs import logger

BLUE, RED, GREY, DARK = "#2a6f9e", "#c0392b", "#c9ced3", "#4a4f55"
WORDS = {BLUE: "blue", RED: "red", GREY: "grey", DARK: "dark"}
SMALL = 8.5
BACKENDS = ("matplotlib", "bokeh", "plotly", "none")
"""Of ArviZ's plots; the last one keeps what would be drawn."""

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


@dataclass(frozen=True)
class Plot:
    """One plot of a figure, with all functions by which a backend of ArviZ draws into it: ``line(x, y, color="red")``.

    Attributes
    ----------
    backend : module
    target : object
        The axes of matplotlib, or what another backend has for them.
    label : str
        What is shown.
    """

    backend: Any
    target: Any
    label: str = ""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.backend, name)
        return lambda *values, **properties: function(*values, self.target, **properties)

    @property
    def in_matplotlib(self) -> bool:
        """Whether matplotlib draws it, which can do more."""
        return str(self.backend.__name__).endswith("matplotlib")

    def rule(self, draw: str, at: float, color: str = DARK) -> None:
        """Draw a thin dotted line by "hline" or "vline"."""
        dotted = self.backend.get_default_aes("linestyle", 3, {})[-1]
        getattr(self, draw)(at, color=color, width=0.8, linestyle=dotted)

    def diagonal(self, low: float = 0.0, high: float = 1.0) -> None:
        """Draw a thin dotted line on which both axes are alike."""
        dotted = self.backend.get_default_aes("linestyle", 3, {})[-1]
        self.line([low, high], [low, high], color=DARK, width=0.8, linestyle=dotted)

    def points(self, x: np.ndarray, y: np.ndarray, color: str, size: float = 8.0, alpha: float = 1.0) -> None:
        """Draw points without edges."""
        self.scatter(x, y, color=color, size=size, alpha=alpha, width=0)

    def shares(self, axes: str = "xy", margin: float = 0.0) -> None:
        """Let axes go from 0 to 1."""
        for axis in axes:
            getattr(self, f"{axis}lim")((-margin, 1 + margin))
            getattr(self, f"{axis}ticks")([0, 0.5, 1], ["0", "0.5", "1"])

    def logarithmic(self, axis: str) -> tuple[Callable[..., Any], str]:
        """Make an axis logarithmic: what to draw there of values, and what to add to its label.

        Only matplotlib has such axes among the backends of ArviZ; others are given log10 of values.
        """
        if not self.in_matplotlib:
            return np.log10, " (log10)"
        getattr(self.backend, f"{axis}scale")(self.target, "log")
        return np.asarray, ""

    def note(self, text: str, *, alarming: bool = False, top: bool = True) -> None:
        """Write a few words into the upper or lower left corner, or, but for matplotlib, into the title."""
        color = RED if alarming else DARK
        if not self.in_matplotlib:
            self.title(": ".join(filter(None, (self.label, text.replace("\n", ", ")))), color=color)
            return
        self.target.text(
            0.03,
            0.97 if top else 0.03,
            text,
            transform=self.target.transAxes,
            ha="left",
            va="top" if top else "bottom",
            fontsize=SMALL - 0.5,
            color=color,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
        )

    def key(self, colors: Mapping[str, str]) -> None:
        """Say what colors mean."""
        if not self.in_matplotlib:
            self.note(key_text(colors))
            return
        self.target.legend(handles=_handles(colors), frameon=False, fontsize=SMALL)


def key_text(colors: Mapping[str, str]) -> str:
    """Write what colors mean, for backends that draw no legend."""
    return ", ".join(f"{WORDS[color]}: {label}" for label, color in colors.items())


def _handles(colors: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=color, label=label) for label, color in colors.items()]


@dataclass(frozen=True)
class Sheet:
    """A figure and its plots."""

    figure: Any
    plots: list[Plot]

    def finished(
        self, *, title: str = "", xlabel: str = "", ylabel: str = "", colors: Mapping[str, str] | None = None
    ) -> Any:
        """Label all of it; return matplotlib's figure, or a collection that shows and saves that of another backend."""
        if self.plots[0].in_matplotlib:
            for name, text in (("supxlabel", xlabel), ("supylabel", ylabel), ("suptitle", title)):
                if text:
                    getattr(self.figure, name)(text, fontsize=SMALL + 1 + (name == "suptitle"))
            if colors:
                place = {"loc": "outside lower center", "ncols": len(colors), "frameon": False}
                self.figure.legend(handles=_handles(colors), fontsize=SMALL, **place)
            return self.figure
        for plot in self.plots:
            for axis, text in (("x", xlabel), ("y", ylabel)):
                if text:
                    getattr(plot, f"{axis}label")(text)
        figure = self.figure
        if title := ", ".join(filter(None, (title, key_text(colors or {})))):
            figure, _ = self.plots[0].backend.set_figure_title(figure, title)
        targets = np.empty(len(self.plots), dtype=object)
        targets[:] = [plot.target for plot in self.plots]
        viz = xr.Dataset({"figure": ((), np.array(figure, dtype=object)), "plot": ("panel", targets)})
        from arviz_plots import PlotCollection  # imports matplotlib

        name = str(self.plots[0].backend.__name__).rpartition(".")[2]
        return PlotCollection(xr.Dataset(), viz_dt=xr.DataTree(viz), backend=name)


def make_grid(
    panels: Sequence[Panel], *, figsize: Figsize = None, shared: bool = False, backend: str | None = None
) -> tuple[Sheet, list[tuple[Panel, Plot]]]:
    """Make a figure with one titled plot for each panel."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    sheet = make_sheet(
        rows,
        columns,
        figsize=figsize or (2.7 * max(columns, 2), 2.3 * rows + 0.5),
        shared=shared,
        backend=backend,
        labels=[_short(panel.label) for panel in panels],
    )
    if sheet.plots[0].in_matplotlib:
        for plot in sheet.plots[-columns:]:  # where a shared axis would show its numbers below
            plot.target.tick_params(labelbottom=True)
    return sheet, list(zip(panels, sheet.plots, strict=True))


def make_sheet(
    rows: int = 1,
    columns: int = 1,
    *,
    figsize: tuple[float, float],
    shared: bool = False,
    backend: str | None = None,
    labels: Sequence[str] | None = None,
) -> Sheet:
    """Make a figure of the common look, with as many plots as there are labels.

    Raises
    ------
    ValueError, ImportError
        For a backend that ArviZ has not, or that is not installed: all are optional dependencies.
    """
    name = rcParams["plot.backend"] if backend is None else backend
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    labels = [""] * (rows * columns) if labels is None else labels
    native = name == "matplotlib"
    options: dict[str, Any] = {"layout": "constrained"} if native else {"figsize_units": "dots"}
    try:
        module = import_module(f"arviz_plots.backend.{name}")
    except ImportError as error:
        extra = "'pymc-amortized[plots]'" if native else name
        raise ImportError(f"plots need {name}: pip install {extra}") from error
    size = figsize if native else (100 * figsize[0], 100 * figsize[1])
    figure, targets = module.create_plotting_grid(
        len(labels), rows, columns, figsize=size, squeeze=False, sharex=shared, sharey=shared, **options
    )
    flat = list(targets.ravel())
    plots = [Plot(module, target, label) for target, label in zip(flat, labels, strict=False)]
    if native:
        for unused in flat[len(labels) :]:
            unused.remove()
        for plot in plots:
            plot.target.spines[["top", "right"]].set_visible(False)
            plot.target.tick_params(labelsize=SMALL)
            plot.title(plot.label, size=SMALL + 1)
    return Sheet(figure, plots)


def _short(label: str) -> str:
    return label if len(label) <= 34 else f"{label[:33]}…"
