"""The registry of models that every layer is run through: ``MODELS`` maps a name to a `ModelCase`.

The models are small, compile fast and differ in kind. Their observations are placeholders of the
right shape and support, drawn with a fixed seed; only the model is meant to be simulated from.
Everything a test has to know of a model beyond what its graph says stands in its case.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pymc as pm
import pymc.dims as pmd
import pytensor.tensor as pt
from pymc.model.transform.optimization import freeze_dims_and_data, freeze_model
from pytensor import scan
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable
from xarray import DataArray

from pymc_amortized.graph.model.axes import Structure


def kinds_of(structure: Structure, name: str) -> tuple[str, ...]:
    """Return the kind of each axis of an array."""
    return tuple("features" if axis is None else axis.kind for axis in structure.axes_of(name))


@dataclass(frozen=True)
class ModelCase:
    """One model of the registry and what is known about it.

    Attributes
    ----------
    build : callable
        Makes a new model at each call, always the same one.
    tags : frozenset of str
        Kinds the model belongs to, for tests that want some of the registry.
    has_density : bool
        Whether PyMC can write down the joint density of the model.
    structure : mapping of str to tuple of str
        What each axis of each observed variable is; registered more briefly where "y" is the only one.
    notes : str
        What is special about the model, and what a test has to allow for.
    """

    build: Callable[[], pm.Model]
    tags: frozenset[str]
    structure: Mapping[str, tuple[str, ...]]
    has_density: bool = True
    notes: str = ""


MODELS: dict[str, ModelCase] = {}


def register[F: Callable[[], pm.Model]](
    *tags: str,
    structure: str | tuple[str, ...] | Mapping[str, tuple[str, ...]],
    has_density: bool = True,
    notes: str = "",
) -> Callable[[F], F]:
    """Add the decorated builder to the registry under its own name."""

    def add(build: F) -> F:
        axes = (structure,) if isinstance(structure, str) else structure
        kinds = axes if isinstance(axes, Mapping) else {"y": axes}
        MODELS[build.__name__] = ModelCase(build, frozenset(tags), kinds, has_density, " ".join(notes.split()))
        return build

    return add


def tagged(tag: str) -> list[str]:
    """Names of the models that carry a tag."""
    return [name for name, case in MODELS.items() if tag in case.tags]


def _normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def _counts(rate: float, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(rate, size=shape)


def _groups(count: int, rows: int) -> np.ndarray:
    return np.arange(rows) % count


# Conjugate models and regressions


@register("closed_form", structure="exchangeable")
def conjugate_normal() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 2.0)
        pm.Normal("y", mu, 1.0, observed=_normals(20))
    return model


@register("regression", "dims", "data", structure="exchangeable")
def linear_regression() -> pm.Model:
    coords = {"feature": ["age", "dose"], "obs": np.arange(30)}
    with pm.Model(coords=coords) as model:
        x = pm.Data("x", _normals(30, 2), dims=("obs", "feature"))
        intercept = pm.Normal("intercept", 0.0, 1.0)
        beta = pm.Normal("beta", 0.0, 1.0, dims="feature")
        sigma = pm.HalfNormal("sigma", 1.0)
        mean = pm.Deterministic("mean", intercept + x @ beta, dims="obs")
        pm.Normal("y", mean, sigma, observed=_normals(30, seed=1), dims="obs")
    return model


@register("regression", structure="exchangeable", notes="The covariates are constants of the graph.")
def constant_covariates() -> pm.Model:
    x = _normals(25, 3)
    with pm.Model() as model:
        beta = pm.Normal("beta", 0.0, 1.0, shape=3)
        sigma = pm.Exponential("sigma", 1.0)
        pm.Normal("y", x @ beta, sigma, observed=_normals(25, seed=1))
    return model


@register(
    "regression",
    "data",
    structure="exchangeable",
    notes="Standardizes its covariate in the graph: rows can be permuted, not left out.",
)
def standardized_covariate() -> pm.Model:
    with pm.Model() as model:
        x = pm.Data("x", 5.0 + 3.0 * _normals(24))
        slope = pm.Normal("slope", 0.0, 1.0)
        scaled = (x - x.mean()) / x.std()
        pm.Laplace("y", slope * scaled, 0.5, observed=_normals(24, seed=1))
    return model


@register(
    "regression",
    "dims",
    "data",
    structure="exchangeable",
    notes="The observations are a pm.Data too: y_data belongs to y.",
)
def observed_container() -> pm.Model:
    with pm.Model(coords={"obs": np.arange(20)}) as model:
        x = pm.Data("x", _normals(20), dims="obs")
        y_data = pm.Data("y_data", _normals(20, seed=1), dims="obs")
        slope = pm.Normal("slope", 0.0, 1.0)
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", slope * x, sigma, observed=y_data, dims="obs")
    return model


@register(
    "regression",
    "data",
    "frozen",
    structure="exchangeable",
    notes="A FrozenModel; x can still be set, because only the observed variable depends on it.",
)
def frozen_model() -> pm.Model:
    return freeze_model(linear_regression())


@register(
    "regression",
    "frozen",
    structure="exchangeable",
    notes="x and y_data have become constants; x is still a data variable of the model.",
)
def frozen_data() -> pm.Model:
    return freeze_dims_and_data(observed_container())


@register("regression", "heavy_tails", "data", structure="exchangeable")
def robust_regression() -> pm.Model:
    with pm.Model() as model:
        x = pm.Data("x", _normals(20))
        slope = pm.StudentT("slope", nu=3, mu=0.0, sigma=1.0)
        sigma = pm.HalfCauchy("sigma", 1.0)
        nu = pm.Gamma("nu", 2.0, 0.1)
        pm.StudentT("y", nu=nu, mu=slope * x, sigma=sigma, observed=_normals(20, seed=1))
    return model


@register("scalar", structure=())
def scalar_observation() -> pm.Model:
    with pm.Model() as model:
        rate = pm.LogNormal("rate", 0.0, 0.5)
        pm.Gamma("y", alpha=2.0, beta=rate, observed=1.3)
    return model


# Generalized linear models and models of counts


@register("glm", "binary", "data", "dims", structure="exchangeable")
def logistic_regression() -> pm.Model:
    coords = {"feature": ["a", "b"], "obs": np.arange(40)}
    with pm.Model(coords=coords) as model:
        x = pm.Data("x", _normals(40, 2), dims=("obs", "feature"))
        beta = pm.Normal("beta", 0.0, 1.5, dims="feature")
        pm.Bernoulli("y", logit_p=x @ beta, observed=_groups(2, 40), dims="obs")
    return model


@register("glm", "count", "data", structure="exchangeable")
def poisson_regression() -> pm.Model:
    with pm.Model() as model:
        x = pm.Data("x", _normals(20))
        exposure = pm.Data("exposure", np.linspace(1.0, 3.0, 20))
        intercept = pm.Normal("intercept", 0.5, 0.5)
        slope = pm.Normal("slope", 0.0, 0.5)
        pm.Poisson("y", exposure * pt.exp(intercept + slope * x), observed=_counts(3.0, 20))
    return model


@register("glm", "count", "dims", "data", structure="grouped")
def negative_binomial() -> pm.Model:
    coords = {"clinic": ["north", "east", "south"], "obs": np.arange(18)}
    with pm.Model(coords=coords) as model:
        clinic = pm.Data("clinic_index", _groups(3, 18), dims="obs")
        mu = pm.LogNormal("mu", 1.0, 0.5, dims="clinic")
        alpha = pm.Gamma("alpha", 3.0, 1.0)
        pm.NegativeBinomial("y", mu=mu[clinic], alpha=alpha, observed=_counts(3, 18), dims="obs")
    return model


@register("count", structure="exchangeable")
def beta_binomial() -> pm.Model:
    with pm.Model() as model:
        p = pm.Beta("p", 2.0, 2.0)
        concentration = pm.Gamma("concentration", 4.0, 0.4)
        pm.BetaBinomial(
            "y",
            alpha=p * concentration,
            beta=(1 - p) * concentration,
            n=12,
            observed=_counts(4, 15),
        )
    return model


@register("glm", "categorical", "data", structure="exchangeable")
def softmax_regression() -> pm.Model:
    with pm.Model() as model:
        x = pm.Data("x", _normals(30, 2))
        beta = pm.Normal("beta", 0.0, 1.0, shape=(2, 3))
        pm.Categorical("y", logit_p=x @ beta, observed=_groups(3, 30))
    return model


@register(
    "glm",
    "categorical",
    "ordered",
    "data",
    structure="exchangeable",
    notes="PyMC's forward sampling ignores the order of the cutpoints; the density does not.",
)
def ordered_cutpoints() -> pm.Model:
    with pm.Model() as model:
        x = pm.Data("x", _normals(30))
        slope = pm.Normal("slope", 0.0, 1.0)
        cutpoints = pm.Normal(
            "cutpoints",
            [-1.5, 0.0, 1.5],
            1.0,
            transform=pm.distributions.transforms.ordered,
            initval=[-1.5, 0.0, 1.5],
        )
        pm.OrderedLogistic("y", eta=slope * x, cutpoints=cutpoints, observed=_groups(4, 30))
    return model


@register("count", "zeros", structure="exchangeable")
def zero_inflated_poisson() -> pm.Model:
    with pm.Model() as model:
        psi = pm.Beta("psi", 2.0, 2.0)
        mu = pm.Gamma("mu", 4.0, 1.0)
        pm.ZeroInflatedPoisson("y", psi=psi, mu=mu, observed=_counts(1.0, 20))
    return model


@register("zeros", structure="exchangeable")
def hurdle_gamma() -> pm.Model:
    with pm.Model() as model:
        psi = pm.Beta("psi", 3.0, 2.0)
        alpha = pm.Gamma("alpha", 5.0, 2.0)
        beta = pm.Gamma("beta", 5.0, 5.0)
        y = np.where(_groups(3, 15) == 0, 0.0, np.exp(_normals(15)))
        pm.HurdleGamma("y", psi=psi, alpha=alpha, beta=beta, observed=y)
    return model


@register("count", "simplex", structure=("exchangeable", "features"))
def multinomial() -> pm.Model:
    with pm.Model() as model:
        p = pm.Dirichlet("p", np.ones(4))
        y = np.random.default_rng(0).multinomial(20, np.full(4, 0.25), size=10)
        pm.Multinomial("y", n=20, p=p, observed=y)
    return model


@register("count", "simplex", structure=("exchangeable", "features"))
def dirichlet_multinomial() -> pm.Model:
    with pm.Model(coords={"species": list("abc"), "site": np.arange(8)}) as model:
        share = pm.Dirichlet("share", np.full(3, 2.0), dims="species")
        concentration = pm.Gamma("concentration", 4.0, 0.2)
        y = np.random.default_rng(0).multinomial(15, np.full(3, 1 / 3), size=8)
        pm.DirichletMultinomial("y", n=15, a=share * concentration, observed=y, dims=("site", "species"))
    return model


# Hierarchies


@register("hierarchy", "dims", "data", structure="grouped")
def centered_hierarchy() -> pm.Model:
    coords = {"county": [f"c{i}" for i in range(5)], "obs": np.arange(30)}
    with pm.Model(coords=coords) as model:
        county = pm.Data("county_index", _groups(5, 30), dims="obs")
        mu = pm.Normal("mu", 0.0, 1.0)
        tau = pm.HalfNormal("tau", 1.0)
        theta = pm.Normal("theta", mu, tau, dims="county")
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", theta[county], sigma, observed=_normals(30), dims="obs")
    return model


@register("hierarchy", "dims", structure="grouped", notes="Each row has its own known error.")
def eight_schools() -> pm.Model:
    effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 5.0)
        offset = pm.Normal("offset", 0.0, 1.0, dims="school")
        theta = pm.Deterministic("theta", mu + tau * offset, dims="school")
        pm.Normal("y", theta, error, observed=effect, dims="school")
    return model


@register("hierarchy", "dims", "data", "cholesky", structure="grouped")
def varying_slopes() -> pm.Model:
    coords = {"group": np.arange(4), "effect": ["intercept", "slope"], "obs": np.arange(24)}
    with pm.Model(coords=coords) as model:
        group = pm.Data("group_index", _groups(4, 24), dims="obs")
        x = pm.Data("x", _normals(24), dims="obs")
        chol, _, _ = pm.LKJCholeskyCov("chol", n=2, eta=2.0, sd_dist=pm.Exponential.dist(1.0))
        effects = pm.MvNormal("effects", np.zeros(2), chol=chol, dims=("group", "effect"))
        sigma = pm.HalfNormal("sigma", 1.0)
        mean = effects[group, 0] + effects[group, 1] * x
        pm.Normal("y", mean, sigma, observed=_normals(24, seed=1), dims="obs")
    return model


@register("hierarchy", "dims", structure="grouped", notes="The effects have one free value less.")
def zero_sum_effects() -> pm.Model:
    with pm.Model(coords={"level": list("abcd")}) as model:
        effect = pm.ZeroSumNormal("effect", 1.0, dims="level")
        sigma = pm.Exponential("sigma", 1.0)
        pm.Normal("y", effect[_groups(4, 16)], sigma, observed=_normals(16))
    return model


@register("bounds", "binary", "data", structure="grouped", notes="The upper bound is a free variable.")
def dependent_bounds() -> pm.Model:
    with pm.Model() as model:
        group = pm.Data("group", _groups(3, 30))
        upper = pm.Beta("upper", 4.0, 2.0)
        p = pm.Uniform("p", 0.0, upper, shape=3)
        pm.Bernoulli("y", p[group], observed=_groups(2, 30))
    return model


# Time series and other dependent rows


@register("series", structure="sequence")
def autoregression() -> pm.Model:
    with pm.Model() as model:
        rho = pm.Normal("rho", [0.5, -0.2], 0.2)
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.AR("y", rho, sigma, init_dist=pm.Normal.dist(0.0, 1.0), observed=_normals(15))
    return model


@register("series", "bounds", structure="sequence")
def garch() -> pm.Model:
    with pm.Model() as model:
        omega = pm.Gamma("omega", 2.0, 4.0)
        alpha = pm.Beta("alpha", 2.0, 4.0)
        beta = pm.Uniform("beta", 0.0, 1.0 - alpha)
        pm.GARCH11("y", omega=omega, alpha_1=alpha, beta_1=beta, initial_vol=1.0, observed=_normals(12))
    return model


@register("series", "latent", "dims", "count", structure="sequence")
def gaussian_random_walk() -> pm.Model:
    with pm.Model(coords={"week": np.arange(12)}) as model:
        scale = pm.HalfNormal("scale", 0.3)
        level = pm.GaussianRandomWalk("level", mu=0.0, sigma=scale, init_dist=pm.Normal.dist(1.0, 0.5), dims="week")
        pm.Poisson("y", pt.exp(level), observed=_counts(3.0, 12), dims="week")
    return model


@register(
    "series",
    "latent",
    "heavy_tails",
    structure="sequence",
    notes="The volatility can over- and underflow; a draw may divide by zero and raise.",
)
def stochastic_volatility() -> pm.Model:
    with pm.Model() as model:
        scale = pm.Exponential("scale", 2.0)
        nu = pm.Exponential("nu", 0.1)
        volatility = pm.GaussianRandomWalk("volatility", sigma=scale, init_dist=pm.Normal.dist(0.0, 1.0), shape=15)
        pm.StudentT("y", nu=nu, lam=pt.exp(-2.0 * volatility), observed=_normals(15))
    return model


@register("gp", structure="sequence")
def gp_marginal() -> pm.Model:
    with pm.Model() as model:
        length = pm.Gamma("length", 3.0, 3.0)
        scale = pm.HalfNormal("scale", 1.0)
        gp = pm.gp.Marginal(cov_func=scale**2 * pm.gp.cov.ExpQuad(1, ls=length))
        gp.marginal_likelihood("y", np.linspace(0, 3, 12)[:, None], y=_normals(12), sigma=0.3)
    return model


@register("gp", structure="sequence")
def hilbert_space_gp() -> pm.Model:
    x = np.linspace(-1, 1, 20)[:, None]
    with pm.Model() as model:
        length = pm.Gamma("length", 5.0, 5.0)
        gp = pm.gp.HSGP(m=[5], c=1.5, cov_func=pm.gp.cov.Matern52(1, ls=length))
        f = gp.prior("f", x)
        pm.Normal("y", f, 0.5, observed=_normals(20))
    return model


@register("image", structure=("sequence", "sequence"), notes="The one observed array is a matrix of pixels.")
def blurred_source() -> pm.Model:
    rows, columns = np.mgrid[0:6, 0:7]
    with pm.Model() as model:
        centre = pm.Uniform("centre", 0.0, 6.0, shape=2)
        width = pm.LogNormal("width", 0.3, 0.3)
        squared = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
        intensity = 0.2 + 10.0 * pt.exp(-0.5 * squared / width**2)
        pm.Poisson("y", intensity, observed=_counts(2.0, 6, 7))
    return model


# Mixtures, censoring, truncation and survival


@register(
    "mixture",
    "ordered",
    "simplex",
    structure="exchangeable",
    notes="PyMC's forward sampling ignores the order of the means: half of its draws violate it.",
)
def normal_mixture() -> pm.Model:
    with pm.Model() as model:
        weights = pm.Dirichlet("weights", np.full(2, 2.0))
        mu = pm.Normal(
            "mu",
            0.0,
            2.0,
            shape=2,
            transform=pm.distributions.transforms.ordered,
            initval=[-1.0, 1.0],
        )
        pm.NormalMixture("y", w=weights, mu=mu, sigma=0.5, observed=_normals(30))
    return model


@register("censored", structure="exchangeable")
def censored_normal() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0)
        sigma = pm.HalfNormal("sigma", 1.0)
        y = np.clip(_normals(25), -1.0, 1.0)
        pm.Censored("y", pm.Normal.dist(mu, sigma), lower=-1.0, upper=1.0, observed=y)
    return model


@register("censored", "survival", "data", structure="exchangeable")
def weibull_survival() -> pm.Model:
    end = np.linspace(0.5, 2.5, 20)
    with pm.Model() as model:
        followed = pm.Data("followed", end)
        treated = pm.Data("treated", _groups(2, 20))
        effect = pm.Normal("effect", 0.0, 0.5)
        shape = pm.Gamma("shape", 6.0, 4.0)
        time = pm.Weibull.dist(alpha=shape, beta=pt.exp(effect * treated), shape=20)
        y = np.minimum(np.random.default_rng(0).weibull(1.5, 20), end)
        pm.Censored("y", time, lower=None, upper=followed, observed=y)
    return model


@register("truncated", structure="exchangeable")
def truncated_laplace() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 1.0, 1.0)
        scale = pm.Gamma("scale", 4.0, 4.0)
        base = pm.Laplace.dist(mu, scale)
        pm.Truncated("y", base, lower=0.0, upper=4.0, observed=np.linspace(0.1, 3.0, 15))
    return model


@register("circular", structure="exchangeable", notes="The transform of mu is periodic.")
def von_mises() -> pm.Model:
    with pm.Model() as model:
        mu = pm.VonMises("mu", 0.5, 1.0)
        kappa = pm.Gamma("kappa", 4.0, 1.0)
        pm.VonMises("y", mu, kappa, observed=np.linspace(-2.0, 2.0, 15))
    return model


# Several observed variables, matrices of observations


@register("several", "data", "count", "dims", structure={"pressure": ("exchangeable",), "visits": ("exchangeable",)})
def shared_axis() -> pm.Model:
    with pm.Model(coords={"patient": np.arange(16)}) as model:
        x = pm.Data("x", _normals(16), dims="patient")
        slope = pm.Normal("slope", 0.0, 0.5)
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("pressure", slope * x, sigma, observed=_normals(16, seed=1), dims="patient")
        pm.Poisson("visits", pt.exp(slope * x), observed=_counts(1.0, 16), dims="patient")
    return model


@register(
    "several",
    structure={"precise": ("exchangeable",), "cheap": ("exchangeable",)},
    notes="The observed variables have different lengths.",
)
def different_lengths() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0)
        bias = pm.Normal("bias", 0.0, 0.5)
        pm.Normal("precise", mu, 0.5, observed=_normals(8))
        pm.Normal("cheap", mu + bias, 2.0, observed=_normals(20))
    return model


@register("multivariate", structure=("exchangeable", "features"))
def multivariate_normal() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0, shape=3)
        scale = pm.HalfNormal("scale", 1.0)
        cov = scale**2 * (0.5 * np.eye(3) + 0.5)
        pm.MvNormal("y", mu, cov=cov, observed=_normals(12, 3))
    return model


@register("potential", structure=("exchangeable", "grouped"), notes="The simulator knows nothing of the Potential.")
def potential() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0, shape=2)
        pm.Potential("close", -0.5 * ((mu[0] - mu[1]) / 0.5) ** 2)
        pm.Normal("y", mu, 1.0, observed=_normals(20, 2))
    return model


@register("pymc_dims", "dims", "hierarchy", structure="grouped")
def labelled_dims() -> pm.Model:
    coords = {"group": list("abc"), "obs": np.arange(12)}
    index = DataArray(_groups(3, 12), dims="obs")
    with pm.Model(coords=coords) as model:
        mu = pmd.Normal("mu", 0.0, 1.0)
        tau = pmd.HalfNormal("tau", 1.0)
        theta = pmd.Normal("theta", mu, tau, dims="group")
        pmd.Deterministic("spread", theta.max("group") - theta.min("group"))
        mean = theta.isel(group=pmd.as_xtensor(index))
        pmd.Normal("y", mean, 0.5, observed=DataArray(_normals(12), dims="obs"))
    return model


# Simulators


@register("ode", "scan", "count", structure="sequence")
def epidemic() -> pm.Model:
    """SIR by Euler's method: 12 periods of two steps, the number of infected observed."""

    def period(
        susceptible: TensorVariable,
        infected: TensorVariable,
        contact: TensorVariable,
        recovery: TensorVariable,
    ) -> tuple[TensorVariable, TensorVariable]:
        for _ in range(2):
            new = contact * susceptible * infected
            susceptible = susceptible - new
            infected = infected + new - recovery * infected
        return susceptible, infected

    with pm.Model() as model:
        contact = pm.LogNormal("contact", np.log(0.6), 0.3)
        recovery = pm.LogNormal("recovery", np.log(0.2), 0.2)
        start = [pt.constant(0.99, dtype="float64"), pt.constant(0.01, dtype="float64")]
        _, infected = scan(
            period,
            outputs_info=start,
            non_sequences=[contact, recovery],
            n_steps=12,
            return_updates=False,
        )
        pm.Poisson("y", 200.0 * infected, observed=_counts(30.0, 12))
    return model


@register("scan", "custom", "series", structure="sequence", notes="The density is PyMC's own doing.")
def scan_simulator() -> pm.Model:
    """A stochastic Ricker map on the log scale, written as a scan with innovations inside."""

    def dist(growth: TensorVariable, noise: TensorVariable, size: TensorVariable) -> TensorVariable:
        def step(
            last: TensorVariable, rng: Variable, growth: TensorVariable, noise: TensorVariable
        ) -> tuple[TensorVariable, Variable]:
            mean = last + growth - pt.exp(last)
            next_rng, following = pm.Normal.dist(mean, noise, rng=rng, return_next_rng=True)
            return following, next_rng

        path, _ = scan(
            step,
            outputs_info=[pt.zeros(()), pt.random.shared_rng(seed=None)],
            non_sequences=[growth, noise],
            n_steps=15,
            strict=True,
            return_updates=False,
        )
        return path

    with pm.Model() as model:
        growth = pm.Normal("growth", 1.0, 0.3)
        noise = pm.HalfNormal("noise", 0.3)
        pm.CustomDist("y", growth, noise, dist=dist, observed=0.3 * _normals(15))
    return model


def _g_and_k(
    a: np.ndarray,
    b: np.ndarray,
    rng: np.random.Generator,
    size: Sequence[int] | None,
) -> np.ndarray:
    z = rng.normal(size=size)
    return a + b * (1.0 + 0.8 * np.tanh(z)) * (1.0 + z**2) ** 0.1 * z


@register("custom", structure="exchangeable", has_density=False, notes="A Python function simulates.")
def custom_random() -> pm.Model:
    def random(
        a: np.ndarray,
        b: np.ndarray,
        rng: np.random.Generator | None = None,
        size: Sequence[int] | None = None,
    ) -> np.ndarray:
        return _g_and_k(a, b, np.random.default_rng() if rng is None else rng, size)

    with pm.Model() as model:
        a = pm.Normal("a", 0.0, 1.0)
        b = pm.HalfNormal("b", 1.0)
        pm.CustomDist("y", a, b, random=random, observed=_normals(20))
    return model


@register("custom", structure="exchangeable")
def custom_dist() -> pm.Model:
    def dist(mu: TensorVariable, sigma: TensorVariable, size: TensorVariable) -> TensorVariable:
        return 1.0 + pt.exp(pm.Normal.dist(mu, sigma, size=size))

    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 0.5)
        sigma = pm.HalfNormal("sigma", 0.5)
        pm.CustomDist("y", mu, sigma, dist=dist, observed=1.0 + np.exp(_normals(18)))
    return model


@register("simulator", structure="features", has_density=False, notes="A Python function simulates.")
def python_simulator() -> pm.Model:
    def simulate(
        rng: np.random.Generator,
        a: np.ndarray,
        b: np.ndarray,
        size: Sequence[int] | None,
    ) -> np.ndarray:
        return _g_and_k(a, b, rng, size)

    with pm.Model() as model, warnings.catch_warnings():
        # pm.Simulator calls PyTensor in a way that PyTensor has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        a = pm.Normal("a", 0.0, 1.0)
        b = pm.HalfNormal("b", 1.0)
        pm.Simulator("y", simulate, a, b, epsilon=1.0, observed=_normals(20))
    return model
