"""What finding the structure of the data costs, beside compiling the density that proves it.

Run: python benchmarks/structure.py [model ...]
The models are those of tests/models.py; "density" is the time until its first value, by PyTensor's default backend.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from pymc_amortized.graph.density.log_density import LogDensity
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.snapshot import take_snapshot
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.structure import find_structure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
SIMULATIONS = 200


def timed(name: str) -> tuple[float, float, Structure, ModelSpec]:
    """Seconds until the density's first value, seconds to find the structure, and what was found."""
    from models import MODELS

    spec = take_snapshot(MODELS[name].build())
    simulations = Simulator(spec)(SIMULATIONS, 1)
    log_density = LogDensity(spec)
    start = time.perf_counter()
    if spec.density_obstacle is None:
        first = {**spec.held, **{k: values[0] for k, values in simulations.data.items()}}
        log_density(simulations.unconstrained[:1], first)
    compiled = time.perf_counter()
    structure = find_structure(spec, simulations, log_density, np.random.SeedSequence(1))
    return compiled - start, time.perf_counter() - compiled, structure, spec


def main() -> None:
    """Print a line for each model."""
    from models import MODELS, kinds_of

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    warnings.simplefilter("ignore")
    print(f"{'model':24} {'density':>9} {'structure':>10}  found")
    for name in parser.parse_args().models:
        density, seconds, structure, spec = timed(name)
        found = "; ".join(f"{v.name}: {', '.join(kinds_of(structure, v.name)) or 'scalar'}" for v in spec.observed)
        print(f"{name:24} {density:7.2f} s {seconds:8.3f} s  {found}", flush=True)


if __name__ == "__main__":
    main()
