"""Past one machine and past memory: simulating by processes and by Dask's workers, and inference for many data sets.

    python benchmarks/scale.py simulate                       # 1, 2 processes and 1, 2 workers of Dask, at 20 ms each
    python benchmarks/scale.py infer --datasets 1000 100000   # seconds for each data set, and the largest memory
    python benchmarks/scale.py infer --model diffusion        # a network's own draws, where there is no density
    python benchmarks/scale.py train                          # a set on disk beside the same set in memory
    python benchmarks/scale.py cluster                        # inference by 1 and 2 workers of Dask

Each line says what was measured; ratios are those of one run. Starting processes and workers is not counted: a few
simulations, or data sets, come first.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr

import pymc_amortized as pma
from pymc_amortized.approximators.simulations import given

QUIET: dict[str, Any] = {"progressbar": False}


def slow(rng: np.random.Generator, mu: np.ndarray, size: Any = None) -> np.ndarray:
    """Draw a value after 20 ms of work that holds the interpreter's lock."""
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end:
        sum(range(1000))
    return rng.normal(mu, 1.0, size=size)


def slow_model() -> pm.Model:
    """Return a simulator of 20 ms."""
    with pm.Model() as model:
        pm.Simulator("y", slow, pm.Normal("mu", 0, 1), observed=0.0)
    return model


def regression(rows: int = 40, slopes: int = 4) -> pm.Model:
    """Return a linear regression with fixed covariates."""
    x = np.random.default_rng(1).normal(size=(rows, slopes))
    with pm.Model() as model:
        beta = pm.Normal("beta", 0, 1, shape=slopes)
        mu = pm.Normal("alpha", 0, 1) + x @ beta
        pm.Normal("y", mu, pm.HalfNormal("sigma", 1), observed=np.zeros(rows))
    return model


def diffusion(trials: int = 100) -> pm.Model:
    """Return a drift-diffusion model that can only be simulated."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    from drift_diffusion_model import simulate as walks

    with pm.Model() as model:
        drift, boundary = pm.Normal("drift", 0, 1.5), pm.Uniform("boundary", 0.5, 2.5)
        bias, rest = pm.Uniform("bias", 0.3, 0.7), pm.Uniform("rest", 0.1, 0.5)
        arguments = {"random": walks, "signature": "(),(),(),()->(2)", "observed": np.ones((trials, 2))}
        pm.CustomDist("y", drift, boundary, bias, rest, **arguments)
    return model


MODELS = {"regression": regression, "diffusion": diffusion}


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder, and remove it."""
    place = Path(tempfile.mkdtemp())
    try:
        yield place
    finally:
        shutil.rmtree(place)


def seconds(function: Callable[[], object]) -> float:
    """Time a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak() -> float:
    """Largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def workers(number: int) -> Iterator[Any]:
    """Start a cluster on this machine."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=number, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def simulate(number: int) -> None:
    """Simulate to a store, by processes and by workers."""
    model = slow_model()

    def run(**how: Any) -> float:
        with folder() as place:
            pma.simulate(
                model, 8, chunk=2, store=place / "first.zarr", random_seed=1, **how, **QUIET
            )  # starts and compiles
            return seconds(
                lambda: pma.simulate(model, number, chunk=25, store=place / "s.zarr", random_seed=1, **how, **QUIET)
            )

    alone = run(cores=1)
    print(
        f"simulator of 20 ms, {number} simulations: 1 process {alone:.1f} s ({number * 0.02:.1f} s of it the simulator)"
    )
    two = run(cores=2)
    print(f"2 processes {two:.1f} s: {alone / two:.2f} times as fast")
    for n in (1, 2):
        with workers(n) as client:
            taken = run(client=client)
        print(f"{n} worker(s) of Dask {taken:.1f} s: {alone / taken:.2f} times as fast", flush=True)


def data(model: pm.Model, number: int, place: Path) -> xr.Dataset:
    """Simulate data sets, on disk."""
    y = pma.simulate(model, number, random_seed=2).prior_predictive["y"].to_numpy()[0]
    dims = ("dataset", "row", "part")[: y.ndim]
    xr.Dataset({"y": (dims, y)}).chunk(dataset=1000).to_zarr(place, zarr_format=3, consolidated=True)
    return xr.open_zarr(place)


def infer(name: str, numbers: list[int], cores: int, draws: int, reduce: str | None) -> None:
    """Sample the posteriors of many data sets to a store."""
    model = MODELS[name]()
    posterior = pma.fit_posterior(model, random_seed=1, max_time=120, **QUIET)
    how: dict[str, Any] = {"batched": True, "draws": draws // 4, "cores": cores, "reduce": reduce, "random_seed": 3}
    how |= QUIET
    with folder() as place:
        many = data(model, max(numbers), place / "data.zarr")
        posterior.sample(many.isel(dataset=slice(600)), store=place / "first.zarr", **how)
        for number in numbers:
            start, path = time.perf_counter(), place / f"{number}.zarr"
            posterior.sample(many.isel(dataset=slice(number)), store=path, **how)
            taken = time.perf_counter() - start
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e9
            print(
                f"{number:,} data sets ({name}) x {draws} draws, {cores} process(es): {taken:.1f} s, "
                f"{1e3 * taken / number:.2f} ms each; {size:.2f} GB on disk; largest memory {peak():.2f} GB; "
                f"1.2 million would take {1.2e6 * taken / number / 60:.0f} min",
                flush=True,
            )


def cluster(number: int, draws: int) -> None:
    """Sample by workers of Dask."""
    model = regression()
    posterior = pma.fit_posterior(model, random_seed=1, **QUIET)
    with folder() as place:
        many, times = data(model, number, place / "data.zarr"), []
        for n in (1, 2):
            with workers(n) as client:
                how: dict[str, Any] = {"batched": True, "draws": draws // 4, "client": client, "random_seed": 3} | QUIET
                posterior.sample(many.isel(dataset=slice(1200)), store=place / f"first{n}.zarr", **how)
                path = place / f"{n}.zarr"
                times.append(seconds(lambda path=path, how=how: posterior.sample(many, store=path, **how)))
            print(f"{n} worker(s): {number:,} data sets in {times[-1]:.1f} s, {times[0] / times[-1]:.2f} times as fast")


def train(number: int) -> None:
    """Train on a set that is on disk, and on the same in memory."""
    model = regression(rows=200)
    options: dict[str, Any] = {
        "training": pma.Training(num_steps=2000, patience=1000),
        "sketch": False,
        "random_seed": 1,
    } | QUIET
    with folder() as place:
        pma.simulate(model, number, store=place / "s.zarr", random_seed=1, **QUIET)
        memory = given.IN_MEMORY
        pma.fit_posterior(model, simulations=place / "s.zarr", **options | {"training": pma.Training(num_steps=20)})
        for where, limit in (("in memory", memory), ("on disk", 0)):
            given.IN_MEMORY = limit
            given.BLOCK_VALUES = 2**21
            posterior = None

            def fit() -> None:
                nonlocal posterior
                posterior = pma.fit_posterior(model, simulations=place / "s.zarr", **options)

            taken = seconds(fit)
            history = posterior.history
            print(
                f"{number:,} simulations {where}: {taken:.1f} s in all, 2,000 steps {history.seconds[-1]:.1f} s; "
                f"held-out loss {history.held_out_loss[-1]:.3f}",
                flush=True,
            )


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulate", "infer", "train", "cluster"], nargs="?", default="simulate")
    parser.add_argument("--datasets", type=int, nargs="+")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--reduce")
    parser.add_argument("--model", choices=list(MODELS), default="regression")
    options = parser.parse_args()
    if options.what == "simulate":
        simulate((options.datasets or [1000])[0])
    elif options.what == "infer":
        infer(options.model, options.datasets or [1000, 10_000], options.cores, options.draws, options.reduce)
    elif options.what == "cluster":
        cluster((options.datasets or [5000])[0], options.draws)
    else:
        train((options.datasets or [100_000])[0])


if __name__ == "__main__":
    sys.exit(main())
