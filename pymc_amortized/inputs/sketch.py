"""What a model's density tells of the posterior of a data set, as numbers that a network is given beside the data.

A regression on fixed statistics of the data says roughly where the posterior lies. From there adaptive importance
sampling, by some hundred evaluations of the density, finds its moments. They are rough, and need not be more: they
are statistics like others, and what they lack is learned from simulations.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.each import DensitiesOf, EachLogDensity, find_band
from pymc_amortized.graph.density.marginal import MarginalDensitiesOf, MarginalDensity
from pymc_amortized.graph.density.missing import Rules
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.parallel import run_tasks
from pymc_amortized.inputs.data_inputs import DataInputs
from pymc_amortized.inputs.standardized import Standardized
from pymc_amortized.logs import logger
from pymc_amortized.networks.density.coupling import Spline
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.networks.frame import whiten
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.networks.summary.branches import Auto
from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.numerics.curvature import Curvature
from pymc_amortized.numerics.quadratic import Quadratic, find_quadratic
from pymc_amortized.numerics.sampling.amis import ENOUGH, SMALLEST, Found, adapt, quasi_normal
from pymc_amortized.numerics.sampling.modes import reach
from pymc_amortized.numerics.sampling.symmetry import Symmetries
from pymc_amortized.ranks import agree
from pymc_amortized.training import torch_threads

POINTS = 32
"""Evaluations in each stage."""
MOST_EVALUATIONS = 128
"""For one draw, above which parameters are not drawn exactly."""
MOST_PARAMETERS, MOST_SAMPLED = 24, 12
"""Moments of more are too many statistics; and of more that are not integrated out, so few points find none."""
BLOCK = 1024
"""Data sets that are sketched at once."""
MOST_AT_ONCE = 2**20
"""Evaluations of densities at once."""
ALIKE = 0.4 * POINTS
"""Effective points of the last stage on which a marginal likelihood rests at least."""
SLOWEST, SLOWEST_WITH_LOCALS = 0.02, 0.15
"""Seconds for one data set that are too many, unless the user says otherwise: where locals are integrated out, networks
learn much slower without, and often need no training with it."""
FEW_TIMED, TIMED = 16, 256
"""Data sets that tell how long one takes; the first ones, whether that is far too long."""
LOOKED_AT, LOOKED_AT_WITH_LOCALS = 512, 128
"""Simulations that tell in which parameters densities are quadratic. That is tried again for each data set."""
FEWEST_SKETCHED, SKETCHING = 256, 3.0
"""Simulations that statistics and losses need at least, and seconds for more: the first are known to 6 % then."""
NARROWEST = 1e-6
"""Standard scales that a frame is wide at least."""
FARTHEST = 20.0
"""Standard scales from the middle of the prior, beyond which a mean is not told from others."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """Moments of the posteriors of data sets.

    Attributes
    ----------
    inputs : Inputs
        What the regression sees of them.
    start : PosteriorNetwork
        As it is built, before any training: a regression.
    density : EachLogDensity or MarginalDensity
    quadratic : Quadratic
        Which parameters are integrated out.
    number_drawn : int
        How many of these, the first ones, are drawn exactly, given the others: no network learns them.
    """

    inputs: DataInputs
    start: PosteriorNetwork
    density: EachLogDensity | MarginalDensity
    quadratic: Quadratic
    number_drawn: int

    @cached_property
    def drawn(self) -> Quadratic:
        """Which parameters are drawn exactly, given the others."""
        return self.quadratic.first(self.number_drawn)

    @cached_property
    def curvature(self) -> Curvature | None:
        """Second derivatives in what is integrated out, where they are the same for all data sets."""
        spec = self.density.spec
        if spec.context or spec.sizes or any(v.missing for v in spec.observed):
            return None
        held = {v.name: spec.held[v.name] for v in spec.observed}
        other = {name: values.ravel()[::-1].reshape(values.shape) for name, values in held.items()}
        other = {name: 0.7 * values if values.dtype.kind == "f" else values for name, values in other.items()}
        datasets = DataSets({name: np.stack([held[name], other[name]]) for name in held}, np.arange(2), True)
        with np.errstate(all="ignore"):
            return Curvature.find(self.quadratic, Standardized(self.density.of(datasets), self.start.standardizer))

    @property
    def learned(self) -> list[int] | None:
        """Places of the parameters that a network learns, if not all."""
        return self.drawn.sampled.tolist() if self.number_drawn else None

    @property
    def widths(self) -> tuple[int, int, int]:
        """Numbers for each data set: statistics, a frame, and where the parameters lie that are drawn exactly.

        The last one is 1 where they can be, 0 where the density is not quadratic after all.
        """
        dim = self.start.dim - self.number_drawn
        return 3 * dim + dim * (dim - 1) // 2 + 3, dim + dim**2, 2 * self.number_drawn + bool(self.number_drawn)

    def __call__(self, datasets: DataSets) -> np.ndarray:
        """Return all of these (n, width)."""
        return np.concatenate([np.empty((0, sum(self.widths))), *map(self._of, self._blocks(datasets))])

    def log_evidence(self, datasets: DataSets) -> np.ndarray:
        """Return log marginal likelihoods (n,).

        NaN where too few points carry them, or where the posterior is not like the normal distribution that was drawn
        from last: it may have modes that were not seen.
        """
        found = [self._found(block, careful=True) for block in self._blocks(datasets)]
        known = (
            np.where((f.ess >= ENOUGH) & (f.latest >= ALIKE) & holds, f.log_evidence, np.nan) for f, *_, holds in found
        )
        return np.concatenate([np.empty(0), *known])

    def of_simulations(self, simulations: Simulations, cores: int = 1) -> np.ndarray:
        """Return numbers (n, width) of simulations, by several processes where these are many."""
        datasets = of_simulations(simulations)
        if cores == 1 or len(datasets) <= BLOCK:
            return self(datasets)
        tasks = [(block,) for block in self._blocks(datasets)]
        return np.concatenate(run_tasks(self, "__call__", tasks, cores))

    def _of(self, datasets: DataSets) -> np.ndarray:
        found, mean, covariance, holds = self._found(datasets)
        found = replace(found, ess=np.where(holds, found.ess, 0.0))
        done = found.ess >= ENOUGH  # elsewhere moments may be far off: the regression is not
        mean = np.where(done[:, None], found.mean, mean)
        covariance = np.where(done[:, None, None], found.covariance, covariance)
        learned, drawn = self.drawn.sampled, self.drawn.places
        statistics = _numbers(found.at(learned))
        scale = np.maximum(np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))[:, drawn], NARROWEST)
        # where the density is not quadratic after all, the scale is that of the prior, and more
        whereabouts = [np.where(holds[:, None], mean[:, drawn], 0.0), np.where(holds[:, None], scale, 1.5)]
        if self.number_drawn:
            whereabouts.append(holds[:, None])
        return np.concatenate(
            [statistics, _frame(mean[:, learned], covariance[:, learned[:, None], learned]), *whereabouts], axis=1
        )

    def _found(self, datasets: DataSets, careful: bool = False) -> tuple[Found, np.ndarray, np.ndarray, np.ndarray]:
        """What the density tells; mean (n, dim) and covariance (n, dim, dim) by the regression.

        Last, whether the density is quadratic in what is integrated out (n,), also far from what was found.
        """
        log_density = Standardized(self.density.of(datasets), self.start.standardizer)
        with torch_threads(1):
            mean, covariance = _within_reason(*self.start.normal(**self.inputs(datasets)))
        places = self.quadratic.places
        scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)[:, places])
        near = mean[:, places], np.maximum(scale, NARROWEST)
        of_sampled = self.quadratic.integrated(log_density, *near, self.curvature)
        order = np.concatenate([self.quadratic.sampled, places])
        # most data sets are done after one to three of 12 stages; the narrowest posteriors take ten
        points = quasi_normal(12, POINTS, self.start.dim - len(places))
        found = adapt(of_sampled, mean[:, order], covariance[:, order[:, None], order], points, careful=careful)
        holds = self.quadratic.holds(log_density, found.mean[:, : self.start.dim - len(places)], *near)
        return found.at(np.argsort(order)), mean, covariance, holds

    def _blocks(self, datasets: DataSets) -> Iterator[DataSets]:
        size = int(np.clip(MOST_AT_ONCE // (POINTS * len(self.quadratic.steps)), 1, BLOCK))
        return (datasets.take(some) for some in blocks(len(datasets), size))


def _within_reason(mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a regression says, no farther away and no wider than what is simulated: of novel data it says anything."""
    mean = np.clip(np.nan_to_num(mean), -FARTHEST, FARTHEST)
    sd = np.sqrt(np.nan_to_num(np.diagonal(covariance, axis1=1, axis2=2), nan=1.0))
    factor = np.clip(sd, NARROWEST, FARTHEST) / np.maximum(sd, NARROWEST)
    covariance = covariance * factor[:, :, None] * factor[:, None, :]
    usable = np.isfinite(covariance).all(axis=(1, 2)) & (sd > NARROWEST).all(axis=1)
    return mean, np.where(usable[:, None, None], covariance, np.eye(mean.shape[1]))


def _frame(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Means and whitening matrices (n, dim + dim * dim)."""
    dim = mean.shape[1]
    root = np.linalg.cholesky(covariance + NARROWEST**2 * np.eye(dim))
    return np.concatenate([mean, np.linalg.inv(root).reshape(len(mean), dim**2)], axis=1)


def _numbers(found: Found) -> np.ndarray:
    variance = np.diagonal(found.covariance, axis1=1, axis2=2) + SMALLEST**2
    sd = np.sqrt(variance)
    first, second = np.triu_indices(variance.shape[1], 1)
    parts = [
        np.clip(found.mean, -FARTHEST, FARTHEST),
        np.log(sd),
        found.covariance[:, first, second] / (sd[:, first] * sd[:, second]),
        np.clip(found.third, -5.0, 5.0),
        np.log1p(found.ess)[:, None],
        found.inverse_temperature[:, None] ** 0.25,
        (np.sign(found.log_evidence) * np.log1p(np.abs(found.log_evidence)))[:, None],
    ]
    return np.concatenate(parts, axis=1)


def sketch_obstacle(spec: ModelSpec, gaps: Rules) -> str | None:
    """Why the posteriors of a model cannot be sketched; None where they can."""
    if spec.density_obstacle is not None:
        return spec.density_obstacle
    if spec.dim > MOST_PARAMETERS:
        return f"{spec.dim} parameters are more than {MOST_PARAMETERS}"
    unknown = [name for name, rule in gaps.items() if rule is None]
    return f"missing values of {unknown} cannot be integrated out" if unknown else None


def make_sketch(
    spec: ModelSpec,
    structure: Structure,
    gaps: Rules,
    pilot: Simulations,
    compile_kwargs: CompileKwargs | None,
) -> Sketch | str:
    """Make a sketch, or say why there is none.

    Parameters
    ----------
    spec : ModelSpec
    structure : Structure
    gaps : mapping of name to rule
        From :func:`find_rules`.
    pilot : Simulations
        What the regression learns from.
    """
    obstacle = sketch_obstacle(spec, gaps)
    if obstacle is not None:
        return obstacle
    inputs, datasets = DataInputs(spec, structure), of_simulations(pilot)
    density = densities(spec, gaps, compile_kwargs)
    if isinstance(density, EachLogDensity) and density.integrated:
        density.band = find_band(density, datasets, pilot.unconstrained)
        if density.band is None:
            return "missing values interact over long distances"
    standardizer = ParameterStandardizer.fit(pilot.unconstrained)
    quadratic = _quadratic(density, datasets, pilot.unconstrained, standardizer)
    if (sampled := len(quadratic.sampled)) > MOST_SAMPLED:
        return f"{sampled} parameters that cannot be integrated out are more than {MOST_SAMPLED}"
    start = PosteriorNetwork.build(
        inputs.layout,
        pilot.unconstrained,
        **inputs(datasets),
        # beside the regression 16 statistics at random: by both together novelty is judged
        summary=Auto(width=1, depth=0, features=2 * spec.dim + 16),
        density=Spline(layers=0),
        standardizer=standardizer.linear(quadratic.places),
        symmetries=structure.symmetries,
    )
    if not start.is_regression:
        return "there are too many statistics"
    number = 0 if spec.locals else _number_drawn(quadratic)  # each draw would integrate locals many times
    return Sketch(inputs, start.eval(), density, quadratic, number)


def densities(
    spec: ModelSpec, gaps: Rules, compile_kwargs: CompileKwargs | None, band: int | None = None
) -> EachLogDensity | MarginalDensity:
    """Densities of many data sets by which posteriors are sketched."""
    if spec.locals:
        return MarginalDensity(spec, gaps, compile_kwargs)
    return EachLogDensity(spec, gaps, band, compile_kwargs)


def _quadratic(
    density: EachLogDensity | MarginalDensity,
    datasets: DataSets,
    theta: np.ndarray,
    standardizer: ParameterStandardizer,
) -> Quadratic:
    """Find it by some simulations, in units in which no tails are bent."""
    number = LOOKED_AT_WITH_LOCALS if density.spec.locals else LOOKED_AT
    some = np.linspace(0, len(datasets) - 1, number).astype(int)
    of_some, linear = density.of(datasets.take(some)), standardizer.linear(range(standardizer.dim))
    log_density = Standardized(of_some, linear)
    z = linear.exact(torch.as_tensor(theta[some]))[0].numpy()
    quadratic = find_quadratic(log_density, z)
    other = quadratic.with_gradients()
    return other if other.by_gradients and _same(quadratic, other, log_density, z, of_some) else quadratic


def _same(
    quadratic: Quadratic,
    other: Quadratic,
    log_density: Standardized,
    z: np.ndarray,
    densities: DensitiesOf | MarginalDensitiesOf,
) -> bool:
    """Whether gradients are there, and integrals by them the same: not all that has a density has a gradient."""
    if not densities.differentiable:
        return False
    center, points, index = z[:, quadratic.places], z[:, None, quadratic.sampled], np.arange(len(z))
    one = np.ones_like(center)
    try:
        known, found = (way.integrated(log_density, center, one)(points, index)[0] for way in (quadratic, other))
    except Exception as error:  # PyTensor and its backends raise all kinds of them
        logger.debug("Gradients of the density are not there: %s", error)
        return False
    return bool(np.allclose(known, found, rtol=1e-6, atol=1e-4, equal_nan=True))


def _number_drawn(quadratic: Quadratic) -> int:
    """How many parameters to draw exactly: all that can be, but for one that a network learns, or none."""
    number = min(len(quadratic.places), quadratic.dim - 1)
    return number if quadratic.first(number).evaluations <= MOST_EVALUATIONS else 0


def seconds_for_each(sketched: Callable[[Simulations], np.ndarray], pilot: Simulations) -> tuple[float, np.ndarray]:
    """Seconds that a sketch takes for each of some simulations, and what it says of these.

    By this thread's own clock, so that what is chosen does not depend on what else the machine does.
    """
    sketched(pilot.take(slice(2)))  # compiles
    seconds, numbers = 0.0, np.empty(0)
    for number in (FEW_TIMED, TIMED):
        if seconds <= SLOWEST_WITH_LOCALS:
            some = pilot.take(slice(number))
            before = time.thread_time()
            numbers = sketched(some)
            seconds = agree((time.thread_time() - before) / len(some))
    return seconds, numbers


def halved(number: int, seconds: float) -> int:
    """Return a number, or half of it, or a quarter: as many as are sketched in some seconds, at so many seconds each.

    By halves, so that it hardly ever depends on how busy the machine is.
    """
    while number > FEWEST_SKETCHED and number * seconds > SKETCHING:
        number //= 2
    return number


def share_out_of_reach(
    sketch: Sketch, pilot: Simulations, numbers: np.ndarray, symmetries: Symmetries | None = None
) -> float:
    """Share of simulations whose parameters lie far from where their posterior was found to be: in another mode.

    Parameters
    ----------
    sketch : Sketch
    pilot : Simulations
    numbers : ndarray (n, width)
        What the sketch says of the first of these.
    symmetries : Symmetries, optional
        Of the posterior: the nearest image of parameters is looked at.
    """
    theta = pilot.unconstrained[: len(numbers)]
    z = sketch.start.standardizer.exact(torch.from_numpy(theta if symmetries is None else symmetries.images(theta)))[0]
    start, width, _ = sketch.widths
    z = z[..., sketch.drawn.sampled] if sketch.number_drawn else z
    squared = whiten(z, torch.from_numpy(numbers[:, start : start + width]))[0].square().sum(-1).numpy()
    nearest = squared if symmetries is None else squared.min(axis=0)
    return float((nearest > reach(z.shape[-1]) ** 2).mean())
