"""Compiled samplers of one model, kept for later data sets."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pytensor.gradient import DisconnectedInputError, NullTypeGradError

from pymc_amortized.graph.data.datasets import gaps_of
from pymc_amortized.graph.density.imputed import imputation_obstacle
from pymc_amortized.graph.density.log_density import Data
from pymc_amortized.graph.density.missing import LogDensityWithGaps, Rules
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.nuts.pymc_sampler import Sampler, nuts_sampler
from pymc_amortized.graph.nuts.whitened import WhitenedModel


class NoGradientError(Exception):
    """A model that NUTS cannot run on, and why."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """A whitened model and its sampler."""

    whitened: WhitenedModel
    sampler: Sampler
    slots: dict[str, int]


class Samplers:
    """Samplers by the number of values that can be missing.

    Parameters
    ----------
    spec : ModelSpec
    rules : mapping of name to rule
    compile_kwargs : mapping, optional
    """

    def __init__(self, spec: ModelSpec, rules: Rules, compile_kwargs: CompileKwargs | None = None) -> None:
        self._spec, self._rules, self._compile_kwargs = spec, rules, compile_kwargs
        gaps = any(v.missing for v in spec.observed)
        self._density = LogDensityWithGaps(spec, rules) if gaps else None
        self._compiled: list[Compiled] = []

    def obstacle(self, data: Data) -> str | None:
        """Why NUTS cannot sample what is missing of a data set; None where it can."""
        imputed = [v for v in self._spec.observed if v.name in self.needs(data)]
        return next((o for v in imputed if (o := imputation_obstacle(self._spec, v))), None)

    def needs(self, data: Data) -> dict[str, int]:
        """For each variable whose missing values have to be parameters, how many are missing."""
        names = self._density.not_left_out(data) if self._density else []
        return {name: int(data[gaps_of(name)].sum()) for name in names}

    def compiled_for(self, needs: Mapping[str, int], number_of_locals: int = 0) -> Compiled:
        """Compile a sampler with enough slots, for so many locals, or find one.

        Raises
        ------
        NoGradientError
            When the model has no gradient.
        """
        dim = self._spec.dim + number_of_locals
        for compiled in (c for c in self._compiled if c.whitened.dim == dim):
            # up to four times as many slots as are needed are better left empty than compiled for anew
            if compiled.slots.keys() == needs.keys() and all(
                n <= compiled.slots[name] <= 4 * n for name, n in needs.items()
            ):
                return compiled
        slots = {name: 2 ** int(np.ceil(np.log2(n))) for name, n in needs.items()}
        whitened = WhitenedModel(self._spec, self._rules, slots, number_of_locals)
        try:
            sampler = nuts_sampler(whitened.model, whitened.shared, self._compile_kwargs)
        except (NotImplementedError, NullTypeGradError, DisconnectedInputError) as error:
            raise NoGradientError(str(error).strip().splitlines()[0]) from error
        self._compiled.append(Compiled(whitened, sampler, slots))
        return self._compiled[-1]
