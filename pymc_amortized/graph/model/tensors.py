"""Small tools between PyMC's graphs and compiled loops over draws.

Every compiled function of this package is one ``pytensor.scan``: the loop over draws runs inside compiled code,
and one step of it is the model's own graph. Random generators, data and context are inputs of the step.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.pytensorf import collect_default_updates, find_rng_nodes
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.random.type import random_generator_type
from pytensor.xtensor.type import XTensorType, as_xtensor

from pymc_amortized.graph.model.operations import with_checked_shapes

CompileKwargs = Mapping[str, Any]


def plain(var: Any) -> Any:
    """Return the tensor behind a variable with dims (``pymc.dims``); a tensor as it is."""
    return var.values if isinstance(var.type, XTensorType) else var


def like(var: Any, tensor: Any) -> Any:
    """Give a plain tensor the type of `var`, so that it can stand in its place."""
    return as_xtensor(tensor, dims=var.type.dims) if isinstance(var.type, XTensorType) else tensor


def evaluated_shapes(model: pm.Model, variables: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of variables and of the free ones' unconstrained values, by name."""
    wanted: dict[str, Any] = {}
    for var in variables:
        wanted[var.name] = plain(var)
        if var in model.free_RVs:
            transform, value = model.rvs_to_transforms[var], model.rvs_to_values[var]
            moved = var if transform is None else transform.forward(var, *var.owner.inputs)
            wanted[value.name] = plain(moved)
    unknown = {n: v for n, v in wanted.items() if None in v.type.shape}
    computed: dict[str, tuple[int, ...]] = {}
    if unknown:
        function = pm.compile([], [v.shape for v in unknown.values()], mode="FAST_COMPILE")
        computed = {name: tuple(int(k) for k in shape) for name, shape in zip(unknown, function(), strict=True)}
    return {name: computed.get(name, var.type.shape) for name, var in wanted.items()}


def split_vector(vector: Any, sizes_and_shapes: Sequence[tuple[int, tuple[int, ...]]]) -> list[Any]:
    """Cut a flat vector into arrays of the given shapes."""
    parts, start = [], 0
    for size, shape in sizes_and_shapes:
        part = vector[start] if shape == () else vector[start : start + size].reshape(shape)
        parts.append(part)
        start += size
    return parts


def scan_over(
    outputs: Sequence[Any],
    *,
    sequences: Sequence[tuple[Any, Any]] = (),
    inputs: Sequence[Variable] = (),
    compile_kwargs: CompileKwargs | None = None,
) -> Callable[..., list[np.ndarray]]:
    """Compile a deterministic graph into a loop over the leading axis of `sequences`.

    Parameters
    ----------
    outputs : sequence of variables
        What one step computes.
    sequences : sequence of (placeholder, batched)
        A variable of the step's graph and the batched input whose slices stand in for it.
    inputs : sequence of variables
        Inputs that are the same at every step.
    """
    placeholders = [p for p, _ in sequences]
    batched = [b for _, b in sequences]

    def step(*slices: Any) -> list[Any]:
        # inputs are passed as non_sequences only so that scan sees them
        return graph_replace(list(outputs), dict(zip(placeholders, slices, strict=False)), strict=False)

    looped = pytensor.scan(step, sequences=batched, return_updates=False)
    looped = looped if isinstance(looped, list) else [looped]
    return pm.compile([*batched, *inputs], looped, on_unused_input="ignore", **(compile_kwargs or {}))


class DrawLoop:
    """A random graph compiled into a loop of `n` independent draws, its generators being inputs.

    Parameters
    ----------
    outputs : sequence of variables
        The graph of one draw.
    sequences : sequence of (placeholder, batched)
        Values that differ from draw to draw without being random here (context).
    inputs : sequence of variables
        Inputs that are the same for every draw.
    """

    def __init__(
        self,
        outputs: Sequence[Any],
        *,
        sequences: Sequence[tuple[Any, Any]] = (),
        inputs: Sequence[Variable] = (),
        compile_kwargs: CompileKwargs | None = None,
    ) -> None:
        outputs = with_checked_shapes(outputs)
        updates = collect_default_updates(list(outputs))
        rngs = list(updates)
        frozen = set(find_rng_nodes(list(outputs))) - set(rngs)
        if frozen:
            raise ValueError(
                f"{len(frozen)} random generator(s) of the model are never advanced, so that every draw would "
                "repeat the first; give custom distributions an `update` for their generator"
            )
        self.generators = len(rngs)
        placeholders = [p for p, _ in sequences]
        batched = [b for _, b in sequences]
        graph = [*outputs, *updates.values()]

        def step(*current: Any) -> list[Any]:
            replacements = dict(zip([*placeholders, *rngs], current, strict=True))
            return graph_replace(graph, replacements, strict=False)

        n = pt.lscalar("n")
        states = [random_generator_type() for _ in rngs]
        looped = pytensor.scan(
            step,
            sequences=batched,
            outputs_info=[None] * len(outputs) + states,
            n_steps=n,
            return_updates=False,
        )
        looped = looped if isinstance(looped, list) else [looped]
        with warnings.catch_warnings():
            # a simulator written in Python runs in Python, as its author knows
            warnings.filterwarnings("ignore", message="Numba will use object mode")
            self._function = pm.compile(
                [n, *batched, *states, *inputs],
                looped[: len(outputs)],
                on_unused_input="ignore",
                **(compile_kwargs or {}),
            )

    def __call__(
        self,
        n: int,
        seed: np.random.SeedSequence,
        sequences: Sequence[np.ndarray] = (),
        inputs: Sequence[Any] = (),
    ) -> list[np.ndarray]:
        """Return the draws, each output with a leading axis of length `n`."""
        states = [np.random.Generator(np.random.PCG64(s)) for s in seed.spawn(self.generators)]
        return self._function(n, *sequences, *states, *inputs)


def call_in_halves(
    function: Callable[..., list[np.ndarray]],
    sequences: Sequence[np.ndarray],
    inputs: Sequence[Any],
    failed: Callable[[], list[np.ndarray]],
) -> list[np.ndarray]:
    """Call a compiled loop, with `failed` in the place of a step at which compiled code raises.

    It does not say which step raised (a division by zero, an index that is not there): halve until it stands alone.
    """
    try:
        return function(*sequences, *inputs)
    except (ArithmeticError, IndexError, np.linalg.LinAlgError):
        half = len(sequences[0]) // 2
        if half == 0:
            return failed()
        parts = [
            call_in_halves(function, [values[part] for values in sequences], inputs, failed)
            for part in (slice(half), slice(half, None))
        ]
        return [np.concatenate(pair) for pair in zip(*parts, strict=True)]


def batched_input(name: str, dtype: str, shape: tuple[int | None, ...]) -> Any:
    """Build an input for arrays with a leading axis of draws or simulations."""
    return pt.tensor(name, dtype=dtype, shape=(None, *shape))
