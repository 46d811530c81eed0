"""Atoms of a prior, wherever they lie: where a draw's log density is not that of its neighbours.

A value that comes up again and again shows in the draws (:mod:`pymc_amortized.graph.simulation.atoms`). One that is
set by another variable is new in each of them, and shows in the density alone: at an atom this is a probability, and
beside it a density.
"""

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pymc.distributions.censored import CensoredRV
from pymc.distributions.distribution import SymbolicRandomVariable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RandomVariable

from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.given import LogDensityGiven
from pymc_amortized.graph.density.log_density import Data
from pymc_amortized.graph.model.operations import core_op, has_density
from pymc_amortized.graph.model.sizes import cut
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.step import given_parameters, held_constants, length_inputs, unconstrained
from pymc_amortized.graph.model.tensors import interpret, like, plain, plain_input
from pymc_amortized.graph.simulation.atoms import WAY_OUT, PriorAtomError

DRAWS = 512
"""That are looked at: of an atom of 1 %, five lie there."""
NEAR, FAR = 1e-12, 1e-9
"""How far draws are moved, in units of their spread: what is continuous changes a thousand times as much by FAR."""
LEAST = -1000.0
"""Log density for each value, of what was drawn from it: floats span a volume of e^711, so that less has no chance.
Where there is less, errors of rounding have grown (in a series that explodes, say), and tell of nothing."""


def refuse_jumps(spec: ModelSpec, simulations: Simulations) -> None:
    """Refuse models in which a continuous variable takes a value that others, or data, set with a probability.

    Draws are moved by so little that no continuous density changes. Of what PyMC has as a continuous distribution this
    is known; what is made of others, and what users write, is tried.

    Parameters
    ----------
    spec : ModelSpec
    simulations : Simulations

    Raises
    ------
    PriorAtomError
    """
    names = _doubtful(spec)
    if not names:
        return
    jumps = _Jumps(spec, names)
    number = min(DRAWS, len(simulations))
    some = simulations.take(np.linspace(0, len(simulations) - 1, number).astype(int))
    found = np.sum([jumps(*one) for one in _draws(spec, some)], axis=0)
    for name, share in zip(names, found / number, strict=True):
        if share > 0:
            raise PriorAtomError(_refusal(spec, name, share))


def _refusal(spec: ModelSpec, name: str, share: float) -> str:
    observed = any(v.name == name for v in spec.observed)
    kind, atom = ("observed", "given it, they have") if observed else ("free", "a density cannot represent such")
    return (
        f"{kind} variable {name!r} takes a value that other variables set, in {share:.1%} of simulations (moved by "
        f"{FAR:g} of its spread, its log density is another one): {atom} an atom, {WAY_OUT}"
    )


def _doubtful(spec: ModelSpec) -> list[str]:
    """Names of the variables that may have atoms which matter, and whose density can tell."""
    model = spec.model
    if spec.nuisance:  # given what is not there, no term can be evaluated
        return []
    observed = {v.name for v in spec.observed}
    return [
        rv.name
        for rv in model.basic_RVs
        if rv.type.dtype.startswith("float")
        and _may_have_atoms(rv, set(model.basic_RVs), model.free_RVs if rv.name in observed else None)
        and has_density(model, rv)
    ]


def _may_have_atoms(rv: Any, variables: set[Any], placed_by: list[Any] | None) -> bool:
    """Whether a variable may have atoms; of observed ones, only such matter as parameters place."""
    op = core_op(rv)
    module = type(op).__module__
    if isinstance(op, RandomVariable) and module.startswith(("pymc.", "pytensor.")):
        return False
    if module == "pymc.distributions.multivariate":
        return False
    parts = [v for v in rv.owner.inputs if v.owner is not None and v not in variables]
    components = [v for v in parts if isinstance(core_op(v), RandomVariable | SymbolicRandomVariable)]
    if module == "pymc.distributions.mixture" and components:
        return any(_may_have_atoms(v, variables, placed_by) for v in components)
    if placed_by is None:
        return True
    if isinstance(op, CensoredRV):
        _, *bounds = op.dist_params(rv.owner) if hasattr(op, "dist_params") else rv.owner.inputs[:3]
        return any(not set(placed_by).isdisjoint(ancestors([bound])) for bound in bounds)
    return not set(placed_by).isdisjoint(ancestors([rv]))


def _draws(spec: ModelSpec, simulations: Simulations) -> list[tuple[list[np.ndarray], np.ndarray, Data, np.ndarray]]:
    """Free variables, these unconstrained, data and how far to go, of each simulation."""
    theta, datasets = simulations.unconstrained, of_simulations(simulations)
    low, high = np.quantile(theta, [0.16, 0.84], axis=0)
    spread = np.where(high > low, (high - low) / 2, 1.0)
    # a step of some units in the last place, at least
    steps = np.maximum(NEAR * spread, 8 * np.spacing(np.abs(theta)))
    found: list[tuple[list[np.ndarray], np.ndarray, Data, np.ndarray]] = []
    for i in range(len(theta)):
        data = datasets.one(spec, i)
        own = spec.at({r.dim: data[r.dim] for r in spec.sizes}).drawn
        found.append(([cut(simulations.variables[p.name][i], p.shape) for p in own], theta[i], data, steps[i]))
    return found


class _Jumps:
    """Whether terms of the log density jump beside a draw."""

    def __init__(self, spec: ModelSpec, names: list[str]) -> None:
        self._spec, self._rng = spec, np.random.default_rng(0)
        self._terms = LogDensityGiven(spec, names)
        self._constrain = _constrain(spec)

    def __call__(self, drawn: list[np.ndarray], theta: np.ndarray, data: Data, step: np.ndarray) -> list[bool]:
        """Tell it of each term."""
        known = [data[v.name] for v in self._spec.data] + [data[r.dim] for r in self._spec.sizes]
        context = [data[v.name] for v in self._spec.context] + [data[r.dim] for r in self._spec.sizes]
        here = self._terms.once(*drawn, *known)
        # each by another distance: what is moved alike stays equal
        step = step * self._rng.uniform(0.5, 1.0, size=step.shape) * self._rng.choice([-1.0, 1.0], size=step.shape)

        def changes(factor: float) -> list[np.ndarray]:
            sides = [
                self._terms.once(*self._constrain(theta + sign * factor * step, *drawn, *context), *known)
                for sign in (-1.0, 1.0)
            ]
            return [np.abs(np.stack(pair) - at) for at, *pair in zip(here, *sides, strict=True)]

        least = LEAST * (1 + sum(np.size(values) for values in (*drawn, *known)))
        with np.errstate(invalid="ignore"):
            near = changes(1.0)
            some = [
                (at > 1e-8 * (1 + np.abs(term))) & np.isfinite(term) & (term > least)
                for at, term in zip(near, here, strict=True)
            ]
            if not any(found.any() for found in some):
                return [False] * len(here)
            far = changes(FAR / NEAR)
        return [bool((found & ~(a < 0.25 * b)).any()) for found, a, b in zip(some, near, far, strict=True)]


def _constrain(spec: ModelSpec) -> Any:
    """From unconstrained parameters to free variables, given draws of those that transforms read."""
    model = spec.model
    theta = pt.vector("theta", shape=(spec.dim,), dtype="float64")
    one, lengths = given_parameters(spec)[0], length_inputs(spec)
    context = {c.name: plain_input(c.name, c.dtype, c.shape) for c in spec.context}
    outputs, start = [], 0
    for p in spec.parameters:
        rv = model[p.name]
        transform = model.rvs_to_transforms[rv]
        free = unconstrained(model, rv)
        part = theta[start : start + p.size].reshape(p.unconstrained_shape)
        start += p.size
        back = part if transform is None else transform.backward(like(free, part), *rv.owner.inputs)
        outputs.append(plain(back).astype(p.dtype))
    outputs += [plain(model[p.name]) for p in spec.locals]  # stay where they are
    replaced = {model[name]: like(model[name], symbol) for name, symbol in (one | context).items()}
    outputs = graph_replace(outputs, replaced | held_constants(spec) | lengths, strict=False)
    inputs = [theta, *one.values(), *context.values(), *lengths.values()]
    return interpret(inputs, outputs)
