"""A service: train once, then answer data sets over HTTP.

    pip install "pymc-amortized[service]"
    python examples/service.py [regression.pma] [--port 8000]

It trains a regression, or loads it where the file is there. Then ask from elsewhere, with 40 numbers for y:

    curl localhost:8000/posterior -d '{"observed": {"y": [0.3, -1.2, ...]}, "draws": 100}'

All of it but the model and ``ready`` serves any posterior whose data are numbers without gaps.
"""

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

import pymc_amortized as pma

MOST_BYTES, MOST_DRAWS = 2**20, 4000
"""Of a body and of an answer: what takes long or does not fit into memory is refused."""
QUANTILES = [0.05, 0.5, 0.95]
ROWS, SLOPES = 40, ["age", "dose", "weight"]


def build() -> pm.Model:
    """Write down the model, which every start needs: the file holds none."""
    with pm.Model(coords={"slope": SLOPES, "row": range(ROWS)}) as model:
        x = pm.Data("x", np.random.default_rng(1).normal(size=(ROWS, len(SLOPES))), dims=("row", "slope"))
        intercept = pm.Normal("intercept", 0, 1)
        slopes = pm.Normal("slopes", 0, 1, dims="slope")
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", intercept + x @ slopes, sigma, observed=np.zeros(ROWS), dims="row")
    return model


def ready(path: Path) -> pma.AmortizedPosterior:
    """Load the posterior; train and save it first, where there is no file."""
    if not path.exists():
        pma.fit_posterior(build(), random_seed=1, max_time=60).save(path)
    return pma.load(path, kind=pma.AmortizedPosterior, model=build())


def refuse(message: str, status: int = 422) -> HTTPException:
    return HTTPException(status, message)


async def read_json(request: Request) -> Any:
    """Read a body that is not too long, whatever its header says of that."""
    too_long = refuse(f"the body has more than {MOST_BYTES:,} bytes", 413)
    if int(request.headers.get("content-length", 0)) > MOST_BYTES:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise too_long
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise refuse(f"the body is not JSON: {error}", 400) from None


def read_question(body: Any) -> tuple[dict[str, np.ndarray], int]:
    """Take data and the number of draws from a body, or say what is wrong with it."""
    if not isinstance(body, dict) or not isinstance(body.get("observed"), dict) or set(body) - {"observed", "draws"}:
        raise refuse('expected {"observed": {name: numbers}, "draws": number}, the last one optional')
    draws = body.get("draws", 100)
    if type(draws) is not int or not 1 <= draws <= MOST_DRAWS:
        raise refuse(f"draws: expected an integer from 1 to {MOST_DRAWS:,}, got {str(draws)[:20]}")
    return {name: read_numbers(name, values) for name, values in body["observed"].items()}, draws


def read_numbers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise refuse(f"observed {name!r}: rows of different lengths, or too many axes") from None
    if array.dtype.kind not in "iuf":
        raise refuse(f"observed {name!r}: expected numbers alone, neither text nor null nor true nor false")
    if not np.isfinite(array).all():
        raise refuse(f"observed {name!r}: NaN or infinity")
    return array


def summarize(draws: np.ndarray) -> dict[str, Any]:
    """Mean, sd and quantiles of draws (chains, draws, *shape), as lists of this shape."""
    quantiles = zip(map(str, QUANTILES), np.quantile(draws, QUANTILES, axis=(0, 1)).tolist(), strict=True)
    return {"mean": draws.mean((0, 1)).tolist(), "sd": draws.std((0, 1)).tolist(), "quantiles": dict(quantiles)}


def answer(posterior: pma.AmortizedPosterior, observed: Mapping[str, Any], draws: int) -> dict[str, Any]:
    """Answer one data set; without NUTS, so that none takes minutes."""
    try:
        dt = posterior.sample(observed, draws=draws, chains=1, max_nuts=0, random_seed=1, progressbar=False)
    except (ValueError, TypeError, KeyError) as error:  # data that do not fit: the message names the variable
        raise refuse(str(error.args[0])) from None
    stats = dt.sample_stats
    stage = stats["stage"].item()
    known = {name: stats[name].item() for name in ("pareto_k", "ood_pvalue")}
    return {
        "variables": {name: summarize(values.values) for name, values in dt.posterior.data_vars.items()},
        "stage": stage,
        "usable": stage not in ("failed", "not reached"),
        **{name: value if np.isfinite(value) else None for name, value in known.items()},  # JSON has no NaN
    }


def serve(posterior: pma.AmortizedPosterior) -> FastAPI:
    """Make a service of a posterior."""
    app = FastAPI(title="Posteriors")

    # Threads may share a posterior: each gets what its seed gives. They take turns, so an answer among eight takes
    # as long as eight. More processes answer more: each with a service of its own.
    @app.post("/posterior")
    async def ask(request: Request) -> dict[str, Any]:
        question = read_question(await read_json(request))
        return await run_in_threadpool(answer, posterior, *question)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:  # the log of the server has the traceback
        return JSONResponse({"detail": "the service failed on this request; others are answered"}, 500)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path("regression.pma"))
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    posterior = ready(args.path)
    logging.getLogger("pymc_amortized").setLevel(logging.ERROR)  # warnings are in the answers
    answer(posterior, {"y": np.random.default_rng(1).normal(size=ROWS)}, 100)  # compiles, before anybody waits
    uvicorn.run(serve(posterior), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
