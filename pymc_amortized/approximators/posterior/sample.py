"""Sampling a trained posterior: arguments and data are read, draws are made, doubts gathered, all written as a tree."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import xarray as xr

from pymc_amortized.approximators.fitting.arguments import (
    Correction,
    check_correction,
    check_integer,
    read_groups,
    read_names,
    read_nuts_budget,
)
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.predictive import Kind
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.correction.budget import Budget
from pymc_amortized.correction.check_results import (
    check_calibrated,
    check_corrected,
    check_gaps,
    check_range,
    check_unlike,
)
from pymc_amortized.correction.doubt import Doubt, tell
from pymc_amortized.correction.draws import Request, sample_stats
from pymc_amortized.correction.ladder import LADDERS, draw_corrected
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.results.writing import posterior_tree


def sample(
    posterior: TrainedPosterior,
    observed: Mapping[str, Any] | xr.Dataset | DataSets | None,
    *,
    draws: int,
    chains: int,
    batched: bool,
    correction: Correction,
    max_nuts: int | None,
    max_time: float | Literal["auto"] | None,
    var_names: Sequence[str] | None,
    random_seed: RandomState,
    idata_kwargs: Mapping[str, Any] | None,
    progressbar: bool,
) -> xr.DataTree:
    """Draw from the posterior of one data set, or of many; :meth:`AmortizedPosterior.sample` says how."""
    started = time.perf_counter()
    compiled = posterior.compiled
    draws, chains = check_integer("draws", draws), check_integer("chains", chains)
    names = read_names(var_names, compiled.constrain.names)
    groups = read_groups(idata_kwargs)
    correct = check_correction(posterior.weighed_by, correction)
    datasets = posterior.read(observed, batched)
    most, seconds = read_nuts_budget(max_nuts, max_time, correction)
    request = Request(draws, chains, most, Budget(seconds, progressbar))
    datasets = posterior.inputs.sketched(datasets)
    ood = posterior.ood_pvalues(datasets)
    told = check_unlike(_check_data(posterior, datasets), ood, datasets.labels)
    tell(told, posterior.spec)  # before NUTS works for an hour on data in other units
    results, doubts = draw_corrected(
        posterior.target(datasets),
        LADDERS[correction if correct else None],
        request,
        seed_sequence(random_seed),
    )
    if correct:
        doubts += check_calibrated(posterior.provenance.off)
    if correction == "auto" and not correct:
        doubts += check_corrected([posterior.weighed_by.density_obstacle] * len(datasets), datasets.labels)

    computed = compiled.constrain.names if any(groups.values()) else names
    variables = compiled.variables(datasets, results, computed)
    attrs = {"sampling_time": time.perf_counter() - started, "correction": correction if correct else "none"}
    attrs |= (posterior.marks if correct else {}) | tell(doubts, posterior.spec, told)
    tree = posterior_tree(
        posterior.spec,
        datasets,
        variables=variables,
        sample_stats=sample_stats(results) | {"ood_pvalue": ([], ood)},
        attrs=attrs | posterior.provenance.attributes(),
    )
    return _with_groups(posterior, tree, groups, names)


def _check_data(posterior: TrainedPosterior, datasets: DataSets) -> list[Doubt]:
    """Find data sets that the network extrapolates to."""
    encoder, context = posterior.network.encoder, [c.name for c in posterior.spec.context]
    outside = encoder.outside(**posterior.inputs(datasets))
    found = check_range(outside, datasets.labels, context)
    return found + check_gaps(posterior.spec, datasets, posterior.missing or {})


def _with_groups(
    posterior: TrainedPosterior, tree: xr.DataTree, groups: Mapping[str, bool], names: list[str]
) -> xr.DataTree:
    """Add log densities, which read every free variable; then leave what was asked for."""
    if not any(groups.values()):
        return tree
    kinds: dict[str, Kind] = {"log_likelihood": "likelihood", "log_prior": "prior"}
    for group in (name for name, wanted in groups.items() if wanted):
        posterior.compiled.predictions.log_density(tree, kinds[group], var_names=None, extend_inferencedata=True)
    tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset()[names])
    return tree
