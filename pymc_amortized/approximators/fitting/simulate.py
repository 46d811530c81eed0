"""Simulations for the user, and simulations from the user."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import check_integer, read_mapping
from pymc_amortized.approximators.fitting.fingerprint import fingerprint
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.graph.data.arrays import arrange
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import Unconstrain
from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.suitability import check_names, refuse_imputed
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler, read_missing, split_context
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.results.writing import check_layout, prior_tree

_Read = tuple[ModelSpec, dict[str, Any], dict[str, Any]]
_read: WeakKeyDictionary[pm.Model, tuple[dict[str, str], ModelSpec, dict[str, Any], dict[str, Any]]] = (
    WeakKeyDictionary()
)

FEWEST_USABLE = 20
"""With fewer simulations nothing can be held out."""


def simulate(
    model: pm.Model | None = None,
    draws: int = 500,
    *,
    observed: Sequence[str] | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    cores: int = 1,
    random_seed: RandomState = None,
    compile_kwargs: CompileKwargs | None = None,
) -> xr.DataTree:
    """Sample the prior predictive distribution of a model, fast.

    Like ``pm.sample_prior_predictive``, but the loop over draws runs inside compiled code, and draws that the model's
    own density excludes (a negative scale, an unordered vector under an ordering transform) are replaced by new ones.

    Parameters
    ----------
    model : pymc.Model, optional
        The context's model by default.
    draws : int
        Number of simulations.
    observed, context, missing
        As in :func:`fit_posterior`.
    cores : int
        Processes that simulate; the result does not depend on it.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.
    compile_kwargs : mapping, optional
        Passed to ``pymc.compile``.

    Returns
    -------
    xarray.DataTree
        Groups ``prior``, ``prior_predictive`` and ``constant_data``; with `context`, its values in ``prior_context``.
        The attributes of ``prior`` count what was attempted and dropped.

    Examples
    --------
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 2.0)
    ...     observed = pm.Normal("y", mu, 1.0, observed=[0.4, 1.9, 0.7, 1.2])
    >>> simulations = pma.simulate(model, 50, random_seed=1)
    >>> dict(simulations.prior_predictive["y"].sizes)["draw"]
    50
    """
    draws, cores = check_integer("draws", draws), check_integer("cores", cores)
    context = read_mapping("context", context)
    spec, sources, gaps = read_model(model, observed, None, context, missing)
    sampler = ContextSampler(spec, sources, gaps)
    simulator = Simulator(spec, context=sampler, compile_kwargs=compile_kwargs)
    return prior_tree(spec, simulator(draws, seed_sequence(random_seed), cores=cores))


def read_model(
    model: pm.Model | None,
    observed: Sequence[str] | None,
    parameters: Sequence[str] | None,
    context: Mapping[str, Any],
    missing: Mapping[str, Any] | None,
) -> _Read:
    """Take the snapshot of a model, and what was said about its context and gaps.

    The last one of each model is kept, with all that is compiled from it, and is the same as long as nothing changes.
    """
    model = model_of(model)
    arguments = {"observed": observed, "parameters": parameters, "missing": missing}
    if model not in _read or _read[model][0] != fingerprint(model, context, arguments, with_data=True):
        read = read_anew(model, observed, parameters, context, missing)
        _read[model] = fingerprint(model, context, arguments, with_data=True), *read
    _, spec, sources, gaps = _read[model]
    return spec, dict(sources), dict(gaps)


def read_anew(
    model: pm.Model,
    observed: Sequence[str] | None,
    parameters: Sequence[str] | None,
    context: Mapping[str, Any],
    missing: Mapping[str, Any] | None,
) -> _Read:
    """Take a snapshot that nobody else has: its model may be added to."""
    refuse_imputed(model)
    sizes, sources = split_context(model, context)
    gaps = read_missing(missing, [*(rv.name for rv in model.observed_RVs), *check_names("observed", observed or ())])
    spec = take_snapshot(model, observed=observed, parameters=parameters, context=sources, sizes=sizes, missing=gaps)
    check_layout(spec)
    return spec, sources, gaps


def refuse_groups(spec: ModelSpec, where: str) -> None:
    """Refuse free variables whose number differs between data sets, which only posteriors know."""
    if spec.locals:
        names, dims = [p.name for p in spec.locals], sorted({d for p in spec.locals for d in p.sized if d})
        raise ValueError(
            f"context: {where} needs a fixed number of parameters, but {names} carry {dims}: leave the dimension out "
            "of context=, or use fit_posterior"
        )


def sources_again(
    spec: ModelSpec, context: Mapping[str, Any] | None, missing: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the sources of a snapshot's context variables and gaps, to simulate once more.

    Parameters
    ----------
    spec : ModelSpec
    context, missing : mapping, optional
        Those of training, or given again by the user. Files hold none.

    Raises
    ------
    ValueError
        When a source is missing.
    """
    sources = {name: source for name, source in (context or {}).items() if name not in spec.largest}
    unknown = [c.name for c in spec.context if c.name not in sources]
    if unknown:
        raise ValueError(
            f"context: sources of {unknown} are needed to simulate further (files hold none): pass context= and "
            "missing= as in fit_posterior"
        )
    gaps = read_missing(missing, [v.name for v in spec.observed])
    unknown = [v.name for v in spec.observed if v.missing and v.name not in gaps]
    if unknown:
        raise ValueError(
            f"missing: what draws gaps in {unknown} is needed to simulate further (files hold rates alone): pass "
            "missing= as in fit_posterior"
        )
    return sources, gaps


def training_simulator(
    spec: ModelSpec,
    context: Mapping[str, Any] | None,
    missing: Mapping[str, Any] | None,
    compile_kwargs: CompileKwargs | None,
) -> Simulator:
    """Make what simulates for training, without deterministics."""
    sampler = ContextSampler(spec, context or {}, missing or {})
    return Simulator(spec, context=sampler, deterministics=False, compile_kwargs=compile_kwargs)


def read_simulations(spec: ModelSpec, tree: xr.DataTree, compile_kwargs: CompileKwargs | None = None) -> Simulations:
    """Take a user's simulations.

    Parameters
    ----------
    tree : xarray.DataTree
        Groups ``prior`` (every free variable), ``prior_predictive`` (every observed one) and, for context
        variables, ``prior_context``.

    Raises
    ------
    TypeError, KeyError, ValueError
        When a group or variable is missing, or a value does not fit the model.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"simulations must be a DataTree, got {type(tree).__name__}")
    free = _group(tree, "prior", [p.name for p in spec.parameters])
    data = _group(tree, "prior_predictive", [v.name for v in spec.observed])
    if spec.context:
        data |= _group(tree, "prior_context", [v.name for v in spec.context])
    datasets = read_datasets(spec, data, batched=True)
    variables = {}
    for p in spec.parameters:
        variables[p.name] = arrange(spec, p, free[p.name])
        if variables[p.name].shape != (len(datasets), *p.shape):
            raise ValueError(
                f"simulations: prior[{p.name!r}] has shape {variables[p.name].shape[1:]} for each of "
                f"{len(variables[p.name])} draws; expected {p.shape} for each of {len(datasets)}"
            )
    context = {c.name: datasets.values[c.name] for c in spec.context}
    theta = Unconstrain(spec, compile_kwargs)({**variables, **context})
    usable = np.isfinite(theta).all(axis=1)
    if usable.sum() < FEWEST_USABLE:
        raise ValueError(f"simulations: only {usable.sum()} of {len(theta)} have parameters the model allows")
    dropped = {"parameters outside the model's range": int((~usable).sum())} if not usable.all() else {}
    kept = datasets.take(usable)
    free = {name: values[usable] for name, values in variables.items()}
    return Simulations(theta[usable], free, kept.values, len(theta), dropped, kept.lengths, kept.missing)


def _group(tree: xr.DataTree, group: str, names: list[str]) -> dict[str, Any]:
    if group not in tree.children:
        raise KeyError(f"simulations: there is no group {group!r}; it has {sorted(tree.children)}")
    dataset = tree[group].to_dataset()
    missing = [name for name in names if name not in dataset.data_vars]
    if missing:
        raise KeyError(f"simulations: group {group!r} lacks {missing}; it has {sorted(map(str, dataset.data_vars))}")
    return {name: _stacked(dataset[name]) for name in names}


def _stacked(values: xr.DataArray) -> xr.DataArray:
    """Join chains and draws into one dim of data sets, which comes first."""
    return values.stack({DATASET_DIM: ("chain", "draw")}, create_index=False).transpose(DATASET_DIM, ...)
