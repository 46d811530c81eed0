"""Data sets of which the parameters are known, and what a posterior says about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import Correction, check_integer
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.simulations.given import read_simulations
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.sizes import Range
from pymc_amortized.logs import quiet


def simulate_known(
    posterior: AmortizedPosterior,
    number: int,
    seed: np.random.SeedSequence,
    *,
    lengths: Mapping[str, int] | None = None,
    simulations: xr.DataTree | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
) -> Simulations:
    """Simulate data sets as training did, or take the user's.

    Parameters
    ----------
    posterior : AmortizedPosterior
    number : int
        Data sets wanted; of the user's, at most so many are taken.
    seed : numpy.random.SeedSequence
    lengths : mapping of dim to int, optional
        One size for all of them.
    simulations : xarray.DataTree, optional
        The user's, as in :func:`fit_posterior`.
    context, missing : mapping, optional
        Sources, for posteriors that were read from a file.

    Raises
    ------
    ValueError, KeyError, TypeError
        When an argument does not fit the model, or simulations are not draws of the posterior's model.
    """
    spec = posterior.spec
    if spec.potentials:
        raise ValueError(
            f"the model's potentials {list(spec.potentials)} are no part of its simulations: calibration on these "
            "would be calibration for another model"
        )
    if simulations is not None:
        if lengths is not None:
            raise ValueError("lengths and simulations exclude each other")
        given = read_simulations(spec, simulations, posterior.compile_kwargs)
        return given.take(slice(number))
    default = context is None and missing is None
    simulator = posterior.simulator if default else posterior.simulator_of(context, missing)
    if lengths is None:
        return simulator(number, seed)
    lengths = read_lengths(spec.sizes, lengths)
    made_seed, gaps_seed = seed.spawn(2)
    made = simulator.of_lengths(number, made_seed, lengths)
    data = {name: values for name, values in made.data.items() if name not in lengths}
    each = {dim: np.full(len(made), length) for dim, length in lengths.items()}
    return replace(made, data=data, lengths=each, missing=simulator.context.gaps(len(made), gaps_seed, lengths))


def read_lengths(sizes: Iterable[Range], lengths: Mapping[str, int]) -> dict[str, int]:
    """Check the size that all data sets are to have: one length for each dim whose length differs, of its range."""
    ranges = {r.dim: r for r in sizes}
    if not isinstance(lengths, Mapping):
        raise TypeError(f"lengths must map dims to lengths, as in {{'obs': 50}}; got {lengths!r}")
    if set(lengths) != set(ranges):
        raise KeyError(f"lengths: {sorted(lengths)} given; the dims whose length differs are {sorted(ranges)}")
    for dim, length in lengths.items():
        check_integer(f"lengths[{dim!r}]", length)
        if not ranges[dim].smallest <= length <= ranges[dim].largest:
            raise ValueError(
                f"lengths[{dim!r}] is {length}; it was trained for {ranges[dim].smallest} to {ranges[dim].largest}"
            )
    return dict(lengths)


def sample_known(
    posterior: AmortizedPosterior,
    datasets: DataSets,
    draws: int,
    correction: Correction,
    names: Sequence[str],
    seed: np.random.SeedSequence,
    max_time: float | Literal["auto"] | None = "auto",
) -> xr.DataTree:
    """Draw for simulated data sets, as a user would, and without the warnings that every batch would repeat.

    Where no proposal for a data set is possible, a user is told so by an error. Here the network failed: its own draws
    are judged.
    """

    def sample(some: DataSets, how: Correction) -> xr.DataTree:
        return posterior.sample(
            cast(Any, some),  # checked: it was simulated
            draws=max(draws // 4, 1),
            chains=4,  # as by default: corrected draws are resampled within each
            batched=True,
            correction=how,
            max_time=max_time,
            var_names=names,
            random_seed=seed.generate_state(4).tolist(),
            progressbar=False,
        )

    with quiet():
        try:
            return sample(datasets, correction)
        except ValueError:
            if correction is None:
                raise
        if len(datasets) == 1:
            return sample(datasets, None)
    halves = [slice(0, len(datasets) // 2), slice(len(datasets) // 2, None)]
    trees = [
        sample_known(posterior, datasets.take(half), draws, correction, names, child, max_time)
        for half, child in zip(halves, seed.spawn(2), strict=True)
    ]
    return _joined(trees)


def _joined(trees: list[xr.DataTree]) -> xr.DataTree:
    """Put batches of data sets one after another."""

    def group(name: str) -> xr.Dataset:
        parts = [tree[name].to_dataset().drop_vars("proposal_log_weight", errors="ignore") for tree in trees]
        return xr.concat(
            parts, dim=DATASET_DIM, data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
        )

    return xr.DataTree.from_dict({name: group(name) for name in trees[0].children})
