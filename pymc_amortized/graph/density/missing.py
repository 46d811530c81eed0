r"""The log density of data with gaps.

What is missing has to be integrated out. How that can be done exactly is found out for each observed variable, on
simulated data:

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

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.distributions.multivariate import MvNormalRV
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.data.datasets import gaps_of
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import Data, LogDensity, LogDensityByVariable
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.suitability import core_op
from pymc_amortized.graph.model.tensors import CompileKwargs, plain
from pymc_amortized.numerics.kinds import KINDS

Rule = Literal["element", "row", "normal", "quadratic"]
Rules = Mapping[str, Rule | None]

TRIALS = 8
TOLERANCE = 1e-7
"""Relative difference of log densities that rounding explains, third differences included."""
BLOCK_BYTES = 128 * 2**20
"""Memory for the Hessians of a block of draws."""
LOG_2PI = math.log(2 * math.pi)


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
        self._masks = {v.name: pt.tensor(gaps_of(v.name), dtype="bool", shape=v.shape) for v in self._gappy}

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
        gaps = {v.name: np.flatnonzero(data[gaps_of(v.name)]) for v in self._gappy}
        filled = self.filled(data)
        # of the quadratic variables, what is missing is found again in their joined gradient
        quadratic = [v for v in self._gappy if self.rules[v.name] == "quadratic"]
        starts = np.cumsum([0, *(data[v.name].size for v in quadratic)])
        missing = [s + gaps[v.name] for v, s in zip(quadratic, starts, strict=False)]
        if not any(len(m) for m in missing):
            return super().__call__(theta, filled)
        index = np.concatenate(missing)
        block = max(int(BLOCK_BYTES / (8 * len(index) ** 2)), 1)
        blocks = [theta[i : i + block] for i in range(0, len(theta), block)]
        return np.concatenate([self._integrated(part, filled, quadratic, index) for part in blocks])

    def _integrated(
        self, theta: np.ndarray, data: Data, quadratic: list[DataVariable], index: np.ndarray
    ) -> np.ndarray:
        """Integrate a density that is quadratic in the values at `index` over them."""
        log_density = super().__call__(theta, data)
        slope = self._gradient(theta, data)[:, index]
        precision = np.empty((len(theta), len(index), len(index)))
        for column, where in enumerate(index):
            moved = self._gradient(theta, _moved(data, quadratic, where))[:, index]
            precision[:, :, column] = slope - moved  # exact: the gradient is linear
        precision = (precision + precision.swapaxes(1, 2)) / 2
        usable = np.isfinite(precision).all((1, 2)) & np.isfinite(slope).all(1)
        precision[~usable] = np.eye(len(index))
        sign, log_determinant = np.linalg.slogdet(precision)
        usable &= sign > 0
        precision[~usable] = np.eye(len(index))  # a singular one could not be solved for
        shift = np.linalg.solve(precision, slope[..., None])[..., 0]
        total = log_density + 0.5 * (slope * shift).sum(1) - 0.5 * log_determinant + 0.5 * len(index) * LOG_2PI
        return np.where(usable, total, np.where(np.isnan(log_density), np.nan, -np.inf))

    def filled(self, data: Data) -> dict[str, Any]:
        """Return a data set with possible values where some are missing."""
        return {**data, **{v.name: self._fill(v, data) for v in self._gappy}}

    def _fill(self, variable: DataVariable, data: Data) -> np.ndarray:
        """Put a possible value where one is missing: nothing depends on it, but gradients must be finite."""
        mask, value = data[gaps_of(variable.name)], data[variable.name]
        if not mask.any():
            return value
        possible = np.median(value[~mask] if not mask.all() else self.spec.held[variable.name])
        return np.where(mask, possible, value).astype(value.dtype)

    def expression(self, theta: Any, data: Mapping[str, Any]) -> Any:
        """As :meth:`LogDensity.expression`; values without a rule, or with rule "quadratic", are taken as they are."""
        masks: dict[Any, Any] = {mask: data[gaps_of(name)] for name, mask in self._masks.items()}
        return graph_replace([super().expression(theta, data)], masks, strict=False)[0]

    @cached_property
    def _gradient_function(self) -> Any:
        model = self.spec.model
        values = [model.rvs_to_values[model[v.name]] for v in self._gappy if self.rules[v.name] == "quadratic"]
        gradients: Any = pt.grad(self._total(), values)
        slopes = pt.concatenate([g.flatten() for g in gradients])
        return self._compile([slopes])

    def _gradient(self, theta: np.ndarray, data: Data) -> np.ndarray:
        return self._gradient_function(theta, *[data[name] for name in self._input_names])[0]

    def _total(self) -> Any:
        model = self.spec.model
        normal = [v.name for v in self._gappy if self.rules[v.name] == "normal"]
        rest = [rv for rv in model.basic_RVs if rv.name not in normal] + list(model.potentials)
        terms = [plain(term) for term in model.logp(vars=rest, sum=False)] if rest else []
        for i, variable in enumerate(rest):
            if self.rules.get(variable.name) in ("element", "row"):
                mask = self._masks[variable.name]
                mask = mask.any(axis=tuple(range(terms[i].type.ndim, mask.type.ndim))) if mask.type.ndim else mask
                terms[i] = pt.switch(mask, 0.0, terms[i])
        terms += [self._normal(model[name]) for name in normal]
        return pt.add(*[term.sum() for term in terms]) if len(terms) > 1 else terms[0].sum()

    def _normal(self, rv: Any) -> Any:
        """Density of what is present of a multivariate normal: what is missing becomes a unit normal at its mean."""
        model, mask = self.spec.model, self._masks[rv.name]
        mean, covariance = map(plain, model.replace_rvs_by_values(list(rv.owner.op.dist_params(rv.owner))))
        present = (~mask).astype("float64")
        both = present[..., :, None] * present[..., None, :]
        kept = covariance * both + pt.eye(mask.shape[-1]) * (1 - present)[..., None]
        dist = pm.MvNormal.dist(pt.switch(mask, 0.0, mean), kept)
        term = pm.logp(dist, pt.switch(mask, 0.0, plain(model.rvs_to_values[rv])))
        return term + 0.5 * LOG_2PI * mask.sum(-1)

    def _term_ndim(self, variable: DataVariable) -> int:
        rv = self.spec.model[variable.name]
        (term,) = self.spec.model.logp(vars=[rv], sum=False)
        return plain(term).type.ndim

    def _inputs(self) -> dict[str, Any]:
        return super()._inputs() | {gaps_of(name): mask for name, mask in self._masks.items()}

    @property
    def _input_names(self) -> list[str]:
        return super()._input_names + [gaps_of(name) for name in self._masks]


def _moved(data: Data, variables: list[DataVariable], where: int) -> dict[str, Any]:
    """Add one to one value of several variables, counted through them."""
    moved = dict(data)
    for v in variables:
        size = data[v.name].size
        if where < size:
            value = data[v.name].copy()
            value.flat[where] += 1.0
            moved[v.name] = value
            break
        where -= size
    return moved


def find_rules(
    spec: ModelSpec, simulations: Simulations, seed: np.random.SeedSequence, compile_kwargs: CompileKwargs | None = None
) -> dict[str, Rule | None]:
    """Find out how each variable's missing values can be integrated out.

    That no other term depends on a variable is read off the graph; simulated data can only disprove the rest.

    Parameters
    ----------
    spec : ModelSpec
    simulations : Simulations
        At least nine.
    seed : numpy.random.SeedSequence
    """
    gappy = [v for v in spec.observed if v.missing]
    if not gappy or spec.density_obstacle is not None:
        return {v.name: None for v in gappy}
    trials = _Trials(spec, simulations, np.random.default_rng(seed), compile_kwargs)
    rules: dict[str, Rule | None] = {}
    otherwise: dict[str, Rule] = {}
    for v in gappy:
        alone = _nothing_depends_on(spec, v)
        if alone and isinstance(core_op(spec.model[v.name]), MvNormalRV):
            rules[v.name] = "normal"
        elif alone and trials.factorizes(v):
            element = trials.term_ndim(v) == len(v.shape)
            # a series among several may lack some values: that can be integrated where it is quadratic
            partly = not element and KINDS[v.kind].continuous and trials.quadratic([v])
            rules[v.name] = "element" if element else "quadratic" if partly else "row"
            otherwise |= {v.name: "row"} if partly else {}
        else:
            rules[v.name] = "quadratic" if KINDS[v.kind].continuous else None
    together = [v for v in gappy if rules[v.name] == "quadratic"]
    if together and not trials.quadratic(together):
        rules |= {v.name: otherwise.get(v.name) for v in together}
    return rules


def _nothing_depends_on(spec: ModelSpec, variable: DataVariable) -> bool:
    """Whether no other term of the log density has the variable's values in its graph."""
    model = spec.model
    rv = model[variable.name]
    others = [v for v in (*model.basic_RVs, *model.potentials) if v is not rv]
    return not others or model.rvs_to_values[rv] not in set(ancestors(model.logp(vars=others, sum=False)))


class _Trials:
    """Changes simulated data, and looks at the terms of the log density."""

    def __init__(
        self,
        spec: ModelSpec,
        simulations: Simulations,
        rng: np.random.Generator,
        compile_kwargs: CompileKwargs | None,
    ) -> None:
        self._rng = rng
        self._terms = LogDensityByVariable(spec, compile_kwargs)
        self._joint = LogDensity(spec, compile_kwargs)
        fixed = {v.name: spec.held[v.name] for v in spec.unchanging}
        self._sets = [fixed | simulations.one(i, spec) for i in range(min(TRIALS, len(simulations)))]
        self._theta = simulations.unconstrained
        # of finite values: beyond a data set's length stands NaN
        self._spread = {
            v.name: float(np.nanstd(np.clip(simulations.data[v.name].astype(float), -1e100, 1e100)))
            for v in spec.observed
        }

    def term_ndim(self, variable: DataVariable) -> int:
        """Number of axes of a variable's own term."""
        return self._terms(self._theta[:1], self._sets[0])[variable.name].ndim - 1

    def factorizes(self, variable: DataVariable) -> bool:
        """Whether changing half of the values, or rows, leaves the terms of the others as they are."""
        lead = self.term_ndim(variable)
        if lead == 0:
            return not variable.shape  # one term for all values: fine for one value
        for i, data in enumerate(self._sets):
            value = data[variable.name]
            part = self._rng.random(value.shape[:lead]) < 0.5
            other = KINDS[variable.kind].changed(value, self._spread[variable.name])
            changed = np.where(part.reshape(*part.shape, *[1] * (value.ndim - lead)), other, value)
            theta = self._theta[i : i + 1]
            before = self._terms(theta, data)[variable.name][0]
            if before.shape != part.shape:  # not one term for each value, or row
                return False
            after = self._terms(theta, {**data, variable.name: changed.astype(value.dtype)})[variable.name][0]
            if not np.allclose(before[~part], after[~part], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                return False
        return True

    def quadratic(self, variables: list[DataVariable]) -> bool:
        """Whether the log density is strictly concave and quadratic in the values of all, wherever they lie."""
        for i, data in enumerate(self._sets):
            for some in (variables, *([v] for v in variables)):
                along = self._along(i, data, some)
                if not np.isfinite(along).all():
                    return False
                rounding = TOLERANCE * (np.abs(along).max() + 1.0)
                if np.abs(np.diff(along, 3)).max() > rounding or np.diff(along, 2).max() > -rounding:
                    return False
        return True

    def _along(self, i: int, data: Data, variables: list[DataVariable]) -> np.ndarray:
        """Log densities on a line through the values that reaches three standard deviations either way."""
        line = {}
        for v in variables:
            value = data[v.name]
            line[v.name] = self._rng.normal(size=value.shape) * max(self._spread[v.name], 1e-3)
        moved = [{name: data[name] + t * direction for name, direction in line.items()} for t in range(-3, 4)]
        return np.array([self._joint(self._theta[i : i + 1], {**data, **m})[0] for m in moved])
