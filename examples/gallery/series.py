"""Series and fields: autoregression, a change, a Gaussian process over a map, an image."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from entries import data, entry, standardize


@entry("time series", "PyMC `AR`", "real: datasets LakeHuron")
def autoregression() -> pm.Model:
    """Level of Lake Huron, 1875 to 1972: two lags around a mean."""
    level = data("datasets", "LakeHuron").value.to_numpy() - 579
    with pm.Model(coords={"year": range(1875, 1973)}) as model:
        lag = pm.Normal("lag", [0.5, 0], 0.5, shape=2)
        constant = pm.Normal("constant", 0, 1)
        noise = pm.HalfNormal("noise", 1)
        coefficients = pt.concatenate([constant[None], lag])
        start = pm.Normal.dist(0, 2, shape=2)
        pm.AR("level", coefficients, noise, constant=True, init_dist=start, observed=level, dims="year")
    return model


@entry("change point", "PyMC `pymc_overview`", "real: boot coal")
def change_point() -> pm.Model:
    """Disasters in British coal mines, year by year: the rate falls around some year, in some years."""
    year = np.arange(1851, 1963)
    disasters = np.bincount(data("boot", "coal").date.astype(int) - 1851, minlength=112)
    with pm.Model(coords={"year": year}) as model:
        early = pm.Exponential("early", 1 / 3)
        late = pm.Exponential("late", 1)
        when = pm.Uniform("when", 1855, 1958)
        takes = pm.HalfNormal("takes", 5)
        rate = early + (late - early) * pm.math.sigmoid((year - when) / (takes + 0.1))
        pm.Poisson("disasters", rate, observed=disasters, dims="year")
    return model


@entry("map", "PyMC `GP-Marginal`, bambi `hsgp_2d`", "real: MASS topo")
def heights() -> pm.Model:
    """Heights at 52 places: a smooth surface that is summed out."""
    places = data("MASS", "topo")
    with pm.Model() as model:
        level = pm.Normal("level", 0, 1)
        length = pm.InverseGamma("length", 3, 6)
        height = pm.HalfNormal("height", 2)
        noise = pm.HalfNormal("noise", 0.5)
        surface = pm.gp.Marginal(
            mean_func=pm.gp.mean.Constant(level), cov_func=height**2 * pm.gp.cov.Matern32(2, length)
        )
        surface.marginal_likelihood("z", places[["x", "y"]].to_numpy(), standardize(places.z.to_numpy()), sigma=noise)
    return model


@entry("image", "BayesFlow `Spatial_Data_and_Parameters` (another model)")
def spot() -> pm.Model:
    """A spot of light on 12 x 12 pixels of a camera that counts photons: where, how wide, how bright."""
    rows, columns = np.mgrid[:12, :12]
    distance = (rows - 4.3) ** 2 + (columns - 7.1) ** 2
    photons = np.random.default_rng(2).poisson(2 + 9 * np.exp(-distance / (2 * 1.6**2)))
    with pm.Model(coords={"row": range(12), "column": range(12)}) as model:
        row = pm.Uniform("at_row", 0, 11)
        column = pm.Uniform("at_column", 0, 11)
        width = pm.LogNormal("width", 0.5, 0.4)
        light = pm.LogNormal("light", 2, 0.5)
        dark = pm.LogNormal("dark", 0.5, 0.5)
        squares = (rows - row) ** 2 + (columns - column) ** 2
        rate = dark + light * pm.math.exp(-squares / (2 * width**2))
        pm.Poisson("photons", rate, observed=photons, dims=("row", "column"))
    return model
