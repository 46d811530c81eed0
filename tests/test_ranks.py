"""Several processes train one network, as torchrun starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import pytest
import torch

import pymc_amortized as pma
from pymc_amortized.ranks import agree, average_over_ranks, number_of_ranks, rank, together, writes_files
from pymc_amortized.training import FixedSimulations, source
from pymc_amortized.training.device import check_precision

SCRIPT = """
import json, logging, os, sys
import numpy as np, pymc as pm
import pymc_amortized as pma
from pymc_amortized.training import loop

folder, door, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
rank = os.environ.get("RANK", "0")
with open(f"{folder}/pid{rank}", "w") as file:
    file.write(str(os.getpid()))
logging.getLogger("pymc_amortized").addHandler(logging.FileHandler(f"{folder}/log{rank}", delay=True))
training = pma.Training(**options.pop("training", {}))
loop.KEEP_SECONDS = options.pop("keep_seconds", 30)


def normal_mean(spread):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, spread)
        pm.Normal("y", mu, 1.0, observed=[0.4, 1.9, 0.7, 1.2])
    return model


if rank in options.pop("broken", []):
    pma.fit_posterior(normal_mean(2.0), num_simulations=-1)
given = [normal_mean(2.0)] if door != "fit_comparison" else [{"narrow": normal_mean(0.2), "wide": normal_mean(2.0)}]
fitted = getattr(pma, door)(*given, training=training, progressbar=False, **options)
parts = [fitted.posterior, fitted.likelihood] if door == "fit_joint" else [fitted]
np.savez(
    f"{folder}/rank{rank}.npz",
    **{f"{i}.{name}": p.detach().numpy() for i, f in enumerate(parts) for name, p in f.network.named_parameters()},
    steps=parts[0].history.step[-1],
    loss=parts[0].history.held_out_loss[-1],
    simulations=parts[0].provenance.simulations,
    entropy=np.array(parts[0].provenance.entropy, dtype=object).astype(str),
)
fitted.save(f"{folder}/saved{rank}.pma")
"""


def launched(folder: Path, door: str = "fit_posterior", ranks: int = 2, **options: Any) -> subprocess.Popen[str]:
    """Start a fit in a folder, by torchrun where there are several ranks."""
    folder.mkdir(exist_ok=True)
    script = folder / "fit.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", port]
    command = [sys.executable, *(launcher if ranks > 1 else []), str(script), str(folder), door, json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(pma.__file__).parents[1])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fitted(folder: Path, door: str = "fit_posterior", ranks: int = 2, **options: Any) -> list[dict[str, np.ndarray]]:
    """Fit, and return what each rank has in the end."""
    running = launched(folder, door, ranks, **options)
    _, said = running.communicate(timeout=240)
    assert running.returncode == 0, said
    return [dict(np.load(folder / f"rank{i}.npz")) for i in range(ranks)]


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    """Bit by bit."""
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


BRIEF: dict[str, Any] = {"training": {"num_steps": 30, "passes": 1}, "sketch": False, "random_seed": 1}


def test_two_ranks_do_what_one_does_with_batches_twice_as_large(tmp_path):
    options = {"num_simulations": 2048, "sketch": False, "random_seed": 1}
    first, second = fitted(tmp_path, training={"num_steps": 30, "batch_size": 64, "patience": 50}, **options)
    assert_same(first, second)
    assert sorted(path.name for path in tmp_path.glob("*.pma")) == ["saved0.pma"]
    assert "Trained 30 steps" in (tmp_path / "log0").read_text() and not (tmp_path / "log1").exists()
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 0.0, 2.0), 1.0, observed=[0.4, 1.9, 0.7, 1.2])
    training = pma.Training(num_steps=30, batch_size=128, patience=50)
    alone = pma.fit_posterior(model, training=training, progressbar=False, **options)
    assert first["loss"] == pytest.approx(alone.history.held_out_loss[-1], abs=1e-4)
    for name, weight in alone.network.named_parameters():
        np.testing.assert_allclose(first[f"0.{name}"], weight.detach().numpy(), atol=1e-3, err_msg=name)


def test_training_ends_on_all_ranks_when_it_is_good_enough(tmp_path):
    # the seed is that of rank 0, and no efficiency is enough: training ends where a doubling brings little, or by time
    first, second = fitted(tmp_path, sketch=False, target_efficiency=0.9999, max_time=3.0)
    assert first["steps"] > 0
    assert_same(first, second)


@pytest.mark.slow
def test_the_same_seed_and_number_of_ranks_give_the_same_weights(tmp_path):
    ((alone,), (first, _), (again, _)) = (fitted(tmp_path / str(i), ranks=n, **BRIEF) for i, n in enumerate((1, 2, 2)))
    assert_same(first, again)
    assert first["loss"] == pytest.approx(alone["loss"], abs=0.02)
    assert first["simulations"] == 2 * alone["simulations"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("door", "options"),
    [
        ("fit_posterior", {}),
        ("fit_posterior", {"sketch": False, "num_simulations": 2001, "training": {"num_steps": 60, "patience": 2}}),
        ("fit_posterior", {"training": {"num_steps": 30, "precision": "bf16"}}),
        ("fit_likelihood", {"training": {"num_steps": 30}}),
        ("fit_joint", {"training": {"num_steps": 30}}),
        ("fit_comparison", {"training": {"num_steps": 30}}),
    ],
)
def test_every_training_is_one_of_all_ranks(tmp_path, door, options):
    first, second = fitted(tmp_path, door, **options)
    assert_same(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("door", "number"),
    [
        ("fit_posterior", signal.SIGKILL),
        ("fit_posterior", signal.SIGTERM),
        ("fit_likelihood", signal.SIGTERM),
        ("fit_joint", signal.SIGTERM),
        ("fit_comparison", signal.SIGKILL),
    ],
)
def test_all_ranks_go_on_bit_for_bit(tmp_path, door, number):
    options = {"training": {"num_steps": 300, "batch_size": 32, "passes": 1}, "random_seed": 1, "keep_seconds": 0.1}
    alone = fitted(tmp_path / "alone", door, **options)
    folder = tmp_path / "run"
    running = launched(folder, door, checkpoint=str(folder / "kept"), **options)
    while running.poll() is None and not (folder / "kept" / "training.safetensors").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    assert running.poll() is None
    if number == signal.SIGTERM:
        running.send_signal(number)
    else:
        os.kill(int((folder / "pid1").read_text()), number)
    _, said = running.communicate(timeout=60)
    assert running.returncode != 0 and not list(folder.glob("rank*.npz")), said
    again = fitted(folder, door, checkpoint=str(folder / "kept"), **options)
    assert "Training goes on from step" in (folder / "log0").read_text()
    for one, two in zip(again, alone, strict=True):
        assert_same(one, two)
    done = fitted(folder, door, checkpoint=str(folder / "kept"), **options)
    assert_same(done[1], alone[0])


@pytest.mark.slow
def test_an_error_of_one_rank_ends_all(tmp_path):
    running = launched(tmp_path, broken=["1"], **BRIEF)
    _, said = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "num_simulations" in said


@pytest.mark.slow
def test_an_interrupt_ends_all_ranks_at_the_same_step(tmp_path):
    running = launched(tmp_path, sketch=False, training={"num_steps": 1_000_000})
    while not (tmp_path / "log0").exists():
        time.sleep(0.2)
    time.sleep(8)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    first, second = (dict(np.load(tmp_path / f"rank{i}.npz")) for i in range(2))
    assert 0 < first["steps"] < 1_000_000
    assert_same(first, second)


def test_a_process_alone_decides_and_writes():
    with together():
        assert (rank(), number_of_ranks()) == (0, 1)
        assert agree(3) == 3
        assert average_over_ranks(torch.ones(2)).tolist() == [1, 1]
    assert writes_files()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ranks_share_a_fixed_set(monkeypatch, number):
    monkeypatch.setattr(source, "number_of_ranks", lambda: number)
    seen = []
    for own in range(number):
        monkeypatch.setattr(source, "rank", lambda own=own: own)
        batches = FixedSimulations(torch.arange(12.0)[:, None], {}, 2, seed=1)
        seen += [batches.next()[0] for _ in range(6 // number)]
    assert sorted(torch.cat(seen).flatten().tolist()) == list(range(12))


def test_precision_is_refused_where_it_is_not_there(monkeypatch):
    with pytest.raises(ValueError, match=r"precision must be one of \('float32', 'bf16'\), got 'half'"):
        pma.Training(precision="half")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    check_precision("float32", torch.device("cuda:0"))
    with pytest.raises(ValueError, match="precision='bf16' is not there on device 'cuda:0'"):
        check_precision("bf16", torch.device("cuda:0"))
