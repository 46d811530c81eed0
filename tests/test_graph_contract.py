"""Every model of the registry through one contract of the graph layer, against PyMC alone.

The reference is PyMC's own model, compiled for the Python interpreter and called once per draw or
point: another backend, no loop over draws, no snapshot of the model. All models run through the
contract on that backend, which compiles fast; a few run on PyTensor's default one as well, and the
others do so when slow tests are asked for.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pymc as pm
import pytensor
import pytest
from models import MODELS, ModelCase, kinds_of
from numpy.testing import assert_allclose, assert_array_equal
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.replace import graph_replace
from scipy import stats

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import Constrain, LogDensity, Unconstrain
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.structure import find_structure

INTERPRETED = {"mode": "FAST_COMPILE"}
BACKENDS = {"interpreted": INTERPRETED, "default": {}}
ALSO_COMPILED = {"conjugate_normal", "eight_schools", "dependent_bounds", "frozen_data"}

SIMULATIONS = 1500
POINTS = 8
FALSE_ALARM = 1e-4
"""Probability that a comparison of two samples rejects although both are of one distribution."""

pytestmark = [
    # Priors reach where exp overflows; interpreted code says so, compiled code does not.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
    # For what is a Python function by nature (Simulator, CustomDist by random) or not yet in numba.
    pytest.mark.filterwarnings("ignore:Numba will use object mode"),
]


class Reference:
    """What PyMC says about a model, one draw and one point at a time."""

    def __init__(self, model: pm.Model) -> None:
        self.model = model
        self.values = {rv.name: model.rvs_to_values[rv] for rv in model.basic_RVs}
        self.free = [rv.name for rv in model.free_RVs]
        self.observed = [rv.name for rv in model.observed_RVs]
        self.deterministics = [d.name for d in model.deterministics]
        self.containers = [
            v.name for v in model.data_vars if isinstance(v, SharedVariable) and v not in self.values.values()
        ]

    @cached_property
    def _draw(self):
        moved = []
        for rv in self.model.free_RVs:
            transform = self.model.rvs_to_transforms[rv]
            moved.append(rv if transform is None else transform.forward(rv, *rv.owner.inputs))
        outputs = [*self.model.free_RVs, *self.model.observed_RVs, *moved]
        return pm.compile([], outputs, random_seed=20, **INTERPRETED)

    @cached_property
    def _log_density(self):
        inputs = {self.values[name]: self.values[name].type() for name in self.observed}
        inputs |= {self.model[name]: self.model[name].type() for name in self.containers}
        graph = graph_replace(self.model.logp(), inputs, strict=False)
        points = [self.values[name] for name in self.free]
        return pm.compile([*points, *inputs.values()], graph, on_unused_input="ignore", **INTERPRETED)

    @cached_property
    def _backward(self):
        names = [*self.free, *self.deterministics]
        graphs = self.model.replace_rvs_by_values([self.model[name] for name in names])
        inputs = [self.values[name] for name in self.free]
        return pm.compile(inputs, graphs, on_unused_input="ignore", **INTERPRETED)

    def log_density(self, point: Mapping[str, np.ndarray], data: Mapping[str, np.ndarray]) -> float:
        """Joint log density at unconstrained values and data, both by variable."""
        held = {name: self.model[name].get_value() for name in self.containers}
        given = {**held, **data}
        names = [*self.observed, *self.containers]
        return float(self._log_density(*(point[n] for n in self.free), *(given[n] for n in names)))

    def backward(self, point: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Free variables on their own scale and deterministics at unconstrained values."""
        values = self._backward(*(point[name] for name in self.free))
        return dict(zip([*self.free, *self.deterministics], values, strict=True))

    def draws(self, n: int, has_density: bool) -> dict[str, np.ndarray]:
        """Return up to `n` forward draws, without those that the model's density excludes."""
        kept = []
        for _ in range(n):
            outputs = [np.asarray(output) for output in self._draw()]
            values = dict(zip([*self.free, *self.observed], outputs, strict=False))
            point = dict(zip(self.free, outputs[-len(self.free) :], strict=True))
            if not all(np.isfinite(v).all() for v in [*values.values(), *point.values()]):
                continue
            data = {name: values[name] for name in self.observed}
            if not has_density or np.isfinite(self.log_density(point, data)):
                kept.append(values)
        return {name: np.stack([values[name] for values in kept]) for name in kept[0]}


def cut(spec: ModelSpec, theta: np.ndarray) -> dict[str, np.ndarray]:
    """Cut a flat vector of unconstrained values into those of each parameter."""
    parts = np.split(theta, np.cumsum([p.size for p in spec.parameters])[:-1])
    return {p.name: part.reshape(p.unconstrained_shape) for p, part in zip(spec.parameters, parts, strict=True)}


@dataclass(frozen=True, eq=False)
class Contract:
    """One model, compiled once for all tests of it."""

    case: ModelCase
    model: pm.Model
    backend: str

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.model)

    @cached_property
    def spec(self) -> ModelSpec:
        return take_snapshot(self.model)

    @cached_property
    def simulator(self) -> Simulator:
        return Simulator(self.spec, compile_kwargs=BACKENDS[self.backend])

    @cached_property
    def simulations(self) -> Simulations:
        return self.simulator(SIMULATIONS, np.random.SeedSequence(1))

    @cached_property
    def log_density(self) -> LogDensity:
        return LogDensity(self.spec, BACKENDS[self.backend])

    @cached_property
    def constrain(self) -> Constrain:
        return Constrain(self.spec, BACKENDS[self.backend])

    def data(self, index: int) -> dict[str, np.ndarray]:
        """Everything the density depends on, beside the parameters, at one simulation."""
        values = self.simulations.data
        return {**self.spec.held, **{name: array[index] for name, array in values.items()}}

    def point(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        return cut(self.spec, theta)


def interpreting() -> AbstractContextManager[None]:
    """Keep PyTensor from calling the C compiler, which even FAST_COMPILE does for what scans do."""
    return pytensor.config.change_flags(cxx="")


def _runs() -> list:
    runs = [pytest.param((name, "interpreted"), id=name) for name in MODELS]
    for name in MODELS:
        marks = [] if name in ALSO_COMPILED else [pytest.mark.slow]
        runs.append(pytest.param((name, "default"), id=f"{name}-default", marks=marks))
    return runs


# Of the module's scope, so that pytest runs all tests of one model before those of the next.
@pytest.fixture(scope="module", params=_runs())
def contract(request: pytest.FixtureRequest) -> Iterator[Contract]:
    name, backend = request.param
    with interpreting() if backend == "interpreted" else nullcontext():
        yield Contract(MODELS[name], MODELS[name].build(), backend)


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Columns as standard normal quantiles of their ranks: comparable, and without heavy tails."""
    ranks = stats.rankdata(values, axis=0)
    return stats.norm.ppf((ranks - 0.5) / len(values))


def discrepancies(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[str]:
    """Say in which respects two samples of the same variables differ more than chance explains.

    Compared are each element's mean, variance and quantiles (two-sample Kolmogorov-Smirnov), and
    the correlation of each pair of elements, all on the scale of normal scores in the joint sample.
    The threshold is Bonferroni's for all comparisons together.
    """
    labels = [f"{name}[{i}]" for name in a for i in range(a[name][0].size)]
    matrices = [np.hstack([s[name].reshape(len(s[name]), -1) for name in a]) for s in (a, b)]
    n, m = map(len, matrices)
    scores = normal_scores(np.vstack(matrices))
    first, second = scores[:n], scores[n:]

    count = len(labels)
    level = FALSE_ALARM / (2 * count + count * (count + 1) / 2)
    z_limit = stats.norm.isf(level / 2)

    def standardized(mean_a: np.ndarray, mean_b: np.ndarray, square: np.ndarray) -> np.ndarray:
        pooled = (n * mean_a + m * mean_b) / (n + m)
        error = np.sqrt(np.maximum(square - pooled**2, 0) * (1 / n + 1 / m))
        return np.divide(mean_a - mean_b, error, out=np.zeros_like(error), where=error > 1e-9)

    means = standardized(first.mean(0), second.mean(0), (scores**2).mean(0))
    products = standardized(first.T @ first / n, second.T @ second / m, (scores**2).T @ scores**2 / (n + m))
    found = [f"mean of {label}: z = {z:.1f}" for label, z in zip(labels, means, strict=True) if abs(z) > z_limit]
    for i, j in zip(*np.nonzero(np.triu(abs(products) > z_limit)), strict=True):
        kind = f"variance of {labels[i]}" if i == j else f"correlation of {labels[i]}, {labels[j]}"
        found.append(f"{kind}: z = {products[i, j]:.1f}")
    for i, label in enumerate(labels):
        p = stats.ks_2samp(first[:, i], second[:, i], method="asymp").pvalue
        if p < level:
            found.append(f"quantiles of {label}: p = {p:.1g}")
    return found


def _sample(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_cauchy((n, 3))
    return {"x": x, "y": rng.poisson(np.exp(np.tanh(x[:, 0])))}


def test_discrepancies_are_found_where_there_are_some() -> None:
    a, b = _sample(1500, 1), _sample(1500, 2)
    assert discrepancies(a, b) == []
    assert any("mean of x[1]" in d for d in discrepancies(a, {**b, "x": b["x"] + [0, 0.8, 0]}))
    assert any("variance of x[2]" in d for d in discrepancies(a, {**b, "x": b["x"] * [1, 1, 2]}))
    shuffled = np.random.default_rng(3).permutation(b["y"])
    assert [d.split(":")[0] for d in discrepancies(a, {**b, "y": shuffled})] == ["correlation of x[0], y[0]"]


def test_registry_covers_many_kinds() -> None:
    assert len(MODELS) >= 32
    assert {case.has_density for case in MODELS.values()} == {True, False}
    kinds = {kind for case in MODELS.values() for axes in case.structure.values() for kind in axes}
    assert kinds == {"exchangeable", "grouped", "sequence", "features"}


def test_spec_describes_the_model(contract: Contract) -> None:
    spec, model, case = contract.spec, contract.model, contract.case
    reference = contract.reference
    assert [p.name for p in spec.parameters] == reference.free
    assert [v.name for v in spec.observed] == reference.observed
    assert [v.name for v in spec.fixed] == [v.name for v in model.data_vars if v not in reference.values.values()]
    assert list(spec.deterministics) == reference.deterministics
    assert (spec.density_obstacle is None) == case.has_density
    initial = model.initial_point()
    for p in spec.parameters:
        value = reference.values[p.name]
        assert p.value_name == value.name
        assert p.unconstrained_shape == initial[value.name].shape
        assert p.dtype == model[p.name].type.dtype
    assert spec.dim == sum(v.size for v in initial.values())
    for variable in spec.observed:
        held = model.rvs_to_values[model[variable.name]]
        values = held.get_value() if isinstance(held, SharedVariable) else held.data
        assert_array_equal(spec.held[variable.name], values)
        assert variable.shape == values.shape
        assert variable.dims == tuple(model.named_vars_to_dims.get(variable.name, ()))
        container = held.name if held in model.data_vars else None
        assert variable.container == container


def test_dims_and_coords_survive(contract: Contract) -> None:
    before, after = contract.model, contract.spec.model
    # pymc.dims writes down that scalars have no dims, copies of a model do not; and the snapshot
    # has no use for containers of observations
    left_out = {v.container for v in contract.spec.observed}
    named = [
        {name: tuple(dims) for name, dims in model.named_vars_to_dims.items() if dims and name not in left_out}
        for model in (before, after)
    ]
    assert named[0] == named[1]
    assert set(after.coords) == set(before.coords)
    for dim, labels in before.coords.items():
        assert_array_equal(after.coords[dim], labels)


def test_simulations_have_the_shapes_and_dtypes_of_the_model(contract: Contract) -> None:
    simulations, spec = contract.simulations, contract.spec
    assert len(simulations) == SIMULATIONS
    assert simulations.unconstrained.shape == (SIMULATIONS, spec.dim)
    assert simulations.unconstrained.dtype == np.float64
    assert np.isfinite(simulations.unconstrained).all()
    for p in spec.parameters:
        assert simulations.variables[p.name].shape == (SIMULATIONS, *p.shape)
        assert simulations.variables[p.name].dtype == p.dtype
    for v in spec.data:
        assert simulations.data[v.name].shape == (SIMULATIONS, *v.shape)
        assert simulations.data[v.name].dtype == v.dtype
    assert set(simulations.variables) == {*contract.reference.free, *spec.deterministics}
    assert simulations.attempted - sum(simulations.dropped.values()) >= SIMULATIONS


def test_simulations_have_the_distribution_of_forward_draws(contract: Contract) -> None:
    simulations, spec = contract.simulations, contract.spec
    draws = contract.reference.draws(SIMULATIONS, contract.case.has_density)
    free = {p.name: simulations.variables[p.name] for p in spec.parameters}
    assert discrepancies({**free, **simulations.data}, draws) == []


def test_simulations_are_a_function_of_the_seed(contract: Contract) -> None:
    simulator = contract.simulator
    first = simulator(50, np.random.SeedSequence(7))
    contract.reference.draws(2, has_density=False)
    again, other = simulator(50, 7), simulator(50, 8)
    assert_array_equal(again.unconstrained, first.unconstrained)
    assert not np.isin(other.unconstrained, first.unconstrained).any()
    for name, values in first.data.items():
        assert_array_equal(again.data[name], values)
        assert not np.array_equal(other.data[name], values)


def test_a_smaller_number_gives_the_first_of_a_larger(contract: Contract) -> None:
    few = contract.simulator.chunk(20, np.random.SeedSequence(9))
    many = contract.simulator.chunk(60, np.random.SeedSequence(9))
    if any(reason.startswith("raised") for reason in many.dropped):
        pytest.skip("a simulation raised: chunks were halved, differently for each number")
    assert 0 < len(few) < len(many)
    assert_array_equal(many.unconstrained[: len(few)], few.unconstrained)
    for name, values in few.data.items():
        assert_array_equal(many.data[name][: len(few)], values)


def test_transforms_round_trip(contract: Contract) -> None:
    simulations, spec = contract.simulations, contract.spec
    theta = simulations.unconstrained[:200]
    back = contract.constrain(theta, contract.data(0))
    for p in spec.parameters:
        simulated = simulations.variables[p.name][:200]
        assert back[p.name].shape == simulated.shape
        assert_allclose(back[p.name], simulated, rtol=1e-6, atol=1e-12)
    forward = Unconstrain(spec, BACKENDS[contract.backend])
    constrained = {p.name: simulations.variables[p.name][:200] for p in spec.parameters}
    assert_allclose(forward(constrained), theta, rtol=1e-9, atol=1e-9)


def test_constrained_values_and_deterministics_equal_pymcs(contract: Contract) -> None:
    simulations = contract.simulations
    theta = simulations.unconstrained[:POINTS]
    ours = contract.constrain(theta, contract.data(0))
    assert list(ours) == contract.reference.free + contract.reference.deterministics
    for i in range(POINTS):
        for name, value in contract.reference.backward(contract.point(theta[i])).items():
            assert_allclose(ours[name][i], value, rtol=1e-8, atol=1e-12, err_msg=name)
            simulated = simulations.variables[name][i]
            assert_allclose(simulated, value, rtol=1e-6, atol=1e-9, err_msg=name)


def test_log_densities_equal_pymcs(contract: Contract) -> None:
    if not contract.case.has_density:
        pytest.skip("the model has no density")
    theta = contract.simulations.unconstrained[: 2 * POINTS]
    for i in range(POINTS):
        # a data set's own parameters, and others
        data = contract.data(i)
        ours = contract.log_density(theta[i::POINTS], data)
        theirs = [contract.reference.log_density(contract.point(t), data) for t in theta[i::POINTS]]
        assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)


def test_log_densities_equal_pymcs_compiled_function_at_the_held_data(contract: Contract) -> None:
    if not contract.case.has_density:
        pytest.skip("the model has no density")
    function = contract.model.compile_logp(**INTERPRETED)
    theta = contract.simulations.unconstrained[:POINTS]
    names = {p.name: p.value_name for p in contract.spec.parameters}
    points = [contract.point(t) for t in theta]
    theirs = [function({names[name]: v for name, v in point.items()}) for point in points]
    ours = contract.log_density(theta, contract.spec.held)
    assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)


def test_structure_of_the_data_is_found(contract: Contract) -> None:
    structure = find_structure(contract.spec, contract.simulations, contract.log_density, np.random.SeedSequence(3))
    assert {name: kinds_of(structure, name) for name in contract.reference.observed} == contract.case.structure


@pytest.mark.parametrize("name", ["linear_regression", "negative_binomial", "shared_axis"])
@interpreting()
def test_context_reaches_simulator_and_density(name: str) -> None:
    model = MODELS[name].build()
    container = "clinic_index" if name == "negative_binomial" else "x"
    spec = take_snapshot(model, context=[container])
    context = ContextSampler(spec, {container: "resample"})
    simulations = Simulator(spec, context=context, compile_kwargs=INTERPRETED)(300, 1)
    values = simulations.data[container]
    assert values.shape == (300, *model[container].get_value().shape)
    assert np.isin(values, model[container].get_value()).all()

    log_density = LogDensity(spec, INTERPRETED)
    reference = Reference(model)
    own, foreign = [], []
    for i in range(200):
        theta = simulations.unconstrained[i : i + 1]
        data = {**spec.held, **{name: v[i] for name, v in simulations.data.items()}}
        own.append(log_density(theta, data)[0])
        other = {**data, container: values[i + 1]}
        foreign.append(log_density(theta, other)[0])
        point = cut(spec, theta[0])
        theirs = [reference.log_density(point, d) for d in (data, other)]
        assert_allclose([own[-1], foreign[-1]], theirs, rtol=1e-8)
    # the data were simulated at their own context, not at another's
    # (a share, because the densities' differences have heavy tails; four standard errors above chance)
    better = np.mean(np.array(own) > foreign)
    assert better > 0.5 + 4 * 0.5 / np.sqrt(len(own))
