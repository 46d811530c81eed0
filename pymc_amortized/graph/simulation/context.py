"""Where sizes, covariates and gaps of data sets come from during training."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.distributions.multivariate import DirichletMultinomialRV
from pymc.distributions.shape_utils import change_dist_size
from pytensor.graph.basic import Variable
from pytensor.tensor.random.basic import DirichletRV, MultinomialRV

from pymc_amortized.graph.model.indices import counted_by, index_limits, refuse_indices, refuse_uncounted
from pymc_amortized.graph.model.operations import core_op
from pymc_amortized.graph.model.sizes import Range, is_range, read_range
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import Loop, plain

Source = Any
"""A PyMC distribution (``pm.Normal.dist(0, 1)``), ``"resample"``, ``"groups"``, or a callable ``rng -> array``."""
GROUPS = "groups"
"""Source of an array that tells each row's group."""
Lengths = Mapping[str, int]
"""Length of each dimension that varies, in one data set."""


def split_context(model: pm.Model, context: Mapping[str, Any]) -> tuple[tuple[Range, ...], dict[str, Source]]:
    """Tell the dimensions of ``context=`` from the data containers."""
    dims = [name for name in context if name in model.dim_lengths]
    containers = {v.name for v in model.data_vars}
    for name, source in context.items():
        if is_range(source) and name not in {*dims, *containers}:
            raise KeyError(
                f"context: the model has no dimension named {name!r}; it has {sorted(model.dim_lengths)}. An axis "
                f"varies by its name: give it one, as in pm.Data('x', x, dims={name!r}) and "
                f"pm.Normal('y', ..., dims={name!r})"
            )
    sizes = tuple(read_range(model, dim, context[dim]) for dim in dims)
    return sizes, {name: source for name, source in context.items() if name not in dims}


class ContextSource(Protocol):
    """Where lengths of dimensions, values of the context variables, and gaps in the observed ones come from."""

    @property
    def ends(self) -> Sequence[dict[str, int]]:
        """Lengths at which to try whether the model can be simulated."""
        ...

    def lengths(self, seed: np.random.SeedSequence) -> dict[str, int]:
        """Lengths of one group of data sets."""
        ...

    def __call__(self, n: int, seed: np.random.SeedSequence, lengths: Lengths) -> dict[str, np.ndarray]:
        """`n` values of every context variable: name -> (n, *shape)."""
        ...

    def gaps(self, n: int, seed: np.random.SeedSequence, lengths: Lengths) -> dict[str, np.ndarray]:
        """Where values are missing: name -> bool (n, *shape)."""
        ...


class ContextSampler:
    """Draws lengths of dimensions, values of the context variables, and gaps in the observed ones.

    Parameters
    ----------
    spec : ModelSpec
    sources : mapping of name to source
        For each context variable of the spec: a PyMC distribution created by ``.dist()`` (drawn independently for
        every element when it is scalar, for every row when it is a row), ``"resample"`` (rows drawn with replacement
        from the values the model held; containers that share the dimension, or the length, are resampled together),
        ``"groups"`` for an array that tells each row's group, of uneven sizes, or a callable that takes a
        :class:`numpy.random.Generator`, and by keyword the lengths it asks for, and returns the values for one data
        set.
    missing : mapping of name to rate or callable
        For each observed variable with gaps: their mean share (each data set has its own, uniform from 0 to twice
        that; whole rows of compositions and the like), or a callable that takes a generator and a shape and returns
        True where a value is missing.
    """

    def __init__(
        self, spec: ModelSpec, sources: Mapping[str, Source], missing: Mapping[str, Any] | None = None
    ) -> None:
        self._spec, self._variables = spec, spec.context
        self._sources, self._missing = dict(sources), dict(missing or {})
        self._held = spec.held
        self._limits, self._counted = index_limits(spec), counted_by(spec)
        self._loops: dict[str, Loop] = {}
        for variable in spec.context:
            self._check(variable, sources[variable.name])
        for name, source in self._missing.items():
            check_gaps(name, source)

    @property
    def ends(self) -> list[dict[str, int]]:
        """The smallest and the largest lengths; one entry without lengths where none varies."""
        smallest = {r.dim: r.smallest for r in self._spec.sizes}
        return [smallest, self._spec.largest] if smallest else [{}]

    def lengths(self, seed: np.random.SeedSequence) -> dict[str, int]:
        """Draw the lengths of one group of data sets."""
        rng = np.random.default_rng(seed)
        return {r.dim: r.draw(rng) for r in self._spec.sizes}

    def __call__(self, n: int, seed: np.random.SeedSequence, lengths: Lengths) -> dict[str, np.ndarray]:
        """Return `n` values of every context variable: name -> (n, *shape)."""
        rows_seed, *seeds = seed.spawn(1 + len(self._variables))
        values: dict[str, np.ndarray] = {}
        for variable, child in zip(self._variables, seeds, strict=True):
            source = self._sources[variable.name]
            if isinstance(source, str) and source == GROUPS:
                values[variable.name] = self._group(variable, n, child, lengths)
            elif isinstance(source, str):
                values[variable.name] = self._resample(variable, n, rows_seed, lengths)
            elif isinstance(source, Variable):
                values[variable.name] = self._draw(variable, n, child, lengths)
            else:
                values[variable.name] = self._call(variable, source, n, child, lengths)
        refuse_indices(values, self._limits, "context")
        refuse_uncounted(values, self._counted, lengths, "context")
        return values

    def gaps(self, n: int, seed: np.random.SeedSequence, lengths: Lengths) -> dict[str, np.ndarray]:
        """Draw where values are missing: name -> bool (n, *shape)."""
        observed = [v for v in self._spec.observed if v.missing]
        masks = {}
        for variable, child in zip(observed, seed.spawn(len(observed)), strict=True):
            rng = np.random.default_rng(child)
            shape = variable.shape_at(lengths)
            source = self._missing.get(variable.name, 0.0)
            if callable(source):
                masks[variable.name] = np.stack([_mask(variable.name, source, rng, shape) for _ in range(n)])
            else:
                lead = shape[: len(shape) - _row_ndim(self._spec, variable)]
                share = rng.uniform(0, min(2 * source, 1), size=(n, *[1] * len(lead)))
                mask = rng.uniform(size=(n, *lead)) < share
                mask = mask.reshape(*mask.shape, *[1] * (len(shape) - len(lead)))
                masks[variable.name] = np.broadcast_to(mask, (n, *shape)).copy()
        return masks

    def _check(self, variable: DataVariable, source: Source) -> None:
        name = variable.name
        if isinstance(source, str) and source == GROUPS:
            if name not in self._limits or np.dtype(variable.dtype).kind not in "iu":
                raise ValueError(
                    f"context[{name!r}]: 'groups' is for whole numbers that pick elements, as in effect[{name}]"
                )
        elif isinstance(source, str):
            if source != "resample":
                raise ValueError(
                    f"context[{name!r}]: {source!r} is not understood; there are 'resample', and 'groups' for indices"
                )
            if len(variable.sized) > 1:
                raise ValueError(
                    f"context[{name!r}]: 'resample' draws rows along one dim whose length varies, and it has "
                    f"{list(variable.sized)}; give a callable (rng, {', '.join(variable.sized)}) -> array"
                )
            if not variable.shape:
                raise ValueError(f"context[{name!r}]: a scalar has no rows to resample; give a distribution")
        elif isinstance(source, Variable):
            lengths = {d: pt.lscalar(d) for d in variable.sized}
            dist = plain(_sized(variable, source, lengths))
            self._loops[name] = Loop([dist], inputs=list(lengths.values()))
        elif callable(source) and not isinstance(source, type):
            self._try(variable, source)
        else:
            pair = isinstance(source, tuple | list) and len(source) == 2
            hint = f"; {name!r} is no dimension: for values between two numbers, pm.Uniform.dist(low, high)"
            raise TypeError(
                f"context[{name!r}] must be a PyMC distribution (pm.Normal.dist(0, 1)), 'resample' or a callable "
                f"rng -> array, got {type(source).__name__}{hint if pair else ''}"
            )

    def _resample(self, variable: DataVariable, n: int, seed: np.random.SeedSequence, lengths: Lengths) -> np.ndarray:
        held = self._held[variable.name]
        axis = variable.shape.index(None) if variable.sized else 0
        rows = variable.shape_at(lengths)[axis]
        # the same generator for every container of this length: rows stay together
        rng = np.random.default_rng([held.shape[axis], *seed.generate_state(4)])
        chosen = rng.integers(held.shape[axis], size=(n, rows))
        return np.moveaxis(held.take(chosen, axis=axis), axis, 0)

    def _group(self, variable: DataVariable, n: int, seed: np.random.SeedSequence, lengths: Lengths) -> np.ndarray:
        """Groups of rows: sizes from nearly even to such that a few groups have most rows, and some none."""
        low, high = self._limits[variable.name]
        dims = [dim for dim, by in self._counted.items() if variable.name in by]
        high = min([high, *(lengths[dim] - 1 + low for dim in dims)])
        rng, shape = np.random.default_rng(seed), variable.shape_at(lengths)
        evenness = np.exp(rng.uniform(np.log(0.5), np.log(50.0), size=(n, 1)))
        edges = np.cumsum(rng.gamma(evenness, size=(n, high - low + 1)), axis=1)
        at = rng.uniform(size=(n, math.prod(shape))) * edges[:, -1:]
        picked = [np.searchsorted(own, where) for own, where in zip(edges, at, strict=True)]
        return (low + np.stack(picked)).reshape(n, *shape).astype(variable.dtype)

    def _draw(self, variable: DataVariable, n: int, seed: np.random.SeedSequence, lengths: Lengths) -> np.ndarray:
        (values,) = self._loops[variable.name](n, seed, inputs=[lengths[d] for d in variable.sized])
        return values.astype(variable.dtype, copy=False)

    def _call(
        self,
        variable: DataVariable,
        source: Callable[..., Any],
        n: int,
        seed: np.random.SeedSequence,
        lengths: Lengths,
    ) -> np.ndarray:
        rng = np.random.default_rng(seed)
        shape, wanted = variable.shape_at(lengths), _asked_for(source, lengths)
        values = np.empty((n, *shape), dtype=variable.dtype)
        for i in range(n):
            value = np.asarray(source(rng, **wanted))
            if value.shape != shape or not np.isfinite(value).all():
                asked = f"; it takes the length as a keyword argument {variable.sized[0]!r}" if variable.sized else ""
                raise ValueError(
                    f"context[{variable.name!r}]: the callable returned {_described(value)}, "
                    f"where numbers of shape {shape} were expected{asked}"
                )
            values[i] = value
        return values

    def _try(self, variable: DataVariable, source: Callable[..., Any]) -> None:
        try:
            for lengths in self.ends:
                self._call(variable, source, 1, np.random.SeedSequence(0), lengths)
        except TypeError as error:
            dims = [r.dim for r in self._spec.sizes]
            asked = f" (by keyword it may take the lengths of {dims})" if dims else ""
            raise TypeError(f"context[{variable.name!r}]: the callable rng -> array fails: {error}{asked}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled functions behind."""
        return {**self.__dict__, "_loops": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile again what was left behind."""
        self.__dict__.update(state)
        for variable in self._variables:
            self._check(variable, self._sources[variable.name])


def _row_ndim(spec: ModelSpec, variable: DataVariable) -> int:
    """Number of trailing axes that are missing together: counts or shares that add up say nothing one by one."""
    op = core_op(spec.model[variable.name])
    if not isinstance(op, MultinomialRV | DirichletRV | DirichletMultinomialRV):
        return 0
    support = op.ndim_supp
    return support if support < len(variable.shape) else 0


def _sized(variable: DataVariable, dist: Any, lengths: Mapping[str, Any]) -> Any:
    """Give a distribution the shape of a container, drawing it independently along the leading axes it lacks."""
    name, shape = variable.name, variable.shape
    ndim = dist.type.ndim
    lead = shape[: len(shape) - ndim]
    if ndim > len(shape) or None in shape[len(lead) :] or tuple(dist.type.shape) != shape[len(lead) :]:
        raise ValueError(
            f"context[{name!r}]: the distribution has shape {dist.type.shape}, the container has {shape}"
            f"{' (None: the length varies)' if None in shape else ''}; "
            "a scalar distribution is drawn independently for every element"
        )
    if not lead:
        return dist
    dims = [variable.dims[i] if n is None else None for i, n in enumerate(lead)]
    return change_dist_size(dist, [lengths[d] if d else n for d, n in zip(dims, lead, strict=True)], expand=True)


def _asked_for(source: Callable[..., Any], lengths: Lengths) -> dict[str, int]:
    """Return the lengths that a callable takes as keyword arguments."""
    try:
        parameters = inspect.signature(source).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(lengths)
    return {p.name: lengths[p.name] for p in parameters if p.name in lengths}


def read_missing(missing: Mapping[str, Any] | None, observed: Iterable[str]) -> dict[str, Any]:
    """Check ``missing=``."""
    if missing is None:
        return {}
    if not isinstance(missing, Mapping):
        raise TypeError(
            f"missing must map observed variables to a rate or a callable, as in {{'y': 0.2}}; got {missing!r}"
        )
    unknown = [name for name in missing if name not in observed]
    if unknown:
        raise KeyError(
            f"missing: {unknown} given; the observed variables are {list(observed)}, and only these may have gaps"
        )
    return dict(missing)


def check_gaps(name: str, source: Any) -> None:
    """Check a source of gaps."""
    if callable(source):
        return
    if isinstance(source, bool) or not isinstance(source, int | float | np.number):
        raise TypeError(
            f"missing[{name!r}] must be a rate between 0 and 1 or a callable (rng, shape) -> mask, got {source!r}"
        )
    if not 0 < source < 1:
        raise ValueError(f"missing[{name!r}] must be a rate between 0 and 1, got {source!r}")


def _mask(name: str, source: Callable[..., Any], rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    try:
        mask = np.asarray(source(rng, shape))
    except TypeError as error:
        raise TypeError(f"missing[{name!r}]: the callable (rng, shape) -> mask fails: {error}") from error
    if mask.dtype != bool or mask.shape != shape:
        raise ValueError(
            f"missing[{name!r}]: the callable returned {mask.dtype} values of shape {mask.shape}; "
            f"expected bool of shape {shape}, True where a value is missing"
        )
    return mask


def _described(value: np.ndarray) -> str:
    return f"shape {value.shape}" if np.isfinite(value).all() else "NaN or infinite values"
