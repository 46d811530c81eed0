"""Summary networks: every branch through one contract, then what they have to learn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pymc_amortized.networks import (
    ArrayLayout,
    AxisLayout,
    DataLayout,
    Flat,
    Grid,
    Grouped,
    PosteriorNetwork,
    Sequence,
    Set,
    SetTransformer,
    Spline,
    SummaryNetwork,
    Transformer,
)
from pymc_amortized.networks.summary.coupled import NOISES, kriging
from pymc_amortized.networks.summary.lags import MEMORIES, smoothing_errors

BATCH = 300
SMALL = {"width": 16, "depth": 1}


@pytest.fixture(autouse=True)
def forked() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """Data and a network for them."""

    layout: DataLayout
    summary: object
    branch: str  # what the first branch has to be
    permutable: tuple[str, ...] = ()  # axes along which order does not matter
    ordered: tuple[str, ...] = ()  # axes along which it does


def rows(
    kind: str = "set", n: int = 12, *, sized: bool = True, missing: bool = False, index: bool = False
) -> DataLayout:
    arrays = [
        ArrayLayout("y", (n,), "real", ("row",), missing),
        ArrayLayout("x", (n, 2), "real", ("row", None)),
        ArrayLayout("total", (), "real"),
    ]
    if index:
        arrays.append(ArrayLayout("group", (n,), "count", ("row",)))
    axis = AxisLayout("row", n, kind, sized, "group" if index else None, 4 if index else 0)  # type: ignore[arg-type]
    return DataLayout(tuple(arrays), (axis,))


def places(**options: bool) -> DataLayout:
    """Rows that depend on each other by what is given of them."""
    layout = rows(**options)
    y, x, total = layout.arrays
    return DataLayout((y, replace(x, given=True), total), (replace(layout.axes[0], coupled=True),))


def table(*, sized: bool = True, missing: bool = False, inner: bool = True) -> DataLayout:
    axes = (AxisLayout("school", 5, "groups"), AxisLayout("trial", 12, "set", sized))
    y = ArrayLayout("y", (5, 12), "real", ("school", "trial"), missing)
    if not inner:
        return DataLayout(
            (
                ArrayLayout("y", (5,), "real", ("school",), missing),
                ArrayLayout("se", (5,), "real", ("school",)),
            ),
            (replace(axes[0], sized=sized),),
        )
    return DataLayout((y, ArrayLayout("x", (5,), "real", ("school",)), ArrayLayout("total", (), "real")), axes)


def image(n: int = 12, *, sized: bool = True, missing: bool = False) -> DataLayout:
    axes = (AxisLayout("row", n, "sequence", sized), AxisLayout("column", 9, "sequence"))
    y = ArrayLayout("y", (n, 9), "real", ("row", "column"), missing)
    return DataLayout((y, ArrayLayout("x", (n,), "real", ("row",)), ArrayLayout("total", (), "real")), axes)


def cases(**options: bool) -> dict[str, Case]:
    series = rows("sequence", 20, **options)
    row = {"row_width": 8}
    return {
        "flat": Case(rows(**options), Flat(**SMALL), "FlatBranch", (), ("row",)),
        "set": Case(rows(**options), "auto", "SetBranch", ("row",)),
        "set of places": Case(places(**options), "auto", "SetBranch", ("row",)),
        "set of a series": Case(series, Set(**SMALL, **row, row_depth=1), "SetBranch", ("row",)),
        "set_transformer": Case(
            rows(**options), SetTransformer(**SMALL, **row, heads=2), "SetTransformerBranch", ("row",)
        ),
        "sequence": Case(series, "auto", "SequenceBranch", (), ("row",)),
        "long sequence": Case(
            rows("sequence", 150, **options), Sequence(**SMALL, **row), "SequenceBranch", (), ("row",)
        ),
        "transformer": Case(series, Transformer(**SMALL, **row, heads=2), "TransformerBranch", (), ("row",)),
        "grid": Case(image(**options), Grid(**SMALL, **row), "GridBranch", (), ("row", "column")),
        "grouped by an index": Case(rows(n=14, index=True, **options), "auto", "GroupedBranch", ("row",)),
        "grouped table": Case(table(**options), Grouped(**SMALL, **row), "GroupedBranch", ("trial",), ("school",)),
        "groups": Case(table(inner=False, **options), "auto", "GroupedBranch", (), ("school",)),
    }


def simulate(layout: DataLayout, n: int = BATCH, seed: int = 0) -> tuple[np.ndarray, dict, dict]:
    """Parameters, data with garbage beyond the sizes, and the sizes."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(n, 2))
    data = {}
    for array in layout.arrays:
        level = theta[:, 0].reshape(-1, *[1] * len(array.shape))
        data[array.name] = level + rng.normal(size=(n, *array.shape))
        if layout.groups_of(array.name):
            data[array.name] = rng.integers(0, layout.groups_of(array.name), (n, *array.shape))
        if array.missing:
            data[array.name][rng.random((n, *array.shape)) < 0.3] = np.nan
    sizes = {a.name: rng.integers(a.length // 2, a.length + 1, n) for a in layout.axes if a.sized}
    return theta, data, sizes


def built(case: Case) -> tuple[PosteriorNetwork, dict, dict]:
    theta, data, sizes = simulate(case.layout)
    network = PosteriorNetwork.build(
        case.layout, theta, data, sizes=sizes, summary=case.summary, density=Spline(layers=1, hidden=8)
    )
    with torch.no_grad():  # wake what starts at zero
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network, {k: v[:6] for k, v in data.items()}, {k: v[:6] for k, v in sizes.items()}


def context(network: PosteriorNetwork, data: dict, sizes: dict | None = None) -> Tensor:
    with torch.no_grad():
        out = network.context(data, sizes=sizes).features
    assert torch.isfinite(out).all()
    return out


def altered(layout: DataLayout, data: dict, change, axis: str | None = None) -> dict:
    """Change (values, position of the axis) of every array with that axis."""
    return {
        a.name: change(data[a.name], 1 + a.axes.index(axis)) if axis in a.axes else data[a.name] for a in layout.arrays
    }


SIZED = cases(sized=True)
GAPS = cases(sized=True, missing=True)
COMPLETE = cases(sized=False)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("missing", [False, True])
def test_padding_does_not_matter(name: str, missing: bool) -> None:
    case = (GAPS if missing else SIZED)[name]
    network, data, sizes = built(case)
    assert type(network.summary.branches[0]).__name__ == case.branch
    together = context(network, data, sizes)
    (axis,) = sizes
    for fill in (np.nan, 1e300, 0.0):
        filled = {k: np.array(v, dtype=np.float64) for k, v in data.items()}
        for array in case.layout.arrays:
            if axis in array.axes:
                beyond = np.arange(case.layout.axis(axis).length) >= sizes[axis][:, None]
                shape = [6, *(len(beyond[0]) if a == axis else 1 for a in array.axes)]
                filled[array.name][np.broadcast_to(beyond.reshape(shape), filled[array.name].shape)] = fill
        torch.testing.assert_close(context(network, filled, sizes), together, atol=1e-5, rtol=1e-5)
        assert max(far.distance.max() for far in network.encoder.outside(filled, sizes).values()) < 1
    for i in range(6):
        alone = {k: v[i : i + 1] for k, v in data.items()}
        cut = altered(case.layout, alone, lambda v, p, i=i: v.take(range(sizes[axis][i]), p), axis)
        size = {axis: sizes[axis][i : i + 1]}
        torch.testing.assert_close(context(network, cut, size), together[i : i + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("missing", [False, True])
def test_order_matters_where_it_should(name: str, missing: bool) -> None:
    case = (cases(sized=False, missing=True) if missing else COMPLETE)[name]
    network, data, _ = built(case)
    before = context(network, data)
    for axis in (*case.permutable, *case.ordered):
        order = np.random.default_rng(0).permutation(case.layout.axis(axis).length)
        after = context(network, altered(case.layout, data, lambda v, p, o=order: v.take(o, p), axis))
        if axis in case.permutable:
            torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
        else:
            assert (after - before).abs().amax(1).min() > 1e-3
    if case.permutable != ("trial",):  # which y belongs to which x matters
        apart = context(network, data | {"y": np.flip(data["y"], -1)})
        assert (apart - before).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("name", [name for name in SIZED if name not in ("flat", "groups")])
def test_more_of_the_same_is_more(name: str) -> None:
    case = SIZED[name]
    network, data, sizes = built(case)
    (axis,) = sizes
    half = {axis: np.full(6, case.layout.axis(axis).length // 2)}
    full = {axis: 2 * half[axis]}

    def twice(values: np.ndarray, place: int) -> np.ndarray:
        values = values.take(range(half[axis][0]), place)
        return np.concatenate([values, values], place)

    doubled = altered(case.layout, data, twice, axis)
    assert (context(network, doubled, full) - context(network, doubled, half)).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("name", GAPS)
def test_gaps_are_seen_and_what_stands_in_them_is_not(name: str) -> None:
    network, data, sizes = built(GAPS[name])
    before = context(network, data, sizes)
    hole = {k: v.copy() for k, v in data.items()}
    first = (slice(None),) + (0,) * (data["y"].ndim - 1)
    hole["y"][first] = np.where(np.isnan(data["y"][first]), 0.7, np.nan)
    assert (context(network, hole, sizes) - before).abs().amax(1).min() > 1e-4
    _, encoded = network.prepare(np.zeros((6, 2)), data, sizes=sizes)
    absent = encoded["y"][..., -1] == 0
    assert (encoded["y"][absent] == 0).all()
    with torch.no_grad():
        encoded["y"][..., 0][absent] = 0.0
        torch.testing.assert_close(network.summary(encoded), before)


@pytest.mark.parametrize("name", GAPS)
def test_little_or_nothing_is_finite_with_its_gradients(name: str) -> None:
    case = GAPS[name]
    network, data, sizes = built(case)
    (axis,) = sizes
    empty = {k: v.copy() for k, v in data.items()}
    empty["y"][:] = np.nan
    constant = {k: np.ones_like(v) for k, v in data.items()}
    for values in (data, empty, constant):
        for size in (0, 1, 2, 3, case.layout.axis(axis).length):
            network.zero_grad()
            z, encoded = network.prepare(np.zeros((6, 2)), values, sizes={axis: np.full(6, size)})
            network.loss(z, encoded).backward()
            for parameter in network.parameters():
                assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    with torch.no_grad():
        extreme = {k: np.full(v.shape, 1e300 if v.dtype == np.float64 else 3) for k, v in data.items()}
        assert all(torch.isfinite(out).all() for out in network.sample(5, extreme, sizes=sizes))


@pytest.mark.parametrize("name", GAPS)
def test_description_round_trip(name: str) -> None:
    network, data, sizes = built(GAPS[name])
    again = PosteriorNetwork.from_description(json.loads(json.dumps(network.description())))
    again.load_state_dict({k: v.clone() for k, v in network.state_dict().items()})
    assert again.encoder.layout == network.encoder.layout
    assert torch.equal(context(again, data, sizes), context(network, data, sizes))
    with torch.device("meta"):  # as files are checked before memory is taken
        empty = PosteriorNetwork.from_description(network.description())
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


@pytest.mark.parametrize("name", GAPS)
def test_what_is_known_of_data_need_not_be_computed_again(name: str) -> None:
    network, data, sizes = built(GAPS[name])
    z, encoded = network.prepare(np.random.default_rng(0).normal(size=(6, 2)), data, sizes=sizes)
    loss = network.loss(z, encoded)
    measured = network.measured(encoded)
    torch.testing.assert_close(network.loss(z, measured), loss, rtol=1e-5, atol=1e-5)
    for known in (encoded, measured):
        reduced = network.reduced(known)
        assert all(not value.requires_grad for value in reduced.values()) and not set(reduced) & set(encoded)
        again = network.loss(z, reduced)
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
    again.backward()
    branches = {id(p) for p in network.summary.branches.parameters()}
    assert all((p.grad is None) is (id(p) in branches) for p in network.summary.parameters())


def test_groups_by_other_names_are_the_same_when_pooled() -> None:
    case = SIZED["grouped by an index"]
    network, data, sizes = built(case)
    branch = network.summary.branches[0]
    other = data | {"group": np.array([2, 0, 3, 1])[data["group"]]}

    def pooled(values: dict) -> tuple[Tensor, Tensor, Tensor]:
        _, encoded = network.prepare(np.zeros((6, 2)), values, sizes=sizes)
        with torch.no_grad():
            t, p = branch.raw_statistics(encoded), branch(encoded)
        return t[:, : branch.pooled_statistics], p[:, : branch.pooled_features], t[:, branch.pooled_statistics :]

    for before, after in zip(pooled(data)[:2], pooled(other)[:2], strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert (pooled(data)[2] - pooled(other)[2]).abs().max() > 0.1


# Choices

TWO = DataLayout(
    (
        ArrayLayout("y", (10,), "real", ("row",)),
        ArrayLayout("short", (4,), "real", ("step",)),
        ArrayLayout("long", (30, 3), "real", ("time", None)),
        ArrayLayout("total", (2,), "real"),
    ),
    (AxisLayout("row", 10, "set"), AxisLayout("step", 4, "sequence"), AxisLayout("time", 30, "sequence")),
)


def branches(layout: DataLayout, summary: object) -> list[str]:
    theta, data, sizes = simulate(layout, 60)
    network = PosteriorNetwork.build(layout, theta, data, sizes=sizes, summary=summary)
    assert isinstance(network.summary, SummaryNetwork)
    return [type(branch).__name__.removesuffix("Branch") for branch in network.summary.branches]


def test_arrays_that_share_no_axis_have_branches_of_their_own() -> None:
    assert branches(TWO, "auto") == ["Set", "Flat", "Sequence"]
    assert branches(TWO, "set_transformer") == ["SetTransformer", "Flat", "Sequence"]
    assert branches(TWO, "transformer") == ["Set", "Transformer", "Transformer"]
    assert branches(TWO, "flat") == ["Flat"]
    assert branches(table(), "set") == ["Set", "Grouped"]
    assert branches(image(), "sequence") == ["Sequence"]
    assert branches(DataLayout((ArrayLayout("y", (5,), "real"),)), "auto") == ["Flat"]


@pytest.mark.parametrize(
    ("summary", "layout", "message"),
    [
        ("set", DataLayout((ArrayLayout("y", (5,), "real"),)), "Set needs .* no named axis"),
        ("transformer", DataLayout((ArrayLayout("y", (5,), "real"),)), "no named axis"),
        ("grid", TWO, "two sequence axes; the data have set axis 'row'"),
        ("grouped", TWO, "groups axis or an index"),
    ],
)
def test_choices_that_do_not_fit_are_refused(summary: str, layout: DataLayout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        branches(layout, summary)


@pytest.mark.parametrize("options", [Flat, Set, SetTransformer, Sequence, Transformer, Grid, Grouped])
def test_options_are_checked(options: type) -> None:
    with pytest.raises(ValueError, match="width is 0"):
        options(width=0)
    with pytest.raises(ValueError, match="depth is -1"):
        options(depth=-1)
    with pytest.raises(TypeError, match="features is 'many'"):
        options(features="many")
    if options in (SetTransformer, Transformer):
        with pytest.raises(ValueError, match="multiple of heads"):
            options(row_width=10, heads=4)


# Learning


def train(
    network: PosteriorNetwork, theta: np.ndarray, data: dict, sizes: dict, steps: int, rate: float = 2e-3
) -> None:
    z, encoded = network.prepare(theta, data, sizes=sizes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.1)
    for _ in range(steps):
        index = torch.randint(len(z), (256,))
        optimizer.zero_grad()
        network.loss(z[index], {name: values[index] for name, values in encoded.items()}).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def moments(network: PosteriorNetwork, data: dict, sizes: dict | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations (batch, dim) of draws."""
    with torch.no_grad():
        draws, _ = network.sample(2000, data, torch.Generator().manual_seed(0), sizes=sizes)
    return draws.mean(0).numpy(), draws.std(0).numpy()


def test_the_posterior_narrows_with_the_number_of_rows() -> None:
    """mu ~ N(0, 1), y_i ~ N(mu, 1), i up to n: sd 1 / sqrt(n + 1)."""
    rng = np.random.default_rng(0)
    mu, n = rng.normal(size=(8_000, 1)), rng.integers(5, 101, 8_000)
    y = mu + rng.normal(size=(8_000, 100))
    layout = DataLayout((ArrayLayout("y", (100,), "real", ("row",)),), (AxisLayout("row", 100, "set", True),))
    network = PosteriorNetwork.build(layout, mu, {"y": y}, sizes={"row": n}, density=Spline(hidden=32))
    train(network, mu, {"y": y}, {"row": n}, 300)
    for size in (5, 10, 20, 50, 100):
        mean, sd = moments(network, {"y": y[:200, :size]}, {"row": np.full(200, size)})
        exact = (size + 1) ** -0.5
        assert np.abs(sd / exact - 1).mean() < 0.1
        error = (mean[:, 0] - y[:200, :size].sum(1) / (size + 1)) / exact
        assert np.sqrt((error**2).mean()) < 0.15


@pytest.mark.parametrize("missing", [False, True])
def test_a_series_tells_its_autocorrelation(missing: bool) -> None:
    """y_t ~ N(phi y_t-1, 1): against the posterior on a grid (approximate where values are missing)."""
    rng = np.random.default_rng(0)
    steps = 60
    phi = rng.uniform(-0.9, 0.9, (8_000, 1))
    y = rng.normal(size=(8_000, steps))
    for t in range(1, steps):
        y[:, t] += phi[:, 0] * y[:, t - 1]
    n = rng.integers(20, steps + 1, 8_000)
    layout = DataLayout(
        (ArrayLayout("y", (steps,), "real", ("time",), missing),), (AxisLayout("time", steps, "sequence", True),)
    )
    seen = y.copy()
    if missing:
        seen[rng.random(y.shape) < 0.1] = np.nan
    z = np.arctanh(phi / 0.9)
    network = PosteriorNetwork.build(layout, z, {"y": seen}, sizes={"time": n}, density=Spline(hidden=32))
    train(network, z, {"y": seen}, {"time": n}, 150)
    with torch.no_grad():
        draws, _ = network.sample(1000, {"y": seen[:200]}, torch.Generator().manual_seed(0), sizes={"time": n[:200]})
    draws = 0.9 * np.tanh(draws[..., 0].numpy())
    grid = np.linspace(-0.9, 0.9, 401)
    before, now = y[:200, :-1], y[:200, 1:]
    inside = np.arange(1, steps) < n[:200, None]
    log_p = -0.5 * np.where(inside[..., None], (now[..., None] - grid * before[..., None]) ** 2, 0).sum(1)
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = p @ grid
    sd = np.sqrt(p @ grid**2 - mean**2)
    error = np.sqrt((((draws.mean(0) - mean) / sd) ** 2).mean())
    ratio = draws.std(0) / sd
    if missing:  # each gap costs two of the pairs
        assert error < 0.8 and 1.0 < ratio.mean() < 1.35
    else:
        assert error < 0.25 and abs(ratio.mean() - 1) < 0.1


def test_groups_tell_their_means() -> None:
    """theta_g ~ N(0, 1), y_i ~ N(theta_g(i), 1): n_g / (n_g + 1) of the group's mean, sd 1 / sqrt(n_g + 1)."""
    rng = np.random.default_rng(0)
    theta, group = rng.normal(size=(8_000, 4)), rng.integers(0, 4, (8_000, 24))
    y = np.take_along_axis(theta, group, 1) + rng.normal(size=(8_000, 24))
    layout = DataLayout(
        (ArrayLayout("y", (24,), "real", ("row",)), ArrayLayout("group", (24,), "count", ("row",))),
        (AxisLayout("row", 24, "set", index="group", groups=4),),
    )
    data = {"y": y, "group": group}
    network = PosteriorNetwork.build(layout, theta, data, density=Spline(hidden=32, layers=2))
    train(network, theta, data, {}, 200)
    mean, sd = moments(network, {k: v[:300] for k, v in data.items()})
    one_hot = group[:300, :, None] == np.arange(4)
    n, total = one_hot.sum(1), (one_hot * y[:300, :, None]).sum(1)
    error = (mean - total / (n + 1)) * np.sqrt(n + 1)
    ratio = sd * np.sqrt(n + 1)
    assert np.sqrt((error**2).mean()) < 0.25
    assert abs(ratio.mean() - 1) < 0.07 and np.abs(ratio - 1).mean() < 0.12


# Fixed statistics, against their definitions written out


def some_series(generator: torch.Generator, steps: int = 9) -> tuple[Tensor, Tensor]:
    present = (torch.rand(3, steps, 2, generator=generator) > 0.3).float()
    return torch.randn(3, steps, 2, generator=generator), present


def test_smoothing_errors_are_those_of_the_weighted_mean_of_the_past() -> None:
    values, present = some_series(torch.Generator().manual_seed(1))

    def error(memory: float, y: Tensor, seen: Tensor) -> float:
        squares = []
        for t in range(1, len(y)):
            weights = [memory ** (t - 1 - s) * float(seen[s]) for s in range(t)]
            if sum(weights) and seen[t]:
                past = sum(w * float(y[s]) for s, w in enumerate(weights)) / sum(weights)
                squares.append((float(y[t]) - past) ** 2)
        return math.log(sum(squares) / len(squares))

    found = smoothing_errors(values, present).reshape(3, len(MEMORIES), 2)
    expected = [[[error(m, values[i, :, c], present[i, :, c]) for c in range(2)] for m in MEMORIES] for i in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_kriging_fits_are_those_of_a_normal_distribution() -> None:
    generator = torch.Generator().manual_seed(2)
    y, place = torch.randn(2, 7, generator=generator), 3 * torch.rand(2, 7, generator=generator)
    seen = torch.ones(2, 7)
    seen[1, 4:] = 0
    y[1, 4:] = torch.nan
    distance = (place[:, :, None] - place[:, None, :]).abs()
    reach = torch.tensor([0.5])
    found = kriging(y.nan_to_num(9.0), seen, distance, reach).reshape(2, len(NOISES), 4).double()
    for i, n in enumerate((7, 4)):
        h = math.sqrt(3) * distance[i, :n, :n].double().numpy() / 0.5
        for noise, (zero, about, mean, determinant) in zip(NOISES, found[i].numpy(), strict=True):
            inverse = np.linalg.inv(r := (1 + h) * np.exp(-h) + noise * np.eye(n))
            x, ones = y[i, :n].double().numpy(), np.ones(n)
            best = ones @ inverse @ x / (ones @ inverse @ ones)
            assert mean == pytest.approx(best, abs=1e-4)
            assert zero == pytest.approx(math.log(x @ inverse @ x / n), abs=1e-3)
            assert about == pytest.approx(math.log((x - best) @ inverse @ (x - best) / n), abs=1e-3)
            assert determinant == pytest.approx(np.linalg.slogdet(r)[1] / n, abs=1e-3)


def test_short_series_are_the_same_alone_and_beside_longer_ones() -> None:
    layout = DataLayout((ArrayLayout("y", (12,), "real", ("time",)),), (AxisLayout("time", 12, "sequence", True),))
    rng = np.random.default_rng(0)
    data, sizes = {"y": rng.normal(size=(300, 12))}, {"time": rng.integers(1, 13, size=300)}
    network = PosteriorNetwork.build(layout, rng.normal(size=(300, 2)), data, sizes=sizes)
    for n in (1, 2, 3):
        one = {"y": np.concatenate([data["y"][:1, :n], np.zeros((1, 12 - n))], 1)}
        both = {"y": np.concatenate([one["y"], data["y"][1:2]])}
        alone = network.summary.statistics(network.encode(one, {"time": np.array([n])}))
        beside = network.summary.statistics(network.encode(both, {"time": np.array([n, 12])}))
        torch.testing.assert_close(alone[0], beside[0], atol=1e-4, rtol=1e-4)
