"""Models whose posteriors are known in closed form, and how close to them draws have to come.

Everything is NumPy and works on many data sets at once: data are mappings of name to (data sets, *shape).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import arviz as az
import numpy as np
import pymc as pm
import xarray as xr
from scipy import stats

Data = Mapping[str, np.ndarray]
Moments = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name -> posterior mean and standard deviation, each (data sets, *shape)."""


@dataclass(frozen=True)
class ClosedForm:
    """A model with a known posterior.

    Attributes
    ----------
    build : callable
        Makes the model.
    moments : callable
        Exact posterior moments for many data sets.
    data : callable
        Data sets from parameters in the middle and at the edges of the prior.
    """

    build: Callable[[], pm.Model]
    moments: Callable[[Data], Moments]
    data: Callable[[], dict[str, np.ndarray]]


# A normal mean, with known noise

MU, TAU, NOISE, ROWS = 1.0, 2.0, 3.0, 12


def conjugate_normal() -> pm.Model:
    y = np.random.default_rng(1).normal(2.0, NOISE, size=ROWS)
    with pm.Model(coords={"obs": np.arange(ROWS)}) as model:
        mu = pm.Normal("mu", MU, TAU)
        pm.Deterministic("twice", 2 * mu)
        pm.Normal("y", mu, NOISE, observed=y, dims="obs")
    return model


def conjugate_moments(data: Data) -> Moments:
    y = data["y"]
    precision = 1 / TAU**2 + ROWS / NOISE**2
    mean = (MU / TAU**2 + y.sum(axis=1) / NOISE**2) / precision
    sd = np.full(len(y), precision**-0.5)
    return {"mu": (mean, sd), "twice": (2 * mean, 2 * sd)}


def conjugate_log_likelihood(mu: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Log likelihood, but for a constant, of mu (data sets, draws) for y (data sets, rows)."""
    return -0.5 * np.square((y[:, None, :] - mu[:, :, None]) / NOISE).sum(axis=-1)


def conjugate_data() -> dict[str, np.ndarray]:
    mu = MU + TAU * np.array([-3.0, -1.5, 0.0, 1.0, 3.0])
    return {"y": np.random.default_rng(2).normal(mu[:, None], NOISE, size=(len(mu), ROWS))}


# A regression with conjugate normal-inverse-gamma prior

SHAPE, SCALE, SPREAD = 3.0, 2.0, 1.5
DESIGN = np.random.default_rng(3).normal(size=(20, 2))


def regression() -> pm.Model:
    y = np.random.default_rng(4).normal(DESIGN @ [1.0, -0.5], 0.8)
    with pm.Model(coords={"feature": ["age", "dose"], "obs": np.arange(20)}) as model:
        x = pm.Data("x", DESIGN, dims=("obs", "feature"))
        variance = pm.InverseGamma("variance", SHAPE, SCALE)
        sigma = pm.Deterministic("sigma", pm.math.sqrt(variance))
        beta = pm.Normal("beta", 0.0, SPREAD * sigma, dims="feature")
        pm.Normal("y", x @ beta, sigma, observed=y, dims="obs")
    return model


def regression_moments(data: Data) -> Moments:
    y = data["y"]
    precision = DESIGN.T @ DESIGN + np.eye(2) / SPREAD**2
    mean = np.linalg.solve(precision, DESIGN.T @ y.T).T
    shape = SHAPE + y.shape[1] / 2
    explained = np.einsum("si,ij,sj->s", mean, precision, mean)
    scale = SCALE + (np.square(y).sum(axis=1) - explained) / 2
    variance = scale / (shape - 1)
    covariance = variance[:, None] * np.diag(np.linalg.inv(precision))
    return {
        "beta": (mean, np.sqrt(covariance)),
        "variance": (variance, variance / np.sqrt(shape - 2)),
    }


def regression_log_likelihood(draws: xr.Dataset, y: np.ndarray) -> np.ndarray:
    """Log likelihood of draws with dims (dataset, sample) for y (data sets, rows)."""
    beta = draws["beta"].transpose("dataset", "sample", "feature").to_numpy()
    variance = draws["variance"].transpose("dataset", "sample").to_numpy()
    squares = np.square(y[:, None, :] - beta @ DESIGN.T).sum(axis=-1)
    return -0.5 * (squares / variance + y.shape[1] * np.log(variance))


def regression_data() -> dict[str, np.ndarray]:
    variance = np.array([0.7, 0.3, 3.5, 1.0])
    beta = np.array([[0.0, 0.0], [1.0, -1.0], [-2.0, 3.5], [3.0, 3.0]])
    noise = np.random.default_rng(5).normal(size=(4, 20))
    return {"y": beta @ DESIGN.T + np.sqrt(variance)[:, None] * noise}


# A proportion

TRIALS, GROUPS = 10, 5


def proportion() -> pm.Model:
    """Make a generative model, which holds no data."""
    with pm.Model() as model:
        p = pm.Beta("p", 2.0, 3.0)
        pm.Binomial("y", TRIALS, p, shape=GROUPS)
    return model


def proportion_moments(data: Data) -> Moments:
    successes = data["y"].sum(axis=1)
    a, b = 2.0 + successes, 3.0 + TRIALS * GROUPS - successes
    mean = a / (a + b)
    return {"p": (mean, np.sqrt(mean * (1 - mean) / (a + b + 1)))}


def proportion_data() -> dict[str, np.ndarray]:
    p = np.array([0.05, 0.2, 0.4, 0.7, 0.9])
    return {"y": np.random.default_rng(6).binomial(TRIALS, p[:, None], size=(len(p), GROUPS))}


# A regression with known noise, whose covariates differ between data sets

WEIGHTS_SD, ERROR_SD = 2.0, 1.0


def covariates() -> pm.Model:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(12, 2))
    with pm.Model(coords={"feature": ["a", "b"]}) as model:
        x_data = pm.Data("x", x, dims=("obs", "feature"))
        beta = pm.Normal("beta", 0.0, WEIGHTS_SD, dims="feature")
        pm.Normal("y", x_data @ beta, ERROR_SD, observed=rng.normal(size=12), dims="obs")
    return model


def covariates_moments(data: Data) -> Moments:
    x, y = data["x"], data["y"]
    precision = np.eye(2) / WEIGHTS_SD**2 + np.einsum("sni,snj->sij", x, x) / ERROR_SD**2
    covariance = np.linalg.inv(precision)
    mean = np.einsum("sij,snj,sn->si", covariance, x, y) / ERROR_SD**2
    return {"beta": (mean, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)))}


def covariates_data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(3, 12, 2))
    beta = np.array([[0.0, 0.5], [-4.0, 2.0], [3.0, 5.0]])
    return {"x": x, "y": rng.normal(np.einsum("sni,si->sn", x, beta), ERROR_SD)}


CLOSED_FORMS = {
    "conjugate_normal": ClosedForm(conjugate_normal, conjugate_moments, conjugate_data),
    "regression": ClosedForm(regression, regression_moments, regression_data),
    "proportion": ClosedForm(proportion, proportion_moments, proportion_data),
    "covariates": ClosedForm(covariates, covariates_moments, covariates_data),
}


@dataclass(frozen=True)
class Tolerance:
    """How far draws may be off: means in posterior sds, beside 4 Monte Carlo errors; sds in shares."""

    mean: float
    sd: float


CORRECTED = Tolerance(0.1, 0.1)
RAW = Tolerance(0.2, 0.25)


def assert_moments(draws: xr.Dataset, exact: Moments, tolerance: Tolerance) -> None:
    """Compare draws with dims ([dataset,] chain, draw, ...) with exact moments of the same leading axis."""
    for name, (mean, sd) in exact.items():
        values = draws[name]
        if "dataset" not in values.dims:
            values = values.expand_dims("dataset")
        ess = ess_of(values)
        ours = values.mean(("chain", "draw")).to_numpy()
        off = np.abs(ours - mean) / sd
        assert np.all(off <= tolerance.mean + 4 / np.sqrt(ess)), f"{name}: means are off by {off} sds"
        ratio = values.std(("chain", "draw")).to_numpy() / sd
        assert np.all(np.abs(ratio - 1) <= tolerance.sd), f"{name}: sds are off by a factor of {ratio}"


def ess_of(values: xr.DataArray) -> np.ndarray:
    """Effective sample size of draws with dims (dataset, chain, draw, ...), per data set and element."""
    sizes = [az.ess(v.to_dataset(name="v"), method="mean")["v"].to_numpy() for v in values.transpose("dataset", ...)]
    return np.stack(sizes)


def rank_test(ranks: np.ndarray, draws: int, bins: int = 10) -> float:
    """P-value of a chi-square test that ranks among `draws` draws are uniform on 0 .. draws.

    Parameters
    ----------
    ranks : ndarray (data sets,)
    """
    counts = np.bincount(ranks * bins // (draws + 1), minlength=bins)
    return float(stats.chisquare(counts).pvalue)
