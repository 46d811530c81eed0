"""Training a likelihood: the model's simulations cut into rows, a network for a row, and the loop."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import pymc as pm
import torch

from pymc_amortized.approximators.fitting.arguments import read_count, read_mapping
from pymc_amortized.approximators.fitting.models import read_anew, read_model, refuse_groups
from pymc_amortized.approximators.fitting.seeds import RandomState
from pymc_amortized.approximators.fitting.setup import Setup, read_setup
from pymc_amortized.approximators.likelihood.file import SavedLikelihood, read_likelihood
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood, LikelihoodKind, extent_of
from pymc_amortized.approximators.likelihood.training import (
    LikelihoodFit,
    default_size,
    default_training,
    number_of_lags,
    scales_of_averages,
)
from pymc_amortized.approximators.simulations.given import FEWEST_USABLE
from pymc_amortized.approximators.storage.checkpoint import about_fit, kept_fit
from pymc_amortized.approximators.storage.models import describe_model
from pymc_amortized.approximators.storage.save import read_again
from pymc_amortized.graph.model.operations import has_density
from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.rows.finding import distribution_of, find_rows
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.graph.rows.widened import Region, widen
from pymc_amortized.ranks import together
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.columns import COLUMNS
from pymc_amortized.training import Training


@together()
def fit_likelihood(
    model: pm.Model | None = None,
    *,
    variable: str | None = None,
    kind: LikelihoodKind = "density",
    observed: list[str] | None = None,
    context: Mapping[str, Any] | None = None,
    region: Region = None,
    structure: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Any] | None = None,
    lags: int | None = None,
    network: RowSize | None = None,
    training: Training | None = None,
    max_time: float | None = None,
    num_simulations: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    cores: int | None = None,
    device: str | torch.device | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
    compile_kwargs: CompileKwargs | None = None,
) -> AmortizedLikelihood:
    """Learn the distribution of an observed variable's rows, given the parameters they are drawn with.

    What is learned is the conditional distribution that the model's graph names: for
    ``pm.CustomDist("rt", drift[subject], boundary, random=...)`` that of one response time, given one drift and one
    boundary. It can be used in any other model with such rows.

    Parameters
    ----------
    model : pymc.Model, optional
        The context's model by default. Its prior says for which parameters the likelihood is learned.
    variable : str, optional
        The observed variable; needed where there are several. The others keep their distributions.
    kind : {"density", "ratio"}
        "density" learns the density or mass of a row. "ratio" learns by classification the logarithm of its ratio to
        the density of rows over the whole region (NRE-C: Miller et al. 2022, arXiv 2210.06170): all that NUTS and
        importance weights need, for rows whose density is hard. It cannot draw rows, and log likelihoods by it lack a
        term that depends on the data alone: differences of LOO mean something between models that share one such
        likelihood, not between others.
    observed : sequence of str, optional
        Variables that will be observed, for a model that holds no data.
    context : mapping of name to source, optional
        Where values of data containers come from in training, as in :func:`fit_posterior`.
    region : mapping of name to range or distribution, or pymc.Model, optional
        Free variables that are drawn from other distributions in training, usually wider ones: ``{"drift": (-5, 5)}``
        or ``{"drift": pm.Normal.dist(0, 3)}``; or a model with the same observed variable.
    structure : mapping of name to kind, optional
        What the axes of an observed variable are, from the first on, where the graph does not say so: "exchangeable"
        for independent rows, "sequence" for those of a series, "features" for the numbers of one row.
    kinds : mapping of name to kind, optional
        What the numbers of a row are: "real", "count" or "categorical", or a sequence of these; found in simulations
        by default.
    lags : int, optional
        For a series: how many rows before the present one it depends on. By default the 4 before it, and averages of
        all earlier ones at several time scales, for states that are not observed. A warning says where that is not
        enough.
    network : RowSize, optional
        Size of the networks; larger by default where all rows share their parameters, which costs little.
    training : Training, optional
        Steps, batch size (in rows), learning rate and the like.
    max_time : float, optional
        Seconds that the whole call may take, compiling aside. By default, simulating and training may take 240.
    num_simulations : int, optional
        Train on a fixed set of so many simulations. By default fresh ones are made as training goes, unless that would
        take longer than training itself.
    checkpoint : path-like, optional
        As in :func:`fit_posterior`.
    cores : int, optional
        Processes that simulate.
    device : str or torch.device, optional
        Where to train.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random.
    progressbar : bool
        Whether to show the progress of training.
    compile_kwargs : mapping, optional
        Passed to ``pymc.compile``.

    Returns
    -------
    AmortizedLikelihood

    Raises
    ------
    ValueError, KeyError, TypeError
        When the model cannot be simulated or learned, or an argument is wrong; the message names it.

    Notes
    -----
    Neural likelihood estimation by maximum likelihood on simulations (Papamakarios, Sterratt & Murray 2019,
    arXiv 1805.07226), row by row as in Boelts et al. 2022 (eLife 11:e77220) for mixed data.

    Examples
    --------
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0.0, 2.0)
    ...     observed = pm.Normal("y", mu, 1.0, observed=[0.4, 1.9, 0.7, 1.2])
    >>> brief = {"training": pma.Training(num_steps=30), "random_seed": 1, "progressbar": False}
    >>> likelihood = pma.fit_likelihood(model, num_simulations=1000, **brief)
    >>> likelihood.parameters
    ('mu',)
    """
    if kind not in get_args(LikelihoodKind):
        raise ValueError(f"kind must be 'density' or 'ratio', got {kind!r}")
    lags = read_count("lags", lags)
    num_simulations = read_count("num_simulations", num_simulations, smallest=FEWEST_USABLE)
    cores = read_count("cores", cores)
    context, structure = read_mapping("context", context), read_mapping("structure", structure)
    model = model_of(model)
    spec, sources, _ = read_model(model, observed, None, context, None)
    refuse_groups(spec, "fit_likelihood")
    rows = find_rows(spec, read_variable(spec, variable), structure)
    simulated, _, _ = read_anew(widen(model, region), observed, None, context, None)  # row parameters are added
    read_from = find_rows(simulated, rows.variable.name, structure)
    _refuse_other_rows(rows, read_from)
    ours, theirs = distribution_of(spec, rows), distribution_of(simulated, read_from)
    if ours != theirs:
        raise ValueError(f"region: the distribution of its rows is {theirs}, that of the model's {ours}")
    default = default_training(kind, read_from)
    setup = read_setup(training, max_time, random_seed, device, progressbar, compile_kwargs, default)
    if kind == "ratio" and rows.series:
        raise ValueError(f"kind='ratio' is not supported for a series, which {rows.variable.name!r} is")
    size = read_size(network, default_size(kind, rows))
    columns = read_column_kinds(rows, read_mapping("kinds", kinds))

    def about() -> dict[str, Any]:
        return about_fit(
            "fit_likelihood",
            describe_model(spec, sources),
            region=None if region is None else describe_model(simulated, sources),
            variable=rows.variable.name,
            kind=kind,
            structure=structure,
            kinds=columns,
            lags=lags,
            network=size,
            training=setup.options,
            num_simulations=num_simulations,
        )

    def fit(setup: Setup) -> AmortizedLikelihood:
        made = LikelihoodFit(
            spec,
            rows,
            simulated,
            read_from,
            sources,
            setup,
            kind=kind,
            lags=number_of_lags(lags, rows),
            scales=scales_of_averages(lags, rows),
            num_simulations=num_simulations,
            cores=cores,
        )
        return made.run(size, columns)

    def again(path: Path) -> AmortizedLikelihood:
        return read_again(SavedLikelihood, read_likelihood, path, model, compile_kwargs)

    return kept_fit(checkpoint, about, setup, fit, again, any_seed=random_seed is None)


def read_variable(spec: ModelSpec, variable: str | None, *, without_density: bool = False) -> str:
    """Check whose likelihood is to be learned: what the user says, or the only candidate.

    Parameters
    ----------
    spec : ModelSpec
    variable : str, optional
    without_density : bool
        Whether, of several variables, those that have a density are none.
    """
    names = [v.name for v in spec.observed]
    if variable is not None and variable not in names:
        raise KeyError(f"variable: {variable!r} is not observed; the observed variables are {names}")
    without = [name for name in names if not has_density(spec.model, spec.model[name])]
    candidates = without if without_density and len(names) > 1 else names
    candidates = candidates if variable is None else [variable]
    if len(candidates) != 1:
        among = f", of which {without or 'none'} have no density" if without_density else ""
        raise ValueError(f"variable: the model observes {names}{among}; say whose likelihood is to be learned")
    if (extent := extent_of(candidates[0])) in spec.model.named_vars:
        raise ValueError(
            f"the model has a variable named {extent!r}, as what models with a learned likelihood of "
            f"{candidates[0]!r} are given: rename it"
        )
    return candidates[0]


def read_size(network: RowSize | None, default: RowSize) -> RowSize:
    """Check the size of networks."""
    if network is not None and not isinstance(network, RowSize):
        raise TypeError(f"network must be a pymc_amortized.RowSize, got {type(network).__name__}")
    return network or default


def read_column_kinds(rows: ObservedRows, given: dict[str, Any]) -> list[str | None]:
    """Read ``kinds=``; None for what simulations have to tell."""
    name = rows.variable.name
    unknown = sorted(set(given) - {name})
    if unknown:
        raise KeyError(f"kinds: {unknown} given; the variable is {name!r}")
    said = given.get(name)
    if said is None:
        return [rows.kind] * rows.columns
    kinds: list[Any] = [said] * rows.columns if isinstance(said, str) else list(said)
    if len(kinds) != rows.columns or any(k not in COLUMNS for k in kinds):
        allowed = ", ".join(map(repr, COLUMNS))
        raise ValueError(f"kinds[{name!r}] must be one of {allowed} for each of {rows.columns} numbers, got {said!r}")
    return list(kinds)


def _refuse_other_rows(rows: ObservedRows, wider: ObservedRows) -> None:
    """The model that is simulated must have rows of the same parameters."""
    ours, theirs = ([p.name for p in r.parameters] for r in (rows, wider))
    if ours != theirs or rows.event_shape != wider.event_shape or rows.series != wider.series:
        raise ValueError(f"region: its rows depend on {theirs}, those of the model on {ours}")
