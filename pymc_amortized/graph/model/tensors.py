"""Small tools between PyMC's graphs and compiled loops over draws.

Every compiled function of this package is one :class:`Loop`: it runs over draws inside compiled code, and one step of
it is the model's own graph. Random generators, data and context are inputs of the step.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numba.core.dispatcher import Dispatcher
from pymc.pytensorf import collect_default_updates, find_rng_nodes
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS, compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit
from pytensor.tensor.random.type import random_generator_type
from pytensor.xtensor.type import XTensorType, as_xtensor

from pymc_amortized.graph.model.operations import with_checked_shapes
from pymc_amortized.logs import compiling
from pymc_amortized.numerics.threads import TURN

CompileKwargs = Mapping[str, Any]
INTERPRETED: CompileKwargs = {"mode": Mode(linker="py", optimizer="fast_compile")}
"""For what is called some hundred times: compiling would take longer."""


def plain(var: Any) -> Any:
    """Return the tensor behind a variable with dims (``pymc.dims``); a tensor as it is."""
    return var.values if isinstance(var.type, XTensorType) else var


def like(var: Any, tensor: Any) -> Any:
    """Give a plain tensor the type of `var`, so that it can stand in its place."""
    return as_xtensor(tensor, dims=var.type.dims) if isinstance(var.type, XTensorType) else tensor


def interpret(inputs: Sequence[Any], outputs: Any) -> Callable[..., Any]:
    """Return a function that is interpreted, for some hundred calls, from several threads in turn."""
    with TURN:
        function = pm.compile(inputs, outputs, **INTERPRETED, on_unused_input="ignore")

    def call(*values: Any) -> Any:
        with TURN:
            return function(*values)

    return call


def evaluate(variable: Any) -> np.ndarray:
    """Return the value of a variable that depends on nothing."""
    with TURN:
        return np.asarray(variable.eval())


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
        function = interpret([], [v.shape for v in unknown.values()])
        computed = {name: tuple(int(k) for k in shape) for name, shape in zip(unknown, function(), strict=True)}
    return {name: computed.get(name, var.type.shape) for name, var in wanted.items()}


def split_vector(vector: Any, shapes: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Cut a flat vector into arrays of the given shapes, of numbers or variables."""
    parts, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        part = vector[start] if shape == () else vector[start : start + size].reshape(shape)
        parts.append(part)
        start += size
    return parts


class Loop:
    """A graph compiled into a loop over the leading axis of some of its inputs; random generators are inputs, too.

    With numba, the default, the loop is a plain one around the compiled step: a ``scan`` takes half as long again to
    compile. Other backends compile the step alone, and the loop is Python's.

    Parameters
    ----------
    outputs : sequence of variables
        What one step computes.
    sequences : sequence of (placeholder, batched)
        A variable of the step's graph and the batched input whose slices stand in for it.
    picked : sequence of (placeholder, batched, place)
        The same, for slices that the sequence at that place, one of integers, tells.
    inputs : sequence of variables
        Inputs that are the same at every step.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    what : str
        What users are told that is compiled.
    """

    def __init__(
        self,
        outputs: Sequence[Any],
        *,
        sequences: Sequence[tuple[Any, Any]] = (),
        picked: Sequence[tuple[Any, Any, int]] = (),
        inputs: Sequence[Variable] = (),
        compile_kwargs: CompileKwargs | None = None,
        what: str = "a function of the model",
    ) -> None:
        outputs = with_checked_shapes(outputs)
        updates = collect_default_updates(list(outputs))
        frozen = set(find_rng_nodes(list(outputs))) - set(updates)
        if frozen:
            raise ValueError(
                f"{len(frozen)} random generator(s) of the model are never advanced, so that every draw would "
                "repeat the first; give custom distributions an `update` for their generator"
            )
        self.generators, self._what, self._called = len(updates), what, False
        self._batched = [b.type for _, b, *_ in (*sequences, *picked)]
        self._places = [None] * len(sequences) + [place for *_, place in picked]
        self._types = [plain(v).type for v in outputs]
        of_each = [(p, plain_input(b.name, b.dtype, b.type.shape[1:])) for p, b, *_ in (*sequences, *picked)]
        states = [random_generator_type() for _ in updates]
        replaced = dict(of_each) | dict(zip(updates, states, strict=True))
        step = graph_replace([*outputs, *updates.values()], replaced, strict=False)
        # generators are made for each call, and may be advanced in place
        given = [*(pytensor.In(state, mutable=True) for state in states), *(one for _, one in of_each), *inputs]
        with TURN, warnings.catch_warnings():
            # a simulator written in Python runs in Python, as its author knows
            warnings.filterwarnings("ignore", message="Numba will use object mode")
            self._step = pm.compile(given, step, on_unused_input="ignore", **(compile_kwargs or {}))
        self._inputs = [v.type for v in inputs]
        self._loop = _numba_loop(self._step, self._types, self.generators, self._places)

    def __call__(
        self,
        n: int,
        seed: np.random.SeedSequence | None = None,
        sequences: Sequence[np.ndarray] = (),
        inputs: Sequence[Any] = (),
        picked: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        """Return each output with a leading axis of length `n`."""
        states = [np.random.Generator(np.random.PCG64(s)) for s in seed.spawn(self.generators)] if seed else []
        # another layout in memory would be compiled again
        arrays = [_laid_out(t, values) for t, values in zip(self._batched, [*sequences, *picked], strict=True)]
        if self._loop is None:
            with TURN:
                return self._in_python(n, states, arrays, inputs)
        fixed = [_laid_out(t, value) for t, value in zip(self._inputs, inputs, strict=True)]
        shared = [c.storage[0] for c in self._step.input_storage[len(states) + len(arrays) + len(fixed) :]]
        if self._called:
            return list(self._loop(n, *states, *arrays, *fixed, *shared))
        with TURN, compiling(self._what):
            outputs = list(self._loop(n, *states, *arrays, *fixed, *shared))
        self._called = True
        return outputs

    def _in_python(self, n: int, states: list[Any], arrays: list[np.ndarray], inputs: Sequence[Any]) -> list[Any]:
        outputs: list[Any] = [np.empty((n, *(k or 0 for k in t.shape)), t.dtype) for t in self._types]
        for i in range(n):
            rows = [i if place is None else arrays[place][i] for place in self._places]
            values = self._step(*states, *(a[row] for a, row in zip(arrays, rows, strict=True)), *inputs)
            states = values[len(outputs) :]
            if i == 0:
                outputs = [np.empty((n, *np.shape(v)), t.dtype) for v, t in zip(values, self._types, strict=False)]
            for output, value in zip(outputs, values, strict=False):
                output[i] = value
        return outputs


def _numba_loop(function: Any, types: Sequence[Any], generators: int, places: Sequence[int | None]) -> Any:
    """Compile a loop around a function that numba has compiled; None if another backend has.

    Parameters
    ----------
    function : pytensor.compile.function.types.Function
        Of generators, slices and fixed inputs, that returns outputs and generators.
    types : sequence of types
        Of the outputs.
    generators : int
        How many there are.
    places : sequence of int or None
        For each sliced array, which other one tells the slice, if any.
    """
    step = getattr(function.vm, "jit_fn", None)
    if not isinstance(step, Dispatcher):
        return None
    states = [f"g{i}" for i in range(generators)]
    arrays = [f"a{i}" for i in range(len(places))]
    fixed = [f"x{i}" for i in range(len(function.input_storage) - len(states) - len(arrays))]
    rows = [
        f"np.asarray({a}[{'i' if place is None else f'a{place}[i]'}])" for a, place in zip(arrays, places, strict=True)
    ]
    lines = [f"def loop({', '.join(['n', *states, *arrays, *fixed])}):"]
    lines += [f"    o{j} = np.empty((n,{' 0,' * t.ndim}), np.{t.dtype})" for j, t in enumerate(types)]
    lines += ["    for i in range(n):", f"        r = step({', '.join([*states, *rows, *fixed])})"]
    lines += ["        if i == 0:"]
    lines += [f"            o{j} = np.empty((n,) + np.shape(r[{j}]), np.{t.dtype})" for j, t in enumerate(types)]
    lines += [line for j, t in enumerate(types) for line in _copying(j, t.ndim)]
    lines += [f"        {g} = r[{len(types) + j}]" for j, g in enumerate(states)]
    source = "\n".join([*lines, f"    return {' '.join(f'o{j},' for j in range(len(types)))}\n"])
    # PyTensor's own key of the step, with which the loop is kept on disk as the step would be
    key = CACHED_SRC_FUNCTIONS.get(step.py_func)
    kept = key and hashlib.sha256(f"{source} {key}".encode()).hexdigest()
    space = globals() | {"step": numba_njit(step.py_func, cache=kept is not None)}
    made = compile_numba_function_src(source, "loop", space, cache_key=kept)
    return numba_njit(made, final_function=True, no_cfunc_wrapper=True, cache=kept is not None)


def _copying(j: int, ndim: int) -> list[str]:
    """Lines that copy an output of one step: numba's own assignment of arrays takes four seconds to compile."""
    if ndim == 0:
        return [f"        o{j}[i] = r[{j}].item()"]
    places = [f"k{axis}" for axis in range(ndim)]
    lines = [
        f"        v{j} = r[{j}]",
        f"        if v{j}.shape != o{j}.shape[1:]:",
        "            raise ValueError('draws of one variable have different shapes')",
    ]
    for axis, k in enumerate(places):
        lines.append(f"{' ' * (8 + 4 * axis)}for {k} in range(v{j}.shape[{axis}]):")
    lines.append(f"{' ' * (8 + 4 * ndim)}o{j}[i, {', '.join(places)}] = v{j}[{', '.join(places)}]")
    return lines


def _laid_out(kind: Any, value: Any) -> np.ndarray:
    return np.require(kind.filter(value, allow_downcast=None), requirements=["C", "A", "W"])


def call_in_halves(
    loop: Loop,
    sequences: Sequence[np.ndarray],
    inputs: Sequence[Any],
    failed: Callable[[], list[np.ndarray]],
    picked: Sequence[np.ndarray] = (),
) -> list[np.ndarray]:
    """Call a compiled loop, with `failed` in the place of a step at which compiled code raises.

    It does not say which step raised (a division by zero, an index that is not there): halve until it stands alone.
    """
    try:
        return loop(len(sequences[0]), None, sequences, inputs, picked)
    except (ArithmeticError, IndexError, np.linalg.LinAlgError):
        half = len(sequences[0]) // 2
        if half == 0:
            return failed()
        parts = [
            call_in_halves(loop, [values[part] for values in sequences], inputs, failed, picked)
            for part in (slice(half), slice(half, None))
        ]
        return [np.concatenate(pair) for pair in zip(*parts, strict=True)]


def plain_input(name: str, dtype: str, shape: Sequence[int | None]) -> Any:
    """Build an input of any name: ``pt.tensor`` takes "float32" or "1|subject" for a dtype, or fails to."""
    return pt.TensorType(dtype, shape=tuple(shape))(name)


def batched_input(name: str, dtype: str, shape: tuple[int | None, ...]) -> Any:
    """Build an input for arrays with a leading axis of draws or simulations."""
    return plain_input(name, dtype, (None, *shape))
