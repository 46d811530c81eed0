"""Calibration around one data set: replicated data from its posterior, each inferred anew (posterior SBC).

A parameter drawn from the posterior of the data, and data replicated by it, are draws of a joint distribution whose
prior is that posterior (Säilynoja et al. 2025, arXiv 2502.03279). So the posterior given both data sets has to rank it
uniformly. The amortized posterior of the replicated data alone becomes that one by importance weights: the likelihood
of the data in hand.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import xarray as xr

from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.diagnostics.statistics import SAMPLE
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import LogPrior, Unconstrain
from pymc_amortized.graph.simulation.alike import SimulatorGiven
from pymc_amortized.logs import logger
from pymc_amortized.numerics.sampling.importance import effective_size, resample


@dataclass(frozen=True)
class Around:
    """Data sets like those that parameters from the posterior of one data set make.

    Attributes
    ----------
    posterior : AmortizedPosterior
    datasets : DataSets
        The one data set.
    """

    posterior: AmortizedPosterior
    datasets: DataSets

    def check(self) -> None:
        """Refuse what has no likelihood to weigh draws by.

        Raises
        ------
        ValueError
        """
        if len(self.datasets) != 1:
            raise ValueError(f"observed must be one data set, got {len(self.datasets)}")
        obstacle = self.posterior.compiled.obstacles(self.datasets)[0] or self._log_prior.obstacle
        if obstacle:
            raise ValueError(f"observed: calibration around a data set needs the model's likelihood: {obstacle}")

    @cached_property
    def _log_prior(self) -> LogPrior:
        return LogPrior(self.posterior.weighed_by, self.posterior.compile_kwargs)

    @cached_property
    def _unconstrain(self) -> Unconstrain:
        return Unconstrain(self.posterior.spec, self.posterior.compile_kwargs)

    def simulate(self, number: int, seed: np.random.SeedSequence) -> Simulations:
        """Replicate the data set by so many draws of its corrected posterior."""
        spec, (draw_seed, simulate_seed) = self.posterior.spec, seed.spawn(2)
        tree = self.posterior.sample(
            cast(Any, self.datasets),  # read before
            draws=-(-number // 4),
            chains=4,
            var_names=[p.name for p in spec.parameters],
            random_seed=draw_seed.generate_state(4).tolist(),
            progressbar=False,
        )
        stage = str(tree.sample_stats["stage"].to_numpy())
        if stage in ("failed", "not reached"):
            logger.warning(
                'The draws of the data in hand are marked "%s": data that they replicate test a posterior around other '
                "parameters.",
                stage,
            )
        draws = tree["posterior"].to_dataset()
        flat = {p.name: _flattened(draws[p.name])[:number] for p in spec.parameters}  # groups are new ones
        return SimulatorGiven(spec, self.datasets, self.posterior.compile_kwargs)(flat, simulate_seed)

    def reweighed(self, tree: xr.DataTree, rng: np.random.Generator) -> tuple[xr.DataTree, np.ndarray]:
        """Resample draws for replicated data by the likelihood of the data in hand.

        Returns
        -------
        tree : xarray.DataTree
            Groups ``posterior`` and ``sample_stats``.
        share : ndarray (data sets,)
            Of the draws that those are worth.
        """
        posterior, stats = (tree[group].to_dataset() for group in ("posterior", "sample_stats"))
        log_weights = np.stack(
            [self._log_likelihood(posterior.isel({DATASET_DIM: i})) for i in range(posterior.sizes[DATASET_DIM])]
        )
        log_weights -= log_weights.max(axis=1, keepdims=True)
        weights = np.exp(log_weights)
        index = resample(weights / weights.sum(axis=1, keepdims=True), weights.shape[1], rng)
        groups = {"posterior": _taken(posterior, index), "sample_stats": _taken(stats, index)}
        return xr.DataTree.from_dict(groups), effective_size(log_weights) / weights.shape[1]

    def _log_likelihood(self, draws: xr.Dataset) -> np.ndarray:
        """Log likelihood (draws,) of the data in hand."""
        spec = self.posterior.weighed_by
        given = self.datasets.one(spec, 0)
        flat = {p.name: _flattened(draws[p.name]) for p in spec.parameters}
        number = len(next(iter(flat.values())))
        context = {c.name: np.repeat(given[c.name][None], number, axis=0) for c in spec.context}
        theta = self._unconstrain({**flat, **context})
        log_p = self.posterior.compiled.log_density(theta, given) - self._log_prior(theta, given)
        return np.where(np.isfinite(log_p), log_p, -1e300)


def _flattened(values: xr.DataArray) -> np.ndarray:
    """(chain, draw, *shape) -> (draws, *shape)."""
    array = values.transpose(*SAMPLE, ...).to_numpy()
    return array.reshape(-1, *array.shape[2:])


def _taken(variables: xr.Dataset, index: np.ndarray) -> xr.Dataset:
    """Take draws at index (data sets, draws) of all chains, from those variables that have draws."""

    def take(values: xr.DataArray) -> xr.DataArray:
        if not set(SAMPLE) <= set(values.dims):
            return values
        ordered = values.transpose(DATASET_DIM, *SAMPLE, ...)
        flat = ordered.to_numpy().reshape(*index.shape, -1)
        return ordered.copy(data=np.take_along_axis(flat, index[..., None], axis=1).reshape(ordered.shape))

    return variables.map(take, keep_attrs=True)
