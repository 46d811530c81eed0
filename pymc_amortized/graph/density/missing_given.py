"""Missing values drawn given the free variables and all that is present."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from pymc_amortized.graph.data.datasets import gaps_of
from pymc_amortized.graph.density.given import Data, Given, PredictiveGivenOthers
from pymc_amortized.graph.density.log_density import Unconstrain
from pymc_amortized.graph.density.missing import LogDensityWithGaps, Rule
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs

TRIED = 8
"""Draws at which the rules are tried again, at the data in hand."""


class MissingGiven:
    """Draws of what is missing, by the rule that integrates it out.

    Parameters
    ----------
    spec : ModelSpec
    rules : mapping of name to rule
        From :func:`find_rules`.
    names : sequence of str
        The observed variables to complete.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        rules: Mapping[str, Rule | None],
        names: Sequence[str],
        compile_kwargs: CompileKwargs | None = None,
    ) -> None:
        self.spec, self.names, self._compile_kwargs = spec, tuple(names), compile_kwargs
        # a multivariate normal is quadratic, too
        self._rules = {n: "quadratic" if rule == "normal" else rule for n, rule in rules.items()}

    def __call__(self, given: Given, data: Data, seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Complete a data set for each draw of the free variables.

        Parameters
        ----------
        given : mapping of name to ndarray (n, *shape)
        data : mapping
            One data set, with its gaps.
        seed : numpy.random.SeedSequence

        Returns
        -------
        dict of name to ndarray
            For each variable its values (n, *shape), and as ``<name>_unobserved`` those that were missing (n, number).

        Raises
        ------
        ValueError
            When there is no rule for these data.
        """
        number = len(next(iter(given.values())))
        context = {c.name: np.broadcast_to(data[c.name], (number, *np.shape(data[c.name]))) for c in self.spec.context}
        theta = self._unconstrain({**given, **context})
        self._refuse(theta[:TRIED], data)
        by_series, by_draw = seed.spawn(2)
        drawn = self._density.draw(theta, data, np.random.default_rng(by_series))
        if self._forward is not None:
            drawn |= self._forward(given, self._density.filled(data), by_draw)
        masks = {name: data[gaps_of(name)] for name in self.names}
        whole = {name: np.where(mask, drawn[name], data[name]) for name, mask in masks.items()}
        return whole | {f"{name}_unobserved": whole[name][:, mask] for name, mask in masks.items()}

    def _refuse(self, theta: np.ndarray, data: Data) -> None:
        obstacle = self.spec.density_obstacle or self._density.obstacle(data)
        if obstacle is None and (disproved := self._density.disproved(theta, data)):
            obstacle = disproved[1]
        if obstacle:
            raise ValueError(
                f"what is missing cannot be drawn given what is present: {obstacle}. PyMC draws it by NUTS: build the "
                "model with a masked array as observed data, and use pm.sample"
            )

    @cached_property
    def _density(self) -> LogDensityWithGaps:
        return LogDensityWithGaps(self.spec, self._rules, self._compile_kwargs)

    @cached_property
    def _unconstrain(self) -> Unconstrain:
        return Unconstrain(self.spec, self._compile_kwargs)

    @cached_property
    def _forward(self) -> PredictiveGivenOthers | None:
        names = [name for name in self.names if self._rules.get(name) in ("element", "row")]
        return PredictiveGivenOthers(self.spec, names, self._compile_kwargs) if names else None
