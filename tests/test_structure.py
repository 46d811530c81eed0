"""What the axes of the data are found to be, and traps that a weaker proof falls into."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from models import MODELS, kinds_of

from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.simulation.context import ContextSampler
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.structure import find_structure

INTERPRETED = {"mode": "FAST_COMPILE"}
SIMULATIONS = 48

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS"),
    pytest.mark.filterwarnings("ignore:Numba will use object mode"),
]


@pytest.fixture(autouse=True)
def interpreting() -> Iterator[None]:
    with pytensor.config.change_flags(cxx=""):
        yield


def structure_of(
    model: pm.Model, given: Mapping[str, Any] | None = None, *, context: Mapping[str, Any] | None = None
) -> Structure:
    spec = take_snapshot(model, context=context or ())
    simulations = Simulator(spec, compile_kwargs=INTERPRETED)(SIMULATIONS, 1)
    return find_structure(spec, simulations, LogDensity(spec, INTERPRETED), np.random.SeedSequence(3), given)


def only_axis(model: pm.Model) -> Axis:
    (axis,) = structure_of(model).axes
    return axis


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def model_of(build: Callable[[], None], **coords: Any) -> pm.Model:
    with pm.Model(coords=coords) as model:
        build()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_axis_of_the_registry_is_what_it_is(name: str) -> None:
    case = MODELS[name]
    model = case.build()
    structure = structure_of(model)
    assert {rv.name: kinds_of(structure, rv.name) for rv in model.observed_RVs} == case.structure
    assert len(str(structure).splitlines()) == max(len(structure.axes), 1) + len(structure.symmetric)
    for axis in structure.axes:
        assert axis.reason
        assert str(axis.length) in str(axis)
        for array, i in axis.carriers:
            assert structure.shapes[array][i] == axis.length


CARRIERS = {
    "linear_regression": ("obs", (("y", 0), ("x", 0))),
    "constant_covariates": ("y[0]", (("y", 0), ("constant 0", 0))),
    "eight_schools": ("school", (("y", 0), ("constant 0", 0))),
    "shared_axis": ("patient", (("pressure", 0), ("visits", 0), ("x", 0))),
    "labelled_dims": ("obs", (("y", 0), ("constant 0", 0))),
    "gaussian_random_walk": ("week", (("y", 0),)),
    "weibull_survival": ("y[0]", (("y", 0), ("followed", 0), ("treated", 0))),
}


@pytest.mark.parametrize("name", CARRIERS)
def test_what_carries_an_axis_is_found(name: str) -> None:
    axis = only_axis(MODELS[name].build())
    assert (axis.name, axis.carriers) == CARRIERS[name]


GROUPS = {
    "negative_binomial": ("clinic_index", 3),
    "centered_hierarchy": ("county_index", 5),
    "varying_slopes": ("group_index", 4),
    "zero_sum_effects": ("constant 0", 4),
    "dependent_bounds": ("group", 3),
    "labelled_dims": ("constant 0", 3),
    "eight_schools": (None, 0),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_rows_are_found(name: str) -> None:
    axis = only_axis(MODELS[name].build())
    assert axis.kind == "grouped"
    assert (axis.index, axis.groups) == GROUPS[name]


def test_crossed_groups_name_the_finer_one() -> None:
    def build() -> None:
        a = pm.Normal("a", shape=4)
        b = pm.Normal("b", shape=8)
        pm.Normal("y", a[np.arange(24) % 4] + b[np.arange(24) // 3], 1.0, observed=normals(24))

    axis = only_axis(model_of(build))
    assert (axis.kind, axis.groups) == ("grouped", 8)
    assert "into 4 groups" in axis.reason


PICKS = {
    "both axes": lambda e, who, what: e[who, what],
    "the other order": lambda e, who, what: e.T[what, who],
    "counted from one": lambda e, who, what: e[who, (what + 1) - 1],
    "of all cells": lambda e, who, what: e.flatten()[who * 4 + what],
}


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("first", ["who", "what"])
def test_each_index_is_counted_on_its_own_axis(pick: str, first: str) -> None:
    held = {"who": np.repeat(np.arange(7), 4), "what": np.random.default_rng(0).integers(0, 4, 28)}

    def build() -> None:
        data = {name: pm.Data(name, held[name]) for name in sorted(held, key=lambda name: name != first)}
        effect = pm.Normal("effect", shape=(7, 4))
        pm.Bernoulli("y", logit_p=PICKS[pick](effect, data["who"], data["what"]), observed=np.arange(28) % 2)

    axis = only_axis(model_of(build))
    assert (axis.index, axis.groups) == ("who", 7)
    assert "what puts rows into 4 groups" in axis.reason


# Independence


@pytest.mark.parametrize(
    ("name", "independent"),
    {
        "linear_regression": True,
        "constant_covariates": True,
        "standardized_covariate": False,
        "eight_schools": True,
        "autoregression": False,
        "gaussian_random_walk": True,
        "gp_marginal": False,
        "custom_random": True,
        "python_simulator": None,
        "censored_normal": True,
    }.items(),
)
def test_independence_of_rows(name: str, independent: bool | None) -> None:
    assert only_axis(MODELS[name].build()).independent is independent


def test_rows_of_a_multivariate_normal_are_independent_its_components_are_not() -> None:
    rows, components = structure_of(MODELS["multivariate_normal"].build()).axes
    assert (rows.independent, components.independent) == (True, False)


def test_components_of_fixed_sum_are_not_independent() -> None:
    rows, components = structure_of(MODELS["multinomial"].build()).axes
    assert (rows.independent, components.independent) == (True, False)


def test_a_potential_over_all_rows_couples_them() -> None:
    def build() -> None:
        mu = pm.Normal("mu")
        y = pm.Normal("y", mu, 1.0, observed=normals(24))
        pm.Potential("sum_to_zero", -0.5 * y.sum() ** 2)

    axis = only_axis(model_of(build))
    assert (axis.kind, axis.independent) == ("exchangeable", False)


def test_a_potential_over_distant_rows_orders_them() -> None:
    def build() -> None:
        mu = pm.Normal("mu")
        y = pm.Normal("y", mu, 1.0, observed=normals(24))
        pm.Potential("lag", -0.1 * (y[7:] * y[:-7]).sum())

    axis = only_axis(model_of(build))
    assert (axis.kind, axis.independent) == ("features", False)


def test_another_variable_that_sees_the_rows_couples_them() -> None:
    def build() -> None:
        mu = pm.Normal("mu")
        y = pm.Normal("y", mu, 1.0, observed=normals(24))
        pm.Normal("total", y.sum() ** 2, 1.0, observed=0.0)

    axis = only_axis(model_of(build))
    assert (axis.kind, axis.independent) == ("exchangeable", False)


# Traps


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_placeholders_prove_nothing(value: float) -> None:
    def build() -> None:
        rho = pm.Normal("rho", 0.5, 0.1)
        pm.AR("y", rho, 1.0, init_dist=pm.Normal.dist(0, 1), observed=np.full(12, value))

    assert only_axis(model_of(build)).kind == "sequence"


def test_rows_that_are_always_equal_cannot_be_tested() -> None:
    def build() -> None:
        p = pm.Beta("p", 1.0, 1e9)
        pm.Bernoulli("y", p, observed=np.zeros(10, dtype=int))

    axis = only_axis(model_of(build))
    assert (axis.kind, axis.independent) == ("features", None)
    assert "could not be tested" in axis.reason


def test_groups_hidden_in_a_constant_index_are_not_exchangeable_without_it() -> None:
    def build() -> None:
        effect = pm.Normal("effect", shape=3)
        pm.Normal("y", effect[np.repeat([0, 1, 2], 5)], 0.1, observed=normals(15))

    axis = only_axis(model_of(build))
    assert axis.carriers == (("y", 0), ("constant 0", 0))
    assert (axis.kind, axis.index, axis.groups) == ("grouped", "constant 0", 3)


def test_hidden_repeats_are_not_exchangeable() -> None:
    def build() -> None:
        effect = pm.Normal("effect", shape=3)
        pm.Normal("y", pt.repeat(effect, 5), 0.1, observed=normals(15))

    assert only_axis(model_of(build)).kind == "features"


def test_a_regression_on_time_is_exchangeable_with_its_covariate() -> None:
    def build() -> None:
        slope = pm.Normal("slope")
        time = np.arange(24.0)
        pm.Normal("y", slope * time + pt.sin(time), 1.0, observed=normals(24))

    axis = only_axis(model_of(build))
    assert (axis.kind, axis.independent) == ("exchangeable", True)


def test_standardized_time_is_no_sequence() -> None:
    def build() -> None:
        time = pm.Data("time", np.arange(24.0))
        pm.Normal("y", pm.Normal("slope") * (time - time.mean()) / time.std(), 1.0, observed=normals(24))

    axis = only_axis(model_of(build))
    assert (axis.kind, axis.independent) == ("exchangeable", False)


def test_a_covariance_is_permuted_by_rows_and_columns() -> None:
    factor = normals(9, 9)

    def build() -> None:
        scale = pm.HalfNormal("scale")
        pm.MvNormal("y", pm.Normal("mu"), cov=scale * (factor @ factor.T + np.eye(9)), observed=normals(9))

    axis = only_axis(model_of(build))
    assert axis.carriers == (("y", 0), ("constant 0", 0), ("constant 0", 1))
    assert (axis.kind, axis.independent) == ("exchangeable", False)


def test_the_density_tells_axes_of_one_length_apart() -> None:
    x = normals(20)

    def build() -> None:
        level = pm.Normal("level", shape=20)
        pm.Normal("y", level[:, None] + pm.Normal("slope") * x, 1.0, observed=normals(20, 20))

    rows, columns = structure_of(model_of(build)).axes
    assert (rows.kind, rows.carriers) == ("grouped", (("y", 0),))
    assert (columns.kind, columns.carriers) == ("exchangeable", (("y", 1), ("constant 0", 0)))


def test_variables_of_one_length_without_a_common_row_stay_apart() -> None:
    def build() -> None:
        mu = pm.Normal("mu")
        pm.Normal("a", mu, 1.0, observed=normals(10))
        pm.Normal("b", mu * normals(10, seed=1), 2.0, observed=normals(10))

    first, second = structure_of(model_of(build)).axes
    assert first.carriers == (("a", 0),)
    assert second.carriers == (("b", 0), ("constant 0", 0))


def test_series_of_one_length_are_one_sequence() -> None:
    def build() -> None:
        for name in "ab":
            pm.AR(name, pm.Normal(f"rho_{name}", 0.5, 0.1), 1.0, init_dist=pm.Normal.dist(), observed=normals(12))

    axis = only_axis(model_of(build))
    assert (axis.kind, axis.carriers) == ("sequence", (("a", 0), ("b", 0)))


def test_many_covariates_of_one_length() -> None:
    def build() -> None:
        beta = pm.Normal("beta", shape=9)
        columns = [pm.Data(f"x{i}", normals(11, seed=i)) for i in range(9)]
        pm.Normal("y", sum(beta[i] * x for i, x in enumerate(columns)), 1.0, observed=normals(11))

    axis = only_axis(model_of(build))
    assert (axis.kind, len(axis.carriers)) == ("exchangeable", 10)


@pytest.mark.parametrize("effect", ["normal", "zero_sum"])
def test_a_balanced_table_is_grouped(effect: str) -> None:
    def build() -> None:
        level = pm.Normal("level", shape=6) if effect == "normal" else pm.ZeroSumNormal("level", 1.0, shape=6)
        pm.Normal("y", level[:, None], 1.0, observed=normals(6, 9))

    assert kinds_of(structure_of(model_of(build)), "y") == ("grouped", "exchangeable")


def test_ordered_levels_cannot_be_permuted() -> None:
    def build() -> None:
        ordered = pm.distributions.transforms.ordered
        level = pm.Normal("level", shape=4, transform=ordered, initval=np.arange(4.0))
        pm.Normal("y", level[:, None], 1.0, observed=normals(4, 9))

    assert kinds_of(structure_of(model_of(build)), "y") == ("features", "exchangeable")


def test_a_panel_of_series() -> None:
    def build() -> None:
        pm.AR("y", pm.Normal("rho", 0.3, 0.1), 1.0, init_dist=pm.Normal.dist(), observed=normals(5, 12))

    assert kinds_of(structure_of(model_of(build)), "y") == ("exchangeable", "sequence")


@pytest.mark.parametrize(("species", "kind"), [(2, "features"), (4, "features"), (8, "sequence")])
def test_species_of_a_system_are_no_sequence(species: int, kind: str) -> None:
    def build() -> None:
        growth = pm.LogNormal("growth", 0.0, 0.1)
        start = pt.as_tensor(np.linspace(1, 2, species))
        path = pytensor.scan(
            lambda now, rate: now + 0.1 * rate * now * pt.arange(species),
            outputs_info=start,
            non_sequences=growth,
            n_steps=9,
            return_updates=False,
        )
        pm.Normal("y", path, 1.0, observed=normals(9, species))

    assert kinds_of(structure_of(model_of(build)), "y") == ("sequence", kind)


def test_latent_gaussian_processes_are_sequences_over_their_grid() -> None:
    for centered in (True, False):

        def build(centered: bool = centered) -> None:
            gp = pm.gp.Latent(cov_func=pm.gp.cov.Matern32(1, ls=pm.Gamma("length", 3.0, 3.0)))
            f = gp.prior("f", np.linspace(0, 1, 8)[:, None], reparameterize=not centered)
            pm.Poisson("y", pt.exp(f), observed=np.ones(8, dtype=int))

        assert only_axis(model_of(build)).kind == "sequence"


def test_nodes_of_a_network_are_not_rows() -> None:
    def build() -> None:
        node = pm.Normal("node", shape=7)
        pm.Normal("y", node[:, None] * node, 1.0, observed=normals(7, 7))

    structure = structure_of(model_of(build))
    assert kinds_of(structure, "y") == ("features", "features")
    assert "only be permuted together" in str(structure)


def _ambiguous(**dims: str) -> pm.Model:
    with pm.Model(coords={"row": [0, 1]}) as model:
        x = pm.Data("x", [0.0, 1.0], dims=dims.get("x"))
        w = pm.Data("w", [0.0, 2.0], dims=dims.get("w"))
        mu = pm.Normal("mu")
        contrast = mu * (x[0] - x[1]) * (w[0] - w[1])
        pm.Normal("y", pt.stack([contrast, -contrast]), 1.0, observed=[0.0, 1.0], dims=dims.get("y"))
    return model


def test_what_the_density_cannot_tell_apart_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"axis 0 of 'y' \(length 2\).*w or with x.*dims=.*structure=\{'y'"):
        structure_of(_ambiguous())
    (axis,) = structure_of(_ambiguous(y="row", w="row")).axes
    assert (axis.name, axis.carriers) == ("row", (("y", 0), ("w", 0)))
    assert kinds_of(structure_of(_ambiguous(), {"y": "exchangeable"}), "y") == ("exchangeable",)


# The user's word


def test_the_user_is_believed() -> None:
    model = MODELS["linear_regression"].build()
    for kind in ("exchangeable", "sequence", "grouped", "features"):
        structure = structure_of(model, {"y": kind})
        assert kinds_of(structure, "y") == (kind,)
        assert structure.axes[0].reason.startswith("you said so")
        assert structure.axes[0].carriers == (("y", 0), ("x", 0))
    assert kinds_of(structure_of(model, {"y": "flat"}), "y") == ("features",)
    assert structure_of(model, {"y": "flat"}).axes_of("y") == (None,)


def test_the_user_is_believed_axis_by_axis() -> None:
    model = MODELS["multivariate_normal"].build()
    assert kinds_of(structure_of(model, {"y": ("sequence", "sequence")}), "y") == ("sequence", "sequence")
    assert kinds_of(structure_of(model, {"y": "sequence"}), "y") == ("sequence", "features")
    image = MODELS["blurred_source"].build()
    assert kinds_of(structure_of(image, {"y": "flat"}), "y") == ("features", "features")
    assert kinds_of(structure_of(image, {"y": ["exchangeable"]}), "y") == ("exchangeable", "sequence")


def test_the_user_is_believed_without_density_and_against_it() -> None:
    assert kinds_of(structure_of(MODELS["python_simulator"].build(), {"y": "exchangeable"}), "y") == ("exchangeable",)
    (axis,) = structure_of(MODELS["autoregression"].build(), {"y": "exchangeable"}).axes
    assert axis.kind == "exchangeable"
    assert "found: sequence" in axis.reason


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"z": "sequence"}, KeyError, r"no observed variable is named 'z'; there are \['pressure', 'visits'\]"),
        ({"patient": "sequence"}, KeyError, r"'patient' is a dimension of \['pressure', 'visits'\]: structure="),
        ({"visits": "set"}, ValueError, r"'set' is no kind of axis; there are \['exchangeable'.*'flat'\]"),
        ({"visits": ("sequence", "features")}, ValueError, "2 kinds given for 1 axes"),
        ({"visits": 3}, TypeError, "must be a kind or a sequence of kinds, got int"),
        ("sequence", TypeError, "must map names of observed variables to kinds, got str"),
        ({"visits": "sequence", "pressure": "features"}, ValueError, "but they are the same axis"),
    ],
)
def test_what_the_user_cannot_say(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        structure_of(MODELS["shared_axis"].build(), given)


# What is found


def test_axes_of_arrays() -> None:
    structure = structure_of(MODELS["linear_regression"].build())
    (rows,) = structure.axes
    assert structure.axes_of("y") == (rows,)
    assert structure.axes_of("x") == (rows, None)
    assert structure.axes_of("beta") == (None,)
    with pytest.raises(KeyError, match="no array is named 'z'"):
        structure.axes_of("z")


def test_structure_reads_well() -> None:
    text = str(structure_of(MODELS["negative_binomial"].build()))
    assert text.startswith("obs: 18, grouped (y, clinic_index): clinic_index puts rows into 3 groups; ")
    assert "16 prior draws" in text
    assert text.endswith("independent given the parameters")
    assert "no axis" in str(structure_of(MODELS["scalar_observation"].build()))


def test_context_is_simulated() -> None:
    model = MODELS["negative_binomial"].build()
    spec = take_snapshot(model, context=["clinic_index"])
    context = ContextSampler(spec, {"clinic_index": "resample"})
    simulations = Simulator(spec, context=context, compile_kwargs=INTERPRETED)(SIMULATIONS, 1)
    structure = find_structure(spec, simulations, LogDensity(spec, INTERPRETED), np.random.SeedSequence(3))
    (axis,) = structure.axes
    assert (axis.kind, axis.index, axis.groups) == ("grouped", "clinic_index", 3)


def test_the_same_seed_finds_the_same() -> None:
    model = MODELS["constant_covariates"].build()
    assert str(structure_of(model)) == str(structure_of(model))


# Constants


def test_constants_of_a_model() -> None:
    x = normals(25, 3)

    def build() -> None:
        beta = pm.Normal("beta", shape=3)
        index = pt.constant(np.arange(25) % 3, name="index")
        error = pt.constant(np.linspace(1, 2, 25), name="beta")
        pm.Normal(
            "y", x @ beta + (x**2) @ beta[::-1] + pt.as_tensor(x)[:, 0] * beta[index], error, observed=normals(25)
        )

    spec = take_snapshot(model_of(build))
    assert {v.name: (v.shape, v.kind, v.role) for v in spec.constants} == {
        "constant 0": ((25, 3), "real", "constant"),
        "constant 1": ((25, 3), "real", "constant"),
        "index": ((25,), "count", "constant"),
        "beta 0": ((25,), "real", "constant"),
    }
    names = [v.name for v in spec.constants]
    assert all(v in spec.inputs for v in spec.constants)
    assert not {*names} & {*spec.model.named_vars, *(v.name for v in spec.fixed)}
    assert any(np.array_equal(spec.held[name], x) for name in names)


def test_every_use_of_a_constant_is_an_input() -> None:
    def model(x: np.ndarray) -> pm.Model:
        def build() -> None:
            pm.Normal("y", pm.Normal("slope") * x + pt.sin(x), 1.0 + pt.as_tensor(x) ** 2, observed=normals(9))

        return model_of(build)

    first, second = (take_snapshot(model(normals(9, seed=seed))) for seed in (1, 2))
    assert [v.name for v in first.constants] == ["constant 0"]
    theta = normals(5, 1)
    values = [LogDensity(spec, INTERPRETED)(theta, second.held) for spec in (first, second)]
    np.testing.assert_allclose(*values, rtol=1e-12)


@pytest.mark.parametrize("bound", ["finite", "infinite"])
def test_constants_that_pymc_must_see_stay(bound: str) -> None:
    lower = np.linspace(-3, -1, 7)
    lower[0] = -3 if bound == "finite" else -np.inf

    def build() -> None:
        pm.TruncatedNormal("y", pm.Normal("mu"), 1.0, lower=lower, upper=3.0, observed=np.zeros(7))

    spec = take_snapshot(model_of(build))
    assert len(spec.constants) == (bound == "finite")
    with pm.Model() as model:
        u = pm.Interpolated("u", np.linspace(0, 1, 7), np.ones(7))
        pm.Normal("y", u, 1.0, observed=normals(7))
    assert take_snapshot(model).constants == ()


def test_sizes_are_no_constants() -> None:
    assert take_snapshot(MODELS["potential"].build()).constants == ()
