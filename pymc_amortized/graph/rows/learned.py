"""A snapshot of a model in which an observed variable has its learned distribution.

Everything that is compiled from a snapshot (log densities, samplers, pointwise likelihoods) can so be compiled with the
learned density: for data of any size the snapshot allows, as rows have one density each.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from pymc.model.fgraph import ModelVar, fgraph_from_model, model_from_fgraph, model_observed_rv
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.rows.emulator import Emulator
from pymc_amortized.graph.rows.observed_rows import ObservedRows, arguments_like


def with_learned_density(spec: ModelSpec, rows: ObservedRows, emulator: Emulator) -> ModelSpec:
    """Return the snapshot with the learned distribution of one observed variable.

    Deterministics that are computed from the variable are left out: densities do not need them.

    Parameters
    ----------
    spec : ModelSpec
    rows : ObservedRows
        Found in this snapshot.
    emulator : Emulator

    Raises
    ------
    ValueError
        When another variable's distribution, or a potential, is computed from the variable.
    """
    refuse_followers(spec, rows.variable.name)
    with warnings.catch_warnings():
        # PyMC warns that GP objects should not be reused with a copied model; nobody can reach the copy's.
        warnings.filterwarnings("ignore", message="Detected variables likely created by GP")
        fgraph, memo = fgraph_from_model(spec.model)
    old = memo[spec.model[rows.variable.name]]
    new = _exchanged(spec, rows, emulator, old, memo)
    outputs = [new if output is old else output for output in fgraph.outputs]
    rebuilt = FunctionGraph(outputs=[o for o in outputs if old not in ancestors([o])], clone=False)
    rebuilt._coords, rebuilt._dim_lengths = fgraph._coords, fgraph._dim_lengths  # type: ignore[attr-defined]
    model = model_from_fgraph(rebuilt, mutate_fgraph=True)
    for kind in ("free_RVs", "observed_RVs", "deterministics"):  # back into the order they were written in
        order = {v.name: i for i, v in enumerate(getattr(spec.model, kind))}
        getattr(model, kind).sort(key=lambda v, order=order: order[v.name])
    roots = [*model.basic_RVs, *model.potentials, *model.deterministics]
    found = {v.name: v for v in ancestors(roots) if isinstance(v, SharedVariable)}
    # a constant that only the exchanged distribution read is an input that nothing uses
    symbols = {key: found.get(key, symbol) for key, symbol in spec.symbols.items()}
    return replace(spec, model=model, symbols=symbols)


def refuse_followers(spec: ModelSpec, name: str) -> None:
    """Refuse a model in which another distribution or a potential is computed from an observed variable.

    Raises
    ------
    ValueError
    """
    model = spec.model
    for var in (*model.basic_RVs, *model.potentials):
        if var is not model[name] and model[name] in ancestors([var]):
            raise ValueError(f"{var.name!r} is computed from {name!r}, whose learned distribution it would not follow")


def _exchanged(spec: ModelSpec, rows: ObservedRows, emulator: Emulator, old: Any, memo: dict[Any, Any]) -> Any:
    """The observed variable of the copied graph with the learned distribution."""
    name = rows.variable.name
    variable = next(v for v in spec.observed if v.name == name)  # of `rows`, lengths are fixed
    inner, value = old.owner.inputs[:2]
    named = {v for v in ancestors([inner]) if v.owner is not None and isinstance(v.owner.op, ModelVar)}
    dims = variable.dims or (None,) * len(variable.shape)
    free = {dim: memo.get(length, length) for dim, length in spec.model.dim_lengths.items()}
    lengths = [free[dim] if n is None else n for n, dim in zip(variable.shape, dims, strict=True)]
    rv = emulator.dist(
        *arguments_like(rows, inner, named),
        length=lengths[rows.batch_ndim] if rows.series else None,
        size=lengths[: rows.batch_ndim],
    )
    rv.name = name
    return model_observed_rv(rv, value, name, *old.owner.op.dims)
