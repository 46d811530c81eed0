"""Which models can be simulated and learned, and what to do about those that cannot."""

from collections.abc import Collection, Iterable, Sequence, Set
from typing import Any

import numpy as np
import pymc as pm
from pymc.data import MinibatchOp
from pymc.distributions.continuous import FlatRV, HalfFlatRV
from pymc.distributions.distribution import PartialObservedRV
from pymc.distributions.multivariate import ICARRV
from pymc.variational.minibatch_rv import MinibatchRandomVariable
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import Cast
from pytensor.tensor.elemwise import Elemwise

from pymc_amortized.graph.model.operations import core_op, op_name, walk


def check_names(argument: str, value: Any) -> list[str]:
    """Check that an argument is a sequence of names."""
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{argument} must be a sequence of names, got {value!r}")
    return list(value)


def refuse_unsuited(model: pm.Model, observed: Sequence[str] | None, context: Sequence[str]) -> dict[str, str]:
    """Refuse what cannot be simulated, and find the containers of the observed values.

    Returns
    -------
    dict
        Name of the ``pm.Data`` that directly holds an observed variable's values, by variable.

    Raises
    ------
    ValueError, KeyError
        Naming the variable and what to do.
    """
    if model.parent is not None:
        raise ValueError("the model is nested in another one; pass the outermost model")
    _refuse_missing_names(model, observed)
    for var in model.basic_RVs:
        _refuse_variable(var)
    refuse_imputed(model)
    _refuse_labels(model)
    _refuse_minibatch(model)
    containers = _observed_containers(model)
    for variable, name in containers.items():
        if name in context:
            raise ValueError(f"context: {name!r} holds the observations of {variable!r}, which always vary")
    return containers


def refuse_unsuited_parameters(model: pm.Model) -> None:
    """Refuse free variables that networks over continuous parameters cannot represent."""
    if not model.free_RVs:
        raise ValueError("the model has no free random variable: there is nothing to infer")
    for rv in model.free_RVs:
        if not rv.type.dtype.startswith("float"):
            raise ValueError(
                f"free variable {rv.name!r} is discrete ({rv.type.dtype}), which is not supported: "
                "marginalize it (for example with pm.Mixture), or declare it observed"
            )


def refuse_unsuited_sizes(model: pm.Model, dims: Sequence[str], context: Sequence[str], holders: Set[str]) -> None:
    """Refuse dimensions that cannot differ between data sets.

    Parameters
    ----------
    dims : sequence of str
        Dimensions whose length varies.
    context : sequence of str
        Data containers whose values vary.
    holders : set of str
        Data containers of observations.

    Raises
    ------
    ValueError
        Naming the dimension, the variable and what to do.
    """
    for dim in dims:
        carriers = {name for name, own in model.named_vars_to_dims.items() if own and dim in own}
        free = [rv.name for rv in model.free_RVs if rv.name in carriers]
        fixed = [v.name for v in model.data_vars if v.name in carriers - holders - {*context}]
        if fixed:
            example = "groups" if model[fixed[0]].type.dtype.startswith("int") else "resample"
            raise ValueError(
                f"context: the data containers {fixed} carry the dimension {dim!r}, whose length varies: say where "
                f"their values come from, as in context={{{dim!r}: ..., {fixed[0]!r}: {example!r}}}"
            )
        if not free and not any(rv.name in carriers for rv in model.observed_RVs) and not holders & carriers:
            raise ValueError(f"context: no observed variable carries the dimension {dim!r}; give dims={dim!r} to one")


def _refuse_missing_names(model: pm.Model, observed: Sequence[str] | None) -> None:
    if observed is None:
        if not model.observed_RVs:
            raise ValueError(
                "the model has no observed variable: pass observed=[...] with the names of the variables "
                f"that will be observed, from {[rv.name for rv in model.free_RVs]}"
            )
        return
    observed = check_names("observed", observed)
    allowed = [rv.name for rv in model.basic_RVs] + [d.name for d in model.deterministics]
    unknown = [name for name in observed if name not in allowed]
    if unknown or not observed:
        raise KeyError(f"observed: {unknown or 'no names'} given; the model's variables are {allowed}")
    forgotten = [rv.name for rv in model.observed_RVs if rv.name not in observed]
    if forgotten:
        raise ValueError(f"observed: the model also observes {forgotten}; name them too, or remove their observations")


def _refuse_variable(var: Any) -> None:
    op = core_op(var)
    if isinstance(op, FlatRV | HalfFlatRV):
        raise ValueError(
            f"{var.name!r} has an improper {op_name(var).removesuffix('RV')} prior, which cannot be simulated: "
            "give it a proper prior that covers what is plausible"
        )
    if isinstance(op, ICARRV):
        raise ValueError(
            f"{var.name!r} is an ICAR, which is improper and cannot be simulated: use pm.CAR with alpha < 1"
        )
    if isinstance(op, MinibatchRandomVariable):
        raise ValueError(
            f"{var.name!r} has total_size, so that its density counts rows the simulator does not make: "
            "remove total_size (training is on simulations, it does not need minibatches)"
        )


def refuse_imputed(model: pm.Model) -> None:
    """Refuse missing values that PyMC made free variables of."""
    free = {rv.name for rv in model.free_RVs}
    for rv in model.observed_RVs:
        name = rv.name.removesuffix("_observed")
        imputed = name != rv.name and f"{name}_unobserved" in free
        if imputed or isinstance(core_op(rv), PartialObservedRV):
            raise ValueError(
                f"{name!r} has missing values that PyMC imputes, which is not supported: observe complete "
                f"placeholders (zeros, say) and train with missing={{{name!r}: rate}}; NaN is data at inference then"
            )


def _refuse_labels(model: pm.Model) -> None:
    """Refuse labels that are no single values: results cannot hold them."""
    for dim in dict.fromkeys(d for dims in model.named_vars_to_dims.values() for d in dims or ()):
        several = [
            v for v in model.coords.get(dim) or () if isinstance(v, Collection) and not isinstance(v, str | bytes)
        ]
        if several:
            kind = type(several[0]).__name__
            raise ValueError(
                f"coords[{dim!r}]: labels must be single values (text, numbers, dates), got {kind}s such as "
                f"{several[0]!r}, which results cannot hold (a pandas MultiIndex has tuples): give each entry one "
                'label, for example "a, 1", or its number'
            )


def _refuse_minibatch(model: pm.Model) -> None:
    roots = [*model.basic_RVs, *model.rvs_to_values.values()]
    for var in walk(roots):
        if var.owner is not None and isinstance(var.owner.op, MinibatchOp):
            raise ValueError(
                "the model uses pm.Minibatch, which is not supported: pass the whole data "
                "(pymc.model.transform.basic.remove_minibatched_nodes makes such a model)"
            )


def holders_of_observations(model: pm.Model) -> set[str]:
    """Names of the containers that observations are computed from, but for what the rest of the graph reads too."""
    feeding = set(ancestors(model.rvs_to_values[rv] for rv in model.observed_RVs))
    used = set(walk([*model.basic_RVs, *model.potentials, *model.deterministics], through_shapes=False))
    return {v.name for v in model.data_vars if v in feeding and v not in used}


def _observed_containers(model: pm.Model) -> dict[str, str]:
    """Containers of the observed values; one that feeds the rest of the graph too is refused."""
    holders = {v: v.name for v in model.data_vars}
    lengths = set(model.dim_lengths.values())
    roots = [*model.basic_RVs, *model.potentials, *model.deterministics]
    used = set(walk(roots, through_shapes=False))
    containers: dict[str, str] = {}
    for rv in model.observed_RVs:
        value = model.rvs_to_values[rv]
        for var in walk([value], through_shapes=False):
            held = var in holders or (isinstance(var, SharedVariable) and var not in lengths)
            if held and var in used and not _only_scales(var, value):
                raise ValueError(
                    f"data container {var.name!r} holds the observations of {rv.name!r} and feeds the rest of the "
                    "model as well: simulated data would not. Use one container for the observations and "
                    "another for the covariates, or write the dependence into the model (pm.AR, a scan)"
                )
        value = _uncast(value)
        if value in holders:
            _refuse_fractions(rv, value)
            other = next((name for name, held in containers.items() if held == holders[value]), None)
            if other is not None:
                raise ValueError(
                    f"data container {holders[value]!r} holds the observations of both {other!r} and {rv.name!r}: "
                    "give each a container of its own"
                )
            containers[rv.name] = holders[value]
    return containers


def _only_scales(container: Any, value: Any) -> bool:
    """Whether observations are divided or shifted by a container, of fewer values: it stays what it is."""
    if container is _uncast(value):
        return False
    values = np.size(value.eval(mode="FAST_COMPILE"))
    return isinstance(container, SharedVariable) and np.size(container.get_value(borrow=True)) < values


def _refuse_fractions(rv: Any, container: Any) -> None:
    """Refuse numbers that PyMC cuts off to whole ones, without a word."""
    held = np.asarray(container.get_value()) if isinstance(container, SharedVariable) else np.zeros(())
    fraction = np.isfinite(held) & (held != np.trunc(held))
    if rv.type.dtype.startswith(("int", "uint")) and fraction.any():
        place = tuple(int(i) for i in np.argwhere(fraction)[0])
        raise ValueError(
            f"data container {container.name!r}: {rv.name!r} must hold whole numbers; got {held[place]} at {place}"
        )


def _uncast(value: Any) -> Any:
    """See through the conversion of a container's dtype to the variable's."""
    op = None if value.owner is None else value.owner.op
    return _uncast(value.owner.inputs[0]) if isinstance(op, Elemwise) and isinstance(op.scalar_op, Cast) else value
