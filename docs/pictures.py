"""Draws pictures of the documentation into ``_static``: ``python docs/pictures.py``, or with the names of some."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import pymc_amortized as pma

FOLDER = Path(__file__).parent / "_static"
BLUE, ORANGE, GREY = "#1f6f9f", "#d9722e", "#c9ced3"
GROUPS = [BLUE, ORANGE, "#4d9b6a", "#8a6bb0"]

plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})


def save(figure: plt.Figure, name: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / name, dpi=150, bbox_inches="tight")
    plt.close(figure)


def kinds() -> None:
    """What the four kinds of axes look like."""
    rng = np.random.default_rng(4)
    figure, (rows, series, grouped, features) = plt.subplots(1, 4, figsize=(11, 2.5), layout="constrained")

    x = rng.normal(size=40)
    rows.scatter(x, 0.8 * x + 0.5 * rng.normal(size=40), color=BLUE, s=14)
    rows.set(title="exchangeable", xlabel="rows in any order", xticks=[])

    walk = np.cumsum(rng.normal(size=60))
    series.plot(walk, color=BLUE, lw=1.4)
    series.set(title="sequence", xlabel="the order matters", xticks=[])

    for i, (size, color) in enumerate(zip([14, 5, 9, 20], GROUPS, strict=True)):
        grouped.scatter(
            i + rng.uniform(-0.2, 0.2, size=size), rng.normal() + 0.35 * rng.normal(size=size), color=color, s=14
        )
    grouped.set(title="grouped", xlabel="rows belong to groups", xticks=[])

    features.bar(range(5), [3.1, 0.4, 7.2, 1.5, 4.8], color=[*GROUPS, GREY])
    features.set(title="features", xlabel="every entry means something else", xticks=[])
    for axes in (rows, series, grouped, features):
        axes.set(yticks=[])
    save(figure, "kinds.png")


Mean = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""Of y, by the covariate, y itself and the slope."""


def regression(x: np.ndarray, y: np.ndarray, slope: float) -> np.ndarray:
    return slope * x


def standardized(x: np.ndarray, y: np.ndarray, slope: float) -> np.ndarray:
    return slope * (x - x.mean()) / x.std()


def autoregression(x: np.ndarray, y: np.ndarray, slope: float) -> np.ndarray:
    return slope * np.concatenate([[0.0], y[:-1]])


def simulated(mean: Mean, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Covariate, y with unit noise, and the slope."""
    slope, x, y = rng.uniform(-1, 1), rng.normal(size=rows), np.zeros(rows)
    for i in range(rows):
        y[i] = mean(x, y, slope)[i] + rng.normal()
    return x, y, slope


def terms(mean: Mean, x: np.ndarray, y: np.ndarray, slope: float) -> np.ndarray:
    """Log density of each value of y."""
    return -0.5 * (y - mean(x, y, slope)) ** 2 - 0.5 * np.log(2 * np.pi)


def proofs() -> None:
    """Top: rows are permuted. Bottom: one row is changed."""
    rng = np.random.default_rng(2)
    models = {
        "regression\nmean of y: slope * x": regression,
        "standardized in the model\nmean of y: slope * (x - x.mean()) / x.std()": standardized,
        "autoregression\nmean of y: slope * the value before": autoregression,
    }
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), layout="constrained", height_ratios=[1, 1.3])
    rows = 12
    for (permuted, changed), (title, mean) in zip(axes.T, models.items(), strict=True):
        differences = []
        for _ in range(16):
            x, y, slope = simulated(mean, rows, rng)
            order = rng.permutation(rows)
            differences.append((terms(mean, x[order], y[order], slope) - terms(mean, x, y, slope)).sum())
        permuted.axhline(0, color=GREY, lw=1)
        permuted.scatter(range(16), differences, color=BLUE, s=16, zorder=3)
        permuted.set(title=title, ylim=(-30, 10), xticks=[], xlabel="prior draws")

        depends = np.zeros((rows, rows))
        for row in range(rows):
            other_x, other_y = x.copy(), y.copy()
            other_x[row], other_y[row] = rng.normal(size=2)
            change = terms(mean, other_x, other_y, slope) - terms(mean, x, y, slope)
            depends[:, row] = abs(change) > 1e-9
        changed.imshow(depends, cmap="Blues", vmin=0, vmax=1.4)
        changed.set(xticks=[], yticks=[], xlabel="row that is changed")
    axes[0, 0].set_ylabel("change of the log density\nwhen rows are permuted")
    axes[1, 0].set_ylabel("rows whose log density\nchanges with it")
    save(figure, "proofs.png")


def sizes() -> None:
    """One posterior at many lengths, beside the closed form."""
    with pm.Model(coords={"obs": range(500)}) as model:
        mean = pm.Normal("mean", 0, 1)
        pm.Normal("y", mean, 2, observed=np.zeros(500), dims="obs")
    context, missing = {"obs": (10, 500)}, {"y": 0.2}
    posterior = pma.fit_posterior(model, context=context, missing=missing, random_seed=1, max_time=30)

    rng = np.random.default_rng(1)
    lengths = np.array([10, 15, 25, 40, 70, 120, 200, 320, 500])
    figure, (drawn, width) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    low, high = np.log(9.5), np.log(500.5)
    drawn.hist(np.exp(rng.uniform(low, high, size=4000)).round(), bins=50, color=GREY)
    drawn.set(title="lengths drawn in training, context={'obs': (10, 500)}", xlabel="rows", yticks=[])
    for share, color in ((0.0, BLUE), (0.3, ORANGE)):
        datasets = [{"y": np.where(rng.uniform(size=n) < share, np.nan, rng.normal(0.5, 2, size=n))} for n in lengths]
        present = np.array([np.isfinite(data["y"]).sum() for data in datasets])
        raw = posterior.sample(datasets, batched=True, correction=None, random_seed=1)
        corrected = posterior.sample(datasets, batched=True, random_seed=1)
        label = "complete" if share == 0 else f"{share:.0%} missing"
        width.plot(lengths, 1 / np.sqrt(1 + present / 4), color=color, lw=1, label=f"{label}: exact")
        width.scatter(lengths, corrected.posterior["mean"].std(["chain", "draw"]), color=color, s=22, label="corrected")
        width.scatter(
            lengths, raw.posterior["mean"].std(["chain", "draw"]), color=color, marker="x", s=30, label="network alone"
        )
    width.set(title="one posterior, any length", xlabel="rows", ylabel="posterior sd of the mean", xscale="log")
    width.set_xticks([10, 30, 100, 300], ["10", "30", "100", "300"])
    width.minorticks_off()
    width.legend(frameon=False, ncols=2)
    save(figure, "sizes.png")


def firms() -> None:
    """Eleven firms by one training, beside NUTS (examples/grunfeld.py); the log says how long both take."""
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import grunfeld

    data = grunfeld.panel()
    model = grunfeld.regression(data.isel(dataset=0))
    pool = grunfeld.wandering(50_000, np.random.default_rng(1))
    context = {"x": lambda rng: pool[rng.integers(len(pool))]}
    posterior, training = grunfeld.timed(pma.fit_posterior, model, context=context, random_seed=1)
    amortized, answering = grunfeld.timed(posterior.sample, data, batched=True, random_seed=1)
    nuts, sampling = grunfeld.timed(grunfeld.run_nuts, model, data)
    print(f"training {training:.1f} s, all firms {answering:.2f} s, NUTS {sampling:.1f} s")
    print(grunfeld.table(amortized, nuts).to_string(float_format="{:.2f}".format))

    names = data["dataset"].values
    drawn = (
        (amortized, BLUE, -0.17, f"pymc_amortized: training {training:.0f} s, all firms {answering:.1f} s"),
        (nuts, ORANGE, 0.17, f"pm.sample, firm by firm: {sampling:.0f} s, compiling included"),
    )
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained", sharey=True)
    for panel, covariate, title in zip(panels, grunfeld.COVARIATES, ["market value", "capital stock"], strict=True):
        for dt, color, offset, label in drawn:
            slope = dt.posterior["slope"].sel(covariate=covariate)
            low, half_low, middle, half_high, high = slope.quantile([0.03, 0.25, 0.5, 0.75, 0.97], ["chain", "draw"])
            height = np.arange(len(names)) + offset
            panel.hlines(height, low, high, color=color, lw=1.2)
            panel.hlines(height, half_low, half_high, color=color, lw=3.5)
            panel.plot(middle, height, "o", color="white", mec=color, ms=4.5, label=label)
        panel.axvline(0, color=GREY, lw=1, zorder=0)
        panel.set(title=f"effect of {title} on investment", xlabel="slope, in sds of the firm's own series")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=2)
    save(figure, "firms.png")


PICTURES = {draw.__name__: draw for draw in (kinds, proofs, sizes, firms)}

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pymc_amortized").setLevel(logging.INFO)
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
