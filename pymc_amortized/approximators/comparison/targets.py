r"""What a classifier is taught of each simulation.

The number of the model that was simulated is one draw from the probabilities :math:`p(m \mid y)` that are wanted: noise
that only very many simulations average out. Where the evidence of every model can be found by a few evaluations of its
density, the classifier is taught :math:`p(m \mid y) \propto p(y \mid m)` itself. Given the data both have the same
expectation (Rao-Blackwell), so that they may be mixed: where one evidence is not known, the number of the model stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.special import log_softmax

from pymc_amortized.approximators.comparison.model_evidence import data_of, fits
from pymc_amortized.approximators.fitting.seeds import Stage
from pymc_amortized.approximators.fitting.setup import Setup
from pymc_amortized.approximators.posterior.choosing import Cost
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.rules import find_rules
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import log_orderings
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.pool import labelled
from pymc_amortized.inputs.sketch import SLOWEST, TIMED, Sketch, make_sketch, seconds_for_each
from pymc_amortized.logs import logger

CLEAR = 4.0
"""Standard errors between evidence and numbers of models that are no chance."""


@dataclass(frozen=True, eq=False)
class SketchedEvidence:
    """The log marginal likelihood of every model, by sketches.

    Attributes
    ----------
    sketches : mapping of name to Sketch
        Of all models, in order.
    log_orderings : ndarray (models,)
        What is added to each.
    """

    sketches: Mapping[str, Sketch]
    log_orderings: np.ndarray

    def __call__(self, simulations: Simulations) -> np.ndarray:
        """Return them (n, models); NaN where they are not known."""
        datasets = of_simulations(simulations)
        columns = []
        for sketch in self.sketches.values():
            own = data_of(sketch.inputs.spec, datasets)
            columns.append(np.where(fits(own, datasets), sketch.log_evidence(own), np.nan))
        return np.stack(columns, axis=1) + self.log_orderings


def targets(simulations: Simulations, number: int) -> np.ndarray:
    """Probabilities (n, models) of models, given the data or, where these are not known, the parameters."""
    labels = np.eye(number)[simulations.unconstrained[:, 0].astype(int)]
    if simulations.extra is None:
        return labels
    known = np.isfinite(simulations.extra).all(axis=1)
    return np.where(known[:, None], np.exp(_log_probabilities(simulations.extra)), labels)


def choose_evidence(
    specs: Mapping[str, ModelSpec],
    structures: Mapping[str, Structure],
    posteriors: Mapping[str, TrainedPosterior],
    pilot: Mapping[str, Simulations],
    setup: Setup,
    *,
    wanted: bool,
) -> tuple[SketchedEvidence, float] | str:
    """Find what a classifier can be taught beside the number of the model, or say why there is nothing.

    Parameters
    ----------
    specs, structures : mapping by name
        Of all models.
    posteriors : mapping of name to TrainedPosterior
        Of those that have one.
    pilot : mapping of name to Simulations
    setup : Setup
    wanted : bool
        Whether it is taken however long it takes.

    Returns
    -------
    tuple or str
        The evidence, and the seconds that it takes for each data set; or the reason.
    """
    with setup.random_numbers():
        seed = setup.seed(Stage.STRUCTURE, len(specs))
        found = find_evidence(specs, structures, posteriors, pilot, seed, setup.compile_kwargs)
    if isinstance(found, str):
        return found
    # simulations of each model on which its density is held against its simulations
    some = labelled({name: made.take(slice(4096)) for name, made in pilot.items()})
    measured, _ = seconds_for_each(found, some.take(slice(None, None, max(len(some) // TIMED, 1))))
    seconds = setup.decide("evidence", Cost, lambda: Cost(measured)).seconds
    if seconds > SLOWEST and not wanted:
        return f"these would take {1e3 * seconds:.0f} ms for each data set"
    some = replace(some, extra=found(some))
    share, off = known_share(some), contradiction(some)
    if share < 0.5:  # what is taught labels needs many more simulations
        return f"it is known of {share:.0%} of simulated data sets only"
    if off > CLEAR:
        logger.warning(
            "Simulated data sets do not come from the models as often as sketches of their evidence say (%.1f "
            "standard errors apart): a model's density is not that of its simulator, or sketches miss part of a "
            "posterior, a mode say. The classifier is taught by labels.",
            off,
        )
        return "these disagree with simulations"
    logger.info(
        "The classifier learns from the evidence, which sketches tell for %.0f%% of the simulations in %.2g ms each; "
        "for the others it learns from labels.",
        100 * share,
        1e3 * seconds,
    )
    return found, seconds


def find_evidence(
    specs: Mapping[str, ModelSpec],
    structures: Mapping[str, Structure],
    posteriors: Mapping[str, TrainedPosterior],
    pilot: Mapping[str, Simulations],
    seed: np.random.SeedSequence,
    compile_kwargs: CompileKwargs | None,
) -> SketchedEvidence | str:
    """Make sketches of all models, or say why there are none."""
    sketches: dict[str, Sketch] = {}
    for (name, spec), child in zip(specs.items(), seed.spawn(len(specs)), strict=True):
        dropped = sum(pilot[name].dropped.values()) / max(pilot[name].attempted, 1)
        if dropped > 1e-3:  # the evidence is that of the whole prior
            return f"{dropped:.2%} of the simulations of model {name!r} are dropped"
        sketch: Sketch | str | None = posteriors[name].sketch if name in posteriors else None
        if sketch is None:
            made = _own(spec, pilot[name])
            gaps = find_rules(spec, made, child)
            sketch = make_sketch(spec, structures[name], gaps, made, compile_kwargs)
        if isinstance(sketch, str):
            return f"model {name!r}: {sketch}"
        sketches[name] = sketch
    return SketchedEvidence(sketches, np.array([log_orderings(spec) for spec in specs.values()]))


def known_share(simulations: Simulations) -> float:
    """Share of simulations of which the evidence of all models is known."""
    return 0.0 if simulations.extra is None else float(np.isfinite(simulations.extra).all(axis=1).mean())


def contradiction(simulations: Simulations) -> float:
    """By how many standard errors numbers of models differ from what their evidence lets expect.

    In frequencies of the models, and in the log score, which is the direction of a common factor of all log odds; among
    all simulations, among small and large ones, and among those with weak and with strong evidence.
    """
    assert simulations.extra is not None
    some = simulations.take(np.isfinite(simulations.extra).all(axis=1))
    assert some.extra is not None
    log_p = _log_probabilities(some.extra)
    p, number = np.exp(log_p), log_p.shape[1]
    labels = some.unconstrained[:, 0].astype(int)
    score = (p * log_p).sum(axis=1)
    off = np.column_stack([np.eye(number)[labels] - p, log_p[np.arange(len(p)), labels] - score])
    variance = np.column_stack([p * (1 - p), (p * log_p**2).sum(axis=1) - score**2])
    largest = 0.0
    for part in _parts(some, p.max(axis=1)):
        if part.any():
            # what is added keeps one label in many that are all but sure from being a contradiction
            z = np.abs(off[part].sum(axis=0)) / np.sqrt(variance[part].sum(axis=0) + 1e-2)
            largest = max(largest, float(z.max()))
    return largest


def _parts(simulations: Simulations, clearest: np.ndarray) -> list[np.ndarray]:
    """Simulations among which labels are counted: all, by size, and by how clear the evidence is."""
    ends = [0.0, 0.6, 0.8, 0.95, 1.01]
    parts = [np.ones(len(simulations), dtype=bool)]
    parts += [(clearest >= low) & (clearest < high) for low, high in pairwise(ends)]
    for length in simulations.lengths.values():
        low, high = np.quantile(length, [1 / 3, 2 / 3])
        parts += [length <= low, (length > low) & (length <= high), length > high]
    return parts


def _log_probabilities(log_evidence: np.ndarray) -> np.ndarray:
    return log_softmax(np.nan_to_num(log_evidence), axis=1)


def _own(spec: ModelSpec, simulations: Simulations) -> Simulations:
    """Take what one of the models reads."""
    own = data_of(spec, of_simulations(simulations))
    return replace(simulations, data=own.values, missing=own.missing)
