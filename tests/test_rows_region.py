"""Where a learned likelihood holds: the region of its parameters, the support of its rows, and rows that are alike."""

import numpy as np
import pytest
import torch

from pymc_amortized.approximators.likelihood.training import rows_together
from pymc_amortized.networks.rows.row_network import RowNetwork
from pymc_amortized.row_density.column_density import RowSize
from pymc_amortized.row_density.columns import COLUMNS, CategoricalColumn, CountColumn, RealColumn, fit_column
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.row_density.fitting import fit_layout, fit_parameter
from pymc_amortized.row_density.namespaces import NUMPY
from pymc_amortized.row_density.places import places_differ
from pymc_amortized.row_density.prepared import Rows, prepare, prepare_together, usable
from pymc_amortized.row_density.row_layout import Layout
from pymc_amortized.row_density.row_parameters import Parameter

N = 40_000
RNG = np.random.default_rng(1)


def layout_of(names, parameters, values=None, kinds=(None,)):
    values = RNG.normal(size=(1, N)) if values is None else values
    return fit_layout(names, Rows(np.stack(parameters), values), list(kinds), 0)[0]


def furthest(layout, *parameters):
    return max(float(np.max(e)) for e in layout.extent(NUMPY, [np.array([p], dtype=float) for p in parameters]))


def test_parameters_that_go_together_have_a_region_together():
    mu, alpha = RNG.uniform(1, 10, N), RNG.uniform(1, 50, N)
    layout = layout_of(["alpha", "p"], [alpha, alpha / (alpha + mu)])
    assert layout.combinations
    inside = [furthest(layout, a, a / (a + m)) for m, a in ((2, 5), (5, 25), (9, 45))]
    assert max(inside) < 1
    each_alone = [p for p in layout.parameters]
    for mean in (40, 200):  # alpha and p have been this large and this small, though not at once
        p = 48 / (48 + mean)
        assert furthest(Layout(tuple(each_alone), layout.columns, layout.order), 48, p) < 1 < furthest(layout, 48, p)
        assert layout.penalty(NUMPY, [np.array([48.0]), np.array([p])]) > 0


def test_independent_parameters_have_no_combinations():
    layout = layout_of(list("abc"), [RNG.normal(size=N), RNG.uniform(size=N), RNG.gamma(2, size=N)])
    assert layout.combinations == ()


def test_what_follows_from_another_is_held_to_that():
    a = RNG.uniform(1, 2, N)
    layout = layout_of(["a", "twice"], [a, 2 * a])
    assert furthest(layout, 1.5, 3.0) <= 1 < furthest(layout, 1.5, 2.5)


def test_values_between_few_are_outside():
    layout = layout_of(["n", "q"], [np.repeat([10.0, 100.0], N // 2), RNG.uniform(size=N)])
    assert layout.parameters[0].levels == (10.0, 100.0) and layout.parameters[1].levels == ()
    assert furthest(layout, 10, 0.5) <= 1 and furthest(layout, 100, 0.5) <= 1 < furthest(layout, 50, 0.5)


@pytest.mark.parametrize(
    ("draws", "low", "wild"), [(RNG.normal(5, 0.8, N), True, -50.0), (RNG.uniform(0.05, 0.95, N), False, 3.0)]
)
def test_the_way_back_is_smooth_and_finite(draws, low, wild):
    parameter = fit_parameter("t", draws)
    layout = Layout((parameter,), (), ())
    assert parameter.transform == ("log" if low else "logit")
    end = parameter.low if low else parameter.high
    t = end * parameter.scale + parameter.center
    edge = np.exp(t) if low else 1 / (1 + np.exp(-t))
    away = -1.0 if low else 1.0
    x = edge + away * np.linspace(-0.02, 0.02, 4001)

    def of(values):
        return layout.encode_parameters(NUMPY, [values])

    f, cost = of(x)
    slopes = np.diff(f[0]) / np.diff(x)
    assert np.abs(np.diff(slopes)).max() < 1e-3 * np.abs(slopes).max()  # no kink at the edge
    assert (np.diff(cost) >= 0).all() and cost[0] == 0 < cost[-1]
    far, cost = of(np.array([wild]))
    assert np.isfinite(far).all() and np.isfinite(cost).all() and cost > 100
    assert furthest(layout, wild) > 1


def density(columns, parameters=1, **size):
    layout = Layout(
        tuple(Parameter(f"p{i}", "identity", 0.0, 1.0, -3.0, 3.0) for i in range(parameters)),
        columns,
        tuple(sorted(range(len(columns)), key=lambda i: not columns[i].choices)),
    )
    torch.manual_seed(1)
    network = RowNetwork(layout, RowSize(**size))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network, RowDensity(layout, network.size, tuple(network.arrays()))


def test_counts_with_a_largest_value_have_no_mass_beyond():
    y = RNG.binomial(20, RNG.uniform(size=N)).astype(float)
    column = layout_of(["p"], [RNG.uniform(size=N)], y[None]).columns[0]
    assert column.kind == "count" and column.top == 20
    assert layout_of(["p"], [RNG.uniform(size=N)], RNG.poisson(30, (1, N)).astype(float)).columns[0].top is None
    _, row = density((column,))
    parameters = [np.full(24, 0.3)]
    log_mass = row.log_density(NUMPY, [np.arange(-1.0, 23.0)], parameters)
    assert np.isneginf(log_mass[[0, -2, -1]]).all()
    np.testing.assert_allclose(np.exp(log_mass).sum(), 1, atol=1e-9)
    draws = row.sample(np.random.default_rng(1), [np.full(2000, 0.3)])
    assert draws.min() >= 0 and draws.max() <= 20


@pytest.mark.parametrize(
    ("column", "possible", "impossible"),
    [
        (CategoricalColumn((0.0, 1.0, 2.0)), [0, 2], [7, -3, 0.5]),
        (CountColumn(), [0, 12], [-1]),
        (RealColumn("log"), [0.1], [0.0, -2.0]),
        (RealColumn("logit"), [0.1, 0.9], [0.0, 1.0, 5.0]),
    ],
)
def test_rows_outside_the_support_have_no_density(column, possible, impossible):
    _, row = density((column,))
    for values, fine in ((possible, True), (impossible, False)):
        log_density = row.log_density(NUMPY, [np.array(values, float)], [np.zeros(len(values))])
        assert np.isfinite(log_density).all() if fine else np.isneginf(log_density).all()


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_each_kind_is_recognized_and_draws_what_it_allows(kind):
    values = {"categorical": RNG.integers(3, size=N), "count": RNG.poisson(30, N), "real": RNG.normal(size=N)}
    y = values[kind].astype(float)
    column = fit_column(y, None)
    assert column.kind == kind and column == fit_column(y, kind)
    _, row = density((column,))
    drawn = row.sample(np.random.default_rng(1), [np.zeros(500)])
    column.check(drawn[0], "y")
    assert np.isfinite(row.log_density(NUMPY, drawn, [np.zeros(500)])).all()
    with pytest.raises(ValueError, match=r"y: .*, got inf"):
        column.check(np.array([y[0], np.inf]), "y")


def test_numbers_that_add_up_have_no_density():
    shares = RNG.dirichlet([2, 3, 4], N).T
    with pytest.raises(ValueError, match="number 0 of a row follows from the others"):
        layout_of(["a"], [RNG.normal(size=N)], shares, (None,) * 3)
    assert len(layout_of(["a"], [RNG.normal(size=N)], shares[:2], (None,) * 2).columns) == 2


def test_rows_that_share_their_parameters_have_the_loss_of_single_ones():
    columns = (RealColumn(), CategoricalColumn((0.0, 1.0)), RealColumn("log"))
    network, _ = density(columns, parameters=2)
    shared = RNG.normal(size=(2, 30)) * 0.5
    rows = Rows(
        np.repeat(shared, 8, axis=1),
        np.stack([RNG.normal(size=240), RNG.integers(2, size=240).astype(float), RNG.gamma(2, size=240)]),
    )
    rows.values[2, 5] = -1.0  # has no logarithm
    log_slope, encoded = prepare(network.layout, rows)
    fine = usable(log_slope, encoded)
    assert fine.sum() == 239
    flat = {k: torch.from_numpy(v[fine]) for k, v in encoded.items()}
    of_each = network.loss(torch.from_numpy(log_slope[fine]), flat)
    for each in (8, 4):
        z, grouped = prepare_together(network.layout, rows, each)
        of_all = network.loss(torch.from_numpy(z), {k: torch.from_numpy(v) for k, v in grouped.items()})
        torch.testing.assert_close(of_each, of_all)


@pytest.mark.parametrize(("total", "part"), [(1, 1), (5, 5), (8, 8), (11, 5), (12, 6), (15, 5), (100, 8), (1000, 8)])
def test_few_rows_are_left_over_where_they_are_evaluated_together(total, part):
    assert rows_together(total) == part


def test_places_differ_where_a_covariate_is_hidden():
    a, b = RNG.normal(size=(2, 3000, 1))
    x = np.linspace(-1, 1, 50)
    noise = RNG.standard_t(3, size=(3000, 50))
    parameters = np.stack([a[:, 0], b[:, 0]])
    alike = a + noise * np.exp(b)
    assert not places_differ(alike[None], parameters)
    assert not places_differ(RNG.poisson(np.exp(a + 0 * x))[None], parameters)
    assert places_differ((alike + 0.3 * x)[None], parameters)  # a shift
    assert places_differ((alike + b * x)[None], parameters)  # one that averages out over data sets
    assert places_differ((a + noise * np.exp(0.2 * x))[None], parameters)  # a scale
    assert not places_differ(alike[None, :, :1], parameters)


def test_a_region_may_end_at_the_last_numbers_below_one():
    layout = Layout(
        (Parameter("p", "logit", 0.0, 1.0, -40.0, 40.0), Parameter("s", "log", 0.0, 1.0, -800.0, 5.0)), (), ()
    )
    values = [np.array([0.5, 0.9]), np.array([1.0, 1e-200])]
    assert np.isfinite(layout.encode_parameters(NUMPY, values)[0]).all()
