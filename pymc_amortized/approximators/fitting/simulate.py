"""Simulations for the user, and simulations from the user."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import check_integer, check_seconds, read_mapping
from pymc_amortized.approximators.fitting.fingerprint import fingerprint
from pymc_amortized.approximators.fitting.seeds import RandomState, entropy_of
from pymc_amortized.approximators.storage.models import describe_model
from pymc_amortized.graph.data.simulations import concatenate
from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.suitability import check_names, refuse_imputed
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler, read_missing, split_context
from pymc_amortized.graph.simulation.guarded import GuardedSimulator
from pymc_amortized.graph.simulation.parallel import run_tasks
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.results.writing import check_layout, drop_counts, prior_tree
from pymc_amortized.stores.filling import fill
from pymc_amortized.stores.store import Manifest, Store

_Read = tuple[ModelSpec, dict[str, Any], dict[str, Any]]
_read: WeakKeyDictionary[pm.Model, tuple[dict[str, str], ModelSpec, dict[str, Any], dict[str, Any]]] = (
    WeakKeyDictionary()
)

CHUNK = 1000
"""Simulations that are written to a store together: of a simulator of 20 ms, what a process makes in 20 s."""


def simulate(
    model: pm.Model | None = None,
    draws: int = 500,
    *,
    observed: Sequence[str] | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    cores: int = 1,
    client: Any = None,
    store: str | PathLike[str] | None = None,
    chunk: int = CHUNK,
    simulation_timeout: float | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
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
    client : distributed.Client, optional
        A client of Dask: its workers simulate. The result does not depend on that either.
    store : path-like, optional
        A folder that simulations are written to in zarr's format, chunk by chunk: they may be larger than memory. After
        an interruption the same call goes on with the chunks that are missing; without a seed it takes the one that it
        began with.
    chunk : int
        Simulations that are made, and written, together. The result depends on it.
    simulation_timeout : float, optional
        Seconds after which a simulation that has not come to its end is dropped, and counted. Linux and macOS only.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.
    progressbar : bool
        Whether to show how much of a store is written.
    compile_kwargs : mapping, optional
        Passed to ``pymc.compile``.

    Returns
    -------
    xarray.DataTree
        Groups ``prior``, ``prior_predictive`` and ``constant_data``; with `context`, its values in ``prior_context``.
        The attributes of ``prior`` count what was attempted and dropped. Of a store, nothing is read before it is asked
        for.

    Raises
    ------
    ValueError, KeyError, TypeError
        When the model cannot be simulated, or a store holds something else; the message names it.

    Examples
    --------
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 2.0)
    ...     observed = pm.Normal("y", mu, 1.0, observed=[0.4, 1.9, 0.7, 1.2])
    >>> simulations = pma.simulate(model, 50, random_seed=1)
    >>> dict(simulations.prior_predictive["y"].sizes)["draw"]
    50
    """
    draws, cores, chunk = check_integer("draws", draws), check_integer("cores", cores), check_integer("chunk", chunk)
    context = read_mapping("context", context)
    spec, sources, gaps = read_model(model, observed, None, context, missing)
    kind: Callable[..., Simulator] = Simulator
    if simulation_timeout is not None:
        kind = partial(GuardedSimulator, timeout=check_seconds("simulation_timeout", simulation_timeout))
    simulator = kind(spec, context=ContextSampler(spec, sources, gaps), compile_kwargs=compile_kwargs)
    manifest = Manifest("simulations", "draw", draws, chunk, entropy_of(random_seed))
    if store is None:
        tasks = [(at.stop - at.start, manifest.seed(k)) for k, at in enumerate(manifest.chunks)]
        return prior_tree(spec, concatenate(run_tasks(simulator, "__call__", tasks, cores, client)))
    manifest = replace(manifest, about=describe_model(spec, sources))
    written = Store.at(store, manifest, any_seed=random_seed is None)
    labels = {"draw": np.arange(draws)}
    fill(written, _Made(simulator), labels, "Simulating", cores=cores, client=client, progressbar=progressbar)
    written.add_attributes("prior", drop_counts(*written.totals()))
    return written.tree()


@dataclass(frozen=True)
class _Made:
    """Makes chunks of simulations."""

    simulator: Simulator

    def make(self, manifest: Manifest, k: int) -> tuple[xr.DataTree, dict[str, Any]]:
        at = manifest.chunks[k]
        made = self.simulator(at.stop - at.start, manifest.seed(k))
        return prior_tree(self.simulator.spec, made), {"attempted": made.attempted, "dropped": made.dropped}


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
