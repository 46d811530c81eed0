"""Plots of checks, of training and of draws."""

from pymc_amortized.diagnostics.plots.checks import (
    plot_calibration,
    plot_contraction,
    plot_coverage,
    plot_recovery,
)
from pymc_amortized.diagnostics.plots.draw_comparison import plot_comparison, plot_history, plot_weights
from pymc_amortized.diagnostics.plots.hierarchy import plot_factors, plot_shrinkage
from pymc_amortized.diagnostics.plots.model_comparison import plot_confusion, plot_probabilities, plot_reliability
from pymc_amortized.diagnostics.plots.novelty import plot_novelty

__all__ = [
    "plot_calibration",
    "plot_comparison",
    "plot_confusion",
    "plot_contraction",
    "plot_coverage",
    "plot_factors",
    "plot_history",
    "plot_novelty",
    "plot_probabilities",
    "plot_recovery",
    "plot_reliability",
    "plot_shrinkage",
    "plot_weights",
]
