"""The training loop, on small networks whose optimum is known."""

import io
import itertools
import json
import logging
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load, save
from torch import nn

from pymc_amortized.training import (
    FixedSimulations,
    FreshSimulations,
    History,
    LastLayers,
    Shared,
    Status,
    Trained,
    Training,
    TrainingState,
    choose_device,
    progress,
    report,
    summary_line,
    train,
)
from pymc_amortized.training.progress import CountBar, ProgressBar
from pymc_amortized.training.schedule import scheduled
from pymc_amortized.training.settling import Evaluation, is_settled, last_gain, rise, stalled
from pymc_amortized.training.source import Memory
from pymc_amortized.training.weights import AdamW, FlatWeights

NOISE = 0.5


class Gaussian(nn.Module):
    """N(z | f(x), s^2): the least that has a density."""

    def __init__(self, width=0, dropout=0.0, features=2):
        super().__init__()
        hidden = [nn.Linear(features, width), nn.SiLU(), nn.Dropout(dropout)] if width else []
        self.mean = nn.Sequential(*hidden, nn.Linear(width or features, 1))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, z, encoded):
        if self.training:
            self.seen += len(z)
        u = (z - self.mean(encoded["x"])) * torch.exp(-self.log_scale)
        return (0.5 * u.square() + self.log_scale + 0.5 * math.log(2 * math.pi)).mean()


def gaussian(seed=0, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Gaussian(**kwargs)


def simulator(seed=0):
    """z = x_0 - 2 x_1 + noise."""
    rng = np.random.default_rng(seed)

    def simulate(n):
        x = rng.standard_normal((n, 2))
        theta = x @ np.array([[1.0], [-2.0]]) + NOISE * rng.standard_normal((n, 1))
        return torch.as_tensor(theta, dtype=torch.float32), {"x": torch.as_tensor(x, dtype=torch.float32)}

    return simulate


def fresh(seed=0, batch_size=64):
    return FreshSimulations(simulator(seed), batch_size)


def prepared(n, seed=1):
    return simulator(seed)(n)


def fixed(n=256, batch_size=32, seed=0):
    return FixedSimulations(*prepared(n), batch_size, seed=seed)


HELD_OUT = prepared(1_000, seed=2)
SHORT = Training(num_steps=60, batch_size=32, learning_rate=0.02, evaluations=6)


def weights_of(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


class Failing(Gaussian):
    """A loss that is not finite in the training steps named."""

    def __init__(self, bad=(), value=math.nan):
        super().__init__()
        self.bad, self.value, self.calls = bad, value, 0

    def loss(self, z, encoded):
        loss = super().loss(z, encoded)
        if self.training:
            self.calls += 1
            if self.calls in self.bad:
                return loss * self.value
        return loss


class Interrupting:
    """A source that presses Ctrl-C when asked for one batch more than it allows."""

    def __init__(self, source, after):
        self.source, self.left = source, after

    def __getattr__(self, name):
        return getattr(self.source, name)

    def next(self):
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt
        self.left -= 1
        return self.source.next()


# -- reaching the optimum ------------------------------------------------------------------------


@pytest.mark.parametrize("averaging", [0.0, 0.05])
def test_loss_reaches_the_optimum(averaging):
    options = Training(num_steps=600, batch_size=64, learning_rate=0.03, averaging=averaging)
    trained = train(gaussian(), fresh(), HELD_OUT, options, device="cpu")
    z, encoded = HELD_OUT
    truth = (z - encoded["x"] @ torch.tensor([[1.0], [-2.0]])) / NOISE
    optimum = float((0.5 * truth.square() + math.log(NOISE)).mean()) + 0.5 * math.log(2 * math.pi)
    assert trained.held_out_loss == pytest.approx(optimum, abs=0.01)
    assert trained.stopped == "steps" and trained.settled
    assert not trained.network.training
    assert trained.simulations >= 600 * 64
    assert len(trained.history.step) == 101 and trained.history.step[-1] == 600
    assert trained.history.held_out_loss.min() == trained.held_out_loss
    with torch.no_grad():
        assert float(trained.network.loss(*HELD_OUT)) == pytest.approx(trained.held_out_loss, 1e-4)


def test_loss_of_a_step_is_the_networks_own():
    seen = []
    network = gaussian()
    train(network, fixed(), HELD_OUT, SHORT, progress=seen.append, device="cpu")
    assert seen[-1].step == 60 and seen[-1].fraction == 1 and math.isfinite(seen[-1].loss)
    assert all(isinstance(status, Status) for status in seen)


# -- schedule, clipping, averaging ---------------------------------------------------------------


def test_schedule():
    late = 1_000
    assert scheduled(0.05, late, 0.1) == pytest.approx(0.5)
    assert scheduled(0.1, late, 0.1) == pytest.approx(1.0)
    assert scheduled(0.55, late, 0.1) == pytest.approx(0.5)
    assert scheduled(1.0, late, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert scheduled(2.0, late, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert scheduled(0.0, late, 0.0) == 1.0
    # Where time has run on before the first steps, there is a warm-up none the less.
    assert scheduled(0.1, 0, 0.1) == pytest.approx(0.05)


def test_learning_rate_of_the_history_is_the_schedule():
    options = Training(num_steps=200, batch_size=32, learning_rate=0.01, warmup=0.1, evaluations=10)
    history = train(gaussian(), fresh(), HELD_OUT, options, device="cpu").history
    expected = [0.01 * scheduled(s / 200 + 0.0025, s, 0.1) for s in history.step]
    np.testing.assert_allclose(history.learning_rate, expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(history.step, np.arange(0, 201, 20))


def test_clipping_is_of_all_gradients_together(monkeypatch):
    gradients = []

    def record(self, gradient, rate):
        gradients.append(gradient.clone())

    network = gaussian(width=8)
    flat = FlatWeights(network)
    z, encoded = prepared(32)
    own = flat.gradient(network.loss(z, encoded))
    monkeypatch.setattr(AdamW, "step", record)
    options = Training(num_steps=1, batch_size=32, clip_norm=0.1, evaluations=1)
    source = FixedSimulations(z, encoded, 32)
    train(network, source, HELD_OUT, options, device="cpu")
    assert own.norm() > 0.1
    assert float(gradients[0].norm()) == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(gradients[0], own * 0.1 / own.norm(), rtol=1e-3, atol=1e-6)


def test_no_clipping_below_the_norm(monkeypatch):
    norms = []
    monkeypatch.setattr(AdamW, "step", lambda self, gradient, rate: norms.append(float(gradient.norm())))
    options = Training(num_steps=1, batch_size=32, clip_norm=math.inf, evaluations=1)
    train(gaussian(), fixed(), HELD_OUT, options, device="cpu")
    assert norms[0] > 0.5


# -- losses that are not finite ------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_skipped_and_counted(value):
    network = Failing(bad={3, 20, 41}, value=value)
    trained = train(network, fresh(), HELD_OUT, SHORT, device="cpu")
    assert trained.history.skipped_steps == 3 and trained.history.restarts == 0
    assert trained.stopped == "steps"
    assert torch.isfinite(weights_of(network)).all()
    assert np.isfinite(trained.history.loss[1:]).all()
    assert trained.held_out_loss < trained.history.held_out_loss[0]
    assert "3 steps were skipped" in summary_line(trained)


def test_many_of_them_restore_the_best_weights_at_half_the_rate():
    network = Failing(bad=set(range(21, 31)))
    trained = train(network, fresh(), HELD_OUT, SHORT, device="cpu")
    assert trained.history.restarts == 1 and trained.history.skipped_steps == 10
    at_40 = SHORT.learning_rate * scheduled(40.5 / 60, 40, SHORT.warmup)
    assert trained.history.learning_rate[4] == pytest.approx(at_40 / 2)


def test_nothing_but_them_gives_up(caplog):
    network = Failing(bad=range(1_000_000))
    before = weights_of(network)
    options = Training(num_steps=1_000, batch_size=32)
    trained = train(network, fresh(), HELD_OUT, options, device="cpu")
    assert trained.stopped == "diverged" and not trained.settled
    assert trained.history.step[-1] < 100
    torch.testing.assert_close(weights_of(network), before, rtol=1e-2, atol=1e-2)
    with caplog.at_level(logging.INFO, logger="pymc_amortized"):
        report(trained)
    assert caplog.records[0].levelno == logging.WARNING and "given up" in caplog.text


def test_held_out_losses_that_are_never_finite_keep_the_last_weights():
    z, encoded = HELD_OUT
    broken = (z, {"x": torch.full_like(encoded["x"], math.nan)})
    trained = train(gaussian(), fresh(), broken, SHORT, device="cpu")
    assert trained.held_out_loss == math.inf and not trained.settled
    assert torch.isfinite(weights_of(trained.network)).all()
    assert "too short to tell" in summary_line(trained)
    json.dumps(trained.state.values, allow_nan=False)


# -- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 45])
def test_interruption_keeps_the_best_weights(after):
    trained = train(gaussian(), Interrupting(fresh(), after), HELD_OUT, SHORT, device="cpu")
    assert trained.stopped == "interrupt" and not trained.settled
    assert trained.history.step[-1] == after
    with torch.no_grad():
        loss = float(trained.network.loss(*HELD_OUT))
    assert loss == pytest.approx(trained.history.held_out_loss.min(), rel=1e-4)
    assert "interrupted" in summary_line(trained)
    for p in trained.network.parameters():  # weights that safetensors can save
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


def test_an_error_in_the_simulator_is_raised_and_leaves_a_whole_network():
    def broken(n):
        raise RuntimeError("the simulator's own message")

    network = gaussian()
    with pytest.raises(RuntimeError, match="own message"):
        train(network, FreshSimulations(broken, 8), HELD_OUT, SHORT, device="cpu")
    for p in network.parameters():
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()


# -- continuing ----------------------------------------------------------------------------------


def saved_and_loaded(state):
    """Through bytes and JSON, as a file would have it."""
    return TrainingState(load(save(dict(state.tensors))), json.loads(json.dumps(state.values, allow_nan=False)))


@pytest.mark.parametrize("after", [0, 7, 20, 33])
def test_resuming_equals_not_having_stopped(after):
    options = SHORT
    whole = train(gaussian(width=8, dropout=0.2), fixed(), HELD_OUT, options, seed=3, device="cpu")
    network = gaussian(width=8, dropout=0.2)
    source = Interrupting(fixed(), after)
    first = train(network, source, HELD_OUT, options, seed=3, device="cpu")
    assert first.stopped == "interrupt"
    second = train(
        gaussian(1, width=8, dropout=0.2),
        fixed(),
        HELD_OUT,
        options,
        resume=saved_and_loaded(first.state),
        device="cpu",
    )
    assert second.stopped != "interrupt"
    for name in ("step", "held_out_loss", "learning_rate", "loss"):
        expected = getattr(whole.history, name)
        np.testing.assert_allclose(getattr(second.history, name), expected, rtol=1e-6)
    torch.testing.assert_close(weights_of(second.network), weights_of(whole.network), rtol=0, atol=0)
    torch.testing.assert_close(second.network.seen, whole.network.seen)
    assert second.gain == whole.gain and second.gain_error == whole.gain_error


def test_resuming_a_finished_training_begins_a_lower_schedule():
    first = train(gaussian(), fixed(), HELD_OUT, SHORT, device="cpu")
    second = train(gaussian(1), fixed(), HELD_OUT, SHORT, resume=saved_and_loaded(first.state), device="cpu")
    assert second.history.step[-1] == 120
    assert second.held_out_loss <= first.held_out_loss + 1e-6
    rates = second.history.learning_rate
    assert rates[8:].max() == pytest.approx(0.3 * rates[:7].max())
    assert second.seconds_training > first.seconds_training
    third = train(first.network, fixed(), HELD_OUT, SHORT, resume=second.state, device="cpu")
    assert third.history.step[-1] == 180
    assert third.history.learning_rate[15:].max() == pytest.approx(0.09 * rates[:7].max())


def test_resuming_on_other_held_out_simulations_judges_anew():
    z, encoded = HELD_OUT
    first = train(gaussian(), fixed(), (z, encoded), SHORT, device="cpu")
    easier = (z[:300] * 0 + 3, {"x": encoded["x"][:300] * 0})
    second = train(gaussian(), fixed(), easier, SHORT, resume=first.state, device="cpu")
    with torch.no_grad():
        loss = float(second.network.loss(*easier))
    assert loss == pytest.approx(second.held_out_loss, rel=1e-4)


def test_resuming_another_network_is_refused():
    state = train(gaussian(), fixed(), HELD_OUT, SHORT, device="cpu").state
    with pytest.raises(ValueError, match=r"resume is the state of another network.*mean\.0\.weight"):
        train(gaussian(width=4), fixed(), HELD_OUT, SHORT, resume=state, device="cpu")


# -- seeds and global state ----------------------------------------------------------------------


def test_same_seed_same_result():
    def run(seed, order=0):
        network = gaussian(width=8, dropout=0.3)
        train(network, fixed(seed=order), HELD_OUT, SHORT, seed=seed, device="cpu")
        return weights_of(network)

    torch.testing.assert_close(run(1), run(1), rtol=0, atol=0)
    assert not torch.equal(run(1), run(2))
    assert not torch.equal(run(1), run(1, order=1))


def test_global_state_is_untouched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    kept = torch.get_num_threads(), torch.get_default_dtype()
    with torch.no_grad():
        train(gaussian(width=8, dropout=0.5), fresh(), HELD_OUT, SHORT, device="cpu")
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert (torch.get_num_threads(), torch.get_default_dtype()) == kept


def test_default_dtype_of_the_caller_does_not_matter():
    network = gaussian()
    torch.set_default_dtype(torch.float64)
    try:
        trained = train(network, fresh(), HELD_OUT, SHORT, device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    again = train(gaussian(), fresh(), HELD_OUT, SHORT, device="cpu")
    assert trained.held_out_loss == again.held_out_loss


# -- fixed simulations ---------------------------------------------------------------------------


def test_fixed_simulations_stop_early_and_report_overfitting(caplog):
    network = gaussian(width=64, features=40)
    rng = np.random.default_rng(0)

    def pure_noise(n):
        x = torch.as_tensor(rng.standard_normal((n, 40)), dtype=torch.float32)
        return torch.as_tensor(rng.standard_normal((n, 1)), dtype=torch.float32), {"x": x}

    options = Training(num_steps=5_000, batch_size=32, learning_rate=0.01, patience=5)
    source = FixedSimulations(*pure_noise(64), options.batch_size)
    trained = train(network, source, pure_noise(500), options, device="cpu")
    assert trained.stopped == "patience" and trained.history.step[-1] < 1_000
    assert trained.overfit > 0.05 and not trained.settled
    assert trained.held_out_loss == trained.history.held_out_loss.min()
    with caplog.at_level(logging.INFO, logger="pymc_amortized"):
        report(trained)
    assert "stopped early" in caplog.text and "overfits" in caplog.text


def test_fixed_simulations_see_each_once_an_epoch_in_new_orders():
    z = torch.arange(10.0)[:, None]
    source = FixedSimulations(z, {"x": z.clone()}, 5, seed=1)
    batches = [source.next() for _ in range(4)]
    assert all(torch.equal(z, encoded["x"]) for z, encoded in batches)
    epochs = [torch.cat([z for z, _ in batches[i : i + 2]]).flatten() for i in (0, 2)]
    assert all(torch.equal(epoch.sort().values, z.flatten()) for epoch in epochs)
    assert not torch.equal(*epochs)
    again = FixedSimulations(z, {"x": z}, 5, seed=1)
    again.restore({"drawn": 3})
    assert torch.equal(again.next()[0], batches[3][0])
    assert len(FixedSimulations(z, {}, 256).next()[0]) == 10
    with pytest.raises(ValueError, match="at least one simulation"):
        FixedSimulations(z[:0], {}, 5)


# -- fresh simulations ---------------------------------------------------------------------------


def test_fresh_simulations_refill_in_growing_portions():
    asked = []

    def simulate(n):
        asked.append(n)
        return simulator(len(asked))(n)

    source = FreshSimulations(simulate, 10)
    batches = [source.next() for _ in range(200)]
    assert asked == [10, 20, 40, 80, 160, 320, 640, 640, 640]
    assert all(len(z) == 10 and len(encoded["x"]) == 10 for z, encoded in batches)
    assert len({float(z[0]) for z, _ in batches}) == 200
    assert source.simulations == sum(asked) and source.seconds > 0
    assert asked[0] == 10


def test_refills_are_bounded_in_memory():
    asked = []

    def simulate(n):
        asked.append(n)
        return torch.zeros(n, 1), {"x": torch.zeros(1).expand(n, 2**18)}  # 1 MiB each

    source = FreshSimulations(simulate, 10)
    for _ in range(30):
        source.next()
    assert max(asked) == 60


def test_fewer_simulations_than_asked_for_are_used():
    source = FreshSimulations(lambda n: simulator()(n - 3), 8, refill=16)
    assert [len(source.next()[0]) for _ in range(3)] == [8, 8, 8]
    source = FreshSimulations(lambda n: simulator()(5), 8)
    assert [len(source.next()[0]) for _ in range(3)] == [5, 5, 5]
    source = FreshSimulations(lambda n: simulator()(0), 8)
    with pytest.raises(RuntimeError, match="none of the 8 simulations"):
        source.next()


def counted():
    """A simulator whose parameters are 0, 1, 2, ..."""
    numbers = itertools.count()

    def simulate(n):
        z = torch.tensor([float(next(numbers)) for _ in range(n)])[:, None]
        return z, {"y": 2 * z}

    return simulate


def test_simulations_are_kept_and_used_as_often_as_asked_for():
    def batches():
        source = FreshSimulations(counted(), 4, refill=12, passes=3)
        return source, [source.next() for _ in range(90)]

    source, given = batches()
    assert source.simulations == 90 * 4 / 3
    assert all(len(z) == len(set(z[:, 0].tolist())) == 4 for z, _ in given)
    assert all(torch.equal(encoded["y"], 2 * z) for z, encoded in given)
    # those made first are still drawn at the end, and the last ones already
    last = torch.cat([z for z, _ in given[-9:]])
    assert last.min() < 40 and last.max() >= 108
    assert all(torch.equal(z, again) for (z, _), (again, _) in zip(given, batches()[1], strict=True))


def test_what_is_kept_has_a_limit():
    memory = Memory(50 * 8)  # z and y, of 4 bytes each
    simulate = counted()
    for n in (20, 20, 20, 20):
        memory.add(simulate(n), seed=n)
    seen = torch.cat([memory.next(10)[0] for _ in range(5)])[:, 0]
    assert sorted(seen.tolist()) == list(map(float, range(30, 80)))
    memory.add(simulate(70), seed=1)  # more than there is room for
    assert float(memory.next(40)[0].min()) >= 80


@pytest.mark.parametrize("passes", [1, 3])
def test_sources_give_out_what_simulations_are_reduced_to(passes):
    source = FreshSimulations(counted(), 4, refill=8, passes=passes)
    before = source.next()
    source.reduce(lambda encoded: {"half": encoded["y"] / 4})
    after = [source.next() for _ in range(12)]
    assert list(before[1]) == ["y"] and all(list(encoded) == ["half"] for _, encoded in after)
    assert all(torch.equal(encoded["half"], z / 2) for z, encoded in after)
    z = torch.arange(10.0)[:, None]
    held = FixedSimulations(z, {"y": z}, 5)
    held.reduce(lambda encoded: {"half": encoded["y"] / 2})
    z, encoded = held.next()
    assert torch.equal(encoded["half"], z / 2) and list(encoded) == ["half"]
    with pytest.raises(TypeError, match="share cannot be reduced"):
        Shared(held).view(lambda batch, number: batch).reduce(dict)


# -- the last layers alone -----------------------------------------------------------------------


ALONE = LastLayers(after=0.25, time=0.25)
SEEN = []
"""First layers that simulations were reduced by."""


class TwoStages(nn.Module):
    """A first layer, whose output can be known already, and a density."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), Gaussian(width=8, features=4)

    def loss(self, z, encoded):
        hidden = encoded["hidden"] if "hidden" in encoded else torch.tanh(self.first(encoded["x"]))
        return self.last.loss(z, {"x": hidden})

    def reduced(self, encoded):
        SEEN.append(self.first.weight.clone())
        return {"hidden": torch.tanh(self.first(encoded["x"]))}


def two_stages(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TwoStages()


@pytest.mark.parametrize("fresh_ones", [True, False])
def test_first_layers_stay_once_the_last_ones_go_on_alone(fresh_ones):
    network = two_stages()
    SEEN.clear()
    start = {name: p.clone() for name, p in network.named_parameters()}
    source = FreshSimulations(simulator(1), 32, passes=2) if fresh_ones else fixed(2_000)
    options = Training(num_steps=400, batch_size=32, learning_rate=0.02, evaluations=20)
    trained = train(network, source, HELD_OUT, options, device="cpu", last_layers=ALONE)
    assert not torch.equal(network.first.weight, start["first.weight"])
    assert len(SEEN) > 1 and all(torch.equal(network.first.weight, weight) for weight in SEEN)
    loss = trained.history.held_out_loss
    assert trained.held_out_loss == loss.min() < loss[:6].min() - 0.01
    # the losses of reduced simulations are those of simulations
    with torch.no_grad():
        assert float(network.loss(*HELD_OUT)) == pytest.approx(trained.held_out_loss, abs=1e-5)


def test_an_interrupted_training_goes_on_with_the_last_layers_alone():
    options = Training(num_steps=200, batch_size=32, learning_rate=0.02, evaluations=20)
    whole = two_stages()
    train(whole, fixed(), HELD_OUT, options, device="cpu", last_layers=ALONE)
    network = two_stages()
    source = Interrupting(fixed(), 120)
    first = train(network, source, HELD_OUT, options, device="cpu", last_layers=ALONE)
    assert first.stopped == "interrupt"
    again = two_stages(5)
    second = train(
        again,
        fixed(),
        HELD_OUT,
        options,
        resume=saved_and_loaded(first.state),
        device="cpu",
        last_layers=ALONE,
    )
    assert second.stopped == "steps"
    torch.testing.assert_close(weights_of(again), weights_of(whole), rtol=1e-5, atol=1e-6)


def test_the_best_weights_before_the_last_layers_go_on_alone_are_not_lost():
    options = Training(num_steps=120, batch_size=32, learning_rate=0.02, evaluations=20)
    network = two_stages()
    train(network, fresh(), HELD_OUT, options, device="cpu")
    best = weights_of(network)
    # what follows is of no use: the rate is far too high
    options = replace(options, learning_rate=100.0, warmup=0.0)
    trained = train(network, fresh(), HELD_OUT, options, device="cpu", last_layers=ALONE)
    assert trained.history.held_out_loss[-1] > trained.history.held_out_loss[0] == trained.held_out_loss
    assert torch.equal(weights_of(network), best)


def test_last_layers_cannot_settle_what_the_others_had_still_to_learn():
    def evaluations(losses):
        return [Evaluation(i / 8, np.full(8, loss) + 0.01 * np.arange(8), np.ones(8)) for i, loss in enumerate(losses)]

    learning = evaluations([3.0, 2.5, 2.0, 1.99, 1.98, 1.98, 1.98, 1.98, 1.98])
    assert stalled(learning, 0.25)
    assert not stalled(evaluations([3.0, 2.5, 2.0, 1.7, 1.5, 1.4, 1.39, 1.38, 1.38]), 0.25)
    assert not stalled(evaluations([3.0, 2.03, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]), 0.25)
    assert not stalled(learning[:1], 0.25)


def test_time_is_shared_between_all_layers_and_the_last_ones():
    last_layers = LastLayers(after=0.25, time=0.6)
    assert [last_layers.fraction(t) for t in (0.0, 0.3, 0.6, 0.8, 1.0)] == pytest.approx([0.0, 0.125, 0.25, 0.625, 1.0])


def test_weights_that_a_loss_does_not_involve_stay():
    network = two_stages()
    weights = FlatWeights(network)
    with weights.flattened():
        optimizer = AdamW(weights.vector, 0.1)
        z, encoded = HELD_OUT
        for reduced in (False, True):
            before = weights.copy()
            batch = {k: v.detach() for k, v in network.reduced(encoded).items()} if reduced else encoded
            gradient = weights.gradient(network.loss(z, batch))
            with weights.held():
                optimizer.step(gradient, 0.1)
            first = network.first.weight.numel() + network.first.bias.numel()
            assert weights.idle == ([slice(0, first)] if reduced else [])
            assert torch.equal(before[:first], weights.copy()[:first]) is reduced
            assert (before[first:] != weights.copy()[first:]).all()


# -- time ----------------------------------------------------------------------------------------


def test_max_time_is_respected_and_annealed():
    options = Training(num_steps=10**9, batch_size=32, learning_rate=0.01, max_time=0.7)
    start = time.perf_counter()
    trained = train(gaussian(), fresh(), HELD_OUT, options, device="cpu")
    assert 0.6 < time.perf_counter() - start < 3.0
    assert trained.stopped == "time" and "max_time" in summary_line(trained)
    rates = trained.history.learning_rate
    assert rates[-1] < 1e-3 * rates.max()
    assert len(rates) > 5
    assert trained.held_out_loss < trained.history.held_out_loss[0]


# -- settling ------------------------------------------------------------------------------------


def evaluations(losses, spread=0.0):
    offsets = spread * np.array([-1.0, 1.0, -1.0, 1.0])
    return [Evaluation(i / (len(losses) - 1), loss + offsets * (i % 2), np.ones(4)) for i, loss in enumerate(losses)]


def test_settling():
    falling = evaluations(np.linspace(3, 0, 11))
    gain, error = last_gain(falling)
    assert gain == pytest.approx(1.5) and error == pytest.approx(0, abs=1e-12)
    assert not is_settled("steps", gain, error, 0.0)
    assert is_settled("steps", *last_gain(evaluations([3, 1] + [0] * 9)), 0.0)
    # A gain that is within its error does not count against it.
    noisy = evaluations([3, 2, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0, 0][:10], spread=1.0)
    assert is_settled("steps", *last_gain(noisy), 0.0)
    assert not is_settled("interrupt", 0.0, 0.0, 0.0)
    assert not is_settled("steps", 0.0, 0.0, 0.3)
    assert all(math.isnan(v) for v in last_gain(falling[:1]))
    assert rise(evaluations([3, 1, 2])) == pytest.approx(1) and rise(falling) == 0


def test_too_few_steps_do_not_settle(caplog):
    options = Training(num_steps=40, batch_size=32, learning_rate=0.01)
    trained = train(gaussian(), fresh(), HELD_OUT, options, device="cpu")
    assert not trained.settled and trained.gain > 0.05
    with caplog.at_level(logging.INFO, logger="pymc_amortized"):
        report(trained)
    assert "too short to tell whether it settled" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


# -- history, options, device, progress ----------------------------------------------------------


def test_history_is_plotted():
    import matplotlib

    matplotlib.use("agg")
    history = train(Failing(bad={2}), fixed(), HELD_OUT, SHORT, device="cpu").history
    axes = history.plot()
    assert axes.get_xlabel() == "step" and len(axes.lines) == 2
    assert history.plot(axes) is axes
    History().plot(axes)
    with pytest.raises(ValueError, match="one length"):
        History(step=np.arange(3))
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("num_steps", 0, ValueError),
        ("num_steps", 10.0, TypeError),
        ("num_steps", True, TypeError),
        ("batch_size", -1, ValueError),
        ("batch_size", "256", TypeError),
        ("learning_rate", 0, ValueError),
        ("learning_rate", math.nan, ValueError),
        ("learning_rate", None, TypeError),
        ("warmup", 1.0, ValueError),
        ("weight_decay", -0.1, ValueError),
        ("clip_norm", 0.0, ValueError),
        ("averaging", 1.0, ValueError),
        ("evaluations", 0, ValueError),
        ("held_out", 0.0, ValueError),
        ("held_out", 1, ValueError),
        ("patience", 0, ValueError),
        ("max_time", 0, ValueError),
        ("max_time", math.inf, ValueError),
        ("max_time", "1 min", TypeError),
    ],
)
def test_options_are_validated(name, value, error):
    with pytest.raises(error, match=rf"^{name} must be .*, got {value!r}\.$"):
        Training(**{name: value})


def test_options_are_plain_numbers():
    options = Training(num_steps=np.int64(7), learning_rate=np.float32(0.5))
    assert type(options.num_steps) is int and type(options.learning_rate) is float
    with pytest.raises(TypeError):
        Training(5)


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(torch.device("cpu", 0)).type == "cpu"
    assert isinstance(choose_device(None), torch.device)
    with pytest.raises(ValueError, match=r"device='gpu'.*Available: .*'cpu'"):
        choose_device("gpu")
    with pytest.raises(ValueError, match=r"device='cuda:99' is not available here.*'cpu'"):
        choose_device("cuda:99")
    with pytest.raises(TypeError, match=r"device must be .*got 3"):
        choose_device(3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda():
    source = FreshSimulations(simulator(), 64, device="cuda")
    before = torch.cuda.get_rng_state()
    options = Training(num_steps=600, batch_size=64, learning_rate=0.03)
    trained = train(gaussian(), source, HELD_OUT, options, device="cuda")
    on_cpu = train(gaussian(), fresh(), HELD_OUT, options, device="cpu")
    assert trained.held_out_loss == pytest.approx(on_cpu.held_out_loss, abs=0.01)
    assert next(trained.network.parameters()).is_cuda
    torch.testing.assert_close(torch.cuda.get_rng_state(), before)


def test_progress_bar_shows_the_losses():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, force_jupyter=False)
    with ProgressBar(console) as bar:
        bar(Status(step=1_500, fraction=0.5, loss=1.25, held_out_loss=-0.75, seconds=61.0))
    shown = console.file.getvalue()
    for expected in ("Progress", "Step", "Held-out loss", "1,500", "1.250", "-0.750", "0:01:01"):
        assert expected in shown
    trained = train(gaussian(), fresh(), HELD_OUT, SHORT, progress=True, device="cpu")
    assert isinstance(trained, Trained)


def test_progress_is_logged_where_no_bar_can_be_shown(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    console, status = Console(file=io.StringIO()), Status(1_500, 0.5, loss=1.25, held_out_loss=-0.75, seconds=61.0)
    with caplog.at_level("INFO", logger="pymc_amortized"):
        with ProgressBar(console) as bar:
            bar(status)
        for shown in (True, False):
            with CountBar("Simulating", 4_000, shown=shown) as count:
                count.skip(1_000)
                count.advance(1_500)
    first, second = caplog.messages
    assert first == "Training: step 1,500, held-out loss -0.750, 0:01:01 elapsed, 0:01:01 remaining at most"
    assert second.startswith("Simulating: 2,500 of 4,000, ") and second.endswith("/s, 0:00:00 remaining")
    assert not console.file.getvalue()


def test_progress_is_shown_at_most_ten_times_a_second():
    seen = []
    options = Training(num_steps=10**9, batch_size=8, max_time=0.5, evaluations=5)
    train(gaussian(), fresh(), HELD_OUT, options, progress=seen.append, device="cpu")
    assert 2 <= len(seen) <= 7


# -- bad input -----------------------------------------------------------------------------------


def test_networks_that_cannot_be_trained_are_refused(monkeypatch):
    frozen = gaussian().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        train(frozen, fresh(), HELD_OUT, SHORT, device="cpu")
    mixed = gaussian()
    mixed.log_scale = nn.Parameter(mixed.log_scale.detach().double())
    with pytest.raises(TypeError, match=r"share one dtype.*float32.*float64"):
        train(mixed, fresh(), HELD_OUT, SHORT, device="cpu")
    monkeypatch.setattr(Gaussian, "loss", lambda self, z, encoded: self.mean(encoded["x"]))
    with pytest.raises(ValueError, match=r"must be a scalar, got shape"):
        train(gaussian(), fresh(), HELD_OUT, SHORT, device="cpu")
    monkeypatch.undo()
    z, encoded = HELD_OUT
    with pytest.raises(ValueError, match="held_out must hold at least one"):
        train(gaussian(), fresh(), (z[:0], {"x": encoded["x"][:0]}), SHORT, device="cpu")


def test_frozen_and_unused_parameters_are_left_alone():
    network = gaussian(width=4)
    network.unused = nn.Parameter(torch.ones(3))
    network.mean[0].weight.requires_grad_(False)
    before = network.mean[0].weight.clone()
    train(network, fresh(), HELD_OUT, SHORT, device="cpu")
    torch.testing.assert_close(network.mean[0].weight, before, rtol=0, atol=0)
    torch.testing.assert_close(network.unused.detach(), torch.ones(3), rtol=0, atol=1e-3)
