"""Short checks on simulations that training did not see: efficiency, also while it goes on, and calibration."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pymc_amortized.approximators.posterior.compiled import Compiled
from pymc_amortized.correction.approximation import Approximation
from pymc_amortized.correction.draws import Draws
from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.logs import logger, working
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.numerics.sampling.importance import Weights, smooth
from pymc_amortized.numerics.uniformity import describe, holm, p_text, pit, uniformity
from pymc_amortized.ranks import agree
from pymc_amortized.training import Efficiency, Trained, report
from pymc_amortized.training.device import torch_generator

MOST_SETS, PROPOSALS = 128, 256
"""Data sets, and proposals for each: a median efficiency is then known to 0.02, its tenth percentile to 0.04."""
FEWEST_SETS, SECONDS = 32, 2.0
"""Of these where densities take longer than that; most take 0.1 s in all."""
VERY_SLOW, FEW_SETS, FEW_PROPOSALS = 0.25, 16, 64
"""Seconds for the proposals of one data set from which on there are even fewer: the median is known to 0.1 then."""
DOUBTFUL = 0.05
"""Chance of making corrected draws at the end of training because of proposals without fault."""


class Measure:
    """Measures the efficiency of a network as it is.

    Parameters
    ----------
    network : PosteriorNetwork
    inputs : Inputs
        What it is given of data.
    compiled : Compiled
        Has the model's density.
    held_out : Simulations
        Not used for training.
    seed : numpy.random.SeedSequence
        Of the proposals, the same every time: what changes is the network.
    """

    def __init__(
        self,
        network: PosteriorNetwork,
        inputs: Inputs,
        compiled: Compiled,
        held_out: Simulations,
        seed: np.random.SeedSequence,
    ) -> None:
        self.compiled, self._network, self._inputs, self._seed = compiled, network, inputs, seed
        self._seconds, self._proposals = np.inf, PROPOSALS  # of the proposals of one data set, and their number
        self._latest: _Weighed | None = None
        datasets = of_simulations(held_out.take(slice(MOST_SETS)))
        known = [i for i, obstacle in enumerate(compiled.obstacles(datasets)) if obstacle is None]
        self._datasets = inputs.sketched(datasets.take(np.asarray(known, dtype=int)))
        self._truth = held_out.unconstrained[known]
        if known:
            self._datasets = self._datasets.take(slice(self._affordable(held_out.unconstrained[known[0]])))

    def _affordable(self, theta: np.ndarray) -> int:
        """How many data sets are measured: fewer where the density is so slow that all would take seconds."""
        points, given = np.tile(theta, (PROPOSALS, 1)), self._datasets.one(self._inputs.spec, 0)
        self.compiled.log_density(points, given)  # compiles
        start = time.perf_counter()
        self.compiled.log_density(points, given)
        self._seconds = agree(time.perf_counter() - start)
        if self._seconds > VERY_SLOW:
            self._proposals = FEW_PROPOSALS
            return FEW_SETS
        return int(np.clip(SECONDS / self._seconds, FEWEST_SETS, MOST_SETS))

    @property
    def cheap(self) -> bool:
        """Whether the density is fast enough for corrected draws of some data sets, all of them searched for modes.

        A search evaluates it some 20 times as often as measuring does.
        """
        return len(self) > FEWEST_SETS and 20 * FEWEST_SETS * self._seconds < 5 * SECONDS

    def __len__(self) -> int:
        return len(self._datasets)

    @working("Measuring the importance efficiency")
    def __call__(self) -> Efficiency:
        """Return the efficiency over the data sets; weights that cannot be trusted are worth nothing."""
        found = self._latest = _Weighed(*self._weigh())
        missed = 0.0 if self._inputs.spec.potentials else found.missed  # simulations are no draws of the model then
        return Efficiency.of(np.array([w.ess / w.weights.size if w.reliable else 0.0 for w in found.weights]), missed)

    def in_doubt(self, seed: np.random.SeedSequence) -> bool:
        """Whether what was measured last leaves a doubt about corrected draws, so that these are worth making.

        Weighted proposals are there already, and of more data sets than could be searched for modes: what corrected
        draws are off in, they are, too. No doubt is left where true parameters look like draws of them, and hardly any
        weights fail.
        """
        found, spec = self._latest, self._inputs.spec
        if found is None:
            return True
        if spec.dim == 0 or spec.potentials:  # with potentials, simulations are not draws of the model
            return False
        some = [i for i, w in enumerate(found.weights) if w.reliable]
        if len(some) < 0.9 * len(found.weights):
            return True
        rng = np.random.default_rng(seed)
        rows = [rng.choice(self._proposals, self._proposals, p=found.weights[i].weights[0]) for i in some]
        theta = np.stack([found.theta[r, i] for r, i in zip(rows, some, strict=True)], axis=1)
        log_p = np.stack([found.log_p[r, i] for r, i in zip(rows, some, strict=True)], axis=1)
        worth = np.array([found.weights[i].ess for i in some])
        off = _ranks(spec, theta, log_p, found.theta[-1, some], found.log_p[-1, some], worth, rng)
        return bool(_what_is_off(*off, chance=DOUBTFUL))

    def _weigh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Weights]]:
        """What stands in :class:`_Weighed`."""
        generator = torch_generator(self._seed, self._network.device)
        proposing = Approximation(self._network, self._inputs, self._datasets, defended=True)
        theta, log_q = proposing.sample(self._proposals, generator)
        truth = self._truth[None, : len(self._datasets)]
        theta, log_q = np.concatenate([theta, truth]), np.concatenate([log_q, proposing.log_prob(truth)])
        each = [self._datasets.one(self._inputs.spec, i) for i in range(len(self._datasets))]
        log_p = np.stack(
            [self.compiled.log_density(np.ascontiguousarray(theta[:, i]), one) for i, one in enumerate(each)], axis=1
        )
        ratios = np.where(np.isfinite(log_p), log_p - log_q, -np.inf)
        defended = self._inputs.sketch is not None
        return theta, log_p, ratios, [smooth(ratios[None, :-1, i], defended=defended) for i in range(len(each))]


@dataclass(frozen=True, eq=False)
class _Weighed:
    """Proposals for some data sets, and last the true parameters.

    Attributes
    ----------
    theta, log_p, log_ratios : ndarray (proposals + 1, n, ...)
        Unconstrained parameters, their log densities, and the same relative to the density of the proposals.
    weights : list of Weights
        Of the proposals of each data set.
    """

    theta: np.ndarray
    log_p: np.ndarray
    log_ratios: np.ndarray
    weights: list[Weights]

    @property
    def missed(self) -> float:
        """How often true parameters outweigh the proposals unnoticed.

        Where the weights themselves cannot be trusted, the correction goes on by itself: such data sets count as not
        efficient, and are not counted twice.
        """
        outweighed = self.log_ratios[-1] > np.logaddexp.reduce(self.log_ratios[:-1], axis=0)
        return float(np.mean([w.reliable and more for w, more in zip(self.weights, outweighed, strict=True)]))


def report_efficiency(trained: Trained, measure: Measure | None, target: Efficiency | None) -> None:
    """Log how training went, and how efficient its result is where the density can tell.

    Parameters
    ----------
    trained : Trained
    measure : Measure or None
        Of its efficiency on simulated data sets; None without a density.
    target : Efficiency or None
        What was wanted, if anything.
    """
    if measure is None:
        report(trained)
        return
    efficiency = trained.measured[-1] if trained.as_it_began else measure()
    remark = f"On simulated data sets the importance efficiency is {efficiency}"
    if len(trained.measured) > 1:
        grown = trained.measured[-1].typical - trained.measured[-2].typical
        remark += f"; the last doubling of the steps added {grown:+.0%} to the median"
    # below 0.05, twenty proposals buy less than one independent draw; sampling makes at most 16 for each
    doubtful = efficiency.typical < 0.05 or efficiency.hardest == 0
    if target is not None and trained.stopped != "target" and not efficiency.reaches(target):
        doubtful = True
        advice = _ADVICE.get(trained.stopped, _LONGER)
        remark += f". Training stopped short of its target, {efficiency.short_of(target)}: {advice}"
    report(trained, remark + ".", doubtful=doubtful or trained.history.restarts > 0)


_LONGER = (
    "sample(correction='auto') makes up for it, at more proposals for each data set; or train longer (posterior = "
    "posterior.continue_training(), max_time=)"
)
_ADVICE = {
    "gain": "sample(correction='auto') makes up for it, at more proposals for each data set; for better ones try a "
    "larger network (density=, summary=) or another parametrization of the model"
}


def warn_if_off(network: PosteriorNetwork, inputs: Inputs, held_out: Simulations, seed: np.random.SeedSequence) -> None:
    """Log which parameters the network is biased, over- or under-confident about.

    Parameters
    ----------
    network : PosteriorNetwork
    inputs : Inputs
        What it is given of data.
    held_out : Simulations
        Not used for training.
    seed : numpy.random.SeedSequence
    """
    spec = inputs.spec
    # enough for a bias of 0.3 posterior sd, or an sd that is off by a quarter, to be beyond doubt
    known = held_out.take(slice(200))
    if spec.dim == 0 or spec.potentials:  # with potentials, simulations are not draws of the model
        return
    torch_seed, own_seed = seed.spawn(2)
    generator = torch_generator(torch_seed, network.device)
    approximation = Approximation(network, inputs, of_simulations(known))
    # ranks among more draws would be finer than so many data sets can tell
    theta, _ = approximation.sample(100, generator, within=True)
    values = pit(theta, known.unconstrained, np.random.default_rng(own_seed))
    lines = _what_is_off(values, spec.element_names)
    if not lines:
        return
    repaired = (
        "The correction by the model's density repairs this where Pareto k is small; check_calibration(posterior, "
        "correction='psis') tells. For a better network train"
        if spec.density_obstacle is None
        else "No density of the model corrects this: train"
    )
    logger.warning(
        "On %d simulated data sets the network is not calibrated, on the unconstrained scale:\n  %s\n%s longer "
        "(posterior = posterior.continue_training()).",
        len(known),
        "\n  ".join(lines),
        repaired,
    )


def rank_corrected(
    spec: ModelSpec,
    log_joint_of: Callable[[np.ndarray, DataSets], np.ndarray],
    correct: Callable[[DataSets, np.random.SeedSequence], Sequence[Draws]],
    held_out: Simulations,
    seed: np.random.SeedSequence,
) -> tuple[str, ...]:
    """Rank corrected draws of some data sets; log and return what they are off in: as much work as measuring once."""
    some = held_out.take(slice(FEWEST_SETS))
    if len(some) < 20:  # ranks of fewer say little
        return ()
    drawing, ranking = seed.spawn(2)
    datasets = of_simulations(some)
    log_joint = log_joint_of(some.unconstrained, datasets)
    return agree(warn_if_corrected_off(spec, correct(datasets, drawing), log_joint, some, ranking))


def warn_if_corrected_off(
    spec: ModelSpec,
    draws: Sequence[Draws],
    log_joint: np.ndarray,
    known: Simulations,
    seed: np.random.SeedSequence,
) -> tuple[str, ...]:
    """Log and return which quantities corrected draws are off in: parameters, the log density, or a random direction.

    Parameters
    ----------
    spec : ModelSpec
    draws : sequence of Draws
        For each simulated data set; those that are not settled are left out.
    log_joint : ndarray (n,)
        Of the true parameters.
    known : Simulations
    seed : numpy.random.SeedSequence
    """
    some = [i for i, d in enumerate(draws) if d.settled]
    if spec.dim == 0 or spec.potentials or not some:
        return ()
    rng = np.random.default_rng(seed)
    truth = known.unconstrained[some]
    theta = np.stack([draws[i].theta.reshape(-1, spec.dim) for i in some], axis=1)
    log_p = np.stack([draws[i].log_p.ravel() for i in some], axis=1)
    worth = np.array([w.ess if (w := draws[i].weights) is not None else np.nan for i in some])
    if lines := _what_is_off(*_ranks(spec, theta, log_p, truth, log_joint[some], worth, rng)):
        logger.warning(
            "On %d simulated data sets corrected draws are not calibrated:\n  %s\nA mode may be missed, or the model's "
            "density may not be that of its simulations. check_calibration(posterior, correction='auto') tells more.",
            len(some),
            "\n  ".join(lines),
        )
    return tuple(lines)


def _ranks(
    spec: ModelSpec,
    theta: np.ndarray,
    log_p: np.ndarray,
    truth: np.ndarray,
    log_joint: np.ndarray,
    worth: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[str]]:
    """PIT values (n, quantities) of parameters, the log density and a random direction, and what these are.

    Parameters
    ----------
    theta, log_p : ndarray (draws, n, dim), ndarray (draws, n)
    truth, log_joint : ndarray (n, dim), ndarray (n,)
        The same of the true parameters.
    worth : ndarray (n,)
        Independent draws that those of each data set are worth.
    """
    direction = rng.normal(size=spec.dim) / theta.std(axis=0).mean(axis=0)
    drawn, true = [*np.moveaxis(theta, 2, 0), log_p, theta @ direction], [*truth.T, log_joint, truth @ direction]
    values = [pit(sample, value, rng, worth.clip(1, len(theta))) for sample, value in zip(drawn, true, strict=True)]
    return np.column_stack(values), [*spec.element_names, "the log density", "a random direction"]


def _what_is_off(values: np.ndarray, names: Sequence[str], chance: float = 0.001) -> list[str]:
    """Say which columns of PIT values (n, quantities) are not uniform, and how.

    Parameters
    ----------
    chance : float
        Of a warning about draws without fault; by default, one about draws with a small fault is far below 1 %.
    """
    results = [uniformity(column) for column in values.T]
    adjusted = holm(r.p_value for r in results)
    order = [int(i) for i in np.argsort(adjusted) if adjusted[i] < chance]
    lines = [f"{names[i]}: {describe(results[i])} ({p_text(float(adjusted[i]))})" for i in order[:5]]
    return lines + ([f"and {len(order) - 5} more"] if len(order) > 5 else [])
