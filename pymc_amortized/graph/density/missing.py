r"""The log density of data with gaps.

What is missing has to be integrated out. How that can be done exactly is found out for each observed variable, on
simulated data (:mod:`pymc_amortized.graph.density.rules`):

- *element*, *row*: changing one value (one row) leaves every other term of the log density as it is. Then the term of
  what is missing integrates to one, and is left out.
- *normal*: the variable is multivariate normal, and nothing else depends on it. What is missing is left out of the mean
  and the covariance.
- *quadratic*: the joint log density is quadratic in the values (an autoregression with normal innovations). With
  :math:`g` the gradient and :math:`-P` the Hessian in the :math:`m` missing values at any point, at which the log
  density is :math:`\ell`,

  .. math::

      \log \int e^{\ell(y)} dy = \ell + \tfrac12 g^\top P^{-1} g - \tfrac12 \log\det P + \tfrac m2 \log 2\pi.

Elsewhere there is no rule, and data sets with gaps have no density.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pytensor.graph.replace import graph_replace

from pymc_amortized.graph.data.datasets import gaps_of
from pymc_amortized.graph.density.log_density import Data, LogDensity
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs, plain, plain_input
from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.numerics.integrals import cholesky_factors, log_integral
from pymc_amortized.numerics.kinds import KINDS
from pymc_amortized.numerics.quadratic import APART

Rule = Literal["element", "row", "normal", "quadratic"]
Rules = Mapping[str, Rule | None]


class LogDensityWithGaps(LogDensity):
    """Joint log density of the value variables and what is present of the data.

    Parameters
    ----------
    spec : ModelSpec
    rules : mapping of name to rule
        From :func:`find_rules`, for each variable that may have gaps.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(self, spec: ModelSpec, rules: Rules, compile_kwargs: CompileKwargs | None = None) -> None:
        super().__init__(spec, compile_kwargs)
        self.rules = rules
        self._masks = {v.name: plain_input(gaps_of(v.name), "bool", v.shape) for v in self._gappy}

    @property
    def _kind(self) -> tuple[Any, ...]:
        return (*super()._kind, *self.rules.items())

    @property
    def _gappy(self) -> list[DataVariable]:
        return [v for v in self.spec.observed if v.missing]

    def obstacle(self, data: Data) -> str | None:
        """Why the density of a data set cannot be evaluated; None where it can."""
        return next((obstacle for v in self._gappy if (obstacle := self._obstacle(v, data))), None)

    def _obstacle(self, variable: DataVariable, data: Data) -> str | None:
        mask, rule = data[gaps_of(variable.name)], self.rules[variable.name]
        if rule is None and mask.any():
            return f"the log density does not factorize over the values of {variable.name!r}, of which some are missing"
        if rule == "row":
            axes = tuple(range(self._term_ndim(variable), mask.ndim))
            if (mask.any(axes) != mask.all(axes)).any():
                return f"some rows of {variable.name!r} are missing in part"
        return None

    def not_left_out(self, data: Data) -> list[str]:
        """Names of the variables whose missing values :meth:`expression` does not leave out of the density."""
        return [
            v.name
            for v in self._gappy
            if data[gaps_of(v.name)].any() and (self.rules[v.name] == "quadratic" or self._obstacle(v, data))
        ]

    def __call__(self, theta: np.ndarray, data: Data) -> np.ndarray:
        """Evaluate at `theta` (draws, dim) for one data set without an obstacle; returns (draws,)."""
        data = self.filled(data)
        index = self._places(data)
        if not len(index):
            return super().__call__(theta, data)
        parts = [self._integrated(theta[part], data, index) for part in self._blocks(len(theta), len(index))]
        return np.concatenate(parts)

    def draw(self, theta: np.ndarray, data: Data, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the missing values that the rule "quadratic" is for, given all else.

        Parameters
        ----------
        theta : ndarray (draws, dim)
        data : mapping
            A data set without an obstacle.
        rng : numpy.random.Generator

        Returns
        -------
        dict of name to ndarray (draws, *shape)
            Whole variables; NaN in place of what is missing where the density is not integrable.
        """
        if not self._quadratic:
            return {}
        data = self.filled(data)
        index, every = self._places(data), {v.name: data[v.name][None] for v in self._quadratic}
        rows = np.repeat(joined(self._quadratic, every), len(theta), axis=0)
        for part in self._blocks(len(theta), len(index)) if len(index) else []:
            _, slope, precision = self._series(theta[part], data, index)
            root, usable = cholesky_factors(precision, np.isfinite(precision).all((1, 2)) & np.isfinite(slope).all(1))
            by = _normal_draws(np.where(usable[:, None], slope, 0.0), root, rng.normal(size=slope.shape))
            rows[part, index] += np.where(usable[:, None], by, np.nan)
        return divided(self._quadratic, rows, every)

    @staticmethod
    def _blocks(number: int, width: int) -> Iterator[slice]:
        """Parts of some draws, whose Hessians take at most 128 MiB."""
        return blocks(number, max(int(128 * 2**20 / (8 * width**2)), 1))

    @property
    def _quadratic(self) -> list[DataVariable]:
        return [v for v in self._gappy if self.rules[v.name] == "quadratic"]

    def _places(self, data: Data) -> np.ndarray:
        """Where values are missing that are integrated over, in the gradient of all that may be."""
        masks = {v.name: data[gaps_of(v.name)][None] for v in self._quadratic}
        return np.flatnonzero(joined(self._quadratic, masks)) if masks else np.empty(0, dtype=int)

    def _integrated(self, theta: np.ndarray, data: Data, index: np.ndarray) -> np.ndarray:
        """Integrate a density that is quadratic in the values at `index` over them."""
        log_density, slope, precision = self._series(theta, data, index)
        finite = np.isfinite(precision).all((1, 2)) & np.isfinite(slope).all(1)
        root, usable = cholesky_factors(precision, finite)
        whitened = np.linalg.solve(root, np.where(usable[:, None], slope, 0.0)[..., None])[..., 0]
        total = log_density + log_integral(whitened, root)
        return np.where(usable, total, np.where(np.isnan(log_density), np.nan, -np.inf))

    def _series(self, theta: np.ndarray, data: Data, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log density (draws,), its gradient (draws, m) and negative Hessian (draws, m, m) in the values at `index`."""
        slope = self._gradient(theta, data)[:, index]
        precision = np.empty((len(theta), len(index), len(index)))
        for column, one in enumerate(np.eye(len(index))):
            precision[:, :, column] = slope - self._gradient(theta, self._moved(data, index, one))[:, index]
        # exact: the gradient is linear
        return super().__call__(theta, data), slope, (precision + precision.swapaxes(1, 2)) / 2

    def _moved(self, data: Data, index: np.ndarray, by: np.ndarray) -> dict[str, Any]:
        """A data set with other values at `index`."""
        every = {v.name: data[v.name][None] for v in self._quadratic}
        row = joined(self._quadratic, every)
        row[:, index] += by
        moved = divided(self._quadratic, row, every)
        return {**data, **{name: value[0, ...] for name, value in moved.items()}}

    def disproved(self, theta: np.ndarray, data: Data) -> tuple[str, str] | None:
        """Which variable's missing values cannot be left out, or integrated over, after all, and why; None if all can.

        Rules are found on simulations. Here they are tried where they are used.

        Parameters
        ----------
        theta : ndarray (draws, dim)
            Some draws of the posterior.
        data : mapping
            A data set without an obstacle.
        """
        data = self.filled(data)
        log_density = super().__call__(theta, data)
        possible = np.isfinite(log_density)
        theta, log_density = theta[possible], log_density[possible]
        if not len(theta):
            return None
        for v in self._gappy:
            mask = data[gaps_of(v.name)]
            if self.rules[v.name] == "quadratic" or not mask.any():
                continue
            other = KINDS[v.kind].changed(data[v.name], float(np.std(data[v.name])))
            changed = {**data, v.name: np.where(mask, other, data[v.name]).astype(v.dtype)}
            if _apart(super().__call__(theta, changed), log_density, log_density).any():
                return v.name, f"other values depend on the missing ones of {v.name!r}"
        index = self._places(data)
        if len(index) and not self._is_quadratic(theta, data, index):
            names = [v.name for v in self._quadratic if data[gaps_of(v.name)].any()]
            of = ", ".join(map(repr, names))
            return names[0], f"the log density is not quadratic in the missing values of {of} at these data"
        return None

    def _is_quadratic(self, theta: np.ndarray, data: Data, index: np.ndarray) -> bool:
        """Whether the log density is what its series says, at draws of the values at `index` given theta.

        Draws are one and three standard deviations wide.
        """
        rng = np.random.default_rng(0)
        log_density, slope, precision = self._series(theta, data, index)
        root, usable = cholesky_factors(precision, np.isfinite(precision).all((1, 2)) & np.isfinite(slope).all(1))
        if not usable.all():
            return False
        for width in (1.0, 3.0):
            by = _normal_draws(slope, root, width * rng.normal(size=slope.shape))
            expected = log_density + (by * slope).sum(1) - 0.5 * np.einsum("ni,nij,nj->n", by, precision, by)
            moved = [self._moved(data, index, one) for one in by]
            found = [super(LogDensityWithGaps, self).__call__(t[None], m)[0] for t, m in zip(theta, moved, strict=True)]
            if _apart(np.array(found), expected, log_density).any():
                return False
        return True

    def filled(self, data: Data) -> dict[str, Any]:
        """Return a data set with possible values where some are missing."""
        possible = dict(data)
        for v in self._gappy:
            value, mask = data[v.name][None], data[gaps_of(v.name)][None]
            possible[v.name] = filled(v, value, mask, np.zeros_like(mask), self.spec.held[v.name])[0, ...]
        return possible

    def expression(self, theta: Any, data: Mapping[str, Any]) -> Any:
        """Return the log density as a scalar graph.

        Values without a rule, or with the rule "quadratic", are taken as they are.
        """
        masks: dict[Any, Any] = {mask: data[gaps_of(name)] for name, mask in self._masks.items()}
        return graph_replace([super().expression(theta, data)], masks, strict=False)[0]

    def _slope(self) -> list[Any]:
        model = self.spec.model
        values = [model.rvs_to_values[model[v.name]] for v in self._gappy if self.rules[v.name] == "quadratic"]
        gradients: Any = pt.grad(self._total(), values)
        slopes = pt.concatenate([g.flatten() for g in gradients])
        return [slopes]

    def _gradient(self, theta: np.ndarray, data: Data) -> np.ndarray:
        inputs = [data[name] for name in self._input_names]
        return self._once("slope", self._slope)(len(theta), None, [theta], inputs)[0]

    def _total(self) -> Any:
        terms = self._terms()
        return pt.add(*[term.sum() for term in terms]) if len(terms) > 1 else terms[0].sum()

    def _terms(self) -> list[Any]:
        """Graphs of which the elements add up to the log density."""
        model = self.spec.model
        normal = [v.name for v in self._gappy if self.rules[v.name] == "normal"]
        rest = [rv for rv in model.basic_RVs if rv.name not in normal] + list(model.potentials)
        terms = [plain(term) for term in model.logp(vars=rest, sum=False)] if rest else []
        for i, variable in enumerate(rest):
            if self.rules.get(variable.name) in ("element", "row"):
                mask = self._masks[variable.name]
                mask = mask.any(axis=tuple(range(terms[i].type.ndim, mask.type.ndim))) if mask.type.ndim else mask
                terms[i] = pt.switch(mask, 0.0, terms[i])
        return terms + [self._normal(model[name]) for name in normal]

    def _normal(self, rv: Any) -> Any:
        """Density of what is present of a multivariate normal: what is missing becomes a unit normal at its mean."""
        model, mask = self.spec.model, self._masks[rv.name]
        mean, covariance = map(plain, model.replace_rvs_by_values(list(rv.owner.op.dist_params(rv.owner))))
        present = (~mask).astype("float64")
        both = present[..., :, None] * present[..., None, :]
        kept = covariance * both + pt.eye(mask.shape[-1]) * (1 - present)[..., None]
        dist = pm.MvNormal.dist(pt.switch(mask, 0.0, mean), kept)
        term = pm.logp(dist, pt.switch(mask, 0.0, plain(model.rvs_to_values[rv])))
        return term + 0.5 * math.log(2 * math.pi) * mask.sum(-1)

    def _term_ndim(self, variable: DataVariable) -> int:
        rv = self.spec.model[variable.name]
        (term,) = self.spec.model.logp(vars=[rv], sum=False)
        return plain(term).type.ndim

    def _inputs(self) -> dict[str, Any]:
        return super()._inputs() | {gaps_of(name): mask for name, mask in self._masks.items()}

    @property
    def _input_names(self) -> list[str]:
        return super()._input_names + [gaps_of(name) for name in self._masks]


def _normal_draws(slope: np.ndarray, root: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draws (n, m) whose log density has a slope (n, m) at zero and minus a Hessian with Cholesky factors `root`."""
    whitened = np.linalg.solve(root, slope[..., None]) + noise[..., None]
    return np.linalg.solve(root.swapaxes(1, 2), whitened)[..., 0]


def _apart(found: np.ndarray, expected: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Where log densities differ by more than rounding of values of some size."""
    with np.errstate(invalid="ignore"):
        return ~(np.abs(found - expected) <= APART + 1e-12 * np.abs(size))


def joined(variables: Sequence[DataVariable], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Several variables of each data set as one row: (n, width)."""
    return np.concatenate([arrays[v.name].reshape(len(arrays[v.name]), -1) for v in variables], axis=1)


def divided(
    variables: Sequence[DataVariable], rows: np.ndarray, like: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Undo :func:`joined`."""
    ends = np.cumsum([like[v.name][0].size for v in variables])
    parts = np.split(rows, ends[:-1], axis=1)
    return {
        v.name: np.ascontiguousarray(part, dtype=like[v.name].dtype).reshape(len(rows), *like[v.name].shape[1:])
        for v, part in zip(variables, parts, strict=True)
    }


def filled(
    variable: DataVariable, values: np.ndarray, missing: np.ndarray, outside: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """Put possible values where some are missing: nothing depends on them, but gradients must be finite.

    Parameters
    ----------
    variable : DataVariable
    values : ndarray (n, *shape)
    missing, outside : bool ndarray (n, *shape)
        What is missing, and what does not exist.
    held : ndarray
        Values that the model held: their median is taken where all are missing.
    """
    if not missing.any():
        return values
    known = np.where(missing | outside, np.nan, values.astype("float64")).reshape(len(values), -1)
    some = np.isfinite(known).any(axis=1)
    middle = np.full(len(known), float(np.median(held)))
    middle[some] = np.nanquantile(known[some], 0.5, axis=1, method="lower")  # one of its own: maybe a whole number
    return np.where(missing, middle.reshape(-1, *[1] * (values.ndim - 1)), values).astype(variable.dtype)
