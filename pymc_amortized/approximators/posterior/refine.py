"""Refining a posterior at one data set: truncated rounds (Deistler et al. 2022, arXiv 2210.04815).

Each round simulates data sets like the one at hand (its sizes, covariates and gaps) from the prior truncated to where
the posterior is found to be, and trains a network on them. What was learned serves twice: the first region is that
of the amortized network, and training goes on from its weights, unless a network begun anew in the region is better
there already. The result knows one data set only.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from pymc_amortized.approximators.fitting.arguments import check_integer, read_count
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.fitting.simulating import PILOT, prepare_batch
from pymc_amortized.approximators.posterior.choosing import build_network
from pymc_amortized.approximators.posterior.region import Region
from pymc_amortized.approximators.posterior.trained_posterior import TrainedPosterior
from pymc_amortized.approximators.simulations.given import FEWEST_USABLE
from pymc_amortized.graph.data.datasets import DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations, concatenate
from pymc_amortized.graph.density.log_density import Constrain, LogPrior
from pymc_amortized.graph.simulation.alike import ContextOfOne, SimulatorGiven
from pymc_amortized.graph.simulation.attempts import LARGEST_CHUNK
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.logs import logger
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.training import (
    Batch,
    FixedSimulations,
    Trained,
    Training,
    choose_device,
    fastest_step,
    summary_line,
    torch_threads,
    train,
)
from pymc_amortized.training.device import integer_seed, isolated_random_numbers, torch_generator
from pymc_amortized.training.run import RESTART_RATE


def refine[P: TrainedPosterior](
    posterior: P,
    datasets: DataSets,
    *,
    rounds: int,
    num_simulations: int | None,
    max_time: float | None,
    device: str | torch.device | None,
    random_seed: RandomState,
    progressbar: bool,
) -> P:
    """Train on around one data set; :meth:`AmortizedPosterior.refine` says how."""
    if max_time is not None and not (isinstance(max_time, int | float) and 0 < max_time < math.inf):
        raise ValueError(f"max_time must be a number of seconds > 0, got {max_time!r}")
    if posterior.spec.locals:
        names = [p.name for p in posterior.spec.locals]
        raise ValueError(
            f"refine: values of groups ({names}) are integrated out, and the few parameters that are left are "
            "corrected by weights: continue_training() makes the network better"
        )
    number = read_count("num_simulations", num_simulations, smallest=FEWEST_USABLE)
    number = number or min(posterior.provenance.num_simulations or 2**14, 2**14)
    rounds = check_integer("rounds", rounds)
    work = _Refinement(posterior, datasets, number, choose_device(device), progressbar)
    seconds = (60.0 if max_time is None else max_time) / rounds
    best, efficiency = posterior, work.efficiency(posterior)
    for turn, seed in enumerate(seed_sequence(random_seed).spawn(rounds), start=1):
        found = work.round(best, seconds, seed)
        if found is None:
            break
        new = work.efficiency(found.posterior)
        # an efficiency below 0.01 rests on a few of some thousand proposals, and cannot tell two rounds apart
        kept = math.isnan(new) or new >= efficiency or efficiency < 0.01
        line = f"Round {turn} of {rounds}: {summary_line(found.trained)}"
        if not math.isnan(new):
            line += f" Importance efficiency at the data set: {efficiency:.1%} -> {new:.1%}"
            line += "." if kept else "; the round is not kept."
        logger.info(line)
        if not kept:
            break  # another round would begin where this one did
        best, efficiency = found.posterior, new
    logger.info("The refined posterior is that of one data set; it is no longer amortized.")
    return best.replaced(local_to=datasets)


@dataclass(frozen=True, eq=False)
class _Round[P: TrainedPosterior]:
    """What came of a round."""

    posterior: P
    trained: Trained


class _Refinement:
    """What all rounds share: the data set, and the compiled functions."""

    def __init__(
        self, posterior: TrainedPosterior, datasets: DataSets, number: int, device: torch.device, progressbar: bool
    ) -> None:
        self.spec, self.inputs = posterior.spec, posterior.inputs
        self.datasets, self.number = self.inputs.sketched(datasets), number
        self.device, self.progressbar = device, progressbar
        kwargs = posterior.compile_kwargs
        self.simulator = Simulator(
            self.spec, context=ContextOfOne(self.spec, datasets), deterministics=False, compile_kwargs=kwargs
        )
        self.given = SimulatorGiven(self.spec, datasets, kwargs)
        self.log_prior, self.constrain = LogPrior(self.spec, kwargs), Constrain(self.spec, kwargs)
        self.everything = datasets.one(self.spec, 0)
        self.tried: Simulations | None = None

    def efficiency(self, posterior: TrainedPosterior) -> float:
        """Importance effective sample size per proposal at the data set; NaN without a density."""
        weights = posterior.weights_of(self.datasets, np.random.SeedSequence(0))
        return weights[0].ess / weights[0].weights.size if weights else math.nan

    def round[P: TrainedPosterior](
        self, posterior: P, seconds: float, seed: np.random.SeedSequence
    ) -> _Round[P] | None:
        """Simulate in the region of a posterior, and train on that; None where it cannot be drawn from."""
        region_seed, simulation_seed, network_seed = seed.spawn(3)
        simulations = self._simulate(posterior, self._region(posterior, region_seed), simulation_seed)
        if simulations is None:
            return None
        options = replace(posterior.provenance.training, num_steps=None, max_time=seconds)
        held = max(round(options.held_out * len(simulations)), 1)
        parts = simulations.take(slice(held, None)), simulations.take(slice(held))
        torch_seed = integer_seed(network_seed)
        network, local = self._start(posterior.network, *parts, torch_seed)
        if not local:
            options = replace(options, learning_rate=options.learning_rate * RESTART_RATE)
        network.to(self.device)

        def prepare(made: Simulations) -> Batch:
            return prepare_batch(network, self.inputs, made.unconstrained, made, self.device)

        training = prepare(parts[0])
        batch = training[0][: options.batch_size], {k: v[: options.batch_size] for k, v in training[1].items()}
        step, threads = fastest_step(network, *batch, options.threads)
        options = replace(options.planned(step), threads=threads)
        source = FixedSimulations(*training, options.batch_size, seed=torch_seed, device=self.device)
        with torch_threads(threads):
            trained = train(
                network,
                source,
                prepare(parts[1]),
                options,
                seed=torch_seed,
                progress=self.progressbar,
                device=self.device,
            )
        return _Round(self._described(posterior, trained, options, simulations), trained)

    def _region(self, posterior: TrainedPosterior, seed: np.random.SeedSequence) -> Region:
        """Where the posterior lies: corrected draws, where the model's density gives any, lie inside."""
        corrected = None
        torch_seed, draw_seed = seed.spawn(2)
        if posterior.weights_of(self.datasets, draw_seed):
            corrected = posterior.corrected_draws(self.datasets, draw_seed)
        generator = torch_generator(torch_seed, posterior.network.device)
        return Region.around(posterior.approximation(self.datasets), corrected, generator)

    def _simulate(
        self, posterior: TrainedPosterior, region: Region, seed: np.random.SeedSequence
    ) -> Simulations | None:
        """Simulate data sets like this one from the prior inside the region."""
        tried_seed, more_seed, chain_seed = seed.spawn(3)
        if self.tried is None:
            self.tried = self.simulator(4096, tried_seed)  # draws that show which share of the prior lies inside
        share = float(region.holds(self.tried.unconstrained).mean())
        # many are simply taken; without a density of the prior, below 0.005 a region costs too much to draw from
        if share >= 0.1 or (self.log_prior.obstacle and share >= 0.005):
            parts = [made.take(region.holds(made.unconstrained)) for made in self._prior_draws(share, more_seed)]
            return concatenate(parts)
        if self.log_prior.obstacle:
            logger.warning(
                "Refining stops: %.2g of the prior lies where the posterior of this data set is found, and the prior "
                "inside can only be drawn from by rejection (%s).",
                share,
                self.log_prior.obstacle,
            )
            return None
        return self._simulate_given(posterior, region, chain_seed)

    def _prior_draws(self, share: float, seed: np.random.SeedSequence) -> Iterator[Simulations]:
        wanted = math.ceil(self.number / share)
        sizes = [LARGEST_CHUNK] * (wanted // LARGEST_CHUNK) + [wanted % LARGEST_CHUNK]
        for n, child in zip(sizes, seed.spawn(len(sizes)), strict=True):
            if n:
                yield self.simulator(n, child)

    def _simulate_given(self, posterior: TrainedPosterior, region: Region, seed: np.random.SeedSequence) -> Simulations:
        chain_seed, torch_seed, data_seed = seed.spawn(3)
        generator = torch_generator(torch_seed, posterior.network.device)
        theta = region.sample(
            self.number, lambda t: self.log_prior(t, self.everything), np.random.default_rng(chain_seed), generator
        )
        starts = range(0, len(theta), LARGEST_CHUNK)
        parts = []
        for start, child in zip(starts, data_seed.spawn(len(starts)), strict=True):
            variables = self.constrain(theta[start : start + LARGEST_CHUNK], self.everything)
            parts.append(self.given({p.name: variables[p.name] for p in self.spec.parameters}, child))
        return concatenate(parts)

    def _start(
        self, network: PosteriorNetwork, training: Simulations, held_out: Simulations, seed: int
    ) -> tuple[PosteriorNetwork, bool]:
        """The network so far, or one that begins at the regression in the region: the better of both there.

        A region that is small beside the prior is hardly seen by statistics of the whole prior.
        """
        if network.summary_options is None or network.density_options is None:
            return copy.deepcopy(network), False  # networks of the user's own are not begun anew
        some = training.take(slice(PILOT))
        with isolated_random_numbers(seed, torch.device("cpu")):
            local = build_network(self.inputs, some, network.summary_options, network.density_options)
        local.eval()
        given = self.inputs(of_simulations(held_out))
        with torch.inference_mode():
            so_far, anew = (
                float(n.log_prob(held_out.unconstrained, **given).mean().nan_to_num(-math.inf))
                for n in (network, local)
            )
        return (local, True) if anew > so_far else (copy.deepcopy(network), False)

    def _described[P: TrainedPosterior](
        self, posterior: P, trained: Trained, options: Training, simulations: Simulations
    ) -> P:
        before = posterior.provenance
        provenance = replace(
            before,
            training=options,
            num_simulations=self.number,
            simulations=before.simulations + trained.simulations,
            attempted=before.attempted + simulations.attempted,
            settled=trained.settled,
            held_out_loss=float(trained.held_out_loss),
        )
        assert isinstance(trained.network, PosteriorNetwork)
        return posterior.replaced(
            network=trained.network,
            history=trained.history,
            state=trained.state,
            provenance=provenance,
            reference=None,  # it was learned of another network's features, and of data sets all over the prior
        )
