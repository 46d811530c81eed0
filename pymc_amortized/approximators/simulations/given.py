"""Simulations of the user's, in memory or in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

from pymc_amortized.approximators.fitting.simulating import report_counts
from pymc_amortized.approximators.storage.models import describe_model
from pymc_amortized.graph.data.arrays import arrange
from pymc_amortized.graph.data.datasets import DATASET_DIM
from pymc_amortized.graph.data.groups import dims_of_groups
from pymc_amortized.graph.data.reading import read_datasets
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import Unconstrain
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.stores.differences import differences, say_differences
from pymc_amortized.stores.store import Store

PILOT = 8192
"""Simulations of a store that are read into memory, at most."""
FEWEST_USABLE = 20
"""With fewer simulations nothing can be held out."""


BLOCK_VALUES = 2**24
"""Of simulations that are read together: 128 MiB."""
IN_MEMORY = 2**27
"""Values of simulations that are held in memory: 1 GiB. More stay on disk."""


@dataclass(frozen=True)
class StoredSimulations:
    """Simulations in a store, of which some are read at a time.

    Attributes
    ----------
    store : Store
    spec : ModelSpec
    compile_kwargs : mapping or None
    """

    store: Store
    spec: ModelSpec
    compile_kwargs: CompileKwargs | None = None

    def __len__(self) -> int:
        return self.store.manifest.number

    @cached_property
    def pilot(self) -> Simulations:
        """The first ones: of them statistics are learned, and some judge the weights; none is trained on."""
        return self.read(slice(min(PILOT, len(self) // 5)))

    def training(self, extra: Callable[[Simulations], np.ndarray] | None) -> Iterator[Simulations]:
        """Read the others in blocks of nearly one size, with what a function tells of them."""
        number = max((len(self) - len(self.pilot)) * self.spec.values // BLOCK_VALUES, 1)
        edges = np.linspace(len(self.pilot), len(self), number + 1).astype(int).tolist()
        for first, last in pairwise(edges):
            made = self.read(slice(first, last), fewest=1)
            yield made if extra is None else replace(made, extra=extra(made))

    @property
    def beside(self) -> str | None:
        """Path of the store, if it is on this machine."""
        return None if "://" in self.store.path else self.store.path

    def read(self, at: slice, *, fewest: int = FEWEST_USABLE) -> Simulations:
        """Read some of the simulations, of which so many have to be usable."""
        tree = self.store.tree(by_dask=False)
        self._check_shapes(tree)
        given = xr.DataTree.from_dict(self.store.read(at))
        return read_simulations(self.spec, given, self.compile_kwargs, fewest=fewest)

    def _check_shapes(self, tree: xr.DataTree) -> None:
        """Refuse arrays that are not the model's before memory is taken for them."""
        lengths = self.spec.largest
        shapes = {("prior", p.name): p.shape for p in self.spec.parameters}
        shapes |= {("prior_predictive", v.name): v.shape_at(lengths) for v in self.spec.observed}
        shapes |= {("prior_context", c.name): c.shape_at(lengths) for c in self.spec.context}
        for (group, name), shape in shapes.items():
            array = tree[group].get(name) if group in tree.children else None
            found = None if array is None else array.shape
            if array is None or found != (1, len(self), *shape) or array.dtype.kind not in "biuf":
                raise ValueError(
                    f"simulations: {self.store.path!r} is damaged: {group}[{name!r}] has shape {found}, not "
                    f"{(1, len(self), *shape)}"
                )


def read_given(
    simulations: Any,
    spec: ModelSpec,
    sources: Mapping[str, Any],
    compile_kwargs: CompileKwargs | None,
    gaps: Mapping[str, Any] | None = None,
) -> Simulations | StoredSimulations:
    """Take a user's simulations: a DataTree, or the path of a store, which stays on disk where it is large.

    Raises
    ------
    TypeError, KeyError, ValueError, FileNotFoundError
        When they are not simulations of the model, or there are not all of them.
    """
    if not isinstance(simulations, str | PathLike):
        return read_simulations(spec, simulations, compile_kwargs)
    store = Store.open(simulations)
    if store.manifest.kind != "simulations":
        raise ValueError(f"simulations: {store.path!r} holds {store.manifest.kind}")
    timeout = store.manifest.about.get("simulation_timeout")
    if differ := differences(store.manifest.about, describe_model(spec.jointly(), sources, gaps, timeout)):
        raise ValueError(
            f"simulations: {store.path!r} is of another model, or of other sources of context and gaps "
            f"({say_differences(differ)})"
        )
    if missing := store.missing():
        raise ValueError(
            f"simulations: {store.path!r} lacks {len(missing)} of {len(store.manifest.chunks)} chunks: call simulate "
            "with store= again to make them"
        )
    attempted, dropped = store.totals()
    report_counts(attempted, dropped, of=f" for {store.path}", because=", which truncates the prior")
    stored = StoredSimulations(store, spec, compile_kwargs)
    return stored if len(stored) * spec.values > IN_MEMORY else stored.read(slice(None))


def read_simulations(
    spec: ModelSpec, tree: xr.DataTree, compile_kwargs: CompileKwargs | None = None, *, fewest: int = FEWEST_USABLE
) -> Simulations:
    """Take a user's simulations.

    Parameters
    ----------
    tree : xarray.DataTree
        Groups ``prior`` (every free variable), ``prior_predictive`` (every observed one) and, for context
        variables, ``prior_context``.
    fewest : int
        Of them, so many have to be usable.

    Raises
    ------
    TypeError, KeyError, ValueError
        When a group or variable is missing, or a value does not fit the model.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"simulations must be a DataTree, got {type(tree).__name__}")
    learned = spec.drawn if spec.density_obstacle is not None else spec.parameters
    free = _group(tree, "prior", [p.name for p in learned])
    data = _group(tree, "prior_predictive", [v.name for v in spec.observed])
    if spec.context:
        data |= _group(tree, "prior_context", [v.name for v in spec.context])
        told = tree["prior_context"].to_dataset()
        data |= {dim: _stacked(told[f"{dim}_length"]) for dim in dims_of_groups(spec) if f"{dim}_length" in told}
    datasets = read_datasets(spec, data, batched=True)
    variables = {}
    for p in learned:
        variables[p.name], shape = arrange(spec, p, free[p.name]), p.at(spec.largest).shape
        if variables[p.name].shape != (len(datasets), *shape):
            raise ValueError(
                f"simulations: prior[{p.name!r}] has shape {variables[p.name].shape[1:]} for each of "
                f"{len(variables[p.name])} draws; expected {shape} for each of {len(datasets)}"
            )
    context = {c.name: datasets.values[c.name] for c in spec.context}
    theta = Unconstrain(replace(spec, locals=()), compile_kwargs)({**variables, **context})
    usable = np.isfinite(theta).all(axis=1)
    if usable.sum() < fewest:
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
