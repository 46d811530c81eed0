"""``pm.sample_amortized``: the front door."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import joblib
import numpy as np
import pymc as pm
import torch
import xarray as xr
from pymc.model.core import BaseModel
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.printing import debugprint
from pytensor.tensor.random.type import RandomGeneratorType
from pytensor.tensor.type_other import NoneTypeT

from pymc_amortized.approximators.fitting.arguments import (
    Correction,
    check_correction_name,
    check_integer,
    read_groups,
    read_mapping,
    read_names,
    read_nuts_budget,
)
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.fitting.simulate import read_model
from pymc_amortized.approximators.posterior.fit import fit_posterior
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.posterior.predictive import refuse_without_density
from pymc_amortized.graph.data.reading import read_given
from pymc_amortized.graph.model.indices import index_limits
from pymc_amortized.graph.model.operations import walk
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.logs import logger


@dataclass(frozen=True)
class _Kept:
    """A posterior, and what it depends on."""

    posterior: AmortizedPosterior
    fingerprint: dict[str, str]


_kept: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


def sample_amortized(
    draws: int = 1000,
    *,
    chains: int = 4,
    model: pm.Model | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
    var_names: Sequence[str] | None = None,
    correction: Correction = "auto",
    max_nuts: int | None = None,
    max_time: float | Literal["auto"] | None = "auto",
    context: Mapping[str, Any] | None = None,
    fit_kwargs: Mapping[str, Any] | None = None,
    idata_kwargs: Mapping[str, Any] | None = None,
    compile_kwargs: CompileKwargs | None = None,
) -> xr.DataTree:
    """Draw posterior samples with a neural network trained on the model's own simulations.

    The first call trains; later calls for the same model take milliseconds, as long as only the observed values (and
    declared context) have changed. After any other change it trains again and says what changed.

    Parameters
    ----------
    draws, chains : int
        Draws per chain, and number of chains.
    model : pymc.Model, optional
        The context's model by default.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.
    progressbar : bool
        Whether to show the progress of training, and of NUTS if it runs.
    var_names : sequence of str, optional
        Variables to return; all free variables and deterministics by default.
    correction : {"auto", "psis", "nuts", None}
        See :meth:`AmortizedPosterior.sample`.
    max_nuts, max_time : optional
        How often NUTS may be run, for how many seconds; see :meth:`AmortizedPosterior.sample`. The time of training
        is ``fit_kwargs={"max_time": ...}``.
    context : mapping of name to source, optional
        Data containers and dimensions that may change without training again; see :func:`fit_posterior`.
    fit_kwargs : mapping, optional
        Further arguments of :func:`fit_posterior`, for example ``{"max_time": 60}``.
    idata_kwargs : mapping, optional
        ``log_likelihood=True`` or ``log_prior=True`` add these groups.
    compile_kwargs : mapping, optional
        Passed to ``pymc.compile``.

    Returns
    -------
    xarray.DataTree
        As from ``pm.sample``; see :meth:`AmortizedPosterior.sample`.

    Raises
    ------
    ValueError, KeyError, TypeError
        When the model, its data or an argument do not fit; the message names it.

    Examples
    --------
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 2.0)
    ...     observed = pm.Normal("y", mu, 1.0, observed=[0.4, 1.9, 0.7, 1.2])
    ...     draws = pm.sample_amortized(
    ...         100, chains=2, random_seed=1, progressbar=False, fit_kwargs={"training": pma.Training(num_steps=30)}
    ...     )
    >>> dict(draws.posterior["mu"].sizes)
    {'chain': 2, 'draw': 100}
    """
    if model is not None and not isinstance(model, BaseModel):
        raise TypeError(f"model must be a pymc.Model, got {type(model).__name__}")
    model = pm.modelcontext(model)
    draws, chains = check_integer("draws", draws), check_integer("chains", chains)
    check_correction_name(correction)
    read_nuts_budget(max_nuts, max_time, correction)
    groups = read_groups(idata_kwargs)
    read_names(var_names, [v.name for v in (*model.free_RVs, *model.deterministics)])
    context = read_mapping("context", context)
    fit_kwargs = _read_fit_kwargs(fit_kwargs)
    fit_seed, sample_seed = seed_sequence(random_seed).spawn(2)
    fingerprint = _fingerprint(model, context, fit_kwargs)
    kept = _kept.get(model)
    changed = _changes(kept.fingerprint, fingerprint) if kept else []
    if kept is None or changed:
        if changed:
            logger.info("Training again, because of changes in: %s.", ", ".join(changed))
        _check_current_data(model, context, fit_kwargs)
        if groups.get("log_likelihood"):
            refuse_without_density(model, [rv.name for rv in model.observed_RVs])
        posterior = fit_posterior(
            model,
            context=context,
            random_seed=fit_seed.generate_state(4).tolist(),
            progressbar=progressbar,
            compile_kwargs=compile_kwargs,
            **fit_kwargs,
        )
        _kept[model] = kept = _Kept(posterior, fingerprint)
    return kept.posterior.sample(
        _current_data(kept.posterior.spec, model),
        draws=draws,
        chains=chains,
        correction=correction,
        max_nuts=max_nuts,
        max_time=max_time,
        var_names=var_names,
        random_seed=sample_seed.generate_state(4).tolist(),
        idata_kwargs=idata_kwargs,
        progressbar=progressbar,
    )


def _read_fit_kwargs(fit_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    kwargs = read_mapping("fit_kwargs", fit_kwargs)
    own = {"model", "observed", "context", "random_seed", "progressbar", "compile_kwargs"}
    allowed = set(inspect.signature(fit_posterior).parameters) - own
    unknown = sorted(set(kwargs) - allowed)
    if unknown:
        raise TypeError(f"fit_kwargs: {unknown} given; allowed are {sorted(allowed)}")
    return kwargs


def _check_current_data(model: pm.Model, context: Mapping[str, Any], fit_kwargs: Mapping[str, Any]) -> None:
    """Read the data before training: whether they fit does not depend on it."""
    names = {name: fit_kwargs.get(name) for name in ("parameters", "missing")}
    spec = read_model(model, None, context=context, **names)[0]
    read_given(spec, index_limits(spec), _current_data(spec, model))


def _current_data(spec: ModelSpec, model: pm.Model) -> dict[str, np.ndarray]:
    """Observed and context values that the user's model holds now."""
    values = {v.name: _value(model.rvs_to_values[model[v.name]]) for v in spec.observed}
    return values | {c.name: _value(model[c.name]) for c in spec.context}


def _value(var: Any) -> np.ndarray:
    if isinstance(var, SharedVariable):
        return np.asarray(var.get_value())
    return np.asarray(var.data if isinstance(var, Constant) else var.eval())


def _fingerprint(model: pm.Model, context: Mapping[str, Any], fit_kwargs: Mapping[str, Any]) -> dict[str, str]:
    """What training depended on, by name: variables, fixed data, coordinates, arguments."""
    values = [model.rvs_to_values[rv] for rv in model.observed_RVs]
    observed = set(ancestors(values))
    prints: dict[str, str] = {}
    for var in (*model.basic_RVs, *model.deterministics, *model.potentials):
        # models only grow: the same object is the same variable, as long as its model lives
        prints[f"variable {var.name!r}"] = f"{id(var)} {model.rvs_to_transforms.get(var)!r}"
    for rv, value in zip(model.observed_RVs, values, strict=True):
        prints[f"shape of {rv.name!r}"] = _shape(model, rv, _value(value).shape, context)
    for var in model.data_vars:
        varies = var in observed or var.name in context
        shape = _shape(model, var, _value(var).shape, context)
        prints[f"data {var.name!r}"] = shape if varies else _digest(_value(var))
    for i, array in enumerate(_loose_arrays(model)):
        prints[f"array {array.name or i!r}"] = _digest(_value(array))
    for name, length in model.dim_lengths.items():
        if name in context:
            continue
        held = isinstance(length, SharedVariable | Constant)  # other lengths follow from data
        prints[f"dimension {name!r}"] = f"{_value(length) if held else ''} {model.coords.get(name)!r}"
    prints |= {f"context {name!r}": _content(source) for name, source in context.items()}
    prints |= {f"argument {name!r}": _content(argument) for name, argument in fit_kwargs.items()}
    return prints


def _shape(model: pm.Model, var: Any, shape: tuple[int, ...], context: Mapping[str, Any]) -> str:
    """Describe a shape without the lengths of dimensions that may differ."""
    value = model.rvs_to_values.get(var)
    dims = model.named_vars_to_dims.get(var.name) or model.named_vars_to_dims.get(getattr(value, "name", None)) or ()
    named = [*dims, *[None] * (len(shape) - len(dims))]
    return str([dim if dim in context else n for n, dim in zip(shape, named, strict=True)])


def _loose_arrays(model: pm.Model) -> list[Any]:
    """Arrays used without ``pm.Data``: shared variables, and constants that may be written into in place."""
    known_ones = {*model.data_vars, *model.dim_lengths.values()}
    return [
        v
        for v in walk([*model.basic_RVs, *model.deterministics, *model.potentials], through_shapes=False)
        if isinstance(v, SharedVariable | Constant)
        and v not in known_ones
        and not isinstance(v.type, RandomGeneratorType)
        and (isinstance(v, SharedVariable) or (isinstance(v.data, np.ndarray) and v.data.size > 1))
    ]


def _content(argument: Any) -> str:
    """Tell arguments apart by what they hold; what cannot be hashed, such as a lambda, by identity."""
    if isinstance(argument, Variable):
        arrays = [v for v in ancestors([argument]) if isinstance(v, SharedVariable | Constant)]
        values = [_digest(_value(v)) for v in arrays if not isinstance(v.type, RandomGeneratorType | NoneTypeT)]
        return f"{debugprint(argument, file='str', id_type='', print_type=True)} {values}"
    if callable(argument) and not isinstance(argument, torch.nn.Module):
        return str(id(argument))
    try:
        return str(joblib.hash(argument))
    except Exception:  # whatever pickling an argument may raise
        return str(id(argument))


def _digest(value: np.ndarray) -> str:
    content = np.ascontiguousarray(value)
    return f"{value.shape} {value.dtype} {hashlib.blake2b(content.tobytes(), digest_size=16).hexdigest()}"


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
