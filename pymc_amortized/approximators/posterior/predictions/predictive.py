"""Posterior predictive draws and pointwise log densities, for one data set or thousands.

What PyMC does for one data set after another, compiling and looping over draws in Python, is here one compiled function
for all data sets, with the loop over draws inside. Groups are laid out, and trees extended, as PyMC does.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pymc as pm
import xarray as xr
from pymc.distributions.simulator import SimulatorRV

from pymc_amortized.approximators.fitting.arguments import read_names
from pymc_amortized.approximators.posterior.predictions.gaps_in_terms import GapsInTerms
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.data.groups import known_groups
from pymc_amortized.graph.data.reading import read_context
from pymc_amortized.graph.density.given import (
    LogDensityGiven,
    Predictive,
    PredictiveOfNewGroups,
    Redrawn,
    read_from_observed,
)
from pymc_amortized.graph.density.given import known as known_entries
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.density.missing_given import MissingGiven
from pymc_amortized.graph.model.operations import core_op, has_density
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.results.unpacking import read_draws, read_result
from pymc_amortized.results.writing import constant_data, sample_group

Kind = Literal["likelihood", "prior"]


class Predictions:
    """Compiled functions of a model's predictions and log densities, kept between calls.

    Parameters
    ----------
    spec : ModelSpec
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    weighed_by : ModelSpec, optional
        The same model with the densities to use; its own by default.
    gaps : mapping of name to rule, optional
        How missing values are integrated out.
    """

    def __init__(
        self,
        spec: ModelSpec,
        compile_kwargs: CompileKwargs | None = None,
        weighed_by: ModelSpec | None = None,
        gaps: Mapping[str, Rule | None] | None = None,
    ) -> None:
        self.spec, self._compile_kwargs = spec, compile_kwargs
        self._weighed_by, self._gaps = weighed_by or spec, gaps or {}
        self._kept: dict[tuple[type, tuple[str, ...]], Any] = {}

    def sample(
        self,
        tree: xr.DataTree,
        *,
        var_names: Sequence[str] | None,
        seed: np.random.SeedSequence,
        extend_inferencedata: bool,
        context: Any = None,
        predictions: bool = False,
    ) -> xr.DataTree:
        """See :meth:`AmortizedPosterior.sample_posterior_predictive`."""
        self._refuse_marginal("predictions")
        observed = [v.name for v in self.spec.observed]
        default = observed + read_from_observed(self.spec)
        names = read_names(var_names, list(dict.fromkeys([*default, *self.spec.deterministics])))
        names = default if var_names is None else names
        known, draws = read_result(self.spec, tree), read_draws(self.spec, tree)
        datasets = known
        if predictions and context is not None:
            datasets = read_context(self.spec, context, known)
        elif context is not None:
            raise ValueError("context: values at other covariates are predictions, so add predictions=True")
        places = [known_groups(self.spec, known, datasets, i) for i in range(len(datasets))]
        new = any((place < 0).any() for of_one in places for place in of_one.values())
        function = self._function(PredictiveOfNewGroups if new else Predictive, names)
        seeds = seed.spawn(len(datasets))

        def predict(index: int, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            masks = {known_entries(dim): place >= 0 for dim, place in places[index].items()}
            return function(given, datasets.one(self.spec, index) | masks, seeds[index])

        arrays = _of_all(predict, draws, self.spec, datasets, places)
        groups = {"predictions" if predictions else "posterior_predictive": sample_group(self.spec, arrays, datasets)}
        if predictions:
            constants = constant_data(self.spec, datasets)
            groups |= {} if constants is None else {"predictions_constant_data": constants}
        if not extend_inferencedata:
            kept = () if predictions else ("observed_data", "constant_data")
            groups |= {name: tree[name].to_dataset() for name in kept if name in tree}
            return xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
        if taken := [name for name in groups if name in tree.children]:
            warnings.warn(
                f"the group {taken[0]} exists and is overwritten; extend_inferencedata=False avoids this",
                UserWarning,
                stacklevel=3,
            )
        tree.update({name: xr.DataTree(group) for name, group in groups.items()})
        return tree

    def redrawn(
        self, tree: xr.DataTree, names: Sequence[str], anew: Collection[str], seed: np.random.SeedSequence
    ) -> xr.Dataset:
        """Draw variables as they are where some free ones come from their prior, given the others of a result."""
        self._refuse_marginal("draws from the prior")
        datasets, draws = read_result(self.spec, tree), read_draws(self.spec, tree)
        function, seeds = Redrawn(self.spec, names, anew, self._compile_kwargs), seed.spawn(len(datasets))

        def draw(index: int, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return function(given, datasets.one(self.spec, index), seeds[index])

        return sample_group(self.spec, _of_all(draw, draws, self.spec, datasets), datasets)

    def missing(
        self,
        tree: xr.DataTree,
        *,
        var_names: Sequence[str] | None,
        seed: np.random.SeedSequence,
        extend_inferencedata: bool,
    ) -> xr.DataTree | xr.Dataset:
        """See :meth:`AmortizedPosterior.sample_missing`."""
        self._refuse_marginal("missing values")
        datasets, draws = read_result(self.spec, tree), read_draws(self.spec, tree)
        gappy = [name for name, mask in datasets.missing.items() if mask.any()]
        names = read_names(var_names, gappy) or gappy
        if not gappy:
            raise ValueError("no value of the result's data is missing")
        given = MissingGiven(self._weighed_by, self._gaps, names, self._compile_kwargs)
        seeds = seed.spawn(len(datasets))

        def complete(index: int, variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            try:
                return given(variables, datasets.one(self.spec, index), seeds[index])
            except ValueError as error:
                raise ValueError(f"data set {datasets.labels[index]}: {error}") from None

        group = sample_group(self.spec, _of_all(complete, draws, self.spec, datasets), datasets)
        if not extend_inferencedata:
            return group
        tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset().assign(group.data_vars))
        return tree

    def log_density(
        self, tree: xr.DataTree, kind: Kind, *, var_names: Sequence[str] | None, extend_inferencedata: bool
    ) -> xr.DataTree | xr.Dataset:
        """See :meth:`AmortizedPosterior.compute_log_likelihood`; likewise of free variables given their parents."""
        self._refuse_marginal("log densities")
        variables = self.spec.observed if kind == "likelihood" else self.spec.drawn
        names = read_names(var_names, [v.name for v in variables])
        model = self._weighed_by.model
        refuse_without_density(model, names)
        datasets, draws = read_result(self.spec, tree), read_draws(self.spec, tree)
        function = self._function(LogDensityGiven, names)

        gaps = GapsInTerms(self.spec, datasets)

        def evaluate(index: int, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return gaps.terms(function, index, given)

        arrays = _of_all(evaluate, draws, self.spec, datasets)
        if kind == "likelihood":
            gaps.tell()
        group = sample_group(self.spec, arrays, datasets)
        if not extend_inferencedata:
            return group
        tree[f"log_{kind}"] = xr.DataTree(group)
        return tree

    def _function[F: Predictive | LogDensityGiven](self, kind: type[F], names: Sequence[str]) -> F:
        key = (kind, tuple(names))
        if key not in self._kept:
            spec = self._weighed_by if issubclass(kind, LogDensityGiven) else self.spec
            self._kept[key] = kind(spec, names, self._compile_kwargs)
        return self._kept[key]

    def _refuse_marginal(self, what: str) -> None:
        if self.spec.nuisance:
            hidden = [p.name for p in self.spec.nuisance]
            raise ValueError(f"{what} need every free variable, but this posterior leaves out {hidden}")


def _of_all(
    function: Callable[[int, Mapping[str, np.ndarray]], dict[str, np.ndarray]],
    draws: Mapping[str, np.ndarray],
    spec: ModelSpec,
    datasets: DataSets,
    places: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """Call a function of draws (n, *shape) for every data set; returns name -> (datasets, chains, draws, ...).

    Along some dims, draws may be taken from other places of those of a data set.
    """
    parts: dict[str, list[Any]] = {}
    lead = next(iter(draws.values())).shape[1:3]
    for index in range(len(datasets)):
        own = spec.at({dim: int(n[index]) for dim, n in datasets.lengths.items()})
        flat = {}
        for p, at_length in zip(spec.drawn, own.drawn, strict=True):
            values = draws[p.name][index].reshape(lead[0] * lead[1], *draws[p.name].shape[3:])
            own_places = places[index] if places else {}
            for axis, dim in enumerate(p.sized, start=1):
                if dim and dim in own_places:
                    values = values.take(np.maximum(own_places[dim], 0), axis=axis)
            flat[p.name] = values[:, *map(slice, at_length.shape)]
        for name, values in function(index, flat).items():
            parts.setdefault(name, []).append(values.reshape(*lead, *values.shape[1:]))
    return {name: stacked(parts.pop(name)) for name in list(parts)}


def stacked(arrays: list[Any]) -> np.ndarray:
    """Stack arrays, filled up with NaN to the largest shape; each is let go as it is copied."""
    largest = tuple(int(n) for n in np.max([a.shape for a in arrays], axis=0))
    if all(a.shape == largest for a in arrays):
        out = np.empty((len(arrays), *largest), arrays[0].dtype)
    else:
        out = np.full((len(arrays), *largest), np.nan)
    for index in range(len(arrays)):
        array, arrays[index] = arrays[index], None
        place: Any = (index, *map(slice, array.shape))
        out[place] = array
    return out


def refuse_without_density(model: pm.Model, names: Sequence[str]) -> None:
    """Refuse log densities of what can only be simulated."""
    without = [name for name in names if not has_density(model, model[name])]
    if not without:
        return
    simulators = [name for name in without if isinstance(core_op(model[name]), SimulatorRV)]
    distance = (
        f". What PyMC computes in its place for {simulators} (pm.Simulator) is minus a distance between the data and "
        "one new simulation, not a log likelihood: az.loo and az.compare of it mean nothing"
        if simulators
        else ""
    )
    raise ValueError(
        f"{without} can be simulated only: the model gives no log density for them{distance}. fit_joint and "
        "fit_likelihood learn one"
    )
