"""Every density and every summary network through one contract each: built-in ones, a user's own, and planted ones.

A new one is a line in the tables ``DENSITY_CASES`` and ``SUMMARY_CASES``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytest
import torch
import zuko
from torch import Tensor, nn

import pymc_amortized as pma
from pymc_amortized.networks import ArrayLayout, AxisLayout, DataLayout, PosteriorNetwork
from pymc_amortized.networks.choices import DENSITIES, SUMMARIES
from pymc_amortized.networks.density.protocols import DensityOptions, WithStart, has_loss
from pymc_amortized.networks.summary.branch import Branch, Options
from pymc_amortized.networks.summary.join import Join
from pymc_amortized.training import FixedSimulations, Trained, train

SMALL = pma.Flat(width=16, depth=1)
N, DIM = 600, 2


@pytest.fixture(autouse=True)
def forked() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


class Normal(nn.Module):
    """A user's density with the two methods that it must have."""

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.mean = nn.Linear(features, dim)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(context), 1.0).log_prob(z).sum(-1)

    def sample(self, draws: int, context: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        mean = self.mean(context)
        z = mean + torch.randn(draws, *mean.shape, generator=generator)
        return z, self.log_prob(z, context)


class KeepsLoss(Normal):
    """A density that keeps a module under the name of a method; it is trained by its log density all the same."""

    def __init__(self, dim: int, features: int) -> None:
        super().__init__(dim, features)
        self.loss = nn.MSELoss()


class FlowMatching(nn.Module):
    """A flow along a velocity a(t, c) z + b(t, c), trained by flow matching (Lipman et al. 2023): toy-sized.

    Euler's steps of it can be undone exactly, and so draws have exact densities.
    """

    negligible = 0.02
    steps = 24

    def __init__(self, dim: int, features: int, hidden: int = 32) -> None:
        super().__init__()
        self.dim = dim
        self.network = nn.Sequential(nn.Linear(features + 2, hidden), nn.SiLU(), nn.Linear(hidden, 2 * dim))

    def velocity(self, t: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and offset (batch, dim) at times (batch, 1)."""
        return self.network(torch.cat([t, t.square(), context], -1)).chunk(2, -1)

    def loss(self, z: Tensor, context: Tensor) -> Tensor:
        t = torch.linspace(0, 1, len(z))[:, None] if not self.training else torch.rand(len(z), 1)
        generator = None if self.training else torch.Generator().manual_seed(0)
        noise = torch.randn(z.shape, generator=generator)
        slope, offset = self.velocity(t, context)
        return (slope * (t * z + (1 - t) * noise) + offset - (z - noise)).square().sum(-1)

    def factors(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift of each step, forwards."""
        times = torch.arange(self.steps).view(-1, 1, 1) / self.steps
        found = [self.velocity(t.expand(len(context), 1), context) for t in times]
        return [(1 + (slope / self.steps).clamp(-0.9, 10.0), offset / self.steps) for slope, offset in found]

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        log_det = z.new_zeros(z.shape[:-1])
        for scale, shift in reversed(self.factors(context)):
            z, log_det = (z - shift) / scale, log_det + scale.log().sum(-1)
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - log_det

    def sample(self, draws: int, context: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        z = torch.randn(draws, len(context), self.dim, generator=generator)
        log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        for scale, shift in self.factors(context):
            z, log_prob = z * scale + shift, log_prob - scale.log().sum(-1)
        return z, log_prob


def flow_of_zuko(dim: int, features: int) -> nn.Module:
    return pma.ZukoDensity(zuko.flows.MAF(dim, features, transforms=1, hidden_features=(16,)))


DENSITY_CASES: dict[str, Callable[[], Any]] = {
    "spline": lambda: pma.Spline(layers=2, hidden=16),
    "by name": lambda: "spline",
    "own module": lambda: Normal(DIM, 32),
    "own factory": lambda: Normal,
    "flow of zuko": lambda: flow_of_zuko,
    "own loss": lambda: FlowMatching,
    "a module called loss": lambda: KeepsLoss,
}

VALUES = DataLayout((ArrayLayout("y", (6,), "real"),))


def simulate(layout: DataLayout, n: int = N) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Parameters, the first of which is the mean of all that is observed."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(n, DIM))
    data = {}
    for array in layout.arrays:
        if array.kind == "categorical":
            data[array.name] = rng.integers(0, array.categories, (n, *array.shape))
        else:
            data[array.name] = theta[:, 0].reshape(-1, *[1] * len(array.shape)) + rng.normal(size=(n, *array.shape))
    return theta, data


def trained(network: PosteriorNetwork, theta: np.ndarray, data: dict[str, np.ndarray], steps: int) -> Trained:
    z, encoded = network.prepare(theta, data)
    encoded = network.measured(encoded)
    parts = [(z[rows], {name: v[rows] for name, v in encoded.items()}) for rows in (slice(100, None), slice(100))]
    source = FixedSimulations(*parts[0], 64, seed=1)
    options = pma.Training(num_steps=steps, batch_size=64, evaluations=5, patience=100)
    return train(network, source, parts[1], options, device="cpu")


def copy_of(network: PosteriorNetwork, **own: Any) -> PosteriorNetwork:
    """Describe a network as a file does, and build it from that."""
    description = json.loads(json.dumps(network.description()))
    again = PosteriorNetwork.from_description(description, **own)
    again.load_state_dict(network.state_dict())
    return again.eval()


# Densities


def test_every_density_that_is_registered_is_in_the_table() -> None:
    built_in = {type(case()) for case in DENSITY_CASES.values()}
    assert built_in >= set(DENSITIES.values()), "add the new density to DENSITY_CASES"


@pytest.mark.parametrize("name", DENSITY_CASES)
def test_density_contract(name: str) -> None:
    theta, data = simulate(VALUES)
    choice = DENSITY_CASES[name]()
    network = PosteriorNetwork.build(VALUES, theta, data, summary=SMALL, density=choice)
    z, encoded = network.prepare(theta, data)
    # its loss is one number that moves the density and the summary
    loss = network.loss(z, encoded)
    loss.backward()
    assert loss.shape == () and torch.isfinite(loss)
    for part in (network.density, network.summary):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    # it is trained: the best weights are kept, which may be those of the regression that it starts at
    before = [p.detach().clone() for p in network.density.parameters()]
    result = trained(network, theta, data, 60)
    if isinstance(network.density, WithStart):
        assert result.held_out_loss <= result.history.held_out_loss[0]
    else:
        assert result.held_out_loss < result.history.held_out_loss[0]
        assert any(not torch.equal(a, b) for a, b in zip(before, network.density.parameters(), strict=True))
    assert result.network is network and isinstance(result.settled, bool)
    # draws are of the densities that it reports, and by the generator alone
    some = {"y": data["y"][:4]}
    with torch.inference_mode():
        draws, log_q = network.sample(7, some, torch.Generator().manual_seed(2))
        assert draws.shape == (7, 4, DIM) and log_q.shape == (7, 4) and draws.dtype == log_q.dtype == torch.float64
        torch.testing.assert_close(network.log_prob(draws, some), log_q, atol=1e-3, rtol=1e-3)
        assert torch.equal(network.sample(7, some, torch.Generator().manual_seed(2))[0], draws)
        # a file describes it
        own = {} if network.density_options is not None else {"density": choice}
        assert torch.equal(copy_of(network, **own).log_prob(draws, some), network.log_prob(draws, some))


def test_a_loss_of_its_own_is_what_a_density_is_trained_by() -> None:
    theta, data = simulate(VALUES, 2_000)
    network = PosteriorNetwork.build(VALUES, theta, data, summary=SMALL, density=FlowMatching)
    assert has_loss(network.density) and network.negligible == FlowMatching.negligible
    network.eval()
    with torch.no_grad():
        z, encoded = network.prepare(theta, data)
        loss = network.loss(z, encoded)
        torch.testing.assert_close(loss, network.density.loss(z, network.summary(encoded)).mean())
        before = network.log_prob(theta, data).mean()
    trained(network, theta, data, 500)
    with torch.no_grad():
        assert network.log_prob(theta, data).mean() > before + 0.5
        draws, _ = network.sample(500, data, torch.Generator().manual_seed(0))
    exact, sd = data["y"].sum(1) / 7, 7**-0.5
    assert np.sqrt(np.mean((draws.mean(0)[:, 0].numpy() - exact) ** 2)) < 0.4 * sd
    assert np.median(draws.std(0)[:, 0].numpy()) == pytest.approx(sd, rel=0.3)


def test_what_is_negligible_of_a_loss_is_said_by_the_density() -> None:
    """The same training has settled by one measure, and not by another."""
    theta, data = simulate(VALUES)
    settled = []
    for negligible in (100.0, -100.0):
        torch.manual_seed(1)
        network = PosteriorNetwork.build(VALUES, theta, data, summary=SMALL, density=Normal)
        network.density.negligible = negligible  # type: ignore[assignment]
        settled.append(trained(network, theta, data, 100).settled)
    assert settled == [True, False]


def test_a_density_with_a_loss_of_its_own_is_fitted_to_a_model() -> None:
    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.Normal("y", mu, shape=6, observed=np.zeros(6))
    posterior = pma.fit_posterior(
        model,
        density=FlowMatching,
        sketch=False,
        num_simulations=500,
        training=pma.Training(num_steps=150),
        cores=1,
        device="cpu",
        random_seed=1,
        progressbar=False,
    )
    assert isinstance(posterior.network.density, FlowMatching)
    draws = posterior.sample({"y": np.full(6, 2.0)}, random_seed=1).posterior["mu"]
    assert float(draws.mean()) == pytest.approx(12 / 7, abs=0.2)


@dataclass(frozen=True)
class Matching(DensityOptions):
    """Options of a density as a new file would hold them."""

    hidden: int = 16

    def make_density(self, dim: int, features: int, levels: tuple[int, ...]) -> FlowMatching:
        return FlowMatching(dim, features, self.hidden)


def test_a_new_density_needs_a_line_in_the_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    theta, data = simulate(VALUES)
    with pytest.raises(ValueError, match="density is 'matching'; allowed: 'spline'"):
        PosteriorNetwork.build(VALUES, theta, data, density="matching")
    monkeypatch.setitem(DENSITIES, "matching", Matching)
    for density, hidden in (("matching", 16), (Matching(hidden=8), 8)):
        network = PosteriorNetwork.build(VALUES, theta, data, summary=SMALL, density=density)
        assert network.description()["density"] == {"kind": "matching", "options": {"hidden": hidden}}
        again = copy_of(network)
        assert isinstance(again.density, FlowMatching) and again.density_options == Matching(hidden=hidden)
        assert torch.equal(again.log_prob(theta, data), network.eval().log_prob(theta, data))
    assert trained(network, theta, data, 40).network is network
    with pytest.raises(TypeError, match=r"density is the class Matching: give an instance, as in Matching\(\)"):
        PosteriorNetwork.build(VALUES, theta, data, density=Matching)


class Elementwise(FlowMatching):
    """A loss that forgets to sum over parameters."""

    def loss(self, z: Tensor, context: Tensor) -> Tensor:
        return z - context[:, : z.shape[1]]


def test_a_loss_of_another_shape_is_refused() -> None:
    theta, data = simulate(VALUES)
    with pytest.raises(ValueError, match=r"Elementwise: loss gives \(2, 2\) for z \(2, 2\); expected a tensor \(2,\)"):
        PosteriorNetwork.build(VALUES, theta, data, density=Elementwise)


# Summary networks

ROWS = DataLayout((ArrayLayout("y", (10,), "real", ("row",)),), (AxisLayout("row", 10, "set"),))
SERIES = DataLayout((ArrayLayout("y", (12,), "real", ("time",)),), (AxisLayout("time", 12, "sequence"),))
IMAGES = DataLayout(
    (ArrayLayout("y", (6, 5), "real", ("a", "b")),), (AxisLayout("a", 6, "sequence"), AxisLayout("b", 5, "sequence"))
)
GROUPS = DataLayout(
    (ArrayLayout("y", (3, 4), "real", ("group", "row")),),
    (AxisLayout("group", 3, "groups"), AxisLayout("row", 4, "set")),
)
MADE_FOR = {"values": VALUES, "set": ROWS, "sequence": SERIES, "grid": IMAGES, "groups": GROUPS, None: ROWS}
"""Data of each structure that a summary network may be made for."""


class Mean(nn.Module):
    """A user's summary network."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, features)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        return self.linear(encoded["y"].mean(1))


ROW = {"width": 16, "depth": 1, "row_width": 8}
SUMMARY_CASES: dict[str, Callable[[], Any]] = {
    "auto": lambda: "auto",
    "flat": lambda: SMALL,
    "set": lambda: pma.Set(**ROW),
    "set_transformer": lambda: pma.SetTransformer(**ROW, heads=2, points=3, row_depth=1),
    "sequence": lambda: pma.Sequence(**ROW),
    "transformer": lambda: pma.Transformer(**ROW, heads=2, row_depth=1),
    "grid": lambda: pma.Grid(**ROW),
    "grouped": lambda: pma.Grouped(**ROW),
    "own module": lambda: Mean(5),
}


def layout_for(summary: Any) -> DataLayout:
    options = SUMMARIES[summary] if isinstance(summary, str) else summary
    return MADE_FOR[options.made_for] if not isinstance(options, nn.Module) else ROWS


def test_every_summary_network_that_is_registered_is_in_the_table() -> None:
    assert set(SUMMARY_CASES) >= set(SUMMARIES), "add the new summary network to SUMMARY_CASES"


@pytest.mark.parametrize("name", SUMMARY_CASES)
def test_summary_contract(name: str) -> None:
    summary = SUMMARY_CASES[name]()
    layout = layout_for(summary)
    theta, data = simulate(layout)
    network = PosteriorNetwork.build(layout, theta, data, summary=summary, density=pma.Spline(layers=1, hidden=8))
    own = network.summary_options is None
    z, encoded = network.prepare(theta, data)
    # what is known of data need not be computed again
    with torch.no_grad():
        features = network.summary(encoded)
        assert features.shape == (N, network.features) and torch.isfinite(features).all()
        for known in (network.measured(encoded), network.reduced(encoded)):
            assert (known is encoded) is own
            torch.testing.assert_close(network.summary(known), features, atol=1e-4, rtol=1e-4)
    # it begins better than at nothing, is trained, and described by a file
    result = trained(network, theta, data, 40)
    assert result.held_out_loss < (torch.inf if own else 2 * 1.42) and np.isfinite(result.held_out_loss)
    assert not own or result.held_out_loss < result.history.held_out_loss[0]
    again = copy_of(network, **({"summary": summary} if own else {}))
    with torch.no_grad():
        assert torch.equal(
            again.log_prob(theta[:5], first := {k: v[:5] for k, v in data.items()}), network.log_prob(theta[:5], first)
        )


@dataclass(frozen=True, kw_only=True)
class Planted(Options):
    """Options of a summary network as a new file would hold them."""

    made_for = "set"

    row_width: int = 4

    def make_branch(self, join: Join, dim: int) -> Branch:
        return PlantedBranch(join, self)


class PlantedBranch(Branch):
    """Means of rows, and of what a layer makes of them."""

    def __init__(self, join: Join, options: Planted) -> None:
        super().__init__(join, join.channels, options.row_width)
        self.row = nn.Linear(join.channels, options.row_width)

    def raw_statistics(self, encoded: dict[str, Tensor]) -> Tensor:
        return self.join(encoded).values.mean(1)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        return torch.tanh(self.row(self.join(encoded).values)).mean(1)


def test_a_new_summary_network_needs_a_line_in_the_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    theta, data = simulate(ROWS)
    with pytest.raises(ValueError, match="summary is 'planted'; allowed: 'auto'"):
        PosteriorNetwork.build(ROWS, theta, data, summary="planted")
    with pytest.raises(TypeError, match="summary is a Planted; expected a name, Auto, Flat"):
        PosteriorNetwork.build(ROWS, theta, data, summary=Planted())
    monkeypatch.setitem(SUMMARIES, "planted", Planted)
    for summary in ("planted", Planted(row_width=3, width=8)):
        network = PosteriorNetwork.build(ROWS, theta, data, summary=summary)
        assert [type(branch) for branch in network.summary.branches] == [PlantedBranch]
        assert network.description()["summary"]["kind"] == "planted"
        assert torch.equal(copy_of(network).log_prob(theta, data), network.eval().log_prob(theta, data))
    assert trained(network, theta, data, 40).held_out_loss < 2 * 1.42
    # where data have another structure, it is not taken
    other = PosteriorNetwork.build(IMAGES, *simulate(IMAGES, 60), summary="grid")
    assert PlantedBranch not in {type(branch) for branch in other.summary.branches}
    with pytest.raises(ValueError, match="summary Planted needs data with a named axis"):
        PosteriorNetwork.build(VALUES, *simulate(VALUES), summary=Planted())
    # "auto" goes on taking the first that is registered for a structure
    auto = PosteriorNetwork.build(ROWS, theta, data)
    assert [type(branch).__name__ for branch in auto.summary.branches] == ["SetBranch"]


def test_what_is_registered_is_public() -> None:
    public = {getattr(pma, name) for name in pma.__all__}
    assert public >= {*DENSITIES.values(), *(s for s in SUMMARIES.values() if s.made_for)}


# Devices


@pytest.mark.parametrize("name", [*SUMMARY_CASES, *(f"density: {name}" for name in ("spline", "flow of zuko"))])
def test_no_tensor_stays_behind_when_a_network_moves(name: str) -> None:
    """On the device "meta", which computes nothing, as on a GPU: a tensor that was left on the CPU is an error."""
    density = name.removeprefix("density: ") if name.startswith("density: ") else None
    summary = SMALL if density else SUMMARY_CASES[name]()
    layout = VALUES if density else layout_for(summary)
    theta, data = simulate(layout, 64)
    choice = {"density": DENSITY_CASES[density]()} if density else {}
    network = PosteriorNetwork.build(layout, theta, data, summary=summary, **choice)
    z, encoded = network.prepare(theta, data)
    encoded = network.measured(encoded)
    network.to("meta")
    loss = network.loss(z.to("meta"), {key: value.to("meta") for key, value in encoded.items()})
    loss.backward()
    assert loss.device.type == "meta"
    assert all(p.grad is None or p.grad.device.type == "meta" for p in network.parameters())


def test_a_tensor_that_stays_behind_is_found() -> None:
    theta, data = simulate(VALUES, 64)
    network = PosteriorNetwork.build(VALUES, theta, data, summary=SMALL, density=FlowMatching)  # makes times on the CPU
    z, encoded = network.prepare(theta, data)
    network.to("meta")
    with pytest.raises(RuntimeError, match="device"):
        network.loss(z.to("meta"), {name: value.to("meta") for name, value in encoded.items()})
