"""The example of a service: right answers, refusals with a message, and a long life."""

import asyncio
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import briefly

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "examples"))
from service import MOST_BYTES, MOST_DRAWS, ROWS, answer, build, ready, serve  # noqa: E402

Y = np.random.default_rng(2).normal(size=ROWS).tolist()
OBSERVED = {"y": Y}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("service") / "regression.pma"
    briefly(build()).save(path)
    return path


@pytest.fixture(scope="module")
def posterior(saved):
    return ready(saved)


@pytest.fixture(scope="module")
def ask(posterior):
    """Return a function that asks the service, in this process."""
    transport = httpx.ASGITransport(serve(posterior), raise_app_exceptions=False)

    async def request(method, path, **body):
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **body)

    return lambda body: asyncio.run(request("POST", "/posterior", **as_content(body)))


def as_content(body):
    return {"json": body} if isinstance(body, dict) else {"content": body}


async def parts(number):
    """Yield a body without saying how long it will be."""
    for _ in range(number):
        yield b" " * 2**16


def test_an_answer_is_that_of_sample(ask, posterior):
    response = ask({"observed": OBSERVED, "draws": 200})
    assert response.status_code == 200
    dt = posterior.sample(OBSERVED, draws=200, chains=1, random_seed=1, progressbar=False)
    found, slopes = response.json(), dt.posterior["slopes"]
    assert set(found["variables"]) == {"intercept", "slopes", "sigma"}
    np.testing.assert_allclose(found["variables"]["slopes"]["mean"], slopes.mean(("chain", "draw")))
    np.testing.assert_allclose(found["variables"]["slopes"]["sd"], slopes.std(("chain", "draw")))
    np.testing.assert_allclose(
        found["variables"]["slopes"]["quantiles"]["0.95"], slopes.quantile(0.95, ("chain", "draw"))
    )
    for name in ("stage", "pareto_k", "ood_pvalue"):
        assert found[name] == dt.sample_stats[name].item()
    assert found["usable"]


def test_strange_data_are_answered_as_such(ask):
    found = ask({"observed": {"y": [1e6 * y for y in Y]}}).json()
    assert not found["usable"] and found["ood_pvalue"] < 0.05


BAD = {
    "no JSON": (b"{", 400, "not JSON"),
    "no text": (b"\xff\xfe\xff", 400, "not JSON"),
    "deep": (b"[" * 100_000, 400, "not JSON"),
    "a long number": (b'{"observed": {"y": [' + b"9" * 5000 + b"]}}", 400, "not JSON"),
    "no object": (b"[1, 2]", 422, "expected {"),
    "nothing observed": (b"{}", 422, "expected {"),
    "a list of data": ({"observed": Y}, 422, "expected {"),
    "a misspelled option": ({"observed": OBSERVED, "draw": 3}, 422, "expected {"),
    "another variable": ({"observed": {"z": Y}}, 422, "'z'"),
    "one variable too many": ({"observed": OBSERVED | {"z": Y}}, 422, "'z'"),
    "NaN": (json.dumps({"observed": {"y": [*Y[1:], np.nan]}}).encode(), 422, "'y': NaN or infinity"),
    "infinity": (json.dumps({"observed": {"y": [*Y[1:], -np.inf]}}).encode(), 422, "'y': NaN or infinity"),
    "too large": (b'{"observed": {"y": [1e999]}}', 422, "'y': NaN or infinity"),
    "null": ({"observed": {"y": [*Y[1:], None]}}, 422, "'y': expected numbers"),
    "text": ({"observed": {"y": [*Y[1:], "1"]}}, 422, "'y': expected numbers"),
    "truth": ({"observed": {"y": [True] * ROWS}}, 422, "'y': expected numbers"),
    "a large integer": ({"observed": {"y": [10**30] * ROWS}}, 422, "'y': expected numbers"),
    "a row too few": ({"observed": {"y": Y[1:]}}, 422, "(40,)"),
    "an axis too many": ({"observed": {"y": [Y]}}, 422, "(40,)"),
    "ragged": ({"observed": {"y": [[1, 2], [3]]}}, 422, "'y': rows"),
    "no draws": ({"observed": OBSERVED, "draws": 0}, 422, "draws: "),
    "too many draws": ({"observed": OBSERVED, "draws": MOST_DRAWS + 1}, 422, "draws: "),
    "half a draw": ({"observed": OBSERVED, "draws": 1.5}, 422, "draws: "),
    "true draws": ({"observed": OBSERVED, "draws": True}, 422, "draws: "),
    "a large body": (b" " * (MOST_BYTES + 1), 413, "bytes"),
    "a large body in parts": (parts(100), 413, "bytes"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_refused_and_named(ask, kind):
    body, status, message = BAD[kind]
    response = ask(body)
    assert response.status_code == status and message in response.json()["detail"]


def test_what_goes_wrong_inside_is_not_shown(ask, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("service.summarize", lambda draws: 1 / 0)
        response = ask({"observed": OBSERVED})
    assert response.status_code == 500 and "Zero" not in response.text
    assert ask({"observed": OBSERVED}).status_code == 200


def test_random_bodies_do_no_harm(ask):
    rng = random.Random(1)
    good = json.dumps({"observed": OBSERVED}).encode()
    for number in range(200):
        body = bytearray(good if number % 2 else rng.randbytes(rng.randrange(300)))
        for _ in range(rng.randrange(1, 20) if body else 0):
            place = rng.randrange(len(body))
            body[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        response = ask(bytes(body))
        assert response.status_code == 200 or (400 <= response.status_code < 500 and response.json()["detail"])
    assert ask({"observed": OBSERVED}).status_code == 200


def test_two_threads_agree(posterior):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: answer(posterior, OBSERVED, 100), range(6)))
    assert all(one == found[0] for one in found)


def answered(path):
    """Answer in a process that loads the file, which needs no compiler of torch: 140 MB."""
    found = answer(ready(path), OBSERVED, 100)
    return found, "torch._dynamo" in sys.modules


@pytest.mark.parametrize("others", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_that_share_a_file_agree(posterior, saved, others):
    expected = answer(posterior, OBSERVED, 100), False
    with multiprocessing.get_context("spawn").Pool(others) as pool:
        assert pool.map(answered, [saved] * others, chunksize=1) == [expected] * others


def test_a_server_answers_eight_clients(saved, posterior):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "examples" / "service.py", saved, f"--port={port}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    url, expected = f"http://127.0.0.1:{port}", answer(posterior, OBSERVED, 100)
    with subprocess.Popen(command, env=environment) as server:
        try:
            wait_for(server, url)
            with httpx.Client(timeout=60) as client, ThreadPoolExecutor(8) as pool:
                bodies = [{"observed": OBSERVED}, {"observed": {}}] * 20
                assert client.get(f"{url}/health").json() == {"status": "ok"}
                found = list(pool.map(lambda body: client.post(f"{url}/posterior", json=body), bodies))
                assert [r.status_code for r in found] == [200, 422] * 20
                assert all(r.json() == expected for r in found[::2])
                assert server.poll() is None
        finally:
            server.terminate()


def wait_for(server, url, seconds=60):
    """Wait until a server is there."""
    for _ in range(10 * seconds):
        assert server.poll() is None, "the server has ended"
        try:
            httpx.get(f"{url}/health")
            return
        except httpx.ConnectError:
            time.sleep(0.1)
    raise TimeoutError(url)
