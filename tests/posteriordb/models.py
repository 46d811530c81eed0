"""The models of posteriordb that have proper priors and reference draws, in PyMC; and why the others are left out.

Variables are named as the parameters of the reference draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from posteriordb.dynamics import lotka_volterra, one_comp_mm_elim_abs
from posteriordb.reference import read_data
from posteriordb.series import ar, arma, hmm_drive_exponential, hmm_drive_normal, hmm_example

Data = Mapping[str, np.ndarray]


def eight_schools(data: Data, *, centered: bool) -> pm.Model:
    """Return effects of eight schools around a common mean."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        if centered:
            theta = pm.Normal("theta", mu, tau, shape=8)
        else:
            standard = pm.Normal("theta_trans", 0, 1, shape=8)
            theta = pm.Deterministic("theta", mu + tau * standard)
        pm.Normal("y", theta, data["sigma"], observed=data["y"])
    return model


def covariance(x: np.ndarray, alpha: pt.TensorVariable, rho: pt.TensorVariable) -> pt.TensorVariable:
    """Return the squared exponential kernel between all pairs of points."""
    distance = x[:, None] - x[None]
    return alpha**2 * pt.exp(-0.5 * (distance / rho) ** 2)


def gp_pois_regr(data: Data) -> pm.Model:
    """Return counts whose log rate is a Gaussian process."""
    x = data["x"].astype(float)
    with pm.Model() as model:
        rho = pm.Gamma("rho", 25, 4)
        alpha = pm.HalfNormal("alpha", 2)
        standard = pm.Normal("f_tilde", 0, 1, shape=len(x))
        root = pt.linalg.cholesky(covariance(x, alpha, rho) + 1e-10 * np.eye(len(x)))
        f = pm.Deterministic("f", root @ standard)
        pm.Poisson("k", pt.exp(f), observed=data["k"])
    return model


def gp_regr(data: Data) -> pm.Model:
    """Return a Gaussian process with noise, of variance `sigma`."""
    x = data["x"].astype(float)
    with pm.Model() as model:
        rho = pm.Gamma("rho", 25, 4)
        alpha = pm.HalfNormal("alpha", 2)
        sigma = pm.HalfNormal("sigma", 1)
        pm.MvNormal("y", np.zeros(len(x)), covariance(x, alpha, rho) + sigma * pt.eye(len(x)), observed=data["y"])
    return model


def low_dim_gauss_mix(data: Data) -> pm.Model:
    """Return a mixture of two normals with ordered means."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 2, shape=2, transform=pm.distributions.transforms.ordered, initval=[-1.0, 1.0])
        sigma = pm.HalfNormal("sigma", 2, shape=2)
        theta = pm.Beta("theta", 5, 5)
        pm.NormalMixture("y", w=pt.stack([theta, 1 - theta]), mu=mu, sigma=sigma, observed=data["y"])
    return model


def regression(data: Data) -> pm.Model:
    """Return a linear regression without an intercept."""
    with pm.Model() as model:
        beta = pm.Normal("beta", 0, 10, shape=int(data["D"]))
        sigma = pm.HalfNormal("sigma", 10)
        pm.Normal("y", pt.dot(data["X"], beta), sigma, observed=data["y"])
    return model


def diamonds(data: Data) -> pm.Model:
    """Return a linear regression on 24 centered covariates."""
    covariates = data["X"][:, 1:]
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=covariates.shape[1])
        intercept = pm.StudentT("Intercept", nu=3, mu=8, sigma=10)
        sigma = pm.HalfStudentT("sigma", nu=3, sigma=10.0)
        mean = intercept + pt.dot(covariates - covariates.mean(0), b)
        pm.Normal("y", mean, sigma, observed=data["Y"])
    return model


def accel_gp(data: Data) -> pm.Model:
    """Return mean and log sd that are Gaussian processes, approximated by Laplacian eigenfunctions."""

    def process(suffix: str) -> pt.TensorVariable:
        basis, frequency = data[f"Xgp{suffix}_1"], data[f"slambda{suffix}_1"][:, 0]
        sd = pm.HalfStudentT(f"sdgp{suffix}_1", nu=3, sigma=36.0)  # PyMC squares it: 36**2 is no int8
        length = pm.InverseGamma(f"lscale{suffix}_1", 1.124909, 0.0177)
        weights = pm.Normal(f"zgp{suffix}_1", 0, 1, shape=len(frequency))
        spectrum = sd**2 * np.sqrt(2 * np.pi) * length * pt.exp(-0.5 * length**2 * frequency**2)
        return pt.dot(basis, pt.sqrt(spectrum) * weights)

    with pm.Model() as model:
        intercept = pm.StudentT("Intercept", nu=3, mu=-13, sigma=36)
        mean = intercept + process("")
        intercept_sigma = pm.StudentT("Intercept_sigma", nu=3, mu=0, sigma=10)
        log_sd = intercept_sigma + process("_sigma")
        pm.Normal("y", mean, pt.exp(log_sd), observed=data["Y"])
    return model


SCHOOLS = "eight_schools-eight_schools_noncentered"
MODELS: dict[str, tuple[str, Callable[[], pm.Model]]] = {
    "eight_schools_noncentered": (SCHOOLS, lambda: eight_schools(read_data("eight_schools"), centered=False)),
    "eight_schools_centered": (SCHOOLS, lambda: eight_schools(read_data("eight_schools"), centered=True)),
    "blr, correlated": ("sblrc-blr", lambda: regression(read_data("sblrc"))),
    "blr, independent": ("sblri-blr", lambda: regression(read_data("sblri"))),
    "diamonds": ("diamonds-diamonds", lambda: diamonds(read_data("diamonds"))),
    "arK": ("arK-arK", lambda: ar(read_data("arK"))),
    "arma11": ("arma-arma11", lambda: arma(read_data("arma"))),
    "gp_regr": ("gp_pois_regr-gp_regr", lambda: gp_regr(read_data("gp_pois_regr"))),
    "gp_pois_regr": ("gp_pois_regr-gp_pois_regr", lambda: gp_pois_regr(read_data("gp_pois_regr"))),
    "accel_gp": ("mcycle_gp-accel_gp", lambda: accel_gp(read_data("mcycle_gp"))),
    "low_dim_gauss_mix": (
        "low_dim_gauss_mix-low_dim_gauss_mix",
        lambda: low_dim_gauss_mix(read_data("low_dim_gauss_mix")),
    ),
    "hmm_example": ("hmm_example-hmm_example", lambda: hmm_example(read_data("hmm_example"))),
    "hmm_drive_0": (
        "bball_drive_event_0-hmm_drive_0",
        lambda: hmm_drive_exponential(read_data("bball_drive_event_0")),
    ),
    "hmm_drive_1": ("bball_drive_event_1-hmm_drive_1", lambda: hmm_drive_normal(read_data("bball_drive_event_1"))),
    "lotka_volterra": ("hudson_lynx_hare-lotka_volterra", lambda: lotka_volterra(read_data("hudson_lynx_hare"))),
    "one_comp_mm_elim_abs": (
        "one_comp_mm_elim_abs-one_comp_mm_elim_abs",
        lambda: one_comp_mm_elim_abs(read_data("one_comp_mm_elim_abs")),
    ),
}
"""Name of the reference, and the model. The two models of eight schools are one posterior, and have one reference."""

FLAT_COEFFICIENTS = "flat coefficients and scale"
IMPROPER = {
    **{
        f"earnings-{name}": FLAT_COEFFICIENTS
        for name in (
            "earn_height",
            "log10earn_height",
            "logearn_height",
            "logearn_height_male",
            "logearn_interaction",
            "logearn_interaction_z",
            "logearn_logheight_male",
        )
    },
    **{f"kidiq-kidscore_{name}": "flat coefficients" for name in ("interaction", "momhs", "momhsiq", "momiq")},
    **{
        f"kidiq_with_mom_work-kidscore_{name}": FLAT_COEFFICIENTS
        for name in ("interaction_c", "interaction_c2", "interaction_z", "mom_work")
    },
    **{
        f"mesquite-{name}": FLAT_COEFFICIENTS
        for name in (
            "logmesquite",
            "logmesquite_logva",
            "logmesquite_logvas",
            "logmesquite_logvash",
            "logmesquite_logvolume",
            "mesquite",
        )
    },
    **{f"nes{year}-nes": FLAT_COEFFICIENTS for year in range(1972, 2001, 4)},
    "garch-garch11": "flat mean and scale",
    "kilpisjarvi_mod-kilpisjarvi": "flat scale",
}
"""Posteriors with reference draws that have no proper prior, and so nothing to simulate from."""
