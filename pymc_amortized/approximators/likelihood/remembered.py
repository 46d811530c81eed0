r"""Whether the rows of a series depend on more of the past than the learned density of a row sees.

Where it sees enough, the probability integral transforms of rows are uniform and independent of everything earlier. As
normal scores :math:`z_t`, they then have products of mean 0 with whatever is known before row t: :math:`\mathrm{E}
[z_t h_t] = 0`, whatever the model. As h serve rows beyond the lags, running averages of rows, and of earlier scores and
their squares, at several time scales: what a hidden state leaves behind. Of each is taken only what the network cannot
see, the residual of its regression on lags, parameters and their products, so that a density that was trained a little
too short is not taken for one that is too short of memory. The products :math:`\sum_t z_t h_t` of different simulations
are independent: their mean is tested by a t-test. How much it matters is said by the gain in log density, of a series,
of a regression of the scores on the h, learned from other simulations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.logs import logger
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.prepared import Rows, given_numbers, inside, past_of
from pymc_amortized.row_density.row_layout import Layout

SCALES = (2.0, 8.0, 32.0)
"""Rows that running averages reach back by; beside them there is the average of all earlier rows."""
TESTED = 25_000
"""Rows, of 100 simulations at least."""
DRAWS = 15
"""By which a row is ranked: scores then correlate with exact ones by 0.97."""


@dataclass(frozen=True)
class Forgotten:
    """What the learned density of a row does not know of the past.

    Attributes
    ----------
    gain : float
        Nats that a linear regression on it adds to the log density of a series.
    pvalue : float
        Of a test that there is nothing.
    """

    gain: float
    pvalue: float

    @property
    def matters(self) -> bool:
        """Whether it is there, and not negligible."""
        return self.pvalue < THRESHOLDS.forgotten_chance and self.gain > THRESHOLDS.forgotten


def find_forgotten(
    density: RowDensity, read_from: ObservedRows, made: Simulations, rng: np.random.Generator
) -> Forgotten | None:
    """Test whether rows still depend on the past, given what the density sees of it.

    Parameters
    ----------
    density : RowDensity
    read_from : ObservedRows
        Of the model that was simulated.
    made : Simulations
        That nothing was trained on.
    rng : numpy.random.Generator

    Returns
    -------
    Forgotten or None
        None where rows are no series, or there are too few.
    """
    if not read_from.series:
        return None
    length = read_from.variable.shape_at({})[read_from.batch_ndim]
    layout = density.layout
    made = made.take(slice(max(TESTED // read_from.rows, 100)))
    rows = read_from.of_simulations(made, layout.lags, None, layout.scales)
    # a simulation counts with all its rows, or not at all
    fine = inside(layout, list(rows.parameters)) & np.isfinite(rows.values).all(0)
    kept = np.broadcast_to(fine.reshape(len(made), -1).all(1)[:, None], (len(made), read_from.rows)).ravel()
    number = int(kept.sum()) // read_from.rows
    if number < 50 or length <= layout.lags + 2:
        return None
    return judge_past(density, rows.take(kept), number, length, rng)


def judge_past(density: RowDensity, rows: Rows, number: int, length: int, rng: np.random.Generator) -> Forgotten:
    """Test rows of so many simulations, those of each together, in series of one length."""
    scores = _scores(density, rows, rng)
    unseen = _residuals(_history(density, rows, scores, length), _seen(density, rows))
    targets = np.concatenate([scores, (scores**2 - 1) / np.sqrt(2)])
    series = rows.values.shape[1] // (number * length)
    return _tested(targets.reshape(len(targets), number, -1), unseen.reshape(len(unseen), number, -1), series)


def warn_if_forgotten(forgotten: Forgotten | None, name: str, layout: Layout) -> None:
    """Say that a learned likelihood does not know what its rows depend on."""
    if forgotten is None or not forgotten.matters:
        return
    logger.warning(
        "Rows of %r depend on more of the past than the learned density sees (%s): on held-out simulations, earlier "
        "rows add %.2g nats to the log density of a series (p = %.1g). Posteriors by it are too wide, or off. %s, or "
        "take the posterior from fit_posterior, with a recurrent summary, or from fit_joint: they see all of it.",
        name,
        f"{layout.lags} lags{' and averages' if layout.scales else ''}",
        forgotten.gain,
        forgotten.pvalue,
        f"Give it more lags (lags={2 * max(layout.lags, 2)}{'' if layout.scales else ', or leave lags= out'})",
    )


def _scores(density: RowDensity, rows: Rows, rng: np.random.Generator) -> np.ndarray:
    """Normal scores (columns, n) of rows among draws of the density; of ties, at random."""
    parameters, past = list(rows.parameters), past_of(rows)
    below = np.zeros(rows.values.shape)
    for _ in range(DRAWS):
        drawn = density.sample(rng, parameters, past)
        below += drawn < rows.values
        below += np.where(drawn == rows.values, rng.random(drawn.shape), 0.0)
    return stats.norm.ppf((below + rng.random(below.shape)) / (DRAWS + 1)).clip(-4.0, 4.0)


def _seen(density: RowDensity, rows: Rows) -> np.ndarray:
    """What the network sees, and its products: (inputs, n)."""
    layout, parameters = density.layout, list(rows.parameters)
    f, _ = layout.encode_parameters(NUMPY, parameters)
    parts = [np.ones((1, f.shape[1])), f]
    given = given_numbers(NUMPY, layout, 0, list(rows.values), past_of(rows), parameters)
    if given is not None:
        parts += [given, *(given * one for one in f)]
    return np.concatenate(parts)


def _history(density: RowDensity, rows: Rows, scores: np.ndarray, length: int) -> np.ndarray:
    """What is known before each row: (features, n)."""
    parameters = list(rows.parameters)
    columns = zip(density.layout.columns, rows.values, strict=True)
    values = np.stack([x for column, y in columns for x in column.as_given(NUMPY, y, parameters)])
    series, own = (part.reshape(len(part), -1, length) for part in (values, np.concatenate([scores, scores**2 - 1])))
    found = [_before(series, density.layout.lags + lag) for lag in (1, 2)]
    found += [_averages(series, scale) for scale in (*SCALES, np.inf)]
    found += [_averages(own, scale) for scale in (1.0, *SCALES[1:])]
    return np.concatenate(found).reshape(-1, values.shape[1])


def _before(series: np.ndarray, lag: int) -> np.ndarray:
    """Rows so many steps before; 0 where there is none."""
    return np.pad(series, ((0, 0), (0, 0), (lag, 0)))[..., : series.shape[-1]]


def _averages(series: np.ndarray, scale: float) -> np.ndarray:
    """Exponentially weighted averages of all rows before each one (..., length); of a scale of 1, the last row."""
    found, average = np.zeros_like(series), np.zeros(series.shape[:-1])
    for t in range(1, series.shape[-1]):
        average = average + (series[..., t - 1] - average) / min(t, scale)
        found[..., t] = average
    return found


def _residuals(history: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """What of the history (features, n) is not linear in what is seen (inputs, n), in units of its own."""
    left = history - np.linalg.lstsq(seen.T, history.T, rcond=None)[0].T @ seen
    scale = left.std(1, keepdims=True)
    known = scale[:, 0] > 1e-3 * np.maximum(history.std(1), 1e-12)  # the others are seen
    return (left[known] / scale[known]).clip(-5.0, 5.0)


def _tested(targets: np.ndarray, unseen: np.ndarray, series: int) -> Forgotten:
    """Test scores (targets, simulations, rows) by features (features, simulations, rows)."""
    number = targets.shape[1]
    products = np.einsum("ust,fst->suf", targets, unseen).reshape(number, -1)
    t = products.mean(0) / (products.std(0, ddof=1) / np.sqrt(number) + 1e-300)
    pvalues = 2 * stats.t.sf(np.abs(t), number - 1)
    gains = np.zeros(number)
    parts = np.arange(number) % 2 == 0
    for own, others in ((parts, ~parts), (~parts, parts)):
        x, u = unseen[:, others].reshape(len(unseen), -1), targets[:, others].reshape(len(targets), -1)
        slopes = np.linalg.solve(x @ x.T + len(x) * np.eye(len(x)), x @ u.T)
        predicted = np.einsum("fu,fst->ust", slopes, unseen[:, own])
        gains[own] = (targets[:, own] * predicted - predicted**2 / 2).sum((0, 2))
    return Forgotten(float(gains.mean()) / series, float(min(len(t) * pvalues.min(), 1.0)))
