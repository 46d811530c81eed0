"""Missing values as further parameters.

Where what is missing cannot be left out of a model's log density, nor integrated out by a formula, NUTS can sample it
along with the parameters. How many values are missing differs between data sets, the number of parameters of what is
compiled cannot: a model has a number of *slots*, some of which a data set leaves empty. An empty slot holds a standard
normal value that nothing depends on.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.util import UNSET
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors
from pytensor.xtensor.type import XTensorType

from pymc_amortized.graph.model.spec import DataVariable, ModelSpec


@dataclass(frozen=True, eq=False)
class Slots:
    """Values of an observed variable that are parameters in some data sets.

    Attributes
    ----------
    spec : ModelSpec
    variable : DataVariable
    number : int
        How many values can be missing.
    """

    spec: ModelSpec
    variable: DataVariable
    number: int

    @cached_property
    def shared(self) -> dict[str, Any]:
        """Shared variables for what :meth:`values` returns; at first, nothing is missing."""
        held = np.asarray(self.spec.held[self.variable.name])
        empty = self.values(held, np.zeros(held.shape, dtype=bool))
        return {name: pytensor.shared(value, name=name, shape=value.shape) for name, value in empty.items()}

    def graph(self, z: Any, value: Any) -> tuple[Any, Any]:
        """Fill a variable's value.

        Parameters
        ----------
        z : vector variable (number,)
            Standardized missing values, on an unconstrained scale.
        value : tensor variable
            What is present.

        Returns
        -------
        filled : tensor variable
        log_density : scalar variable
            What this adds to the joint log density: Jacobians, and the density of empty slots.
        """
        where, centre, scale = self.shared.values()
        free = centre + scale * z
        missing, log_jacobian = free, pt.zeros_like(free)
        if self._transform is not None:
            parents = self.spec.model[self.variable.name].owner.inputs
            missing = self._transform.backward(free, *parents)
            log_jacobian = self._transform.log_jac_det(free, *parents)
        # one value beyond the last: where empty slots go
        longer = pt.concatenate([value.flatten(), np.zeros(1, dtype=value.type.dtype)])
        filled = pt.set_subtensor(longer[where], missing.astype(value.type.dtype))[:-1].reshape(value.shape)
        return filled, pt.switch(pt.eq(where, value.size), -0.5 * z**2, log_jacobian).sum()

    def values(self, value: np.ndarray, missing: np.ndarray) -> dict[str, np.ndarray]:
        """Return what :attr:`shared` holds for one data set: places of missing values, and where to look for them."""
        name = self.variable.name
        where = np.flatnonzero(missing)
        free = np.full(missing.size, np.nan)
        free[~missing.ravel()] = self._unconstrained(value[~missing])
        present = free[np.isfinite(free)]
        spread = present.std() if len(present) > 1 else 0.0
        centre = np.zeros(self.number)
        centre[: len(where)] = _between(free.reshape(missing.shape)).ravel()[where]
        unused = np.full(self.number - len(where), missing.size)
        return {
            f"where {name} is missing": np.concatenate([where, unused]).astype("int64"),
            f"centre of missing {name}": centre,
            f"scale of missing {name}": np.asarray(spread if spread > 0 else 1.0),
        }

    @cached_property
    def _transform(self) -> Any:
        return _transform(self.spec, self.variable)

    def _unconstrained(self, values: np.ndarray) -> np.ndarray:
        if self._transform is None or not len(values):
            return values
        parents = self.spec.model[self.variable.name].owner.inputs
        return self._transform.forward(pt.as_tensor(values), *parents).eval(mode="FAST_COMPILE")


def imputation_obstacle(spec: ModelSpec, variable: DataVariable) -> str | None:
    """Why missing values of a variable cannot be parameters; None where they can."""
    if not variable.dtype.startswith("float"):
        return f"missing values of {variable.name!r} are discrete, which NUTS cannot sample"
    transform = _transform(spec, variable)
    if transform is None:
        return None
    rv = spec.model[variable.name]
    if getattr(transform, "ndim_supp", 0) > 0 or isinstance(rv.type, XTensorType):
        return f"missing values of {variable.name!r} are constrained by those that are present"
    free = pt.vector(shape=(2,))
    back = transform.backward(free, *rv.owner.inputs)
    others = [v for v in ancestors([back]) if v.owner is None and v is not free]
    if not all(isinstance(v, Constant) and v.type.ndim == 0 for v in others):
        return f"the range of {variable.name!r} depends on other variables"
    return None


def _transform(spec: ModelSpec, variable: DataVariable) -> Any:
    """What PyMC would transform the variable by if it were free."""
    rv = spec.model[variable.name]
    apart = pm.Model()
    apart.create_value_var(rv, transform=UNSET, default_transform=UNSET)
    return apart.rvs_to_transforms[rv]


def _between(values: np.ndarray) -> np.ndarray:
    """Put between its neighbours along the first axis what is missing: near to it, should values be a series."""
    present = values[np.isfinite(values)]
    otherwise = np.median(present) if len(present) else 0.0
    rows = np.arange(len(values)) if values.ndim else np.zeros(1)
    filled = values.reshape(len(rows), -1).copy()
    for column in filled.T:
        known = np.isfinite(column)
        column[~known] = np.interp(rows[~known], rows[known], column[known]) if known.any() else otherwise
    return filled.reshape(values.shape)
