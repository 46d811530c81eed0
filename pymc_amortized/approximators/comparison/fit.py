"""Training an amortized comparison: the models' simulations side by side, one classifier, and posteriors beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any

import pymc as pm
import torch

from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.comparison.file import SavedComparison, read_comparison
from pymc_amortized.approximators.comparison.model_evidence import evidence_obstacle
from pymc_amortized.approximators.comparison.training import ComparisonFit
from pymc_amortized.approximators.fitting.arguments import read_count, read_mapping, read_sketch_option
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.approximators.fitting.seeds import RandomState
from pymc_amortized.approximators.fitting.setup import LEAST, Setup, read_setup
from pymc_amortized.approximators.fitting.simulation_plan import LIMITS
from pymc_amortized.approximators.posterior.choosing import Cost
from pymc_amortized.approximators.posterior.fit import fit_posterior
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.checkpoint import about_fit, content_of, kept_fit
from pymc_amortized.approximators.storage.models import describe_model
from pymc_amortized.approximators.storage.save import read_again
from pymc_amortized.graph.data.support import refuse_impossible_held
from pymc_amortized.graph.model.common import common_data
from pymc_amortized.graph.model.indices import index_limits
from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.sizes import is_range
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.atoms import PriorAtomError
from pymc_amortized.graph.simulation.context import read_missing
from pymc_amortized.logs import logger
from pymc_amortized.networks.choices import SummaryChoice, check_choices
from pymc_amortized.numerics.odds import prior_weights
from pymc_amortized.ranks import together
from pymc_amortized.training import Training

type Entry = pm.Model | AmortizedPosterior


@together()
def fit_comparison(
    models: Mapping[str, Entry],
    *,
    prior: Mapping[str, float] | None = None,
    observed: Sequence[str] | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    structure: Mapping[str, str | Sequence[str]] | None = None,
    summary: SummaryChoice = "auto",
    sketch: bool | None = None,
    posteriors: bool = True,
    num_simulations: int | None = None,
    training: Training | None = None,
    max_time: float | None = None,
    checkpoint: str | PathLike[str] | None = None,
    cores: int | None = None,
    device: str | torch.device | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
    compile_kwargs: CompileKwargs | None = None,
) -> AmortizedComparison:
    """Train a classifier that tells which of several models a data set comes from.

    Parameters
    ----------
    models : mapping of name to pymc.Model or AmortizedPosterior
        At least two models of the same data: the same observed variables, of the same shapes, dims and sizes. A
        trained posterior stands for its model, and is not trained again.
    prior : mapping of name to float, optional
        Prior weights of the models, in any unit; equal by default. Others can be given with each data set: training
        does not depend on them.
    observed, context, missing, structure
        As in :func:`fit_posterior`, for all models. Context that a model does not hold is none of its own: it
        says nothing about that model's data. Where a posterior is among the models, its context and gaps are the
        default.
    summary : str, options or torch.nn.Module
        As in :func:`fit_posterior`. "auto" takes the coarsest structure that holds for all models.
    sketch : bool, optional
        As in :func:`fit_posterior`, and whether the classifier is taught the evidence that sketches find of
        simulations: by default where all models have them. True refuses models that have none.
    posteriors : bool
        Whether to train a posterior of each model that has a density, for its evidence.
    num_simulations : int, optional
        Train on a fixed set of so many simulations of all models together. By default fresh ones are made at every
        step, unless simulating is slow.
    training : Training, optional
        Steps, batch size, learning rate and the like, of the classifier and of each posterior. Where the classifier is
        taught by labels, batches have at least 1,024 simulations, and weights are averaged over at least 0.3 of the
        steps: labels tell less than parameters do.
    max_time : float, optional
        Seconds that the whole call may take, compiling aside: all of these trainings together.
    checkpoint, cores, device, random_seed, progressbar, compile_kwargs
        As in :func:`fit_posterior`.

    Returns
    -------
    AmortizedComparison

    Raises
    ------
    ValueError, KeyError, TypeError
        When a model cannot be simulated, or is of other data than the others; the message names the model and
        what differs.

    Notes
    -----
    The classifier sees equal numbers of simulations of all models, of the same sizes, covariates and gaps, which
    therefore tell nothing of the model (Radev et al. 2021, arXiv 2004.10629). Where all models have sketches, it is
    taught their evidence, found for each simulation by importance sampling from some hundred evaluations of the
    density; elsewhere the number of the model that was simulated, a draw from the same probabilities. What it says is
    calibrated on simulations of their own, by the numbers of their models. Priors of parameters are part of a model:
    vague ones make it less probable. Where a model's density excludes simulations of its prior, what is compared is the
    prior that is left.

    Examples
    --------
    Which prior do the data speak for?

    >>> def normal_mean(spread):
    ...     with pm.Model() as model:
    ...         mu = pm.Normal("mu", 0.0, spread)
    ...         pm.Normal("y", mu, 1.0, observed=np.zeros(4))
    ...     return model
    >>> brief = {"training": pma.Training(num_steps=30), "random_seed": 1, "progressbar": False}
    >>> models = {"narrow": normal_mean(0.2), "wide": normal_mean(2.0)}
    >>> comparison = pma.fit_comparison(models, posteriors=False, **brief)
    >>> chosen = comparison.probabilities({"y": [3.1, 2.2, 2.5, 3.8]})["probability"]
    >>> float(chosen.sel(model="wide")) > 0.5
    True
    """
    models = _check_models(models)
    if not isinstance(posteriors, bool):
        raise TypeError(f"posteriors must be True or False, got {posteriors!r}")
    weights = prior_weights(prior, list(models))
    setup = read_setup(training, max_time, random_seed, device, progressbar, compile_kwargs)
    num_simulations = read_count("num_simulations", num_simulations, smallest=LIMITS.fewest)
    cores = read_count("cores", cores)
    check_choices(summary, "spline")
    sketch = read_sketch_option(sketch, "auto")  # the classifier itself is not given any
    structure = read_mapping("structure", structure)
    context, missing = _sources(models, context, missing)
    specs, sources, gaps = _read(models, observed, context, missing)
    common = common_data(specs, [index_limits(spec) for spec in specs.values()])
    given = {name: entry for name, entry in models.items() if isinstance(entry, AmortizedPosterior)}
    wanted = [name for name in models if posteriors and name not in given and not evidence_obstacle(specs[name])]
    prior_weight = dict(zip(models, weights.tolist(), strict=True))

    def sources_of(spec: ModelSpec) -> dict[str, Any]:
        return {c.name: sources[c.name] for c in spec.context}

    def about() -> dict[str, Any]:
        described = {f"models[{name!r}]": describe_model(s, sources_of(s), gaps) for name, s in specs.items()}
        for name, posterior in given.items():
            values = [w.detach().cpu().numpy() for w in posterior.network.state_dict().values()]
            described[f"weights of models[{name!r}]"] = content_of(values)
        return about_fit(
            "fit_comparison",
            described,
            prior=prior_weight,
            structure=structure,
            summary=summary,
            sketch=sketch,
            posteriors=wanted,
            num_simulations=num_simulations,
            training=setup.options,
        )

    def train_posterior(name: str, setup: Setup) -> AmortizedPosterior:
        """Train the posterior of a model, in a share of the time that is left."""
        k, kept, seconds = list(models).index(name), setup.checkpoint, None
        if max_time:
            share = 1 / (len(wanted) + 1 - wanted.index(name))
            left = Cost(max(setup.left, LEAST * max_time) * share)
            seconds = setup.decide(f"seconds of {name!r}", Cost, lambda: left).seconds
        logger.info("Training the posterior of model %r.", name)
        posterior = fit_posterior(
            models[name],
            observed=observed,
            context=_own(models[name], context),
            missing=missing,
            structure=structure,
            sketch=sketch,
            training=training,
            max_time=seconds,
            checkpoint=None if kept is None else kept.folder / f"posterior{k}",
            cores=cores,
            device=device,
            random_seed=[*setup.entropy, k],
            progressbar=progressbar,
            compile_kwargs=compile_kwargs,
        )
        if kept is not None and not posterior.state.values["standing"]["finished"]:
            kept.interrupted = True
        return posterior

    def fit(setup: Setup) -> AmortizedComparison:
        made = ComparisonFit(
            common, specs, sources, gaps, setup, sketched=sketch, num_simulations=num_simulations, cores=cores
        )
        trained = dict(given)
        for name in wanted:
            try:
                trained[name] = train_posterior(name, setup)
            except PriorAtomError as error:
                logger.warning("Model %r has no posterior, and so no evidence: %s.", name, error)
        return AmortizedComparison.of(made.run(summary, structure, trained, prior_weight))

    def again(path: Path) -> AmortizedComparison:
        found = read_again(SavedComparison, read_comparison, path, models, compile_kwargs, summary)
        own = {
            name: replace(p, context=sources_of(p.spec), missing=gaps) if name in wanted else p
            for name, p in found.posteriors.items()
        }
        return replace(found, posteriors=own, context=sources, missing=gaps)

    return kept_fit(checkpoint, about, setup, fit, again, any_seed=random_seed is None)


def _check_models(models: Any) -> dict[str, Entry]:
    if not isinstance(models, Mapping):
        raise TypeError(f"models must map names to models, as in {{'linear': m1, 'quadratic': m2}}; got {models!r}")
    if len(models) < 2:
        raise ValueError(f"models: at least two are needed to compare, got {list(models)}")
    entries: dict[str, Entry] = {}
    for name, entry in models.items():
        if not isinstance(name, str):
            raise TypeError(f"models: names must be strings, got {name!r}")
        try:
            entries[name] = entry if isinstance(entry, AmortizedPosterior) else model_of(entry)
        except TypeError:
            allowed = "a pymc.Model, an object that holds one, or an AmortizedPosterior"
            raise TypeError(f"models[{name!r}] must be {allowed}, got {type(entry).__name__}") from None
        if isinstance(entry, AmortizedPosterior) and entry.local_to is not None:
            raise ValueError(f"models[{name!r}] was refined for one data set and knows no other")
    for one, two in combinations(models, 2):
        if entries[one] is entries[two]:
            logger.warning("models: %r and %r are the same object: each gets half of what is due to one.", one, two)
    return entries


def _sources(models: Mapping[str, Entry], context: Any, missing: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find what differs between data sets: as given, else as a posterior among the models was trained for."""
    given = [entry for entry in models.values() if isinstance(entry, AmortizedPosterior)]
    if context is None:
        context = {}
        for posterior in given:
            context |= dict(posterior.context or {})
            context |= {r.dim: (r.smallest, r.largest) for r in posterior.spec.sizes}
    if missing is None:
        missing = {}
        for posterior in given:
            missing |= dict(posterior.missing or {})
    return read_mapping("context", context), read_mapping("missing", missing)


def _own(model: pm.Model, context: Mapping[str, Any]) -> dict[str, Any]:
    """Take the part of the context that concerns a model; a size concerns all of them."""
    known = {*model.dim_lengths, *(v.name for v in model.data_vars)}
    return {name: source for name, source in context.items() if name in known or is_range(source)}


def _read(
    models: Mapping[str, Entry], observed: Sequence[str] | None, context: Mapping[str, Any], missing: Mapping[str, Any]
) -> tuple[dict[str, ModelSpec], dict[str, Any], dict[str, Any]]:
    """Take snapshots of the models, and the sources of context and gaps."""
    specs: dict[str, ModelSpec] = {}
    for name, entry in models.items():
        try:
            if isinstance(entry, AmortizedPosterior):
                specs[name] = entry.spec
            else:
                specs[name], _, _ = read_model(entry, observed, None, _own(entry, context), missing)
        except (ValueError, KeyError, TypeError) as error:
            raise type(error)(f"models[{name!r}]: {error.args[0] if error.args else error}") from None
        if specs[name].potentials:
            raise ValueError(
                f"models[{name!r}] has potentials {list(specs[name].potentials)}, which are no part of its "
                "simulations and leave its density unnormalized: no probability of that model is defined. Write them "
                "as priors or observed variables"
            )
    known = {c.name for spec in specs.values() for c in spec.context}
    sizes = {r.dim for spec in specs.values() for r in spec.sizes}
    unknown = [name for name in context if name not in known | sizes]
    if unknown:
        raise KeyError(f"context: no model has a data container or dimension named {unknown}")
    without = sorted(known - set(context))
    if without:
        raise ValueError(f"context: sources of {without} are needed (posteriors that were loaded hold none)")
    _say_what_is_absent(specs)
    refuse_impossible_held(list(specs.values()))
    first = next(iter(specs.values()))
    gaps = read_missing(missing, [v.name for v in first.observed])
    return specs, {name: source for name, source in context.items() if name in known}, gaps


def _say_what_is_absent(specs: Mapping[str, ModelSpec]) -> None:
    """Log which context is none of a model, and warn where what may have been computed from it is baked in."""
    rows = {c.name: spec.held[c.name].shape[:1] for spec in specs.values() for c in spec.context}
    for name, spec in specs.items():
        absent = sorted(set(rows) - {c.name for c in spec.context})
        if absent:
            logger.info("Model %r does not hold %s: its data do not depend on that.", name, absent)
        for c in absent:
            baked = [v.name for v in spec.unchanging if rows[c] and spec.held[v.name].shape[:1] == rows[c]]
            if baked:
                logger.warning(
                    "Model %r does not hold %r, but holds %s of the same length, the same for all data sets. If that "
                    "was computed from %r (its square, its logarithm), hold pm.Data(%r, ...) there and compute it in "
                    "the model; else its rows belong to those of the data in their order.",
                    name,
                    c,
                    baked,
                    c,
                    c,
                )
