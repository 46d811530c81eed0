"""The trained density of a row as a PyTensor graph, and as a distribution of PyMC.

The weights are constants of the graph, in float64; gradients, numba and other backends come with it. What depends on
parameters that all rows share is computed once; where parameters are picked from groups by one index
(``drift[subject]``), once for each group; and where they are made, element by element, of such picks and of constants
(``drift[subject] + effect * condition``), once for each combination that occurs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pytensor.graph.basic import Constant
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.subtensor import AdvancedSubtensor

from pymc_amortized.graph.rows.observed_rows import share_before
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.row_density.namespaces import namespace
from pymc_amortized.row_density.ratio import RowRatio


def _broadcast(parts: list[Any], axis: int) -> list[Any]:
    """Give all parts the same length along an axis; those of length 1 are repeated."""
    wide = [p for p in parts if p.type.shape[axis] != 1]
    if not wide or len(wide) == len(parts):
        return parts
    rows = wide[0].shape[axis]
    shapes = [[p.shape[0], rows] if axis else [rows] for p in parts]
    return [p if p.type.shape[axis] != 1 else pt.broadcast_to(p, shape) for p, shape in zip(parts, shapes, strict=True)]


def _split(x: Any, sizes: Sequence[int]) -> Sequence[Any]:
    ends = np.cumsum(sizes).tolist()
    return [x[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _log_ndtr(x: Any) -> Any:
    tail, near = pt.minimum(x, -1.0), pt.maximum(x, -1.0)
    return pt.where(
        x < -1.0,
        pt.log(0.5 * pt.erfcx(-tail * np.sqrt(0.5))) - 0.5 * tail * tail,
        pt.log1p(-0.5 * pt.erfc(near * np.sqrt(0.5))),
    )


PYTENSOR = namespace(
    pt,
    maximum=pt.maximum,
    minimum=pt.minimum,
    sigmoid=pt.sigmoid,
    log_ndtr=_log_ndtr,
    silu=lambda x: x * pt.sigmoid(x),
    softplus=pt.softplus,
    logsumexp=lambda x: pt.logsumexp(x, axis=0),
    split=_split,
    stack=lambda parts: pt.stack(_broadcast([pt.as_tensor(p) for p in parts], 0)),
    concatenate=lambda parts: pt.concatenate(_broadcast(list(parts), 1)),
)


@dataclass(frozen=True, eq=False)
class Emulator:
    """The learned distribution of one observed variable.

    Attributes
    ----------
    density : RowDensity or RowRatio
    event_shape : tuple of int
        Of the axes of a value that one row spans; empty where a row is a number.
    series : bool
        Whether one draw is a series of rows: an axis before those of the event.
    core_shapes : tuple of tuple of int
        Of each parameter in one row.
    dtype : str
        Of the values.
    """

    density: RowDensity | RowRatio
    event_shape: tuple[int, ...]
    series: bool
    core_shapes: tuple[tuple[int, ...], ...]
    dtype: str

    def dist(self, *parameters: Any, length: Any = None, **kwargs: Any) -> Any:
        """Make an unregistered random variable; `length` is that of a series."""
        return pm.CustomDist.dist(*self._arguments(parameters, length), **self._options, **kwargs)

    def named(self, name: str, *parameters: Any, length: Any = None, **kwargs: Any) -> Any:
        """Add a random variable to the model of the context."""
        return pm.CustomDist(name, *self._arguments(parameters, length), **self._options, **kwargs)

    def _arguments(self, parameters: Sequence[Any], length: Any) -> list[Any]:
        return [*parameters, pt.zeros(length)] if self.series else list(parameters)

    @cached_property
    def _options(self) -> dict[str, Any]:
        cores = [",".join(map(str, shape)) for shape in self.core_shapes]
        event = [str(n) for n in self.event_shape]
        if self.series:  # PyMC learns the length of a series from an argument that has it
            cores, event = [*cores, "time"], ["time", *event]
        signature = f"{','.join(f'({core})' for core in cores)}->({','.join(event)})"
        return {"logp": self.logp, "random": self.random, "signature": signature, "dtype": self.dtype}

    def logp(self, value: Any, *parameters: Any) -> Any:
        """Log density of a value: one number for each row, or for each series."""
        parameters = parameters[: len(self.core_shapes)]
        value = pt.as_tensor(value).astype("float64")
        batch_ndim = value.type.ndim - len(self.event_shape) - self.series
        batch_shape = [value.shape[i] for i in range(batch_ndim)]
        length = value.shape[batch_ndim] if self.series else None
        columns = self._columns(value, batch_ndim)
        elements, shared = self._elements(parameters, batch_shape, length)
        past = self._past(columns, length) if self.series else []
        flat = [c.flatten() for c in columns]
        past = [[part.flatten() for part in lag] for lag in past]
        rows = self.density.log_density(PYTENSOR, flat, elements, past, shared)
        if self.series:
            return rows.reshape([-1, length]).sum(1).reshape(batch_shape, ndim=batch_ndim)
        return rows.reshape(batch_shape, ndim=batch_ndim)

    def _columns(self, value: Any, batch_ndim: int) -> list[Any]:
        """The columns of the value, each of the shape of its rows."""
        lead = batch_ndim + self.series
        if not self.event_shape:
            return [value]
        flat = value.reshape([*[value.shape[i] for i in range(lead)], -1], ndim=lead + 1)
        return [flat[..., i] for i in range(int(np.prod(self.event_shape)))]

    def _elements(self, parameters: Sequence[Any], batch_shape: list[Any], length: Any) -> tuple[list[Any], Any | None]:
        """Every number that the parameters consist of, (rows,) or (1,), and the index that rows share them by."""
        parameters = [pt.as_tensor(p) for p in parameters]
        batches = [p.type.ndim - len(core) for p, core in zip(parameters, self.core_shapes, strict=True)]
        wide = [i for i, p in enumerate(parameters) if any(n != 1 for n in p.type.shape[: batches[i]])]
        # an index is of rows on one axis: along more, the same parameters may be repeated
        found = _shared([parameters[i] for i in wide]) if length is None and len(batch_shape) == 1 else None
        index = None
        if found is not None:
            fewer, index = found
            parameters = [fewer[wide.index(i)] if i in wide else p for i, p in enumerate(parameters)]
        elements = []
        for i, (p, core) in enumerate(zip(parameters, self.core_shapes, strict=True)):
            lead = [p.shape[j] for j in range(batches[i])]
            flat = p.reshape([*lead, int(np.prod(core, dtype=int))], ndim=batches[i] + 1).astype("float64")
            for j in range(int(np.prod(core, dtype=int))):
                number = flat[..., j]
                if i not in wide:
                    number = number.reshape((1,))
                elif index is None:
                    number = pt.broadcast_to(number, batch_shape).flatten()
                elements.append(number)
        if length is not None and wide:  # each series has its parameters for all of its rows
            rows = pt.prod(pt.stack(batch_shape)) if batch_shape else pt.constant(1)
            index = pt.repeat(pt.arange(rows), length)
        return elements, index

    def _past(self, columns: list[Any], length: Any) -> list[list[Any]]:
        """For each lag and average, whether there is such a row and its columns, of the shape of the rows."""
        past = []
        for lag in range(1, self.density.layout.lags + 1):
            exists = pt.zeros_like(columns[0]) + (pt.arange(length) >= lag)
            shifted = [pt.concatenate([c[..., :1].repeat(lag, axis=-1), c], axis=-1)[..., :length] for c in columns]
            past.append([exists, *shifted])
        for scale in self.density.layout.scales:
            weights, share = _average_weights(length, scale)
            past.append([pt.zeros_like(columns[0]) + share, *(c @ weights.T for c in columns)])
        return past

    def random(self, *parameters: Any, rng: np.random.Generator, size: Any = None) -> np.ndarray:
        """Draw values by the trained network, in NumPy."""
        length = np.shape(parameters[-1])[-1] if self.series else None
        parameters = parameters[: len(self.core_shapes)]
        leads = [np.shape(p)[: np.ndim(p) - len(c)] for p, c in zip(parameters, self.core_shapes, strict=True)]
        batch = tuple(size) if size is not None else np.broadcast_shapes(*leads)
        elements = []
        for p, lead, core in zip(parameters, leads, self.core_shapes, strict=True):
            flat = np.reshape(np.asarray(p, dtype="float64"), (*lead, int(np.prod(core, dtype=int))))
            elements += [np.broadcast_to(flat[..., j], batch).reshape(-1) for j in range(flat.shape[-1])]
        drawn = self._series(rng, elements, length) if length else self.density.sample(rng, elements)
        steps = (length,) if length else ()
        moved = np.moveaxis(drawn, 0, -1).reshape((*batch, *steps, *self.event_shape))
        return moved.astype(self.dtype)

    def _series(self, rng: np.random.Generator, elements: list[np.ndarray], length: int) -> np.ndarray:
        """Draw series row by row: (columns, series, length)."""
        count, layout = len(elements[0]), self.density.layout
        drawn = np.zeros((len(layout.columns), count, length))
        averages = [np.zeros(drawn.shape[:2]) for _ in layout.scales]
        for t in range(length):
            known = [(float(t >= lag), drawn[:, :, max(t - lag, 0)]) for lag in range(1, layout.lags + 1)]
            for i, scale in enumerate(layout.scales if t else ()):
                latest = share_before(1, scale) / share_before(t, scale)  # weight of the row just before
                averages[i] += latest * (drawn[:, :, t - 1] - averages[i])
            known += [(share_before(t, scale), rows) for scale, rows in zip(layout.scales, averages, strict=True)]
            past = [[np.full(count, share), *rows] for share, rows in known]
            drawn[:, :, t] = self.density.sample(rng, elements, past)
        return drawn


def _average_weights(length: Any, scale: float) -> tuple[Any, Any]:
    """Weights (length, length) of all rows in the average before each one, and their :func:`share_before` (length,)."""
    distance = pt.arange(length)[:, None] - pt.arange(length)[None] - 1.0
    weights = pt.where(distance >= 0, pt.exp(-pt.maximum(distance, 0.0) / scale), 0.0)
    return weights / pt.maximum(weights.sum(1, keepdims=True), 1e-300), -pt.expm1(-pt.arange(length) / scale)


def _shared(parameters: Sequence[Any]) -> tuple[list[Any], Any] | None:
    """Find fewer values of which parameters (rows,) are made, and the index that picks each row's from them."""
    if any(p.type.ndim != 1 for p in parameters):
        return None
    index = _common_index(parameters)
    if index is not None:
        return [p.owner.inputs[0] for p in parameters], index
    leaves = _leaves(parameters)
    if not leaves or len({len(v) for v in leaves.values()}) != 1:
        return None
    columns = [np.unique(v, return_inverse=True)[1] for v in leaves.values()]
    _, first, combination = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
    if len(first) > 0.5 * len(combination):  # not worth picking from
        return None
    known: dict[Any, Any] = {}
    return [_at(p, first, leaves, known) for p in parameters], pt.constant(combination.reshape(-1))


def _common_index(parameters: Sequence[Any]) -> Any | None:
    """The index by which all parameters (rows,) are picked from vectors, if there is one."""
    if not parameters or not all(_is_pick(p) for p in parameters):
        return None
    first, *others = [p.owner.inputs[1] for p in parameters]
    lengths = {p.owner.inputs[0].type.shape[0] for p in parameters}
    if len(lengths) > 1:  # of which one index may pick, but which are not pairs of parameters
        return None
    return first if all(_same(first, index) for index in others) else None


def _is_pick(var: Any) -> bool:
    """Whether a vector is picked from a vector by integers."""
    op = None if var.owner is None else var.owner.op
    if not isinstance(op, AdvancedSubtensor) or len(var.owner.inputs) != 2 or var.type.ndim != 1:
        return False
    source, index = var.owner.inputs
    return source.type.ndim == index.type.ndim == 1 and index.type.dtype != "bool"


def _leaves(parameters: Sequence[Any]) -> dict[Any, np.ndarray] | None:
    """The constants, with their values (rows,), that alone make the rows of some vectors differ; None if others do."""
    leaves: dict[Any, np.ndarray] = {}
    pending, seen = list(parameters), set()
    while pending:
        var = pending.pop()
        if var in seen or var.type.shape == (1,):
            continue
        seen.add(var)
        if isinstance(var, Constant):
            leaves[var] = np.asarray(var.data)
        elif _is_pick(var) and isinstance(var.owner.inputs[1], Constant):
            leaves[var] = np.asarray(var.owner.inputs[1].data)
        elif var.owner is not None and isinstance(var.owner.op, Elemwise):
            pending += var.owner.inputs
        else:
            return None
    return leaves


def _at(var: Any, rows: np.ndarray, leaves: dict[Any, np.ndarray], known: dict[Any, Any]) -> Any:
    """The same vector at some of its rows."""
    if var.type.shape == (1,):
        return var
    if var not in known:
        if var in leaves:
            some = pt.constant(leaves[var][rows])
            known[var] = some if isinstance(var, Constant) else var.owner.inputs[0][some]
        else:
            made = var.owner.op(*[_at(v, rows, leaves, known) for v in var.owner.inputs], return_list=True)
            known[var] = made[var.owner.outputs.index(var)]
    return known[var]


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    both = isinstance(one, Constant) and isinstance(other, Constant)
    return both and np.array_equal(np.asarray(one.data), np.asarray(other.data))
