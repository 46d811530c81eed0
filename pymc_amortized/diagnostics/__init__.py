"""Whether a posterior, and its model, can be trusted: checks, their plots, and a report."""

from pymc_amortized.diagnostics.calibration import check_calibration
from pymc_amortized.diagnostics.draw_comparison import compare_draws
from pymc_amortized.diagnostics.local import check_local_calibration
from pymc_amortized.diagnostics.misspecification import check_misspecification
from pymc_amortized.diagnostics.model_comparison import check_comparison
from pymc_amortized.diagnostics.plots import (
    plot_calibration,
    plot_comparison,
    plot_confusion,
    plot_contraction,
    plot_coverage,
    plot_factors,
    plot_history,
    plot_novelty,
    plot_probabilities,
    plot_recovery,
    plot_reliability,
    plot_shrinkage,
    plot_weights,
)
from pymc_amortized.diagnostics.report import report

__all__ = [
    "check_calibration",
    "check_comparison",
    "check_local_calibration",
    "check_misspecification",
    "compare_draws",
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
    "report",
]
