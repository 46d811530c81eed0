"""One HTML page about a trained posterior, that opens in any browser without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from arviz_base import rc_context

from pymc_amortized.approximators.fitting.seeds import RandomState
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.diagnostics.calibration import check_calibration
from pymc_amortized.diagnostics.coordinates import label_elements, own_dim, take_entry
from pymc_amortized.diagnostics.plots import (
    plot_calibration,
    plot_contraction,
    plot_coverage,
    plot_history,
    plot_recovery,
    plot_weights,
)
from pymc_amortized.diagnostics.plots.checks import correlate
from pymc_amortized.diagnostics.statistics import SAMPLE
from pymc_amortized.diagnostics.verdict import LEVEL
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.numerics.sampling.importance import k_threshold
from pymc_amortized.results.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 60
"""Rows of a table beyond which only those furthest off are shown."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #23282d; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #dde1e5; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15rem .7rem; border-bottom: 1px solid #eceff1; }
th:first-child, td:first-child, table.words td, table.words th { text-align: left; }
img { max-width: 100%; } pre { background: #f5f7f8; padding: .6rem; overflow-x: auto; font-size: .85rem; }
.good { color: #22703c; } .bad { color: #c0392b; } .note { color: #5d666e; font-size: .9rem; }
"""

Section = Callable[[], str]


def report(
    posterior: AmortizedPosterior,
    path: str | PathLike[str],
    *,
    check: xr.DataTree | None = None,
    observed: Mapping[str, Any] | xr.Dataset | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
) -> None:
    """Write one HTML page about a trained posterior: structure, training, calibration, recovery.

    Parameters
    ----------
    posterior : AmortizedPosterior
        From :func:`fit_posterior` or :func:`load`.
    path : path-like
        File to write; an existing one is replaced.
    check : xarray.DataTree, optional
        From :func:`check_calibration`; made here by default: of corrected draws, where the model has a density.
    observed : mapping of name to array_like, or xarray.Dataset, optional
        One data set, as in ``posterior.sample``: adds a section on its draws and importance weights.
    context, missing : mapping, optional
        As in :func:`fit_posterior`; needed for the check of a posterior that was read from a file.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of the check and of draws.
    progressbar : bool
        Whether the check shows its progress.

    Raises
    ------
    ImportError
        Without matplotlib.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> check = pma.check_calibration(posterior, num_datasets=50, draws=100, random_seed=1, progressbar=False)
    >>> pma.report(posterior, "report.html", check=check)
    """
    if not isinstance(posterior, AmortizedPosterior):
        raise TypeError(f"posterior must be an AmortizedPosterior, got {type(posterior).__name__}")
    rng = np.random.default_rng(random_seed)
    if check is None:
        check = check_calibration(
            posterior,
            correction=None if posterior.weighed_by.density_obstacle else "psis",
            context=context,
            missing=missing,
            random_seed=rng,
            progressbar=progressbar,
        )
    with rc_context({"plot.backend": "matplotlib"}):  # whose figures are pictures
        sections = {
            "Model": _model(posterior),
            "Structure of the data": f"<pre>{escape(str(posterior.structure))}</pre>",
            "Training": _training(posterior),
            "Calibration": _calibration(check),
            "Coverage": _coverage(check),
            "Recovery": _recovery(check),
            "Importance weights": _weights(check),
        }
        if observed is not None:
            sections["Observed data"] = _observed(posterior, observed, rng)
    Path(path).write_text(lay_out_page(sections), encoding="utf-8")


def lay_out_page(sections: Mapping[str, str]) -> str:
    """Put sections, title to HTML, on one page; those without content are left out."""
    body = "\n".join(f"<h2>{escape(title)}</h2>\n{content}" for title, content in sections.items() if content)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Amortized posterior</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>Amortized posterior</h1>\n"
        f'<p class="note">{datetime.now():%Y-%m-%d %H:%M}, pymc_amortized {escape(__version__)}</p>\n'
        f"{body}\n</body></html>\n"
    )


def lay_out_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """Lay out a table of text, all of it escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table{' class="words"' if words else ''}><tr>{head}</tr>{''.join(lines)}</table>"


def embed_figure(figure: Figure, alternative: str) -> str:
    """Embed a figure, and close it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)  # sharp on a screen, and some tens of kilobytes
    plt.close(figure)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<p><img alt="{escape(alternative)}" src="data:image/png;base64,{encoded}"></p>'


def _model(posterior: AmortizedPosterior) -> str:
    spec = posterior.spec
    dims = spec.model.named_vars_to_dims
    rows = [[p.name, "free", _shape(p.shape, dims.get(p.name)), p.transform or ""] for p in spec.parameters]
    rows += [[p.name, "marginalized", _shape(p.shape, dims.get(p.name)), ""] for p in spec.nuisance]
    rows += [[v.name, v.role, _shape(v.shape, v.dims), _data_remark(spec, v.name)] for v in (*spec.data, *spec.fixed)]
    obstacle = posterior.weighed_by.density_obstacle
    density = f"No density: {obstacle}." if obstacle else "The model has a density: draws can be corrected."
    if posterior.learned is not None:
        density = "The likelihood is learned: draws can be corrected by that."
    return lay_out_table(["variable", "role", "shape", ""], rows, words=True) + f"<p>{escape(density)}</p>"


def _shape(shape: Sequence[int | None], dims: Sequence[str | None] | None) -> str:
    if not shape:
        return "scalar"
    names = list(dims or [None] * len(shape))
    return " × ".join(
        f"{d} ({n if n is not None else 'varies'})" if d else str(n) for n, d in zip(shape, names, strict=True)
    )


def _data_remark(spec: ModelSpec, name: str) -> str:
    variable = next(v for v in (*spec.data, *spec.fixed) if v.name == name)
    ranges = [f"{r.dim}: {r.smallest} to {r.largest}" for r in spec.sizes if r.dim in variable.sized]
    return ", ".join([variable.kind, *ranges, *(["may be missing"] if variable.missing else [])])


def _training(posterior: AmortizedPosterior) -> str:
    p, history = posterior.provenance, posterior.history
    steps = int(history.step[-1]) if len(history.step) else 0
    seconds = float(history.seconds[-1]) if len(history.seconds) else 0.0
    rows = [
        ["steps", f"{steps:,}"],
        ["seconds", f"{seconds:.1f}"],
        ["simulations used", f"{p.simulations:,}"],
        ["held-out loss", f"{p.held_out_loss:.3f}"],
        ["settled", "yes" if p.settled else "no, or not known"],
        ["seed", ", ".join(map(str, p.entropy))],
    ]
    rows += [["dropped simulations", f"{why}: {count} of {p.attempted}"] for why, count in p.dropped.items()]
    plot = embed_figure(plot_history(history), "losses during training") if len(history.step) > 1 else ""
    return lay_out_table(["", ""], rows, words=True) + plot


def _calibration(check: xr.DataTree) -> str:
    group = check["calibration"].to_dataset()
    attrs = group.attrs
    fine = bool(attrs["calibrated"])
    verdict = "No quantity is off." if fine else f"Off: {attrs['off']}."
    which = "the network's own draws" if attrs["correction"] == "none" else f"draws corrected by {attrs['correction']}"
    rows = _rows([take_entry(group, metric) for metric in ("p_adjusted", "bias", "sd_ratio", "deviation")])
    rows.sort(key=lambda row: row[1])
    note = f"The {MOST_ROWS} furthest off of {len(rows)}." if len(rows) > MOST_ROWS else ""
    cells = [
        [name, f"{p:.2g}", f"{bias:+.2f}", f"{ratio:.2f}", f"{dev:.3f}"]
        for name, p, bias, ratio, dev in rows[:MOST_ROWS]
    ]
    return (
        f'<p class="{"good" if fine else "bad"}"><b>{escape(verdict)}</b></p>'
        f'<p class="note">{attrs["num_datasets"]} simulated data sets, {attrs["draws"]} draws each: {escape(which)}. '
        f"A p-value (adjusted for the number of quantities) below {LEVEL} is off. Bias is in posterior sds; the sd is "
        "relative to what it should be, below one over-confident. log_joint is the joint density of parameters and "
        f"data, tarp the coverage of the joint posterior. {note}</p>"
        + lay_out_table(["quantity", "p", "bias", "sd", "largest ECDF difference"], cells)
        + embed_figure(plot_calibration(check), "ECDF differences of PIT values")
    )


def _coverage(check: xr.DataTree) -> str:
    group = check["coverage"].to_dataset()
    nominal = [0.5, 0.9, 0.95]
    columns = [group.sel({own_dim(group): level}, method="nearest", drop=True) for level in nominal]
    rows = [[str(name), *(f"{share:.0%}" for share in shares)] for name, *shares in _rows(columns)[:MOST_ROWS]]
    return lay_out_table(["share of true values within", *(f"{level:.0%}" for level in nominal)], rows) + embed_figure(
        plot_coverage(check), "coverage"
    )


def _recovery(check: xr.DataTree) -> str:
    recovery, contraction = check["recovery"].to_dataset(), check["contraction"].to_dataset()
    rows = []
    for name in recovery.data_vars:
        found, learned = recovery[name], take_entry(contraction, "contraction")[name].median(DATASET_DIM)
        for place, label in np.ndenumerate(label_elements(found[0, 0])):
            true, mean = found.to_numpy()[(slice(0, 2), slice(None), *place)]
            rows.append([str(label), f"{correlate(true, mean):.2f}", f"{float(learned.to_numpy()[place]):.2f}"])
    return (
        lay_out_table(["parameter", "correlation", "median contraction"], rows[:MOST_ROWS])
        + embed_figure(plot_recovery(check), "recovery")
        + embed_figure(plot_contraction(check), "contraction and z-scores")
    )


def _weights(check: xr.DataTree) -> str:
    k = check["sample_stats"].to_dataset()["pareto_k"].to_numpy()
    known = k[~np.isnan(k)]
    if len(known) == 0:
        return ""
    limit = k_threshold(int(check["sample_stats"].attrs["draws"]))
    return (
        f"<p>{np.mean(known <= limit):.0%} of the simulated data sets have a Pareto k up to {limit:.2f}, with which "
        f"corrected draws can be trusted (median {np.median(known):.2f}).</p>"
    )


def _observed(posterior: AmortizedPosterior, observed: Any, rng: np.random.Generator) -> str:
    dt = posterior.sample(observed, random_seed=rng, progressbar=False)
    draws = dt["posterior"].to_dataset()
    estimates = _rows([draws.mean(SAMPLE), draws.std(SAMPLE)])[:MOST_ROWS]
    rows = [[str(name), f"{mean:.3g}", f"{sd:.2g}"] for name, mean, sd in estimates]
    weighted = "proposal_log_weight" in dt["sample_stats"]
    plot = embed_figure(plot_weights(dt), "importance weights") if weighted else ""
    stats = dt["sample_stats"].to_dataset()
    k = f", Pareto k {stats['pareto_k'].item():.2f}" if "pareto_k" in stats else ""
    how = f"<p>Stage: {escape(str(stats['stage'].item()))}{k}.</p>"
    return how + lay_out_table(["variable", "mean", "sd"], rows) + plot


def _rows(columns: Sequence[xr.Dataset]) -> list[tuple[Any, ...]]:
    """One row for each scalar: its label, then its value in each column."""
    return [
        (str(label), *(column[name].to_numpy()[place].item() for column in columns))
        for name, values in columns[0].data_vars.items()
        for place, label in np.ndenumerate(label_elements(values))
    ]
