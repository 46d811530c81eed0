"""Plots of checks, training and draws, and the report: what they show."""

import re
import sys
from html.parser import HTMLParser

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import planted
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from planted import standing_in

import pymc_amortized as pma
from pymc_amortized.diagnostics.plots.panels import BLUE, RED
from pymc_amortized.diagnostics.report import lay_out_page, lay_out_table
from pymc_amortized.training import History


@pytest.fixture(scope="module")
def checks():
    options = {"num_datasets": 200, "draws": 200, "random_seed": 1, "progressbar": False}
    plants = {"right": planted.right, "biased": planted.biased_in_b, "narrow": planted.over_confident}
    return {name: pma.check_calibration(standing_in(plant), **options) for name, plant in plants.items()}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def titles(figure):
    return [ax.get_title() for ax in figure.axes]


def curves(figure):
    """Color of the last line of each panel, by title."""
    return {ax.get_title(): to_hex(ax.lines[-1].get_color()) for ax in figure.axes}


def notes(figure):
    return {ax.get_title(): " ".join(text.get_text() for text in ax.texts) for ax in figure.axes}


def drawn(plots):
    """What another backend than matplotlib was told to draw, plot by plot."""
    return list(plots.viz["plot"].to_numpy())


def texts(plot, function):
    return [part["string"] for part in plot if part["function"] == function]


EVERYTHING = ["mu[a]", "mu[b]", "log_joint", "tarp"]


@pytest.mark.parametrize("plot", [pma.plot_calibration, pma.plot_coverage])
def test_what_is_off_is_red(checks, plot):
    assert set(curves(plot(checks["right"])).values()) == {BLUE}
    biased = plot(checks["biased"])
    assert titles(biased) == EVERYTHING
    assert curves(biased)["mu[b]"] == RED and curves(biased)["mu[a]"] == BLUE


def test_calibration_shows_ecdf_differences_bands_and_numbers(checks):
    figure = pma.plot_calibration(checks["narrow"], var_names=["mu"])
    assert titles(figure) == ["mu[a]", "mu[b]"]
    ax = figure.axes[0]
    x, y = ax.lines[-1].get_data()
    pit = np.sort(checks["narrow"]["prior_sbc"]["mu"].sel(group="a").to_numpy().ravel())
    at = np.searchsorted(x, 0.2, side="right") - 1
    assert y[at] + x[at] == pytest.approx((pit <= x[at]).mean())
    assert y[at] > 0.03  # over-confident: above on the left
    assert len(ax.collections) == 1 and "sd × 0." in notes(figure)["mu[a]"]
    assert ax.get_ylim()[1] > y.max()


def test_coverage_shows_the_share_within(checks):
    figure = pma.plot_coverage(checks["narrow"], var_names=["mu"])
    level, share = figure.axes[0].lines[-1].get_data()
    np.testing.assert_allclose(share, checks["narrow"]["coverage"]["mu"].sel(group="a"))
    assert share[50] < level[50] and re.fullmatch(r"90 %: [67]\d%", notes(figure)["mu[a]"])


def test_recovery_shows_means_against_true_values(checks):
    figure = pma.plot_recovery(checks["right"])
    assert titles(figure) == ["mu[a]", "mu[b]"]
    x, y = figure.axes[1].collections[0].get_offsets().T
    recovery = checks["right"]["recovery"]["mu"].sel(group="b")
    np.testing.assert_array_equal(x, recovery.sel(estimate="true"))
    np.testing.assert_array_equal(y, recovery.sel(estimate="mean"))
    r = float(xr.corr(recovery.sel(estimate="true"), recovery.sel(estimate="mean")))
    assert notes(figure)["mu[b]"] == f"r = {r:.2f}"


def test_contraction_shows_z_scores(checks):
    figure = pma.plot_contraction(checks["right"])
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1], checks["right"]["contraction"]["mu"].sel(score="z_score", group="a"))
    assert "median 0.9" in notes(figure)["mu[a]"]


def test_heavy_tails_do_not_decide_the_scale(checks):
    check = checks["right"].copy(deep=True)
    check["recovery"]["mu"].to_numpy()[:2, 0, 0] = 1e9
    figure = pma.plot_recovery(check)
    assert figure.axes[0].get_xlim()[1] < 100


def test_too_many_panels_are_limited_to_those_furthest_off(checks, caplog):
    with az.rc_context({"plot.max_subplots": 2}):
        figure = pma.plot_calibration(checks["biased"])
    assert "mu[b]" in titles(figure) and len(figure.axes) == 2
    assert "2 of 4 panels are shown, those furthest off" in caplog.text


@pytest.mark.parametrize("plot", [pma.plot_calibration, pma.plot_coverage, pma.plot_recovery, pma.plot_contraction])
def test_wrong_arguments_of_plots(checks, plot):
    with pytest.raises(TypeError, match="check must be what check_calibration returns"):
        plot(xr.DataTree())
    with pytest.raises(KeyError, match="nu"):
        plot(checks["right"], var_names=["nu"])
    assert tuple(plot(checks["right"], figsize=(5, 3)).get_size_inches()) == (5, 3)


@pytest.mark.parametrize("plot", [pma.plot_calibration, pma.plot_coverage, pma.plot_recovery, pma.plot_contraction])
def test_other_backends_draw_the_same(checks, plot):
    figure = plot(checks["biased"], backend="matplotlib")
    shown = drawn(plot(checks["biased"], backend="none"))
    assert [texts(panel, "title")[0].partition(":")[0] for panel in shown] == titles(figure)
    assert [len(texts(panel, "title")) for panel in shown] == [1] * len(shown)
    for panel, note in zip(shown, notes(figure).values(), strict=True):
        assert texts(panel, "title")[0].partition(": ")[2] == note.replace("\n", ", ")
    functions = {part["function"] for part in shown[0]}
    assert {"xlabel", "ylabel", "xlim", "ylim"} <= functions and functions & {"line", "scatter"}
    with az.rc_context({"plot.backend": "none"}):
        assert len(drawn(plot(checks["biased"]))) == len(shown)


def test_backends_that_there_are_not(checks, monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be one of .*'plotly'.* got 'gnuplot'"):
        pma.plot_calibration(checks["right"], backend="gnuplot")
    monkeypatch.setitem(sys.modules, "arviz_plots.backend.bokeh", None)
    with pytest.raises(ImportError, match="plots need bokeh: pip install bokeh"):
        pma.plot_calibration(checks["right"], backend="bokeh")


def test_local_checks_are_plotted_alike():
    options = {"num_simulations": 400, "num_datasets": 60, "draws": 40, "random_seed": 1, "progressbar": False}
    check = pma.check_local_calibration(standing_in(), {"y": np.zeros((2, planted.ROWS))}, **options)
    assert titles(pma.plot_calibration(check)) == EVERYTHING


def test_history_shows_both_losses():
    posterior = standing_in()
    figure = pma.plot_history(posterior)
    assert [line.get_label() for line in figure.axes[0].lines] == ["training", "held out"]
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), posterior.history.held_out_loss)
    with pytest.raises(TypeError, match="posterior must be"):
        pma.plot_history(3)
    (plot,) = drawn(pma.plot_history(posterior, backend="none"))
    lines = [part for part in plot if part["function"] == "line"]
    np.testing.assert_allclose(lines[1]["y"], posterior.history.held_out_loss)
    assert texts(plot, "title") == ["blue: training, red: held out"]


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(("correlation", "color"), [(0.3, BLUE), (0.97, RED)])
def test_weights_of_one_data_set(correlation, color):
    dt = standing_in(correlation=correlation).sample(
        {"y": np.zeros((2, planted.ROWS))}, correction="psis", random_seed=1
    )
    figure = pma.plot_weights(dt)
    (ax,) = figure.axes
    weights = ax.lines[-1].get_ydata()
    assert to_hex(ax.lines[-1].get_color()) == color and (np.diff(weights) <= 0).all()
    assert f"Pareto k {float(dt['sample_stats']['pareto_k']):.2f}" in ax.texts[0].get_text()
    (plot,) = drawn(pma.plot_weights(dt, backend="none"))
    (line,) = (part for part in plot if part["function"] == "line")
    np.testing.assert_allclose(line["y"], np.log10(weights))  # without logarithmic axes
    assert texts(plot, "ylabel") == ["weight / mean weight (log10)"]


def test_weights_of_many_data_sets():
    rng = np.random.default_rng(1)
    ys = rng.normal(size=(30, 2, planted.ROWS))
    dt = standing_in(correlation=0.8).sample({"y": ys}, batched=True, correction="psis", random_seed=1)
    left, right = pma.plot_weights(dt).axes
    points = np.concatenate([c.get_offsets() for c in left.collections])
    k = np.minimum(dt["sample_stats"]["pareto_k"].to_numpy(), 1.5)
    np.testing.assert_allclose(np.sort(points[:, 1]), np.sort(k))
    assert f"of 30 above {0.7:.2f}" in left.texts[0].get_text()
    assert right.get_ylim()[1] >= 1 and right.get_title() == f"median {np.median(efficiency(dt)):.0%}"
    _, right = drawn(pma.plot_weights(dt, backend="none"))
    (bars,) = (part for part in right if part["function"] == "hist")
    assert sum(bars["y"]) == 30


def efficiency(dt):
    stats = dt["sample_stats"]
    return stats["importance_ess"] / stats["num_proposals"]


def test_weights_that_are_not_there():
    with pytest.raises(TypeError, match="sample_stats"):
        pma.plot_weights(xr.DataTree())
    with pytest.raises(KeyError, match="without a density"):
        pma.plot_weights(xr.DataTree.from_dict({"sample_stats": xr.Dataset({"lp": 0.0})}))


def test_comparison_shows_what_differs():
    observed = {"y": np.zeros((2, planted.ROWS))}
    exact, wrong = (
        standing_in(plant).sample(observed, correction=None, random_seed=i)
        for i, plant in enumerate([planted.right, planted.biased_in_b])
    )
    figure = pma.plot_comparison(wrong, exact, var_names=["mu"], labels=("network", "exact"))
    assert titles(figure) == ["mu[a]", "mu[b]"]
    colors = [to_hex(ax.texts[0].get_color()) for ax in figure.axes]
    assert colors[1] == RED and colors[0] != RED
    assert re.search(r"shift \+0\.[34]", notes(figure)["mu[b]"])
    assert [text.get_text() for text in figure.legends[0].texts] == ["exact", "network"]
    assert len(pma.plot_comparison(wrong, exact).axes) == 3
    plots = drawn(pma.plot_comparison(wrong, exact, var_names=["mu"], backend="none"))
    assert [texts(plot, "title")[0][:13] for plot in plots] == ["mu[a]: shift ", "mu[b]: shift "]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_that_needs_no_network(checks, tmp_path):
    observed = {"y": np.zeros((2, planted.ROWS))}
    posterior = standing_in(planted.biased_in_b)
    pma.report(posterior, tmp_path / "report.html", check=checks["biased"], observed=observed, random_seed=1)
    found = Page((tmp_path / "report.html").read_text())
    assert found.open == [] and "script" not in found.tags and "link" not in found.tags
    assert found.sources and all(source.startswith("data:image/png;base64,") for source in found.sources)
    for words in ("Structure of the data", "Calibration", "Coverage", "Recovery", "Observed data", "Off: mu[b]"):
        assert words in found.text
    assert "held-out loss" in found.text and "group (2)" in found.text and "log_joint" in found.text
    assert plt.get_fignums() == []


def test_the_report_makes_its_own_check(tmp_path, monkeypatch):
    from pymc_amortized.diagnostics import report

    made = []

    def brief(posterior, **kwargs):
        made.append(pma.check_calibration(posterior, num_datasets=20, draws=20, **kwargs))
        return made[0]

    monkeypatch.setitem(report.__globals__, "check_calibration", brief)
    report(standing_in(), str(tmp_path / "report.html"), random_seed=1, progressbar=False)
    assert "20 simulated data sets" in (tmp_path / "report.html").read_text()
    assert made[0]["calibration"].attrs["correction"] == "psis"  # what users get of a model with a density
    with pytest.raises(TypeError, match="posterior must be an AmortizedPosterior"):
        report(3, tmp_path / "report.html")


def test_names_are_escaped():
    text = lay_out_page({"<b>": lay_out_table(["a&b"], [["<script>alert(1)</script>"]])})
    assert "<script>" not in text and "&lt;script&gt;" in text and "<h2>&lt;b&gt;</h2>" in text


def test_an_empty_history_has_a_report_too(checks, tmp_path):
    from dataclasses import replace

    posterior = replace(standing_in(), history=History())
    pma.report(posterior, tmp_path / "report.html", check=checks["right"])
    assert "No quantity is off." in (tmp_path / "report.html").read_text()
