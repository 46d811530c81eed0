"""Every model of the gallery, beside NUTS: how far apart, how fast, from how many data sets on it takes less time.

    python examples/gallery/run.py [names ...]

Each model runs in a process of its own. Prints the table of docs/gallery.md. NUTS is nutpie's, as `pm.sample` takes it
where it is installed, with four chains one after the other. "One more" is one more data set with the same model,
compiled once. "From" is the number of data sets from which on this takes less time.
"""

import argparse
import json
import logging
import math
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass

import arviz as az
import counts  # noqa: F401 (these register their entries)
import hierarchies  # noqa: F401
import lives  # noqa: F401
import minds  # noqa: F401
import numpy as np
import nutpie
import pymc as pm
import regressions  # noqa: F401
import series  # noqa: F401
import shapes  # noqa: F401
import systems  # noqa: F401
import xarray as xr
from entries import ENTRIES, Entry

import pymc_amortized as pma

HEADER = (
    "| model | parameters | lines | fit | one more | NUTS | NUTS, one more | from | stage | mean off by | sd off by "
    "| |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)
MEAN, SD = 0.2, 0.2
"""Largest differences that count as agreement: of means in posterior sds, of sds as a share."""
ERRORS = 4.0
"""Monte Carlo errors of both that are allowed on top."""
IN_DOUBT = {"weights", "few weights", "failed", "not reached", "calibration", "divergences", "uncorrected"}
"""Kinds of warnings that say that draws may be wrong; `docs/troubleshooting.md` has them all."""


@dataclass(frozen=True)
class Row:
    """What was measured: seconds, and the largest differences of all parameters."""

    name: str
    parameters: int
    lines: int
    fit: float
    first: float
    more: float
    nuts: float
    nuts_more: float
    r_hat: float
    stage: str
    rung: str
    doubts: list[str]
    mean: float
    sd: float
    beyond: list[str]

    @property
    def even(self) -> str:
        """Number of data sets from which on this takes less time than NUTS, each compiled once."""
        ahead = self.fit + self.first - self.nuts
        gained = self.nuts_more - self.more
        if gained <= 0:
            return "never" if ahead > 0 else "1"
        return f"{max(math.ceil(1 + ahead / gained), 1):,}"

    @property
    def verdict(self) -> str:
        """Whether the answer agrees with NUTS, or says itself that it may not."""
        if not self.beyond:
            return "agrees"
        marked = self.stage in ("failed", "not reached") or IN_DOUBT.intersection(self.doubts)
        return "marked" if marked else "DIFFERS"

    def __str__(self) -> str:
        """Lay out a row of the table."""
        ours = f"{self.fit:.0f} s | {self.more:.1f} s"
        return (
            f"| `{self.name}` | {self.parameters} | {self.lines} | {ours} | {self.nuts:.0f} s | {self.nuts_more:.1f} s "
            f"| {self.even} | {self.stage} | {self.mean:.2f} sd | {self.sd:.0%} | {self.verdict} |"
        )


def moments(dt: xr.DataTree, names: list[str]) -> dict[str, np.ndarray]:
    """Mean, sd and their Monte Carlo errors of each parameter: (4, values) by name."""
    found = {}
    for name in names:
        draws = dt.posterior[name]
        errors = [az.mcse(dt, var_names=[name], method=method)[name] for method in ("mean", "sd")]
        parts = [draws.mean(("chain", "draw")), draws.std(("chain", "draw")), *errors]
        found[name] = np.stack([np.ravel(part) for part in parts])
    return found


def compare(ours: xr.DataTree, nuts: xr.DataTree, names: list[str]) -> tuple[float, float, list[str]]:
    """Largest difference of means in sds and of sds, and what differs by more than is allowed."""
    a, b = moments(ours, names), moments(nuts, names)
    means, sds, beyond = [], [], []
    for name in names:
        (mean, sd, mean_error, sd_error), (other, scale, other_error, scale_error) = a[name], b[name]
        shift = np.abs(mean - other) / scale
        ratio = np.abs(sd / scale - 1)
        far = shift > MEAN + ERRORS * np.hypot(mean_error, other_error) / scale
        wide = ratio > SD + ERRORS * np.hypot(sd_error, scale_error) / scale
        beyond += [
            f"{name}[{i}]: mean off by {shift[i]:.2f} sd, sd by {ratio[i]:.0%}" for i in np.flatnonzero(far | wide)
        ]
        means.append(shift.max())
        sds.append(ratio.max())
    return max(means), max(sds), beyond


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - start


def run_nuts(model: pm.Model) -> tuple[xr.DataTree, float, float]:
    """Draws, seconds of the first data set, and of one more: sampling alone, as nutpie keeps what it compiled."""
    compiled, seconds = timed(nutpie.compile_pymc_model, model)
    dt, more = timed(nutpie.sample, compiled, draws=1000, tune=1000, chains=4, cores=1, seed=1, progress_bar=False)
    return dt, seconds + more, more


def fit(entry: Entry) -> pma.AmortizedPosterior:
    """Train on an entry's model: the posterior alone, or with a likelihood where the model has no density."""
    if entry.simulator:
        return pma.fit_joint(entry.build(), random_seed=1, progressbar=False).posterior
    return pma.fit_posterior(entry.build(), random_seed=1, progressbar=False)


def measure(entry: Entry) -> Row:
    """Fit, sample, and compare with NUTS."""
    posterior, seconds = timed(fit, entry)
    dt, first = timed(posterior.sample, random_seed=2, progressbar=False)
    _, more = timed(posterior.sample, random_seed=3, progressbar=False)
    model = (entry.reference or entry.build)()
    nuts, nuts_first, nuts_more = run_nuts(model)
    r_hat = max(float(values.max()) for values in az.rhat(nuts).data_vars.values())
    if entry.exact is not None:
        nuts = az.from_dict(
            {"posterior": {name: draws.reshape(4, -1, *draws.shape[1:]) for name, draws in entry.exact().items()}}
        )
    names = [variable.name for variable in model.free_RVs]
    mean, sd, beyond = compare(dt, nuts, names)
    size = sum(np.size(value) for value in model.initial_point().values())
    doubts = [doubt["kind"] for doubt in json.loads(dt.posterior.attrs.get("doubts", "[]"))]
    return Row(
        name=entry.name,
        parameters=size,
        lines=entry.lines,
        fit=seconds,
        first=first,
        more=more,
        nuts=nuts_first,
        nuts_more=nuts_more,
        r_hat=r_hat,
        stage=str(dt.sample_stats["stage"].item()),
        rung=str(dt.sample_stats["rung"].item()),
        doubts=doubts,
        mean=float(mean),
        sd=float(sd),
        beyond=beyond,
    )


def in_process(name: str) -> Row | str:
    """Measure in a process of its own; the reason where that fails."""
    done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True)
    if done.returncode:
        return f"| `{name}` | {(done.stderr.strip().splitlines() or [f'exit status {done.returncode}'])[-1]} |"
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *ENTRIES], default=[])
    parser.add_argument("--one", choices=ENTRIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        logging.getLogger("pymc").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        print(json.dumps(asdict(measure(ENTRIES[options.one]))))
        return
    print(HEADER, flush=True)
    for name in options.names or [name for name, entry in ENTRIES.items() if not entry.needs]:
        print(in_process(name), flush=True)


if __name__ == "__main__":
    main()
