"""The names that users see."""

from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.comparison.fit import fit_comparison
from pymc_amortized.approximators.joint.fit import fit_joint
from pymc_amortized.approximators.joint.joint import AmortizedJoint
from pymc_amortized.approximators.likelihood.fit import fit_likelihood
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.load import load
from pymc_amortized.approximators.posterior.fit import fit_posterior
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.simulations.simulate import simulate
from pymc_amortized.diagnostics import (
    check_calibration,
    check_comparison,
    check_local_calibration,
    check_misspecification,
    compare_draws,
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
    report,
)
from pymc_amortized.networks.choices import *  # noqa: F403
from pymc_amortized.networks.choices import (
    Flat,
    Grid,
    Grouped,
    Sequence,
    Set,
    SetTransformer,
    Spline,
    Transformer,
    ZukoDensity,
)
from pymc_amortized.networks.choices import __all__ as _networks
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.sampling import sample_amortized
from pymc_amortized.training import Training

__all__ = [
    "AmortizedJoint",
    "AmortizedComparison",
    "AmortizedLikelihood",
    "AmortizedPosterior",
    "Flat",
    "Grid",
    "Grouped",
    "RowSize",
    "Sequence",
    "Set",
    "SetTransformer",
    "Spline",
    "Training",
    "Transformer",
    "ZukoDensity",
    "fit_joint",
    "fit_comparison",
    "fit_likelihood",
    "check_calibration",
    "check_comparison",
    "check_local_calibration",
    "check_misspecification",
    "compare_draws",
    "fit_posterior",
    "load",
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
    "sample_amortized",
    "simulate",
]
# Type checkers read the list above. A network that is only registered is public all the same.
__all__ += [name for name in _networks if name not in __all__]
