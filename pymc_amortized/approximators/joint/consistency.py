r"""Self-consistency of a posterior and a likelihood that are learned together.

By Bayes' theorem :math:`\log p(\theta) + \log p(y \mid \theta) - \log p(\theta \mid y)` is the log evidence, the same
for every :math:`\theta`. Its variance over draws of the network's posterior, with the learned likelihood in the place
of the exact one, is zero where both are right (Schmitt et al. 2024, arXiv 2310.04395).

The draws are numbers, through which nothing is differentiated: the log prior, which PyTensor evaluates, and the
parameters of rows can be numbers too, and the gradient reaches the two networks through their log densities alone.
What enters is :math:`\log(1 + v)` of a variance :math:`v`, which is :math:`v` where it is small: single variances are
hundreds where a network is poor, and would drown everything else. The paper waits with the term until there is
something to be consistent about. Here networks start at regressions, which is something; and where simulations are few,
a network that is left to them alone has overfitted by the time the wait is over.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pymc_amortized.graph.data.datasets import of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.density.log_density import Constrain, LogPrior
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.rows.observed_rows import ObservedRows, hidden_name
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.networks.rows.row_network import TORCH, RowNetwork
from pymc_amortized.row_density.evaluation import RowDensity
from pymc_amortized.training.device import torch_generator

DATASETS, DRAWS = 8, 8
"""In a step. A variance over eight draws is right to a factor of about 1.7, of eight data sets to 1.2."""


def consistency_obstacle(spec: ModelSpec, rows: ObservedRows) -> str | None:
    """Why a model's self-consistency cannot be evaluated; None where it can."""
    if rows.series:
        return f"{rows.variable.name!r} is a series; independent rows are supported"
    if len(spec.observed) > 1:
        return f"the model observes {[v.name for v in spec.observed]}; one observed variable is supported"
    if any(v.missing for v in spec.observed):
        return "missing values are not supported"
    if spec.potentials:
        return f"potentials {list(spec.potentials)} are not supported"
    obstacle = LogPrior(spec).obstacle
    return f"the log prior cannot be evaluated: {obstacle}" if obstacle else None


class RowParameters(Constrain):
    """What rows depend on, from unconstrained draws: name -> (draws, *shape)."""

    @cached_property
    def names(self) -> list[str]:
        """Names of the deterministics that hold them."""
        return [name for name in self.spec.deterministics if name.startswith(hidden_name(0)[:-1])]


class SelfConsistency:
    """The term, for the two networks in turn.

    Parameters
    ----------
    spec : ModelSpec
        With the row parameters among its deterministics.
    rows : ObservedRows
        Of that, at the largest lengths.
    structure : Structure
    networks : tuple
        Of the posterior and of rows.
    simulations : Simulations
        Data sets to be consistent at.
    seed : numpy.random.SeedSequence
    compile_kwargs : mapping, optional
    """

    def __init__(
        self,
        spec: ModelSpec,
        rows: ObservedRows,
        inputs: Inputs,
        networks: tuple[PosteriorNetwork, RowNetwork],
        simulations: Simulations,
        seed: np.random.SeedSequence,
        compile_kwargs: CompileKwargs | None,
    ) -> None:
        self._spec, self._rows, self._inputs, self._simulations = spec, rows, inputs, simulations
        self._posterior, self._likelihood = networks
        self._rng = np.random.default_rng(seed)
        self._generator = torch_generator(seed, self._posterior.device)
        self._parameters, self._prior = RowParameters(spec, compile_kwargs), LogPrior(spec, compile_kwargs)

    def of_posterior(self) -> Tensor:
        """The term at new draws, as a function of the posterior's network."""
        self._draw()
        with torch.no_grad():
            log_likelihood = self._log_likelihood()
        return self._term(self._log_q(), log_likelihood)

    def of_likelihood(self) -> Tensor:
        """The term at the same draws, as a function of the row network."""
        if not hasattr(self, "_theta"):
            self._draw()
        with torch.no_grad():
            log_q = self._log_q()
        return self._term(log_q, self._log_likelihood())

    def _draw(self) -> None:
        """Choose data sets, draw from their posteriors, and evaluate what are numbers."""
        chosen = self._rng.choice(len(self._simulations), min(DATASETS, len(self._simulations)), replace=False)
        made = self._simulations.take(chosen)
        datasets = of_simulations(made)
        self._data = self._inputs(datasets)
        with torch.no_grad():
            theta, _ = self._posterior.sample(DRAWS, generator=self._generator, **self._data)
        self._theta = theta
        prior, values, parameters, index = [], [], [], []
        for i in range(len(made)):
            data = datasets.one(self._spec, i)
            mine = np.ascontiguousarray(theta[:, i].numpy())
            prior.append(self._prior(mine, data))
            rows = data[self._rows.variable.name].reshape(-1, self._rows.columns).astype("float64")
            values.append(np.tile(rows, (DRAWS, 1)))
            parameters.append(self._of_rows(self._parameters(mine, data), data, len(rows)))
            index.append(np.repeat(i * DRAWS + np.arange(DRAWS), len(rows)))
        self._log_prior = torch.as_tensor(np.stack(prior, axis=1))
        self._values = self._tensor(np.concatenate(values).T)
        self._row_parameters = self._tensor(np.concatenate(parameters).T)
        self._index = torch.as_tensor(np.concatenate(index), device=self._likelihood_device)

    def _of_rows(self, found: dict[str, np.ndarray], data: dict[str, np.ndarray], count: int) -> np.ndarray:
        """Parameters (draws * rows, numbers) of every row of one data set."""
        batch = data[self._rows.variable.name].shape[: self._rows.batch_ndim]
        length = count // max(int(np.prod(batch, dtype=int)), 1)
        parts = []
        for i, p in enumerate(self._rows.parameters):
            array = found[hidden_name(i)]
            lead = array.shape[1 : 1 + p.batch_ndim]
            array = array.reshape(DRAWS, *(1,) * (len(batch) - p.batch_ndim), *lead, 1, -1)
            full = np.broadcast_to(array, (DRAWS, *batch, length, array.shape[-1]))
            parts.append(full.reshape(DRAWS * count, -1))
        return np.concatenate(parts, axis=1)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array, dtype="float32"), device=self._likelihood_device)

    @property
    def _likelihood_device(self) -> torch.device:
        return next(self._likelihood.parameters()).device

    def _log_q(self) -> Tensor:
        return self._posterior.log_prob(self._theta, **self._data)

    def _log_likelihood(self) -> Tensor:
        """Learned log likelihood (draws, data sets)."""
        network = self._likelihood
        weights = tuple(dict(w.items()) for w in network.weights)  # type: ignore[operator]
        density = RowDensity(network.layout, network.size, weights)
        each = density.log_density(TORCH, list(self._values), list(self._row_parameters))
        total = torch.zeros(self._theta.shape[:2].numel(), device=each.device).index_add(0, self._index, each)
        return total.view(-1, DRAWS).T.cpu().double()

    def _term(self, log_q: Tensor, log_likelihood: Tensor) -> Tensor:
        log_evidence = self._log_prior + log_likelihood - log_q
        fine = torch.isfinite(log_evidence)
        count = fine.sum(0).clamp_min(2)
        safe = torch.where(fine, log_evidence, 0.0)
        spread = torch.where(fine, safe - safe.sum(0) / count, 0.0)
        return torch.log1p(spread.square().sum(0) / (count - 1)).mean().float()
