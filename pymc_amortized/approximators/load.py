"""Reading files: the one place that knows every kind of object that can be saved."""

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, overload

import pymc as pm
from torch import nn

from pymc_amortized.approximators.comparison.comparison import AmortizedComparison
from pymc_amortized.approximators.comparison.file import SavedComparison, read_comparison
from pymc_amortized.approximators.joint.file import SavedJoint, read_joint
from pymc_amortized.approximators.joint.joint import AmortizedJoint
from pymc_amortized.approximators.likelihood.file import SavedLikelihood, read_likelihood
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.posterior.file import SavedPosterior, read_posterior
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.brought import Brought
from pymc_amortized.approximators.storage.save import read_file
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.logs import working

READERS: dict[type, tuple[type, Callable[[Any, Brought], Any]]] = {
    SavedPosterior: (AmortizedPosterior, partial(read_posterior, kind=AmortizedPosterior)),
    SavedLikelihood: (AmortizedLikelihood, read_likelihood),
    SavedJoint: (AmortizedJoint, read_joint),
    SavedComparison: (AmortizedComparison, read_comparison),
}


@overload
def load[T](
    path: str | PathLike[str],
    *,
    kind: type[T],
    model: pm.Model | Mapping[str, pm.Model] | None = None,
    summary: nn.Module | None = None,
    density: nn.Module | Callable[[int, int], nn.Module] | None = None,
    compile_kwargs: CompileKwargs | None = None,
) -> T: ...
@overload
def load(
    path: str | PathLike[str],
    *,
    kind: None = None,
    model: pm.Model | Mapping[str, pm.Model] | None = None,
    summary: nn.Module | None = None,
    density: nn.Module | Callable[[int, int], nn.Module] | None = None,
    compile_kwargs: CompileKwargs | None = None,
) -> AmortizedPosterior | AmortizedLikelihood | AmortizedJoint | AmortizedComparison: ...
@working("Reading the file, and comparing the model with it")
def load(
    path: str | PathLike[str],
    *,
    kind: type | None = None,
    model: pm.Model | Mapping[str, pm.Model] | None = None,
    summary: nn.Module | None = None,
    density: nn.Module | Callable[[int, int], nn.Module] | None = None,
    compile_kwargs: CompileKwargs | None = None,
) -> Any:
    """Read a posterior, a likelihood, both, or a comparison that its method ``save`` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    kind : type, optional
        What it has to hold, such as ``pma.AmortizedPosterior``: a file of another kind is refused, and type checkers
        know what is returned.
    model : pymc.Model, or mapping of name to pymc.Model, optional
        The model it was trained for, or those of a comparison by name; the context's model by default. They are
        compared with those in the file.
    summary, density : torch.nn.Module, optional
        Networks of your own, where the posterior was trained with such.
    compile_kwargs : mapping, optional
        Passed to ``pymc.compile``.

    Returns
    -------
    AmortizedPosterior, AmortizedLikelihood, AmortizedJoint or AmortizedComparison

    Raises
    ------
    FileNotFoundError
    ValueError
        When the file is damaged or not one of ours, or the model is another one; the difference is named.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> posterior.save("posterior.pma")
    >>> again = pma.load("posterior.pma", model=model)
    >>> again.sample({"y": np.zeros(4)}, draws=100, random_seed=1).posterior["mu"].sizes["draw"]
    100
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    brought = Brought(path, model, summary, density, compile_kwargs)

    def use(saved: Any) -> Any:
        found, read = READERS[type(saved)]
        if kind not in (None, found):
            wanted = getattr(kind, "__name__", kind)
            raise ValueError(f"kind: {path.name!r} holds an {found.__name__}, and {wanted} was asked for")
        return read(saved, brought)

    return read_file(brought, list(READERS), use)
