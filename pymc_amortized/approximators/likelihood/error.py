"""How far the learned density of a row is from the exact one, where the model has one."""

import numpy as np

from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import LogDensityByVariable
from pymc_amortized.graph.model.operations import has_density
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.prepared import Rows, inside, past_of
from pymc_amortized.row_density.ratio import RowRatio


def simulations_to_check(rows: int) -> int:
    """How many simulations of so many rows :func:`row_error` wants."""
    # 100,000 rows, but of some simulations at least: errors of the rows of one are much alike
    return min(max(100_000 // rows, 100), 1000)


def row_error(
    density: RowDensity | RowRatio,
    simulated: ModelSpec,
    read_from: ObservedRows,
    made: Simulations,
    compile_kwargs: CompileKwargs | None,
) -> tuple[float | None, str]:
    """Compare log densities of rows.

    Parameters
    ----------
    density : RowDensity
        The learned one.
    simulated : ModelSpec
        The model that was simulated, with the row parameters among its deterministics.
    read_from : ObservedRows
        Its rows.
    made : Simulations
        See :func:`simulations_to_check`.
    compile_kwargs : mapping, optional

    Returns
    -------
    error : float or None
        Mean absolute difference per row; None where there is no exact density, or sizes differ.
    remark : str
        The same in words.
    """
    name = read_from.variable.name
    if simulated.sizes or not has_density(simulated.model, simulated.model[name]):
        return None, ""
    layout = density.layout
    rows = read_from.of_simulations(made, layout.lags, None, layout.scales)
    fine = inside(layout, list(rows.parameters))
    exact = LogDensityByVariable(simulated, compile_kwargs)
    datasets, values = of_simulations(made), []
    for i in range(len(made)):
        values.append(np.ravel(exact(made.unconstrained[i : i + 1], datasets.one(simulated, i))[name]))
    truth = np.stack(values)
    learned = _learned(density, rows).reshape(len(made), -1)
    if read_from.series:  # PyMC's density is that of the series
        length = read_from.rows // truth.shape[1]
        learned = learned.reshape(len(made), -1, length).sum(-1)
        fine, truth, learned = fine.reshape(len(made), -1, length).all(-1), truth / length, learned / length
    error = np.abs(learned - truth)[fine.reshape(truth.shape) & np.isfinite(truth)]
    if error.size == 0:
        return None, ""
    mean = float(error.mean())
    return mean, f"Mean |error of the log density| {mean:.4f} per row, on {error.size:,} simulated rows."


def _learned(density: RowDensity | RowRatio, rows: Rows) -> np.ndarray:
    return density.log_density(NUMPY, list(rows.values), list(rows.parameters), past_of(rows))
