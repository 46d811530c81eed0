"""Seeds, and what must stay as it was: global state, the user's model, a posterior once made."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytest
import torch
from small_models import BRIEF, brief_fit, line

import pymc_amortized as pma
from pymc_amortized.training import FreshSimulations
from pymc_amortized.training.progress import ProgressBar

Y = {"y": np.array([0.3, -0.2, 0.5, 0.1])}


def values(dt: Any) -> np.ndarray:
    return dt.posterior.to_dataset().to_array().values


def draws(posterior: pma.AmortizedPosterior, observed: Any = Y, seed: Any = 3, **kwargs: Any) -> np.ndarray:
    return values(posterior.sample(observed, draws=30, chains=2, random_seed=seed, **kwargs))


# seeds


@pytest.fixture(scope="module")
def other_posterior() -> pma.AmortizedPosterior:
    """Return what the seed of `line_posterior` gives once more."""
    return brief_fit(line())


def test_the_same_seed_trains_the_same_network(line_posterior, other_posterior):
    for (name, a), b in zip(
        line_posterior.network.state_dict().items(), other_posterior.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    np.testing.assert_array_equal(line_posterior.history.held_out_loss, other_posterior.history.held_out_loss)
    np.testing.assert_array_equal(draws(line_posterior), draws(other_posterior))


def test_another_seed_trains_another_network(line_posterior):
    other = brief_fit(line(), random_seed=2)
    assert not np.array_equal(draws(line_posterior), draws(other))


@pytest.mark.parametrize("correction", ["auto", None])
def test_the_seed_of_sampling_decides_the_draws(line_posterior, correction):
    same = [draws(line_posterior, correction=correction) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], draws(line_posterior, seed=4, correction=correction))
    assert not np.array_equal(*(draws(line_posterior, seed=None, correction=correction) for _ in range(2)))


def test_generators_as_seeds_advance(line_posterior):
    rng = np.random.default_rng(1)
    first, second = draws(line_posterior, seed=rng), draws(line_posterior, seed=rng)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, draws(line_posterior, seed=np.random.default_rng(1)))


def test_the_seed_of_the_front_door_decides_training_and_draws():
    results = [
        pm.sample_amortized(
            draws=20, chains=2, model=line(), random_seed=5, progressbar=False, fit_kwargs={"training": BRIEF}
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(values(results[0]), values(results[1]))


def test_several_cores_make_the_same_simulations():
    # more than one chunk, or there is nothing to share out
    one, two = (pma.simulate(line(), 9000, cores=cores, random_seed=1) for cores in (1, 2))
    for group in ("prior", "prior_predictive"):
        for name in one[group].data_vars:
            np.testing.assert_array_equal(one[group][name], two[group][name])


# global state


def global_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    config = {
        name: getattr(pytensor.config, name)
        for name in ("floatX", "mode", "optimizer", "cxx", "on_opt_error", "warn_float64")
    }
    return {
        "numpy": (kind, keys.tobytes(), *rest),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "pytensor": config,
        "numpy errors": np.geterr(),
        "loggers": (logging.getLogger().level, tuple(logging.getLogger().handlers)),
        "contexts": pm.modelcontext.__name__,
    }


@contextlib.contextmanager
def state_left_alone() -> Iterator[None]:
    before = global_state()
    yield
    after = global_state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"changed: {changed}"


def test_global_state_stays_as_it_was(tmp_path):
    model = line()
    path = tmp_path / "p.pma"
    with state_left_alone():
        posterior = brief_fit(model)
    for action in (
        lambda: draws(posterior),
        lambda: draws(posterior, correction=None),
        lambda: posterior.logp({"slope": 0.0, "sigma_log__": 0.0}),
        lambda: posterior.save(path),
        lambda: pma.load(path, model=model),
        lambda: posterior.continue_training(10, progressbar=False),
        lambda: pma.simulate(model, 50, random_seed=1),
        lambda: posterior.to_model(Y),
    ):
        with state_left_alone():
            action()


def test_global_state_stays_when_something_fails(monkeypatch, line_posterior):
    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(FreshSimulations, "next", fail)
        with state_left_alone(), pytest.raises(RuntimeError, match="planted"):
            brief_fit(line())
    with monkeypatch.context() as patch:
        patch.setattr(type(line_posterior.network.density), "sample", fail)
        with state_left_alone(), pytest.raises(RuntimeError, match="planted"):
            draws(line_posterior)


def test_the_users_settings_of_torch_hold():
    """Another default dtype, one thread, and gradients switched off are the user's to choose."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        with torch.no_grad(), state_left_alone():
            posterior = brief_fit(line(), training=pma.Training(num_steps=10, batch_size=64))
            assert np.isfinite(draws(posterior)).all()
        assert {p.dtype for p in posterior.network.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


# the user's model


def snapshot(model: pm.Model) -> dict[str, Any]:
    """Everything of a model that can be seen from outside."""
    drawn = pm.draw([model["slope"], model["sigma"], model["y"]], draws=3, random_seed=7)
    return {
        "names": sorted(model.named_vars),
        "data": [v.get_value().tobytes() for v in model.data_vars],
        "coords": {k: tuple(v) for k, v in model.coords.items()},
        "dims": {k: tuple(v) for k, v in model.named_vars_to_dims.items()},
        "observed": [model.rvs_to_values[rv].name for rv in model.observed_RVs],
        "transforms": [repr(t) for t in model.rvs_to_transforms.values()],
        "draws": [np.asarray(d).tobytes() for d in drawn],
        "logp": float(model.compile_logp(mode="FAST_COMPILE")(model.initial_point())),
        "ids": sorted(id(v) for v in model.basic_RVs),
    }


def generators(model: pm.Model) -> list[Any]:
    """States of the model's own generators."""
    from pymc.pytensorf import find_rng_nodes

    rngs = find_rng_nodes([*model.basic_RVs])
    return [rng.get_value(borrow=True).bit_generator.state for rng in rngs]


def test_the_users_model_stays_as_it_was(tmp_path):
    model = line()
    before, states = snapshot(model), generators(model)
    posterior = brief_fit(model)
    draws(posterior)
    posterior.sample(Y, draws=5, idata_kwargs={"log_likelihood": True, "log_prior": True})
    posterior.save(tmp_path / "p.pma")
    pma.load(tmp_path / "p.pma", model=model)
    pma.simulate(model, 20, random_seed=1)
    assert generators(model) == states
    after = snapshot(model)
    assert [k for k in before if before[k] != after[k]] == []


# the posterior, once made


def change_data(model: pm.Model) -> None:
    with model:
        pm.set_data({"x": np.full(4, 9.0), "y_data": np.full(4, 9.0)})


def change_shapes(model: pm.Model) -> None:
    with model:
        pm.set_data({"x": np.zeros(6), "y_data": np.zeros(6)}, coords={"obs": range(6)})


def add_variables(model: pm.Model) -> None:
    with model:
        extra = pm.Normal("extra")
        pm.Deterministic("more", extra + model["slope"])
        pm.Potential("pull", -(extra**2))


@pytest.mark.parametrize("change", [change_data, change_shapes, add_variables])
def test_changes_of_the_model_do_not_reach_the_posterior(other_posterior, change):
    model = line()
    posterior = brief_fit(model)
    change(model)  # before anything has been compiled for sampling
    np.testing.assert_array_equal(draws(posterior), draws(other_posterior))
    np.testing.assert_array_equal(draws(posterior, None), draws(other_posterior, None))
    held = posterior.sample(draws=5, random_seed=1)
    np.testing.assert_array_equal(held.constant_data["x"], np.linspace(-1, 1, 4))
    np.testing.assert_array_equal(held.observed_data["y"], np.linspace(0, 1, 4))


def test_arrays_of_the_user_that_change_do_not_reach_the_posterior(other_posterior):
    x = np.linspace(-1, 1, 4)
    posterior = brief_fit(line(x=x))
    x[:] = 7.0
    np.testing.assert_array_equal(draws(posterior), draws(other_posterior))


def test_results_share_no_memory_with_the_posterior(other_posterior):
    before = draws(other_posterior, None)
    dt = other_posterior.sample(draws=5, random_seed=1)
    for group in ("observed_data", "constant_data"):
        for variable in dt[group].data_vars.values():
            with contextlib.suppress(ValueError):  # read-only is fine as well
                variable.values[...] = 99.0
    np.testing.assert_array_equal(draws(other_posterior, None), before)
    again = other_posterior.sample(draws=5, random_seed=1)
    np.testing.assert_array_equal(again.observed_data["y"], np.linspace(0, 1, 4))


def test_training_further_leaves_the_posterior_as_it_is(other_posterior):
    before = draws(other_posterior)
    steps = other_posterior.history.step[-1]
    further = other_posterior.continue_training(20, progressbar=False)
    np.testing.assert_array_equal(draws(other_posterior), before)
    assert other_posterior.history.step[-1] == steps < further.history.step[-1]
    again = other_posterior.continue_training(20, progressbar=False)
    np.testing.assert_array_equal(draws(further), draws(again))


def test_a_conditioned_model_is_a_copy(other_posterior):
    before = draws(other_posterior)
    conditioned = other_posterior.to_model(Y)
    with conditioned:
        pm.set_data({"x": np.full(4, 5.0)})
        pm.Normal("extra")
    np.testing.assert_array_equal(draws(other_posterior), before)
    assert "extra" not in other_posterior.to_model(Y).named_vars


# Ctrl-C


def test_ctrl_c_keeps_what_was_learned(monkeypatch, caplog):
    given, calls = FreshSimulations.next, []

    def next_(self: Any) -> Any:
        calls.append(1)
        if len(calls) == 31:
            raise KeyboardInterrupt
        return given(self)

    monkeypatch.setattr(FreshSimulations, "next", next_)
    with state_left_alone(), caplog.at_level(logging.INFO, "pymc_amortized"):
        posterior = brief_fit(line())
    assert "interrupted; the best weights so far are kept" in caplog.text
    assert not posterior.provenance.settled
    assert np.isfinite(draws(posterior)).all()
    monkeypatch.undo()
    assert posterior.continue_training(progressbar=False).history.step[-1] == 60


def test_ctrl_c_in_the_progress_bar_keeps_what_was_learned(monkeypatch):
    shown = []

    def show(self: Any, status: Any) -> None:
        shown.append(status.step)
        if len(shown) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "__call__", show)
    posterior = brief_fit(line(), progressbar=True, training=pma.Training(num_steps=3000, batch_size=64))
    assert 0 < posterior.history.step[-1] < 3000
    assert np.isfinite(draws(posterior)).all()


def test_ctrl_c_before_the_first_step_gives_a_posterior_or_is_raised(monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FreshSimulations, "next", interrupted)
    try:
        posterior = brief_fit(line())
    except KeyboardInterrupt:
        return
    assert np.isfinite(draws(posterior)).all()


def test_ctrl_c_while_sampling_is_raised(monkeypatch, line_posterior):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(line_posterior.network.density), "sample", interrupted)
    with state_left_alone(), pytest.raises(KeyboardInterrupt):
        draws(line_posterior)
