"""The networks, against autograd, quadrature and closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pymc_amortized.networks import (
    ArrayLayout,
    AxisLayout,
    CouplingSpline,
    DataLayout,
    Flat,
    PosteriorNetwork,
    Set,
    SetTransformer,
    Spline,
    ZukoDensity,
)
from pymc_amortized.networks.density.spline import rational_quadratic, spline_size


@pytest.fixture(autouse=True)
def forked() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


def shaken(density: CouplingSpline, scale: float = 0.3) -> CouplingSpline:
    """A density that is far from where it starts, but not absurd."""
    with torch.no_grad():
        for parameter in density.parameters():
            bound = scale / math.sqrt(parameter.shape[-1]) if parameter.ndim == 2 else scale
            parameter.add_(bound * torch.randn_like(parameter))
        for layer in density.leave:
            layer.weight.normal_(std=0.1)  # type: ignore[operator]
    return density


# Splines


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_slope_is_the_derivative(inverse: bool) -> None:
    x = torch.linspace(-7, 7, 201, dtype=torch.float64, requires_grad=True)
    raw = 2 * torch.randn(spline_size(6), 201, dtype=torch.float64)
    y, log_slope = rational_quadratic(x, raw, inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log())


def test_spline_inverts_and_is_monotonic() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    raw = 2 * torch.randn(spline_size(8), 1, dtype=torch.float64)  # shared by all values
    y, log_slope = rational_quadratic(x, raw)
    back, log_slope_back = rational_quadratic(y, raw, inverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_slope_back, -log_slope, atol=1e-6, rtol=1e-6)
    assert (y.diff() > 0).all()


def test_spline_starts_at_the_identity_and_survives_extremes() -> None:
    x = torch.tensor([-1e30, -5.0, -0.3, 0.0, 5.0, 1e30])
    y, log_slope = rational_quadratic(x, torch.zeros(spline_size(8), 6))
    torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_slope, torch.zeros(6), atol=1e-5, rtol=0)
    for raw in (torch.full((23, 6), 1e6), torch.randn(23, 6) * 1e4):
        for inverse in (False, True):
            assert all(torch.isfinite(out).all() for out in rational_quadratic(x, raw, inverse))


# Densities


LEVELS = [(0,), (0, 0), (1, 0), (0, 1, 0), (2, 0, 1, 2, 1, 0), (0,) * 40, (0,) * 2 + (1,) * 38]


@pytest.mark.parametrize("levels", LEVELS)
def test_density_of_a_draw_both_ways(levels: tuple[int, ...]) -> None:
    dim = len(levels)
    density = shaken(CouplingSpline(dim, 8, levels=levels))
    context = torch.randn(5, 8)
    with torch.no_grad():
        z, log_prob = density.sample(300, context, torch.Generator().manual_seed(0))
        difference = (density.log_prob(z, context) - log_prob).abs()
        exact = density.double().log_prob(z.double(), context.double())
    assert z.shape == (300, 5, dim) and log_prob.shape == (300, 5)
    assert difference.median() < 1e-4 * dim and difference.max() < 0.02
    assert (log_prob - exact).abs().median() < 1e-4 * dim


def test_density_integrates_to_one() -> None:
    grid = torch.linspace(-12, 12, 3001)
    context = torch.randn(3, 4)
    with torch.no_grad():
        values = shaken(CouplingSpline(1, 4)).log_prob(grid[:, None, None].expand(-1, 3, 1), context).exp()
        torch.testing.assert_close(torch.trapezoid(values, grid, dim=0), torch.ones(3), atol=1e-3, rtol=0)
        grid = torch.linspace(-9, 9, 301)
        plane = torch.cartesian_prod(grid, grid)[:, None].expand(-1, 3, 2)
        for levels in ((0, 0), (0, 1)):
            values = shaken(CouplingSpline(2, 4, levels=levels)).log_prob(plane, context).exp()
            total = values.sum(0) * (grid[1] - grid[0]) ** 2
            torch.testing.assert_close(total, torch.ones(3), atol=5e-3, rtol=0)


@pytest.mark.parametrize("levels", [(0, 0), (1, 0), (0,) * 5, (2, 1, 0, 1, 2)])
def test_density_matches_its_jacobian(levels: tuple[int, ...]) -> None:
    """Autograd through the map from noise to draws gives the density that is reported."""
    dim = len(levels)
    density = shaken(CouplingSpline(dim, 4, levels=levels)).double()
    prepared = density._prepare(torch.randn(1, 4, dtype=torch.float64))
    noise = torch.randn(dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda e: density._bend(e.reshape(dim, 1, 1), prepared)[0].flatten(), noise
    )
    reported = density._bend(noise.reshape(dim, 1, 1), prepared)[1].flatten()[0]
    base = -0.5 * (noise @ noise) - 0.5 * dim * math.log(2 * math.pi)
    torch.testing.assert_close(reported, base - torch.linalg.slogdet(jacobian).logabsdet)


def test_levels_learn_a_funnel() -> None:
    """x given a log scale: splines on a fixed interval fall short of it, a level does not."""
    torch.manual_seed(0)
    log_scale = torch.randn(20_000, 1) * 1.5
    z = torch.cat([torch.randn(20_000, 3) * log_scale.exp(), log_scale], 1)
    exact = 0.5 * math.log(2 * math.pi * math.e) * 4 + math.log(1.5)
    losses = {}
    for levels in ((0, 0, 0, 0), (1, 1, 1, 0)):
        density = CouplingSpline(4, 1, Spline(hidden=32), levels)
        optimizer = torch.optim.Adam(density.parameters(), 5e-3)
        for step in range(300):
            optimizer.zero_grad()
            some = z[step * 64 % 19_000 :][:256]
            (-density.log_prob(some, torch.zeros(len(some), 1)).mean()).backward()
            optimizer.step()
        with torch.no_grad():
            losses[levels] = -density.log_prob(z[-5_000:], torch.zeros(5_000, 1)).mean().item()
    sampling_error = 4 * math.sqrt(4 / 2 / 5_000 + 3 * 1.5**2 / 5_000)
    assert losses[1, 1, 1, 0] < exact + 3 * z[-5_000:, 3].mean().item() + sampling_error
    assert losses[1, 1, 1, 0] < losses[0, 0, 0, 0] - 0.2


def test_sampling_uses_the_given_generator_alone() -> None:
    density = shaken(CouplingSpline(3, 4))
    context = torch.randn(2, 4)
    before = torch.random.get_rng_state()
    with torch.no_grad():
        first, second = (density.sample(10, context, torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_density_in_chunks_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    density = shaken(CouplingSpline(3, 4))
    context, z = torch.randn(7, 4), torch.randn(20, 7, 3)
    with torch.no_grad():
        whole = density.log_prob(z, context)
        monkeypatch.setattr("pymc_amortized.networks.density.coupling.CHUNK", 6)
        torch.testing.assert_close(density.log_prob(z, context), whole, atol=1e-3, rtol=1e-3)
        draws, log_prob = density.sample(20, context)
        torch.testing.assert_close(density.log_prob(draws, context), log_prob, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("levels", [(0, 0, 0), (0, 1, 2)])
def test_extreme_contexts_and_parameters_give_no_nan(levels: tuple[int, ...]) -> None:
    density = shaken(CouplingSpline(3, 4, levels=levels))
    with torch.no_grad():
        for size in (1e3, 1e6):
            z, log_prob = density.sample(10, size * torch.randn(4, 4))
            assert torch.isfinite(z).all() and torch.isfinite(log_prob).all()
        assert not density.log_prob(torch.full((2, 3), 1e30), torch.randn(2, 4)).isnan().any()


@pytest.mark.parametrize("options", [{"layers": -1}, {"hidden": 0}, {"bins": 1}])
def test_spline_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Spline(**options)


# Whole networks

SET = DataLayout(
    (
        ArrayLayout("y", (12,), "real", ("row",)),
        ArrayLayout("x", (12, 2), "real", ("row", None)),
        ArrayLayout("group", (12,), "categorical", ("row",), categories=3),
        ArrayLayout("total", (), "count"),
    ),
    (AxisLayout("row", 12, "set"),),
)
FLAT = DataLayout((ArrayLayout("y", (30,), "real"), ArrayLayout("hit", (2, 2), "binary")))


def simulate(data_layout: DataLayout, n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(n, dim))
    data: dict[str, np.ndarray] = {}
    for layout in data_layout.arrays:
        level = theta[:, 0].reshape(-1, *[1] * len(layout.shape))
        noisy = level + rng.normal(size=(n, *layout.shape))
        match layout.kind:
            case "real":
                data[layout.name] = noisy
            case "count":
                data[layout.name] = rng.poisson(np.exp(noisy))
            case "binary":
                data[layout.name] = (noisy > 0).astype(np.int64)
            case "categorical":
                data[layout.name] = rng.integers(0, layout.categories, (n, *layout.shape))
    return theta, data


def excite(network: PosteriorNetwork) -> PosteriorNetwork:
    """Wake the parts that start at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("layouts", [SET, FLAT], ids=["set", "flat"])
@pytest.mark.parametrize("dim", [1, 3])
def test_network_round_trip(layouts: DataLayout, dim: int) -> None:
    theta, data = simulate(layouts, 300, dim)
    network = excite(PosteriorNetwork.build(layouts, theta, data))
    description = json.loads(json.dumps(network.description()))
    again = PosteriorNetwork.from_description(description)
    again.load_state_dict({k: v.clone() for k, v in network.state_dict().items()})
    some = {name: values[:4] for name, values in data.items()}
    with torch.inference_mode():
        draws, log_q = network.sample(6, some, torch.Generator().manual_seed(2))
        assert draws.shape == (6, 4, dim) and log_q.shape == (6, 4)
        assert draws.dtype == log_q.dtype == torch.float64
        torch.testing.assert_close(network.log_prob(draws, some), log_q, atol=1e-3, rtol=1e-3)
        assert torch.equal(again.log_prob(draws, some), network.log_prob(draws, some))
        assert torch.equal(again.sample(6, some, torch.Generator().manual_seed(2))[0], draws)
        z, encoded = network.prepare(theta, data)
        _, log_det = network.standardizer(torch.as_tensor(theta))
        expected = -(network.log_prob(theta, data) - log_det).mean()
        torch.testing.assert_close(network.loss(z, encoded).double(), expected, atol=1e-4, rtol=1e-4)


def test_set_network_sees_a_set() -> None:
    theta, data = simulate(SET, 300, 2)
    network = excite(PosteriorNetwork.build(SET, theta, data))
    some = {name: values[:5] for name, values in data.items()}
    order = np.random.default_rng(0).permutation(12)
    rows = ["y", "x", "group"]
    with torch.no_grad():
        context = network.context(some).features
        shuffled = network.context({k: v[:, order] if k in rows else v for k, v in some.items()}).features
        apart = network.context({k: v[:, order] if k == "y" else v for k, v in some.items()}).features
        twice = network.context({k: np.concatenate([v, v], 1) if k in rows else v for k, v in some.items()}).features
        other = network.context(some | {"total": some["total"] + 5}).features
    torch.testing.assert_close(shuffled, context, atol=1e-2, rtol=0)  # one-hot: collinear
    assert (apart - context).abs().max() > 0.01  # which y belongs to which x matters
    assert (twice - context).abs().max() > 0.01
    assert (other - context).abs().max() > 0.01


@pytest.mark.parametrize("layouts", [SET, FLAT], ids=["set", "flat"])
def test_network_survives_extreme_data(layouts: DataLayout) -> None:
    theta, data = simulate(layouts, 300, 2)
    network = excite(PosteriorNetwork.build(layouts, theta, data))
    for value in (1e300, -1e300, 0.0):
        extreme = {name: np.full_like(values[:2], value, dtype=np.float64) for name, values in data.items()}
        with torch.no_grad():
            assert all(torch.isfinite(out).all() for out in network.sample(5, extreme))


def test_arrays_of_any_layout() -> None:
    """Read-only and reversed arrays give what plain ones do, without a warning."""
    theta, data = simulate(FLAT, 100, 2)
    network = PosteriorNetwork.build(FLAT, theta, data)
    turned = {name: values[::-1].copy()[::-1] for name, values in data.items()}
    frozen = {name: np.broadcast_to(values, values.shape) for name, values in data.items()}
    with torch.no_grad():
        expected = network.context(data).features
        assert torch.equal(network.context(turned).features, expected)
        assert torch.equal(network.context(frozen).features, expected)


def test_one_row_and_one_channel() -> None:
    layouts = DataLayout((ArrayLayout("y", (1,), "real", ("row",)),), (AxisLayout("row", 1, "set"),))
    theta, data = simulate(layouts, 200, 1)
    network = PosteriorNetwork.build(layouts, theta, data)
    with torch.no_grad():
        assert torch.isfinite(network.sample(3, {"y": data["y"][:2]})[0]).all()


class Mean(nn.Module):
    """A user's summary network."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 5)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        return self.linear(encoded["y"].squeeze(-1))


class Whole(nn.Module):
    """A summary network that forgets to flatten."""

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        return encoded["y"]


class Normal(nn.Module):
    """A user's density."""

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.mean = nn.Linear(features, dim)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(context), 1.0).log_prob(z).sum(-1)

    def sample(self, draws: int, context: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        mean = self.mean(context)
        z = mean + torch.randn(draws, *mean.shape, generator=generator)
        return z, self.log_prob(z, context)


class Misnamed(nn.Module):
    """A summary network for data of another name."""

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        return encoded["x"]


class Elementwise(Normal):
    """A density that forgets to sum over parameters."""

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(context), 1.0).log_prob(z)


class Turned(Normal):
    """A density that puts data sets first."""

    def sample(self, draws: int, context: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        z, log_prob = super().sample(draws, context, generator)
        return z.transpose(0, 1), log_prob.transpose(0, 1)


@pytest.mark.parametrize("as_factory", [False, True])
def test_modules_of_the_user(as_factory: bool) -> None:
    theta, data = simulate(FLAT, 200, 2)
    network = PosteriorNetwork.build(FLAT, theta, data, summary=Mean(), density=Normal if as_factory else Normal(2, 5))
    description = network.description()
    assert description["features"] == 5
    with pytest.raises(ValueError, match="pass it as summary="):
        PosteriorNetwork.from_description(description)
    again = PosteriorNetwork.from_description(description, summary=Mean(), density=Normal)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        draws, log_q = network.sample(4, data, torch.Generator().manual_seed(0))
        torch.testing.assert_close(again.log_prob(draws, data), log_q, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"summary": "conv"}, "summary is 'conv'"),
        ({"summary": 3}, "summary is a int"),
        ({"density": "maf"}, "density is 'maf'"),
        ({"density": nn.Linear(2, 2)}, "no method log_prob"),
        ({"summary": Whole()}, "summary gives"),
        ({"summary": SetTransformer}, r"give an instance, as in SetTransformer\(\)"),
        ({"summary": Mean}, r"give an instance, as in Mean\(\)"),
        ({"density": Spline}, r"give an instance, as in Spline\(\)"),
        ({"summary": Misnamed()}, r"Misnamed asks for 'x'; the encoded data are \['hit', 'y'\]"),
        ({"density": Elementwise}, r"log_prob gives \(2, 2\) .* expected a tensor \(2,\)"),
        ({"density": Turned}, r"sample gives \[\(2, 3, 2\), \(2, 3\)\] .* expected z \(3, 2, 2\)"),
    ],
)
def test_bad_choices_are_refused(options: dict[str, object], message: str) -> None:
    theta, data = simulate(FLAT, 100, 2)
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        PosteriorNetwork.build(FLAT, theta, data, **options)  # type: ignore[arg-type]


def train(network: PosteriorNetwork, theta: np.ndarray, data: dict[str, np.ndarray], steps: int) -> None:
    z, encoded = network.prepare(theta, data)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = torch.randint(len(z), (256,))
        optimizer.zero_grad()
        network.loss(z[index], {name: values[index] for name, values in encoded.items()}).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()


@pytest.mark.parametrize("rows", [False, True], ids=["flat", "set"])
def test_training_reaches_the_conjugate_posterior(rows: bool) -> None:
    """mu ~ N(0, 1), y ~ N(mu, sigma) ten times, log sigma 0 or 0.7 by a binary covariate."""
    rng = np.random.default_rng(4)
    layouts = DataLayout(
        (ArrayLayout("y", (10,), "real", ("row" if rows else None,)), ArrayLayout("wide", (), "binary")),
        (AxisLayout("row", 10, "set"),) if rows else (),
    )
    mu, wide = rng.normal(size=(20_000, 1)), rng.integers(0, 2, 20_000)
    sigma = np.exp(0.7 * wide)[:, None]
    data = {"y": mu + sigma * rng.normal(size=(20_000, 10)), "wide": wide}
    options = (Set if rows else Flat)(width=32, depth=1)
    network = PosteriorNetwork.build(layouts, mu, data, summary=options, density=Spline(hidden=32))
    train(network, mu, data, 150)
    some = {name: values[:200] for name, values in data.items()}
    with torch.no_grad():
        draws, _ = network.sample(2000, some, torch.Generator().manual_seed(0))
    precision = 1 + 10 / sigma[:200, 0] ** 2
    mean, sd = data["y"][:200].sum(1) / sigma[:200, 0] ** 2 / precision, precision**-0.5
    error = np.abs(draws.mean(0)[:, 0].numpy() - mean) / sd
    ratio = draws.std(0)[:, 0].numpy() / sd
    assert np.median(error) < 0.1 and np.quantile(error, 0.95) < 0.3
    assert 0.8 < np.quantile(ratio, 0.05) and np.quantile(ratio, 0.95) < 1.25


def test_a_flow_of_zuko_is_a_density_and_leaves_global_random_numbers_alone() -> None:
    zuko = pytest.importorskip("zuko")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        density = ZukoDensity(zuko.flows.MAF(3, 4, transforms=2))
    context = torch.linspace(-1, 1, 8).reshape(2, 4)
    before = torch.get_rng_state()
    z, log_prob = density.sample(5, context, torch.Generator().manual_seed(1))
    again, _ = density.sample(5, context, torch.Generator().manual_seed(1))
    assert z.shape == (5, 2, 3)
    torch.testing.assert_close(density.log_prob(z, context), log_prob, atol=1e-4, rtol=1e-4)
    assert torch.equal(z, again) and torch.equal(before, torch.get_rng_state())
