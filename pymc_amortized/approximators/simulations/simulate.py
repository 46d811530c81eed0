"""Simulations for the user."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import check_integer, check_seconds, read_mapping
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.approximators.fitting.seeds import RandomState, entropy_of
from pymc_amortized.approximators.fitting.simulating import report_counts, report_drops
from pymc_amortized.approximators.storage.models import describe_model
from pymc_amortized.graph.data.simulations import concatenate
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.guarded import GuardedSimulator
from pymc_amortized.graph.simulation.parallel import run_tasks
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.ranks import writes_files
from pymc_amortized.results.writing import drop_counts, prior_tree
from pymc_amortized.stores.filling import fill
from pymc_amortized.stores.store import Manifest, Store

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
        simulation_timeout = check_seconds("simulation_timeout", simulation_timeout)
        kind = partial(GuardedSimulator, timeout=simulation_timeout)
    simulator = kind(spec, context=ContextSampler(spec, sources, gaps), compile_kwargs=compile_kwargs)
    manifest = Manifest("simulations", "draw", draws, chunk, entropy_of(random_seed))
    if store is None:
        tasks = [(at.stop - at.start, manifest.seed(k)) for k, at in enumerate(manifest.chunks)]
        made = concatenate(run_tasks(simulator, "__call__", tasks, cores, client))
        report_drops(made, because=", which truncates the prior")
        return prior_tree(spec, made)
    manifest = replace(manifest, about=describe_model(spec.jointly(), sources, gaps, simulation_timeout))
    how: dict[str, Any] = {"cores": cores, "client": client, "progressbar": progressbar}
    return simulate_to_store(simulator, store, manifest, any_seed=random_seed is None, **how).tree()


def simulate_to_store(
    simulator: Simulator,
    path: str | PathLike[str],
    manifest: Manifest,
    *,
    any_seed: bool = False,
    cores: int = 1,
    client: Any = None,
    progressbar: bool = True,
) -> Store:
    """Make what a manifest says, or what is missing of it; :func:`simulate` says how."""
    store, labels = Store.at(path, manifest, any_seed=any_seed), {"draw": np.arange(manifest.number)}
    fill(store, _Made(simulator), labels, "Simulating", cores=cores, client=client, progressbar=progressbar)
    if writes_files():
        attempted, dropped = store.totals()
        report_counts(attempted, dropped, because=", which truncates the prior")
        store.add_attributes("prior", drop_counts(attempted, dropped))
    return store


@dataclass(frozen=True)
class _Made:
    """Makes chunks of simulations."""

    simulator: Simulator

    def make(self, manifest: Manifest, k: int) -> tuple[xr.DataTree, dict[str, Any]]:
        at = manifest.chunks[k]
        made = self.simulator(at.stop - at.start, manifest.seed(k))
        return prior_tree(self.simulator.spec, made), {"attempted": made.attempted, "dropped": made.dropped}
