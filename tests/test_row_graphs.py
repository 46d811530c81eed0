"""What the graph of a distribution says about its rows: parameters, their names and axes, and what it is drawn by."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.rows.emulator import PYTENSOR, Emulator
from pymc_amortized.graph.rows.exchange import exchange_distribution
from pymc_amortized.graph.rows.finding import distribution_of, find_rows
from pymc_amortized.graph.rows.observed_rows import ObservedRows

INTERPRETED = {"mode": "FAST_COMPILE"}


def rows_of(build: Callable[[], Any], name: str = "y") -> ObservedRows:
    with pm.Model() as model:
        build()
    return find_rows(take_snapshot(model), name, {})


def shapes(build: Callable[[], Any], name: str = "y") -> list[tuple[str, tuple[int, ...], int]]:
    return [(p.name, p.core_shape, p.batch_ndim) for p in rows_of(build, name).parameters]


def names(build: Callable[[], Any]) -> list[tuple[str, tuple[str, ...]]]:
    return [(p.name, p.leaves) for p in rows_of(build).parameters]


@pytest.mark.parametrize("n", [2, 50])
def test_components_of_a_mixture_belong_to_each_row(n: int) -> None:
    def build() -> None:
        mu, sg, w = pm.Normal("mu", shape=2), pm.LogNormal("sg"), pm.Dirichlet("w", np.ones(2))
        pm.NormalMixture("y", w=w, mu=mu, sigma=sg, observed=np.zeros(n))

    assert shapes(build) == [("w", (2,), 0), ("mu", (2,), 0), ("sg", (), 0)]


def test_constant_weights_are_no_parameter_for_as_many_rows_as_weights() -> None:
    def build() -> None:
        pm.NormalMixture("y", w=[0.3, 0.7], mu=pm.Normal("mu", shape=2), sigma=1, observed=np.zeros(2))

    assert shapes(build) == [("mu", (2,), 0)]
    assert described(build)[2:] == [[0, [0.3, 0.7]], [2, [1.0]]]


def test_components_that_differ_from_row_to_row() -> None:
    def build() -> None:
        mu, sg = pm.Normal("mu", shape=(5, 2)), pm.LogNormal("sg", shape=(5, 1))
        pm.NormalMixture("y", w=[0.5, 0.5], mu=mu, sigma=sg, observed=np.zeros(5))

    assert shapes(build) == [("mu", (2,), 1), ("sg", (1,), 1)]


def test_components_of_vectors() -> None:
    def build() -> None:
        mu = pm.Normal("mu", shape=(2, 3))
        pm.Mixture("y", w=[0.5, 0.5], comp_dists=pm.MvNormal.dist(mu, np.eye(3)), observed=np.zeros((5, 3)))

    assert shapes(build)[0] == ("y_1", (2, 3), 0)


def test_a_list_of_components_has_no_axis_of_its_own() -> None:
    def build() -> None:
        a, p = pm.Normal("a", shape=5), pm.Dirichlet("p", np.ones(3), shape=(2, 3))
        components = [pm.Multinomial.dist(4, p[0]), pm.Multinomial.dist(4, p[1])]
        pm.Mixture("y", w=[0.5, 0.5], comp_dists=components, observed=np.zeros((5, 3), int))
        pm.Mixture("z", w=[0.5, 0.5], comp_dists=[pm.Normal.dist(a, 1), pm.Normal.dist(0, 1)], observed=np.zeros(5))

    assert shapes(build) == [("y_2", (3,), 0), ("y_4", (3,), 0)]
    assert shapes(build, "z") == [("a", (), 1)]


def test_first_values_of_a_series_belong_to_all_of_it() -> None:
    def build() -> None:
        rho, first = pm.Normal("rho", shape=2), pm.Normal("first", shape=2)
        pm.AR("y", rho, init_dist=pm.Normal.dist(first, 1), observed=np.zeros((4, 9)))

    assert shapes(build) == [("rho", (2,), 0), ("first", (2,), 0)]


def test_components_have_names_of_their_own() -> None:
    def build() -> None:
        s, a = pm.LogNormal("s", shape=2), pm.Normal("a")
        components = [pm.Normal.dist(a - 3, s[0]), pm.Normal.dist(a + 3, s[1])]
        pm.Mixture("y", w=[0.5, 0.5], comp_dists=components, observed=np.zeros(9))

    assert names(build) == [("mu_0", ("a",)), ("sigma_0", ()), ("mu_1", ("a",)), ("sigma_1", ())]


def test_a_name_of_a_component_that_the_model_has_is_not_used() -> None:
    def build() -> None:
        s, a = pm.LogNormal("s", shape=2), pm.Normal("sigma_1")
        components = [pm.Normal.dist(a, s[0]), pm.Normal.dist(2 * a, s[1])]
        pm.Mixture("y", w=[0.5, 0.5], comp_dists=components, observed=np.zeros(9))

    assert [name for name, _ in names(build)] == ["sigma_1", "sigma_0", "mu", "y_4"]


def test_different_elements_of_one_vector_are_not_one_name() -> None:
    def build() -> None:
        b = pm.Normal("b", shape=2)
        pm.Normal("y", b[0], pm.math.exp(b[1]), observed=np.zeros(9))

    assert names(build) == [("mu", ()), ("sigma", ("",))]


def test_the_same_element_in_two_arguments_is_one_name() -> None:
    def build() -> None:
        b = pm.Normal("b", shape=3)
        group = np.repeat([0, 1, 2], 3)
        pm.Normal("y", b[group], pm.math.exp(b[group]), observed=np.zeros(9))

    assert names(build) == [("b", ()), ("sigma", ("b",))]


def described(build: Callable[[], Any]) -> list[Any]:
    with pm.Model() as model:
        build()
    spec = take_snapshot(model)
    return distribution_of(spec, find_rows(spec, "y", {}))


def mixture(component: Any, n: int = 9, wide: bool = False) -> Callable[[], Any]:
    def build() -> None:
        a, s = pm.Normal("a", shape=n if wide else None), pm.LogNormal("s")
        pm.Mixture("y", w=[0.5, 0.5], comp_dists=[component(a, s), pm.Normal.dist(a + 4, s)], observed=np.zeros(n))

    return build


def test_other_components_are_another_distribution() -> None:
    ours = described(mixture(pm.Normal.dist))
    assert ours[:2] == ["MixtureRV", {"of": ["NormalRV", "NormalRV"]}]
    assert described(mixture(pm.Laplace.dist)) != ours
    assert described(mixture(pm.Normal.dist, 5)) == described(mixture(pm.Normal.dist, 9, wide=True)) == ours


def custom(draw: Any, names: tuple[str, str] = ("a", "s"), n: int = 9, wide: bool = False) -> Callable[[], Any]:
    def build() -> None:
        a, s = pm.Normal(names[0], shape=n if wide else None), pm.LogNormal(names[1])
        pm.CustomDist("y", a, s, dist=draw, observed=np.zeros(n))

    return build


def scaled(factor: Any) -> Any:
    return lambda a, s, size: pm.Normal.dist(a, s * factor, size=size)


def shifted(family: Any) -> Any:
    return lambda a, s, size: pm.math.exp(family.dist(a, s, size=size)) + 0.5


def test_another_inner_graph_is_another_distribution() -> None:
    ours = described(custom(scaled(2.0)))
    assert ours[1] == {"by": [["Mul(input 2, 2.0)", "NormalRV(input 1, #0)[1]", "gives #1"]]}
    for same in (
        custom(scaled(np.array(2))),
        custom(scaled(2.0), ("b", "t")),
        custom(scaled(2.0), n=5),
        custom(scaled(2.0), wide=True),
    ):
        assert described(same) == ours
    assert described(custom(scaled(3.0))) != ours
    assert described(custom(shifted(pm.Normal))) == described(custom(shifted(pm.Normal), n=5, wide=True))
    assert described(custom(shifted(pm.Normal))) != described(custom(shifted(pm.Laplace)))


def test_settings_of_a_series_are_part_of_its_distribution() -> None:
    def series(constant: bool) -> Callable[[], Any]:
        def build() -> None:
            pm.AR("y", pm.Normal("rho", shape=2), constant=constant, init_dist=pm.Normal.dist(), observed=np.zeros(9))

        return build

    assert described(series(True)) != described(series(False))


def test_a_truncated_distribution_has_the_arguments_of_the_whole_one() -> None:
    def truncated(family: Any) -> Callable[[], Any]:
        def build() -> None:
            a, s, top = pm.Normal("a", shape=9), pm.LogNormal("s"), pm.LogNormal("top")
            pm.Truncated("y", family.dist(a, 2 * s), lower=-20, upper=20 + top, observed=np.zeros(9))

        return build

    assert shapes(truncated(pm.Logistic)) == [("a", (), 1), ("y_1", (), 0), ("upper", (), 0)]
    assert described(truncated(pm.Logistic))[1] == {"of": ["LogisticRV"]}
    assert described(truncated(pm.Gumbel)) != described(truncated(pm.Logistic))


def test_truncating_what_is_made_of_distributions_is_refused_by_name() -> None:
    def build() -> None:
        pm.Truncated(
            "y", pm.ExGaussian.dist(mu=pm.Normal("a"), sigma=1, nu=1), lower=-20, upper=20, observed=np.zeros(9)
        )

    with pytest.raises(ValueError, match="'y' is drawn by TruncatedRV, whose parameters are not known"):
        rows_of(build)


class Gaussian:
    """Stands in for a trained network, with an exact density."""

    layout = type("layout", (), {"lags": 0, "columns": [None]})

    @staticmethod
    def log_density(xp: Any, columns: Any, elements: Any, past: Any, shared: Any) -> Any:
        stacked = PYTENSOR.stack(elements)
        mu, sigma = (stacked[i] if shared is None else stacked[i][shared] for i in range(2))
        return -0.5 * ((columns[0] - mu) / sigma) ** 2 - pt.log(sigma) - 0.5 * np.log(2 * np.pi)


EXACT: Any = Emulator(Gaussian(), (), False, ((), ()), "float64")  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(3, 3), (3, 8), (8, 3)])
def test_one_index_into_vectors_of_different_lengths(sizes: tuple[int, int]) -> None:
    group, y = np.arange(20) % 3, np.linspace(-1, 1, 20)
    a, s = np.arange(sizes[0]) + 0.5, np.arange(sizes[1]) + 1.0
    logp = EXACT.logp(y, pt.constant(a)[group], pt.constant(s)[group])
    assert_allclose(logp.eval(**INTERPRETED), stats.norm(a[group], s[group]).logpdf(y))


def test_parameters_repeated_along_one_axis_of_several() -> None:
    y, a = np.linspace(-1, 1, 160).reshape(20, 8), np.repeat([0.0, 1.0], 4)
    assert_allclose(EXACT.logp(y, pt.constant(a), pt.constant(1.0)).eval(**INTERPRETED), stats.norm(a, 1).logpdf(y))
    group = np.arange(8) % 2
    logp = EXACT.logp(y, pt.constant(a)[group], pt.constant(a + 1)[group])
    assert_allclose(logp.eval(**INTERPRETED), stats.norm(a[group], a[group] + 1).logpdf(y))


def exchange(model: pm.Model, n: int) -> pm.Model:
    return exchange_distribution(model, find_rows(take_snapshot(model), "y", {}), EXACT, np.ones(n))


def followed() -> pm.Model:
    with pm.Model(coords={"o": range(20)}) as model:
        a, s = pm.Normal("a"), pm.LogNormal("s")
        y = pm.Normal("y", a, s, observed=np.zeros(20), dims="o")
        pm.Deterministic("mean", y.mean())
        pm.Deterministic("twice", 2 * a)
        pm.Deterministic("more", y + 1, dims="o")
    return model


def test_deterministics_of_the_observed_variable_follow_it() -> None:
    made = exchange(followed(), 20)
    assert [v.name for v in made.free_RVs] == ["a", "s"]
    assert [v.name for v in made.deterministics] == ["mean", "twice", "more"]
    mean, more = made.replace_rvs_by_values([made["mean"], made["more"]])
    assert_allclose(mean.eval(**INTERPRETED), 1)
    assert_allclose(more.eval(**INTERPRETED), np.full(20, 2.0))


def test_deterministics_of_the_observed_variable_are_left_out_for_other_rows() -> None:
    made = exchange(followed(), 7)
    assert [v.name for v in made.deterministics] == ["twice"]
    assert len(made.coords["o"]) == made.dim_lengths["o"].eval() == 7


def test_other_rows_along_a_dim_of_another_variable_are_refused() -> None:
    with pm.Model(coords={"o": range(20)}) as model:
        a, s = pm.Normal("a"), pm.LogNormal("s")
        pm.Normal("y", a, s, observed=np.zeros(20), dims="o")
        pm.Normal("z", a, 1, observed=np.zeros(20), dims="o")
    exchange(model, 20)
    with pytest.raises(ValueError, match="'y'. has 7 rows along the dim 'o', which 'z' has, too, with 20"):
        exchange(model, 7)
