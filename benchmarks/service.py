"""What a service costs: its start, warm answers, a long life and clients at once. It serves `examples/service.py`.

    python benchmarks/service.py [--calls 200] [--growth 10000]

Each part is measured in a process of its own, CPU seconds (of all threads) beside seconds of the clock. The cache of
PyTensor is warm: a first start is not measured. Eight clients ask the server over HTTP, each again at once, or after a
second.
"""

import argparse
import http.client
import json
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # its service.py, not this one
CLIENTS = 8
SIZES = {"100": (100, 1), "4 x 1,000": (1000, 4)}


def timed(function: Callable[[], Any]) -> tuple[Any, list[float]]:
    """Return what a function gives, and its seconds: of CPUs, of the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return result, [time.process_time() - cpu, time.perf_counter() - wall]


def megabytes() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def train(path: Path) -> dict[str, Any]:
    """Train the posterior of the example, and save it."""
    from service import ready

    return {"train": timed(lambda: ready(path))[1]}


def start(path: Path) -> dict[str, Any]:
    """Start cold."""
    found = {"import": timed(lambda: __import__("pymc_amortized"))[1]}
    found["import of the server"] = timed(lambda: __import__("service"))[1]
    import numpy as np
    from service import ROWS, build

    import pymc_amortized as pma

    posterior, found["load"] = timed(lambda: pma.load(path, model=build()))
    y, options = np.random.default_rng(1).normal(size=ROWS), {"draws": 100, "chains": 1, "progressbar": False}
    _, found["first answer"] = timed(lambda: posterior.sample({"y": y}, **options))
    found["second answer"] = timed(lambda: posterior.sample({"y": y}, **options))[1]
    return found | {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def warm(path: Path, calls: int, growth: int) -> dict[str, Any]:
    """Answer many data sets, one after the other."""
    import numpy as np
    from service import ROWS, build

    import pymc_amortized as pma

    posterior = pma.load(path, model=build())
    rng = np.random.default_rng(1)

    def answer(draws: int, chains: int) -> None:
        y = rng.normal(size=ROWS)
        posterior.sample({"y": y}, draws=draws, chains=chains, random_seed=1, progressbar=False)

    found: dict[str, Any] = {}
    for name, size in SIZES.items():
        answer(*size)
        times = np.array([timed(lambda size=size: answer(*size))[1] for _ in range(calls)])
        found[f"{name} draws, median"] = np.median(times, axis=0).tolist()
    before = megabytes()
    for _ in range(growth):
        answer(100, 1)
    return found | {f"growth over {growth:,} calls, MB": megabytes() - before, "resident MB": megabytes()}


def clients(path: Path, calls: int) -> dict[str, Any]:
    """Let eight clients ask a server at once."""
    import numpy as np
    from service import ROWS

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = json.dumps({"observed": {"y": np.random.default_rng(1).normal(size=ROWS).tolist()}, "draws": 100})

    def ask() -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def answered() -> None:
            connection.request("POST", "/posterior", body)
            response = connection.getresponse()
            if response.status != 200 or not response.read():
                raise RuntimeError(f"status {response.status}")

        return timed(answered)[1][1:]

    def ask_again(client: int, pause: float) -> list[list[float]]:
        time.sleep(pause * client / CLIENTS)
        times = []
        for _ in range(max(calls // CLIENTS, 1)):
            times.append(ask())
            time.sleep(max(pause - times[-1][0], 0))
        return times

    found: dict[str, Any] = {}
    command = [sys.executable, str(ROOT / "examples" / "service.py"), str(path), f"--port={port}"]
    with subprocess.Popen(command) as server, ThreadPoolExecutor(CLIENTS) as pool:
        try:
            wait_for(ask)
            for name, pause in {"one after the other": 0.0, "one a second": 1.0}.items():
                times = list(pool.map(ask_again, range(CLIENTS), [pause] * CLIENTS))
                found[f"{name}: median, 95 %"] = np.quantile(times, [0.5, 0.95]).tolist()
        finally:
            server.terminate()
    return found


def wait_for(ask: Callable[[], Any], seconds: int = 120) -> None:
    """Wait until the server answers."""
    for _ in range(10 * seconds):
        try:
            ask()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise TimeoutError("the server does not answer")


def in_process(part: str, path: Path, **options: int) -> None:
    """Measure a part in a process of its own, and print it."""
    command = [sys.executable, __file__, "--part", part, "--path", str(path)]
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    for name, value in json.loads(done.stdout.splitlines()[-1]).items():
        units = ("s", "s") if part == "clients" else ("s CPU", "s")
        many = isinstance(value, list)
        shown = ", ".join(f"{v:.3f} {u}" for v, u in zip(value, units, strict=True)) if many else f"{value:.1f}"
        print(f"{part:8}{name:36}{shown}", flush=True)


PARTS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    "train": (train, ()),
    "start": (start, ()),
    "warm": (warm, ("calls", "growth")),
    "clients": (clients, ("calls",)),
}
"""Functions, and options that they take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--growth", type=int, default=500)
    args = parser.parse_args()
    if args.part:
        part, options = PARTS[args.part]
        print(json.dumps(part(args.path, **{name: getattr(args, name) for name in options})))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.path or Path(folder) / "regression.pma"
        for part in PARTS:
            in_process(part, path, calls=args.calls, growth=args.growth)


if __name__ == "__main__":
    main()
