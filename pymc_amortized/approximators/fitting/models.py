"""The user's model, read: its snapshot, what draws its context and gaps, and what simulates it for training."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pymc as pm

from pymc_amortized.approximators.fitting.fingerprint import fingerprint
from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.suitability import check_names, refuse_imputed
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.context import ContextSampler, read_missing, split_context
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.grouping import find_plates
from pymc_amortized.results.writing import check_layout

_Read = tuple[ModelSpec, dict[str, Any], dict[str, Any]]
_read: WeakKeyDictionary[pm.Model, tuple[dict[str, str], ModelSpec, dict[str, Any], dict[str, Any]]] = (
    WeakKeyDictionary()
)


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
    if spec.locals and not spec.parameters:
        raise ValueError(
            f"context: all free variables, {[p.name for p in spec.locals]}, are values of groups, and groups without "
            "parameters in common tell nothing of each other: fit the model of one group, with groups as data sets"
        )
    if spec.density_obstacle is not None and spec.locals:
        find_plates(spec)
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
            "missing= to this call, as to fit_posterior"
        )
    gaps = read_missing(missing, [v.name for v in spec.observed])
    unknown = [v.name for v in spec.observed if v.missing and v.name not in gaps]
    if unknown:
        raise ValueError(
            f"missing: what draws gaps in {unknown} is needed to simulate further (files hold rates alone): pass "
            "missing= to this call, as to fit_posterior"
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
