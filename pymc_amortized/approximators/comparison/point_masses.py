"""Values to which one model gives a probability and another only a density: their evidence is in no proportion."""

from collections.abc import Mapping

import numpy as np

from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.simulation.atoms import find_atoms
from pymc_amortized.logs import logger


def warn_of_atoms(spec: ModelSpec, pilot: Mapping[str, Simulations]) -> bool:
    """Log where one model gives values of a continuous variable positive probability, and another never does.

    Returns whether there are any.

    Parameters
    ----------
    spec : ModelSpec
        Of the data of all models.
    pilot : mapping of name to Simulations
    """
    said = False
    for v in spec.observed:
        if np.dtype(v.dtype).kind == "f":
            if _warn_of_values(v, {name: _values(v, made)[:200_000] for name, made in pilot.items()}):
                said = True
                continue
            for what in [c.name for c in spec.context if c.shape in ((), v.shape)]:
                equal = {name: _equal_to(v, made, what) for name, made in pilot.items()}
                said |= _warn_of_kind(v, f"the value of {what!r}", equal)
            said |= _warn_of_kind(v, "one value several times", {name: _ties(v, made) for name, made in pilot.items()})
    return said


def _warn_of_values(v: DataVariable, values: Mapping[str, np.ndarray]) -> bool:
    """Log single values that one model gives a probability; return whether there are any."""
    said = False
    for name, each in values.items():
        found, counts = find_atoms(each)
        for other in values:
            alone = ~np.isin(found, values[other])
            if other != name and alone.any():
                k = int(np.argmax(np.where(alone, counts, 0)))
                _say_atom(v, f"the value {found[k]:.4g}", name, counts[k] / len(each), other)
                said = True
    return said


def _warn_of_kind(v: DataVariable, what: str, shares: Mapping[str, float]) -> bool:
    """Log a kind of value that has a share of one model's entries and none of another's; return whether there is."""
    said = False
    for name, share in shares.items():
        without = [other for other in shares if shares[other] == 0]
        if share > 1e-4 and without:
            _say_atom(v, what, name, share, without[0])
            said = True
    return said


def _say_atom(v: DataVariable, what: str, name: str, share: float, other: str) -> None:
    logger.warning(
        "Model %r gives %r %s in %.2g%% of its simulated entries, model %r never: at data with that a probability "
        "stands beside a density, and their evidence is in no proportion. Believe the classifier there.",
        name,
        v.name,
        what,
        100 * share,
        other,
    )


def _equal_to(v: DataVariable, made: Simulations, context: str) -> float:
    """Share of a variable's entries that are those of an array of context, a limit say."""
    array, limit = np.asarray(made.data[v.name]), np.asarray(made.data[context])
    return float((array == limit.reshape(len(array), *limit.shape[1:], *[1] * (array.ndim - limit.ndim))).mean())


def _ties(v: DataVariable, made: Simulations) -> float:
    """Share of a variable's entries that another of the same data set repeats: at a limit that is a parameter, say."""
    array = np.sort(np.asarray(made.data[v.name]).reshape(len(made), -1), axis=1)
    again = (array[:, 1:] == array[:, :-1]) & np.isfinite(array[:, 1:])
    return float(again.sum() / max(np.isfinite(array).sum(), 1))


def _values(v: DataVariable, made: Simulations) -> np.ndarray:
    """All entries of a variable that exist, in any order."""
    array = np.asarray(made.data[v.name])
    exists = np.ones(array.shape, dtype=bool)
    for i, (dim, length) in enumerate(zip(v.dims, v.shape, strict=False)):
        if length is None and dim is not None:
            before = np.arange(array.shape[1 + i]) < np.asarray(made.lengths[dim])[:, None]
            exists &= before.reshape(len(array), *(-1 if j == i else 1 for j in range(array.ndim - 1)))
    return array[exists]
