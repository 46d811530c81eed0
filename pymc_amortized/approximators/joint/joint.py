"""The posterior and the likelihood of a PyMC model, learned together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, ClassVar, Literal

import xarray as xr

from pymc_amortized.approximators.fitting.seeds import RandomState
from pymc_amortized.approximators.joint.batches import rows_at_largest
from pymc_amortized.approximators.likelihood.likelihood import AmortizedLikelihood
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.approximators.storage.save import save
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.rows.exchange import with_learned_density
from pymc_amortized.graph.rows.observed_rows import ObservedRows
from pymc_amortized.graph.simulation.sending import Sendable
from pymc_amortized.results.cards import Card

Density = Literal["auto", "learned", "exact"]


@dataclass(frozen=True, eq=False, repr=False)
class AmortizedJoint(Card, Sendable):
    """A posterior and a likelihood that were trained on the same simulations.

    Made by :func:`fit_joint` or :func:`load`; immutable.

    Attributes
    ----------
    posterior : AmortizedPosterior
        Its draws are corrected by the model's exact density where there is one, otherwise by the learned likelihood;
        results then carry the attribute ``density="learned"``.
    likelihood : AmortizedLikelihood
        Of the observed variable's rows, for any PyMC model.

    Examples
    --------
    With the joint of :func:`fit_joint`'s example, read again from a file:

    >>> joint.save("joint.pma")
    >>> type(pma.load("joint.pma", model=model)).__name__
    'AmortizedJoint'
    """

    NEXT: ClassVar[str] = "dt = joint.posterior.sample(data)\njoint.log_marginal_likelihood(data)\njoint.save(path)"

    posterior: AmortizedPosterior
    likelihood: AmortizedLikelihood

    def log_marginal_likelihood(
        self,
        observed: Mapping[str, Any] | xr.Dataset | None = None,
        *,
        batched: bool = False,
        proposals: int = 10_000,
        density: Density = "auto",
        random_seed: RandomState = None,
    ) -> xr.Dataset:
        """Estimate the log marginal likelihood of one data set, or of many, also of models without a density.

        Parameters
        ----------
        observed, batched, proposals, random_seed
            As in :meth:`AmortizedPosterior.log_marginal_likelihood`.
        density : {"auto", "learned", "exact"}
            What the likelihood is: the learned one, the model's own, or the model's own where it has one.

        Returns
        -------
        xarray.Dataset
            As from :meth:`AmortizedPosterior.log_marginal_likelihood`; the attribute ``density`` says which one it is.
            The error of the learned likelihood itself is not part of ``mcse``: it adds up over rows, and
            :attr:`AmortizedLikelihood.error` tells it where it is known.

        Raises
        ------
        ValueError
            When the density cannot be evaluated, or `density` is none of these.
        """
        if density not in ("auto", "learned", "exact"):
            raise ValueError(f"density must be 'auto', 'learned' or 'exact', got {density!r}")
        posterior = {"auto": self.posterior, "learned": self.by_learned_likelihood, "exact": self._by_exact_density}
        found = posterior[density].log_marginal_likelihood(
            observed, batched=batched, proposals=proposals, random_seed=random_seed
        )
        return found.assign_attrs({"density": "exact"} | found.attrs)

    @cached_property
    def by_learned_likelihood(self) -> AmortizedPosterior:
        """The posterior with draws corrected by the learned likelihood, whether or not there is an exact one."""
        if self.posterior.learned is not None:
            return self.posterior
        return learned_posterior(self.posterior, self.likelihood)

    @cached_property
    def _by_exact_density(self) -> AmortizedPosterior:
        return self.posterior if self.posterior.learned is None else replace(self.posterior, learned=None)

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights and a description, never code, to a file that :func:`load` reads.

        Parameters
        ----------
        path : path-like
            An existing file is replaced.
        """
        save(self, path)

    def __repr__(self) -> str:
        parts = (f"{part!r}".replace("\n", "\n  ") for part in (self.posterior, self.likelihood))
        return "AmortizedJoint\n  " + "\n  ".join(parts)


def learned_posterior(posterior: AmortizedPosterior, likelihood: AmortizedLikelihood) -> AmortizedPosterior:
    """Return a posterior whose draws are corrected by a learned likelihood.

    Parameters
    ----------
    posterior : AmortizedPosterior
    likelihood : AmortizedLikelihood
        Of an observed variable of the same model.
    """
    rows = rows_at_largest(posterior.spec, likelihood.rows)
    learned = with_learned_density(posterior.spec, rows, likelihood.emulator)
    return replace(posterior, learned=learned, gaps=_gaps(posterior, rows))


def _gaps(posterior: AmortizedPosterior, rows: ObservedRows) -> dict[str, Rule | None]:
    """Rows are independent given the parameters: what is missing of them is left out."""
    gaps = dict(posterior.gaps)
    if rows.variable.name in gaps:
        gaps[rows.variable.name] = None if rows.series else "row" if rows.event_shape else "element"
    return gaps
