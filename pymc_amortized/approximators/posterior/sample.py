"""Sampling a trained posterior: arguments and data are read, draws are made, doubts gathered, all written as a tree."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

import numpy as np
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import (
    Correction,
    ResultOptions,
    check_correction,
    check_dtype,
    check_integer,
    read_names,
    read_nuts_budget,
    read_result_options,
    read_statistics,
)
from pymc_amortized.approximators.fitting.fingerprint import digest
from pymc_amortized.approximators.fitting.seeds import RandomState, entropy_of, seed_sequence
from pymc_amortized.approximators.posterior.predictions.predictive import Kind
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.correction.budget import Budget
from pymc_amortized.correction.check_results import (
    check_calibrated,
    check_corrected,
    check_gaps,
    check_novelty,
    check_range,
    check_unlike,
)
from pymc_amortized.correction.doubt import Doubt, join_doubts, short_doubts, tell
from pymc_amortized.correction.draws import Draws, Request, sample_stats
from pymc_amortized.correction.groups import draw_groups
from pymc_amortized.correction.ladder import LADDERS, draw_corrected
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets
from pymc_amortized.graph.data.labels import dim_of_datasets
from pymc_amortized.graph.data.reading import read_given
from pymc_amortized.graph.density.marginal import MarginalDensity
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.logs import logger, quiet, show_progress, working
from pymc_amortized.ranks import writes_files
from pymc_amortized.results.storing import even, reduce_draws, thin_draws
from pymc_amortized.results.unpacking import is_batched, read_draws
from pymc_amortized.results.writing import posterior_tree
from pymc_amortized.stores.filling import fill, loaded
from pymc_amortized.stores.seals import naming
from pymc_amortized.stores.store import Manifest, Store

MOST_OF_CHUNK, LARGEST_CHUNK = 5_000_000, 256
"""Numbers drawn for a chunk of a store, and data sets in it, at most."""
MOST_LABELS = 100
"""Of data sets, in what a store says of doubt about them."""
OF_A_CALL = ("sampling_time", "doubts")
"""Attributes of a result that say nothing of other chunks."""
MOST_BYTES = 2**28
"""That deterministics along the data may take in the result of a batch, unless they are asked for."""


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
    dtype: str = "float64",
) -> xr.DataTree:
    """Draw from the posterior of one data set, or of many; :meth:`AmortizedPosterior.sample` says how."""
    started = time.perf_counter()
    compiled = posterior.compiled
    draws, chains = check_integer("draws", draws), check_integer("chains", chains)
    names = read_names(var_names, compiled.constrain.names)
    options, dtype = read_result_options(idata_kwargs), check_dtype(dtype)
    correct = check_correction(posterior.weighed_by, correction)
    datasets = posterior.read(observed, batched)
    most, seconds = read_nuts_budget(max_nuts, max_time, correction)
    show_progress(progressbar)
    request = Request(draws, chains, most, Budget(seconds, progressbar, whole=max_time != "auto", kept=correct))
    many = f"{len(datasets):,} data sets" if datasets.batched else "the data"
    with working(f"Sketching the posterior of {many}"):
        datasets = posterior.inputs.sketched(datasets)
    ood = posterior.ood_pvalues(datasets)
    told = check_unlike(_check_data(posterior, datasets), ood, datasets.labels)
    tell(told, posterior.spec)  # before NUTS works for an hour on data in other units
    ladder, seed = LADDERS[correction if correct else None], seed_sequence(random_seed)
    results, doubts = draw_corrected(posterior.target(datasets), ladder, request, seed)
    if correct:
        doubts += check_calibrated(posterior.provenance.off)
    if correction == "auto" and not correct:
        doubts += check_corrected([posterior.weighed_by.density_obstacle] * len(datasets), datasets.labels)

    if var_names is None and datasets.batched:
        names = _shown_by_default(posterior, names, datasets, results)
    computed = [p.name for p in posterior.spec.parameters] if options.groups else []
    with working("Laying out the result"):
        variables = compiled.variables(datasets, results, list(dict.fromkeys([*names, *computed])), seed.spawn(1)[0])
    kept = not datasets.batched if options.proposal_log_weight is None else options.proposal_log_weight
    attrs = {"sampling_time": time.perf_counter() - started, "correction": correction if correct else "none"}
    attrs |= (posterior.marks if correct else {}) | tell(doubts, posterior.spec, told)
    tree = posterior_tree(
        posterior.spec,
        datasets,
        variables=variables,
        sample_stats=sample_stats(results, weights=kept) | {"ood_pvalue": ([], ood)},
        attrs=attrs | posterior.provenance.attributes(),
    )
    return _with_groups(posterior, tree, options, names, dtype)


@dataclass(frozen=True)
class _Sampled:
    """Makes chunks of results; other processes receive it once."""

    posterior: TrainedPosterior
    observed: DataSets | xr.Dataset
    options: Mapping[str, Any]
    thin: int
    statistics: tuple[str, ...]

    def make(self, manifest: Manifest, k: int) -> tuple[xr.DataTree, dict[str, Any]]:
        at, spec = manifest.chunks[k], self.posterior.spec
        if isinstance(self.observed, DataSets):
            some: Any = self.observed.take(np.arange(at.start, at.stop))
        else:
            some = loaded(self.observed.isel({DATASET_DIM: at}))
        with quiet():
            rng = np.random.default_rng(manifest.seed(k))
            tree = sample(self.posterior, some, batched=True, random_seed=rng, progressbar=False, **self.options)
        stages, each = np.unique(tree["sample_stats"]["stage"], return_counts=True)
        doubts = short_doubts(json.loads(tree["sample_stats"].attrs["doubts"]))
        tree = reduce_draws(tree, self.statistics) if self.statistics else thin_draws(tree, self.thin)
        tree = even(tree, spec.largest, [v.name for v in spec.observed if v.missing or v.sized])
        for group in tree.children.values():
            group.attrs = {name: value for name, value in group.attrs.items() if name not in OF_A_CALL}
        return tree, {"stages": dict(zip(stages.tolist(), each.tolist(), strict=True)), "doubts": doubts}


def sample_to_store(
    posterior: TrainedPosterior,
    observed: Any,
    path: str | PathLike[str],
    *,
    thin: int,
    reduce: str | None,
    cores: int,
    client: Any,
    random_seed: RandomState,
    progressbar: bool,
    **options: Any,
) -> xr.DataTree:
    """Draw from the posteriors of many data sets, into a store; :meth:`AmortizedPosterior.sample` says how."""
    thin, statistics, cores = check_integer("thin", thin), read_statistics(reduce), check_integer("cores", cores)
    options |= {name: check_integer(name, options[name]) for name in ("draws", "chains")}
    options |= {name: v.item() for name, v in options.items() if isinstance(v, np.generic)}
    options["dtype"] = check_dtype(options["dtype"])
    draws, chains, asked = options["draws"], options["chains"], options["var_names"]
    check_correction(posterior.weighed_by, options["correction"])
    read_nuts_budget(options["max_nuts"], options["max_time"], options["correction"])
    results = read_result_options(options["idata_kwargs"])
    options["idata_kwargs"] = {name: bool(v) for name, v in (options["idata_kwargs"] or {}).items()} or None
    names = read_names(asked, posterior.compiled.constrain.names)
    if statistics and thin > 1:
        raise ValueError("thin and reduce exclude each other: all draws are reduced")
    if statistics and results.groups:
        raise ValueError(
            f"reduce keeps no draws, and {list(results.groups)} would be of each draw: leave one of them out"
        )
    with working("Reading the data"):
        data, labels = _checked(posterior, observed)
    number = len(labels)
    chunk = min(max(MOST_OF_CHUNK // (draws * chains * posterior.spec.dim), 1), LARGEST_CHUNK)
    if asked is None:
        names = _shown_of_store(posterior, names, min(chunk, number) * draws * chains)
    options["var_names"] = names
    maker = _Sampled(posterior, data, options, thin, statistics)
    about = {name: value for name, value in options.items() if value is not None} | {"thin": thin, "reduce": reduce}
    weights = {name: tensor.cpu().numpy() for name, tensor in posterior.network.state_dict().items()}
    about |= {"trained weights": digest(weights), "observed": digest(data)}
    manifest = Manifest("posteriors", DATASET_DIM, number, chunk, entropy_of(random_seed), about)
    store = Store.at(path, manifest, any_seed=random_seed is None)
    title = "Sampling posteriors"
    fill(store, maker, {DATASET_DIM: labels}, title, cores=cores, client=client, progressbar=progressbar)
    notes, tree = store.notes().values(), store.tree()
    stages = sum((Counter(note["stages"]) for note in notes), Counter[str]())
    doubts = join_doubts([doubt for note in notes for doubt in note["doubts"]], number)
    with naming(store.path):
        doubts += check_novelty(tree["sample_stats"]["ood_pvalue"].to_numpy(), labels)
    told = tell([replace(doubt, datasets=doubt.datasets[:MOST_LABELS]) for doubt in doubts], posterior.spec)
    if writes_files():
        store.add_attributes("sample_stats", told | {f"stage {name}": n for name, n in stages.items()})
    if bad := stages["failed"] + stages["not reached"]:
        logger.warning(
            "%d of %d data sets have draws that should not be used: sample_stats['stage'] is 'failed' (%d) or "
            "'not reached' (%d) there. Leave them out, or sample them again with more time (max_time=).",
            *(bad, number, stages["failed"], stages["not reached"]),
        )
    return store.tree()


def _checked(posterior: TrainedPosterior, observed: Any) -> tuple[DataSets | xr.Dataset, np.ndarray]:
    """Read all data sets before anything is written: of a Dataset a part at a time, and it stays where it is.

    Returns
    -------
    DataSets or xarray.Dataset
    ndarray
        Labels of the data sets.
    """
    dims: set[str | None] = set()
    if isinstance(observed, xr.Dataset):
        names = [next((n for n in (v.name, v.container) if n in observed), None) for v in posterior.spec.data]
        pairs = zip(posterior.spec.data, names, strict=True)
        dims = {dim_of_datasets(v, observed[name]) for v, name in pairs if name is not None} - {None}
    if len(dims) != 1:
        read = posterior.read(observed, True)
        return read, read.labels
    data = observed.rename({dim: DATASET_DIM for dim in dims if dim != DATASET_DIM})
    number = data.sizes[DATASET_DIM]
    if DATASET_DIM not in data.coords:
        data = data.assign_coords({DATASET_DIM: np.arange(number)})
    for first in range(0, number, LARGEST_CHUNK):
        _check_part(posterior, loaded(data.isel({DATASET_DIM: slice(first, first + LARGEST_CHUNK)})))
    return data, data[DATASET_DIM].to_numpy()


def _check_part(posterior: TrainedPosterior, data: xr.Dataset) -> None:
    """Refuse data sets that cannot be read, and say which is the first one."""
    try:
        posterior.read(data, True)
    except ValueError:
        for i, label in enumerate(data[DATASET_DIM].to_numpy()):
            try:
                posterior.read(data.isel({DATASET_DIM: slice(i, i + 1)}), True)
            except ValueError as error:
                raise ValueError(f"data set {label}: {error}") from None
        raise


def sample_groups(
    posterior: TrainedPosterior,
    tree: xr.DataTree,
    observed: Mapping[str, Any] | xr.Dataset,
    *,
    var_names: Sequence[str] | None,
    random_seed: RandomState,
) -> xr.DataTree:
    """Draw values of further groups given the parameters; :meth:`AmortizedPosterior.sample_groups` says how."""
    compiled, spec = posterior.compiled, posterior.spec
    names = read_names(var_names, compiled.constrain.names)
    if not spec.locals:
        raise ValueError("sample_groups: this posterior integrates no values of groups out; sample draws them all")
    if is_batched(tree):
        raise ValueError("sample_groups: the result is of several data sets: pass posterior.one_dataset(tree, label)")
    datasets = read_given(spec.of_any_length(), compiled.limits, observed)
    if not compiled.groups and (obstacle := compiled.obstacles(datasets)[0]):
        raise ValueError(f"sample_groups: {obstacle}")
    before = tree["posterior"].coords
    for dim in {d for p in spec.locals for d in p.sized if d and d in datasets.coords and d in before}:
        if known := sorted({*map(str, datasets.coords[dim])} & {*map(str, before[dim].to_numpy())}):
            raise ValueError(
                f"sample_groups: {dim!r}: {known[:5]} are in the result, and would be drawn anew, without the data "
                "that they had: sample old and new groups together, or give new groups labels of their own"
            )
    given, data = read_draws(replace(spec, locals=()), tree), datasets.one(spec, 0)
    lead = next(iter(given.values())).shape[1:3]
    flat = {name: values.reshape(-1, *values.shape[3:]) for name, values in given.items()}
    flat |= {c.name: np.broadcast_to(data[c.name], (lead[0] * lead[1], *data[c.name].shape)) for c in spec.context}
    theta = compiled.unconstrain(flat)
    stats: dict[str, Any] = {}
    if not compiled.groups:
        density = compiled.log_density
        assert isinstance(density, MarginalDensity)
        found = draw_groups(density, data, theta.reshape(*lead, -1), seed_sequence(random_seed))
        full = np.concatenate([theta, found.values.reshape(len(theta), -1)], axis=1)
        doubts = [] if found.failure is None else [Doubt("weights", f"{found.failure.reason}: {found.failure.details}")]
        stats = {"pareto_k_of_groups": ([], np.array([found.pareto_k]))}
    else:
        full = compiled.with_locals(theta, data, np.random.default_rng(seed_sequence(random_seed)))
        doubts = check_corrected([spec.density_obstacle], datasets.labels)
    values = compiled.constrain(full, data)
    return posterior_tree(
        spec,
        datasets,
        variables={name: values[name].reshape(1, *lead, *values[name].shape[1:]) for name in names},
        sample_stats=stats,
        attrs=tell(doubts, spec) | posterior.provenance.attributes(),
    )


def _shown_by_default(
    posterior: TrainedPosterior, names: list[str], datasets: DataSets, results: Sequence[Draws]
) -> list[str]:
    """Variables that the result of a batch holds where the user has not chosen, by one draw for the longest of all."""
    longest = int(np.argmax(sum(datasets.lengths.values(), np.zeros(len(datasets)))))
    data = datasets.one(posterior.spec, longest)
    compiled = posterior.compiled
    full = compiled.with_locals(results[longest].theta[0, :1], data, np.random.default_rng(0))
    one = compiled.constrain(full, data)
    return _without_large(posterior.spec, names, one, data, len(results) * results[0].log_q.size)


def _shown_of_store(posterior: TrainedPosterior, names: list[str], number: int) -> list[str]:
    """Variables that a store holds where the user has not chosen: by shapes at the largest lengths, for all chunks."""
    spec, lengths = posterior.spec, posterior.spec.largest
    zeros = {v.name: np.zeros(v.shape_at(lengths), v.dtype) for v in spec.data}
    largest: dict[str, Any] = spec.unchanging_values | lengths | zeros
    one = posterior.compiled.constrain(np.zeros((1, spec.jointly().at(lengths).dim)), largest)
    return _without_large(spec, names, one, largest, number)


def _without_large(
    spec: ModelSpec, names: list[str], one: Mapping[str, np.ndarray], data: Mapping[str, Any], number: int
) -> list[str]:
    """Leave out deterministics that are as long as the data, where so many draws, like the one given, are large."""
    along = {dim for v in spec.data for dim in v.dims if dim}
    shapes = {np.shape(data[v.name]) for v in spec.data}
    large = {}
    for name in (name for name in names if name in spec.deterministics):
        dims, shape = spec.model.named_vars_to_dims.get(name), one[name].shape[1:]
        if shape and (along.intersection(dims or ()) or (not dims and shape in shapes)):
            large[name] = one[name].nbytes * number
    if sum(large.values()) <= MOST_BYTES:
        return names
    logger.info(
        "Left out of the result: %s, which would take %.1f GB; var_names=%s brings all.",
        ", ".join(sorted(large)),
        sum(large.values()) / 1e9,
        names,
    )
    return [name for name in names if name not in large]


def _check_data(posterior: TrainedPosterior, datasets: DataSets) -> list[Doubt]:
    """Find data sets that the network extrapolates to."""
    encoder, context = posterior.network.encoder, [c.name for c in posterior.spec.context]
    outside = encoder.outside(**posterior.inputs(datasets))
    found = check_range(outside, datasets.labels, context)
    return found + check_gaps(posterior.spec, datasets, posterior.missing or {})


def _with_groups(
    posterior: TrainedPosterior, tree: xr.DataTree, options: ResultOptions, names: list[str], dtype: str
) -> xr.DataTree:
    """Add log densities, which read every free variable; then leave what was asked for."""
    kinds: dict[str, Kind] = {"log_likelihood": "likelihood", "log_prior": "prior"}
    for group in options.groups:
        posterior.compiled.predictions.log_density(tree, kinds[group], var_names=None, extend_inferencedata=True)
    if options.groups:
        tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset()[names])
    if dtype != "float64":
        for group in ("posterior", "sample_stats"):
            held = tree[group].to_dataset()
            real = {n: v.astype(dtype) for n, v in held.data_vars.items() if v.dtype.kind == "f" and "draw" in v.dims}
            tree[group] = xr.DataTree(held.assign(real))
    return tree
