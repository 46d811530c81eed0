"""``pm.sample_amortized``: the front door."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import (
    Correction,
    check_correction_name,
    check_dtype,
    check_integer,
    explain_sampler_arguments,
    read_mapping,
    read_names,
    read_nuts_budget,
    read_result_options,
)
from pymc_amortized.approximators.fitting.fingerprint import changes, fingerprint, value_of
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.fit import fit_posterior
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.posterior.predictions.predictive import refuse_without_density
from pymc_amortized.graph.data.reading import read_given
from pymc_amortized.graph.model.indices import index_limits
from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.logs import logger


@dataclass(frozen=True)
class _Kept:
    """A posterior, and what it depends on."""

    posterior: AmortizedPosterior
    fingerprint: dict[str, str]


_kept: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


@explain_sampler_arguments
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
    dtype: Literal["float64", "float32"] = "float64",
    compile_kwargs: CompileKwargs | None = None,
) -> xr.DataTree:
    """Draw posterior samples with a neural network trained on the model's own simulations.

    The first call trains; later calls for the same model only sample, as long as only the observed values (and
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
    idata_kwargs, dtype : optional
        As in :meth:`AmortizedPosterior.sample`.
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
    model = model_of(model)
    draws, chains = check_integer("draws", draws), check_integer("chains", chains)
    check_correction_name(correction)
    read_nuts_budget(max_nuts, max_time, correction)
    options = read_result_options(idata_kwargs)
    check_dtype(dtype)
    read_names(var_names, [v.name for v in (*model.free_RVs, *model.deterministics)])
    context = read_mapping("context", context)
    fit_kwargs = _read_fit_kwargs(fit_kwargs)
    fit_seed, sample_seed = seed_sequence(random_seed).spawn(2)
    now = fingerprint(model, context, fit_kwargs)
    kept = _kept.get(model)
    changed = changes(kept.fingerprint, now) if kept else []
    if kept is None or changed:
        if changed:
            logger.info("Training again, because of changes in: %s.", ", ".join(changed))
        _check_current_data(model, context, fit_kwargs)
        if options.log_likelihood:
            refuse_without_density(model, [rv.name for rv in model.observed_RVs])
        posterior = fit_posterior(
            model,
            context=context,
            random_seed=fit_seed.generate_state(4).tolist(),
            progressbar=progressbar,
            compile_kwargs=compile_kwargs,
            **fit_kwargs,
        )
        _kept[model] = kept = _Kept(posterior, now)
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
        dtype=dtype,
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
    values = {v.name: value_of(model.rvs_to_values[model[v.name]]) for v in spec.observed}
    return values | {c.name: value_of(model[c.name]) for c in spec.context}
