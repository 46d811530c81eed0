"""How the missing values of each observed variable can be integrated out, found on simulated data."""

import numpy as np
from pymc.distributions.multivariate import MvNormalRV
from pytensor.graph.traversal import ancestors

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import Data, LogDensityByVariable
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.density.terms import points_of
from pymc_amortized.graph.model.operations import core_op
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import INTERPRETED
from pymc_amortized.numerics.kinds import KINDS

TOLERANCE = 1e-7
"""Relative difference of log densities that rounding explains."""
NEGLIGIBLE = 1e-6
"""Share of how much an entry of a term changes that its third difference may be: what rounding makes of values that
are a billion times as far from zero as from each other."""


def find_rules(spec: ModelSpec, simulations: Simulations, seed: np.random.SeedSequence) -> dict[str, Rule | None]:
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
    trials = _Trials(spec, simulations, np.random.default_rng(seed))
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
    ) -> None:
        self._rng = rng
        self._terms = LogDensityByVariable(spec, INTERPRETED)
        points, self._sets = points_of(spec, simulations.take(slice(8)))
        self._theta = [point[None] for point in points]
        # of finite values: beyond a data set's length stands NaN
        self._spread = {
            v.name: float(np.nanstd(np.clip(simulations.data[v.name].astype(float), -1e100, 1e100)))
            for v in spec.observed
        }

    def term_ndim(self, variable: DataVariable) -> int:
        """Number of axes of a variable's own term."""
        return self._terms(self._theta[0], self._sets[0])[variable.name].ndim - 1

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
            theta = self._theta[i]
            before = self._terms(theta, data)[variable.name][0]
            if before.shape != part.shape:  # not one term for each value, or row
                return False
            after = self._terms(theta, {**data, variable.name: changed.astype(value.dtype)})[variable.name][0]
            if not np.allclose(before[~part], after[~part], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                return False
        return True

    def quadratic(self, variables: list[DataVariable]) -> bool:
        """Whether the log density is strictly concave and quadratic in the values of all, wherever they lie.

        Each entry of each variable's own term is looked at by itself: beside what changes by a billion, a term of
        size one would not show in their sum, and may be all that is left of it at a data set.
        """
        for i, data in enumerate(self._sets):
            for some in (variables, *([v] for v in variables)):
                along = self._along(i, data, some)
                if not np.isfinite(along).all():
                    return False
                rounding = NEGLIGIBLE * np.ptp(along, axis=0) + 1e-11 * np.abs(along).max(axis=0)
                if (np.abs(np.diff(along, 3, axis=0)) > rounding).any():
                    return False
                total = along.sum(axis=1)
                if np.diff(total, 2).max() > -TOLERANCE * (np.abs(total).max() + 1.0):
                    return False
        return True

    def _along(self, i: int, data: Data, variables: list[DataVariable]) -> np.ndarray:
        """Terms (7, entries) on a line through the values that reaches three standard deviations either way."""
        line = {}
        for v in variables:
            value = data[v.name]
            line[v.name] = self._rng.normal(size=value.shape) * max(self._spread[v.name], 1e-3)
        moved = [{name: data[name] + t * direction for name, direction in line.items()} for t in range(-3, 4)]
        terms = [self._terms(self._theta[i], {**data, **m}) for m in moved]
        return np.array([np.concatenate([term.ravel() for term in some.values()]) for some in terms])
